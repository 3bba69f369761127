//! The control socket: people start and end sessions here, ask for the state, lift enforcement.
//!
//! The peer is who the kernel says it is. Governed tasks are refused whatever their user. It must not believe a message:
//! every field is bounded and checked. Fails: the peer gets an error with a hint; one bad connection harms no other.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use guard_log::record::SessionId;
use guard_proto::LOCAL_MESSAGE_MAX;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    Done, EmergencyStop, LocalError, LocalReply, LocalRequest, LocalSession, LocalSessions, LocalStatus,
    local_reply::Reply, local_request::Request,
};
use prost::Message;
use rustix::net::UCred;

use crate::config::ControlConfig;
use crate::credentials::Handed;
use crate::kept::{Owner, ProcessId};
use crate::kernel::proc;
use crate::node::Node;
use crate::policies;
use crate::session::{self, Session, Started, Wanted};
use crate::voice::Voice;
use crate::{frame, inside, renewal, status, wanted};

/// Connections at the same time.
const CONNECTIONS_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(10);
/// Signals that may be passed on to a session.
const SIGNALS: [i32; 9] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGSTOP,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// An answer that says no.
pub fn error(code: &str, message: impl Into<String>, hint: &str) -> LocalError {
    LocalError { code: code.into(), message: message.into(), hint: hint.into() }
}

/// Makes the socket and serves it.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let listener = listen(&node.config.control)?;
    // Connecting needs the right to write to the socket's inode: for governed tasks the kernel refuses that.
    let meta = fs::metadata(&node.config.control.socket)?;
    let device = u64::from(rustix::fs::major(meta.dev())) << 20 | u64::from(rustix::fs::minor(meta.dev()));
    let key = guard_common::FileKey { dev: device, ino: meta.ino() };
    node.kernel.freeze(key, u64::MAX).map_err(io::Error::other)?;
    let node = Arc::clone(node);
    let open = Arc::new(AtomicUsize::new(0));
    thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Out of descriptors: others must give some back first.
                thread::sleep(Duration::from_millis(50));
                continue;
            };
            if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (node, counter) = (Arc::clone(&node), Arc::clone(&open));
            let served = thread::Builder::new().name("peer".into()).spawn(move || {
                serve(&node, stream);
                counter.fetch_sub(1, Ordering::SeqCst);
            });
            if served.is_err() {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })?;
    Ok(())
}

fn listen(config: &ControlConfig) -> io::Result<UnixListener> {
    if let Some(dir) = config.socket.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::remove_file(&config.socket) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Closed to all until owner and mode are right.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(&config.socket);
    rustix::process::umask(before);
    let listener = listener?;
    match proc::group_by_name(&config.group) {
        Some(group) => {
            std::os::unix::fs::chown(&config.socket, Some(0), Some(group))?;
            fs::set_permissions(&config.socket, fs::Permissions::from_mode(0o660))?;
        }
        None => tracing::warn!(group = config.group, "no such group: the control socket is for root only"),
    }
    Ok(listener)
}

fn serve(node: &Arc<Node>, stream: UnixStream) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&stream) else { return };
    let outcome = match frame::receive(&stream, LOCAL_MESSAGE_MAX) {
        Ok(Some((bytes, fds))) => answer(node, &stream, peer, &bytes, fds),
        Ok(None) => return,
        Err(e) => Err(error("usage", e.to_string(), "one length-prefixed LocalRequest is expected")),
    };
    match outcome {
        Ok(Some(reply)) => reply_to(&stream, reply),
        Ok(None) => {}
        Err(refusal) => reply_to(&stream, Reply::Error(refusal)),
    }
}

/// Sends a reply.
pub fn send(stream: &UnixStream, reply: Reply) -> io::Result<()> {
    frame::send(stream, &LocalReply { reply: Some(reply) }.encode_to_vec(), &[])
}

/// Sends the last reply of a connection.
pub fn reply_to(stream: &UnixStream, reply: Reply) {
    if let Err(error) = send(stream, reply) {
        tracing::debug!(%error, "a peer went away before its answer");
    }
}

/// Parses a request.
pub fn decode(bytes: &[u8]) -> Result<Request, LocalError> {
    let request = LocalRequest::decode(bytes).map_err(|e| error("usage", format!("not a LocalRequest: {e}"), ""))?;
    let unknown = || {
        error(
            "usage",
            "a request of a kind that this guard-agent does not know",
            "are guardctl and guard-agent of the same version?",
        )
    };
    request.request.ok_or_else(unknown)
}

fn answer(
    node: &Arc<Node>,
    stream: &UnixStream,
    peer: UCred,
    bytes: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Option<Reply>, LocalError> {
    if governed(node, peer) {
        return Err(error("denied", "governed tasks may not use the control socket", ""));
    }
    match decode(bytes)? {
        Request::StartSession(wish) => run_session(node, stream, peer, wish, fds).map(|()| None),
        Request::EndSession(end) => {
            let session = own_session(node, peer, &end.session_id)?;
            session.request_end(node, "ended", format!("by {}: {}", user_name(peer), bounded(&end.reason)));
            Ok(Some(Reply::Done(Done { text: format!("session {} ends", end.session_id) })))
        }
        Request::RenewSession(wish) => {
            let session = own_session(node, peer, &wish.session_id)?;
            let by = renewal::By { uid: uid(peer), name: user_name(peer) };
            renewal::renew(node, &session, &by, wish.ttl_seconds).map(|renewed| Some(Reply::Renewed(renewed)))
        }
        Request::Status(_) => Ok(Some(Reply::Status(LocalStatus {
            report: Some(status::report(node)),
            collector_connected: node.link.down_since().is_none(),
            collector_error: node.link.error(),
        }))),
        Request::ListSessions(_) => Ok(Some(Reply::Sessions(list(node)))),
        Request::EmergencyStop(stop) => emergency_stop(node, peer, &stop.reason).map(Some),
        Request::ReloadPolicy(_) => {
            root_only(peer, "reload the policy")?;
            let digest = policies::reload(node).map_err(|e| error("usage", e, "the policy in force is unchanged"))?;
            Ok(Some(Reply::Done(Done { text: format!("policy {digest} is in force") })))
        }
        Request::AttachSession(attach) => attach_session(node, stream, peer, &attach.session_id),
        Request::Signal(_) => Err(error("usage", "signals belong to the connection that started a session", "")),
        Request::OwnStatus(_) | Request::Messages(_) | Request::StartChild(_) => {
            let text = "that is for processes of a session, on the socket inside it";
            Err(error("usage", text, "`guardctl session list` and `show` tell about sessions"))
        }
    }
}

/// Whether a peer is inside a session: by its mark or its cgroup.
fn governed(node: &Node, peer: UCred) -> bool {
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    if node.kernel.mark_of(pid).is_some() {
        return true;
    }
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return true };
    let name = node.config.kernel.cgroup.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    text.lines().any(|line| line.split('/').any(|part| part == name) && line.contains("/s-"))
}

fn uid(peer: UCred) -> u32 {
    peer.uid.as_raw()
}

/// The peer's name; its number where the host knows none.
fn user_name(peer: UCred) -> String {
    proc::user_by_id(uid(peer)).map_or_else(|| uid(peer).to_string(), |user| user.name)
}

fn root_only(peer: UCred, what: &str) -> Result<(), LocalError> {
    if uid(peer) == 0 { Ok(()) } else { Err(error("denied", format!("only root may {what}"), "")) }
}

fn bounded(text: &str) -> String {
    text.chars().take(1000).collect()
}

/// A session that the peer may end or renew: its own, or any for root.
fn own_session(node: &Node, peer: UCred, id: &str) -> Result<Arc<Session>, LocalError> {
    let session = node.session_by_id(id).ok_or_else(|| {
        error(
            "not_found",
            format!("no open session {id} on this host"),
            "`guardctl status --local` counts the open ones",
        )
    })?;
    if uid(peer) == 0 || uid(peer) == session.identity.initiator_uid {
        Ok(session)
    } else {
        Err(error(
            "denied",
            format!("session {id} is {}'s", session.identity.initiator),
            "its initiator and root may end and renew a session",
        ))
    }
}

fn list(node: &Node) -> LocalSessions {
    let row = |s: &Arc<Session>| LocalSession {
        session_id: s.identity.session_id.clone(),
        agent: s.identity.agent.clone(),
        initiator: s.identity.initiator.clone(),
        expires_unix_ns: s.life.until().unix_ns,
        execs: s.execs.load(Ordering::Relaxed),
        held: u32::try_from(node.approvals.held_of(&s.identity.session_id)).unwrap_or(u32::MAX),
        processes: u32::try_from(s.cgroup.processes()).unwrap_or(u32::MAX),
        state: s.state().into(),
        parent_session_id: s.identity.parent_session_id.clone(),
    };
    LocalSessions { sessions: node.sessions().iter().map(row).collect() }
}

/// Recorded first, then lifted; what is held is let go.
fn emergency_stop(node: &Arc<Node>, peer: UCred, reason: &str) -> Result<Reply, LocalError> {
    root_only(peer, "lift enforcement")?;
    let record = EmergencyStop {
        uid: uid(peer),
        user: user_name(peer),
        reason: bounded(reason),
        sessions: u32::try_from(node.sessions().len()).unwrap_or(u32::MAX),
        pid: peer.pid.as_raw_nonzero().get().unsigned_abs(),
    };
    // An emergency must not hang on a full disk: the record is tried, enforcement is lifted in any case.
    let recorded = node.note(SessionId::NONE, Body::EmergencyStop(record)).is_some_and(|t| t.wait().is_ok());
    node.kernel.lift(true).map_err(|e| error("internal", e.to_string(), "remove the pins: rm -r /sys/fs/bpf/guard"))?;
    node.approvals.lift();
    tracing::warn!(uid = uid(peer), reason, recorded, "EMERGENCY STOP: enforcement is lifted");
    let note = if recorded { "" } else { " (this could not be recorded: see the daemon's log)" };
    Ok(Reply::Done(Done {
        text: format!("enforcement is lifted on this host{note}; restart guard-agent to enforce again"),
    }))
}

// === sessions ===

fn run_session(
    node: &Arc<Node>,
    stream: &UnixStream,
    peer: UCred,
    wish: guard_proto::v1::StartSession,
    fds: Vec<OwnedFd>,
) -> Result<(), LocalError> {
    if node.kernel.lifted() {
        let hint = "restart guard-agent to enforce again";
        return Err(error("unavailable", "enforcement is lifted on this host: no session starts", hint));
    }
    let stdio: [OwnedFd; 3] = fds.try_into().map_err(|_| error("usage", "three descriptors are needed", ""))?;
    wanted::check_stdio(&stdio, wish.tty)?;
    let wanted = wanted::check(node, peer, wish)?;
    let handed = node.credentials.issue(&wanted)?;
    let started = session_started(node, stream, &wanted, &stdio, handed.as_ref())
        .inspect_err(|_| node.credentials.abandon(wanted.id))?;
    drop((stdio, handed));
    see_through(node, stream, started);
    Ok(())
}

/// Makes a session whose entry process waits; its replies go to `stream`.
pub fn session_started<'a>(
    node: &'a Arc<Node>,
    stream: &UnixStream,
    wanted: &Wanted,
    stdio: &[OwnedFd; 3],
    handed: Option<&Handed>,
) -> Result<Started<'a>, LocalError> {
    let copy = stream.try_clone().map_err(|e| error("internal", e.to_string(), ""))?;
    session::start(node, wanted, stdio, copy, handed)
        .map_err(|e| error("internal", e, "the daemon's log has more (journalctl -u guard-agent)"))
}

/// Lets a started session go, and returns when it has ended.
pub fn see_through(node: &Arc<Node>, stream: &UnixStream, started: Started<'_>) {
    let session = Arc::clone(&started.session);
    session.reply(inside::started(&session));
    tracing::info!(session = %session.id, agent = session.identity.agent, initiator = session.identity.initiator, "session started");
    if let Err(why) = started.go() {
        session.request_end(node, "failed", why);
    }
    if let Err(error) = listen_to_owner(node, &session, stream) {
        session.request_end(node, "failed", format!("listening to the caller: {error}"));
    }
    let ended = session.wait(node);
    tracing::info!(session = %session.id, reason = ended.reason, "session ended");
}

/// The guardctl that started a session comes again after its daemon was lost. Nobody else may: another process of the same
/// user would take its messages and could signal and end it.
fn attach_session(node: &Arc<Node>, stream: &UnixStream, peer: UCred, id: &str) -> Result<Option<Reply>, LocalError> {
    let process = ProcessId::of(peer.pid.as_raw_nonzero().get().unsigned_abs());
    let process = process.map_err(|e| error("usage", format!("reading the caller's start: {e}"), ""))?;
    let owner = Owner { uid: uid(peer), process };
    attach(node, stream, owner, node.session_by_id(id), id)
}

/// Gives the connection of a session's owner back to it.
pub fn attach(
    node: &Arc<Node>,
    stream: &UnixStream,
    owner: Owner,
    session: Option<Arc<Session>>,
    id: &str,
) -> Result<Option<Reply>, LocalError> {
    let Some(session) = session else { return exited(node, owner, id).map(Some) };
    if session.owner != owner {
        return Err(error("denied", format!("session {id} belongs to another guardctl"), ""));
    }
    let internal = |e: io::Error| error("internal", e.to_string(), "");
    let voice = Voice::new(stream.try_clone().map_err(internal)?).map_err(internal)?;
    if !session.attach(voice, inside::started(&session)) {
        return exited(node, owner, id).map(Some);
    }
    tracing::info!(session = %session.id, "its guardctl has come again");
    if let Err(error) = listen_to_owner(node, &session, stream) {
        session.request_end(node, "failed", format!("listening to the caller: {error}"));
    }
    Ok(None)
}

fn exited(node: &Node, owner: Owner, id: &str) -> Result<Reply, LocalError> {
    let gone =
        || error("not_found", format!("no session {id} of this guardctl waits for it"), "see `guardctl session show`");
    node.take_exited(owner, id).map(Reply::Exited).ok_or_else(gone)
}

/// Signals come on the connection that started the session; when it closes, the session ends.
fn listen_to_owner(node: &Arc<Node>, session: &Arc<Session>, stream: &UnixStream) -> io::Result<()> {
    let (node, session, stream) = (Arc::clone(node), Arc::clone(session), stream.try_clone()?);
    stream.set_read_timeout(None)?;
    thread::Builder::new().name("owner".into()).spawn(move || {
        while let Ok(Some((bytes, _))) = frame::receive(&stream, LOCAL_MESSAGE_MAX) {
            if let Ok(LocalRequest { request: Some(Request::Signal(signal)) }) = LocalRequest::decode(bytes.as_slice())
                && let Some(signal) = SIGNALS.iter().find(|s| s.unsigned_abs() == signal.signal)
            {
                session.signal(&node, *signal);
            }
        }
        session.request_end(&node, "ended", "the caller went away".into());
    })?;
    Ok(())
}
