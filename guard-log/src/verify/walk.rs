//! One reading of a log from its first entry to its last: what `audit` and the audit of a folder share.
//!
//! It must not fetch anything twice, nor hold more than one bundle. Fails: only when the source does; everything else
//! is a finding.

use super::chains::Chains;
use super::report::{Findings, HostReport};
use super::tiles::{self, Judged, Tiles};
use super::trust::Trust;
use super::{Source, SourceError};
use crate::checkpoint::Checkpoint;
use crate::edge::Edge;
use crate::proof::ReceiptError;
use crate::pruned::Pruned;
use crate::record::{Kind, Record};
use crate::tiles::{CHECKPOINT, Level, PRUNED, Tile, WIDTH, split_entries, subtree};
use crate::tree::{Hash, leaf_hash};

/// Tiles that disagree with entries while neither is believed; more are counted as one finding.
const UNSETTLED_MAX: usize = 1000;
/// Bundles that may be missing before no more are looked for: a size that somebody made up has no end.
const MISSING_MAX: u64 = 1 << 16;

/// The tree as signed, read from its first entry to its last.
pub(super) struct Walk<'a> {
    source: &'a dyn Source,
    /// Whose size and root the log is held to.
    head: &'a Checkpoint,
    pub(super) tiles: Tiles<'a>,
    previous: Option<&'a Checkpoint>,
    /// The tree as signed: grown from the believed hashes, with which entries are compared one by one, and where none
    /// is believed from the entries themselves.
    pub(super) edge: Edge,
    /// A leaf was pushed of which not even the hash is known.
    unknown: bool,
    chains: Chains,
    pub(super) findings: Findings,
    /// Told every entry that is the signed one, with its leaf.
    each: &'a mut dyn FnMut(u64, &Record),
    /// Tiles of which neither they nor the entries are believed, with the leaves that disagree.
    unsettled: Vec<(Tile, String)>,
    /// Entries read that are the signed ones.
    pub(super) entries: u64,
    missing: u64,
    /// What a record in the signed tree says of pruned entries.
    mark: Option<Pruned>,
    /// Entries that are not there because of it.
    pub(super) pruned: u64,
    /// Root at a size that somebody asks about, once the tree has grown to it.
    asked: Option<(u64, Option<Hash>)>,
    /// What the log says of its name and key.
    pub(super) trust: Trust,
}

impl<'a> Walk<'a> {
    /// Compares head and right edge of the tree.
    pub(super) fn open(
        source: &'a dyn Source,
        head: &'a Checkpoint,
        previous: Option<&'a Checkpoint>,
        mut findings: Findings,
        each: &'a mut dyn FnMut(u64, &Record),
    ) -> Result<Self, SourceError> {
        check_size(previous, head, &mut findings);
        let mut tiles = Tiles::open(source, head, &mut findings)?;
        let mark = mark(source, head, &mut tiles, &mut findings)?;
        let (edge, chains, unsettled) = (Edge::default(), Chains::default(), Vec::new());
        let (unknown, entries, missing, pruned, asked) = (false, 0, 0, 0, None);
        let walk = Self {
            source,
            head,
            tiles,
            previous,
            edge,
            unknown,
            chains,
            findings,
            each,
            unsettled,
            entries,
            missing,
            mark,
            pruned,
            asked,
            trust: Trust::default(),
        };
        Ok(walk)
    }

    /// Asks for the root at a size; see [`Self::root_asked`].
    pub(super) fn ask(&mut self, size: u64) {
        self.asked = Some((size, None));
        self.note_asked();
    }

    /// The root that was asked for, if the tree grew that far and every leaf is known.
    pub(super) fn root_asked(&self) -> Option<Hash> {
        self.asked.and_then(|(_, root)| root)
    }

    fn note_asked(&mut self) {
        if let Some((size, None)) = self.asked.filter(|(size, _)| *size == self.edge.size()) {
            self.asked = Some((size, self.root()));
        }
    }

    /// Reads every entry up to the head, and compares.
    pub(super) fn published(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), SourceError> {
        for index in 0..self.head.size.div_ceil(WIDTH) {
            if self.missing > MISSING_MAX {
                let from = Tile { level: Level::Entries, index, width: WIDTH as u16 };
                self.unknown = true;
                self.chains.doubt();
                self.findings.error("missing_entries", from, "so many bundles are missing that no more are looked for");
                break;
            }
            if let Some(bundle) = Tile::at(Level::Entries, index, self.head.size) {
                self.bundle(&bundle)?;
            }
            progress(self.edge.size(), self.head.size);
        }
        self.trust.finish(&mut self.findings);
        self.settle();
        Ok(())
    }

    /// Takes an entry past the head.
    pub(super) fn unpublished(&mut self, record: &Record) {
        let leaf = self.edge.size();
        self.edge.push_hash(leaf_hash(record.bytes()));
        self.chains.add(leaf, record);
        (self.each)(leaf, record);
    }

    /// Entries that should be next could not be had.
    pub(super) fn skip(&mut self) {
        self.unknown = true;
        self.chains.doubt();
    }

    /// Root over all leaves, if every one is known.
    pub(super) fn root(&self) -> Option<Hash> {
        (!self.unknown).then(|| self.edge.root())
    }

    /// Hosts in order of appearance, and everything found.
    pub(super) fn finish(mut self) -> (Vec<HostReport>, Findings) {
        if let Some(mark) = self.mark.as_ref().filter(|_| self.pruned > 0) {
            let detail = format!(
                "{} could not be checked: {mark}; their hashes are those of the signed tree, and hosts' chains \
                 begin after them",
                self.pruned
            );
            self.findings.information("pruned_entries", PRUNED, detail);
        }
        let hosts = self.chains.finish(&mut self.findings);
        (hosts, self.findings)
    }

    fn bundle(&mut self, bundle: &Tile) -> Result<(), SourceError> {
        let tile = self.tiles.tile(0, bundle.index, &mut self.findings)?;
        let above = match bundle.is_full() {
            true => self.tiles.above(0, bundle.index, &mut self.findings)?,
            false => None,
        };
        let Some((bytes, width)) = tiles::fetch(self.source, bundle)? else {
            self.without(bundle, tile.as_ref());
            return Ok(());
        };
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

    /// Goes on without a bundle; its hashes stand for it. That it is not there is an error unless a record of the log
    /// says that it was pruned.
    fn without(&mut self, bundle: &Tile, tile: Option<&Judged>) {
        if self.mark.as_ref().is_some_and(|mark| (bundle.index + 1) * WIDTH <= mark.first) {
            self.pruned += u64::from(bundle.width);
        } else {
            self.missing += 1;
            if !self.source.unread(&bundle.to_string()) {
                self.findings.error("missing_entries", bundle, "the source does not have it");
            }
        }
        let wrong = vec![true; usize::from(bundle.width)];
        self.take(bundle, &[], &[], tile, &wrong);
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
            self.note_asked();
            let leaf = self.edge.size();
            let believed = tile.filter(|tile| tile.believed).and_then(|tile| tile.hashes.get(place));
            let hash = believed.or(hashes.get(place)).copied();
            self.trust.leaf(leaf, hash.as_ref(), &mut self.findings);
            let root = (!self.unknown && is_change(entries.get(place).copied())).then(|| self.edge.root());
            self.unknown |= hash.is_none();
            self.edge.push_hash(hash.unwrap_or_default());
            let (Some(entry), Some(false)) = (entries.get(place), wrong.get(place)) else {
                self.chains.doubt();
                continue;
            };
            self.entries += 1;
            match Record::parse(entry.to_vec()) {
                Ok(record) => {
                    self.confirm(leaf, &record);
                    self.trust.record(leaf, &record, root, &mut self.findings);
                    self.chains.add(leaf, &record);
                    (self.each)(leaf, &record);
                }
                Err(error) => self.findings.error("not_a_record", format!("leaf {leaf}"), error),
            }
        }
        self.compare_previous();
        self.note_asked();
    }

    /// The mark has to be the collector's own; if another wrote it, what is missing is not explained.
    fn confirm(&mut self, leaf: u64, record: &Record) {
        let Some(mark) = self.mark.take_if(|mark| mark.contradicted(record)) else { return };
        let detail = format!(
            "{mark}; but host {} wrote that record, and leaf {leaf} shows that it is not the collector: nothing \
             explains that {} are missing",
            mark.host, self.pruned
        );
        self.findings.error("wrong_mark", PRUNED, detail);
    }

    /// At the size of the earlier checkpoint the root has to be the earlier one.
    fn compare_previous(&mut self) {
        let Some(before) = self.previous.filter(|before| before.size == self.edge.size()) else { return };
        self.previous = None;
        if self.unknown {
            let detail =
                format!("entries below {} are missing: whether they were always these is not known", before.size);
            self.findings.unchecked("unknown_history", CHECKPOINT, detail);
        } else if before.root != self.edge.root() {
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
    fn settle(&mut self) {
        let root = self.edge.root();
        let right = root == self.head.root;
        if !right && self.unknown {
            let detail = "neither entries nor tiles say what some leaves were, so no root comes out";
            self.findings.unchecked("unknown_root", CHECKPOINT, detail);
        } else if !right {
            let detail =
                format!("the entries lead to root {}, signed is {}", hex::encode(root), hex::encode(self.head.root));
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

/// Whether an entry is a record that changes name or key: only then the root before it is worth its cost.
fn is_change(entry: Option<&[u8]>) -> bool {
    let kind = entry.and_then(|entry| entry.get(6..8)).and_then(|kind| kind.try_into().ok()).map(u16::from_le_bytes);
    kind.is_some_and(|kind| [Kind::KEY_ROTATED, Kind::LOG_SUCCEEDED].contains(&Kind(kind)))
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

/// What the source's file says of pruned entries, if its record is in the signed tree.
fn mark(
    source: &dyn Source,
    head: &Checkpoint,
    tiles: &mut Tiles<'_>,
    findings: &mut Findings,
) -> Result<Option<Pruned>, SourceError> {
    let pruned = match Pruned::claimed(source) {
        Ok(None) => return Ok(None),
        Ok(Some(pruned)) => pruned,
        Err(ReceiptError::Source(error)) => return Err(error),
        Err(error) => {
            findings.error("wrong_mark", PRUNED, error);
            return Ok(None);
        }
    };
    let tile = if pruned.leaf < head.size { tiles.tile(0, pruned.leaf / WIDTH, findings)? } else { None };
    let place = usize::try_from(pruned.leaf % WIDTH).unwrap_or(usize::MAX);
    let signed = tile.filter(|tile| tile.believed).and_then(|tile| tile.hashes.get(place).copied());
    if signed == Some(pruned.hash) {
        return Ok(Some(pruned));
    }
    let detail = format!("no such record is known to be in the log at leaf {}; it claims that {pruned}", pruned.leaf);
    findings.error("wrong_mark", PRUNED, detail);
    Ok(None)
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
