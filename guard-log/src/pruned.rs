//! Up to where entries were taken away by a written policy: what the collector's record of it says
//! (`guard.v1.EntriesPruned`), and the file beside the checkpoint that leads to that record.
//!
//! The file is a receipt (C2SP `tlog-proof`) with the record as its extra data. It must not be believed before its
//! record is known to be in the log: by the receipt, or better by the hash at its leaf. Hashes stay, so every proof
//! of a pruned entry still holds. Fails: a file that says nothing that a collector writes is an error that says why.

use std::fmt;

use crate::fields::{Value, each};
use crate::proof::{Receipt, ReceiptError};
use crate::record::{HostId, Kind, Record};
use crate::tiles::{PRUNED, WIDTH};
use crate::tree::{Hash, leaf_hash};
use crate::verify::Source;

/// Field of `guard.v1.RecordBody` that holds the body.
const ENTRIES_PRUNED: u64 = Kind::ENTRIES_PRUNED.0 as u64;
/// Longest policy text that is shown.
const POLICY_MAX: usize = 512;
/// Kinds that only the collector writes.
const COLLECTORS: std::ops::RangeInclusive<u16> = 32..=63;

/// What a record of pruning says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The first leaf whose entry is kept; the first of a bundle.
    pub first: u64,
    /// What it was before.
    pub previous: u64,
    /// The policy, as it was written.
    pub policy: String,
    /// Leaf of the record itself.
    pub leaf: u64,
    /// Who wrote it: the collector, if nobody else wrote a collector's record and it wrote nothing else.
    pub host: HostId,
    /// Hash of the record.
    pub hash: Hash,
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, leaf, policy, .. } = self;
        write!(f, "entries below leaf {first} were pruned by record {leaf} under policy {policy:?}")
    }
}

impl Pruned {
    /// Reads the file. Whether its record is in the log is not known yet.
    pub fn parse(text: &[u8]) -> Result<(Self, Receipt), ReceiptError> {
        let odd = |why| ReceiptError::File { line: 1, why };
        let text = std::str::from_utf8(text).map_err(|_| odd("it is not text"))?;
        let receipt = Receipt::parse(text)?;
        let entry = receipt.extra.clone().ok_or(odd("it has no record as extra data"))?;
        let wrong = |why: String| ReceiptError::Record { leaf: receipt.index, why };
        let record = Record::parse(entry).map_err(|error| wrong(error.to_string()))?;
        let pruned = Self::of(receipt.index, &record);
        let pruned = pruned.ok_or_else(|| wrong("it does not say that entries were pruned".to_owned()))?;
        Ok((pruned, receipt))
    }

    /// What the file of a source says; `None` if nothing was pruned.
    pub fn claimed(source: &dyn Source) -> Result<Option<Self>, ReceiptError> {
        source.fetch(PRUNED)?.map(|text| Self::parse(&text)).transpose().map(|found| found.map(|(pruned, _)| pruned))
    }

    /// What a record says; `None` if it is of another kind, or says what no collector writes.
    pub fn of(leaf: u64, record: &Record) -> Option<Self> {
        if record.header().kind != Kind::ENTRIES_PRUNED {
            return None;
        }
        let mut body = None;
        each(record.body(), |number, value| {
            if let (ENTRIES_PRUNED, Value::Bytes(bytes)) = (number, value) {
                body = Some(bytes.to_vec());
            }
        })?;
        let (mut first, mut previous, mut policy) = (0, 0, String::new());
        each(&body?, |number, value| match (number, value) {
            (1, Value::Number(number)) => first = number,
            (2, Value::Number(number)) => previous = number,
            (3, Value::Bytes(bytes)) => policy = String::from_utf8_lossy(bytes).chars().take(POLICY_MAX).collect(),
            _ => {}
        })?;
        let whole = first.is_multiple_of(WIDTH) && previous.is_multiple_of(WIDTH);
        let (host, hash) = (record.header().host, leaf_hash(record.bytes()));
        (whole && previous < first && first <= leaf).then_some(Self { first, previous, policy, leaf, host, hash })
    }

    /// Whether a record contradicts that the collector wrote this one: a host's own, or another's that only a
    /// collector writes.
    pub fn contradicted(&self, record: &Record) -> bool {
        let header = record.header();
        COLLECTORS.contains(&header.kind.0) != (header.host == self.host)
    }
}

#[cfg(test)]
mod tests;
