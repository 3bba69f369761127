//! The collector's command line: makes a collector's folder, certificates and join tokens, revokes, serves, changes the log's key, begins a successor
//! of the log, makes the index anew.
//!
//! It must not print anything but through [`say`]. Fails: one line on stderr and a documented exit code (64 usage, 69
//! unavailable, 70 internal, 77 permission, 78 configuration).

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use guard_collector::alerts::try_out;
use guard_collector::config::{CertificatesConfig, Config};
use guard_collector::exit::{CollectorError, Exit, Result};
use guard_collector::identity::Role;
use guard_collector::orders::{self, Order};
use guard_collector::tokens::{self, Tokens};
use guard_collector::{init, keys, serve, succeed, ttl};
use tracing_subscriber::EnvFilter;

/// Admits records of Guard's hosts into a verifiable log, and passes on reviewers' decisions.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Where `docs/operations.md` puts it.
const CONFIG: &str = "/var/lib/guard-collector/collector.toml";

#[derive(Subcommand)]
enum Command {
    /// Makes a new collector in an empty folder: CA, certificates, signing key, empty log, configuration.
    Init {
        /// The folder.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the collector's first node and part of the log's name.
        #[arg(long, default_value = "local")]
        name: String,
        /// Name or address under which the collector is reached, besides localhost and 127.0.0.1.
        #[arg(long = "host")]
        hosts: Vec<String>,
    },
    /// Makes a certificate for a person, a service or a node.
    Client {
        /// The collector's folder.
        #[arg(long)]
        dir: PathBuf,
        /// Who it is for.
        #[arg(long)]
        name: String,
        /// admin, reviewer, viewer or node.
        #[arg(long)]
        role: Role,
        /// How long it is valid.
        #[arg(long, default_value = "90d", value_parser = ttl::parse)]
        ttl: Duration,
        /// Folder for ca.pem, cert.pem and key.pem.
        #[arg(long)]
        out: PathBuf,
    },
    /// Nodes that enrol by themselves.
    Node {
        #[command(subcommand)]
        command: NodeCommand,
    },
    /// Revokes a certificate, or all that a name has; calls are refused and open streams end within a second.
    Revoke {
        /// A name, or the serial of one certificate.
        target: String,
        /// Why, for the record.
        #[arg(long, default_value = "")]
        reason: String,
        /// The configuration file.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
    /// Serves until SIGTERM.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Changes the key that signs checkpoints; the collector must not run.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Goes on from an older copy of the log that was put back, as a successor log under a new name and key; the collector must
    /// not run. Called again after it was cut short, it goes on.
    Succeed {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// File of the admin key that `init` made.
        #[arg(long)]
        admin_key: Option<PathBuf>,
        /// Verifier key of the copy, if the log's key was rotated since it was made.
        #[arg(long)]
        log_vkey: Option<String>,
        /// Checkpoints of the old log that somebody has seen: of a host, a witness or an auditor.
        #[arg(long)]
        seen: Vec<PathBuf>,
    },
    /// Receivers of alerts.
    Webhook {
        #[command(subcommand)]
        command: WebhookCommand,
    },
    /// Makes the index anew from the log; the collector must not run.
    Reindex {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum WebhookCommand {
    /// Sends one test message to each webhook, or to one, and says what came back.
    Test {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Only the webhook of this name.
        #[arg(long)]
        name: Option<String>,
    },
}

#[derive(Subcommand)]
enum NodeCommand {
    /// Makes a token with which one host enrols once, as this node. It is printed here and kept nowhere.
    Token {
        /// The node's name.
        name: String,
        /// How long it may be used.
        #[arg(long, default_value = "1h", value_parser = ttl::parse)]
        ttl: Duration,
        /// The configuration file.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Makes a new key that signs beside the old one.
    Rotate {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Ends the old key; the new one signs alone.
    Retire {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    log_to_stderr();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "guard-collector: {error}");
            error.code()
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("GUARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_env_filter(filter).init();
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { dir, name, hosts } => {
            init::init(&dir, &name, &hosts)?;
            let admin = dir.join(init::ADMIN_KEY);
            say(&format!(
                "{} signs a successor of the log if a copy of it ever has to be put back, and policy bundles for hosts that take any: take \
                 it off this machine now, to where you keep what must not be lost.\n",
                admin.display()
            ))
        }
        Command::Client { dir, name, role, ttl, out } => say(&init::client(&dir, &name, role, ttl, &out)?),
        Command::Node { command: NodeCommand::Token { name, ttl, config } } => {
            say(&token(&Config::read(&config)?, &name, ttl)?)
        }
        Command::Revoke { target, reason, config } => say(&revoke(&Config::read(&config)?, target, reason)?),
        Command::Serve { config } => {
            let config = Config::read(&config)?;
            runtime()?.block_on(serve::serve(config))
        }
        Command::Webhook { command: WebhookCommand::Test { config, name } } => {
            let config = Config::read(&config)?;
            say(&runtime()?.block_on(try_out::run(&config, name.as_deref()))?)
        }
        Command::Key { command: KeyCommand::Rotate { config } } => say(&keys::rotate(&Config::read(&config)?)?),
        Command::Key { command: KeyCommand::Retire { config } } => say(&keys::retire(&Config::read(&config)?)?),
        Command::Succeed { config, admin_key, log_vkey, seen } => {
            say(&succeed::succeed(&Config::read(&config)?, admin_key.as_deref(), log_vkey.as_deref(), &seen)?)
        }
        Command::Reindex { config } => say(&format!("{}\n", serve::reindex(&Config::read(&config)?)?)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| CollectorError::io(Exit::Internal, "cannot start", &e))
}

fn certificates(config: &Config) -> Result<&CertificatesConfig> {
    config.certificates.as_ref().ok_or_else(|| {
        let what = "collector.toml has no table [certificates], so the running collector issues and revokes nothing; see \
                    collector.example.toml";
        CollectorError::new(Exit::Config, what)
    })
}

fn token(config: &Config, name: &str, ttl: Duration) -> Result<String> {
    let certificates = certificates(config)?;
    if certificates.enrol_listen.is_none() {
        let what = "certificates.enrol_listen is not set, so no host can enrol; set it and restart the collector";
        return Err(CollectorError::new(Exit::Config, what));
    }
    let ca = std::fs::read_to_string(&config.ca)
        .map_err(|e| CollectorError::io(Exit::Config, format_args!("cannot read {}", config.ca.display()), &e))?;
    let (token, _) = Tokens::of(&certificates.dir).make(name, &tokens::whoever(), ttl, &ca)?;
    Ok(format!("{token}\n"))
}

fn revoke(config: &Config, target: String, reason: String) -> Result<String> {
    let certificates = certificates(config)?;
    let order = Order::Revoke { target, reason, by: tokens::whoever() };
    let answer = orders::leave(&certificates.dir, &order)?;
    Ok(match orders::answer(&answer)? {
        Some(text) => format!("{text}\n"),
        None => "no collector answers: it is revoked at the collector's next start, before it serves\n".to_owned(),
    })
}

/// The one place that writes to stdout.
fn say(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| CollectorError::io(Exit::Unavailable, "stdout", &e))
}
