//! Entry of execve and execveat: the attempt exists from here on, also if it fails. Pointers only: user memory may not be
//! resident, and what it holds now is not what the kernel will copy.
//!
//! Attached to the kernel's functions for the 64-bit system calls, not to the system call tracepoints: while one of those
//! is in use, the kernel sends every system call of every process through its slower entry. The entries of other ABIs are
//! other functions: no attempt, and the check denies.

use aya_ebpf::helpers::generated::bpf_task_pt_regs;
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_task_btf, bpf_get_smp_processor_id};
use aya_ebpf::macros::fentry;
use aya_ebpf::programs::FEntryContext;
use guard_common::{Attempt, COMM, Counter, Mark};

use crate::maps::{ATTEMPTS, count, now};
use crate::membership::{governed, tgid, tid};
use crate::offsets::{
    OFF_CRED_EGID, OFF_CRED_EUID, OFF_REGS_DI, OFF_REGS_DX, OFF_REGS_ORIG_AX, OFF_REGS_R8, OFF_REGS_R10, OFF_REGS_SI,
    OFF_TASK_CRED, OFF_TASK_REAL_PARENT, OFF_TASK_TGID, field,
};
use crate::outcome;

const AT_FDCWD: i32 = -100;
const EXECVE: u32 = 59;
const EXECVEAT: u32 = 322;

#[fentry(function = "__x64_sys_execve")]
pub fn guard_enter_execve(ctx: FEntryContext) -> i32 {
    // SAFETY: the function's one argument is the tracked `struct pt_regs` of the system call.
    unsafe { enter::<EXECVE>(ctx.arg(0)) }
}

#[fentry(function = "__x64_sys_execveat")]
pub fn guard_enter_execveat(ctx: FEntryContext) -> i32 {
    // SAFETY: as above.
    unsafe { enter::<EXECVEAT>(ctx.arg(0)) }
}

/// For the open of a file for execution: an attempt whose entry no program saw, because the kernel skips one that another
/// task was preempted in. Entries of other ABIs have other numbers and stay unseen.
///
/// A function of its own, so that its stack is not there while paths are followed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_catch_up() -> u64 {
    // SAFETY: only its presence counts.
    if unsafe { ATTEMPTS.get(tid()) }.is_some() {
        return 0;
    }
    // SAFETY: the registers of the current task's system call are a tracked kernel object.
    unsafe {
        let registers = bpf_task_pt_regs(bpf_get_current_task_btf()) as *const u8;
        match field::<u64>(registers, &OFF_REGS_ORIG_AX) as u32 {
            EXECVE => enter::<EXECVE>(registers),
            EXECVEAT => enter::<EXECVEAT>(registers),
            _ => 0,
        };
    }
    1
}

/// # Safety
/// `registers` must be a `struct pt_regs` pointer that the verifier tracks.
#[inline(always)]
unsafe fn enter<const SYSCALL: u32>(registers: *const u8) -> i32 {
    let Some(mark) = governed() else { return 0 };
    outcome::end_forgotten(tid());
    // SAFETY: by contract.
    let attempt = unsafe { attempt::<SYSCALL>(&mark, registers) };
    count(Counter::Attempts);
    // No entry means that the check denies.
    if ATTEMPTS.insert(attempt.tid, &attempt, 0).is_err() {
        count(Counter::MapFull);
        let _ = ATTEMPTS.remove(attempt.tid);
    }
    0
}

/// What the system call's registers say.
///
/// # Safety
/// As [`enter`].
#[inline(always)]
pub unsafe fn attempt<const SYSCALL: u32>(mark: &Mark, registers: *const u8) -> Attempt {
    let entered = now();
    let mut attempt = Attempt {
        exec: exec_number(entered),
        session: mark.session,
        entered_boot_ns: entered,
        tgid: tgid(),
        tid: tid(),
        syscall: SYSCALL,
        root: mark.root,
        parent_exec: mark.exec,
        dirfd: AT_FDCWD,
        comm: bpf_get_current_comm().unwrap_or([0; COMM]),
        ..Attempt::default()
    };
    // SAFETY: the current task is tracked, and so is what its fields point to while the program runs.
    unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let cred: *const u8 = field(task, &OFF_TASK_CRED);
        if !cred.is_null() {
            (attempt.uid, attempt.gid) = (field(cred, &OFF_CRED_EUID), field(cred, &OFF_CRED_EGID));
        }
        let parent: *const u8 = field(task, &OFF_TASK_REAL_PARENT);
        if !parent.is_null() {
            attempt.parent = field(parent, &OFF_TASK_TGID);
        }
    }
    // SAFETY: by contract; the registers are words of the structure.
    unsafe {
        let (di, si, dx): (u64, u64, u64) =
            (field(registers, &OFF_REGS_DI), field(registers, &OFF_REGS_SI), field(registers, &OFF_REGS_DX));
        if SYSCALL == EXECVE {
            (attempt.path_ptr, attempt.argv_ptr, attempt.envp_ptr) = (di, si, dx);
        } else {
            attempt.dirfd = di as i32;
            (attempt.path_ptr, attempt.argv_ptr) = (si, dx);
            attempt.envp_ptr = field(registers, &OFF_REGS_R10);
            attempt.at_flags = field::<u64>(registers, &OFF_REGS_R8) as i32;
        }
    }
    attempt
}

/// Unique on one boot: no processor starts two execs within a microsecond.
#[inline(always)]
fn exec_number(now: u64) -> u64 {
    // SAFETY: the helper takes no arguments and always succeeds.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u64;
    (now & !0x3ff) | (cpu & 0x3ff) | 1 << 63
}
