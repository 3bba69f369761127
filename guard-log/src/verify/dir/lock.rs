//! The collector's lock file: how far the log was ever published.
//!
//! It lies outside the log's folder, so that a backup does not bring it back; whoever copies a log adds it as `lock`
//! or names it. It is not signed: it can only raise doubts. Fails: a lock that cannot be read is a finding.

use std::io;
use std::path::Path;

use super::super::folder::Folder;
use super::super::report::Findings;
use super::super::walk::Walk;
use crate::checkpoint::Checkpoint;
use crate::frame;
use crate::store::LOCK_MAX;
use crate::tree::Hash;

/// Name of the lock file in a copied folder.
pub(super) const NAME: &str = "lock";

/// A lock file.
pub(super) struct Lock {
    /// As it was found.
    name: String,
    pub(super) head: Checkpoint,
}

/// Reads the lock file, if there is one.
pub(super) fn read(root: &Folder, named: Option<&Path>, findings: &mut Findings) -> Option<Lock> {
    let (name, text) = match named {
        Some(path) => (path.display().to_string(), frame::read_text(path, LOCK_MAX)),
        None => (NAME.to_owned(), text(root.read(NAME, LOCK_MAX).transpose()?)),
    };
    let text = match text {
        Ok(text) => text,
        Err(error) => {
            findings.unchecked("unread_lock", name, error);
            return None;
        }
    };
    match Checkpoint::parse(&text) {
        Ok(head) if head.text() == text => Some(Lock { name, head }),
        Ok(_) => {
            findings.error("malformed_lock", name, "it has more than the three lines of a head");
            None
        }
        Err(error) => {
            findings.error("malformed_lock", name, error);
            None
        }
    }
}

fn text(bytes: io::Result<Vec<u8>>) -> io::Result<String> {
    String::from_utf8(bytes?).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// The lock against the checkpoint; `reached` is the root that the log comes to at the lock's size, if it gets that
/// far.
pub(super) fn judge(lock: &Lock, head: &Checkpoint, reached: Option<Hash>, walk: &mut Walk<'_>) {
    let (findings, Lock { name, head: lock }) = (&mut walk.findings, lock);
    if lock.origin != head.origin {
        findings.error(
            "other_lock",
            name,
            format!("it is of log {:?}, the checkpoint of {:?}", lock.origin, head.origin),
        );
        return;
    }
    let sizes = format!("it says that {} entries were published, the checkpoint has {}", lock.size, head.size);
    match lock.size.cmp(&head.size) {
        std::cmp::Ordering::Less => {
            findings.error("lock_behind", name, format!("{sizes}: the lock is an older one, or not this log's"));
        }
        std::cmp::Ordering::Equal if lock.root != head.root => {
            findings.error("lock_differs", name, "it has the checkpoint's size and another root: the log was forked");
        }
        std::cmp::Ordering::Equal => {}
        std::cmp::Ordering::Greater => {
            let why = match reached {
                Some(root) if root == lock.root => {
                    "the write-ahead segments lead to its root: an older checkpoint was put back, or a crash cut a \
                     publication short, which the collector completes at its next start"
                }
                Some(_) => "the write-ahead segments lead to another root: this is not the log that was published",
                None => {
                    "the entries up to there are not in this folder: it is an older copy, or entries were taken away"
                }
            };
            findings.error("lock_ahead", name, format!("{sizes}; {why}"));
        }
    }
}
