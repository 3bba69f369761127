//! The collector's Merkle log (being written).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::note::Signer;
use crate::record::Record;

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

/// Why the log refuses.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// An earlier failure closed it.
    #[error("log: closed: {0}")]
    Closed(String),
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    /// Nothing was in it.
    pub created: bool,
    /// What was cut or replayed, for the record of the start.
    pub recovered: Option<String>,
}

/// A group of records on its way to the disk.
pub struct Ticket {
    first: u64,
}

impl Ticket {
    /// Leaf of the group's first record.
    pub fn first_leaf(&self) -> u64 {
        self.first
    }

    /// Waits until the group is durable.
    pub fn wait(self) -> Result<(), StoreError> {
        Err(StoreError::Closed("being written".into()))
    }

    /// Calls back, on the writer's thread, when it is durable (or at once if it already is).
    pub fn on_done(self, call: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        call(Err(StoreError::Closed("being written".into())));
    }
}

/// The log. Clones are handles of the same one.
#[derive(Clone)]
pub struct Store(Arc<StoreOptions>);

#[expect(missing_docs, unused_variables, reason = "being written")]
impl Store {
    pub fn create(options: &StoreOptions, signer: &Signer) -> Result<(), StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn open(options: StoreOptions, signer: Signer) -> Result<(Self, StoreReport), StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn append(&self, records: Vec<Record>) -> Result<Ticket, StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn size(&self) -> u64 {
        0
    }
    pub fn published(&self) -> (u64, String) {
        (0, String::new())
    }
    pub fn publish(&self) -> Result<bool, StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn read(&self, from: u64, max_records: usize, max_bytes: usize) -> Result<Vec<(u64, Record)>, StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn wait_past(&self, size: u64, timeout: Duration) -> bool {
        false
    }
    pub fn resource(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Err(StoreError::Closed("being written".into()))
    }
    pub fn origin(&self) -> &str {
        ""
    }
    pub fn vkey(&self) -> String {
        String::new()
    }
    pub fn close(&self) {
        let _ = &self.0.dir;
    }
}
