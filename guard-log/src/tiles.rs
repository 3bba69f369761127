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
/// Name of the signed head.
pub const CHECKPOINT: &str = "checkpoint";
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
    let mut entries = Vec::with_capacity(usize::from(width));
    let mut rest = bytes;
    for place in 0..u64::from(width) {
        let (length, after) = rest.split_first_chunk::<2>().ok_or(TileError::Short(place))?;
        let (entry, after) =
            after.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(TileError::Short(place))?;
        entries.push(entry);
        rest = after;
    }
    if rest.is_empty() { Ok(entries) } else { Err(TileError::Long(rest.len())) }
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
