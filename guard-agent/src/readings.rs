//! Tasks whose memory is being read at the moment.
//!
//! A page may lie on a file system whose server does not answer: whoever reads it sleeps until it does. The watching thread
//! kills such a task and records its attempt at once, because the reading thread may come back after the session has ended.
//! It must not read or kill itself. Fails: not at all.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One reading.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// The thread whose memory it is.
    pub tid: u32,
    /// Its attempt.
    pub exec: u64,
    /// Since when, in boot time.
    pub since: u64,
    /// Somebody else has recorded the attempt: it is denied, whatever is read in the end.
    pub given_up: bool,
}

/// The readings of one session, by thread.
#[derive(Debug, Default)]
pub struct Readings(Mutex<HashMap<u32, Reading>>);

impl Readings {
    fn all(&self) -> MutexGuard<'_, HashMap<u32, Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reading begins.
    pub fn begin(&self, tid: u32, exec: u64, now: u64) {
        self.all().insert(tid, Reading { tid, exec, since: now, given_up: false });
    }

    /// It has ended. True if it was given up meanwhile.
    pub fn end(&self, tid: u32) -> bool {
        self.all().remove(&tid).is_some_and(|reading| reading.given_up)
    }

    /// Those that take longer than this.
    pub fn older_than(&self, age: u64, now: u64) -> Vec<Reading> {
        self.all().values().filter(|reading| now.saturating_sub(reading.since) >= age).copied().collect()
    }

    /// Gives a reading up. True for the one who did it: the attempt is theirs to record.
    pub fn give_up(&self, tid: u32, exec: u64) -> bool {
        let mut all = self.all();
        let Some(reading) = all.get_mut(&tid).filter(|r| r.exec == exec && !r.given_up) else { return false };
        reading.given_up = true;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_records() {
        let readings = Readings::default();
        readings.begin(7, 70, 1000);
        assert!(readings.older_than(500, 1400).is_empty());
        assert_eq!(readings.older_than(500, 1500).len(), 1);
        assert!(!readings.give_up(7, 71), "an attempt before");
        assert!(readings.give_up(7, 70));
        assert!(!readings.give_up(7, 70), "twice");
        assert!(readings.end(7));
        assert!(!readings.end(7));
        readings.begin(7, 72, 2000);
        assert!(!readings.end(7));
    }
}
