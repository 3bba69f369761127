//! A group of records on its way to the disk, and who waits for it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::StoreError;

type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    Callback(Done),
    Ready(Result<(), StoreError>),
}

/// What writer and ticket share.
#[derive(Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    done: Condvar,
}

impl Slot {
    /// Says how it went. Must be called without any lock held: it may call back.
    pub(super) fn complete(&self, result: Result<(), StoreError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *state, State::Ready(result.clone()));
        drop(state);
        self.done.notify_all();
        if let State::Callback(call) = before {
            call(result);
        }
    }
}

/// A group of records on its way to the disk.
pub struct Ticket {
    pub(super) first: u64,
    pub(super) slot: Arc<Slot>,
}

impl Ticket {
    /// Leaf of the group's first record.
    pub fn first_leaf(&self) -> u64 {
        self.first
    }

    /// Waits until the group is durable.
    pub fn wait(self) -> Result<(), StoreError> {
        let mut state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let State::Ready(result) = &*state {
                return result.clone();
            }
            state = self.slot.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls back, on the writer's thread, when it is durable (or at once if it already is).
    pub fn on_done(self, call: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        let mut state = self.slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Ready(result) = &*state {
            let result = result.clone();
            drop(state);
            call(result);
        } else {
            *state = State::Callback(Box::new(call));
        }
    }
}
