//! Fork and exit: the mark is inherited before the child can run and removed when the whole thread group is dead.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use guard_common::{Counter, EventHeader, ExitEvent, Mark, event_kind};

use crate::check::task;
use crate::maps::{GRANTS, MARKS, PENDING, count, now};
use crate::membership::{governed, tgid, tid};
use crate::offsets::{
    OFF_SIGNAL_GROUP_EXIT_CODE, OFF_SIGNAL_LIVE, OFF_TASK_EXIT_CODE, OFF_TASK_SIGNAL, OFF_TASK_TGID, field,
};
use crate::outcome;
use crate::ring::{self, Tells};

#[btf_tracepoint(function = "sched_process_fork")]
pub fn guard_fork(ctx: BtfTracePointContext) -> i32 {
    let Some(mark) = governed() else { return 0 };
    let child: *const u8 = ctx.arg(1);
    // SAFETY: `child` is the tracepoint's tracked argument.
    let child_tgid: u32 = unsafe { field(child, &OFF_TASK_TGID) };
    if child_tgid == tgid() {
        return 0;
    }
    count(Counter::Forks);
    let inherited = Mark { forked_boot_ns: now(), ..mark };
    if MARKS.insert(child_tgid, &inherited, 0).is_err() {
        // The child stays governed through its cgroup, which it cannot leave.
        count(Counter::MapFull);
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn guard_exit(_ctx: BtfTracePointContext) -> i32 {
    let Some(mark) = governed() else { return 0 };
    let tid = tid();
    outcome::end_forgotten(tid);
    let _ = GRANTS.remove(tid);
    let _ = PENDING.remove(task());
    // SAFETY: the current task and its signal struct are tracked kernel objects.
    let (live, group_code, own_code): (i32, i32, i32) = unsafe {
        let signal: *const u8 = field(current(), &OFF_TASK_SIGNAL);
        (
            field(signal, &OFF_SIGNAL_LIVE),
            field(signal, &OFF_SIGNAL_GROUP_EXIT_CODE),
            field(current(), &OFF_TASK_EXIT_CODE),
        )
    };
    // A leader that ends before its threads must not unmark them.
    if live > 0 {
        return 0;
    }
    let _ = MARKS.remove(tgid());
    count(Counter::Exits);
    // A process that never ran an image of its own ends no exec.
    if mark.exec == 0 || mark.forked_boot_ns != 0 {
        return 0;
    }
    let status = if group_code != 0 { group_code } else { own_code };
    emit(&mark, status as u32);
    0
}

#[inline(always)]
fn current() -> *const u8 {
    // SAFETY: the helper takes no arguments and always succeeds.
    unsafe { aya_ebpf::helpers::bpf_get_current_task_btf() as *const u8 }
}

#[inline(always)]
fn emit(mark: &Mark, status: u32) {
    let Some(mut entry) = ring::reserve::<ExitEvent>(mark.session, Tells::Outcome) else { return };
    entry.write(ExitEvent {
        header: EventHeader {
            kind: event_kind::EXIT,
            size: size_of::<ExitEvent>() as u32,
            boot_ns: now(),
            session: mark.session,
            tgid: tgid(),
            tid: tid(),
        },
        exec: mark.exec,
        root: mark.root,
        status,
        reserved: 0,
    });
    entry.submit(0);
}
