//! A test of this program that runs as a process of its own, under `strace`; for all crates whose calls are made to fail.
//!
//! `strace` takes hold of the process when it says that it is ready and before it does anything: its start is not what is asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the ignored test `driver`, told by the variable `place` which folder is its own, under `strace` with more arguments; what it
/// said after `ready`.
pub fn drive(driver: &str, (place, dir): (&str, &Path), arguments: &[&str]) -> Vec<String> {
    let mut driver = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", driver, "--ignored", "--nocapture", "--test-threads=1"])
        .env(place, dir)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with("ready")), "the driver does not start");
    let mut strace = Command::new("strace")
        .args(["-f", "-p", &driver.id().to_string()])
        .args(arguments)
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is needed: apt-get install strace");
    let mut words = BufReader::new(strace.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(words.any(|line| line.contains("attached")), "strace may not attach to a child of this process");
    std::thread::spawn(move || words.for_each(drop));
    driver.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let said = lines.collect();
    let _ = (driver.wait(), strace.wait());
    said
}

/// How often each call is made by the thread that makes it most, as `strace -f -o` wrote it down.
pub fn calls(trace: &Path) -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(trace).unwrap();
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.contains("resumed>")) {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        if let Some((call, _)) = rest.trim_start().split_once('(') {
            *counts.entry((thread, call)).or_default() += 1;
        }
    }
    let mut most: BTreeMap<String, u32> = BTreeMap::new();
    for ((_, call), count) in counts {
        let known = most.entry(call.to_owned()).or_default();
        *known = count.max(*known);
    }
    most
}
