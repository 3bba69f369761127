//! Why the log refuses. Each text names the file, what it says, and what to do where a person has to.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::pruned::Pruned;
use crate::record::RecordError;
use crate::signer::SignError;
use crate::tiles::TileError;

/// Why the log refuses.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("log: {what} {path}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        cause: Arc<io::Error>,
    },
    /// The folder lies in memory.
    #[error("log: {0} lies on a memory file system; a log there does not survive: choose a folder on a real disk")]
    NotADisk(PathBuf),
    /// Another collector has it open.
    #[error("log: {0} is held by another collector; two writers would fork the log")]
    InUse(PathBuf),
    /// The lock file would be restored together with what it guards.
    #[error("log: the lock file {lock} lies inside {dir}; it has to lie where a backup of the folder does not reach")]
    LockInside {
        /// The lock file.
        lock: PathBuf,
        /// The log's folder.
        dir: PathBuf,
    },
    /// There is a log already.
    #[error("log: {0} exists; a log is never overwritten")]
    Exists(PathBuf),
    /// There is no log.
    #[error("log: {0} is missing; create the log first, or put the file back if it was there")]
    Missing(PathBuf),
    /// Files contradict each other.
    #[error("log: {path} {what}; it was not opened: {advice}")]
    Disagree {
        /// The file to look at.
        path: PathBuf,
        /// What it says against what.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file is damaged, and not at its torn end.
    #[error("log: {path} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// The lock moved although it is held: somebody else publishes this log.
    #[error(
        "log: the lock file {path} says {found} leaves where this collector left {left}: somebody else publishes this log"
    )]
    Forked {
        /// The lock file.
        path: PathBuf,
        /// Its size now.
        found: u64,
        /// The size that was written.
        left: u64,
    },
    /// The entry was taken away by a written policy.
    #[error("log: leaf {leaf} is not there any more: {pruned}")]
    Pruned {
        /// The leaf.
        leaf: u64,
        /// What the record of it says.
        pruned: Pruned,
    },
    /// A group that cannot be written in one piece.
    #[error("log: a group of {bytes} bytes is longer than {max}")]
    TooLarge {
        /// Bytes of the group.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not the name of a public resource.
    #[error("log: {0:?} is not the name of a log resource")]
    Path(String),
    /// A key did not sign; nothing was published. What is durable stays so, and is published when it signs again.
    #[error("log: {0}; nothing is published until it does")]
    Sign(SignError),
    /// An earlier failure closed it, or it was closed.
    #[error("log: closed: {0}")]
    Closed(String),
    /// Not a record.
    #[error("log: {0}")]
    Record(#[from] RecordError),
    /// Not a checkpoint of this log.
    #[error("log: {path}: {cause}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: CheckpointError,
    },
    /// Not a tile.
    #[error("log: {path}: {cause}")]
    Tile {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: TileError,
    },
}

/// For `map_err` on file operations.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |cause| StoreError::Io { what, path, cause: Arc::new(cause) }
}
