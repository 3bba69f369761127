//! Nodes of a tree, read from its tiles.
//!
//! It must not believe them: who asks compares what comes out with a signed root. Fails: a tile that is not there is named.

use std::collections::HashMap;

use super::ReceiptError;
use crate::tiles::{self, Level, Tile, WIDTH};
use crate::tree::Hash;
use crate::verify::{Source, fetch_tile};

/// Tiles held at once; a proof needs at most two of each level.
const HELD_MAX: usize = 32;

/// Reads perfect subtrees of the tree of a given size.
pub struct Nodes<'a> {
    source: &'a dyn Source,
    size: u64,
    held: HashMap<Tile, Vec<Hash>>,
}

impl<'a> Nodes<'a> {
    /// Of the tree of `size` leaves.
    pub fn new(source: &'a dyn Source, size: u64) -> Self {
        Self { source, size, held: HashMap::new() }
    }

    /// Root of the perfect subtree of 2^level leaves that starts at leaf `index << level`, as [`crate::tree`] asks for it.
    pub fn read(&mut self, level: u32, index: u64) -> Result<Hash, ReceiptError> {
        let outside = || crate::tree::ProofError::Range { what: "node", index, size: self.size };
        let (tile_level, height) = (u8::try_from(level / 8).map_err(|_| outside())?, level % 8);
        let first = index.checked_mul(1 << height).ok_or_else(outside)?;
        let tile = Tile::at(Level::Hashes(tile_level), first / WIDTH, self.size).ok_or_else(outside)?;
        let place = usize::try_from(first % WIDTH).unwrap_or(usize::MAX);
        let hashes = self.tile(tile)?;
        let wanted = hashes.get(place..place.saturating_add(1 << height));
        wanted.map(tiles::subtree).ok_or(ReceiptError::Missing(tile))
    }

    fn tile(&mut self, tile: Tile) -> Result<&[Hash], ReceiptError> {
        if !self.held.contains_key(&tile) {
            let (bytes, width) = fetch_tile(self.source, &tile)?.ok_or(ReceiptError::Missing(tile))?;
            let mut hashes = tiles::decode_hashes(&bytes, width).map_err(|cause| ReceiptError::Tile { tile, cause })?;
            hashes.truncate(usize::from(tile.width));
            if self.held.len() >= HELD_MAX {
                self.held.clear();
            }
            self.held.insert(tile, hashes);
        }
        self.held.get(&tile).map(Vec::as_slice).ok_or(ReceiptError::Missing(tile))
    }
}
