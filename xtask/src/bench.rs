//! The figures of docs/performance.md: release builds, one boot, interleaved rounds, as JSON or as a table.
//!
//! Fails: when something cannot be measured, or when the flood left an exec without its record.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::vm::{Spec, Vm};
use crate::{build, guest, host, kernels};

mod log;
mod postgres;

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
    /// Durable ingest into the log, against SQLite and PostgreSQL on the same disk.
    Log(log::LogArgs),
    /// How a policy judges real commands: false allows, denials, prompts, time; docs/policy.md.
    Policy(PolicyArgs),
}

#[derive(Args)]
struct PolicyArgs {
    /// Folder with files of JSON lines, one command a line (form: docs/policy.md).
    #[arg(long, value_name = "DIR")]
    corpus: PathBuf,
    /// Built-in policy that is measured.
    #[arg(long, value_name = "NAME", default_value = "developer")]
    profile: String,
    /// Form of the answer.
    #[arg(long, default_value = "text")]
    output: Output,
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
        What::Log(args) => log::command(args),
        What::Policy(args) => policy(args),
    }
}

/// Guard-policy's own tool measures; it is built as users' binaries are, so that its times count.
fn policy(args: &PolicyArgs) -> Result<u8> {
    let corpus = args.corpus.display();
    let folder = args.corpus.canonicalize().with_context(|| format!("no folder {corpus}"))?;
    ensure!(folder.is_dir(), "{corpus} is no folder");
    let mut tool = build::cargo();
    tool.args(["run", "--release", "--quiet", "--package", "guard-policy", "--example", "measure", "--"]);
    tool.arg(&folder).args(["--profile", &args.profile]);
    if args.output == Output::Json {
        tool.args(["--output", "json"]);
    }
    let ended = tool.status().context("cannot start cargo")?;
    Ok(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
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
    let fields = report.as_object_mut().with_context(|| format!("not an object: {answer}"))?;
    fields.insert("commit".into(), commit.trim().into());
    fields.insert("kernel".into(), kernel.into());
    match args.output {
        Output::Json => println!("{report:#}"),
        Output::Text => print!("{}", table(&report)),
    }
    Ok(ended.code)
}

/// The figures as Markdown.
fn table(report: &Value) -> String {
    let mut text = format!(
        "commit {}, kernel {}, {} rounds of {} execs\n\n| `/usr/bin/true` | p50 ÷ bare (95 %) | p99 ÷ bare (95 %) | p50 µs | \
         p99 µs | execs/s (95 %) |\n|---|---|---|---|---|---|\n",
        at(report, "/commit").as_str().unwrap_or_default(),
        at(report, "/kernel").as_str().unwrap_or_default(),
        at(report, "/rounds"),
        at(report, "/execs_per_round")
    );
    for (name, one) in entries(report, "/contestants") {
        text += &format!(
            "| {name} | {} | {} | {:.0} | {:.0} | {} |\n",
            interval(at(one, "/p50_ratio"), 3),
            interval(at(one, "/p99_ratio"), 2),
            number(one, "/p50_us"),
            number(one, "/p99_us"),
            interval(at(one, "/execs_per_s"), 0)
        );
    }
    for (name, why) in entries(report, "/peers").filter(|(_, one)| one.is_string()) {
        text += &format!("| {name} | {} | | | | |\n", why.as_str().unwrap_or_default());
    }
    text += "\n| ungoverned work | loaded ÷ not loaded (95 %) |\n|---|---|\n";
    for (name, one) in entries(report, "/neighbours") {
        text += &format!("| {name} | {} |\n", interval(one, 3));
    }
    text += "\n| kernel program | ns per ungoverned exec | ns per governed exec |\n|---|---|---|\n";
    for (name, one) in entries(report, "/programs/governed") {
        let ungoverned = number(report, &format!("/programs/ungoverned/{name}/ns_per_exec"));
        text += &format!("| {name} | {ungoverned:.0} | {:.0} |\n", number(one, "/ns_per_exec"));
    }
    text += "\n| governed allow, parts from the records | median µs |\n|---|---|\n";
    for (name, one) in entries(report, "/parts_us") {
        text += &format!("| {name} | {one} |\n");
    }
    for (title, place) in [("4 workers, one session", "/flood"), ("4 workers, without Guard", "/flood_bare")] {
        text += &format!("\n| flood: {title} | |\n|---|---|\n");
        for (name, one) in entries(report, place) {
            text += &format!("| {name} | {one} |\n");
        }
    }
    text
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// What is not there has not been seen: 0.
fn number(value: &Value, pointer: &str) -> f64 {
    at(value, pointer).as_f64().unwrap_or(0.0)
}

fn entries<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, pointer).as_object().into_iter().flatten()
}

fn interval(one: &Value, digits: usize) -> String {
    let [mean, low, high] = ["/mean", "/low", "/high"].map(|name| at(one, name).as_f64().unwrap_or(f64::NAN));
    format!("{mean:.digits$} ({low:.digits$}–{high:.digits$})")
}
