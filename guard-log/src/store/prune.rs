//! Taking entry bundles away: what a record of the log says, never more, and only what nothing needs any more.
//!
//! The order is: record, checkpoint, receipt in the file `pruned`, bundles; each durable before the next. A crash
//! after the file is completed by [`Store::finish_pruning`]; one before it leaves all bundles. Tiles of hashes all
//! stay. It must not prune what a write-ahead segment still holds: what is said to be gone is gone. Fails: a file
//! that the log does not confirm is refused at opening, by name.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::error::io_error;
use super::lock::read_limited;
use super::publish::read_hashes;
use super::{Shared, Store, StoreError, StoreOptions, lock, needed_from, wal};
use crate::frame;
use crate::note::Verifier;
use crate::proof::{FILE_MAX, Receipt};
use crate::pruned::Pruned;
use crate::tiles::{Level, PRUNED, Tile, WIDTH};

impl Store {
    /// The first leaf whose entry is kept.
    pub fn first(&self) -> u64 {
        self.pruned().map_or(0, |pruned| pruned.first)
    }

    /// What the newest record of pruning says.
    pub fn pruned(&self) -> Option<Pruned> {
        lock(&self.0.0.inner).pruned.clone()
    }

    /// The first leaf that stays if every full bundle goes that was written before `then`, up to `below`: by the time
    /// of the bundle's file, which the collector's own clock gave it moments after admission.
    pub fn older(&self, then: SystemTime, below: u64) -> Result<u64, StoreError> {
        let shared = &self.0.0;
        let (mut first, end) = (self.first(), below.min(shared.prunable()?));
        while first + WIDTH <= end {
            let path = shared.options.log().join(bundle(first / WIDTH).to_string());
            let written = fs::metadata(&path).and_then(|m| m.modified()).map_err(io_error("looking at", &path))?;
            if written >= then {
                break;
            }
            first += WIDTH;
        }
        Ok(first)
    }

    /// Keeps the receipt of a record of pruning, durably, and takes away what it says; how many bundles went.
    pub fn prune(&self, mut receipt: Receipt, record: Vec<u8>) -> Result<u64, StoreError> {
        let shared = &self.0.0;
        receipt.extra = Some(record);
        let text = receipt.to_string();
        let pruned = judge(&shared.options, &shared.verifiers, text.as_bytes())?;
        let (path, allowed) = (shared.options.log().join(PRUNED), shared.prunable()?);
        if pruned.previous != self.first() || pruned.first > allowed {
            let Pruned { first, previous, .. } = pruned;
            let what = format!(
                "would prune leaves {previous} to {first}, the first kept leaf is {} and {allowed} is needed",
                self.first()
            );
            return Err(StoreError::Disagree { path, what, advice: "nothing was pruned" });
        }
        frame::replace(&path, text.as_bytes()).map_err(io_error("writing", &path))?;
        lock(&shared.inner).pruned = Some(pruned);
        self.finish_pruning()
    }

    /// Takes away what the newest record of pruning says and is still there; how many bundles.
    pub fn finish_pruning(&self) -> Result<u64, StoreError> {
        let Some(Pruned { first, previous, .. }) = self.pruned() else { return Ok(0) };
        let root = self.0.0.options.log();
        let (from, mut count) = (previous.max(lock(&self.0.0.inner).removed), 0);
        for index in from / WIDTH..first / WIDTH {
            count += u64::from(remove(&root, &bundle(index))?);
        }
        lock(&self.0.0.inner).removed = first;
        Ok(count)
    }
}

impl Shared {
    /// Everything below is in public bundles alone.
    fn prunable(&self) -> Result<u64, StoreError> {
        let public = lock(&self.inner).public.0;
        let segments = wal::segments(&self.options.wal())?;
        Ok(needed_from(public).min(segments.first().copied().unwrap_or(0)))
    }

    /// Refuses to read what was pruned.
    pub(super) fn refuse_pruned(&self, leaf: u64) -> Result<(), StoreError> {
        match &lock(&self.inner).pruned {
            Some(pruned) if leaf < pruned.first => Err(StoreError::Pruned { leaf, pruned: pruned.clone() }),
            _ => Ok(()),
        }
    }
}

/// What the file says, if there is one and the log confirms it.
pub(super) fn load(options: &StoreOptions, verifiers: &[Verifier]) -> Result<Option<Pruned>, StoreError> {
    let text = read_limited(&options.log().join(PRUNED), FILE_MAX as u64)?;
    text.map(|text| judge(options, verifiers, &text)).transpose()
}

/// What a receipt of a record of pruning says, if its record is in this log: signed by its key, and in its tile.
fn judge(options: &StoreOptions, verifiers: &[Verifier], text: &[u8]) -> Result<Pruned, StoreError> {
    let disagree = |what: String| StoreError::Disagree {
        path: options.log().join(PRUNED),
        what,
        advice: "the file was changed, or is of another log; put the right copy back",
    };
    let (pruned, receipt) = Pruned::parse(text).map_err(|error| disagree(format!("is no mark: {error}")))?;
    let head = receipt.verify_any(receipt.extra.as_deref().unwrap_or_default(), verifiers);
    let head = head.map_err(|error| disagree(format!("is not confirmed: {error}")))?;
    let tile = Tile::at(Level::Hashes(0), pruned.leaf / WIDTH, head.size);
    let tile = tile.ok_or_else(|| disagree("names a leaf that the log does not have".to_owned()))?;
    let hashes = read_hashes(&options.log(), &tile)?;
    let place = usize::try_from(pruned.leaf % WIDTH).unwrap_or(usize::MAX);
    if hashes.get(place) != Some(&pruned.hash) {
        return Err(disagree(format!("names leaf {}, which is another record in {tile}", pruned.leaf)));
    }
    Ok(pruned)
}

fn bundle(index: u64) -> Tile {
    Tile { level: Level::Entries, index, width: WIDTH as u16 }
}

/// Removes a bundle and what is left of its partial ones, durably; false if it was gone.
fn remove(root: &Path, bundle: &Tile) -> Result<bool, StoreError> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    };
    let (path, partials) = (root.join(bundle.to_string()), root.join(bundle.partials()));
    let partial = gone(fs::remove_dir_all(&partials)).map_err(io_error("removing", &partials))?;
    let full = gone(fs::remove_file(&path)).map_err(io_error("removing", &path))?;
    let folder = path.parent().unwrap_or(root);
    if full || partial {
        frame::sync_dir(folder).map_err(io_error("syncing", folder))?;
    }
    Ok(full)
}
