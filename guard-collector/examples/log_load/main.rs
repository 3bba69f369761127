//! The load of `cargo xtask bench log`: the same records into a collector, into SQLite and into PostgreSQL.
//!
//! Prints one JSON object. It must not time what a host has done before it ships (sealing records): records are made before
//! the clock starts, unless there are too many to hold. Fails: exit 1 with the cause on stderr.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool for developers: it talks to its terminal, and what fails ends it"
)]

mod peers;
mod records;
mod ship;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

/// Error of this tool.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Ships to a running collector and waits until index and checkpoint have caught up.
    Guard(ship::Args),
    /// Inserts full rows into a new SQLite file.
    Sqlite {
        #[arg(long)]
        file: PathBuf,
        #[arg(long)]
        records: u64,
    },
    /// Copies full rows into a new table, over two connections.
    Postgres {
        /// The psql program.
        #[arg(long)]
        psql: PathBuf,
        /// Folder of the server's socket.
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        records: u64,
    },
    /// Times questions to a collector: one session, one record's proof.
    Ask(ship::AskArgs),
}

/// Processor time of a process so far, its own and the kernel's for it.
pub fn cpu_of(pid: &str) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).ok_or("an odd /proc/PID/stat");
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

/// A line of `/proc/PID/status`, in KiB.
pub fn status_kib(pid: &str, name: &str) -> Result<u64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(name)).ok_or("an odd /proc/PID/status")?;
    Ok(line.split_ascii_whitespace().next().unwrap_or_default().parse()?)
}

fn main() -> Result<(), Failure> {
    let answer = match Args::parse().what {
        What::Guard(args) => ship::run(&args)?,
        What::Sqlite { file, records } => peers::sqlite(&file, records)?,
        What::Postgres { psql, socket, records } => peers::postgres(&psql, &socket, records)?,
        What::Ask(args) => ship::ask(&args)?,
    };
    println!("{answer}");
    Ok(())
}
