//! The one way in which a decision leaves guardctl: signed with the caller's key, if there is one, then sent.
//!
//! It must not sign for anything but the request as its record says it, which is what was shown; the collector's own words are not
//! believed. Fails: a record that is not what was shown is `no` and nothing is sent; see `client` and `key`.

use guard_log::record::{Kind, Record};
use guard_policy::decision::Statement;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecideRequest, ExecRequest, GetReviewRequest, RecordBody, Review, WhoAmIRequest};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::key;
use crate::time;

/// Longest life that an approval is signed for, whatever the collector proposes.
const LIFE_MAX_NS: i64 = 86_400_000_000_000;

/// What the caller decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Approve, or deny.
    pub approve: bool,
    /// Why.
    pub reason: String,
    /// once, session or root.
    pub scope: String,
    /// Categories for descendants.
    pub categories: Vec<String>,
    /// Execs that it covers; 0 for a denial.
    pub max_execs: u32,
}

/// A decision that is in the log.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its leaf.
    pub leaf: u64,
    /// What was sent.
    pub decision: DecideRequest,
    /// Id of the key that signed it.
    pub key_id: Option<[u8; 32]>,
    /// Whose right it is, by a delegation.
    pub on_behalf_of: Option<String>,
    /// The request afterwards.
    pub review: Option<Review>,
}

/// Fetches a request whole. What is shown is what its record says.
pub async fn get(client: &mut Client, id: &str) -> Result<Review> {
    let request = GetReviewRequest { request_id: id.to_owned() };
    let mut review = client.get_review(request).await.map_err(client::refused)?.into_inner();
    if !review.record.is_empty() {
        review.request = Some(of_record(&review.record)?.0);
    }
    Ok(review)
}

/// Signs and sends a decision about a request that was shown.
pub async fn send(client: &mut Client, config: &Config, shown: &Review, choice: Choice) -> Result<Sent> {
    let request = shown.request.clone().unwrap_or_default();
    let signer = key::of(config)?;
    let mut decision = DecideRequest {
        request_id: request.request_id.clone(),
        digest: request.digest.clone(),
        approve: choice.approve,
        reason: choice.reason,
        scope: choice.scope,
        categories: choice.categories,
        max_execs: choice.max_execs,
        ..DecideRequest::default()
    };
    let mut key_id = None;
    // Shown with the request: whoever decides knows for whom.
    let acting_for = shown.acting_for.as_ref().filter(|_| signer.is_some());
    decision.delegation_id = acting_for.map(|d| d.id.clone()).unwrap_or_default();
    if let Some(signer) = signer {
        let fetched = if shown.record.is_empty() { get(client, &request.request_id).await? } else { shown.clone() };
        let record_sha256 = as_shown(&fetched, &request)?;
        let reviewer = client.who_am_i(WhoAmIRequest {}).await.map_err(client::refused)?.into_inner().name;
        let now = time::now_ns();
        decision.decided_unix_ns = now;
        decision.record_sha256 = record_sha256.to_vec();
        if decision.approve {
            decision.expires_unix_ns = fetched.approval_until_unix_ns.min(now.saturating_add(LIFE_MAX_NS));
        }
        decision.signature = signer.sign(&statement(&decision, &reviewer)).to_vec();
        key_id = Some(signer.public().id());
    }
    let reply = client.decide(decision.clone()).await.map_err(client::refused)?.into_inner();
    let on_behalf_of = acting_for.map(|d| d.from.clone());
    Ok(Sent { leaf: reply.leaf, decision, key_id, on_behalf_of, review: reply.review })
}

fn statement<'a>(decision: &'a DecideRequest, reviewer: &'a str) -> Statement<'a> {
    Statement {
        request_id: &decision.request_id,
        digest: &decision.digest,
        record_sha256: &decision.record_sha256,
        approve: decision.approve,
        scope: &decision.scope,
        categories: &decision.categories,
        max_execs: decision.max_execs,
        expires_unix_ns: decision.expires_unix_ns,
        reason: &decision.reason,
        reviewer,
        decided_unix_ns: decision.decided_unix_ns,
        delegation_id: &decision.delegation_id,
    }
}

/// Digest of the record's body, if the record says exactly what was shown.
fn as_shown(fetched: &Review, shown: &ExecRequest) -> Result<[u8; 32]> {
    if fetched.record.is_empty() {
        let message = "the collector did not send the request's record, so there is nothing to sign";
        return Err(CliError::new(Exit::Unavailable, message)
            .hint("it is older than this guardctl, or the entry was pruned: `guardctl status`"));
    }
    let (request, digest) = of_record(&fetched.record)?;
    if request != *shown {
        return Err(CliError::new(Exit::No, "the request's record is not what was shown: nothing was signed or sent")
            .hint("look at it again with `guardctl review show`"));
    }
    Ok(digest)
}

/// The request in a record, and the digest of the record's body.
fn of_record(record: &[u8]) -> Result<(ExecRequest, [u8; 32])> {
    let odd =
        |why: &str| CliError::new(Exit::Internal, format_args!("the collector sent no record of a request: {why}"));
    let record = Record::parse(record.to_vec()).map_err(|e| odd(&e.to_string()))?;
    let body = RecordBody::decode(record.body()).map_err(|e| odd(&e.to_string()))?.body;
    match body {
        Some(Body::ExecRequest(request)) if record.header().kind == Kind::EXEC_REQUEST => {
            Ok((request, Sha256::digest(record.body()).into()))
        }
        _ => Err(odd("it is of another kind")),
    }
}

#[cfg(test)]
mod tests {
    use guard_log::record::{Epoch, Header, HostId, SessionId};

    use super::*;
    use crate::testing;

    fn fetched() -> Review {
        let (mut review, _) = testing::review();
        let body = RecordBody { body: review.request.clone().map(Body::ExecRequest) }.encode_to_vec();
        let header = Header {
            version: 1,
            kind: Kind::EXEC_REQUEST,
            host: HostId([1; 16]),
            epoch: Epoch([2; 16]),
            seq: 0,
            prev: [0; 32],
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SessionId::NONE,
        };
        review.record = Record::seal(&header, &body).expect("sealed").bytes().to_vec();
        review
    }

    #[test]
    fn only_what_was_shown_is_signed() {
        let review = fetched();
        let shown = review.request.clone().expect("request");
        let digest = as_shown(&review, &shown).expect("the same");
        let body = RecordBody { body: Some(Body::ExecRequest(shown.clone())) }.encode_to_vec();
        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(body)));
        // A collector that shows one command and has another one approved.
        let mut other = shown.clone();
        if let Some(facts) = &mut other.facts {
            facts.argv = vec![b"git".to_vec(), b"status".to_vec()];
        }
        assert_eq!(as_shown(&review, &other).expect_err("differs").kind, Exit::No);
        let none = Review { record: vec![], ..review.clone() };
        assert_eq!(as_shown(&none, &shown).expect_err("no record").kind, Exit::Unavailable);
        let junk = Review { record: vec![1; 300], ..review };
        assert_eq!(as_shown(&junk, &shown).expect_err("junk").kind, Exit::Internal);
    }
}
