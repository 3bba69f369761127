//! Requests that wait for a person, derived from the log, and what a decision must satisfy.
//!
//! Holds what is still open: a request leaves when its host has recorded what became of it. Closed ones are answered by the
//! index. It must not decide on anything but the log's records and the caller's certificate. Fails closed: a decision that does
//! not fit exactly is refused; a request beyond the bounds below is logged but cannot be approved.

use std::collections::HashMap;

use guard_log::record::{HostId, Kind, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecideRequest, Decision, ExecRequest, Review, ReviewDecision};
use tonic::Status;

use crate::body;
use crate::identity::Caller;

/// Open requests of one host.
const PER_HOST_MAX: usize = 1024;
/// Open requests of all hosts.
const OPEN_MAX: usize = 16_384;
/// The host writes its own record of the deadline; until so long after it the request is not called expired.
const GRACE_NS: i64 = 5_000_000_000;
/// Requests whose host stays silent are forgotten so long after their deadline.
const FORGET_NS: i64 = 3_600_000_000_000;
/// Most execs that an approval with scope `root` may cover.
pub const EXECS_MAX: u32 = 1_000;
const CATEGORIES_MAX: usize = 32;
const CATEGORY_MAX: usize = 64;
const REASON_MAX: usize = 2_000;
const REQUEST_ID_MAX: usize = 64;

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
    /// The reviewer's decision and its leaf.
    pub decided: Option<(u64, ReviewDecision)>,
}

/// All open requests.
#[derive(Debug, Default)]
pub struct Reviews {
    open: HashMap<String, Open>,
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
        match &self.decided {
            Some((_, decision)) if decision.approve => "approved",
            Some(_) => "denied",
            None => undecided(self.request.deadline_unix_ns, now_ns),
        }
    }

    /// As the control service shows it; `before` is left empty.
    pub fn review(&self, host_name: &str, now_ns: i64) -> Review {
        let decision = self.decided.as_ref().map(|(_, d)| d);
        Review {
            request: Some(self.request.clone()),
            host: self.host.0.to_vec(),
            host_name: host_name.to_owned(),
            leaf: self.leaf,
            state: self.state(now_ns).to_owned(),
            reviewer: decision.map(|d| d.reviewer.clone()).unwrap_or_default(),
            reason: decision.map(|d| d.reason.clone()).unwrap_or_default(),
            opened_unix_ns: self.opened,
            before: vec![],
        }
    }
}

// === impl Reviews ===

impl Reviews {
    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, record: &Record) {
        let header = record.header();
        if ![Kind::EXEC_REQUEST, Kind::EXEC_DECISION, Kind::REVIEW_DECISION].contains(&header.kind) {
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
                    decided: None,
                };
                self.open_request(new);
            }
            Some(Body::ExecDecision(end)) if self.open.get(&end.request_id).is_some_and(|o| o.host == header.host) => {
                self.open.remove(&end.request_id);
            }
            Some(Body::ReviewDecision(decision)) => {
                if let Some(open) = self.open.get_mut(&decision.request_id)
                    && open.host.0 == decision.host.as_slice()
                {
                    open.decided = Some((leaf, decision));
                }
            }
            _ => {}
        }
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
        let both = |o: &Open| [Some(o.leaf), o.decided.as_ref().map(|(leaf, _)| *leaf)];
        let mut leaves: Vec<u64> = self.open.values().flat_map(both).flatten().collect();
        leaves.sort_unstable();
        leaves
    }

    /// The first leaf of those that somebody may still answer, or whose host may still come back.
    pub fn needed(&self, now_ns: i64) -> Option<u64> {
        let forget = now_ns.saturating_sub(FORGET_NS);
        self.open.values().filter(|o| o.request.deadline_unix_ns > forget).map(|o| o.leaf).min()
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
        let mut found: Vec<Decision> = self
            .of_host(host)
            .filter_map(|o| o.decided.as_ref())
            .filter(|(leaf, _)| *leaf < durable)
            .map(|(leaf, decision)| decision_of(*leaf, decision))
            .collect();
        found.sort_by_key(|d| d.leaf);
        found
    }

    /// Checks a decision against the request and makes the record's body.
    pub fn check(
        &self,
        wanted: &DecideRequest,
        caller: &Caller,
        (durable, now_ns, expires): (u64, i64, i64),
    ) -> Result<Decided, Status> {
        let id = &wanted.request_id;
        let not_open = || Status::not_found(format!("no open request {id:?}"));
        let open = self.open.get(id).filter(|o| o.leaf < durable).ok_or_else(not_open)?;
        if wanted.digest != open.request.digest {
            return Err(Status::failed_precondition(format!(
                "the digest is not that of request {id}: nothing was decided; look at it again"
            )));
        }
        if let Some((leaf, decision)) = &open.decided {
            let word = if decision.approve { "approved" } else { "denied" };
            return Err(Status::failed_precondition(format!(
                "request {id} was {word} by {} at leaf {leaf}",
                decision.reviewer
            )));
        }
        if now_ns > open.request.deadline_unix_ns {
            return Err(Status::failed_precondition(format!("the deadline of request {id} has passed")));
        }
        let identity = open.request.identity.clone().unwrap_or_default();
        if caller.name == identity.initiator || caller.name == identity.started_by {
            return Err(Status::permission_denied(format!(
                "{} started session {}; somebody else must decide its requests",
                caller.name, identity.session_id
            )));
        }
        let (scope, categories, max_execs) = bounds(wanted)?;
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
        };
        Ok(Decided { session: open.session, body })
    }
}

/// Scope, categories and number of execs as recorded.
fn bounds(wanted: &DecideRequest) -> Result<(String, Vec<String>, u32), Status> {
    let refuse = |what: String| Err(Status::invalid_argument(what));
    if wanted.reason.len() > REASON_MAX {
        return refuse(format!("reason: at most {REASON_MAX} bytes"));
    }
    if !wanted.approve {
        return Ok(("once".to_owned(), vec![], 0));
    }
    match wanted.scope.as_str() {
        "once" if !wanted.categories.is_empty() || wanted.max_execs > 1 => {
            refuse("scope once covers one exec: categories and max_execs belong to scope root".to_owned())
        }
        "once" => Ok(("once".to_owned(), vec![], 1)),
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
        other => refuse(format!("scope {other:?}: accepted are once and root")),
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
    }
}
