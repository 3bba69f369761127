//! Receipts from real logs hold, and nothing else does; two other implementations agree.

use std::fs;

use proptest::prelude::*;
use tlog_tiles::tlog as theirs;

use super::*;
use crate::signer::KeyFile;
use crate::testing::{Log, two_hosts};
use crate::verify::Folder;

fn folder(log: &Log) -> Folder {
    log.folder()
}

fn theirs_hash(hash: &Hash) -> theirs::Hash {
    theirs::Hash(*hash)
}

#[test]
fn receipts_of_every_leaf_hold_offline_and_come_back_as_text() {
    for size in [1, 2, 255, 256, 257, 600] {
        let log = Log::new(size);
        let (source, key) = (folder(&log), log.signer().verifier());
        for leaf in (0..size as u64).step_by(if size > 300 { 7 } else { 1 }) {
            let (receipt, entry) = Receipt::make(&source, &key, leaf).unwrap();
            let again = Receipt::parse(&receipt.to_string()).unwrap();
            assert_eq!(again, receipt);
            assert_eq!(again.verify(&entry, &key).unwrap(), log.head());
            // Another implementation checks the same hashes.
            let head = log.head();
            let proof: Vec<_> = receipt.hashes.iter().map(theirs_hash).collect();
            theirs::check_record(&proof, head.size, theirs_hash(&head.root), leaf, theirs::record_hash(&entry))
                .unwrap();
        }
        assert!(matches!(Receipt::make(&source, &key, size as u64), Err(ReceiptError::Range(_))));
    }
}

#[test]
fn a_receipt_holds_for_its_record_leaf_and_key_alone() {
    let log = Log::new(300);
    let (source, key) = (folder(&log), log.signer().verifier());
    let (receipt, entry) = Receipt::make(&source, &key, 17).unwrap();
    let (other, _) = Receipt::make(&source, &key, 18).unwrap();
    let stranger = KeyFile::generate(key.name()).unwrap().verifier();
    assert!(matches!(receipt.verify(b"another record", &key), Err(ReceiptError::Wrong { index: 17, size: 300, .. })));
    assert!(matches!(other.verify(&entry, &key), Err(ReceiptError::Wrong { .. })));
    assert!(matches!(receipt.verify(&entry, &stranger), Err(ReceiptError::Checkpoint(_))));
    for changed in [
        Receipt { index: 16, ..receipt.clone() },
        Receipt { index: u64::MAX, ..receipt.clone() },
        Receipt { hashes: receipt.hashes[1..].to_vec(), ..receipt.clone() },
        Receipt { hashes: other.hashes.clone(), ..receipt.clone() },
        Receipt { note: receipt.note.replace("\n300\n", "\n301\n"), ..receipt.clone() },
    ] {
        assert!(changed.verify(&entry, &key).is_err());
    }
}

#[test]
fn extra_data_is_kept_and_does_not_matter() {
    let log = Log::new(5);
    let key = log.signer().verifier();
    let (mut receipt, entry) = Receipt::make(&folder(&log), &key, 2).unwrap();
    receipt.extra = Some(b"anything".to_vec());
    let again = Receipt::parse(&receipt.to_string()).unwrap();
    assert_eq!(again.extra.as_deref(), Some(b"anything".as_slice()));
    assert!(again.verify(&entry, &key).is_ok());
}

#[test]
fn a_file_that_is_not_exactly_the_format_names_its_line() {
    let log = Log::new(3);
    let text = Receipt::make(&folder(&log), &log.signer().verifier(), 1).unwrap().0.to_string();
    let many =
        text.replacen("index 1\n", &format!("index 1\n{}", format!("{}\n", STANDARD.encode([0; 32])).repeat(63)), 1);
    for (text, line) in [
        (String::new(), "line 1"),
        (text.replacen("v1", "v2", 1), "line 1"),
        (text.replacen("index 1", "index 01", 1), "line 2"),
        (text.replacen("index 1", "index -1", 1), "line 2"),
        (text.replacen("index", "extra ?\nindex", 1), "line 2"),
        (text.replacen("index 1\n", "index 1\nAAAA\n", 1), "line 3"),
        (many, "line 66"),
        (text.split("\n\n").next().unwrap().to_owned() + "\n", "line 5"),
    ] {
        let error = Receipt::parse(&text).unwrap_err().to_string();
        assert!(error.contains(line), "{error} does not name {line}:\n{text}");
    }
}

#[test]
fn tiles_that_do_not_lead_to_the_root_make_no_receipt() {
    let log = Log::new(300);
    let key = log.signer().verifier();
    log.change("tile/0/000", |bytes| bytes[40] ^= 1);
    assert!(matches!(Receipt::make(&folder(&log), &key, 3), Err(ReceiptError::Tiles(_))));
    fs::remove_file(log.file("tile/0/000")).unwrap();
    let error = Receipt::make(&folder(&log), &key, 3).unwrap_err();
    assert_eq!(error.to_string(), "tile/0/000 is missing: the proof cannot be made");
    fs::remove_file(log.file("tile/entries/000")).unwrap();
    let error = Receipt::make(&folder(&log), &key, 3).unwrap_err();
    assert_eq!(error.to_string(), "tile/entries/000 is missing: the proof cannot be made");
}

#[test]
fn growth_is_proved_and_a_rewritten_log_is_not() {
    let records = two_hosts(700);
    let newer = Log::new(700);
    let (source, key) = (folder(&newer), newer.signer().verifier());
    let (note, head) = head(&source, &key).unwrap();
    for old in [0, 1, 2, 100, 255, 256, 257, 512, 699, 700] {
        let older = Log::of(&newer.skey, &[&records[..old]]).head();
        let growth = Growth::make(&source, 700, older.size, &note, &head).unwrap();
        let again = Growth::parse(&growth.to_string()).unwrap();
        assert_eq!((again.verify(&older, &key).unwrap(), again), (head.clone(), growth.clone()));
        if old > 0 {
            let proof: Vec<_> = growth.hashes.iter().map(theirs_hash).collect();
            let (root, old_root) = (theirs_hash(&head.root), theirs_hash(&older.root));
            theirs::check_tree(&proof, head.size, root, older.size, old_root).unwrap();
        }
    }
    let mut other = records.clone();
    other.remove(60);
    let forked = Log::of(&newer.skey, &[&other[..300]]).head();
    let growth = Growth::make(&source, 700, 300, &note, &head).unwrap();
    let error = growth.verify(&forked, &key).unwrap_err();
    assert!(matches!(error, ReceiptError::Rewritten { old: 300, size: 700, .. }), "{error}");
    // Between two older heads, from the tiles of the log as it is now.
    let middle = Log::of(&newer.skey, &[&records[..300]]);
    let (note, middle) = (fs::read_to_string(middle.file(CHECKPOINT)).unwrap(), middle.head());
    let older = Log::of(&newer.skey, &[&records[..77]]).head();
    assert_eq!(Growth::make(&source, 700, 77, &note, &middle).unwrap().verify(&older, &key).unwrap(), middle);
    assert!(matches!(Growth::make(&source, 299, 77, &note, &middle), Err(ReceiptError::Range(_))));
    assert!(matches!(Growth::make(&source, 700, 701, &note, &head), Err(ReceiptError::Range(_))));
}

#[test]
fn a_record_is_found_by_its_name() {
    let log = Log::new(600);
    let source = folder(&log);
    let id: RecordId = format!("{}/{}/{}", "02".repeat(16), "66".repeat(16), 150).parse().unwrap();
    assert_eq!(find_record(&source, &id, 600).unwrap(), Some(301));
    assert_eq!(find_record(&source, &id, 301).unwrap(), None);
    assert_eq!(find_record(&source, &RecordId { seq: 300, ..id }, 600).unwrap(), None);
    assert_eq!(id.to_string().parse(), Ok(id));
    for text in ["", "00/00/1", &format!("{}/{}/x", "02".repeat(16), "66".repeat(16)), &format!("{id}/1")] {
        assert!(text.parse::<RecordId>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(text in "(c2sp.org/tlog-proof@v1\n)?(index [0-9]{1,20}\n)?[ -~\n]{0,200}", index in any::<u64>()) {
        let key = KeyFile::generate("o").unwrap().verifier();
        if let Ok(receipt) = Receipt::parse(&text) {
            let _ = receipt.verify(b"", &key).is_ok();
        }
        let _ = Growth::parse(&format!("old {index}\n{text}")).is_ok();
    }
}
