//! Mounts that appear while a session runs. In its own namespace, from the host, they are marked so that programs there can
//! be held and judged; where the profile adopts namespaces, those that the session makes are marked too.
//!
//! One thread a session, so that a session that mounts without end, or hangs this thread with a file system of its own,
//! harms itself. Fails closed: what is not marked is never held, and the kernel refuses it.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::{io, thread};

use guard_common::reason;
use guard_proto::v1::GuardAct;
use guard_proto::v1::record_body::Body;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::kernel::mounts::View;
use crate::kernel::proc;
use crate::node::Node;
use crate::session::Session;

/// Namespaces of one session that are watched at the same time; more are not adopted.
const NAMESPACES_MAX: usize = 32;
/// Tasks that wait to be looked at.
const WAITING_MAX: usize = 256;
/// Namespaces without tasks are let go after this time.
const SWEEP: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Tasks whose namespace is to be looked at.
pub struct Requests {
    tids: Mutex<BTreeSet<u32>>,
    wake: OwnedFd,
}

impl Requests {
    /// None yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { tids: Mutex::default(), wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Asks to look at a task. Never waits; beyond the limit it is forgotten, and the task's execs stay refused.
    pub fn ask(&self, tid: u32) {
        let mut tids = self.tids.lock().unwrap_or_else(PoisonError::into_inner);
        if tids.len() < WAITING_MAX {
            tids.insert(tid);
        }
        drop(tids);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> BTreeSet<u32> {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        std::mem::take(&mut *self.tids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the thread. `own` is the session's namespace, whose mounts are marked already.
pub fn start(node: &Arc<Node>, session: &Arc<Session>, own: View) -> io::Result<()> {
    let ours = View::of_task(std::process::id())?.namespace;
    let (node, session) = (Arc::clone(node), Arc::clone(session));
    let mut watcher = Watcher { node, session, ours, views: vec![own] };
    thread::Builder::new().name("mounts".into()).spawn(move || watcher.run())?;
    Ok(())
}

struct Watcher {
    node: Arc<Node>,
    session: Arc<Session>,
    /// The daemon's own namespace, which is never marked.
    ours: String,
    /// The session's own namespace first.
    views: Vec<View>,
}

impl Watcher {
    fn run(&mut self) {
        while let Some(changed) = self.wait() {
            for tid in self.session.mounts.take() {
                self.look(tid);
            }
            for index in changed {
                self.refresh(index);
            }
            let mut first = true;
            self.views.retain(|view| std::mem::take(&mut first) || view.is_alive());
        }
    }

    /// The views whose mounts have changed; nothing when the session ends.
    fn wait(&self) -> Option<Vec<usize>> {
        let urgent = PollFlags::PRI | PollFlags::ERR;
        let mut fds =
            vec![PollFd::new(&self.session.stop, PollFlags::IN), PollFd::new(&self.session.mounts.wake, PollFlags::IN)];
        fds.extend(self.views.iter().map(|view| PollFd::new(view, urgent)));
        let pause = (self.views.len() > 1).then_some(&SWEEP);
        if let Err(error) = poll(&mut fds, pause)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(session = %self.session.id, %error, "mounts of a session can no longer be watched");
            return None;
        }
        if fds.first().is_some_and(|stop| !stop.revents().is_empty()) {
            return None;
        }
        Some(fds.iter().skip(2).enumerate().filter(|(_, fd)| fd.revents().intersects(urgent)).map(|(i, _)| i).collect())
    }

    /// Marks what is new in a namespace that is known.
    fn refresh(&mut self, index: usize) {
        let Some(view) = self.views.get_mut(index) else { return };
        if let Ok(now) = view.again() {
            // A task that entered another namespace is no witness of this one any more.
            if now.namespace == view.namespace {
                *view = now;
            }
        }
        if let Err(error) = view.mark(&self.session.group) {
            tracing::debug!(session = %self.session.id, %error, "mounts of a session not marked");
        }
    }

    /// Adopts the namespace of a task of this session.
    fn look(&mut self, tid: u32) {
        // The folder in `/proc` is opened first: what is asked afterwards is of the task that it was opened for.
        let Ok(view) = View::of_task(tid) else { return };
        let Ok(task) = proc::process(tid) else { return };
        let is_ours = self.node.kernel.mark_of(task.tgid).is_some_and(|mark| mark.session == self.session.key);
        if !is_ours || view.namespace == self.ours || !view.is_alive() {
            return;
        }
        if let Some(index) = self.views.iter().position(|known| known.namespace == view.namespace) {
            if index > 0
                && let Some(known) = self.views.get_mut(index)
            {
                *known = view;
            }
            return self.refresh(index);
        }
        if !self.session.adopts {
            return;
        }
        if self.views.len() > NAMESPACES_MAX {
            let text = format!("a mount namespace is not adopted: {NAMESPACES_MAX} are, which is the limit");
            return self.session.say("denied", text, "");
        }
        let marked = view.mark(&self.session.group).unwrap_or(0);
        self.record(&task, &view.namespace, marked);
        self.views.push(view);
    }

    fn record(&self, task: &proc::Process, namespace: &str, marked: usize) {
        let act = GuardAct {
            identity: Some(self.session.chain.clone()),
            what: crate::acts::reason_name(reason::MOUNT_NAMESPACE).into(),
            pid: task.tgid,
            comm: task.comm.clone(),
            count: 1,
            uid: task.uid,
            target: namespace.as_bytes().to_vec(),
            operation: "adopt".into(),
            number: marked as u64,
            program: String::from_utf8_lossy(&task.exe).into_owned(),
            ..GuardAct::default()
        };
        self.node.keep(self.session.id, Body::GuardObservation(act));
    }
}
