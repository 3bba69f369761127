//! A governed session: its cgroup, its private mount namespace with its marks, its entry process, its end.
//!
//! It must not judge execs. Fails: a start that fails at any step undoes the steps before it and says which one; an end
//! always closes the kernel's entry first, so that nothing more can start.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_common::{Session as KernelSession, session_flags};
use guard_log::record::SessionId;
use guard_proto::v1::{Identity, RoleSnapshot, SessionExited, SessionMessage, local_reply};

use crate::capabilities::Capabilities;
use crate::deletes::Deletes;
use crate::files::{Kept, Rights};
use crate::fixed::Fixed;
use crate::inside::Inside;
use crate::kept::{self, Notes, Owner, ProcessId};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::fanotify::Group;
use crate::kernel::time;
use crate::life::{Life, Until};
use crate::mounts::Requests;
use crate::node::Node;
use crate::processes::Processes;
use crate::readings::Readings;
use crate::voice::Voice;
use crate::{hold, record};

mod end;
mod start;

pub use end::EntryEnd;
use start::makes_mounts;
pub use start::{Started, Wanted, mark_mounts, start};

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
    /// Highest risk that is covered, without what newness adds.
    pub max_risk: u32,
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
    /// It began in the stage `observe`: while that lasts, verdicts are not enforced in it.
    pub began_observed: bool,
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
    /// Number of its mount namespace.
    pub mount_namespace: u64,
    /// Its descriptors are a terminal.
    pub tty: bool,
    /// The guardctl that it answers to.
    pub owner: Owner,
    /// What the next daemon should know beside the session's state.
    pub notes: Notes,
    /// How the entry process's end is learned.
    pub entry_end: EntryEnd,
    /// Its end.
    pub life: Life,
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
    /// What belongs to the socket inside it.
    pub inside: Inside,
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// Its end.
    pub until: Until,
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
            began_observed: state.began_observed,
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
            life: Life::new(parts.until, state.started_boot_ns),
            mount_namespace: state.mount_namespace,
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
            inside: Inside::default(),
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

    /// Uses one exec of a root's approval, if it covers this category and risk and no file was written since it was shown.
    pub fn inherit(
        &self,
        root: u64,
        (category, risk): (&str, u32),
        newest_writable_unix_ns: i64,
    ) -> Option<RootApproval> {
        let mut roots = lock(&self.roots);
        let approval = roots.get_mut(&root)?;
        let covered = approval.left > 0
            && time::boot_ns() < approval.until_boot_ns
            && risk <= approval.max_risk
            && approval.categories.iter().any(|c| c == category)
            && newest_writable_unix_ns < approval.shown_unix_ns;
        if !covered {
            return None;
        }
        approval.left -= 1;
        Some(approval.clone())
    }

    /// Whether another session started it.
    pub fn is_child(&self) -> bool {
        !self.identity.parent_session_id.is_empty()
    }

    /// In one word; empty while it runs.
    pub fn state(&self) -> &'static str {
        match (self.life.is_expired(time::boot_ns()), self.cgroup.is_frozen()) {
            (false, _) => "",
            (true, false) => "expired",
            (true, true) => "frozen",
        }
    }

    /// Says something to the person who started the session, and to its own processes. Best effort: a terminal that is gone
    /// loses nothing.
    pub fn say(&self, kind: &str, text: String, request_id: &str) {
        self.tell(SessionMessage {
            kind: kind.into(),
            text,
            request_id: request_id.into(),
            ..SessionMessage::default()
        });
    }

    /// The same, of a message that says more.
    pub fn tell(&self, message: SessionMessage) {
        self.reply(local_reply::Reply::Message(self.inside.messages.add(message)));
    }

    /// Sends a reply to the guardctl that the session answers to. Never waits: holds and the journal call this.
    pub fn reply(&self, reply: local_reply::Reply) {
        const KEPT_MAX: usize = 32;
        match &mut *lock(&self.voice) {
            Line::Open(voice) => voice.say(reply),
            Line::Lost(kept) => {
                // What came last tells how things stand.
                if kept.len() >= KEPT_MAX {
                    kept.remove(0);
                }
                kept.push(reply);
            }
            Line::Closed => {}
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

    /// Sends a signal to the entry process's group, as long as the kernel knows the entry process as this session's: its
    /// number may be another's afterwards.
    pub fn signal(&self, node: &Node, signal: i32) {
        if node.kernel.mark_of(self.entry_pid).is_none_or(|mark| mark.session != self.key) {
            return;
        }
        let _ = crate::kernel::spawn::signal(-self.entry_pid.cast_signed(), signal);
    }
}
