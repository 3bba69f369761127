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
/// Path of the control socket when the configuration names no other.
pub const CONTROL_SOCKET: &str = "/run/guard/control.sock";
