//! Requests for review as they are shown: open ones from the ledger, closed ones from the index, the request itself always
//! from the log.
//!
//! It must not show a request that is not durable. Fails: a request that neither knows is `NOT_FOUND`.

use std::time::Duration;

use guard_log::record::{HostId, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecideRequest, Delegation, ExecFacts, ExecRequest, Review, ReviewDecision, RevokeRequest};
use prost::Message;
use tonic::Status;

use super::{Control, MESSAGE_BYTES};
use crate::access::Asked;
use crate::body;
use crate::identity::Caller;
use crate::index::Found;
use crate::own::now_ns;
use crate::reviews::{Open, REASON_MAX, decision_of};

/// How long a request that is just open waits for the index to know what ran before it.
const BEFORE_WAIT: Duration = Duration::from_secs(2);

fn within(reviews: impl Iterator<Item = Review>) -> Vec<Review> {
    let mut bytes = 0;
    reviews
        .take_while(|r| {
            bytes += r.encoded_len();
            bytes <= MESSAGE_BYTES
        })
        .collect()
}

/// What a caller asks who wants to see or decide a request.
pub(super) fn asked<'a>(review: &'a Review, delegations: &'a [Delegation]) -> Option<Asked<'a>> {
    // One that is over is as one that was escalated.
    let escalated = review.escalated_unix_ns != 0 || review.state != "pending";
    Some(Asked { request: review.request.as_ref()?, escalated, delegations })
}

fn shown(found: Found, request: Option<ExecRequest>) -> Review {
    Review {
        request,
        host: found.host.0.to_vec(),
        host_name: found.host_name,
        leaf: found.leaf,
        state: found.state,
        reviewer: found.reviewer,
        reason: found.reason,
        opened_unix_ns: found.opened,
        ..Review::default()
    }
}

impl Control {
    /// The latest expiry of an approval that is given now.
    pub(super) fn approval_until(&self) -> i64 {
        now_ns().saturating_add(i64::try_from(self.approval.as_nanos()).unwrap_or(i64::MAX))
    }

    /// An open request as it is shown.
    fn open_review(&self, open: &Open, host_name: &str, now: i64) -> Review {
        let review = open.review(host_name, now);
        let waits = open.escalated.is_none() && review.state == "pending";
        let at = self.access.escalation(open).filter(|_| waits).map_or(0, |(at, _)| at);
        Review { needed: self.access.needed(&open.request), escalates_unix_ns: at, ..review }
    }

    /// What the caller may decide it by, if not by roles of their own.
    pub(super) fn acting_for(&self, caller: &Caller, review: &Review) -> Option<Delegation> {
        let delegations = self.delegations_to(caller);
        self.access.by(caller, asked(review, &delegations)?)
    }

    /// Those that wait, oldest first.
    pub(super) fn pending_reviews(&self, caller: &Caller, session: &str, limit: u32) -> (Vec<Review>, u64) {
        let (size, now) = (self.ledger.store().size(), now_ns());
        let delegations = self.delegations_to(caller);
        let state = self.ledger.state();
        let sees = |open: &Open| {
            let (request, escalated) = (&open.request, open.escalated.is_some());
            self.access.sees(caller, Some(Asked { request, escalated, delegations: &delegations }))
        };
        let reviews = state
            .reviews
            .pending(size, now)
            .into_iter()
            .filter(|open| session.is_empty() || open.session.to_string() == session)
            .filter(|open| sees(open))
            .map(|open| self.open_review(open, state.admit.node_of(open.host).unwrap_or_default(), now))
            .take(limit as usize);
        (within(reviews), size)
    }

    /// The newest, closed ones too, oldest first.
    pub(super) async fn all_reviews(
        &self,
        caller: &Caller,
        session: String,
        limit: u32,
    ) -> Result<(Vec<Review>, u64), Status> {
        let (found, size) = self.ask(move |index| index.reviews(&session, limit, now_ns())).await?;
        let bodies = self.bodies(found.iter().map(|f| f.leaf).collect()).await?;
        let kept = self.ledger.store().first();
        let delegations = self.delegations_to(caller);
        let reviews = found.into_iter().filter_map(|f| {
            let request = bodies.iter().find_map(|(leaf, body)| match body {
                Body::ExecRequest(request) if *leaf == f.leaf => Some(request.clone()),
                _ => None,
            });
            // The index still knows one whose entry was pruned.
            // Whether one that is over was escalated does not matter any more.
            let asked = request.as_ref().map(|request| Asked { request, escalated: true, delegations: &delegations });
            let sees = self.access.sees(caller, asked);
            (sees && (request.is_some() || f.leaf < kept)).then(|| shown(f, request))
        });
        Ok((within(reviews), size))
    }

    /// One, with what ran before it.
    pub(super) async fn review(&self, id: &str) -> Result<Review, Status> {
        let open = {
            let state = self.ledger.state();
            let durable = self.ledger.store().size();
            state.reviews.get(id).filter(|o| o.leaf < durable).map(|o| {
                let host_name = state.admit.node_of(o.host).unwrap_or_default();
                (self.open_review(o, host_name, now_ns()), o.session.to_string())
            })
        };
        let (mut review, session) = match open {
            Some(open) => open,
            None => self.closed_review(id).await?,
        };
        review.before = self.before(&session, review.leaf).await?;
        review.approval_until_unix_ns = self.approval_until();
        let (entries, _) = self.entries(vec![review.leaf]).await?;
        review.record = entries.into_iter().next().map(|entry| entry.record.to_vec()).unwrap_or_default();
        Ok(review)
    }

    async fn closed_review(&self, id: &str) -> Result<(Review, String), Status> {
        let wanted = id.to_owned();
        let (found, size) = self.ask(move |index| index.review(&wanted, now_ns())).await?;
        let found = found
            .ok_or_else(|| Status::not_found(format!("no request {id:?} in the first {size} records of the log")))?;
        let request = self.bodies(vec![found.leaf]).await?.into_iter().find_map(|(_, body)| match body {
            Body::ExecRequest(request) => Some(request),
            _ => None,
        });
        let session = found.session.clone();
        Ok((shown(found, request), session))
    }

    async fn before(&self, session: &str, leaf: u64) -> Result<Vec<ExecFacts>, Status> {
        // A person sees the request in any case; what ran before is left out if the index is that far behind.
        let _ = tokio::time::timeout(BEFORE_WAIT, self.index.wait_for(leaf)).await;
        let session = session.to_owned();
        let (leaves, _) = self.ask(move |index| index.before(&session, leaf)).await?;
        let facts = self.bodies(leaves).await?.into_iter().filter_map(|(_, body)| match body {
            Body::Exec(exec) => exec.facts,
            Body::ExecRequest(request) => request.facts,
            _ => None,
        });
        Ok(facts.collect())
    }

    async fn bodies(&self, leaves: Vec<u64>) -> Result<Vec<(u64, Body)>, Status> {
        let (entries, _) = self.entries(leaves).await?;
        let parse = |record: Vec<u8>| Record::parse(record).ok().and_then(|r| body::parse(&r));
        Ok(entries.into_iter().filter_map(|e| parse(e.record).map(|b| (e.leaf, b))).collect())
    }

    /// Records that an approval is revoked and tells its host.
    pub(super) async fn revoke_approval(&self, caller: &Caller, wanted: RevokeRequest) -> Result<u64, Status> {
        if wanted.reason.len() > REASON_MAX {
            return Err(Status::invalid_argument(format!("reason: at most {REASON_MAX} bytes")));
        }
        let review = self.review(&wanted.request_id).await?;
        let id = wanted.request_id;
        let request = review.request.ok_or_else(|| Status::failed_precondition(format!("request {id} was pruned")))?;
        self.access.refresh(false);
        let delegations = self.delegations_to(caller);
        self.access.may_review(caller, Asked { request: &request, escalated: true, delegations: &delegations })?;
        if review.state != "approved" {
            let cure = if review.state == "pending" { "; `guardctl review deny` ends it" } else { "" };
            return Err(Status::failed_precondition(format!(
                "request {id} is {}: there is no approval to revoke{cure}",
                review.state
            )));
        }
        let identity = request.identity.unwrap_or_default();
        let host = HostId::from_slice(&review.host).ok_or_else(|| Status::internal("the request names no host"))?;
        let session = identity.session_id.parse().unwrap_or(SessionId::NONE);
        let body = ReviewDecision {
            request_id: id.clone(),
            digest: request.digest,
            reviewer: caller.name.clone(),
            reason: wanted.reason,
            host: review.host,
            session_id: identity.session_id,
            agent: identity.agent,
            revoke: true,
            ..ReviewDecision::default()
        };
        let (leaf, durable) = self.ledger.say(session, Body::ReviewDecision(body.clone()))?;
        durable.wait().await?;
        tracing::info!(request = %id, reviewer = %caller.name, leaf, "an approval is revoked");
        let bound = self.ledger.state().admit.node_of(host).unwrap_or_default().to_owned();
        self.hub.send(host, &bound, &decision_of(leaf, &body));
        Ok(leaf)
    }

    /// Why a decision found no open request.
    pub(super) async fn why_not_open(&self, wanted: &DecideRequest, unknown: Status) -> Status {
        match self.closed_review(&wanted.request_id).await {
            Ok((review, _)) if review.state != "pending" => Status::failed_precondition(format!(
                "request {} is no longer open: {}{}",
                wanted.request_id,
                review.state,
                if review.reviewer.is_empty() { String::new() } else { format!(" by {}", review.reviewer) }
            )),
            _ => unknown,
        }
    }
}
