//! What happens by the clock: ends of holds, requests and sessions, slow reads of task memory, lost events, the canary.
//!
//! One thread; nothing here may block for long. Fails: an overdue read costs the task its life, then the session its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use guard_log::record::SessionId;
use guard_proto::v1::CanaryResult;
use guard_proto::v1::record_body::Body;

use crate::kernel::canary::{self, Measured};
use crate::kernel::{spawn, time};
use crate::node::Node;
use crate::readings::Reading;
use crate::session::Session;
use crate::{expiry, hold, sweep};

/// Rounds of the watching thread: the heartbeat looks whether they go on.
pub static ROUNDS: AtomicU64 = AtomicU64::new(0);

const STEP: Duration = Duration::from_millis(50);
/// The canary is measured again this often.
const CANARY_NS: u64 = 300_000_000_000;
/// Losses become records this often.
const LOSSES_NS: u64 = 1_000_000_000;
/// Reading a task's memory may take this long; then the task is killed.
const READ_NS: u64 = 5_000_000_000;
/// What agents did is kept this often; what a killed daemon takes along counts as new again.
const NOVELTY_NS: u64 = 60_000_000_000;
/// Freezes that last are renewed this often: well before they would end by themselves.
const RENEW_NS: u64 = 100_000_000_000;
/// After this its whole session is.
const READ_SESSION_NS: u64 = 8_000_000_000;

/// Starts the threads.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let watched = Arc::clone(node);
    thread::Builder::new().name("watch".into()).spawn(move || {
        let mut losses = 0;
        let mut log = watched.kernel.take_log();
        let mut renew_at = time::boot_ns() + RENEW_NS;
        loop {
            watched.approvals.tick(&watched);
            if time::boot_ns() >= renew_at {
                watched.freezes.renew(&watched.kernel);
                renew_at = time::boot_ns() + RENEW_NS;
            }
            sessions(&watched);
            if time::boot_ns().saturating_sub(losses) >= LOSSES_NS {
                losses = time::boot_ns();
                watched.losses.check(&watched);
                sweep::sweep(&watched);
            }
            if let Some(log) = &mut log {
                log.flush();
            }
            let _ = watched.kernel.heartbeat();
            ROUNDS.fetch_add(1, Ordering::Relaxed);
            thread::sleep(STEP);
        }
    })?;
    let measured = Arc::clone(node);
    thread::Builder::new().name("canary".into()).spawn(move || {
        let (mut last, mut kept) = (time::boot_ns(), time::boot_ns());
        while !measured.is_stopping() {
            thread::sleep(Duration::from_secs(1));
            if time::boot_ns().saturating_sub(kept) >= NOVELTY_NS {
                measured.novelty.keep();
                kept = time::boot_ns();
            }
            if time::boot_ns().saturating_sub(last) >= CANARY_NS && !measured.kernel.lifted() {
                remeasure(&measured);
                last = time::boot_ns();
            }
        }
    })?;
    Ok(())
}

fn sessions(node: &Arc<Node>) {
    let now = time::boot_ns();
    for session in node.sessions() {
        expiry::tick(node, &session, now);
        if session.is_detached() && !session.owner.process.lives() {
            session.request_end(node, "ended", "the caller went away".into());
        }
        session.note_counts();
        for slow in session.reading.older_than(READ_NS, now) {
            overdue(node, &session, slow, now);
        }
    }
}

/// A held task's memory cannot be read: another of its threads, or a file system's server, keeps the daemon waiting.
fn overdue(node: &Node, session: &Session, slow: Reading, now: u64) {
    let Some(attempt) = node.kernel.attempt(slow.tid).filter(|attempt| attempt.exec == slow.exec) else {
        // It is dead already; its number may be another's.
        return;
    };
    if session.reading.give_up(slow.tid, slow.exec) {
        tracing::warn!(session = %session.id, slow.tid, "a held task's memory cannot be read in time; it is killed");
        hold::record_overdue(node, session, &attempt);
    }
    let _ = spawn::signal(attempt.tgid.cast_signed(), libc::SIGKILL);
    if now.saturating_sub(slow.since) >= READ_SESSION_NS {
        session.request_end(node, "failed", "the memory of a held task could not be read in time".into());
    }
}

fn remeasure(node: &Arc<Node>) {
    match canary::measure(&node.kernel, &node.launcher, &node.config.kernel.cgroup) {
        Ok(measured) => {
            if !measured.enforcing() && !node.observes() {
                tracing::error!(detail = measured.detail, "the kernel no longer enforces");
            }
            node.note(SessionId::NONE, Body::Canary(result(&measured, node.observes())));
            node.set_measured(measured);
        }
        Err(error) => {
            tracing::error!(%error, "the canary could not be measured");
            let detail = format!("the canary could not be measured: {error}");
            node.set_measured(Measured { detail, ..Measured::default() });
        }
    }
}

/// As a record carries it.
pub fn result(measured: &Measured, observes: bool) -> CanaryResult {
    let mode = match (measured.enforcing(), observes) {
        (_, true) => "observing",
        (true, false) => "enforcing",
        (false, false) => "inert",
    };
    CanaryResult {
        ungranted_denied: measured.denied,
        granted_ran: measured.ran,
        wrong_argv_killed: measured.killed,
        mode: mode.into(),
        detail: measured.detail.clone(),
    }
}
