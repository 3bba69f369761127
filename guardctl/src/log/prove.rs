//! `guardctl log prove`, `log consistency` and `log verify --proof`: receipts of records and of growth.
//!
//! It must not hand out a proof of a log that does not continue the one verified last. Fails: exit code 1 if a proof does not
//! hold or cannot be made.

use std::fs;
use std::io::Read;
use std::path::Path;

use guard_log::changes::{TrustError, signer_of};
use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::proof::{self, FILE_MAX, Growth, Receipt, ReceiptError, RecordId};
use guard_log::record::{RECORD_MAX, Record};
use guard_log::tiles::CHECKPOINT;
use guard_log::verify::Source;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::source::Remote;
use super::state::State;
use super::{Held, Log, cannot_write, cosigned, family, key, open_folder, origin};
use crate::args::{ConsistencyArgs, LogArgs, ProveArgs};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::text::escape_str;

fn failed(error: ReceiptError) -> CliError {
    match error {
        ReceiptError::Source(e) => CliError::new(Exit::Unavailable, e),
        e => CliError::new(Exit::No, e),
    }
}

fn untrusted(error: TrustError) -> CliError {
    CliError::new(Exit::No, error)
}

/// Reads a file that the caller named, up to a limit.
fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let bad = |e: &dyn std::fmt::Display| CliError::new(Exit::Usage, format_args!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| bad(&e))?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
    if bytes.len() > limit {
        return Err(bad(&format_args!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

fn read_text(path: &Path, limit: usize) -> Result<String> {
    String::from_utf8(read(path, limit)?)
        .map_err(|_| CliError::new(Exit::Usage, format_args!("{}: it is not UTF-8", path.display())))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    super::source::write(path, bytes).map_err(|e| cannot_write(path, &e))
}

/// Runs `work` over the log that was named; that of a collector has to continue what was verified of it last.
async fn over<T: Send + 'static>(
    of: &LogArgs,
    config: &Config,
    work: impl FnOnce(&dyn Source, &Verifier) -> Result<T> + Send + 'static,
) -> Result<T> {
    if let Some(dir) = &of.dir {
        let folder = open_folder(dir)
            .map_err(|e| CliError::new(Exit::Unavailable, format_args!("cannot open {}: {e}", dir.display())))?;
        let note = folder.fetch(CHECKPOINT).map_err(|e| failed(e.into()))?;
        let note = note.ok_or_else(|| failed(ReceiptError::NoCheckpoint))?;
        let key = key::of_folder(of.vkey.as_deref(), config, &State::open(config.state_path()?)?, &origin(&note))?;
        let admin = key::admin(of.admin_vkey.as_deref(), config)?;
        let (_, signer) = signer_of(&folder, &key.verifier, admin.as_ref(), &note).map_err(untrusted)?;
        return work(&folder, &signer);
    }
    let admin = key::admin(of.admin_vkey.as_deref(), config)?;
    let log = Log::open(&Held { vkey: of.vkey.clone(), admin, policy: None }, config).await?;
    let (_, verifier) = log.signer().await?.map_err(untrusted)?;
    let remote = Remote { client: log.client, runtime: Handle::current() };
    let previous = log.previous;
    let done = tokio::task::spawn_blocking(move || {
        if let Some(before) = previous {
            continues(&remote, &verifier, &before)?;
        }
        work(&remote, &verifier)
    });
    done.await.map_err(|e| CliError::new(Exit::Internal, format_args!("the proof ended early: {e}")))?
}

fn continues(source: &dyn Source, verifier: &Verifier, before: &Checkpoint) -> Result<()> {
    let (note, head) = proof::head(source, verifier).map_err(failed)?;
    if before.origin != head.origin {
        return Ok(());
    }
    let growth = Growth::make(source, head.size, before.size, &note, &head);
    growth.and_then(|growth| growth.verify(before, verifier)).map_err(failed).map(drop).map_err(|e| {
        e.hint("the log does not continue the one verified last: run `guardctl log verify`; the state file is evidence")
    })
}

/// `guardctl log prove`.
pub async fn prove(args: &ProveArgs, config: &Config, out: &Out) -> Result<()> {
    let (leaf, id) = (args.leaf, args.record);
    let (receipt, record) = over(&args.of, config, move |source, verifier| {
        let leaf = match (leaf, id) {
            (Some(leaf), _) => leaf,
            (None, Some(id)) => find(source, verifier, &id)?,
            (None, None) => return Err(CliError::new(Exit::Usage, "a leaf or --record is needed")),
        };
        Receipt::make(source, verifier, leaf).map_err(failed)
    })
    .await?;
    if let Some(path) = &args.save_record {
        write(path, &record)?;
    }
    let text = receipt.to_string();
    if let Some(path) = &args.to {
        write(path, text.as_bytes())?;
    }
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    if out.is_json() {
        let signed = receipt.note.split("\n\n").next().unwrap_or_default();
        let size = Checkpoint::parse(&format!("{signed}\n")).ok().map(|head| head.size);
        return out.json(&json!({
            "leaf": receipt.index, "size": size, "hashes": receipt.hashes.len(), "file": path(&args.to),
            "record_file": path(&args.save_record), "receipt": text,
        }));
    }
    match &args.to {
        Some(to) => {
            let of = record_name(&record);
            out.print(&format!("receipt of leaf {}, {of}, in {}\n", receipt.index, escape_str(&to.to_string_lossy())))
        }
        None => out.print(&lines(&text)),
    }
}

/// Text of many lines, each made safe to print.
fn lines(text: &str) -> String {
    text.lines().map(|line| format!("{}\n", escape_str(line))).collect()
}

fn find(source: &dyn Source, verifier: &Verifier, id: &RecordId) -> Result<u64> {
    let (_, head) = proof::head(source, verifier).map_err(failed)?;
    proof::find_record(source, id, head.size).map_err(failed)?.ok_or_else(|| {
        CliError::new(Exit::No, format_args!("no record {id} among the {} of the checkpoint", head.size))
            .hint("a record that was acknowledged a moment ago is published with the next checkpoint")
    })
}

fn record_name(bytes: &[u8]) -> String {
    match Record::parse(bytes.to_vec()) {
        Ok(record) => format!("record {}/{}/{}", record.header().host, record.header().epoch, record.header().seq),
        Err(_) => "not a record of a known form".to_owned(),
    }
}

/// `guardctl log verify --proof FILE --record FILE`.
pub(super) fn check(proof: &Path, record: &Path, held: &Held, config: &Config, out: &Out) -> Result<()> {
    let receipt = Receipt::parse(&read_text(proof, FILE_MAX)?).map_err(failed)?;
    let record = read(record, RECORD_MAX)?;
    let state = State::open(config.state_path()?)?;
    let note = receipt.note.as_bytes();
    let key = key::of_folder(held.vkey(note)?.as_deref(), config, &state, &origin(note))?;
    let head = receipt.verify(&record, &key.verifier).map_err(failed)?;
    let by = held.policy.as_ref().map(|policy| policy.open(note)).transpose();
    let by = by.map_err(|e| CliError::new(Exit::No, e))?;
    if let Some(by) = by.as_ref().filter(|by| !by.quorum) {
        return Err(CliError::new(Exit::No, format_args!("the receipt's checkpoint is {}", cosigned::lacking(by))));
    }
    if out.is_json() {
        return out.json(&checked_json(&receipt, &head, &record, key.from, by.as_ref().map(cosigned::json)));
    }
    out.print(&format!(
        "receipt OK: {} is leaf {} of the log {} at size {}, key from {}\n{}",
        record_name(&record),
        receipt.index,
        escape_str(&head.origin),
        head.size,
        key.from,
        by.as_ref().map(cosigned::text).unwrap_or_default()
    ))
}

fn checked_json(receipt: &Receipt, head: &Checkpoint, record: &[u8], key_from: &str, by: Option<Value>) -> Value {
    let record = Record::parse(record.to_vec()).ok();
    let header = record.as_ref().map(Record::header);
    json!({
        "ok": true, "leaf": receipt.index, "size": head.size, "origin": head.origin, "root": hex::encode(head.root),
        "host": header.map(|h| h.host.to_string()), "epoch": header.map(|h| h.epoch.to_string()),
        "seq": header.map(|h| h.seq), "key_from": key_from, "cosigned": by,
    })
}

/// `guardctl log consistency`.
pub async fn consistency(args: &ConsistencyArgs, config: &Config, out: &Out) -> Result<()> {
    let old_note = read(&args.old, FILE_MAX)?;
    let new_note = args.new.as_deref().map(|path| read_text(path, FILE_MAX)).transpose()?;
    let (growth, older, newer) = over(&args.of, config, move |source, verifier| {
        let older = Checkpoint::open_any(&old_note, &family(source, verifier)).map_err(|e| failed(e.into()))?;
        let (served, now) = proof::head(source, verifier).map_err(failed)?;
        let (note, newer) = match new_note {
            Some(note) => {
                let newer = Checkpoint::open(note.as_bytes(), verifier).map_err(|e| failed(e.into()))?;
                (note, newer)
            }
            None => (served, now.clone()),
        };
        let growth = Growth::make(source, now.size, older.size, &note, &newer).map_err(failed)?;
        let newer = growth.verify(&older, verifier).map_err(failed)?;
        Ok((growth, older, newer))
    })
    .await?;
    let text = growth.to_string();
    if let Some(path) = &args.to {
        write(path, text.as_bytes())?;
    }
    if out.is_json() {
        let file = args.to.as_ref().map(|path| path.to_string_lossy().into_owned());
        return out.json(&json!({
            "ok": true, "origin": newer.origin, "old_size": older.size, "size": newer.size,
            "hashes": growth.hashes.len(), "file": file, "proof": text,
        }));
    }
    if args.to.is_none() {
        return out.print(&lines(&text));
    }
    out.print(&format!("OK: size {} of {} continues size {}\n", newer.size, escape_str(&newer.origin), older.size))
}
