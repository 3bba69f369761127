//! Where a directory entry lies in its file system, and what the daemon has said of that place and the folders above it.
//!
//! Two walks up: the first gives the hash of the whole path, the second takes it apart again, folder by folder, and looks
//! each one up (`guard_common::path`). A file system of which nothing is said costs one look-up. An entry that cannot be
//! followed to the root, or whose path changed while it was followed, is [`said::UNKNOWN`]: hooks refuse it. Governed
//! tasks cannot make a protected path look like another one, since they cannot rename what leads to it.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel_str};
use guard_common::FileKey;
use guard_common::path::{
    ANY, BASE, DEPTH_MAX, NAME_WORDS, PathKey, PathRule, ROOT, Reader, bits, name_hash, parent as folder_of,
};

use crate::maps::{PATHS, READERS, now};
use crate::offsets::{
    OFF_DENTRY_INODE, OFF_DENTRY_NAME, OFF_DENTRY_NAME_LENGTH, OFF_DENTRY_PARENT, OFF_DENTRY_SB, OFF_INODE_INO,
    OFF_INODE_SB, OFF_SB_DEV, OFF_SB_ROOT, field, global,
};

/// Bits of [`Place::said`].
pub mod said {
    /// Not to be changed.
    pub const WRITE: u32 = 1;
    /// Not to be read by this program.
    pub const READ: u32 = 2;
    /// Leads to something protected: not to be turned to something else.
    pub const HELD: u32 = 4;
    /// A script is about to be read through this name: not to be turned.
    pub const SCRIPT: u32 = 8;
    /// Could not be followed, where something is protected.
    pub const UNKNOWN: u32 = 16;
    /// The byte that holds all of them.
    pub const ALL: u32 = 0xff;
}

/// What is said of a directory entry.
#[derive(Clone, Copy)]
pub struct Place {
    /// [`said`].
    pub said: u32,
    /// Hash of the place whose rule spoke, or that leads to one, without its lowest byte; the daemon knows it by this.
    pub by: u64,
}

/// Both walks' state. What a branch in a callback depends on must not be a constant that the verifier knows: before 6.7 it
/// looks at a callback as if it were called once.
#[repr(C)]
struct Walk {
    at: u64,
    root: u64,
    dev: u64,
    hash: u64,
    power: u64,
    image: FileKey,
    against: u64,
    said: u64,
    by: u64,
    end: u64,
}

/// The root was reached.
const ARRIVED: u64 = 2;
/// A name could not be read, or the walk ended at something else than the root.
const LOST: u64 = 4;

/// What is said of an entry, to a task that runs `image`, of what matters to an act (`against`, bits of [`said`]).
///
/// # Safety
/// `dentry` must be a `struct dentry` pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn look(dentry: *const u8, image: &FileKey, against: u32) -> Place {
    // SAFETY: by contract.
    let dev: u32 = unsafe {
        let sb: *const u8 = field(dentry, &OFF_DENTRY_SB);
        field(sb, &OFF_SB_DEV)
    };
    // SAFETY: only its presence counts.
    if unsafe { PATHS.get(PathKey { dev: dev as u64, hash: ANY }) }.is_none() {
        return Place { said: 0, by: 0 };
    }
    let address = number(&dentry);
    let mut found = guard_walk(address, image.dev, image.ino, against as u64);
    if found & said::UNKNOWN as u64 != 0 {
        // Another thread may just have renamed a folder above.
        found = guard_walk(address, image.dev, image.ino, against as u64);
    }
    Place { said: found as u32 & said::ALL & against, by: found & !(said::ALL as u64) }
}

/// A pointer as a number: functions that are verified by themselves take no tracked pointers.
#[inline(always)]
fn number(pointer: &*const u8) -> u64 {
    // SAFETY: the helper reads the pointer from the stack.
    unsafe { bpf_probe_read_kernel((&raw const *pointer).cast::<u64>()) }.unwrap_or(0)
}

/// A number that the verifier does not know: what it knows of a number it takes apart, branch by branch and round by round.
#[inline(always)]
fn opaque(number: u64) -> u64 {
    let mut known_to_nobody = MaybeUninit::<u64>::uninit();
    // SAFETY: the helper reads the number from the stack and fills the other one in any case: with zero where it fails.
    unsafe {
        helper::bpf_probe_read_kernel(known_to_nobody.as_mut_ptr().cast(), 8, (&raw const number).cast());
        known_to_nobody.assume_init()
    }
}

/// Both walks: bits of [`said`] in the lowest byte, above them the hash of the place that spoke. A function that the
/// verifier looks at by itself, once for each program, whatever calls it: inlined, its branches multiply with the callers'.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_walk(dentry: u64, image_dev: u64, image_ino: u64, against: u64) -> u64 {
    let unknown = said::UNKNOWN as u64;
    let zero = opaque(0);
    let sb: u64 = read(dentry, &OFF_DENTRY_SB).unwrap_or(0);
    let dev: u32 = read(sb, &OFF_SB_DEV).unwrap_or(0);
    let root: u64 = read(sb, &OFF_SB_ROOT).unwrap_or(0);
    let mut walk = Walk {
        at: dentry,
        root,
        dev: dev as u64,
        hash: zero,
        power: opaque(1),
        image: FileKey { dev: image_dev, ino: image_ino },
        against,
        said: zero,
        by: zero,
        end: zero,
    };
    let state = (&raw mut walk).cast::<c_void>();
    // SAFETY: the callbacks have the signature that the helper calls, and the state outlives the calls.
    unsafe { bpf_loop(DEPTH_MAX, climb as *mut c_void, state, 0) };
    if walk.end != ARRIVED {
        return unknown;
    }
    let found = guard_exact(walk.dev, walk.hash, image_dev, image_ino) & against;
    walk.said = found;
    if found != 0 {
        walk.by = walk.hash;
    }
    walk.at = dentry;
    walk.end = zero;
    // SAFETY: as above.
    unsafe { bpf_loop(DEPTH_MAX, descend as *mut c_void, state, 0) };
    // What was added must have been taken away again, or a name has changed in between.
    if walk.end != ARRIVED || walk.hash != ROOT {
        return unknown;
    }
    (walk.said & said::ALL as u64) | (walk.by & !(said::ALL as u64))
}

/// What is said of a name itself: bits of [`said`]. By itself for the verifier, as [`guard_walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_exact(dev: u64, hash: u64, image_dev: u64, image_ino: u64) -> u64 {
    // SAFETY: rules are replaced whole.
    let Some(rule) = (unsafe { PATHS.get(PathKey { dev, hash }) }) else { return 0 };
    let mut found = 0;
    if rule.bits & bits::EXACT_READ != 0 && !may_read(rule.exact_rule, image_dev, image_ino) {
        found |= said::READ;
    }
    if rule.bits & bits::EXACT_WRITE != 0 {
        found |= said::WRITE;
    }
    if rule.bits & bits::HOLDS != 0 {
        found |= said::HELD;
    }
    if rule.passing & bits::SCRIPT_NAME != 0 && now() < rule.until_boot_ns {
        found |= said::SCRIPT;
    }
    found as u64
}

/// What is said of everything below a folder: bits of [`said`]. By itself for the verifier, as [`guard_walk`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_tree(dev: u64, hash: u64, image_dev: u64, image_ino: u64) -> u64 {
    // SAFETY: rules are replaced whole.
    let Some(rule) = (unsafe { PATHS.get(PathKey { dev, hash }) }) else { return 0 };
    let mut found = 0;
    if rule.bits & bits::TREE_WRITE != 0 {
        found |= said::WRITE;
    }
    if rule.bits & bits::TREE_READ != 0 && !may_read(rule.tree_rule, image_dev, image_ino) {
        found |= said::READ;
    }
    found as u64
}

/// One step of the first walk.
unsafe extern "C" fn climb(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer to the state that `walk` owns.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    let Some((above, name)) = step(walk) else { return 1 };
    walk.hash = walk.hash.wrapping_add(name.wrapping_mul(walk.power));
    walk.power = walk.power.wrapping_mul(BASE);
    walk.at = above;
    0
}

/// One step of the second walk.
unsafe extern "C" fn descend(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: as above.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    let found = guard_tree(walk.dev, walk.hash, walk.image.dev, walk.image.ino) & walk.against;
    walk.said |= found;
    if found != 0 && walk.by == 0 {
        walk.by = walk.hash;
    }
    let Some((above, name)) = step(walk) else { return 1 };
    walk.hash = folder_of(walk.hash, name);
    walk.at = above;
    0
}

#[inline(always)]
fn may_read(rule: u64, image_dev: u64, image_ino: u64) -> bool {
    let program = FileKey { dev: image_dev, ino: image_ino };
    // SAFETY: only its presence counts.
    image_ino != 0 && unsafe { READERS.get(Reader { rule, program }) }.is_some()
}

/// The folder above and the hash of this name; nothing at the end of the way, which is noted.
#[inline(always)]
fn step(walk: &mut Walk) -> Option<(u64, u64)> {
    let (Some(above), Some(name)) = (read::<u64>(walk.at, &OFF_DENTRY_PARENT), name(walk.at)) else {
        walk.end = LOST;
        return None;
    };
    if above != walk.at {
        return Some((above, name));
    }
    walk.end = if walk.at == walk.root { ARRIVED } else { LOST };
    None
}

#[inline(always)]
fn name(dentry: u64) -> Option<u64> {
    let (text, length) = (read::<u64>(dentry, &OFF_DENTRY_NAME)?, read::<u32>(dentry, &OFF_DENTRY_NAME_LENGTH)?);
    let mut words = MaybeUninit::<[u64; NAME_WORDS]>::uninit();
    let buffer = words.as_mut_ptr();
    for index in 0..NAME_WORDS {
        // Word by word: the compiler would make a loop over bytes of it, which the verifier walks through each time.
        // SAFETY: within the array.
        unsafe { buffer.cast::<u64>().add(index).write_volatile(0) };
    }
    // SAFETY: the buffer has that size; the helper checks the address.
    let read = unsafe { bpf_probe_read_kernel_str(buffer.cast(), (NAME_WORDS * 8) as u32, text as *const c_void) };
    // SAFETY: every word was written above.
    if read < 0 { None } else { Some(name_hash(unsafe { words.assume_init_ref() }, length)) }
}

/// A field of a kernel object, by address alone: nothing where it cannot be read.
#[inline(always)]
pub fn read<T>(base: u64, offset: &u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel((base + global(offset) as u64) as *const T) }.ok()
}

/// Address of the inode that an entry has; 0 for none. By the helper, since some verifiers (6.4 to 6.13) take the field for
/// one that is never null, drop a test of it, and would let a missing inode be followed.
#[inline(always)]
pub fn inode_of(dentry: *const u8) -> u64 {
    read(dentry as u64, &OFF_DENTRY_INODE).unwrap_or(0)
}

/// Device and number of the inode at an address.
#[inline(always)]
pub fn key_of(inode: u64) -> FileKey {
    let sb: u64 = read(inode, &OFF_INODE_SB).unwrap_or(0);
    let dev: u32 = read(sb, &OFF_SB_DEV).unwrap_or(0);
    FileKey { dev: dev as u64, ino: read(inode, &OFF_INODE_INO).unwrap_or(0) }
}

/// What is said of a file that has more names than the protected one.
#[inline(always)]
pub fn of_file(file: &FileKey, image: &FileKey) -> u32 {
    // SAFETY: rules are replaced whole.
    let Some(rule): Option<&PathRule> = (unsafe { crate::maps::INODES.get(file) }) else { return 0 };
    let mut found = 0;
    if rule.bits & bits::EXACT_WRITE != 0 {
        found |= said::WRITE;
    }
    if rule.bits & bits::EXACT_READ != 0 && !may_read(rule.exact_rule, image.dev, image.ino) {
        found |= said::READ;
    }
    found
}
