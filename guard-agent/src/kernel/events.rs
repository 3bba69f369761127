//! Events of the kernel programs, from ring-buffer bytes into owned types.
//!
//! Fails: an event of unknown kind or wrong size becomes [`Event::Unknown`], so that it is counted and not lost silently.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use guard_common::{EventHeader, ExecEvent, ExitEvent, FailedEvent, GuardEvent, event_kind};

use super::shares::Shares;

/// Events after which what they took of the ring is given back.
const RETURN_EVERY: u32 = 64;

/// One event.
#[derive(Clone, Debug)]
pub enum Event {
    /// The check refused.
    Refused(Box<ExecEvent>),
    /// The new image was killed.
    Killed(Box<ExecEvent>),
    /// The new image runs.
    Started(Box<ExecEvent>),
    /// The syscall failed.
    Failed(Box<FailedEvent>),
    /// A process ended.
    Exit(ExitEvent),
    /// A guard refused something else.
    Guard(GuardEvent),
    /// Not understood: kind and size.
    Unknown(u32, usize),
}

/// The one reader of the ring.
pub struct EventReader {
    ring: RingBuf<MapData>,
    /// Bytes read that were not yet given back, by session.
    read: HashMap<u64, u64>,
    unreturned: u32,
    last_boot_ns: u64,
}

impl AsFd for EventReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl EventReader {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring, read: HashMap::new(), unreturned: 0, last_boot_ns: 0 }
    }

    /// The next event, if there is one now. What is read is given back to its session a few events later, or when there
    /// is no more.
    pub fn next_event(&mut self, shares: &Shares) -> Option<Event> {
        let next = self.ring.next().map(|bytes| (parse(&bytes), head(&bytes), bytes.len()));
        let Some((event, head, length)) = next else {
            self.give_back(shares);
            return None;
        };
        self.last_boot_ns = head.boot_ns;
        *self.read.entry(head.session).or_default() += guard_common::ring_bytes(length);
        self.unreturned += 1;
        if self.unreturned >= RETURN_EVERY {
            self.give_back(shares);
        }
        Some(event)
    }

    /// Boot time of the last event that was read.
    pub fn last_boot_ns(&self) -> u64 {
        self.last_boot_ns
    }

    fn give_back(&mut self, shares: &Shares) {
        self.unreturned = 0;
        for (session, bytes) in self.read.drain() {
            shares.give_back(session, bytes);
        }
    }
}

fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, the types are plain integers of `guard-common`, unaligned reads are allowed.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

fn head(bytes: &[u8]) -> EventHeader {
    read(bytes).unwrap_or_default()
}

fn parse(bytes: &[u8]) -> Event {
    let Some(header) = read::<EventHeader>(bytes) else { return Event::Unknown(0, bytes.len()) };
    let known = match header.kind {
        event_kind::REFUSED => read(bytes).map(|e| Event::Refused(Box::new(e))),
        event_kind::KILLED => read(bytes).map(|e| Event::Killed(Box::new(e))),
        event_kind::STARTED => read(bytes).map(|e| Event::Started(Box::new(e))),
        event_kind::FAILED => read(bytes).map(|e| Event::Failed(Box::new(e))),
        event_kind::EXIT => read(bytes).map(Event::Exit),
        event_kind::GUARD => read(bytes).map(Event::Guard),
        _ => None,
    };
    known.unwrap_or(Event::Unknown(header.kind, bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_unknown_events_are_not_lost() {
        assert!(matches!(parse(&[1, 2]), Event::Unknown(0, 2)));
        let mut bytes = vec![0_u8; 32];
        bytes[0] = 99;
        assert!(matches!(parse(&bytes), Event::Unknown(99, 32)));
        bytes[0] = event_kind::FAILED as u8;
        assert!(matches!(parse(&bytes), Event::Unknown(4, 32)));
    }
}
