//! Names and files that governed tasks may not change, or not read: hooks on everything that makes, turns, removes or
//! changes a name, and on opening. Which these are is the daemon's to say (`places`).
//!
//! Each hook also asks `deletes` whether the command may still remove or truncate files.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{FileKey, Mark, operation, reason, session_flags};

use crate::bounds::bounds;
use crate::maps::SESSIONS;
use crate::membership::governed;
use crate::offsets::{
    OFF_DENTRY_NAME, OFF_DENTRY_SB, OFF_FILE_DENTRY, OFF_FILE_FLAGS, OFF_FILE_INODE, OFF_FILE_MODE, OFF_IATTR_SIZE,
    OFF_IATTR_VALID, OFF_INODE_SIZE, OFF_SB_DEV, field,
};
use crate::places::{self, Place, said};
use crate::report::{Act, Text, observe, refuse};
use crate::{deletes, enter};

/// Among the flags of an open for execution.
const FMODE_EXEC: u32 = 0x20;
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
/// The open made the file.
const FMODE_CREATED: u32 = 1 << 20;
const ATTR_SIZE: u32 = 8;

/// The name may be made.
const MAKE: u32 = said::WRITE | said::UNKNOWN;
/// The name may come to mean something else.
const TURN: u32 = MAKE | said::HELD | said::SCRIPT;

/// The mark of a task whose acts on files are to be judged.
#[inline(always)]
fn subject() -> Option<Mark> {
    let mark = governed()?;
    bounds(&mark)?;
    Some(mark)
}

/// Refuses, or only says so in observe mode.
#[inline(always)]
pub fn answer(mark: &Mark, act: &Act) -> i32 {
    if observed(mark) {
        observe(mark, act);
        return 0;
    }
    refuse(mark, act)
}

/// Whether the task's session is only observed; an unknown one is not.
#[inline(always)]
pub fn observed(mark: &Mark) -> bool {
    // SAFETY: sessions are replaced whole.
    unsafe { SESSIONS.get(mark.session) }.is_some_and(|s| s.flags & session_flags::OBSERVE != 0)
}

/// Judges one name.
///
/// # Safety
/// `dentry` must be a `struct dentry` pointer that the verifier tracks.
#[inline(always)]
unsafe fn judge(mark: &Mark, dentry: *const u8, against: u32, what: u32) -> i32 {
    // SAFETY: by contract.
    let place = unsafe { places::look(dentry, &mark.image, against) };
    if place.said == 0 {
        return 0;
    }
    // SAFETY: by contract.
    unsafe { tell(mark, dentry, &place, what) }
}

/// # Safety
/// As for [`judge`].
#[inline(always)]
unsafe fn tell(mark: &Mark, dentry: *const u8, place: &Place, what: u32) -> i32 {
    let why = match (place.said & said::WRITE, place.said & said::READ, place.said & said::SCRIPT) {
        (0, 0, said::SCRIPT) => reason::SCRIPT_NAME,
        (0, said::READ, _) => reason::CREDENTIAL_FILE,
        _ => reason::PROTECTED_PATH,
    };
    // SAFETY: by contract; a missing inode reads as zero.
    let act = unsafe {
        Act {
            number: place.by,
            detail: what,
            text: Text::name(field(dentry, &OFF_DENTRY_NAME)),
            ..Act::on_file(why, key(dentry))
        }
    };
    answer(mark, &act)
}

/// The file that a name has, or its file system alone.
///
/// # Safety
/// As for [`judge`].
#[inline(always)]
unsafe fn key(dentry: *const u8) -> FileKey {
    let inode = places::inode_of(dentry);
    if inode != 0 {
        return places::key_of(inode);
    }
    // SAFETY: by contract.
    unsafe {
        let sb: *const u8 = field(dentry, &OFF_DENTRY_SB);
        let dev: u32 = field(sb, &OFF_SB_DEV);
        FileKey { dev: dev as u64, ino: 0 }
    }
}

macro_rules! on_name {
    ($program:ident, $hook:literal, $dentry:literal, $result:literal, $against:expr, $what:expr) => {
        #[lsm(hook = $hook)]
        pub fn $program(ctx: LsmContext) -> i32 {
            let earlier: i32 = ctx.arg($result);
            if earlier != 0 {
                return earlier;
            }
            let Some(mark) = subject() else { return 0 };
            // SAFETY: the hook's tracked argument.
            unsafe { judge(&mark, ctx.arg($dentry), $against, $what) }
        }
    };
}

on_name!(guard_create, "inode_create", 1, 3, MAKE, operation::CREATE);
on_name!(guard_mkdir, "inode_mkdir", 1, 3, MAKE, operation::CREATE);
on_name!(guard_mknod, "inode_mknod", 1, 4, MAKE, operation::CREATE);
// A link in place of a folder would lead those who look for what lies below to somewhere else.
on_name!(guard_symlink, "inode_symlink", 1, 3, TURN, operation::LINK);
on_name!(guard_rmdir, "inode_rmdir", 1, 2, TURN, operation::RMDIR);

#[lsm(hook = "inode_unlink")]
pub fn guard_unlink(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = subject() else { return 0 };
    let dentry: *const u8 = ctx.arg(1);
    // SAFETY: the hook's tracked argument.
    unsafe {
        match judge(&mark, dentry, TURN, operation::UNLINK) {
            0 => deletes::spend(&mark, dentry, operation::UNLINK),
            refused => refused,
        }
    }
}

/// Called twice for an exchange, with the names turned round.
#[lsm(hook = "inode_rename")]
pub fn guard_rename(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = subject() else { return 0 };
    let old: *const u8 = ctx.arg(1);
    // SAFETY: the hook's tracked arguments.
    unsafe {
        let refused = judge(&mark, old, TURN, operation::RENAME);
        if refused != 0 {
            return refused;
        }
        let new: *const u8 = ctx.arg(3);
        match judge(&mark, new, TURN, operation::RENAME) {
            0 => deletes::spend(&mark, new, operation::RENAME),
            refused => refused,
        }
    }
}

/// A second name for a protected file would be a way round its first.
#[lsm(hook = "inode_link")]
pub fn guard_link(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = subject() else { return 0 };
    // SAFETY: the hook's tracked arguments.
    unsafe {
        let refused = judge_file(&mark, ctx.arg(0), MAKE | said::READ, operation::LINK);
        if refused != 0 {
            return refused;
        }
        judge(&mark, ctx.arg(2), TURN, operation::LINK)
    }
}

/// Judges a name and the file that it has.
///
/// # Safety
/// As for [`judge`].
#[inline(always)]
unsafe fn judge_file(mark: &Mark, dentry: *const u8, against: u32, what: u32) -> i32 {
    // SAFETY: by contract.
    unsafe {
        let file = key(dentry);
        let found = places::of_file(&file, &mark.image) & against;
        if found != 0 {
            return tell(mark, dentry, &Place { said: found, by: 0 }, what);
        }
        judge(mark, dentry, against, what)
    }
}

#[lsm(hook = "file_open")]
pub fn guard_open(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let file: *const u8 = ctx.arg(0);
    // SAFETY: the hook's tracked argument.
    unsafe {
        // Also for the start of an entry process, whose other acts are Guard's own.
        if field::<u32>(file, &OFF_FILE_FLAGS) & FMODE_EXEC != 0 {
            enter::guard_catch_up();
        }
        if bounds(&mark).is_none() {
            return 0;
        }
        let mode: u32 = field(file, &OFF_FILE_MODE);
        if mode & FMODE_CREATED != 0 {
            deletes::remember(&mark, field(file, &OFF_FILE_INODE));
        }
        let (writes, reads) = (mode & FMODE_WRITE != 0, mode & FMODE_READ != 0);
        let against = if writes { MAKE } else { 0 } | if reads { said::READ | said::UNKNOWN } else { 0 };
        let what = if writes { operation::WRITE } else { operation::READ };
        judge_file(&mark, field(file, &OFF_FILE_DENTRY), against, what)
    }
}

/// Size, mode, owner and times. Before 6.10 the hook has no argument for the mount's id mapping.
#[lsm(hook = "inode_setattr")]
pub fn guard_setattr(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = subject() else { return 0 };
    // SAFETY: the hook's tracked arguments.
    unsafe { set_attributes(&mark, ctx.arg(1), ctx.arg(2)) }
}

#[lsm(hook = "inode_setattr")]
pub fn guard_setattr_unmapped(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(2);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = subject() else { return 0 };
    // SAFETY: the hook's tracked arguments.
    unsafe { set_attributes(&mark, ctx.arg(0), ctx.arg(1)) }
}

/// # Safety
/// Both must be pointers that the verifier tracks, to a `struct dentry` and a `struct iattr`.
#[inline(always)]
unsafe fn set_attributes(mark: &Mark, dentry: *const u8, attributes: *const u8) -> i32 {
    // SAFETY: by contract.
    unsafe {
        let refused = judge_file(mark, dentry, MAKE, operation::SETATTR);
        if refused != 0 {
            return refused;
        }
        let valid: u32 = field(attributes, &OFF_IATTR_VALID);
        if valid & ATTR_SIZE == 0 {
            return 0;
        }
        let wanted: i64 = field(attributes, &OFF_IATTR_SIZE);
        let size: i64 = places::read(places::inode_of(dentry), &OFF_INODE_SIZE).unwrap_or(0);
        if wanted >= size { 0 } else { deletes::spend_content(mark, dentry, operation::SETATTR) }
    }
}

macro_rules! on_file {
    ($program:ident, $hook:literal, $result:literal) => {
        #[lsm(hook = $hook)]
        pub fn $program(ctx: LsmContext) -> i32 {
            let earlier: i32 = ctx.arg($result);
            if earlier != 0 {
                return earlier;
            }
            let Some(mark) = subject() else { return 0 };
            // SAFETY: the hook's tracked argument.
            unsafe { judge_file(&mark, ctx.arg(1), MAKE, operation::XATTR) }
        }
    };
}

on_file!(guard_setxattr, "inode_setxattr", 6);
on_file!(guard_removexattr, "inode_removexattr", 3);
on_file!(guard_set_acl, "inode_set_acl", 4);
on_file!(guard_remove_acl, "inode_remove_acl", 3);
