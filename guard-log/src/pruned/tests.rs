//! What pruning takes away and what stays provable; marks that nobody may believe; stops between the steps.

use std::fs;
use std::time::{Duration, SystemTime};

use super::*;
use crate::proof::{Growth, RecordId, find_record};
use crate::record::{Epoch, Record};
use crate::signer::KeyFile;
use crate::store::{Store, StoreError, StoreOptions};
use crate::testing::{Host, Log, ORIGIN, two_hosts};
use crate::verify::{Blobs, DirOptions, LogDir, Severity};

const FIRST: u64 = 512;

fn varint(mut number: u64, to: &mut Vec<u8>) {
    while number > 127 {
        to.push(number as u8 | 128);
        number >>= 7;
    }
    to.push(number as u8);
}

/// As protobuf writes it.
fn body(first: u64, previous: u64) -> Vec<u8> {
    let mut inner = vec![8];
    varint(first, &mut inner);
    inner.push(16);
    varint(previous, &mut inner);
    inner.extend([26, 4]);
    inner.extend(b"30 d");
    let mut body = vec![0xaa, 2, inner.len() as u8];
    body.extend(inner);
    body
}

fn options(log: &Log) -> StoreOptions {
    StoreOptions { segment_bytes: 20_000, ..log.options() }
}

fn open(log: &Log) -> Store {
    Store::open(options(log), log.signer()).unwrap().0
}

fn say(store: &Store, record: Record) -> u64 {
    let ticket = store.append(vec![record]).unwrap();
    let leaf = ticket.first_leaf();
    ticket.wait().unwrap();
    store.publish().unwrap();
    leaf
}

/// 1500 records of two hosts, the collector's first one, nothing old in the write-ahead segments.
fn filled() -> (Log, Store, Host) {
    let skey = KeyFile::generate(ORIGIN).unwrap().skey().to_string();
    let (log, mut collector) = (Log::of(&skey, &[]), Host::new(9));
    let store = open(&log);
    say(&store, collector.next_of(Kind::COLLECTOR_START, b"start"));
    for group in two_hosts(1500).chunks(100) {
        store.append(group.to_vec()).unwrap().wait().unwrap();
        store.publish().unwrap();
    }
    assert!(store.prune_segments(Duration::ZERO).unwrap() > 0);
    (log, store, collector)
}

fn prune(log: &Log, store: &Store, record: Record) -> Result<u64, StoreError> {
    let leaf = say(store, record);
    let (receipt, record) = Receipt::make(&log.folder(), &log.signer().verifier(), leaf).unwrap();
    store.prune(receipt, record)
}

fn pruned() -> (Log, Store) {
    let (log, store, mut collector) = filled();
    assert_eq!(prune(&log, &store, collector.next_of(Kind::ENTRIES_PRUNED, &body(FIRST, 0))).unwrap(), 2);
    (log, store)
}

fn errors(log: &Log) -> Vec<String> {
    let findings = log.audit_after(None).findings;
    findings.iter().filter(|f| f.severity != Severity::Information).map(ToString::to_string).collect()
}

#[test]
fn old_receipts_and_growth_hold_after_pruning_and_the_audit_says_what_is_gone() {
    let (log, store, mut collector) = filled();
    let (key, before) = (log.signer().verifier(), log.head());
    let (receipt, record) = Receipt::make(&log.folder(), &key, 7).unwrap();
    prune(&log, &store, collector.next_of(Kind::ENTRIES_PRUNED, &body(FIRST, 0))).unwrap();
    assert!(!log.file("tile/entries/001").exists() && log.file("tile/entries/002").exists());

    receipt.verify(&record, &key).unwrap();
    let note = String::from_utf8(fs::read(log.file("checkpoint")).unwrap()).unwrap();
    let growth = Growth::make(&log.folder(), store.size(), before.size, &note, &log.head()).unwrap();
    growth.verify(&before, &key).unwrap();

    let report = log.audit_after(Some(before));
    assert!(report.is_ok(), "{:#?}", report.findings);
    assert_eq!((report.entries, report.findings.len()), (store.size() - FIRST, 1));
    assert!(report.findings[0].to_string().contains("512 could not be checked: entries below leaf 512 were pruned by"));
    assert_eq!(report.hosts.iter().map(|h| h.records).sum::<u64>(), store.size() - FIRST);
    let blobs = Blobs { max: 1, said: |_| None };
    let options = DirOptions { key: Some(&key), admin: None, previous: None, lock: Some(log.options().lock), blobs };
    let report = LogDir::open(&log.options().dir).unwrap().audit(&options);
    assert_eq!((report.count(Severity::Error), report.count(Severity::Unchecked)), (0, 0), "{:#?}", report.findings);
}

#[test]
fn what_was_pruned_is_refused_by_name_and_the_rest_is_read() {
    let (log, store) = pruned();
    let refused = store.read(FIRST - 1, 1, 1 << 20).unwrap_err().to_string();
    assert!(refused.contains("leaf 511") && refused.contains("pruned by record 1501"), "{refused}");
    assert_eq!(store.read(FIRST, 1, 1 << 20).unwrap().len(), 1);
    let key = log.signer().verifier();
    let refused = Receipt::make(&log.folder(), &key, 3).unwrap_err().to_string();
    assert!(refused.contains("pruned by record 1501"), "{refused}");
    let id = |seq| RecordId { host: HostId([1; 16]), epoch: Epoch([101; 16]), seq };
    let kept = find_record(&log.folder(), &id(400), store.size()).unwrap();
    assert_eq!(kept, Some(801));
    let gone = find_record(&log.folder(), &id(1), store.size()).unwrap_err().to_string();
    assert!(gone.contains("not among the records that are kept"), "{gone}");
}

#[test]
fn a_missing_bundle_that_the_record_does_not_cover_stays_an_error() {
    let (log, _store) = pruned();
    fs::remove_file(log.file("tile/entries/002")).unwrap();
    assert!(errors(&log)[0].starts_with("missing_entries: tile/entries/002"), "{:?}", errors(&log));
    fs::remove_file(log.file("pruned")).unwrap();
    assert_eq!(errors(&log).len(), 3);
}

#[test]
fn forged_marks_explain_nothing_and_no_store_opens_on_them() {
    let (log, store) = pruned();
    store.close();
    drop(store);
    let text = fs::read(log.file("pruned")).unwrap();
    let (_, right) = Pruned::parse(&text).unwrap();
    let mut forger = Host::new(9);
    let mut higher = right.clone();
    higher.extra = Some(forger.next_of(Kind::ENTRIES_PRUNED, &body(FIRST + 256, 0)).bytes().to_vec());
    let moved = Receipt { index: 1000, ..right.clone() };
    let nothing = Receipt { extra: None, ..right };
    fs::remove_file(log.file("tile/entries/002")).unwrap();
    for forged in [higher, moved, nothing] {
        fs::write(log.file("pruned"), forged.to_string()).unwrap();
        let errors = errors(&log);
        assert!(errors[0].starts_with("wrong_mark: pruned: "), "{errors:?}");
        assert_eq!(errors.iter().filter(|e| e.starts_with("missing_entries")).count(), 3, "{errors:?}");
        let refused = Store::open(options(&log), log.signer()).unwrap_err().to_string();
        assert!(refused.contains("/pruned ") && refused.contains("put the right copy back"), "{refused}");
    }
}

#[test]
fn a_mark_that_a_host_wrote_is_not_the_collectors() {
    let (log, store, _) = filled();
    let mut host = Host::new(1);
    for _ in 0..750 {
        host.next();
    }
    // Admission refuses such a record; here is a log that took it.
    prune(&log, &store, host.next_of(Kind::ENTRIES_PRUNED, &body(FIRST, 0))).unwrap();
    let errors = errors(&log);
    assert!(errors.iter().any(|e| e.starts_with("wrong_mark") && e.contains("is not the collector")), "{errors:?}");
}

#[test]
fn a_stop_between_the_steps_loses_nothing_and_is_completed() {
    let (log, store, mut collector) = filled();
    // After the record: nothing is gone, and another record may follow.
    let leaf = say(&store, collector.next_of(Kind::ENTRIES_PRUNED, &body(FIRST, 0)));
    drop(store);
    let store = open(&log);
    assert_eq!((store.first(), store.finish_pruning().unwrap()), (0, 0));
    assert!(errors(&log).is_empty());
    // After the file, and after one bundle.
    let (mut receipt, record) = Receipt::make(&log.folder(), &log.signer().verifier(), leaf).unwrap();
    receipt.extra = Some(record);
    drop(store);
    fs::write(log.file("pruned"), receipt.to_string()).unwrap();
    fs::remove_file(log.file("tile/entries/000")).unwrap();
    let store = open(&log);
    assert!(errors(&log).is_empty());
    assert_eq!((store.first(), store.finish_pruning().unwrap()), (FIRST, 1));
    assert!(!log.file("tile/entries/001").exists());
    assert_eq!(store.finish_pruning().unwrap(), 0);
    // And goes on from there.
    assert_eq!(prune(&log, &store, collector.next_of(Kind::ENTRIES_PRUNED, &body(768, FIRST))).unwrap(), 1);
    assert!(errors(&log).is_empty(), "{:?}", errors(&log));
}

#[test]
fn only_old_bundles_go_and_none_that_a_segment_or_the_edge_holds() {
    let (log, store, mut collector) = filled();
    let later = SystemTime::now() + Duration::from_secs(60);
    assert_eq!(store.older(SystemTime::now() - Duration::from_secs(60), u64::MAX).unwrap(), 0);
    assert_eq!(store.older(later, 600).unwrap(), FIRST);
    assert_eq!(store.older(later, u64::MAX).unwrap(), 1024);
    let refused = prune(&log, &store, collector.next_of(Kind::ENTRIES_PRUNED, &body(1024 - 256, 256))).unwrap_err();
    assert!(refused.to_string().contains("nothing was pruned"), "{refused}");
    assert!(log.file("tile/entries/000").exists() && !log.file("pruned").exists());
    // A record that says too much is never carried out.
    for _ in 0..30 {
        say(&store, collector.next_of(Kind::ADMIT_FINDING, b""));
    }
    let refused = prune(&log, &store, collector.next_of(Kind::ENTRIES_PRUNED, &body(1280, 0))).unwrap_err();
    assert!(refused.to_string().contains("is needed"), "{refused}");
}
