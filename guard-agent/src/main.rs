//! `guard-agent`: the daemon of one host. `enroll` gets its certificate, `run` serves, `check` says whether it could,
//! `emergency-stop` lifts enforcement.
//!
//! Exit codes: 0 done, 64 usage, 69 something needed is not there, 70 defect, 77 not permitted, 78 configuration, policy
//! or host not as it must be.
#![allow(clippy::print_stderr, reason = "main.rs is where this binary talks to its terminal")]
#![allow(clippy::print_stdout, reason = "main.rs is where this binary talks to its terminal")]

mod acts;
mod adopt;
mod approvals;
mod backoff;
mod ballot;
mod blobs;
mod capabilities;
mod certificate;
mod check;
mod config;
mod control;
mod credentials;
mod daemon;
mod deletes;
mod detect;
mod elf;
mod emergency;
mod enroll;
mod exit;
mod expiry;
mod facts;
mod files;
mod fixed;
mod flood;
mod frame;
mod fresh;
mod hold;
mod inside;
mod join;
mod judge;
mod kept;
mod kernel;
mod launcher;
mod life;
mod lock;
mod longlived;
mod losses;
mod mounts;
mod network;
mod node;
mod novelty;
mod outcome;
mod policies;
mod preflight;
mod processes;
mod profile;
mod protect;
mod reach;
mod readings;
mod record;
mod renewal;
mod requests;
mod roles;
mod script;
mod seen;
mod session;
mod ship;
mod standing;
mod status;
mod supervisor;
mod sweep;
mod upgrade;
mod voice;
mod wanted;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use config::Config;
use exit::{Code, Failure, failed};

#[derive(Parser)]
#[command(name = "guard-agent", version, about = "Governs what AI agents run on this host")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon, with a supervisor that starts it again should it hang or die.
    Run {
        /// Configuration file.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
    },
    /// Says whether configuration, policy, certificates and this host are as `run` needs them. Changes nothing.
    Check {
        /// Configuration file.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
    },
    /// Gets this node's first certificate from the collector, with a token of `guard-collector node token NAME`.
    Enroll {
        /// Configuration file: says where key, certificate, CA and pins go.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
        /// HOST:PORT of the collector's `certificates.enrol_listen`.
        #[arg(long)]
        collector: String,
        /// The token; `-` reads it from standard input.
        #[arg(long)]
        token: String,
        /// Also where this node has a certificate already: it is replaced.
        #[arg(long)]
        again: bool,
    },
    /// Lifts enforcement on this host now, recorded. For root. Restart the daemon to enforce again.
    EmergencyStop {
        /// Configuration file.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Lists the loaded kernel programs: instructions that the verifier counted, their limit, run time.
    Programs {
        /// Configuration file.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
        /// Form of the answer.
        #[arg(long, default_value = "text", value_parser = ["text", "json"])]
        output: String,
    },
    /// Lets the running guard-agent go on as the version that is now installed at its path. Sessions stay open.
    Upgrade {
        /// Configuration file.
        #[arg(long, default_value = "/etc/guard/agent.toml")]
        config: PathBuf,
    },
    /// What the start-up canary runs.
    #[command(hide = true)]
    CanaryChild,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Code::Usage as u8 } else { 0 });
        }
    };
    let outcome = match cli.command {
        Command::CanaryChild => return ExitCode::from(kernel::canary::RAN),
        Command::Run { config } => run(&config),
        Command::Check { config } => check::run(&config).map(|report| {
            println!("{}", report.text);
            if report.good { Code::Ok as i32 } else { Code::Config as i32 }
        }),
        Command::Enroll { config, collector, token, again } => {
            enroll::run(&config, &collector, &token, again).map(|done| {
                println!("{done}");
                Code::Ok as i32
            })
        }
        Command::Programs { config, output } => programs(&config, &output),
        Command::Upgrade { config } => upgrade::run(&config).map(|done| {
            println!("{done}");
            Code::Ok as i32
        }),
        Command::EmergencyStop { config, reason } => emergency::stop(&config, &reason).map(|done| {
            println!("guard-agent: {done}");
            Code::Ok as i32
        }),
    };
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(Code::Internal as u8)),
        Err(failure) => {
            eprintln!("guard-agent: {}", failure.text);
            ExitCode::from(failure.code as u8)
        }
    }
}

/// Fails with [`Code::Internal`] when a program is above its limit.
fn programs(path: &std::path::Path, output: &str) -> Result<i32, Failure> {
    let config = Config::read(path).map_err(failed(Code::Config))?;
    let loaded = kernel::budget::loaded(&config.kernel.pin_dir).map_err(failed(Code::Unavailable))?;
    if output == "json" {
        let programs: Vec<_> = loaded.iter().map(kernel::budget::Loaded::json).collect();
        println!("{}", serde_json::json!({ "programs": programs }));
    } else {
        for program in &loaded {
            let over = if program.instructions > program.limit { "  OVER" } else { "" };
            println!("{:<28} {:>7} of {:>7} instructions{over}", program.name, program.instructions, program.limit);
        }
    }
    let good = !loaded.is_empty() && loaded.iter().all(|p| p.instructions <= p.limit);
    Ok(if good { Code::Ok as i32 } else { Code::Internal as i32 })
}

fn run(path: &std::path::Path) -> Result<i32, Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GUARD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let config = Config::read(path).map_err(failed(Code::Config))?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure { code: Code::Denied, text: "run needs root".into() });
    }
    if kernel::object::bytes().is_empty() {
        return Err(Failure { code: Code::Unavailable, text: kernel::load::KernelError::NoObject.to_string() });
    }
    // As it lies now: later the path may hold the next version.
    let program = std::fs::read_link("/proc/self/exe").map_err(failed(Code::Internal))?;
    let locks = lock::take(&config)?;
    let heartbeat = Duration::from_secs(config.supervisor.heartbeat_seconds);
    let end = supervisor::run(heartbeat, |heart| match daemon::run(&config, &heart) {
        Ok(()) => Code::Ok,
        Err(failure) => {
            tracing::error!("{}", failure.text);
            failure.code
        }
    });
    match end.map_err(failed(Code::Internal))? {
        supervisor::End::Exit(code) => Ok(code),
        supervisor::End::Upgrade => {
            drop(locks);
            Err(become_next(&program))
        }
    }
}

/// Goes on as the program that lies at this path now, under the same process id. Returns only if that fails.
fn become_next(program: &std::path::Path) -> Failure {
    use std::os::unix::process::CommandExt;
    tracing::info!(program = %program.display(), "the next version takes over");
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Failure { code: Code::Unavailable, text: format!("starting {}: {error}", program.display()) }
}
