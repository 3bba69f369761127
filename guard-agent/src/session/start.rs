//! The start of a session, step by step: kernel entry, cgroup, waiting entry process, marks, kept state, record.
//!
//! It must not decide whether a session may start (see `wanted`). Fails: each step says which one it was, and what came before
//! it is undone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use guard_common::{Mark, SETTING_UP, Session as KernelSession, session_flags};
use guard_log::record::SessionId;
use guard_policy::secrets;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, LongLivedFound, RoleSnapshot, SessionStart};

use super::{EntryEnd, Line, PATIENCE, Session};
use crate::capabilities::Capabilities;
use crate::credentials::{self, Handed};
use crate::deletes::Deletes;
use crate::files::Rights;
use crate::fixed::Fixed;
use crate::inside::{Door, Inside};
use crate::kept::{self, Notes, Owner, ProcessId};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::fanotify::Group;
use crate::kernel::mounts::View;
use crate::kernel::{proc, time};
use crate::launcher::{StartSpec, Waiting};
use crate::life::{Life, Until};
use crate::longlived::Found;
use crate::mounts::Requests;
use crate::node::Node;
use crate::processes::Processes;
use crate::profile::Namespaces;
use crate::readings::Readings;
use crate::voice::Voice;
use crate::{hold, inside, mounts, record};

/// What a session is started with; checked by the control socket before.
pub struct Wanted {
    /// The id in every record.
    pub id: SessionId,
    /// Who, for whom.
    pub identity: Identity,
    /// What roles give it.
    pub roles: Option<RoleSnapshot>,
    /// The stage of its agent is `observe`.
    pub observed: bool,
    /// Keys without an end that it would have.
    pub found: Found,
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
    /// Reference of the work order, untrusted.
    pub ticket: String,
    /// Reference of the job, untrusted.
    pub job: String,
    /// The descriptors are a terminal.
    pub tty: bool,
    /// File mode creation mask.
    pub umask: u32,
    /// Limits of the process that asked.
    pub limits: Vec<(u64, u64)>,
    /// Names of credentials that it may have and is to get.
    pub credentials: Vec<String>,
    /// The guardctl that asks.
    pub owner: Owner,
    /// Its end in boot time at the latest.
    pub not_after_boot_ns: u64,
}

/// Starts a session. The entry process waits for [`Started::go`].
pub fn start<'a>(
    node: &'a Arc<Node>,
    wanted: &Wanted,
    stdio: &[OwnedFd; 3],
    connection: UnixStream,
    handed: Option<&Handed>,
) -> Result<Started<'a>, String> {
    let key = random_key().map_err(|e| format!("drawing a session key: {e}"))?;
    let id = wanted.id;
    let dir = node.config.kernel.cgroup.join(format!("s-{id}"));
    let cgroup = Cgroup::create(dir).map_err(|e| format!("making the session's cgroup: {e}"))?;
    let mut undo = Undo { node, id, key, cgroup: cgroup.clone(), armed: true };
    let now = time::boot_ns();
    let ttl_ns = u64::try_from(wanted.ttl.as_nanos()).unwrap_or(u64::MAX);
    let expires_boot_ns = now.saturating_add(ttl_ns).min(wanted.not_after_boot_ns);
    let ttl_ns = expires_boot_ns.saturating_sub(now);
    let (profile_name, profile) = node.config.profile(&wanted.identity.agent);
    match undo.cgroup.limit_tasks(profile.max_processes) {
        Err(error) if !node.observes() => return Err(format!("limiting the session's processes: {error}")),
        _ => {}
    }
    let door = Door::bind(id).map_err(|e| format!("making the socket inside the session: {e}"))?;
    let place = door.mount().map_err(|e| format!("a mount for the socket inside the session: {e}"))?;
    let observe = if node.observes() { session_flags::OBSERVE } else { 0 };
    let uid = wanted.user.uid;
    let entry = KernelSession {
        expires_boot_ns,
        cgroup: cgroup.id,
        caps_denied: profile.caps_denied(),
        flags: observe | profile.flags(),
        uid,
        profile: crate::network::profile_number(&profile_name),
        socket: door.key,
        ..KernelSession::default()
    };
    node.protected.session_starts(&node.kernel, &wanted.user.home).map_err(|e| e.to_string())?;
    node.kernel.set_delete_budget(key, &profile.delete_budget.kernel()).map_err(|e| e.to_string())?;
    node.kernel.shares.open(key).map_err(|e| e.to_string())?;
    node.kernel.open_session(key, &entry).map_err(|e| e.to_string())?;
    node.kernel.bind_cgroup(cgroup.id, key).map_err(|e| e.to_string())?;
    door.open().map_err(|e| format!("opening the socket inside the session: {e}"))?;
    let spec = spec(node, wanted, &cgroup, handed);
    let mounts: Vec<BorrowedFd<'_>> = std::iter::once(place.as_fd()).chain(handed.map(|h| h.mount.as_fd())).collect();
    let [stdin, stdout, stderr] = stdio;
    let waiting = node
        .launcher
        .start(&spec, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], &mounts)
        .map_err(|e| format!("starting the entry process: {e}"))?;
    let pid = waiting.pid();
    node.kernel.mark(pid, &Mark { session: key, image: SETTING_UP, ..Mark::default() }).map_err(|e| e.to_string())?;
    let (group, view) = mark_mounts(pid)?;
    let identity = wanted.identity.clone();
    let session = Arc::new(Session {
        key,
        id,
        chain: record::chain(&identity),
        identity,
        roles: wanted.roles.clone(),
        began_observed: wanted.observed,
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
        life: Life::new(
            Until {
                boot_ns: expires_boot_ns,
                unix_ns: time::wall_unix_ns().saturating_add(i64::try_from(ttl_ns).unwrap_or(i64::MAX)),
            },
            now,
        ),
        mount_namespace: proc::mount_namespace(pid)
            .map_err(|e| format!("naming the session's mount namespace: {e}"))?,
        started_boot_ns: now,
        group,
        processes: Processes::default(),
        fixed: Fixed::default(),
        mounts: Requests::new().map_err(|e| format!("making an event descriptor: {e}"))?,
        adopts: profile.namespaces == Namespaces::Adopt,
        makes_mounts: makes_mounts(profile.namespaces == Namespaces::Adopt, profile.capabilities),
        inside: Inside::default(),
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
    if let Err(why) = begin(node, &session, (view, door), wanted, ttl_ns, handed) {
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

/// Keys without an end, by name.
fn record_found(node: &Node, session: &Session, wanted: &Wanted) -> Result<(), String> {
    if wanted.found.is_empty() {
        return Ok(());
    }
    let body = LongLivedFound {
        identity: Some(session.chain.clone()),
        action: node.config.session.long_lived.word().into(),
        variables: wanted.found.variables.clone(),
        files: wanted.found.files.clone(),
    };
    let ticket = node.append(session.id, Body::LongLivedFound(body)).map_err(|e| e.to_string())?;
    ticket.wait().map(|_| ()).map_err(|e| e.to_string())
}

/// What was made for the session, before it can use any of it.
fn record_credentials(node: &Node, session: &Session, handed: Option<&Handed>) -> Result<(), String> {
    let Some(handed) = handed else { return Ok(()) };
    for act in &handed.acts {
        let ticket = node.append(session.id, Body::CredentialIssued(act.clone())).map_err(|e| e.to_string())?;
        ticket.wait().map_err(|e| e.to_string())?;
    }
    node.credentials.started(session.id).map_err(|e| format!("keeping the names of leases: {e}"))
}

/// Takes back the first steps of a start that failed.
struct Undo<'a> {
    node: &'a Arc<Node>,
    id: SessionId,
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
            inside::door::remove(self.id);
        }
    }
}

/// Whether a session can mount any file anywhere.
pub(super) fn makes_mounts(adopts: bool, capabilities: Capabilities) -> bool {
    adopts || capabilities.has("sys_admin")
}

fn random_key() -> std::io::Result<u64> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
    // 0 means no session and 1 is the canary's.
    Ok(u64::from_ne_bytes(bytes).max(2))
}

fn spec(node: &Node, wanted: &Wanted, cgroup: &Cgroup, handed: Option<&Handed>) -> StartSpec {
    let mut env = wanted.env.clone();
    env.push(format!("GUARD_SESSION={}", wanted.id).into_bytes());
    env.push(format!("GUARD_SESSION_SOCKET={}", guard_proto::SESSION_SOCKET).into_bytes());
    if handed.is_some() {
        env.push(format!("GUARD_CREDENTIALS={}", credentials::FOLDER).into_bytes());
    }
    StartSpec {
        path: None,
        argv: wanted.argv.clone(),
        env,
        cwd: wanted.cwd.clone(),
        cgroup: cgroup.dir.clone(),
        uid: wanted.user.uid,
        gid: wanted.user.gid,
        groups: wanted.user.groups.iter().copied().chain(handed.map(|h| h.gid)).collect(),
        umask: wanted.umask,
        limits: wanted.limits.clone(),
        tty: wanted.tty,
        namespace: true,
        mounts: std::iter::once(inside::door::place()).chain(handed.map(|_| credentials::FOLDER.into())).collect(),
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
fn begin(
    node: &Arc<Node>,
    session: &Arc<Session>,
    (view, door): (View, Door),
    wanted: &Wanted,
    ttl_ns: u64,
    handed: Option<&Handed>,
) -> Result<(), String> {
    hold::start(node, session).map_err(|e| format!("starting the session's threads: {e}"))?;
    mounts::start(node, session, view).map_err(|e| format!("starting the session's threads: {e}"))?;
    inside::serve(node, session, door).map_err(|e| format!("starting the session's threads: {e}"))?;
    record_start(node, session, wanted, ttl_ns)?;
    record_found(node, session, wanted)?;
    record_credentials(node, session, handed)
}

fn record_start(node: &Node, session: &Session, wanted: &Wanted, ttl_ns: u64) -> Result<(), String> {
    let until = session.life.until();
    kept::remember(&node.config.node.state_dir, &node.boot_id, session, None)
        .map_err(|e| format!("keeping the session's state: {e}"))?;
    let in_force = node.policies.of(&session.identity.agent).counts;
    let body = SessionStart {
        identity: Some(session.identity.clone()),
        session_key: session.key,
        ttl_ns,
        expires_boot_ns: until.boot_ns,
        expires_unix_ns: until.unix_ns,
        purpose: secrets::mask_text(&wanted.purpose),
        profile: session.profile.clone(),
        argv: crate::record::bounded_argv(&secrets::mask("", &wanted.argv).argv).0,
        cwd: wanted.cwd.clone(),
        cgroup_id: session.cgroup.id,
        tty: wanted.tty,
        policy_digest: in_force.digest.clone(),
        observed_by: if session.began_observed { in_force.serial() } else { 0 },
        uid: wanted.user.uid,
        gid: wanted.user.gid,
        kernel_mode: if node.observes() { "observing" } else { "enforcing" }.into(),
        roles: session.roles.clone(),
        ticket: secrets::mask_text(&wanted.ticket),
        job: secrets::mask_text(&wanted.job),
        credentials: wanted.credentials.clone(),
    };
    let ticket = node.append(session.id, Body::SessionStart(body)).map_err(|e| e.to_string())?;
    ticket.wait().map(|_| ()).map_err(|e| e.to_string())
}
