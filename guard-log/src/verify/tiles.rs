//! Tiles, judged from the signed root downwards, so that a wrong one is named and nothing below it is believed.
//!
//! The tiles of the right edge are believed if they lead to the signed root, a full tile if it leads to its hash in the tile
//! above. At most one tile a level is held. It must not look at entries. Fails: a tile that is not there is a finding.

use super::report::Findings;
use super::{Source, SourceError};
use crate::checkpoint::Checkpoint;
use crate::tiles::{self, Level, Tile, WIDTH};
use crate::tree::{self, Hash};

/// Hashes of a tile.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    index: u64,
    pub(super) hashes: Vec<Hash>,
    /// Whether they lead to the signed root.
    pub(super) believed: bool,
}

pub(super) struct Tiles<'a> {
    source: &'a dyn Source,
    size: u64,
    /// The last tile of each level that was asked for.
    held: Vec<Option<Judged>>,
    /// Tiles of the right edge, as served.
    pub(super) edge: Vec<(Tile, Option<Vec<Hash>>)>,
    /// Whether they lead to the signed root.
    pub(super) edge_believed: bool,
}

impl<'a> Tiles<'a> {
    /// Fetches the right edge and compares it with the signed root.
    pub(super) fn open(
        source: &'a dyn Source,
        head: &Checkpoint,
        findings: &mut Findings,
    ) -> Result<Self, SourceError> {
        let held = vec![None; usize::from(tiles::LEVELS)];
        let mut tiles = Self { source, size: head.size, held, edge: Vec::new(), edge_believed: false };
        for level in 0..tiles::LEVELS {
            let index = (head.size >> (8 * u32::from(level))) / WIDTH;
            if let Some(tile) = Tile::at(Level::Hashes(level), index, head.size) {
                let hashes = tiles.fetch(&tile, findings)?;
                tiles.edge.push((tile, hashes));
            }
        }
        let peaks = tiles.edge.iter().rev().flat_map(|(_, h)| h.as_deref().map(tiles::peaks).unwrap_or_default());
        let peaks: Vec<Hash> = peaks.collect();
        let whole = tiles.edge.iter().all(|(_, hashes)| hashes.is_some());
        tiles.edge_believed = whole && tree::fold(&peaks) == head.root;
        Ok(tiles)
    }

    /// A tile of hashes; none if it is not served.
    pub(super) fn tile(
        &mut self,
        level: u8,
        index: u64,
        findings: &mut Findings,
    ) -> Result<Option<Judged>, SourceError> {
        let place = usize::from(level);
        if let Some(held) = self.held.get(place).and_then(Option::as_ref).filter(|held| held.index == index) {
            return Ok(Some(held.clone()));
        }
        let Some(tile) = Tile::at(Level::Hashes(level), index, self.size) else { return Ok(None) };
        let judged = if let Some((_, hashes)) = self.edge.iter().find(|(edge, _)| *edge == tile) {
            hashes.clone().map(|hashes| Judged { index, hashes, believed: self.edge_believed })
        } else {
            self.judge(&tile, level, findings)?
        };
        if let Some(slot) = self.held.get_mut(place) {
            slot.clone_from(&judged);
        }
        Ok(judged)
    }

    fn judge(&mut self, tile: &Tile, level: u8, findings: &mut Findings) -> Result<Option<Judged>, SourceError> {
        let above = self.above(level, tile.index, findings)?;
        let Some(hashes) = self.fetch(tile, findings)? else { return Ok(None) };
        let root = tiles::subtree(&hashes);
        if above.is_some_and(|above| above != root) {
            findings.error("wrong_tile", tile, "its hashes do not lead to its hash in the tile above, which is signed");
        }
        Ok(Some(Judged { index: tile.index, hashes, believed: above == Some(root) }))
    }

    /// The believed root of a full tile: its hash in the tile above.
    pub(super) fn above(
        &mut self,
        level: u8,
        index: u64,
        findings: &mut Findings,
    ) -> Result<Option<Hash>, SourceError> {
        if level + 1 >= tiles::LEVELS {
            return Ok(None);
        }
        let Some(tile) = self.tile(level + 1, index / WIDTH, findings)? else { return Ok(None) };
        let place = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
        Ok(tile.hashes.get(place).copied().filter(|_| tile.believed))
    }

    fn fetch(&self, tile: &Tile, findings: &mut Findings) -> Result<Option<Vec<Hash>>, SourceError> {
        let Some((bytes, width)) = fetch(self.source, tile)? else {
            if !self.source.unread(&tile.to_string()) {
                findings.error("missing_tile", tile, "the source does not have it");
            }
            return Ok(None);
        };
        match tiles::decode_hashes(&bytes, width) {
            Ok(mut hashes) => {
                hashes.truncate(usize::from(tile.width));
                Ok(Some(hashes))
            }
            Err(error) => {
                findings.error("wrong_tile", tile, error);
                Ok(None)
            }
        }
    }
}

/// A tile's bytes, or those of the full one that superseded it, with their width.
pub(crate) fn fetch(source: &dyn Source, tile: &Tile) -> Result<Option<(Vec<u8>, u16)>, SourceError> {
    if let Some(bytes) = source.fetch(&tile.to_string())? {
        return Ok(Some((bytes, tile.width)));
    }
    if tile.is_full() {
        return Ok(None);
    }
    Ok(source.fetch(&tile.full().to_string())?.map(|bytes| (bytes, tile.full().width)))
}
