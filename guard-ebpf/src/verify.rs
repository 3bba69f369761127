//! After the new image is committed: the kernel's own copy of argument and environment bytes must be the granted one,
//! else the image is killed before its first instruction.

use aya_ebpf::helpers::bpf_send_signal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{Counter, Mark, Pending, SETTING_UP, event_kind, reason, session_flags};

use crate::check::{emit, task};
use crate::maps::{ATTEMPTS, GRANTS, MARKS, PENDING, SESSIONS, count, runtime};
use crate::membership::{governed, tgid};
use crate::offsets::{
    OFF_BPRM_ARGC, OFF_BPRM_ENVC, OFF_BPRM_EXEC, OFF_BPRM_FILE, OFF_BPRM_FILENAME, OFF_BPRM_P, field,
};
use crate::ring::Tells;
use crate::{hash, stamp};

const SIGKILL: u32 = 9;

#[lsm(hook = "bprm_committed_creds", sleepable)]
pub fn guard_verify(ctx: LsmContext) -> i32 {
    verify::<true>(ctx)
}

/// For kernels before 6.2, which skip an LSM program while another task is in the same one on that processor: a program
/// that cannot sleep is never in that state.
#[lsm(hook = "bprm_committed_creds")]
pub fn guard_verify_at_once(ctx: LsmContext) -> i32 {
    verify::<false>(ctx)
}

#[inline(always)]
fn verify<const SLEEPS: bool>(ctx: LsmContext) -> i32 {
    let Some(mark) = governed() else { return 0 };
    let bprm: *const u8 = ctx.arg(0);
    if runtime().lifted == 1 {
        if mark.image == SETTING_UP {
            // What excuses Guard's own code must not outlive it.
            // SAFETY: `bprm` is the hook's tracked argument.
            let image = unsafe { stamp::of_file(field(bprm, &OFF_BPRM_FILE)) }.key;
            let _ = MARKS.insert(tgid(), &Mark { image, ..mark }, 0);
        }
        return 0;
    }
    let task = task();
    // A copy with a value in every case: left undefined, as in `Option::copied`, the compiler may move bytes that the
    // verifier then calls uninitialised. An exec number is never 0.
    // SAFETY: only this task writes the entry.
    let pending = match unsafe { PENDING.get(task) } {
        Some(pending) => *pending,
        None => Pending::default(),
    };
    let _ = PENDING.remove(task);
    let observe = observed(&mark);
    let why = if pending.exec != 0 {
        // The entries are keyed by the thread id at entry: after `de_thread` nobody else would find them.
        let _ = GRANTS.remove(pending.tid);
        let _ = ATTEMPTS.remove(pending.tid);
        // SAFETY: `bprm` is the hook's tracked argument.
        unsafe { compare::<SLEEPS>(bprm, &pending) }
    } else if observe {
        0
    } else {
        reason::NOT_CHECKED
    };
    let exec = pending.exec;
    // SAFETY: as above.
    let (file, name) =
        unsafe { (stamp::of_file(field(bprm, &OFF_BPRM_FILE)), field::<*const u8>(bprm, &OFF_BPRM_FILENAME)) };
    if why != 0 {
        // SAFETY: sends to the current task only.
        unsafe { bpf_send_signal(SIGKILL) };
        count(Counter::Killed);
        // Beside the event, for whoever looks at the daemon's log when the ring is full.
        // The canary's is no news.
        if mark.session != guard_common::CANARY_SESSION {
            aya_log_ebpf::warn!(&ctx, "exec {} killed before its first instruction: reason {}", exec, why);
        }
        emit(event_kind::KILLED, Tells::Outcome, &mark, exec, file.key, why, name);
        return 0;
    }
    let root = if exec != 0 { pending.root } else { mark.root };
    let new = Mark { exec, root, image: file.key, forked_boot_ns: 0, ..mark };
    if MARKS.insert(tgid(), &new, 0).is_err() {
        // Still governed through the cgroup; without a mark it passes no root on.
        count(Counter::MapFull);
    }
    count(Counter::Started);
    emit(event_kind::STARTED, Tells::Outcome, &new, exec, file.key, 0, name);
    0
}

#[inline(always)]
fn observed(mark: &Mark) -> bool {
    // SAFETY: sessions are replaced whole.
    unsafe { SESSIONS.get(mark.session) }.is_some_and(|s| s.flags & session_flags::OBSERVE != 0)
}

/// # Safety
/// `bprm` must be the hook's tracked argument.
#[inline(always)]
unsafe fn compare<const SLEEPS: bool>(bprm: *const u8, pending: &Pending) -> u32 {
    // SAFETY: by contract.
    let (argc, envc, start, end): (u32, u32, u64, u64) = unsafe {
        (
            field(bprm, &OFF_BPRM_ARGC),
            field(bprm, &OFF_BPRM_ENVC),
            field(bprm, &OFF_BPRM_P),
            field(bprm, &OFF_BPRM_EXEC),
        )
    };
    if argc != pending.argc || envc != pending.envc {
        return reason::COUNT_DIFFERS;
    }
    let len = end.wrapping_sub(start);
    if len != pending.len {
        return reason::ARGS_DIFFER;
    }
    match hash::of_user::<SLEEPS>(start, len) {
        None => reason::ARGS_UNREADABLE,
        Some(hash) if hash == pending.hash => 0,
        Some(_) => reason::ARGS_DIFFER,
    }
}
