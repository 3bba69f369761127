//! From the text of a role file to [`Roles`], all or nothing. Every refusal names file, line, column and the cure.
//!
//! Refused: unknown keys, versions and roles; empty names; a name that is both a person and a service; patterns that match no
//! category of the policy; anything beyond the limits.

use std::collections::BTreeMap;

use serde_saphyr::Location;
use sha2::{Digest, Sha256};

use super::raw::{Bindings, RawRole, RawRoles};
use super::{Categories, EVERYBODY, Known, Role, Roles};
use crate::Source;
use crate::error::PolicyError;
use crate::glob::Glob;
use crate::placed::Placed;

const SOURCE_MAX: usize = 1 << 20;
const ROLES_MAX: usize = 1_000;
const NAMES_MAX: usize = 20_000;
/// Roles of one name, and patterns of one right.
const EACH_MAX: usize = 256;
const NAME_MAX: usize = 128;
const HINT: &str = "see docs/roles.md for the form";

pub(super) struct Loader<'a> {
    file: &'a str,
    known: Known<'a>,
}

impl Roles {
    /// Loads a role file.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with file, line, column and what to do.
    pub fn load(source: &Source<'_>, known: Known<'_>) -> Result<Self, PolicyError> {
        let loader = Loader { file: source.name, known };
        if source.text.len() > SOURCE_MAX {
            return Err(loader.whole(format!("{} bytes of roles", source.text.len()), "at most 1 MiB is read"));
        }
        let raw: RawRoles = serde_saphyr::from_str(source.text).map_err(|error| {
            let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
            let text = error.without_snippet().to_string();
            let reason = text.lines().next().unwrap_or("not a role file").to_owned();
            PolicyError { file: source.name.to_owned(), line, column, reason, hint: HINT.to_owned() }
        })?;
        if raw.version.value != 1 {
            let reason = format!("version {} of role files", raw.version.value);
            return Err(loader.error(&raw.version, reason, "this program reads `version: 1`"));
        }
        let roles = loader.roles(&raw.roles)?;
        let bound = |what, bindings| loader.bindings(what, bindings, &roles);
        let (people, services) = (bound("people", &raw.people)?, bound("services", &raw.services)?);
        let agents = bound("agents", &raw.agents)?;
        loader.kinds(&raw)?;
        let keys = loader.keys(&raw)?;
        let needed = loader.needed(&raw.approvals)?;
        let escalate = loader.escalate(&raw.approvals, &roles)?;
        let delegate_ns = loader.delegate(&raw.approvals)?;
        let digest = hex::encode(Sha256::digest(source.text.as_bytes()));
        Ok(Self { digest, roles, people, services, agents, keys, needed, escalate, delegate_ns })
    }
}

// === impl Loader ===

impl Loader<'_> {
    fn roles(&self, raw: &BTreeMap<String, Placed<RawRole>>) -> Result<BTreeMap<String, Role>, PolicyError> {
        if raw.len() > ROLES_MAX {
            return Err(self.whole(format!("{} roles", raw.len()), "at most 1000 are read"));
        }
        let mut roles = BTreeMap::new();
        for (name, role) in raw {
            self.name("role", name, role)?;
            if name == EVERYBODY {
                return Err(self.error(role, "a role named `*`", "`*` stands for names under people and agents"));
            }
            roles.insert(name.clone(), self.role(&role.value)?);
        }
        Ok(roles)
    }

    fn role(&self, raw: &RawRole) -> Result<Role, PolicyError> {
        let mut role = Role {
            request: self.categories("request", &raw.request)?,
            undo: self.categories("undo", &raw.undo)?,
            query: raw.query,
            administer: raw.administer,
            ..Role::default()
        };
        if let Some(review) = &raw.review {
            if review.max_risk.value > 100 {
                let reason = format!("max_risk {}", review.max_risk.value);
                return Err(self.error(&review.max_risk, reason, "risk is 0 to 100"));
            }
            role.review = self.categories("review.categories", &review.categories)?;
            role.review_max_risk = review.max_risk.value;
            role.review_escalated = review.only_escalated;
        }
        for name in &raw.start_for_others {
            self.name("name in start_for_others", &name.value, name)?;
            role.start_for_others.push(name.value.clone());
        }
        Ok(role)
    }

    pub(super) fn categories(&self, key: &str, raw: &[Placed<String>]) -> Result<Categories, PolicyError> {
        let mut categories = Categories::default();
        for pattern in raw {
            if categories.written.len() >= EACH_MAX {
                return Err(self.error(
                    pattern,
                    format!("{key}: more than {EACH_MAX} patterns"),
                    "write `vcs.*` or `*`",
                ));
            }
            if pattern.value.is_empty() {
                return Err(self.error(
                    pattern,
                    format!("{key}: an empty category"),
                    "write `vcs.write`, `vcs.*` or `*`",
                ));
            }
            let globs = Glob::compile(&pattern.value).map_err(|why| self.error(pattern, why, HINT))?;
            self.matches_one(pattern, &globs)?;
            categories.globs.extend(globs);
            categories.written.push(pattern.value.clone());
        }
        Ok(categories)
    }

    /// A pattern without any category is a slip of the pen.
    fn matches_one(&self, pattern: &Placed<String>, globs: &[Glob]) -> Result<(), PolicyError> {
        let names = match self.known {
            Known::Any => return Ok(()),
            Known::Only(names) => names,
        };
        if names.iter().any(|name| globs.iter().any(|g| g.matches(name.as_bytes()))) {
            return Ok(());
        }
        let reason = format!("no category of the policy matches `{}`", pattern.value);
        Err(self.error(pattern, reason, &format!("accepted are patterns of: {}", names.join(", "))))
    }

    fn bindings(
        &self,
        what: &str,
        raw: &Bindings,
        roles: &BTreeMap<String, Role>,
    ) -> Result<BTreeMap<String, Vec<String>>, PolicyError> {
        if raw.len() > NAMES_MAX {
            return Err(self.whole(format!("{} names under {what}", raw.len()), "at most 20000 are read"));
        }
        let mut bound = BTreeMap::new();
        for (name, given) in raw {
            self.name(what, name, given)?;
            if given.value.len() > EACH_MAX {
                return Err(self.error(
                    given,
                    format!("{what}: {name} has {} roles", given.value.len()),
                    "at most 256",
                ));
            }
            if let Some(unknown) = given.value.iter().find(|r| !roles.contains_key(&r.value)) {
                let defined: Vec<&str> = roles.keys().map(String::as_str).collect();
                let reason = format!("{what}: {name} has the role `{}`, which nothing defines", unknown.value);
                return Err(self.error(unknown, reason, &format!("accepted are: {}", defined.join(", "))));
            }
            bound.insert(name.clone(), given.value.iter().map(|r| r.value.clone()).collect());
        }
        Ok(bound)
    }

    /// A name is a person or a service, so that a record says who it was.
    fn kinds(&self, raw: &RawRoles) -> Result<(), PolicyError> {
        if let Some(any) = raw.services.get(EVERYBODY) {
            let hint = "name each service; a name that nothing lists counts as a person";
            return Err(self.error(any, "`*` under services", hint));
        }
        match raw.services.iter().find(|(name, _)| raw.people.contains_key(*name)) {
            Some((name, place)) => {
                let reason = format!("`{name}` is under people and under services");
                Err(self.error(place, reason, "keep one of the two"))
            }
            None => Ok(()),
        }
    }

    fn name<T>(&self, what: &str, name: &str, place: &Placed<T>) -> Result<(), PolicyError> {
        let good = |c: char| !c.is_whitespace() && !c.is_control();
        if !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(good) {
            return Ok(());
        }
        let reason = format!("{what}: the name `{}`", name.escape_debug());
        Err(self.error(place, reason, "a name has 1 to 128 characters and no spaces"))
    }

    pub(super) fn error<T>(&self, place: &Placed<T>, reason: impl Into<String>, hint: &str) -> PolicyError {
        self.at(place.referenced, reason.into(), hint)
    }

    fn at(&self, at: Location, reason: String, hint: &str) -> PolicyError {
        let (line, column) = (at.line(), at.column());
        PolicyError { file: self.file.to_owned(), line, column, reason, hint: hint.to_owned() }
    }

    pub(super) fn whole(&self, reason: String, hint: &str) -> PolicyError {
        PolicyError { file: self.file.to_owned(), line: 0, column: 0, reason, hint: hint.to_owned() }
    }
}
