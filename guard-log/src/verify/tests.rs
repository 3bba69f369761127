//! Each kind of tampering is found, with a message that says where. Logs are real ones, made by the store.

use std::fs;
use std::path::Path;

use super::*;
use crate::record::{Epoch, HostId, Kind};
use crate::signer::KeyFile;
use crate::testing::{Host, Log, ORIGIN, SKEY, two_hosts};
use crate::tiles::{split_entries, subtree};
use crate::tree::{Hash, leaf_hash};

fn starts(findings: &[String], expected: &[&str]) {
    assert_eq!(findings.len(), expected.len(), "{findings:#?}");
    for (finding, start) in findings.iter().zip(expected) {
        assert!(finding.starts_with(start), "{finding:?} does not start with {start:?}");
    }
}

#[test]
fn a_log_that_is_right_has_no_findings_at_any_size() {
    for size in [0, 1, 2, 99, 255, 256, 257, 600] {
        let log = Log::new(size);
        let report = log.audit_after(Some(log.head()));
        assert!(report.is_ok() && report.findings.is_empty(), "{size}: {:#?}", report.findings);
        assert_eq!((report.checkpoint.size, report.entries), (size as u64, size as u64));
        let counted: u64 = report.hosts.iter().map(|h| h.records).sum();
        assert_eq!(counted, size as u64);
        assert!(report.hosts.iter().all(|h| h.first_seq == 0 && h.next_seq == h.records));
    }
}

#[test]
fn a_changed_byte_is_found_in_every_entry() {
    let log = Log::new(300);
    for (name, place, leaf) in
        [("tile/entries/000", 5, 5), ("tile/entries/000", 255, 255), ("tile/entries/001.p/44", 43, 299)]
    {
        let before = fs::read(log.file(name)).unwrap();
        log.rebundle(name, |entries| *entries[place].last_mut().unwrap() ^= 1);
        starts(&log.findings(), &[&format!("changed_entry: {name}, leaf {leaf}: ")]);
        log.change(name, |bytes| *bytes = before);
    }
    assert!(log.findings().is_empty());
}

#[test]
fn a_dropped_entry_is_found_where_it_was() {
    let log = Log::new(300);
    log.rebundle("tile/entries/000", |entries| drop(entries.remove(17)));
    let expected = ["malformed_entries: tile/entries/000: ", "changed_entry: tile/entries/000, leaves 17 to 255: "];
    starts(&log.findings(), &expected);
}

#[test]
fn swapped_entries_are_both_named() {
    let log = Log::new(300);
    log.rebundle("tile/entries/001.p/44", |entries| entries.swap(2, 40));
    let expected =
        ["changed_entry: tile/entries/001.p/44, leaf 258: ", "changed_entry: tile/entries/001.p/44, leaf 296: "];
    starts(&log.findings(), &expected);
}

#[test]
fn wrong_tiles_are_named_and_entries_are_not_blamed() {
    for (name, at, expected) in [
        ("tile/0/000", 40, "wrong_tile: tile/0/000: "),
        ("tile/0/001.p/44", 40, "wrong_tile: tile/0/001.p/44, leaf 257: "),
        ("tile/1/000.p/1", 3, "wrong_tile: tile/1/000.p/1: "),
    ] {
        let log = Log::new(300);
        log.change(name, |bytes| bytes[at] ^= 1);
        starts(&log.findings(), &[expected]);
    }
}

#[test]
fn a_wrong_tile_does_not_hide_a_changed_entry() {
    let log = Log::new(300);
    log.change("tile/0/000", |bytes| bytes[40] ^= 1);
    log.rebundle("tile/entries/000", |entries| *entries[9].last_mut().unwrap() ^= 1);
    let found = log.findings();
    assert!(found.iter().any(|f| f.starts_with("wrong_tile: tile/0/000: ")), "{found:#?}");
    assert!(found.iter().any(|f| f.starts_with("changed_entry: tile/entries/000, leaves 0 to 255: ")), "{found:#?}");
    // And with every hash above it changed to match, the signature still does not.
    let log = Log::new(300);
    log.rebundle("tile/entries/000", |entries| *entries[9].last_mut().unwrap() ^= 1);
    let bundle = fs::read(log.file("tile/entries/000")).unwrap();
    let hashes: Vec<Hash> = split_entries(&bundle, 256).0.iter().map(|entry| leaf_hash(entry)).collect();
    log.change("tile/0/000", |bytes| *bytes = hashes.concat());
    log.change("tile/1/000.p/1", |bytes| *bytes = subtree(&hashes).to_vec());
    assert!(log.findings().iter().any(|f| f.starts_with("root_mismatch: checkpoint: ")));
}

#[test]
fn what_is_missing_is_named() {
    for (name, expected) in [
        ("tile/0/000", vec!["missing_tile: tile/0/000: "]),
        ("tile/1/000.p/1", vec!["missing_tile: tile/1/000.p/1: "]),
        ("tile/entries/000", vec!["missing_entries: tile/entries/000: "]),
    ] {
        let log = Log::new(300);
        fs::remove_file(log.file(name)).unwrap();
        starts(&log.findings(), &expected);
    }
}

#[test]
fn a_changed_checkpoint_is_not_opened() {
    let log = Log::new(10);
    let source = log.folder();
    let run = |key: &Verifier| audit(&source, key, &AuditOptions::default(), &mut |_, _| {});
    let stranger = KeyFile::generate(ORIGIN).unwrap().verifier();
    assert!(matches!(run(&stranger), Err(VerifyError::Trust(_))));
    log.change(CHECKPOINT, |bytes| bytes[15] ^= 1);
    assert!(matches!(run(&log.signer().verifier()), Err(VerifyError::Trust(_))));
    fs::remove_file(log.file(CHECKPOINT)).unwrap();
    assert!(matches!(run(&log.signer().verifier()), Err(VerifyError::NoCheckpoint)));
}

#[test]
fn a_stale_checkpoint_is_found_by_the_one_verified_earlier() {
    let newer = Log::new(300);
    let older = Log::of(&newer.skey, &[&two_hosts(200)]);
    let found = older.audit_after(Some(newer.head())).findings;
    assert_eq!((found.len(), found[0].what, found[0].where_.as_str()), (1, "rolled_back", CHECKPOINT));
    assert!(found[0].detail.contains("200 entries, 300 were verified"));
    assert!(newer.audit_after(Some(older.head())).is_ok());
}

#[test]
fn a_forked_log_is_found_by_the_one_verified_earlier() {
    let log = Log::new(300);
    let mut other = two_hosts(400);
    other.remove(60);
    for size in [300, 399] {
        let fork = Log::of(&log.skey, &[&other[..size]]);
        let found = fork.audit_after(Some(log.head())).findings;
        let fork_found = found.iter().find(|f| f.what == "fork").unwrap();
        assert!(fork_found.detail.contains("first 300 entries"), "{fork_found}");
        // Without the earlier checkpoint the host's chain still tells.
        let expected = format!("gap: leaf 61, host {}, epoch {}: records 30 to 30", HostId([1; 16]), Epoch([101; 16]));
        starts(&fork.findings(), &[&expected]);
    }
    let elsewhere = Log::of(SKEY, &[&two_hosts(300)]);
    assert!(elsewhere.audit_after(Some(log.head())).findings.iter().any(|f| f.what == "other_log"));
}

#[test]
fn gaps_repeats_and_broken_chains_that_were_signed_are_found() {
    let skey = KeyFile::generate(ORIGIN).unwrap().skey().to_string();
    let mut host = Host::new(1);
    let mut records: Vec<Record> = (0..10).map(|_| host.next()).collect();
    let (lost, mut others) = (records.remove(4), Host::new(1));
    others.seq = 10;
    records.extend([lost, others.next()]);
    let found = Log::of(&skey, &[&records]).findings();
    let expected = ["gap: leaf 4, ", "repeat: leaf 9, ", "chain_break: leaf 10, "];
    starts(&found, &expected);
    let mut late = Host::new(3);
    late.seq = 7;
    starts(&Log::of(&skey, &[&[late.next()]]).findings(), &["gap: leaf 0, host 03030303030303030303030303030303, "]);
}

#[test]
fn an_admitted_gap_is_information_and_only_that_gap() {
    let skey = KeyFile::generate(ORIGIN).unwrap().skey().to_string();
    for (named, ok) in [(3, true), (2, false)] {
        let (mut host, mut collector) = (Host::new(1), Host::new(9));
        let mut inner = vec![0x0a, 16];
        inner.extend([1; 16]);
        inner.extend([0x12, 16]);
        inner.extend([101; 16]);
        inner.extend([0x1a, 3, b'g', b'a', b'p', 0x20, named, 0x28, 5]);
        let mut body = vec![0x8a, 0x02, inner.len() as u8];
        body.extend(inner);
        let admission = collector.next_of(Kind::ADMIT_FINDING, &body);
        let mut records: Vec<Record> = (0..3).map(|_| host.next()).collect();
        let _lost = (host.next(), host.next());
        records.extend([admission, host.next(), host.next()]);
        let report = Log::of(&skey, &[&records]).audit_after(None);
        assert_eq!((report.findings.len(), report.is_ok()), (1, ok));
        assert_eq!(report.findings[0].what, if ok { "admitted_gap" } else { "gap" });
        assert!(report.findings[0].detail.contains("records 3 to 4"), "{}", report.findings[0]);
    }
}

#[test]
fn findings_are_bounded_and_said_to_be() {
    let skey = KeyFile::generate(ORIGIN).unwrap().skey().to_string();
    let records: Vec<Record> = (0..1500).map(|_| Host::new(1).next()).collect();
    let report = Log::of(&skey, &[&records]).audit_after(None);
    assert_eq!(report.findings.len(), 1001);
    assert!(report.findings[1000].detail.contains("499 more"));
}

#[test]
fn a_log_of_three_levels_is_audited_and_its_tiles_judged() {
    let log = Log::new(66_000);
    assert!(log.audit_after(None).findings.is_empty());
    assert!(Path::new(&log.file("tile/1/000")).is_file());
    log.change("tile/1/000", |bytes| bytes[5] ^= 1);
    starts(&log.findings(), &["wrong_tile: tile/1/000: "]);
    log.change("tile/1/000", |bytes| bytes[5] ^= 1);
    log.rebundle("tile/entries/200", |entries| entries[3].push(0));
    starts(&log.findings(), &["changed_entry: tile/entries/200, leaf 51203: "]);
}
