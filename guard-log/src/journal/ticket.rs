//! A record on its way to the disk, and who waits for it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{JournalError, lock};

/// A record that is durable.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Its number.
    pub seq: u64,
    /// Its digest.
    pub digest: [u8; 32],
}

type Done = Box<dyn FnOnce(Result<Appended, JournalError>) + Send>;

/// What writer and ticket share.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
    done: Condvar,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Waiting,
    Callback(Done),
    Ready(Result<Appended, JournalError>),
}

/// A record on its way to the disk.
pub struct Ticket {
    pub(super) seq: u64,
    pub(super) slot: Arc<Slot>,
}

impl Ticket {
    /// Its sequence number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits until it is durable.
    pub fn wait(self) -> Result<Appended, JournalError> {
        let mut state = lock(&self.slot.state);
        loop {
            if let SlotState::Ready(result) = &*state {
                return result.clone();
            }
            state = self.slot.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls back, on the writer's thread, when it is durable (or at once if it already is).
    pub fn on_done(self, call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static) {
        let mut state = lock(&self.slot.state);
        if let SlotState::Ready(result) = &*state {
            let result = result.clone();
            drop(state);
            call(result);
        } else {
            *state = SlotState::Callback(Box::new(call));
        }
    }
}

impl Slot {
    /// With somebody who is called back.
    pub(super) fn calling(call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static) -> Self {
        Self { state: Mutex::new(SlotState::Callback(Box::new(call))), done: Condvar::new() }
    }

    /// Says how it went. Must be called without any lock held: it may call back.
    pub(super) fn complete(&self, result: Result<Appended, JournalError>) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut *state, SlotState::Ready(result.clone()));
        drop(state);
        self.done.notify_all();
        if let SlotState::Callback(call) = before {
            call(result);
        }
    }
}
