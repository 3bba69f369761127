//! Why the journal refuses. Each text names the file and what was being done with it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::record::RecordError;

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
    /// A segment was changed while it was in use.
    #[error("journal: {path} is damaged at byte {offset}; restart the daemon: what is damaged is then set aside")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where its whole frames end.
        offset: u64,
    },
    /// Not a record.
    #[error("journal: {0}")]
    Record(#[from] RecordError),
}

/// For `map_err` on file operations.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |cause| JournalError::Io { what, path, cause: Arc::new(cause) }
}
