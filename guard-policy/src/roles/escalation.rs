//! When nobody has decided a request: which other group is asked too, and when.
//!
//! It must not read a clock: a point in time follows from the request's own times. Fails closed: a rule without a time, or for a
//! role that reviews nothing, is refused with the place; a request for which no rule speaks is not escalated.

use std::collections::BTreeMap;

use super::load::Loader;
use super::raw::{RawApprovals, RawEscalate};
use super::{Categories, Role, Roles};
use crate::error::PolicyError;
use crate::placed::Placed;

const RULES_MAX: usize = 256;
const GROUPS_MAX: usize = 16;
/// Longest time before a deadline that can be named: a day, as long as a deadline can be.
const BEFORE_MAX: u32 = 86_400;
const SECOND_NS: i64 = 1_000_000_000;

#[derive(Debug, Clone, Copy)]
enum When {
    /// Of the time from the request to its deadline.
    AfterPercent(u8),
    BeforeDeadline(u32),
}

/// Requests of these categories, from this risk on, are escalated so.
#[derive(Debug)]
pub(super) struct Rule {
    to: Vec<String>,
    when: When,
    categories: Categories,
    risk_from: u32,
}

/// What becomes of a request that nobody decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Escalation<'a> {
    /// Roles that are asked too.
    pub to: &'a [String],
    /// When, in ns since 1970, by the clock of the request's own times.
    pub at_unix_ns: i64,
}

impl When {
    fn at(self, opened: i64, deadline: i64) -> i64 {
        let length = deadline.saturating_sub(opened).max(0);
        match self {
            Self::AfterPercent(percent) => opened.saturating_add(length / 100 * i64::from(percent)),
            Self::BeforeDeadline(seconds) => {
                let before = i64::from(seconds).saturating_mul(SECOND_NS);
                deadline.saturating_sub(before).max(opened)
            }
        }
    }
}

impl Roles {
    /// The first rule that fits a request of these categories and this risk.
    pub fn escalation<'a>(
        &self,
        categories: impl Iterator<Item = &'a str> + Clone,
        risk: u32,
        (opened_unix_ns, deadline_unix_ns): (i64, i64),
    ) -> Option<Escalation<'_>> {
        let fits = |rule: &&Rule| {
            risk >= rule.risk_from
                && (rule.categories.written().is_empty() || categories.clone().any(|c| rule.categories.has(c)))
        };
        let rule = self.escalate.iter().find(fits)?;
        Some(Escalation { to: &rule.to, at_unix_ns: rule.when.at(opened_unix_ns, deadline_unix_ns) })
    }

    /// Whether anything is escalated at all.
    #[must_use]
    pub fn escalates(&self) -> bool {
        !self.escalate.is_empty()
    }
}

impl Loader<'_> {
    pub(super) fn escalate(
        &self,
        raw: &RawApprovals,
        roles: &BTreeMap<String, Role>,
    ) -> Result<Vec<Rule>, PolicyError> {
        if raw.escalate.len() > RULES_MAX {
            return Err(self.whole(format!("{} rules under approvals.escalate", raw.escalate.len()), "at most 256"));
        }
        let waits = |role: &Role| role.review_escalated;
        if raw.escalate.is_empty()
            && let Some((name, _)) = roles.iter().find(|(_, role)| waits(role))
        {
            let reason = format!("role `{name}` reviews only what was escalated, and nothing is");
            return Err(self.whole(reason, "add a rule under approvals.escalate, or take only_escalated away"));
        }
        raw.escalate.iter().map(|rule| self.rule(rule, roles)).collect()
    }

    fn rule(&self, place: &Placed<RawEscalate>, roles: &BTreeMap<String, Role>) -> Result<Rule, PolicyError> {
        let raw = &place.value;
        if raw.to.is_empty() || raw.to.len() > GROUPS_MAX {
            let reason = format!("approvals.escalate: to names {} roles", raw.to.len());
            return Err(self.error(place, reason, "1 to 16 are accepted"));
        }
        for name in &raw.to {
            if !roles.get(&name.value).is_some_and(|role| role.review.has("")) {
                let reviewing: Vec<&str> =
                    roles.iter().filter(|(_, r)| r.review.has("")).map(|(n, _)| n.as_str()).collect();
                let reason = format!("approvals.escalate: no role `{}` reviews anything", name.value);
                return Err(self.error(name, reason, &format!("accepted are: {}", reviewing.join(", "))));
            }
        }
        let risk_from = match &raw.risk_from {
            Some(risk) if risk.value > 100 => {
                return Err(self.error(risk, format!("risk_from {}", risk.value), "risk is 0 to 100"));
            }
            Some(risk) => u32::from(risk.value),
            None => 0,
        };
        Ok(Rule {
            to: raw.to.iter().map(|name| name.value.clone()).collect(),
            when: self.when(place)?,
            categories: self.categories("approvals.escalate.categories", &raw.categories)?,
            risk_from,
        })
    }

    fn when(&self, place: &Placed<RawEscalate>) -> Result<When, PolicyError> {
        match (&place.value.after_percent, &place.value.before_deadline_seconds) {
            (Some(percent), None) if (1..=99).contains(&percent.value) => Ok(When::AfterPercent(percent.value)),
            (Some(percent), None) => {
                let reason = format!("after_percent {}", percent.value);
                Err(self.error(percent, reason, "1 to 99 per cent of the time to the deadline are accepted"))
            }
            (None, Some(seconds)) if (1..=BEFORE_MAX).contains(&seconds.value) => {
                Ok(When::BeforeDeadline(seconds.value))
            }
            (None, Some(seconds)) => {
                let reason = format!("before_deadline_seconds {}", seconds.value);
                Err(self.error(seconds, reason, "1 to 86400 are accepted"))
            }
            _ => Err(self.error(
                place,
                "approvals.escalate: a rule needs one time",
                "write after_percent: 50, or before_deadline_seconds: 60",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Known, Right, Subject};
    use super::*;
    use crate::Source;

    fn load(rest: &str) -> Result<Roles, String> {
        let text = format!(
            "version: 1\nroles:\n  first: {{review: {{categories: ['vcs.*'], max_risk: 60}}}}\n\
             \x20 lead: {{review: {{categories: ['*'], max_risk: 100, only_escalated: true}}}}\n\
             \x20 reader: {{query: true}}\npeople: {{bob: [first], carol: [lead]}}\n{rest}"
        );
        Roles::load(&Source { name: "roles.yaml", text: &text }, Known::Any).map_err(|e| e.to_string())
    }

    const S: i64 = SECOND_NS;

    #[test]
    fn the_first_rule_that_fits_says_who_and_when() {
        let roles = load(
            "approvals:\n  escalate:\n  - {to: [lead], before_deadline_seconds: 60, categories: ['vcs.*'], risk_from: 50}\n\
             \x20 - {to: [first, lead], after_percent: 50}\n",
        )
        .unwrap();
        let at = |category: &str, risk, opened: i64, deadline: i64| {
            let found = roles.escalation(std::iter::once(category), risk, (opened * S, deadline * S)).unwrap();
            (found.to.len(), found.at_unix_ns / S)
        };
        assert_eq!(at("vcs.write", 50, 1000, 1300), (1, 1240));
        assert_eq!(at("vcs.write", 49, 1000, 1300), (2, 1150));
        assert_eq!(at("fs.delete", 90, 1000, 1300), (2, 1150));
        assert_eq!(at("vcs.write", 50, 1000, 1030), (1, 1000), "the deadline is sooner: at once");
        assert!(roles.escalates());
    }

    #[test]
    fn who_is_asked_second_decides_nothing_before() {
        let roles = load("approvals: {escalate: [{to: [lead], after_percent: 50}]}\n").unwrap();
        let carol = Subject::Principal("carol");
        let early = roles.check(carol, Right::Review("vcs.write", 30)).unwrap_err().to_string();
        assert_eq!(
            early,
            "carol may not review vcs.write at risk 30: its roles `lead` review this only once it was escalated"
        );
        assert!(roles.check(carol, Right::ReviewEscalated("vcs.write", 30)).is_ok());
        // Escalation gives nobody more than the role does.
        let bob = roles.check(Subject::Principal("bob"), Right::ReviewEscalated("vcs.write", 61)).unwrap_err();
        assert!(bob.to_string().contains("up to risk 60"), "{bob}");
        assert!(roles.check(Subject::Principal("bob"), Right::ReviewEscalated("vcs.write", 60)).is_ok());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (rest, why) in [
            ("", "role `lead` reviews only what was escalated, and nothing is"),
            ("approvals: {escalate: [{to: [lead]}]}", "a rule needs one time"),
            (
                "approvals: {escalate: [{to: [lead], after_percent: 50, before_deadline_seconds: 9}]}",
                "a rule needs one time",
            ),
            ("approvals: {escalate: [{to: [lead], after_percent: 100}]}", "after_percent 100"),
            ("approvals: {escalate: [{to: [lead], before_deadline_seconds: 0}]}", "before_deadline_seconds 0"),
            ("approvals: {escalate: [{to: [reader], after_percent: 50}]}", "no role `reader` reviews anything"),
            ("approvals: {escalate: [{to: [nobody], after_percent: 50}]}", "accepted are: first, lead"),
            ("approvals: {escalate: [{to: [], after_percent: 50}]}", "to names 0 roles"),
            ("approvals: {escalate: [{to: [lead], after_percent: 50, risk_from: 101}]}", "risk_from 101"),
        ] {
            let error = load(&format!("{rest}\n")).unwrap_err();
            assert!(error.contains(why), "{rest}: {error}");
        }
    }
}
