//! Acts on other tasks: a governed task signals, limits and reprioritises only tasks of its own session. Signal 0, which
//! only asks whether a task is there, stays free.
//!
//! Signals that the kernel sends for a file (`SIGIO`) have no sender to ask when they come: the owner is judged when it is set.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{Mark, reason};

use crate::bounds::bounds;
use crate::maps::MARKS;
use crate::membership::{governed, tgid};
use crate::offsets::{OFF_SIGNAL_LIVE, OFF_TASK_SIGNAL, OFF_TASK_TGID, field};
use crate::report::Act;

/// `fcntl`: who gets the signals of a file.
const F_SETOWN: u32 = 8;
/// The same with a structure in user memory, which could change after it was looked at.
const F_SETOWN_EX: u32 = 15;

#[lsm(hook = "task_kill")]
pub fn guard_kill(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    let signal: i32 = ctx.arg(2);
    if earlier != 0 || signal == 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let target: *const u8 = ctx.arg(0);
    // SAFETY: `target` is the hook's tracked argument, its signal struct a tracked field.
    let (other, live): (u32, i32) = unsafe {
        let shared: *const u8 = field(target, &OFF_TASK_SIGNAL);
        (field(target, &OFF_TASK_TGID), field(shared, &OFF_SIGNAL_LIVE))
    };
    // A zombie feels nothing, and its mark is gone already.
    if is_own(&mark, other) || live == 0 || is_driver(&ctx) {
        return 0;
    }
    let Some(bounds) = bounds(&mark) else { return 0 };
    bounds.refuse(&mark, &Act { number: signal as u64, ..Act::on_task(reason::SIGNAL, other) })
}

/// With credentials of its own a signal is sent by a driver, from an interrupt: the current task is nobody. The argument is
/// read as plain memory, because the verifier (6.12) takes every pointer argument for one that is never null.
#[inline(always)]
fn is_driver(ctx: &LsmContext) -> bool {
    const CRED: usize = 3;
    // SAFETY: the context holds the hook's arguments, eight bytes each; the helper checks the address.
    let cred = unsafe { bpf_probe_read_kernel(ctx.as_ptr().cast::<u64>().add(CRED)) };
    cred.is_ok_and(|cred| cred != 0)
}

#[lsm(hook = "task_setrlimit")]
pub fn guard_task_limit(ctx: LsmContext) -> i32 {
    let (earlier, resource): (i32, u32) = (ctx.arg(3), ctx.arg(1));
    setting(earlier, ctx.arg(0), resource)
}

#[lsm(hook = "task_setscheduler")]
pub fn guard_task_scheduler(ctx: LsmContext) -> i32 {
    setting(ctx.arg(1), ctx.arg(0), 0)
}

#[lsm(hook = "task_setnice")]
pub fn guard_task_nice(ctx: LsmContext) -> i32 {
    setting(ctx.arg(2), ctx.arg(0), 0)
}

#[lsm(hook = "task_setioprio")]
pub fn guard_task_ioprio(ctx: LsmContext) -> i32 {
    setting(ctx.arg(2), ctx.arg(0), 0)
}

#[lsm(hook = "task_movememory")]
pub fn guard_task_memory(ctx: LsmContext) -> i32 {
    setting(ctx.arg(1), ctx.arg(0), 0)
}

#[inline(always)]
fn setting(earlier: i32, target: *const u8, number: u32) -> i32 {
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    // SAFETY: the callers pass the hook's tracked argument.
    let other: u32 = unsafe { field(target, &OFF_TASK_TGID) };
    if is_own(&mark, other) {
        return 0;
    }
    let Some(bounds) = bounds(&mark) else { return 0 };
    bounds.refuse(&mark, &Act { number: number as u64, ..Act::on_task(reason::TASK_SETTING, other) })
}

/// `fcntl` of a governed task: owners that would get its files' signals.
#[inline(always)]
pub fn set_owner(command: u32, owner: u64) -> i32 {
    if command != F_SETOWN && command != F_SETOWN_EX {
        return 0;
    }
    let Some(mark) = governed() else { return 0 };
    // Negative: a process group, which may hold anybody.
    let owner = owner as i32;
    if command == F_SETOWN && (owner == 0 || (owner > 0 && is_own(&mark, owner as u32))) {
        return 0;
    }
    let Some(bounds) = bounds(&mark) else { return 0 };
    let other = if command == F_SETOWN && owner > 0 { owner as u32 } else { 0 };
    bounds.refuse(&mark, &Act { number: command as u64, ..Act::on_task(reason::SIGNAL, other) })
}

/// Whether a process is of the mark's session.
#[inline(always)]
pub fn is_own(mark: &Mark, other: u32) -> bool {
    if other == tgid() {
        return true;
    }
    // SAFETY: marks are replaced whole.
    mark.session != 0 && unsafe { MARKS.get(other) }.is_some_and(|m| m.session == mark.session)
}
