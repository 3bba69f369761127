//! What a record cannot hold or must not hold for ever: long argument vectors, digests of masked secrets. Beside the journal,
//! by digest, until the collector has it.
//!
//! A blob is durable before the record that names it is queued. It goes in the same batch as its record, and away when that is
//! acknowledged and has left the journal, or when its room is needed. All that wait are bounded together, and each session's by
//! its share of what is free, as the journal's records are. It must not
//! hold a secret: of those it has digests over its own salt. Fails: a blob that cannot be written is an error, and the exec
//! that needs it is denied.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_log::frame;
use guard_log::record::{Kind, Record, SessionId};
use guard_policy::Policy;
use guard_policy::secrets::{self, Masked};
use guard_proto::BLOB_MAX;
use guard_proto::v1::{Blob, EnvValue, MaskedArg, RecordBody, SecretDigest};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::files::read_bounded;
use crate::record::bounded_argv;

/// Folder inside the journal's.
const FOLDER: &str = "blobs";
/// Masked places that one record or blob names.
const MASKED_MAX: usize = 64;
/// Bytes of all variables that one record keeps.
const ENV_BYTES: usize = 4 << 10;

/// A blob's SHA-256.
pub type BlobId = [u8; 32];

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes of all blobs together.
    pub max_bytes: u64,
    /// One session's blobs may take this part, in per cent, of what is free.
    pub session_percent: u64,
}

/// Blobs that the collector does not have yet.
pub struct Blobs {
    dir: PathBuf,
    room: Room,
    /// When the collector has every record below it, what was found at the start and is still there was never named by one.
    start: u64,
    held: Mutex<Held>,
}

/// A blob in the folder, or on its way there.
struct Waiting {
    bytes: u64,
    /// None for what an earlier daemon left.
    session: SessionId,
    /// The collector has it; it stays as long as its record, where there is room.
    kept: bool,
}

#[derive(Default)]
struct Held {
    /// In the folder.
    all: HashMap<BlobId, Waiting>,
    /// Of those, on their way, by the number of their record.
    sent: BTreeMap<u64, Vec<BlobId>>,
    /// Found at the start.
    left: Vec<BlobId>,
}

impl Held {
    /// What is in the folder, without what was not finished.
    fn of(dir: &Path) -> io::Result<Self> {
        frame::make_dir(dir)?;
        let mut held = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            match id_of(&entry.file_name().to_string_lossy()) {
                Some(id) => {
                    held.all
                        .insert(id, Waiting { bytes: entry.metadata()?.len(), session: SessionId::NONE, kept: false });
                    held.left.push(id);
                }
                None => fs::remove_file(entry.path())?,
            }
        }
        Ok(held)
    }

    /// Whether so much more of a session fits; the error says what to do.
    fn check(&self, session: SessionId, bytes: u64, room: Room) -> Result<(), &'static str> {
        let waiting = || self.all.values().filter(|w| !w.kept);
        let taken: u64 = waiting().map(|w| w.bytes).sum();
        let own: u64 = waiting().filter(|w| w.session == session).map(|w| w.bytes).sum();
        let free = room.max_bytes.saturating_sub(taken);
        if bytes > free {
            return Err("there is no room for more arguments beside the journal; they must be shipped first");
        }
        if own + bytes > free / 100 * room.session_percent {
            return Err("this session has its share of the room for arguments; they must be shipped first");
        }
        Ok(())
    }
}

impl Blobs {
    /// Opens the folder, and forgets what was not finished. `start` is the next record's number.
    pub fn open(journal: &Path, room: Room, start: u64) -> io::Result<Self> {
        let dir = journal.join(FOLDER);
        let held = Held::of(&dir).map_err(named(&dir))?;
        Ok(Self { dir, room, start, held: Mutex::new(held) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &BlobId) -> PathBuf {
        self.dir.join(hex::encode(id))
    }

    /// Makes a blob durable.
    fn put(&self, session: SessionId, blob: &Blob) -> io::Result<BlobId> {
        let content = blob.encode_to_vec();
        let bytes = content.len() as u64;
        let id: BlobId = Sha256::digest(&content).into();
        {
            let mut held = self.held();
            let fits =
                if content.len() > BLOB_MAX { Err("they are too long") } else { held.check(session, bytes, self.room) };
            fits.map_err(|why| io::Error::new(io::ErrorKind::StorageFull, why))?;
            held.all.insert(id, Waiting { bytes, session, kept: false });
        }
        self.make_room();
        self.write(&id, &content).inspect_err(|_| self.forget(&id)).map_err(named(&self.path(&id)))?;
        Ok(id)
    }

    fn write(&self, id: &BlobId, content: &[u8]) -> io::Result<()> {
        let path = self.path(id);
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        frame::sync_dir(&self.dir)
    }

    /// Keeps what the record of these arguments cannot hold; nothing where it holds all. `whole` are the arguments as they
    /// came. Who then makes no record that names it calls [`Self::discard`].
    pub fn keep(&self, session: SessionId, whole: &[Vec<u8>], shown: &Masked) -> io::Result<Option<BlobId>> {
        let omitted = bounded_argv(&shown.argv).1 > 0;
        if !omitted && shown.secrets.is_empty() {
            return Ok(None);
        }
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| io::Error::other(e.to_string()))?;
        let secret = |at: &secrets::Secret| SecretDigest {
            arg: number(at.arg),
            sha256: Sha256::new_with_prefix(salt)
                .chain_update(whole.get(at.arg).and_then(|a| a.get(at.at.clone())).unwrap_or_default())
                .finalize()
                .to_vec(),
        };
        let blob = Blob {
            salt: salt.to_vec(),
            argv: if omitted { shown.argv.clone() } else { Vec::new() },
            secrets: shown.secrets.iter().take(MASKED_MAX).map(secret).collect(),
        };
        self.put(session, &blob).map(Some)
    }

    /// The blob that a record names and the collector may lack. An error: it is lost, and its record is shipped without; the
    /// caller records that.
    pub fn of(&self, record: &Record) -> io::Result<Option<Vec<u8>>> {
        if self.held().all.is_empty() {
            return Ok(None);
        }
        let Some(id) = named_by(record).filter(|id| self.held().all.contains_key(id)) else { return Ok(None) };
        self.held().sent.entry(record.header().seq).or_default().push(id);
        let path = self.path(&id);
        let content = read_bounded(&path, BLOB_MAX as u64).map_err(named(&path))?;
        if Sha256::digest(&content).as_slice() != id {
            return Err(io::Error::other(format!("blob {}: is not what its name says", path.display())));
        }
        Ok(Some(content))
    }

    /// The collector has all records below this number, and their blobs: those do not wait any more.
    pub fn acknowledged(&self, next_seq: u64) {
        let mut held = self.held();
        let left = if next_seq >= self.start { held.left.clone() } else { Vec::new() };
        let sent: Vec<BlobId> = held.sent.range(..next_seq).flat_map(|(_, ids)| ids.iter().copied()).collect();
        for id in left.into_iter().chain(sent) {
            if let Some(blob) = held.all.get_mut(&id) {
                blob.kept = true;
            }
        }
    }

    /// Takes away the oldest of what is only kept, until all together have room.
    fn make_room(&self) {
        loop {
            let oldest = {
                let held = self.held();
                if held.all.values().map(|w| w.bytes).sum::<u64>() <= self.room.max_bytes {
                    return;
                }
                let ids = held.left.iter().chain(held.sent.values().flatten());
                ids.copied().find(|id| held.all.get(id).is_some_and(|blob| blob.kept))
            };
            let Some(oldest) = oldest else { return };
            self.forget(&oldest);
        }
    }

    /// The journal holds no record below this number any more.
    pub fn gone_below(&self, next_seq: u64) {
        let gone: Vec<BlobId> = {
            let mut held = self.held();
            let later = held.sent.split_off(&next_seq);
            let done = std::mem::replace(&mut held.sent, later);
            let left = if next_seq >= self.start { std::mem::take(&mut held.left) } else { Vec::new() };
            done.into_values().flatten().chain(left).collect()
        };
        gone.iter().for_each(|id| self.forget(id));
    }

    /// No record will name this blob.
    pub fn discard(&self, id: &[u8]) {
        if let Ok(id) = id.try_into() {
            self.forget(&id);
        }
    }

    fn forget(&self, id: &BlobId) {
        let path = self.path(id);
        if self.held().all.remove(id).is_none() {
            return;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a blob that is not needed any more stays");
            }
            _ => {}
        }
    }
}

/// The error says which file.
fn named(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("blob {}: {e}", path.display()))
}

fn id_of(name: &str) -> Option<BlobId> {
    let mut id = [0; 32];
    hex::decode_to_slice(name, &mut id).ok().map(|()| id)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// The blob that a record names.
fn named_by(record: &Record) -> Option<BlobId> {
    if !matches!(record.header().kind, Kind::EXEC | Kind::EXEC_REQUEST) {
        return None;
    }
    let body = RecordBody::decode(record.body()).ok()?.body?;
    guard_proto::named_blob(&body)?.try_into().ok()
}

/// What was masked, as a record says it.
pub fn masked(shown: &Masked) -> Vec<MaskedArg> {
    let said = |secret: &secrets::Secret| MaskedArg { arg: number(secret.arg), why: secret.why.into() };
    shown.secrets.iter().take(MASKED_MAX).map(said).collect()
}

/// Arguments as the kernel programs saw them, each cut to less than `slot` bytes, as they may be kept. An address may end before
/// the `@` that tells its password from a port: of one that is cut everything after its user counts as the password.
pub fn shown_of_cut(mut argv: Vec<Vec<u8>>, slot: usize) -> Vec<Vec<u8>> {
    let cut: Vec<usize> = (0..argv.len()).filter(|n| argv.get(*n).is_some_and(|a| a.len() + 1 >= slot)).collect();
    for n in &cut {
        argv.extend_from_within(*n..n + 1);
    }
    let first = argv.len() - cut.len();
    argv.iter_mut().skip(first).for_each(|copy| copy.push(b'@'));
    let mut shown = secrets::mask("", argv.get(..first).unwrap_or_default()).argv;
    for (n, copy) in cut.into_iter().zip(argv.get(first..).unwrap_or_default()) {
        let ended = secrets::mask("", std::slice::from_ref(copy));
        if let Some(place) = shown.get_mut(n).filter(|_| ended.secrets.iter().any(|s| s.why == "address")) {
            *place = ended.argv.into_iter().next().unwrap_or_default();
            place.pop();
        }
    }
    shown
}

/// Variables whose values policy wants in records, without secrets, as far as they fit.
pub fn env_values(policy: &Policy, env: &[Vec<u8>]) -> Vec<EnvValue> {
    let mut room = ENV_BYTES;
    let mut values = Vec::new();
    for text in env {
        let Some(end) = text.iter().position(|b| *b == b'=') else { continue };
        let name = text.get(..end).unwrap_or_default();
        if !policy.records_variable(name) {
            continue;
        }
        // With its name in front, so that PASSWORD=x is known for what it is.
        let shown = secrets::mask("", std::slice::from_ref(text)).argv.pop().unwrap_or_default();
        let value = shown.get(end + 1..).unwrap_or_default().to_vec();
        let cost = name.len() + value.len() + 8;
        if cost > room {
            break;
        }
        room -= cost;
        values.push(EnvValue { name: name.to_vec(), value });
    }
    values
}

/// What digests that records hold begin with, so that nobody can guess what they are of. It never leaves the host.
pub struct DigestKey([u8; 32]);

impl DigestKey {
    /// Reads it, or makes it at the first start.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let path = state_dir.join("digest-key");
        let wrong = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        match read_bounded(&path, 64) {
            Ok(bytes) => {
                let short = |_| io::Error::other("is not 32 bytes; remove it to have a new one made");
                bytes.try_into().map(Self).map_err(short).map_err(wrong)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; 32];
                getrandom::fill(&mut key).map_err(|e| wrong(io::Error::other(e.to_string())))?;
                let new = path.with_extension("new");
                let make = || {
                    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
                    file.write_all(&key)?;
                    file.sync_all()?;
                    fs::rename(&new, &path)?;
                    frame::sync_dir(state_dir)
                };
                make().map_err(wrong)?;
                Ok(Self(key))
            }
            Err(e) => Err(wrong(e)),
        }
    }

    /// A session's own.
    pub fn salt(&self, session: &[u8; 16]) -> [u8; 32] {
        Sha256::new_with_prefix(b"guard salt v1").chain_update(self.0).chain_update(session).finalize().into()
    }
}

#[cfg(test)]
mod faults;

#[cfg(test)]
mod tests {
    use guard_log::record::{Epoch, Header, HostId, SessionId};
    use guard_proto::v1::record_body::Body;
    use guard_proto::v1::{Exec, ExecFacts};

    use super::*;

    const ROOM: Room = Room { max_bytes: 1 << 20, session_percent: 100 };
    const SESSION: SessionId = SessionId([3; 16]);

    fn words(text: &str) -> Vec<Vec<u8>> {
        text.split(' ').map(|w| w.as_bytes().to_vec()).collect()
    }

    fn record(seq: u64, id: &BlobId) -> Record {
        let facts = ExecFacts { blob_sha256: id.to_vec(), ..ExecFacts::default() };
        let body = Body::Exec(Exec { facts: Some(facts), ..Exec::default() });
        let header = Header {
            version: 1,
            kind: Kind::EXEC,
            host: HostId([1; 16]),
            epoch: Epoch([2; 16]),
            seq,
            prev: [0; 32],
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SESSION,
        };
        Record::seal(&header, &RecordBody { body: Some(body) }.encode_to_vec()).unwrap()
    }

    #[test]
    fn what_a_record_holds_needs_no_blob() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 0).unwrap();
        let argv = words("ls -l /tmp");
        assert_eq!(blobs.keep(SESSION, &argv, &secrets::mask("ls", &argv)).unwrap(), None);
    }

    #[test]
    fn a_secret_leaves_a_digest_that_its_salt_explains_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let argv = words("curl -u bob:hunter22 http://h");
        let id = blobs.keep(SESSION, &argv, &secrets::mask("curl", &argv)).unwrap().unwrap();
        let shipped = blobs.of(&record(7, &id)).unwrap().unwrap();
        let blob = Blob::decode(shipped.as_slice()).unwrap();
        assert!(blob.argv.is_empty() && blob.secrets[0].arg == 2);
        let want = Sha256::new_with_prefix(&blob.salt).chain_update(b"hunter22").finalize();
        assert_eq!(blob.secrets[0].sha256, want.as_slice());
        assert!(!shipped.windows(8).any(|w| w == b"hunter22"));
    }

    #[test]
    fn a_blob_stays_until_its_record_has_left_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let argv = vec![b"x".repeat(100_000), b"y".to_vec()];
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let id = blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).unwrap().unwrap();
        drop(blobs);
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let content = blobs.of(&record(7, &id)).unwrap().unwrap();
        assert_eq!(Blob::decode(content.as_slice()).unwrap().argv, argv);
        blobs.gone_below(7);
        assert!(blobs.of(&record(7, &id)).unwrap().is_some());
        blobs.gone_below(8);
        assert!(blobs.of(&record(7, &id)).unwrap().is_none());
        assert!(blobs.held().all.is_empty());
    }

    #[test]
    fn what_an_earlier_daemon_left_goes_when_all_its_records_have_left_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(FOLDER)).unwrap();
        fs::write(dir.path().join(FOLDER).join("half.new"), b"x").unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let argv = words("x --token abcdef");
        blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).unwrap().unwrap();
        drop(blobs);
        let blobs = Blobs::open(dir.path(), ROOM, 9).unwrap();
        let id = blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).unwrap().unwrap();
        blobs.gone_below(8);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 2);
        // What this daemon made may be named by a record that is not written yet.
        blobs.gone_below(9);
        assert!(blobs.of(&record(9, &id)).unwrap().is_some());
        blobs.gone_below(10);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let argv = words("x --token abcdef");
        let id = blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).unwrap().unwrap();
        fs::write(blobs.path(&id), b"other").unwrap();
        let error = blobs.of(&record(7, &id)).unwrap_err().to_string();
        assert!(error.contains(&hex::encode(id)) && error.contains("not what its name says"), "{error}");
    }

    #[test]
    fn what_was_cut_in_the_middle_of_a_secret_is_masked_too() {
        let argv = words("git clone https://bob:hunter22");
        assert_eq!(shown_of_cut(argv.clone(), 21)[2], b"https://bob:***");
        // Not cut: a port may stand there.
        assert_eq!(shown_of_cut(argv.clone(), 100), argv);
        assert_eq!(shown_of_cut(words("x --token=abcdef"), 15), words("x --token=***"));
    }

    #[test]
    fn blobs_are_bounded_and_no_session_takes_the_room_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), Room { max_bytes: 1_000_000, session_percent: 25 }, 0).unwrap();
        let argv = vec![b"x".repeat(100_000)];
        let keep = |session: u8| blobs.keep(SessionId([session; 16]), &argv, &secrets::mask("x", &argv));
        // A quarter of the million that is free, then of what is left: two blobs would be more.
        keep(1).unwrap();
        keep(1).unwrap();
        let share = keep(1).unwrap_err().to_string();
        assert!(share.contains("its share"), "{share}");
        // Others still have theirs, until a single blob is more than a quarter of what is free.
        (2..6).for_each(|session| assert!(keep(session).is_ok(), "session {session}"));
        assert!(keep(6).is_err());
    }

    #[test]
    fn what_the_collector_has_is_sent_again_if_need_be_and_gives_way_to_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), Room { max_bytes: 250_000, session_percent: 100 }, 0).unwrap();
        let keep = |fill: &[u8]| {
            let argv = vec![fill.repeat(100_000)];
            blobs.keep(SessionId([fill[0]; 16]), &argv, &secrets::mask("x", &argv)).map(Option::unwrap)
        };
        let (one, two) = (keep(b"1").unwrap(), keep(b"2").unwrap());
        for (seq, id) in [(1, &one), (2, &two)] {
            assert!(blobs.of(&record(seq, id)).unwrap().is_some());
        }
        assert!(keep(b"3").is_err(), "two wait, and there is room for two");
        blobs.acknowledged(3);
        assert!(blobs.of(&record(1, &one)).unwrap().is_some(), "a log that lacks it gets it again");
        let three = keep(b"3").unwrap();
        assert!(blobs.of(&record(1, &one)).unwrap().is_none(), "the oldest gave way");
        assert!(blobs.of(&record(2, &two)).unwrap().is_some() && blobs.of(&record(3, &three)).unwrap().is_some());
        blobs.gone_below(3);
        assert!(blobs.of(&record(2, &two)).unwrap().is_none() && blobs.of(&record(3, &three)).unwrap().is_some());
    }

    #[test]
    fn what_no_record_will_name_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        let argv = words("x --token abcdef");
        let id = blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).unwrap().unwrap();
        blobs.discard(&[]);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 1);
        blobs.discard(&id);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).unwrap().count(), 0);
        assert!(blobs.held().all.is_empty());
    }

    #[test]
    fn a_blob_that_cannot_be_written_is_an_error_and_takes_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path(), ROOM, 100).unwrap();
        fs::remove_dir(dir.path().join(FOLDER)).unwrap();
        let argv = words("x --token abcdef");
        assert!(blobs.keep(SESSION, &argv, &secrets::mask("x", &argv)).is_err());
        assert!(blobs.held().all.is_empty());
    }

    #[test]
    fn values_of_listed_variables_are_kept_without_their_secrets() {
        let text = "version: 1\nextends: default\nrecord_environment: [CI, \"APP_*\"]\n";
        let policy = Policy::load(&[guard_policy::Source { name: "test", text }]).unwrap();
        let env = words("CI=true APP_URL=https://bob:hunter22@h APP_TOKEN=abcdef HOME=/root odd");
        let kept = env_values(&policy, &env);
        let shown: Vec<_> = kept.iter().map(|v| [v.name.as_slice(), b"=", &v.value].concat()).collect();
        assert_eq!(shown, words("CI=true APP_URL=https://bob:***@h APP_TOKEN=***"));
    }

    #[test]
    fn a_key_is_made_once_and_gives_each_session_its_own_salt() {
        let dir = tempfile::tempdir().unwrap();
        let key = DigestKey::open(dir.path()).unwrap();
        let again = DigestKey::open(dir.path()).unwrap();
        assert_eq!(key.salt(&[1; 16]), again.salt(&[1; 16]));
        assert_ne!(key.salt(&[1; 16]), key.salt(&[2; 16]));
        fs::write(dir.path().join("digest-key"), b"short").unwrap();
        assert!(DigestKey::open(dir.path()).err().unwrap().to_string().contains("digest-key"));
    }
}
