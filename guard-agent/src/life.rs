//! How long a session lives: its end, when people are told that it comes near, and what is due afterwards.
//!
//! An end is moved by [`Life::renew`] alone, never once it has come. It must not record or kill: see `renewal` and `expiry`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// People are told this long before the end, or when a quarter is left of a short life.
const SOON_NS: u64 = 120_000_000_000;

/// An end, by both clocks. Boot time decides, wall time is for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Until {
    /// Boot time.
    pub boot_ns: u64,
    /// Wall time.
    pub unix_ns: i64,
}

/// What is due, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The end comes near: so many nanoseconds are left.
    Soon(u64),
    /// The end has come.
    Expired,
    /// The grace after it is over.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Phase {
    Young,
    Told,
    Expired,
    Over,
}

/// The life of one session.
pub struct Life {
    state: Mutex<State>,
    keeping: Mutex<()>,
}

struct State {
    until: Until,
    /// When this end was set.
    since_boot_ns: u64,
    phase: Phase,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Life {
    /// One that ends then.
    pub fn new(until: Until, since_boot_ns: u64) -> Self {
        let state = State { until, since_boot_ns, phase: Phase::Young };
        Self { state: Mutex::new(state), keeping: Mutex::default() }
    }

    /// Its end.
    pub fn until(&self) -> Until {
        lock(&self.state).until
    }

    /// Whether its end has come.
    pub fn is_expired(&self, now: u64) -> bool {
        let state = lock(&self.state);
        now >= state.until.boot_ns || state.phase >= Phase::Expired
    }

    /// What is due now, one after the other.
    pub fn due(&self, now: u64, grace: Duration) -> Option<Due> {
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let mut state = lock(&self.state);
        let end = state.until.boot_ns;
        let soon = SOON_NS.min(end.saturating_sub(state.since_boot_ns) / 4);
        let (phase, due) = match state.phase {
            Phase::Young | Phase::Told if now >= end => (Phase::Expired, Due::Expired),
            Phase::Young if end - now <= soon => (Phase::Told, Due::Soon(end - now)),
            Phase::Expired if now >= end.saturating_add(grace) => (Phase::Over, Due::Over),
            _ => return None,
        };
        state.phase = phase;
        Some(due)
    }

    /// Moves the end, where `commit` can: it is called only while the session has not expired, and nothing expires it
    /// meanwhile. It must not wait for anything.
    pub fn renew(&self, now: u64, until: Until, commit: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        let mut state = lock(&self.state);
        if now >= state.until.boot_ns || state.phase >= Phase::Expired {
            return Err("it expired meanwhile".into());
        }
        commit()?;
        *state = State { until, since_boot_ns: now, phase: Phase::Young };
        Ok(())
    }

    /// While this is held nobody else writes, or removes, what is kept of the session.
    pub fn keeping(&self) -> MutexGuard<'_, ()> {
        lock(&self.keeping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn life(end: u64) -> Life {
        Life::new(Until { boot_ns: end * S, unix_ns: 0 }, 0)
    }

    #[test]
    fn each_thing_is_due_once_and_in_order() {
        let (life, grace) = (life(900), Duration::from_secs(10));
        assert_eq!(life.due(779 * S, grace), None);
        assert_eq!(life.due(780 * S, grace), Some(Due::Soon(120 * S)));
        assert_eq!(life.due(781 * S, grace), None);
        assert!(!life.is_expired(900 * S - 1));
        assert_eq!(life.due(900 * S, grace), Some(Due::Expired));
        assert_eq!(life.due(909 * S, grace), None);
        assert_eq!(life.due(910 * S, grace), Some(Due::Over));
        assert_eq!(life.due(u64::MAX, grace), None);
    }

    #[test]
    fn a_daemon_that_comes_late_finds_all_of_it_due_and_a_short_life_is_told_late() {
        let late = life(60);
        let found: Vec<_> = std::iter::from_fn(|| late.due(100 * S, Duration::ZERO)).collect();
        assert_eq!(found, [Due::Expired, Due::Over]);
        assert_eq!(life(60).due(44 * S, Duration::ZERO), None);
        assert_eq!(life(60).due(45 * S, Duration::ZERO), Some(Due::Soon(15 * S)));
    }

    #[test]
    fn renewed_before_the_end_only_and_told_again() {
        let (life, later) = (life(60), Until { boot_ns: 120 * S, unix_ns: 0 });
        assert_eq!(life.due(50 * S, Duration::ZERO), Some(Due::Soon(10 * S)));
        assert!(life.renew(50 * S, later, || Err("no".into())).is_err());
        assert_eq!(life.until().boot_ns, 60 * S);
        life.renew(50 * S, later, || Ok(())).unwrap();
        assert_eq!(life.due(60 * S, Duration::ZERO), None);
        assert!(matches!(life.due(110 * S, Duration::ZERO), Some(Due::Soon(_))));
        let asked = life.renew(120 * S, later, || panic!("after the end nothing is committed"));
        assert_eq!(asked.unwrap_err(), "it expired meanwhile");
        assert_eq!(life.due(120 * S, Duration::MAX), Some(Due::Expired));
        // What has expired stays so, whatever a clock says.
        assert!(life.renew(119 * S, later, || panic!()).is_err() && life.is_expired(0));
    }
}
