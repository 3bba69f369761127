//! Who may publish, and how far the log was ever published.
//!
//! The lock file lies outside the log's folder and holds the head that became public last. It is compared and swapped before a
//! checkpoint is shown, so a restored backup of the folder, or a second writer, cannot fork history: the file is ahead of
//! them. It must never go back. Fails: a file that is missing or not what was left there is an error, never a fresh start.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::error::io_error;
use crate::checkpoint::Checkpoint;
use crate::frame;

/// Longest lock file that is read.
pub(crate) const LOCK_MAX: u64 = 4096;

/// Takes a file for this process until the handle is dropped.
pub(super) fn hold(path: &Path) -> Result<File, StoreError> {
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(io_error("opening", path))?;
    match frame::take(&file).map_err(io_error("locking", path))? {
        true => Ok(file),
        false => Err(StoreError::InUse(path.to_path_buf())),
    }
}

/// The lock file, held.
pub(super) struct Lock {
    path: PathBuf,
    // The file itself is replaced at each swap, so a sibling that stays carries the flock.
    _held: File,
}

impl Lock {
    /// Makes the first lock file.
    pub(super) fn create(path: &Path, head: &Checkpoint) -> Result<(), StoreError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("creating", parent))?;
        }
        let lock = Self { path: path.to_path_buf(), _held: hold(&held_path(path))? };
        if path.exists() {
            return Err(StoreError::Exists(path.to_path_buf()));
        }
        lock.write(head)
    }

    /// Makes it hold this head, whatever it held: for a log that goes on under another name.
    pub(super) fn put(path: &Path, head: &Checkpoint) -> Result<(), StoreError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io_error("creating", parent))?;
        }
        Self { path: path.to_path_buf(), _held: hold(&held_path(path))? }.write(head)
    }

    /// Takes the lock.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing(path.to_path_buf()));
        }
        Ok(Self { path: path.to_path_buf(), _held: hold(&held_path(path))? })
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The head that it holds.
    pub(super) fn read(&self) -> Result<Checkpoint, StoreError> {
        let wrong = |cause| StoreError::Checkpoint { path: self.path.clone(), cause };
        let length = fs::metadata(&self.path).map_err(io_error("reading", &self.path))?.len();
        if length > LOCK_MAX {
            let what = format!("has {length} bytes and is no lock file");
            return Err(StoreError::Disagree { path: self.path.clone(), what, advice: "put the right file back" });
        }
        let text = fs::read_to_string(&self.path).map_err(io_error("reading", &self.path))?;
        Checkpoint::parse(&text).map_err(wrong)
    }

    /// Moves it from the head that was left there to a later one, durably, or not at all.
    pub(super) fn swap(&self, left: &Checkpoint, to: &Checkpoint) -> Result<(), StoreError> {
        let found = self.read()?;
        if found != *left {
            return Err(StoreError::Forked { path: self.path.clone(), found: found.size, left: left.size });
        }
        self.write(to)
    }

    fn write(&self, head: &Checkpoint) -> Result<(), StoreError> {
        frame::replace(&self.path, head.text().as_bytes()).map_err(io_error("writing", &self.path))
    }
}

fn held_path(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".held");
    path.with_file_name(name)
}

/// Reads a file that may be missing, up to `max` bytes.
pub(super) fn read_limited(path: &Path, max: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("opening", path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, max + 1), &mut bytes).map_err(io_error("reading", path))?;
    if bytes.len() as u64 > max {
        let what = format!("longer than {max} bytes");
        return Err(StoreError::Damaged { path: path.to_path_buf(), offset: max, what });
    }
    Ok(Some(bytes))
}
