//! The host's durable chain of records.
//!
//! Whoever queues a record that something waits for writes all that is queued in one piece, calls `fdatasync` once and
//! completes every ticket, unless another thread is at it already: a single append costs one sync and no change of thread,
//! many at once share it. A thread of the journal's own writes what nobody waits for, a moment later. Segments are filled
//! with zeros before they are used, so that a sync has data to write but no metadata. Zeros after the last whole frame are
//! therefore no damage; anything else there is a frame that was being written.
//!
//! Bounded in bytes, with a reserve for the records that say that it is full; zeros that wait to be used, a segment's and
//! the next one's, are not counted. Fails: after an error of write or sync the journal stays closed until it is opened
//! again, because what the page cache says then is not what the disk holds. A torn tail is cut and reported; damage
//! elsewhere moves all segments to a quarantine folder, reported, and a new epoch begins.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::frame;
use crate::record::{Epoch, HEADER_LEN, Header, HostId, Kind, Record, RecordError, SessionId};

/// Records kept in memory for the shipper.
const RECENT: usize = 4096;
/// Bytes of them.
const RECENT_BYTES: usize = 4 << 20;
/// Records of one entry of the account of what sessions have in the journal.
const ACCOUNT_RECORDS: u32 = 256;
/// Most records of one frame: of the longest ones they stay well below what a frame can hold.
const FRAME_RECORDS: usize = 512;
/// Records that nobody waits for are written after this time at the latest. A killed daemon takes along what it has read
/// of the kernel's events and not yet written: not much longer than a sync, which it would have to wait for in any case.
const LATER: Duration = Duration::from_millis(5);
/// Batches that a thread writes for others, before the journal's own thread goes on.
const ROUNDS: usize = 2;
/// Zeros written at once.
const ZEROS: usize = 256 << 10;
/// Zeros written when the journal is opened, which is waited for: by the time they are used up, the next segment is ready.
const FIRST_ZEROS: u64 = 512 << 10;
/// A segment is prepared only where so many times its size are free.
const SPARE_ROOM: u64 = 4;
/// Name of the segment that is being prepared.
const SPARE: &str = "spare";

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// A new segment begins after this many bytes.
    pub segment_bytes: u64,
    /// Most bytes of all segments.
    pub max_bytes: u64,
    /// Of those, bytes that only [`Journal::append_reserved`] may use.
    pub reserve_bytes: u64,
    /// One session's records that are not acknowledged may take this part, in per cent, of what is free.
    pub session_percent: u64,
    /// Refuse memory file systems.
    pub require_real_disk: bool,
}

/// Why the journal does not take a record.
#[derive(Clone, Debug, Error)]
pub enum JournalError {
    /// A file operation failed.
    #[error("journal: {what} {path}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        cause: Arc<io::Error>,
    },
    /// The folder lies in memory.
    #[error("journal: {0} lies on a memory file system; records there do not survive: choose a folder on a real disk")]
    NotADisk(PathBuf),
    /// Another daemon has it open.
    #[error("journal: {0} is in use by another daemon")]
    InUse(PathBuf),
    /// Only the reserve is left.
    #[error("journal: full ({bytes} of {max} bytes); records must be shipped and acknowledged first")]
    Full {
        /// Bytes in use.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// The session has its share.
    #[error("journal: this session has its share ({bytes} bytes wait, at most {max} now); they must be shipped first")]
    Share {
        /// Bytes of the session that are not acknowledged.
        bytes: u64,
        /// As many as it may have now.
        max: u64,
    },
    /// An earlier write or sync failed.
    #[error("journal: closed since an earlier failure: {0}")]
    Closed(String),
    /// Not a record.
    #[error("journal: {0}")]
    Record(#[from] RecordError),
}

/// A record to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is about.
    pub kind: Kind,
    /// Its session, or none.
    pub session: SessionId,
    /// `CLOCK_BOOTTIME` in ns.
    pub boot_ns: u64,
    /// Wall time in ns since 1970.
    pub wall_unix_ns: i64,
    /// The serialised body.
    pub body: Vec<u8>,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Repairs, to be recorded by the caller.
    pub repairs: Vec<Repair>,
    /// The journal is new.
    pub created: bool,
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// `torn_tail` or `quarantined`.
    pub what: &'static str,
    /// File or folder concerned.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// Bytes cut or set aside.
    pub bytes: u64,
}

/// Where a journal stands.
#[derive(Clone, Debug)]
pub struct JournalState {
    /// This life.
    pub epoch: Epoch,
    /// Oldest sequence number still held.
    pub first_seq: u64,
    /// Next to be given.
    pub next_seq: u64,
    /// Everything below is durable.
    pub durable_next_seq: u64,
    /// Everything below is acknowledged by the collector.
    pub acked_next_seq: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Why it is closed, if it is.
    pub failed: Option<String>,
}

/// A record that is durable.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// Its number.
    pub seq: u64,
    /// Its digest.
    pub digest: [u8; 32],
}

type Done = Box<dyn FnOnce(Result<Appended, JournalError>) + Send>;

#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
    done: Condvar,
}

#[derive(Default)]
enum SlotState {
    #[default]
    Waiting,
    Callback(Done),
    Ready(Result<Appended, JournalError>),
}

/// A record on its way to the disk.
pub struct Ticket {
    seq: u64,
    slot: Arc<Slot>,
}

impl Ticket {
    /// Its sequence number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Waits until it is durable.
    pub fn wait(self) -> Result<Appended, JournalError> {
        let mut state = lock(&self.slot.state);
        loop {
            if let SlotState::Ready(result) = &*state {
                return result.clone();
            }
            state = self.slot.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls back, on the writer's thread, when it is durable (or at once if it already is).
    pub fn on_done(self, call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static) {
        let mut state = lock(&self.slot.state);
        if let SlotState::Ready(result) = &*state {
            let result = result.clone();
            drop(state);
            call(result);
        } else {
            *state = SlotState::Callback(Box::new(call));
        }
    }
}

impl Slot {
    fn complete(&self, result: Result<Appended, JournalError>) {
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut *state, SlotState::Ready(result.clone()));
        drop(state);
        self.done.notify_all();
        if let SlotState::Callback(call) = before {
            call(result);
        }
    }
}

/// How a record is queued.
#[derive(Clone, Copy)]
struct How {
    /// Something waits for it.
    urgent: bool,
    /// It may use the reserve, and no share bounds it.
    reserve: bool,
}

struct Queued {
    record: Record,
    slot: Arc<Slot>,
}

struct Inner {
    host: HostId,
    epoch: Epoch,
    next_seq: u64,
    last_digest: [u8; 32],
    durable_next: u64,
    acked_next: u64,
    queue: Vec<Queued>,
    queued_bytes: u64,
    /// Since when something is queued.
    queued_since: Option<Instant>,
    /// Something queued is waited for.
    urgent: bool,
    /// A thread writes; it alone may touch the writer.
    writing: bool,
    recent: VecDeque<Record>,
    recent_bytes: usize,
    shares: Shares,
    /// First sequence number, bytes.
    segments: VecDeque<(u64, u64)>,
    failed: Option<String>,
    closing: bool,
    /// The journal's own thread has ended.
    ended: bool,
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum::<u64>() + self.queued_bytes
    }

    fn remember(&mut self, record: Record) {
        self.recent_bytes += record.bytes().len();
        self.recent.push_back(record);
        while self.recent.len() > RECENT || (self.recent_bytes > RECENT_BYTES && self.recent.len() > 1) {
            let gone = self.recent.pop_front();
            self.recent_bytes -= gone.map_or(0, |r| r.bytes().len());
        }
    }
}

/// Bytes of each session that the collector has not acknowledged.
#[derive(Default)]
struct Shares {
    sessions: HashMap<SessionId, u64>,
    /// In order of sequence numbers.
    accounts: VecDeque<Account>,
}

/// What some consecutive records take, by session.
struct Account {
    last_seq: u64,
    records: u32,
    sessions: HashMap<SessionId, u64>,
}

impl Shares {
    fn of(&self, session: SessionId) -> u64 {
        self.sessions.get(&session).copied().unwrap_or(0)
    }

    fn charge(&mut self, session: SessionId, seq: u64, bytes: u64) {
        if session == SessionId::NONE {
            return;
        }
        *self.sessions.entry(session).or_default() += bytes;
        match self.accounts.back_mut().filter(|a| a.records < ACCOUNT_RECORDS) {
            Some(account) => {
                account.last_seq = seq;
                account.records += 1;
                *account.sessions.entry(session).or_default() += bytes;
            }
            None => {
                let sessions = HashMap::from([(session, bytes)]);
                self.accounts.push_back(Account { last_seq: seq, records: 1, sessions });
            }
        }
    }

    /// Everything below `next_seq` is acknowledged.
    fn release(&mut self, next_seq: u64) {
        while self.accounts.front().is_some_and(|a| a.last_seq < next_seq) {
            for (session, bytes) in self.accounts.pop_front().into_iter().flat_map(|a| a.sessions) {
                if let Some(known) = self.sessions.get_mut(&session) {
                    *known = known.saturating_sub(bytes);
                    if *known == 0 {
                        self.sessions.remove(&session);
                    }
                }
            }
        }
    }
}

struct Shared {
    options: JournalOptions,
    inner: Mutex<Inner>,
    writer: Mutex<Writer>,
    work: Condvar,
    durable: Condvar,
    _lock: File,
}

/// The journal. Clones are handles of the same one.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |cause| JournalError::Io { what, path, cause: Arc::new(cause) }
}

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

impl Journal {
    /// Opens or creates the journal of a host and starts its writer.
    pub fn open(options: JournalOptions, host: HostId) -> Result<(Self, OpenReport), JournalError> {
        let dir = options.dir.clone();
        std::fs::create_dir_all(&dir).map_err(io_error("creating", &dir))?;
        if options.require_real_disk
            && frame::in_memory(&dir).map_err(io_error("asking for the file system of", &dir))?
        {
            return Err(JournalError::NotADisk(dir));
        }
        let lock_file = take_lock(&dir)?;
        let mut report = OpenReport::default();
        let epoch = read_epoch(&dir, &mut report)?;
        let mut inner = load(&dir, host, epoch, &mut report)?;
        if inner.segments.is_empty() {
            inner.segments.push_back((inner.next_seq, 0));
        }
        let writer = Writer::open(&options, &inner)?;
        let shared = Arc::new(Shared {
            options,
            inner: Mutex::new(inner),
            writer: Mutex::new(writer),
            work: Condvar::new(),
            durable: Condvar::new(),
            _lock: lock_file,
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || own.run())
            .map_err(io_error("starting the writer of", &dir))?;
        Ok((Self(shared), report))
    }

    /// Queues a record. The order of calls is the order of sequence numbers. A session that has its share is refused
    /// while others go on.
    pub fn append(&self, entry: Entry) -> Result<Ticket, JournalError> {
        let ticket = self.queue(entry, Arc::default(), How { urgent: true, reserve: false })?;
        self.0.work.notify_one();
        Ok(ticket)
    }

    /// As [`Self::append`], but may use the reserve: for records that say why others are refused.
    pub fn append_reserved(&self, entry: Entry) -> Result<Ticket, JournalError> {
        let ticket = self.queue(entry, Arc::default(), How { urgent: true, reserve: true })?;
        self.0.work.notify_one();
        Ok(ticket)
    }

    /// As [`Self::append`], for a record that nothing waits for: it is written with the next one that something does
    /// wait for, or a moment later.
    pub fn append_later(&self, entry: Entry) -> Result<Ticket, JournalError> {
        self.queue(entry, Arc::default(), How { urgent: false, reserve: false })
    }

    /// Queues a record and calls back, once, when it is durable or refused. This thread writes it, unless another one is
    /// writing: no time is lost with waking a thread.
    pub fn append_then(&self, entry: Entry, call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static) {
        let slot = Slot { state: Mutex::new(SlotState::Callback(Box::new(call))), done: Condvar::new() };
        let slot = Arc::new(slot);
        match self.queue(entry, Arc::clone(&slot), How { urgent: true, reserve: false }) {
            Ok(_) => self.0.lead(ROUNDS),
            Err(error) => slot.complete(Err(error)),
        }
    }

    fn queue(&self, entry: Entry, slot: Arc<Slot>, how: How) -> Result<Ticket, JournalError> {
        let options = &self.0.options;
        let max = if how.reserve { options.max_bytes } else { options.max_bytes.saturating_sub(options.reserve_bytes) };
        let mut inner = lock(&self.0.inner);
        if let Some(why) = &inner.failed {
            return Err(JournalError::Closed(why.clone()));
        }
        let bytes = inner.bytes();
        let size = (entry.body.len() + HEADER_LEN + frame::HEAD) as u64;
        if bytes + size > max {
            return Err(JournalError::Full { bytes, max });
        }
        let (own, share) = (inner.shares.of(entry.session), (max - bytes) / 100 * options.session_percent);
        if !how.reserve && own + size > share && entry.session != SessionId::NONE {
            return Err(JournalError::Share { bytes: own, max: share });
        }
        let header = Header {
            version: 1,
            kind: entry.kind,
            host: inner.host,
            epoch: inner.epoch,
            seq: inner.next_seq,
            prev: inner.last_digest,
            boot_ns: entry.boot_ns,
            wall_unix_ns: entry.wall_unix_ns,
            session: entry.session,
        };
        let record = Record::seal(&header, &entry.body)?;
        inner.last_digest = record.digest();
        inner.next_seq += 1;
        inner.queued_bytes += size;
        inner.shares.charge(entry.session, header.seq, size);
        if inner.queue.is_empty() {
            inner.queued_since = Some(Instant::now());
            if !how.urgent {
                // The journal's own thread looks again after a moment. Who queues what is waited for sees to all of it.
                self.0.work.notify_one();
            }
        }
        inner.queue.push(Queued { record, slot: Arc::clone(&slot) });
        inner.urgent |= how.urgent;
        Ok(Ticket { seq: header.seq, slot })
    }

    /// Where it stands.
    pub fn state(&self) -> JournalState {
        let inner = lock(&self.0.inner);
        JournalState {
            epoch: inner.epoch,
            first_seq: inner.segments.front().map_or(inner.next_seq, |s| s.0),
            next_seq: inner.next_seq,
            durable_next_seq: inner.durable_next,
            acked_next_seq: inner.acked_next,
            bytes: inner.bytes(),
            failed: inner.failed.clone(),
        }
    }

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
        read.map_err(io_error("reading", &path))?;
        let records = frame::scan(&bytes)
            .frames
            .into_iter()
            .filter_map(|(at, length)| decode(bytes.get(at..at + length)?))
            .flatten()
            .filter(|r| r.header().seq >= from && r.header().seq < durable)
            .collect::<Vec<_>>();
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

    /// Notes that the collector holds everything below `next_seq`, and removes whole segments below it. The note is
    /// durable before anything is removed.
    pub fn acknowledge(&self, next_seq: u64) -> Result<(), JournalError> {
        let dir = &self.0.options.dir;
        let mut inner = lock(&self.0.inner);
        inner.acked_next = inner.acked_next.max(next_seq.min(inner.durable_next));
        let acked = inner.acked_next;
        inner.shares.release(acked);
        let mut removable = Vec::new();
        // Strictly below: the segment kept then holds a durable record, and with it the digest that the chain goes on from.
        while inner.segments.get(1).is_some_and(|next| next.0 < acked) {
            removable.extend(inner.segments.pop_front());
        }
        drop(inner);
        if removable.is_empty() {
            return Ok(());
        }
        let cursor = dir.join("acked");
        frame::replace(&cursor, acked.to_string().as_bytes()).map_err(io_error("writing", &cursor))?;
        for (first, _) in removable {
            let path = segment_path(dir, first);
            std::fs::remove_file(&path).map_err(io_error("removing", &path))?;
        }
        Ok(())
    }

    /// Writes what is queued and ends the writer.
    pub fn close(&self) {
        lock(&self.0.inner).closing = true;
        self.0.work.notify_one();
        let mut inner = lock(&self.0.inner);
        let end = Instant::now() + Duration::from_secs(10);
        while !inner.ended && inner.failed.is_none() && Instant::now() < end {
            inner =
                self.0.durable.wait_timeout(inner, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

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

// === the writer ===

impl Shared {
    /// Writes what is queued, unless another thread does: that one, or the journal's own, then takes it.
    fn lead(&self, rounds: usize) {
        let mut inner = lock(&self.inner);
        if inner.writing || inner.failed.is_some() {
            return;
        }
        inner.writing = true;
        for _ in 0..rounds {
            let batch = std::mem::take(&mut inner.queue);
            (inner.urgent, inner.queued_since) = (false, None);
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
    fn run(&self) {
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
                let left = inner.queued_since.map(|since| LATER.saturating_sub(since.elapsed()));
                inner = match left {
                    Some(left) if !inner.writing && (inner.urgent || inner.closing || left.is_zero()) => break,
                    Some(left) if !inner.writing => {
                        self.work.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                    _ => self.work.wait(inner).unwrap_or_else(PoisonError::into_inner),
                };
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
struct Writer {
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
    fn open(options: &JournalOptions, inner: &Inner) -> Result<Self, JournalError> {
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

/// Bytes that are free on the disk; none if that cannot be told.
fn room(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How zeros are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// With one sync at the end: nothing else wants the disk yet.
    Fast,
    /// With a sync after each piece, so that records that are written meanwhile do not wait for all of it.
    Gentle,
}

/// Writes zeros up to a length, durably.
fn zero(file: &File, from: u64, to: u64, pace: Pace) -> io::Result<()> {
    let zeros = vec![0_u8; ZEROS];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_all_at(zeros.get(..length).unwrap_or_default(), at)?;
        if pace == Pace::Gentle {
            file.sync_data()?;
        }
        at += length as u64;
    }
    file.sync_all()
}

/// The payload of a frame: each record with its length before it.
fn encode(batch: &[Queued]) -> Vec<u8> {
    let mut payload = Vec::new();
    for queued in batch {
        payload.extend_from_slice(&(queued.record.bytes().len() as u32).to_le_bytes());
        payload.extend_from_slice(queued.record.bytes());
    }
    payload
}

/// The records of a frame; `None` if they do not fill it exactly.
fn decode(mut payload: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        let (length, rest) = payload.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        records.push(Record::parse(bytes.to_vec()).ok()?);
        payload = rest;
    }
    Some(records)
}

fn open_segment(path: &Path) -> Result<File, JournalError> {
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(io_error("opening", path))?;
    frame::sync_dir(path.parent().unwrap_or(Path::new("/"))).map_err(io_error("syncing the folder of", path))?;
    Ok(file)
}

// === opening ===

fn take_lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io_error("creating", &path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| JournalError::InUse(dir.to_path_buf()))?;
    Ok(file)
}

fn read_epoch(dir: &Path, report: &mut OpenReport) -> Result<Epoch, JournalError> {
    let path = dir.join("epoch");
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| io_error("reading", &path)(io::Error::new(io::ErrorKind::InvalidData, "not an epoch"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.created = true;
            new_epoch(&path)
        }
        Err(error) => Err(io_error("reading", &path)(error)),
    }
}

fn new_epoch(path: &Path) -> Result<Epoch, JournalError> {
    let epoch = Epoch::random().map_err(io_error("drawing an epoch for", path))?;
    frame::replace(path, epoch.to_string().as_bytes()).map_err(io_error("writing", path))?;
    Ok(epoch)
}

fn load(dir: &Path, host: HostId, epoch: Epoch, report: &mut OpenReport) -> Result<Inner, JournalError> {
    let acked = std::fs::read_to_string(dir.join("acked")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let mut inner = Inner {
        host,
        epoch,
        next_seq: acked,
        last_digest: [0; 32],
        durable_next: acked,
        acked_next: acked,
        queue: Vec::new(),
        queued_bytes: 0,
        queued_since: None,
        urgent: false,
        writing: false,
        recent: VecDeque::new(),
        recent_bytes: 0,
        shares: Shares::default(),
        segments: VecDeque::new(),
        failed: None,
        closing: false,
        ended: false,
    };
    let firsts = segment_names(dir)?;
    for (place, first) in firsts.iter().enumerate() {
        if !load_segment(dir, *first, place + 1 == firsts.len(), place == 0, &mut inner, report)? {
            return quarantine(dir, host, &firsts, report);
        }
    }
    Ok(inner)
}

fn segment_names(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let mut firsts: Vec<u64> = std::fs::read_dir(dir)
        .map_err(io_error("listing", dir))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".seg")?.parse().ok())
        .collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// False if the segment is damaged other than by a torn tail.
fn load_segment(
    dir: &Path,
    first: u64,
    last: bool,
    oldest: bool,
    inner: &mut Inner,
    report: &mut OpenReport,
) -> Result<bool, JournalError> {
    let path = segment_path(dir, first);
    let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
    let scan = frame::scan(&bytes);
    // Zeros are what a segment is filled with before it is used.
    if bytes.get(scan.good..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
        if !last || scan.damaged_middle {
            return Ok(false);
        }
        let file = File::options().write(true).open(&path).map_err(io_error("opening", &path))?;
        file.set_len(scan.good as u64).map_err(io_error("cutting", &path))?;
        file.sync_all().map_err(io_error("syncing", &path))?;
        report.repairs.push(Repair {
            what: "torn_tail",
            file: path.display().to_string(),
            offset: scan.good as u64,
            bytes: (bytes.len() - scan.good) as u64,
        });
    }
    let mut expected = first;
    let decoded = scan.frames.iter().map(|(at, length)| decode(bytes.get(*at..at + length).unwrap_or_default()));
    let Some(groups) = decoded.collect::<Option<Vec<_>>>() else { return Ok(false) };
    for (index, record) in groups.into_iter().flatten().enumerate() {
        let header = record.header();
        let chained = header.prev == inner.last_digest || (oldest && index == 0);
        if header.seq != expected || header.epoch != inner.epoch || !chained {
            return Ok(false);
        }
        expected += 1;
        inner.last_digest = record.digest();
        if header.seq >= inner.acked_next {
            inner.shares.charge(header.session, header.seq, (record.bytes().len() + frame::HEAD) as u64);
        }
        inner.remember(record);
    }
    if !oldest && first != inner.next_seq {
        return Ok(false);
    }
    inner.next_seq = expected;
    inner.durable_next = expected;
    inner.segments.push_back((first, scan.good as u64));
    Ok(true)
}

/// Sets all segments aside as evidence and begins a new epoch.
fn quarantine(dir: &Path, host: HostId, firsts: &[u64], report: &mut OpenReport) -> Result<Inner, JournalError> {
    let epoch_path = dir.join("epoch");
    let aside = dir.join(format!("quarantine-{}", std::fs::read_to_string(&epoch_path).unwrap_or_default().trim()));
    std::fs::create_dir_all(&aside).map_err(io_error("creating", &aside))?;
    let mut bytes = 0;
    for first in firsts {
        let path = segment_path(dir, *first);
        bytes += std::fs::metadata(&path).map_or(0, |m| m.len());
        std::fs::rename(&path, aside.join(format!("{first:020}.seg"))).map_err(io_error("setting aside", &path))?;
    }
    let _ = std::fs::remove_file(dir.join("acked"));
    let epoch = new_epoch(&epoch_path)?;
    report.repairs.push(Repair { what: "quarantined", file: aside.display().to_string(), offset: 0, bytes });
    load(dir, host, epoch, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path) -> JournalOptions {
        JournalOptions {
            dir: dir.to_path_buf(),
            segment_bytes: 2000,
            max_bytes: 1 << 20,
            reserve_bytes: 1000,
            session_percent: 100,
            require_real_disk: false,
        }
    }

    fn entry(text: &str) -> Entry {
        Entry { kind: Kind::EXEC, session: SessionId::NONE, boot_ns: 1, wall_unix_ns: 2, body: text.into() }
    }

    fn open(dir: &Path) -> (Journal, OpenReport) {
        open_with(&options(dir))
    }

    fn open_with(options: &JournalOptions) -> (Journal, OpenReport) {
        // The writer of the journal before ends with its last handle's close; its lock file goes with it.
        for _ in 0..100 {
            match Journal::open(options.clone(), HostId([9; 16])) {
                Err(JournalError::InUse(_)) => std::thread::sleep(Duration::from_millis(10)),
                other => return other.unwrap(),
            }
        }
        panic!("journal stays locked")
    }

    fn fill(journal: &Journal, count: usize) {
        for index in 0..count {
            journal.append(entry(&format!("record {index}"))).unwrap().wait().unwrap();
        }
    }

    #[test]
    fn keeps_chain_and_numbers_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3_u64 {
            let (journal, report) = open(dir.path());
            assert_eq!(report.created, round == 0);
            assert_eq!(journal.state().next_seq, round * 30);
            fill(&journal, 30);
            journal.close();
        }
        let (journal, report) = open(dir.path());
        assert!(report.repairs.is_empty());
        let mut previous = [0; 32];
        let mut seq = 0;
        while seq < 90 {
            for record in journal.read(seq, 7, 10_000).unwrap() {
                assert_eq!((record.header().seq, record.header().prev), (seq, previous));
                previous = record.digest();
                seq += 1;
            }
        }
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_length_and_reported() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 3);
        journal.close();
        drop(journal);
        let path = segment_path(dir.path(), 0);
        std::thread::sleep(Duration::from_millis(50));
        let whole = std::fs::read(&path).unwrap();
        let two = frame::scan(&whole).frames[1];
        for cut in (two.0 + two.1 + 1)..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (journal, report) = open(dir.path());
            assert_eq!((report.repairs[0].what, journal.state().next_seq), ("torn_tail", 2));
            journal.close();
        }
    }

    #[test]
    fn an_unsynced_batch_torn_in_its_middle_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 3);
        let tickets: Vec<Ticket> = (0..8).map(|_| journal.append(entry("in a batch")).unwrap()).collect();
        assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
        let epoch = journal.state().epoch;
        journal.close();
        drop(journal);
        std::thread::sleep(Duration::from_millis(50));
        let path = segment_path(dir.path(), 0);
        let mut bytes = std::fs::read(&path).unwrap();
        let frames = frame::scan(&bytes).frames;
        let last = *frames.last().unwrap();
        assert!(frames.len() < 11, "nothing was batched");
        let kept: u64 =
            frames[..frames.len() - 1].iter().map(|(a, n)| decode(&bytes[*a..a + n]).unwrap().len() as u64).sum();
        bytes[last.0 + 10] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (journal, report) = open(dir.path());
        assert_eq!((report.repairs[0].what, journal.state().next_seq), ("torn_tail", kept));
        assert_eq!(journal.state().epoch, epoch);
    }

    #[test]
    fn damage_in_the_middle_is_set_aside_and_a_new_epoch_begins() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        let epoch = journal.state().epoch;
        fill(&journal, 5);
        journal.close();
        drop(journal);
        std::thread::sleep(Duration::from_millis(50));
        let path = segment_path(dir.path(), 0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let (journal, report) = open(dir.path());
        assert_eq!(report.repairs[0].what, "quarantined");
        assert_ne!(journal.state().epoch, epoch);
        assert_eq!(journal.state().next_seq, 0);
        fill(&journal, 1);
    }

    #[test]
    fn who_waits_writes_and_takes_along_what_nobody_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        let later = journal.append_later(entry("later")).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let own = std::thread::current().id();
        journal.append_then(entry("now"), move |done| {
            sender.send((done.unwrap().seq, std::thread::current().id() == own)).unwrap();
        });
        let (seq, _) = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(seq, 1);
        assert!(journal.state().durable_next_seq == 2);
        assert_eq!(later.wait().unwrap().seq, 0);
        assert_eq!(journal.append_later(entry("alone")).unwrap().wait().unwrap().seq, 2);
    }

    #[test]
    fn every_call_back_comes_once_from_many_threads() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let sender = sender.clone();
                        journal.append_then(entry("flood"), move |done| sender.send(done.unwrap().seq).unwrap());
                        journal.append_later(entry("outcome")).unwrap();
                    }
                });
            }
        });
        drop(sender);
        let mut seen: Vec<u64> = receiver.iter().collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 200);
        journal.close();
        drop(journal);
        let (journal, report) = open(dir.path());
        assert!(report.repairs.is_empty());
        assert_eq!(journal.state().next_seq, 400);
    }

    #[test]
    fn a_power_cut_leaves_zeros_or_a_torn_frame_before_them() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) =
            Journal::open(JournalOptions { segment_bytes: 20_000, ..options(dir.path()) }, HostId([9; 16])).unwrap();
        fill(&journal, 3);
        let path = segment_path(dir.path(), 0);
        // As the disk holds it now, without a clean end.
        let image = std::fs::read(&path).unwrap();
        let good = frame::scan(&image).good;
        assert!(image.len() == 20_000 && image[good..].iter().all(|b| *b == 0));
        let mut torn = image.clone();
        let mut frame = Vec::new();
        frame::put(&mut frame, &vec![7; 9000]);
        // Of an unsynced write any page may have reached the disk: here the second one only.
        torn[good + 4096..good + 8192].copy_from_slice(&frame[4096..8192]);
        for (image, repairs) in [(image, 0), (torn, 1)] {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(dir.path().join("epoch"), copy.path().join("epoch")).unwrap();
            std::fs::write(segment_path(copy.path(), 0), &image).unwrap();
            let (journal, report) = open(copy.path());
            assert_eq!((report.repairs.len(), journal.state().next_seq), (repairs, 3));
            fill(&journal, 1);
        }
    }

    #[test]
    fn an_open_waits_for_few_zeros_and_goes_on_in_a_segment_that_was_prepared() {
        let dir = tempfile::tempdir().unwrap();
        let large = JournalOptions { segment_bytes: 2 << 20, max_bytes: 64 << 20, ..options(dir.path()) };
        let (journal, _) = open_with(&large);
        assert_eq!(std::fs::metadata(segment_path(dir.path(), 0)).unwrap().len(), FIRST_ZEROS);
        let long = "x".repeat(20_000);
        let mut count = 0;
        while lock(&journal.0.inner).segments.len() == 1 {
            journal.append(entry(&long)).unwrap().wait().unwrap();
            count += 1;
            assert!(count < 2000, "nothing was prepared");
        }
        let (first, _) = lock(&journal.0.inner).segments[1];
        let prepared = std::fs::read(segment_path(dir.path(), first)).unwrap();
        assert_eq!(prepared.len(), 2 << 20);
        // As a power cut leaves both: the chain goes on over them.
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join("epoch"), copy.path().join("epoch")).unwrap();
        std::fs::copy(segment_path(dir.path(), 0), segment_path(copy.path(), 0)).unwrap();
        std::fs::write(segment_path(copy.path(), first), prepared).unwrap();
        std::fs::write(copy.path().join(SPARE), "whatever").unwrap();
        let (again, report) = open_with(&JournalOptions { dir: copy.path().to_path_buf(), ..large });
        assert!(report.repairs.is_empty());
        assert_eq!(again.state().next_seq, count);
        fill(&again, 1);
    }

    #[test]
    fn a_segment_that_was_prepared_and_not_used_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 3);
        journal.close();
        drop(journal);
        std::fs::write(segment_path(dir.path(), 3), vec![0; 2000]).unwrap();
        for next in [3, 4] {
            let (journal, report) = open(dir.path());
            assert!(report.repairs.is_empty());
            assert_eq!(journal.state().next_seq, next);
            fill(&journal, 1);
            journal.close();
        }
    }

    #[test]
    fn full_refuses_but_for_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let small = JournalOptions { max_bytes: 3000, ..options(dir.path()) };
        let (journal, _) = Journal::open(small, HostId([9; 16])).unwrap();
        let refused = (0..100).find_map(|_| journal.append(entry("0123456789")).err()).unwrap();
        assert!(matches!(refused, JournalError::Full { .. }));
        journal.append_reserved(entry("journal full")).unwrap().wait().unwrap();
    }

    #[test]
    fn a_session_that_has_its_share_is_refused_alone_until_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let quarter = JournalOptions { max_bytes: 21_000, session_percent: 25, ..options(dir.path()) };
        let of = |session: u8| Entry { session: SessionId([session; 16]), ..entry("0123456789") };
        let (journal, _) = open_with(&quarter);
        let flood = |session| (0..1000).map_while(|_| journal.append(of(session)).ok()).count();
        let first = flood(1);
        assert!(matches!(journal.append(of(1)), Err(JournalError::Share { .. })));
        let second = flood(2);
        assert!(first > 10 && second > first / 2, "{first}, then {second}");
        journal.append(entry("the node's own")).unwrap().wait().unwrap();
        journal.close();
        drop(journal);
        // What waits is known again after a restart.
        let (journal, _) = open_with(&quarter);
        assert!(matches!(journal.append(of(1)), Err(JournalError::Share { .. })));
        journal.acknowledge(journal.state().next_seq).unwrap();
        journal.append(of(1)).unwrap().wait().unwrap();
    }

    #[test]
    fn few_long_records_are_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let large = JournalOptions { max_bytes: 64 << 20, segment_bytes: 64 << 20, ..options(dir.path()) };
        let (journal, _) = Journal::open(large, HostId([9; 16])).unwrap();
        let tickets: Vec<Ticket> = (0..200).map(|_| journal.append(entry(&"x".repeat(50_000))).unwrap()).collect();
        assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
        assert!(lock(&journal.0.inner).recent_bytes <= RECENT_BYTES);
        assert_eq!(journal.read(0, 500, 100 << 20).unwrap().len(), 200);
    }

    #[test]
    fn acknowledged_segments_go_and_numbers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 60);
        journal.acknowledge(50).unwrap();
        let state = journal.state();
        assert!(state.first_seq > 0 && state.first_seq <= 50);
        journal.close();
        drop(journal);
        let (journal, report) = open(dir.path());
        assert!(report.repairs.is_empty());
        assert_eq!(journal.state().next_seq, 60);
        assert_eq!(journal.read(55, 10, 10_000).unwrap().len(), 5);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (_journal, _) = open(dir.path());
        assert!(matches!(Journal::open(options(dir.path()), HostId([9; 16])), Err(JournalError::InUse(_))));
    }
}
