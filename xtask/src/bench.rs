//! The figures of docs/performance.md, measured in one guest and printed as a table.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::vm::{self, Spec};
use crate::{build, host, kernels};

/// `cargo xtask bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Kernel series.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Interleaved rounds; fewer than 30 say little.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
}

/// Runs `cargo xtask bench`.
pub fn command(args: &BenchArgs) -> Result<u8> {
    let series = kernels::series(&args.kernel)?;
    build::all()?;
    let text = format!("uname -r; guard-guest-tests bench {}", args.rounds);
    let spec = Spec { deadline: Duration::from_secs(3600), ..Spec::new("bench", series, &text) };
    let commit = host::output(host::cmd("git", ["rev-parse", "--short", "HEAD"]).current_dir(host::root()))?;
    println!("commit {}", commit.trim());
    Ok(vm::shown(&spec)?.code)
}
