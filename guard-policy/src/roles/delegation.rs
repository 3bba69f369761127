//! A reviewer's right in somebody else's hands, for a time: what a delegation must satisfy, and what it covers.
//!
//! It gives no more than its maker has when a decision is looked at, and never what the maker has by another delegation: only roles are
//! asked. It must not look at who may decide about a session; that is the caller's. Fails closed: without `approvals.delegate` in the
//! file nothing is delegated, and what does not hold says why.

use super::keys::date_time;
use super::load::Loader;
use super::raw::RawApprovals;
use super::{Right, Roles, Subject};
use crate::decision::DelegationStatement;
use crate::error::PolicyError;
use crate::glob::Glob;

const HOUR_NS: i64 = 3_600_000_000_000;
/// A month: who is away for longer gives up the role.
const HOURS_MAX: u32 = 31 * 24;
/// How far clocks may be apart.
const SKEW_NS: i64 = 600_000_000_000;
const ID_BYTES: usize = 26;
const PATTERNS_MAX: usize = 32;
const PATTERN_MAX: usize = 64;
const NAME_MAX: usize = 128;
const REASON_MAX: usize = 500;

/// Why a delegation gives nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoDelegation {
    /// The file does not let anybody delegate.
    #[error("nobody may delegate: the role file has no `approvals: {{delegate: {{max_hours: …}}}}`")]
    NotAllowed,
    /// It is of no form that is accepted.
    #[error("the delegation's {0}")]
    Form(&'static str),
    /// To oneself.
    #[error("{0} cannot delegate to themselves")]
    ToSelf(String),
    /// It lasts too long.
    #[error("it would last longer than {0} hours, which approvals.delegate.max_hours allows")]
    TooLong(i64),
    /// It has ended, or begins in the future.
    #[error("the delegation by {from} {what}")]
    Time {
        /// Whose.
        from: String,
        /// What is wrong, with the time.
        what: String,
    },
    /// Whose right it is did not sign it.
    #[error("the delegation is not signed by one of the keys that the role file names for {0}")]
    Unsigned(String),
    /// The one who shall decide has no key.
    #[error(
        "the role file names no key of {0}, so that {0} can decide nothing: have the line of `guardctl key show` put under `keys`"
    )]
    NoKey(String),
    /// It does not reach so far.
    #[error("the delegation by {from} covers {covers} up to risk {max_risk}, not {category} at risk {risk}")]
    Outside {
        /// Whose.
        from: String,
        /// What it covers.
        covers: String,
        /// Its highest risk.
        max_risk: u32,
        /// The category asked about.
        category: String,
        /// And the risk.
        risk: u32,
    },
    /// Its maker has not got the right (any more).
    #[error("what {0} has not got cannot be delegated: {1}")]
    NotTheirs(String, super::Missing),
}

impl Roles {
    /// Whether a delegation holds: id of its maker's key. Its form and times too, by the clock of whoever asks.
    ///
    /// # Errors
    ///
    /// Why it gives nothing.
    pub fn delegated(
        &self,
        d: &DelegationStatement<'_>,
        signature: &[u8],
        now_unix_ns: i64,
    ) -> Result<[u8; 32], NoDelegation> {
        let longest = self.delegate_ns.ok_or(NoDelegation::NotAllowed)?;
        form(d)?;
        if d.from == d.to {
            return Err(NoDelegation::ToSelf(d.from.to_owned()));
        }
        if d.until_unix_ns.saturating_sub(d.made_unix_ns) > longest {
            return Err(NoDelegation::TooLong(longest / HOUR_NS));
        }
        let time = |what: String| NoDelegation::Time { from: d.from.to_owned(), what };
        if d.until_unix_ns <= now_unix_ns {
            return Err(time(format!("ended at {}", date_time(d.until_unix_ns))));
        }
        if d.made_unix_ns > now_unix_ns.saturating_add(SKEW_NS) {
            return Err(time("was made in the future: clocks are more than 10 minutes apart".to_owned()));
        }
        if self.keys_of(d.to).is_empty() {
            return Err(NoDelegation::NoKey(d.to.to_owned()));
        }
        let keys = self.keys_of(d.from).iter();
        let key = keys.filter(|named| named.counts(now_unix_ns)).find(|named| named.key.delegated(d, signature));
        key.map(|named| named.key.id()).ok_or_else(|| NoDelegation::Unsigned(d.from.to_owned()))
    }

    /// Whether a delegation that holds covers a right to review: itself, and by the roles of its maker.
    ///
    /// # Errors
    ///
    /// Which of the two does not reach so far.
    pub fn covered(&self, d: &DelegationStatement<'_>, right: Right<'_>) -> Result<(), NoDelegation> {
        let (category, risk) = match right {
            Right::Review(category, risk) | Right::ReviewEscalated(category, risk) => (category, risk),
            // Nothing else can be delegated.
            Right::Request(_) | Right::Query | Right::Undo(_) | Right::Administer | Right::StartFor(_) => {
                return Err(NoDelegation::Form("right is none to review"));
            }
        };
        let names = |pattern: &String| {
            Glob::compile(pattern).is_ok_and(|globs| globs.iter().any(|glob| glob.matches(category.as_bytes())))
        };
        if risk > d.max_risk || !d.categories.iter().any(names) {
            return Err(NoDelegation::Outside {
                from: d.from.to_owned(),
                covers: d.categories.join(", "),
                max_risk: d.max_risk,
                category: category.to_owned(),
                risk,
            });
        }
        self.check(Subject::Principal(d.from), right)
            .map(drop)
            .map_err(|missing| NoDelegation::NotTheirs(d.from.to_owned(), missing))
    }

    /// Whether somebody may make a delegation: all that it names must be theirs by their own roles, for as far as it reaches.
    ///
    /// # Errors
    ///
    /// The first pattern that is not.
    pub fn may_delegate(&self, d: &DelegationStatement<'_>) -> Result<(), NoDelegation> {
        // A pattern of the role that matches the pattern as it is written matches all that it stands for.
        for pattern in d.categories {
            self.check(Subject::Principal(d.from), Right::ReviewEscalated(pattern, d.max_risk))
                .map_err(|missing| NoDelegation::NotTheirs(d.from.to_owned(), missing))?;
        }
        Ok(())
    }
}

/// What is accepted before anything is looked up. Patterns have no alternatives, so that one that a role's pattern matches as it
/// is written stands for nothing beyond that.
fn form(d: &DelegationStatement<'_>) -> Result<(), NoDelegation> {
    let wrong = |what| Err(NoDelegation::Form(what));
    if d.id.len() != ID_BYTES || !d.id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return wrong("id is no ULID");
    }
    if [d.from, d.to].iter().any(|name| name.is_empty() || name.len() > NAME_MAX || *name == "*") {
        return wrong("names have 1 to 128 characters");
    }
    if d.categories.is_empty() || d.categories.len() > PATTERNS_MAX {
        return wrong("categories are 1 to 32");
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*');
    if d.categories.iter().any(|c| c.is_empty() || c.len() > PATTERN_MAX || !c.bytes().all(plain)) {
        return wrong("categories are written as vcs.write, vcs.* or *");
    }
    if d.max_risk > 100 || d.reason.len() > REASON_MAX {
        return wrong("risk is 0 to 100, its reason at most 500 bytes");
    }
    if d.until_unix_ns <= d.made_unix_ns {
        return wrong("end is not after its beginning");
    }
    Ok(())
}

impl Loader<'_> {
    pub(super) fn delegate(&self, raw: &RawApprovals) -> Result<Option<i64>, PolicyError> {
        let Some(hours) = raw.delegate.as_ref().map(|delegate| &delegate.max_hours) else { return Ok(None) };
        if !(1..=HOURS_MAX).contains(&hours.value) {
            let reason = format!("approvals.delegate.max_hours {}", hours.value);
            return Err(self.error(hours, reason, "1 to 744 are accepted"));
        }
        Ok(Some(i64::from(hours.value).saturating_mul(HOUR_NS)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Known;
    use super::*;
    use crate::Source;
    use crate::decision::ReviewSigner;

    const NOW: i64 = 1_769_860_800_000_000_000;

    fn signer(seed: u8) -> ReviewSigner {
        ReviewSigner::from_seed(&[seed; 32])
    }

    fn load(change: impl Fn(String) -> String) -> Result<Roles, String> {
        let key = |seed: u8| signer(seed).public().text();
        let text = format!(
            "version: 1\nroles:\n  lead: {{review: {{categories: ['vcs.*', fs.write], max_risk: 60}}}}\n  dev: {{query: true}}\n\
             people: {{carol: [lead], bob: [dev], dave: [dev]}}\nkeys:\n  carol: [{{key: '{}'}}]\n  bob: [{{key: '{}'}}]\n\
             approvals: {{delegate: {{max_hours: 48}}}}\n",
            key(1),
            key(2)
        );
        Roles::load(&Source { name: "roles.yaml", text: &change(text) }, Known::Any).map_err(|e| e.to_string())
    }

    fn delegation(categories: &[String]) -> DelegationStatement<'_> {
        DelegationStatement {
            id: "01KG9F6R00ABCDEFGHJKMNPQRS",
            from: "carol",
            to: "bob",
            categories,
            max_risk: 50,
            made_unix_ns: NOW,
            until_unix_ns: NOW + 24 * HOUR_NS,
            reason: "on leave",
        }
    }

    fn said(roles: &Roles, d: &DelegationStatement<'_>, now: i64) -> String {
        let signature = signer(1).delegate(d);
        roles.delegated(d, &signature, now).map_or_else(|e| e.to_string(), |_| "holds".to_owned())
    }

    #[test]
    fn only_what_its_maker_signed_holds_and_only_for_its_time() {
        let roles = load(|text| text).unwrap();
        let vcs = ["vcs.*".to_owned()];
        let good = delegation(&vcs);
        assert_eq!(roles.delegated(&good, &signer(1).delegate(&good), NOW), Ok(signer(1).public().id()));
        for other in [signer(2), signer(9)] {
            let why = roles.delegated(&good, &other.delegate(&good), NOW).unwrap_err();
            assert_eq!(why, NoDelegation::Unsigned("carol".into()));
        }
        assert_eq!(said(&roles, &good, NOW + 24 * HOUR_NS - 1), "holds");
        assert_eq!(said(&roles, &good, NOW + 24 * HOUR_NS), "the delegation by carol ended at 2026-02-01 12:00 UTC");
        assert_eq!(said(&roles, &good, NOW - SKEW_NS), "holds", "the maker's clock is ahead");
        assert!(said(&roles, &good, NOW - SKEW_NS - 1).contains("in the future"));
        let long = DelegationStatement { until_unix_ns: NOW + 48 * HOUR_NS + 1, ..good };
        assert!(said(&roles, &long, NOW).contains("longer than 48 hours"));
        assert!(said(&roles, &DelegationStatement { to: "carol", ..good }, NOW).contains("to themselves"));
        assert!(said(&roles, &DelegationStatement { to: "dave", ..good }, NOW).contains("no key of dave"));
        let none = load(|text| text.replace("approvals: {delegate: {max_hours: 48}}\n", "")).unwrap();
        assert!(said(&none, &good, NOW).contains("nobody may delegate"));
        let lost = load(|text| text.replace("carol: [{key", "dave: [{key")).unwrap();
        assert!(said(&lost, &good, NOW).contains("not signed by one of the keys"));
        let odd = ["{vcs,fs}.*".to_owned()];
        for wrong in [
            DelegationStatement { id: "x", ..good },
            DelegationStatement { to: "", ..good },
            DelegationStatement { to: "*", ..good },
            DelegationStatement { categories: &[], ..good },
            DelegationStatement { categories: &odd, ..good },
            DelegationStatement { max_risk: 101, ..good },
            DelegationStatement { until_unix_ns: NOW, ..good },
        ] {
            assert!(said(&roles, &wrong, NOW - 1).starts_with("the delegation's "), "{wrong:?}");
        }
    }

    #[test]
    fn it_covers_no_more_than_it_says_and_than_its_maker_has_now() {
        let roles = load(|text| text).unwrap();
        let all = ["*".to_owned()];
        let wide = DelegationStatement { max_risk: 100, ..delegation(&all) };
        assert!(
            roles.covered(&wide, Right::Review("vcs.write", 60)).is_ok()
                && roles.covered(&wide, Right::Review("fs.write", 60)).is_ok()
        );
        let beyond = roles.covered(&wide, Right::Review("fs.delete", 10)).unwrap_err().to_string();
        assert!(
            beyond.starts_with("what carol has not got cannot be delegated: carol may not review fs.delete"),
            "{beyond}"
        );
        assert!(roles.covered(&wide, Right::Review("vcs.write", 61)).is_err());
        let vcs = ["vcs.*".to_owned()];
        let narrow = delegation(&vcs);
        assert_eq!(
            roles.covered(&narrow, Right::Review("fs.write", 10)).unwrap_err().to_string(),
            "the delegation by carol covers vcs.* up to risk 50, not fs.write at risk 10"
        );
        assert!(
            roles.covered(&narrow, Right::Review("vcs.write", 50)).is_ok()
                && roles.covered(&narrow, Right::Review("vcs.write", 51)).is_err()
        );
        let lost = load(|text| text.replace("carol: [lead]", "carol: [dev]")).unwrap();
        assert!(
            lost.covered(&narrow, Right::Review("vcs.write", 1)).is_err(),
            "who lost the role has nothing in others' hands"
        );
        // bob has nothing of his own, so there is nothing that he could hand on.
        assert!(roles.may_delegate(&DelegationStatement { from: "bob", to: "dave", ..narrow }).is_err());
    }

    #[test]
    fn what_is_made_must_be_its_makers_by_own_roles() {
        let roles = load(|text| text).unwrap();
        let may = |pattern: &str, max_risk| {
            let categories = [pattern.to_owned()];
            roles.may_delegate(&DelegationStatement { max_risk, ..delegation(&categories) }).is_ok()
        };
        for good in ["vcs.*", "vcs.write", "fs.write", "vcs.w*"] {
            assert!(may(good, 60), "{good}");
        }
        for bad in ["*", "fs.*", "v*", "fs.delete", "*.write"] {
            assert!(!may(bad, 0), "{bad}");
        }
        assert!(!may("vcs.*", 61));
    }

    #[test]
    fn the_longest_time_is_bounded() {
        for hours in ["0", "745"] {
            let error = load(|text| text.replace("48", hours)).unwrap_err();
            assert!(error.contains("max_hours") && error.contains("1 to 744"), "{error}");
        }
    }
}
