//! Delegations that have not ended, derived from the log.
//!
//! It must not say that one holds: signature, roles and time are asked when a decision comes. Bounded: beyond [`EACH_MAX`] of one
//! maker none is taken. Fails closed: one that is not here gives nothing.

use std::collections::BTreeMap;

use guard_policy::decision::DelegationStatement;
use guard_proto::v1::{Delegation, DelegationState, ReviewDelegated};

/// Delegations of one maker at a time.
pub const EACH_MAX: usize = 32;
/// Those that have ended stay in memory for so long, in case a clock is set.
const ENDED_NS: i64 = 600_000_000_000;

/// All that have not ended, by id.
#[derive(Debug, Default)]
pub struct Delegations(BTreeMap<String, (u64, Delegation)>);

/// A delegation as its maker signed it.
pub fn statement(d: &Delegation) -> DelegationStatement<'_> {
    DelegationStatement {
        id: &d.id,
        from: &d.from,
        to: &d.to,
        categories: &d.categories,
        max_risk: d.max_risk,
        made_unix_ns: d.made_unix_ns,
        until_unix_ns: d.until_unix_ns,
        reason: &d.reason,
    }
}

impl Delegations {
    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, at_ns: i64, record: ReviewDelegated) {
        self.0.retain(|_, (_, d)| d.until_unix_ns.saturating_add(ENDED_NS) > at_ns);
        let Some(delegation) = record.delegation else { return };
        if record.ended_by.is_empty() {
            self.0.insert(delegation.id.clone(), (leaf, delegation));
        } else {
            self.0.remove(&delegation.id);
        }
    }

    /// One by id, whoever asks.
    pub fn get(&self, id: &str) -> Option<&Delegation> {
        self.0.get(id).map(|(_, d)| d)
    }

    /// Those to somebody, by their ids.
    pub fn to(&self, name: &str) -> Vec<Delegation> {
        self.0.values().filter(|(_, d)| d.to == name).map(|(_, d)| d.clone()).collect()
    }

    /// Those that have not ended.
    pub fn standing(&self, now_ns: i64) -> impl Iterator<Item = DelegationState> {
        self.0
            .values()
            .filter(move |(_, d)| d.until_unix_ns > now_ns)
            .map(|(leaf, d)| DelegationState { delegation: Some(d.clone()), leaf: *leaf })
    }

    /// How many of a maker have not ended.
    pub fn count_of(&self, from: &str, now_ns: i64) -> usize {
        self.0.values().filter(|(_, d)| d.from == from && d.until_unix_ns > now_ns).count()
    }

    /// Leaves from which the same follows.
    pub fn leaves(&self) -> impl Iterator<Item = u64> {
        self.0.values().map(|(leaf, _)| *leaf)
    }

    /// The first leaf of those that have not ended.
    pub fn needed(&self, now_ns: i64) -> Option<u64> {
        self.0.values().filter(|(_, d)| d.until_unix_ns > now_ns).map(|(leaf, _)| *leaf).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, until: i64) -> ReviewDelegated {
        let delegation = Delegation {
            id: id.into(),
            from: "carol".into(),
            to: "bob".into(),
            until_unix_ns: until,
            ..Delegation::default()
        };
        ReviewDelegated { delegation: Some(delegation), ..ReviewDelegated::default() }
    }

    #[test]
    fn they_end_by_time_and_by_hand_and_their_leaves_say_all() {
        let mut all = Delegations::default();
        all.fold(3, 0, record("a", 100));
        all.fold(5, 0, record("b", 200));
        assert_eq!((all.to("bob").len(), all.count_of("carol", 150), all.needed(150)), (2, 1, Some(5)));
        assert_eq!(all.leaves().collect::<Vec<_>>(), [3, 5]);
        all.fold(7, 0, ReviewDelegated { ended_by: "carol".into(), ..record("b", 200) });
        assert!(all.get("b").is_none() && all.get("a").is_some());
        all.fold(8, 100 + ENDED_NS, record("c", i64::MAX));
        assert_eq!(all.leaves().collect::<Vec<_>>(), [8]);
    }
}
