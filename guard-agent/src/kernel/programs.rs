//! The kernel programs by name, where each attaches, and how it is loaded.
//!
//! Fails: a program that the verifier or the kernel refuses is an error that names it.

use std::collections::HashMap;
use std::sync::Mutex;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{BtfTracePoint, FEntry, FExit, Lsm, Program, ProgramError};

use super::btf::Btf;
use super::load::KernelError;

/// Where a program attaches.
pub enum Hook {
    /// An LSM hook that every supported kernel has.
    Lsm(&'static str),
    /// Entry of a kernel function.
    Entry(&'static str),
    /// Return from a kernel function.
    Return(&'static str),
    /// A typed tracepoint.
    Btf(&'static str),
    /// An LSM hook that only newer kernels have; `status` says where it is missing.
    LsmIfThere(&'static str),
}

/// Programs and where they attach. Membership first, so that no session can start ungoverned.
pub const PROGRAMS: &[(&str, Hook)] = &[
    ("guard_fork", Hook::Btf("sched_process_fork")),
    ("guard_exit", Hook::Btf("sched_process_exit")),
    ("guard_check", Hook::Lsm("bprm_check_security")),
    ("guard_verify", Hook::Lsm("bprm_committed_creds")),
    ("guard_enter_execve", Hook::Entry("__x64_sys_execve")),
    ("guard_enter_execveat", Hook::Entry("__x64_sys_execveat")),
    ("guard_exit_execve", Hook::Return("__x64_sys_execve")),
    ("guard_exit_execveat", Hook::Return("__x64_sys_execveat")),
    ("guard_traceme", Hook::Lsm("ptrace_traceme")),
    ("guard_ptrace", Hook::Lsm("ptrace_access_check")),
    ("guard_inode", Hook::Lsm("inode_permission")),
    ("guard_mmap", Hook::Lsm("mmap_file")),
    ("guard_mprotect", Hook::Lsm("file_mprotect")),
    ("guard_probe", Hook::Lsm("file_fcntl")),
    ("guard_kill", Hook::Lsm("task_kill")),
    ("guard_task_limit", Hook::Lsm("task_setrlimit")),
    ("guard_task_scheduler", Hook::Lsm("task_setscheduler")),
    ("guard_task_nice", Hook::Lsm("task_setnice")),
    ("guard_task_ioprio", Hook::Lsm("task_setioprio")),
    ("guard_task_memory", Hook::Lsm("task_movememory")),
    ("guard_ioctl", Hook::Lsm("file_ioctl")),
    ("guard_ioctl_compat", Hook::LsmIfThere("file_ioctl_compat")),
    ("guard_capable", Hook::Lsm("capable")),
    ("guard_bpf", Hook::Lsm("bpf")),
    ("guard_load_data", Hook::Lsm("kernel_load_data")),
    ("guard_read_file", Hook::Lsm("kernel_read_file")),
    ("guard_lockdown", Hook::Lsm("locked_down")),
    ("guard_anon_inode", Hook::Lsm("inode_init_security_anon")),
    ("guard_userns", Hook::Lsm("userns_create")),
    ("guard_mount", Hook::Lsm("sb_mount")),
    ("guard_move_mount", Hook::Lsm("move_mount")),
    ("guard_umount", Hook::Lsm("sb_umount")),
    ("guard_pivot", Hook::Lsm("sb_pivotroot")),
    ("guard_remount", Hook::Lsm("sb_remount")),
    ("guard_new_mount", Hook::Lsm("sb_kern_mount")),
    ("guard_unix_connect", Hook::Lsm("unix_stream_connect")),
    ("guard_unix_send", Hook::Lsm("unix_may_send")),
    ("guard_socket_create", Hook::Lsm("socket_create")),
    ("guard_connect", Hook::Lsm("socket_connect")),
    ("guard_sendmsg", Hook::Lsm("socket_sendmsg")),
    ("guard_create", Hook::Lsm("inode_create")),
    ("guard_mkdir", Hook::Lsm("inode_mkdir")),
    ("guard_mknod", Hook::Lsm("inode_mknod")),
    ("guard_symlink", Hook::Lsm("inode_symlink")),
    ("guard_link", Hook::Lsm("inode_link")),
    ("guard_unlink", Hook::Lsm("inode_unlink")),
    ("guard_rmdir", Hook::Lsm("inode_rmdir")),
    ("guard_rename", Hook::Lsm("inode_rename")),
    ("guard_open", Hook::Lsm("file_open")),
    ("guard_setattr", Hook::Lsm("inode_setattr")),
    ("guard_setxattr", Hook::Lsm("inode_setxattr")),
    ("guard_removexattr", Hook::Lsm("inode_removexattr")),
    ("guard_set_acl", Hook::LsmIfThere("inode_set_acl")),
    ("guard_remove_acl", Hook::LsmIfThere("inode_remove_acl")),
];

/// Kernels before 6.2 skip a sleepable LSM program that another task is in; there the verification must not sleep. Before
/// 6.10 `inode_setattr` has no id mapping among its arguments.
pub fn program_for_kernel(name: &'static str, types: &Btf) -> &'static str {
    match name {
        "guard_setattr" if types.parameters("bpf_lsm_inode_setattr") == Some(2) => "guard_setattr_unmapped",
        "guard_verify" if release_before(&rustix::system::uname().release().to_string_lossy(), (6, 2)) => {
            "guard_verify_at_once"
        }
        name => name,
    }
}

/// Whether a release such as `6.1.0-50-cloud-amd64` is older. What cannot be read counts as older.
fn release_before(release: &str, than: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < than
}

/// Has the verifier look at every program, several at a time: that is most of a daemon's start. What the kernel has no hook
/// for, and may do without, is left out. Calls `step` after each.
pub fn load(ebpf: &mut Ebpf, btf: &aya::Btf, types: &Btf, step: &(dyn Fn() + Sync)) -> Result<(), KernelError> {
    const AT_ONCE: usize = 4;
    let mut wanted: HashMap<&'static str, &Hook> = PROGRAMS
        .iter()
        .filter(|(_, hook)| !matches!(hook, Hook::LsmIfThere(hook) if !has_hook(types, hook)))
        .map(|(name, hook)| (program_for_kernel(name, types), hook))
        .collect();
    let mut queue = Vec::new();
    for (name, program) in ebpf.programs_mut() {
        if let Some((name, hook)) = wanted.remove_entry(name) {
            queue.push((name, hook, program));
        }
    }
    if let Some(name) = wanted.into_keys().next() {
        return Err(KernelError::Absent(name));
    }
    let queue = Mutex::new(queue);
    let next = || queue.lock().ok()?.pop();
    let work = || -> Result<(), KernelError> {
        while let Some((name, hook, program)) = next() {
            load_one(program, hook, btf)
                .map_err(|source| KernelError::Program { program: name, source: Box::new(source) })?;
            step();
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        // A panic ends the whole daemon.
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })
}

fn load_one(program: &mut Program, hook: &Hook, btf: &aya::Btf) -> Result<(), ProgramError> {
    match hook {
        Hook::Lsm(hook) | Hook::LsmIfThere(hook) => TryInto::<&mut Lsm>::try_into(program)?.load(hook, btf),
        Hook::Btf(hook) => TryInto::<&mut BtfTracePoint>::try_into(program)?.load(hook, btf),
        Hook::Entry(function) => TryInto::<&mut FEntry>::try_into(program)?.load(function, btf),
        Hook::Return(function) => TryInto::<&mut FExit>::try_into(program)?.load(function, btf),
    }
}

/// Attaches a loaded program. Gives the link and the instructions that the verifier counted; no link where the kernel has
/// no such hook and may do without.
pub fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    hook: &Hook,
    types: &Btf,
) -> Result<(Option<FdLink>, u32), KernelError> {
    let failed = |source: ProgramError| KernelError::Program { program: name, source: Box::new(source) };
    let program = ebpf.program_mut(name).ok_or(KernelError::Absent(name))?;
    let link = match hook {
        Hook::LsmIfThere(hook) if !has_hook(types, hook) => return Ok((None, 0)),
        Hook::Lsm(_) | Hook::LsmIfThere(_) => {
            let program: &mut Lsm = program.try_into().map_err(failed)?;
            let id = program.attach().map_err(failed)?;
            program.take_link(id).map_err(failed)?.into()
        }
        Hook::Btf(_) => {
            let program: &mut BtfTracePoint = program.try_into().map_err(failed)?;
            let id = program.attach().map_err(failed)?;
            program.take_link(id).map_err(failed)?.into()
        }
        Hook::Entry(_) => {
            let program: &mut FEntry = program.try_into().map_err(failed)?;
            let id = program.attach().map_err(failed)?;
            program.take_link(id).map_err(failed)?.into()
        }
        Hook::Return(_) => {
            let program: &mut FExit = program.try_into().map_err(failed)?;
            let id = program.attach().map_err(failed)?;
            program.take_link(id).map_err(failed)?.into()
        }
    };
    let verified =
        ebpf.program(name).and_then(|p| p.info().ok()).and_then(|i| i.verified_instruction_count()).unwrap_or(0);
    Ok((Some(link), verified))
}

/// Whether the running kernel has an LSM hook for programs.
pub fn has_hook(types: &Btf, hook: &str) -> bool {
    types.has_function(&format!("bpf_lsm_{hook}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(release_before("6.1.0-50-cloud-amd64", (6, 2)) && release_before("5.19", (6, 2)));
        assert!(!release_before("6.12.95+deb12", (6, 2)) && !release_before("7.3.4", (6, 2)));
        assert!(release_before("", (6, 2)));
    }
}
