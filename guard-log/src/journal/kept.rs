//! What the collector acknowledged, and what becomes of it here.
//!
//! Whole segments below the acknowledgement stay until they are of an age, or until their room is needed: a log that was put back
//! from a copy lacks records that it had acknowledged, and they are sent again. What is kept never takes more than half of the
//! journal, so that as much is free if all of it is needed again. It must not remove what the cursor's file does not yet say is
//! acknowledged. Fails: a file that cannot be removed stays and is told; one that is damaged is set aside and passed over, since
//! nobody was promised that it stays.

use std::time::SystemTime;

use super::error::io_error;
use super::load::write_cursor;
use super::{Inner, Journal, JournalError, Shared, lock, segment_path};
use crate::frame;

impl Inner {
    /// How many segments are below the cursor. Strictly: the segment that stays then holds a durable record, and with it the
    /// digest that the chain goes on from.
    pub(super) fn kept(&self) -> usize {
        self.segments.iter().skip(1).take_while(|next| next.0 < self.cursor).count()
    }

    pub(super) fn kept_bytes(&self) -> u64 {
        self.segments.iter().take(self.kept()).map(|(_, bytes)| bytes).sum()
    }
}

impl Shared {
    /// Removes kept segments that are too old or too many, and as many as it takes for `room` more bytes.
    pub(super) fn expire(&self, room: u64) -> Result<(), JournalError> {
        let _turn = lock(&self.cursor);
        self.expire_in_turn(room)
    }

    fn expire_in_turn(&self, room: u64) -> Result<(), JournalError> {
        let options = &self.options;
        loop {
            let (oldest, crowded) = {
                let inner = lock(&self.inner);
                if inner.kept() == 0 {
                    return Ok(());
                }
                let Some(oldest) = inner.segments.front().copied() else { return Ok(()) };
                let kept = inner.kept_bytes();
                let half = options.max_bytes.saturating_sub(options.reserve_bytes) / 2;
                (oldest, kept > half || kept + inner.bytes() + room > options.max_bytes)
            };
            let path = segment_path(&options.dir, oldest.0);
            if !crowded && !options.keep.is_zero() {
                let written = std::fs::metadata(&path).and_then(|found| found.modified());
                let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
                if age.is_none_or(|age| age < options.keep) {
                    return Ok(());
                }
            }
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("removing", &path)(error));
                }
                _ => {}
            }
            let mut inner = lock(&self.inner);
            if inner.segments.front() == Some(&oldest) {
                inner.segments.pop_front();
            }
        }
    }
}

impl Journal {
    /// Notes that the collector holds everything below `next_seq`, durably as far as whole segments go, and removes what need
    /// not be kept.
    pub fn acknowledge(&self, next_seq: u64) -> Result<(), JournalError> {
        let _turn = lock(&self.0.cursor);
        let (acked, epoch, passed) = {
            let mut inner = lock(&self.0.inner);
            inner.acked_next = inner.acked_next.max(next_seq.min(inner.durable_next));
            let (acked, cursor) = (inner.acked_next, inner.cursor);
            inner.shares.release(acked);
            (acked, inner.epoch, inner.segments.iter().skip(1).any(|next| (cursor..acked).contains(&next.0)))
        };
        if passed {
            write_cursor(&self.0.options.dir, epoch, acked)?;
            lock(&self.0.inner).cursor = acked;
        }
        self.0.expire_in_turn(0)
    }

    /// Takes back that everything from `next_seq` on is acknowledged: the log lacks it after all. What is still held is as good
    /// as new.
    pub fn unacknowledge(&self, next_seq: u64) -> Result<(), JournalError> {
        let _turn = lock(&self.0.cursor);
        let (acked, epoch) = {
            let mut inner = lock(&self.0.inner);
            let first = inner.segments.front().map_or(inner.next_seq, |segment| segment.0);
            inner.acked_next = inner.acked_next.min(next_seq.max(first));
            inner.cursor = inner.cursor.min(inner.acked_next);
            (inner.acked_next, inner.epoch)
        };
        write_cursor(&self.0.options.dir, epoch, acked)
    }

    /// Sets a kept segment aside that does not hold what it should, with those before it, which are older; false if it is not
    /// one that is only kept.
    pub(super) fn pass_over(&self, first: u64) -> Result<bool, JournalError> {
        let dir = &self.0.options.dir;
        let _turn = lock(&self.0.cursor);
        let mut inner = lock(&self.0.inner);
        if !inner.segments.iter().take(inner.kept()).any(|segment| segment.0 == first) {
            return Ok(false);
        }
        while let Some(segment) = inner.segments.front().copied().filter(|segment| segment.0 <= first) {
            let path = segment_path(dir, segment.0);
            match std::fs::rename(&path, path.with_extension("damaged")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("setting aside", &path)(error));
                }
                _ => {}
            }
            inner.segments.pop_front();
        }
        drop(inner);
        frame::sync_dir(dir).map_err(io_error("syncing", dir))?;
        Ok(true)
    }
}
