//! What is driven: a journal with acknowledgements and new segments, a log that is published over a full tile.
//!
//! Says each thing on a line of its own as soon as it is promised: what it has said must be there whatever happens next.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use guard_log::journal::{Entry, Journal, JournalOptions};
use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
use guard_log::signer::KeyFile;
use guard_log::store::{Store, StoreOptions};

/// Names the folder; only a child process has it.
pub const FOLDER: &str = "GUARD_FAULT_FOLDER";
pub const HOST: HostId = HostId([9; 16]);
/// Records appended to the journal, and groups and their records appended to the log.
const RECORDS: u64 = 14;
const GROUPS: u64 = 3;
pub const GROUP: u64 = 100;

pub fn journal_options(dir: &Path) -> JournalOptions {
    JournalOptions {
        dir: dir.join("journal"),
        segment_bytes: 2048,
        max_bytes: 1 << 20,
        reserve_bytes: 1000,
        session_percent: 100,
        keep: std::time::Duration::ZERO,
        require_real_disk: false,
    }
}

pub fn store_options(dir: &Path) -> StoreOptions {
    StoreOptions { dir: dir.join("data"), lock: dir.join("lock/head"), segment_bytes: 20_000, require_real_disk: false }
}

/// The same key in every process of a folder; made before anything fails.
pub fn signer(dir: &Path) -> KeyFile {
    KeyFile::from_skey(&std::fs::read_to_string(dir.join("key")).unwrap()).unwrap()
}

pub fn entry(number: u64) -> Entry {
    let body = format!("record {number} {}", "x".repeat(280)).into_bytes();
    Entry { kind: Kind::EXEC, session: SessionId::NONE, boot_ns: 1, wall_unix_ns: 2, body }
}

/// Leaf of the log, by its number.
pub fn leaf(number: u64, prev: [u8; 32]) -> Record {
    let header = Header {
        version: 1,
        kind: Kind::EXEC,
        host: HostId([1; 16]),
        epoch: Epoch([2; 16]),
        seq: number,
        prev,
        boot_ns: 0,
        wall_unix_ns: 0,
        session: SessionId::NONE,
    };
    Record::seal(&header, format!("body {number}").as_bytes()).unwrap()
}

/// The first `count` leaves.
pub fn leaves(count: u64) -> Vec<Record> {
    let mut prev = [0; 32];
    let next = |number| {
        let record = leaf(number, prev);
        prev = record.digest();
        record
    };
    (0..count).map(next).collect()
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn drive_journal(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (journal, report) = Journal::open(journal_options(dir), HOST)?;
    if report.created {
        say(&format!("epoch {}", journal.state().epoch));
    }
    for number in 0..RECORDS {
        let done = if number % 4 == 3 {
            let (sender, receiver) = std::sync::mpsc::channel();
            journal.append_then(entry(number), move |done| drop(sender.send(done)));
            receiver.recv()??
        } else {
            journal.append(entry(number))?.wait()?
        };
        say(&format!("journal {} {}", done.seq, hex(&done.digest)));
        if number % 5 == 4 {
            // From here on the journal need not keep what is below. What failed is said, and nothing is lost by it.
            say(&format!("acknowledged {}", done.seq));
            if let Err(error) = journal.acknowledge(done.seq) {
                say(&format!("error {error}"));
            }
        }
    }
    journal.read(RECORDS - 1, 10, 10_000)?;
    journal.close();
    Ok(())
}

fn drive_store(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let options = store_options(dir);
    Store::create(&options, &signer(dir))?;
    say("created");
    let (store, _) = Store::open(options, signer(dir))?;
    let leaves = leaves(GROUPS * GROUP);
    for group in leaves.chunks(GROUP as usize) {
        let ticket = store.append(group.to_vec())?;
        let first = ticket.first_leaf();
        ticket.wait()?;
        say(&format!("leaves {}", first + group.len() as u64));
        // A publication that failed is tried again, as the collector does.
        match store.publish() {
            Ok(_) => say(&format!("published {}", store.published().0)),
            Err(error) => say(&format!("error {error}")),
        }
    }
    store.publish()?;
    store.close();
    Ok(())
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
#[ignore = "runs as a child process of another test"]
fn driver() {
    let Some(dir) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    say("ready");
    let _ = std::io::stdin().lock().read_line(&mut String::new());
    for drive in [drive_journal, drive_store] {
        if let Err(error) = drive(&dir) {
            say(&format!("error {error}"));
        }
    }
    say("end");
}
