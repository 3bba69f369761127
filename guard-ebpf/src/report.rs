//! Events about acts other than execs: refused, let through and recorded, or answered with a kill.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_uid_gid, bpf_probe_read_kernel_buf, bpf_probe_read_kernel_str_bytes,
};
use guard_common::{COMM, Counter, EVENT_TEXT, EventHeader, FileKey, GuardEvent, Mark, event_kind, guard_outcome};

use crate::check::EPERM;
use crate::maps::{count, now};
use crate::membership::{tgid, tid};
use crate::offsets::short;
use crate::ring::{self, Tells};

/// What the text of an event is taken from. No enum: of the variant that has no data the compiler leaves bytes undefined,
/// and older verifiers refuse to copy those.
#[derive(Clone, Copy)]
pub struct Text {
    address: u64,
    /// Bytes; 0 for a string that ends with NUL.
    length: u64,
}

impl Text {
    /// Nothing.
    pub const NONE: Self = Self { address: 0, length: 0 };

    /// A NUL-terminated string in kernel memory.
    #[inline(always)]
    pub fn name(start: *const u8) -> Self {
        Self { address: start as u64, length: 0 }
    }

    /// Bytes in kernel memory; at most [`EVENT_TEXT`] are taken.
    #[inline(always)]
    pub fn bytes(start: *const u8, length: u32) -> Self {
        Self { address: start as u64, length: length as u64 }
    }
}

/// One act.
#[derive(Clone, Copy)]
pub struct Act {
    /// [`guard_common::reason`].
    pub reason: u32,
    /// Other process, or 0.
    pub other: u32,
    /// File, directory or socket.
    pub file: FileKey,
    /// See [`GuardEvent::number`].
    pub number: u64,
    /// See [`GuardEvent::detail`].
    pub detail: u32,
    /// See [`GuardEvent::text`].
    pub text: Text,
}

impl Act {
    /// An act without particulars.
    #[inline(always)]
    pub fn new(reason: u32) -> Self {
        Self { reason, other: 0, file: FileKey { dev: 0, ino: 0 }, number: 0, detail: 0, text: Text::NONE }
    }

    /// An act on another task.
    #[inline(always)]
    pub fn on_task(reason: u32, other: u32) -> Self {
        Self { other, ..Self::new(reason) }
    }

    /// An act on a file.
    #[inline(always)]
    pub fn on_file(reason: u32, file: FileKey) -> Self {
        Self { file, ..Self::new(reason) }
    }
}

/// Reports a refusal. Gives what the hook returns.
#[inline(always)]
pub fn refuse(mark: &Mark, act: &Act) -> i32 {
    count(Counter::GuardRefused);
    emit(mark, guard_outcome::REFUSED, act);
    EPERM
}

/// Reports an act that is let through.
#[inline(always)]
pub fn observe(mark: &Mark, act: &Act) {
    count(Counter::GuardObserved);
    emit(mark, guard_outcome::OBSERVED, act);
}

/// Writes the event. Acts can be repeated at will: they never take the room that exec records need; what finds none is
/// counted.
#[inline(always)]
pub fn emit(mark: &Mark, outcome: u32, act: &Act) {
    let Some(mut entry) = ring::reserve::<GuardEvent>(mark.session, Tells::Act) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation is exactly one GuardEvent; every field is written before it is submitted.
    unsafe {
        (*event).header = EventHeader {
            kind: event_kind::GUARD,
            size: size_of::<GuardEvent>() as u32,
            boot_ns: now(),
            session: mark.session,
            tgid: tgid(),
            tid: tid(),
        };
        (*event).exec = mark.exec;
        (*event).root = mark.root;
        (*event).file = act.file;
        (*event).number = act.number;
        (*event).reason = act.reason;
        (*event).outcome = outcome;
        (*event).other_tgid = act.other;
        (*event).uid = bpf_get_current_uid_gid() as u32;
        (*event).detail = act.detail;
        (*event).comm = bpf_get_current_comm().unwrap_or([0; COMM]);
        (*event).text = [0; EVENT_TEXT];
        (*event).text_len = text(&mut (*event).text, act.text);
    }
    entry.submit(0);
}

/// Bytes of text that were taken.
#[inline(always)]
fn text(into: &mut [u8; EVENT_TEXT], from: Text) -> u32 {
    let start = from.address as *const u8;
    if from.length == 0 {
        // SAFETY: the helper checks the address and writes at most the buffer.
        return unsafe { bpf_probe_read_kernel_str_bytes(start, into) }.map_or(0, |t| t.len() as u32);
    }
    let length = if from.length > EVENT_TEXT as u64 { EVENT_TEXT as u32 } else { from.length as u32 };
    let Some(part) = into.get_mut(..short(length)) else { return 0 };
    // SAFETY: as above.
    if unsafe { bpf_probe_read_kernel_buf(start, part) }.is_err() { 0 } else { length }
}
