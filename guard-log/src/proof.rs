//! Receipts that hold offline: C2SP `tlog-proof` files (inclusion of one record), and consistency of two checkpoints.
//!
//! Both are computed from tiles, wherever they come from, and are checked before they leave here. It must not believe a tile
//! or a file: what does not lead to the signed root is an error. Fails: an unreadable file names its line, a wrong proof says
//! which part does not fit. The forms are `c2sp.org/tlog-proof` and the request body of `c2sp.org/tlog-witness`.

mod find;
mod growth;
mod nodes;
#[cfg(test)]
mod tests;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

pub use find::{RecordId, find_record};
pub use growth::Growth;
pub use nodes::Nodes;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::note::{NOTE_MAX, Verifier};
use crate::pruned::Pruned;
use crate::record::RECORD_MAX;
use crate::tiles::{CHECKPOINT, COSIGNED, Level, Tile, TileError, WIDTH, decode_entries};
use crate::tree::{self, Hash, ProofError, leaf_hash};
use crate::verify::{Source, SourceError, fetch_tile};

/// First line of a receipt.
const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// Most hashes that an inclusion or consistency proof over 2^63 leaves can have.
pub const HASHES_MAX: usize = 63;
/// Longest extra data of a receipt, decoded.
const EXTRA_MAX: usize = RECORD_MAX;
/// Longest file of a receipt or of a consistency proof that is looked at.
pub const FILE_MAX: usize = NOTE_MAX + 2 * EXTRA_MAX + 64 * (HASHES_MAX + 2);

/// Why there is no proof, or why it does not hold.
#[derive(Debug, Error)]
pub enum ReceiptError {
    /// A resource could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source has no checkpoint.
    #[error("the source has no checkpoint: it is no log, or not one in tlog-tiles form")]
    NoCheckpoint,
    /// Checkpoint of the log or of the proof.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tile that a proof needs is not there.
    #[error("{0} is missing: the proof cannot be made")]
    Missing(Tile),
    /// The entry was taken away by a written policy.
    #[error("leaf {leaf} is not there: {pruned}; a receipt that was made before still holds")]
    Pruned {
        /// Which.
        leaf: u64,
        /// What the log's file says of it.
        pruned: Box<Pruned>,
    },
    /// The record is not among those that are kept.
    #[error("it is not among the records that are kept, and {0}")]
    NotKept(Box<Pruned>),
    /// A tile is not one.
    #[error("{tile}: {cause}")]
    Tile {
        /// Which.
        tile: Tile,
        /// What is wrong.
        cause: TileError,
    },
    /// The source's tiles do not lead to its signed root.
    #[error("the tiles of the source do not lead to its signed root ({0}): run `guardctl log verify`")]
    Tiles(ProofError),
    /// Not a proof file.
    #[error("not a proof file: line {line}: {why}")]
    File {
        /// From 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// The record is not the one that the receipt is for, or the receipt was changed.
    #[error("the receipt does not hold for this record at leaf {index} of {size}: {cause}")]
    Wrong {
        /// Leaf.
        index: u64,
        /// Size of the signed tree.
        size: u64,
        /// What does not fit.
        cause: ProofError,
    },
    /// Two checkpoints are not heads of one log that only grew.
    #[error("the log was rewritten: size {size} does not continue size {old}: {cause}")]
    Rewritten {
        /// Older size.
        old: u64,
        /// Newer size.
        size: u64,
        /// What does not fit.
        cause: ProofError,
    },
    /// Numbers that make no proof.
    #[error(transparent)]
    Range(#[from] ProofError),
    /// Bytes that are no record.
    #[error("leaf {leaf} is not a record: {why}")]
    Record {
        /// Which.
        leaf: u64,
        /// What is wrong.
        why: String,
    },
}

/// The signed head of a log, as served, and what it says.
pub fn head(source: &dyn Source, verifier: &Verifier) -> Result<(String, Checkpoint), ReceiptError> {
    let note = source.fetch(CHECKPOINT)?.ok_or(ReceiptError::NoCheckpoint)?;
    let checkpoint = Checkpoint::open(&note, verifier)?;
    Ok((String::from_utf8(note).map_err(|_| CheckpointError::Utf8)?, checkpoint))
}

/// The newest head that a quorum of witnesses cosigned, if there is one and it holds the leaf; else the newest.
fn head_for(source: &dyn Source, verifier: &Verifier, leaf: u64) -> Result<(String, Checkpoint), ReceiptError> {
    // One that an older key signed does not count; the newest head always does.
    if let Some(note) = source.fetch(COSIGNED)?
        && let Ok(checkpoint) = Checkpoint::open(&note, verifier)
        && checkpoint.size > leaf
    {
        return Ok((String::from_utf8(note).map_err(|_| CheckpointError::Utf8)?, checkpoint));
    }
    head(source, verifier)
}

/// The entry of a leaf below a checkpoint of `size`.
pub fn entry(source: &dyn Source, leaf: u64, size: u64) -> Result<Vec<u8>, ReceiptError> {
    let bundle = Tile::at(Level::Entries, leaf / WIDTH, size).filter(|_| leaf < size);
    let bundle = bundle.ok_or(ProofError::Range { what: "leaf", index: leaf, size })?;
    let Some((bytes, width)) = fetch_tile(source, &bundle)? else { return Err(without(source, leaf, bundle)) };
    let entries = decode_entries(&bytes, width).map_err(|cause| ReceiptError::Tile { tile: bundle, cause })?;
    let place = usize::try_from(leaf % WIDTH).unwrap_or(usize::MAX);
    Ok(entries.get(place).ok_or(ReceiptError::Missing(bundle))?.to_vec())
}

/// Why an entry is not there, as far as the source says so itself.
fn without(source: &dyn Source, leaf: u64, bundle: Tile) -> ReceiptError {
    match Pruned::claimed(source) {
        Ok(Some(pruned)) if leaf < pruned.first => ReceiptError::Pruned { leaf, pruned: Box::new(pruned) },
        Ok(_) => ReceiptError::Missing(bundle),
        Err(error) => error,
    }
}

/// Proof that one record is in a log: leaf, hashes up to the root, the signed checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Bytes beside the proof; the format does not authenticate them, nor does Guard use them.
    pub extra: Option<Vec<u8>>,
    /// Leaf.
    pub index: u64,
    /// From the leaf's sibling up to the root's child.
    pub hashes: Vec<Hash>,
    /// The checkpoint, signed, with the cosignatures that it had.
    pub note: String,
}

impl Receipt {
    /// Makes the receipt of a leaf from the log's tiles, and returns it with the record's bytes.
    ///
    /// # Errors
    ///
    /// A leaf beyond the checkpoint, a bundle that was pruned, tiles that do not lead to the signed root.
    pub fn make(source: &dyn Source, verifier: &Verifier, index: u64) -> Result<(Self, Vec<u8>), ReceiptError> {
        let (note, head) = head_for(source, verifier, index)?;
        // Older partial tiles may be gone: the nodes are those of the newest tree.
        let have = self::head(source, verifier)?.1.size.max(head.size);
        let entry = entry(source, index, have)?;
        let mut nodes = Nodes::new(source, have);
        let hashes = tree::inclusion_proof(index, head.size, &mut |level, at| nodes.read(level, at))?;
        tree::verify_inclusion(&leaf_hash(&entry), index, head.size, &hashes, &head.root)
            .map_err(ReceiptError::Tiles)?;
        Ok((Self { extra: None, index, hashes, note }, entry))
    }

    /// Reads a file; its checkpoint is not opened yet.
    pub fn parse(text: &str) -> Result<Self, ReceiptError> {
        let mut lines = Lines::new(text)?;
        let wrong = |line, why| ReceiptError::File { line, why };
        if lines.next().is_none_or(|line| line != HEADER) {
            return Err(wrong(1, "it is not `c2sp.org/tlog-proof@v1`"));
        }
        let mut line = lines.next().ok_or(wrong(2, "it is missing"))?;
        let mut extra = None;
        if let Some(data) = line.strip_prefix("extra ") {
            let data = STANDARD.decode(data).ok().filter(|data| data.len() <= EXTRA_MAX);
            extra = Some(data.ok_or(wrong(lines.at, "the extra data is not base64, or more than 64 KiB"))?);
            line = lines.next().ok_or(wrong(lines.at + 1, "it is missing"))?;
        }
        let index = line.strip_prefix("index ").and_then(number);
        let index = index.ok_or(wrong(lines.at, "it is not `index` and a number in its shortest form"))?;
        let hashes = lines.hashes()?;
        Ok(Self { extra, index, hashes, note: lines.rest.to_owned() })
    }

    /// Whether the record is in the log that the key signs for; returns the checkpoint that says so.
    pub fn verify(&self, entry: &[u8], verifier: &Verifier) -> Result<Checkpoint, ReceiptError> {
        self.verify_any(entry, std::slice::from_ref(verifier))
    }

    /// The same, for a log whose checkpoints one of these keys signed.
    pub fn verify_any(&self, entry: &[u8], verifiers: &[Verifier]) -> Result<Checkpoint, ReceiptError> {
        let head = Checkpoint::open_any(self.note.as_bytes(), verifiers)?;
        tree::verify_inclusion(&leaf_hash(entry), self.index, head.size, &self.hashes, &head.root)
            .map_err(|cause| ReceiptError::Wrong { index: self.index, size: head.size, cause })?;
        Ok(head)
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        write_hashes(f, &self.hashes)?;
        write!(f, "\n{}", self.note)
    }
}

fn write_hashes(f: &mut fmt::Formatter<'_>, hashes: &[Hash]) -> fmt::Result {
    hashes.iter().try_for_each(|hash| writeln!(f, "{}", STANDARD.encode(hash)))
}

/// A number in its only spelling.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// The lines before the checkpoint.
struct Lines<'a> {
    rest: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Result<Self, ReceiptError> {
        if text.len() > FILE_MAX {
            return Err(ReceiptError::File { line: 1, why: "the file is too long for a proof" });
        }
        Ok(Self { rest: text, at: 0 })
    }

    fn next(&mut self) -> Option<&'a str> {
        let (line, rest) = self.rest.split_once('\n')?;
        (self.rest, self.at) = (rest, self.at + 1);
        Some(line)
    }

    /// Hashes up to the empty line.
    fn hashes(&mut self) -> Result<Vec<Hash>, ReceiptError> {
        let mut hashes = Vec::new();
        loop {
            let wrong = |line, why| ReceiptError::File { line, why };
            let line = self.next().ok_or(wrong(self.at + 1, "the file ends before the checkpoint"))?;
            if line.is_empty() {
                return Ok(hashes);
            }
            if hashes.len() >= HASHES_MAX {
                return Err(wrong(self.at, "more than 63 hashes"));
            }
            let hash = STANDARD.decode(line).ok().and_then(|hash| Hash::try_from(hash).ok());
            hashes.push(hash.ok_or(wrong(self.at, "it is not the base64 of 32 bytes"))?);
        }
    }
}
