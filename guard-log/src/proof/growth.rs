//! Proof that a log only grew: the older size, the hashes, and the newer checkpoint.
//!
//! Its text is what a C2SP witness is sent, so that one file serves both. It must not judge which of two logs is right. Fails:
//! a proof that does not hold is an error that says the log was rewritten.

use std::fmt;

use super::{Lines, Nodes, ReceiptError, number, write_hashes};
use crate::checkpoint::Checkpoint;
use crate::note::Verifier;
use crate::tree::{self, Hash, ProofError};
use crate::verify::Source;

/// That the tree of `old` leaves is the beginning of the tree that the note signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Older size.
    pub old: u64,
    /// As RFC 6962 orders them.
    pub hashes: Vec<Hash>,
    /// The newer checkpoint, signed.
    pub note: String,
}

impl Growth {
    /// Computes the proof from the tiles of a log that has `have` leaves by now, at least as many as the newer checkpoint.
    /// Whether it holds is only known with the older root: [`Self::verify`].
    pub fn make(source: &dyn Source, have: u64, old: u64, note: &str, head: &Checkpoint) -> Result<Self, ReceiptError> {
        if old > head.size || head.size > have {
            let (index, size) = if old > head.size { (old, head.size) } else { (head.size, have) };
            return Err(ProofError::Range { what: "size", index, size }.into());
        }
        let mut nodes = Nodes::new(source, have);
        let hashes = tree::consistency_proof(old, head.size, &mut |level, at| nodes.read(level, at))?;
        Ok(Self { old, hashes, note: note.to_owned() })
    }

    /// Reads the text; its checkpoint is not opened yet.
    pub fn parse(text: &str) -> Result<Self, ReceiptError> {
        let mut lines = Lines::new(text)?;
        let old = lines.next().and_then(|line| line.strip_prefix("old ")).and_then(number);
        let old = old.ok_or(ReceiptError::File { line: 1, why: "it is not `old` and a size in its shortest form" })?;
        let hashes = lines.hashes()?;
        Ok(Self { old, hashes, note: lines.rest.to_owned() })
    }

    /// Whether the newer checkpoint continues the older one; returns the newer.
    pub fn verify(&self, older: &Checkpoint, verifier: &Verifier) -> Result<Checkpoint, ReceiptError> {
        let head = Checkpoint::open(self.note.as_bytes(), verifier)?;
        if older.size != self.old {
            return Err(ProofError::Range { what: "older size", index: self.old, size: older.size }.into());
        }
        tree::verify_consistency(self.old, head.size, &self.hashes, &older.root, &head.root)
            .map_err(|cause| ReceiptError::Rewritten { old: self.old, size: head.size, cause })?;
        Ok(head)
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old)?;
        write_hashes(f, &self.hashes)?;
        write!(f, "\n{}", self.note)
    }
}
