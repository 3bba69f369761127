//! Identity and state of a file as the kernel sees it.

use guard_common::{FileKey, FileStamp};

use crate::offsets::*;

/// Reads the stamp of an opened file.
///
/// # Safety
/// `file` must be a `struct file` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn of_file(file: *const u8) -> FileStamp {
    // SAFETY: by contract; every pointer is a tracked field of the one before.
    unsafe {
        let inode: *const u8 = field(file, &OFF_FILE_INODE);
        of_inode(inode)
    }
}

/// # Safety
/// `inode` must be a `struct inode` pointer that the verifier tracks.
#[inline(always)]
unsafe fn of_inode(inode: *const u8) -> FileStamp {
    // SAFETY: by contract.
    unsafe {
        FileStamp {
            key: key_of_inode(inode),
            size: field(inode, &OFF_INODE_SIZE),
            ctime_s: field(inode, &OFF_INODE_CTIME_S),
            ctime_ns: nanoseconds(field(inode, &OFF_INODE_CTIME_NS)),
            generation: field(inode, &OFF_INODE_GENERATION),
            inode_addr: inode as u64,
            writers: field(inode, &OFF_INODE_WRITECOUNT),
            nlink: field(inode, &OFF_INODE_NLINK),
        }
    }
}

/// Since 6.13 the topmost bit says whether somebody has asked for the time (multigrain timestamps). It is no part of it.
#[inline(always)]
fn nanoseconds(stored: u32) -> u32 {
    stored & !(1 << 31)
}

/// # Safety
/// `inode` must be a `struct inode` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn key_of_inode(inode: *const u8) -> FileKey {
    // SAFETY: by contract.
    unsafe {
        let sb: *const u8 = field(inode, &OFF_INODE_SB);
        let dev: u32 = field(sb, &OFF_SB_DEV);
        FileKey { dev: dev as u64, ino: field(inode, &OFF_INODE_INO) }
    }
}
