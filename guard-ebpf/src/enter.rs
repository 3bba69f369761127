//! Syscall entry of execve and execveat: the attempt exists from here on, also if it fails. Pointers only: user memory
//! may not be resident, and what it holds now is not what the kernel will copy.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use guard_common::{Attempt, Counter};

use crate::maps::{ATTEMPTS, count, now};
use crate::membership::{governed, tgid, tid};

const AT_FDCWD: i32 = -100;
const EXECVE: u32 = 59;
const EXECVEAT: u32 = 322;

#[tracepoint]
pub fn guard_enter_execve(ctx: TracePointContext) -> u32 {
    let Some(mut attempt) = start(EXECVE) else { return 0 };
    // SAFETY: offsets of the syscall tracepoint's argument words: path, argv, envp.
    unsafe {
        attempt.path_ptr = ctx.read_at(16).unwrap_or(0);
        attempt.argv_ptr = ctx.read_at(24).unwrap_or(0);
        attempt.envp_ptr = ctx.read_at(32).unwrap_or(0);
    }
    attempt.dirfd = AT_FDCWD;
    store(&attempt)
}

#[tracepoint]
pub fn guard_enter_execveat(ctx: TracePointContext) -> u32 {
    let Some(mut attempt) = start(EXECVEAT) else { return 0 };
    // SAFETY: offsets of the syscall tracepoint's argument words: fd, path, argv, envp, flags.
    unsafe {
        attempt.dirfd = ctx.read_at::<u64>(16).unwrap_or(0) as i32;
        attempt.path_ptr = ctx.read_at(24).unwrap_or(0);
        attempt.argv_ptr = ctx.read_at(32).unwrap_or(0);
        attempt.envp_ptr = ctx.read_at(40).unwrap_or(0);
        attempt.at_flags = ctx.read_at::<u64>(48).unwrap_or(0) as i32;
    }
    store(&attempt)
}

#[inline(always)]
fn start(syscall: u32) -> Option<Attempt> {
    let mark = governed()?;
    count(Counter::Attempts);
    let entered = now();
    Some(Attempt {
        exec: exec_number(entered),
        session: mark.session,
        entered_boot_ns: entered,
        tgid: tgid(),
        tid: tid(),
        syscall,
        root: mark.root,
        parent_exec: mark.exec,
        ..Attempt::default()
    })
}

/// Unique on one boot: no processor starts two execs within a microsecond.
#[inline(always)]
fn exec_number(now: u64) -> u64 {
    // SAFETY: the helper takes no arguments and always succeeds.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u64;
    (now & !0x3ff) | (cpu & 0x3ff) | 1 << 63
}

#[inline(always)]
fn store(attempt: &Attempt) -> u32 {
    // No entry means that the check denies.
    if ATTEMPTS.insert(attempt.tid, attempt, 0).is_err() {
        count(Counter::MapFull);
        let _ = ATTEMPTS.remove(attempt.tid);
    }
    0
}
