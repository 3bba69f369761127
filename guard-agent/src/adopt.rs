//! Sessions of an earlier daemon: which go on, which end and why, and how they are taken over.
//!
//! The kernel denied every exec of theirs since that daemon's end, with entries that it alone could change; they go on only
//! where those entries, the state on disk and the processes agree. It must not make anything longer or wider: no expiry
//! moves (of a renewal that was cut short the kernel knows whether it is in force), approvals of roots are lost. Fails: a session that cannot go on is ended, with a record that says why.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use guard_common::{ABI_VERSION, entered_boot_ns, session_flags};
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{SessionEnd, SessionExited};

use crate::config::Config;
use crate::exit::{Code, Failure, failed};
use crate::files::Kept;
use crate::inside::{self, Door};
use crate::kept::{self, Former, Notes, State};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::fanotify::Group;
use crate::kernel::load::Kernel;
use crate::kernel::mounts::View;
use crate::kernel::{proc, time};
use crate::life::Until;
use crate::node::Node;
use crate::session::{self, EntryEnd, Image, Session};
use crate::{hold, mounts, record, renewal};

/// A session that goes on.
pub struct Heir {
    former: Former,
    state: State,
    known: guard_common::Session,
    cgroup: Cgroup,
    notes: Notes,
    until: Until,
}

/// Why a session does not: reason and detail of its end.
pub type Why = (&'static str, String);

/// What becomes of each.
pub struct Plan {
    /// They go on.
    pub heirs: Vec<Heir>,
    /// They end.
    pub ended: Vec<(Former, Why)>,
}

/// Looks at each session that is kept. Nothing is changed yet.
pub fn plan(config: &Config, kernel: &Kernel, boot_id: &str, found: Vec<Former>) -> Plan {
    let mut plan = Plan { heirs: Vec::new(), ended: Vec::new() };
    for mut former in found {
        let heir = agreed(config, kernel, boot_id, &former).and_then(|(known, cgroup, notes, until)| {
            let state = std::mem::replace(&mut former.state, Err("taken".into()));
            let state = state.map_err(|why| ("daemon_restarted", why))?;
            Ok((*state, known, cgroup, notes, until))
        });
        match heir {
            Ok((state, known, cgroup, notes, until)) => {
                plan.heirs.push(Heir { former, state, known, cgroup, notes, until });
            }
            Err(why) => plan.ended.push((former, why)),
        }
    }
    plan.without_orphans()
}

/// Whether disk, kernel and host say the same of a session.
fn agreed(
    config: &Config,
    kernel: &Kernel,
    boot_id: &str,
    former: &Former,
) -> Result<(guard_common::Session, Cgroup, Notes, Until), Why> {
    let restarted = |detail: String| Err(("daemon_restarted", detail));
    if former.head.boot_id != boot_id {
        return restarted("the host was booted again".into());
    }
    if kernel.found_lifted() {
        return Err(("emergency_stop", "enforcement was lifted while it ran".into()));
    }
    if former.head.abi != ABI_VERSION {
        return restarted(format!(
            "it was started by a version whose kernel maps have layout {}; this one's have layout {ABI_VERSION}, so that it \
             cannot be adopted",
            former.head.abi
        ));
    }
    let state = match &former.state {
        Ok(state) => state,
        Err(why) => return restarted(why.clone()),
    };
    let Some(known) = kernel.session(former.key) else {
        return match time::boot_ns() >= state.expires_boot_ns {
            true => Err(("expired", String::new())),
            false => restarted("the kernel does not know it any more: its end had begun".into()),
        };
    };
    let until = renewal::settled(state, known.expires_boot_ns);
    let Some(until) = until.filter(|_| (known.cgroup, known.uid) == (state.cgroup_id, state.uid)) else {
        return restarted("the kernel and its file disagree about end, cgroup or user".into());
    };
    let cgroup = Cgroup::open(state.cgroup.clone()).ok().filter(|c| c.id == state.cgroup_id);
    let Some(cgroup) = cgroup.filter(|c| c.dir.parent() == Some(&config.kernel.cgroup)) else {
        return restarted("its cgroup is not there any more".into());
    };
    if kernel.session_of_cgroup(cgroup.id) != Some(former.key) {
        return restarted("the kernel does not bind its cgroup to it".into());
    }
    let running: HashSet<u64> = kernel.marks_of(former.key).into_iter().map(|(_, mark)| mark.exec).collect();
    let state_dir = &config.node.state_dir;
    let notes = Notes::take_over(state_dir, former.key, |exec| running.contains(&exec));
    match notes {
        Ok(notes) => Ok((known, cgroup, notes, until)),
        // Without them nobody knows which scripts it is running.
        Err(error) => restarted(format!("its notes: {error}")),
    }
}

impl Plan {
    /// A child session goes on with its parent or not at all.
    fn without_orphans(mut self) -> Self {
        let known = self.adopted();
        let (stay, orphans): (Vec<Heir>, Vec<Heir>) = std::mem::take(&mut self.heirs).into_iter().partition(|heir| {
            let parent = &heir.former.identity.parent_session_id;
            parent.is_empty() || known.contains(parent)
        });
        self.heirs = stay;
        for Heir { mut former, state, .. } in orphans {
            let why = format!("session {} does not go on", former.identity.parent_session_id);
            former.state = Ok(Box::new(state));
            self.ended.push((former, ("parent_ended", why)));
        }
        self
    }

    /// Ids of those that go on.
    pub fn adopted(&self) -> Vec<String> {
        self.heirs.iter().map(|h| h.former.identity.session_id.clone()).collect()
    }

    /// Home folders of those that go on.
    pub fn homes(&self) -> impl Iterator<Item = &[u8]> {
        self.heirs.iter().map(|h| h.state.home.as_slice())
    }

    /// Ends in the kernel, and kills, whatever does not go on. Says whether all of that is gone.
    pub fn clear_the_rest(&self, config: &Config, kernel: &Kernel) -> Result<bool, Failure> {
        let keys: Vec<u64> = self.heirs.iter().map(|h| h.former.key).collect();
        let (mut files, mut names) = (HashSet::new(), HashSet::new());
        for kept in self.heirs.iter().flat_map(|h| h.notes.all_kept()) {
            match kept {
                Kept::File(key) => files.insert(key),
                Kept::Name(key) => names.insert(key),
            };
        }
        kernel.keep_only(&keys, &files, &names).map_err(failed(Code::Unavailable))?;
        let cgroups: Vec<u64> = self.heirs.iter().map(|h| h.cgroup.id).collect();
        Ok(kill_all_but(&config.kernel.cgroup, &cgroups))
    }
}

/// Kills everything in the cgroups of sessions other than these. Returns whether all of them are empty.
pub fn kill_all_but(guard_cgroup: &Path, keep: &[u64]) -> bool {
    let Ok(entries) = std::fs::read_dir(guard_cgroup) else { return true };
    let mut empty = true;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let Ok(cgroup) = Cgroup::open(entry.path()) else { continue };
        if keep.contains(&cgroup.id) {
            continue;
        }
        let _ = cgroup.kill(Duration::from_secs(5));
        if cgroup.populated() {
            tracing::error!(cgroup = %cgroup.dir.display(), "processes of a former session cannot be killed");
            empty = false;
        } else if let Err(error) = cgroup.remove() {
            tracing::error!(cgroup = %cgroup.dir.display(), %error, "removing the cgroup of a former session");
        }
    }
    empty
}

/// The record of the end of a session that does not go on.
pub fn end_record(former: &Former, why: &Why) -> Body {
    Body::SessionEnd(SessionEnd {
        identity: Some(record::chain(&former.identity)),
        reason: why.0.into(),
        detail: why.1.clone(),
        ..SessionEnd::default()
    })
}

/// How such an end looks to the guardctl that waits.
pub fn exited(why: &Why) -> SessionExited {
    SessionExited { status: libc::SIGKILL.cast_unsigned(), reason: why.0.into(), execs: 0, denied: 0 }
}

/// A session that was taken over, the sight of its mounts, if anything of it lives, and its own socket.
pub type Adopted = (Arc<Session>, Option<View>, Option<Door>);

/// Makes open sessions of those that go on. Their execs are held from here on, and answered once [`go_on`] was called.
pub fn take_over(node: &Arc<Node>, heirs: Vec<Heir>) -> Result<Vec<Adopted>, Failure> {
    let adopted: Vec<Adopted> = heirs
        .into_iter()
        .map(|heir| take_over_one(node, heir))
        .collect::<Result<_, _>>()
        .map_err(failed(Code::Unavailable))?;
    // One whose parent was ended meanwhile, before it was known itself.
    for (session, ..) in adopted.iter().filter(|(session, ..)| session.is_child()) {
        let parent = &session.identity.parent_session_id;
        if node.session_by_id(parent).is_none_or(|parent| parent.is_ending()) {
            session.request_end(node, "parent_ended", format!("session {parent} does not go on"));
        }
    }
    Ok(adopted)
}

/// The session's socket anew, in the folder that it has mounted. It can do without.
fn door(session: SessionId) -> Option<Door> {
    match Door::bind(session) {
        Ok(door) => Some(door),
        Err(error) => {
            tracing::error!(%session, %error, "the socket inside a session cannot be made again");
            None
        }
    }
}

fn take_over_one(node: &Arc<Node>, heir: Heir) -> io::Result<Adopted> {
    let Heir { former, state, cgroup, notes, known, until } = heir;
    let unfinished = state.renewal.is_some();
    let left_behind = renewal::left_behind(&former, &state, until);
    let handle = state.entry.handle();
    let (group, view, failed) = match handle.as_ref().map(|_| marked(&state, &cgroup)) {
        Some(Ok((group, view))) => (group, Some(view), None),
        Some(Err(why)) => (Group::new()?, None, Some(why)),
        // It ended while there was no daemon; its session follows it.
        None => (Group::new()?, None, None),
    };
    let observe = if node.observes() { session_flags::OBSERVE } else { 0 };
    let door = door(former.id);
    let socket = door.as_ref().map(|door| door.key).unwrap_or_default();
    let known = guard_common::Session { flags: known.flags & !session_flags::OBSERVE | observe, socket, ..known };
    node.kernel.shares.open(former.key).map_err(io::Error::other)?;
    node.kernel.open_session(former.key, &known).map_err(io::Error::other)?;
    let entry_end = EntryEnd::adopted(handle);
    let parts = session::Parts { former, state, known, until, cgroup, group, entry_end, notes };
    let session = Arc::new(Session::of_earlier_daemon(parts)?);
    node.adopt_session(&session);
    if let Some(body) = left_behind {
        // Before the file forgets that there was a renewal.
        let ticket = node.append(session.id, body).map_err(io::Error::other)?;
        ticket.wait().map_err(io::Error::other)?;
    }
    if unfinished {
        kept::remember(&node.config.node.state_dir, &node.boot_id, &session, None)?;
    }
    if let Some(why) = failed.filter(|_| !session.entry_end.is_over()) {
        session.request_end(node, "failed", format!("it could not be adopted: {why}"));
    }
    if let Some(Err(error)) = door.as_ref().map(Door::open) {
        tracing::error!(session = %session.id, %error, "the socket inside a session cannot be opened again");
    }
    Ok((session, view, door))
}

/// New marks on every mount of the session's namespace, seen through a process that is in it: the entry process, or another
/// one where its first thread has ended.
fn marked(state: &State, cgroup: &Cgroup) -> Result<(Group, View), String> {
    let inside = |pid: &u32| {
        proc::mount_namespace(*pid).is_ok_and(|n| n == state.mount_namespace)
            && Path::new(&format!("/proc/{pid}/root")).read_dir().is_ok()
    };
    let others = cgroup.pids();
    let witness = std::iter::once(state.entry.pid).chain(others).find(inside);
    session::mark_mounts(witness.ok_or("no process of it is in its mount namespace any more")?)
}

/// What runs, as the marks say: for outcomes still to come, and so that scripts stay frozen. After the ring was drained.
pub fn find_images(node: &Node, session: &Session) {
    for (tgid, mark) in node.kernel.marks_of(session.key) {
        // A process that was forked after the exec only shares its image.
        if mark.exec == 0 || mark.forked_boot_ns != 0 {
            continue;
        }
        let entered = entered_boot_ns(mark.exec);
        let frozen = session.notes.kept(mark.exec);
        for what in &frozen {
            if let Err(error) = node.freezes.keep(&node.kernel, *what) {
                tracing::error!(session = %session.id, %error, "a running script cannot be kept from being written");
            }
        }
        let program = proc::link(tgid, "exe").unwrap_or_default();
        session.image_found(mark.exec, Image { tgid, started_boot_ns: entered, program, frozen, gone_since: 0 });
    }
}

/// Answers held execs again, and sees the session to its end.
pub fn go_on(node: &Arc<Node>, (session, view, door): Adopted) -> io::Result<()> {
    if session.entry_end.is_over() {
        // Before the clock looks: it ended first, whatever came after.
        session.entry_gone(node);
    }
    hold::start(node, &session)?;
    if let Some(door) = door {
        inside::serve(node, &session, door)?;
    }
    if let Some(view) = view {
        mounts::start(node, &session, view)?;
        // Namespaces that it made, where it may.
        session.cgroup.pids().into_iter().for_each(|pid| session.mounts.ask(pid));
    }
    let node = Arc::clone(node);
    thread::Builder::new().name("adopted".into()).spawn(move || {
        let ended = session.wait(&node);
        tracing::info!(session = %session.id, reason = ended.reason, "session ended");
    })?;
    Ok(())
}

/// Forgets the sessions that ended, once that is recorded.
pub fn forget(state_dir: &Path, former: &Former) {
    if let Err(error) = kept::forget(state_dir, former.key) {
        tracing::error!(session = %former.id, %error, "forgetting a session");
    }
}
