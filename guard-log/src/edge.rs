//! The right edge of the tree: what is needed to grow it, and nothing else.
//!
//! Pure. At most 255 entries and 255 hashes a level are held. It must not write files: it hands out tiles and their bytes.

use crate::tiles::{self, Level, Tile, TileError, WIDTH};
use crate::tree::{self, Hash};

/// Growing end of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edge {
    size: u64,
    /// The bundle that is not full yet.
    bundle: Vec<u8>,
    /// For each level the tile that is not full yet.
    levels: Vec<Vec<Hash>>,
}

impl Edge {
    /// From what is not full yet at `size`: the hashes of each level and the entries.
    pub(crate) fn resume<'a>(
        size: u64,
        levels: Vec<Vec<Hash>>,
        entries: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Self, TileError> {
        let mut bundle = Vec::new();
        for entry in entries {
            tiles::put_entry(&mut bundle, entry)?;
        }
        Ok(Self { size, bundle, levels })
    }

    /// Leaves so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf; tiles that it fills are appended to `full`.
    pub(crate) fn push(&mut self, entry: &[u8], full: &mut Vec<(Tile, Vec<u8>)>) -> Result<(), TileError> {
        tiles::put_entry(&mut self.bundle, entry)?;
        self.size += 1;
        if self.size.is_multiple_of(WIDTH) {
            let tile = Tile { level: Level::Entries, index: self.size / WIDTH - 1, width: WIDTH as u16 };
            full.push((tile, std::mem::take(&mut self.bundle)));
        }
        self.carry(tree::leaf_hash(entry), full);
        Ok(())
    }

    /// Adds a leaf of which only the hash is known; bundles cannot be had then.
    pub(crate) fn push_hash(&mut self, leaf: Hash) {
        self.size += 1;
        self.carry(leaf, &mut Vec::new());
    }

    fn carry(&mut self, leaf: Hash, full: &mut Vec<(Tile, Vec<u8>)>) {
        let mut carry = Some(leaf);
        for level in 0..tiles::LEVELS {
            let Some(hash) = carry.take() else { break };
            if self.levels.len() <= usize::from(level) {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(usize::from(level)) else { break };
            hashes.push(hash);
            if hashes.len() as u64 == WIDTH {
                let index = (self.size >> (8 * (u32::from(level) + 1))) - 1;
                full.push((
                    Tile { level: Level::Hashes(level), index, width: WIDTH as u16 },
                    tiles::encode_hashes(hashes),
                ));
                carry = Some(tiles::subtree(hashes));
                hashes.clear();
            }
        }
    }

    /// Tiles of hashes that are not full, as they stand.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = (Tile, &[Hash])> {
        (0_u8..).zip(&self.levels).filter_map(|(level, hashes)| {
            let index = self.size >> (8 * (u32::from(level) + 1));
            Some((Tile::at(Level::Hashes(level), index, self.size)?, hashes.as_slice()))
        })
    }

    /// Tiles and bundle that are not full, as they stand.
    pub(crate) fn partial(&self) -> Vec<(Tile, Vec<u8>)> {
        let mut tiles: Vec<_> = self.hashes().map(|(tile, hashes)| (tile, tiles::encode_hashes(hashes))).collect();
        tiles.extend(Tile::at(Level::Entries, self.size / WIDTH, self.size).map(|t| (t, self.bundle.clone())));
        tiles
    }

    /// Root over all leaves.
    pub(crate) fn root(&self) -> Hash {
        let peaks: Vec<Hash> = self.levels.iter().rev().flat_map(|hashes| tiles::peaks(hashes)).collect();
        tree::fold(&peaks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_the_same_tree_as_the_frontier_over_two_levels() {
        let (mut edge, mut frontier, mut full) = (Edge::default(), tree::Frontier::default(), Vec::new());
        for leaf in 0..66_000_u32 {
            edge.push(&leaf.to_le_bytes(), &mut full).unwrap();
            frontier.push(tree::leaf_hash(&leaf.to_le_bytes()));
            if leaf % 97 == 0 || leaf > 65_500 {
                assert_eq!(edge.root(), frontier.root(), "{leaf}");
            }
        }
        let named: Vec<String> = full.iter().map(|(tile, _)| tile.to_string()).collect();
        assert_eq!(named.iter().filter(|n| n.starts_with("tile/0/")).count(), 257);
        assert_eq!(named.iter().filter(|n| *n == "tile/1/000").count(), 1);
        assert_eq!(full.iter().find(|(t, _)| t.to_string() == "tile/0/256").unwrap().1.len(), 8192);
        let partial: Vec<String> = edge.partial().iter().map(|(tile, _)| tile.to_string()).collect();
        assert_eq!(partial, ["tile/0/257.p/208", "tile/1/001.p/1", "tile/2/000.p/1", "tile/entries/257.p/208"]);
    }
}
