//! What this host has seen of the collector's log: the key it believes and the last checkpoint, so that history cannot be
//! rewritten behind it.
//!
//! Every checkpoint that comes must be signed by that key and must continue the last one, with a proof; nothing is treated as
//! delivered on the word of a log that does not. The key changes in two ways only. A rotation: the record that names the next
//! key lies under a checkpoint that the key believed until then signed, and this log continues that checkpoint. A successor of
//! the log: the admin key, which the configuration names, signed for it, and it continues a checkpoint that the log before had
//! signed. Both are recorded. It must not judge which of two histories is right. Fails closed: a state file that cannot be read
//! is an error, never a reason to believe anew; the journal then keeps what the log should have.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guard_log::changes::{CHANGE_MAX, CHANGES_MAX, Change, ChangeError, Step};
use guard_log::checkpoint::{Checkpoint, CheckpointError};
use guard_log::frame;
use guard_log::note::{NOTE_MAX, Verifier};
use guard_log::tree::{self, Hash};
use guard_proto::v1::{CheckpointRefused, LogChange, LogFollowed, ShipWelcome};

/// Name of the file in the state folder: a line with the key that is believed and those that led to it; then the note.
const FILE: &str = "log-seen";
/// Bytes of a refused checkpoint that its record keeps.
const SHOWN: usize = 4 << 10;
/// A checkpoint is kept on the disk at most so often; a later one of the same log is believed after it all the same.
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// Longest line of keys.
const KEYS_MAX: usize = CHANGES_MAX * 1024;
/// Most hashes of a proof.
const PROOF_MAX: usize = 64;

/// The log as this host knows it.
pub struct Seen {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    verifier: Option<Verifier>,
    /// The keys that led to it, from the one that was pinned or met first.
    trail: Vec<Verifier>,
    /// The key is in the configuration.
    pinned: bool,
    /// The key that signs for successors, if the configuration names one.
    admin: Option<Verifier>,
    last: Option<(Checkpoint, Vec<u8>)>,
    kept: Option<Instant>,
    /// What was refused last, to say it once.
    refused: Option<Vec<u8>>,
    /// Of an acknowledged record that was not there any more, the number; to say it once.
    lacked: Option<u64>,
}

/// What a welcome changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Followed {
    /// To be recorded, in this order.
    pub records: Vec<LogFollowed>,
    /// The log is a successor: what it lacks was lost on the record, and is sent again.
    pub succeeded: bool,
}

/// A log that is not believed.
#[derive(Clone, Debug, PartialEq)]
pub struct Disbelieved {
    /// For the connection's error.
    pub text: String,
    /// To be recorded, unless the same was before.
    pub record: Option<CheckpointRefused>,
}

impl Seen {
    /// Reads what was seen before. `pinned` and `admin` are keys of the configuration.
    pub fn open(state_dir: &Path, pinned: Option<&Verifier>, admin: Option<&Verifier>) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let (verifier, admin) = (pinned.cloned(), admin.cloned());
        let mut state = State { verifier, pinned: pinned.is_some(), admin, ..State::default() };
        match frame::read_bounded(&path, (NOTE_MAX + KEYS_MAX) as u64) {
            Ok(bytes) => {
                let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(|| wrong("it has no first line".into()))?;
                let (key, note) = (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default());
                let keys = String::from_utf8_lossy(key);
                let keys = keys.split(' ').map(Verifier::parse).collect::<Result<Vec<_>, _>>();
                let mut trail = keys.map_err(|e| wrong(e.to_string()))?;
                let known = trail.remove(0);
                // With another key in the configuration the operator has said that this is another log.
                if pinned.is_none_or(|pinned| *pinned == known || trail.contains(pinned)) {
                    let last = Checkpoint::open(note, &known).map_err(|e| wrong(e.to_string()))?;
                    state.last = Some((last, note.to_vec()));
                    (state.verifier, state.trail) = (Some(known), trail);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(wrong(e.to_string())),
        }
        Ok(Self { path, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size of the last checkpoint; 0 if none was seen.
    pub fn size(&self) -> u64 {
        self.state().last.as_ref().map_or(0, |(last, _)| last.size)
    }

    /// Takes the collector's word for the log's key where none is known.
    pub fn introduce(&self, vkey: &str) -> Result<(), Disbelieved> {
        let mut state = self.state();
        if state.verifier.is_some() {
            return Ok(());
        }
        let verifier = Verifier::parse(vkey).map_err(|e| Disbelieved {
            text: format!("the collector names no key of its log that can be used: {e}"),
            record: None,
        })?;
        tracing::warn!(vkey, "first use of this log; its key is kept. Compare it and pin it as `collector.log_vkey`");
        state.verifier = Some(verifier);
        Ok(())
    }

    /// Believes the log that a welcome shows, and follows it where its key or its name changed as it may; what that changed.
    pub fn welcome(&self, welcome: &ShipWelcome) -> Result<Followed, Disbelieved> {
        self.introduce(&welcome.log_vkey)?;
        let mut state = self.state();
        let note = welcome.checkpoint.as_slice();
        match follow(&state, welcome) {
            Ok(None) => {}
            Ok(Some((next, followed))) => {
                let before = state.verifier.replace(next.0);
                state.trail.extend(before.into_iter().chain(next.2));
                state.last = Some((next.1, note.to_vec()));
                // Before it is recorded: a restart shall not follow again, nor believe the old key again.
                self.keep(&state);
                return Ok(followed);
            }
            Err((what, detail)) => return Err(refused(&mut state, note, what, detail)),
        }
        drop(state);
        self.believe(note, &welcome.consistency).map(|()| Followed::default())
    }

    /// Believes a checkpoint that continues the last one, and remembers it.
    pub fn believe(&self, note: &[u8], proof: &[Vec<u8>]) -> Result<(), Disbelieved> {
        let mut state = self.state();
        match check(&state, note, proof) {
            Ok(next) => {
                state.last = Some((next, note.to_vec()));
                if state.kept.is_none_or(|kept| kept.elapsed() >= KEEP_EVERY) {
                    state.kept = Some(Instant::now());
                    self.keep(&state);
                }
                Ok(())
            }
            Err((what, detail)) => Err(refused(&mut state, note, what, detail)),
        }
    }

    /// The record of a log that has less than it acknowledged, unless it was made before.
    pub fn lacks(&self, next_seq: u64, acked: u64) -> Option<CheckpointRefused> {
        let before = self.state().lacked.replace(next_seq);
        let detail = format!("it acknowledged records below {acked} of this journal and has those below {next_seq}");
        (before != Some(next_seq)).then(|| CheckpointRefused {
            what: "lost_records".into(),
            detail,
            ..CheckpointRefused::default()
        })
    }

    /// Makes the last checkpoint durable.
    pub fn keep_now(&self) {
        self.keep(&self.state());
    }

    fn keep(&self, state: &State) {
        let (Some(verifier), Some((_, note))) = (&state.verifier, &state.last) else { return };
        let keys: Vec<String> = std::iter::once(verifier).chain(&state.trail).map(Verifier::vkey).collect();
        let content = [keys.join(" ").as_bytes(), b"\n", note].concat();
        if let Err(error) = frame::replace(&self.path, &content) {
            tracing::error!(%error, path = %self.path.display(), "the log's checkpoint cannot be remembered");
        }
    }
}

/// The checkpoint, if it continues what was seen; else what is wrong with it.
fn check(state: &State, note: &[u8], proof: &[Vec<u8>]) -> Result<Checkpoint, (&'static str, String)> {
    let Some(verifier) = &state.verifier else { return Err(("unsigned", "no key of the log is known".into())) };
    let next = Checkpoint::open(note, verifier).map_err(|error| match error {
        CheckpointError::Origin { .. } => ("other_log", error.to_string()),
        _ => ("unsigned", error.to_string()),
    })?;
    let Some((last, _)) = &state.last else { return Ok(next) };
    if next.size < last.size {
        let detail = format!("its size is {}, this host has seen {}: an older copy of the log", next.size, last.size);
        return Err(("rollback", detail));
    }
    continues(last, &next, proof).map(|()| next).map_err(|detail| ("fork", detail))
}

fn continues(last: &Checkpoint, next: &Checkpoint, proof: &[Vec<u8>]) -> Result<(), String> {
    let hashes: Vec<Hash> = proof.iter().take(PROOF_MAX).filter_map(|h| h.as_slice().try_into().ok()).collect();
    tree::verify_consistency(last.size, next.size, &hashes, &last.root, &next.root)
        .map_err(|error| format!("size {} does not continue size {}: {error}", next.size, last.size))
}

/// Key and head from now on, and the keys between.
type Next = (Verifier, Checkpoint, Vec<Verifier>);
type Refused = (&'static str, String);

/// The changes of a welcome that lead on from the key that is believed, with what came with each. A successor may also lead on
/// from a key that was believed before: the copy that was put back may be older than a rotation, and the admin key says so.
fn leading<'a>(
    key: &Verifier,
    trail: &[Verifier],
    changes: &'a [LogChange],
) -> Result<Vec<(Step, &'a LogChange)>, Refused> {
    let (mut key, mut found) = (key.clone(), Vec::new());
    for change in changes.iter().take(CHANGES_MAX) {
        let text =
            std::str::from_utf8(change.receipt.get(..change.receipt.len().min(CHANGE_MAX + 1)).unwrap_or_default());
        let step = text.map_err(|e| e.to_string()).and_then(|text| Step::parse(text).map_err(|e| e.to_string()));
        let step = step.map_err(|error| {
            let what = if Step::claims_succession(&change.receipt) { "successor" } else { "rotation" };
            (what, format!("a change of its key does not hold: {error}"))
        })?;
        let (old, new) = (step.change.old(), step.change.new_key());
        // One that was followed already leads nowhere.
        let followed = *new == key || trail.contains(new);
        let older = matches!(step.change, Change::Succession(_)) && trail.contains(old) && !followed;
        if *old == key || older {
            key = new.clone();
            found.push((step, change));
        }
    }
    Ok(found)
}

/// The key and the head that are believed from now on, if the welcome leads to another key, and what to record of that.
fn follow(state: &State, welcome: &ShipWelcome) -> Result<Option<(Next, Followed)>, Refused> {
    let Some(key) = &state.verifier else { return Ok(None) };
    let steps = leading(key, &state.trail, &welcome.changes)?;
    let Some((last, _)) = steps.last() else { return Ok(None) };
    let newest = last.change.new_key().clone();
    for (step, _) in &steps {
        step.allowed(state.admin.as_ref()).map_err(|error| match error {
            ChangeError::NoAdmin { .. } => ("successor", format!("{error} (`collector.admin_vkey`)")),
            error => ("successor", error.to_string()),
        })?;
    }
    let head = Checkpoint::open(&welcome.checkpoint, &newest).map_err(|error| match error {
        CheckpointError::Origin { .. } => ("other_log", error.to_string()),
        _ => ("unsigned", error.to_string()),
    })?;
    let mut followed = Followed::default();
    let mut seen = state.last.clone();
    for (step, proofs) in &steps {
        let what = if matches!(step.change, Change::Rotation(_)) { "rotation" } else { "successor" };
        continues(&step.head, &head, &proofs.consistency)
            .map_err(|detail| (what, format!("{step}; but its record is not in this log: {detail}")))?;
        let mut detail = String::new();
        if let Change::Succession(succession) = &step.change {
            let statement = &succession.statement;
            let kept = Checkpoint { origin: head.origin.clone(), size: statement.kept.0, root: statement.kept.1 };
            continues(&kept, &head, &proofs.kept)
                .map_err(|error| (what, format!("{step}; but it does not continue what it keeps: {error}")))?;
            followed.succeeded = true;
            detail = succession.to_string();
            // What this host saw past the copy is what was lost; before it, all must be as it was.
            if let Some((lost, _)) = seen.take_if(|(last, _)| last.size > statement.begins) {
                detail = format!("{detail}; this host had seen size {}", lost.size);
            }
        }
        followed.records.push(LogFollowed {
            what: if what == "rotation" { "rotated" } else { "succeeded" }.into(),
            old_vkey: step.change.old().vkey(),
            new_vkey: step.change.new_key().vkey(),
            seen: state.last.as_ref().map(|(_, note)| note.clone()).unwrap_or_default(),
            leaf: step.leaf,
            detail,
        });
    }
    if let Some((last, _)) = &seen {
        if head.size < last.size {
            let detail =
                format!("its size is {}, this host has seen {}: an older copy of the log", head.size, last.size);
            return Err(("rollback", detail));
        }
        continues(last, &head, &welcome.consistency).map_err(|detail| ("fork", detail))?;
    }
    let between = steps.iter().skip(1).map(|(step, _)| step.change.old().clone()).collect();
    Ok(Some(((newest, head, between), followed)))
}

fn refused(state: &mut State, note: &[u8], what: &'static str, detail: String) -> Disbelieved {
    let shown = note.get(..note.len().min(SHOWN)).unwrap_or_default().to_vec();
    let said = state.refused.as_ref() == Some(&shown);
    state.refused = Some(shown.clone());
    let hint = if state.pinned { "" } else { " (the key was taken at first use; see `collector.log_vkey`)" };
    Disbelieved {
        text: format!("the collector's log is not believed ({what}): {detail}{hint}"),
        record: (!said).then(|| CheckpointRefused {
            what: what.into(),
            seen: state.last.as_ref().map(|(_, note)| note.clone()).unwrap_or_default(),
            refused: shown,
            detail,
        }),
    }
}

#[cfg(test)]
mod tests {
    use guard_log::proof::{Nodes, Receipt, ReceiptError};
    use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
    use guard_log::signer::{KeyFile, Signers};
    use guard_log::store::{Store, StoreOptions};
    use guard_log::tree::Frontier;
    use guard_log::verify::Folder;
    use guard_proto::v1::record_body::Body;
    use guard_proto::v1::{Gap, KeyRotated, RecordBody};
    use prost::Message;

    use super::*;

    /// A log of `size` leaves, of which those from `fork` on are others.
    fn tree(size: u64, fork: u64) -> Vec<Hash> {
        (0..size).map(|n| tree::leaf_hash(format!("{n}{}", if n < fork { "" } else { "'" }).as_bytes())).collect()
    }

    fn head(signer: &KeyFile, leaves: &[Hash]) -> Vec<u8> {
        let mut frontier = Frontier::default();
        leaves.iter().for_each(|leaf| frontier.push(*leaf));
        let head = Checkpoint { origin: signer.name().into(), size: leaves.len() as u64, root: frontier.root() };
        head.sign(signer).unwrap().into_bytes()
    }

    fn proof(leaves: &[Hash], old: u64) -> Vec<Vec<u8>> {
        let mut read = |level: u32, index: u64| {
            let (from, to) = ((index << level) as usize, ((index + 1) << level) as usize);
            let mut frontier = Frontier::default();
            leaves[from..to].iter().for_each(|leaf| frontier.push(*leaf));
            Ok::<_, tree::ProofError>(frontier.root())
        };
        let hashes = tree::consistency_proof(old, leaves.len() as u64, &mut read).unwrap();
        hashes.into_iter().map(|hash| hash.to_vec()).collect()
    }

    fn seen(dir: &Path, signer: &KeyFile) -> Seen {
        Seen::open(dir, Some(&signer.verifier()), None).unwrap()
    }

    #[test]
    fn a_log_that_grows_is_believed_also_after_a_restart() {
        let (dir, signer) = (tempfile::tempdir().unwrap(), KeyFile::generate("log.test").unwrap());
        let log = seen(dir.path(), &signer);
        for (old, size) in [(0, 3), (3, 3), (3, 8), (8, 21)] {
            let leaves = tree(size, u64::MAX);
            log.believe(&head(&signer, &leaves), &proof(&leaves, old)).unwrap();
        }
        log.keep_now();
        assert_eq!(seen(dir.path(), &signer).size(), 21);
    }

    #[test]
    fn a_fork_a_rollback_and_another_key_are_refused_and_said_once() {
        let (dir, signer) = (tempfile::tempdir().unwrap(), KeyFile::generate("log.test").unwrap());
        let stranger = KeyFile::generate("log.test").unwrap();
        let log = seen(dir.path(), &signer);
        let leaves = tree(10, u64::MAX);
        log.believe(&head(&signer, &leaves), &[]).unwrap();
        let forked = tree(12, 5);
        for (note, proof, what) in [
            (head(&signer, &forked), proof(&forked, 10), "fork"),
            (head(&signer, &tree(10, 9)), vec![], "fork"),
            (head(&signer, &tree(12, u64::MAX)), vec![], "fork"),
            (head(&signer, &tree(9, u64::MAX)), vec![], "rollback"),
            (head(&stranger, &tree(12, u64::MAX)), proof(&tree(12, u64::MAX), 10), "unsigned"),
            (b"no checkpoint".to_vec(), vec![], "unsigned"),
        ] {
            let first = log.believe(&note, &proof).unwrap_err();
            assert_eq!(first.record.as_ref().unwrap().what, what, "{}", first.text);
            assert_eq!(log.believe(&note, &proof).unwrap_err().record, None);
            assert_eq!(log.size(), 10);
        }
        let leaves = tree(12, u64::MAX);
        log.believe(&head(&signer, &leaves), &proof(&leaves, 10)).unwrap();
    }

    #[test]
    fn the_key_of_first_use_stays_and_a_damaged_file_is_no_reason_to_believe_anew() {
        let (dir, signer) = (tempfile::tempdir().unwrap(), KeyFile::generate("log.test").unwrap());
        let log = Seen::open(dir.path(), None, None).unwrap();
        log.introduce(&signer.vkey()).unwrap();
        log.believe(&head(&signer, &tree(3, u64::MAX)), &[]).unwrap();
        log.keep_now();
        let log = Seen::open(dir.path(), None, None).unwrap();
        let stranger = KeyFile::generate("log.test").unwrap();
        log.introduce(&stranger.vkey()).unwrap();
        assert!(log.believe(&head(&stranger, &tree(4, u64::MAX)), &proof(&tree(4, u64::MAX), 3)).is_err());
        std::fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        assert!(Seen::open(dir.path(), None, None).is_err());
        // An operator who pins another key begins with another log.
        std::fs::write(dir.path().join(FILE), format!("{}\n{}", signer.vkey(), "x")).unwrap();
        assert_eq!(seen(dir.path(), &stranger).size(), 0);
    }

    /// A log of one key that a second one followed, as a welcome shows it.
    struct Rotated {
        old: KeyFile,
        new: KeyFile,
        dir: tempfile::TempDir,
    }

    impl Rotated {
        fn new() -> Self {
            let (old, new) = (KeyFile::generate("log.test").unwrap(), KeyFile::generate("log.test").unwrap());
            let made = Self { old, new, dir: tempfile::tempdir().unwrap() };
            Store::create(&made.options(), &made.old).unwrap();
            let store = made.open(&[&made.old]);
            made.append(&store, 5);
            drop(store);
            let store = made.open(&[&made.old, &made.new]);
            let (old_vkey, new_vkey) = (made.old.vkey(), made.new.vkey());
            let body = Body::KeyRotated(KeyRotated { what: "begun".into(), old_vkey, new_vkey });
            made.say(&store, &body);
            let (receipt, record) = Receipt::make(&made.folder(), &made.old.verifier(), 5).unwrap();
            store.keep_change(receipt, record).unwrap();
            drop(store);
            made.append(&made.open(&[&made.new]), 3);
            made
        }

        fn options(&self) -> StoreOptions {
            let at = |name: &str| self.dir.path().join(name);
            StoreOptions { dir: at("data"), lock: at("lock"), segment_bytes: 1 << 20, require_real_disk: false }
        }

        fn open(&self, keys: &[&KeyFile]) -> Store {
            let again = |key: &KeyFile| KeyFile::from_skey(&key.skey()).unwrap();
            let signers = Signers::from(again(keys[0]));
            let signers = keys.get(1).map_or(signers.clone(), |next| signers.with_next(again(next)).unwrap());
            Store::open(self.options(), signers).unwrap().0
        }

        fn say(&self, store: &Store, body: &Body) {
            let header = Header {
                version: 1,
                kind: Kind(guard_proto::kind_number(body)),
                host: HostId([1; 16]),
                epoch: Epoch([2; 16]),
                seq: store.size(),
                prev: [0; 32],
                boot_ns: 0,
                wall_unix_ns: 0,
                session: SessionId::NONE,
            };
            let bytes = RecordBody { body: Some(body.clone()) }.encode_to_vec();
            store.append(vec![Record::seal(&header, &bytes).unwrap()]).unwrap().wait().unwrap();
            store.publish().unwrap();
        }

        fn append(&self, store: &Store, count: usize) {
            (0..count).for_each(|_| self.say(store, &Body::Gap(Gap::default())));
        }

        fn folder(&self) -> Folder {
            Folder::open(&self.options().dir.join("log")).unwrap()
        }

        /// As the collector greets a host that has seen so much.
        fn welcome(&self, seen: u64) -> ShipWelcome {
            let store = self.open(&[&self.new]);
            let (size, note) = store.published();
            let grown = |old: u64| -> Vec<Vec<u8>> {
                if old == 0 || old >= size {
                    return vec![];
                }
                let folder = self.folder();
                let mut nodes = Nodes::new(&folder, size);
                let proof: Result<Vec<Hash>, ReceiptError> =
                    tree::consistency_proof(old, size, &mut |level, at| nodes.read(level, at));
                proof.unwrap().into_iter().map(|hash| hash.to_vec()).collect()
            };
            let change = |step: &Step| LogChange {
                receipt: step.receipt.clone().into_bytes(),
                consistency: grown(step.head.size),
                kept: vec![],
            };
            ShipWelcome {
                checkpoint: note.into_bytes(),
                consistency: grown(seen),
                changes: store.changes().iter().map(change).collect(),
                log_vkey: store.vkey(),
                ..ShipWelcome::default()
            }
        }
    }

    #[test]
    fn a_rotation_is_followed_once_and_outlives_a_restart_with_the_old_pin() {
        let (log, dir) = (Rotated::new(), tempfile::tempdir().unwrap());
        let open = |pin: &KeyFile| Seen::open(dir.path(), Some(&pin.verifier()), None).unwrap();
        let seen = open(&log.old);
        let followed = seen.welcome(&log.welcome(0)).unwrap();
        assert_eq!((followed.records.len(), followed.succeeded, followed.records[0].leaf), (1, false, 5));
        assert_eq!(seen.welcome(&log.welcome(9)).unwrap(), Followed::default());
        drop(seen);
        for pin in [&log.old, &log.new] {
            let seen = open(pin);
            assert_eq!(seen.size(), 9);
            assert_eq!(seen.welcome(&log.welcome(9)).unwrap(), Followed::default());
            // The old key does not count any more.
            let more = Checkpoint::open_unsigned(&log.welcome(0).checkpoint).unwrap();
            let note = Checkpoint { size: 10, root: [3; 32], ..more }.sign(&log.old).unwrap();
            assert_eq!(seen.believe(note.as_bytes(), &[]).unwrap_err().record.unwrap().what, "unsigned");
        }
        // A pin that never led there is another log.
        let stranger = KeyFile::generate("log.test").unwrap();
        assert_eq!(open(&stranger).size(), 0);
    }

    #[test]
    fn a_rotation_in_another_log_than_the_one_that_was_seen_is_a_fork() {
        let (log, dir) = (Rotated::new(), tempfile::tempdir().unwrap());
        let seen = Seen::open(dir.path(), Some(&log.old.verifier()), None).unwrap();
        // Four other leaves under the same key.
        seen.believe(&head(&log.old, &tree(4, 0)), &[]).unwrap();
        let why = seen.welcome(&log.welcome(4)).unwrap_err().record.unwrap();
        assert_eq!(why.what, "fork", "{}", why.detail);
        assert_eq!(seen.size(), 4);
        // Nor one that has less than was seen, whoever signed it.
        let dir = tempfile::tempdir().unwrap();
        let seen = Seen::open(dir.path(), Some(&log.old.verifier()), None).unwrap();
        seen.believe(&head(&log.old, &tree(20, 0)), &[]).unwrap();
        assert_eq!(seen.welcome(&log.welcome(20)).unwrap_err().record.unwrap().what, "rollback");
    }

    #[test]
    fn a_rotation_without_its_proofs_is_refused() {
        let log = Rotated::new();
        let refused = |change: &dyn Fn(&mut ShipWelcome)| {
            let dir = tempfile::tempdir().unwrap();
            let seen = Seen::open(dir.path(), Some(&log.old.verifier()), None).unwrap();
            let mut welcome = log.welcome(0);
            change(&mut welcome);
            seen.welcome(&welcome).unwrap_err().record.unwrap().what
        };
        assert_eq!(refused(&|w| w.changes[0].consistency.clear()), "rotation");
        assert_eq!(refused(&|w| w.changes[0].receipt.truncate(100)), "rotation");
        assert_eq!(refused(&|w| w.changes.clear()), "unsigned");
    }
}
