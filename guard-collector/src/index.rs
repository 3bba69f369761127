//! The index: sessions, execs, requests and records by what people ask for, in SQLite, made from the log.
//!
//! Never the truth: it has a durable cursor of its own, says with each answer how much of the log it covers, and can be
//! thrown away. It must not run ahead: a file that covers more than the log holds, or another log, is made anew. Fails: an
//! error of SQLite stops the index and the answers that need it, never admission.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use guard_log::store::{Store, StoreError};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction};
use thiserror::Error;
use tokio::sync::watch;

mod fold;
mod read;

pub use read::{Filter, Found, Page, SessionFilter};

/// Records folded in one transaction.
const STEP_RECORDS: usize = 2048;
const STEP_BYTES: usize = 8 << 20;
/// Longest wait for `at_least`.
const AT_LEAST_WAIT: Duration = Duration::from_secs(10);
/// How often a stop is noticed while nothing comes.
const IDLE: Duration = Duration::from_millis(100);
/// Idle connections kept for readers.
const READERS: usize = 4;
/// Changes with every change of the tables or of what is written into them.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE meta (id INTEGER PRIMARY KEY CHECK (id = 0), schema INTEGER NOT NULL, origin TEXT NOT NULL,
    size INTEGER NOT NULL, last BLOB NOT NULL);
CREATE TABLE hosts (host BLOB PRIMARY KEY, node TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (leaf INTEGER PRIMARY KEY, host BLOB NOT NULL, session TEXT, kind INTEGER NOT NULL,
    wall INTEGER NOT NULL, agent TEXT, initiator TEXT, disposition TEXT, category TEXT, reviewer TEXT);
CREATE INDEX records_session ON records (session, leaf) WHERE session IS NOT NULL;
CREATE INDEX records_disposition ON records (disposition, leaf) WHERE disposition IS NOT NULL;
CREATE INDEX records_reviewer ON records (reviewer, leaf) WHERE reviewer IS NOT NULL;
CREATE TABLE sessions (leaf INTEGER PRIMARY KEY, session TEXT NOT NULL UNIQUE, host BLOB NOT NULL, agent TEXT NOT NULL,
    instance TEXT NOT NULL, initiator TEXT NOT NULL, started INTEGER NOT NULL, ended INTEGER NOT NULL,
    expires INTEGER NOT NULL, end_reason TEXT NOT NULL, purpose TEXT NOT NULL, start BLOB);
CREATE INDEX sessions_open ON sessions (ended, leaf);
CREATE TABLE execs (id INTEGER PRIMARY KEY, session TEXT NOT NULL, leaf INTEGER NOT NULL, exec_id INTEGER,
    request TEXT, disposition TEXT NOT NULL);
CREATE INDEX execs_session ON execs (session, disposition);
CREATE INDEX execs_exec ON execs (session, exec_id, id);
CREATE INDEX execs_request ON execs (session, request, id) WHERE request IS NOT NULL;
CREATE TABLE reviews (request TEXT PRIMARY KEY, host BLOB NOT NULL, leaf INTEGER NOT NULL, session TEXT NOT NULL,
    opened INTEGER NOT NULL, deadline INTEGER NOT NULL, state TEXT NOT NULL, reviewer TEXT NOT NULL,
    reason TEXT NOT NULL, closed INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX reviews_leaf ON reviews (leaf);
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
    /// A thread ended.
    #[error("index: {0}")]
    Thread(String),
}

/// The index.
pub struct Index {
    path: PathBuf,
    store: Store,
    // Before the writer: the last connection that closes must be one that can move the write-ahead file into the database.
    readers: Mutex<Vec<Connection>>,
    writer: Mutex<Connection>,
    covered: watch::Sender<u64>,
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
    Ok(connection)
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
    if schema != SCHEMA || origin != store.origin() || size > store.size() {
        return Ok(None);
    }
    if let Some(leaf) = size.checked_sub(1) {
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
        if anew {
            remove(path)?;
        }
        let existing = connect(path).and_then(|c| Ok((usable(&c, &store)?, c)));
        let (connection, size) = match existing {
            Ok((Some(size), connection)) => (connection, size),
            other => {
                if let Err(error) = &other {
                    tracing::warn!(%error, "the index is not usable");
                }
                drop(other);
                tracing::info!(path = %path.display(), "the index is made anew from the log");
                remove(path)?;
                let connection = connect(path)?;
                connection.execute_batch(TABLES)?;
                connection.execute(
                    "INSERT INTO meta (id, schema, origin, size, last) VALUES (0, ?1, ?2, 0, x'')",
                    (SCHEMA, store.origin()),
                )?;
                (connection, 0)
            }
        };
        let (covered, _) = watch::channel(size);
        Ok(Self { path: path.to_owned(), store, writer: Mutex::new(connection), readers: Mutex::default(), covered })
    }

    /// How much of the log it covers.
    pub fn covered(&self) -> u64 {
        *self.covered.borrow()
    }

    /// Takes the next records of the log; false if there are none.
    pub fn step(&self) -> Result<bool, IndexError> {
        let from = self.covered();
        let records = self.store.read(from, STEP_RECORDS, STEP_BYTES)?;
        let Some((leaf, last)) = records.last() else { return Ok(false) };
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = writer.transaction()?;
        for (leaf, record) in &records {
            fold::record(&transaction, *leaf, record)?;
        }
        let size = leaf + 1;
        transaction.execute("UPDATE meta SET size = ?1, last = ?2", (sql(size), last.digest().as_slice()))?;
        transaction.commit()?;
        self.covered.send_replace(size);
        Ok(true)
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
    fn answer<T>(&self, ask: impl FnOnce(&Transaction<'_>) -> Result<T, IndexError>) -> Result<(T, u64), IndexError> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => {
                let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let reader = Connection::open_with_flags(&self.path, flags)?;
                reader.busy_timeout(Duration::from_secs(5))?;
                reader
            }
        };
        let transaction = reader.transaction()?;
        let size: i64 = transaction.query_row("SELECT size FROM meta", [], |row| row.get(0))?;
        let answer = ask(&transaction)?;
        drop(transaction);
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS {
            readers.push(reader);
        }
        Ok((answer, number(size)))
    }
}
