//! What policy says of an exec, with every reason, in bounded form.

use std::collections::{BTreeMap, BTreeSet};

use crate::risk::{self, Part, RiskPart};

/// Longest evidence or target kept, in characters.
pub(crate) const TEXT_MAX: usize = 256;
/// Most reasons kept.
pub(crate) const REASONS_MAX: usize = 32;
/// Most places kept; with more no grant of kinds is offered.
const PLACES_MAX: usize = 256;
/// Most targets kept.
pub(crate) const TARGETS_MAX: usize = 64;

/// What policy says of an exec. Ordered: the strictest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Runs without asking.
    Allow,
    /// A person decides.
    Review,
    /// Never runs.
    Deny,
}

impl Tier {
    /// The tier's word in policy files, records and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Review => "review",
            Self::Deny => "deny",
        }
    }
}

impl Verdict {
    /// Categories of all its parts.
    pub fn categories(&self) -> impl Iterator<Item = &str> {
        self.categories.iter().map(String::as_str)
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One reason of a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Id of the rule, or of a built-in check (`builtin.*`).
    pub rule_id: String,
    /// Why, for people.
    pub text: String,
    /// The argument or part that it matched, lossy, bounded.
    pub evidence: String,
    /// The tier that this reason alone gives.
    pub tier: Tier,
    /// Category of the part.
    pub category: String,
    /// What a grant for more of this would name (see [`crate::Kind`]); empty: no grant does.
    pub scope: String,
}

/// What policy says of an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The strictest tier of any part.
    pub tier: Tier,
    /// Category of the part that decided.
    pub category: String,
    /// Categories of all parts, also of those that left no reason; sorted.
    pub categories: Vec<String>,
    /// 0 to 100: the sum of `risk_parts`, at most 100.
    pub risk: u8,
    /// What the risk is made of: the riskiest act first, then what adds to it.
    pub risk_parts: Vec<RiskPart>,
    /// Strictest first, bounded.
    pub reasons: Vec<Reason>,
    /// Paths and hosts that the command names, bounded.
    pub targets: Vec<String>,
    /// Names of variables that change what programs do.
    pub env_notable: Vec<String>,
    /// A shell or interpreter that takes commands from standard input or a terminal: a root of its own.
    pub takes_commands: bool,
    /// Paths by which kinds of acts are told, as text: whoever covers them by a grant has to look whether a symbolic link leads
    /// elsewhere. Absolute, bounded.
    pub places: Vec<Vec<u8>>,
    /// There were more: no grant of kinds is offered.
    pub places_lost: bool,
    /// Denied by what holds also where verdicts are only observed, whether or not a reason says so: those are bounded.
    pub always: bool,
}

/// Collects findings; the strictest decides.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    found: Vec<Finding>,
    /// Whatever becomes of the findings: roles look at each of these.
    categories: BTreeSet<String>,
    targets: Vec<String>,
    places: BTreeSet<Vec<u8>>,
    places_lost: bool,
    parts: BTreeMap<Part, (u8, String)>,
    pub(crate) takes_commands: bool,
    pub(crate) always: bool,
}

#[derive(Debug)]
struct Finding {
    risk: u8,
    reason: Reason,
}

// === impl Findings ===

impl Findings {
    pub(crate) fn add(&mut self, tier: Tier, category: &str, risk: u8, rule_id: &str, text: &str, evidence: &str) {
        self.add_kind(tier, category, risk, rule_id, text, evidence, "");
    }

    #[expect(clippy::too_many_arguments, reason = "one reason with everything that it says")]
    pub(crate) fn add_kind(
        &mut self,
        tier: Tier,
        category: &str,
        risk: u8,
        rule_id: &str,
        text: &str,
        evidence: &str,
        scope: &str,
    ) {
        let reason = Reason {
            rule_id: rule_id.to_owned(),
            text: text.to_owned(),
            evidence: shorten(evidence),
            tier,
            category: category.to_owned(),
            scope: scope.to_owned(),
        };
        if !self.categories.contains(category) {
            self.categories.insert(category.to_owned());
        }
        if self.found.iter().any(|f| f.reason == reason) {
            return;
        }
        let finding = Finding { risk, reason };
        if self.found.len() < REASONS_MAX {
            self.found.push(finding);
        } else if let Some(weakest) = self.found.iter_mut().min_by_key(|f| (f.reason.tier, f.risk))
            && (weakest.reason.tier, weakest.risk) < (finding.reason.tier, finding.risk)
        {
            // Full: a stricter finding must not be lost, the weakest makes room.
            *weakest = finding;
        }
    }

    pub(crate) fn target(&mut self, target: &str) {
        if self.targets.len() < TARGETS_MAX {
            let target = shorten(target);
            if !self.targets.contains(&target) {
                self.targets.push(target);
            }
        }
    }

    pub(crate) fn place(&mut self, path: &[u8]) {
        if self.places.len() < PLACES_MAX {
            self.places.insert(path.to_vec());
        } else {
            self.places_lost |= !self.places.contains(path);
        }
    }

    /// Adds to the risk; of one kind, the highest counts once.
    pub(crate) fn part_of(&mut self, part: Part, points: u8, why: &str) {
        let entry = self.parts.entry(part).or_default();
        if points > entry.0 {
            *entry = (points, shorten(why));
        }
    }

    pub(crate) fn part(&mut self, part: Part, why: &str) {
        self.part_of(part, part.points(), why);
    }

    pub(crate) fn finish(mut self, entry: bool, env_notable: Vec<String>) -> Verdict {
        self.found.sort_by_key(|f| std::cmp::Reverse((f.reason.tier, f.risk)));
        let riskiest = self.found.iter().max_by_key(|f| f.risk);
        let (base, of) = riskiest.map_or((50, "unknown".to_owned()), |f| (f.risk, f.reason.category.clone()));
        let risk_parts = risk::parts(base, of, std::mem::take(&mut self.parts));
        let risk = risk_parts.iter().fold(0_u8, |sum, part| sum.saturating_add(part.points)).min(100);
        let (mut tier, category) = self
            .found
            .first()
            .map_or_else(|| (Tier::Review, "unknown".to_owned()), |f| (f.reason.tier, f.reason.category.clone()));
        let mut reasons: Vec<Reason> = self.found.into_iter().map(|f| f.reason).collect();
        if entry && tier == Tier::Review {
            tier = Tier::Allow;
            let text = "session entry: the initiator named this command".to_owned();
            let own = Reason {
                rule_id: "builtin.session-entry".to_owned(),
                text,
                evidence: String::new(),
                tier,
                category: category.clone(),
                scope: String::new(),
            };
            reasons.insert(0, own);
        }
        if risk_parts.len() > 1 {
            reasons.push(risk::reason(&risk_parts, risk));
        }
        self.categories.insert(category.clone());
        Verdict {
            tier,
            category,
            categories: self.categories.into_iter().collect(),
            risk,
            risk_parts,
            reasons,
            targets: self.targets,
            env_notable,
            takes_commands: self.takes_commands,
            places: self.places.into_iter().collect(),
            places_lost: self.places_lost,
            always: self.always,
        }
    }
}

/// Bounds a text that a governed process controls.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
    }
}
