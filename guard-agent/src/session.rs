//! A governed session: its cgroup, its private mount namespace with its marks, its entry process, its end.
//!
//! It must not judge execs. Fails: a start that fails at any step undoes the steps before it and says which one; an end
//! always closes the kernel's entry first, so that nothing more can start.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_common::{FileKey, Mark, SETTING_UP, Session as KernelSession, session_flags};
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, SessionEnd, SessionMessage, SessionStart, local_reply};

use crate::files::Rights;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::fanotify::Group;
use crate::kernel::mounts::View;
use crate::kernel::{proc, time};
use crate::launcher::{Exit, StartSpec, Waiting};
use crate::mounts::Requests;
use crate::node::Node;
use crate::processes::Processes;
use crate::profile::Namespaces;
use crate::voice::Voice;
use crate::{hold, leftover, mounts, outcome};

const PATIENCE: Duration = Duration::from_secs(10);

/// How far an exec has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Facts are gathered, or a person is asked.
    Deciding,
    /// A grant is in the kernel.
    Granted,
    /// It was or will be refused.
    Denied,
}

/// One exec between its first event and its outcome.
#[derive(Debug)]
pub struct Attempted {
    /// How far it is.
    pub stage: Stage,
    /// Files kept from being written.
    pub frozen: Vec<FileKey>,
    /// Its thread.
    pub tid: u32,
    /// Since when (boot time) the kernel does not know it any more; 0 while it does.
    gone_since: u64,
}

/// Files of one session that may be frozen at the same time: its part of the kernel's map.
fn frozen_max(node: &Node) -> usize {
    (guard_common::FROZEN_MAX as usize / node.config.session.max_sessions.max(1)).max(guard_common::GRANT_FILES)
}

/// An image that runs.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its process.
    pub tgid: u32,
    /// When it started.
    pub started_boot_ns: u64,
    /// Path of its program, for people.
    pub program: Vec<u8>,
    /// Files that stay frozen as long as it runs: a script is read by its interpreter after the start.
    pub frozen: Vec<FileKey>,
    /// Since when (boot time) the kernel does not know it any more; 0 while it does.
    pub gone_since: u64,
}

/// What a reviewer allowed for the descendants of a root.
#[derive(Clone, Debug)]
pub struct RootApproval {
    /// The request.
    pub request_id: String,
    /// Who allowed it.
    pub reviewer: String,
    /// Categories that are covered.
    pub categories: Vec<String>,
    /// Execs left.
    pub left: u32,
    /// Until when (boot time).
    pub until_boot_ns: u64,
    /// Files that the session wrote after this (wall time) are not covered.
    pub shown_unix_ns: i64,
    /// The root's process, once it has started.
    pub tgid: u32,
}

/// An open session.
pub struct Session {
    /// The kernel's number.
    pub key: u64,
    /// The id in every record.
    pub id: SessionId,
    /// Who, for whom, with which rights.
    pub identity: Identity,
    /// User and groups.
    pub rights: Rights,
    /// Home folder of the initiator.
    pub home: Vec<u8>,
    /// Name of its profile.
    pub profile: String,
    /// Where it started.
    pub workspace: Vec<u8>,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The entry process.
    pub entry_pid: u32,
    /// End, in boot time.
    pub expires_boot_ns: u64,
    /// End, in wall time.
    pub expires_unix_ns: i64,
    /// Start, in boot time.
    pub started_boot_ns: u64,
    /// Held execs come from here.
    pub group: Group,
    /// Its processes, as far as they are known.
    pub processes: Processes,
    /// Tasks whose mount namespace is to be looked at.
    pub mounts: Requests,
    /// Namespaces made inside are adopted.
    pub adopts: bool,
    /// The session could mount any file anywhere: names alone say nothing of a file.
    pub makes_mounts: bool,
    /// Becomes readable when the session ends.
    pub stop: OwnedFd,
    /// Execs so far.
    pub execs: AtomicU32,
    /// Of those, denied.
    pub denied: AtomicU32,
    /// Tasks whose memory is being read: for which exec, since when (boot time).
    pub reading: Mutex<HashMap<u32, (u64, u64)>>,
    attempts: Mutex<HashMap<u64, Attempted>>,
    images: Mutex<HashMap<u64, Image>>,
    roots: Mutex<HashMap<u64, RootApproval>>,
    voice: Mutex<Option<Voice>>,
    end: Mutex<Option<(&'static str, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session is started with; checked by the control socket before.
pub struct Wanted {
    /// Who, for whom. `session_id` and `instance` are filled in here.
    pub identity: Identity,
    /// The user it runs as.
    pub user: proc::User,
    /// Life.
    pub ttl: Duration,
    /// Arguments of the entry process.
    pub argv: Vec<Vec<u8>>,
    /// Its environment, filtered.
    pub env: Vec<Vec<u8>>,
    /// Its working folder.
    pub cwd: Vec<u8>,
    /// Untrusted text.
    pub purpose: String,
    /// The descriptors are a terminal.
    pub tty: bool,
    /// File mode creation mask.
    pub umask: u32,
    /// Limits of the process that asked.
    pub limits: Vec<(u64, u64)>,
    /// Name of this node, for the instance's URI.
    pub node_name: String,
}

/// How a session ended.
pub struct Ended {
    /// Wait status of the entry process.
    pub status: u32,
    /// Why.
    pub reason: String,
    /// Execs.
    pub execs: u32,
    /// Of those, denied.
    pub denied: u32,
}

/// Starts a session. The entry process waits for [`Started::go`].
pub fn start<'a>(
    node: &'a Arc<Node>,
    wanted: &Wanted,
    stdio: &[OwnedFd; 3],
    connection: UnixStream,
) -> Result<Started<'a>, String> {
    let key = random_key().map_err(|e| format!("drawing a session key: {e}"))?;
    let id = SessionId(u128::from(ulid::Ulid::generate()).to_be_bytes());
    let dir = node.config.kernel.cgroup.join(format!("s-{id}"));
    let cgroup = Cgroup::create(dir).map_err(|e| format!("making the session's cgroup: {e}"))?;
    let mut undo = Undo { node, key, cgroup: cgroup.clone(), armed: true };
    let now = time::boot_ns();
    let ttl_ns = u64::try_from(wanted.ttl.as_nanos()).unwrap_or(u64::MAX);
    let expires_boot_ns = now.saturating_add(ttl_ns);
    let (profile_name, profile) = node.config.profile(&wanted.identity.agent);
    match undo.cgroup.limit_tasks(profile.max_processes) {
        Err(error) if !node.observes() => return Err(format!("limiting the session's processes: {error}")),
        _ => {}
    }
    let observe = if node.observes() { session_flags::OBSERVE } else { 0 };
    let uid = wanted.user.uid;
    let entry = KernelSession {
        expires_boot_ns,
        cgroup: cgroup.id,
        caps_denied: profile.caps_denied(),
        flags: observe | profile.flags(),
        uid,
        profile: crate::network::profile_number(&profile_name),
        ..KernelSession::default()
    };
    node.kernel.shares.open(key).map_err(|e| e.to_string())?;
    node.kernel.open_session(key, &entry).map_err(|e| e.to_string())?;
    node.kernel.bind_cgroup(cgroup.id, key).map_err(|e| e.to_string())?;
    let spec = spec(node, wanted, &cgroup, id);
    let [stdin, stdout, stderr] = stdio;
    let waiting = node
        .launcher
        .start(&spec, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
        .map_err(|e| format!("starting the entry process: {e}"))?;
    let pid = waiting.pid();
    node.kernel.mark(pid, &Mark { session: key, image: SETTING_UP, ..Mark::default() }).map_err(|e| e.to_string())?;
    let (group, view) = mark_mounts(pid)?;
    let mut identity = wanted.identity.clone();
    identity.session_id = id.to_string();
    identity.instance = format!("spiffe://{}/agent/{}/{id}", wanted.node_name, wanted.identity.agent);
    let session = Arc::new(Session {
        key,
        id,
        identity,
        rights: Rights { uid: wanted.user.uid, groups: wanted.user.groups.clone() },
        home: wanted.user.home.clone(),
        profile: profile_name,
        workspace: wanted.cwd.clone(),
        cgroup,
        entry_pid: pid,
        expires_boot_ns,
        expires_unix_ns: time::wall_unix_ns().saturating_add(i64::try_from(ttl_ns).unwrap_or(i64::MAX)),
        started_boot_ns: now,
        group,
        processes: Processes::default(),
        mounts: Requests::new().map_err(|e| format!("making an event descriptor: {e}"))?,
        adopts: profile.namespaces == Namespaces::Adopt,
        makes_mounts: profile.namespaces == Namespaces::Adopt || profile.capabilities.has("sys_admin"),
        stop: hold::stop_signal().map_err(|e| format!("making an event descriptor: {e}"))?,
        execs: AtomicU32::new(0),
        denied: AtomicU32::new(0),
        reading: Mutex::default(),
        attempts: Mutex::default(),
        images: Mutex::default(),
        roots: Mutex::default(),
        voice: Mutex::new(Some(Voice::new(connection).map_err(|e| format!("starting a thread: {e}"))?)),
        end: Mutex::new(None),
    });
    node.add_session(&session)?;
    if let Err(why) = begin(node, &session, view, wanted, ttl_ns) {
        hold::stop(&session);
        node.remove_session(session.key);
        return Err(why);
    }
    undo.armed = false;
    Ok(Started { session, waiting })
}

/// A session whose entry process waits.
pub struct Started<'a> {
    /// The session.
    pub session: Arc<Session>,
    waiting: Waiting<'a>,
}

impl Started<'_> {
    /// Lets the entry process exec.
    pub fn go(self) -> Result<Arc<Session>, String> {
        let session = self.session;
        self.waiting.go().map_err(|e| format!("letting the entry process go: {e}"))?;
        Ok(session)
    }
}

/// Takes back the first steps of a start that failed.
struct Undo<'a> {
    node: &'a Arc<Node>,
    key: u64,
    cgroup: Cgroup,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            let _ = self.node.kernel.close_session(self.key);
            self.node.kernel.shares.close(self.key);
            let _ = self.cgroup.kill(PATIENCE);
            let _ = self.node.kernel.unbind_cgroup(self.cgroup.id);
            let _ = self.cgroup.remove();
            let _ = leftover::forget(&self.node.config.node.state_dir, self.key);
        }
    }
}

fn random_key() -> std::io::Result<u64> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    // 0 means no session and 1 is the canary's.
    Ok(u64::from_ne_bytes(bytes).max(2))
}

fn spec(node: &Node, wanted: &Wanted, cgroup: &Cgroup, id: SessionId) -> StartSpec {
    let mut env = wanted.env.clone();
    env.push(format!("GUARD_SESSION={id}").into_bytes());
    StartSpec {
        path: None,
        argv: wanted.argv.clone(),
        env,
        cwd: wanted.cwd.clone(),
        cgroup: cgroup.dir.clone(),
        uid: wanted.user.uid,
        gid: wanted.user.gid,
        groups: wanted.user.groups.clone(),
        umask: wanted.umask,
        limits: wanted.limits.clone(),
        tty: wanted.tty,
        namespace: true,
        no_new_privs: node.config.session.no_new_privs,
    }
}

/// Marks every mount of the entry process's namespace. What is not marked is never held and therefore never granted.
fn mark_mounts(pid: u32) -> Result<(Group, View), String> {
    let group = Group::new().map_err(|e| {
        format!("making a fanotify group: {e} (fs.fanotify.max_user_groups; `guard-agent check` says what is needed)")
    })?;
    let view = View::of_task(pid).map_err(|e| format!("reading the session's mounts: {e}"))?;
    if view.mark(&group).map_err(|e| format!("reading the session's mounts: {e}"))? == 0 {
        return Err("no mount of the session could be marked (does the kernel have fanotify permission events?)".into());
    }
    Ok((group, view))
}

/// Threads first: once its start is in the journal, a session ends with a record of its own.
fn begin(node: &Arc<Node>, session: &Arc<Session>, view: View, wanted: &Wanted, ttl_ns: u64) -> Result<(), String> {
    hold::start(node, session).map_err(|e| format!("starting the session's threads: {e}"))?;
    mounts::start(node, session, view).map_err(|e| format!("starting the session's threads: {e}"))?;
    record_start(node, session, wanted, ttl_ns)
}

fn record_start(node: &Node, session: &Session, wanted: &Wanted, ttl_ns: u64) -> Result<(), String> {
    leftover::remember(&node.config.node.state_dir, session)
        .map_err(|e| format!("keeping the session's state: {e}"))?;
    let body = SessionStart {
        identity: Some(session.identity.clone()),
        session_key: session.key,
        ttl_ns,
        expires_boot_ns: session.expires_boot_ns,
        expires_unix_ns: session.expires_unix_ns,
        purpose: wanted.purpose.clone(),
        profile: session.profile.clone(),
        argv: crate::record::bounded_argv(&wanted.argv).0,
        cwd: wanted.cwd.clone(),
        cgroup_id: session.cgroup.id,
        tty: wanted.tty,
        policy_digest: node.policy().digest.clone(),
        uid: wanted.user.uid,
        gid: wanted.user.gid,
        kernel_mode: if node.observes() { "observing" } else { "enforcing" }.into(),
    };
    let ticket = node.append(session.id, Body::SessionStart(body)).map_err(|e| e.to_string())?;
    ticket.wait().map(|_| ()).map_err(|e| e.to_string())
}

/// Whether something that the kernel does not know any more is over: everything was read that came before that was seen.
fn over(gone_since: &mut u64, read_until: u64, gone: bool) -> bool {
    const MOMENT_NS: u64 = 100_000_000;
    match (gone, *gone_since) {
        (false, _) => *gone_since = 0,
        (true, 0) => *gone_since = time::boot_ns(),
        (true, since) => return read_until > since.saturating_add(MOMENT_NS),
    }
    false
}

impl Session {
    /// Notes an exec's stage. False if it was known already.
    pub fn begin_attempt(&self, exec: u64, tid: u32) -> Result<(), Stage> {
        let mut attempts = lock(&self.attempts);
        match attempts.get(&exec) {
            Some(known) => Err(known.stage),
            None => {
                attempts.insert(exec, Attempted { stage: Stage::Deciding, frozen: Vec::new(), tid, gone_since: 0 });
                Ok(())
            }
        }
    }

    /// Changes an exec's stage, and adds frozen files to it.
    pub fn set_stage(&self, exec: u64, stage: Stage) {
        if let Some(attempt) = lock(&self.attempts).get_mut(&exec) {
            attempt.stage = stage;
        }
    }

    /// Keeps the list of files frozen for an exec; gives it back if the exec has ended.
    #[must_use]
    pub fn set_frozen(&self, exec: u64, frozen: Vec<FileKey>) -> Vec<FileKey> {
        match lock(&self.attempts).get_mut(&exec) {
            Some(attempt) => {
                attempt.frozen = frozen;
                Vec::new()
            }
            None => frozen,
        }
    }

    /// Forgets an exec whose outcome is known.
    pub fn end_attempt(&self, exec: u64) -> Option<Attempted> {
        lock(&self.attempts).remove(&exec)
    }

    /// Whether it has as many execs under way, or as many files frozen, as one session may.
    pub fn is_at_its_limit(&self, node: &Node) -> bool {
        let most = node.config.session.max_held;
        let (mut deciding, mut granted, mut frozen) = (0, 0, 0);
        for attempt in lock(&self.attempts).values() {
            deciding += usize::from(attempt.stage == Stage::Deciding);
            granted += usize::from(attempt.stage == Stage::Granted);
            frozen += attempt.frozen.len();
        }
        frozen += lock(&self.images).values().map(|image| image.frozen.len()).sum::<usize>();
        deciding > most || granted > most || frozen + guard_common::GRANT_FILES > frozen_max(node)
    }

    /// Forgets attempts that the kernel does not know any more and that no event to be read can speak of.
    pub fn forget_attempts(&self, read_until: u64, gone: impl Fn(u64, u32) -> bool) -> Vec<Attempted> {
        let mut attempts = lock(&self.attempts);
        let over = attempts.extract_if(|exec, a| over(&mut a.gone_since, read_until, gone(*exec, a.tid)));
        over.map(|(_, attempt)| attempt).collect()
    }

    /// As [`Self::forget_attempts`], for images.
    pub fn forget_images(&self, read_until: u64, gone: impl Fn(u64, u32) -> bool) -> Vec<(u64, Image)> {
        let mut images = lock(&self.images);
        images.extract_if(|exec, i| over(&mut i.gone_since, read_until, gone(*exec, i.tgid))).collect()
    }

    /// An image runs.
    pub fn image_started(&self, exec: u64, image: Image) -> Option<(u64, Image)> {
        let mut images = lock(&self.images);
        let tgid = image.tgid;
        let before = images.iter().find(|(_, i)| i.tgid == tgid).map(|(exec, _)| *exec);
        let replaced = before.and_then(|exec| images.remove_entry(&exec));
        images.insert(exec, image);
        drop(images);
        let mut roots = lock(&self.roots);
        if let Some(root) = roots.get_mut(&exec) {
            root.tgid = tgid;
        }
        replaced
    }

    /// Path of the program that an exec started, for people; empty when it is not known.
    pub fn program_of(&self, exec: u64) -> String {
        lock(&self.images).get(&exec).map(|i| String::from_utf8_lossy(&i.program).into_owned()).unwrap_or_default()
    }

    /// A process ended: its image, if it ran one of its own. Approvals that hung on it as their root end.
    pub fn process_ended(&self, exec: u64, tgid: u32) -> Option<Image> {
        lock(&self.roots).retain(|_, root| root.tgid != tgid);
        let mut images = lock(&self.images);
        match images.get(&exec) {
            Some(image) if image.tgid == tgid => images.remove(&exec),
            _ => None,
        }
    }

    /// Images that are still noted as running.
    pub fn take_images(&self) -> Vec<(u64, Image)> {
        lock(&self.images).drain().collect()
    }

    /// Files that are still frozen for execs of this session.
    pub fn take_frozen(&self) -> Vec<FileKey> {
        lock(&self.attempts).drain().flat_map(|(_, attempt)| attempt.frozen).collect()
    }

    /// Allows descendants of a root what the approval names.
    pub fn approve_root(&self, root: u64, approval: RootApproval) {
        lock(&self.roots).insert(root, approval);
    }

    /// Uses one exec of a root's approval, if it covers this category and `fresh_file` says no.
    pub fn inherit(&self, root: u64, category: &str, newest_writable_unix_ns: i64) -> Option<RootApproval> {
        let mut roots = lock(&self.roots);
        let approval = roots.get_mut(&root)?;
        let covered = approval.left > 0
            && time::boot_ns() < approval.until_boot_ns
            && approval.categories.iter().any(|c| c == category)
            && newest_writable_unix_ns < approval.shown_unix_ns;
        if !covered {
            return None;
        }
        approval.left -= 1;
        Some(approval.clone())
    }

    /// Says something to the person who started the session. Best effort: a terminal that is gone loses nothing.
    pub fn say(&self, kind: &str, text: String, request_id: &str) {
        let message = SessionMessage { kind: kind.into(), text, request_id: request_id.into() };
        self.reply(local_reply::Reply::Message(message));
    }

    /// Sends a reply on the connection that started the session. Never waits: holds and the journal call this.
    pub fn reply(&self, reply: local_reply::Reply) {
        if let Some(voice) = lock(&self.voice).as_ref() {
            voice.say(reply);
        }
    }

    /// The last reply. Waits, for as long as a slow reader may take, until all were sent.
    pub fn last_reply(&self, reply: local_reply::Reply) {
        self.reply(reply);
        let voice = lock(&self.voice).take();
        if let Some(voice) = voice {
            voice.finish();
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
        if let Err(error) = node.kernel.close_session(self.key) {
            tracing::error!(session = %self.id, %error, "closing a session in the kernel");
        }
        if let Err(error) = self.cgroup.kill(Duration::ZERO) {
            tracing::error!(session = %self.id, %error, "killing a session's processes");
        }
    }

    /// Sends a signal to the entry process's group, as long as the kernel knows the entry process as this session's: its
    /// number may be another's afterwards.
    pub fn signal(&self, node: &Node, signal: i32) {
        if node.kernel.mark_of(self.entry_pid).is_none_or(|mark| mark.session != self.key) {
            return;
        }
        let _ = crate::kernel::spawn::signal(-self.entry_pid.cast_signed(), signal);
    }

    /// Waits for the entry process, then ends the session and records it.
    pub fn wait(&self, node: &Arc<Node>) -> Ended {
        let exit = loop {
            match node.launcher.wait(self.entry_pid, Duration::from_secs(3600)) {
                Ok(exit) => break exit,
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {}
                Err(error) => {
                    self.request_end(node, "failed", error.to_string());
                    break Exit { status: libc::SIGKILL, ..Exit::default() };
                }
            }
        };
        let detail = match exit.exec_errno {
            Some(errno) => format!("{}: {}", exit.step, std::io::Error::from_raw_os_error(errno)),
            None => String::new(),
        };
        self.request_end(node, "exited", detail.clone());
        self.finish(node, &exit)
    }

    fn finish(&self, node: &Arc<Node>, exit: &Exit) -> Ended {
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
            identity: Some(self.identity.clone()),
            reason: reason.into(),
            has_status: true,
            status: exit.status.cast_unsigned(),
            execs,
            duration_ns: time::boot_ns().saturating_sub(self.started_boot_ns),
            detail: if empty { detail } else { format!("{detail} processes are left in its cgroup") },
        };
        let durable = node.note(self.id, Body::SessionEnd(body)).is_some_and(|ticket| ticket.wait().is_ok());
        if empty {
            let _ = node.kernel.unbind_cgroup(self.cgroup.id);
            let _ = self.cgroup.remove();
        }
        if durable && empty {
            let _ = leftover::forget(&node.config.node.state_dir, self.key);
        }
        node.remove_session(self.key);
        let denied = self.denied.load(Ordering::SeqCst);
        Ended { status: exit.status.cast_unsigned(), reason: reason.into(), execs, denied }
    }
}
