//! Requests for review on this host: from the question to the decision, the end of the hold, the deadline.
//!
//! It must not believe a decision by itself: what counts is for [`Ballot`] to say, and nothing counts after the deadline or the
//! session's end. Fails: no decision in time, no collector, no record: denied.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_policy::{Granted, band, secrets};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    Decision, DecisionFinding, Disposition, ExecDecision, ExecFacts, ExecRequest, Kind, PendingRequest, SessionMessage,
    Verdict,
};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::backoff::{self, Backoff, Like};
use crate::ballot::{Agreed, Ballot, KIND, Question, Taken, Trust};
use crate::config::Signed;
use crate::deletes;
use crate::facts::Facts;
use crate::hold::{self, Opening};
use crate::judge::{self, Cover, Judged};
use crate::kernel::fanotify::Held;
use crate::kernel::time;
use crate::node::Node;
use crate::policies::InForce;
use crate::requests;
use crate::session::{RootApproval, Session, Stage};
use crate::standing::{Asked, Right, Rights};

/// A right that came after the hold lasts at least this long.
const RIGHT_MIN_NS: u64 = 60_000_000_000;
/// Execs that an approval for a root covers when it names no number.
const ROOT_EXECS: u32 = 20;

struct Waiter {
    facts: Arc<Facts>,
    judged: Judged,
    held: Held,
    hold_until: u64,
}

struct Pending {
    session: Arc<Session>,
    /// What is asked about, masked and short.
    command: String,
    digest: [u8; 32],
    ballot: Ballot,
    first_exec: u64,
    root: u64,
    category: String,
    /// Of all its parts.
    categories: Vec<String>,
    /// Without what newness adds.
    risk: u32,
    /// What an approval with scope kind covers; `None`: that is not offered.
    asked: Option<Asked>,
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

impl Pending {
    /// What it is like, for the pause after repeated denials.
    fn likes(&self) -> impl Iterator<Item = Like> + use<> {
        backoff::likes(self.digest, self.root, self.first_exec)
    }
}

/// What a request about deletions needs to know when it is approved.
struct Deleting {
    /// Digest of the identical command, should it have ended by then.
    command: Option<[u8; 32]>,
}

/// All of them.
#[derive(Default)]
pub struct Approvals {
    pending: Mutex<HashMap<String, Pending>>,
    rights: Mutex<Rights>,
    backoff: Mutex<Backoff>,
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

    /// What waits for a reviewer in one session, for the session's own eyes.
    pub fn waiting_of(&self, session_key: u64) -> Vec<PendingRequest> {
        const SHOWN_MAX: usize = 64;
        let now = time::boot_ns();
        let pending = lock(&self.pending);
        let mut waiting: Vec<PendingRequest> = pending
            .iter()
            .filter(|(_, p)| p.session.key == session_key)
            .map(|(id, p)| PendingRequest {
                request_id: id.clone(),
                command: p.command.clone(),
                category: p.category.clone(),
                left_ns: p.deadline_boot_ns.saturating_sub(now),
                held: !p.waiters.is_empty(),
            })
            .collect();
        drop(pending);
        // Ids are in the order in which they were asked.
        waiting.sort_by(|a, b| a.request_id.cmp(&b.request_id));
        waiting.truncate(SHOWN_MAX);
        waiting
    }

    /// Held execs of one session.
    pub fn held_of(&self, session: &str) -> usize {
        lock(&self.pending).values().filter(|p| p.session.identity.session_id == session).map(|p| p.waiters.len()).sum()
    }

    /// Asks a person, or joins the question that is open for the identical exec.
    pub fn ask(&self, node: &Arc<Node>, session: &Arc<Session>, facts: Arc<Facts>, judged: Judged, held: Held) {
        let digest = facts.digest(&session.identity.session_id);
        let likes = backoff::likes(digest, judged.root, facts.attempt.exec);
        if let Some(paused) = lock(&self.backoff).paused(session.key, likes, time::boot_ns()) {
            return judge::deny(node, session, &facts, held, &judged, &paused.text(), "");
        }
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
            facts: Some(waiter.facts.to_proto(node, &session.identity.agent, waiter.judged.for_record())),
            verdict: Some(waiter.judged.verdict.clone()),
            request_id: id.clone(),
            deadline_boot_ns,
            deadline_unix_ns: opened_unix_ns + i64::try_from(deadline_boot_ns.saturating_sub(now)).unwrap_or(0),
            hold_max_ns: ns(node.config.hold.max()),
            digest: digest.to_vec(),
            timing: Some(waiter.judged.timing),
            kinds: kinds(waiter.judged.asked.as_ref(), &waiter.facts),
            kinds_max_risk: waiter.judged.asked.as_ref().map_or(0, |asked| u32::from(band(asked.risk))),
        };
        let command = judge::command(&waiter.facts);
        let text = format!("waits for review: {command}");
        waiter.judged.requested = true;
        let (tid, exec) = (waiter.facts.attempt.tid, waiter.facts.attempt.exec);
        let pending = Pending {
            session: Arc::clone(session),
            command,
            digest,
            ballot: Ballot::default(),
            first_exec: waiter.facts.attempt.exec,
            root: waiter.judged.root,
            category: waiter.judged.verdict.category.clone(),
            categories: waiter.judged.verdict.categories.clone(),
            risk: waiter.judged.standing_risk(),
            asked: waiter.judged.asked.clone(),
            opened_boot_ns: now,
            shown_unix_ns: opened_unix_ns,
            deadline_boot_ns,
            blob: waiter.judged.blob.clone(),
            waiters: vec![waiter],
            first_held: true,
            deletes: None,
        };
        self.post(node, session, record, pending, text, Some((tid, exec)));
    }

    /// Keeps, records and so asks a question. `task` is whom it holds.
    fn post(
        &self,
        node: &Arc<Node>,
        session: &Arc<Session>,
        record: ExecRequest,
        mut pending: Pending,
        text: String,
        task: Option<(u32, u64)>,
    ) {
        let (id, exec, opened) = (record.request_id.clone(), pending.first_exec, pending.shown_unix_ns);
        let asked = record.clone();
        let entry = node.made(session.id, Body::ExecRequest(record));
        pending.ballot = Ballot::new(Question::of(&asked, &entry.body, opened));
        // Known before it is durable: a decision may come as soon as it is.
        lock(&self.pending).insert(id.clone(), pending);
        if let Err(error) = keep(node, session, &id, exec) {
            return self.drop_unrecorded(node, &id, &error.to_string());
        }
        if let Some((tid, exec)) = task
            && node.kernel.attempt(tid).is_none_or(|a| a.exec != exec)
        {
            // Killed while facts were gathered: its end was seen before the request was there.
            self.task_gone(exec);
        }
        match node.append_entry(session.id, entry) {
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
            command: text.clone(),
            digest,
            ballot: Ballot::default(),
            first_exec: facts.exec_id,
            root,
            category: verdict.category.clone(),
            categories: verdict.categories.clone(),
            risk: verdict.risk,
            asked: None,
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
            ..ExecRequest::default()
        };
        self.post(node, session, record, pending, text, None);
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

    /// A right for this exec, if there is one.
    pub fn use_right(&self, session: &str, digest: &[u8; 32]) -> Option<Right> {
        lock(&self.rights).take(session, digest, time::boot_ns())
    }

    /// Rights to all kinds of acts that it is made of, if there are.
    pub fn use_kinds(&self, session: &str, asked: &Asked) -> Option<Vec<Right>> {
        lock(&self.rights).take_kinds(session, asked, time::boot_ns())
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
            self.close(node, &id, disposition, DeniedBy::default(), &why);
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
            self.close(node, &id, disposition, DeniedBy::default(), &format!("the session ended: {reason}"));
        }
        lock(&self.rights).session_ended(&session.identity.session_id);
        lock(&self.backoff).session_ended(session.key);
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
        if decision.revoke {
            return self.revoke(node, decision);
        }
        // Whoever takes it out has it: of two decisions at once, one ends the request.
        let (taken, session, approved) = {
            let mut pending = lock(&self.pending);
            let open = pending.get_mut(&decision.request_id).filter(|p| time::boot_ns() < p.deadline_boot_ns);
            let Some(open) = open else {
                return tracing::debug!(request = decision.request_id, "a decision for a request that is not open");
            };
            let in_force = node.policies.of(&open.session.identity.agent).counts;
            let taken = open.ballot.take(decision, trust(node, &in_force), time::wall_unix_ns());
            let session = Arc::clone(&open.session);
            let ends = matches!(taken, Taken::Approved(_));
            (taken, session, ends.then(|| pending.remove(&decision.request_id)).flatten())
        };
        match (taken, approved) {
            (Taken::Approved(agreed), Some(pending)) => self.approve(node, pending, &decision.request_id, agreed),
            (Taken::Denied(key), _) => self.denied(node, decision, key, &session),
            (Taken::Refused(why), _) => {
                let reviewer = &decision.reviewer;
                tracing::warn!(request = decision.request_id, reviewer, why, "a decision is not taken");
                session.say("review", format!("an approval by {reviewer} is not taken: {why}"), &decision.request_id);
                note(node, &session, DecisionFinding { what: "refused".into(), detail: why, ..finding(decision) });
            }
            (Taken::Counted { key_id, have, needed }, _) => {
                let text = format!("approved by {}: {have} of {needed} that it takes", decision.reviewer);
                session.say("review", text, &decision.request_id);
                let found = DecisionFinding { what: "counted".into(), key_id, have, needed, ..finding(decision) };
                note(node, &session, found);
            }
            (Taken::Ignored | Taken::Approved(_), _) => {}
        }
    }

    /// A denial denies whoever made it; whether its reviewer's key says so stands in the record.
    fn denied(&self, node: &Arc<Node>, decision: &Decision, key: Option<[u8; 32]>, session: &Session) {
        let in_force = node.policies.of(&session.identity.agent).counts;
        let by = DeniedBy {
            reviewer: &decision.reviewer,
            key,
            unsigned: key.is_none() && trust(node, &in_force).signs(),
            on_behalf_of: decision.delegation.as_ref().map_or("", |d| &d.from),
            leaf: decision.leaf,
        };
        self.close(node, &decision.request_id, Disposition::Denied, by, &decision.reason);
    }

    /// Ends what an approval still allows. Processes that run go on; what they start is asked about again.
    fn revoke(&self, node: &Arc<Node>, decision: &Decision) {
        let id = decision.request_id.as_str();
        let mut ended: Vec<(Arc<Session>, u32)> = Vec::new();
        if let Some((session, left)) = lock(&self.rights).revoke(id)
            && let Some(session) = node.session_by_id(&session)
        {
            ended.push((session, left));
        }
        ended.extend(node.sessions().into_iter().filter_map(|s| s.revoke_roots(id).map(|left| (s, left))));
        let Some((session, _)) = ended.first() else { return };
        let unused = ended.iter().map(|(_, left)| left).sum();
        tracing::info!(request = id, by = decision.reviewer, unused, "an approval is revoked");
        let why = if decision.reason.is_empty() { String::new() } else { format!(": {}", decision.reason) };
        session.say("denied", format!("{} revoked an approval{why}", decision.reviewer), id);
        let found =
            DecisionFinding { what: "revoked".into(), detail: decision.reason.clone(), unused, ..finding(decision) };
        note(node, session, found);
    }

    fn approve(&self, node: &Arc<Node>, mut pending: Pending, id: &str, agreed: Agreed) {
        let session = Arc::clone(&pending.session);
        lock(&self.backoff).approved(session.key, pending.likes());
        let approval = root_approval(&agreed, id, &pending);
        let first = pending.first_held.then(|| pending.waiters.pop()).flatten();
        let record = ExecDecision {
            waited_ns: time::boot_ns().saturating_sub(pending.opened_boot_ns),
            held: first.is_some(),
            decision_leaf: agreed.leaves.last().copied().unwrap_or_default(),
            reviewers: agreed.reviewers.clone(),
            on_behalf_of: agreed.on_behalf_of.clone(),
            key_ids: agreed.key_ids.clone(),
            decision_leaves: agreed.leaves.clone(),
            ..decision_record(&pending, id, Disposition::Approved, &agreed.names(), &agreed.reason)
        };
        let recorded = Closing::of(node, id);
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
            // `once` names no number; else the bound on execs is one on files.
            let files = (agreed.scope != "once").then_some(agreed.max_execs);
            let id = id.to_owned();
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
            let right = right(&agreed, id, &pending, approval.clone());
            if right.for_session {
                let left = right.left.saturating_sub(1);
                lock(&self.rights).add(Right { left, ..right }, time::boot_ns());
            }
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
        let mut right = right(&agreed, id, &pending, approval);
        match pending.waiters.pop() {
            Some(waiter) => {
                right.left = right.left.saturating_sub(1);
                lock(&self.rights).add(right.clone(), time::boot_ns());
                judge::admit(node, &session, &waiter.facts, waiter.held, &waiter.judged, &Cover::Right(right))
            }
            None => {
                session.say("approved", "approved: run the same command again".into(), id);
                lock(&self.rights).add(right, time::boot_ns());
            }
        }
    }

    /// Ends a request without an approval.
    fn close(&self, node: &Arc<Node>, id: &str, disposition: Disposition, by: DeniedBy<'_>, why: &str) {
        let Some(pending) = lock(&self.pending).remove(id) else { return };
        let reviewer = by.reviewer;
        let some = |text: &str| (!reviewer.is_empty()).then(|| text.to_owned()).into_iter().collect::<Vec<_>>();
        let record = ExecDecision {
            waited_ns: time::boot_ns().saturating_sub(pending.opened_boot_ns),
            held: pending.first_held,
            decision_leaf: by.leaf,
            reviewers: some(reviewer),
            on_behalf_of: some(by.on_behalf_of),
            key_ids: by.key.map(Vec::from).into_iter().collect(),
            unsigned: by.unsigned,
            ..decision_record(&pending, id, disposition, reviewer, why)
        };
        let session = Arc::clone(&pending.session);
        if disposition == Disposition::Denied && !reviewer.is_empty() {
            let pauses = node.config.reviews.pauses();
            lock(&self.backoff).denied(session.key, pending.likes(), pauses, time::boot_ns());
        }
        session.denied.fetch_add(1, Ordering::Relaxed);
        let said = match disposition {
            Disposition::TimedOut => "denied: nobody decided in time".to_owned(),
            _ if reviewer.is_empty() => format!("denied: {why}"),
            _ if by.unsigned => format!("denied by {reviewer}, as the collector says (not signed): {why}"),
            _ => format!("denied by {reviewer}: {why}"),
        };
        let of = pending.waiters.iter().find(|_| pending.first_held);
        session.tell(SessionMessage {
            kind: "denied".into(),
            text: said,
            request_id: id.into(),
            pid: of.map_or(0, |waiter| waiter.facts.attempt.tgid),
            rules: of.map_or_else(Vec::new, |waiter| {
                waiter.judged.verdict.reasons.iter().map(|reason| reason.rule_id.clone()).collect()
            }),
            ..SessionMessage::default()
        });
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

/// Who denied a request; nobody, if nobody is named.
#[derive(Clone, Copy, Default)]
struct DeniedBy<'a> {
    reviewer: &'a str,
    /// Id of the reviewer's key that signed it.
    key: Option<[u8; 32]>,
    /// Approvals need a signature here, and this denial has none that holds.
    unsigned: bool,
    on_behalf_of: &'a str,
    /// Leaf of the decision.
    leaf: u64,
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

/// Whom this host believes now.
pub fn trust<'a>(node: &Node, in_force: &'a InForce) -> Trust<'a> {
    Trust { roles: in_force.roles.as_ref(), required: node.config.reviews.signed == Signed::Required }
}

fn finding(decision: &Decision) -> DecisionFinding {
    DecisionFinding {
        request_id: decision.request_id.clone(),
        reviewer: decision.reviewer.clone(),
        decision_leaf: decision.leaf,
        ..DecisionFinding::default()
    }
}

fn note(node: &Node, session: &Session, found: DecisionFinding) {
    node.keep(session.id, Body::DecisionFinding(DecisionFinding { identity: Some(session.chain.clone()), ..found }));
}

/// When an approval ends, by the clock that nobody sets.
fn until_boot_ns(agreed: &Agreed, session: &Session) -> u64 {
    let left_ns = u64::try_from(agreed.expires_unix_ns.saturating_sub(time::wall_unix_ns())).unwrap_or(0);
    let until = if agreed.expires_unix_ns == 0 { u64::MAX } else { time::boot_ns().saturating_add(left_ns) };
    until.min(session.life.until().boot_ns)
}

/// The right to the identical exec: once more, or for the rest of the session.
fn right(agreed: &Agreed, id: &str, pending: &Pending, root: Option<RootApproval>) -> Right {
    let session = &pending.session;
    let for_session = Right::is_for_session(agreed);
    let once = pending.deadline_boot_ns.max(time::boot_ns() + RIGHT_MIN_NS).min(session.life.until().boot_ns);
    Right {
        request_id: id.to_owned(),
        reviewer: agreed.names(),
        root,
        for_session,
        kinds: granted(agreed, pending),
        digest: pending.digest.to_vec(),
        session: session.identity.session_id.clone(),
        left: if for_session { agreed.max_execs } else { 1 },
        until_boot_ns: if for_session { until_boot_ns(agreed, session) } else { once },
    }
}

/// The kinds of acts that reviewers granted.
fn granted(agreed: &Agreed, pending: &Pending) -> Granted {
    let mut granted = Granted::default();
    if let Some(asked) = pending.asked.as_ref().filter(|_| agreed.scope == KIND) {
        granted.grant(&asked.kinds, asked.risk);
    }
    granted
}

/// The kinds as they may be written: without secrets.
fn kinds(asked: Option<&Asked>, facts: &Facts) -> Vec<Kind> {
    let masked = |text: &str| secrets::mask_repeated(text, &facts.argv, &facts.shown.secrets);
    let kinds = asked.iter().flat_map(|asked| &asked.kinds);
    kinds
        .map(|kind| Kind { rule_id: kind.rule_id.clone(), category: kind.category.clone(), scope: masked(&kind.scope) })
        .collect()
}

/// The bounds that reviewers set for a root's descendants. Without any: its own category, twenty execs. With scope kind: the
/// categories of the line that they saw.
fn root_approval(agreed: &Agreed, id: &str, pending: &Pending) -> Option<RootApproval> {
    let categories = match (agreed.scope.as_str(), agreed.categories.as_slice()) {
        (KIND, _) => pending.categories.clone(),
        ("root", []) => vec![pending.category.clone()],
        ("root", named) => named.to_vec(),
        _ => return None,
    };
    Some(RootApproval {
        request_id: id.to_owned(),
        reviewer: agreed.names(),
        categories,
        // Descendants of critical risk are asked about, unless what was shown is no less.
        max_risk: pending.risk.max(u32::from(band(u8::MAX))),
        left: match agreed.max_execs {
            0 => ROOT_EXECS,
            _ if agreed.scope == KIND => ROOT_EXECS,
            named => named,
        },
        until_boot_ns: until_boot_ns(agreed, &pending.session),
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
