//! Every file system call of journal and log fails once, with each error that it can give, and is the last one of a process
//! that is killed. `strace` does it, from outside, to a process of its own that is already running.
//!
//! The n-th call of each thread fails. An error is given instead of the call; that an operation failed although it had effect
//! is what failing the call after it comes to: a rename whose folder cannot be synced, a write whose sync fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use guard_log::signer::KeyFile;

use crate::check::{self, Said};
use crate::driver::FOLDER;
use crate::strace;

/// Calls that only look or let go.
const LOOKING: &str = "read,pread64,getdents64,statx,close,flock,lseek";
/// Calls that change something, which can find no room too.
const CHANGING: &str =
    "openat,write,pwrite64,fdatasync,fsync,rename,unlink,unlinkat,rmdir,ftruncate,fallocate,mkdir,fchmod,chmod";

/// In memory: what reaches a disk is not asked here, and syncs that wait for one would be most of the time.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    let dir = tempfile::TempDir::new_in(place).unwrap();
    std::fs::write(dir.path().join("key"), KeyFile::generate("guard.test/log").unwrap().skey().as_str()).unwrap();
    dir
}

/// Drives a journal and a log in a folder under `strace` with more arguments. What it said.
fn drive(dir: &Path, arguments: &[&str]) -> Said {
    let said = strace::drive("driver::driver", (FOLDER, dir), arguments);
    Said::parse(said.iter().map(String::as_str))
}

/// How often each call is made by the thread that makes it most.
fn count() -> BTreeMap<String, u32> {
    let dir = folder();
    let trace = dir.path().join("trace");
    let filter = format!("trace={LOOKING},{CHANGING}");
    let said = drive(dir.path(), &["-e", &filter, "-o", trace.to_str().unwrap()]);
    assert!(said.ended && said.errors.is_empty(), "{said:?}");
    check::journal(dir.path(), &said).unwrap();
    check::store(dir.path(), &said).unwrap();
    strace::calls(&trace)
}

/// Fails one call; what is wrong then.
fn fail(call: &str, how: &str, when: u32) -> Option<String> {
    let dir = folder();
    let inject = format!("inject={call}:{how}:when={when}");
    let said = drive(dir.path(), &["-e", &format!("trace={call}"), "-e", &inject, "-o", "/dev/null"]);
    // Whoever stops says which file, and what was being done with it.
    let place = dir.path().to_str().unwrap();
    let mute = said.errors.iter().find(|e| !e.contains(place) && !e.contains("closed"));
    let wrong = mute.map(|e| format!("says only {e:?}"));
    let wrong = wrong.or_else(|| check::journal(dir.path(), &said).err().map(|e| format!("journal: {e}")));
    let wrong = wrong.or_else(|| check::store(dir.path(), &said).err().map(|e| format!("log: {e}")));
    wrong.map(|wrong| format!("{inject}: {wrong}; it had said {:?}", said.errors))
}

fn fail_each(how: &str, only: &str) {
    let counts = count();
    for needed in ["fdatasync", "fsync", "rename", "unlink", "openat", "getdents64"] {
        assert!(counts.contains_key(needed), "the driver no longer calls {needed}: {counts:?}");
    }
    let calls = counts.iter().filter(|(call, _)| only.split(',').any(|only| only == *call));
    let points = Mutex::new(calls.flat_map(|(call, count)| (1..=*count).map(move |when| (call.as_str(), when))));
    let (wrong, tried) = (Mutex::new(Vec::new()), Mutex::new(0));
    let work = || {
        while let Some((call, when)) = { points.lock().unwrap().next() } {
            let found = fail(call, how, when);
            found.iter().for_each(|found| println!("{found}"));
            wrong.lock().unwrap().extend(found);
            *tried.lock().unwrap() += 1;
        }
    };
    std::thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(work))));
    let (wrong, tried) = (wrong.into_inner().unwrap(), tried.into_inner().unwrap());
    println!("{tried} of the calls {counts:?} failed once with {how}");
    assert!(tried > 100 && wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_call_that_fails_with_an_input_output_error_costs_nothing_promised() {
    fail_each("error=EIO", &format!("{LOOKING},{CHANGING}"));
}

#[test]
fn every_call_that_finds_no_room_costs_nothing_promised() {
    fail_each("error=ENOSPC", CHANGING);
}

#[test]
fn a_process_that_is_killed_at_any_call_has_lost_nothing_promised() {
    fail_each("signal=KILL", CHANGING);
}
