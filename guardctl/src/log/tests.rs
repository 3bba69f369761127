//! Receipts and policies on an exported log, as a person uses them: nothing but files and the verifier key.

use std::fs;
use std::path::PathBuf;

use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
use guard_log::signer::KeyFile;
use guard_log::store::{Store, StoreOptions};

use super::*;
use crate::args::{ConsistencyArgs, LogArgs, ProveArgs};
use crate::output::Format;

struct Exported {
    dir: tempfile::TempDir,
    vkey: String,
}

impl Exported {
    /// A log of five records, and its checkpoint at two as `old`.
    fn new() -> Exported {
        let dir = tempfile::tempdir().expect("folder");
        let options = StoreOptions {
            dir: dir.path().join("data"),
            lock: dir.path().join("lock"),
            segment_bytes: 1 << 20,
            require_real_disk: false,
        };
        let signer = KeyFile::generate("guard.test/log").expect("key");
        let vkey = signer.vkey();
        Store::create(&options, &signer).expect("made");
        let (store, _) = Store::open(options, signer).expect("opened");
        let records = records();
        store.append(records[..2].to_vec()).expect("taken").wait().expect("durable");
        store.publish().expect("published");
        fs::copy(dir.path().join("data/log/checkpoint"), dir.path().join("old")).expect("copied");
        store.append(records[2..].to_vec()).expect("taken").wait().expect("durable");
        store.publish().expect("published");
        store.close();
        Exported { dir, vkey }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn of(&self) -> LogArgs {
        LogArgs { dir: Some(self.path("data/log")), vkey: Some(self.vkey.clone()), admin_vkey: None }
    }

    fn config(&self) -> Config {
        Config { state: Some(self.path("state.json")), ..Config::default() }
    }

    fn held(&self, policy: Option<&str>) -> Held {
        let policy = policy.map(|text| {
            fs::write(self.path("policy"), text).expect("written");
            self.path("policy")
        });
        let vkey = policy.is_none().then(|| self.vkey.clone());
        Held::of(vkey, policy.as_deref()).expect("held")
    }

    async fn prove(&self, leaf: Option<u64>, record: Option<&str>) -> Result<()> {
        let args = ProveArgs {
            leaf,
            record: record.map(|id| id.parse().expect("id")),
            of: self.of(),
            to: Some(self.path("proof")),
            save_record: Some(self.path("record")),
        };
        prove::prove(&args, &self.config(), &out()).await
    }

    fn check(&self, held: &Held) -> Result<()> {
        prove::check(&self.path("proof"), &self.path("record"), held, &self.config(), &out())
    }
}

fn out() -> Out {
    Out::new(Format::Json)
}

fn records() -> Vec<Record> {
    let mut prev = [0; 32];
    let make = |seq| {
        let (host, epoch, session) = (HostId([1; 16]), Epoch([2; 16]), SessionId::NONE);
        let header =
            Header { version: 1, kind: Kind::EXEC, host, epoch, seq, prev, boot_ns: 0, wall_unix_ns: 0, session };
        let record = Record::seal(&header, b"body").expect("sealed");
        prev = record.digest();
        record
    };
    (0..5).map(make).collect()
}

#[tokio::test]
async fn a_receipt_of_an_exported_log_is_checked_offline_and_only_for_its_record() {
    let log = Exported::new();
    log.prove(Some(3), None).await.expect("proved");
    assert_eq!(fs::read(log.path("record")).expect("saved"), records()[3].bytes().as_ref());
    log.check(&log.held(None)).expect("holds");
    fs::write(log.path("record"), records()[2].bytes()).expect("written");
    assert_eq!(log.check(&log.held(None)).expect_err("another record").kind, Exit::No);
    assert_eq!(log.prove(Some(5), None).await.expect_err("beyond").kind, Exit::No);
    let name = format!("{}/{}/4", "01".repeat(16), "02".repeat(16));
    log.prove(None, Some(&name)).await.expect("found");
    log.check(&log.held(None)).expect("holds");
    assert_eq!(fs::read(log.path("record")).expect("saved"), records()[4].bytes().as_ref());
}

#[tokio::test]
async fn a_policy_names_the_key_and_demands_its_witnesses() {
    let log = Exported::new();
    log.prove(Some(0), None).await.expect("proved");
    let witness = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";
    let none = log.held(Some(&format!("log {}\nquorum none\n", log.vkey)));
    let one = log.held(Some(&format!("log {}\nwitness w {witness}\nquorum w\n", log.vkey)));
    let other = log.held(Some(&format!("log {}\nquorum none\n", KeyFile::generate("x").expect("key").vkey())));
    log.check(&none).expect("no cosignature needed");
    for (held, said) in [(&one, "no quorum of the policy"), (&other, "names no log")] {
        let error = log.check(held).expect_err("refused");
        assert!(error.kind == Exit::No && error.message.contains(said), "{error}");
    }
    let dir = log.path("data/log");
    assert_eq!(verify_folder(&dir, &none, &log.config()).expect("audited").errors(), 0);
    let verified = verify_folder(&dir, &one, &log.config()).expect("audited");
    assert_eq!((verified.errors(), verified.report.findings[0].what), (1, "no_quorum"));
}

#[tokio::test]
async fn growth_between_two_checkpoints_is_proved_and_a_rewritten_log_is_not() {
    let log = Exported::new();
    let args = |old: &str, to: Option<&str>| ConsistencyArgs {
        old: log.path(old),
        new: None,
        of: log.of(),
        to: to.map(|to| log.path(to)),
    };
    prove::consistency(&args("old", Some("growth")), &log.config(), &out()).await.expect("grew");
    let text = fs::read_to_string(log.path("growth")).expect("written");
    assert!(text.starts_with("old 2\n"), "{text}");
    // The tiles of another history do not lead from the old root.
    let tile = log.path("data/log/tile/0/000.p/5");
    let mut bytes = fs::read(&tile).expect("tile");
    bytes[3 * 32] ^= 1;
    fs::remove_file(&tile).expect("removed");
    fs::write(&tile, bytes).expect("written");
    let error = prove::consistency(&args("old", None), &log.config(), &out()).await.expect_err("rewritten");
    assert!(error.kind == Exit::No && error.message.starts_with("the log was rewritten"), "{error}");
}

#[test]
fn entries_are_read_from_a_folder_only_if_its_log_verifies() {
    let log = Exported::new();
    let read = |dir: &str| {
        let mut leaves = Vec::new();
        let mut each = |entry: crate::record::Entry| {
            leaves.push((entry.leaf, entry.seq));
            Ok(())
        };
        of_folder(&log.path(dir), Some(&log.vkey), &log.config(), &mut each).map(|()| leaves)
    };
    let all: Vec<(u64, u64)> = (0..5).map(|n| (n, n)).collect();
    assert_eq!(read("data"), Ok(all.clone()));
    assert_eq!(read("data/log"), Ok(all));
    let bundle = log.path("data/log/tile/entries/000.p/5");
    let mut bytes = fs::read(&bundle).expect("a bundle");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::remove_file(&bundle).expect("removed");
    fs::write(&bundle, bytes).expect("written");
    assert_eq!(read("data").expect_err("another log").kind, Exit::No);
}
