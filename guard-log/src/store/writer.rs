//! The writer's thread: group commit.
//!
//! It must complete a ticket only after `fdatasync` returned. Fails: closes the log; every ticket that waits is told why.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use super::error::io_error;
use super::wal::Segment;
use super::{Queued, Shared, StoreError, lock, wal};
use crate::record::Record;

/// Bytes written with one sync, at most, unless one group is longer.
const BATCH_BYTES: usize = 8 << 20;
/// The newest records kept in memory for those that follow the log.
const RECENT_RECORDS: usize = 4096;
const RECENT_BYTES: usize = 16 << 20;

pub(super) fn start(shared: &Arc<Shared>, segment: Segment) -> Result<JoinHandle<()>, StoreError> {
    let writer = Writer { shared: Arc::clone(shared), segment };
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || writer.run())
        .map_err(io_error("starting the writer of", &shared.options.dir))
}

struct Writer {
    shared: Arc<Shared>,
    segment: Segment,
}

impl Writer {
    fn run(mut self) {
        while let Some((first, batch)) = self.next() {
            let (slots, records): (Vec<_>, Vec<_>) = batch.into_iter().map(|q| (q.slot, q.records)).unzip();
            let records: Vec<Record> = records.into_iter().flatten().collect();
            let result = self.write(first, records);
            for slot in slots {
                slot.complete(result.clone());
            }
        }
        self.refuse_rest();
    }

    /// The next batch and its first leaf; none when the log failed, or is closed and all is written.
    fn next(&self) -> Option<(u64, Vec<Queued>)> {
        let mut inner = lock(&self.shared.inner);
        while inner.failed.is_some() || inner.queue.is_empty() {
            if inner.closing || inner.failed.is_some() {
                return None;
            }
            inner = self.shared.work.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let first = inner.durable;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(queued) = inner.queue.pop_front() {
            bytes += queued.records.iter().map(wal::cost).sum::<usize>();
            batch.push(queued);
            let next: usize = inner.queue.front().map_or(0, |q| q.records.iter().map(wal::cost).sum());
            if bytes + next > BATCH_BYTES {
                break;
            }
        }
        inner.queued_bytes = inner.queued_bytes.saturating_sub(bytes);
        Some((first, batch))
    }

    fn write(&mut self, first: u64, records: Vec<Record>) -> Result<(), StoreError> {
        if records.is_empty() {
            return Ok(());
        }
        let written = self.segment.write(first, &records, self.shared.options.segment_bytes);
        let frame = match written {
            Ok(frame) => frame,
            Err(error) => {
                self.shared.fail(&error.to_string());
                return Err(error);
            }
        };
        let mut inner = lock(&self.shared.inner);
        inner.durable = frame.end();
        inner.tail.push_back(frame);
        inner.recent_bytes += records.iter().map(wal::cost).sum::<usize>();
        inner.recent.extend(records);
        while inner.recent.len() > RECENT_RECORDS || inner.recent_bytes > RECENT_BYTES {
            let Some(oldest) = inner.recent.pop_front() else { break };
            inner.recent_bytes = inner.recent_bytes.saturating_sub(wal::cost(&oldest));
        }
        drop(inner);
        self.shared.moved.notify_all();
        Ok(())
    }

    fn refuse_rest(&self) {
        let mut inner = lock(&self.shared.inner);
        let rest = std::mem::take(&mut inner.queue);
        inner.queued_bytes = 0;
        let why = inner.closed().unwrap_or_default();
        drop(inner);
        self.shared.moved.notify_all();
        for queued in rest {
            queued.slot.complete(Err(StoreError::Closed(why.clone())));
        }
    }
}
