//! The end of a session: how its entry process's end is learned, what closes, what is recorded and said.
//!
//! It must close the kernel's entry first, so that nothing more can start. Fails: what cannot be killed keeps its cgroup and its
//! kept state, and the record says so.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use guard_proto::v1::record_body::Body;
use guard_proto::v1::{SessionEnd, SessionExited};

use super::{PATIENCE, Session, lock};
use crate::kernel::{proc, time};
use crate::launcher::Exit;
use crate::node::Node;
use crate::{hold, kept, outcome};

/// How the end of an entry process is learned.
#[derive(Default)]
pub struct EntryEnd {
    /// Of one that an earlier daemon started: a handle, if it still lived when it was adopted.
    pub adopted: Option<Option<OwnedFd>>,
    told: Mutex<Option<i32>>,
    changed: Condvar,
}

impl EntryEnd {
    /// Of a session that an earlier daemon started.
    pub fn adopted(handle: Option<OwnedFd>) -> Self {
        Self { adopted: Some(handle), ..Self::default() }
    }

    /// Whether an adopted entry process has ended.
    pub fn is_over(&self) -> bool {
        self.adopted.as_ref().is_some_and(|handle| handle.as_ref().is_none_or(proc::has_ended))
    }

    /// The kernel's event says how it ended. The first one counts: the number may be used again.
    pub(super) fn tell(&self, status: u32) {
        lock(&self.told).get_or_insert(status.cast_signed());
        self.changed.notify_all();
    }

    fn told(&self, patience: Duration) -> Option<i32> {
        let guard = lock(&self.told);
        let waited = self.changed.wait_timeout_while(guard, patience, |told| told.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for the end of an adopted entry process. Nothing if the event that says how was lost.
    fn wait(&self, handle: Option<&OwnedFd>) -> Option<i32> {
        const LOOK: Duration = Duration::from_millis(500);
        // Its end is seen before the event is read.
        const EVENT: Duration = Duration::from_secs(3);
        while handle.is_some_and(|handle| !proc::has_ended(handle)) {
            if let Some(status) = self.told(LOOK) {
                return Some(status);
            }
        }
        self.told(EVENT)
    }
}

/// How a session ended.
pub struct Ended {
    /// Why.
    pub reason: String,
}

impl Session {
    /// An adopted session whose entry process ended while there was no daemon.
    pub fn entry_gone(&self, node: &Node) {
        self.request_end(node, "exited", "the entry process ended while no daemon ran".into());
    }

    /// The kernel says that a process of the session ended.
    pub fn seen_exit(&self, tgid: u32, status: u32) {
        if tgid == self.entry_pid {
            self.entry_end.tell(status);
        }
    }

    /// Whether its end was asked for or has come.
    pub fn is_ending(&self) -> bool {
        lock(&self.end).is_some()
    }

    /// Ends it: no more execs, every process killed. The first reason counts.
    pub fn request_end(&self, node: &Node, reason: &'static str, detail: String) {
        {
            let mut end = lock(&self.end);
            if end.is_some() {
                return;
            }
            *end = Some((reason, detail));
        }
        for child in node.children_of(&self.identity.session_id) {
            child.request_end(node, "parent_ended", format!("session {} has ended: {reason}", self.id));
        }
        if let Err(error) = node.kernel.close_session(self.key) {
            tracing::error!(session = %self.id, %error, "closing a session in the kernel");
        }
        if let Err(error) = self.cgroup.kill(Duration::ZERO) {
            tracing::error!(session = %self.id, %error, "killing a session's processes");
        }
    }

    /// Waits for the entry process, then ends the session, records it and says so to whom it answers.
    pub fn wait(&self, node: &Arc<Node>) -> Ended {
        let (exit, known) = match &self.entry_end.adopted {
            None => (self.launched_exit(node), true),
            Some(handle) => match self.entry_end.wait(handle.as_ref()) {
                Some(status) => (Exit { status, ..Exit::default() }, true),
                None => (Exit::default(), false),
            },
        };
        let detail = match exit.exec_errno {
            Some(errno) => format!("{}: {}", exit.step, std::io::Error::from_raw_os_error(errno)),
            None if known => String::new(),
            None => "the event that says how the entry process ended was lost;".into(),
        };
        self.request_end(node, "exited", detail);
        self.finish(node, &exit, known)
    }

    fn launched_exit(&self, node: &Arc<Node>) -> Exit {
        loop {
            match node.launcher.wait(self.entry_pid, Duration::from_secs(3600)) {
                Ok(exit) => return exit,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(error) => {
                    self.request_end(node, "failed", error.to_string());
                    return Exit { status: libc::SIGKILL, ..Exit::default() };
                }
            }
        }
    }

    fn finish(&self, node: &Arc<Node>, exit: &Exit, known: bool) -> Ended {
        if let Err(error) = self.cgroup.kill(PATIENCE) {
            tracing::error!(session = %self.id, %error, "killing a session's processes");
        }
        let (reason, detail) = lock(&self.end).clone().unwrap_or(("exited", String::new()));
        node.approvals.session_ended(node, self, reason);
        hold::stop(self);
        outcome::settle(node, self);
        node.losses.close(node, self);
        let empty = !self.cgroup.populated();
        let execs = self.execs.load(Ordering::SeqCst);
        let body = SessionEnd {
            identity: Some(self.chain.clone()),
            reason: reason.into(),
            has_status: known,
            status: exit.status.cast_unsigned(),
            execs,
            duration_ns: time::boot_ns().saturating_sub(self.started_boot_ns),
            detail: if empty { detail } else { format!("{detail} processes are left in its cgroup") },
        };
        let durable = node.note(self.id, Body::SessionEnd(body)).is_some_and(|ticket| ticket.wait().is_ok());
        if empty {
            node.kernel.clear_delete_budget(self.key);
            let _ = node.kernel.unbind_cgroup(self.cgroup.id);
            let _ = self.cgroup.remove();
        }
        // A renewal that is under way must not keep it again afterwards.
        let _keeping = self.life.keeping();
        if durable && empty {
            let _ = kept::forget(&node.config.node.state_dir, self.key);
        }
        let denied = self.denied.load(Ordering::SeqCst);
        // A session that ended in an unknown way was no success.
        let status = if known { exit.status.cast_unsigned() } else { 255 << 8 };
        self.last_reply(node, SessionExited { status, reason: reason.into(), execs, denied });
        node.remove_session(self.key);
        Ended { reason: reason.into() }
    }
}
