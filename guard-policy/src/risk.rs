//! The risk of an exec: additive, explained, and the same for the same facts.
//!
//! It starts with the riskiest act's category (or what its rule says) and adds fixed points for how far the act reaches
//! and how little of it is known. Each kind of addition counts once. What acts of low risk have in common with risky
//! ones (`ls -R`, `grep -r`) adds nothing.

use std::collections::BTreeMap;

use crate::act::Act;
use crate::invocation::{Invocation, Known};
use crate::judge::Judge;
use crate::verdict::{Reason, Tier};

/// From this risk of its category on, an act's reach counts.
pub(crate) const REACH_FROM: u8 = 25;

/// Id of the reason that says what the risk is made of.
pub(crate) const REASON: &str = "builtin.risk";

/// Flags by which programs reach everything below or everything there is.
const WIDE: &[&str] = &["-r", "-R", "--recursive", "--all", "-A", "--all-namespaces", "--global", "--system"];
/// Flags by which programs do not ask.
const FORCED: &[&str] = &["-f", "--force", "-y", "--yes", "--noconfirm", "--auto-approve", "-auto-approve", "--hard"];

/// One part of a risk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RiskPart {
    /// `category`, `target`, `scope`, `force`, `privilege`, `lasting`, `unseen`, `environment`, `novelty`; others add their own.
    pub kind: &'static str,
    /// Points that it adds.
    pub points: u8,
    /// Why.
    pub why: String,
}

/// What adds to a risk, in the order in which it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Policy names the target as critical.
    Target,
    /// Recursive, everything, or a pattern of names.
    Scope,
    /// The program is told not to ask.
    Force,
    /// The session's user is root.
    Privilege,
    /// It cannot be taken back.
    Lasting,
    /// Part of what it does is only known when it runs.
    Unseen,
    /// A variable changes what it does.
    Environment,
}

// === impl Part ===

impl Part {
    const fn kind(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Scope => "scope",
            Self::Force => "force",
            Self::Privilege => "privilege",
            Self::Lasting => "lasting",
            Self::Unseen => "unseen",
            Self::Environment => "environment",
        }
    }

    /// Points, where policy does not say them.
    pub(crate) const fn points(self) -> u8 {
        match self {
            Self::Target => 20,
            Self::Scope | Self::Privilege | Self::Lasting => 10,
            Self::Force | Self::Unseen | Self::Environment => 5,
        }
    }
}

/// Notes what an act adds.
pub(crate) fn of_act(judge: &mut Judge<'_>, act: &Act, invocation: Option<&Invocation<'_>>) {
    let policy = judge.policy;
    for critical in policy.targets.iter().filter(|c| act.reaches(&c.names)) {
        judge.findings.part_of(Part::Target, critical.risk, &critical.about);
    }
    if policy.category_risk(&act.category) < REACH_FROM {
        return;
    }
    let used = |names: &[&str]| {
        invocation.and_then(|i| i.used.iter().map(|u| u.flag.name.as_str()).find(|name| names.contains(name)))
    };
    if let Some(flag) = used(WIDE) {
        judge.findings.part(Part::Scope, &format!("reaches everything below or everything there is: {flag}"));
    }
    if let Some(flag) = used(FORCED) {
        judge.findings.part(Part::Force, &format!("does not ask: {flag}"));
    }
    if act.paths.iter().any(|t| t.path.iter().any(|b| matches!(b, b'*' | b'?' | b'['))) {
        judge.findings.part(Part::Scope, "a pattern of names");
    }
    if act.paths.iter().any(|t| t.known != Known::Fixed) {
        judge.findings.part(Part::Unseen, "its target is only known when it runs");
    }
    if judge.root {
        judge.findings.part(Part::Privilege, "runs as root");
    }
    if policy.categories.get(&act.category).is_some_and(|c| c.lasting) {
        judge.findings.part(Part::Lasting, "cannot be taken back");
    }
}

/// The parts, the riskiest act's category first.
pub(crate) fn parts(base: u8, category: String, more: BTreeMap<Part, (u8, String)>) -> Vec<RiskPart> {
    let first = RiskPart { kind: "category", points: base.min(100), why: category };
    let rest = more.into_iter().map(|(part, (points, why))| RiskPart { kind: part.kind(), points, why });
    std::iter::once(first).chain(rest).collect()
}

/// The parts as a reason, so that records explain their risk.
pub(crate) fn reason(parts: &[RiskPart], risk: u8) -> Reason {
    let shown: Vec<String> = parts.iter().map(|p| format!("{} {} ({})", p.points, p.kind, p.why)).collect();
    Reason {
        rule_id: REASON.to_owned(),
        text: format!("risk {risk} = {}", shown.join(" + ")),
        evidence: String::new(),
        tier: Tier::Allow,
        category: String::new(),
        scope: String::new(),
    }
}
