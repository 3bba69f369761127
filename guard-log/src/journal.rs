//! The host's durable chain of records.
//!
//! Whoever queues a record that something waits for writes all that is queued in one piece, calls `fdatasync` once and
//! completes every ticket, unless another thread is at it already: a single append costs one sync and no change of thread,
//! many at once share it. A thread of the journal's own writes what nobody waits for, a moment later. Segments are filled
//! with zeros before they are used, so that a sync has data to write but no metadata. Zeros after the last whole frame are
//! therefore no damage; anything else there is a frame that was being written.
//!
//! Bounded in bytes, with a reserve for the records that say that it is full; zeros that wait to be used, a segment's and
//! the next one's, are not counted. Segments that were acknowledged stay for a while ([`kept`]), where there is room. Fails: after an error of write or sync the journal stays closed until it is opened
//! again, because what the page cache says then is not what the disk holds. A torn tail is cut and reported; damage
//! elsewhere moves all segments to a quarantine folder, reported, and a new epoch begins.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

mod error;
mod frames;
mod kept;
mod load;
pub mod offline;
mod read;
mod repairs;
mod shares;
#[cfg(test)]
mod tests;
mod ticket;
mod writer;
mod zeros;

pub use error::JournalError;
pub use ticket::{Appended, Ticket};

use crate::frame;
use crate::record::{Epoch, HEADER_LEN, Header, HostId, Kind, Record, SessionId};
use error::io_error;
use load::{load, take_lock};
use shares::Shares;
use ticket::Slot;
use writer::Writer;

/// Records kept in memory for the shipper.
const RECENT: usize = 4096;
/// Bytes of them.
const RECENT_BYTES: usize = 4 << 20;
/// Batches that a thread writes for others, before the journal's own thread goes on.
const ROUNDS: usize = 2;

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
    /// How long segments stay after they were acknowledged, where there is room for them.
    pub keep: Duration,
    /// Refuse memory file systems.
    pub require_real_disk: bool,
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
    /// Repairs, to be recorded by the caller, who then calls [`Journal::repairs_recorded`]; until then they are told again.
    pub repairs: Vec<Repair>,
    /// The journal is new.
    pub created: bool,
}

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// `torn_tail`, `quarantined` or `missing`.
    pub what: &'static str,
    /// File or folder concerned.
    pub file: String,
    /// Where in it; of what is missing the first record's number.
    pub offset: u64,
    /// Bytes cut or set aside; of what is missing the number of records.
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
    /// Bytes in use: of records that are not acknowledged, and of their segments.
    pub bytes: u64,
    /// Bytes of segments that stay although they are acknowledged.
    pub kept_bytes: u64,
    /// Why it is closed, if it is.
    pub failed: Option<String>,
}

/// How a record is queued.
#[derive(Clone, Copy, Default)]
struct How {
    /// Something waits for it.
    urgent: bool,
    /// If nothing does: when it is written at the latest.
    within: Duration,
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
    /// So far the file says that.
    cursor: u64,
    queue: Vec<Queued>,
    queued_bytes: u64,
    /// When the journal's own thread writes what is queued, if nobody else has until then.
    due: Option<Instant>,
    /// When that thread looks again by itself.
    looks: Option<Instant>,
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
    /// Of a life in which everything below `acked` is acknowledged, before its segments are read.
    fn new(host: HostId, epoch: Epoch, acked: u64) -> Self {
        Self {
            host,
            epoch,
            next_seq: acked,
            last_digest: [0; 32],
            durable_next: acked,
            acked_next: acked,
            cursor: acked,
            queue: Vec::new(),
            queued_bytes: 0,
            due: None,
            looks: None,
            urgent: false,
            writing: false,
            recent: VecDeque::new(),
            recent_bytes: 0,
            shares: Shares::default(),
            segments: VecDeque::new(),
            failed: None,
            closing: false,
            ended: false,
        }
    }

    /// Bytes that count against the limit: what is only kept gives way.
    fn bytes(&self) -> u64 {
        self.segments.iter().skip(self.kept()).map(|(_, bytes)| bytes).sum::<u64>() + self.queued_bytes
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

struct Shared {
    options: JournalOptions,
    inner: Mutex<Inner>,
    writer: Mutex<Writer>,
    /// Held by who writes the cursor and removes segments: the cursor must not go back on the disk.
    cursor: Mutex<()>,
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

fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

impl Journal {
    /// Opens or creates the journal of a host and starts its writer.
    pub fn open(options: JournalOptions, host: HostId) -> Result<(Self, OpenReport), JournalError> {
        let dir = options.dir.clone();
        frame::make_dir(&dir).map_err(io_error("creating", &dir))?;
        if options.require_real_disk
            && frame::in_memory(&dir).map_err(io_error("asking for the file system of", &dir))?
        {
            return Err(JournalError::NotADisk(dir));
        }
        let lock_file = take_lock(&dir)?;
        let mut report = OpenReport { repairs: repairs::read(&dir)?, created: false };
        let mut inner = load(&dir, host, &mut report)?;
        if inner.segments.is_empty() {
            inner.segments.push_back((inner.next_seq, 0));
        }
        let writer = Writer::open(&options, &inner)?;
        let shared = Arc::new(Shared {
            options,
            inner: Mutex::new(inner),
            writer: Mutex::new(writer),
            cursor: Mutex::new(()),
            work: Condvar::new(),
            durable: Condvar::new(),
            _lock: lock_file,
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || own.run())
            .map_err(io_error("starting the writer of", &dir))?;
        // An old segment that does not go keeps nobody from starting; the next acknowledgement tells it.
        let _ = shared.expire(0);
        Ok((Self(shared), report))
    }

    /// Queues a record. The order of calls is the order of sequence numbers. A session that has its share is refused
    /// while others go on.
    pub fn append(&self, entry: Entry) -> Result<Ticket, JournalError> {
        let ticket = self.queue(entry, Arc::default(), How { urgent: true, ..How::default() })?;
        self.0.work.notify_one();
        Ok(ticket)
    }

    /// As [`Self::append`], but may use the reserve: for records that say why others are refused.
    pub fn append_reserved(&self, entry: Entry) -> Result<Ticket, JournalError> {
        let ticket = self.queue(entry, Arc::default(), How { urgent: true, reserve: true, ..How::default() })?;
        self.0.work.notify_one();
        Ok(ticket)
    }

    /// As [`Self::append`], for a record that nothing waits for: it is written with the next one that something does
    /// wait for, at the latest after this time. A process that is killed takes along what is not written.
    pub fn append_later(&self, entry: Entry, within: Duration) -> Result<Ticket, JournalError> {
        self.queue(entry, Arc::default(), How { within, ..How::default() })
    }

    /// Queues a record and calls back, once, when it is durable or refused. This thread writes it, unless another one is
    /// writing: no time is lost with waking a thread.
    pub fn append_then(&self, entry: Entry, call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static) {
        let slot = Arc::new(Slot::calling(call));
        match self.queue(entry, Arc::clone(&slot), How { urgent: true, ..How::default() }) {
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
        if !how.urgent {
            let due = Instant::now() + how.within;
            inner.due = Some(inner.due.map_or(due, |earlier| earlier.min(due)));
            // Who queues what is waited for sees to all of it.
            if inner.looks.is_none_or(|looks| looks > due) {
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
            kept_bytes: inner.kept_bytes(),
            failed: inner.failed.clone(),
        }
    }

    /// Says that the repairs that opening told are in the journal, durably: the next opening does not tell them again.
    pub fn repairs_recorded(&self) -> Result<(), JournalError> {
        repairs::forget(&self.0.options.dir)
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
