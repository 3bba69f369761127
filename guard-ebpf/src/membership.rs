//! Who is governed: the mark inherited at fork, and below it the cgroup subtree, so that a task is governed as long as
//! either holds.

use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task_btf};
use guard_common::Mark;

use crate::maps::{CGROUPS, MARKS};
use crate::offsets::{GUARD_CGROUP, GUARD_CGROUP_LEVEL, OFF_TASK_CRED, OFF_TASK_REAL_CRED, field, global};

#[inline(always)]
pub fn tid() -> u32 {
    bpf_get_current_pid_tgid() as u32
}

#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The current task's mark, or nothing for a neighbour. A governed task of no known session has session 0, which no
/// session entry matches: it is denied.
#[inline(always)]
pub fn governed() -> Option<Mark> {
    let tgid = tgid();
    // SAFETY: map values of this type are only replaced whole; a torn read at worst denies.
    if let Some(mark) = unsafe { MARKS.get(tgid) } {
        return Some(*mark);
    }
    by_cgroup()
}

#[inline(always)]
fn by_cgroup() -> Option<Mark> {
    let level = global(&GUARD_CGROUP_LEVEL) as i32;
    // SAFETY: the helper reads the current task's cgroup only; an unknown level gives 0.
    let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    if ancestor == 0 || ancestor != global(&GUARD_CGROUP) {
        return None;
    }
    // SAFETY: as above.
    let own = unsafe { bpf_get_current_ancestor_cgroup_id(level + 1) };
    // SAFETY: a u64 value, replaced whole.
    let session = unsafe { CGROUPS.get(own) }.copied().unwrap_or(0);
    Some(Mark { session, ..Mark::default() })
}

/// Whether the kernel acts for the current task with other credentials than its own, as an overlay does on its layers.
#[inline(always)]
pub fn on_behalf() -> bool {
    // SAFETY: the current task is a tracked kernel object.
    unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let (used, own): (u64, u64) = (field(task, &OFF_TASK_CRED), field(task, &OFF_TASK_REAL_CRED));
        used != own
    }
}
