//! Offsets of kernel fields, set by the loader from the running kernel's BTF. Zero everywhere means: not set.

use aya_ebpf::helpers::bpf_probe_read_kernel;

macro_rules! offsets {
    ($($name:ident => $field:literal;)*) => {
        $(
            #[doc = concat!("Offset of `", $field, "` in bytes.")]
            #[unsafe(no_mangle)]
            pub static $name: u32 = 0;
        )*
    };
}

offsets! {
    OFF_TASK_TGID => "task_struct.tgid";
    OFF_TASK_PID => "task_struct.pid";
    OFF_TASK_SIGNAL => "task_struct.signal";
    OFF_TASK_EXIT_CODE => "task_struct.exit_code";
    OFF_SIGNAL_LIVE => "signal_struct.live";
    OFF_SIGNAL_GROUP_EXIT_CODE => "signal_struct.group_exit_code";
    OFF_BPRM_FILE => "linux_binprm.file";
    OFF_BPRM_P => "linux_binprm.p";
    OFF_BPRM_EXEC => "linux_binprm.exec";
    OFF_BPRM_ARGC => "linux_binprm.argc";
    OFF_BPRM_ENVC => "linux_binprm.envc";
    OFF_BPRM_FILENAME => "linux_binprm.filename";
    OFF_REGS_ORIG_AX => "pt_regs.orig_ax";
    OFF_FILE_FLAGS => "file.f_flags";
    OFF_TASK_REAL_PARENT => "task_struct.real_parent";
    OFF_CRED_EUID => "cred.euid";
    OFF_CRED_EGID => "cred.egid";
    OFF_REGS_DI => "pt_regs.di";
    OFF_REGS_SI => "pt_regs.si";
    OFF_REGS_DX => "pt_regs.dx";
    OFF_REGS_R10 => "pt_regs.r10";
    OFF_REGS_R8 => "pt_regs.r8";
    OFF_FILE_INODE => "file.f_inode";
    OFF_INODE_INO => "inode.i_ino";
    OFF_INODE_SB => "inode.i_sb";
    OFF_INODE_SIZE => "inode.i_size";
    OFF_INODE_CTIME_S => "inode ctime seconds";
    OFF_INODE_CTIME_NS => "inode ctime nanoseconds";
    OFF_INODE_GENERATION => "inode.i_generation";
    OFF_INODE_WRITECOUNT => "inode.i_writecount";
    OFF_INODE_NLINK => "inode.i_nlink";
    OFF_INODE_MODE => "inode.i_mode";
    OFF_INODE_UID => "inode.i_uid";
    OFF_INODE_GID => "inode.i_gid";
    OFF_FILE_DENTRY => "file.f_path.dentry";
    OFF_DENTRY_NAME => "dentry.d_name.name";
    OFF_VMA_FLAGS => "vm_area_struct.vm_flags";
    OFF_VMA_ANON => "vm_area_struct.anon_vma";
    OFF_VMA_FILE => "vm_area_struct.vm_file";
    OFF_SB_DEV => "super_block.s_dev";
    OFF_SB_MAGIC => "super_block.s_magic";
    OFF_INODE_RDEV => "inode.i_rdev";
    OFF_INODE_DENTRY => "inode.i_dentry";
    OFF_DENTRY_ALIAS => "dentry.d_u";
    OFF_QSTR_NAME => "qstr.name";
    OFF_PATH_DENTRY => "path.dentry";
    OFF_PROC_INODE_VFS => "proc_inode.vfs_inode";
    OFF_PROC_INODE_PID => "proc_inode.pid";
    OFF_PROC_INODE_PDE => "proc_inode.pde";
    OFF_PROC_INODE_SYSCTL => "proc_inode.sysctl";
    OFF_PID_TASKS => "pid.tasks";
    OFF_TASK_PID_LINKS => "task_struct.pid_links";
    OFF_USERNS_LEVEL => "user_namespace.level";
    OFF_REGS_SYSCALL => "pt_regs.orig_ax";
    OFF_SOCKET_SK => "socket.sk";
    OFF_SOCK_FAMILY => "sock.skc_family";
    OFF_SOCK_BOUND4 => "sock.skc_rcv_saddr";
    OFF_SOCK_BOUND6 => "sock.skc_v6_rcv_saddr";
    OFF_SOCK_CGROUP => "sock.sk_cgrp_data.cgroup";
    OFF_SOCK_PEER_PID => "sock.sk_peer_pid";
    OFF_PID_NUMBERS => "pid.numbers";
    OFF_CGROUP_LEVEL => "cgroup.level";
    OFF_CGROUP_ANCESTORS => "cgroup.ancestors";
    OFF_CGROUP_KN => "cgroup.kn";
    OFF_KN_ID => "kernfs_node.id";
    OFF_UNIX_ADDR => "unix_sock.addr";
    OFF_UNIX_DENTRY => "unix_sock.path.dentry";
    OFF_UNIX_ADDR_LEN => "unix_address.len";
    OFF_UNIX_ADDR_NAME => "unix_address.name";
    OFF_DENTRY_INODE => "dentry.d_inode";
    OFF_MSG_NAME => "msghdr.msg_name";
    OFF_MSG_NAMELEN => "msghdr.msg_namelen";
    OFF_SB_ROOT => "super_block.s_root";
    OFF_FILE_MODE => "file.f_mode";
    OFF_DENTRY_PARENT => "dentry.d_parent";
    OFF_DENTRY_NAME_LENGTH => "dentry.d_name.len";
    OFF_DENTRY_SB => "dentry.d_sb";
    OFF_IATTR_VALID => "iattr.ia_valid";
    OFF_IATTR_SIZE => "iattr.ia_size";
    OFF_TASK_CRED => "task_struct.cred";
    OFF_TASK_REAL_CRED => "task_struct.real_cred";
}

/// Id of Guard's cgroup; tasks anywhere below it are governed.
#[unsafe(no_mangle)]
pub static GUARD_CGROUP: u64 = 0;
/// Depth of Guard's cgroup below the root of the hierarchy.
#[unsafe(no_mangle)]
pub static GUARD_CGROUP_LEVEL: u32 = 0;
/// Key of the argument hash.
#[unsafe(no_mangle)]
pub static HASH_KEY_0: u64 = 0;
/// Second half of the key.
#[unsafe(no_mangle)]
pub static HASH_KEY_1: u64 = 0;

/// Reads a global that the loader has overwritten.
#[inline(always)]
pub fn global<T: Copy>(place: &T) -> T {
    // SAFETY: a reference is always readable. Volatile, because the compiler must not fold the initial zero.
    unsafe { core::ptr::read_volatile(place) }
}

/// Loads a field of a kernel object.
///
/// # Safety
/// `base` must be a pointer that the verifier tracks as a kernel object with a field of type `T` at `offset`.
#[inline(always)]
pub unsafe fn field<T: Copy>(base: *const u8, offset: &u32) -> T {
    // SAFETY: by the caller's contract; a faulting load of a tracked kernel pointer reads as zero.
    unsafe { *base.add(global(offset) as usize).cast::<T>() }
}

/// A length below 256 in a form of which the verifier sees the bound: the compiler must not know it from before.
#[inline(always)]
pub fn short(length: u32) -> usize {
    global(&(length as usize)) & 0xff
}

/// Reads a field behind a pointer that the verifier does not track; nothing if the address cannot be read.
#[inline(always)]
pub fn peek<T: Copy>(base: *const u8, offset: &u32) -> Option<T> {
    if base.is_null() {
        return None;
    }
    // SAFETY: the helper checks the address; `T` is plain data by every caller.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(global(offset) as usize).cast::<T>()) }.ok()
}
