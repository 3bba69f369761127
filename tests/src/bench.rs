//! The figures of docs/performance.md, measured in one boot in interleaved rounds: what Guard costs its neighbours, what
//! governed execs cost, and what peers cost.
//!
//! Each round measures every contestant once; ratios are of one round. Prints one JSON object to standard output, progress
//! to standard error. Fails: when a contestant cannot be measured; a peer that is not installed is said to be so.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::session::{ALICE, Session, Start};
use crate::{ctl, guest};

mod figures;
mod flood;
mod neighbours;
mod peers;
mod programs;
mod timed;

use figures::{median, percentile, ratio};
use timed::Looping;

const NOOP: &str = "/usr/bin/true";
const ROUNDS: usize = 30;
/// Execs of one contestant in one round.
const EXECS: usize = 40;
/// A program that the default policy denies.
const DENIED: &str = "/usr/sbin/mkfs.ext4";
const PINS: &str = "/sys/fs/bpf/guard";

/// Runs everything and prints JSON.
pub fn run(rounds: Option<&str>) -> Result<bool> {
    let rounds: usize = rounds.map_or(Ok(ROUNDS), str::parse).context("ROUNDS is a number")?;
    guest::recover(false)?;
    let programs = programs::measured()?;
    let flood = flood::measured()?;
    eprintln!("flood: {flood}");
    let mut times = Times::default();
    let mut work = neighbours::Work::prepare()?;
    for round in 0..rounds {
        unloaded(&mut times, &mut work)?;
        loaded(&mut times, &mut work)?;
        eprintln!("round {round}: {}", times.last());
    }
    let parts = parts(&times.allowed_session)?;
    unload()?;
    let mut report = times.report();
    report["flood_bare"] = flood::bare()?;
    report["parts_us"] = parts;
    report["neighbours"] = work.report();
    report["programs"] = programs;
    report["rounds"] = rounds.into();
    report["execs_per_round"] = EXECS.into();
    report["flood_execs_per_s"] = flood["execs_per_s"].clone();
    report["flood_missing"] = flood["missing"].clone();
    report["flood"] = flood;
    println!("{report:#}");
    Ok(report["flood_missing"] == 0)
}

/// What a governed session or a peer runs: execs when told to, and says how long each took.
pub fn child(words: &[&str]) -> Result<bool> {
    timed::child(words)
}

/// Four workers, for the flood.
pub fn flood_child(seconds: &str) -> Result<bool> {
    flood::child(seconds)
}

fn unload() -> Result<()> {
    guest::stop_daemon()?;
    if Path::new(PINS).exists() {
        std::fs::remove_dir_all(PINS).context("unpinning")?;
    }
    timed::settle();
    Ok(())
}

/// Nothing of Guard is loaded: bare, and the peers.
fn unloaded(times: &mut Times, work: &mut neighbours::Work) -> Result<()> {
    unload()?;
    times.add("bare", Looping::start(timed::bare())?.round(EXECS)?);
    work.without()?;
    for peer in peers::all()? {
        if times.out.contains_key(peer.name) {
            continue;
        }
        match peer.round(EXECS) {
            Ok(measured) => times.add(peer.name, measured),
            Err(error) => {
                eprintln!("{} does not go on: {error:#}", peer.name);
                times.out.insert(peer.name, format!("not measured: {error:#}"));
            }
        }
    }
    Ok(())
}

/// Guard is loaded: neighbours, then a session's allowed and denied execs.
fn loaded(times: &mut Times, work: &mut neighbours::Work) -> Result<()> {
    guest::start_daemon()?;
    timed::settle();
    times.add("ungoverned", Looping::start(timed::bare())?.round(EXECS)?);
    work.with()?;
    let (allowed, session) = governed(NOOP, Collector::Elsewhere)?;
    times.add("governed_allow", allowed);
    times.allowed_session = session;
    times.add("governed_allow_collector_here", governed(NOOP, Collector::Here)?.0);
    times.add("governed_deny", governed(DENIED, Collector::Elsewhere)?.0);
    Ok(())
}

/// Whose processors and disk the collector uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Collector {
    /// Another machine's, as it should be: here it stands still while execs are timed. The daemon ships until the
    /// connection is full; the collector catches up afterwards.
    Elsewhere,
    /// The guest's, beside the execs.
    Here,
}

/// The times, and the session's id.
fn governed(program: &str, collector: Collector) -> Result<(Vec<f64>, String)> {
    let start = Start { stdin: true, ttl: "30m", ..ALICE };
    let mut session = Session::start(&start, &["guard-guest-tests", "bench-loop", program])?;
    let mut stdin = session.stdin().context("no stdin")?;
    guest::hold_collector(collector == Collector::Elsewhere)?;
    let measured = timed::rounds(&mut |line| Ok(stdin.write_all(line)?), &mut |done| done.check(session.out()), EXECS);
    guest::hold_collector(false)?;
    let measured = measured?;
    drop(stdin);
    Ok((measured, session.wait(crate::wait::seconds(60))?.id))
}

/// Median µs of what the records of one session say of their own making.
fn parts(session: &str) -> Result<Value> {
    let records = ctl::records(session)?;
    let execs = ctl::execs_of(&records, NOOP);
    let mut parts = json!({});
    for part in ["hold_to_read", "facts", "digest", "policy"] {
        let of = |r: &&Value| r["body"]["timing"][format!("{part}_ns")].as_f64();
        parts[part] = json!((median(&execs.iter().filter_map(of).collect::<Vec<_>>()) / 1000.0).round());
    }
    Ok(parts)
}

/// Every exec's time, by contestant and round.
#[derive(Default)]
struct Times {
    all: Vec<(String, Vec<Vec<f64>>)>,
    /// Peers that could not be measured, and why.
    out: BTreeMap<&'static str, String>,
    /// The last session whose execs were allowed.
    allowed_session: String,
}

impl Times {
    fn add(&mut self, name: &str, times: Vec<f64>) {
        match self.all.iter_mut().find(|(known, _)| known == name) {
            Some((_, rounds)) => rounds.push(times),
            None => self.all.push((name.into(), vec![times])),
        }
    }

    fn of(&self, name: &str) -> &[Vec<f64>] {
        self.all.iter().find(|(known, _)| known == name).map_or(&[], |(_, rounds)| rounds)
    }

    fn last(&self) -> String {
        let one = |(name, rounds): &(String, Vec<Vec<f64>>)| {
            format!("{name} {:.0} µs", rounds.last().map_or(f64::NAN, |times| median(times)) / 1000.0)
        };
        self.all.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn report(&self) -> Value {
        let mut contestants = json!({});
        let mut peers = json!({});
        for (name, rounds) in &self.all {
            let all: Vec<f64> = rounds.concat();
            let p50 = self.ratio(name, |times| percentile(times, 50.0));
            let p99 = figures::tail_ratio(rounds, self.of("bare"), 99.0);
            let rate: Vec<f64> = rounds.iter().map(|r| 1e9 * r.len() as f64 / r.iter().sum::<f64>()).collect();
            let rate = figures::mean(&rate);
            contestants[name] = json!({
                "p50_us": percentile(&all, 50.0) / 1000.0,
                "p99_us": percentile(&all, 99.0) / 1000.0,
                "execs_per_s": rate,
                "p50_ratio": p50,
                "p99_ratio": p99,
            });
            if peers::NAMES.contains(&name.as_str()) {
                peers[name] = json!({"p50_ratio": p50["mean"], "p99_ratio": p99["mean"]});
            }
        }
        for name in peers::NAMES.iter().filter(|name| self.of(name).is_empty()) {
            let why = self.out.get(name).map_or("not measured: not in this guest", String::as_str);
            peers[name] = json!(why);
        }
        json!({
            "ungoverned_ratio": contestants["ungoverned"]["p50_ratio"]["mean"],
            "governed_allow_ratio": contestants["governed_allow"]["p50_ratio"]["mean"],
            "governed_allow_p99_ratio": contestants["governed_allow"]["p99_ratio"]["mean"],
            "peers": peers,
            "contestants": contestants,
        })
    }

    /// Of one round's figure to bare's in the same round.
    fn ratio(&self, name: &str, figure: impl Fn(&[f64]) -> f64) -> Value {
        let pairs: Vec<(f64, f64)> =
            self.of(name).iter().zip(self.of("bare")).map(|(a, b)| (figure(a), figure(b))).collect();
        ratio(&pairs)
    }
}
