//! Run time of each kernel program, for one exec that no session governs and one that is governed (`bpf_stats`).

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::timed::{self, Looping};
use super::{Collector, EXECS, NOOP, governed};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Nanoseconds and calls by program, per exec.
pub fn measured() -> Result<Value> {
    std::fs::write(SWITCH, "1").context(SWITCH)?;
    let start = counts()?;
    Looping::start(timed::bare())?.round(EXECS)?;
    let between = counts()?;
    governed(NOOP, Collector::Elsewhere)?;
    let end = counts()?;
    std::fs::write(SWITCH, "0")?;
    Ok(json!({"ungoverned": difference(&start, &between), "governed": difference(&between, &end)}))
}

/// Time and calls by name.
type Counts = BTreeMap<String, (u64, u64)>;

fn difference(from: &Counts, to: &Counts) -> Value {
    let mut all = json!({});
    for (name, (time, calls)) in to {
        let before = from.get(name).copied().unwrap_or_default();
        let (time, calls) = (time.saturating_sub(before.0), calls.saturating_sub(before.1));
        if calls > 0 {
            all[name] =
                json!({"ns_per_exec": time as f64 / EXECS as f64, "calls_per_exec": calls as f64 / EXECS as f64});
        }
    }
    all
}

fn counts() -> Result<Counts> {
    let out =
        Command::new("guard-agent").args(["programs", "--output", "json"]).output().context("guard-agent programs")?;
    if !out.status.success() {
        bail!("guard-agent programs: {}", String::from_utf8_lossy(&out.stderr));
    }
    let said: Value = serde_json::from_slice(&out.stdout)?;
    let mut counts = Counts::new();
    for program in said["programs"].as_array().context("no programs")? {
        let number = |field: &str| program[field].as_u64().unwrap_or(0);
        let name = program["name"].as_str().context("a program without a name")?;
        counts.insert(name.to_owned(), (number("run_time_ns"), number("run_count")));
    }
    Ok(counts)
}
