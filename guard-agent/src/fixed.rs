//! Files that a session was just found unable to write or replace, so that a program that is started again and again is not
//! looked at with all its folders each time.
//!
//! It must not remember what the session could change. An entry is of one state of one file under one path: whoever writes,
//! replaces or gives away the file makes another state, which is looked at anew. What an entry may miss is a folder that became
//! writable within [`KEPT_NS`], while the file below it stayed the one that was looked at; looking again would find the same
//! content. Fails: what is not remembered is looked at.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use guard_common::FileStamp;

/// For how long an answer counts, in boot-time ns.
const KEPT_NS: u64 = 1_000_000_000;
/// When there are more, all are forgotten.
const KNOWN_MAX: usize = 512;

/// What is known of one session.
#[derive(Default)]
pub struct Fixed(Mutex<HashMap<FileStamp, Seen>>);

struct Seen {
    path: Vec<u8>,
    until_boot_ns: u64,
}

impl Fixed {
    /// Whether the session could not change this file a moment ago, under this path.
    pub fn contains(&self, stamp: &FileStamp, path: &[u8], now_boot_ns: u64) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&state(stamp)).is_some_and(|seen| seen.path == path && now_boot_ns < seen.until_boot_ns)
    }

    /// It cannot, as of now.
    pub fn insert(&self, stamp: &FileStamp, path: &[u8], now_boot_ns: u64) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(state(stamp), Seen { path: path.to_vec(), until_boot_ns: now_boot_ns.saturating_add(KEPT_NS) });
    }
}

/// Who has it open says nothing of what it is; a further name changes its change time.
fn state(stamp: &FileStamp) -> FileStamp {
    FileStamp { writers: 0, nlink: 0, ..*stamp }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_for_one_state_of_one_file_under_one_path_and_for_a_moment() {
        let fixed = Fixed::default();
        let stamp = FileStamp { size: 7, ctime_s: 5, ..FileStamp::default() };
        assert!(!fixed.contains(&stamp, b"/usr/bin/x", 1));
        fixed.insert(&stamp, b"/usr/bin/x", 1);
        assert!(fixed.contains(&stamp, b"/usr/bin/x", KEPT_NS));
        assert!(fixed.contains(&FileStamp { writers: 1, ..stamp }, b"/usr/bin/x", 1));
        assert!(!fixed.contains(&stamp, b"/usr/bin/x", KEPT_NS + 1));
        assert!(!fixed.contains(&stamp, b"/usr/bin/y", 1));
        for other in [
            FileStamp { size: 8, ..stamp },
            FileStamp { ctime_ns: 1, ..stamp },
            FileStamp { inode_addr: 1, ..stamp },
            FileStamp { key: guard_common::FileKey { dev: 0, ino: 9 }, ..stamp },
        ] {
            assert!(!fixed.contains(&other, b"/usr/bin/x", 1));
        }
    }
}
