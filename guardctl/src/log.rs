//! `guardctl log`: verifies, exports and inspects the Merkle log.
//!
//! It must believe nothing but the verifier key and the checkpoint verified last; what does not verify is never remembered and
//! gets no checkpoint in an export. Fails: exit code 1 with every finding when the log is not right.

mod audit;
mod cosigned;
mod entries;
mod key;
mod prove;
mod show;
mod source;
mod state;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_log::changes::{Changes, TrustError, signer_of};
use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::policy::{Cosigned, Policy};
use guard_log::tiles::CHECKPOINT;
use guard_log::verify::{AuditOptions, AuditReport, Folder, Source, VerifyError, audit};
use guard_proto::v1::ReadLogRequest;
use serde_json::json;
use tokio::runtime::Handle;

use crate::args::{LogCommand, VerifyArgs};
use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::text::escape_str;
pub use entries::of_folder;
use key::Key;
pub use key::admin;
use show::Verified;
use source::{Copying, Remote};
use state::{Known, State};

/// `guardctl log`.
pub async fn run(command: &LogCommand, config: &Config, out: &Out) -> Result<()> {
    match command {
        LogCommand::Verify(args) => {
            let admin = key::admin(args.of.admin_vkey.as_deref(), config)?;
            let held = Held { admin, ..Held::of(args.of.vkey.clone(), args.policy.as_deref())? };
            match (&args.of.dir, &args.proof, &args.record) {
                (_, Some(proof), Some(record)) => prove::check(proof, record, &held, config, out),
                (Some(dir), ..) => answer(verify_folder(dir, &held, config)?, out),
                _ => verify(args, &held, config, out).await,
            }
        }
        LogCommand::Audit(args) => audit::run(args, config, out),
        LogCommand::Prove(args) => prove::prove(args, config, out).await,
        LogCommand::Consistency(args) => prove::consistency(args, config, out).await,
        LogCommand::Checkpoint => checkpoint(config, out).await,
        LogCommand::Vkey => vkey(config, out).await,
        LogCommand::Export { dir } => export(dir, config, out).await,
    }
}

/// What the caller holds a log to.
#[derive(Debug, Default)]
struct Held {
    vkey: Option<String>,
    /// Key that signs for a successor.
    admin: Option<Verifier>,
    policy: Option<Policy>,
}

impl Held {
    fn of(vkey: Option<String>, policy: Option<&Path>) -> Result<Held> {
        Ok(Held { vkey, admin: None, policy: policy.map(cosigned::read).transpose()? })
    }

    /// The key for the log of a checkpoint, if the caller named one.
    fn vkey(&self, note: &[u8]) -> Result<Option<String>> {
        match &self.policy {
            Some(policy) => cosigned::vkey(policy, &origin(note)).map(Some),
            None => Ok(self.vkey.clone()),
        }
    }
}

/// A collector's log, before it is read.
struct Log {
    client: Client,
    address: String,
    state: State,
    key: Key,
    admin: Option<Verifier>,
    /// The checkpoint verified last.
    previous: Option<Checkpoint>,
    /// As served now.
    note: Vec<u8>,
}

impl Log {
    async fn open(held: &Held, config: &Config) -> Result<Log> {
        let state = State::open(config.state_path()?)?;
        let mut client = client::connect(config).await?;
        // First of all, so that a caller without the right is told that.
        let request = ReadLogRequest { path: CHECKPOINT.to_owned() };
        let note = client.read_log(request).await.map_err(client::refused)?.into_inner().content;
        let address = config.collector.as_deref().unwrap_or("https://localhost:7443").to_owned();
        let key = key::of_collector(held.vkey(&note)?.as_deref(), config, &state, &address, &mut client).await?;
        let previous = match state.get(&address) {
            Some(known) => Some(remembered(known, &address)?),
            None => None,
        };
        let admin = match &held.admin {
            Some(admin) => Some(admin.clone()),
            None => key::admin(None, config)?,
        };
        Ok(Log { client, address, state, key, admin, previous, note })
    }

    /// The head as served, and the key that signed it: the one that it is held to, or one that that leads to.
    async fn signer(&self) -> Result<std::result::Result<(Checkpoint, Verifier), TrustError>> {
        let remote = Remote { client: self.client.clone(), runtime: Handle::current() };
        let (key, admin, note) = (self.key.verifier.clone(), self.admin.clone(), self.note.clone());
        let asked = tokio::task::spawn_blocking(move || signer_of(&remote, &key, admin.as_ref(), &note)).await;
        asked.map_err(|e| CliError::new(Exit::Internal, format_args!("it ended early: {e}")))
    }

    /// Audits on a thread of its own, as the source blocks, and remembers what is right.
    async fn audit(&mut self, export: Option<PathBuf>, policy: Option<&Policy>) -> Result<(Verified, u64)> {
        let remote = Remote { client: self.client.clone(), runtime: Handle::current() };
        let (verifier, previous, policy) = (self.key.verifier.clone(), self.previous.clone(), policy.cloned());
        let admin = self.admin.clone();
        let work = move || match export {
            None => judge(&remote, (&verifier, admin), previous, policy.as_ref()).map(|(report, by)| (report, by, 0)),
            Some(to) => {
                let copying = Copying { from: remote, to, files: Cell::new(0) };
                let (report, by) = judge(&copying, (&verifier, admin), previous, policy.as_ref())?;
                if report.is_ok() {
                    let path = copying.to.join(CHECKPOINT);
                    source::write(&path, &report.note).map_err(|e| cannot_write(&path, &e))?;
                }
                Ok((report, by, copying.files.get() + 1))
            }
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (report, cosigned, files) =
            done.map_err(|e| CliError::new(Exit::Internal, format_args!("the audit ended early: {e}")))??;
        let verified = Verified { report, previous: self.previous.clone(), key_from: self.key.from, cosigned };
        if verified.report.is_ok() {
            let checkpoint = String::from_utf8_lossy(&verified.report.note).into_owned();
            self.state.remember(&self.address, Known { vkey: verified.report.signed_by.vkey(), checkpoint })?;
        }
        Ok((verified, files))
    }
}

/// The checkpoint in the state file, which was signed by the key kept with it.
fn remembered(known: &Known, address: &str) -> Result<Checkpoint> {
    let bad = |e: &dyn std::fmt::Display| {
        CliError::new(Exit::Config, format_args!("state file, {address}: {e}"))
            .hint("it keeps the last verified checkpoint; look at it before removing it")
    };
    let verifier = Verifier::parse(&known.vkey).map_err(|e| bad(&e))?;
    Checkpoint::open(known.checkpoint.as_bytes(), &verifier).map_err(|e| bad(&e))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(Exit::Config, format_args!("cannot write {}: {error}", path.display()))
}

/// Audits; with a policy, too few cosignatures are a finding too.
fn judge(
    source: &dyn Source,
    (verifier, admin): (&Verifier, Option<Verifier>),
    previous: Option<Checkpoint>,
    policy: Option<&Policy>,
) -> Result<(AuditReport, Option<Cosigned>)> {
    // First: what comes after it in a log that grows holds it.
    let earlier = cosigned::fetch(source)?;
    let report = audit(source, verifier, &AuditOptions { previous, admin }, &mut |_, _| {});
    let mut report = report.map_err(|error| match error {
        VerifyError::Source(e) => CliError::new(Exit::Unavailable, e),
        e @ (VerifyError::NoCheckpoint | VerifyError::Trust(_)) => {
            CliError::new(Exit::No, format_args!("log verification failed: {e}"))
        }
    })?;
    let Some(policy) = policy else { return Ok((report, None)) };
    let continues = |before: &Checkpoint| cosigned::continued(source, before, &report);
    let (cosigned, finding) = cosigned::judge(policy, &report.note, earlier.as_deref(), &continues);
    report.findings.extend(finding);
    Ok((report, cosigned))
}

/// Prints, and is an error if the log is not right.
fn answer(verified: Verified, out: &Out) -> Result<()> {
    if out.is_json() {
        out.json(&verified.json())?;
    } else {
        out.print(&verified.text(out))?;
    }
    failed(&verified)
}

fn failed(verified: &Verified) -> Result<()> {
    match verified.errors() {
        0 => Ok(()),
        n => Err(CliError::new(Exit::No, format_args!("log verification failed: {n} findings"))
            .hint("keep what was printed and the state file; both are evidence")),
    }
}

async fn verify(args: &VerifyArgs, held: &Held, config: &Config, out: &Out) -> Result<()> {
    let mut log = Log::open(held, config).await?;
    let (verified, _) = log.audit(args.export.clone(), held.policy.as_ref()).await?;
    answer(verified, out)
}

/// The name that a checkpoint gives its log; not believed, only looked up.
fn origin(note: &[u8]) -> String {
    String::from_utf8_lossy(note.split(|b| *b == b'\n').next().unwrap_or_default()).into_owned()
}

/// Every key that leads to this one, or that it leads to. What is wrong with them the audit says.
fn family(source: &dyn Source, key: &Verifier) -> Vec<Verifier> {
    let changes = Changes::fetch(source).unwrap_or_default();
    let keys: Vec<Verifier> = changes.keys().cloned().collect();
    if keys.contains(key) { keys } else { vec![key.clone()] }
}

/// The newest checkpoint that was verified of this log earlier and that a copy as long as `head` has to continue.
fn earlier(state: &State, key: &Key, source: &dyn Source, head: &Checkpoint) -> Result<Option<Checkpoint>> {
    let keys: Vec<String> = family(source, &key.verifier).iter().map(Verifier::vkey).collect();
    let same_log = state.all().filter(|known| keys.contains(&known.vkey));
    let known: Vec<Checkpoint> = same_log.map(|known| remembered(known, &head.origin)).collect::<Result<_>>()?;
    Ok(known.into_iter().filter(|before| before.size <= head.size).max_by_key(|before| before.size))
}

/// An exported log, or the folder of a collector's data with the log in it.
fn open_folder(dir: &Path) -> std::io::Result<Folder> {
    let inner = dir.join("log");
    Folder::open(if inner.join(CHECKPOINT).exists() { &inner } else { dir })
}

/// A folder is held against what was verified of this log earlier, if it is at least as long.
fn verify_folder(dir: &Path, held: &Held, config: &Config) -> Result<Verified> {
    let unreadable = |e: &dyn std::fmt::Display| CliError::new(Exit::No, format_args!("{}: {e}", dir.display()));
    let folder = open_folder(dir).map_err(|e| unreadable(&e))?;
    let note = folder.fetch(CHECKPOINT).map_err(|e| unreadable(&e))?;
    let note = note.ok_or_else(|| unreadable(&VerifyError::NoCheckpoint))?;
    let origin = origin(&note);
    let state = State::open(config.state_path()?)?;
    let key = key::of_folder(held.vkey(&note)?.as_deref(), config, &state, &origin)?;
    let (head, _) = signer_of(&folder, &key.verifier, held.admin.as_ref(), &note)
        .map_err(|e| CliError::new(Exit::No, format_args!("log verification failed: {e}")))?;
    let previous = earlier(&state, &key, &folder, &head)?;
    let of = (&key.verifier, held.admin.clone());
    let (report, cosigned) = judge(&folder, of, previous.clone(), held.policy.as_ref())?;
    Ok(Verified { report, previous, key_from: key.from, cosigned })
}

async fn export(dir: &Path, config: &Config, out: &Out) -> Result<()> {
    let mut log = Log::open(&Held::default(), config).await?;
    let (verified, files) = log.audit(Some(dir.to_path_buf()), None).await?;
    if verified.errors() > 0 {
        return answer(verified, out);
    }
    let size = verified.report.checkpoint.size;
    if out.is_json() {
        return out.json(&json!({"dir": dir.to_string_lossy(), "size": size, "files": files}));
    }
    out.print(&format!("{files} files of {size} records, verified, in {}\n", escape_str(&dir.to_string_lossy())))
}

async fn checkpoint(config: &Config, out: &Out) -> Result<()> {
    let log = Log::open(&Held::default(), config).await?;
    let (head, _) =
        log.signer().await?.map_err(|e| CliError::new(Exit::No, format_args!("not a checkpoint of this log: {e}")))?;
    let note = String::from_utf8_lossy(&log.note);
    if out.is_json() {
        let root = hex::encode(head.root);
        return out.json(&json!({"origin": head.origin, "size": head.size, "root": root, "note": note}));
    }
    let root = STANDARD.encode(head.root);
    let signatures = note.rsplit_once("\n\n").map_or("", |(_, signatures)| signatures);
    let lines: String = signatures.lines().map(|line| format!("{}\n", escape_str(line))).collect();
    out.print(&format!("{}\n{}\n{root}\n\n{lines}", escape_str(&head.origin), head.size))
}

async fn vkey(config: &Config, out: &Out) -> Result<()> {
    let log = Log::open(&Held::default(), config).await?;
    let vkey = log.key.verifier.vkey();
    if out.is_json() {
        return out.json(&json!({"vkey": vkey, "from": log.key.from}));
    }
    out.print(&format!("{}\n", escape_str(&vkey)))
}
