//! Paths as the kernel programs know them: by where a name lies in its file system, whatever mount leads to it and whether
//! or not it exists. The hash of a path is a polynomial over the hashes of its names, so that the hash of a folder follows
//! from that of what lies in it without an array of names.
//!
//! It must not see mounts or links: the daemon resolves those. Two paths with one hash make the kernel refuse something
//! that nobody named; a protected path always has its own hash, so nothing is let through.

use crate::FileKey;

/// Words of a name that are hashed: its first 63 bytes, padded with zeros. The length is hashed beside them.
pub const NAME_WORDS: usize = 8;
/// Bytes of a name that are hashed.
pub const NAME_BYTES: usize = NAME_WORDS * 8 - 1;
/// Folders that are followed upwards; deeper paths are refused where anything is protected.
pub const DEPTH_MAX: u32 = 256;
/// Places that rules may name.
pub const PLACES_MAX: usize = 65_000;
/// Names that scripts may keep from being turned, all sessions together.
pub const NAMES_MAX: usize = 65_000;
/// Base of the polynomial: odd, so that it has an inverse.
pub const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
/// Its inverse modulo 2^64.
pub const BASE_INVERSE: u64 = inverse(BASE);
/// Hash of a file system's own root.
pub const ROOT: u64 = 0;
/// In place of a hash: the file system has an entry at all.
pub const ANY: u64 = u64::MAX;

/// Newton's method: each step doubles the right bits, of which an odd number has three from the start.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

/// Hash of one name. Never 0.
#[inline(always)]
pub fn name_hash(words: &[u64; NAME_WORDS], length: u32) -> u64 {
    let mut hash = length as u64 ^ 0x6a09_e667_f3bc_c908;
    for word in words {
        hash = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    hash | 1
}

/// Hash of a name as bytes.
pub fn hash_of_name(name: &[u8]) -> u64 {
    let mut words = [0_u64; NAME_WORDS];
    for (index, byte) in name.iter().take(NAME_BYTES).enumerate() {
        if let Some(word) = words.get_mut(index / 8) {
            *word |= (*byte as u64) << (8 * (index % 8));
        }
    }
    name_hash(&words, name.len() as u32)
}

/// Hash of a folder and a name in it.
pub const fn join(folder: u64, name: u64) -> u64 {
    folder.wrapping_mul(BASE).wrapping_add(name)
}

/// Hash of the folder of a path whose last name has this hash.
pub const fn parent(path: u64, name: u64) -> u64 {
    path.wrapping_sub(name).wrapping_mul(BASE_INVERSE)
}

/// A name's place in its file system.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathKey {
    /// Kernel device number, `major << 20 | minor`.
    pub dev: u64,
    /// Hash from the file system's root down.
    pub hash: u64,
}

/// What is said of a place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathRule {
    /// [`bits`] that last.
    pub bits: u32,
    /// [`bits`] that are over at `until_boot_ns`.
    pub passing: u32,
    /// Their end.
    pub until_boot_ns: u64,
    /// Rule whose readers may read this file.
    pub exact_rule: u64,
    /// Rule whose readers may read below this folder.
    pub tree_rule: u64,
}

/// Bits of [`PathRule`].
pub mod bits {
    /// The name must keep what it has: no writing, no renaming, no removal, no creation.
    pub const EXACT_WRITE: u32 = 1;
    /// It is opened for reading by the rule's readers only.
    pub const EXACT_READ: u32 = 2;
    /// As `EXACT_WRITE`, for the folder and everything below.
    pub const TREE_WRITE: u32 = 4;
    /// As `EXACT_READ`, for the folder and everything below.
    pub const TREE_READ: u32 = 8;
    /// Something below is protected: the name must not be turned to something else, but things may be made in it.
    pub const HOLDS: u32 = 16;
    /// A script that is about to be read, or a folder on the way to one: the name must not be turned.
    pub const SCRIPT_NAME: u32 = 32;
}

/// A program that may read what a rule keeps from others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reader {
    /// The rule.
    pub rule: u64,
    /// The program's file.
    pub program: FileKey,
}

/// How many files a command may delete.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteBudget {
    /// Length of the window in ns.
    pub window_ns: u64,
    /// Files in one window; 0: any number.
    pub files: u32,
    /// Attempts in one window after which the command is killed; 0: never.
    pub kill: u32,
}

/// Whose deletions are counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Deleter {
    /// Session key.
    pub session: u64,
    /// Root exec; 0 for the session's entry process.
    pub root: u64,
}

/// What a command has deleted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Start of the window, boot-time ns.
    pub since_boot_ns: u64,
    /// Deleted or tried in the window, without those that `raised` covered.
    pub count: u32,
    /// Deletions left that a person has allowed beyond the budget.
    pub raised: u32,
}

/// A file that a session has made itself: not counted when it is deleted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Created {
    /// The file.
    pub file: FileKey,
    /// Its generation: numbers are used again.
    pub generation: u64,
}

const fn check<T>(size: usize) {
    assert!(core::mem::size_of::<T>() == size);
}
const _: () = check::<PathKey>(16);
const _: () = check::<PathRule>(32);
const _: () = check::<Reader>(24);
const _: () = check::<DeleteBudget>(16);
const _: () = check::<Deleter>(16);
const _: () = check::<Deleted>(16);
const _: () = check::<Created>(24);
const _: () = assert!(BASE.wrapping_mul(BASE_INVERSE) == 1);

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &[&[u8]]) -> u64 {
        path.iter().fold(ROOT, |hash, name| join(hash, hash_of_name(name)))
    }

    #[test]
    fn the_folder_follows_from_what_lies_in_it() {
        let path = of(&[b"home", b"alice", b".bashrc"]);
        assert_eq!(parent(path, hash_of_name(b".bashrc")), of(&[b"home", b"alice"]));
        assert_eq!(parent(of(&[b"home"]), hash_of_name(b"home")), ROOT);
    }

    #[test]
    fn order_length_and_depth_count() {
        assert_ne!(of(&[b"a", b"b"]), of(&[b"b", b"a"]));
        assert_ne!(of(&[b"ab"]), of(&[b"a", b"b"]));
        assert_ne!(hash_of_name(&[b'x'; 63]), hash_of_name(&[b'x'; 64]));
        assert_ne!(of(&[b"a"]), of(&[b"a", b""]));
    }
}
