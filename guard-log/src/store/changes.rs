//! What became of the log's name and key, as the store keeps it; and the taking over of a copy by a successor.
//!
//! The file `changes` is compared with the tree at opening: what it leads to has to be a key that signs now. It must not be
//! written before the record that it proves is public. Fails: a file that the log does not confirm is refused by name.

use std::fs;
use std::path::Path;

use super::error::io_error;
use super::lock::{Lock, read_limited};
use super::publish::read_hashes;
use super::{Leaves, Shared, Store, StoreError, StoreOptions, lock};
use crate::changes::{Changes, FILE_MAX, Step};
use crate::checkpoint::Checkpoint;
use crate::frame;
use crate::note::Verifier;
use crate::proof::Receipt;
use crate::signer::Signer;
use crate::tiles::{CHANGES, CHECKPOINT, COSIGNED, Level, Tile, WIDTH};
use crate::tree::Hash;

/// Records read at once.
const READ_RECORDS: usize = 1024;
const READ_BYTES: usize = 8 << 20;

impl Store {
    /// Every change of the log's name and key.
    pub fn changes(&self) -> Vec<Step> {
        lock(&self.0.0.changes).steps().to_vec()
    }

    /// Adds a change, whose record is public, durably. One that is there already is left as it is.
    pub fn keep_change(&self, mut receipt: Receipt, record: Vec<u8>) -> Result<(), StoreError> {
        let shared = &self.0.0;
        let path = shared.options.log().join(CHANGES);
        receipt.extra = Some(record);
        let wrong = |what: String| disagree(&path, what, "nothing was changed");
        let step = Step::parse(&receipt.to_string()).map_err(|error| wrong(format!("would not hold: {error}")))?;
        let mut changes = lock(&shared.changes);
        if changes.steps().iter().any(|known| (known.leaf, known.hash) == (step.leaf, step.hash)) {
            return Ok(());
        }
        confirm(&shared.options, &path, &step)?;
        let mut next = changes.clone();
        next.push(step).map_err(|error| wrong(format!("would not hold: {error}")))?;
        frame::replace(&path, next.text().as_bytes()).map_err(io_error("writing", &path))?;
        *changes = next;
        Ok(())
    }

    /// The head over all durable leaves, published or not.
    pub fn head(&self) -> Result<(u64, Hash), StoreError> {
        let shared: &Shared = &self.0.0;
        let publisher = lock(&shared.publisher);
        let mut edge = publisher.load_edge(shared)?;
        let size = self.size();
        while edge.size() < size {
            let records = shared.read(edge.size(), READ_RECORDS, READ_BYTES)?;
            if records.is_empty() {
                return Err(StoreError::Closed(format!("leaf {} cannot be read back", edge.size())));
            }
            for (_, record) in records {
                edge.push(record.bytes(), &mut Vec::new())
                    .map_err(|cause| StoreError::Tile { path: shared.options.log(), cause })?;
            }
        }
        Ok((edge.size(), edge.root()))
    }

    /// Puts a successor's name on a copy that nobody has open: lock and checkpoint are then its own, of the same tree. May be
    /// called again when it was cut short. What witnesses cosigned was the log before.
    pub fn take_over(options: &StoreOptions, kept: &Checkpoint, signer: &dyn Signer) -> Result<(), StoreError> {
        let head = Checkpoint { origin: signer.name().to_owned(), ..kept.clone() };
        let _held = lock::hold(&options.wal().join("lock"))?;
        let (checkpoint, cosigned) = (options.log().join(CHECKPOINT), options.log().join(COSIGNED));
        let wrong = |cause| StoreError::Checkpoint { path: checkpoint.clone(), cause };
        let note = head.sign(signer).map_err(wrong)?;
        Lock::put(&options.lock, &head)?;
        frame::replace(&checkpoint, note.as_bytes()).map_err(io_error("writing", &checkpoint))?;
        match fs::remove_file(&cosigned) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("removing", &cosigned)(error)),
            _ => Ok(()),
        }
    }
}

fn disagree(path: &Path, what: String, advice: &'static str) -> StoreError {
    StoreError::Disagree { path: path.to_path_buf(), what, advice }
}

/// What the file says, if the tree confirms it and it leads to a key that signs now.
pub(super) fn load(
    options: &StoreOptions,
    (signing, old): (&[Verifier], Option<&Verifier>),
    public: u64,
) -> Result<Changes, StoreError> {
    let path = options.log().join(CHANGES);
    let Some(text) = read_limited(&path, FILE_MAX)? else { return Ok(Changes::default()) };
    let advice = "the file was changed, or is of another log; put the right copy back";
    let changes = Changes::parse(&text).map_err(|error| disagree(&path, format!("is wrong: {error}"), advice))?;
    for step in changes.steps() {
        if step.leaf >= public {
            let what = format!("names leaf {}, {public} are public", step.leaf);
            return Err(disagree(&path, what, advice));
        }
        confirm(options, &path, step)?;
    }
    if let Some(last) = changes.steps().last().map(|step| step.change.new_key())
        && !signing.iter().chain(old).any(|key| key == last)
    {
        let what = format!("says that the log's key is now {}, which is not among the keys that sign", last.vkey());
        return Err(disagree(&path, what, "put the file of that key back beside `log.key`"));
    }
    Ok(changes)
}

/// Whether the tree has the record of a step at its leaf.
fn confirm(options: &StoreOptions, path: &Path, step: &Step) -> Result<(), StoreError> {
    let advice = "the file was changed, or is of another log; put the right copy back";
    let tile = Tile::at(Level::Hashes(0), step.leaf / WIDTH, step.head.size);
    let tile = tile.ok_or_else(|| disagree(path, "names a leaf that the log does not have".to_owned(), advice))?;
    let hashes = read_hashes(&options.log(), &tile)?;
    let place = usize::try_from(step.leaf % WIDTH).unwrap_or(usize::MAX);
    if hashes.get(place) != Some(&step.hash) {
        return Err(disagree(path, format!("names leaf {}, which is another record in {tile}", step.leaf), advice));
    }
    Ok(())
}
