//! How much one node may send: records and bytes per second, for all its streams together.
//!
//! A node that sends more is taken up later: its batch waits and nothing more is read from its connection, so that it keeps
//! its records in its journal and others are served. It must not lose or refuse a batch because it is large. Fails: a node whose
//! streams together wait longer than [`DEBT_MAX`] gets `RESOURCE_EXHAUSTED` for the next batch, which is not logged.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Longest wait that is owed before one more batch.
pub const DEBT_MAX: Duration = Duration::from_secs(5);
/// What a node may send at once after it was silent.
const BURST: Duration = Duration::from_secs(1);

/// What is allowed to each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Records per second.
    pub records: u64,
    /// Bytes of records per second.
    pub bytes: u64,
}

/// More than is allowed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "node {node} sends more than node.records_per_second = {} or node.bytes_per_second = {} of the collector's \
     configuration allow; nothing of this batch was logged: it is taken in {} s",
    limits.records, limits.bytes, wait.as_secs()
)]
pub struct Exceeded {
    node: String,
    limits: Limits,
    wait: Duration,
}

/// When each of the two rates is paid off.
#[derive(Clone, Copy, Debug)]
struct Paid {
    records: Instant,
    bytes: Instant,
}

/// All nodes.
#[derive(Debug)]
pub struct Quotas {
    limits: Limits,
    // One entry for each certificate's name that has shipped.
    nodes: Mutex<HashMap<String, Paid>>,
}

impl Quotas {
    /// With these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, nodes: Mutex::default() }
    }

    /// Takes a batch into account: how long it has to wait.
    pub fn take(&self, node: &str, records: usize, bytes: usize, now: Instant) -> Result<Duration, Exceeded> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        // Silence saves up a burst, no more.
        let silent = now.checked_sub(BURST).unwrap_or(now);
        let before = nodes.get(node).copied().unwrap_or(Paid { records: silent, bytes: silent });
        let owed = before.records.max(before.bytes).saturating_duration_since(now);
        if owed > DEBT_MAX {
            return Err(Exceeded { node: node.to_owned(), limits: self.limits, wait: owed });
        }
        let after = |paid: Instant, count: usize, rate: u64| {
            let cost = Duration::from_secs_f64(count as f64 / rate.max(1) as f64);
            paid.max(silent) + cost
        };
        let records = after(before.records, records, self.limits.records);
        let bytes = after(before.bytes, bytes, self.limits.bytes);
        nodes.insert(node.to_owned(), Paid { records, bytes });
        Ok(records.max(bytes).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { records: 100, bytes: 1000 };

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn what_is_within_the_rate_does_not_wait() {
        let (quotas, start) = (Quotas::new(LIMITS), Instant::now());
        for second in 0..50 {
            assert_eq!(quotas.take("a", 100, 1000, start + seconds(second)), Ok(Duration::ZERO));
            let _ = quotas.take("b", 1000, 10, start + seconds(second));
        }
    }

    #[test]
    fn either_rate_makes_it_wait_and_silence_pays_it_off() {
        let (quotas, start) = (Quotas::new(LIMITS), Instant::now());
        assert_eq!(quotas.take("a", 500, 1, start), Ok(seconds(4)));
        assert_eq!(quotas.take("b", 1, 5000, start), Ok(seconds(4)));
        assert_eq!(quotas.take("a", 200, 1, start + seconds(4)), Ok(seconds(2)));
        // After a long silence one second's worth is free.
        assert_eq!(quotas.take("a", 300, 1, start + seconds(500)), Ok(seconds(2)));
    }

    #[test]
    fn a_large_batch_is_taken_and_the_next_one_refused_until_it_is_paid_for() {
        let (quotas, start) = (Quotas::new(LIMITS), Instant::now());
        assert_eq!(quotas.take("a", 10_000, 1, start), Ok(seconds(99)));
        let refused = quotas.take("a", 1, 1, start).expect_err("refused");
        assert!(refused.to_string().contains("node.records_per_second = 100"), "{refused}");
        assert!(quotas.take("a", 1, 1, start + seconds(90)).is_err());
        assert!(quotas.take("a", 1, 1, start + seconds(96)).is_ok());
        assert!(quotas.take("b", 1, 1, start).is_ok());
    }
}
