//! The daemon's way of a record to the disk, blob first: every call on it fails once, and is the last one of a process that is
//! killed. `strace` does it, from outside, to a process of its own, as in `guard-log/tests/faults`.
//!
//! What was promised is there with its blob, no record names a blob that is not there, and the next start goes on.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use guard_log::journal::{Entry, Journal, JournalError, JournalOptions};
use guard_log::record::{HostId, Kind, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Exec, ExecFacts, RecordBody};

use super::*;

#[path = "../../../guard-log/tests/faults/strace.rs"]
mod strace;

/// Names the folder; only a child process has it.
const PLACE: &str = "GUARD_BLOB_FAULT_FOLDER";
const ROOM: Room = Room { max_bytes: 1 << 20, session_percent: 100 };
const SESSION: SessionId = SessionId([3; 16]);
/// Execs that the driver keeps.
const EXECS: u8 = 8;
const CALLS: &str = "openat,write,pwrite64,fdatasync,fsync,rename,unlink,mkdir,getdents64,statx";

fn journal(dir: &Path) -> Result<Journal, JournalError> {
    let options = JournalOptions {
        dir: dir.join("journal"),
        segment_bytes: 2048,
        max_bytes: 1 << 20,
        reserve_bytes: 1000,
        session_percent: 100,
        keep: Duration::ZERO,
        require_real_disk: false,
    };
    // The lock of a process that has just ended.
    for _ in 0..400 {
        match Journal::open(options.clone(), HostId([9; 16])) {
            Err(JournalError::InUse(_)) => std::thread::sleep(Duration::from_millis(5)),
            other => return other.map(|(journal, _)| journal),
        }
    }
    Err(JournalError::InUse(options.dir))
}

fn blobs(dir: &Path, journal: &Journal) -> io::Result<Blobs> {
    Blobs::open(&dir.join("journal"), ROOM, journal.state().next_seq)
}

fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// As an exec is recorded: blob, record, and only then is it promised.
fn drive(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let journal = journal(dir)?;
    let blobs = blobs(dir, &journal)?;
    for number in 0..EXECS {
        let blob = Blob { salt: vec![number; 32], argv: vec![vec![number; 300]], secrets: Vec::new() };
        let id = match blobs.put(SESSION, &blob) {
            Ok(id) => id,
            // The exec is denied.
            Err(error) => {
                say(&format!("error {error}"));
                continue;
            }
        };
        let facts = ExecFacts { blob_sha256: id.to_vec(), ..ExecFacts::default() };
        let body = Body::Exec(Exec { facts: Some(facts), ..Exec::default() });
        let body = RecordBody { body: Some(body) }.encode_to_vec();
        let entry = Entry { kind: Kind::EXEC, session: SESSION, boot_ns: 0, wall_unix_ns: 0, body };
        let done = journal.append(entry)?.wait()?;
        say(&format!("promised {} {}", done.seq, hex::encode(id)));
        if number == 4 {
            // What is shipped is asked for, and goes when it is acknowledged.
            for record in journal.read(0, 3, 10_000)? {
                blobs.of(&record)?;
            }
            say("acknowledged 3");
            journal.acknowledge(3)?;
            blobs.acknowledged(3);
        }
    }
    journal.close();
    Ok(())
}

#[test]
#[ignore = "runs as a child process of another test"]
fn driver() {
    let Some(dir) = std::env::var_os(PLACE).map(PathBuf::from) else { return };
    say("ready");
    let _ = io::stdin().lock().read_line(&mut String::new());
    if let Err(error) = drive(&dir) {
        say(&format!("error {error}"));
    }
    say("end");
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::TempDir::new_in(memory) } else { tempfile::TempDir::new() }.unwrap()
}

/// Runs the driver under `strace` with more arguments; its lines.
fn under_strace(dir: &Path, arguments: &[&str]) -> Vec<String> {
    strace::drive("blobs::faults::driver", (PLACE, dir), arguments)
}

/// What is wrong with what the driver left.
fn wrong(dir: &Path, said: &[String]) -> Option<String> {
    let (mut promised, mut acknowledged) = (BTreeMap::new(), 0);
    for line in said {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["promised", seq, id] => drop(promised.insert(seq.parse::<u64>().unwrap(), (*id).to_owned())),
            ["acknowledged", seq] => acknowledged = seq.parse().unwrap(),
            _ => {}
        }
    }
    let journal = match journal(dir) {
        Ok(journal) => journal,
        Err(error) => return Some(format!("the journal does not open: {error}")),
    };
    let found = (|| {
        let blobs = blobs(dir, &journal).map_err(|e| format!("the blobs do not open: {e}"))?;
        let state = journal.state();
        let mut next = state.first_seq.max(acknowledged);
        while next < state.durable_next_seq {
            let records = journal.read(next, 100, 1 << 20).map_err(|e| e.to_string())?;
            for record in &records {
                let seq = record.header().seq;
                let id = named_by(record).ok_or(format!("record {seq} names no blob"))?;
                let content = blobs.of(record).map_err(|e| format!("record {seq}: {e}"))?;
                content.ok_or(format!("record {seq} names {}, which is not there", hex::encode(id)))?;
                if promised.remove(&seq).is_some_and(|wanted| wanted != hex::encode(id)) {
                    return Err(format!("record {seq} is another one"));
                }
                next = seq + 1;
            }
            if records.is_empty() {
                return Err(format!("record {next} cannot be read"));
            }
        }
        promised.retain(|seq, _| *seq >= acknowledged);
        if !promised.is_empty() {
            return Err(format!("promised and not there: {promised:?}"));
        }
        let blob = Blob { salt: vec![77; 32], ..Blob::default() };
        blobs.put(SESSION, &blob).map(drop).map_err(|e| format!("it does not go on: {e}"))
    })();
    journal.close();
    found.err()
}

fn fail_each(how: &str) {
    let dir = folder();
    let trace = dir.path().join("trace");
    let said = under_strace(dir.path(), &["-e", &format!("trace={CALLS}"), "-o", trace.to_str().unwrap()]);
    assert!(said.iter().any(|line| line == "end") && !said.iter().any(|line| line.starts_with("error")), "{said:?}");
    assert_eq!(wrong(dir.path(), &said), None);
    let most = strace::calls(&trace);
    assert!(["fsync", "rename", "unlink", "fdatasync"].iter().all(|call| most.contains_key(*call)), "{most:?}");
    let points = Mutex::new(most.iter().flat_map(|(call, count)| (1..=*count).map(move |when| (call.as_str(), when))));
    let (found, tried) = (Mutex::new(Vec::new()), Mutex::new(0));
    let work = || {
        while let Some((call, when)) = { points.lock().unwrap().next() } {
            let dir = folder();
            let inject = format!("inject={call}:{how}:when={when}");
            let arguments = ["-e", &format!("trace={call}"), "-e", &inject, "-o", "/dev/null"];
            let said = under_strace(dir.path(), &arguments);
            let mute = said.iter().find(|l| l.starts_with("error") && !l.contains(dir.path().to_str().unwrap()));
            let mute = mute.filter(|line| !line.contains("closed")).map(|line| format!("says only {line:?}"));
            let problem = wrong(dir.path(), &said).or(mute);
            found.lock().unwrap().extend(problem.map(|problem| format!("{inject}: {problem}; said {said:?}")));
            *tried.lock().unwrap() += 1;
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(work))));
    let (found, tried) = (found.into_inner().unwrap(), tried.into_inner().unwrap());
    let first = found.iter().take(5).cloned().collect::<Vec<_>>().join("\n");
    assert!(tried > 50 && found.is_empty(), "{} of {tried}:\n{first}", found.len());
}

#[test]
fn a_call_that_fails_costs_no_promised_record_and_no_blob() {
    fail_each("error=EIO");
}

#[test]
fn a_process_that_is_killed_at_any_call_leaves_each_record_with_its_blob() {
    fail_each("signal=KILL");
}
