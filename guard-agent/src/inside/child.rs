//! Child sessions: started by a session for a part of its work, with fewer rights, never more.
//!
//! A child is a session of its own in every way (cgroup beside its parent's, mount namespace, expiry in the kernel, share of the ring),
//! for the same initiator and agent. It ends with its parent and has no children. Its command was named by an agent, not by the
//! initiator: it is judged as any other exec. Fails: with what the parent lacks; nothing has been started then.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use guard_proto::v1::{LocalError, StartChild, local_reply::Reply};

use super::owner;
use crate::control::{self, error};
use crate::kernel::peer::Peer;
use crate::kernel::{proc, time};
use crate::node::Node;
use crate::session::Session;
use crate::wanted::{self, Asker};

/// Child sessions of one session that are open at the same time.
const OPEN_MAX: usize = 4;
/// Child sessions of one session in all, as one daemon counts them.
const ALL_MAX: u32 = 64;
const BELOW: &str = "a child session may only have what its parent has";

/// How many children a session has started. Held while one is being started, so that they are counted one after the other.
#[derive(Default)]
pub struct Children(Mutex<u32>);

impl Children {
    /// How many more may be started now.
    pub fn left(&self, parent: &Session, open: usize) -> u32 {
        let all = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if parent.is_child() { 0 } else { left(open, all) }
    }
}

fn left(open: usize, all: u32) -> u32 {
    let open = u32::try_from(OPEN_MAX.saturating_sub(open)).unwrap_or(0);
    open.min(ALL_MAX.saturating_sub(all))
}

/// Starts a child and sees it to its end.
pub fn start(
    node: &Arc<Node>,
    parent: &Arc<Session>,
    stream: &UnixStream,
    peer: &Peer,
    wish: StartChild,
    fds: Vec<OwnedFd>,
) -> Result<(), LocalError> {
    if node.kernel.lifted() {
        return Err(error("unavailable", "enforcement is lifted on this host: no session starts", ""));
    }
    able(parent)?;
    let stdio: [OwnedFd; 3] = fds.try_into().map_err(|_| error("usage", "three descriptors are needed", ""))?;
    wanted::check_stdio(&stdio, wish.tty)?;
    let limits = proc::limits(peer.pid).map_err(|e| error("usage", format!("reading the caller's limits: {e}"), ""))?;
    let asker = Asker { limits, owner: owner(peer)? };
    unconfined(node, parent, peer)?;
    let mut all = parent.inside.children.0.lock().unwrap_or_else(PoisonError::into_inner);
    if left(node.children_of(&parent.identity.session_id).len(), *all) == 0 {
        let text = format!("a session has at most {OPEN_MAX} child sessions at the same time and {ALL_MAX} in all");
        return Err(error("unavailable", text, "wait for one of them to end"));
    }
    let wanted = wanted::child(node, parent, asker, wish)?;
    *all += 1;
    let started = control::session_started(node, stream, &wanted, &stdio, None)?;
    drop((stdio, all));
    // It is known by now: either the parent's end takes it along, or that has begun and is seen here.
    if parent.is_ending() {
        started.session.request_end(node, "parent_ended", format!("session {} is ending", parent.id));
    }
    control::see_through(node, stream, started);
    Ok(())
}

/// Whether a session may have children at all, now.
fn able(parent: &Session) -> Result<(), LocalError> {
    if parent.is_child() {
        return Err(error(
            "denied",
            "a child session starts no child sessions",
            "ask in the session that it belongs to",
        ));
    }
    if parent.rights.uid == 0 {
        return Err(error("denied", "sessions of root start no child sessions", ""));
    }
    if parent.is_ending() || parent.life.is_expired(time::boot_ns()) {
        return Err(error("expired", "the session has expired", "have it renewed, or start a new one"));
    }
    Ok(())
}

/// A process that has put itself, or was put, into a tighter place inside the session must not leave it through a child, which
/// begins where the session began: other namespaces, another root, system call filters, no new privileges.
fn unconfined(node: &Node, parent: &Session, peer: &Peer) -> Result<(), LocalError> {
    let own = std::process::id();
    let read = |what: &str, e: io::Error| error("denied", format!("reading the caller's {what}: {e}"), "");
    let confined = |what: &str| {
        let hint = "start it from a process that has the place and rights of the session's entry process";
        Err(error("denied", format!("the caller is confined ({what}); a child session would not be"), hint))
    };
    let namespace = proc::mount_namespace(peer.pid).map_err(|e| read("mount namespace", e))?;
    if namespace != parent.mount_namespace {
        return confined("another mount namespace");
    }
    for name in ["user", "net", "pid", "ipc", "uts", "cgroup", "time"] {
        let of = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|m| (m.dev(), m.ino()));
        let Ok(ours) = of(own) else { continue };
        if of(peer.pid).map_err(|e| read("namespaces", e))? != ours {
            return confined(&format!("another {name} namespace"));
        }
    }
    if proc::link(peer.pid, "root").map_err(|e| read("root", e))? != b"/" {
        return confined("another root");
    }
    let limits = |pid: u32| proc::confinement(pid).map_err(|e| read("status", e));
    let (caller, daemon) = (limits(peer.pid)?, limits(own)?);
    if caller.filters > daemon.filters {
        return confined("a filter of system calls");
    }
    if caller.no_new_privs && !node.config.session.no_new_privs && !daemon.no_new_privs {
        return confined("no new privileges");
    }
    // All of this was about the caller only if it is still there.
    if peer.lives() { Ok(()) } else { Err(error("denied", "the caller has ended", "")) }
}

/// The guardctl that started a child comes again after its daemon was lost.
pub fn attach(
    node: &Arc<Node>,
    parent: &Session,
    stream: &UnixStream,
    peer: &Peer,
    id: &str,
) -> Result<Option<Reply>, LocalError> {
    let owner = owner(peer)?;
    if !peer.lives() {
        return Err(error("denied", "the caller has ended", ""));
    }
    let child = node.session_by_id(id);
    if child.as_ref().is_some_and(|child| child.identity.parent_session_id != parent.identity.session_id) {
        return Err(error("denied", "that is no child of this session", ""));
    }
    control::attach(node, stream, owner, child, id)
}

/// The categories that a child is to have: the parent's, or fewer.
pub fn categories(parent: &Session, asked: &[String]) -> Result<Vec<String>, LocalError> {
    narrowed(&parent.identity.categories, asked)
}

fn narrowed(has: &[String], asked: &[String]) -> Result<Vec<String>, LocalError> {
    if asked.is_empty() {
        let hint = "`guardctl session status` shows those of this session";
        return Err(error("usage", "the categories that the child session may request are needed", hint));
    }
    if let Some(lacks) = asked.iter().find(|category| !has.contains(category)) {
        let text = format!("this session may not request {}, so no child of it may", lacks.escape_debug());
        return Err(error("denied", text, BELOW));
    }
    let mut all = asked.to_vec();
    all.sort();
    all.dedup();
    Ok(all)
}

/// The highest risk of a child's execs: a hundred at most.
pub fn max_risk(asked: Option<u32>) -> Result<Option<u32>, LocalError> {
    match asked {
        Some(risk) if risk > 100 => Err(error("usage", format!("a risk of {risk} is more than 100"), "")),
        risk => Ok(risk),
    }
}

/// The end of a child in boot time: so long from now, its parent's end at the latest.
pub fn end(parent_boot_ns: u64, now: u64, asked_seconds: u64, default_seconds: u64) -> Result<u64, LocalError> {
    const SECOND: u64 = 1_000_000_000;
    let left = parent_boot_ns.saturating_sub(now);
    if left == 0 {
        return Err(error("expired", "the session has expired", "have it renewed, or start a new one"));
    }
    if asked_seconds == 0 {
        return Ok(now + left.min(default_seconds.saturating_mul(SECOND)));
    }
    let asked = asked_seconds.saturating_mul(SECOND);
    if asked > left {
        let text = format!("{asked_seconds} s are longer than the {} s that this session still has", left / SECOND);
        return Err(error("denied", text, BELOW));
    }
    Ok(now + asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn never_a_category_that_the_parent_lacks() {
        let has = words(&["fs.read", "vcs.read"]);
        assert_eq!(narrowed(&has, &words(&["vcs.read", "vcs.read"])).unwrap(), ["vcs.read"]);
        assert_eq!(narrowed(&has, &words(&["vcs.read", "fs.read"])).unwrap(), ["fs.read", "vcs.read"]);
        for asked in [&["vcs.read", "net.fetch"][..], &["vcs.*"], &["*"], &[""], &["VCS.read"]] {
            assert_eq!(narrowed(&has, &words(asked)).unwrap_err().code, "denied", "{asked:?}");
        }
        assert_eq!(narrowed(&has, &[]).unwrap_err().code, "usage");
        assert_eq!(narrowed(&[], &words(&["vcs.read"])).unwrap_err().code, "denied");
    }

    #[test]
    fn never_an_end_after_the_parents() {
        assert_eq!(end(100 * S, 40 * S, 0, 900).unwrap(), 100 * S);
        assert_eq!(end(1000 * S, 40 * S, 0, 900).unwrap(), 940 * S);
        assert_eq!(end(100 * S, 40 * S, 60, 900).unwrap(), 100 * S);
        assert_eq!(end(100 * S, 40 * S, 61, 900).unwrap_err().code, "denied");
        assert_eq!(end(100 * S, 40 * S, u64::MAX, 900).unwrap_err().code, "denied");
        assert_eq!(end(100 * S, 100 * S, 0, 900).unwrap_err().code, "expired");
        assert_eq!(end(100 * S, 101 * S, 1, 900).unwrap_err().code, "expired");
    }

    #[test]
    fn risk_is_a_number_up_to_a_hundred() {
        assert_eq!(max_risk(Some(0)).unwrap(), Some(0));
        assert_eq!(max_risk(None).unwrap(), None);
        assert_eq!(max_risk(Some(101)).unwrap_err().code, "usage");
    }

    #[test]
    fn so_many_at_a_time_and_so_many_in_all() {
        assert_eq!((left(0, 0), left(OPEN_MAX, 4), left(OPEN_MAX + 1, 4)), (4, 0, 0));
        assert_eq!((left(0, ALL_MAX - 1), left(0, ALL_MAX), left(0, u32::MAX)), (1, 0, 0));
    }
}
