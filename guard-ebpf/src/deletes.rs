//! The delete budget: how many files a command may remove or empty in a while.
//!
//! Counted is what is lost: the last name of a regular file or a symbolic link, a file that another one is renamed over, a
//! file that becomes shorter. Not counted: what the session has made itself, file systems in memory, further names of a
//! file, folders (they are empty when they go), and what the kernel does on behalf of the same act in the layers of an
//! overlay (unless the session may use `io_uring`, see [`in_a_layer`]). Counts may miss one when threads delete at the same instant on two processors.

use aya_ebpf::helpers::bpf_send_signal;
use guard_common::path::{Created, Deleted, Deleter};
use guard_common::{Counter, Mark, guard_outcome, reason, session_flags};

use crate::bounds::bounds;
use crate::check::EPERM;
use crate::maps::{BUDGETS, CREATED, DELETES, count, now};
use crate::membership::on_behalf;
use crate::offsets::{
    OFF_DENTRY_NAME, OFF_INODE_GENERATION, OFF_INODE_MODE, OFF_INODE_NLINK, OFF_INODE_SB, OFF_SB_MAGIC, field,
};
use crate::paths::answer;
use crate::places;
use crate::report::{Act, Text, emit};

const SIGKILL: u32 = 9;
const TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// A file that the session has just made, by the address of its inode.
#[inline(always)]
pub fn remember(mark: &Mark, inode: u64) {
    // Without an entry its removal counts.
    let _ = CREATED.insert(created(inode), mark.session, 0);
}

#[inline(always)]
fn created(inode: u64) -> Created {
    let generation: u32 = places::read(inode, &OFF_INODE_GENERATION).unwrap_or(0);
    Created { file: places::key_of(inode), generation: generation as u64 }
}

/// A name goes: whether its file may.
///
/// # Safety
/// `dentry` must be a `struct dentry` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn spend(mark: &Mark, dentry: *const u8, what: u32) -> i32 {
    let inode = places::inode_of(dentry);
    let links: u32 = places::read(inode, &OFF_INODE_NLINK).unwrap_or(0);
    // SAFETY: by contract.
    if inode == 0 || links > 1 { 0 } else { unsafe { spend_content(mark, dentry, what) } }
}

/// Content goes.
///
/// # Safety
/// As for [`spend`].
#[inline(always)]
pub unsafe fn spend_content(mark: &Mark, dentry: *const u8, what: u32) -> i32 {
    // SAFETY: by contract.
    if counts(mark, places::inode_of(dentry)) { unsafe { take(mark, dentry, what) } } else { 0 }
}

#[inline(always)]
fn counts(mark: &Mark, inode: u64) -> bool {
    if inode == 0 || in_a_layer(mark) {
        return false;
    }
    let mode: u16 = places::read(inode, &OFF_INODE_MODE).unwrap_or(0);
    let sb: u64 = places::read(inode, &OFF_INODE_SB).unwrap_or(0);
    let magic: u64 = places::read(sb, &OFF_SB_MAGIC).unwrap_or(0);
    let kind = mode & TYPE;
    if (kind != REGULAR && kind != SYMLINK) || magic == TMPFS_MAGIC || magic == RAMFS_MAGIC {
        return false;
    }
    // SAFETY: a u64 value, replaced whole.
    unsafe { CREATED.get(created(inode)) }.is_none_or(|session| *session != mark.session)
}

/// Whether an overlay acts on one of its layers. `io_uring` acts with credentials of earlier too (`io_register_personality`):
/// where a session may use it, nothing is left out, and what is removed from an overlay counts twice.
#[inline(always)]
fn in_a_layer(mark: &Mark) -> bool {
    on_behalf() && !bounds(mark).is_some_and(|bounds| bounds.has(session_flags::ALLOW_IO_URING))
}

/// # Safety
/// As for [`spend`].
#[inline(always)]
unsafe fn take(mark: &Mark, dentry: *const u8, what: u32) -> i32 {
    // SAFETY: replaced whole.
    let Some(budget) = (unsafe { BUDGETS.get(mark.session) }) else { return 0 };
    if budget.files == 0 {
        return 0;
    }
    let key = Deleter { session: mark.session, root: mark.root };
    let now = now();
    let Some(deleted) = DELETES.get_ptr_mut(key) else {
        // The map gives up its least used entries: there is always room.
        let _ = DELETES.insert(key, Deleted { since_boot_ns: now, count: 1, raised: 0 }, 0);
        return 0;
    };
    // SAFETY: a look-up result; the daemon only raises.
    let deleted = unsafe { &mut *deleted };
    if now.wrapping_sub(deleted.since_boot_ns) >= budget.window_ns {
        deleted.since_boot_ns = now;
        deleted.count = 0;
    }
    if deleted.count >= budget.files && deleted.raised > 0 {
        deleted.raised -= 1;
        return 0;
    }
    deleted.count += 1;
    if deleted.count <= budget.files {
        return 0;
    }
    let mut act = Act { number: budget.files as u64, detail: what, ..Act::new(reason::DELETE_BUDGET) };
    if budget.kill != 0 && deleted.count > budget.kill {
        act.reason = reason::DELETE_FLOOD;
        return kill(mark, &act);
    }
    // The first one by name; the others are alike, so that they become one record.
    if deleted.count == budget.files + 1 {
        // SAFETY: by contract.
        act.text = Text::name(unsafe { field(dentry, &OFF_DENTRY_NAME) });
    }
    answer(mark, &act)
}

#[inline(always)]
fn kill(mark: &Mark, act: &Act) -> i32 {
    if crate::paths::observed(mark) {
        return answer(mark, act);
    }
    // SAFETY: sends to the current process only.
    unsafe { bpf_send_signal(SIGKILL) };
    count(Counter::Killed);
    emit(mark, guard_outcome::KILLED, act);
    EPERM
}
