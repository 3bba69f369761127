//! The command line.
//!
//! It must not act. Fails: clap's own message, exit code 64.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::duration;
use crate::output::Format;

const EXIT_CODES: &str = "\
Exit codes:
  0    done, and the thing asked about is so
  1    not so: verification failed, no such session, request no longer open
  64   usage      69  collector or daemon unavailable     70  internal
  77   not permitted                                      78  configuration; audit: not all could be checked
  `guardctl run` ends with the code of the command it ran; 126: its entry program was denied; 128+N: signal N.

Times are UTC. Text that a governed program controls is shown escaped; nothing is cut.
JSON: one object, or one object a line where the answer is a stream (docs/guardctl.md).";

/// Runs governed sessions, reviews requests, reads and verifies the log.
#[derive(Debug, Parser)]
#[command(name = "guardctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: $GUARDCTL_CONFIG, ~/.config/guard/guardctl.toml, /etc/guard/guardctl.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the answer
    #[arg(long, short = 'o', global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a governed session of its own
    Run(RunArgs),
    /// List, show, renew and end sessions
    #[command(subcommand)]
    Session(SessionCommand),
    /// Show the newest log records, or follow the log
    Tail(TailArgs),
    /// Find log records
    Query(QueryArgs),
    /// Answer requests for review: a full screen, or plain commands
    Review {
        /// Without one: a full screen on a terminal, else the list
        #[command(subcommand)]
        command: Option<ReviewCommand>,
    },
    /// Make and show the key that signs the caller's decisions
    #[command(subcommand)]
    Key(KeyCommand),
    /// Show nodes with their measured mode, and the collector
    Status(StatusArgs),
    /// Log in by OpenID Connect: the collector issues a certificate that ends by itself
    Login(LoginArgs),
    /// Forget the certificate of `login`
    Logout,
    /// Show who the collector takes the caller for, and which rights that gives
    Whoami,
    /// Ask whether the caller, or somebody else, may do something; exit code 0: yes, 1: no
    CanI(CanIArgs),
    /// Test, check, explain and compare policy files; needs no daemon
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Verify, export and inspect the Merkle log
    #[command(subcommand)]
    Log(LogCommand),
    /// Look at a host's journal on this machine, or at a copy of one, without changing it
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Show and erase what records keep outside the log: long arguments, salts of masked secrets
    #[command(subcommand)]
    Blob(BlobCommand),
    /// Let a new host enrol
    #[command(subcommand)]
    Node(NodeCommand),
    /// List and revoke certificates of nodes, people and services
    #[command(subcommand)]
    Certificate(CertificateCommand),
}

/// Arguments of `login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Only print the address; open no browser, on a desktop too
    #[arg(long)]
    pub no_browser: bool,
    /// Port of this machine to which the issuer sends the browser back; for `ssh -L` [default: a free one]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub port: u16,
    /// How long to wait for the browser
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::parse)]
    pub wait: Duration,
}

/// What to do with nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Make a token with which one host enrols once, as this node: `guard-agent enroll`. For admins
    Token {
        /// The node's name
        name: String,
        /// How long it may be used
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
        ttl: Duration,
    },
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Those on record that have not ended. For admins
    List {
        /// Of this name alone
        name: Option<String>,
    },
    /// End a certificate, or every one that a name has: calls are refused, open streams end. For admins
    Revoke {
        /// A name, or a serial
        target: String,
        /// Why; recorded
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// What to do with a reviewer's key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key in the state folder, and print the line that an admin puts into the role files
    New(KeyArgs),
    /// Print that line again
    Show(KeyArgs),
}

/// Arguments of `key`.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// The reviewer's name, as `guardctl whoami` shows it [default: $USER]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

/// What to do with a journal.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// Check every segment: frames, numbers, chain. Nothing is repaired
    Verify {
        /// Folder of the journal, such as /var/lib/guard/journal, or a quarantine folder inside it
        dir: PathBuf,
    },
    /// Print its records
    Dump {
        /// Folder of the journal, or a quarantine folder inside it
        dir: PathBuf,
        /// First number
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        from: u64,
        /// At most so many records
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u64,
    },
}

/// What to do with a blob.
#[derive(Debug, Subcommand)]
pub enum BlobCommand {
    /// Show a blob that a record names
    Show {
        /// Its SHA-256
        #[arg(value_name = "HEX")]
        id: String,
    },
    /// Erase a blob for good; who, when and why is recorded first, and the log stays whole
    Erase {
        /// Its SHA-256
        #[arg(value_name = "HEX")]
        id: String,
        /// Why; recorded
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The agent being governed
    #[arg(long, value_name = "NAME")]
    pub agent: String,
    /// How long the session may last [default: the host's setting]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub ttl: Option<Duration>,
    /// What the session is for; shown to reviewers as untrusted text
    #[arg(long, value_name = "TEXT")]
    pub purpose: Option<String>,
    /// Reference of the work order; recorded, not checked
    #[arg(long, value_name = "TEXT")]
    pub ticket: Option<String>,
    /// Reference of the job that starts it; recorded, not checked
    #[arg(long, value_name = "TEXT")]
    pub job: Option<String>,
    /// A credential that the host's configuration names; handed over in $GUARD_CREDENTIALS. May be given several times
    #[arg(long = "credential", value_name = "NAME")]
    pub credentials: Vec<String>,
    /// Start for another user; needs the right to do so, and both are recorded
    #[arg(long = "for", value_name = "USER")]
    pub on_behalf_of: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Subcommands of `policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Load policy files together, and judge the examples that they carry
    Test {
        /// Policy files, in the order in which the daemon reads them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Find rules that are shadowed, contradict each other, match nothing or have no example
    Lint {
        /// Policy files, in the order in which the daemon reads them; none: the built-in policy
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Show how a command is read and judged: flags, rules, targets, risk
    Explain {
        /// What is asked
        #[command(flatten)]
        of: PolicyArgs,
        /// Working directory of the command
        #[arg(long, value_name = "DIR", default_value = "/home/user/work")]
        cwd: String,
        /// Variables of the command
        #[arg(long = "env", value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// The command and its arguments; a bare name is taken for a program of /usr/bin
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Judge many commands and count the tiers
    Try {
        /// What is asked
        #[command(flatten)]
        of: PolicyArgs,
        /// A file of JSON lines (`shell` or `argv`), or a folder with such files
        #[arg(long, value_name = "FILE")]
        corpus: PathBuf,
    },
    /// Judge recorded execs by another policy, and show what changes
    Diff(crate::policy::DiffArgs),
    /// Propose allow rules from what people approved
    Suggest(crate::policy::SuggestArgs),
    /// Sign policy files as a bundle, with the admin key
    Sign(crate::policy::SignArgs),
    /// Show a bundle: the collector's newest, or a file
    Bundle(crate::policy::BundleArgs),
    /// Hand a signed bundle to the hosts
    Publish {
        /// What `policy sign` wrote
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// What a bundle in the stage observe or shadow would have denied or changed [default: of the last 7d]
    Shadow(crate::policy::RecordedArgs),
    /// Print the JSON schema of policy files
    Schema,
}

/// Which policy.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// A policy file; several in the order in which the daemon reads them
    #[arg(long = "policy", value_name = "FILE", conflicts_with = "profile")]
    pub files: Vec<PathBuf>,
    /// A built-in policy: default, developer, sre, ci or data
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// Subcommands of `session`.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List sessions, newest first
    List(SessionListArgs),
    /// Answer the five questions about a session
    Show(SessionShowArgs),
    /// Let an open session on this host live longer; for its initiator and root
    Renew(SessionRenewArgs),
    /// End an open session on this host, through the daemon
    End(SessionEndArgs),
    /// Inside a session: how it stands, what it may request, what waits for a reviewer
    Status,
    /// Inside a session: what it was told, such as why an exec was denied
    Messages(SessionMessagesArgs),
    /// Inside a session: run a command in a child session that may request less
    Child(SessionChildArgs),
}

impl SessionCommand {
    /// Whether it speaks to the session's own socket, and needs no configuration.
    pub fn is_inside(&self) -> bool {
        matches!(self, Self::Status | Self::Messages(_) | Self::Child(_))
    }
}

/// Arguments of `session messages`.
#[derive(Debug, Args)]
pub struct SessionMessagesArgs {
    /// Go on with those that are still to come; with --output json one message a line
    #[arg(long, short)]
    pub follow: bool,
    /// Only messages of this number and later ones
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub from: u64,
}

/// Arguments of `session child`.
#[derive(Debug, Args)]
pub struct SessionChildArgs {
    /// What it may request: categories of this session, with commas between them
    #[arg(long, value_name = "LIST", required = true, value_delimiter = ',')]
    pub categories: Vec<String>,
    /// How long it may last [default: the host's setting, as far as this session lives]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub ttl: Option<Duration>,
    /// Deny what is riskier than this
    #[arg(long, value_name = "0-100", value_parser = clap::value_parser!(u32).range(..=100))]
    pub max_risk: Option<u32>,
    /// What the session is for; shown to reviewers as untrusted text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub purpose: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Arguments of `session list`.
#[derive(Debug, Args)]
pub struct SessionListArgs {
    /// Only open sessions
    #[arg(long)]
    pub open: bool,
    /// Only sessions of this agent
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub agent: String,
    /// Only sessions of this initiator
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub initiator: String,
    /// Only child sessions of this session
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub parent: String,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Arguments of `session show`.
#[derive(Debug, Args)]
pub struct SessionShowArgs {
    /// Session id
    pub id: String,
    /// Wait until the answer covers so many log records
    #[arg(long, value_name = "SIZE", default_value_t = 0, hide_default_value = true)]
    pub at_least: u64,
}

/// Arguments of `session renew`.
#[derive(Debug, Args)]
pub struct SessionRenewArgs {
    /// Session id
    pub id: String,
    /// How long from now on [default: the host's setting, as far as the session may live]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    pub ttl: Option<Duration>,
}

/// Arguments of `session end`.
#[derive(Debug, Args)]
pub struct SessionEndArgs {
    /// Session id
    pub id: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Go on as the log grows
    #[arg(long, short)]
    pub follow: bool,
    /// Only records of this session
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub session: String,
    /// Start at this leaf [default: with -f now, else the newest 20]
    #[arg(long, value_name = "LEAF")]
    pub from: Option<u64>,
}

/// Arguments of `query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// Session id
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub session: String,
    /// Agent name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub agent: String,
    /// Instance of an agent: its URI
    #[arg(long, value_name = "URI", default_value = "", hide_default_value = true)]
    pub instance: String,
    /// Initiator name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub initiator: String,
    /// Program: its path as recorded
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub program: String,
    /// Host id, 32 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = parse_host)]
    pub host: Option<HostArg>,
    /// allowed, inherited, approved, denied, timed_out, expired, killed or failed
    #[arg(long, value_name = "WORD", value_parser = crate::record::DISPOSITIONS)]
    pub disposition: Option<String>,
    /// Category id, such as fs.delete
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub category: String,
    /// Reviewer name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub reviewer: String,
    /// Not before this time, or so long ago
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Not after this time, or so long ago
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only leaves above this one: the last leaf of the page before
    #[arg(long, value_name = "LEAF")]
    pub after: Option<u64>,
    /// At most so many records
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Wait until the answer covers so many log records
    #[arg(long, value_name = "SIZE", default_value_t = 0, hide_default_value = true)]
    pub at_least: u64,
}

/// A host id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostArg(pub Vec<u8>);

fn parse_host(text: &str) -> Result<HostArg, String> {
    match hex::decode(text) {
        Ok(bytes) if bytes.len() == 16 => Ok(HostArg(bytes)),
        _ => Err("a host id has 32 hexadecimal digits, see `guardctl status`".to_owned()),
    }
}

/// Subcommands of `review`.
#[derive(Debug, Subcommand)]
pub enum ReviewCommand {
    /// List requests that wait for a person
    List(ReviewListArgs),
    /// Show one request whole
    Show {
        /// Request id
        id: String,
    },
    /// Show one request and approve exactly that
    Approve(ApproveArgs),
    /// Deny one request
    Deny(DenyArgs),
    /// End at once what an approval still allows; what runs by then goes on
    Revoke(RevokeArgs),
    /// Let somebody else decide with your right, up to a risk and for a time; signed with your key
    Delegate(DelegateArgs),
    /// List delegations that have not ended
    Delegations,
    /// End a delegation before its time
    Undelegate(UndelegateArgs),
    /// Check the signatures of approvals with a role file at hand; needs no trust in collector or host
    Verify(VerifyDecisionsArgs),
    /// Show how each reviewer decides: how many, how often yes, how fast
    Stats(StatsArgs),
}

/// Arguments of `review list`.
#[derive(Debug, Args)]
pub struct ReviewListArgs {
    /// Decided requests too
    #[arg(long)]
    pub all: bool,
    /// Only requests of this session
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub session: String,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Go on: print each new request once
    #[arg(long)]
    pub watch: bool,
}

impl Default for ReviewListArgs {
    fn default() -> Self {
        Self { all: false, session: String::new(), limit: 100, watch: false }
    }
}

/// How far an approval reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Scope {
    /// This exec only.
    Once,
    /// This exact command for the rest of the session, as often as named.
    Session,
    /// Acts of the kinds that `review show` names, for the rest of the session, up to the band of its risk.
    Kind,
    /// This exec and what it starts, within the categories and the count named.
    Root,
}

/// Arguments of `review approve`.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// Request id
    pub id: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// How far the approval reaches
    #[arg(long, value_enum, default_value = "once")]
    pub scope: Scope,
    /// With --scope root: a category that what it starts may have; may be given several times
    #[arg(long = "category", value_name = "ID")]
    pub categories: Vec<String>,
    /// With --scope root, session or kind: how many execs it covers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_execs: Option<u32>,
    /// Refuse unless the request's digest is this one
    #[arg(long, value_name = "HEX")]
    pub digest: Option<String>,
    /// Those that wait for the identical command in the same session too, each by a decision of its own
    #[arg(long)]
    pub identical: bool,
    /// Do not ask again on a terminal; critical risk is asked about all the same
    #[arg(long, short)]
    pub yes: bool,
    /// For critical risk: the program's name or the last 6 characters of the request's id; with --identical followed by a blank and how
    /// many requests there are. Without it a terminal asks
    #[arg(long, value_name = "TEXT")]
    pub confirm: Option<String>,
}

/// Arguments of `review deny`.
#[derive(Debug, Args)]
pub struct DenyArgs {
    /// Request id
    pub id: String,
    /// Why; recorded and told to the agent
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Those that wait for the identical command in the same session too, each by a decision of its own
    #[arg(long)]
    pub identical: bool,
}

/// Arguments of `review verify`.
#[derive(Debug, Args)]
pub struct VerifyDecisionsArgs {
    /// Session id; without it, with --dir, every session
    #[arg(required_unless_present = "dir")]
    pub session: Option<String>,
    /// The role file with the reviewers' keys
    #[arg(long, value_name = "FILE")]
    pub roles: PathBuf,
    /// Read a copied or exported log, which is verified first, and ask no collector
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// With --dir: verifier key [default: as `log verify`]
    #[arg(long, value_name = "KEY", requires = "dir")]
    pub vkey: Option<String>,
}

/// Arguments of `review stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Decisions not before this time, or so long ago
    #[arg(long, value_name = "TIME", default_value = "30d")]
    pub since: String,
}

/// Arguments of `review delegate`.
#[derive(Debug, Args)]
pub struct DelegateArgs {
    /// Who decides then; they need a key in the role file, and sign for themselves
    #[arg(long, value_name = "NAME")]
    pub to: String,
    /// Categories or patterns of what you may review, such as vcs.*; may be given several times, or with commas
    #[arg(long, value_name = "PATTERN", required = true, value_delimiter = ',')]
    pub categories: Vec<String>,
    /// Up to this risk
    #[arg(long, value_name = "RISK", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub max_risk: u32,
    /// So long from now (8h, 2d), or a time (UTC); at most what the role file allows
    #[arg(long, value_name = "TIME")]
    pub until: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// Arguments of `review undelegate`.
#[derive(Debug, Args)]
pub struct UndelegateArgs {
    /// Id of the delegation
    pub id: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// Arguments of `review revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Request id
    pub id: String,
    /// Why; recorded
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Ask the daemon on this host instead of the collector
    #[arg(long)]
    pub local: bool,
}

/// What `can-i` asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RightArg {
    /// Request execs of a category in a session
    Request,
    /// Decide requests of a category, up to a risk
    Review,
    /// Read sessions, records and the log
    Query,
    /// Undo effects of a category
    Undo,
    /// Erase, and ask about others
    Administer,
}

/// Arguments of `can-i`.
#[derive(Debug, Args)]
pub struct CanIArgs {
    /// The right
    #[arg(value_enum)]
    pub right: RightArg,
    /// Category, such as vcs.write; without it: any
    #[arg(value_name = "CATEGORY")]
    pub category: Option<String>,
    /// With `review`: the risk of the request
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub risk: Option<u32>,
    /// With `request`: the agent of the session, whose roles must allow it too
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// About somebody else; needs the right to administer
    #[arg(long = "for", value_name = "PERSON")]
    pub person: Option<String>,
}

/// Subcommands of `log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Check the whole log: signature, root, every record, every host's chain, and that it only grew
    Verify(VerifyArgs),
    /// Check a copied log folder part by part, offline and unchanged: what was verified, and what could not be
    Audit(AuditArgs),
    /// Make a receipt: a C2SP tlog-proof file that shows offline that one record is in the log
    Prove(ProveArgs),
    /// Prove that the log of an older checkpoint is the beginning of a newer one
    Consistency(ConsistencyArgs),
    /// Print the signed checkpoint as it stands
    Checkpoint,
    /// Print the verifier key that is used, and where it comes from
    Vkey,
    /// Download the whole log, verified, as C2SP tlog-tiles files
    Export {
        /// Folder to write, made if missing
        dir: PathBuf,
    },
}

/// Arguments of `log verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Where the log is
    #[command(flatten)]
    pub of: LogArgs,
    /// Write what was verified into this folder, as C2SP tlog-tiles files
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub export: Option<PathBuf>,
    /// C2SP tlog-policy file: names the log's key, the witnesses, and how many of them have to have cosigned
    #[arg(long, value_name = "FILE", conflicts_with = "vkey")]
    pub policy: Option<PathBuf>,
    /// Check a receipt instead, offline; `--record` names the file with the record's bytes
    #[arg(long, value_name = "FILE", requires = "record", conflicts_with_all = ["dir", "export"])]
    pub proof: Option<PathBuf>,
    /// The record that the receipt is for
    #[arg(long, value_name = "FILE", requires = "proof")]
    pub record: Option<PathBuf>,
}

/// Arguments of `log audit`.
#[derive(Clone, Debug, Args)]
pub struct AuditArgs {
    /// A copy of the collector's log folder (`log`, `wal`, `blobs`), or an exported log
    pub dir: PathBuf,
    /// Verifier key [default: log_vkey of the configuration, else the one kept in the state file, else none]
    #[arg(long, value_name = "KEY")]
    pub vkey: Option<String>,
    /// Verifier key of the admin key, which has to have signed if the log succeeds another [default: admin_vkey of the configuration]
    #[arg(long, value_name = "KEY")]
    pub admin_vkey: Option<String>,
    /// C2SP tlog-policy file: names the log's key, the witnesses, and how many of them have to have cosigned
    #[arg(long, value_name = "FILE", conflicts_with = "vkey")]
    pub policy: Option<PathBuf>,
    /// A copy of the collector's lock file, which lies outside its log folder [default: `lock` in DIR]
    #[arg(long, value_name = "FILE")]
    pub lock: Option<PathBuf>,
}

/// Which log, and which key it is held to.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// An exported or copied log, without asking the collector
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Verifier key [default: log_vkey of the configuration, else the one kept in the state file]
    #[arg(long, value_name = "KEY")]
    pub vkey: Option<String>,
    /// Verifier key of the admin key, which has to have signed if the log succeeds another [default: admin_vkey of the configuration]
    #[arg(long, value_name = "KEY")]
    pub admin_vkey: Option<String>,
}

/// Arguments of `log prove`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct ProveArgs {
    /// Leaf of the record
    #[arg(group = "which")]
    pub leaf: Option<u64>,
    /// The record by its name; the log is read for it from the start
    #[arg(long, value_name = "HOST/EPOCH/SEQ", group = "which")]
    pub record: Option<guard_log::proof::RecordId>,
    /// Where the log is
    #[command(flatten)]
    pub of: LogArgs,
    /// File to write the receipt to, `.tlog-proof` by custom [default: stdout]
    #[arg(long = "out", value_name = "FILE")]
    pub to: Option<PathBuf>,
    /// Write the record's bytes too: who checks the receipt needs them
    #[arg(long, value_name = "FILE")]
    pub save_record: Option<PathBuf>,
}

/// Arguments of `log consistency`.
#[derive(Debug, Args)]
pub struct ConsistencyArgs {
    /// File with the older signed checkpoint
    pub old: PathBuf,
    /// File with the newer one [default: the log's present checkpoint]
    pub new: Option<PathBuf>,
    /// Where the log is
    #[command(flatten)]
    pub of: LogArgs,
    /// File to write the proof to, in the form that a C2SP witness is sent [default: stdout]
    #[arg(long = "out", value_name = "FILE")]
    pub to: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_keeps_its_own_options() {
        let cli = Cli::try_parse_from(["guardctl", "run", "--agent", "a", "--ttl", "15m", "--", "ls", "--output"]);
        match cli.map(|c| c.command) {
            Ok(Command::Run(run)) => assert_eq!(run.command, ["ls", "--output"]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_ttl_without_unit_is_refused() {
        let error = Cli::try_parse_from(["guardctl", "run", "--agent", "a", "--ttl", "15", "--", "ls"]);
        assert!(error.expect_err("refused").to_string().contains("a unit is missing"));
    }
}
