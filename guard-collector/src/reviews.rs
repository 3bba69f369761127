//! Requests that wait for a person, derived from the log, and what a decision must satisfy.
//!
//! Holds what is still open: a request leaves when its host has recorded what became of it. Closed ones are answered by the
//! index. Approvals of which a request needs several are counted from the log; a decision that the host did not take counts no
//! more. It must not decide on anything but the log's records, the caller's certificate and what roles say of it. Fails closed: a
//! decision that does not fit exactly is refused; a request beyond the bounds below is logged but cannot be approved.

use std::collections::HashMap;

use guard_log::record::{HostId, Kind, Record, SessionId};
use guard_policy::decision::Statement;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    DecideRequest, Decision, DecisionFinding, Delegation, ExecRequest, GivenDecision, RequestEscalated, Review,
    ReviewDecision,
};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::body;
use crate::delegations::Delegations;
use crate::identity::Caller;

/// Open requests of one host.
const PER_HOST_MAX: usize = 1024;
/// Open requests of all hosts.
const OPEN_MAX: usize = 16_384;
/// The host writes its own record of the deadline; until so long after it the request is not called expired.
const GRACE_NS: i64 = 5_000_000_000;
/// Requests whose host stays silent are forgotten so long after their deadline.
const FORGET_NS: i64 = 3_600_000_000_000;
/// Most execs that an approval with scope `root` or `session` may cover.
pub const EXECS_MAX: u32 = 1_000;
/// A signed approval may expire so much later than one that the collector dates: the reviewer was shown the time a while ago.
const SLACK_NS: i64 = 5_000_000_000;
/// Refusals of its host that are shown with a request.
const REFUSED_MAX: usize = 8;
/// Revocations of one host that are sent again when it comes back.
const REVOKED_MAX: usize = 256;
/// And for how long: longer than any approval or session lasts.
const REVOKED_NS: i64 = 7 * 86_400_000_000_000;
const CATEGORIES_MAX: usize = 32;
const CATEGORY_MAX: usize = 64;
/// Longest reason.
pub const REASON_MAX: usize = 2_000;
const REQUEST_ID_MAX: usize = 64;
const ESCALATED: Kind = Kind(42);
const DELEGATED: Kind = Kind(43);

/// An open request.
#[derive(Clone, Debug)]
pub struct Open {
    /// Host that asks.
    pub host: HostId,
    /// Leaf of the request.
    pub leaf: u64,
    /// Its session.
    pub session: SessionId,
    /// The request as recorded.
    pub request: ExecRequest,
    /// Host's wall clock at the request.
    pub opened: i64,
    /// SHA-256 of the body of its record.
    pub record_sha256: [u8; 32],
    /// Reviewers' decisions with their leaves: approvals, or one denial at the end.
    pub decided: Vec<(u64, ReviewDecision)>,
    /// Decisions that the host did not take: leaf of its record, and why.
    pub refused: Vec<(u64, String)>,
    /// Another group is asked too: leaf of the record that says so, and when.
    pub escalated: Option<(u64, i64, Vec<String>)>,
}

/// All open requests.
#[derive(Debug, Default)]
pub struct Reviews {
    open: HashMap<String, Open>,
    /// Revocations that their host may not have heard of, by leaf.
    revoked: Vec<Revoked>,
    /// Who may decide for whom.
    pub delegations: Delegations,
}

#[derive(Clone, Debug)]
struct Revoked {
    leaf: u64,
    host: HostId,
    at: i64,
    decision: ReviewDecision,
}

/// What roles say of a decision.
#[derive(Clone, Debug, Default)]
pub struct Permit {
    /// Different reviewers who must approve.
    pub needed: u32,
    /// Id of the key that signed it; empty: it is not signed, or there is no key here to check with.
    pub key_id: Vec<u8>,
}

/// A decision that may be appended.
#[derive(Debug)]
pub struct Decided {
    /// Session of the request.
    pub session: SessionId,
    /// The record's body.
    pub body: ReviewDecision,
}

/// Word for a request that is not decided: `pending`, or `expired` once nobody can answer any more.
pub fn undecided(deadline_ns: i64, now_ns: i64) -> &'static str {
    if now_ns > deadline_ns.saturating_add(GRACE_NS) { "expired" } else { "pending" }
}

// === impl Open ===

impl Open {
    /// Its state in one word.
    pub fn state(&self, now_ns: i64) -> &'static str {
        match self.ending() {
            Some((_, decision)) if decision.approve => "approved",
            Some(_) => "denied",
            None => undecided(self.request.deadline_unix_ns, now_ns),
        }
    }

    /// The decision that ends it: a denial, or the last approval that was needed.
    fn ending(&self) -> Option<&(u64, ReviewDecision)> {
        let approvals = u32::try_from(self.decided.len()).unwrap_or(u32::MAX);
        self.decided.last().filter(|(_, last)| !last.approve || approvals >= last.needed)
    }

    /// Who approved it with somebody's right, their own or by a delegation.
    fn used_right_of(&self, name: &str) -> Option<&str> {
        let uses = |d: &ReviewDecision| d.reviewer == name || d.delegation.as_ref().is_some_and(|by| by.from == name);
        self.decided.iter().find(|(_, d)| d.approve && uses(d)).map(|(_, d)| d.reviewer.as_str())
    }

    /// As the control service shows it; `before` is left empty.
    pub fn review(&self, host_name: &str, now_ns: i64) -> Review {
        let decision = self.ending().map(|(_, d)| d);
        Review {
            request: Some(self.request.clone()),
            host: self.host.0.to_vec(),
            host_name: host_name.to_owned(),
            leaf: self.leaf,
            state: self.state(now_ns).to_owned(),
            reviewer: decision.map(|d| d.reviewer.clone()).unwrap_or_default(),
            reason: decision.map(|d| d.reason.clone()).unwrap_or_default(),
            opened_unix_ns: self.opened,
            given: self.decided.iter().filter(|(_, d)| d.approve).map(|(leaf, d)| given(*leaf, d)).collect(),
            refused: self.refused.iter().map(|(_, why)| why.clone()).collect(),
            escalated_unix_ns: self.escalated.as_ref().map_or(0, |(_, at, _)| *at),
            escalated_to: self.escalated.as_ref().map(|(.., to)| to.clone()).unwrap_or_default(),
            ..Review::default()
        }
    }

    /// What a reviewer signs.
    pub fn statement<'a>(&'a self, wanted: &'a DecideRequest, reviewer: &'a str) -> Statement<'a> {
        Statement {
            request_id: &self.request.request_id,
            digest: &self.request.digest,
            record_sha256: &self.record_sha256,
            approve: wanted.approve,
            scope: &wanted.scope,
            categories: &wanted.categories,
            max_execs: wanted.max_execs,
            expires_unix_ns: wanted.expires_unix_ns,
            reason: &wanted.reason,
            reviewer,
            decided_unix_ns: wanted.decided_unix_ns,
            delegation_id: &wanted.delegation_id,
        }
    }
}

fn given(leaf: u64, d: &ReviewDecision) -> GivenDecision {
    GivenDecision {
        reviewer: d.reviewer.clone(),
        leaf,
        key_id: d.key_id.clone(),
        scope: d.scope.clone(),
        categories: d.categories.clone(),
        max_execs: d.max_execs,
        on_behalf_of: d.delegation.as_ref().map(|by| by.from.clone()).unwrap_or_default(),
    }
}

// === impl Reviews ===

impl Reviews {
    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, record: &Record) {
        let header = record.header();
        const KINDS: [Kind; 6] = [
            Kind::EXEC_REQUEST,
            Kind::EXEC_DECISION,
            Kind::REVIEW_DECISION,
            Kind::DECISION_FINDING,
            ESCALATED,
            DELEGATED,
        ];
        if !KINDS.contains(&header.kind) {
            return;
        }
        match body::parse(record) {
            Some(Body::ExecRequest(request)) => {
                let new = Open {
                    host: header.host,
                    leaf,
                    session: header.session,
                    request,
                    opened: header.wall_unix_ns,
                    record_sha256: Sha256::digest(record.body()).into(),
                    decided: vec![],
                    refused: vec![],
                    escalated: None,
                };
                self.open_request(new);
            }
            Some(Body::ExecDecision(end)) if self.open.get(&end.request_id).is_some_and(|o| o.host == header.host) => {
                self.open.remove(&end.request_id);
            }
            Some(Body::DecisionFinding(found)) => self.found(leaf, header.host, &found),
            Some(Body::RequestEscalated(escalated)) => self.escalate(leaf, header.wall_unix_ns, escalated),
            Some(Body::ReviewDelegated(delegated)) => self.delegations.fold(leaf, header.wall_unix_ns, delegated),
            Some(Body::ReviewDecision(decision)) if decision.revoke => self.revoke(leaf, header.wall_unix_ns, decision),
            Some(Body::ReviewDecision(decision)) => {
                if let Some(open) = self.open.get_mut(&decision.request_id)
                    && open.host.0 == decision.host.as_slice()
                {
                    open.decided.push((leaf, decision));
                }
            }
            _ => {}
        }
    }

    /// What the host made of a decision: one that it refused is none, and the request waits again.
    fn found(&mut self, leaf: u64, host: HostId, found: &DecisionFinding) {
        match (found.what.as_str(), self.open.get_mut(&found.request_id)) {
            ("refused", Some(open)) if open.host == host => {
                open.decided.retain(|(of, _)| *of != found.decision_leaf);
                if open.refused.len() < REFUSED_MAX {
                    open.refused.push((leaf, format!("{}: {}", found.reviewer, found.detail)));
                }
            }
            ("revoked", _) => {
                self.revoked.retain(|r| r.host != host || r.decision.request_id != found.request_id);
            }
            _ => {}
        }
    }

    fn escalate(&mut self, leaf: u64, at: i64, escalated: RequestEscalated) {
        let open = self.open.get_mut(&escalated.request_id).filter(|o| o.host.0 == escalated.host.as_slice());
        if let Some(open) = open {
            open.escalated.get_or_insert((leaf, at, escalated.to));
        }
    }

    fn revoke(&mut self, leaf: u64, at: i64, decision: ReviewDecision) {
        let Some(host) = HostId::from_slice(&decision.host) else { return };
        let old = at.saturating_sub(REVOKED_NS);
        self.revoked.retain(|r| r.at > old && (r.host != host || r.decision.request_id != decision.request_id));
        if self.revoked.iter().filter(|r| r.host == host).count() >= REVOKED_MAX
            && let Some(first) = self.revoked.iter().position(|r| r.host == host)
        {
            self.revoked.remove(first);
        }
        self.revoked.push(Revoked { leaf, host, at, decision });
    }

    fn open_request(&mut self, new: Open) {
        let id = &new.request.request_id;
        if id.is_empty() || id.len() > REQUEST_ID_MAX || new.request.digest.len() != 32 {
            return;
        }
        if self.open.get(id).is_some_and(|known| known.host != new.host) {
            return;
        }
        if self.open.len() >= OPEN_MAX || self.of_host(new.host).count() >= PER_HOST_MAX {
            let forget = new.opened.saturating_sub(FORGET_NS);
            self.open.retain(|_, o| o.request.deadline_unix_ns > forget);
            if self.open.len() >= OPEN_MAX || self.of_host(new.host).count() >= PER_HOST_MAX {
                tracing::warn!(host = %new.host, "too many open requests; this one cannot be approved");
                return;
            }
        }
        self.open.insert(id.clone(), new);
    }

    fn of_host(&self, host: HostId) -> impl Iterator<Item = &Open> {
        self.open.values().filter(move |o| o.host == host)
    }

    /// Leaves of open requests and of their decisions, in order: folding them again gives the same.
    pub fn leaves(&self) -> Vec<u64> {
        let mut leaves: Vec<u64> = self.revoked.iter().map(|r| r.leaf).chain(self.delegations.leaves()).collect();
        for open in self.open.values() {
            leaves.push(open.leaf);
            leaves.extend(open.decided.iter().map(|(leaf, _)| *leaf));
            leaves.extend(open.refused.iter().map(|(leaf, _)| *leaf));
            leaves.extend(open.escalated.iter().map(|(leaf, ..)| *leaf));
        }
        leaves.sort_unstable();
        leaves
    }

    /// The first leaf of requests that somebody may still answer, or whose host may still come back, and of delegations that have
    /// not ended.
    pub fn needed(&self, now_ns: i64) -> Option<u64> {
        let forget = now_ns.saturating_sub(FORGET_NS);
        let open = self.open.values().filter(|o| o.request.deadline_unix_ns > forget).map(|o| o.leaf);
        open.chain(self.delegations.needed(now_ns)).min()
    }

    /// One by id.
    pub fn get(&self, request_id: &str) -> Option<&Open> {
        self.open.get(request_id)
    }

    /// Those that wait, in log order.
    pub fn pending(&self, durable: u64, now_ns: i64) -> Vec<&Open> {
        let mut found: Vec<&Open> =
            self.open.values().filter(|o| o.leaf < durable && o.state(now_ns) == "pending").collect();
        found.sort_by_key(|o| o.leaf);
        found
    }

    /// Durable decisions for requests of a host that it has not closed, in log order.
    pub fn decisions(&self, host: HostId, durable: u64) -> Vec<Decision> {
        let revoked = self.revoked.iter().filter(|r| r.host == host).map(|r| (r.leaf, &r.decision));
        let decided = self.of_host(host).flat_map(|o| o.decided.iter().map(|(leaf, decision)| (*leaf, decision)));
        let mut found: Vec<Decision> = decided
            .chain(revoked)
            .filter(|(leaf, _)| *leaf < durable)
            .map(|(leaf, decision)| decision_of(leaf, decision))
            .collect();
        found.sort_by_key(|d| d.leaf);
        found
    }

    /// Checks a decision against the request and makes the record's body. `permit` says what roles say of it, and of the delegation
    /// that it names.
    pub fn check(
        &self,
        wanted: &DecideRequest,
        caller: &Caller,
        (durable, now_ns, expires): (u64, i64, i64),
        permit: impl FnOnce(&Open, Option<&Delegation>) -> Result<Permit, Status>,
    ) -> Result<Decided, Status> {
        let id = &wanted.request_id;
        let not_open = || Status::not_found(format!("no open request {id:?}"));
        let open = self.open.get(id).filter(|o| o.leaf < durable).ok_or_else(not_open)?;
        let not_so = |why: String| Err(Status::failed_precondition(why));
        if wanted.digest != open.request.digest {
            return not_so(format!("the digest is not that of request {id}: nothing was decided; look at it again"));
        }
        if !wanted.record_sha256.is_empty() && wanted.record_sha256 != open.record_sha256 {
            return not_so(format!("the record that was shown is not that of request {id}: nothing was decided"));
        }
        if let Some((leaf, decision)) = open.ending() {
            let word = if decision.approve { "approved" } else { "denied" };
            return not_so(format!("request {id} was {word} by {} at leaf {leaf}", decision.reviewer));
        }
        if now_ns > open.request.deadline_unix_ns {
            return not_so(format!(
                "the deadline of request {id} has passed by this collector's clock; where its host's clock differs, set both"
            ));
        }
        let identity = open.request.identity.clone().unwrap_or_default();
        let delegation = self.delegation(wanted, caller, now_ns)?;
        let sides = || std::iter::once(caller.name.as_str()).chain(delegation.map(|d| d.from.as_str()));
        if let Some(owner) = sides().find(|name| *name == identity.initiator || *name == identity.started_by) {
            return Err(Status::permission_denied(format!(
                "{owner} started session {}; somebody else must decide its requests",
                identity.session_id
            )));
        }
        if let Some((name, by)) = sides().find_map(|name| open.used_right_of(name).map(|by| (name, by)))
            && wanted.approve
        {
            let of = if by == name { String::new() } else { format!(" with the right of {name}") };
            return not_so(format!("{by} has approved request {id} already{of}; it takes somebody else too"));
        }
        let (scope, categories, max_execs) = bounds(wanted)?;
        if scope == "kind" && open.request.kinds.is_empty() {
            return Err(Status::invalid_argument(
                "scope kind: the host offers none for this request; accepted are once, session and root",
            ));
        }
        let expires = expiry(wanted, now_ns, expires)?;
        let permit = permit(open, delegation)?;
        if let Some((_, first)) = open.decided.first()
            && wanted.approve
            && (&first.scope, &first.categories, first.max_execs) != (&scope, &categories, max_execs)
        {
            return not_so(format!(
                "{} approved request {id} with {}; approve the same, or deny it",
                first.reviewer,
                spelled(first)
            ));
        }
        let body = ReviewDecision {
            request_id: id.clone(),
            digest: open.request.digest.clone(),
            reviewer: caller.name.clone(),
            approve: wanted.approve,
            reason: wanted.reason.clone(),
            scope,
            categories,
            max_execs,
            expires_unix_ns: expires,
            host: open.host.0.to_vec(),
            session_id: identity.session_id,
            agent: identity.agent,
            signature: wanted.signature.clone(),
            key_id: permit.key_id,
            decided_unix_ns: wanted.decided_unix_ns,
            record_sha256: wanted.record_sha256.clone(),
            revoke: false,
            given: if wanted.approve {
                u32::try_from(open.decided.len()).unwrap_or(u32::MAX).saturating_add(1)
            } else {
                0
            },
            needed: if wanted.approve { permit.needed.max(1) } else { 0 },
            delegation: delegation.cloned(),
        };
        Ok(Decided { session: open.session, body })
    }

    /// The delegation that a decision names, if it is the caller's and has not ended.
    fn delegation(&self, wanted: &DecideRequest, caller: &Caller, now_ns: i64) -> Result<Option<&Delegation>, Status> {
        let id = wanted.delegation_id.as_str();
        if id.is_empty() {
            return Ok(None);
        }
        let found = self.delegations.get(id).filter(|d| d.to == caller.name && d.until_unix_ns > now_ns);
        let none = || Status::permission_denied(format!("{} has no delegation {id:?}, or it has ended", caller.name));
        found.map(Some).ok_or_else(none)
    }
}

/// How far an approval reaches, as the command line says it.
fn spelled(d: &ReviewDecision) -> String {
    match d.scope.as_str() {
        "root" => format!("scope root, {} execs of {}", d.max_execs, d.categories.join(", ")),
        scope @ ("session" | "kind") => format!("scope {scope}, {} execs", d.max_execs),
        scope => format!("scope {scope}"),
    }
}

/// When the approval ends: what the reviewer signed, if it is signed, else the collector's time.
fn expiry(wanted: &DecideRequest, now_ns: i64, latest: i64) -> Result<i64, Status> {
    if wanted.expires_unix_ns == 0 && wanted.signature.is_empty() {
        return Ok(latest);
    }
    let accepted = now_ns..=latest.saturating_add(SLACK_NS);
    if !wanted.approve || accepted.contains(&wanted.expires_unix_ns) {
        return Ok(wanted.expires_unix_ns);
    }
    Err(Status::invalid_argument(
        "expires_unix_ns: not between now and the longest life of an approval (review.approval_seconds of the collector)",
    ))
}

/// Scope, categories and number of execs as recorded.
fn bounds(wanted: &DecideRequest) -> Result<(String, Vec<String>, u32), Status> {
    let refuse = |what: String| Err(Status::invalid_argument(what));
    if wanted.reason.len() > REASON_MAX {
        return refuse(format!("reason: at most {REASON_MAX} bytes"));
    }
    if ![0, 64].contains(&wanted.signature.len()) || ![0, 32].contains(&wanted.record_sha256.len()) {
        return refuse("signature and record_sha256: 64 and 32 bytes are accepted, or none".to_owned());
    }
    if !wanted.approve && !wanted.signature.is_empty() {
        // What was signed is recorded as it was.
        let plain = wanted.scope == "once" && wanted.categories.is_empty() && wanted.max_execs == 0;
        return if plain { Ok(("once".to_owned(), vec![], 0)) } else { refuse("a denial has scope once".to_owned()) };
    }
    if !wanted.approve {
        return Ok(("once".to_owned(), vec![], 0));
    }
    match wanted.scope.as_str() {
        "once" if !wanted.categories.is_empty() || wanted.max_execs > 1 => {
            refuse("scope once covers one exec: categories and max_execs belong to scope root".to_owned())
        }
        "once" if !wanted.signature.is_empty() && wanted.max_execs != 1 => {
            refuse("a signed approval with scope once has max_execs 1".to_owned())
        }
        "once" => Ok(("once".to_owned(), vec![], 1)),
        scope @ ("session" | "kind") => {
            if !(1..=EXECS_MAX).contains(&wanted.max_execs) || !wanted.categories.is_empty() {
                return refuse(format!(
                    "scope {scope}: max_execs from 1 to {EXECS_MAX} and no categories are accepted"
                ));
            }
            Ok((scope.to_owned(), vec![], wanted.max_execs))
        }
        "root" => {
            if !(1..=EXECS_MAX).contains(&wanted.max_execs) {
                return refuse(format!("max_execs = {}: accepted is 1 to {EXECS_MAX}", wanted.max_execs));
            }
            if wanted.categories.is_empty() || wanted.categories.len() > CATEGORIES_MAX {
                return refuse(format!("categories: 1 to {CATEGORIES_MAX} are accepted"));
            }
            let fits = |c: &String| {
                let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
                !c.is_empty() && c.len() <= CATEGORY_MAX && c.bytes().all(known)
            };
            if let Some(wrong) = wanted.categories.iter().find(|c| !fits(c)) {
                return refuse(format!("category {wrong:?}: accepted are names such as vcs.write"));
            }
            Ok(("root".to_owned(), wanted.categories.clone(), wanted.max_execs))
        }
        other => refuse(format!("scope {other:?}: accepted are once, session, kind and root")),
    }
}

/// What the host gets.
pub fn decision_of(leaf: u64, d: &ReviewDecision) -> Decision {
    Decision {
        request_id: d.request_id.clone(),
        digest: d.digest.clone(),
        approve: d.approve,
        reviewer: d.reviewer.clone(),
        reason: d.reason.clone(),
        scope: d.scope.clone(),
        categories: d.categories.clone(),
        max_execs: d.max_execs,
        expires_unix_ns: d.expires_unix_ns,
        leaf,
        signature: d.signature.clone(),
        decided_unix_ns: d.decided_unix_ns,
        record_sha256: d.record_sha256.clone(),
        revoke: d.revoke,
        delegation: d.delegation.clone(),
    }
}
