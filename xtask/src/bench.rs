//! The figures of docs/performance.md: release builds, one boot, interleaved rounds, as JSON or as a table.
//!
//! Fails: when something cannot be measured, or when the flood left an exec without its record.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::vm::{Spec, Vm};
use crate::{build, guest, host, kernels};

/// `cargo xtask bench`.
#[derive(Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What an exec costs: bare, neighbours of Guard, governed, and under peers.
    Exec(ExecArgs),
}

#[derive(Args)]
struct ExecArgs {
    /// Kernel series.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Interleaved rounds; fewer than 30 say little.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Form of the answer.
    #[arg(long, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs `cargo xtask bench`.
pub fn command(args: &BenchArgs) -> Result<u8> {
    match &args.what {
        What::Exec(args) => exec(args),
    }
}

fn exec(args: &ExecArgs) -> Result<u8> {
    let series = kernels::series(&args.kernel)?;
    build::release()?;
    let text = format!("uname -r; guard-guest-tests bench {}", args.rounds);
    let spec = Spec {
        deadline: Duration::from_secs(3600),
        release: true,
        packages: &guest::PEERS,
        ..Spec::new("bench", series, &text)
    };
    let commit = host::output(host::cmd("git", ["rev-parse", "--short", "HEAD"]).current_dir(host::root()))?;
    let ended = Vm::boot(&spec, Stdio::piped())?.wait()?;
    let (kernel, answer) = ended.stdout.split_once('\n').context("the guest said nothing")?;
    let mut report: Value = serde_json::from_str(answer).with_context(|| format!("not JSON: {answer}"))?;
    report["commit"] = commit.trim().into();
    report["kernel"] = kernel.into();
    match args.output {
        Output::Json => println!("{report:#}"),
        Output::Text => print!("{}", table(&report)),
    }
    Ok(ended.code)
}

/// The figures as Markdown.
fn table(report: &Value) -> String {
    let mut text = format!(
        "commit {}, kernel {}, {} rounds of {} execs\n\n| `/usr/bin/true` | p50 ÷ bare (95 %) | p99 ÷ bare | p50 µs | \
         p99 µs | execs/s |\n|---|---|---|---|---|---|\n",
        report["commit"].as_str().unwrap_or_default(),
        report["kernel"].as_str().unwrap_or_default(),
        report["rounds"],
        report["execs_per_round"]
    );
    for (name, one) in report["contestants"].as_object().into_iter().flatten() {
        let figures = [&one["p99_ratio"], &one["p50_us"], &one["p99_us"], &one["execs_per_s"]["mean"]];
        let [p99, p50_us, p99_us, rate] = figures.map(|v| v.as_f64().unwrap_or(f64::NAN));
        text += &format!(
            "| {name} | {} | {p99:.2} | {p50_us:.0} | {p99_us:.0} | {rate:.0} |\n",
            interval(&one["p50_ratio"])
        );
    }
    for (name, why) in report["peers"].as_object().into_iter().flatten().filter(|(_, one)| one.is_string()) {
        text += &format!("| {name} | {} | | | | |\n", why.as_str().unwrap_or_default());
    }
    text += "\n| ungoverned work | loaded ÷ not loaded (95 %) |\n|---|---|\n";
    for (name, one) in report["neighbours"].as_object().into_iter().flatten() {
        text += &format!("| {name} | {} |\n", interval(one));
    }
    text += "\n| kernel program | ns per ungoverned exec | ns per governed exec |\n|---|---|---|\n";
    for (name, one) in report["programs"]["governed"].as_object().into_iter().flatten() {
        let other = report["programs"]["ungoverned"][name]["ns_per_exec"].as_f64().unwrap_or(0.0);
        text += &format!("| {name} | {other:.0} | {:.0} |\n", one["ns_per_exec"].as_f64().unwrap_or(0.0));
    }
    text += "\n| flood: 4 workers, one session | |\n|---|---|\n";
    for (name, one) in report["flood"].as_object().into_iter().flatten() {
        text += &format!("| {name} | {one} |\n");
    }
    text
}

fn interval(one: &Value) -> String {
    let [mean, low, high] = ["mean", "low", "high"].map(|name| one[name].as_f64().unwrap_or(f64::NAN));
    format!("{mean:.3} ({low:.3}–{high:.3})")
}
