//! Group commit: whoever leads writes what is queued as one frame and syncs once.
//!
//! It must complete a ticket only after `fdatasync` returned. Fails: closes the journal; every ticket that waits is told why.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::error::io_error;
use super::frames::encode;
use super::zeros::{Pace, room, zero};
use super::{Appended, Inner, JournalError, JournalOptions, Queued, Shared, lock, segment_path};
use crate::frame;

/// Most records of one frame: of the longest ones they stay well below what a frame can hold.
const FRAME_RECORDS: usize = 512;
/// Zeros written when the journal is opened, which is waited for: by the time they are used up, the next segment is ready.
pub(super) const FIRST_ZEROS: u64 = 512 << 10;
/// A segment is prepared only where so many times its size are free.
const SPARE_ROOM: u64 = 4;
/// Name of the segment that is being prepared.
pub(super) const SPARE: &str = "spare";

impl Shared {
    /// Writes what is queued, unless another thread does: that one, or the journal's own, then takes it.
    pub(super) fn lead(&self, rounds: usize) {
        let mut inner = lock(&self.inner);
        if inner.writing || inner.failed.is_some() {
            return;
        }
        inner.writing = true;
        for _ in 0..rounds {
            let batch = std::mem::take(&mut inner.queue);
            (inner.urgent, inner.due) = (false, None);
            drop(inner);
            let written = lock(&self.writer).write(self, &batch);
            match written {
                Ok(()) => self.publish(batch),
                Err(error) => self.fail(batch, &error),
            }
            inner = lock(&self.inner);
            if !inner.urgent || inner.failed.is_some() {
                break;
            }
        }
        inner.writing = false;
        let more = !inner.queue.is_empty() || inner.closing;
        drop(inner);
        if more {
            self.work.notify_one();
        }
    }

    /// The journal's own thread: writes what nobody waits for, and what others have left.
    pub(super) fn run(&self) {
        loop {
            let mut inner = lock(&self.inner);
            loop {
                if inner.failed.is_some() {
                    return;
                }
                if inner.closing && inner.queue.is_empty() && !inner.writing {
                    lock(&self.writer).end();
                    inner.ended = true;
                    self.durable.notify_all();
                    return;
                }
                let idle = inner.writing || inner.queue.is_empty();
                let left = inner.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
                if !idle && (inner.urgent || inner.closing || left.is_zero()) {
                    break;
                }
                inner = if idle {
                    self.work.wait(inner).unwrap_or_else(PoisonError::into_inner)
                } else {
                    inner.looks = inner.due;
                    self.work.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                };
                inner.looks = None;
            }
            drop(inner);
            self.lead(usize::MAX);
        }
    }

    fn publish(&self, batch: Vec<Queued>) {
        let mut inner = lock(&self.inner);
        for queued in &batch {
            inner.durable_next = queued.record.header().seq + 1;
            inner.remember(queued.record.clone());
        }
        drop(inner);
        self.durable.notify_all();
        for queued in batch {
            let done = Appended { seq: queued.record.header().seq, digest: queued.record.digest() };
            queued.slot.complete(Ok(done));
        }
    }

    fn fail(&self, batch: Vec<Queued>, error: &JournalError) {
        let mut inner = lock(&self.inner);
        inner.failed = Some(error.to_string());
        let rest = std::mem::take(&mut inner.queue);
        inner.queued_bytes = 0;
        drop(inner);
        self.durable.notify_all();
        self.work.notify_all();
        for queued in batch.into_iter().chain(rest) {
            queued.slot.complete(Err(JournalError::Closed(error.to_string())));
        }
    }
}

/// The segment that is written to.
pub(super) struct Writer {
    dir: PathBuf,
    file: File,
    path: PathBuf,
    /// Where the next frame goes.
    at: u64,
    /// Where the zeros end.
    filled: u64,
    /// Another segment is being prepared, or is there.
    spare: Arc<AtomicBool>,
}

impl Writer {
    pub(super) fn open(options: &JournalOptions, inner: &Inner) -> Result<Self, JournalError> {
        let (first, at) = inner.segments.back().copied().unwrap_or_default();
        let path = segment_path(&options.dir, first);
        let file = open_segment(&path)?;
        // What a crash has left: nobody knows how much of it is on the disk.
        let _ = std::fs::remove_file(options.dir.join(SPARE));
        let mut filled = options.segment_bytes.min(at + FIRST_ZEROS);
        // A disk that has no room for the zeros may have some for records: then syncs have more to do.
        if let Err(error) = zero(&file, at, filled, Pace::Fast) {
            file.set_len(at).map_err(io_error("cutting", &path))?;
            if error.raw_os_error() != Some(rustix::io::Errno::NOSPC.raw_os_error()) {
                return Err(io_error("filling", &path)(error));
            }
            filled = at;
        }
        let writer = Self { dir: options.dir.clone(), file, path, at, filled, spare: Arc::default() };
        if filled < options.segment_bytes {
            writer.prepare(options.segment_bytes);
        }
        Ok(writer)
    }

    fn write(&mut self, shared: &Shared, batch: &[Queued]) -> Result<(), JournalError> {
        self.rotate(shared, batch)?;
        // One frame for what one sync covers: pages of an unsynced write reach the disk in any order, and damage before a
        // whole frame would look like damage to what was acknowledged.
        for part in batch.chunks(FRAME_RECORDS) {
            let mut bytes = Vec::new();
            frame::put(&mut bytes, &encode(part));
            self.file.write_all_at(&bytes, self.at).map_err(io_error("writing", &self.path))?;
            self.file.sync_data().map_err(io_error("syncing", &self.path))?;
            self.at += bytes.len() as u64;
            let taken: usize = part.iter().map(|q| q.record.bytes().len() + frame::HEAD).sum();
            let mut inner = lock(&shared.inner);
            inner.queued_bytes = inner.queued_bytes.saturating_sub(taken as u64);
            if let Some(last) = inner.segments.back_mut() {
                last.1 = self.at;
            }
        }
        if self.at > self.filled.min(shared.options.segment_bytes) / 2 {
            self.prepare(shared.options.segment_bytes);
        }
        Ok(())
    }

    fn rotate(&mut self, shared: &Shared, batch: &[Queued]) -> Result<(), JournalError> {
        let ready = self.spare.load(Ordering::SeqCst);
        let used_up = self.at >= shared.options.segment_bytes || (ready && self.at > 0 && self.at >= self.filled);
        let Some(first) = batch.first().filter(|_| used_up) else { return Ok(()) };
        let first = first.record.header().seq;
        // What is kept gives way to what is new. If it does not go, the disk is fuller than it should be, and nothing else.
        let _ = shared.expire(shared.options.segment_bytes);
        let path = segment_path(&self.dir, first);
        // Without one that is ready, syncs have more to do until it is.
        let renamed = ready && std::fs::rename(self.dir.join(SPARE), &path).is_ok();
        self.spare.store(false, Ordering::SeqCst);
        self.file = open_segment(&path)?;
        (self.path, self.at, self.filled) = (path, 0, if renamed { shared.options.segment_bytes } else { 0 });
        lock(&shared.inner).segments.push_back((first, 0));
        Ok(())
    }

    /// Makes the next segment, on a thread of its own: nobody shall wait for it. Without one, syncs have more to do.
    fn prepare(&self, bytes: u64) {
        let path = self.dir.join(SPARE);
        // Zeros must not take the last room from records: a write that finds none closes the journal.
        if self.spare.load(Ordering::SeqCst) || path.exists() || room(&self.dir) < bytes.saturating_mul(SPARE_ROOM) {
            return;
        }
        // A file that is there is another thread's, which may write to it for as long as it likes.
        let Ok(file) = File::options().write(true).create_new(true).open(&path) else { return };
        let ready = Arc::clone(&self.spare);
        let making = move || match zero(&file, 0, bytes, Pace::Gentle) {
            Ok(()) => ready.store(true, Ordering::SeqCst),
            Err(_) => drop(std::fs::remove_file(&path)),
        };
        let _ = std::thread::Builder::new().name("journal-spare".into()).spawn(making);
    }

    /// Gives back what was prepared and not used.
    fn end(&self) {
        let _ = self.file.set_len(self.at);
        let _ = std::fs::remove_file(self.dir.join(SPARE));
    }
}

fn open_segment(path: &Path) -> Result<File, JournalError> {
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(io_error("opening", path))?;
    frame::sync_dir(path.parent().unwrap_or(Path::new("/"))).map_err(io_error("syncing the folder of", path))?;
    Ok(file)
}
