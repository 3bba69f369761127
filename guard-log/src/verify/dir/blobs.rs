//! Blobs beside the log: each is what its name says, each that a record names is there or was erased on the record.
//!
//! Memory is bounded: of named blobs a keyed fingerprint is kept, of missing and erased ones the name. It must not
//! know what a record looks like inside: the caller says what it says. Fails: blobs past the limits are said not to
//! have been judged.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::hash::BuildHasher;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

use super::super::folder::{Folder, Names, What};
use super::super::report::Findings;
use super::Form;
use crate::record::Record;

/// Folder of the blobs.
pub(super) const FOLDER: &str = "blobs";
/// Named blobs that are remembered, 8 bytes each.
const NAMED_MAX: usize = 1 << 24;
/// Missing ones, and erased ones, that are remembered.
const REMEMBERED_MAX: usize = 1 << 20;

type Id = [u8; 32];

/// What a record says of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A part of the record is the blob with this SHA-256.
    Names([u8; 32]),
    /// The blob with this SHA-256 was erased.
    Erases([u8; 32]),
}

/// How blobs are read.
#[derive(Clone, Copy, Debug)]
pub struct Blobs {
    /// Longest blob, in bytes.
    pub max: u64,
    /// What a record says of one.
    pub said: fn(&Record) -> Option<Said>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) folder: bool,
    pub(super) named: usize,
    pub(super) held: u64,
    pub(super) erased: usize,
}

pub(super) struct Search {
    folder: Option<Folder>,
    form: Form,
    rules: Blobs,
    /// Keyed, so that nobody can make a blob whose fingerprint is another's.
    keyed: RandomState,
    named: Vec<u64>,
    /// With the leaf that names it.
    missing: BTreeMap<Id, u64>,
    /// Whether a record named it again afterwards.
    erased: HashMap<Id, bool>,
    left_out: u64,
}

impl Search {
    pub(super) fn open(root: &Folder, form: Form, rules: Blobs, findings: &mut Findings) -> Self {
        let folder = root.within(FOLDER).unwrap_or_else(|error| {
            findings.unchecked("unread_blobs", FOLDER, error);
            None
        });
        let (missing, erased) = (BTreeMap::new(), HashMap::new());
        Self { folder, form, rules, keyed: RandomState::new(), named: Vec::new(), missing, erased, left_out: 0 }
    }

    /// An entry of the log.
    pub(super) fn add(&mut self, leaf: u64, record: &Record) {
        match (self.rules.said)(record) {
            Some(Said::Names(id)) => self.name(leaf, id),
            Some(Said::Erases(id)) => {
                self.missing.remove(&id);
                if self.erased.len() < REMEMBERED_MAX {
                    self.erased.insert(id, false);
                } else {
                    self.left_out += 1;
                }
            }
            None => {}
        }
    }

    fn name(&mut self, leaf: u64, id: Id) {
        if self.named.len() >= NAMED_MAX {
            self.named.sort_unstable();
            self.named.dedup();
        }
        if self.named.len() >= NAMED_MAX {
            self.left_out += 1;
            return;
        }
        self.named.push(self.keyed.hash_one(id));
        if let Some(again) = self.erased.get_mut(&id) {
            *again = true;
            return;
        }
        let there = self.folder.as_ref().is_some_and(|folder| !matches!(folder.file(&path(&id)), Ok(None)));
        // An export has no blobs: there none is missing.
        if there || (self.folder.is_none() && self.form == Form::Exported) {
            return;
        }
        if self.missing.len() < REMEMBERED_MAX {
            self.missing.entry(id).or_insert(leaf);
        } else {
            self.left_out += 1;
        }
    }

    /// Reads what is there. `all`: every record was seen, so that a blob without one is a stray, and none is erased
    /// unseen.
    pub(super) fn finish(mut self, all: bool, findings: &mut Findings) -> Counts {
        let whole = all && self.left_out == 0;
        self.named.sort_unstable();
        self.named.dedup();
        for (id, leaf) in std::mem::take(&mut self.missing) {
            let (id, where_) = (hex::encode(id), format!("leaf {leaf}"));
            if whole {
                let detail = format!("blob {id} is not there, and no record says that it was erased");
                findings.error("missing_blob", where_, detail);
            } else {
                let detail =
                    format!("blob {id} is not there, and no record that could be read says that it was erased");
                findings.unchecked("missing_blob", where_, detail);
            }
        }
        if self.left_out > 0 {
            let detail = format!("{} records about blobs are more than are remembered", self.left_out);
            findings.unchecked("many_blobs", FOLDER, detail);
        }
        let mut counts =
            Counts { folder: self.folder.is_some(), named: self.named.len(), held: 0, erased: self.erased.len() };
        if let Some(folder) = self.folder.take() {
            self.walk(&folder, FOLDER, findings, &mut |search, name, entry, findings| match entry {
                What::Folder if is_hex(name, 2) => {
                    let below = format!("{FOLDER}/{name}");
                    match folder.within(name) {
                        Ok(Some(inner)) => search.shelf(&inner, name, &below, whole, &mut counts, findings),
                        Ok(None) => {}
                        Err(error) => findings.unchecked("unread_blobs", below, error),
                    }
                    true
                }
                _ => false,
            });
        }
        counts
    }

    fn shelf(
        &self,
        folder: &Folder,
        shelf: &str,
        path: &str,
        whole: bool,
        counts: &mut Counts,
        findings: &mut Findings,
    ) {
        self.walk(folder, path, findings, &mut |search, name, entry, findings| match (entry, blob_id(shelf, name)) {
            (What::File, Some(id)) => {
                counts.held += 1;
                search.blob(folder, name, &format!("{path}/{name}"), &id, whole, findings);
                true
            }
            _ => false,
        });
    }

    /// Calls for each entry of a folder; what it does not know is named.
    fn walk(
        &self,
        folder: &Folder,
        path: &str,
        findings: &mut Findings,
        call: &mut dyn FnMut(&Self, &str, What, &mut Findings) -> bool,
    ) {
        let Names { names, more } = match folder.names() {
            Ok(names) => names,
            Err(error) => return findings.unchecked("unread_blobs", path, error),
        };
        if more {
            findings.unchecked("unread_blobs", path, "it holds more files than are looked at");
        }
        for name in names {
            super::files::known(folder, &name, path, findings, &mut |text, entry, findings| {
                call(self, text, entry.what, findings)
            });
        }
    }

    fn blob(&self, folder: &Folder, name: &str, path: &str, id: &Id, whole: bool, findings: &mut Findings) {
        match digest(folder, name, self.rules.max) {
            Ok(digest) if digest == Some(*id) => {}
            Ok(_) => findings.error("changed_blob", path, "its SHA-256 is not its name: it was changed"),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => findings.error("too_large", path, error),
            Err(error) => findings.unchecked("unread_blobs", path, error),
        }
        if self.named.binary_search(&self.keyed.hash_one(id)).is_err() {
            let detail = "no record names it: a batch that was never admitted left it, or it does not belong there";
            match whole {
                true => findings.error("stray_blob", path, detail),
                false => findings.unchecked("stray_blob", path, "no record that could be read names it"),
            }
        } else if self.erased.get(id) == Some(&false) {
            findings.error("erased_blob_kept", path, "a record says that it was erased, and it is still there");
        }
    }
}

fn path(id: &Id) -> String {
    let name = hex::encode(id);
    format!("{}/{name}", name.get(..2).unwrap_or_default())
}

fn is_hex(name: &str, length: usize) -> bool {
    name.len() == length && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn blob_id(shelf: &str, name: &str) -> Option<Id> {
    let mut id = [0; 32];
    let right = is_hex(name, 64) && name.starts_with(shelf) && hex::decode_to_slice(name, &mut id).is_ok();
    right.then_some(id)
}

fn digest(folder: &Folder, name: &str, max: u64) -> io::Result<Option<Id>> {
    let Some((file, length)) = folder.file(name)? else { return Ok(None) };
    if length > max {
        let what = format!("it has {length} bytes, and at most {max} are right");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    let (mut file, mut hasher, mut part) = (file.take(max), Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(Some(hasher.finalize().into())),
            n => hasher.update(part.get(..n).unwrap_or_default()),
        }
    }
}

/// Name of a blob that a crash left half written.
pub(super) fn is_leftover(name: &OsString) -> bool {
    name.to_str().and_then(|name| name.strip_suffix(".new")).is_some_and(|name| is_hex(name, 64))
}
