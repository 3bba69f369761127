//! Requests for review on this host: from the question to the decision, the end of the hold, the deadline.
//!
//! It must not believe a decision that names another request digest, comes after the deadline or after the session's end.
//! Fails: no decision in time, no collector, no record: denied.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Decision, Disposition, ExecDecision, ExecFacts, ExecRequest, Verdict};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::deletes;
use crate::facts::Facts;
use crate::hold::{self, Opening};
use crate::judge::{self, Cover, Judged};
use crate::kernel::fanotify::Held;
use crate::kernel::time;
use crate::node::Node;
use crate::requests;
use crate::session::{RootApproval, Session, Stage};

/// A right that came after the hold lasts at least this long.
const RIGHT_MIN_NS: u64 = 60_000_000_000;
/// Most execs that one root's approval can cover.
const ROOT_EXECS_MAX: u32 = 1000;

struct Waiter {
    facts: Arc<Facts>,
    judged: Judged,
    held: Held,
    hold_until: u64,
}

struct Pending {
    session: Arc<Session>,
    digest: [u8; 32],
    first_exec: u64,
    root: u64,
    category: String,
    opened_boot_ns: u64,
    shown_unix_ns: i64,
    deadline_boot_ns: u64,
    /// Held execs: the one the request is about, or the identical one tried again.
    waiters: Vec<Waiter>,
    /// The exec of the request itself is still among them.
    first_held: bool,
    /// It is about deletions, not about an exec: whose budget an approval raises.
    deletes: Option<Deleting>,
    /// Digest of the blob that its record names.
    blob: Vec<u8>,
}

/// What a request about deletions needs to know when it is approved.
struct Deleting {
    /// Digest of the identical command, should it have ended by then.
    command: Option<[u8; 32]>,
}

/// An approval that waits for the identical exec.
#[derive(Clone, Debug)]
pub struct Right {
    /// The request.
    pub request_id: String,
    /// Who approved it.
    pub reviewer: String,
    /// For descendants, if the scope says so.
    pub root: Option<RootApproval>,
    digest: [u8; 32],
    session: String,
    until_boot_ns: u64,
}

impl Right {
    /// Opens the root's approval for the exec that uses this right.
    pub fn open_root(&self, session: &Session, root: u64) {
        if let Some(approval) = &self.root
            && root != 0
        {
            session.approve_root(root, approval.clone());
        }
    }
}

/// All of them.
#[derive(Default)]
pub struct Approvals {
    pending: Mutex<HashMap<String, Pending>>,
    rights: Mutex<Vec<Right>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Approvals {
    /// Execs that are held for a person.
    pub fn held(&self) -> usize {
        lock(&self.pending).values().map(|p| p.waiters.len()).sum()
    }

    /// Open requests of one session.
    pub fn open_of(&self, session_key: u64) -> usize {
        lock(&self.pending).values().filter(|p| p.session.key == session_key).count()
    }

    /// Held execs of one session.
    pub fn held_of(&self, session: &str) -> usize {
        lock(&self.pending).values().filter(|p| p.session.identity.session_id == session).map(|p| p.waiters.len()).sum()
    }

    /// Asks a person, or joins the question that is open for the identical exec.
    pub fn ask(&self, node: &Arc<Node>, session: &Arc<Session>, facts: Arc<Facts>, judged: Judged, held: Held) {
        let digest = facts.digest(&session.identity.session_id);
        let hold_until = time::boot_ns() + ns(node.config.hold.max());
        let waiter = Waiter { facts, judged, held, hold_until };
        if let Some(waiter) = self.join(node, session, &digest, waiter) {
            self.open(node, session, digest, waiter);
        }
    }

    /// Joins a question whose own exec is no longer held. Gives the waiter back if there is none.
    fn join(&self, node: &Node, session: &Session, digest: &[u8; 32], mut waiter: Waiter) -> Option<Waiter> {
        let mut pending = lock(&self.pending);
        let open = pending.values_mut().find(|p| {
            p.digest == *digest
                && p.deletes.is_none()
                && !p.first_held
                && p.waiters.is_empty()
                && p.session.key == session.key
        });
        match open {
            Some(open) => {
                if !open.blob.is_empty() {
                    // The request's blob is of the same arguments; a second one that no record names would wait for ever.
                    node.blobs.discard(&waiter.judged.own_blob());
                    (waiter.judged.blob, waiter.judged.requested) = (open.blob.clone(), true);
                }
                open.waiters.push(waiter);
                None
            }
            None => Some(waiter),
        }
    }

    fn open(&self, node: &Arc<Node>, session: &Arc<Session>, digest: [u8; 32], mut waiter: Waiter) {
        let id = ulid::Ulid::generate().to_string();
        let now = time::boot_ns();
        let length = Duration::from_secs(node.config.hold.review_deadline_seconds);
        let deadline_boot_ns = (now + ns(length)).min(session.life.until().boot_ns);
        let opened_unix_ns = time::wall_unix_ns();
        let record = ExecRequest {
            identity: Some(session.identity.clone()),
            facts: Some(waiter.facts.to_proto(node, waiter.judged.for_record())),
            verdict: Some(waiter.judged.verdict.clone()),
            request_id: id.clone(),
            deadline_boot_ns,
            deadline_unix_ns: opened_unix_ns + i64::try_from(deadline_boot_ns.saturating_sub(now)).unwrap_or(0),
            hold_max_ns: ns(node.config.hold.max()),
            digest: digest.to_vec(),
            timing: Some(waiter.judged.timing),
        };
        let text = format!("waits for review: {}", judge::command(&waiter.facts));
        waiter.judged.requested = true;
        let (tid, exec) = (waiter.facts.attempt.tid, waiter.facts.attempt.exec);
        let pending = Pending {
            session: Arc::clone(session),
            digest,
            first_exec: waiter.facts.attempt.exec,
            root: waiter.judged.root,
            category: waiter.judged.verdict.category.clone(),
            opened_boot_ns: now,
            shown_unix_ns: opened_unix_ns,
            deadline_boot_ns,
            blob: waiter.judged.blob.clone(),
            waiters: vec![waiter],
            first_held: true,
            deletes: None,
        };
        // Known before it is durable: a decision may come as soon as it is.
        lock(&self.pending).insert(id.clone(), pending);
        if let Err(error) = keep(node, session, &id, exec) {
            return self.drop_unrecorded(node, &id, &error.to_string());
        }
        if node.kernel.attempt(tid).is_none_or(|a| a.exec != exec) {
            // Killed while facts were gathered: its end was seen before the request was there.
            self.task_gone(exec);
        }
        let recorded = node.append(session.id, Body::ExecRequest(record));
        match recorded {
            Ok(ticket) => {
                let (node, session) = (Arc::clone(node), Arc::clone(session));
                ticket.on_done(move |done| match done {
                    Ok(_) => session.say("review", text, &id),
                    Err(error) => node.approvals.drop_unrecorded(&node, &id, &error.to_string()),
                });
            }
            Err(error) => self.drop_unrecorded(node, &id, &error.to_string()),
        }
    }

    /// Asks whether a command may delete more than its budget. Nothing is held meanwhile.
    pub fn ask_deletes(
        &self,
        node: &Arc<Node>,
        session: &Arc<Session>,
        facts: ExecFacts,
        verdict: Verdict,
        root: u64,
        command: Option<[u8; 32]>,
    ) {
        let id = ulid::Ulid::generate().to_string();
        let now = time::boot_ns();
        let length = Duration::from_secs(node.config.hold.review_deadline_seconds);
        let deadline_boot_ns = (now + ns(length)).min(session.life.until().boot_ns);
        let opened_unix_ns = time::wall_unix_ns();
        let digest: [u8; 32] = {
            let mut hasher = Sha256::new();
            hasher.update(b"guard delete request v1\0");
            hasher.update(id.as_bytes());
            hasher.update(root.to_le_bytes());
            hasher.finalize().into()
        };
        let text = verdict.reasons.first().map(|r| r.text.clone()).unwrap_or_default();
        let pending = Pending {
            session: Arc::clone(session),
            digest,
            first_exec: facts.exec_id,
            root,
            category: verdict.category.clone(),
            opened_boot_ns: now,
            shown_unix_ns: opened_unix_ns,
            deadline_boot_ns,
            waiters: Vec::new(),
            first_held: false,
            deletes: Some(Deleting { command }),
            blob: Vec::new(),
        };
        let record = ExecRequest {
            identity: Some(session.identity.clone()),
            facts: Some(facts),
            verdict: Some(verdict),
            request_id: id.clone(),
            deadline_boot_ns,
            deadline_unix_ns: opened_unix_ns + i64::try_from(deadline_boot_ns.saturating_sub(now)).unwrap_or(0),
            hold_max_ns: 0,
            digest: digest.to_vec(),
            timing: None,
        };
        let exec = pending.first_exec;
        lock(&self.pending).insert(id.clone(), pending);
        if let Err(error) = keep(node, session, &id, exec) {
            return self.drop_unrecorded(node, &id, &error.to_string());
        }
        match node.append(session.id, Body::ExecRequest(record)) {
            Ok(ticket) => {
                let (node, session) = (Arc::clone(node), Arc::clone(session));
                ticket.on_done(move |done| match done {
                    Ok(_) => session.say("review", text, &id),
                    Err(error) => node.approvals.drop_unrecorded(&node, &id, &error.to_string()),
                });
            }
            Err(error) => self.drop_unrecorded(node, &id, &error.to_string()),
        }
    }

    fn drop_unrecorded(&self, node: &Node, id: &str, why: &str) {
        tracing::error!(why, "a request could not be recorded; it is denied");
        requests::forget(&node.config.node.state_dir, id);
        if let Some(pending) = lock(&self.pending).remove(id) {
            node.blobs.discard(&pending.blob);
            for waiter in &pending.waiters {
                pending.session.set_stage(waiter.facts.attempt.exec, Stage::Denied);
                hold::answer(&pending.session, &waiter.held, false);
            }
        }
    }

    /// A one-use right for this exec, if there is one.
    pub fn use_right(&self, session: &str, digest: &[u8; 32]) -> Option<Right> {
        let mut rights = lock(&self.rights);
        let now = time::boot_ns();
        rights.retain(|r| r.until_boot_ns > now);
        let place = rights.iter().position(|r| r.digest == *digest && r.session == session)?;
        Some(rights.swap_remove(place))
    }

    /// Ends holds and requests whose time is over. To be called often.
    pub fn tick(&self, node: &Arc<Node>) {
        let now = time::boot_ns();
        let grace = ns(Duration::from_secs(node.config.hold.collector_grace_seconds));
        let unreachable = node.link.down_since().is_some_and(|since| now.saturating_sub(since) >= grace);
        let mut over = Vec::new();
        let mut released = Vec::new();
        {
            let mut pending = lock(&self.pending);
            for (id, request) in pending.iter_mut() {
                if now >= request.deadline_boot_ns {
                    over.push((id.clone(), Disposition::TimedOut, String::new()));
                } else if unreachable && now.saturating_sub(request.opened_boot_ns) >= grace {
                    let why = format!("the collector is unreachable: {}", node.link.error());
                    over.push((id.clone(), Disposition::Denied, why));
                } else {
                    for waiter in request.waiters.extract_if(.., |w| now >= w.hold_until) {
                        let first = waiter.facts.attempt.exec == request.first_exec;
                        request.first_held &= !first;
                        released.push((id.clone(), Arc::clone(&request.session), waiter, first));
                    }
                }
            }
        }
        for (id, session, waiter, first) in released {
            end_hold(node, &session, waiter, &id, first);
        }
        for (id, disposition, why) in over {
            self.close(node, &id, disposition, "", &why);
        }
    }

    /// A held task is gone: the request stays open, for the identical exec should it be tried again.
    pub fn task_gone(&self, exec: u64) {
        for request in lock(&self.pending).values_mut() {
            let before = request.waiters.len();
            request.waiters.retain(|w| w.facts.attempt.exec != exec);
            if request.waiters.len() < before && request.first_exec == exec {
                request.first_held = false;
            }
        }
    }

    /// Denies every open request of a session that ended.
    pub fn session_ended(&self, node: &Arc<Node>, session: &Session, reason: &str) {
        let ids: Vec<String> = lock(&self.pending)
            .iter()
            .filter(|(_, p)| p.session.key == session.key)
            .map(|(id, _)| id.clone())
            .collect();
        let disposition = if reason == "expired" { Disposition::Expired } else { Disposition::Denied };
        for id in ids {
            self.close(node, &id, disposition, "", &format!("the session ended: {reason}"));
        }
        lock(&self.rights).retain(|r| r.session != session.identity.session_id);
    }

    /// Releases everything that is held, unjudged: enforcement is lifted.
    pub fn lift(&self) {
        for (_, pending) in lock(&self.pending).drain() {
            for waiter in pending.waiters {
                hold::answer(&pending.session, &waiter.held, true);
            }
        }
    }

    /// Takes a decision from the collector.
    pub fn decide(&self, node: &Arc<Node>, decision: &Decision) {
        let fits = lock(&self.pending)
            .get(&decision.request_id)
            .map(|p| p.digest.as_slice() == decision.digest.as_slice() && time::boot_ns() < p.deadline_boot_ns);
        match fits {
            None => tracing::debug!(request = decision.request_id, "a decision for a request that is not open"),
            Some(false) => {
                tracing::warn!(request = decision.request_id, "a decision with another digest or after the deadline");
            }
            Some(true) if decision.approve => self.approve(node, decision),
            Some(true) => {
                self.close(node, &decision.request_id, Disposition::Denied, &decision.reviewer, &decision.reason)
            }
        }
    }

    fn approve(&self, node: &Arc<Node>, decision: &Decision) {
        let Some(mut pending) = lock(&self.pending).remove(&decision.request_id) else { return };
        let session = Arc::clone(&pending.session);
        let approval = root_approval(decision, &pending);
        let first = pending.first_held.then(|| pending.waiters.pop()).flatten();
        let record = ExecDecision {
            waited_ns: time::boot_ns().saturating_sub(pending.opened_boot_ns),
            held: first.is_some(),
            decision_leaf: decision.leaf,
            ..decision_record(
                &pending,
                &decision.request_id,
                Disposition::Approved,
                &decision.reviewer,
                &decision.reason,
            )
        };
        let recorded = Closing::of(node, &decision.request_id);
        let ticket = match node.append(session.id, Body::ExecDecision(record)) {
            Ok(ticket) => ticket,
            Err(error) => {
                tracing::error!(%error, "an approval could not be recorded; the exec is denied");
                refuse_all(&session, first.into_iter().chain(pending.waiters));
                return;
            }
        };
        if let Some(deleting) = &pending.deletes {
            let (node, root, command) = (Arc::clone(node), pending.root, deleting.command);
            // `once` names no number; with `root` the bound on execs is one on files.
            let files = (decision.scope == "root").then_some(decision.max_execs);
            let id = decision.request_id.clone();
            ticket.on_done(move |done| {
                if done.is_ok() {
                    deletes::approved(&node, &session, root, command, files);
                    session.say("approved", "approved: more files may be deleted".into(), &id);
                }
            });
            return;
        }
        if let Some(waiter) = first {
            deletes::approved_exec(node, &session, pending.root, &pending.category);
            if let Some(approval) = approval.filter(|_| pending.root != 0) {
                session.approve_root(pending.root, approval);
            }
            let (node, opening) = (Arc::clone(node), Opening::of(&waiter.facts, waiter.judged.root));
            ticket.on_done(move |done| {
                let durable = done.is_ok();
                hold::release(&node, &session, &waiter.held, &opening, done);
                recorded.done(durable);
            });
            return;
        }
        ticket.on_done(move |done| recorded.done(done.is_ok()));
        let right = Right {
            request_id: decision.request_id.clone(),
            reviewer: decision.reviewer.clone(),
            root: approval,
            digest: pending.digest,
            session: session.identity.session_id.clone(),
            until_boot_ns: pending
                .deadline_boot_ns
                .max(time::boot_ns() + RIGHT_MIN_NS)
                .min(session.life.until().boot_ns),
        };
        match pending.waiters.pop() {
            Some(waiter) => {
                judge::admit(node, &session, &waiter.facts, waiter.held, &waiter.judged, &Cover::Right(right))
            }
            None => {
                session.say("approved", "approved: run the same command again".into(), &decision.request_id);
                lock(&self.rights).push(right);
            }
        }
    }

    /// Ends a request without an approval.
    fn close(&self, node: &Arc<Node>, id: &str, disposition: Disposition, reviewer: &str, why: &str) {
        let Some(pending) = lock(&self.pending).remove(id) else { return };
        let record = ExecDecision {
            waited_ns: time::boot_ns().saturating_sub(pending.opened_boot_ns),
            held: pending.first_held,
            ..decision_record(&pending, id, disposition, reviewer, why)
        };
        let session = Arc::clone(&pending.session);
        session.denied.fetch_add(1, Ordering::Relaxed);
        let said = match disposition {
            Disposition::TimedOut => "denied: nobody decided in time".to_owned(),
            _ if reviewer.is_empty() => format!("denied: {why}"),
            _ => format!("denied by {reviewer}: {why}"),
        };
        session.say("denied", said, id);
        let recorded = Closing::of(node, id);
        match node.append(session.id, Body::ExecDecision(record)) {
            Ok(ticket) => ticket.on_done(move |done| {
                refuse_all(&session, pending.waiters);
                recorded.done(done.is_ok());
            }),
            Err(error) => {
                tracing::error!(%error, "the end of a request could not be recorded");
                refuse_all(&session, pending.waiters);
            }
        }
    }
}

/// Keeps a request on disk until its decision is recorded.
fn keep(node: &Node, session: &Session, id: &str, exec: u64) -> std::io::Result<()> {
    let kept = requests::Open {
        request: id.to_owned(),
        session: session.id.to_string(),
        identity: hex::encode(session.chain.encode_to_vec()),
        exec,
    };
    requests::opened(&node.config.node.state_dir, &kept)
}

/// A request whose decision is being recorded.
struct Closing {
    state_dir: PathBuf,
    id: String,
    seq: u64,
}

impl Closing {
    fn of(node: &Node, id: &str) -> Self {
        let (state_dir, seq) = (node.config.node.state_dir.clone(), node.journal.state().next_seq);
        requests::closing(&state_dir, id, seq);
        Self { state_dir, id: id.to_owned(), seq }
    }

    fn done(self, durable: bool) {
        if durable {
            requests::closed(&self.state_dir, &self.id, self.seq);
        }
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn decision_record(
    pending: &Pending,
    id: &str,
    disposition: Disposition,
    reviewer: &str,
    reason: &str,
) -> ExecDecision {
    ExecDecision {
        identity: Some(pending.session.chain.clone()),
        request_id: id.into(),
        exec_id: pending.first_exec,
        disposition: disposition.into(),
        reviewer: reviewer.into(),
        reason: reason.into(),
        ..ExecDecision::default()
    }
}

/// The bounds that a reviewer set for a root's descendants. Without any: its own category, twenty execs.
fn root_approval(decision: &Decision, pending: &Pending) -> Option<RootApproval> {
    if decision.scope != "root" {
        return None;
    }
    let categories =
        if decision.categories.is_empty() { vec![pending.category.clone()] } else { decision.categories.clone() };
    let left_ns = u64::try_from(decision.expires_unix_ns.saturating_sub(time::wall_unix_ns())).unwrap_or(0);
    let until = if decision.expires_unix_ns == 0 { u64::MAX } else { time::boot_ns().saturating_add(left_ns) };
    Some(RootApproval {
        request_id: decision.request_id.clone(),
        reviewer: decision.reviewer.clone(),
        categories,
        left: if decision.max_execs == 0 { 20 } else { decision.max_execs.min(ROOT_EXECS_MAX) },
        until_boot_ns: until.min(pending.session.life.until().boot_ns),
        shown_unix_ns: pending.shown_unix_ns,
        tgid: 0,
    })
}

fn refuse_all(session: &Session, waiters: impl IntoIterator<Item = Waiter>) {
    for waiter in waiters {
        session.set_stage(waiter.facts.attempt.exec, Stage::Denied);
        hold::answer(session, &waiter.held, false);
    }
}

/// The hold is over, the request is not. The exec of the request has its record; one that was tried again gets its own.
fn end_hold(node: &Arc<Node>, session: &Arc<Session>, waiter: Waiter, id: &str, first: bool) {
    let text = "held for as long as it may be; the request stays open: once it is approved, run the same command again";
    if first {
        session.say("review", text.into(), id);
        refuse_all(session, [waiter]);
    } else {
        judge::deny(node, session, &waiter.facts, waiter.held, &waiter.judged, text, id);
    }
}
