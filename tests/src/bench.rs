//! The figures of docs/performance.md, measured in one boot in interleaved rounds: what Guard costs its neighbours, and
//! what a governed exec costs.
//!
//! Fails: when a limit is not kept, after printing everything.

use std::fs::File;
use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::session::{ALICE, Session, Start};
use crate::wait::{seconds, until};
use crate::{ctl, guest};

const NOOP: &str = "/usr/bin/true";
const ROUNDS: usize = 30;
/// Execs in one round.
const EXECS: u32 = 100;
const PINS: &str = "/sys/fs/bpf/guard";
/// Neighbours: lower end of the interval of loaded ÷ not loaded.
const NEIGHBOUR_LIMIT: f64 = 1.05;

/// Runs everything and prints Markdown.
pub fn run(rounds: Option<&str>) -> Result<bool> {
    let rounds = rounds.map_or(Ok(ROUNDS), str::parse).context("ROUNDS is a number")?;
    guest::recover()?;
    println!("| fork+exec+wait of `{NOOP}` | value |\n|---|---|");
    println!("| kernel programs, ns per ungoverned exec (`bpf_stats`) | {} |", program_time()?);
    println!("| `fdatasync` after an append of 1 KiB | {} |", disk_time()?);
    governed(rounds)?;
    let neighbour = neighbours(rounds)?;
    println!("| ungoverned, Guard loaded ÷ not loaded | {neighbour} |");
    let kept = neighbour.low <= NEIGHBOUR_LIMIT;
    println!("limit {NEIGHBOUR_LIMIT} at the lower end: {}", if kept { "kept" } else { "NOT kept" });
    Ok(kept)
}

/// Mean of ratios with a 95 % interval.
struct Ratio {
    mean: f64,
    low: f64,
    high: f64,
    rounds: usize,
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({:.3}–{:.3}, {} rounds)", self.mean, self.low, self.high, self.rounds)
    }
}

/// Geometric mean, interval from the logarithms; 2.05 is Student's t for about 30 rounds.
fn ratio(pairs: &[(f64, f64)]) -> Ratio {
    let logs: Vec<f64> = pairs.iter().map(|(a, b)| (a / b).ln()).collect();
    let n = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let half = 2.05 * (variance / n).sqrt();
    Ratio { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp(), rounds: logs.len() }
}

/// Nanoseconds of one fork+exec+wait.
fn loop_time(count: u32) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        if !Command::new(NOOP).stdin(Stdio::null()).status()?.success() {
            bail!("{NOOP} failed");
        }
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(count))
}

fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}

fn neighbours(rounds: usize) -> Result<Ratio> {
    let mut pairs = Vec::new();
    for round in 0..rounds {
        guest::stop_daemon()?;
        if std::path::Path::new(PINS).exists() {
            std::fs::remove_dir_all(PINS).context("unpinning")?;
        }
        settle();
        let without = loop_time(EXECS)?;
        guest::start_daemon()?;
        settle();
        let with = loop_time(EXECS)?;
        eprintln!("round {round}: not loaded {without:.0} ns, loaded {with:.0} ns");
        pairs.push((with, without));
    }
    Ok(ratio(&pairs))
}

/// Run time of all programs whose descriptors the daemon holds.
fn program_ns() -> Result<u64> {
    let dir = format!("/proc/{}/fdinfo", guest::daemon()?);
    let mut total = 0;
    for entry in std::fs::read_dir(dir)?.flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains("prog_type:") {
            let time = text.lines().find_map(|l| l.strip_prefix("run_time_ns:"));
            total += time.and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(total)
}

fn program_time() -> Result<String> {
    let switch = "/proc/sys/kernel/bpf_stats_enabled";
    std::fs::write(switch, "1")?;
    let before = program_ns()?;
    loop_time(500)?;
    let spent = program_ns()? - before;
    std::fs::write(switch, "0")?;
    Ok(if spent == 0 {
        "not measured: the daemon holds no program descriptors".into()
    } else {
        (spent / 500).to_string()
    })
}

fn disk_time() -> Result<String> {
    let path = "/var/lib/guard/bench";
    let mut file = File::create(path)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        file.write_all(&[7; 1024])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(start.elapsed().as_micros());
    }
    std::fs::remove_file(path)?;
    times.sort_unstable();
    Ok(format!("{} µs (median of 200)", times.get(100).copied().unwrap_or_default()))
}

/// The governed side: measures when told to, until its input ends.
pub fn child(count: &str) -> Result<bool> {
    let count = count.parse().context("COUNT is a number")?;
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("time {}", loop_time(count)?);
    }
    Ok(true)
}

fn governed(rounds: usize) -> Result<()> {
    const COUNT: &str = "40";
    let start = Start { stdin: true, ttl: "60m", ..ALICE };
    let mut session = Session::start(&start, &["guard-guest-tests", "bench-loop", COUNT])?;
    let mut stdin = session.stdin().context("no stdin")?;
    let mut pairs = Vec::new();
    for round in 0..rounds {
        let bare = loop_time(COUNT.parse()?)?;
        stdin.write_all(b"go\n")?;
        let governed = until("a governed round", seconds(120), || {
            let out = session.out();
            Ok(out.lines().filter_map(|l| l.strip_prefix("time ")).nth(round).and_then(|t| t.parse::<f64>().ok()))
        })?;
        eprintln!("round {round}: bare {bare:.0} ns, governed {governed:.0} ns");
        pairs.push((governed, bare));
    }
    drop(stdin);
    let ended = session.wait(seconds(60))?;
    println!("| governed, allowed automatically ÷ bare | {} |", ratio(&pairs));
    let mean = |pick: fn(&(f64, f64)) -> f64| pairs.iter().map(pick).sum::<f64>() / pairs.len() as f64 / 1000.0;
    println!("| bare, µs | {:.0} |\n| governed, µs | {:.0} |", mean(|p| p.1), mean(|p| p.0));
    let records = ctl::records(&ended.id)?;
    for part in ["hold_to_read", "facts", "digest", "policy"] {
        println!("| of it {part}, µs (median of the records) | {} |", part_time(&records, part));
    }
    Ok(())
}

fn part_time(records: &[Value], part: &str) -> String {
    let mut times: Vec<u64> = ctl::execs_of(records, NOOP)
        .iter()
        .filter_map(|r| r["body"]["timing"][format!("{part}_ns")].as_u64())
        .collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or("not in the records".into(), |ns| (ns / 1000).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rounds_give_one_and_a_narrow_interval() {
        let same = ratio(&[(100.0, 100.0); 30]);
        assert!((same.mean - 1.0).abs() < 1e-9 && (same.high - same.low).abs() < 1e-9);
    }

    #[test]
    fn the_interval_holds_the_mean() {
        let found = ratio(&[(110.0, 100.0), (105.0, 100.0), (120.0, 100.0), (100.0, 100.0)]);
        assert!(found.low < found.mean && found.mean < found.high && found.low < 1.05);
    }
}
