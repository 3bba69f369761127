//! `cargo xtask bench log`: durable ingest of 1 KiB records into Guard, SQLite and PostgreSQL, interleaved, on one disk.
//!
//! Guard is the collector as it ships, with TLS on loopback; its time runs until everything is acknowledged, indexed and in the
//! public checkpoint. Everything lies in one new folder under `target/`, which is removed at the end. Fails: when a contestant
//! does not run, never with a figure left out.

use std::path::Path;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::Output;
use super::postgres::Postgres;
use crate::collector::{Collector, HOSTS, Tools, measure};
use crate::host;

/// What the gate demands, in records per second; latency is measured at half of it, or of what is reached if that is less.
const GATE: f64 = 100_000.0;
/// Length of the measurement of latency.
const PACED_SECONDS: f64 = 5.0;

/// Arguments of `bench log`.
#[derive(Args)]
pub struct LogArgs {
    /// Records of one contestant in one round.
    #[arg(long, default_value_t = 400_000)]
    records: u64,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// After the rounds: grow one log to so many records and measure each decade, questions and a restart.
    #[arg(long, value_name = "RECORDS")]
    grow: Option<u64>,
    /// Form of the answer.
    #[arg(long, default_value = "text")]
    output: Output,
}

/// Runs it.
pub fn command(args: &LogArgs) -> Result<u8> {
    ensure!(args.rounds > 0 || args.grow.is_some(), "--rounds 0 without --grow measures nothing");
    let tools = Tools::release()?;
    std::fs::create_dir_all(host::target())?;
    let place = tempfile::Builder::new().prefix("bench-log-").tempdir_in(host::target())?;
    let mut report = json!({ "record_bytes": 1024, "records_per_round": args.records, "hosts": HOSTS });
    if args.rounds > 0 {
        let rounds = rounds(args, &tools, place.path())?;
        summarize(&mut report, &rounds);
        set(&mut report, "rounds", Value::Array(rounds));
    }
    if let Some(limit) = args.grow {
        set(&mut report, "grow", grow(&tools, &place.path().join("grow"), limit)?);
    }
    let commit = host::output(host::cmd("git", ["rev-parse", "--short", "HEAD"]).current_dir(host::root()))?;
    set(&mut report, "commit", commit.trim().into());
    match args.output {
        Output::Json => println!("{report:#}"),
        Output::Text => print!("{}", text(&report)),
    }
    Ok(0)
}

fn rounds(args: &LogArgs, tools: &Tools, place: &Path) -> Result<Vec<Value>> {
    let postgres = Postgres::start(place)?;
    let mut rounds = vec![];
    for round in 0..args.rounds {
        host::say(&format!("round {} of {}", round + 1, args.rounds));
        let dir = place.join(format!("guard-{round}"));
        let collector = Collector::start(tools, &dir)?;
        let guard = collector.load(tools, args.records, None)?;
        let half = (number(&guard, "records_per_s").min(GATE) / 2.0) as u64;
        let paced = collector.load(tools, (half as f64 * PACED_SECONDS) as u64, Some(half))?;
        collector.stop()?;
        std::fs::remove_dir_all(&dir)?;
        let (records, file) = (args.records.to_string(), place.join("sqlite"));
        let sqlite = measure(tools.load().args(["sqlite", "--records", &records, "--file"]).arg(&file))?;
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(place.join(format!("sqlite{suffix}")));
        }
        let mut copy = tools.load();
        copy.args(["postgres", "--records", &records, "--psql"]).arg(postgres.psql());
        copy.arg("--socket").arg(postgres.socket()).envs(postgres.environment());
        let copied = measure(&mut copy)?;
        rounds.push(json!({ "guard": guard, "guard_paced": paced, "sqlite": sqlite, "postgres": copied }));
    }
    Ok(rounds)
}

/// One log, measured at each power of ten: cost of a record, questions, and a start with all of it.
fn grow(tools: &Tools, dir: &Path, limit: u64) -> Result<Value> {
    let mut collector = Collector::start(tools, dir)?;
    let (mut size, mut goal, mut steps) = (0, 10_000, vec![]);
    while size < limit {
        let wanted = goal.min(limit) - size;
        host::say(&format!("growing to {} records", goal.min(limit)));
        let mut step = collector.load(tools, wanted, None)?;
        size = goal.min(limit);
        let cost = |key: &str| number(&step, key) * 1e6 / wanted as f64;
        let (collector_us, client_us) = (cost("collector_cpu_s"), cost("client_cpu_s"));
        set(&mut step, "collector_cpu_us_per_record", collector_us.into());
        set(&mut step, "client_cpu_us_per_record", client_us.into());
        set(&mut step, "ask", collector.ask(tools)?);
        let dir = collector.stop()?;
        let start = std::time::Instant::now();
        collector = Collector::serve(tools, dir)?;
        set(&mut step, "restart_s", start.elapsed().as_secs_f64().into());
        steps.push(step);
        goal *= 10;
    }
    collector.stop()?;
    Ok(Value::Array(steps))
}

fn set(report: &mut Value, key: &str, value: Value) {
    if let Some(fields) = report.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// Median and range of one figure over the rounds.
fn range(rounds: &[Value], contestant: &str, key: &str) -> [f64; 3] {
    let mut all: Vec<f64> = rounds.iter().filter_map(|r| r.get(contestant)).map(|v| number(v, key)).collect();
    all.sort_by(f64::total_cmp);
    let at = |place: usize| all.get(place).copied().unwrap_or(f64::NAN);
    [at(all.len() / 2), at(0), at(all.len().saturating_sub(1))]
}

/// The figures that are compared: medians at the top, ranges beside them.
fn summarize(report: &mut Value, rounds: &[Value]) {
    let mut ranges = json!({});
    for (name, contestant, key) in FIGURES {
        let [median, low, high] = range(rounds, contestant, key);
        set(report, name, median.into());
        set(&mut ranges, name, json!({ "median": median, "min": low, "max": high }));
    }
    let ratios: Vec<Value> = rounds
        .iter()
        .map(|r| {
            let per_s = |c: &str| r.get(c).map_or(f64::NAN, |v| number(v, "records_per_s"));
            json!({ "of": { "ratio": per_s("guard") / per_s("postgres") } })
        })
        .collect();
    let [median, low, high] = range(&ratios, "of", "ratio");
    set(report, "guard_to_postgres", median.into());
    set(&mut ranges, "guard_to_postgres", json!({ "median": median, "min": low, "max": high }));
    set(report, "ranges", ranges);
}

/// Name in the report, contestant and its own name for it.
const FIGURES: [(&str, &str, &str); 11] = [
    ("guard_records_per_s", "guard", "records_per_s"),
    ("guard_acknowledged_per_s", "guard", "acked_per_s"),
    ("postgres_records_per_s", "postgres", "records_per_s"),
    ("sqlite_records_per_s", "sqlite", "records_per_s"),
    ("ack_p99_ms", "guard_paced", "ack_p99_ms"),
    ("ack_p50_ms", "guard_paced", "ack_p50_ms"),
    ("index_lag_at_end", "guard", "index_lag_at_end"),
    ("index_lag_at_last_ack", "guard", "index_lag_at_last_ack"),
    ("client_cpu_s", "guard", "client_cpu_s"),
    ("collector_cpu_s", "guard", "collector_cpu_s"),
    ("collector_peak_mib", "guard_paced", "collector_peak_mib"),
];

fn text(report: &Value) -> String {
    let mut text = format!(
        "commit {}, {} records of {} bytes a round\n\n| figure | median | min | max |\n|---|---|---|---|\n",
        report.get("commit").and_then(Value::as_str).unwrap_or_default(),
        number(report, "records_per_round"),
        number(report, "record_bytes"),
    );
    for (name, one) in report.get("ranges").and_then(Value::as_object).into_iter().flatten() {
        let [median, low, high] = ["median", "min", "max"].map(|key| number(one, key));
        text += &format!("| {name} | {median:.2} | {low:.2} | {high:.2} |\n");
    }
    for step in report.get("grow").and_then(Value::as_array).into_iter().flatten() {
        text += &format!("\n{step:#}\n");
    }
    text
}
