//! Executable mappings: judged by the file that backs them. A program can run code that no exec ever saw by mapping it, so
//! what the session could have written itself is told apart from what it could not.
//!
//! Three classes: a file that the session cannot write (let through), a file that it can write, a deleted file or a memfd
//! (by profile), memory that no file backs or whose pages were written (by profile, so that just-in-time compilers work).
//! The file that an exec was granted for is let through: it was judged as a program.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{Mark, reason, session_flags};

use crate::maps::{SESSIONS, runtime};
use crate::membership::governed;
use crate::offsets::{
    OFF_DENTRY_NAME, OFF_FILE_DENTRY, OFF_FILE_INODE, OFF_INODE_GID, OFF_INODE_MODE, OFF_INODE_NLINK, OFF_INODE_UID,
    OFF_VMA_ANON, OFF_VMA_FILE, OFF_VMA_FLAGS, field, global,
};
use crate::report::{Act, Text, observe, refuse};
use crate::stamp;

const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const VM_EXEC: u64 = 4;
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const OTHERS_WRITE: u16 = 0o002;
const GROUP_WRITE: u16 = 0o020;

#[lsm(hook = "mmap_file")]
pub fn guard_mmap(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(4);
    let asked: u64 = ctx.arg(1);
    let given: u64 = ctx.arg(2);
    if earlier != 0 || (asked | given) & PROT_EXEC == 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let flags: u64 = ctx.arg(3);
    // Read as a number: some verifiers take this argument for never null and drop a test of the pointer itself.
    // SAFETY: the helper checks the address, which is the hook's own context.
    let address = unsafe { bpf_probe_read_kernel(ctx.as_ptr().cast::<u64>()) }.unwrap_or(0);
    if address == 0 {
        return anonymous(&mark);
    }
    let file: *const u8 = ctx.arg(0);
    // And the pointer itself for those that take it for one that may be null (7.x).
    if file.is_null() || asked & PROT_WRITE != 0 && flags & MAP_TYPE == MAP_PRIVATE {
        // Its pages can be written, then run.
        return anonymous(&mark);
    }
    // SAFETY: `file` is the hook's tracked argument and not null.
    unsafe { backed(&mark, file) }
}

#[lsm(hook = "file_mprotect")]
pub fn guard_mprotect(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(3);
    let asked: u64 = ctx.arg(1);
    let given: u64 = ctx.arg(2);
    if earlier != 0 || (asked | given) & PROT_EXEC == 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    let area: *const u8 = ctx.arg(0);
    // SAFETY: `area` is the hook's tracked argument; its fields are tracked in turn.
    let (flags, own_pages, file): (u64, u64, *const u8) =
        unsafe { (field(area, &OFF_VMA_FLAGS), field(area, &OFF_VMA_ANON), field(area, &OFF_VMA_FILE)) };
    let executable = flags & VM_EXEC != 0;
    if file.is_null() || asked & PROT_WRITE != 0 || (own_pages != 0 && !executable) {
        return anonymous(&mark);
    }
    if executable {
        return 0;
    }
    // SAFETY: a tracked field, not null.
    unsafe { backed(&mark, file) }
}

/// How the session's profile treats an act: bits for refusing and for recording.
#[inline(always)]
fn treated(mark: &Mark, deny: u32, record: u32, act: &Act) -> i32 {
    // SAFETY: sessions are replaced whole. An unknown session is refused.
    let flags = unsafe { SESSIONS.get(mark.session) }.map_or(deny, |s| s.flags);
    if runtime().lifted == 1 {
        return 0;
    }
    if flags & deny != 0 && flags & session_flags::OBSERVE == 0 {
        return refuse(mark, act);
    }
    if flags & (deny | record) != 0 {
        observe(mark, act);
    }
    0
}

#[inline(always)]
fn anonymous(mark: &Mark) -> i32 {
    let act = Act::new(reason::ANON_EXEC);
    treated(mark, session_flags::DENY_ANON_EXEC, session_flags::RECORD_ANON_EXEC, &act)
}

/// # Safety
/// `file` must be a `struct file` pointer that the verifier tracks.
#[inline(always)]
unsafe fn backed(mark: &Mark, file: *const u8) -> i32 {
    // SAFETY: by contract; every pointer is a tracked field of the one before.
    let (key, mine, name) = unsafe {
        let inode: *const u8 = field(file, &OFF_FILE_INODE);
        let key = stamp::key_of_inode(inode);
        let dentry: *const u8 = field(file, &OFF_FILE_DENTRY);
        (key, key != mark.image && writable(mark, inode), dentry)
    };
    if !mine {
        return 0;
    }
    // SAFETY: the helper checks the address: the name of a dentry is a pointer inside it.
    let name = unsafe { bpf_probe_read_kernel(name.add(global(&OFF_DENTRY_NAME) as usize).cast::<*const u8>()) };
    let act = Act { text: Text::name(name.unwrap_or(core::ptr::null())), ..Act::on_file(reason::WRITABLE_EXEC, key) };
    treated(mark, session_flags::DENY_WRITABLE_EXEC, session_flags::RECORD_WRITABLE_EXEC, &act)
}

/// Whether the session could write the file. For root, whom permissions do not stop: files of others, deleted files.
///
/// # Safety
/// `inode` must be a `struct inode` pointer that the verifier tracks.
#[inline(always)]
unsafe fn writable(mark: &Mark, inode: *const u8) -> bool {
    // SAFETY: by contract.
    let (mode, uid, gid, links): (u16, u32, u32, u32) = unsafe {
        (
            field(inode, &OFF_INODE_MODE),
            field(inode, &OFF_INODE_UID),
            field(inode, &OFF_INODE_GID),
            field(inode, &OFF_INODE_NLINK),
        )
    };
    // SAFETY: sessions are replaced whole.
    let own = unsafe { SESSIONS.get(mark.session) }.map_or(uid, |s| s.uid);
    links == 0
        || mode & OTHERS_WRITE != 0
        || (uid != 0 && uid == own)
        || (own == 0 && uid != 0)
        || (mode & GROUP_WRITE != 0 && gid != 0)
}
