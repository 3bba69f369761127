//! Names of files for records. Never the ground of a decision, except where the kernel alone gives the name (`/proc`).

use aya_ebpf::helpers::bpf_probe_read_kernel;

use crate::offsets::{OFF_DENTRY_ALIAS, OFF_DENTRY_NAME, OFF_INODE_DENTRY, OFF_PATH_DENTRY, field, global};

/// Address of the last component of a name that the inode has; null if it has none.
///
/// # Safety
/// `inode` must be a `struct inode` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn of_inode(inode: *const u8) -> *const u8 {
    // SAFETY: by contract.
    let alias: u64 = unsafe { field(inode, &OFF_INODE_DENTRY) };
    if alias == 0 {
        return core::ptr::null();
    }
    let dentry = alias.wrapping_sub(global(&OFF_DENTRY_ALIAS) as u64);
    let place = dentry + global(&OFF_DENTRY_NAME) as u64;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(place as *const *const u8) }.unwrap_or(core::ptr::null())
}

/// Address of the last component of a path.
///
/// # Safety
/// `path` must be a `struct path` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn of_path(path: *const u8) -> *const u8 {
    // SAFETY: by contract; the dentry is a tracked field of the path.
    unsafe {
        let dentry: *const u8 = field(path, &OFF_PATH_DENTRY);
        field(dentry, &OFF_DENTRY_NAME)
    }
}
