//! Held execs: read from the session's fanotify group, understood, judged, recorded, then granted or refused.
//!
//! The grant is written in the completion of the record's `fdatasync`, never before. Each session has its own group
//! and threads, so that none can starve another; what they cannot take yet waits in the kernel, bounded by the session's
//! limit of processes. Fails: every error on the way answers "deny"; when the daemon dies, the kernel answers what is held
//! and denies it for want of a grant.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::{io, thread};

use guard_common::{Attempt, FileStamp, GRANT_FILES, GrantSet};
use guard_log::journal::{Appended, JournalError};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecUnjudged, SessionMessage};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};

use crate::facts::{self, Facts, Misunderstood, Place};
use crate::judge;
use crate::kernel::fanotify::Held;
use crate::kernel::hash::ImageArgs;
use crate::kernel::{proc, time};
use crate::node::Node;
use crate::session::{Session, Stage};

/// Workers of one session: one may read slow memory while the other goes on.
const WORKERS: usize = 2;
const EVENT: u64 = 0;
const STOP: u64 = 1;
/// Time from the grant to the kernel's last check.
const GRANT_NS: u64 = 30_000_000_000;

/// A descriptor that becomes readable when a session ends.
pub fn stop_signal() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC)?)
}

/// Ends the threads of a session.
pub fn stop(session: &Session) {
    let _ = rustix::io::write(&session.stop, &1_u64.to_ne_bytes());
}

/// Starts the threads of a session. Each takes events itself and sees them through: nothing is handed over.
pub fn start(node: &Arc<Node>, session: &Arc<Session>) -> io::Result<()> {
    for _ in 0..WORKERS {
        let queue = wake_one(session)?;
        let (node, session) = (Arc::clone(node), Arc::clone(session));
        thread::Builder::new().name("hold".into()).spawn(move || work(&node, &session, &queue))?;
    }
    Ok(())
}

/// A descriptor on which one of several waiting threads is woken for an event, and all of them for the end.
fn wake_one(session: &Session) -> io::Result<OwnedFd> {
    let queue = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let event = |data| epoll::EventData::new_u64(data);
    epoll::add(&queue, &session.group, event(EVENT), epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE)?;
    epoll::add(&queue, &session.stop, event(STOP), epoll::EventFlags::IN)?;
    Ok(queue)
}

fn work(node: &Arc<Node>, session: &Arc<Session>, queue: &OwnedFd) {
    loop {
        match session.group.read() {
            Ok(Some(held)) => {
                handle(node, session, held);
                continue;
            }
            Ok(None) => {}
            Err(error) => return fail(node, session, &error.to_string()),
        }
        let mut ready = Vec::with_capacity(2);
        match epoll::wait(queue, spare_capacity(&mut ready), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return fail(node, session, &error.to_string()),
        }
        if ready.iter().any(|event: &epoll::Event| event.data.u64() == STOP) {
            return;
        }
    }
}

fn fail(node: &Node, session: &Session, why: &str) {
    tracing::error!(session = %session.id, why, "held execs of a session cannot be read; it is ended");
    session.request_end(node, "failed", format!("reading held execs: {why}"));
}

fn handle(node: &Arc<Node>, session: &Arc<Session>, held: Held) {
    if node.kernel.lifted() {
        return answer(session, &held, true);
    }
    let Some(attempt) = node.kernel.attempt(held.tid) else {
        if node.observes() {
            return answer(session, &held, true);
        }
        // A system call whose entry no program saw, such as one of another ABI.
        return refuse_unjudged(node, session, held, None, "no_entry", "");
    };
    if attempt.session != session.key {
        return refuse_unjudged(node, session, held, Some(&attempt), "no_session", "the task is of another session");
    }
    let expired = session.life.is_expired(time::boot_ns());
    if session.is_ending() && !expired {
        return refuse_unjudged(node, session, held, Some(&attempt), "session_ended", "");
    }
    if expired {
        return refuse_unjudged(node, session, held, Some(&attempt), "session_expired", "");
    }
    match session.begin_attempt(attempt.exec, attempt.tid) {
        // Interpreters and loaders of an exec that is granted: the kernel checks them against the grant's files.
        Err(Stage::Granted) => answer(session, &held, true),
        Err(Stage::Deciding | Stage::Denied) => answer(session, &held, node.observes()),
        Ok(()) => understand(node, session, &attempt, held),
    }
}

fn understand(node: &Arc<Node>, session: &Arc<Session>, attempt: &Attempt, held: Held) {
    session.execs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    if session.is_at_its_limit(node) || node.approvals.open_of(session.key) > node.config.session.max_held {
        session.set_stage(attempt.exec, Stage::Denied);
        return refuse_unjudged(node, session, held, Some(attempt), "too_many_held", "");
    }
    match gather(node, session, attempt, &held) {
        None => {
            session.set_stage(attempt.exec, Stage::Denied);
            answer(session, &held, node.observes());
        }
        Some(Ok(facts)) => judge::judge(node, session, Arc::new(facts), held),
        Some(Err(why)) => {
            session.set_stage(attempt.exec, Stage::Denied);
            let reason = if why.what == "file_has_writer" { why.what } else { "not_understood" };
            refuse_unjudged(node, session, held, Some(attempt), reason, &why.to_string());
        }
    }
}

/// Gathers facts while the watchdog knows whose memory is being read; nothing if it gave that up and recorded it.
fn gather(node: &Arc<Node>, session: &Session, attempt: &Attempt, held: &Held) -> Option<Result<Facts, Misunderstood>> {
    session.reading.begin(held.tid, attempt.exec, time::boot_ns());
    let given_up = Cell::new(false);
    let memory_read = || given_up.set(session.reading.end(held.tid) || given_up.get());
    let mut frozen = Vec::new();
    let place = Place {
        rights: &session.rights,
        entry_pid: session.entry_pid,
        makes_mounts: session.makes_mounts,
        processes: &session.processes,
        fixed: &session.fixed,
        salt: node.digest_key.salt(&session.id.0),
        memory_read: &memory_read,
    };
    let facts = facts::gather(node, &place, attempt, held.file.as_fd(), &mut frozen);
    memory_read();
    for key in session.set_frozen(attempt.exec, frozen) {
        // The task was killed meanwhile: nobody else will thaw them.
        node.freezes.thaw(&node.kernel, key);
    }
    (!given_up.get()).then_some(facts)
}

/// Records an attempt whose reader does not come back. Its task is killed.
pub fn record_overdue(node: &Node, session: &Session, attempt: &Attempt) {
    session.denied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let task = proc::process(attempt.tid).unwrap_or_default();
    let body = ExecUnjudged {
        identity: Some(session.chain.clone()),
        exec_id: attempt.exec,
        pid: attempt.tgid,
        tid: attempt.tid,
        uid: task.uid,
        comm: task.comm,
        argv_trust: "unreadable".into(),
        errno: libc::EPERM.cast_unsigned(),
        reason: "not_understood: its memory cannot be read in time; the task is killed".into(),
        probes: 1,
        disposition: Disposition::Denied.into(),
        root_exec_id: attempt.root,
        parent_exec_id: attempt.parent_exec,
        ..ExecUnjudged::default()
    };
    session.tell(SessionMessage {
        kind: "killed".into(),
        text: format!("killed: {}", body.reason),
        pid: attempt.tgid,
        ..SessionMessage::default()
    });
    node.keep(session.id, Body::ExecUnjudged(body));
}

/// Answers the kernel. An event whose task is gone is answered to nobody.
pub fn answer(session: &Session, held: &Held, allow: bool) {
    if let Err(error) = session.group.answer(held.file.as_fd(), allow) {
        tracing::debug!(session = %session.id, tid = held.tid, %error, "a held exec was gone before its answer");
    }
}

/// Records an attempt that could not be judged, then refuses it.
fn refuse_unjudged(
    node: &Arc<Node>,
    session: &Arc<Session>,
    held: Held,
    attempt: Option<&Attempt>,
    reason: &str,
    detail: &str,
) {
    session.denied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let task = proc::process(held.tid).unwrap_or_default();
    let expired = reason == "session_expired";
    let body = ExecUnjudged {
        identity: Some(session.chain.clone()),
        exec_id: attempt.map_or(0, |a| a.exec),
        pid: task.tgid,
        tid: held.tid,
        uid: task.uid,
        comm: task.comm,
        path: crate::files::path_of(held.file.as_fd()),
        argv_trust: "unreadable".into(),
        errno: libc::EPERM.cast_unsigned(),
        reason: if detail.is_empty() { reason.into() } else { format!("{reason}: {detail}") },
        probes: 1,
        disposition: if expired { Disposition::Expired } else { Disposition::Denied }.into(),
        root_exec_id: attempt.map_or(0, |a| a.root),
        parent_exec_id: attempt.map_or(0, |a| a.parent_exec),
        ..ExecUnjudged::default()
    };
    session.tell(SessionMessage {
        kind: "denied".into(),
        text: format!("denied: {}: {}", String::from_utf8_lossy(&body.path), body.reason),
        pid: body.pid,
        ..SessionMessage::default()
    });
    if let Some(attempt) = attempt {
        let _ = session.begin_attempt(attempt.exec, attempt.tid);
        session.set_stage(attempt.exec, Stage::Denied);
    }
    let allow = node.observes();
    let waiting = Arc::clone(session);
    node.keep_then(session.id, Body::ExecUnjudged(body), move |kept| answer(&waiting, &held, kept && allow));
}

/// What a grant is made of.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The thread.
    pub tid: u32,
    /// Its process.
    pub tgid: u32,
    /// The attempt.
    pub exec: u64,
    /// Root for the new image.
    pub root: u64,
    /// What the new image must hold.
    pub image: ImageArgs,
    /// Files that will be checked.
    pub files: Vec<FileStamp>,
}

impl Opening {
    /// For judged facts.
    pub fn of(facts: &Facts, root: u64) -> Self {
        Self {
            tid: facts.attempt.tid,
            tgid: facts.attempt.tgid,
            exec: facts.attempt.exec,
            root,
            image: facts.image,
            files: facts.files.iter().map(|f| f.stamp).collect(),
        }
    }

    fn grant(&self, session: &Session) -> GrantSet {
        let mut files = [FileStamp::default(); GRANT_FILES];
        for (slot, file) in files.iter_mut().zip(&self.files) {
            *slot = *file;
        }
        GrantSet {
            exec: self.exec,
            session: session.key,
            expires_boot_ns: time::boot_ns() + GRANT_NS,
            hash: self.image.hash,
            len: self.image.len,
            root: self.root,
            argc: self.image.argc,
            envc: self.image.envc,
            file_count: u32::try_from(self.files.len()).unwrap_or(0),
            used: 0,
            files,
        }
    }
}

/// Opens the way for an exec whose record is durable, or refuses it if the record is not.
pub fn release(
    node: &Node,
    session: &Session,
    held: &Held,
    opening: &Opening,
    recorded: Result<Appended, JournalError>,
) {
    let granted = match recorded {
        Ok(_) if node.observes() => {
            session.set_stage(opening.exec, Stage::Granted);
            return answer(session, held, true);
        }
        Ok(_) => grant(node, session, opening),
        Err(error) => Err(error.to_string()),
    };
    match granted {
        Ok(()) => answer(session, held, true),
        Err(why) => {
            tracing::debug!(session = %session.id, exec = opening.exec, why, "an exec is denied");
            session.set_stage(opening.exec, Stage::Denied);
            answer(session, held, false);
            session.say("denied", format!("denied: Guard cannot record or grant: {why}"), "");
        }
    }
}

fn grant(node: &Node, session: &Session, opening: &Opening) -> Result<(), String> {
    session.set_stage(opening.exec, Stage::Granted);
    let kept = session.kept_for(opening.exec, opening.tgid);
    if !kept.is_empty() {
        // A script is read by its interpreter as it runs: the next daemon must know what stays as it is.
        session.notes.keeps(opening.exec, kept).map_err(|e| format!("keeping the session's notes: {e}"))?;
    }
    node.kernel.grant(opening.tid, &opening.grant(session)).map_err(|e| e.to_string())?;
    // A task that died meanwhile must leave no grant behind.
    if node.kernel.attempt(opening.tid).is_none_or(|a| a.exec != opening.exec) {
        node.kernel.revoke(opening.tid);
    }
    Ok(())
}
