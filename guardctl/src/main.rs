//! `guardctl`: runs governed sessions, reviews requests, reads and verifies the log.
//!
//! It must not decide anything about execs (`policy` shows what would be decided) and keeps nothing but the last verified
//! checkpoint. Fails: with the exit codes of [`exit::Exit`], the reason on stderr.

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use config::Config;
use exit::{CliError, Exit, Result};
use output::{Format, Out};

mod args;
mod blob;
mod certificate;
mod client;
mod config;
mod duration;
mod exit;
mod journal;
mod key;
mod local;
mod log;
mod login;
mod output;
mod policy;
mod record;
mod review;
mod rights;
mod run;
mod session;
mod status;
mod stream;
mod table;
#[cfg(test)]
mod testing;
mod text;
mod time;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let json = cli.output == Format::Json;
    match start(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::report(&error, json);
            error.kind.into()
        }
    }
}

fn start(cli: &Cli) -> Result<u8> {
    let config = match &cli.command {
        Command::Session(command) if command.is_inside() => Config::default(),
        _ => Config::load(cli.config.as_deref())?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot start the runtime: {e}")))?;
    let code = runtime.block_on(dispatch(cli, &config));
    // A thread that waits for a key or a peer must not keep the process.
    runtime.shutdown_background();
    code
}

async fn dispatch(cli: &Cli, config: &Config) -> Result<u8> {
    let out = Out::new(cli.output);
    match &cli.command {
        Command::Run(args) => return run::run(args, config, out.is_json()).await,
        Command::Session(command) => return session::run(command, config, &out).await,
        Command::Tail(args) => stream::tail(args, config, &out).await?,
        Command::Query(args) => stream::query(args, config, &out).await?,
        Command::Review { command } => review::run(command.as_ref(), config, &out).await?,
        Command::Key(command) => key::run(command, config, &out)?,
        Command::Status(args) => status::run(args, config, &out).await?,
        Command::Login(args) => login::run(args, config, &out).await?,
        Command::Logout => login::logout(config, &out)?,
        Command::Whoami => rights::whoami(config, &out).await?,
        Command::CanI(args) => return rights::can_i(args, config, &out).await,
        Command::Policy(command) => policy::run(command, config, &out).await?,
        Command::Journal(command) => journal::run(command, &out)?,
        Command::Blob(command) => blob::run(command, config, &out).await?,
        Command::Node(command) => certificate::token(command, config, &out).await?,
        Command::Certificate(command) => certificate::run(command, config, &out).await?,
        Command::Log(command) => log::run(command, config, &out).await?,
    }
    Ok(Exit::Ok as u8)
}
