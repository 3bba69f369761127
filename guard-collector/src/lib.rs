//! The collector: admits hosts' records into the Merkle log, answers questions about it, and passes on reviewers' decisions.
//!
//! The log is the only truth; everything else here is derived from it. No call without a client certificate. Fails closed: what
//! is not durable is not acknowledged, what does not fit a request exactly is not a decision.
#![allow(clippy::result_large_err, reason = "tonic's handlers return Status")]

pub mod access;
pub mod admit;
pub mod alerts;
pub mod blobs;
pub mod body;
pub mod bundles;
pub mod certificates;
pub mod config;
pub mod control;
pub mod delegations;
pub mod enrol;
pub mod escalate;
pub mod exit;
pub mod hub;
pub mod identity;
pub mod index;
pub mod init;
pub mod issuing;
pub mod keys;
pub mod ledger;
pub mod node;
pub mod oidc;
pub mod orders;
pub mod own;
pub mod pki;
pub mod proofs;
pub mod publish;
pub mod quota;
pub mod retention;
pub mod reviews;
pub mod serve;
pub mod snapshot;
pub mod standing;
pub mod succeed;
#[cfg(test)]
mod testing;
pub mod ticks;
pub mod tls;
pub mod tokens;
pub mod ttl;
pub mod wire;
pub mod witness;
