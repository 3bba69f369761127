//! `guard-collector succeed`: the way back from a copy of the log that is older than what others have seen.
//!
//! The tree goes on from the copy under a new name and key. The admin key, which lies elsewhere, signs a statement of what
//! succeeds what; it is the body of the successor's first record, and hosts believe the successor by it alone. The signed
//! statement is kept beside the key before anything of the copy is touched: from then on the command goes on where it was cut
//! short, and nothing else opens the log. It must not sign anything with the old key. Fails: an error that names the step;
//! nothing that the copy holds is lost.

use std::fs;
use std::path::{Path, PathBuf};

use guard_log::changes::succession::{Statement, Succession};
use guard_log::checkpoint::Checkpoint;
use guard_log::frame;
use guard_log::note::{NOTE_MAX, Verifier};
use guard_log::record::HostId;
use guard_log::signer::{KeyFile, SignError, Signer};
use guard_log::store::{Store, StoreOptions};
use guard_log::tiles::{CHECKPOINT, COSIGNED};
use guard_log::tree::Hash;
use guard_proto::v1::LogSucceeded;
use prost::Message;

use crate::config::Config;
use crate::exit::{CollectorError, Exit, Result};
use crate::index::Index;
use crate::ledger::Ledger;
use crate::serve::SNAPSHOT;
use crate::{keys, snapshot};

/// Key of a successor that does not sign yet.
const KEY: &str = ".successor";
/// The signed statement while it is carried out.
const BEGUN: &str = ".succession";

fn internal(error: impl std::fmt::Display) -> CollectorError {
    CollectorError::new(Exit::Internal, error)
}

fn unreadable(path: &Path, error: impl std::fmt::Display) -> CollectorError {
    CollectorError::new(Exit::Config, format_args!("{}: {error}", path.display()))
}

/// A succession that was cut short: nothing but this command may go on with it.
pub fn refuse_unfinished(config: &Config) -> Result<()> {
    match keys::beside(config, BEGUN) {
        begun if begun.exists() => {
            let what = "a succession was begun and is not finished; run `guard-collector succeed` once more";
            Err(unreadable(&begun, what))
        }
        _ => Ok(()),
    }
}

/// The old key while its log is looked at: it is known, and does not sign.
#[derive(Debug)]
struct Known(Verifier);

impl Signer for Known {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn verifier(&self) -> Verifier {
        self.0.clone()
    }

    fn sign(&self, _: &[u8]) -> std::result::Result<[u8; 64], SignError> {
        Err(SignError { key: self.0.name().to_owned(), why: "its log is being succeeded".to_owned() })
    }
}

/// What the copy holds.
struct Copied {
    old: Verifier,
    /// Its public checkpoint.
    head: Checkpoint,
    note: Vec<u8>,
    /// All that it holds.
    begins: u64,
    root: Hash,
}

impl Copied {
    /// Opens the copy as if it were the newest: with a lock file of its own that says what its checkpoint says.
    fn look(config: &Config, named: Option<&Verifier>) -> Result<Self> {
        let path = config.store.dir.join("log").join(CHECKPOINT);
        let note = fs::read(&path).map_err(|e| unreadable(&path, e))?;
        // The newest that signed it: a rotation may have been cut short before its key did.
        let keys = named.map_or_else(|| old_keys(config), |key| Ok(vec![key.clone()]))?;
        let signed = keys.iter().rev().find_map(|key| Some((Checkpoint::open(&note, key).ok()?, key.clone())));
        let none =
            "no key of `log.key` signed it; if the key was rotated since, name the one of that time with --log-vkey";
        let (head, old) = signed.ok_or_else(|| unreadable(&path, none))?;
        let lock = keys::beside(config, ".succession-lock");
        frame::replace(&lock, head.text().as_bytes()).map_err(|e| unreadable(&lock, e))?;
        let options = StoreOptions { lock: lock.clone(), ..config.store.clone() };
        let opened = Store::open(options, Known(old.clone())).map_err(internal);
        let result = opened.and_then(|(store, _)| {
            let (begins, root) = store.head().map_err(internal)?;
            store.close();
            Ok(Self { old, head, note, begins, root })
        });
        let mut held = lock.clone().into_os_string();
        held.push(".held");
        for file in [lock, held.into()] {
            let _ = fs::remove_file(file);
        }
        result
    }

    /// The newest head of the old log that anybody is known to have seen.
    fn seen(&self, config: &Config, named: &[PathBuf]) -> Result<(u64, Hash)> {
        let mut newest = (self.head.size, self.head.root);
        let mut take = |head: Checkpoint| {
            if head.origin == self.old.name() && head.size > newest.0 {
                newest = (head.size, head.root);
            }
        };
        if let Ok(text) = frame::read_text(&config.store.lock, NOTE_MAX as u64) {
            // It is not signed, and may be an older or another log's; it can only make the number larger.
            let _ = Checkpoint::parse(&text).map(&mut take);
        }
        let cosigned = config.store.dir.join("log").join(COSIGNED);
        for path in named.iter().chain(cosigned.exists().then_some(&cosigned)) {
            let note = frame::read_text(path, NOTE_MAX as u64).map_err(|e| unreadable(path, e))?;
            take(Checkpoint::open(note.as_bytes(), &self.old).map_err(|e| unreadable(path, e))?);
        }
        Ok(newest)
    }
}

/// The keys of the log, the newest last: from their files or, if they are lost, from what is public.
fn old_keys(config: &Config) -> Result<Vec<Verifier>> {
    if config.log_key.exists() {
        return Ok(keys::signers(config)?.verifiers());
    }
    let path = config.folder.join(keys::VKEY_FILE);
    let text = frame::read_text(&path, 1024).map_err(|e| unreadable(&path, e))?;
    Ok(vec![Verifier::parse(text.trim()).map_err(|e| unreadable(&path, e))?])
}

/// A name that no log has had: that of the old one with another random end.
fn new_origin(old: &str) -> Result<String> {
    let random = HostId::random().map_err(internal)?.to_string();
    let stem = old.rsplit_once('/').map_or(old, |(stem, _)| stem);
    Ok(format!("{stem}/{}", random.get(..8).unwrap_or(&random)))
}

/// Begins a succession, or goes on with one; what was done, in words.
pub fn succeed(config: &Config, admin: Option<&Path>, old: Option<&str>, seen: &[PathBuf]) -> Result<String> {
    let begun = keys::beside(config, BEGUN);
    if !begun.exists() {
        let admin =
            admin.ok_or_else(|| CollectorError::new(Exit::Usage, "--admin-key is needed to begin a succession"))?;
        let admin =
            KeyFile::read(admin).map_err(|e| CollectorError::new(Exit::Config, format_args!("--admin-key: {e}")))?;
        let old = old.map(Verifier::parse).transpose();
        let old = old.map_err(|e| CollectorError::new(Exit::Usage, format_args!("--log-vkey: {e}")))?;
        begin(config, &admin, &Copied::look(config, old.as_ref())?, seen, &begun)?;
    }
    let bytes = fs::read(&begun).map_err(|e| unreadable(&begun, e))?;
    let body = LogSucceeded::decode(bytes.as_slice()).map_err(|e| unreadable(&begun, e))?;
    let note = String::from_utf8(body.statement.clone()).map_err(|e| unreadable(&begun, e))?;
    let succession = Succession::read(note, body.kept.clone()).map_err(|e| unreadable(&begun, e))?;
    take_over(config, &succession)?;
    carry_out(config, &succession, body)?;
    fs::remove_file(&begun).map_err(|e| unreadable(&begun, e))?;
    Ok(format!("{succession}.\nIts key is\n{}\n", succession.statement.new.vkey()))
}

/// Step 1: a key, and the statement that names it, signed and durable. The copy is not touched.
fn begin(config: &Config, admin: &KeyFile, copied: &Copied, seen: &[PathBuf], begun: &Path) -> Result<()> {
    let key = KeyFile::generate(&new_origin(copied.old.name())?).map_err(internal)?;
    let file = keys::beside(config, KEY);
    if file.exists() {
        // Of a run that ended before there was a statement: nothing names it.
        fs::remove_file(&file).map_err(|e| unreadable(&file, e))?;
    }
    keys::write_key(&file, &key)?;
    let statement = Statement {
        new: key.verifier(),
        begins: copied.begins,
        root: copied.root,
        old: copied.old.clone(),
        kept: (copied.head.size, copied.head.root),
        seen: copied.seen(config, seen)?,
    };
    let note = admin.note(&statement.text()).map_err(internal)?;
    let body = LogSucceeded { statement: note.into_bytes(), kept: copied.note.clone() };
    frame::replace(begun, &body.encode_to_vec()).map_err(|e| unreadable(begun, e))
}

/// Step 2: the copy's name and key. Cut short anywhere, it is done once more.
fn take_over(config: &Config, succession: &Succession) -> Result<()> {
    let file = keys::beside(config, KEY);
    if !file.exists() {
        // The last act of this step has been done.
        return Ok(());
    }
    let key = keys::read(&file)?;
    let Statement { new, old, .. } = &succession.statement;
    if key.verifier() != *new {
        return Err(unreadable(&file, "it is not the key that the signed statement names"));
    }
    let kept = Checkpoint::open(&succession.kept, old).map_err(internal)?;
    Store::take_over(&config.store, &kept, &key).map_err(internal)?;
    for name in [SNAPSHOT.to_owned(), format!("{SNAPSHOT}.pruned")] {
        snapshot::rename(&config.store.dir.join(name), old.name(), new.name(), succession.statement.begins)
            .map_err(internal)?;
    }
    // The old keys sign nothing any more; kept, they can still be looked at.
    for ending in ["", ".next"] {
        let from = keys::beside(config, ending);
        if from.exists() {
            keys::promote(&from, &keys::beside(config, &format!("{ending}.before")))?;
        }
    }
    keys::promote(&file, &config.log_key)
}

/// Step 3: the first record, its receipt, the index.
fn carry_out(config: &Config, succession: &Succession, body: LogSucceeded) -> Result<()> {
    let Statement { new, begins, old, .. } = &succession.statement;
    let opened = Store::open_successor(config.store.clone(), keys::signers(config)?, old);
    let (store, _) = opened.map_err(internal)?;
    let ledger = Ledger::open(store, config.store.dir.join(SNAPSHOT)).map_err(internal)?;
    let store = ledger.store();
    // Nothing else could append meanwhile: what is there is this record.
    if store.size() == *begins {
        ledger.succeed(body).map_err(internal)?;
        if !store.wait_past(*begins, keys::DURABLE_WAIT) {
            return Err(internal("the first record is not durable yet"));
        }
    }
    store.publish().map_err(internal)?;
    keys::keep_change(store, new, *begins)?;
    let index = Index::open(&config.index, store.clone(), true).map_err(internal)?;
    while index.step().map_err(internal)? {}
    store.close();
    ledger.save(1).map_err(internal)?;
    keys::write_vkey(config, &new.vkey())
}
