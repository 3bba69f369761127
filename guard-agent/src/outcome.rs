//! What became of execs: events of the kernel programs turned into records.
//!
//! It must not decide. Fails: an event that is not understood and events that the ring had no room for become gap records.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use guard_common::{
    COMM, EVENT_ARG_SLOT, ExecEvent, ExitEvent, FailedEvent, GuardEvent, UNREADABLE, attempt_state, entered_boot_ns,
    guard_outcome, reason, socket_detail,
};
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecOutcome, ExecUnjudged, Identity, SessionMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::acts::{Acts, reason_name};
use crate::blobs;
use crate::deletes;
use crate::files::Kept;
use crate::flood::AtWill;
use crate::kept::Former;
use crate::kernel::canary;
use crate::kernel::events::{Event, EventReader};
use crate::kernel::time;
use crate::node::Node;
use crate::record;
use crate::session::{Image, Session, Stage};

/// Probes of one task and identical refusals are folded for at most this long.
const FOLD_NS: u64 = 200_000_000;
/// Events taken before the heartbeat and the folded records have their turn.
const ROUND: usize = 1024;
/// Tasks whose probes wait to be folded at the same time; more are recorded at once.
const PROBES_MAX: usize = 1024;
/// Accounts of the ring are put right this often, when it is found empty.
const ACCOUNTS_NS: u64 = 500_000_000;
const PAUSE: Duration = Duration::from_millis(100);
/// Events are gathered for this long once the first has come: reading each at once would cost an exec's processor two
/// changes of thread. The ring holds some 10,000, and keeps them over the daemon's end. Not while something is frozen that
/// a session may want to write or rename: an event may be what it waits for.
const GATHER: Duration = Duration::from_millis(10);

/// Who an event belongs to.
#[derive(Clone, Default)]
struct Owner {
    id: SessionId,
    identity: Identity,
    session: Option<Arc<Session>>,
}

/// Turns events into records, on a thread of its own.
pub struct Outcomes {
    node: Arc<Node>,
    leftovers: HashMap<u64, Owner>,
    exits: VecDeque<(u64, u32)>,
    probes: HashMap<u32, (SessionId, ExecUnjudged, u64)>,
    acts: Acts,
    at_will: AtWill,
    accounts_seen: u64,
    said: Said,
}

/// What people were told lately, so that a loop in a session does not flood them.
#[derive(Default)]
struct Said(HashMap<(u64, u32), u64>);

impl Said {
    const PAUSE_NS: u64 = 5_000_000_000;
    const MAX: usize = 1024;

    fn is_new(&mut self, event: &GuardEvent) -> bool {
        let (key, now) = ((event.header.session, event.reason), event.header.boot_ns);
        if self.0.get(&key).is_some_and(|last| now.saturating_sub(*last) < Self::PAUSE_NS) {
            return false;
        }
        if self.0.len() >= Self::MAX {
            self.0.clear();
        }
        self.0.insert(key, now);
        true
    }
}

/// Lets others wait until what is in the ring has been read.
#[derive(Default)]
pub struct Progress {
    rounds: AtomicU64,
    read_until: AtomicU64,
}

impl Progress {
    fn step(&self, read_until: u64) {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        self.read_until.fetch_max(read_until, Ordering::SeqCst);
    }

    /// Rounds of the reader: it lives as long as they grow.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// Boot time up to which events have become records, but for a moment between processors.
    pub fn read_until(&self) -> u64 {
        self.read_until.load(Ordering::SeqCst)
    }
}

/// How far the one reader is.
pub static PROGRESS: Progress = Progress { rounds: AtomicU64::new(0), read_until: AtomicU64::new(0) };

impl Outcomes {
    /// For a daemon that found these sessions of an earlier one and does not go on with them.
    pub fn new(node: &Arc<Node>, leftovers: &[Former]) -> Self {
        let owner = |l: &Former| Owner { id: l.id, identity: record::chain(&l.identity), session: None };
        Self {
            node: Arc::clone(node),
            leftovers: leftovers.iter().map(|l| (l.key, owner(l))).collect(),
            exits: VecDeque::new(),
            probes: HashMap::new(),
            acts: Acts::default(),
            at_will: AtWill::new(node.config.journal.session_records_per_second),
            accounts_seen: 0,
            said: Said::default(),
        }
    }

    /// Reads what an earlier daemon left in the ring.
    pub fn drain(&mut self, reader: &mut EventReader) {
        let before = self.node.kernel.shares.all();
        while let Some(event) = reader.next_event(&self.node.kernel.shares) {
            self.take(event);
        }
        self.node.kernel.shares.found_empty(&before);
        self.flush(u64::MAX);
    }

    /// Reads for ever.
    pub fn spawn(mut self, mut reader: EventReader) -> io::Result<()> {
        thread::Builder::new().name("outcomes".into()).spawn(move || {
            loop {
                let empty = self.round(&mut reader);
                if empty {
                    wait(&reader, &self.node);
                }
            }
        })?;
        Ok(())
    }

    /// Reads for a while. True if there was no more.
    fn round(&mut self, reader: &mut EventReader) -> bool {
        let begun = time::boot_ns();
        let accounts = (begun.saturating_sub(self.accounts_seen) >= ACCOUNTS_NS).then(|| self.node.kernel.shares.all());
        let mut taken = 0;
        while taken < ROUND
            && let Some(event) = reader.next_event(&self.node.kernel.shares)
        {
            self.take(event);
            taken += 1;
        }
        let empty = taken < ROUND;
        if let Some(accounts) = accounts.filter(|_| empty) {
            self.node.kernel.shares.found_empty(&accounts);
            self.accounts_seen = begun;
        }
        self.flush(time::boot_ns());
        PROGRESS.step(if empty { begun } else { reader.last_boot_ns() });
        empty
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Refused(event) => self.refused(&event),
            Event::Killed(event) => self.killed(&event),
            Event::Started(event) => self.started(&event),
            Event::Failed(event) => self.failed(&event),
            Event::Exit(event) => self.exited(&event),
            Event::Guard(event) => self.guard(&event),
            Event::Unknown(kind, size) => {
                let what = format!("event of unknown kind {kind} and {size} bytes");
                self.node.note_gap(SessionId::NONE, "kernel", &what, 1, 1);
            }
        }
    }

    /// Nobody for the canary, whose result is a record of its own.
    fn owner(&self, key: u64) -> Option<Owner> {
        if key == canary::SESSION {
            return None;
        }
        if let Some(session) = self.node.session(key) {
            return Some(Owner { id: session.id, identity: session.chain.clone(), session: Some(session) });
        }
        Some(self.leftovers.get(&key).cloned().unwrap_or_default())
    }

    fn started(&mut self, event: &ExecEvent) {
        if event.exec == 0 {
            // Observe mode: no grant said which exec this is.
            return;
        }
        let Some(owner) = self.owner(event.header.session) else { return };
        let Some(session) = &owner.session else { return };
        let mut frozen = session.end_attempt(event.exec).map(|a| a.frozen).unwrap_or_default();
        if frozen.len() < 2 {
            self.thaw(frozen.drain(..));
        }
        let image = Image {
            tgid: event.header.tgid,
            started_boot_ns: event.header.boot_ns,
            program: until_nul(&event.path),
            frozen,
            gone_since: 0,
        };
        if let Some((exec, before)) = session.image_started(event.exec, image) {
            // `#!/usr/bin/env python3`: env is replaced by the program that reads the script.
            self.thaw(session.keep_on(event.exec, before.frozen));
            let outcome = ExecOutcome {
                started: true,
                duration_ns: event.header.boot_ns.saturating_sub(before.started_boot_ns),
                reason: "replaced by another exec of the same process".into(),
                ..outcome(&owner, exec)
            };
            self.node.keep(owner.id, Body::ExecOutcome(outcome));
        }
    }

    fn killed(&mut self, event: &ExecEvent) {
        let Some(owner) = self.owner(event.header.session) else { return };
        if let Some(session) = &owner.session {
            self.end_attempt(session, event.exec);
            session.tell(SessionMessage {
                kind: "killed".into(),
                text: format!("killed by the kernel: {}: {}", text(&event.path), reason_name(event.reason)),
                pid: event.header.tgid,
                ..SessionMessage::default()
            });
        }
        let outcome = ExecOutcome {
            disposition: Disposition::Killed.into(),
            reason: reason_name(event.reason).into(),
            ..outcome(&owner, event.exec)
        };
        self.node.keep(owner.id, Body::ExecOutcome(outcome));
    }

    fn refused(&mut self, event: &ExecEvent) {
        let Some(owner) = self.owner(event.header.session) else { return };
        let stage = owner.session.as_ref().and_then(|s| self.end_attempt(s, event.exec));
        let why = reason_name(event.reason);
        if stage == Some(Stage::Granted) {
            // It has its record as allowed; the kernel found something else than what was judged.
            if let Some(session) = &owner.session {
                session.tell(SessionMessage {
                    kind: "denied".into(),
                    text: format!("denied by the kernel: {}: {why}", text(&event.path)),
                    pid: event.header.tgid,
                    ..SessionMessage::default()
                });
            }
            let outcome = ExecOutcome {
                disposition: Disposition::Failed.into(),
                errno: libc::EPERM.cast_unsigned(),
                reason: why.into(),
                ..outcome(&owner, event.exec)
            };
            self.node.keep(owner.id, Body::ExecOutcome(outcome));
            return;
        }
        if let Some(session) = &owner.session {
            if session.adopts && event.reason == reason::NO_GRANT {
                // Perhaps through a mount of a namespace that is not known yet: the next try may be held.
                session.mounts.ask(event.header.tid);
            }
            session.denied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            session.tell(SessionMessage {
                kind: "denied".into(),
                text: format!("denied by the kernel: {}: {why}", text(&event.path)),
                pid: event.header.tgid,
                ..SessionMessage::default()
            });
        }
        let expired = event.reason == reason::SESSION_EXPIRED;
        let body = ExecUnjudged {
            identity: Some(owner.identity),
            exec_id: event.exec,
            pid: event.header.tgid,
            tid: event.header.tid,
            uid: event.uid,
            comm: until_nul(&event.comm),
            path: until_nul(&event.path),
            argv_trust: "unreadable".into(),
            errno: libc::EPERM.cast_unsigned(),
            reason: why.into(),
            probes: 1,
            disposition: if expired { Disposition::Expired } else { Disposition::Denied }.into(),
            root_exec_id: event.root,
            ..ExecUnjudged::default()
        };
        self.keep_at_will(owner.id, Body::ExecUnjudged(body));
    }

    /// Keeps a record that the session can cause as often as it likes.
    fn keep_at_will(&mut self, id: SessionId, body: Body) {
        if let Some(body) = self.at_will.take(id, body, time::boot_ns()) {
            self.node.keep(id, body);
        }
    }

    fn failed(&mut self, event: &FailedEvent) {
        let Some(owner) = self.owner(event.header.session) else { return };
        let stage = owner.session.as_ref().and_then(|s| self.end_attempt(s, event.exec));
        if self.node.observes() && event.errno == 0 {
            // Without a grant nothing took the attempt back when its image started.
            return;
        }
        if stage == Some(Stage::Deciding) {
            // Killed while a person was asked.
            self.node.approvals.task_gone(event.exec);
            return;
        }
        // A refusal has told its own story.
        if event.state & (attempt_state::DENIED | attempt_state::KILLED) != 0 || stage == Some(Stage::Denied) {
            return;
        }
        if stage == Some(Stage::Granted) || event.state & attempt_state::GRANTED != 0 {
            let outcome = ExecOutcome {
                disposition: Disposition::Failed.into(),
                errno: event.errno,
                reason: match event.errno {
                    0 => "only checked, nothing was started (AT_EXECVE_CHECK)".into(),
                    errno => io::Error::from_raw_os_error(errno.cast_signed()).to_string(),
                },
                ..outcome(&owner, event.exec)
            };
            self.node.keep(owner.id, Body::ExecOutcome(outcome));
            return;
        }
        self.fold_probe(&owner, event);
    }

    /// An attempt that failed before it was held. A shell's walk through `PATH` is one record with a count.
    fn fold_probe(&mut self, owner: &Owner, event: &FailedEvent) {
        let body = unjudged(owner, event);
        if let Some((_, known, _)) = self.probes.get_mut(&event.header.tid) {
            if same_probe(known, &body) {
                known.probes = known.probes.saturating_add(1);
                known.path = body.path;
                return;
            }
            self.flush_probe(event.header.tid);
        }
        if self.probes.len() >= PROBES_MAX {
            self.flush_probes(u64::MAX);
        }
        self.probes.insert(event.header.tid, (owner.id, body, event.header.boot_ns));
    }

    fn flush_probe(&mut self, tid: u32) {
        if let Some((id, body, _)) = self.probes.remove(&tid) {
            self.keep_at_will(id, Body::ExecUnjudged(body));
        }
    }

    fn flush_probes(&mut self, now: u64) {
        let old: Vec<u32> =
            self.probes.iter().filter(|(_, p)| now.saturating_sub(p.2) >= FOLD_NS).map(|(tid, _)| *tid).collect();
        old.into_iter().for_each(|tid| self.flush_probe(tid));
    }

    fn flush(&mut self, now: u64) {
        self.flush_probes(now);
        for (id, body) in self.acts.due(now) {
            self.keep_at_will(id, body);
        }
        for (id, body) in self.at_will.due(now) {
            self.node.keep(id, body);
        }
    }

    fn exited(&mut self, event: &ExitEvent) {
        let tgid = event.header.tgid;
        if self.seen_before(event.exec, tgid) {
            return;
        }
        let Some(owner) = self.owner(event.header.session) else { return };
        let Some(session) = &owner.session else { return };
        session.seen_exit(tgid, event.status);
        let started_boot_ns = match session.process_ended(event.exec, tgid) {
            Some(image) => {
                self.thaw(image.frozen);
                image.started_boot_ns
            }
            // It ended while there was no daemon, or its start was lost.
            None if event.exec != 0 => entered_boot_ns(event.exec),
            None => return,
        };
        let outcome = ExecOutcome {
            started: true,
            exited: true,
            status: event.status,
            duration_ns: event.header.boot_ns.saturating_sub(started_boot_ns),
            ..outcome(&owner, event.exec)
        };
        self.node.keep(owner.id, Body::ExecOutcome(outcome));
    }

    /// While a new daemon's programs take the place of the old ones, both see the same exit.
    fn seen_before(&mut self, exec: u64, tgid: u32) -> bool {
        const REMEMBERED: usize = 64;
        if self.exits.contains(&(exec, tgid)) {
            return true;
        }
        if self.exits.len() >= REMEMBERED {
            self.exits.pop_front();
        }
        self.exits.push_back((exec, tgid));
        false
    }

    fn guard(&mut self, event: &GuardEvent) {
        let Some(owner) = self.owner(event.header.session) else { return };
        let program = owner.session.as_ref().map(|s| s.program_of(event.exec)).unwrap_or_default();
        let rule = match event.reason {
            reason::NETWORK => self.node.reach.rules.text(socket_detail::rule(event.detail)),
            _ => String::new(),
        };
        if let Some(session) = &owner.session {
            deletes::event(&self.node, session, event);
        }
        let place = self.node.protected.explain(event);
        for (id, body) in self.acts.take(event, owner.id, &owner.identity, program, (rule, place)) {
            self.keep_at_will(id, body);
        }
        let Some(session) = &owner.session else { return };
        if !matches!(event.reason, reason::MOUNT | reason::USER_NAMESPACE) {
            return;
        }
        if session.adopts {
            session.mounts.ask(event.header.tid);
        } else if event.outcome == guard_outcome::REFUSED && self.said.is_new(event) {
            let what = reason_name(event.reason).replace('_', " ");
            let text = format!("denied: {what}: profile `{}` has namespaces = \"deny\"", session.profile);
            session.say("denied", text, "");
        }
    }

    fn end_attempt(&self, session: &Session, exec: u64) -> Option<Stage> {
        session.notes.ended(exec);
        let attempt = session.end_attempt(exec)?;
        self.thaw(attempt.frozen);
        Some(attempt.stage)
    }

    fn thaw(&self, kept: impl IntoIterator<Item = Kept>) {
        for what in kept {
            self.node.freezes.thaw(&self.node.kernel, what);
        }
    }
}

fn wait(reader: &EventReader, node: &Node) {
    let pause = Timespec::try_from(PAUSE).ok();
    let ready = poll(&mut [PollFd::new(reader, PollFlags::IN)], pause.as_ref());
    if ready.is_ok_and(|ready| ready > 0) && !node.freezes.somebody_may_wait() {
        thread::sleep(GATHER);
    }
}

/// At a session's end: waits until the ring is read, thaws what is left and records images that were killed with it.
pub fn settle(node: &Arc<Node>, session: &Session) {
    // Its last event came before this, on whatever processor.
    let last = time::boot_ns() + 10_000_000;
    let end = last + 5_000_000_000;
    while PROGRESS.read_until() < last && time::boot_ns() < end {
        thread::sleep(Duration::from_millis(5));
    }
    for (exec, image) in session.take_images() {
        for key in image.frozen {
            node.freezes.thaw(&node.kernel, key);
        }
        let body = ExecOutcome {
            identity: Some(session.chain.clone()),
            exec_id: exec,
            started: true,
            duration_ns: time::boot_ns().saturating_sub(image.started_boot_ns),
            reason: "still running when its session ended".into(),
            ..ExecOutcome::default()
        };
        node.keep(session.id, Body::ExecOutcome(body));
    }
    for key in session.take_frozen() {
        node.freezes.thaw(&node.kernel, key);
    }
}

fn outcome(owner: &Owner, exec: u64) -> ExecOutcome {
    ExecOutcome { identity: Some(owner.identity.clone()), exec_id: exec, ..ExecOutcome::default() }
}

fn unjudged(owner: &Owner, event: &FailedEvent) -> ExecUnjudged {
    let readable = event.args_count != UNREADABLE;
    let count = if readable { event.args_count as usize } else { 0 };
    ExecUnjudged {
        identity: Some(owner.identity.clone()),
        exec_id: event.exec,
        pid: event.header.tgid,
        tid: event.header.tid,
        uid: event.uid,
        comm: until_nul(&event.comm),
        path: if event.path_len == UNREADABLE { Vec::new() } else { until_nul(&event.path) },
        argv: blobs::shown_of_cut(
            event.args.chunks(EVENT_ARG_SLOT).take(count).map(until_nul).collect(),
            EVENT_ARG_SLOT,
        ),
        argv_trust: if readable { "untrusted" } else { "unreadable" }.into(),
        argv_cut: event.args_cut != 0,
        errno: event.errno,
        reason: String::new(),
        probes: 1,
        disposition: Disposition::Failed.into(),
        root_exec_id: event.root,
        parent_exec_id: event.parent_exec,
        folded: false,
    }
}

/// The same program name looked for in another folder, with the same arguments.
fn same_probe(a: &ExecUnjudged, b: &ExecUnjudged) -> bool {
    let name = |path: &[u8]| path.rsplit(|c| *c == b'/').next().map(<[u8]>::to_vec);
    name(&a.path) == name(&b.path) && a.argv == b.argv && a.pid == b.pid && a.identity == b.identity
}

pub fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&until_nul(bytes)).into_owned()
}

const _: () = assert!(COMM == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_one_name_fold() {
        let probe =
            |path: &str| ExecUnjudged { path: path.into(), pid: 1, argv: vec![b"git".to_vec()], ..Default::default() };
        assert!(same_probe(&probe("/a/git"), &probe("/b/git")));
        assert!(!same_probe(&probe("/a/git"), &probe("/b/got")));
    }

    #[test]
    fn texts_end_at_nul() {
        assert_eq!(until_nul(b"ab\0cd"), b"ab");
        assert_eq!(until_nul(b""), b"");
    }
}
