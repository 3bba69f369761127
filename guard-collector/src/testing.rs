//! A log in a folder of its own, for the tests of what reads it and appends to it.

use std::path::PathBuf;

use guard_log::note::Verifier;
use guard_log::signer::{KeyFile, Signer};
use guard_log::store::{Store, StoreOptions};

use crate::ledger::Ledger;

pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    skey: String,
    segment_bytes: u64,
}

impl Place {
    /// An empty log with write-ahead segments of that size.
    pub(crate) fn new(segment_bytes: u64) -> Self {
        let signer = KeyFile::generate("guard.test/log").expect("key");
        let (dir, skey) = (tempfile::tempdir().expect("folder"), signer.skey().to_string());
        let place = Self { dir, skey, segment_bytes };
        Store::create(&place.options(), &signer).expect("created");
        place
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            dir: self.dir.path().join("data"),
            lock: self.dir.path().join("lock/head"),
            segment_bytes: self.segment_bytes,
            require_real_disk: false,
        }
    }

    pub(crate) fn signer(&self) -> KeyFile {
        KeyFile::from_skey(&self.skey).expect("key")
    }

    pub(crate) fn verifier(&self) -> Verifier {
        self.signer().verifier()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.options(), self.signer()).expect("opened").0
    }

    /// A file or folder of the log's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// With another signer of the same key.
    pub(crate) fn ledger_with(&self, signer: impl Signer + 'static) -> Ledger {
        let store = Store::open(self.options(), signer).expect("opened").0;
        Ledger::open(store, self.file("admission")).expect("read")
    }

    pub(crate) fn ledger(&self) -> Ledger {
        Ledger::open(self.store(), self.file("admission")).expect("read")
    }
}
