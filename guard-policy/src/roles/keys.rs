//! Reviewers' own keys, whether a decision was signed with one, and how many reviewers must approve.
//!
//! It must not let one key stand for two people, or a key count after its last day. Fails closed: where a file names any key,
//! a decision without a signature that holds has none; what is wrong with a signature is said with the cure.

use std::collections::BTreeMap;

use super::load::Loader;
use super::raw::{RawApprovals, RawKey, RawRoles};
use super::{Categories, EVERYBODY, Roles};
use crate::decision::{ReviewKey, Statement};
use crate::error::PolicyError;
use crate::placed::Placed;

/// Keys of one name.
const KEYS_MAX: usize = 16;
/// Rules about how many must approve.
const RULES_MAX: usize = 256;
/// Most reviewers that one approval can need.
const REVIEWERS_MAX: u32 = 10;
const DAY_NS: i64 = 86_400_000_000_000;

/// A key of one reviewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKey {
    /// The key.
    pub key: ReviewKey,
    /// The end of its last day, in ns since 1970 (UTC).
    pub until_unix_ns: Option<i64>,
}

/// How many must approve requests of these categories, from this risk on.
#[derive(Debug)]
pub(super) struct Needed {
    categories: Categories,
    risk_from: u32,
    reviewers: u32,
}

/// Why a decision counts as unsigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsigned {
    /// It has no signature.
    #[error(
        "the decision of {0} is not signed, and the role file names reviewers' keys: make one with `guardctl key new` and have its line put under `keys` in the role file"
    )]
    Missing(String),
    /// The file has no key for this reviewer.
    #[error("the role file names no key of {0}: have the line that `guardctl key show` prints put under `keys`")]
    NoKey(String),
    /// The key that signed counts no more.
    #[error("the key {id} of {reviewer} counted until {until}: have the line of a new one put into the role file")]
    Expired {
        /// Whose.
        reviewer: String,
        /// Its short name.
        id: String,
        /// Its last day.
        until: String,
    },
    /// No key of the reviewer signed exactly this.
    #[error(
        "the signature is not one of {0}'s keys over exactly this decision: compare `guardctl key show` with the role file, or look at the request again"
    )]
    Wrong(String),
}

// === impl NamedKey ===

impl NamedKey {
    pub(super) fn counts(&self, now_unix_ns: i64) -> bool {
        self.until_unix_ns.is_none_or(|until| now_unix_ns < until)
    }
}

// === impl Roles ===

impl Roles {
    /// Whether reviewers sign: the file names any key, be it one that counts no more.
    #[must_use]
    pub fn signs(&self) -> bool {
        !self.keys.is_empty()
    }

    /// How many keys there are, and of how many reviewers.
    #[must_use]
    pub fn key_counts(&self) -> (usize, usize) {
        (self.keys.values().map(Vec::len).sum(), self.keys.len())
    }

    /// Keys of a reviewer.
    #[must_use]
    pub fn keys_of(&self, reviewer: &str) -> &[NamedKey] {
        self.keys.get(reviewer).map(Vec::as_slice).unwrap_or_default()
    }

    /// Id of the reviewer's key that signed the statement.
    ///
    /// # Errors
    ///
    /// None did, or it counts no more.
    pub fn signed(&self, statement: &Statement<'_>, signature: &[u8], now_unix_ns: i64) -> Result<[u8; 32], Unsigned> {
        let reviewer = || statement.reviewer.to_owned();
        if signature.is_empty() {
            return Err(Unsigned::Missing(reviewer()));
        }
        let keys = self.keys_of(statement.reviewer);
        if keys.is_empty() {
            return Err(Unsigned::NoKey(reviewer()));
        }
        let signed = keys.iter().find(|k| k.key.signed(statement, signature));
        let key = signed.ok_or_else(|| Unsigned::Wrong(reviewer()))?;
        if !key.counts(now_unix_ns) {
            let until = key.until_unix_ns.map(|until| date(until - DAY_NS)).unwrap_or_default();
            let id = short(&key.key.id());
            return Err(Unsigned::Expired { reviewer: reviewer(), id, until });
        }
        Ok(key.key.id())
    }

    /// How many different reviewers must approve a request of these categories and this risk: at least one.
    pub fn reviewers_needed<'a>(&self, categories: impl Iterator<Item = &'a str> + Clone, risk: u32) -> u32 {
        let covers = |rule: &&Needed| {
            risk >= rule.risk_from
                && (rule.categories.written().is_empty() || categories.clone().any(|c| rule.categories.has(c)))
        };
        self.needed.iter().filter(covers).map(|rule| rule.reviewers).max().unwrap_or(1)
    }
}

/// The first digits of a key's id, for people.
#[must_use]
pub fn short(id: &[u8]) -> String {
    hex::encode(id.get(..8).unwrap_or(id))
}

// === impl Loader ===

impl Loader<'_> {
    pub(super) fn keys(&self, raw: &RawRoles) -> Result<BTreeMap<String, Vec<NamedKey>>, PolicyError> {
        let mut owners: Vec<(ReviewKey, &str)> = Vec::new();
        let mut found = BTreeMap::new();
        for (name, list) in &raw.keys {
            if name == EVERYBODY {
                return Err(self.error(list, "`*` under keys", "a key is one person's: name who"));
            }
            if !raw.people.contains_key(name) && !raw.services.contains_key(name) {
                let reason = format!("keys: `{name}` is neither under people nor under services");
                return Err(self.error(list, reason, "bind roles to the name first, or correct it"));
            }
            if list.value.is_empty() || list.value.len() > KEYS_MAX {
                let reason = format!("keys: {name} has {} keys", list.value.len());
                return Err(self.error(list, reason, "1 to 16 are accepted; leave the name out if it has none"));
            }
            let mut keys = Vec::new();
            for entry in &list.value {
                let named = self.key(entry)?;
                // Who signs twice must not be two people.
                if let Some((_, owner)) = owners.iter().find(|(known, _)| *known == named.key) {
                    let reason = format!("keys: the key of {name} is also one of {owner}");
                    return Err(self.error(entry, reason, "each key stands there once, under the one who has it"));
                }
                owners.push((named.key.clone(), name));
                keys.push(named);
            }
            found.insert(name.clone(), keys);
        }
        Ok(found)
    }

    fn key(&self, entry: &Placed<RawKey>) -> Result<NamedKey, PolicyError> {
        let raw = &entry.value;
        let key = ReviewKey::parse(&raw.key.value).map_err(|why| self.error(&raw.key, why, "see docs/roles.md"))?;
        let until = raw.until.as_ref().map(|until| {
            let day = day(&until.value).ok_or_else(|| {
                let reason = format!("until `{}`", until.value);
                self.error(until, reason, "write the last day on which the key counts: 2027-06-30")
            })?;
            Ok::<_, PolicyError>(day.saturating_add(1).saturating_mul(DAY_NS))
        });
        Ok(NamedKey { key, until_unix_ns: until.transpose()? })
    }

    pub(super) fn needed(&self, raw: &RawApprovals) -> Result<Vec<Needed>, PolicyError> {
        if raw.needed.len() > RULES_MAX {
            return Err(self.whole(format!("{} rules under approvals.needed", raw.needed.len()), "at most 256"));
        }
        let mut rules = Vec::new();
        for rule in &raw.needed {
            let reviewers = &rule.value.reviewers;
            if !(1..=REVIEWERS_MAX).contains(&reviewers.value) {
                return Err(self.error(reviewers, format!("reviewers: {}", reviewers.value), "1 to 10 are accepted"));
            }
            if rule.value.categories.is_empty() && rule.value.risk_from.is_none() {
                let hint = "name categories or risk_from; for every request write risk_from: 0";
                return Err(self.error(rule, "approvals.needed: a rule about nothing", hint));
            }
            let risk_from = match &rule.value.risk_from {
                Some(risk) if risk.value > 100 => {
                    return Err(self.error(risk, format!("risk_from {}", risk.value), "risk is 0 to 100"));
                }
                Some(risk) => u32::from(risk.value),
                None => 0,
            };
            let categories = self.categories("approvals.needed.categories", &rule.value.categories)?;
            rules.push(Needed { categories, risk_from, reviewers: reviewers.value });
        }
        Ok(rules)
    }
}

// === days ===

/// Days since 1970 of `YYYY-MM-DD`; years begin in March, so that the leap day is the last.
fn day(text: &str) -> Option<i64> {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return None };
    if [year.len(), month.len(), day.len()] != [4, 2, 2] || !text.bytes().all(|b| b == b'-' || b.is_ascii_digit()) {
        return None;
    }
    let (year, month, day): (i64, i64, i64) = (year.parse().ok()?, month.parse().ok()?, day.parse().ok()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year_from_march, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year_from_march.div_euclid(400), year_from_march.rem_euclid(400));
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    // The 30th of February is the 1st or 2nd of March to this arithmetic.
    (date(days * DAY_NS) == text).then_some(days)
}

/// The day of a point in time.
fn date(unix_ns: i64) -> String {
    let days = unix_ns.div_euclid(DAY_NS) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Day and minute, for people.
pub(super) fn date_time(unix_ns: i64) -> String {
    let minutes = unix_ns.rem_euclid(DAY_NS) / 60_000_000_000;
    format!("{} {:02}:{:02} UTC", date(unix_ns), minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::super::{Known, Roles};
    use super::*;
    use crate::Source;
    use crate::decision::ReviewSigner;

    fn signer(seed: u8) -> ReviewSigner {
        ReviewSigner::from_seed(&[seed; 32])
    }

    fn load(rest: &str) -> Result<Roles, String> {
        let text = format!(
            "version: 1\nroles: {{r: {{review: {{categories: ['*'], max_risk: 100}}}}}}\npeople: {{bob: [r], carol: [r]}}\n{rest}"
        );
        Roles::load(&Source { name: "roles.yaml", text: &text }, Known::Any).map_err(|e| e.to_string())
    }

    fn key(seed: u8) -> String {
        signer(seed).public().text()
    }

    fn statement(reviewer: &str) -> Statement<'_> {
        Statement {
            request_id: "r",
            digest: &[1; 32],
            record_sha256: &[2; 32],
            approve: true,
            scope: "once",
            categories: &[],
            max_execs: 1,
            expires_unix_ns: 10,
            reason: "",
            reviewer,
            decided_unix_ns: 5,
            delegation_id: "",
        }
    }

    #[test]
    fn a_decision_counts_as_signed_by_the_reviewers_own_keys_alone() {
        let file = format!(
            "keys:\n  bob: [{{key: '{}'}}, {{key: '{}', until: 2027-06-30}}]\n  carol: [{{key: '{}'}}]\n",
            key(1),
            key(2),
            key(3)
        );
        let roles = load(&file).unwrap();
        assert!(roles.signs() && roles.key_counts() == (3, 2));
        let last_day = day("2027-06-30").unwrap() * DAY_NS;
        let of = |seed, name: &'static str, now| {
            roles.signed(&statement(name), &signer(seed).sign(&statement(name)), now).map_err(|e| e.to_string())
        };
        assert_eq!(of(1, "bob", 0), Ok(signer(1).public().id()));
        assert_eq!(of(2, "bob", last_day + DAY_NS - 1), Ok(signer(2).public().id()));
        let late = of(2, "bob", last_day + DAY_NS).unwrap_err();
        assert!(late.contains("counted until 2027-06-30"), "{late}");
        let other = of(1, "carol", 0).unwrap_err();
        assert!(other.contains("not one of carol's keys"), "{other}");
        assert!(of(1, "mallory", 0).unwrap_err().contains("no key of mallory"));
        let none = roles.signed(&statement("bob"), &[], 0).unwrap_err();
        assert!(none.to_string().contains("guardctl key new"), "{none}");
        assert!(!load("").unwrap().signs());
    }

    #[test]
    fn a_key_file_with_a_slip_is_refused_with_its_place() {
        let one = key(1);
        for (rest, why) in [
            (format!("keys:\n  bob: [{{key: '{one}'}}]\n  carol: [{{key: '{one}'}}]\n"), "also one of bob"),
            (format!("keys: {{dave: [{{key: '{one}'}}]}}"), "neither under people"),
            (format!("keys: {{'*': [{{key: '{one}'}}]}}"), "name who"),
            ("keys: {bob: []}".to_owned(), "has 0 keys"),
            ("keys: {bob: [{key: 'ed25519:AA'}]}".to_owned(), "32 bytes"),
            (format!("keys: {{bob: [{{key: '{one}', until: 2027-02-30}}]}}"), "until `2027-02-30`"),
            (format!("keys: {{bob: [{{key: '{one}', until: soon}}]}}"), "last day"),
            (format!("keys: {{bob: [{{key: '{one}', untill: 2027-02-03}}]}}"), "untill"),
            ("approvals: {needed: [{reviewers: 2}]}".to_owned(), "about nothing"),
            ("approvals: {needed: [{risk_from: 90, reviewers: 0}]}".to_owned(), "1 to 10"),
            ("approvals: {needed: [{risk_from: 101, reviewers: 2}]}".to_owned(), "0 to 100"),
        ] {
            let error = load(&rest).unwrap_err();
            assert!(
                error.contains(why) && error.starts_with("roles.yaml:4:") || error.starts_with("roles.yaml:6:"),
                "{rest}: {error}"
            );
        }
    }

    #[test]
    fn the_strictest_rule_says_how_many_must_approve() {
        let rules = "approvals:\n  needed:\n  - {risk_from: 90, reviewers: 2}\n  - {categories: ['net.*'], reviewers: 3}\n\
                     \x20 - {categories: [fs.delete], risk_from: 50, reviewers: 2}\n";
        let roles = load(rules).unwrap();
        let needed = |categories: &[&str], risk| roles.reviewers_needed(categories.iter().copied(), risk);
        assert_eq!(needed(&["fs.read"], 89), 1);
        assert_eq!(needed(&["fs.read"], 90), 2);
        assert_eq!(needed(&["fs.read", "net.firewall"], 0), 3);
        assert_eq!((needed(&["fs.delete"], 49), needed(&["fs.delete"], 50)), (1, 2));
        assert_eq!(load("").unwrap().reviewers_needed(std::iter::once("net.firewall"), 100), 1);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (text, days) in [("1970-01-01", 0), ("1970-03-01", 59), ("2024-02-29", 19_782), ("2026-01-01", 20_454)] {
            assert_eq!(day(text), Some(days));
            assert_eq!(date(days * DAY_NS + 7), text);
        }
        for text in ["2023-02-29", "2023-13-01", "2023-1-01", "+023-01-01", "2023-01-01T", ""] {
            assert_eq!(day(text), None, "{text}");
        }
    }
}
