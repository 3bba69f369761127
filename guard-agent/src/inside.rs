//! The socket inside a session: its own status, its messages, child sessions. Nothing else.
//!
//! Which session speaks is told by the socket, which no other session reaches, and by mark, cgroup and user of the peer as the kernel
//! has them; never by what the peer says. It must not answer about any other session. Bounded: the length of a request,
//! connections, requests a second. Fails: the peer gets an error with a hint; one session's noise costs that session.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io, thread};

use guard_proto::LOCAL_MESSAGE_MAX;
use guard_proto::v1::{
    LocalError, MessagesRequest, OwnStatus, SessionStarted, local_reply::Reply, local_request::Request,
};
use rustix::event::{PollFd, PollFlags, poll};

use crate::control::{self, error};
use crate::kernel::peer::Peer;
use crate::kernel::{proc, time};
use crate::node::Node;
use crate::session::Session;
use crate::{frame, kept};

pub mod child;
pub mod door;
mod messages;

pub use door::Door;
pub use messages::Messages;

/// Connections of one session at the same time: those of children and followers stay.
const CONNECTIONS_MAX: usize = 16;
/// Of these, followers of messages.
const FOLLOWERS_MAX: usize = 4;
/// Requests that may come at once, and how many a second after that.
const BURST: u32 = 40;
const PER_SECOND: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a follower is looked after while nothing is said.
const LOOK: Duration = Duration::from_secs(1);

/// What belongs to the socket of one session.
#[derive(Default)]
pub struct Inside {
    /// What the session was told.
    pub messages: Messages,
    /// Its child sessions.
    pub children: child::Children,
    connections: AtomicUsize,
    followers: AtomicUsize,
    pace: Mutex<Pace>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many requests may still come.
struct Pace {
    left: u32,
    since_boot_ns: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: BURST, since_boot_ns: 0 }
    }
}

impl Pace {
    /// Whether one more may come now.
    fn takes(&mut self, now_boot_ns: u64) -> bool {
        const EACH: u64 = 1_000_000_000 / PER_SECOND;
        let more = now_boot_ns.saturating_sub(self.since_boot_ns) / EACH;
        if more > 0 {
            self.left = BURST.min(self.left.saturating_add(u32::try_from(more).unwrap_or(BURST)));
            self.since_boot_ns = now_boot_ns;
        }
        let takes = self.left > 0;
        self.left -= u32::from(takes);
        takes
    }
}

/// One of a bounded number.
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn take(counter: &'a AtomicUsize, most: usize) -> Option<Self> {
        let slot = Self(counter);
        (counter.fetch_add(1, Ordering::SeqCst) < most).then_some(slot)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Serves a session's socket until the session ends.
pub fn serve(node: &Arc<Node>, session: &Arc<Session>, door: Door) -> io::Result<()> {
    let (node, session) = (Arc::clone(node), Arc::clone(session));
    thread::Builder::new().name("inside".into()).spawn(move || {
        while waits(&session, &door) {
            let Ok((stream, _)) = door.listener.accept() else {
                // Gone again, or out of descriptors: others must give some back first.
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            take(&node, &session, stream);
        }
        session.inside.messages.close();
        door::remove(session.id);
    })?;
    Ok(())
}

/// Waits for a connection. False once the session ends.
fn waits(session: &Session, door: &Door) -> bool {
    loop {
        let mut fds = [PollFd::new(&door.listener, PollFlags::IN), PollFd::new(&session.stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(session = %session.id, %error, "the socket inside a session is closed");
                return false;
            }
        }
        let [connection, stop] = &fds;
        if !stop.revents().is_empty() {
            return false;
        }
        if !connection.revents().is_empty() {
            return true;
        }
    }
}

fn take(node: &Arc<Node>, session: &Arc<Session>, stream: UnixStream) {
    let limits = [stream.set_read_timeout(Some(PATIENCE)), stream.set_write_timeout(Some(PATIENCE))];
    if limits.iter().any(Result::is_err) {
        return;
    }
    if !lock(&session.inside.pace).takes(time::boot_ns()) {
        // Only this session's connections wait behind this one.
        thread::sleep(Duration::from_millis(20));
        let text = format!("this session asks too often: {PER_SECOND} requests a second are taken");
        return control::reply_to(&stream, Reply::Error(error("unavailable", text, "wait a second")));
    }
    let (node, session) = (Arc::clone(node), Arc::clone(session));
    let served = thread::Builder::new().name("guest".into()).spawn(move || {
        let Some(_slot) = Slot::take(&session.inside.connections, CONNECTIONS_MAX) else {
            let text = format!("this session has {CONNECTIONS_MAX} connections, which is the limit");
            return control::reply_to(&stream, Reply::Error(error("unavailable", text, "close some of them")));
        };
        attend(&node, &session, &stream);
    });
    if let Err(error) = served {
        tracing::warn!(%error, "no thread for a connection from inside a session");
    }
}

fn attend(node: &Arc<Node>, session: &Arc<Session>, stream: &UnixStream) {
    let outcome = match guest(node, session, stream) {
        Ok(peer) => match frame::receive(stream, LOCAL_MESSAGE_MAX) {
            Ok(Some((bytes, fds))) => answer(node, session, stream, &peer, &bytes, fds),
            Ok(None) => return,
            Err(e) => Err(error("usage", e.to_string(), "one length-prefixed LocalRequest is expected")),
        },
        Err(why) => {
            tracing::warn!(session = %session.id, why, "somebody else is at the socket inside a session");
            Err(error("denied", why, "this socket is for the session's own processes"))
        }
    };
    match outcome {
        Ok(Some(reply)) => control::reply_to(stream, reply),
        Ok(None) => {}
        Err(refusal) => control::reply_to(stream, Reply::Error(refusal)),
    }
}

/// The peer, if it is a process of this session: marked so, in its cgroup, with its user.
fn guest(node: &Node, session: &Session, stream: &UnixStream) -> Result<Peer, String> {
    let peer = Peer::of(stream).map_err(|e| format!("the caller is not known: {e}"))?;
    let marked = node.kernel.mark_of(peer.pid).is_some_and(|mark| mark.session == session.key);
    let inside = in_cgroup(peer.pid, &session.cgroup.dir);
    if !peer.lives() {
        return Err("the caller has ended".into());
    }
    if !marked || !inside {
        return Err(format!("process {} is not one of session {}", peer.pid, session.id));
    }
    if peer.uid != session.rights.uid {
        return Err(format!("process {} has user {}, the session {}", peer.pid, peer.uid, session.rights.uid));
    }
    Ok(peer)
}

/// Whether a process is in a session's cgroup or below.
fn in_cgroup(pid: u32, dir: &std::path::Path) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return false };
    named(&text, dir)
}

/// Paths in `/proc` begin where the hierarchy is mounted for the daemon, or above: the session's folder and Guard's are compared.
fn named(text: &str, dir: &std::path::Path) -> bool {
    let last = |dir: &std::path::Path| dir.file_name().map(|n| n.to_string_lossy().into_owned());
    let (Some(own), Some(guard)) = (last(dir), dir.parent().and_then(last)) else { return false };
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return false };
    let parts: Vec<&str> = path.split('/').collect();
    parts.windows(2).any(|pair| pair == [guard.as_str(), own.as_str()])
}

fn answer(
    node: &Arc<Node>,
    session: &Arc<Session>,
    stream: &UnixStream,
    peer: &Peer,
    bytes: &[u8],
    fds: Vec<OwnedFd>,
) -> Result<Option<Reply>, LocalError> {
    match control::decode(bytes)? {
        Request::OwnStatus(_) => Ok(Some(Reply::OwnStatus(status(node, session)))),
        Request::Messages(wish) => follow(session, stream, &wish).map(|()| None),
        Request::StartChild(wish) => child::start(node, session, stream, peer, wish, fds).map(|()| None),
        Request::AttachSession(attach) => child::attach(node, session, stream, peer, &attach.session_id),
        Request::StartSession(_)
        | Request::EndSession(_)
        | Request::Status(_)
        | Request::ListSessions(_)
        | Request::EmergencyStop(_)
        | Request::Signal(_)
        | Request::ReloadPolicy(_)
        | Request::RenewSession(_) => Err(error(
            "denied",
            "inside a session there are its own status, its messages and child sessions, nothing else",
            "ask outside, as somebody who may",
        )),
    }
}

/// Gives what is kept, then what comes, as long as the peer wants and reads it.
fn follow(session: &Session, stream: &UnixStream, wish: &MessagesRequest) -> Result<(), LocalError> {
    let messages = &session.inside.messages;
    if !wish.follow {
        control::reply_to(stream, Reply::Messages(messages.from(wish.from)));
        return Ok(());
    }
    let Some(_slot) = Slot::take(&session.inside.followers, FOLLOWERS_MAX) else {
        let text = format!("{FOLLOWERS_MAX} follow this session's messages, which is the limit");
        return Err(error("unavailable", text, "end one of them"));
    };
    let mut found = messages.from(wish.from);
    loop {
        let next = found.next;
        if control::send(stream, Reply::Messages(found)).is_err() {
            return Ok(());
        }
        found = loop {
            let Some(more) = messages.wait_from(next, LOOK) else { return Ok(()) };
            if !more.messages.is_empty() || more.missed > 0 {
                break more;
            }
            if hung_up(stream) {
                return Ok(());
            }
        };
    }
}

/// Whether the other side has closed.
fn hung_up(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// What a session may know of itself.
fn status(node: &Node, session: &Session) -> OwnStatus {
    let (who, until, now) = (&session.identity, session.life.until(), time::boot_ns());
    let children = node.children_of(&who.session_id);
    OwnStatus {
        session_id: who.session_id.clone(),
        instance: who.instance.clone(),
        agent: who.agent.clone(),
        initiator: who.initiator.clone(),
        parent_session_id: who.parent_session_id.clone(),
        expires_unix_ns: until.unix_ns,
        left_ns: until.boot_ns.saturating_sub(now),
        state: session.state().into(),
        categories: who.categories.clone(),
        limited: session.roles.is_some() || session.is_child(),
        max_risk: who.max_risk,
        execs: session.execs.load(Ordering::Relaxed),
        denied: session.denied.load(Ordering::Relaxed),
        pending: node.approvals.waiting_of(session.key),
        children_left: session.inside.children.left(session, children.len()),
        children: children.iter().map(|child| child.identity.session_id.clone()).collect(),
        profile: session.profile.clone(),
        next_message: session.inside.messages.next(),
    }
}

/// As a started or attached child is told.
pub fn started(session: &Session) -> Reply {
    Reply::Started(SessionStarted {
        session_id: session.identity.session_id.clone(),
        instance: session.identity.instance.clone(),
        expires_unix_ns: session.life.until().unix_ns,
    })
}

/// The caller as the owner of what it starts.
fn owner(peer: &Peer) -> Result<kept::Owner, LocalError> {
    let gone = |e: io::Error| error("usage", format!("reading the caller's start: {e}"), "");
    let start = proc::start_time(peer.pid).map_err(gone)?;
    Ok(kept::Owner { uid: peer.uid, process: kept::ProcessId { pid: peer.pid, start } })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_burst_then_so_many_a_second() {
        let mut pace = Pace::default();
        let second = 1_000_000_000_u64;
        let taken = |pace: &mut Pace, at: u64| (0..100).filter(|_| pace.takes(at)).count();
        assert_eq!(taken(&mut pace, 5 * second), BURST as usize);
        assert_eq!(taken(&mut pace, 6 * second), PER_SECOND as usize);
        assert_eq!(taken(&mut pace, 6 * second + 50_000_000), 0);
        assert_eq!(taken(&mut pace, 1000 * second), BURST as usize);
    }

    #[test]
    fn slots_are_given_back() {
        let counter = AtomicUsize::new(0);
        let held = [Slot::take(&counter, 2), Slot::take(&counter, 2)];
        assert!(held.iter().all(Option::is_some) && Slot::take(&counter, 2).is_none());
        drop(held);
        assert_eq!(counter.load(Ordering::SeqCst), 0);
        assert!(Slot::take(&counter, 1).is_some());
    }

    #[test]
    fn a_cgroup_is_known_by_guards_folder_and_the_sessions() {
        let dir = Path::new("/sys/fs/cgroup/guard/s-1");
        for inside in
            ["0::/guard/s-1\n", "0::/guard/s-1/below\n", "12:pids:/x\n0::/outer/guard/s-1\n", "0::/../guard/s-1\n"]
        {
            assert!(named(inside, dir), "{inside}");
        }
        for outside in
            ["0::/guard/s-2\n", "0::/guard\n", "0::/s-1\n", "0::/user/s-1/guard\n", "12:pids:/guard/s-1\n", ""]
        {
            assert!(!named(outside, dir), "{outside}");
        }
    }
}
