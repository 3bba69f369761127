//! Where log resources come from: the collector; and a copy that is written on the way. Folders are read by
//! `guard_log`.
//!
//! It must not judge what it reads: `guard_log::verify` does. Fails: a resource that is not there is `None`,
//! everything else is an error.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guard_log::verify::{Source, SourceError};
use guard_proto::v1::ReadLogRequest;
use tokio::runtime::Handle;
use tonic::Code;

use crate::client::Client;

/// A full bundle of the longest records, with room for the message around it.
const RESOURCE_MAX: usize = 20 << 20;

/// The collector's `ReadLog`, for use on a thread outside the runtime.
pub struct Remote {
    /// The connected client.
    pub client: Client,
    /// The runtime that drives it.
    pub runtime: Handle,
}

impl Source for Remote {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let mut client = self.client.clone().max_decoding_message_size(RESOURCE_MAX);
        let request = ReadLogRequest { path: path.to_owned() };
        match self.runtime.block_on(client.read_log(request)) {
            Ok(reply) => Ok(Some(reply.into_inner().content)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(SourceError::new(path, io::Error::other(status))),
        }
    }
}

/// Writes what passes through it into a folder, except the checkpoint, which comes last and only when all was verified.
pub struct Copying<S> {
    /// Where it comes from.
    pub from: S,
    /// Where it goes.
    pub to: PathBuf,
    /// Files written.
    pub files: Cell<u64>,
}

impl<S: Source> Source for Copying<S> {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let found = self.from.fetch(path)?;
        if let Some(bytes) = found.as_ref().filter(|_| path != "checkpoint") {
            write(&self.to.join(path), bytes).map_err(|e| SourceError::new(path, e))?;
            self.files.set(self.files.get() + 1);
        }
        Ok(found)
    }
}

/// Writes a file below folders that are made as needed.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes)
}
