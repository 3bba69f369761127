//! Runs scenarios one after another, each in a process of its own with a limit, and puts the guest in order between them.
//!
//! It must not hide anything: a scenario that hangs, dies or leaves Guard broken has failed.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::scenarios::{ALL, Scenario};
use crate::wait::{self, seconds};
use crate::{attacks, bypass, ctl, guest};

fn find(name: &str) -> Result<&'static Scenario> {
    ALL.iter().find(|s| s.name == name).with_context(|| format!("no scenario is called `{name}`"))
}

/// Runs the named scenarios, or all; true if all held.
pub fn run(names: &[&str]) -> Result<bool> {
    let (rows, names): (Vec<&str>, Vec<&str>) = names.iter().partition(|n| bypass::is_row(n));
    let chosen: Vec<&Scenario> = match (names.is_empty(), rows.is_empty()) {
        (true, true) => ALL.iter().collect(),
        _ => names.iter().map(|n| find(n)).collect::<Result<_>>()?,
    };
    attacks::install()?;
    let mut good = true;
    for scenario in chosen {
        good &= report(scenario.name, in_process(scenario));
    }
    if !rows.is_empty() {
        guest::recover(true)?;
        for (name, done) in bypass::run(&rows) {
            good &= report(&name, done);
        }
    }
    Ok(good)
}

/// One scenario in this process.
pub fn one(name: &str) -> Result<bool> {
    (find(name)?.run)()?;
    Ok(true)
}

fn in_process(scenario: &Scenario) -> Result<Duration> {
    guest::recover(scenario.own).context("before the scenario")?;
    let start = Instant::now();
    let own = std::env::current_exe()?;
    let mut child = Command::new(own)
        .args(["one", scenario.name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let errors = child.stderr.take().map(|stream| {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = std::io::Read::read_to_string(&mut std::io::BufReader::new(stream), &mut text);
            text
        })
    });
    let code = wait::child(&mut child, seconds(scenario.limit))?;
    let text = errors.and_then(|e| e.join().ok()).unwrap_or_default();
    match code {
        Some(0) => Ok(start.elapsed()),
        Some(_) => bail!("{}", text.trim()),
        None => bail!("still running after {} s; {}", scenario.limit, text.trim()),
    }
}

fn report(name: &str, done: Result<Duration>) -> bool {
    match done {
        Ok(took) => {
            println!("ok {name} {:.1} s", took.as_secs_f64());
            true
        }
        Err(error) => {
            let why = format!("{error:#}").replace('\n', " / ");
            println!("FAILED {name}: {why}");
            for log in [guest::AGENT_LOG, guest::COLLECTOR_LOG] {
                for line in guest::tail(log, 15).lines() {
                    println!("  | {line}");
                }
            }
            false
        }
    }
}

/// Scenarios again and again for some time; then the log must verify.
pub fn soak(minutes: &str) -> Result<bool> {
    let minutes: u64 = minutes.parse().context("MINUTES is a number")?;
    attacks::install()?;
    let end = Instant::now() + seconds(minutes * 60);
    let (mut good, mut rounds) = (true, 0);
    while Instant::now() < end {
        for scenario in ALL {
            good &= report(scenario.name, in_process(scenario));
        }
        rounds += 1;
        println!("round {rounds}");
    }
    let verified = ctl::verify()?;
    println!("log verified at size {}", verified["size"]);
    Ok(good)
}
