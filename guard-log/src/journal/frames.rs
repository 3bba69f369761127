//! What a frame of the journal holds: records, each with its length before it, `u32` little-endian.

use super::Queued;
use crate::record::Record;

/// The payload of a frame: each record with its length before it.
pub(super) fn encode(batch: &[Queued]) -> Vec<u8> {
    let mut payload = Vec::new();
    for queued in batch {
        payload.extend_from_slice(&(queued.record.bytes().len() as u32).to_le_bytes());
        payload.extend_from_slice(queued.record.bytes());
    }
    payload
}

/// The records of a frame; `None` if they do not fill it exactly.
pub(super) fn decode(mut payload: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let (length, rest) = payload.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        records.push(Record::parse(bytes.to_vec()).ok()?);
        payload = rest;
    }
    Some(records)
}
