//! The collector's Merkle log: durable in write-ahead segments, public as C2SP `tlog-tiles` with signed checkpoints.
//!
//! One writer thread takes the groups that are queued, writes them as one frame, calls `fdatasync` once and completes
//! every ticket; publishing follows on the caller's timer. Memory is bounded: the queue, the newest records, the frames
//! read last, the places of those not yet published in full tiles, and the right edge of the tree. It must not look into a record's body, and must
//! never publish a head that forks what the lock holds. Fails: after an error of write or sync the log stays closed until it is
//! opened again; files that contradict each other are refused by name at opening.

mod changes;
mod error;
mod lock;
mod prune;
mod publish;
mod read;
#[cfg(test)]
mod tests;
mod ticket;
pub(crate) mod wal;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use error::StoreError;
pub(crate) use lock::LOCK_MAX;
pub use ticket::Ticket;

use crate::changes::Changes;
use crate::checkpoint::Checkpoint;
use crate::frame;
use crate::note::Verifier;
use crate::pruned::Pruned;
use crate::record::Record;
use crate::signer::{Signer, Signers};
use crate::tiles::{CHANGES, CHECKPOINT, COSIGNED, PRUNED, RESOURCE_MAX, Tile, WIDTH};
use error::io_error;
use lock::Lock;
use publish::{Leaves, Publisher, make_folder};
use ticket::Slot;
use wal::{FrameRef, Segment};

/// Bytes that may wait for the writer; then [`Store::append`] waits too.
const QUEUE_BYTES: usize = 16 << 20;
/// Bytes of one group.
const GROUP_BYTES: usize = 32 << 20;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its folder: `wal/` with the write-ahead segments and `log/`, the public tree.
    pub dir: PathBuf,
    /// The small file, outside `dir` and its backups, that says how far the log was ever published.
    pub lock: PathBuf,
    /// A new segment begins after this many bytes.
    pub segment_bytes: u64,
    /// Refuse memory file systems.
    pub require_real_disk: bool,
}

impl StoreOptions {
    fn wal(&self) -> PathBuf {
        self.dir.join("wal")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.lock.starts_with(&self.dir) {
            return Err(StoreError::LockInside { lock: self.lock.clone(), dir: self.dir.clone() });
        }
        let asked = io_error("asking for the file system of", &self.dir);
        if self.require_real_disk && frame::in_memory(&self.dir).map_err(asked)? {
            return Err(StoreError::NotADisk(self.dir.clone()));
        }
        Ok(())
    }
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// Nothing was in it.
    pub created: bool,
    /// What was cut or replayed, for the record of the start.
    pub recovered: Option<String>,
}

struct Queued {
    records: Vec<Record>,
    slot: Arc<Slot>,
}

struct Inner {
    /// Next leaf to be given.
    next: u64,
    /// Everything below is durable.
    durable: u64,
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    /// The newest durable records, without a gap up to `durable`.
    recent: VecDeque<Record>,
    recent_bytes: usize,
    /// Frames from the last full public bundle on.
    tail: VecDeque<FrameRef>,
    public: (u64, String),
    pruned: Option<Pruned>,
    /// Below this leaf no bundle is left: what was pruned is not looked for again.
    removed: u64,
    failed: Option<String>,
    closing: bool,
}

struct Shared {
    options: StoreOptions,
    /// Keys that sign, the oldest first.
    signing: Vec<Verifier>,
    /// Those, and every one that led to them: what lies here may have been signed by any.
    verifiers: Vec<Verifier>,
    changes: Mutex<Changes>,
    /// Name of the log, and the newest key.
    name: (String, String),
    inner: Mutex<Inner>,
    /// Something is queued, or the writer shall end.
    work: Condvar,
    /// The queue got shorter, leaves became durable, or the log failed.
    moved: Condvar,
    publisher: Mutex<Publisher>,
    frames: Mutex<read::Frames>,
    /// Who removes segments: two at once would miss what the other took.
    pruning: Mutex<()>,
    writer: Mutex<Option<JoinHandle<()>>>,
    _held: File,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The log. Clones are handles of the same one; the last one that goes ends the writer.
#[derive(Clone)]
pub struct Store(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.0.0.options.dir).field("size", &self.size()).finish()
    }
}

impl Store {
    /// Makes a new log: an empty tree, signed. Refuses where one is.
    pub fn create(options: &StoreOptions, signer: &dyn Signer) -> Result<(), StoreError> {
        if options.lock.exists() {
            return Err(StoreError::Exists(options.lock.clone()));
        }
        for folder in [options.wal(), options.log()] {
            make_folder(&folder)?;
        }
        options.check()?;
        let wal = options.wal();
        if let Some(first) = wal::segments(&wal)?.first() {
            return Err(StoreError::Exists(wal::segment_path(&wal, *first)));
        }
        let path = options.log().join(CHECKPOINT);
        let head = Checkpoint::empty(signer.name());
        // A checkpoint of nothing is what a creation that was cut short leaves; it may go on.
        let found = lock::read_limited(&path, 1 << 20)?;
        if found.is_some_and(|note| !Checkpoint::open(&note, &signer.verifier()).is_ok_and(|c| c == head)) {
            return Err(StoreError::Exists(path));
        }
        let note = head.sign(signer).map_err(|cause| StoreError::Checkpoint { path: path.clone(), cause })?;
        frame::replace(&path, note.as_bytes()).map_err(io_error("writing", &path))?;
        Lock::create(&options.lock, &head)
    }

    /// Opens a log, completes what a crash cut short, and starts its writer.
    pub fn open(options: StoreOptions, signers: impl Into<Signers>) -> Result<(Self, StoreReport), StoreError> {
        Self::open_after(options, signers.into(), None)
    }

    /// Opens a successor whose first record is not written yet: its changes still end with the key of the log before.
    pub fn open_successor(
        options: StoreOptions,
        signers: impl Into<Signers>,
        old: &Verifier,
    ) -> Result<(Self, StoreReport), StoreError> {
        Self::open_after(options, signers.into(), Some(old))
    }

    fn open_after(
        options: StoreOptions,
        signers: Signers,
        old: Option<&Verifier>,
    ) -> Result<(Self, StoreReport), StoreError> {
        let wal_dir = options.wal();
        if !wal_dir.is_dir() {
            return Err(StoreError::Missing(wal_dir));
        }
        options.check()?;
        let held = lock::hold(&wal_dir.join("lock"))?;
        let signing = signers.verifiers();
        let name = (signers.name().to_owned(), signing.last().map(Verifier::vkey).unwrap_or_default());
        let publisher = Publisher::open(options.log(), Lock::open(&options.lock)?, signers)?;
        let (public_size, note) = publisher.public();
        let changes = changes::load(&options, (&signing, old), public_size)?;
        let mut verifiers: Vec<Verifier> = changes.keys().filter(|key| !signing.contains(key)).cloned().collect();
        verifiers.extend(signing.iter().cloned());
        let public = (public_size, note.to_owned());
        let loaded = wal::load(&wal_dir, needed_from(public_size))?;
        refuse_older(&publisher, &wal_dir, loaded.size)?;
        let mut report = StoreReport { created: loaded.size == 0 && public_size == 0, recovered: loaded.cut };
        let inner = Inner {
            next: loaded.size,
            durable: loaded.size,
            queue: VecDeque::new(),
            queued_bytes: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            tail: loaded.frames,
            public,
            pruned: prune::load(&options, &verifiers)?,
            removed: 0,
            failed: None,
            closing: false,
        };
        let shared = Arc::new(Shared {
            options,
            signing,
            verifiers,
            changes: Mutex::new(changes),
            name,
            inner: Mutex::new(inner),
            work: Condvar::new(),
            moved: Condvar::new(),
            publisher: Mutex::new(publisher),
            frames: Mutex::default(),
            pruning: Mutex::default(),
            writer: Mutex::new(None),
            _held: held,
        });
        let replayed = shared.recover()?;
        report.recovered = [report.recovered, replayed].into_iter().flatten().reduce(|a, b| format!("{a}; {b}"));
        let (first, bytes) = loaded.last.unwrap_or((0, 0));
        let segment = Segment::open(&wal_dir, first, bytes)?;
        *lock(&shared.writer) = Some(writer::start(&shared, segment)?);
        Ok((Self(Arc::new(Handle(shared))), report))
    }

    /// Queues records as one atomic group of consecutive leaves; the order of calls is the order of leaves. Waits while too
    /// much is queued.
    pub fn append(&self, records: Vec<Record>) -> Result<Ticket, StoreError> {
        let shared = &self.0.0;
        let bytes: usize = records.iter().map(wal::cost).sum();
        if bytes > GROUP_BYTES {
            return Err(StoreError::TooLarge { bytes, max: GROUP_BYTES });
        }
        let mut inner = shared.wait_for_room(bytes);
        if let Some(why) = inner.closed() {
            return Err(StoreError::Closed(why));
        }
        let first = inner.next;
        let slot = Arc::new(Slot::default());
        let ticket = Ticket { first, slot: Arc::clone(&slot) };
        inner.next += records.len() as u64;
        inner.queued_bytes += bytes;
        inner.queue.push_back(Queued { records, slot });
        drop(inner);
        shared.work.notify_one();
        Ok(ticket)
    }

    /// Durable leaves.
    pub fn size(&self) -> u64 {
        lock(&self.0.0.inner).durable
    }

    /// Size and signed note of the public checkpoint.
    pub fn published(&self) -> (u64, String) {
        lock(&self.0.0.inner).public.clone()
    }

    /// Makes everything durable public; false if it already is. For the caller's timer, and at stop.
    pub fn publish(&self) -> Result<bool, StoreError> {
        self.0.0.publish()
    }

    /// Removes write-ahead segments that public bundles, durable long since, hold as well and that are older than `keep`;
    /// how many. They are a second copy until then.
    pub fn prune_segments(&self, keep: Duration) -> Result<usize, StoreError> {
        let _alone = lock(&self.0.0.pruning);
        let public = lock(&self.0.0.inner).public.0;
        wal::prune(&self.0.0.options.wal(), needed_from(public), keep)
    }

    /// Durable leaves in order, up to the given count and bytes; at least one if there is one.
    pub fn read(&self, from: u64, max_records: usize, max_bytes: usize) -> Result<Vec<(u64, Record)>, StoreError> {
        self.0.0.read(from, max_records, max_bytes)
    }

    /// Waits until there are more than `size` durable leaves; false at the timeout or when the log is closed.
    pub fn wait_past(&self, size: u64, timeout: Duration) -> bool {
        let shared = &self.0.0;
        let end = Instant::now() + timeout;
        let mut inner = lock(&shared.inner);
        while inner.durable <= size {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.closed().is_some() {
                return false;
            }
            inner = shared.moved.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A public file by its C2SP name; `None` if there is none. No other file can be named.
    pub fn resource(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        if ![CHECKPOINT, COSIGNED, PRUNED, CHANGES].contains(&path) && path.parse::<Tile>().is_err() {
            return Err(StoreError::Path(path.chars().take(100).collect()));
        }
        lock::read_limited(&self.0.0.options.log().join(path), RESOURCE_MAX)
    }

    /// Makes the newest checkpoint that a quorum of witnesses cosigned public, with their lines; durable when it returns.
    /// Whose lines they are is for those who read it: anybody may add some.
    pub fn keep_cosigned(&self, note: &str) -> Result<(), StoreError> {
        let path = self.0.0.options.log().join(COSIGNED);
        let head = self.opened(&path, note.as_bytes())?;
        let public = self.published().0;
        if head.size > public {
            return Err(ahead(path, head.size, public));
        }
        frame::replace(&path, note.as_bytes()).map_err(io_error("writing", &path))
    }

    /// The checkpoint that was cosigned last, as it was kept. One of more leaves than are public is a disagreement: the folder
    /// is an older copy.
    pub fn cosigned(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.0.0.options.log().join(COSIGNED);
        let Some(note) = lock::read_limited(&path, 1 << 20)? else { return Ok(None) };
        let (head, public) = (self.opened(&path, &note)?, self.published().0);
        if head.size > public { Err(ahead(path, head.size, public)) } else { Ok(Some(note)) }
    }

    fn opened(&self, path: &Path, note: &[u8]) -> Result<Checkpoint, StoreError> {
        Checkpoint::open_any(note, &self.0.0.verifiers)
            .map_err(|cause| StoreError::Checkpoint { path: path.to_path_buf(), cause })
    }

    /// Name of the log.
    pub fn origin(&self) -> &str {
        &self.0.0.name.0
    }

    /// The newest key that verifies its checkpoints.
    pub fn vkey(&self) -> String {
        self.0.0.name.1.clone()
    }

    /// The keys that sign now, the oldest first: two while one follows the other.
    pub fn signing_vkeys(&self) -> Vec<String> {
        self.0.0.signing.iter().map(Verifier::vkey).collect()
    }

    /// Writes what is queued and ends the writer. What is durable can still be published and read.
    pub fn close(&self) {
        self.0.0.close();
    }
}

fn ahead(path: PathBuf, size: u64, public: u64) -> StoreError {
    StoreError::Disagree {
        path,
        what: format!("was cosigned at {size} leaves, the public checkpoint has {public}"),
        advice: "the folder is an older copy of this log; put the newest one back",
    }
}

/// The first leaf for which the write-ahead segments are needed: that of the last public bundle, which opening compares.
fn needed_from(public: u64) -> u64 {
    public.saturating_sub(1) / WIDTH * WIDTH
}

/// The lock must not be ahead of what the folder holds.
fn refuse_older(publisher: &Publisher, wal: &Path, size: u64) -> Result<(), StoreError> {
    let (public, locked) = (publisher.public().0, publisher.locked_size());
    if locked <= size {
        return Ok(());
    }
    let lock = publisher.lock_path().display();
    let what = format!(
        "holds {size} leaves, the lock file {lock} says that {locked} were published (the checkpoint here says {public})"
    );
    let advice = "this is an older copy of the folder; going on would fork the log: put the newest copy back or, if there is none, \
                  go on from this one as a successor (`guard-collector succeed`)";
    Err(StoreError::Disagree { path: wal.to_path_buf(), what, advice })
}

impl Inner {
    fn closed(&self) -> Option<String> {
        self.failed.clone().or_else(|| self.closing.then(|| "it was closed by its owner".to_owned()))
    }
}

impl Shared {
    fn wait_for_room(&self, bytes: usize) -> MutexGuard<'_, Inner> {
        let on_writer = lock(&self.writer).as_ref().is_some_and(|w| w.thread().id() == std::thread::current().id());
        let mut inner = lock(&self.inner);
        // The writer's own thread, in a callback, must not wait for itself.
        while !on_writer
            && inner.queued_bytes > 0
            && inner.queued_bytes + bytes > QUEUE_BYTES
            && inner.closed().is_none()
        {
            inner = self.moved.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner
    }

    fn close(&self) {
        lock(&self.inner).closing = true;
        self.work.notify_all();
        self.moved.notify_all();
        let mut writer = lock(&self.writer);
        if writer.as_ref().is_some_and(|w| w.thread().id() == std::thread::current().id()) {
            return;
        }
        let ended = writer.take();
        drop(writer);
        if let Some(thread) = ended {
            // Its panic, if any, has already failed the tickets' waits; there is nothing to add here.
            let _ = thread.join();
        }
    }

    fn fail(&self, why: &str) {
        lock(&self.inner).failed.get_or_insert_with(|| why.to_owned());
        self.work.notify_all();
        self.moved.notify_all();
    }

    fn publish(&self) -> Result<bool, StoreError> {
        let mut publisher = lock(&self.publisher);
        let (size, failed) = {
            let inner = lock(&self.inner);
            (inner.durable, inner.failed.clone())
        };
        if let Some(why) = failed {
            return Err(StoreError::Closed(why));
        }
        let result = publisher.publish(self, size);
        self.note_public(&publisher);
        if let Err(error @ StoreError::Forked { .. }) = &result {
            self.fail(&error.to_string());
        }
        result
    }

    fn recover(&self) -> Result<Option<String>, StoreError> {
        let mut publisher = lock(&self.publisher);
        let done = publisher.recover(self)?;
        self.note_public(&publisher);
        Ok(done)
    }

    /// Takes over the public head and forgets the places of frames that full public bundles hold.
    fn note_public(&self, publisher: &Publisher) {
        let (size, note) = publisher.public();
        let mut inner = lock(&self.inner);
        if inner.public.0 != size {
            inner.public = (size, note.to_owned());
        }
        // The last bundle's frames stay even if it is full: recovery compares them with its tile.
        let keep = needed_from(size);
        while inner.tail.front().is_some_and(|frame| frame.end() <= keep) {
            inner.tail.pop_front();
        }
    }
}
