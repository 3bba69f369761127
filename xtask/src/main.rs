//! The only automation of the repository: set-up, build, virtual machines, tests, demo.
//!
//! It installs what it needs through the machine's own package configuration or says exactly what is missing. It must
//! not change the system beyond packages, `~/.cache/guard` (or `$GUARD_CACHE`) and `target/`.
//! Fails: exit 1 with the failed child's command line; 64 for wrong usage.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool for developers talks to its terminal"
)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod bypass;
mod check;
mod collector;
mod cpio;
mod demo;
mod features;
mod fuzz;
mod guest;
mod host;
mod interop;
mod kernels;
mod rooms;
mod soak;
mod test;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and demonstrates Guard")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets what the kernel programs need, builds them and the binaries with the programs embedded.
    Build,
    /// Boots a guest with Guard enforcing, runs a command there as root and exits with its code.
    Vm(vm::VmArgs),
    /// Runs a governed agent session in a guest, from booting to the verified log; or replays recorded ones.
    Demo(demo::DemoArgs),
    /// Runs all tests whose name contains FILTER: unit, integration and VM tests on three kernels.
    Test(test::TestArgs),
    /// Format, clippy with the workspace lints, dependency rules.
    Check {
        /// Without clippy: where the compiler lints what it compiles (`.ci/run`), nothing is compiled for the lints alone.
        #[arg(long)]
        no_lints: bool,
    },
    /// Measures the figures of docs/performance.md in a guest.
    Bench(bench::BenchArgs),
    /// Holds the log to programs that others wrote: a witness, Tessera's fsck, Go's x/mod.
    Interop,
    /// Feeds whatever reads bytes of others with what libFuzzer makes up.
    Fuzz(fuzz::FuzzArgs),
    /// Long runs: many power cuts, scenarios again and again.
    Soak(soak::SoakArgs),
}

fn main() -> ExitCode {
    host::default_signals();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Build => build::all().map(|()| 0),
        Command::Vm(args) => vm::command(&args),
        Command::Demo(args) => demo::command(&args),
        Command::Test(args) => test::command(&args),
        Command::Check { no_lints } => check::all(!no_lints).map(|()| 0),
        Command::Bench(args) => bench::command(&args),
        Command::Interop => interop::command(),
        Command::Fuzz(args) => fuzz::command(&args),
        Command::Soak(args) => soak::command(&args),
    }
}
