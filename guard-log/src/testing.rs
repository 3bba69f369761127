//! Real logs, made by the store, for the tests of what reads them.

use std::fs;
use std::path::PathBuf;

use crate::checkpoint::Checkpoint;
use crate::record::{Epoch, Header, HostId, Kind, Record, SessionId};
use crate::signer::KeyFile;
use crate::store::{Store, StoreOptions};
use crate::tiles::{CHECKPOINT, split_entries};
use crate::verify::{AuditOptions, AuditReport, Finding, Folder, audit};

pub(crate) const ORIGIN: &str = "guard.test/log";
pub(crate) const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";

pub(crate) struct Log {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) skey: String,
}

/// One host's chain.
pub(crate) struct Host {
    id: u8,
    pub(crate) seq: u64,
    last: [u8; 32],
}

impl Host {
    pub(crate) fn new(id: u8) -> Self {
        Self { id, seq: 0, last: [0; 32] }
    }

    pub(crate) fn next_of(&mut self, kind: Kind, body: &[u8]) -> Record {
        let header = Header {
            version: 1,
            kind,
            host: HostId([self.id; 16]),
            epoch: Epoch([self.id + 100; 16]),
            seq: self.seq,
            prev: self.last,
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SessionId::NONE,
        };
        let record = Record::seal(&header, body).unwrap();
        (self.seq, self.last) = (self.seq + 1, record.digest());
        record
    }

    pub(crate) fn next(&mut self) -> Record {
        self.next_of(Kind::EXEC, format!("record {} of host {}", self.seq, self.id).as_bytes())
    }
}

impl Log {
    pub(crate) fn of(skey: &str, groups: &[&[Record]]) -> Self {
        let log = Self { dir: tempfile::tempdir().unwrap(), skey: skey.to_owned() };
        Store::create(&log.options(), &log.signer()).unwrap();
        let (store, _) = Store::open(log.options(), log.signer()).unwrap();
        for group in groups {
            store.append(group.to_vec()).unwrap().wait().unwrap();
            store.publish().unwrap();
        }
        log
    }

    /// Two hosts in turn, published at 100 and at `size`.
    pub(crate) fn new(size: usize) -> Self {
        let skey = KeyFile::generate(ORIGIN).unwrap().skey().to_string();
        let records = two_hosts(size);
        let (first, rest) = records.split_at(size.min(100));
        Self::of(&skey, &[first, rest])
    }

    pub(crate) fn options(&self) -> StoreOptions {
        StoreOptions {
            dir: self.dir.path().join("data"),
            lock: self.dir.path().join("lock"),
            segment_bytes: 1 << 20,
            require_real_disk: false,
        }
    }

    pub(crate) fn signer(&self) -> KeyFile {
        KeyFile::from_skey(&self.skey).unwrap()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.options().dir.join("log").join(name)
    }

    /// The public tree.
    pub(crate) fn folder(&self) -> Folder {
        Folder::open(&self.options().dir.join("log")).unwrap()
    }

    pub(crate) fn head(&self) -> Checkpoint {
        Checkpoint::open(&fs::read(self.file(CHECKPOINT)).unwrap(), &self.signer().verifier()).unwrap()
    }

    pub(crate) fn audit_after(&self, previous: Option<Checkpoint>) -> AuditReport {
        let mut seen = 0;
        let mut progress = |done: u64, all: u64| seen = done.min(all);
        let source = self.folder();
        let report = audit(
            &source,
            &self.signer().verifier(),
            &AuditOptions { previous, ..AuditOptions::default() },
            &mut progress,
        )
        .unwrap();
        assert_eq!(seen, report.checkpoint.size);
        report
    }

    pub(crate) fn findings(&self) -> Vec<String> {
        self.audit_after(None).findings.iter().map(Finding::to_string).collect()
    }

    pub(crate) fn change(&self, name: &str, call: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        call(&mut bytes);
        fs::remove_file(self.file(name)).unwrap();
        fs::write(self.file(name), bytes).unwrap();
    }

    /// Rewrites a bundle entry by entry.
    pub(crate) fn rebundle(&self, name: &str, call: impl FnOnce(&mut Vec<Vec<u8>>)) {
        self.change(name, |bytes| {
            let (entries, _) = split_entries(bytes, 256);
            let mut entries: Vec<Vec<u8>> = entries.into_iter().map(<[u8]>::to_vec).collect();
            call(&mut entries);
            bytes.clear();
            entries.iter().for_each(|entry| crate::tiles::put_entry(bytes, entry).unwrap());
        });
    }
}

pub(crate) fn two_hosts(size: usize) -> Vec<Record> {
    let mut hosts = [Host::new(1), Host::new(2)];
    (0..size).map(|number| hosts[number % 2].next()).collect()
}
