//! Roles: who may request, review, query, undo and administer what. Read from one YAML file, all or nothing.
//!
//! It must not do I/O or know certificates: it answers for names. Fails closed: a name without a role may nothing, a file
//! with anything that is not understood is refused with place and cure.

mod delegation;
mod escalation;
mod keys;
mod load;
mod raw;
mod session;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use crate::glob::Glob;

pub use delegation::NoDelegation;
pub use escalation::Escalation;
pub use keys::{NamedKey, Unsigned, short};
pub use session::{NoSession, SessionRights};

/// The entry that stands for every name that has none of its own.
const EVERYBODY: &str = "*";

/// A loaded role file. Immutable.
#[derive(Debug)]
pub struct Roles {
    digest: String,
    roles: BTreeMap<String, Role>,
    people: BTreeMap<String, Vec<String>>,
    services: BTreeMap<String, Vec<String>>,
    agents: BTreeMap<String, Vec<String>>,
    keys: BTreeMap<String, Vec<NamedKey>>,
    needed: Vec<keys::Needed>,
    escalate: Vec<escalation::Rule>,
    delegate_ns: Option<i64>,
}

/// Which categories a file may name.
#[derive(Debug, Clone, Copy)]
pub enum Known<'a> {
    /// Those of the policy in force: a pattern that matches none of them is an error.
    Only(&'a [String]),
    /// The policy is not known here; only the form is checked.
    Any,
}

/// Patterns of categories, as written and as matched.
#[derive(Debug, Clone, Default)]
pub struct Categories {
    written: Vec<String>,
    globs: Vec<Glob>,
}

/// One role: a set of rights. What it does not name, it does not give.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Categories that a session may request.
    pub request: Categories,
    /// Categories whose requests may be decided.
    pub review: Categories,
    /// Highest risk of those.
    pub review_max_risk: u8,
    /// Only requests that were escalated.
    pub review_escalated: bool,
    /// Reading sessions, records and the log.
    pub query: bool,
    /// Categories whose effects may be undone.
    pub undo: Categories,
    /// Administering: erasing, asking about others.
    pub administer: bool,
    /// For whom sessions may be started: names, or `*`.
    pub start_for_others: Vec<String>,
}

/// Who is asked about. Agents and people are different name spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// A person or a service, by the name of the host's user or of the certificate.
    Principal(&'a str),
    /// An agent.
    Agent(&'a str),
}

/// What a subject asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right<'a> {
    /// A session may request execs of this category.
    Request(&'a str),
    /// Requests of this category and risk may be decided.
    Review(&'a str, u32),
    /// Requests of this category and risk may be decided once they were escalated.
    ReviewEscalated(&'a str, u32),
    /// Reading.
    Query,
    /// Effects of this category may be undone.
    Undo(&'a str),
    /// Administering.
    Administer,
    /// Starting a session for this person.
    StartFor(&'a str),
}

/// A right that is missing, with the roles that do not give it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{subject} may not {right}: {why}")]
pub struct Missing {
    /// Who.
    pub subject: String,
    /// What.
    pub right: String,
    /// Which roles lack it, or that there is none.
    pub why: String,
}

// === impl Roles ===

impl Roles {
    /// SHA-256 of the file, in hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Names of the subject's roles, as bound. Nothing for a subject that the file does not name.
    #[must_use]
    pub fn names_of(&self, subject: Subject<'_>) -> &[String] {
        let found = match subject {
            Subject::Principal(name) => {
                // `*` is an entry of people, never a name that somebody has.
                let own = |entries: &'_ BTreeMap<String, Vec<String>>| {
                    (name != EVERYBODY).then(|| entries.contains_key(name))
                };
                match (own(&self.people), own(&self.services)) {
                    (Some(true), _) => self.people.get(name),
                    (_, Some(true)) => self.services.get(name),
                    _ => self.people.get(EVERYBODY),
                }
            }
            Subject::Agent(name) => self.agents.get(name).or_else(|| self.agents.get(EVERYBODY)),
        };
        found.map(Vec::as_slice).unwrap_or_default()
    }

    /// The subject's roles, each with its name.
    pub fn of<'a>(&'a self, subject: Subject<'_>) -> impl Iterator<Item = (&'a str, &'a Role)> {
        self.names_of(subject).iter().filter_map(|name| Some((name.as_str(), self.roles.get(name)?)))
    }

    /// The role that gives the right.
    ///
    /// # Errors
    ///
    /// None does: the refusal names right, category, risk and the roles that lack it.
    pub fn check(&self, subject: Subject<'_>, right: Right<'_>) -> Result<&str, Missing> {
        let found = self.of(subject).find(|(_, role)| role.gives(right)).map(|(name, _)| name);
        found.ok_or_else(|| Missing {
            subject: subject.to_string(),
            right: right.to_string(),
            why: self.why_not(subject, right),
        })
    }

    fn why_not(&self, subject: Subject<'_>, right: Right<'_>) -> String {
        let names: Vec<String> = self.names_of(subject).iter().map(|n| format!("`{n}`")).collect();
        let lower = match right {
            Right::Review(category, _) | Right::ReviewEscalated(category, _) => {
                self.of(subject).filter(|(_, r)| r.review.has(category)).map(|(_, r)| r.review_max_risk).max()
            }
            _ => None,
        };
        let waits = match right {
            Right::Review(category, risk) => {
                self.of(subject).any(|(_, role)| role.gives(Right::ReviewEscalated(category, risk)))
            }
            _ => false,
        };
        if waits {
            return format!("its roles {} review this only once it was escalated", names.join(", "));
        }
        match (names.as_slice(), lower) {
            ([], _) => "it has no role".to_owned(),
            (_, Some(risk)) => format!("its roles {} review this category up to risk {risk}", names.join(", ")),
            ([one], None) => format!("its role {one} does not give it"),
            (_, None) => format!("none of its roles {} gives it", names.join(", ")),
        }
    }

    /// How many roles it defines, and how many names it binds.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        (self.roles.len(), self.people.len() + self.services.len() + self.agents.len())
    }
}

// === impl Role ===

impl Role {
    fn gives(&self, right: Right<'_>) -> bool {
        match right {
            Right::Request(category) => self.request.has(category),
            Right::Review(category, risk) => {
                !self.review_escalated && self.gives(Right::ReviewEscalated(category, risk))
            }
            Right::ReviewEscalated(category, risk) => {
                self.review.has(category) && risk <= u32::from(self.review_max_risk)
            }
            Right::Query => self.query,
            Right::Undo(category) => self.undo.has(category),
            Right::Administer => self.administer,
            Right::StartFor(name) => self.start_for_others.iter().any(|n| n == name || n == EVERYBODY),
        }
    }
}

// === impl Categories ===

impl Categories {
    /// Whether a category matches. The empty one stands for any: whether there is one at all.
    #[must_use]
    pub fn has(&self, category: &str) -> bool {
        match category {
            "" => !self.globs.is_empty(),
            category => self.globs.iter().any(|g| g.matches(category.as_bytes())),
        }
    }

    /// The patterns as written.
    #[must_use]
    pub fn written(&self) -> &[String] {
        &self.written
    }
}

// === words ===

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(name) => f.write_str(name),
            Self::Agent(name) => write!(f, "agent {name}"),
        }
    }
}

impl fmt::Display for Right<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |category: &str| if category.is_empty() { "any category".to_owned() } else { category.to_owned() };
        match self {
            Self::Request(category) => write!(f, "request {}", of(category)),
            Self::Review(category, risk) | Self::ReviewEscalated(category, risk) => {
                write!(f, "review {} at risk {risk}", of(category))
            }
            Self::Query => f.write_str("query"),
            Self::Undo(category) => write!(f, "undo {}", of(category)),
            Self::Administer => f.write_str("administer"),
            Self::StartFor(name) => write!(f, "start sessions for {name}"),
        }
    }
}
