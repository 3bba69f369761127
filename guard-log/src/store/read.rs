//! Reading durable leaves back: the newest from memory, those not yet in full bundles from the write-ahead segments, the
//! rest from the bundles.
//!
//! Those who follow the log (publishing, index) take a frame in several pieces, one after the other: the last frames that were
//! read are kept, within [`FRAMES_BYTES`]. It must not hand out what is not durable, nor bytes that differ from their hash.
//! Fails: damage names the file.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::lock::read_limited;
use super::publish::{Leaves, read_hashes};
use super::wal::FrameRef;
use super::{Shared, StoreError, lock, wal};
use crate::record::Record;
use crate::tiles::{self, Level, RESOURCE_MAX, Tile, WIDTH};
use crate::tree::leaf_hash;

impl Leaves for Shared {
    fn read(&self, from: u64, max_records: usize, max_bytes: usize) -> Result<Vec<(u64, Record)>, StoreError> {
        self.refuse_pruned(from)?;
        let mut taken = Taken { from, next: from, records: Vec::new(), bytes: 0, max_records, max_bytes };
        // Each piece adds at least one record, or there is none left.
        while !taken.is_full() {
            let before = taken.next;
            self.read_piece(&mut taken)?;
            if taken.next == before {
                break;
            }
        }
        Ok((taken.from..).zip(taken.records).collect())
    }
}

/// Frames kept after they were read: two followers, each inside one and about to begin the next.
const FRAMES: usize = 4;
/// Bytes of all of them, unless one alone is longer.
const FRAMES_BYTES: usize = 24 << 20;

/// The frames that were read last, newest at the end.
#[derive(Default)]
pub(super) struct Frames(VecDeque<(FrameRef, Arc<[Record]>)>);

impl Frames {
    fn find(&self, frame: &FrameRef) -> Option<Arc<[Record]>> {
        self.0.iter().find(|(kept, _)| kept == frame).map(|(_, records)| Arc::clone(records))
    }

    fn keep(&mut self, frame: FrameRef, records: &Arc<[Record]>) {
        self.0.push_back((frame, Arc::clone(records)));
        while self.0.len() > FRAMES
            || (self.0.len() > 1 && self.0.iter().map(|(f, _)| f.length()).sum::<usize>() > FRAMES_BYTES)
        {
            self.0.pop_front();
        }
    }
}

struct Taken {
    from: u64,
    next: u64,
    records: Vec<Record>,
    bytes: usize,
    max_records: usize,
    max_bytes: usize,
}

impl Taken {
    fn is_full(&self) -> bool {
        self.records.len() >= self.max_records || (self.bytes >= self.max_bytes && !self.records.is_empty())
    }

    /// Takes a record unless it is too much; false ends the reading.
    fn take(&mut self, record: Record) -> bool {
        let bytes = record.bytes().len();
        if self.is_full() || (self.bytes + bytes > self.max_bytes && !self.records.is_empty()) {
            self.bytes = self.max_bytes;
            return false;
        }
        self.bytes += bytes;
        self.next += 1;
        self.records.push(record);
        true
    }
}

impl Shared {
    fn read_piece(&self, taken: &mut Taken) -> Result<(), StoreError> {
        let inner = lock(&self.inner);
        let recent_first = inner.durable - inner.recent.len() as u64;
        if taken.next >= recent_first {
            let skip = usize::try_from(taken.next - recent_first).unwrap_or(usize::MAX);
            for record in inner.recent.iter().skip(skip) {
                if !taken.take(record.clone()) {
                    break;
                }
            }
            return Ok(());
        }
        let place = inner.tail.partition_point(|frame| frame.end() <= taken.next);
        let frame = inner.tail.get(place).copied().filter(|frame| frame.first <= taken.next);
        drop(inner);
        match frame {
            Some(frame) => {
                let skip = usize::try_from(taken.next - frame.first).unwrap_or(usize::MAX);
                take_all(taken, self.frame(frame)?.iter().skip(skip).cloned());
            }
            None => self.read_bundle(taken)?,
        }
        Ok(())
    }

    fn frame(&self, frame: FrameRef) -> Result<Arc<[Record]>, StoreError> {
        if let Some(kept) = lock(&self.frames).find(&frame) {
            return Ok(kept);
        }
        let records: Arc<[Record]> = wal::read_frame(&self.options.wal(), &frame)?.into();
        lock(&self.frames).keep(frame, &records);
        Ok(records)
    }

    fn read_bundle(&self, taken: &mut Taken) -> Result<(), StoreError> {
        let bundle = Tile { level: Level::Entries, index: taken.next / WIDTH, width: WIDTH as u16 };
        let root = self.options.log();
        let path = root.join(bundle.to_string());
        let bytes = Bytes::from(read_limited(&path, RESOURCE_MAX)?.ok_or(StoreError::Missing(path.clone()))?);
        let entries = tiles::decode_entries(&bytes, bundle.width)
            .map_err(|cause| StoreError::Tile { path: path.clone(), cause })?;
        let hashes = read_hashes(&root, &Tile { level: Level::Hashes(0), ..bundle })?;
        let skip = usize::try_from(taken.next % WIDTH).unwrap_or(usize::MAX);
        for ((place, entry), hash) in (0..).zip(entries).zip(&hashes).skip(skip) {
            if taken.is_full() {
                break;
            }
            if leaf_hash(entry) != *hash {
                let what = format!("leaf {} is not the one that was published", bundle.index * WIDTH + place);
                return Err(StoreError::Damaged { path, offset: 0, what });
            }
            if !taken.take(Record::parse(bytes.slice_ref(entry))?) {
                break;
            }
        }
        Ok(())
    }
}

fn take_all(taken: &mut Taken, records: impl Iterator<Item = Record>) {
    for record in records {
        if !taken.take(record) {
            break;
        }
    }
}
