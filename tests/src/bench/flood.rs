//! Four workers of one session start programs as fast as they can: how many, how long the slowest took, whether each has
//! its record, and what the daemon needs afterwards.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::NOOP;
use crate::session::{ALICE, Session, Start};
use crate::wait::seconds;
use crate::{ctl, guest};

const WORKERS: usize = 4;
const SECONDS: u64 = 30;

/// The session's program: prints `worker CALLS RAN SLOWEST_NS`, four times.
pub fn child(time: &str) -> Result<bool> {
    let end = Instant::now() + Duration::from_secs(time.parse().context("SECONDS is a number")?);
    let worker = move || {
        let (mut calls, mut ran, mut slowest) = (0_u64, 0_u64, Duration::ZERO);
        while Instant::now() < end {
            let start = Instant::now();
            let status = Command::new(NOOP).stdin(Stdio::null()).status();
            slowest = slowest.max(start.elapsed());
            calls += 1;
            ran += u64::from(status.is_ok_and(|s| s.success()));
        }
        println!("worker {calls} {ran} {}", slowest.as_nanos());
    };
    let workers: Vec<_> = (0..WORKERS).map(|_| std::thread::spawn(worker)).collect();
    Ok(workers.into_iter().all(|worker| worker.join().is_ok()))
}

/// Runs it as it is.
pub fn bare() -> Result<Value> {
    let mut command = crate::session::as_user("alice", "/home/alice");
    let out = command.args(["guard-guest-tests", "bench-flood", "10"]).output().context("a flood")?;
    let said = workers(&String::from_utf8_lossy(&out.stdout));
    let ran: u64 = said.iter().map(|worker| worker[1]).sum();
    Ok(json!({"execs_per_s": ran as f64 / 10.0, "longest_stall_ms": longest(&said)}))
}

fn longest(said: &[[u64; 3]]) -> f64 {
    said.iter().map(|worker| worker[2] as f64 / 1e6).fold(0.0, f64::max)
}

fn workers(text: &str) -> Vec<[u64; 3]> {
    text.lines()
        .filter_map(|line| {
            let numbers: Option<Vec<u64>> = line.strip_prefix("worker ")?.split(' ').map(|n| n.parse().ok()).collect();
            numbers?.try_into().ok()
        })
        .collect()
}

/// Runs it governed.
pub fn measured() -> Result<Value> {
    let argv = ["guard-guest-tests", "bench-flood", &SECONDS.to_string()];
    let session = Session::start(&Start { ttl: "10m", ..ALICE }, &argv)?;
    let ended = session.wait(seconds(SECONDS + 120))?;
    let said = workers(&ended.out);
    if said.len() != WORKERS {
        bail!("{} of {WORKERS} workers said what they did: {}", said.len(), ended.out);
    }
    let (calls, ran) = said.iter().fold((0, 0), |(calls, ran), worker| (calls + worker[0], ran + worker[1]));
    let records = ctl::records(&ended.id)?;
    let judged = ctl::execs_of(&records, NOOP).len() as u64;
    let unjudged: u64 =
        ctl::of_kind(&records, "exec_unjudged").iter().map(|r| r["body"]["probes"].as_u64().unwrap_or(1)).sum();
    Ok(json!({
        "workers": said.len(),
        "seconds": SECONDS,
        "execve_calls": calls,
        "ran": ran,
        "execs_per_s": ran as f64 / SECONDS as f64,
        "records": judged,
        "unjudged": unjudged,
        "missing": calls.saturating_sub(judged + unjudged),
        "longest_stall_ms": longest(&said),
        "daemon_rss_mib": resident()?,
    }))
}

fn resident() -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest::daemon()?))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
