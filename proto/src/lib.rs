//! The `guard.v1` contract: generated messages and gRPC services, and the limits that every peer keeps.
//!
//! It must hold no logic. The contract carries a record as bytes (see `guard-log`); [`v1::RecordBody`] is for readers,
//! who parse a copy. Fails: generated decoding returns an error on malformed bytes, never panics.

/// Generated from `proto/guard/v1/*.proto`.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    reason = "generated code; the documentation is in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("guard.v1");
}

/// Largest message on the control socket, in bytes.
pub const LOCAL_MESSAGE_MAX: usize = 1 << 20;
/// Largest gRPC message that either side decodes, in bytes: an entry bundle of 256 longest records is below.
pub const GRPC_MESSAGE_MAX: usize = 20 << 20;
/// Name of the metadata with which `Query` says how many records of the log its answer covers.
pub const LOG_SIZE: &str = "guard-log-size";
/// Longest blob, in bytes: the kernel's limit for arguments and environment together is 2 MiB; with room for lengths.
pub const BLOB_MAX: usize = 6 << 20;
/// Largest message of an enrolment, in bytes.
pub const ENROL_MESSAGE_MAX: usize = 16 << 10;
/// Protocol of an enrolment's connection, as TLS negotiates it.
pub const ENROL_ALPN: &[u8] = b"guard-enrol/1";
/// Protocol of a login's connection, at the same place and in the same frames.
pub const LOGIN_ALPN: &[u8] = b"guard-login/1";
/// First words of a join token: `guard-join:1:NAME:ID:SECRET:CA`, the last three in hexadecimal digits.
pub const JOIN_TOKEN: &str = "guard-join:1:";
/// Certificates are valid from so many seconds before they were issued: what clocks may differ.
pub const CLOCK_SKEW_SECONDS: i64 = 600;
/// Path of the control socket when the configuration names no other.
pub const CONTROL_SOCKET: &str = "/run/guard/control.sock";
/// Path of a session's own socket, inside that session.
pub const SESSION_SOCKET: &str = "/run/guard/session/socket";

/// The number of a body's kind: record headers carry it, and it is the body's field number in `RecordBody`.
pub fn kind_number(body: &v1::record_body::Body) -> u16 {
    use v1::record_body::Body;
    match body {
        Body::NodeStart(_) => 1,
        Body::NodeStop(_) => 2,
        Body::SessionStart(_) => 3,
        Body::SessionEnd(_) => 4,
        Body::Exec(_) => 5,
        Body::ExecRequest(_) => 6,
        Body::ExecDecision(_) => 7,
        Body::ExecOutcome(_) => 8,
        Body::ExecUnjudged(_) => 9,
        Body::GuardRefusal(_) => 10,
        Body::Gap(_) => 11,
        Body::Canary(_) => 12,
        Body::EmergencyStop(_) => 13,
        Body::JournalRepair(_) => 14,
        Body::PolicyLoaded(_) => 15,
        Body::GuardObservation(_) => 16,
        Body::CheckpointRefused(_) => 17,
        Body::LogFollowed(_) => 18,
        Body::DecisionFinding(_) => 70,
        Body::CollectorStart(_) => 32,
        Body::AdmitFinding(_) => 33,
        Body::ReviewDecision(_) => 34,
        Body::BlobErased(_) => 35,
        Body::WitnessFinding(_) => 36,
        Body::EntriesPruned(_) => 37,
        Body::KeyRotated(_) => 38,
        Body::LogSucceeded(_) => 39,
        Body::PublishFinding(_) => 40,
        Body::WebhookFinding(_) => 62,
        Body::PolicyPublished(_) => 41,
        Body::RequestEscalated(_) => 42,
        Body::ReviewDelegated(_) => 43,
        Body::CertificateIssued(_) => 60,
        Body::CertificateRevoked(_) => 61,
        Body::CertificateEnding(_) => 64,
        Body::SessionRenewed(_) => 80,
        Body::SessionExpired(_) => 81,
        Body::CredentialIssued(_) => 82,
        Body::CredentialRenewed(_) => 83,
        Body::CredentialRevoked(_) => 84,
        Body::CredentialExpired(_) => 85,
        Body::CredentialAlert(_) => 86,
        Body::LongLivedFound(_) => 87,
    }
}

/// The digest of the blob that a body names as a part of itself.
pub fn named_blob(body: &v1::record_body::Body) -> Option<&[u8]> {
    use v1::record_body::Body;
    let facts = match body {
        Body::Exec(exec) => exec.facts.as_ref(),
        Body::ExecRequest(request) => request.facts.as_ref(),
        _ => None,
    };
    facts.map(|facts| facts.blob_sha256.as_slice()).filter(|digest| !digest.is_empty())
}
