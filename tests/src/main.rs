//! What runs inside a guest: scenarios named for the promises they try to break, against the shipped binaries.
//!
//! Started by `cargo xtask test` as root in a guest where collector and daemon run. `list` names the scenarios, `run
//! [NAME…]` runs them and prints `ok NAME` or `FAILED NAME: why`. It must not touch a machine that is no such guest.
//! Fails: exit 1 when a scenario failed, 64 for wrong usage.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the one output of a test program; xtask reads it")]
#![allow(clippy::indexing_slicing, reason = "JSON answers are indexed by name, which gives null, not a panic")]

use std::process::ExitCode;

use anyhow::{Result, bail};

mod attacks;
mod bench;
mod bypass;
mod ctl;
mod guest;
mod neighbour;
mod powercut;
mod runner;
mod scenarios;
mod session;
mod wait;

const USAGE: &str = "guard-guest-tests list | run [NAME…] | one NAME | units | identity | powercut | bench [ROUNDS] | soak MINUTES | races TRIES";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            for name in scenarios::ALL.iter().map(|s| s.name.to_owned()).chain(bypass::names()) {
                println!("{name}");
            }
            Ok(true)
        }
        ["run", names @ ..] => in_guest().and_then(|()| runner::run(names)),
        ["one", name] => in_guest().and_then(|()| runner::one(name)),
        ["units"] => in_guest().and_then(|()| scenarios::units::run()).map(|()| true),
        ["identity"] => in_guest().and_then(|()| scenarios::credentials::run()).map(|()| true),
        ["powercut"] => in_guest().and_then(|()| powercut::round()),
        ["markers", token] => powercut::markers(token).map(|()| true),
        ["bench", rounds @ ..] => in_guest().and_then(|()| bench::run(rounds.first().copied())),
        ["races", tries] => in_guest().and_then(|()| {
            attacks::install()?;
            bypass::races(tries.parse()?)
        }),
        ["bench-loop", words @ ..] => bench::child(words),
        ["bench-flood", seconds] => bench::flood_child(seconds),
        ["soak", minutes] => in_guest().and_then(|()| runner::soak(minutes)),
        _ => {
            eprintln!("usage: {USAGE}");
            return ExitCode::from(64);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guard-guest-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The scenarios kill daemons and rewrite configuration: only ever in a guest that xtask made.
fn in_guest() -> Result<()> {
    if !std::path::Path::new("/mnt/payload/flags").exists() || !rustix::process::geteuid().is_root() {
        bail!("this is no guest of `cargo xtask`: use `cargo xtask test`");
    }
    Ok(())
}
