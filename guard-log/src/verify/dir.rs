//! The audit of a copied log folder: everything that a collector keeps of its log, without the collector.
//!
//! Two forms are known: the collector's own folder (`log/`, `wal/`, `blobs/`) and an exported log (`checkpoint`,
//! `tile/`). Every file is untrusted: read up to a limit, no link followed, nothing written. What was checked, what
//! was not and why is said part by part. It must not call checked what it could not read. Fails: only if the folder
//! cannot be opened or is no log.

mod blobs;
mod cosigned;
mod files;
mod head;
mod lock;
mod parts;
mod segments;
#[cfg(test)]
mod tests;
mod tolerant;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

pub use blobs::{Blobs, Said};
pub use parts::{Part, PartReport, State};

use super::folder::Folder;
use super::report::{Finding, Findings, HostReport, Severity};
use super::trust::Trust;
use super::walk::Walk;
use crate::checkpoint::Checkpoint;
use crate::note::{NOTE_MAX, Verifier};
use crate::record::Record;
use crate::tiles::{CHECKPOINT, COSIGNED};
use blobs::Search;
use parts::{Facts, plural};
use tolerant::Tolerant;

/// What kind of copy a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The collector's folder, with the tree in `log/`.
    Store,
    /// The public tree alone.
    Exported,
}

/// A folder with a log.
#[derive(Debug)]
pub struct LogDir {
    root: Folder,
    tree: Folder,
    form: Form,
}

/// What the log is held to.
#[derive(Clone, Debug)]
pub struct DirOptions<'a> {
    /// Key of the checkpoint; without one its signature is not checked.
    pub key: Option<&'a Verifier>,
    /// The admin key, which has to have signed a succession.
    pub admin: Option<&'a Verifier>,
    /// An earlier verified checkpoint that the log must continue.
    pub previous: Option<Checkpoint>,
    /// The lock file, where it is not `lock` in the folder.
    pub lock: Option<PathBuf>,
    /// What records say of blobs.
    pub blobs: Blobs,
}

/// What the audit of a folder found.
#[derive(Clone, Debug)]
pub struct DirReport {
    /// What kind of copy it is.
    pub form: Form,
    /// The checkpoint that the log was held to; signed only if the part says so.
    pub checkpoint: Option<Checkpoint>,
    /// The checkpoint that witnesses cosigned last, if this log is known to continue it. Whose cosignatures it bears is for
    /// whoever holds a policy.
    pub cosigned: Option<Checkpoint>,
    /// Entries up to the checkpoint that were read and are the right ones.
    pub entries: u64,
    /// Entries past the checkpoint: admitted, not yet published.
    pub unpublished: u64,
    /// Hosts and epochs, in order of appearance.
    pub hosts: Vec<HostReport>,
    /// Every part, in a fixed order.
    pub parts: Vec<PartReport>,
    /// Everything found and everything that could not be checked.
    pub findings: Vec<Finding>,
}

impl DirReport {
    /// How many findings of this weight are listed.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }
}

impl LogDir {
    /// Opens a folder and finds out what kind of copy it is.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = Folder::open(path)?;
        let has = |name: &str| root.look(&OsString::from(name)).is_ok();
        if has(CHECKPOINT) || has("tile") {
            let tree = Folder::open(path)?;
            return Ok(Self { root, tree, form: Form::Exported });
        }
        let none =
            "no log is there: neither `checkpoint` (an exported log) nor `log/checkpoint` (a collector's folder)";
        let tree = root.within("log")?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, none))?;
        Ok(Self { root, tree, form: Form::Store })
    }

    /// The public tree.
    pub fn tree(&self) -> &Folder {
        &self.tree
    }

    /// The checkpoint as it lies there, to choose a key by.
    pub fn note(&self) -> io::Result<Option<Vec<u8>>> {
        self.tree.read(CHECKPOINT, NOTE_MAX as u64)
    }

    /// The checkpoint that witnesses cosigned last, as it lies there.
    pub fn cosigned(&self) -> io::Result<Option<Vec<u8>>> {
        self.tree.read(COSIGNED, NOTE_MAX as u64)
    }

    /// Audits everything in it.
    pub fn audit(&self, options: &DirOptions<'_>) -> DirReport {
        let mut findings = Findings::default();
        let source = Tolerant::of(&self.tree);
        // A tolerant source never fails: what it could not read it tells at the end.
        let trust = Trust::of(&source, options.key, options.admin, &mut findings).unwrap_or_default();
        let head = head::judge(self.note(), options.key.is_some(), &trust, &mut findings);
        let mut facts = Facts::new(self.form, options);
        let mut search = Search::open(&self.root, self.form, options.blobs, &mut findings);
        let mut hosts = Vec::new();
        if let Some(head) = &head {
            let mut each = |leaf: u64, record: &Record| search.add(leaf, record);
            (hosts, findings) = self.read(head, &source, (options, trust), findings, &mut facts, &mut each);
        }
        files::walk(self, &source, head.as_ref(), &mut facts, &mut findings);
        source.tell(&mut findings);
        let whole = head.as_ref().is_some_and(|head| facts.entries == head.size) && facts.segments_whole;
        facts.blobs = search.finish(whole, &mut findings);
        facts.hosts = hosts.len();
        let parts = facts.parts(head.as_ref(), &findings);
        let (form, entries, unpublished) = (self.form, facts.entries, facts.unpublished);
        let cosigned = facts.cosigned;
        DirReport { form, checkpoint: head, cosigned, entries, unpublished, hosts, parts, findings: findings.finish() }
    }

    /// Reads all entries, published or not.
    fn read(
        &self,
        head: &Checkpoint,
        source: &Tolerant<'_>,
        (options, trust): (&DirOptions<'_>, Trust),
        mut findings: Findings,
        facts: &mut Facts,
        each: &mut dyn FnMut(u64, &Record),
    ) -> (Vec<HostReport>, Findings) {
        let lock = lock::read(&self.root, options.lock.as_deref(), &mut findings);
        facts.lock = lock.is_some();
        let previous = trust.previous(options.previous.clone(), head, &mut findings);
        let previous = previous.as_ref();
        // A tolerant source never fails: what it could not read it tells at the end.
        let Ok(mut walk) = Walk::open(source, head, previous, findings, each) else {
            return (Vec::new(), Findings::default());
        };
        walk.trust = trust;
        let cosigned = cosigned::read(self.cosigned(), &walk.trust, &mut walk.findings);
        if let Some(cosigned) = &cosigned {
            walk.ask(cosigned.size);
        }
        let _ = walk.published(&mut |_, _| {});
        facts.cosigned = cosigned.filter(|cosigned| cosigned::judge(cosigned, head, &mut walk));
        (facts.entries, facts.pruned) = (walk.entries, walk.pruned);
        segments::follow(&self.root, self.form, head, lock.as_ref(), &mut walk, facts);
        let looked = walk.entries + walk.pruned;
        if looked < head.size {
            let left = plural(head.size - looked, "entry");
            let detail = format!("{left} missing or not the signed ones: what hosts' chains hold there is not known");
            walk.findings.unchecked("unread_chain", "log", detail);
        }
        walk.finish()
    }
}
