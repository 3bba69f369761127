//! Proofs about the collector's own log, made from its public tiles.
//!
//! It must not answer from anything but what is published. Fails: tiles that are missing are an error, never a shorter proof.

use guard_log::note::Verifier;
use guard_log::proof::{Nodes, Receipt, ReceiptError};
use guard_log::store::Store;
use guard_log::tree;
use guard_log::verify::{Source, SourceError};
use tonic::Status;

/// The store's public files.
pub struct Public<'a>(pub &'a Store);

impl Source for Public<'_> {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.0.resource(path).map_err(|e| SourceError::new(path, std::io::Error::other(e)))
    }
}

/// That the tree of `size` leaves, which is published, continues the one of `old`.
pub fn consistency(store: &Store, old: u64, size: u64) -> Result<Vec<Vec<u8>>, Status> {
    let public = Public(store);
    // More may be public by now, and then older partial tiles may be gone: the nodes are those of the newest tree.
    let mut nodes = Nodes::new(&public, store.published().0.max(size));
    let proof: Result<_, ReceiptError> = tree::consistency_proof(old, size, &mut |level, at| nodes.read(level, at));
    let proof = proof.map_err(|error| {
        tracing::error!(%error, old, size, "the log cannot prove that it grew");
        Status::unavailable(format!("no consistency proof: {error}"))
    })?;
    Ok(proof.into_iter().map(|hash| hash.to_vec()).collect())
}

/// That a record is in the log, and the record.
pub fn receipt(store: &Store, leaf: u64) -> Result<(Receipt, Vec<u8>), Status> {
    let verifier = Verifier::parse(&store.vkey()).map_err(|e| Status::internal(format!("the log's own key: {e}")))?;
    Receipt::make(&Public(store), &verifier, leaf).map_err(|error| match error {
        ReceiptError::Range(_) => Status::out_of_range(format!(
            "leaf {leaf} is not public yet: the checkpoint is of {} leaves",
            store.published().0
        )),
        ReceiptError::Pruned { .. } => Status::not_found(error.to_string()),
        error => {
            tracing::error!(%error, leaf, "the log cannot prove that it holds a record");
            Status::unavailable(format!("no receipt: {error}"))
        }
    })
}
