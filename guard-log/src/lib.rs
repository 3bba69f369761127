//! Records, the host's journal, the collector's Merkle log, and their verification.
//!
//! Knows a record as a header and opaque bytes; two bodies are read, both the collector's own: that a host has a gap, and
//! that entries were pruned. It must not know gRPC, the rest of the record schema, async or policy. Fails: a
//! file that is damaged, torn or disagrees with another is named in the error; nothing is repaired silently.

pub mod changes;
pub mod checkpoint;
pub mod cosignature;
mod edge;
mod fields;
pub mod frame;
pub mod journal;
pub mod note;
pub mod policy;
pub mod proof;
pub mod pruned;
pub mod record;
pub mod signer;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tiles;
pub mod tree;
pub mod verify;
