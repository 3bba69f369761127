//! The negative corpus as a table: what an attacker does to a served log, and the word and place with which it is found.
//!
//! Attackers here hold the files; where it says so they hold the log's key too, or another. Each row has to be caught by the
//! audit, with the name of what is wrong; a row that is not found fails the test.

use std::fs;

use super::*;
use crate::signer::KeyFile;
use crate::testing::{Log, two_hosts};

/// What the reader remembers from earlier.
enum Earlier {
    Nothing,
    /// The log's own head before the attack.
    Head,
}

/// One attack and the start of the finding or of the error that has to name it.
struct Row {
    attack: &'static str,
    earlier: Earlier,
    call: fn(&Log),
    found: &'static str,
}

const SIZE: usize = 300;

fn write(log: &Log, name: &str, bytes: &[u8]) {
    let _ = fs::remove_file(log.file(name));
    fs::write(log.file(name), bytes).unwrap();
}

/// Puts another log in the place of this one, all files of it.
fn replace(log: &Log, by: &Log) {
    let (root, from) = (log.options().dir.join("log"), by.options().dir.join("log"));
    fs::remove_dir_all(&root).unwrap();
    fs::rename(from, root).unwrap();
}

/// A log of the same key whose host 1 never wrote record 30.
fn fork(log: &Log, size: usize) -> Log {
    let mut records = two_hosts(size + 1);
    records.remove(60);
    Log::of(&log.skey, &[&records])
}

/// The same head, signed by someone else.
fn resign(log: &Log, signer: &KeyFile) {
    let head = log.head();
    let head = Checkpoint { origin: signer.name().to_owned(), ..head };
    write(log, CHECKPOINT, head.sign(signer).unwrap().as_bytes());
}

const PARTIAL: &str = "tile/entries/001.p/44";
const FULL: &str = "tile/entries/000";

const ROWS: &[Row] = &[
    Row {
        attack: "truncate a bundle",
        earlier: Earlier::Nothing,
        found: "malformed_entries: tile/entries/000: ",
        call: |log| log.change(FULL, |bytes| bytes.truncate(bytes.len() - 1)),
    },
    Row {
        attack: "truncate a tile",
        earlier: Earlier::Nothing,
        found: "wrong_tile: tile/0/000: ",
        call: |log| log.change("tile/0/000", |bytes| bytes.truncate(255 * 32)),
    },
    Row {
        attack: "truncate the log to an older size, unsigned",
        earlier: Earlier::Nothing,
        found: "checkpoint: the signature by ",
        call: |log| {
            log.change(CHECKPOINT, |note| {
                *note = String::from_utf8(note.clone()).unwrap().replace("\n300\n", "\n100\n").into_bytes()
            })
        },
    },
    Row {
        attack: "drop an entry",
        earlier: Earlier::Nothing,
        found: "changed_entry: tile/entries/001.p/44, leaves 260 to 299: ",
        call: |log| log.rebundle(PARTIAL, |entries| drop(entries.remove(4))),
    },
    Row {
        attack: "drop the last entry",
        earlier: Earlier::Nothing,
        found: "changed_entry: tile/entries/001.p/44, leaf 299: ",
        call: |log| log.rebundle(PARTIAL, |entries| drop(entries.pop())),
    },
    Row {
        attack: "drop a whole bundle",
        earlier: Earlier::Nothing,
        found: "missing_entries: tile/entries/000: ",
        call: |log| fs::remove_file(log.file(FULL)).unwrap(),
    },
    Row {
        attack: "swap two entries",
        earlier: Earlier::Nothing,
        found: "changed_entry: tile/entries/000, leaf 7: ",
        call: |log| log.rebundle(FULL, |entries| entries.swap(7, 9)),
    },
    Row {
        attack: "splice an entry in",
        earlier: Earlier::Nothing,
        found: "changed_entry: tile/entries/001.p/44, leaves 261 to 299: ",
        call: |log| {
            log.rebundle(PARTIAL, |entries| {
                let copy = entries[4].clone();
                entries.insert(5, copy);
            })
        },
    },
    Row {
        attack: "splice in another host's record for one",
        earlier: Earlier::Nothing,
        found: "changed_entry: tile/entries/000, leaf 12: ",
        call: |log| log.rebundle(FULL, |entries| entries[12] = entries[13].clone()),
    },
    Row {
        attack: "re-sign with another key of the same name",
        earlier: Earlier::Nothing,
        found: "checkpoint: the note is not signed by ",
        call: |log| resign(log, &KeyFile::generate(log.signer().name()).unwrap()),
    },
    Row {
        attack: "re-sign under another name",
        earlier: Earlier::Nothing,
        found: "checkpoint: the note is not signed by ",
        call: |log| resign(log, &KeyFile::generate("elsewhere.test/log").unwrap()),
    },
    Row {
        attack: "fork at size 60, as long, signed by the log",
        earlier: Earlier::Head,
        found: "fork: checkpoint: its first 300 entries ",
        call: |log| replace(log, &fork(log, SIZE)),
    },
    Row {
        attack: "fork at size 60, longer, signed by the log",
        earlier: Earlier::Head,
        found: "fork: checkpoint: its first 300 entries ",
        call: |log| replace(log, &fork(log, SIZE + 99)),
    },
    Row {
        attack: "fork at size 60 for a reader that remembers nothing",
        earlier: Earlier::Nothing,
        found: "gap: leaf 61, ",
        call: |log| replace(log, &fork(log, SIZE)),
    },
    Row {
        attack: "replay an old checkpoint with its files",
        earlier: Earlier::Head,
        found: "rolled_back: checkpoint: it has 200 entries, 300 ",
        call: |log| replace(log, &Log::of(&log.skey, &[&two_hosts(200)])),
    },
    Row {
        attack: "replay an old checkpoint alone",
        earlier: Earlier::Head,
        found: "rolled_back: checkpoint: it has 200 entries, 300 ",
        call: |log| {
            let old = Log::of(&log.skey, &[&two_hosts(200)]);
            write(log, CHECKPOINT, &fs::read(old.file(CHECKPOINT)).unwrap());
        },
    },
    Row {
        attack: "another log under the same name",
        earlier: Earlier::Nothing,
        found: "checkpoint: the note is not signed by ",
        call: |log| replace(log, &Log::new(SIZE)),
    },
    Row {
        attack: "a partial tile that does not match its entries",
        earlier: Earlier::Nothing,
        found: "wrong_tile: tile/0/001.p/44, leaf 257: ",
        call: |log| log.change("tile/0/001.p/44", |bytes| bytes[40] ^= 1),
    },
    Row {
        attack: "a partial tile of another width under its name",
        earlier: Earlier::Nothing,
        found: "wrong_tile: tile/0/001.p/44: ",
        call: |log| log.change("tile/0/001.p/44", |bytes| bytes.truncate(43 * 32)),
    },
    Row {
        attack: "a partial bundle of another width under its name",
        earlier: Earlier::Nothing,
        found: "malformed_entries: tile/entries/001.p/44: ",
        call: |log| {
            log.rebundle(PARTIAL, |entries| {
                let more = entries[3].clone();
                entries.push(more);
            })
        },
    },
    Row {
        attack: "an unsigned checkpoint",
        earlier: Earlier::Nothing,
        found: "checkpoint: not a signed note: ",
        call: |log| {
            let text = log.head().text();
            write(log, CHECKPOINT, text.as_bytes());
        },
    },
    Row {
        attack: "a checkpoint with an empty signature block",
        earlier: Earlier::Nothing,
        found: "checkpoint: not a signed note: ",
        call: |log| {
            let text = log.head().text() + "\n";
            write(log, CHECKPOINT, text.as_bytes());
        },
    },
    Row {
        attack: "a root for the same size that no tile leads to, signed by the log",
        earlier: Earlier::Nothing,
        found: "root_mismatch: checkpoint: ",
        call: |log| {
            let head = Checkpoint { root: [7; 32], ..log.head() };
            write(log, CHECKPOINT, head.sign(&log.signer()).unwrap().as_bytes());
        },
    },
    Row {
        attack: "a size that there are no entries for, signed by the log",
        earlier: Earlier::Nothing,
        found: "missing_entries: tile/entries/001.p/45: ",
        call: |log| {
            let head = Checkpoint { size: 301, ..log.head() };
            write(log, CHECKPOINT, head.sign(&log.signer()).unwrap().as_bytes());
        },
    },
    Row {
        attack: "no checkpoint",
        earlier: Earlier::Nothing,
        found: "the source has no checkpoint",
        call: |log| fs::remove_file(log.file(CHECKPOINT)).unwrap(),
    },
];

/// A log after an attack, and what its reader remembers.
fn attacked(row: &Row) -> (Log, AuditOptions) {
    let log = Log::new(SIZE);
    let previous = match row.earlier {
        Earlier::Nothing => None,
        Earlier::Head => Some(log.head()),
    };
    let (key, options) = (log.signer().verifier(), AuditOptions { previous, ..AuditOptions::default() });
    assert!(audit(&log.folder(), &key, &options, &mut |_, _| {}).unwrap().is_ok(), "before {}", row.attack);
    (row.call)(&log);
    (log, options)
}

fn errors(findings: &[Finding]) -> Vec<String> {
    findings.iter().filter(|f| f.severity == Severity::Error).map(Finding::to_string).collect()
}

#[test]
fn every_attack_of_the_corpus_is_caught_and_named() {
    for row in ROWS {
        let (log, options) = attacked(row);
        let said = match audit(&log.folder(), &log.signer().verifier(), &options, &mut |_, _| {}) {
            Ok(report) => errors(&report.findings),
            Err(error) => vec![error.to_string()],
        };
        assert!(said.iter().any(|said| said.starts_with(row.found)), "{}: {said:#?}", row.attack);
    }
}

#[test]
fn every_attack_of_the_corpus_is_caught_in_a_copied_folder_too() {
    for row in ROWS {
        let (log, AuditOptions { previous, .. }) = attacked(row);
        let (key, blobs) = (log.signer().verifier(), Blobs { max: 0, said: |_| None });
        let options = DirOptions { key: Some(&key), admin: None, previous, lock: Some(log.options().lock), blobs };
        let report = LogDir::open(&log.options().dir).unwrap().audit(&options);
        let said = errors(&report.findings);
        // What is the end of `audit` is a finding here, with the same words.
        assert!(said.iter().any(|said| said.contains(row.found)), "{}: {said:#?}", row.attack);
    }
}
