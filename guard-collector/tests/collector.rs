//! The real binary, over real sockets with mutual TLS, with a real log on disk.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "collector/daemon.rs"]
mod daemon;
#[path = "collector/host.rs"]
mod host;
#[path = "collector/world.rs"]
mod world;

// What a daemon believes of decisions and of the log, and how it ships, as they are.
#[allow(missing_docs, unreachable_pub, dead_code, reason = "a module of another crate")]
#[path = "../../guard-agent/src/ballot.rs"]
mod ballot;
#[allow(missing_docs, unreachable_pub, reason = "a module of another crate")]
#[path = "../../guard-agent/src/seen.rs"]
mod seen;
#[allow(missing_docs, unreachable_pub, reason = "a module of another crate")]
#[path = "../../guard-agent/src/ship/stream.rs"]
mod stream;
// How it enrols and renews its certificate.
#[allow(dead_code, missing_docs, unreachable_pub, reason = "a module of another crate")]
#[path = "../../guard-agent/src/certificate.rs"]
mod certificate;
#[allow(dead_code, missing_docs, unreachable_pub, reason = "a module of another crate")]
#[path = "../../guard-agent/src/join.rs"]
mod join;
#[allow(dead_code, missing_docs, unreachable_pub, reason = "a module of another crate")]
#[path = "../../guard-agent/src/ship/renew.rs"]
mod renew;

#[path = "collector/admission.rs"]
mod admission;
#[path = "collector/alerts.rs"]
mod alerts;
#[path = "collector/answers.rs"]
mod answers;
#[path = "collector/blobs.rs"]
mod blobs;
#[path = "collector/callers.rs"]
mod callers;
#[path = "collector/crash.rs"]
mod crash;
#[path = "collector/decisions.rs"]
mod decisions;
#[path = "collector/delegation.rs"]
mod delegation;
#[path = "collector/enrolment.rs"]
mod enrolment;
#[path = "collector/escalation.rs"]
mod escalation;
#[path = "collector/faults.rs"]
mod faults;
#[path = "collector/growth.rs"]
mod growth;
#[path = "collector/issuer.rs"]
mod issuer;
#[path = "collector/login.rs"]
mod login;
#[path = "collector/policies.rs"]
mod policies;
#[path = "collector/queue.rs"]
mod queue;
#[path = "collector/retention.rs"]
mod retention;
#[path = "collector/revocation.rs"]
mod revocation;
#[path = "collector/roles.rs"]
mod roles;
#[path = "collector/rotation.rs"]
mod rotation;
#[path = "collector/signed.rs"]
mod signed;
#[path = "collector/succession.rs"]
mod succession;
#[path = "collector/versions.rs"]
mod versions;
#[path = "collector/witnesses.rs"]
mod witnesses;
