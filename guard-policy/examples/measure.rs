//! `measure DIR [--profile NAME] [--output json]`: the figures of docs/policy.md, for `cargo xtask bench policy`.
//!
//! Fails: 64 for wrong usage or a folder that cannot be read, with the reason on stderr.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool for developers")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use guard_policy::corpus::{Command, Corpus, Record, Report};
use guard_policy::{Policy, Source};

/// Longest script whose judgement is timed.
const SCRIPT_MAX: usize = 4 << 10;
/// Times that each command is judged for the timing; the fastest counts, as the machine does other work too.
const ROUNDS: usize = 5;

struct Args {
    folder: PathBuf,
    profile: String,
    json: bool,
    /// Only records with an even (0) or odd (1) number of line, for rules that are written with half of the lines hidden.
    half: Option<usize>,
}

fn main() -> ExitCode {
    match arguments().and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench policy: {why}");
            ExitCode::from(64)
        }
    }
}

fn arguments() -> Result<Args, String> {
    let mut args = Args { folder: PathBuf::new(), profile: "developer".to_owned(), json: false, half: None };
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let mut value =
            || words.next().map(|v| v.to_string_lossy().into_owned()).ok_or(format!("{text} needs a value"));
        match text.as_str() {
            "--profile" => args.profile = value()?,
            "--output" => args.json = value()? == "json",
            "--half" => args.half = Some(value()?.parse().map_err(|_| "--half is 0 or 1".to_owned())?),
            _ if args.folder.as_os_str().is_empty() => args.folder = word.into(),
            _ => return Err(format!("`{text}` is one argument too many")),
        }
    }
    if args.folder.as_os_str().is_empty() { Err("which folder?".to_owned()) } else { Ok(args) }
}

fn run(args: &Args) -> Result<(), String> {
    let mut corpus = read(&args.folder)?;
    if let Some(half) = args.half {
        let mut number = 0;
        corpus.records.retain(|_| {
            number += 1;
            number % 2 == half % 2
        });
    }
    let text = format!("version: 1\nextends: {}\n", args.profile);
    let policy = Policy::load(&[Source { name: "--profile", text: &text }]).map_err(|e| e.to_string())?;
    let report = Report::of(&policy, &corpus);
    let times = times(&policy, &corpus.records);
    if args.json {
        let mut value = serde_json::to_value(&report).map_err(|e| e.to_string())?;
        if let Some(fields) = value.as_object_mut() {
            fields.insert("profile".into(), args.profile.clone().into());
            fields.insert("policy_digest".into(), policy.digest().into());
            fields.insert("classification_us".into(), times.json());
        }
        println!("{value:#}");
    } else {
        text_report(&report, &times);
    }
    Ok(())
}

fn read(folder: &Path) -> Result<Corpus, String> {
    let entries = std::fs::read_dir(folder)
        .map_err(|e| format!("{}: {e}; give a folder with .jsonl files", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    Corpus::gather(folder, Some(entries), |path| std::fs::read(path))
}

/// Microseconds for one judgement.
struct Times {
    commands: Vec<f64>,
    scripts: Vec<f64>,
}

fn times(policy: &Policy, records: &[Record]) -> Times {
    let once = |command: &Command| {
        let started = Instant::now();
        std::hint::black_box(command.judge(policy));
        started.elapsed().as_secs_f64() * 1e6
    };
    let best = |command: Command| (0..ROUNDS).map(|_| once(&command)).fold(f64::INFINITY, f64::min);
    let argvs = records.iter().filter_map(|r| r.argv.as_ref());
    let mut commands: Vec<f64> = argvs.map(|argv| best(Command::exec(policy, argv))).collect();
    let short = records.iter().filter(|r| r.argv.is_none() && r.shell.len() <= SCRIPT_MAX);
    let mut scripts: Vec<f64> = short.map(|r| best(Command::shell(&r.shell))).collect();
    commands.sort_by(f64::total_cmp);
    scripts.sort_by(f64::total_cmp);
    Times { commands, scripts }
}

impl Times {
    fn json(&self) -> serde_json::Value {
        let one = |all: &[f64]| serde_json::json!({"count": all.len(), "p50": at(all, 0.5), "p99": at(all, 0.99), "max": at(all, 1.0)});
        serde_json::json!({"commands": one(&self.commands), "scripts_4k": one(&self.scripts)})
    }
}

fn at(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((last as f64 * share).round() as usize).copied()
}

fn text_report(report: &Report, times: &Times) {
    for odd in &report.odd {
        println!("left out {}: {}", odd.place, odd.why);
    }
    for wrong in &report.wrong {
        let line: String = wrong.shell.chars().take(300).collect();
        println!(
            "{} {}: {} instead of {}: {:?} <= {:?}",
            wrong.file, wrong.id, wrong.tier, wrong.expected, line, wrong.rule
        );
    }
    println!("\n| file | source | lines | allow | review | deny | wrong |\n|---|---|---|---|---|---|---|");
    for row in &report.rows {
        let apart = if row.scored { "" } else { " (not scored)" };
        println!(
            "| {}{apart} | {} | {} | {} | {} | {} | {} |",
            row.file, row.source, row.lines, row.allow, row.review, row.deny, row.wrong
        );
    }
    let share = |value: Option<f64>, name: &str| {
        let (right, of) = report.counts.get(name).copied().unwrap_or_default();
        value.map_or("no such lines".to_owned(), |v| format!("{:.1} % ({right} of {of})", 100.0 * v))
    };
    println!("\nfalse_allow       {}", report.false_allow);
    println!("deny_recall       {}", share(report.deny_recall, "deny_recall"));
    println!("readonly_allowed  {}", share(report.readonly_allowed, "readonly_allowed"));
    println!("readonly denied   {}", report.readonly_denied);
    println!("changes allowed   {}", report.writes_allowed);
    if let Some(p) = &report.prompts_per_100 {
        println!(
            "prompts_per_100   tier 1 alone {:.1}, once by root {:.1}, grants of kinds {:.1} (of lines that were recorded whole {:.1}; {:.1} if writes below the workspace, {:.1}, could be undone); denied {:.1}; writes allowed {:.1}; {} commands",
            p.tier1,
            p.by_root,
            p.session_scope,
            p.session_scope_whole,
            p.with_undo,
            p.undoable_per_100,
            p.denied_per_100,
            p.writes_allowed_per_100,
            p.commands
        );
        for cause in &p.causes {
            let scope: String = cause.scope.chars().take(60).collect();
            println!("  {:5} {} {} {scope:?}", cause.count, cause.rule, cause.category);
        }
    }
    for (name, all) in [("commands", &times.commands), ("scripts <= 4 KiB", &times.scripts)] {
        let us = |share| at(all, share).unwrap_or(f64::NAN);
        println!(
            "{name:17} {} judged: p50 {:.1} µs, p99 {:.1} µs, max {:.1} µs",
            all.len(),
            us(0.5),
            us(0.99),
            us(1.0)
        );
    }
}
