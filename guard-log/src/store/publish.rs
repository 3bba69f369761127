//! Publishing: from durable leaves to tiles, from tiles to the lock, from the lock to the checkpoint. In this order.
//!
//! Each step is durable before the next begins, so a crash between any two leaves a prefix that the next start completes:
//! tiles that no checkpoint covers yet are the same when written again, and a lock that is ahead is caught up with from the
//! write-ahead segments or, if they do not lead to its root, refused. It must never show a checkpoint that the lock does not
//! hold. Fails: with the file that is wrong; after a failure the edge is read from the disk again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::error::io_error;
use super::lock::{Lock, read_limited};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::edge::Edge;
use crate::frame;
use crate::note::NoteError;
use crate::record::Record;
use crate::signer::Signers;
use crate::tiles::{self, CHECKPOINT, Level, RESOURCE_MAX, Tile, WIDTH};
use crate::tree::{Hash, leaf_hash};

/// Records taken from the log at once.
const STEP_RECORDS: usize = 1024;
const STEP_BYTES: usize = 8 << 20;
/// Files that are open at once, before they get their names.
const FRESH_MAX: usize = 256;
/// So many files are synced one by one; of more, the file system is.
const SYNC_EACH: usize = 8;

/// Durable leaves, from a number on; at least one if there is one.
pub(super) trait Leaves {
    fn read(&self, from: u64, max_records: usize, max_bytes: usize) -> Result<Vec<(u64, Record)>, StoreError>;
}

/// The one that publishes.
pub(super) struct Publisher {
    root: PathBuf,
    lock: Lock,
    signers: Signers,
    /// What the lock holds.
    locked: Checkpoint,
    /// Signed before the lock moved to it: a key that does not sign leaves the lock where it is.
    signed: Option<String>,
    /// What the public checkpoint says.
    public: Checkpoint,
    note: String,
    /// As of `public`, or further inside of `publish`; none after a failure.
    edge: Option<Edge>,
}

impl Publisher {
    /// Reads lock and checkpoint and demands that they can belong together.
    pub(super) fn open(root: PathBuf, lock: Lock, signers: Signers) -> Result<Self, StoreError> {
        let locked = lock.read()?;
        let path = root.join(CHECKPOINT);
        let note = read_limited(&path, 1 << 20)?.ok_or(StoreError::Missing(path.clone()))?;
        let public = Checkpoint::open_any(&note, &signers.verifiers()).map_err(|cause| StoreError::Disagree {
            path: path.clone(),
            what: format!("is no checkpoint of this log's key: {cause}"),
            advice: "the folder may be a copy from before the key was rotated: put the newest copy back; without one, `guard-collector succeed` goes on from this",
        })?;
        if locked.origin != public.origin {
            let what = format!("belongs to log {:?}, the folder to {:?}", locked.origin, public.origin);
            return Err(StoreError::Disagree {
                path: lock.path().into(),
                what,
                advice: "name the lock file of this log",
            });
        }
        if public.size > locked.size || (public.size == locked.size && public.root != locked.root) {
            let what = format!(
                "holds {} leaves and root {}, the public checkpoint {} leaves and root {}",
                locked.size,
                hex::encode(locked.root),
                public.size,
                hex::encode(public.root)
            );
            let advice = "the lock file was replaced by an older or another one; put the right one back";
            return Err(StoreError::Disagree { path: lock.path().into(), what, advice });
        }
        let note = String::from_utf8_lossy(&note).into_owned();
        Ok(Self { root, lock, signers, locked, signed: None, public, note, edge: None })
    }

    /// Size and note of the public checkpoint.
    pub(super) fn public(&self) -> (u64, &str) {
        (self.public.size, &self.note)
    }

    /// Size that the lock holds.
    pub(super) fn locked_size(&self) -> u64 {
        self.locked.size
    }

    /// The lock file.
    pub(super) fn lock_path(&self) -> &Path {
        self.lock.path()
    }

    /// Makes everything up to `size` public; false if it already is.
    pub(super) fn publish(&mut self, leaves: &dyn Leaves, size: u64) -> Result<bool, StoreError> {
        let recovered = self.recover(leaves)?;
        if size <= self.public.size {
            return Ok(recovered.is_some());
        }
        // Taken out: any error on the way leaves none, and the next call reads the edge from the disk.
        let Some(mut edge) = self.edge.take() else { return Ok(false) };
        let full = self.write_tiles(&mut edge, leaves, size)?;
        self.swap(&edge)?;
        self.announce()?;
        self.edge = Some(edge);
        self.remove_partials(&full);
        Ok(true)
    }

    /// Reads the edge if there is none, and catches up with a lock that is ahead of the checkpoint. Says what it did.
    pub(super) fn recover(&mut self, leaves: &dyn Leaves) -> Result<Option<String>, StoreError> {
        if self.edge.is_some() {
            return Ok(None);
        }
        let mut edge = self.load_edge(leaves)?;
        if self.locked.size == self.public.size {
            self.edge = Some(edge);
            return Ok(None);
        }
        let from = self.public.size;
        let full = self.write_tiles(&mut edge, leaves, self.locked.size)?;
        if edge.root() != self.locked.root {
            let what = format!(
                "says root {} at {} leaves, the write-ahead segments lead to {}",
                hex::encode(self.locked.root),
                self.locked.size,
                hex::encode(edge.root())
            );
            let advice = "the folder holds another history than the one published; put the right copy back";
            return Err(StoreError::Disagree { path: self.lock.path().into(), what, advice });
        }
        self.announce()?;
        self.edge = Some(edge);
        self.remove_partials(&full);
        Ok(Some(format!("published leaves {from} to {} again, which the lock already held", self.locked.size)))
    }

    /// Step 1: tiles up to `size`, durable. Returns those that are full now.
    pub(super) fn write_tiles(&self, edge: &mut Edge, leaves: &dyn Leaves, size: u64) -> Result<Vec<Tile>, StoreError> {
        let mut fresh = Fresh::new(&self.root)?;
        let mut filled = Vec::new();
        while edge.size() < size {
            let wanted = usize::try_from(size - edge.size()).unwrap_or(STEP_RECORDS).min(STEP_RECORDS);
            let records = leaves.read(edge.size(), wanted, STEP_BYTES)?;
            if records.is_empty() {
                return Err(StoreError::Closed(format!("leaf {} cannot be read back", edge.size())));
            }
            let mut full = Vec::new();
            for (_, record) in &records {
                edge.push(record.bytes(), &mut full)
                    .map_err(|cause| StoreError::Tile { path: self.root.clone(), cause })?;
            }
            for (tile, bytes) in full {
                fresh.write(&tile, &bytes)?;
                filled.push(tile);
            }
            if fresh.files.len() >= FRESH_MAX {
                fresh.settle()?;
            }
        }
        for (tile, bytes) in edge.partial() {
            fresh.write(&tile, &bytes)?;
        }
        fresh.settle()?;
        Ok(filled)
    }

    /// Step 2: the signature, then the lock.
    pub(super) fn swap(&mut self, edge: &Edge) -> Result<(), StoreError> {
        let next = Checkpoint { origin: self.locked.origin.clone(), size: edge.size(), root: edge.root() };
        let note = self.sign(&next)?;
        self.lock.swap(&self.locked, &next)?;
        (self.locked, self.signed) = (next, Some(note));
        Ok(())
    }

    fn sign(&self, head: &Checkpoint) -> Result<String, StoreError> {
        head.sign_all(&self.signers).map_err(|cause| match cause {
            CheckpointError::Note(NoteError::Sign(cause)) => StoreError::Sign(cause),
            cause => StoreError::Checkpoint { path: self.root.join(CHECKPOINT), cause },
        })
    }

    /// Step 3: the checkpoint that the lock holds.
    pub(super) fn announce(&mut self) -> Result<(), StoreError> {
        let path = self.root.join(CHECKPOINT);
        let note = match self.signed.take() {
            Some(note) => note,
            None => self.sign(&self.locked)?,
        };
        frame::replace(&path, note.as_bytes()).map_err(io_error("writing", &path))?;
        self.public = self.locked.clone();
        self.note = note;
        Ok(())
    }

    /// Step 4: what full tiles supersede. Best effort: what stays is right and only takes room.
    fn remove_partials(&self, full: &[Tile]) {
        for tile in full {
            let _ = fs::remove_dir_all(self.root.join(tile.partials()));
        }
    }

    /// The edge at the public checkpoint, from tiles and write-ahead segments, which have to agree with it.
    pub(super) fn load_edge(&self, leaves: &dyn Leaves) -> Result<Edge, StoreError> {
        let size = self.public.size;
        let mut levels = Vec::new();
        for level in 0..tiles::LEVELS {
            let count = size >> (8 * u32::from(level));
            if count == 0 {
                break;
            }
            levels.push(match Tile::at(Level::Hashes(level), count / WIDTH, size) {
                Some(tile) => self.read_hashes(&tile)?,
                None => Vec::new(),
            });
        }
        let records = self.compare_last(leaves, size)?;
        let entries = records.iter().filter(|(leaf, _)| *leaf >= size - size % WIDTH).map(|(_, r)| r.bytes().as_ref());
        let edge =
            Edge::resume(size, levels, entries).map_err(|cause| StoreError::Tile { path: self.root.clone(), cause })?;
        if edge.root() != self.public.root {
            let path = self.root.join(CHECKPOINT);
            let what = format!("says another root at {size} leaves than the tiles beside it");
            let advice = "a tile or the checkpoint was changed; put the right copy of the folder back";
            return Err(StoreError::Disagree { path, what, advice });
        }
        Ok(edge)
    }

    /// Leaves of the last tile that has any, each compared with its hash there.
    fn compare_last(&self, leaves: &dyn Leaves, size: u64) -> Result<Vec<(u64, Record)>, StoreError> {
        let Some(last) = size.checked_sub(1) else { return Ok(Vec::new()) };
        let Some(tile) = Tile::at(Level::Hashes(0), last / WIDTH, size) else { return Ok(Vec::new()) };
        let hashes = self.read_hashes(&tile)?;
        let mut records = Vec::new();
        let mut next = tile.index * WIDTH;
        while next < size {
            let wanted = usize::try_from(size - next).unwrap_or(STEP_RECORDS);
            let some = leaves.read(next, wanted, STEP_BYTES)?;
            next += some.len() as u64;
            if some.is_empty() {
                return Err(StoreError::Closed(format!("leaf {next} cannot be read back")));
            }
            records.extend(some);
        }
        for ((leaf, record), hash) in records.iter().zip(&hashes) {
            if leaf_hash(record.bytes()) != *hash {
                let what = format!("and the write-ahead segments disagree about leaf {leaf}");
                let advice = "one of them was changed; put the right copy of the folder back";
                return Err(StoreError::Disagree { path: self.root.join(tile.to_string()), what, advice });
            }
        }
        Ok(records)
    }

    fn read_hashes(&self, tile: &Tile) -> Result<Vec<Hash>, StoreError> {
        read_hashes(&self.root, tile)
    }
}

/// Tiles on their way to the disk: all are written under other names, then all made durable together, then named, then the
/// names made durable. So no name ever stands for bytes that a power cut can take away, and a publication costs as many waits
/// for the disk whatever it holds.
struct Fresh<'a> {
    root: &'a Path,
    /// Opened before anything is written, so that an error of writing back any of it is reported here.
    held: File,
    files: Vec<(PathBuf, PathBuf, File)>,
}

impl<'a> Fresh<'a> {
    fn new(root: &'a Path) -> Result<Self, StoreError> {
        let held = File::open(root).map_err(io_error("opening", root))?;
        Ok(Self { root, held, files: Vec::new() })
    }

    /// Writes a tile, or finds it as it has to be. A tile never changes.
    fn write(&mut self, tile: &Tile, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.root.join(tile.to_string());
        if let Some(found) = read_limited(&path, RESOURCE_MAX)? {
            if found == bytes {
                return Ok(());
            }
            let what = "differs from what the write-ahead segments lead to".to_owned();
            let advice = "the file was changed; set it aside as evidence and put the right copy back";
            return Err(StoreError::Disagree { path, what, advice });
        }
        make_folder(path.parent().unwrap_or(self.root))?;
        let temporary = path.with_extension("tmp");
        let mut file = create(&temporary).map_err(io_error("creating", &temporary))?;
        file.write_all(bytes).map_err(io_error("writing", &temporary))?;
        if tile.is_full() {
            file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(io_error("sealing", &temporary))?;
        }
        self.files.push((temporary, path, file));
        Ok(())
    }

    /// Makes what was written durable and gives it its names, durably.
    fn settle(&mut self) -> Result<(), StoreError> {
        let files = std::mem::take(&mut self.files);
        if files.len() > SYNC_EACH {
            rustix::fs::syncfs(&self.held).map_err(|e| io_error("syncing", self.root)(e.into()))?;
        } else {
            for (temporary, _, file) in &files {
                file.sync_all().map_err(io_error("syncing", temporary))?;
            }
        }
        let mut folders = BTreeSet::new();
        for (temporary, path, _) in &files {
            fs::rename(temporary, path).map_err(io_error("naming", path))?;
            folders.insert(path.parent().unwrap_or(self.root));
        }
        for folder in folders {
            frame::sync_dir(folder).map_err(io_error("syncing", folder))?;
        }
        Ok(())
    }
}

/// A new file. One that a crash left is not opened: it may be read-only already.
fn create(path: &Path) -> std::io::Result<File> {
    let new = || File::options().create_new(true).write(true).mode(0o644).open(path);
    match new() {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            new()
        }
        other => other,
    }
}

/// Hashes of a tile; a partial one may have been superseded by the full one.
pub(super) fn read_hashes(root: &Path, tile: &Tile) -> Result<Vec<Hash>, StoreError> {
    let path = root.join(tile.to_string());
    if let Some(bytes) = read_limited(&path, RESOURCE_MAX)? {
        return tiles::decode_hashes(&bytes, tile.width).map_err(|cause| StoreError::Tile { path, cause });
    }
    let full_path = root.join(tile.full().to_string());
    let bytes = read_limited(&full_path, RESOURCE_MAX)?.ok_or(StoreError::Missing(path))?;
    let mut hashes =
        tiles::decode_hashes(&bytes, tile.full().width).map_err(|cause| StoreError::Tile { path: full_path, cause })?;
    hashes.truncate(usize::from(tile.width));
    Ok(hashes)
}

/// Makes a folder and those above it, durably.
pub(super) fn make_folder(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !parent.as_os_str().is_empty() {
        make_folder(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(io_error("creating", path)(error)),
        _ => frame::sync_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
            .map_err(io_error("syncing", parent)),
    }
}
