//! Guards around the exec path: no tracing of governed tasks, no writing to files that are about to run, no leaving the
//! cgroup. And the probe by which the daemon learns a file's identity as the kernel sees it.

use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{
    COMM, Counter, EventHeader, FileKey, GuardEvent, Mark, PROBE_FCNTL_CMD, event_kind, reason, session_flags,
};

use crate::check::EPERM;
use crate::maps::{EVENTS, FROZEN, MARKS, PROBES, SESSIONS, count, now, ring_has_room, runtime};
use crate::membership::{governed, tgid, tid};
use crate::offsets::{OFF_INODE_SB, OFF_SB_MAGIC, OFF_TASK_TGID, field};
use crate::stamp;

const MAY_WRITE: i32 = 2;
const PTRACE_MODE_ATTACH: u32 = 2;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

#[lsm(hook = "ptrace_traceme")]
pub fn guard_traceme(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let parent: *const u8 = ctx.arg(0);
    // SAFETY: `parent` is the hook's tracked argument.
    let parent: u32 = unsafe { field(parent, &OFF_TASK_TGID) };
    match governed().or_else(|| marked(parent)) {
        Some(mark) if guarded(&mark) => refuse(&mark, reason::PTRACE, parent, FileKey::default()),
        _ => 0,
    }
}

#[lsm(hook = "ptrace_access_check")]
pub fn guard_ptrace(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let mode: u32 = ctx.arg(1);
    if mode & PTRACE_MODE_ATTACH == 0 {
        return 0;
    }
    let target: *const u8 = ctx.arg(0);
    // SAFETY: `target` is the hook's tracked argument.
    let target: u32 = unsafe { field(target, &OFF_TASK_TGID) };
    match governed().or_else(|| marked(target)) {
        Some(mark) if guarded(&mark) && runtime().daemon_tgid != tgid() => {
            refuse(&mark, reason::PTRACE, target, FileKey::default())
        }
        _ => 0,
    }
}

#[lsm(hook = "inode_permission")]
pub fn guard_inode(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    let mask: i32 = ctx.arg(1);
    if earlier != 0 || mask & MAY_WRITE == 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    if runtime().lifted == 1 {
        return 0;
    }
    let inode: *const u8 = ctx.arg(0);
    // SAFETY: `inode` is the hook's tracked argument.
    let (magic, key): (u64, FileKey) = unsafe {
        let sb: *const u8 = field(inode, &OFF_INODE_SB);
        (field(sb, &OFF_SB_MAGIC), stamp::key_of_inode(inode))
    };
    if magic == CGROUP2_MAGIC {
        return refuse(&mark, reason::CGROUP_WRITE, 0, key);
    }
    // SAFETY: a u64 value, replaced whole.
    match unsafe { FROZEN.get(key) } {
        Some(until) if now() < *until => refuse(&mark, reason::FROZEN_FILE, 0, key),
        _ => 0,
    }
}

#[lsm(hook = "file_fcntl")]
pub fn guard_probe(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    let command: u32 = ctx.arg(1);
    if earlier != 0 || command != PROBE_FCNTL_CMD || runtime().daemon_tgid != tgid() {
        return earlier;
    }
    let file: *const u8 = ctx.arg(0);
    // SAFETY: `file` is the hook's tracked argument.
    let stamp = unsafe { stamp::of_file(file) };
    // The daemon finds no entry if this fails, and denies.
    let _ = PROBES.insert(tid(), &stamp, 0);
    0
}

#[inline(always)]
fn marked(tgid: u32) -> Option<Mark> {
    // SAFETY: marks are replaced whole.
    unsafe { MARKS.get(tgid) }.copied()
}

#[inline(always)]
fn guarded(mark: &Mark) -> bool {
    const FREE: u32 = session_flags::ALLOW_PTRACE | session_flags::OBSERVE;
    // SAFETY: sessions are replaced whole. An unknown session is guarded.
    let flags = unsafe { SESSIONS.get(mark.session) }.map_or(0, |s| s.flags);
    flags & FREE == 0 && runtime().lifted != 1
}

#[inline(always)]
fn refuse(mark: &Mark, why: u32, other: u32, file: FileKey) -> i32 {
    count(Counter::GuardRefused);
    // These can be repeated at will: they never take the room that exec records need.
    if ring_has_room()
        && let Some(mut entry) = EVENTS.reserve::<GuardEvent>(0)
    {
        entry.write(GuardEvent {
            header: EventHeader {
                kind: event_kind::GUARD,
                size: size_of::<GuardEvent>() as u32,
                boot_ns: now(),
                session: mark.session,
                tgid: tgid(),
                tid: tid(),
            },
            reason: why,
            other_tgid: other,
            file,
            comm: bpf_get_current_comm().unwrap_or([0; COMM]),
        });
        entry.submit(0);
    }
    EPERM
}
