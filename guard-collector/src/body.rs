//! A reader's copy of a record's body: parsed only where header and body agree on the kind.
//!
//! It must never change or drop the record itself. Fails: what is not understood is `None`; the record stays in the log.

use guard_log::record::{Kind, Record};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, Identity, RecordBody};
use prost::Message;

use crate::wire::Fields;

/// Kinds from here to [`COLLECTOR_LAST`] are written by the collector alone.
const COLLECTOR_FIRST: u16 = 32;
const COLLECTOR_LAST: u16 = 63;

/// Whether only the collector writes this kind.
pub fn is_collectors(kind: Kind) -> bool {
    (COLLECTOR_FIRST..=COLLECTOR_LAST).contains(&kind.0)
}

/// Whether a body holds a variant that only the collector writes, whatever the header says: those of a newer version too.
/// Looks at the outermost fields alone.
pub fn holds_collectors(record: &Record) -> bool {
    // A body that ends in something odd is no body to any reader.
    Fields::of(record.body())
        .flatten()
        .any(|(n, _)| (u32::from(COLLECTOR_FIRST)..=u32::from(COLLECTOR_LAST)).contains(&n))
}

/// The kind that belongs to a body.
pub fn kind_of(body: &Body) -> Kind {
    Kind(guard_proto::kind_number(body))
}

/// The body, whatever the header says.
pub fn decode(record: &Record) -> Option<Body> {
    RecordBody::decode(record.body()).ok().and_then(|b| b.body)
}

/// The body, if it is of the kind that the header names.
pub fn parse(record: &Record) -> Option<Body> {
    decode(record).filter(|body| kind_of(body) == record.header().kind)
}

/// The identity chain in a body.
pub fn identity(body: &Body) -> Option<&Identity> {
    match body {
        Body::SessionStart(b) => b.identity.as_ref(),
        Body::SessionEnd(b) => b.identity.as_ref(),
        Body::Exec(b) => b.identity.as_ref(),
        Body::ExecRequest(b) => b.identity.as_ref(),
        Body::ExecDecision(b) => b.identity.as_ref(),
        Body::ExecOutcome(b) => b.identity.as_ref(),
        Body::ExecUnjudged(b) => b.identity.as_ref(),
        Body::GuardRefusal(b) | Body::GuardObservation(b) => b.identity.as_ref(),
        Body::DecisionFinding(b) => b.identity.as_ref(),
        Body::SessionRenewed(b) => b.identity.as_ref(),
        Body::SessionExpired(b) => b.identity.as_ref(),
        Body::CredentialIssued(b)
        | Body::CredentialRenewed(b)
        | Body::CredentialRevoked(b)
        | Body::CredentialExpired(b)
        | Body::CredentialAlert(b) => b.identity.as_ref(),
        Body::LongLivedFound(b) => b.identity.as_ref(),
        Body::NodeStart(_)
        | Body::NodeStop(_)
        | Body::Gap(_)
        | Body::Canary(_)
        | Body::EmergencyStop(_)
        | Body::JournalRepair(_)
        | Body::PolicyLoaded(_)
        | Body::CollectorStart(_)
        | Body::AdmitFinding(_)
        | Body::ReviewDecision(_)
        | Body::CheckpointRefused(_)
        | Body::BlobErased(_)
        | Body::WitnessFinding(_)
        | Body::EntriesPruned(_)
        | Body::LogFollowed(_)
        | Body::KeyRotated(_)
        | Body::LogSucceeded(_)
        | Body::PublishFinding(_)
        | Body::WebhookFinding(_)
        | Body::PolicyPublished(_)
        | Body::RequestEscalated(_)
        | Body::ReviewDelegated(_)
        | Body::CertificateIssued(_)
        | Body::CertificateRevoked(_)
        | Body::CertificateEnding(_) => None,
    }
}

/// The word for a disposition; empty when it is not set, `unknown` for one of a newer version.
pub fn word(raw: i32) -> &'static str {
    match Disposition::try_from(raw) {
        Ok(Disposition::Unspecified) => "",
        Ok(Disposition::Allowed) => "allowed",
        Ok(Disposition::Inherited) => "inherited",
        Ok(Disposition::Approved) => "approved",
        Ok(Disposition::Denied) => "denied",
        Ok(Disposition::TimedOut) => "timed_out",
        Ok(Disposition::Expired) => "expired",
        Ok(Disposition::Killed) => "killed",
        Ok(Disposition::Failed) => "failed",
        Err(_) => "unknown",
    }
}
