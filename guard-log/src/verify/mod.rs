//! An outsider's audit of a whole log, from its public resources alone.
//!
//! Signature, every entry up to the signed root, every tile, growth since an earlier checkpoint, every host's chain.
//! It must not trust anything but the verifier key and the earlier checkpoint; memory is bounded. Fails: only when a
//! resource cannot be fetched or the checkpoint is not signed; whatever is wrong with the log is a finding that names what and
//! where.

mod admitted;
mod chains;
#[cfg(test)]
mod corpus;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod tiles;

use thiserror::Error;

pub use report::{AuditReport, Finding, HostReport, Severity};
pub use source::{Source, SourceError};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::edge::Edge;
use crate::note::Verifier;
use crate::record::Record;
use crate::tiles::{CHECKPOINT, Level, Tile, WIDTH, split_entries, subtree};
use crate::tree::{Hash, leaf_hash};
use chains::Chains;
use report::Findings;
pub(crate) use tiles::fetch as fetch_tile;
use tiles::{Judged, Tiles};

/// Tiles that disagree with entries while neither is believed; more are counted as one finding.
const UNSETTLED_MAX: usize = 1000;

/// Why no audit came about.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A resource could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No checkpoint.
    #[error("the source has no checkpoint: it is no log, or not one in tlog-tiles form")]
    NoCheckpoint,
    /// The checkpoint is not one, or not signed by the key.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What is demanded besides the log being right in itself.
#[derive(Clone, Debug, Default)]
pub struct AuditOptions {
    /// An earlier verified checkpoint that the log must continue.
    pub previous: Option<Checkpoint>,
}

/// Audits a log. `progress` is told entries done and in all.
pub fn audit(
    source: &dyn Source,
    verifier: &Verifier,
    options: &AuditOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<AuditReport, VerifyError> {
    let note = source.fetch(CHECKPOINT)?.ok_or(VerifyError::NoCheckpoint)?;
    let checkpoint = Checkpoint::open(&note, verifier)?;
    let mut findings = Findings::default();
    check_size(options.previous.as_ref(), &checkpoint, &mut findings);
    let tiles = Tiles::open(source, &checkpoint, &mut findings)?;
    let mut audit = Audit {
        source,
        tiles,
        previous: options.previous.as_ref(),
        edge: Edge::default(),
        chains: Chains::default(),
        findings,
        unsettled: Vec::new(),
        entries: 0,
    };
    let bundles = checkpoint.size.div_ceil(WIDTH);
    for index in 0..bundles {
        if let Some(bundle) = Tile::at(Level::Entries, index, checkpoint.size) {
            audit.bundle(&bundle)?;
        }
        progress(audit.edge.size(), checkpoint.size);
    }
    audit.settle(&checkpoint);
    let hosts = audit.chains.finish(&mut audit.findings);
    let (entries, findings) = (audit.entries, audit.findings.finish());
    Ok(AuditReport { checkpoint, note, entries, hosts, findings })
}

fn check_size(previous: Option<&Checkpoint>, now: &Checkpoint, findings: &mut Findings) {
    let Some(before) = previous else { return };
    if before.origin != now.origin {
        let detail = format!("it is of log {:?}, the one verified earlier of {:?}", now.origin, before.origin);
        findings.error("other_log", CHECKPOINT, detail);
    }
    if before.size > now.size {
        let detail =
            format!("it has {} entries, {} were verified earlier: entries were taken back", now.size, before.size);
        findings.error("rolled_back", CHECKPOINT, detail);
    }
}

struct Audit<'a> {
    source: &'a dyn Source,
    tiles: Tiles<'a>,
    previous: Option<&'a Checkpoint>,
    /// The tree as signed: grown from the believed hashes, with which entries are compared one by one, and where none is
    /// believed from the entries themselves.
    edge: Edge,
    chains: Chains,
    findings: Findings,
    /// Tiles of which neither they nor the entries are believed, with the leaves that disagree.
    unsettled: Vec<(Tile, String)>,
    entries: u64,
}

impl Audit<'_> {
    fn bundle(&mut self, bundle: &Tile) -> Result<(), SourceError> {
        let tile = self.tiles.tile(0, bundle.index, &mut self.findings)?;
        let above = match bundle.is_full() {
            true => self.tiles.above(0, bundle.index, &mut self.findings)?,
            false => None,
        };
        let fetched = tiles::fetch(self.source, bundle)?;
        let (bytes, width) = fetched.unwrap_or_else(|| {
            self.findings.error("missing_entries", bundle, "the source does not have it");
            (Vec::new(), 0)
        });
        let (mut entries, problem) = split_entries(&bytes, width);
        if let Some(problem) = problem {
            self.findings.error("malformed_entries", bundle, problem);
        }
        entries.truncate(usize::from(bundle.width));
        let hashes: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let wrong = self.judge(bundle, &hashes, tile.as_ref(), above);
        self.take(bundle, &entries, &hashes, tile.as_ref(), &wrong);
        Ok(())
    }

    /// For each leaf of the bundle whether its entry is not the signed one, as far as that can be said now.
    fn judge(&mut self, bundle: &Tile, hashes: &[Hash], tile: Option<&Judged>, above: Option<Hash>) -> Vec<bool> {
        let width = usize::from(bundle.width);
        let differs = |tile: &Judged| (0..width).map(|i| hashes.get(i) != tile.hashes.get(i)).collect::<Vec<bool>>();
        if let Some(tile) = tile.filter(|tile| tile.believed) {
            let wrong = differs(tile);
            self.name_changed(bundle, &wrong);
            return wrong;
        }
        if let Some(above) = above {
            // The tile is wrong or missing, but its root is signed: the entries are all right, or some are not.
            let wrong = hashes.len() < width || subtree(hashes) != above;
            if wrong {
                let first = bundle.index * WIDTH;
                let leaves = format!("{bundle}, leaves {first} to {}", first + WIDTH - 1);
                self.findings.error("changed_entry", leaves, "not all of them are the entries that were signed");
            }
            return vec![wrong; width];
        }
        if let Some(tile) = tile {
            let places = differs(tile);
            for range in ranges(bundle, &places).into_iter().take(UNSETTLED_MAX.saturating_sub(self.unsettled.len())) {
                self.unsettled.push((Tile { level: Level::Hashes(0), ..*bundle }, range));
            }
        }
        (0..width).map(|i| i >= hashes.len()).collect()
    }

    fn name_changed(&mut self, bundle: &Tile, wrong: &[bool]) {
        for range in ranges(bundle, wrong) {
            let where_ = format!("{bundle}, {range}");
            self.findings.error("changed_entry", where_, "not what was signed: changed, moved or missing");
        }
    }

    fn take(&mut self, bundle: &Tile, entries: &[&[u8]], hashes: &[Hash], tile: Option<&Judged>, wrong: &[bool]) {
        for place in 0..usize::from(bundle.width) {
            self.compare_previous();
            let leaf = self.edge.size();
            let believed = tile.filter(|tile| tile.believed).and_then(|tile| tile.hashes.get(place));
            self.edge.push_hash(believed.or(hashes.get(place)).copied().unwrap_or_default());
            let (Some(entry), Some(false)) = (entries.get(place), wrong.get(place)) else {
                self.chains.doubt();
                continue;
            };
            self.entries += 1;
            match Record::parse(entry.to_vec()) {
                Ok(record) => self.chains.add(leaf, &record),
                Err(error) => self.findings.error("not_a_record", format!("leaf {leaf}"), error),
            }
        }
        self.compare_previous();
    }

    /// At the size of the earlier checkpoint the root has to be the earlier one.
    fn compare_previous(&mut self) {
        let Some(before) = self.previous.filter(|before| before.size == self.edge.size()) else { return };
        self.previous = None;
        if before.root != self.edge.root() {
            let detail = format!(
                "its first {} entries are not those that were verified earlier: root {}, then it was {}",
                before.size,
                hex::encode(self.edge.root()),
                hex::encode(before.root)
            );
            self.findings.error("fork", CHECKPOINT, detail);
        }
    }

    /// With all entries read, says what could not be said before.
    fn settle(&mut self, head: &Checkpoint) {
        let right = self.edge.root() == head.root;
        if !right {
            let detail = format!(
                "the entries lead to root {}, signed is {}",
                hex::encode(self.edge.root()),
                hex::encode(head.root)
            );
            self.findings.error("root_mismatch", CHECKPOINT, detail);
        }
        let what = if right { "wrong_tile" } else { "disagree" };
        let detail =
            if right { "the entries lead to the signed root, this tile does not" } else { "tile and entries disagree" };
        for (tile, range) in std::mem::take(&mut self.unsettled) {
            self.findings.error(what, format!("{tile}, {range}"), detail);
        }
        if self.tiles.edge_believed {
            return;
        }
        for (tile, expected) in self.edge.hashes() {
            // Tiles of level 0 were compared entry by entry.
            let served = self.tiles.edge.iter().find(|(edge, _)| *edge == tile).and_then(|(_, h)| h.as_deref());
            if tile.level != Level::Hashes(0) && served.is_some_and(|served| served != expected) {
                self.findings.error(what, tile, detail);
            }
        }
    }
}

/// The marked leaves of a bundle, in words.
fn ranges(bundle: &Tile, marked: &[bool]) -> Vec<String> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for (leaf, _) in (bundle.index * WIDTH..).zip(marked).filter(|(_, marked)| **marked) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == leaf => *last = leaf,
            _ => ranges.push((leaf, leaf)),
        }
    }
    ranges.iter().map(|(a, b)| if a == b { format!("leaf {a}") } else { format!("leaves {a} to {b}") }).collect()
}
