//! The log's keys: which files sign, and `guard-collector key rotate` and `key retire`.
//!
//! While one key follows the other both files are there, `log.key` and the same name with `.next`, and both sign. The record of
//! that and its receipt in the public tree are what leads hosts and auditors from the old key to the new one; they are written
//! by [`settle`], at the rotation or, if that was cut short, at the next start. `retire` puts the new file in the old one's
//! place, which ends the old key. It must not retire a key whose successor is not on record. Fails: an error that names file
//! and step; a collector that starts with what is there.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::frame;
use guard_log::note::Verifier;
use guard_log::proof::Receipt;
use guard_log::record::SessionId;
use guard_log::signer::{KeyFile, Signers};
use guard_log::store::Store;
use guard_proto::v1::KeyRotated;
use guard_proto::v1::record_body::Body;

use crate::config::Config;
use crate::exit::{CollectorError, Exit, Result};
use crate::ledger::Ledger;
use crate::proofs::Public;
use crate::serve::SNAPSHOT;
use crate::succeed;

/// Longest wait for a record to become durable.
pub const DURABLE_WAIT: Duration = Duration::from_secs(20);
/// The public key, for people, beside the configuration.
pub const VKEY_FILE: &str = "log.vkey";

fn internal(error: impl std::fmt::Display) -> CollectorError {
    CollectorError::new(Exit::Internal, error)
}

/// A file beside `log.key`.
pub fn beside(config: &Config, ending: &str) -> PathBuf {
    let mut name = config.log_key.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn next_file(config: &Config) -> PathBuf {
    beside(config, ".next")
}

/// Reads a key.
pub fn read(path: &Path) -> Result<KeyFile> {
    KeyFile::read(path).map_err(|e| CollectorError::new(Exit::Config, format_args!("log.key: {e}")))
}

/// The keys that sign: one, or two while one follows the other.
pub fn signers(config: &Config) -> Result<Signers> {
    let signers = Signers::from(read(&config.log_key)?);
    match next_file(config) {
        next if next.exists() => signers.with_next(read(&next)?).map_err(|e| CollectorError::new(Exit::Config, e)),
        _ => Ok(signers),
    }
}

/// Opens the log: store, and what a crash cut short, in words.
pub fn open_store(config: &Config) -> Result<(Store, Option<String>)> {
    succeed::refuse_unfinished(config)?;
    let (store, report) = Store::open(config.store.clone(), signers(config)?).map_err(internal)?;
    Ok((store, report.recovered))
}

/// Writes a key that must not be there yet, for its owner alone, durably. It is there whole or not at all: a collector that finds
/// half a key does not start.
pub fn write_key(path: &Path, key: &KeyFile) -> Result<()> {
    let failed = |e| CollectorError::io(Exit::Unavailable, format_args!("cannot write {}", path.display()), &e);
    let mut half = path.as_os_str().to_owned();
    half.push(".half");
    let half = PathBuf::from(half);
    let write = || {
        // What a crash left is of a key that nobody knows.
        match fs::remove_file(&half) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(format!("{}\n", key.skey().as_str()).as_bytes())?;
        file.sync_all()?;
        // Unlike a renaming, this never takes the place of another key.
        fs::hard_link(&half, path)?;
        fs::remove_file(&half)
    };
    write().map_err(failed)?;
    sync_folder(path)
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(|e| CollectorError::io(Exit::Unavailable, format_args!("cannot sync {}", folder.display()), &e))
}

/// Puts a key's file in the place of another's, durably.
pub fn promote(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .map_err(|e| CollectorError::io(Exit::Unavailable, format_args!("cannot rename {}", from.display()), &e))?;
    sync_folder(to)
}

/// Writes the public key for people, where `init` put it.
pub fn write_vkey(config: &Config, vkey: &str) -> Result<()> {
    let path = config.folder.join(VKEY_FILE);
    frame::replace(&path, format!("{vkey}\n").as_bytes())
        .map_err(|e| CollectorError::io(Exit::Unavailable, format_args!("cannot write {}", path.display()), &e))
}

/// Records something of the collector's own and makes it public; its leaf.
fn publish_record(ledger: &Ledger, body: Body) -> Result<u64> {
    let store = ledger.store();
    let (leaf, _) = ledger.say(SessionId::NONE, body).map_err(internal)?;
    if store.size() <= leaf && !store.wait_past(leaf, DURABLE_WAIT) {
        return Err(internal(format_args!("record {leaf} is not durable yet")));
    }
    store.publish().map_err(internal)?;
    Ok(leaf)
}

/// Keeps the receipt of a record of the log's changes.
pub fn keep_change(store: &Store, verifier: &Verifier, leaf: u64) -> Result<()> {
    let (receipt, record) = Receipt::make(&Public(store), verifier, leaf).map_err(internal)?;
    store.keep_change(receipt, record).map_err(internal)
}

/// Puts on record that a second key signs, if that is not yet so: after a rotation, and at the start after one that was cut
/// short. Blocks.
pub fn settle(ledger: &Ledger) -> Result<()> {
    let store = ledger.store();
    let [old, new] = &store.signing_vkeys()[..] else { return Ok(()) };
    let known = store.changes().last().is_some_and(|step| step.change.new_key().vkey() == *new);
    if known {
        return Ok(());
    }
    let (what, old_vkey, new_vkey) = ("begun".to_owned(), old.clone(), new.clone());
    let verifier = Verifier::parse(old).map_err(internal)?;
    let leaf = publish_record(ledger, Body::KeyRotated(KeyRotated { what, old_vkey, new_vkey }))?;
    keep_change(store, &verifier, leaf)?;
    tracing::warn!(old, new, leaf, "the log's key is being followed by another; both sign");
    Ok(())
}

/// Opens the log with what is derived of it, for a command.
pub fn open_ledger(config: &Config) -> Result<Ledger> {
    let (store, _) = open_store(config)?;
    Ledger::open(store, config.store.dir.join(SNAPSHOT)).map_err(internal)
}

fn finish(ledger: &Ledger) {
    ledger.store().close();
    if let Err(error) = ledger.save(1) {
        tracing::warn!(%error, "the snapshot of admission was not written");
    }
}

/// Makes a new key, which signs beside the old one from now on; what to do next, in words.
pub fn rotate(config: &Config) -> Result<String> {
    let next = next_file(config);
    if next.exists() {
        let what = format_args!(
            "{} is there: the log's key is being followed by another already; `guard-collector key retire` ends that",
            next.display()
        );
        return Err(CollectorError::new(Exit::Usage, what));
    }
    // Nobody else may have the log open, and it must be right, before there is a second key.
    let (store, _) = open_store(config)?;
    let key = KeyFile::generate(store.origin()).map_err(internal)?;
    store.close();
    drop(store);
    write_key(&next, &key)?;
    let ledger = open_ledger(config)?;
    settle(&ledger)?;
    finish(&ledger);
    write_vkey(config, &key.vkey())?;
    Ok(format!(
        "both keys sign from now on; the new one is\n{}\nStart the collector, give the new key to whoever pins the old one, and \
         end the old one with `guard-collector key retire`.\n",
        key.vkey()
    ))
}

/// Ends the old key: the new one signs alone; in words.
pub fn retire(config: &Config) -> Result<String> {
    let next = next_file(config);
    if !next.exists() {
        let what = format_args!("no key follows the log's key ({} is not there)", next.display());
        return Err(CollectorError::new(Exit::Usage, what));
    }
    let ledger = open_ledger(config)?;
    settle(&ledger)?;
    let keys = ledger.store().signing_vkeys();
    let [old, new] = &keys[..] else { return Err(internal("two keys should sign")) };
    if let Some(witness) = &config.witness {
        // With the old key in it the collector would not start any more.
        crate::witness::check_key(&witness.policy, ledger.store().origin(), new)
            .map_err(|e| CollectorError::new(Exit::Config, format_args!("{}: {e}", witness.policy.display())))?;
    }
    let (what, old_vkey, new_vkey) = ("ended".to_owned(), old.clone(), new.clone());
    // Both sign for it, so that the next start finds a checkpoint of the key that is left.
    publish_record(&ledger, Body::KeyRotated(KeyRotated { what, old_vkey, new_vkey }))?;
    finish(&ledger);
    drop(ledger);
    promote(&next, &config.log_key)?;
    write_vkey(config, new)?;
    Ok(format!("the key {old} is ended; this one signs alone:\n{new}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_there_whole_or_not_and_never_in_the_place_of_another() {
        let dir = tempfile::tempdir().expect("folder");
        let (path, key) = (dir.path().join("log.skey"), KeyFile::generate("log.test").expect("key"));
        // As a crash leaves it.
        fs::write(dir.path().join("log.skey.half"), "PRIVATE+K").expect("written");
        write_key(&path, &key).expect("written");
        assert_eq!(read(&path).expect("read").vkey(), key.vkey());
        let other = KeyFile::generate("log.test").expect("key");
        assert!(write_key(&path, &other).is_err());
        assert_eq!(read(&path).expect("read").vkey(), key.vkey());
    }
}
