//! Return from execve and execveat: what failed, and the end of every per-attempt entry.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_uid_gid, bpf_probe_read_user, bpf_probe_read_user_str_bytes,
};
use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;
use guard_common::{
    Attempt, COMM, Counter, EVENT_ARG_COUNT, EVENT_ARG_SLOT, EventHeader, FailedEvent, UNREADABLE, attempt_state,
    event_kind,
};

use crate::check::task;
use crate::enter;
use crate::maps::{ATTEMPTS, GRANTS, PENDING, count, now};
use crate::membership::{governed, tid};
use crate::ring::{self, Tells};

/// An attempt whose end was not seen has no result of its own; it is reported as one that could not go on.
const EAGAIN: u32 = 11;

#[fexit(function = "__x64_sys_execve")]
pub fn guard_exit_execve(ctx: FExitContext) -> i32 {
    end::<59>(&ctx)
}

#[fexit(function = "__x64_sys_execveat")]
pub fn guard_exit_execveat(ctx: FExitContext) -> i32 {
    end::<322>(&ctx)
}

#[inline(always)]
fn end<const SYSCALL: u32>(ctx: &FExitContext) -> i32 {
    let Some(mark) = governed() else { return 0 };
    let tid = tid();
    // SAFETY: copied at once; only this thread's own syscall writes the entry now.
    let attempt = unsafe { ATTEMPTS.get(tid) }.copied();
    forget(tid);
    let result = ctx.ret::<i64>().unwrap_or(0);
    let errno = if result < 0 { (-result) as u32 } else { 0 };
    match attempt {
        // An attempt that is still there has not become an image: it failed, or it only asked (AT_EXECVE_CHECK, errno 0).
        Some(attempt) => failed(&attempt, errno),
        // Its entry was not seen: it was denied at the latest by the check, or failed before.
        None if errno != 0 => {
            count(Counter::Attempts);
            // SAFETY: the function's one argument is the tracked `struct pt_regs` of the system call.
            failed(&unsafe { enter::attempt::<SYSCALL>(&mark, ctx.arg(0)) }, errno);
        }
        None => {}
    }
    0
}

/// Reports an attempt of this thread that is still noted: its end was not seen. The kernel skips a program that runs on
/// the same processor already, which it does when the one was preempted.
#[inline(always)]
pub fn end_forgotten(tid: u32) {
    // SAFETY: as above.
    if let Some(attempt) = unsafe { ATTEMPTS.get(tid) }.copied() {
        forget(tid);
        failed(&attempt, EAGAIN);
    }
}

#[inline(always)]
fn forget(tid: u32) {
    let _ = ATTEMPTS.remove(tid);
    let _ = GRANTS.remove(tid);
    let _ = PENDING.remove(task());
}

/// Errors that the kernel gives before the file is opened, and so before the hold: the daemon knows nothing of the attempt.
/// Nor may it where the end was not seen.
#[inline(always)]
fn tells(attempt: &Attempt, errno: u32) -> Tells {
    const ENOENT: u32 = 2;
    const E2BIG: u32 = 7;
    const EACCES: u32 = 13;
    const EFAULT: u32 = 14;
    const ENOTDIR: u32 = 20;
    const ENAMETOOLONG: u32 = 36;
    const ELOOP: u32 = 40;
    match errno {
        ENOENT | EAGAIN | E2BIG | EACCES | EFAULT | ENOTDIR | ENAMETOOLONG | ELOOP if attempt.state == 0 => {
            Tells::Attempt
        }
        _ => Tells::Outcome,
    }
}

#[inline(always)]
fn failed(attempt: &Attempt, errno: u32) {
    count(Counter::Failed);
    // A refusal or a kill has told its own story, or was counted as lost.
    if attempt.state & (attempt_state::DENIED | attempt_state::KILLED) != 0 {
        return;
    }
    let Some(mut entry) = ring::reserve::<FailedEvent>(attempt.session, tells(attempt, errno)) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation is exactly one FailedEvent; every field that a reader may use is written.
    unsafe {
        (*event).header = EventHeader {
            kind: event_kind::FAILED,
            size: size_of::<FailedEvent>() as u32,
            boot_ns: now(),
            session: attempt.session,
            tgid: attempt.tgid,
            tid: attempt.tid,
        };
        (*event).exec = attempt.exec;
        (*event).root = attempt.root;
        (*event).parent_exec = attempt.parent_exec;
        (*event).entered_boot_ns = attempt.entered_boot_ns;
        (*event).errno = errno;
        (*event).state = attempt.state;
        (*event).uid = bpf_get_current_uid_gid() as u32;
        (*event).reserved0 = 0;
        (*event).reserved = 0;
        (*event).comm = bpf_get_current_comm().unwrap_or([0; COMM]);
        (*event).path[0] = 0;
        (*event).path_len = match bpf_probe_read_user_str_bytes(attempt.path_ptr as *const u8, &mut (*event).path) {
            Ok(text) => text.len() as u32,
            Err(_) => UNREADABLE,
        };
        arguments(attempt, event);
    }
    entry.submit(0);
}

/// # Safety
/// `event` must be a reservation of one FailedEvent.
#[inline(always)]
unsafe fn arguments(attempt: &Attempt, event: *mut FailedEvent) {
    let mut seen = 0_u32;
    let mut cut = 1_u32;
    let mut readable = true;
    for index in 0..EVENT_ARG_COUNT {
        let place = attempt.argv_ptr.wrapping_add(8 * index as u64) as *const u64;
        // SAFETY: the helper checks the user address.
        let Ok(pointer) = (unsafe { bpf_probe_read_user(place) }) else {
            readable = false;
            break;
        };
        if pointer == 0 {
            cut = 0;
            break;
        }
        // SAFETY: a slot of constant place and size within the reservation; the helper checks the user address.
        let slot = unsafe { &mut *(&raw mut (*event).args).cast::<[u8; EVENT_ARG_SLOT]>().add(index) };
        // SAFETY: as above.
        match unsafe { bpf_probe_read_user_str_bytes(pointer as *const u8, slot) } {
            Ok(_) => seen += 1,
            Err(_) => {
                readable = false;
                break;
            }
        }
    }
    // SAFETY: by contract.
    unsafe {
        (*event).args_count = if readable { seen } else { UNREADABLE };
        (*event).args_cut = cut;
    }
}
