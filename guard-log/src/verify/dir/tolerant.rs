//! A source that goes on where a resource cannot be read, and tells of it at the end.
//!
//! It must not let what could not be read pass for what is not there. Fails: never.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::super::folder::Folder;
use super::super::report::Findings;
use super::super::{Source, SourceError};

pub(super) struct Tolerant<'a> {
    folder: &'a Folder,
    /// Resources that are there and cannot be read; never more than there are files.
    unread: RefCell<BTreeMap<String, String>>,
}

impl<'a> Tolerant<'a> {
    pub(super) fn of(folder: &'a Folder) -> Self {
        Self { folder, unread: RefCell::default() }
    }

    /// Makes findings of what could not be read.
    pub(super) fn tell(self, findings: &mut Findings) {
        for (path, error) in self.unread.into_inner() {
            let what = if path.starts_with("tile/entries/") { "unread_entries" } else { "unread_tile" };
            findings.unchecked(what, path, error);
        }
    }
}

impl Source for Tolerant<'_> {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.folder.fetch(path).or_else(|error| {
            self.unread.borrow_mut().insert(path.to_owned(), error.to_string());
            Ok(None)
        })
    }

    fn unread(&self, path: &str) -> bool {
        self.unread.borrow().contains_key(path)
    }
}
