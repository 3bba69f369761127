//! Guards around the exec path: no tracing of governed tasks, no writing to files that are about to run, no leaving the
//! cgroup. And the probe by which the daemon learns a file's identity as the kernel sees it.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{FileKey, Mark, PROBE_FCNTL_CMD, reason, session_flags};

use crate::bounds::bounds;
use crate::maps::{FROZEN, MARKS, PROBES, SESSIONS, now, runtime};
use crate::membership::{governed, tgid, tid};
use crate::offsets::{OFF_INODE_SB, OFF_SB_MAGIC, OFF_TASK_TGID, field};
use crate::report::{Act, refuse};
use crate::{settings, signals, stamp};

const MAY_WRITE: i32 = 2;
const MAY_READ: i32 = 4;
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
        Some(mark) if guarded(&mark) => refuse(&mark, &Act::on_task(reason::PTRACE, parent)),
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
            refuse(&mark, &Act::on_task(reason::PTRACE, target))
        }
        _ => 0,
    }
}

#[lsm(hook = "inode_permission")]
pub fn guard_inode(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    let mask: i32 = ctx.arg(1);
    if earlier != 0 || mask & (MAY_READ | MAY_WRITE) == 0 {
        return earlier;
    }
    let inode: *const u8 = ctx.arg(0);
    // SAFETY: `inode` is the hook's tracked argument.
    if mask & MAY_WRITE == 0 && !unsafe { settings::is_device(inode) } {
        return 0;
    }
    let Some(mark) = governed() else { return 0 };
    let Some(bounds) = bounds(&mark) else { return 0 };
    // SAFETY: `inode` is the hook's tracked argument.
    let (magic, key): (u64, FileKey) = unsafe {
        let sb: *const u8 = field(inode, &OFF_INODE_SB);
        (field(sb, &OFF_SB_MAGIC), stamp::key_of_inode(inode))
    };
    if magic == CGROUP2_MAGIC {
        return bounds.refuse(&mark, &Act::on_file(reason::CGROUP_WRITE, key));
    }
    // SAFETY: `inode` is the hook's tracked argument.
    let verdict = unsafe { settings::judge(&mark, &bounds, inode, magic, key, mask) };
    if verdict != 0 {
        return verdict;
    }
    // SAFETY: a u64 value, replaced whole.
    match unsafe { FROZEN.get(key) } {
        Some(until) if now() < *until => bounds.refuse(&mark, &Act::on_file(reason::FROZEN_FILE, key)),
        _ => 0,
    }
}

#[lsm(hook = "file_fcntl")]
pub fn guard_probe(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    let command: u32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    if command != PROBE_FCNTL_CMD || runtime().daemon_tgid != tgid() {
        return signals::set_owner(command, ctx.arg(2));
    }
    let file: *const u8 = ctx.arg(0);
    let frozen_until: u64 = ctx.arg(2);
    if frozen_until != 0 {
        // SAFETY: `file` is the hook's tracked argument.
        let key = unsafe { stamp::of_file(file) }.key;
        if FROZEN.insert(key, frozen_until, 0).is_err() {
            return 0;
        }
    }
    // Read once it is frozen: what is read from now on is what the stamp says.
    // SAFETY: as above.
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
