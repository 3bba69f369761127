//! Room in the event ring, shared out among sessions.
//!
//! A session may fill as much as a part of what is free just now: one alone takes a third of the ring, and however many
//! fill theirs, there is always room left for one that has less. What the daemon has read is given back. Every event that
//! finds no room is counted for its session.

use aya_ebpf::maps::ring_buf::RingBufEntry;
use guard_common::{Counter, NOBODY, Share, ring_bytes};

use crate::maps::{EVENTS, SHARES, TAKEN, count};

/// Left for what became of execs that were granted: those events can neither be refused nor repeated at will.
const RESERVE: u64 = 64 << 10;

/// What an event tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// An attempt that failed or was refused without a grant: can be repeated at will.
    Attempt,
    /// An act other than an exec: can be repeated at will.
    Act,
    /// What became of an exec that has its record. Takes what room there is.
    Outcome,
}

/// Whether an exec of this session may go on: no room for its events, no exec.
#[inline(always)]
pub fn has_room(session: u64) -> bool {
    share(session).is_some_and(|own| fits(own, 2))
}

/// Room for one event, charged to its session; or its loss, counted.
#[inline(always)]
pub fn reserve<T: 'static>(session: u64, tells: Tells) -> Option<RingBufEntry<T>> {
    let own = share(session);
    // What can be repeated at will leaves half of the share to execs.
    let room = tells == Tells::Outcome || own.is_some_and(|own| fits(own, 4));
    let entry = if room { EVENTS.reserve::<T>(0) } else { None };
    let Some(own) = own else {
        if entry.is_none() {
            count(Counter::RingFull);
        }
        return entry;
    };
    // SAFETY: `own.share` comes from a look-up in this program run; the fields lie within the value.
    unsafe {
        match &entry {
            // Before the event is submitted, so that it is never given back before it was charged.
            Some(_) => add(&raw mut (*own.share).put, ring_bytes(size_of::<T>())),
            None => {
                count(Counter::RingFull);
                add(
                    match tells {
                        Tells::Attempt => &raw mut (*own.share).lost_attempts,
                        Tells::Act => &raw mut (*own.share).lost_acts,
                        Tells::Outcome => &raw mut (*own.share).lost_outcomes,
                    },
                    1,
                );
            }
        }
    }
    entry
}

#[derive(Clone, Copy)]
struct Own {
    share: *mut Share,
    key: u64,
}

/// A session's account; sessions without one have one together.
#[inline(always)]
fn share(session: u64) -> Option<Own> {
    if let Some(share) = SHARES.get_ptr_mut(session) {
        return Some(Own { share, key: session });
    }
    SHARES.get_ptr_mut(NOBODY).map(|share| Own { share, key: NOBODY })
}

/// Whether what the session has in the ring is less than a part of what is free.
#[inline(always)]
fn fits(own: Own, part: u64) -> bool {
    const AVAILABLE: u64 = 0;
    const SIZE: u64 = 1;
    // SAFETY: a look-up result of this program run.
    let put = unsafe { (*own.share).put };
    // SAFETY: a u64 that the daemon replaces whole.
    let taken = unsafe { TAKEN.get(own.key) }.copied().unwrap_or(0);
    // The daemon may have given back what is being charged just now.
    let waiting = if put > taken { put - taken } else { 0 };
    let free = EVENTS.query(SIZE).wrapping_sub(EVENTS.query(AVAILABLE));
    free > RESERVE && waiting * part < free - RESERVE
}

/// Adds to a counter that all processors share. There is no such type for this target, but such an instruction.
///
/// # Safety
/// `place` must be an aligned field of a map value.
#[inline(always)]
unsafe fn add(place: *mut u64, value: u64) {
    // SAFETY: by contract.
    unsafe {
        core::arch::asm!("lock *(u64 *)({place} + 0) += {value}", place = in(reg) place, value = in(reg) value);
    }
}
