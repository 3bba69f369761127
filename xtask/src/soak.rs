//! Long runs: many power cuts, and every scenario again and again in one guest. Its last figures stand in docs/soak.md.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::test::powercut;
use crate::vm::{self, Spec};
use crate::{build, host, kernels};

/// `cargo xtask soak`.
#[derive(Args)]
pub struct SoakArgs {
    /// Power cuts.
    #[arg(long, default_value_t = 200)]
    cuts: u32,
    /// Kills of the collector while hosts ship.
    #[arg(long, default_value_t = 300)]
    collector_kills: u32,
    /// Minutes for which the scenarios are repeated in one guest.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Execs whose arguments or environment are rewritten meanwhile.
    #[arg(long, default_value_t = 20_000)]
    races: u32,
    /// Kernel series.
    #[arg(long, default_value = "6.12")]
    kernel: String,
}

/// Runs `cargo xtask soak`.
pub fn command(args: &SoakArgs) -> Result<u8> {
    let series = kernels::series(&args.kernel)?;
    build::all()?;
    let commit = host::output(host::cmd("git", ["rev-parse", "--short", "HEAD"]).current_dir(host::root()))?;
    if args.collector_kills > 0 {
        collector_kills(args.collector_kills)?;
    }
    let figures = powercut::run(series, args.cuts)?;
    if args.races > 0 {
        races(series, args.races)?;
    }
    if args.minutes > 0 {
        scenarios(series, args.minutes)?;
    }
    println!(
        "soak: kernel {}, commit {}: {} kills of the collector; {} power cuts, {} markers, each with its record; {} races \
         without an escape; scenarios repeated for {} minutes",
        series.name,
        commit.trim(),
        args.collector_kills,
        figures.cuts,
        figures.markers,
        args.races,
        args.minutes
    );
    Ok(0)
}

/// The test of the collector's crashes, with more of them.
fn collector_kills(kills: u32) -> Result<()> {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "guard-collector", "--test", "collector", "killed_again_and_again"]);
    host::run(cargo.env("GUARD_COLLECTOR_KILLS", kills.to_string()))
}

fn races(series: kernels::Series, tries: u32) -> Result<()> {
    let command = format!("guard-guest-tests races {tries}");
    let deadline = Duration::from_secs(u64::from(tries) + 1800);
    let spec = Spec { deadline, ..Spec::new("soak-races", series, &command) };
    if vm::shown(&spec)?.code != 0 {
        bail!("a race was won; console in {}", host::target().join("vm/soak-races/console.log").display());
    }
    Ok(())
}

fn scenarios(series: kernels::Series, minutes: u64) -> Result<()> {
    let command = format!("guard-guest-tests soak {minutes}");
    let deadline = Duration::from_secs(minutes * 60 + 3600);
    let spec = Spec { deadline, ..Spec::new("soak", series, &command) };
    let ended = vm::shown(&spec)?;
    if ended.code != 0 {
        bail!("a scenario failed; console in {}", host::target().join("vm/soak/console.log").display());
    }
    Ok(())
}
