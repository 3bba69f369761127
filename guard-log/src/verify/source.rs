//! Where the public resources of a log come from.
//!
//! It must not judge them.

use thiserror::Error;

/// A resource could not be fetched.
#[derive(Debug, Error)]
#[error("cannot fetch {path}: {cause}")]
pub struct SourceError {
    path: String,
    cause: std::io::Error,
}

impl SourceError {
    /// Names the resource and the cause.
    pub fn new(path: &str, cause: std::io::Error) -> Self {
        Self { path: path.to_owned(), cause }
    }
}

/// Where the public resources of a log come from.
pub trait Source {
    /// The resource's bytes; `None` if there is none of that name.
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError>;

    /// Whether a resource that was not fetched is there after all, and the source itself tells why it could not be
    /// read.
    fn unread(&self, _path: &str) -> bool {
        false
    }
}
