//! Default deny: a governed exec passes only with a live grant for exactly this attempt and file.

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_task_btf, bpf_get_current_uid_gid, bpf_probe_read_kernel_str_bytes,
};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::{
    Attempt, Counter, EVENT_PATH, EventHeader, ExecEvent, FileKey, FileStamp, GRANT_FILES, GrantSet, Mark, Pending,
    attempt_state, event_kind, reason, session_flags,
};

use crate::maps::{ATTEMPTS, GRANTS, PENDING, SESSIONS, count, now, runtime};
use crate::membership::{governed, tgid, tid};
use crate::offsets::{OFF_BPRM_FILE, OFF_BPRM_FILENAME, field};
use crate::ring::{self, Tells};
use crate::stamp;

pub const EPERM: i32 = -1;

#[lsm(hook = "bprm_check_security")]
pub fn guard_check(ctx: LsmContext) -> i32 {
    let earlier: i32 = ctx.arg(1);
    if earlier != 0 {
        return earlier;
    }
    let Some(mark) = governed() else { return 0 };
    if runtime().lifted == 1 {
        return 0;
    }
    let bprm: *const u8 = ctx.arg(0);
    // SAFETY: `bprm` is the hook's tracked argument.
    let file = unsafe { stamp::of_file(field(bprm, &OFF_BPRM_FILE)) };
    match judge(&mark, &file) {
        0 => {
            count(Counter::Granted);
            0
        }
        why => {
            // SAFETY: as above.
            let name: *const u8 = unsafe { field(bprm, &OFF_BPRM_FILENAME) };
            refuse(&mark, file.key, why, name);
            EPERM
        }
    }
}

/// 0, or the reason of the refusal.
#[inline(always)]
fn judge(mark: &Mark, file: &FileStamp) -> u32 {
    let now = now();
    // SAFETY: sessions are replaced whole.
    let Some(session) = (unsafe { SESSIONS.get(mark.session) }) else { return reason::NO_SESSION };
    if session.flags & session_flags::OBSERVE != 0 {
        return 0;
    }
    if now >= session.expires_boot_ns {
        return reason::SESSION_EXPIRED;
    }
    let tid = tid();
    let Some(attempt) = ATTEMPTS.get_ptr_mut(tid) else { return reason::NO_ENTRY };
    let Some(grant) = GRANTS.get_ptr_mut(tid) else { return reason::NO_GRANT };
    // SAFETY: both pointers come from look-ups just above; only this thread's own syscall and the daemon, before it
    // releases the hold, write these entries.
    let (attempt, grant) = unsafe { (&mut *attempt, &mut *grant) };
    if grant.session != mark.session {
        return reason::NO_GRANT;
    }
    // Only the canary, whose attempts cannot be known before, may leave the attempt open.
    let any_attempt = grant.exec == 0 && session.flags & session_flags::CANARY != 0;
    if grant.exec != attempt.exec && !any_attempt {
        return reason::NO_GRANT;
    }
    if now >= grant.expires_boot_ns {
        return reason::GRANT_EXPIRED;
    }
    let why = use_file(grant, file);
    if why != 0 {
        return why;
    }
    if !ring::has_room(mark.session) {
        count(Counter::RingDenied);
        return reason::NO_RING;
    }
    keep_pending(attempt, grant)
}

/// Uses up the grant's entry for this file.
#[inline(always)]
fn use_file(grant: &mut GrantSet, file: &FileStamp) -> u32 {
    for index in 0..GRANT_FILES {
        let granted = grant.files[index];
        let bit = 1_u32 << index;
        if (index as u32) < grant.file_count && grant.used & bit == 0 && granted.key == file.key {
            if granted.inode_addr != file.inode_addr {
                return reason::WRONG_FILE;
            }
            if file.writers > 0 {
                return reason::FILE_HAS_WRITER;
            }
            if granted.size != file.size
                || granted.ctime_s != file.ctime_s
                || granted.ctime_ns != file.ctime_ns
                || granted.generation != file.generation
            {
                return reason::FILE_CHANGED;
            }
            grant.used |= bit;
            return 0;
        }
    }
    reason::WRONG_FILE
}

#[inline(always)]
fn keep_pending(attempt: &mut Attempt, grant: &GrantSet) -> u32 {
    let pending = Pending {
        exec: attempt.exec,
        session: grant.session,
        hash: grant.hash,
        len: grant.len,
        root: grant.root,
        argc: grant.argc,
        envc: grant.envc,
        tid: attempt.tid,
        reserved: 0,
    };
    if PENDING.insert(task(), &pending, 0).is_err() {
        count(Counter::MapFull);
        return reason::MAP_FULL;
    }
    attempt.state |= attempt_state::GRANTED;
    0
}

/// Key of what is kept between check and commit: the task itself, since `de_thread` changes the thread id.
#[inline(always)]
pub fn task() -> u64 {
    // SAFETY: the helper takes no arguments and always succeeds.
    unsafe { bpf_get_current_task_btf() as u64 }
}

#[inline(always)]
fn refuse(mark: &Mark, file: FileKey, why: u32, name: *const u8) {
    count(Counter::Refused);
    let _ = PENDING.remove(task());
    let tid = tid();
    // With a grant it has a record, which must learn its end.
    let tells = if GRANTS.remove(tid).is_ok() { Tells::Outcome } else { Tells::Attempt };
    let mut exec = 0;
    if let Some(attempt) = ATTEMPTS.get_ptr_mut(tid) {
        // SAFETY: a look-up result of this thread's own entry.
        unsafe {
            (*attempt).state |= attempt_state::DENIED;
            exec = (*attempt).exec;
        }
    }
    emit(event_kind::REFUSED, tells, mark, exec, file, why, name);
}

/// Writes an [`ExecEvent`]; one that finds no room is counted.
#[inline(always)]
pub fn emit(kind: u32, tells: Tells, mark: &Mark, exec: u64, file: FileKey, why: u32, name: *const u8) {
    let Some(mut entry) = ring::reserve::<ExecEvent>(mark.session, tells) else { return };
    let event = entry.as_mut_ptr();
    // SAFETY: the reservation is exactly one ExecEvent; every field is written before it is submitted.
    unsafe {
        (*event).header = EventHeader {
            kind,
            size: size_of::<ExecEvent>() as u32,
            boot_ns: now(),
            session: mark.session,
            tgid: tgid(),
            tid: tid(),
        };
        (*event).exec = exec;
        (*event).root = mark.root;
        (*event).file = file;
        (*event).reason = why;
        (*event).uid = bpf_get_current_uid_gid() as u32;
        (*event).comm = bpf_get_current_comm().unwrap_or([0; guard_common::COMM]);
        let path = &mut (*event).path;
        path[0] = 0;
        if !name.is_null() {
            let _ = bpf_probe_read_kernel_str_bytes(name, path);
        }
        path[EVENT_PATH - 1] = 0;
    }
    entry.submit(0);
}
