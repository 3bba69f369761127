//! Finding the leaf of a record by who wrote it and its number.
//!
//! It reads bundle after bundle: an index would be faster and would have to be believed. It must not be used on a path that
//! waits. Fails: a bundle that is not there is named, as the record may have been in it.

use std::fmt;
use std::str::FromStr;

use super::ReceiptError;
use crate::pruned::Pruned;
use crate::record::{Epoch, HostId, Record};
use crate::tiles::{Level, Tile, WIDTH, decode_entries};
use crate::verify::{Source, fetch_tile};

/// A record's name: host, epoch, sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordId {
    /// Whose.
    pub host: HostId,
    /// Which life of its journal.
    pub epoch: Epoch,
    /// Number in it.
    pub seq: u64,
}

impl FromStr for RecordId {
    type Err = &'static str;

    /// Reads `HOST/EPOCH/SEQ`, the ids hexadecimal as everywhere else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        let mut id = |why| {
            let bytes = parts.next().and_then(|part| hex::decode(part).ok()).filter(|bytes| bytes.len() == 16);
            bytes.ok_or(why)
        };
        let host = HostId::from_slice(&id("the host is not 32 hexadecimal digits")?).unwrap_or_default();
        let epoch = Epoch::from_slice(&id("the epoch is not 32 hexadecimal digits")?).unwrap_or_default();
        let seq = parts.next().and_then(|part| part.parse().ok()).ok_or("the sequence number is not a number")?;
        if parts.next().is_some() {
            return Err("more than HOST/EPOCH/SEQ");
        }
        Ok(Self { host, epoch, seq })
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.host, self.epoch, self.seq)
    }
}

/// The first leaf below `size` that holds the record; `None` if none does. Where entries were pruned, a record that is not
/// among the others may have been one of them, and that is the error.
pub fn find_record(source: &dyn Source, id: &RecordId, size: u64) -> Result<Option<u64>, ReceiptError> {
    let pruned = Pruned::claimed(source)?;
    let first = pruned.as_ref().map_or(0, |pruned| pruned.first.min(size));
    for index in first / WIDTH..size.div_ceil(WIDTH) {
        let Some(bundle) = Tile::at(Level::Entries, index, size) else { break };
        let (bytes, width) = fetch_tile(source, &bundle)?.ok_or(ReceiptError::Missing(bundle))?;
        let entries = decode_entries(&bytes, width).map_err(|cause| ReceiptError::Tile { tile: bundle, cause })?;
        for (leaf, entry) in (index * WIDTH..size).zip(entries) {
            let record =
                Record::parse(entry.to_vec()).map_err(|error| ReceiptError::Record { leaf, why: error.to_string() })?;
            let header = record.header();
            if (header.host, header.epoch, header.seq) == (id.host, id.epoch, id.seq) {
                return Ok(Some(leaf));
            }
        }
    }
    pruned.map_or(Ok(None), |pruned| Err(ReceiptError::NotKept(Box::new(pruned))))
}
