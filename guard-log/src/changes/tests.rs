//! Keys that follow each other, and logs that succeed each other: what is believed and what is not.

use prost_like::{bytes, message};

use super::succession::Statement;
use super::*;
use crate::signer::{KeyFile, Signer, Signers};
use crate::store::{Store, StoreOptions};
use crate::testing::Host;
use crate::verify::{AuditOptions, AuditReport, Folder, Severity, audit};

/// Just enough of protobuf to write the two bodies.
mod prost_like {
    pub(super) fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(&mut out, field << 3 | 2);
        varint(&mut out, value.len() as u64);
        out.extend(value);
        out
    }

    pub(super) fn message(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
        bytes(field, &parts.concat())
    }

    fn varint(out: &mut Vec<u8>, mut value: u64) {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
}

const ORIGIN: &str = "log.test/one";

/// A log on disk; `collector` writes the records that change its key.
struct Log {
    dir: tempfile::TempDir,
    collector: Host,
    host: Host,
}

fn key(name: &str) -> KeyFile {
    KeyFile::generate(name).unwrap()
}

fn again(key: &KeyFile) -> KeyFile {
    KeyFile::from_skey(&key.skey()).unwrap()
}

fn rotation_body(what: &str, old: &KeyFile, new: &KeyFile) -> Vec<u8> {
    let parts = [bytes(1, what.as_bytes()), bytes(2, old.vkey().as_bytes()), bytes(3, new.vkey().as_bytes())];
    message(u64::from(Kind::KEY_ROTATED.0), &parts)
}

impl Log {
    fn new(signer: &KeyFile) -> Self {
        let log = Self { dir: tempfile::tempdir().unwrap(), collector: Host::new(9), host: Host::new(1) };
        Store::create(&log.options(), signer).unwrap();
        log
    }

    fn options(&self) -> StoreOptions {
        let at = |name: &str| self.dir.path().join(name);
        StoreOptions { dir: at("data"), lock: at("lock"), segment_bytes: 1 << 20, require_real_disk: false }
    }

    fn open(&self, signers: impl Into<Signers>) -> Store {
        Store::open(self.options(), signers).unwrap().0
    }

    fn fill(&mut self, store: &Store, count: usize) {
        let records = (0..count).map(|_| self.host.next()).collect();
        store.append(records).unwrap().wait().unwrap();
        store.publish().unwrap();
    }

    /// Says it, publishes it, keeps it.
    fn change(&mut self, store: &Store, kind: Kind, body: &[u8], verifier: &Verifier) -> u64 {
        let ticket = store.append(vec![self.collector.next_of(kind, body)]).unwrap();
        let leaf = ticket.first_leaf();
        ticket.wait().unwrap();
        store.publish().unwrap();
        let (receipt, record) = Receipt::make(&self.folder(), verifier, leaf).unwrap();
        store.keep_change(receipt, record).unwrap();
        leaf
    }

    fn rotate(&mut self, store: &Store, old: &KeyFile, new: &KeyFile) -> u64 {
        self.change(store, Kind::KEY_ROTATED, &rotation_body("begun", old, new), &old.verifier())
    }

    fn folder(&self) -> Folder {
        Folder::open(&self.options().dir.join("log")).unwrap()
    }

    fn audit(&self, key: &KeyFile, admin: Option<&KeyFile>) -> Result<AuditReport, crate::verify::VerifyError> {
        let options = AuditOptions { previous: None, admin: admin.map(KeyFile::verifier) };
        audit(&self.folder(), &key.verifier(), &options, &mut |_, _| {})
    }
}

/// Of a whole rotation: first, second and third key, and the log signed by the last alone.
fn rotated_twice() -> (Log, [KeyFile; 3]) {
    let keys = [key(ORIGIN), key(ORIGIN), key(ORIGIN)];
    let mut log = Log::new(&keys[0]);
    log.fill(&log.open(again(&keys[0])), 10);
    for pair in keys.windows(2) {
        let both = Signers::from(again(&pair[0])).with_next(again(&pair[1])).unwrap();
        let store = log.open(both);
        log.rotate(&store, &pair[0], &pair[1]);
        log.fill(&store, 300);
        drop(store);
        let store = log.open(again(&pair[1]));
        log.fill(&store, 7);
    }
    (log, keys)
}

#[test]
fn each_earlier_key_leads_to_the_last_and_the_audit_says_so() {
    let (log, keys) = rotated_twice();
    for key in &keys {
        let report = log.audit(key, None).unwrap();
        assert!(report.is_ok(), "{:?}", report.findings);
        let said: Vec<_> = report.findings.iter().map(|f| (f.severity, f.what, f.where_.as_str())).collect();
        let at = |leaf| (Severity::Information, "key_rotated", leaf);
        assert_eq!(said, [at("leaf 10"), at("leaf 318")]);
    }
    let stranger = key(ORIGIN);
    assert!(log.audit(&stranger, None).is_err());
    let changes = Changes::fetch(&log.folder()).unwrap();
    assert_eq!(changes.keys().cloned().collect::<Vec<_>>(), keys.each_ref().map(KeyFile::verifier));
    assert_eq!(changes.after(&keys[1].verifier()).len(), 1);
    assert_eq!(Changes::parse(changes.text().as_bytes()).unwrap().text(), changes.text());
}

#[test]
fn the_store_opens_only_with_the_key_that_the_changes_lead_to() {
    let (log, [first, second, third]) = rotated_twice();
    for wrong in [&first, &second] {
        assert!(Store::open(log.options(), again(wrong)).is_err());
    }
    assert_eq!(log.open(again(&third)).changes().len(), 2);
    // Of another log, or changed: refused by name.
    let path = log.options().dir.join("log/changes");
    let text = std::fs::read_to_string(&path).unwrap();
    let (other, _) = rotated_twice();
    let others = std::fs::read_to_string(other.options().dir.join("log/changes")).unwrap();
    for changed in [others, text.replacen("index 10\n", "index 11\n", 1), "nonsense\n".to_owned()] {
        std::fs::write(&path, changed).unwrap();
        let error = Store::open(log.options(), again(&third)).unwrap_err().to_string();
        assert!(error.contains("log/changes"), "{error}");
        let report = log.audit(&third, None).unwrap();
        assert!(report.findings.iter().any(|f| f.what == "wrong_changes"), "{:?}", report.findings);
    }
}

#[test]
fn a_rotation_needs_both_keys() {
    let (old, new, thief) = (key(ORIGIN), key(ORIGIN), key(ORIGIN));
    // Whoever holds only the new key: the checkpoint lacks the old one's signature.
    let mut log = Log::new(&thief);
    let store = log.open(again(&thief));
    let body = rotation_body("begun", &old, &thief);
    store.append(vec![log.collector.next_of(Kind::KEY_ROTATED, &body)]).unwrap().wait().unwrap();
    store.publish().unwrap();
    let (mut receipt, record) = Receipt::make(&log.folder(), &thief.verifier(), 0).unwrap();
    receipt.extra = Some(record.clone());
    let error = Step::parse(&receipt.to_string()).unwrap_err().to_string();
    assert!(error.contains("not signed by"), "{error}");
    // Nor is anybody led to a key that nobody holds.
    let mut log = Log::new(&old);
    let store = log.open(again(&old));
    let body = rotation_body("begun", &old, &new);
    store.append(vec![log.collector.next_of(Kind::KEY_ROTATED, &body)]).unwrap().wait().unwrap();
    store.publish().unwrap();
    let (receipt, record) = Receipt::make(&log.folder(), &old.verifier(), 0).unwrap();
    assert!(store.keep_change(receipt, record).is_err());
    assert!(!log.options().dir.join("log/changes").exists());
    // Another name is no rotation.
    let elsewhere = key("log.test/two");
    let odd = log.collector.next_of(Kind::KEY_ROTATED, &rotation_body("begun", &old, &elsewhere));
    assert!(Change::of(&odd).unwrap().is_err());
    assert!(Change::of(&log.collector.next_of(Kind::KEY_ROTATED, &rotation_body("ended", &old, &new))).is_none());
}

struct Succeeded {
    log: Log,
    old: KeyFile,
    new: KeyFile,
    admin: KeyFile,
}

/// A log of 300 leaves of which 290 were published, succeeded.
fn succeeded(change: impl FnOnce(&mut Statement)) -> (Succeeded, Result<(), String>) {
    let (old, new, admin) = (key(ORIGIN), key("log.test/two"), key("admin.test"));
    let mut log = Log::new(&old);
    let store = log.open(again(&old));
    log.fill(&store, 290);
    store.append((0..10).map(|_| log.host.next()).collect()).unwrap().wait().unwrap();
    let ((begins, root), kept) = (store.head().unwrap(), store.published().1);
    let head = Checkpoint::open(kept.as_bytes(), &old.verifier()).unwrap();
    drop(store);
    Store::take_over(&log.options(), &head, &new).unwrap();
    let mut statement = Statement {
        new: new.verifier(),
        begins,
        root,
        old: old.verifier(),
        kept: (head.size, head.root),
        seen: (320, [5; 32]),
    };
    change(&mut statement);
    let note = admin.note(&statement.text()).unwrap();
    let body = message(u64::from(Kind::LOG_SUCCEEDED.0), &[bytes(1, note.as_bytes()), bytes(2, kept.as_bytes())]);
    let store = log.open(again(&new));
    let record = log.collector.next_of(Kind::LOG_SUCCEEDED, &body);
    let ticket = store.append(vec![record]).unwrap();
    assert_eq!(ticket.first_leaf(), 300);
    ticket.wait().unwrap();
    store.publish().unwrap();
    let (receipt, record) = Receipt::make(&log.folder(), &new.verifier(), 300).unwrap();
    let kept = store.keep_change(receipt, record).map_err(|e| e.to_string());
    log.fill(&store, 30);
    drop(store);
    (Succeeded { log, old, new, admin }, kept)
}

#[test]
fn a_successor_is_believed_with_the_admin_key_and_says_what_it_succeeds() {
    let (Succeeded { log, old, new, admin }, kept) = succeeded(|_| {});
    kept.unwrap();
    for key in [&old, &new] {
        let report = log.audit(key, Some(&admin)).unwrap();
        assert!(report.is_ok() && report.checkpoint.size == 331, "{:?}", report.findings);
        let said = report.findings.iter().find(|f| f.what == "successor").unwrap();
        assert!(
            said.where_ == "leaf 300" && said.detail.contains("log.test/two succeeds log.test/one from leaf 300 on")
        );
        assert!(
            said.detail.contains("size 290 was put back") && said.detail.contains("of size 320"),
            "{}",
            said.detail
        );
    }
    // The successor's own key needs no admin; the old one does, and its own.
    assert!(log.audit(&new, None).unwrap().is_ok());
    let error = log.audit(&old, None).unwrap_err().to_string();
    assert!(error.contains("takes the signature of an admin key"), "{error}");
    let error = log.audit(&old, Some(&key("admin.test"))).unwrap_err().to_string();
    assert!(error.contains("the admin key did not sign that"), "{error}");
    let report = log.audit(&new, Some(&key("admin.test"))).unwrap();
    assert!(report.findings.iter().any(|f| f.what == "wrong_succession"), "{:?}", report.findings);
}

#[test]
fn a_statement_that_does_not_fit_its_log_is_refused() {
    for (change, expected) in [
        ((|s| s.begins = 299) as fn(&mut Statement), "begins at leaf 299"),
        (|s| s.kept.1 = [7; 32], "another than its statement says"),
        (|s| s.kept.0 = 289, "another than its statement says"),
        (|s| s.old = key(ORIGIN).verifier(), "the checkpoint that it keeps"),
        (|s| s.new = key("log.test/three").verifier(), "not signed by"),
    ] {
        let (made, kept) = succeeded(change);
        let error = kept.unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(made.log.audit(&made.old, Some(&made.admin)).is_err());
    }
    // Other leaves than those that were signed for: only the tree shows it.
    let (made, kept) = succeeded(|s| s.root = [7; 32]);
    kept.unwrap();
    let report = made.log.audit(&made.new, Some(&made.admin)).unwrap();
    assert!(report.findings.iter().any(|f| f.what == "wrong_succession"), "{:?}", report.findings);
}

#[test]
fn only_the_exact_form_of_a_statement_is_taken() {
    let (one, two) = (key(ORIGIN).verifier(), key("log.test/two").verifier());
    let seen = (9, [2; 32]);
    let right = Statement { new: two.clone(), begins: 7, root: [1; 32], old: one.clone(), kept: (5, [3; 32]), seen };
    assert_eq!(Statement::parse(&right.text()).unwrap(), right);
    for (text, expected) in [
        (right.text().replace("guard.v1", "guard.v2"), "line 1"),
        (right.text().replace("begins 7", "begins 07"), "only form"),
        (right.text().replace("begins 7", "begins x"), "line 3 is not a number"),
        (right.text().replace("seen-size", "seen"), "line 8"),
        (right.text() + "more\n", "only form"),
        (right.text().replace(&two.vkey(), &one.vkey()), "a name of its own"),
        (right.text().replace("kept-size 5", "kept-size 8"), "before the checkpoint"),
        (String::new(), "line 1"),
    ] {
        let error = Statement::parse(&text).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn a_rotation_and_a_succession_make_one_chain() {
    let (Succeeded { mut log, old, new, admin }, _) = succeeded(|_| {});
    let next = key("log.test/two");
    let store = log.open(Signers::from(again(&new)).with_next(again(&next)).unwrap());
    log.rotate(&store, &new, &next);
    drop(store);
    log.open(again(&new).into_both(&next));
    let report = log.audit(&old, Some(&admin)).unwrap();
    assert!(report.is_ok(), "{:?}", report.findings);
    // What does not lead on from the last is refused.
    let store = log.open(again(&new).into_both(&next));
    let stray = key("log.test/two");
    let body = rotation_body("begun", &new, &stray);
    let ticket = store.append(vec![log.collector.next_of(Kind::KEY_ROTATED, &body)]).unwrap();
    let leaf = ticket.first_leaf();
    ticket.wait().unwrap();
    store.publish().unwrap();
    let (receipt, record) = Receipt::make(&log.folder(), &next.verifier(), leaf).unwrap();
    assert!(store.keep_change(receipt, record).is_err());
}

trait Both {
    fn into_both(self, next: &KeyFile) -> Signers;
}

impl<S: Signer + 'static> Both for S {
    fn into_both(self, next: &KeyFile) -> Signers {
        Signers::from(self).with_next(again(next)).unwrap()
    }
}

proptest::proptest! {
    #[test]
    fn garbage_never_panics(text in "(c2sp.org/tlog-proof@v1\n|extra [A-Z=]{0,20}\n|index [0-9]{1,3}\n|\n|[a-z \u{2014}]{0,20}\n){0,12}") {
        let _ = Changes::parse(text.as_bytes()).is_ok();
        let _ = Statement::parse(&text).is_ok();
    }
}
