//! Blobs: what records keep outside the log, by digest, so that it can be erased while the log stays whole.
//!
//! Durable before the record that names one is acknowledged. It must not take a blob that no record of its batch names, and
//! must not change one. Fails: an error of the disk refuses the batch, which the host sends again; a blob that is not what its
//! name says is refused by name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use guard_log::frame;
use guard_log::record::Record;
use guard_proto::BLOB_MAX;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::body;

/// A blob's SHA-256.
pub type BlobId = [u8; 32];

/// Why a blob is not kept or found.
#[derive(Debug, Error)]
pub enum BlobError {
    /// Its sender sends what it should not.
    #[error("blob {0}: {1}")]
    Refused(String, &'static str),
    /// The folder.
    #[error("blobs: {0}: {1}")]
    Io(PathBuf, io::Error),
}

/// The folder of blobs.
#[derive(Clone, Debug)]
pub struct Blobs(PathBuf);

impl Blobs {
    /// The folder inside the store's.
    pub fn of(store: &Path) -> Self {
        Self(store.join("blobs"))
    }

    fn path(&self, id: &BlobId) -> PathBuf {
        let name = hex::encode(id);
        self.0.join(name.get(..2).unwrap_or_default()).join(name)
    }

    /// Keeps the blobs of a batch. Each must be named by one of its records.
    pub fn keep(&self, blobs: &[Vec<u8>], records: &[Record]) -> Result<(), BlobError> {
        if blobs.is_empty() {
            return Ok(());
        }
        let named: Vec<BlobId> = records.iter().filter_map(named_by).collect();
        for blob in blobs {
            let id: BlobId = Sha256::digest(blob).into();
            let refused = |why| Err(BlobError::Refused(hex::encode(id), why));
            if blob.len() > BLOB_MAX {
                return refused("longer than 6 MiB");
            }
            if !named.contains(&id) {
                return refused("no record of its batch names it");
            }
            self.put(&id, blob)?;
        }
        Ok(())
    }

    fn put(&self, id: &BlobId, blob: &[u8]) -> Result<(), BlobError> {
        let path = self.path(id);
        let failed = |e| BlobError::Io(path.clone(), e);
        if path.exists() {
            // It is named again: to retention it is as young as its newest record.
            return File::open(&path).and_then(|file| file.set_modified(SystemTime::now())).map_err(failed);
        }
        let folder = path.parent().unwrap_or(&self.0);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(failed)?;
            frame::sync_dir(&self.0).map_err(failed)?;
            frame::sync_dir(self.0.parent().unwrap_or(&self.0)).map_err(failed)?;
        }
        let new = path.with_extension("new");
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(blob)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            frame::sync_dir(folder)
        };
        write().map_err(failed)
    }

    /// A blob's bytes; `None` if it is not here (never came, or was erased).
    pub fn get(&self, id: &BlobId) -> Result<Option<Vec<u8>>, BlobError> {
        let path = self.path(id);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|f| f.take(BLOB_MAX as u64 + 1).read_to_end(&mut bytes)) {
            Ok(_) if Sha256::digest(&bytes).as_slice() == id => Ok(Some(bytes)),
            Ok(_) => {
                Err(BlobError::Io(path, io::Error::other("is not what its name says: it was changed on the disk")))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(BlobError::Io(path, e)),
        }
    }

    /// Every blob that came last before `then`.
    pub fn older(&self, then: SystemTime) -> Result<Vec<BlobId>, BlobError> {
        let mut found = Vec::new();
        let folders = match fs::read_dir(&self.0) {
            Ok(folders) => folders,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(e) => return Err(BlobError::Io(self.0.clone(), e)),
        };
        for folder in folders {
            let folder = folder.map_err(|e| BlobError::Io(self.0.clone(), e))?.path();
            let failed = |e| BlobError::Io(folder.clone(), e);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let mut id = BlobId::default();
                let named = hex::decode_to_slice(entry.file_name().as_encoded_bytes(), &mut id).is_ok();
                if named && entry.metadata().and_then(|m| m.modified()).map_err(failed)? < then {
                    found.push(id);
                }
            }
        }
        Ok(found)
    }

    /// Takes a blob away for good. The caller has recorded it.
    pub fn erase(&self, id: &BlobId) -> Result<(), BlobError> {
        let path = self.path(id);
        let erase = || {
            fs::remove_file(&path)?;
            frame::sync_dir(path.parent().unwrap_or(&self.0))
        };
        erase().map_err(|e| BlobError::Io(path.clone(), e))
    }
}

fn named_by(record: &Record) -> Option<BlobId> {
    guard_proto::named_blob(&body::parse(record)?)?.try_into().ok()
}
