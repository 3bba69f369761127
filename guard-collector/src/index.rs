//! The index: sessions, execs, requests and records by what people ask for, in SQLite, made from the log.
//!
//! The main file holds sessions, execs, requests, texts and how much of the log is covered; records lie in one file for each
//! month ([`part`]), cut where the log reaches a new one, so that each holds consecutive leaves and a page of an answer goes on in
//! the next file. Never the truth: it has a durable cursor of its own, says with each answer how much of the log it covers, and
//! can be thrown away. It must not run ahead: files that cover more than the log holds, or another log, are made anew. An old
//! month's file may be removed: a question that needs it is refused by name until the index is made anew. Fails: an error of
//! SQLite stops the index and the answers that need it, never admission.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use guard_log::record::Record;
use guard_log::store::{Store, StoreError};
use rusqlite::{Connection, OptionalExtension, Transaction};
use thiserror::Error;
use tokio::sync::watch;

mod fold;
mod part;
mod read;
mod view;
mod words;

pub use read::{Filter, Found, Page, SessionFilter};

use crate::own::now_ns;
use fold::{Fold, Memory};
use part::{Part, month_of};

/// Records read from the log at a time.
const STEP_RECORDS: usize = 2048;
const STEP_BYTES: usize = 8 << 20;
/// Records of one transaction, about; fewer when there are no more.
const TRANSACTION_RECORDS: usize = 16_384;
/// Longest wait for `at_least`.
const AT_LEAST_WAIT: Duration = Duration::from_secs(10);
/// How often a stop is noticed while nothing comes.
const IDLE: Duration = Duration::from_millis(100);
/// Idle connections kept for readers.
const READERS: usize = 4;
/// Parts that one reader keeps open.
const OPEN_PARTS: usize = 16;
/// Changes with every change of the tables or of what is written into them.
const SCHEMA: i64 = 6;
/// Memory of SQLite for the pages of one writing connection, in KiB.
const CACHE_KIB: i64 = 24 << 10;
/// Pages of the write-ahead file that are moved into the database together.
const CHECKPOINT_PAGES: i64 = 4000;

const TABLES: &str = "
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), schema INTEGER NOT NULL, origin TEXT NOT NULL,
    size INTEGER NOT NULL, last BLOB NOT NULL);
CREATE TABLE parts (first INTEGER PRIMARY KEY, month INTEGER NOT NULL UNIQUE);
CREATE TABLE names (id INTEGER PRIMARY KEY, text BLOB NOT NULL UNIQUE);
CREATE TABLE hosts (host BLOB PRIMARY KEY, node TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (leaf INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, host BLOB NOT NULL, agent TEXT NOT NULL,
    instance TEXT NOT NULL, initiator TEXT NOT NULL, started INTEGER NOT NULL, ended INTEGER NOT NULL,
    expires INTEGER NOT NULL, end_reason TEXT NOT NULL, purpose TEXT NOT NULL, parent TEXT NOT NULL, start BLOB);
CREATE INDEX sessions_open ON sessions (ended, leaf);
CREATE INDEX sessions_parent ON sessions (parent, leaf) WHERE parent != '';
CREATE TABLE execs (session INTEGER NOT NULL, exec INTEGER NOT NULL, leaf INTEGER NOT NULL, facts INTEGER NOT NULL,
    disposition INTEGER NOT NULL, request TEXT, PRIMARY KEY (session, exec, leaf)) WITHOUT ROWID;
CREATE INDEX execs_request ON execs (session, request, leaf) WHERE request IS NOT NULL;
CREATE TABLE reviews (request TEXT PRIMARY KEY, host BLOB NOT NULL, leaf INTEGER NOT NULL, session TEXT NOT NULL,
    opened INTEGER NOT NULL, deadline INTEGER NOT NULL, state TEXT NOT NULL, reviewer TEXT NOT NULL,
    reason TEXT NOT NULL, closed INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX reviews_leaf ON reviews (leaf);
CREATE TABLE decisions (leaf INTEGER PRIMARY KEY, reviewer TEXT NOT NULL, at INTEGER NOT NULL, approve INTEGER NOT NULL,
    waited INTEGER NOT NULL);
CREATE TABLE blobs (id BLOB PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
";

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum IndexError {
    /// SQLite.
    #[error("index: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The log cannot be read.
    #[error("index: {0}")]
    Store(#[from] StoreError),
    /// The file or its folder.
    #[error("index: {0}: {1}")]
    Io(PathBuf, std::io::Error),
    /// It was not so far in time.
    #[error("index: it covers {0} records, {1} were asked for")]
    Behind(u64, u64),
    /// The file of a month was removed.
    #[error(
        "index: {path} was removed: records from leaf {first} on until the next month's are not in the index; ask with --after for later ones, or make the index anew with `guard-collector reindex`"
    )]
    Dropped {
        /// The file.
        path: PathBuf,
        /// Its first leaf.
        first: u64,
    },
    /// A month's file holds what was never written into it.
    #[error(
        "index: {path} is damaged at leaf {first}: make the index anew with `guard-collector reindex`; the log is not concerned"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the log.
        first: u64,
    },
    /// A thread ended.
    #[error("index: {0}")]
    Thread(String),
}

/// The index.
pub struct Index {
    path: PathBuf,
    store: Store,
    // Before the writer: the last connection that closes must be one that can move the write-ahead file into the database.
    readers: Mutex<Vec<Reader>>,
    writer: Mutex<Writer>,
    covered: watch::Sender<u64>,
}

/// What takes records in.
struct Writer {
    main: Connection,
    part: part::Writer,
    memory: Memory,
}

/// What answers one question at a time.
struct Reader {
    main: Connection,
    parts: HashMap<Part, Connection>,
}

fn remove(path: &Path) -> Result<(), IndexError> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(IndexError::Io(PathBuf::from(name), e)),
        }
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, IndexError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn open_reader(path: &Path) -> Result<Connection, IndexError> {
    let reader = Connection::open_with_flags(path, part::READ)?;
    reader.busy_timeout(Duration::from_secs(5))?;
    Ok(reader)
}

/// Throws away the main file and every month.
fn remove_all(path: &Path) -> Result<(), IndexError> {
    remove(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let failed = |e| IndexError::Io(folder.to_owned(), e);
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(|name| part::is_part_of(path, name)) {
            std::fs::remove_file(entry.path()).map_err(|e| IndexError::Io(entry.path(), e))?;
        }
    }
    Ok(())
}

/// All months, in log order.
fn parts(main: &Connection) -> Result<Vec<Part>, IndexError> {
    let mut statement = main.prepare_cached("SELECT first, month FROM parts ORDER BY first")?;
    let rows = statement.query_map([], |row| Ok(Part { first: number(row.get(0)?), month: row.get(1)? }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The writer over existing files, and how much of the log they cover; `None` if they are not an index of this log that can
/// go on.
fn existing(path: &Path, store: &Store) -> Result<Option<(Writer, u64)>, IndexError> {
    let main = connect(path)?;
    let Some(size) = usable(&main, store)? else { return Ok(None) };
    let Some(last) = parts(&main)?.last().copied() else { return Ok(None) };
    let Some(part) = part::Writer::open(path, last, size)? else { return Ok(None) };
    Ok(Some((Writer { main, part, memory: Memory::default() }, size)))
}

fn anew(path: &Path, store: &Store) -> Result<Writer, IndexError> {
    remove_all(path)?;
    let main = connect(path)?;
    main.execute_batch(TABLES)?;
    // What was pruned is in no new index.
    let begin = store.first();
    let first =
        store.read(begin, 1, STEP_BYTES)?.first().map_or_else(now_ns, |(_, record)| record.header().wall_unix_ns);
    let part = Part { first: begin, month: month_of(first).min(month_of(now_ns())) };
    let writer = part::Writer::create(path, part)?;
    main.execute("INSERT INTO parts (first, month) VALUES (?1, ?2)", (sql(begin), part.month))?;
    main.execute(
        "INSERT INTO meta (id, schema, origin, size, last) VALUES (0, ?1, ?2, ?3, x'')",
        (SCHEMA, store.origin(), sql(begin)),
    )?;
    Ok(Writer { main, part: writer, memory: Memory::default() })
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// How much of the log a file covers; `None` if it is not an index of this log that can go on.
fn usable(connection: &Connection, store: &Store) -> Result<Option<u64>, IndexError> {
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'meta'", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(None);
    }
    let found: Option<(i64, String, i64, Vec<u8>)> = connection
        .query_row("SELECT schema, origin, size, last FROM meta", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .optional()?;
    let Some((schema, origin, size, last)) = found else { return Ok(None) };
    let size = number(size);
    if schema != SCHEMA || origin != store.origin() || !(store.first()..=store.size()).contains(&size) {
        return Ok(None);
    }
    // Nobody can tell any more what came before the first leaf.
    if let Some(leaf) = size.checked_sub(1).filter(|leaf| *leaf >= store.first()) {
        let records = store.read(leaf, 1, STEP_BYTES)?;
        if records.first().is_none_or(|(_, record)| record.digest().as_slice() != last) {
            return Ok(None);
        }
    }
    Ok(Some(size))
}

impl Index {
    /// Opens the file, or begins a new one if it does not fit the log. `anew` throws it away in any case.
    pub fn open(path: &Path, store: Store, anew: bool) -> Result<Self, IndexError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| IndexError::Io(folder.to_owned(), e))?;
        }
        let found = match anew {
            true => Ok(None),
            false => existing(path, &store),
        };
        let (writer, size) = match found {
            Ok(Some(found)) => found,
            other => {
                if let Err(error) = &other {
                    tracing::warn!(%error, path = %path.display(), "the index is not usable");
                }
                drop(other);
                tracing::info!(path = %path.display(), "the index is made anew from the log");
                (self::anew(path, &store)?, store.first())
            }
        };
        let (covered, _) = watch::channel(size);
        Ok(Self { path: path.to_owned(), store, writer: Mutex::new(writer), readers: Mutex::default(), covered })
    }

    /// Its main file; the months lie beside it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much of the log it covers.
    pub fn covered(&self) -> u64 {
        *self.covered.borrow()
    }

    /// Takes the next records of the log; false if there are none.
    pub fn step(&self) -> Result<bool, IndexError> {
        let from = self.covered();
        let first = self.store.read(from, STEP_RECORDS, STEP_BYTES)?;
        if first.is_empty() {
            return Ok(false);
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let result = writer.take(&self.path, &self.store, first);
        match &result {
            Ok(size) => {
                self.covered.send_replace(*size);
            }
            // What was numbered in a transaction that failed has no number, and the part may have what comes again.
            Err(_) => {
                writer.memory = Memory::default();
                if let Ok(Some(part)) = part::Writer::open(&self.path, writer.part.part, from) {
                    writer.part = part;
                }
            }
        }
        result.map(|_| true)
    }

    /// How much of the log it covers, durably: a power cut does not take it back below. Blocks.
    pub fn settle(&self) -> Result<u64, IndexError> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let size = self.covered();
        let busy: i64 = writer.main.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get(0))?;
        if busy != 0 {
            return Err(IndexError::Thread("a long question keeps it from being made durable".to_owned()));
        }
        Ok(size)
    }

    /// Follows the log until told to stop; blocks.
    pub fn run(&self, stopping: &watch::Receiver<bool>) -> Result<(), IndexError> {
        while !*stopping.borrow() {
            if !self.step()? {
                let waited = Instant::now();
                if !self.store.wait_past(self.covered(), IDLE) {
                    // A log that is closed does not wait.
                    std::thread::sleep(IDLE.saturating_sub(waited.elapsed()));
                }
            }
        }
        Ok(())
    }

    /// Waits, for a bounded time, until it covers so many records.
    pub async fn wait_for(&self, size: u64) -> Result<(), IndexError> {
        let mut covered = self.covered.subscribe();
        let reached = tokio::time::timeout(AT_LEAST_WAIT, covered.wait_for(|c| *c >= size)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(IndexError::Behind(self.covered(), size)),
        }
    }

    /// One answer, from one state of the index; the second value is the size of the log that it covers. Blocks.
    fn answer<T>(&self, ask: impl FnOnce(&Asked<'_>) -> Result<T, IndexError>) -> Result<(T, u64), IndexError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => Reader { main: open_reader(&self.path)?, parts: HashMap::new() },
        };
        let Reader { main, parts: open } = &mut reader;
        if open.len() > OPEN_PARTS {
            open.clear();
        }
        let tables = main.transaction()?;
        let size: i64 = tables.query_row("SELECT size FROM meta", [], |row| row.get(0))?;
        let size = number(size);
        let asked = Asked { path: &self.path, tables, size, open: std::cell::RefCell::new(open) };
        let answer = ask(&asked)?;
        drop(asked);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS {
            readers.push(reader);
        }
        Ok((answer, size))
    }
}

/// One state of the main file, and the months beside it.
struct Asked<'a> {
    path: &'a Path,
    tables: Transaction<'a>,
    size: u64,
    open: std::cell::RefCell<&'a mut HashMap<Part, Connection>>,
}

impl Asked<'_> {
    /// Leaves that fit, in order, at most `limit`, from all months.
    fn find(&self, mut wanted: part::Wanted, limit: usize) -> Result<Vec<u64>, IndexError> {
        let (all, leaves) = (parts(&self.tables)?, wanted.leaves.start..wanted.leaves.end.min(self.size));
        let mut open = self.open.borrow_mut();
        let mut found = vec![];
        for (place, one) in all.iter().enumerate() {
            let end = all.get(place + 1).map_or(self.size, |next| next.first);
            wanted.leaves = leaves.start.max(one.first)..leaves.end.min(end);
            if wanted.leaves.is_empty() || found.len() >= limit {
                continue;
            }
            let connection = match open.entry(*one) {
                std::collections::hash_map::Entry::Occupied(kept) => kept.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => place.insert(part::reader(self.path, *one)?),
            };
            let path = || part::path_of(self.path, one.month);
            found.extend(part::find(connection, path, &wanted, limit - found.len())?);
        }
        Ok(found)
    }
}

// === impl Writer ===

impl Writer {
    /// Takes records that were read, and as many of those that follow as belong into one transaction; the size then.
    fn take(&mut self, path: &Path, store: &Store, mut records: Vec<(u64, Record)>) -> Result<u64, IndexError> {
        let now = month_of(now_ns());
        // A clock that is ahead must not begin months that have not come.
        let month_of = |record: &Record| month_of(record.header().wall_unix_ns).min(now);
        if let Some((leaf, record)) = records.first()
            && month_of(record) > self.part.part.month
        {
            self.begin(path, Part { first: *leaf, month: month_of(record) })?;
        }
        let tables = self.main.transaction()?;
        let mut fold = Fold::new(&tables, &mut self.memory);
        let (mut rows, mut last) = (Vec::with_capacity(TRANSACTION_RECORDS), None);
        'all: while rows.len() < TRANSACTION_RECORDS && !records.is_empty() {
            for (leaf, record) in records {
                // A file holds consecutive leaves: the next begins where the log reaches a new month.
                if month_of(&record) > self.part.part.month {
                    break 'all;
                }
                rows.push(fold.record(leaf, &record)?);
                last = Some((leaf + 1, record));
            }
            records = match &last {
                Some((size, _)) => store.read(*size, STEP_RECORDS, STEP_BYTES)?,
                None => vec![],
            };
        }
        let Some((size, record)) = last else { return Err(IndexError::Thread("a step without records".to_owned())) };
        // First the part: a main file that is behind it is what opening puts right.
        self.part.add(&rows)?;
        tables.execute("UPDATE meta SET size = ?1, last = ?2", (sql(size), record.digest().as_slice()))?;
        tables.commit()?;
        Ok(size)
    }

    fn begin(&mut self, path: &Path, part: Part) -> Result<(), IndexError> {
        let next = part::Writer::create(path, part)?;
        self.main.execute("INSERT INTO parts (first, month) VALUES (?1, ?2)", (sql(part.first), part.month))?;
        self.part = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
