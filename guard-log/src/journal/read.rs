//! Reading durable records back: the newest from memory, the rest from their segment.
//!
//! It must not hand out what is not durable. Fails: a segment that lacks what is durable is named, never passed over.

use std::fs::File;
use std::io::Read;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::error::io_error;
use super::frames::decode;
use super::{Journal, JournalError, lock, segment_path};
use crate::frame;
use crate::record::Record;

impl Journal {
    /// Durable records from a sequence number on, up to the given count and bytes (at least one if there is one).
    pub fn read(&self, from: u64, max_records: usize, max_bytes: usize) -> Result<Vec<Record>, JournalError> {
        let inner = lock(&self.0.inner);
        let durable = inner.durable_next;
        let recent_first = inner.recent.front().map_or(durable, |r| r.header().seq);
        if from >= recent_first {
            let skip = usize::try_from(from - recent_first).unwrap_or(usize::MAX);
            return Ok(limit(inner.recent.iter().skip(skip).cloned(), max_records, max_bytes));
        }
        let segment = inner.segments.iter().rev().find(|s| s.0 <= from).copied();
        drop(inner);
        let Some((first, used)) = segment else { return Ok(Vec::new()) };
        let path = segment_path(&self.0.options.dir, first);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(used).read_to_end(&mut bytes));
        if let Err(error) = read {
            self.pass_over(first)?;
            return Err(io_error("reading", &path)(error));
        }
        let scan = frame::scan(&bytes);
        let frames = scan.frames.iter().map_while(|(at, length)| decode(bytes.get(*at..at + length)?)).flatten();
        let records: Vec<Record> = frames.filter(|r| r.header().seq >= from && r.header().seq < durable).collect();
        // What is durable and not acknowledged is there, or the file has been damaged since. What is only kept is passed over
        // then: the next reading begins after it.
        if records.first().is_none_or(|first| first.header().seq != from) {
            self.pass_over(first)?;
            return Err(JournalError::Damaged { path, offset: scan.good as u64 });
        }
        Ok(limit(records.into_iter(), max_records, max_bytes))
    }

    /// Waits until records at or above `seq` are durable; false at the timeout.
    pub fn wait_durable_past(&self, seq: u64, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut inner = lock(&self.0.inner);
        while inner.durable_next <= seq {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.failed.is_some() {
                return false;
            }
            inner = self.0.durable.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// The first ones, up to a count and bytes; at least one if there is one.
fn limit(records: impl Iterator<Item = Record>, max_records: usize, max_bytes: usize) -> Vec<Record> {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for record in records.take(max_records) {
        bytes += record.bytes().len();
        if bytes > max_bytes && !taken.is_empty() {
            break;
        }
        taken.push(record);
    }
    taken
}
