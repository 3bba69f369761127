//! C2SP `tlog-tiles`: names and contents of tiles and entry bundles. Pure; knows no files.
//!
//! It must not accept two spellings of one resource. Fails: a name or a content that is not exactly the format is `None` or
//! an error that says at which entry.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::tree::{self, Hash};

/// Hashes or entries of a full tile.
pub const WIDTH: u64 = 256;
/// Levels that a tree of 2^63 leaves can have.
pub const LEVELS: u8 = 8;
/// Longest resource: a full bundle of the longest entries.
pub const RESOURCE_MAX: u64 = WIDTH * 65_537;
/// Name of the signed head.
pub const CHECKPOINT: &str = "checkpoint";
/// Name of the newest checkpoint that a quorum of witnesses cosigned, with their lines; only where a log has witnesses.
pub const COSIGNED: &str = "cosigned";
/// Name of the receipt of the record that says up to where entries were pruned; only where some were.
pub const PRUNED: &str = "pruned";
/// Name of the receipts of all records that changed the log's name or key, in order; only where one did.
pub const CHANGES: &str = "changes";
/// Bytes of a hash.
const HASH: usize = 32;
/// Longest name: `tile/entries/` and eight groups, `.p/255`.
const PATH_MAX: usize = 80;

/// Why bytes are not a tile.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TileError {
    /// Not a name.
    #[error("not the name of a log resource")]
    Path,
    /// Wrong number of bytes of hashes.
    #[error("{got} bytes, expected {want}")]
    Bytes {
        /// As found.
        got: usize,
        /// As demanded.
        want: usize,
    },
    /// A bundle ends inside an entry, or before it.
    #[error("ends inside entry {0} of the bundle")]
    Short(u64),
    /// Bytes after the last entry.
    #[error("{0} bytes follow the last entry of the bundle")]
    Long(usize),
    /// An entry that a bundle cannot hold.
    #[error("an entry of {0} bytes does not fit a bundle")]
    Entry(usize),
}

/// What a tile holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Hashes of level 8·L of the tree.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// One tile or bundle, by place and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// What it holds.
    pub level: Level,
    /// Its number on that level.
    pub index: u64,
    /// Hashes or entries, 1 to 256.
    pub width: u16,
}

impl Tile {
    /// The tile as it stands in a tree of `size` leaves; `None` if it has nothing there.
    pub fn at(level: Level, index: u64, size: u64) -> Option<Self> {
        let count = match level {
            Level::Entries => size,
            Level::Hashes(l) if l < LEVELS => size >> (8 * u32::from(l)),
            Level::Hashes(_) => 0,
        };
        let width = count.saturating_sub(index.checked_mul(WIDTH)?).min(WIDTH);
        (width > 0).then_some(Self { level, index, width: width as u16 })
    }

    /// Whether it will never change.
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == WIDTH
    }

    /// The same tile when it is full.
    pub fn full(&self) -> Self {
        Self { width: WIDTH as u16, ..*self }
    }

    /// Folder of all its partial widths, in the public tree.
    pub fn partials(&self) -> String {
        format!("{}.p", self.full())
    }
}

/// Groups of three digits, all but the last marked with `x`.
fn groups(mut index: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    while index >= 1000 {
        index /= 1000;
        text = format!("x{:03}/{text}", index % 1000);
    }
    text
}

impl fmt::Display for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            Level::Hashes(level) => write!(f, "tile/{level}/{}", groups(self.index))?,
            Level::Entries => write!(f, "tile/entries/{}", groups(self.index))?,
        }
        if self.is_full() { Ok(()) } else { write!(f, ".p/{}", self.width) }
    }
}

impl FromStr for Tile {
    type Err = TileError;

    /// Accepts exactly what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, TileError> {
        if text.len() > PATH_MAX {
            return Err(TileError::Path);
        }
        let (level, rest) = text.strip_prefix("tile/").and_then(|t| t.split_once('/')).ok_or(TileError::Path)?;
        let level = match level {
            "entries" => Level::Entries,
            number => Level::Hashes(number.parse().ok().filter(|l| *l < LEVELS).ok_or(TileError::Path)?),
        };
        let (digits, width) = match rest.split_once(".p/") {
            Some((digits, width)) => {
                (digits, width.parse().ok().filter(|w| (1..256).contains(w)).ok_or(TileError::Path)?)
            }
            None => (rest, WIDTH as u16),
        };
        let mut index: u64 = 0;
        for group in digits.split('/') {
            let number: u64 = group.strip_prefix('x').unwrap_or(group).parse().map_err(|_| TileError::Path)?;
            index = index.checked_mul(1000).and_then(|i| i.checked_add(number)).ok_or(TileError::Path)?;
        }
        let tile = Self { level, index, width };
        if tile.to_string() == text { Ok(tile) } else { Err(TileError::Path) }
    }
}

/// Bytes of a tile of hashes.
pub fn encode_hashes(hashes: &[Hash]) -> Vec<u8> {
    hashes.concat()
}

/// Hashes of a tile: exactly `width` of them.
pub fn decode_hashes(bytes: &[u8], width: u16) -> Result<Vec<Hash>, TileError> {
    let want = usize::from(width) * HASH;
    if bytes.len() != want {
        return Err(TileError::Bytes { got: bytes.len(), want });
    }
    Ok(bytes.as_chunks::<HASH>().0.to_vec())
}

/// Appends an entry to a bundle: length, big-endian, and bytes.
pub fn put_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), TileError> {
    let length = u16::try_from(entry.len()).map_err(|_| TileError::Entry(entry.len()))?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Entries of a bundle: exactly `width` of them.
pub fn decode_entries(bytes: &[u8], width: u16) -> Result<Vec<&[u8]>, TileError> {
    let (entries, problem) = split_entries(bytes, width);
    problem.map_or(Ok(entries), Err)
}

/// As many whole entries of a bundle as there are, up to `width`, and what is wrong with it.
pub fn split_entries(bytes: &[u8], width: u16) -> (Vec<&[u8]>, Option<TileError>) {
    let mut entries = Vec::with_capacity(usize::from(width));
    let mut rest = bytes;
    while entries.len() < usize::from(width) {
        let entry = rest.split_first_chunk::<2>();
        let entry = entry.and_then(|(n, after)| after.split_at_checked(usize::from(u16::from_be_bytes(*n))));
        let Some((entry, after)) = entry else {
            let place = entries.len() as u64;
            return (entries, Some(TileError::Short(place)));
        };
        entries.push(entry);
        rest = after;
    }
    let problem = (!rest.is_empty()).then_some(TileError::Long(rest.len()));
    (entries, problem)
}

/// Roots of the perfect subtrees over a tile's hashes, largest first.
pub fn peaks(hashes: &[Hash]) -> Vec<Hash> {
    let mut frontier = tree::Frontier::default();
    hashes.iter().for_each(|hash| frontier.push(*hash));
    frontier.peaks().to_vec()
}

/// Root over a tile's hashes; of a full tile it is a hash of the level above.
pub fn subtree(hashes: &[Hash]) -> Hash {
    tree::fold(&peaks(hashes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_those_of_the_format() {
        let tile = |level, index, width| Tile { level, index, width }.to_string();
        assert_eq!(tile(Level::Hashes(0), 0, 256), "tile/0/000");
        assert_eq!(tile(Level::Hashes(3), 1_234_067, 8), "tile/3/x001/x234/067.p/8");
        assert_eq!(tile(Level::Entries, 1000, 256), "tile/entries/x001/000");
        let full = Tile { level: Level::Entries, index: 1000, width: 7 };
        assert_eq!(full.partials(), "tile/entries/x001/000.p");
    }

    #[test]
    fn a_tree_of_70000_has_the_tiles_of_the_format() {
        let width = |level, index| Tile::at(level, index, 70_000).map(|tile| tile.width);
        assert_eq!([0, 272, 273, 274].map(|i| width(Level::Hashes(0), i)), [Some(256), Some(256), Some(112), None]);
        assert_eq!([0, 1, 2].map(|i| width(Level::Hashes(1), i)), [Some(256), Some(17), None]);
        assert_eq!([0, 1].map(|i| width(Level::Hashes(2), i)), [Some(1), None]);
        assert_eq!(width(Level::Hashes(3), 0), None);
        assert_eq!(width(Level::Entries, 273), Some(112));
        assert_eq!(Tile::at(Level::Hashes(200), 0, u64::MAX), None);
        assert_eq!(Tile::at(Level::Entries, u64::MAX, u64::MAX), None);
    }

    #[test]
    fn other_spellings_are_refused() {
        for name in [
            "tile/0/0",
            "tile/0/x000/000",
            "tile/8/000",
            "tile/00/000",
            "tile/+0/000",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/0/1000",
            "tile/0/x001/x000",
            "tile/entries/000/",
            "tile//000",
            "tile/0/999999/000",
            "/tile/0/000",
            "tile/0/../000",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/x999/999",
            "tile/0/00\u{661}",
        ] {
            assert_eq!(name.parse::<Tile>(), Err(TileError::Path), "{name}");
        }
    }

    #[test]
    fn a_bundle_is_split_exactly() {
        let mut bundle = Vec::new();
        for entry in [b"one".as_slice(), b"", b"three"] {
            put_entry(&mut bundle, entry).unwrap();
        }
        assert_eq!(bundle[..5], *b"\0\x03one");
        assert_eq!(decode_entries(&bundle, 3).unwrap(), [b"one".as_slice(), b"", b"three"]);
        assert_eq!(decode_entries(&bundle, 2), Err(TileError::Long(7)));
        assert_eq!(decode_entries(&bundle, 4), Err(TileError::Short(3)));
        assert_eq!(decode_entries(&bundle[..9], 3), Err(TileError::Short(2)));
        assert_eq!(put_entry(&mut bundle, &[0; 65_536]), Err(TileError::Entry(65_536)));
        assert!(decode_hashes(&[0; 63], 2).is_err());
    }

    proptest! {
        #[test]
        fn names_come_back(level in 0_u8..9, index in any::<u64>(), shift in 0..64, width in 1_u16..=256) {
            let level = if level == LEVELS { Level::Entries } else { Level::Hashes(level) };
            let tile = Tile { level, index: index >> shift, width };
            prop_assert_eq!(tile.to_string().parse::<Tile>(), Ok(tile));
        }

        #[test]
        fn garbage_never_panics(name in "(tile/)?[0-9a-z/.]{0,40}", bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (name.parse::<Tile>(), split_entries(&bytes, 256), decode_hashes(&bytes, 4));
        }
    }
}
