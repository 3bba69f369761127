//! Each session's account of the event ring: what the kernel programs put in for it, what was read of that, what was lost.
//!
//! The kernel programs alone write what was put in, the daemon alone what was read. Fails: an account that cannot be
//! written stays behind, so that the session has less room than it should, never more; when the ring is found empty,
//! accounts are put right, also those that a daemon that died has left wrong.

use std::collections::HashMap;
use std::sync::Mutex;

use aya::maps::{HashMap as Table, MapData, MapError};
use guard_common::{NOBODY, Share, maps};

use super::load::{KernelError, Plain};

/// The two maps.
pub struct Shares {
    put: Mutex<Table<MapData, u64, Plain<Share>>>,
    taken: Mutex<Table<MapData, u64, u64>>,
}

impl Shares {
    /// Takes the maps over. Sessions without an account have one together.
    pub(super) fn new(
        put: Table<MapData, u64, Plain<Share>>,
        taken: Table<MapData, u64, u64>,
    ) -> Result<Self, KernelError> {
        let shares = Self { put: Mutex::new(put), taken: Mutex::new(taken) };
        shares.open(NOBODY)?;
        Ok(shares)
    }

    /// Opens a session's account; one that is open stays as it is.
    pub fn open(&self, session: u64) -> Result<(), KernelError> {
        const NOEXIST: u64 = 1;
        let Ok(mut put) = self.put.lock() else { return Err(KernelError::Absent(maps::SHARES)) };
        match put.insert(session, Plain(Share::default()), NOEXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            done => done.map_err(|source| KernelError::Map { map: maps::SHARES, source }),
        }
    }

    /// Closes it. What is still in the ring is given back to nobody's account.
    pub fn close(&self, session: u64) {
        if let (Ok(mut put), Ok(mut taken)) = (self.put.lock(), self.taken.lock()) {
            let _ = put.remove(&session);
            let _ = taken.remove(&session);
        }
    }

    /// One account.
    pub fn of(&self, session: u64) -> Option<Share> {
        self.put.lock().ok()?.get(&session, 0).ok().map(|share| share.0)
    }

    /// All of them.
    pub fn all(&self) -> HashMap<u64, Share> {
        let Ok(put) = self.put.lock() else { return HashMap::new() };
        put.iter().filter_map(Result::ok).map(|(session, share)| (session, share.0)).collect()
    }

    /// Gives back what was read.
    pub fn give_back(&self, session: u64, bytes: u64) {
        let key = if self.of(session).is_some() { session } else { NOBODY };
        let Ok(mut taken) = self.taken.lock() else { return };
        let before = taken.get(&key, 0).unwrap_or(0);
        let _ = taken.insert(key, before.saturating_add(bytes), 0);
    }

    /// Puts accounts right. `before` is how they stood before the ring was found empty: all of that has been read.
    pub fn found_empty(&self, before: &HashMap<u64, Share>) {
        for (session, share) in before {
            let now = self.of(*session).map_or(share.put, |now| now.put);
            let Ok(mut taken) = self.taken.lock() else { return };
            let known = taken.get(session, 0).unwrap_or(0);
            let right = known.max(share.put).min(now);
            if known != right {
                let _ = taken.insert(session, right, 0);
            }
        }
    }
}
