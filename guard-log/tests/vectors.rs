//! What others published of the formats: their keys, notes, logs, proofs and cosignatures, read by ours. The data lies in
//! `third_party/vectors`, with its sources in the README there.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests do"
)]

#[path = "vectors/data.rs"]
mod data;
#[path = "vectors/notes.rs"]
mod notes;
#[path = "vectors/proofs.rs"]
mod proofs;
#[path = "vectors/sigsum.rs"]
mod sigsum;
#[path = "vectors/tiles.rs"]
mod tiles;
#[path = "vectors/trees.rs"]
mod trees;
