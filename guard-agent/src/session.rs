//! A governed session: its cgroup, its private mount namespace with its marks, its entry process, its end.
//!
//! It must not judge execs. Fails: a start that fails at any step undoes the steps before it and says which one; an end
//! always closes the kernel's entry first, so that nothing more can start.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_common::{Mark, SETTING_UP, Session as KernelSession, session_flags};
use guard_log::record::SessionId;
use guard_policy::secrets;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, RoleSnapshot, SessionEnd, SessionExited, SessionMessage, SessionStart, local_reply};

use crate::capabilities::Capabilities;
use crate::deletes::Deletes;
use crate::files::{Kept, Rights};
use crate::fixed::Fixed;
use crate::kept::{self, Notes, Owner, ProcessId};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::fanotify::Group;
use crate::kernel::mounts::View;
use crate::kernel::{proc, time};
use crate::launcher::{Exit, StartSpec, Waiting};
use crate::mounts::Requests;
use crate::node::Node;
use crate::processes::Processes;
use crate::profile::Namespaces;
use crate::readings::Readings;
use crate::voice::Voice;
use crate::{hold, mounts, outcome, record};

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
    pub frozen: Vec<Kept>,
    /// Its thread.
    pub tid: u32,
    /// Since when (boot time) the kernel does not know it any more; 0 while it does.
    gone_since: u64,
}

/// Files of one session that may be frozen at the same time: its part of the kernel's map.
fn frozen_max(node: &Node) -> usize {
    (guard_common::FROZEN_MAX as usize / node.config.session.max_sessions.max(1)).max(guard_common::GRANT_FILES)
}

/// Files and names that are kept for one image.
const KEPT_MAX: usize = 512;

/// Names that one script may add.
const NAMES_ROOM: usize = 64;

/// Names of one session that may be kept from being turned at the same time: its part of the kernel's map.
fn names_max(node: &Node) -> usize {
    (guard_common::path::NAMES_MAX / node.config.session.max_sessions.max(1)).max(2 * NAMES_ROOM)
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
    pub frozen: Vec<Kept>,
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
    /// The same as most records carry it, see [`record::chain`].
    pub chain: Identity,
    /// What roles gave it at its start; none were in force then.
    pub roles: Option<RoleSnapshot>,
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
    /// The same, with its start.
    pub entry: ProcessId,
    /// Its descriptors are a terminal.
    pub tty: bool,
    /// The guardctl that it answers to.
    pub owner: Owner,
    /// What the next daemon should know beside the session's state.
    pub notes: Notes,
    /// How the entry process's end is learned.
    pub entry_end: EntryEnd,
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
    /// Files that it cannot change, as far as that was just found out.
    pub fixed: Fixed,
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
    /// Tasks whose memory is being read.
    pub reading: Readings,
    /// What its commands have deleted.
    pub deletes: Deletes,
    attempts: Mutex<HashMap<u64, Attempted>>,
    images: Mutex<HashMap<u64, Image>>,
    roots: Mutex<HashMap<u64, RootApproval>>,
    voice: Mutex<Line>,
    end: Mutex<Option<(&'static str, String)>>,
}

/// The connection to the guardctl that a session answers to.
pub enum Line {
    /// It is there.
    Open(Voice),
    /// The daemon that it was connected to is gone; it may come again, and then hears this.
    Lost(Vec<local_reply::Reply>),
    /// The last word was said, or is kept.
    Closed,
}

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
    fn tell(&self, status: u32) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session is started with; checked by the control socket before.
pub struct Wanted {
    /// Who, for whom. `session_id` and `instance` are filled in here.
    pub identity: Identity,
    /// What roles give it.
    pub roles: Option<RoleSnapshot>,
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
    /// The guardctl that asks.
    pub owner: Owner,
}

/// How a session ended.
pub struct Ended {
    /// Why.
    pub reason: String,
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
    node.protected.session_starts(&node.kernel, &wanted.user.home).map_err(|e| e.to_string())?;
    node.kernel.set_delete_budget(key, &profile.delete_budget.kernel()).map_err(|e| e.to_string())?;
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
        chain: record::chain(&identity),
        identity,
        roles: wanted.roles.clone(),
        rights: Rights { uid: wanted.user.uid, groups: wanted.user.groups.clone() },
        home: wanted.user.home.clone(),
        profile: profile_name,
        workspace: wanted.cwd.clone(),
        cgroup,
        entry_pid: pid,
        entry: ProcessId::of(pid).map_err(|e| format!("naming the entry process: {e}"))?,
        tty: wanted.tty,
        owner: wanted.owner,
        notes: Notes::create(&node.config.node.state_dir, key)
            .map_err(|e| format!("keeping the session's notes: {e}"))?,
        entry_end: EntryEnd::default(),
        expires_boot_ns,
        expires_unix_ns: time::wall_unix_ns().saturating_add(i64::try_from(ttl_ns).unwrap_or(i64::MAX)),
        started_boot_ns: now,
        group,
        processes: Processes::default(),
        fixed: Fixed::default(),
        mounts: Requests::new().map_err(|e| format!("making an event descriptor: {e}"))?,
        adopts: profile.namespaces == Namespaces::Adopt,
        makes_mounts: makes_mounts(profile.namespaces == Namespaces::Adopt, profile.capabilities),
        stop: hold::stop_signal().map_err(|e| format!("making an event descriptor: {e}"))?,
        execs: AtomicU32::new(0),
        denied: AtomicU32::new(0),
        reading: Readings::default(),
        deletes: Deletes::default(),
        attempts: Mutex::default(),
        images: Mutex::default(),
        roots: Mutex::default(),
        voice: Mutex::new(Line::Open(Voice::new(connection).map_err(|e| format!("starting a thread: {e}"))?)),
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
            self.node.kernel.clear_delete_budget(self.key);
            let _ = self.cgroup.kill(PATIENCE);
            let _ = self.node.kernel.unbind_cgroup(self.cgroup.id);
            let _ = self.cgroup.remove();
            let _ = kept::forget(&self.node.config.node.state_dir, self.key);
        }
    }
}

/// Whether a session can mount any file anywhere.
fn makes_mounts(adopts: bool, capabilities: Capabilities) -> bool {
    adopts || capabilities.has("sys_admin")
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
pub fn mark_mounts(pid: u32) -> Result<(Group, View), String> {
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
    kept::remember(&node.config.node.state_dir, &node.boot_id, session)
        .map_err(|e| format!("keeping the session's state: {e}"))?;
    let body = SessionStart {
        identity: Some(session.identity.clone()),
        session_key: session.key,
        ttl_ns,
        expires_boot_ns: session.expires_boot_ns,
        expires_unix_ns: session.expires_unix_ns,
        purpose: secrets::mask_text(&wanted.purpose),
        profile: session.profile.clone(),
        argv: crate::record::bounded_argv(&secrets::mask("", &wanted.argv).argv).0,
        cwd: wanted.cwd.clone(),
        cgroup_id: session.cgroup.id,
        tty: wanted.tty,
        policy_digest: node.policies.of(&session.identity.agent).0.digest.clone(),
        uid: wanted.user.uid,
        gid: wanted.user.gid,
        kernel_mode: if node.observes() { "observing" } else { "enforcing" }.into(),
        roles: session.roles.clone(),
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

/// What an adopted session is made of.
pub struct Parts {
    /// Who, for whom.
    pub former: kept::Former,
    /// Its state.
    pub state: kept::State,
    /// What the kernel knows of it.
    pub known: KernelSession,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Marks, as far as there are any.
    pub group: Group,
    /// Its entry process's end.
    pub entry_end: EntryEnd,
    /// What is noted.
    pub notes: Notes,
}

impl Session {
    /// A session of an earlier daemon. Approvals of roots are lost, held execs have ended.
    pub fn of_earlier_daemon(parts: Parts) -> std::io::Result<Self> {
        let (state, (execs, denied)) = (parts.state, parts.notes.counts());
        let roles = state.roles().map_err(std::io::Error::other)?;
        if roles.is_none() && !parts.former.identity.roles_digest.is_empty() {
            return Err(std::io::Error::other("what its roles gave it was not kept"));
        }
        Ok(Self {
            roles,
            key: parts.former.key,
            id: parts.former.id,
            chain: record::chain(&parts.former.identity),
            identity: parts.former.identity,
            rights: Rights { uid: state.uid, groups: state.groups },
            home: state.home,
            profile: state.profile,
            workspace: state.workspace,
            cgroup: parts.cgroup,
            entry_pid: state.entry.pid,
            entry: state.entry,
            tty: state.tty,
            owner: state.owner,
            notes: parts.notes,
            entry_end: parts.entry_end,
            expires_boot_ns: state.expires_boot_ns,
            expires_unix_ns: state.expires_unix_ns,
            started_boot_ns: state.started_boot_ns,
            group: parts.group,
            processes: Processes::default(),
            fixed: Fixed::default(),
            mounts: Requests::new()?,
            adopts: parts.known.flags & session_flags::ADOPT_NAMESPACES != 0,
            makes_mounts: makes_mounts(
                parts.known.flags & session_flags::ADOPT_NAMESPACES != 0,
                Capabilities(!parts.known.caps_denied),
            ),
            stop: hold::stop_signal()?,
            execs: AtomicU32::new(execs),
            denied: AtomicU32::new(denied),
            reading: Readings::default(),
            deletes: Deletes::default(),
            attempts: Mutex::default(),
            images: Mutex::default(),
            roots: Mutex::default(),
            voice: Mutex::new(Line::Lost(Vec::new())),
            end: Mutex::new(None),
        })
    }

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
    pub fn set_frozen(&self, exec: u64, frozen: Vec<Kept>) -> Vec<Kept> {
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
        let (mut deciding, mut granted) = (0, 0);
        let mut kept = HashSet::new();
        for attempt in lock(&self.attempts).values() {
            deciding += usize::from(attempt.stage == Stage::Deciding);
            granted += usize::from(attempt.stage == Stage::Granted);
            kept.extend(attempt.frozen.iter().copied());
        }
        kept.extend(lock(&self.images).values().flat_map(|image| image.frozen.iter().copied()));
        let names = kept.iter().filter(|k| matches!(k, Kept::Name(_))).count();
        let files = kept.len() - names;
        let full = files + guard_common::GRANT_FILES > frozen_max(node) || names + NAMES_ROOM > names_max(node);
        deciding > most || granted > most || full
    }

    /// Forgets attempts that the kernel does not know any more and that no event to be read can speak of.
    pub fn forget_attempts(&self, read_until: u64, gone: impl Fn(u64, u32) -> bool) -> Vec<Attempted> {
        let mut attempts = lock(&self.attempts);
        let over = attempts.extract_if(|exec, a| over(&mut a.gone_since, read_until, gone(*exec, a.tid)));
        over.inspect(|(exec, _)| self.notes.ended(*exec)).map(|(_, attempt)| attempt).collect()
    }

    /// As [`Self::forget_attempts`], for images.
    pub fn forget_images(&self, read_until: u64, gone: impl Fn(u64, u32) -> bool) -> Vec<(u64, Image)> {
        let mut images = lock(&self.images);
        let over = images.extract_if(|exec, i| over(&mut i.gone_since, read_until, gone(*exec, i.tgid)));
        over.inspect(|(exec, _)| self.notes.ended(*exec)).collect()
    }

    /// An image runs.
    pub fn image_started(&self, exec: u64, image: Image) -> Option<(u64, Image)> {
        let mut images = lock(&self.images);
        let tgid = image.tgid;
        let before = images.iter().find(|(known, i)| i.tgid == tgid && **known != exec).map(|(exec, _)| *exec);
        let replaced = before.and_then(|exec| images.remove_entry(&exec));
        if let Some((exec, _)) = &replaced {
            self.notes.ended(*exec);
        }
        images.insert(exec, image);
        drop(images);
        let mut roots = lock(&self.roots);
        if let Some(root) = roots.get_mut(&exec) {
            root.tgid = tgid;
        }
        replaced
    }

    /// What the image before had kept stays kept for its successor in the same process. Gives back what is too much.
    #[must_use]
    pub fn keep_on(&self, exec: u64, mut kept: Vec<Kept>) -> Vec<Kept> {
        let mut images = lock(&self.images);
        let Some(image) = images.get_mut(&exec) else { return kept };
        let room = KEPT_MAX.saturating_sub(image.frozen.len());
        let surplus = kept.split_off(room.min(kept.len()));
        image.frozen.extend(kept);
        surplus
    }

    /// What must stay as it is while the image runs that an attempt is about to become: its own files and names, and those
    /// of the image that it replaces (`#!/usr/bin/env python3`).
    pub fn kept_for(&self, exec: u64, tgid: u32) -> Vec<Kept> {
        let mut kept = lock(&self.attempts).get(&exec).map(|a| a.frozen.clone()).unwrap_or_default();
        // One file is the program itself, which the kernel keeps from being written as long as it runs.
        let before = lock(&self.images);
        let before = before.values().filter(|i| i.tgid == tgid).flat_map(|i| i.frozen.iter().copied());
        if kept.len() < 2 {
            kept.clear();
        }
        kept.extend(before);
        kept.truncate(KEPT_MAX);
        kept
    }

    /// Adds an image that an earlier daemon saw start, unless it is known.
    pub fn image_found(&self, exec: u64, image: Image) {
        lock(&self.images).entry(exec).or_insert(image);
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
            Some(image) if image.tgid == tgid => {
                self.notes.ended(exec);
                images.remove(&exec)
            }
            _ => None,
        }
    }

    /// Images that are still noted as running.
    pub fn take_images(&self) -> Vec<(u64, Image)> {
        lock(&self.images).drain().collect()
    }

    /// Files that are still frozen for execs of this session.
    pub fn take_frozen(&self) -> Vec<Kept> {
        lock(&self.attempts).drain().flat_map(|(_, attempt)| attempt.frozen).collect()
    }

    /// Allows descendants of a root what the approval names.
    pub fn approve_root(&self, root: u64, approval: RootApproval) {
        lock(&self.roots).insert(root, approval);
    }

    /// Ends what a request's approval still allows descendants: how many execs that would have been.
    pub fn revoke_roots(&self, request_id: &str) -> Option<u32> {
        let ended = |roots: &mut HashMap<u64, RootApproval>| {
            roots.extract_if(|_, approval| approval.request_id == request_id).map(|(_, approval)| approval.left).sum()
        };
        let mut roots = lock(&self.roots);
        roots.values().any(|approval| approval.request_id == request_id).then(|| ended(&mut roots))
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

    /// Sends a reply to the guardctl that the session answers to. Never waits: holds and the journal call this.
    pub fn reply(&self, reply: local_reply::Reply) {
        const KEPT_MAX: usize = 32;
        match &mut *lock(&self.voice) {
            Line::Open(voice) => voice.say(reply),
            Line::Lost(kept) if kept.len() < KEPT_MAX => kept.push(reply),
            Line::Lost(_) | Line::Closed => {}
        }
    }

    /// The last reply. Waits, for as long as a slow reader may take, until all were sent; kept for one that is to come again.
    fn last_reply(&self, node: &Node, exited: SessionExited) {
        let line = {
            let mut line = lock(&self.voice);
            if let Line::Open(voice) = &*line {
                voice.say(local_reply::Reply::Exited(exited));
            } else {
                node.keep_exited(self.owner, &self.identity.session_id, exited);
            }
            std::mem::replace(&mut *line, Line::Closed)
        };
        if let Line::Open(voice) = line {
            voice.finish();
        }
    }

    /// Takes the connection of the guardctl that it answers to, after an earlier daemon's was lost, and says the first word
    /// on it. False if it is not lost.
    pub fn attach(&self, voice: Voice, first: local_reply::Reply) -> bool {
        let mut line = lock(&self.voice);
        let Line::Lost(kept) = &mut *line else { return false };
        std::iter::once(first).chain(std::mem::take(kept)).for_each(|reply| voice.say(reply));
        *line = Line::Open(voice);
        true
    }

    /// Whether its guardctl is still to come again.
    pub fn is_detached(&self) -> bool {
        matches!(*lock(&self.voice), Line::Lost(_))
    }

    /// Keeps what the next daemon should know.
    pub fn note_counts(&self) {
        let counts = (self.execs.load(Ordering::Relaxed), self.denied.load(Ordering::Relaxed));
        if let Err(error) = self.notes.count(counts) {
            tracing::error!(session = %self.id, %error, "keeping a session's counts");
        }
    }

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
