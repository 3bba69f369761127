//! Which fields of kernel structures the programs read, and their offsets in the running kernel.
//!
//! Fails: a field that the kernel does not have is an error that names it; nothing is loaded then.

use super::btf::{Btf, BtfError};

/// Offsets that the programs need: name of the global, struct, accepted fields.
pub const OFFSETS: &[(&str, &str, &[&str])] = &[
    ("OFF_TASK_TGID", "task_struct", &["tgid"]),
    ("OFF_TASK_PID", "task_struct", &["pid"]),
    ("OFF_TASK_SIGNAL", "task_struct", &["signal"]),
    ("OFF_TASK_EXIT_CODE", "task_struct", &["exit_code"]),
    ("OFF_SIGNAL_LIVE", "signal_struct", &["live"]),
    ("OFF_SIGNAL_GROUP_EXIT_CODE", "signal_struct", &["group_exit_code"]),
    ("OFF_BPRM_FILE", "linux_binprm", &["file"]),
    ("OFF_BPRM_P", "linux_binprm", &["p"]),
    ("OFF_BPRM_EXEC", "linux_binprm", &["exec"]),
    ("OFF_BPRM_ARGC", "linux_binprm", &["argc"]),
    ("OFF_BPRM_ENVC", "linux_binprm", &["envc"]),
    ("OFF_BPRM_FILENAME", "linux_binprm", &["filename"]),
    ("OFF_REGS_ORIG_AX", "pt_regs", &["orig_ax"]),
    ("OFF_FILE_FLAGS", "file", &["f_flags"]),
    ("OFF_TASK_REAL_PARENT", "task_struct", &["real_parent"]),
    ("OFF_CRED_EUID", "cred", &["euid"]),
    ("OFF_CRED_EGID", "cred", &["egid"]),
    ("OFF_REGS_DI", "pt_regs", &["di"]),
    ("OFF_REGS_SI", "pt_regs", &["si"]),
    ("OFF_REGS_DX", "pt_regs", &["dx"]),
    ("OFF_REGS_R10", "pt_regs", &["r10"]),
    ("OFF_REGS_R8", "pt_regs", &["r8"]),
    ("OFF_FILE_INODE", "file", &["f_inode"]),
    ("OFF_INODE_INO", "inode", &["i_ino"]),
    ("OFF_INODE_SB", "inode", &["i_sb"]),
    ("OFF_INODE_SIZE", "inode", &["i_size"]),
    ("OFF_INODE_GENERATION", "inode", &["i_generation"]),
    ("OFF_INODE_WRITECOUNT", "inode", &["i_writecount"]),
    ("OFF_INODE_NLINK", "inode", &["i_nlink"]),
    ("OFF_INODE_MODE", "inode", &["i_mode"]),
    ("OFF_INODE_UID", "inode", &["i_uid"]),
    ("OFF_INODE_GID", "inode", &["i_gid"]),
    ("OFF_VMA_FLAGS", "vm_area_struct", &["vm_flags"]),
    ("OFF_VMA_ANON", "vm_area_struct", &["anon_vma"]),
    ("OFF_VMA_FILE", "vm_area_struct", &["vm_file"]),
    ("OFF_SB_DEV", "super_block", &["s_dev"]),
    ("OFF_SB_MAGIC", "super_block", &["s_magic"]),
    ("OFF_INODE_RDEV", "inode", &["i_rdev"]),
    ("OFF_INODE_DENTRY", "inode", &["i_dentry"]),
    ("OFF_DENTRY_ALIAS", "dentry", &["d_alias", "d_u"]),
    ("OFF_QSTR_NAME", "qstr", &["name"]),
    ("OFF_PATH_DENTRY", "path", &["dentry"]),
    ("OFF_PROC_INODE_VFS", "proc_inode", &["vfs_inode"]),
    ("OFF_PROC_INODE_PID", "proc_inode", &["pid"]),
    ("OFF_PROC_INODE_PDE", "proc_inode", &["pde"]),
    ("OFF_PROC_INODE_SYSCTL", "proc_inode", &["sysctl"]),
    ("OFF_PID_TASKS", "pid", &["tasks"]),
    ("OFF_TASK_PID_LINKS", "task_struct", &["pid_links"]),
    ("OFF_USERNS_LEVEL", "user_namespace", &["level"]),
    ("OFF_REGS_SYSCALL", "pt_regs", &["orig_ax"]),
    ("OFF_SOCKET_SK", "socket", &["sk"]),
    ("OFF_SOCK_FAMILY", "sock_common", &["skc_family"]),
    ("OFF_SOCK_BOUND4", "sock_common", &["skc_rcv_saddr"]),
    ("OFF_SOCK_BOUND6", "sock_common", &["skc_v6_rcv_saddr"]),
    ("OFF_SOCK_PEER_PID", "sock", &["sk_peer_pid"]),
    ("OFF_PID_NUMBERS", "pid", &["numbers"]),
    ("OFF_CGROUP_LEVEL", "cgroup", &["level"]),
    ("OFF_CGROUP_ANCESTORS", "cgroup", &["ancestors"]),
    ("OFF_CGROUP_KN", "cgroup", &["kn"]),
    ("OFF_KN_ID", "kernfs_node", &["id"]),
    ("OFF_UNIX_ADDR", "unix_sock", &["addr"]),
    ("OFF_UNIX_ADDR_LEN", "unix_address", &["len"]),
    ("OFF_UNIX_ADDR_NAME", "unix_address", &["name"]),
    ("OFF_DENTRY_INODE", "dentry", &["d_inode"]),
    ("OFF_MSG_NAME", "msghdr", &["msg_name"]),
    ("OFF_MSG_NAMELEN", "msghdr", &["msg_namelen"]),
    ("OFF_SB_ROOT", "super_block", &["s_root"]),
    ("OFF_FILE_MODE", "file", &["f_mode"]),
    ("OFF_DENTRY_PARENT", "dentry", &["d_parent"]),
    ("OFF_DENTRY_SB", "dentry", &["d_sb"]),
    ("OFF_IATTR_VALID", "iattr", &["ia_valid"]),
    ("OFF_IATTR_SIZE", "iattr", &["ia_size"]),
    ("OFF_TASK_CRED", "task_struct", &["cred"]),
    ("OFF_TASK_REAL_CRED", "task_struct", &["real_cred"]),
];

/// Fields of structs inside structs: name of the global, outer struct and field, inner struct and field.
pub const NESTED: &[(&str, [&str; 2], [&str; 2])] = &[
    ("OFF_FILE_DENTRY", ["file", "f_path"], ["path", "dentry"]),
    ("OFF_DENTRY_NAME", ["dentry", "d_name"], ["qstr", "name"]),
    ("OFF_SOCK_CGROUP", ["sock", "sk_cgrp_data"], ["sock_cgroup_data", "cgroup"]),
    ("OFF_UNIX_DENTRY", ["unix_sock", "path"], ["path", "dentry"]),
    ("OFF_DENTRY_NAME_LENGTH", ["dentry", "d_name"], ["qstr", "len"]),
];

/// Every global with its value.
pub fn all(btf: &Btf) -> Result<Vec<(&'static str, u32)>, BtfError> {
    let mut values = Vec::new();
    for (global, structure, fields) in OFFSETS {
        values.push((*global, btf.offset(structure, fields)?));
    }
    for (global, [outer, field], [inner, member]) in NESTED {
        values.push((*global, btf.offset(outer, &[field])? + btf.offset(inner, &[member])?));
    }
    let (seconds, nanoseconds) = ctime_offsets(btf)?;
    values.push(("OFF_INODE_CTIME_S", seconds));
    values.push(("OFF_INODE_CTIME_NS", nanoseconds));
    Ok(values)
}

/// The change time was a struct (6.1 `i_ctime`, 6.6 `__i_ctime`) before it became two fields.
fn ctime_offsets(btf: &Btf) -> Result<(u32, u32), BtfError> {
    if let Ok(seconds) = btf.offset("inode", &["i_ctime_sec"]) {
        return Ok((seconds, btf.offset("inode", &["i_ctime_nsec"])?));
    }
    let base = btf.offset("inode", &["__i_ctime", "i_ctime"])?;
    Ok((base + btf.offset("timespec64", &["tv_sec"])?, base + btf.offset("timespec64", &["tv_nsec"])?))
}
