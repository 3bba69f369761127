//! Files that a journal or a log finds when it opens: a segment whose bytes are anything, and a public tree.
//!
//! Whatever is found, nothing is promised twice and what opens goes on. In memory where there is such a place.

use std::path::Path;
use std::time::Duration;

use guard_log::checkpoint::Checkpoint;
use guard_log::journal::{Entry, Journal, JournalError, JournalOptions, offline};
use guard_log::proof::{Receipt, RecordId, find_record};
use guard_log::record::{HostId, Kind, Record, SessionId};
use guard_log::store::{Store, StoreError, StoreOptions};
use guard_log::tiles::{self, Level, Tile};
use guard_log::tree::{Frontier, leaf_hash};
use guard_log::verify::{AuditOptions, Source, SourceError, audit};
use tempfile::TempDir;

use super::seeds;

pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a folder")
}

pub fn journal_options(dir: &Path) -> JournalOptions {
    JournalOptions {
        dir: dir.to_path_buf(),
        segment_bytes: 4096,
        max_bytes: 64 << 20,
        reserve_bytes: 1000,
        session_percent: 100,
        keep: Duration::ZERO,
        require_real_disk: false,
    }
}

/// Whose journal it is.
pub const HOST: HostId = HostId([9; 16]);

pub fn entry(text: &str) -> Entry {
    Entry { kind: Kind::EXEC, session: SessionId::NONE, boot_ns: 1, wall_unix_ns: 2, body: text.into() }
}

/// The lock of a handle that is closing.
fn patiently<T, E>(mut open: impl FnMut() -> Result<T, E>, in_use: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 0..2000 {
        match open() {
            Err(error) if in_use(&error) => std::thread::sleep(Duration::from_micros(200)),
            other => return other,
        }
    }
    open()
}

fn open_journal(dir: &Path) -> Journal {
    let open = || Journal::open(journal_options(dir), HOST);
    let (journal, _) = patiently(open, |e| matches!(e, JournalError::InUse(_))).expect("whatever is found, it opens");
    journal.repairs_recorded().expect("noted");
    journal
}

/// The first segment of a journal is anything; the first byte says how far the collector acknowledged.
pub fn journal(data: &[u8]) {
    let Some((acked, data)) = data.split_first() else { return };
    let dir = folder();
    std::fs::write(dir.path().join("acked"), format!("{acked} {}", seeds::EPOCH)).expect("written");
    std::fs::write(dir.path().join("epoch"), seeds::EPOCH).expect("written");
    std::fs::write(dir.path().join("00000000000000000000.seg"), data).expect("written");
    let before = offline::examine(dir.path(), &mut |_| true).expect("readable");
    let journal = open_journal(dir.path());
    let state = journal.state();
    // What looks whole from outside is kept to the last record.
    if before.is_whole() {
        assert_eq!((before.epoch, before.next_seq), (Some(state.epoch), state.next_seq));
        assert_eq!(before.records, state.next_seq);
    }
    journal.append(entry("it goes on")).expect("queued").wait().expect("durable");
    journal.close();
    drop(journal);
    let after = offline::examine(dir.path(), &mut |_| true).expect("readable");
    let wrong = after.flaws.iter().find(|flaw| flaw.is_damage() && flaw.what != "quarantine");
    assert!(wrong.is_none(), "after the repair: {wrong:?}");
    assert_eq!(after.next_seq, state.next_seq + 1);
}

pub fn store_options(dir: &Path) -> StoreOptions {
    StoreOptions { dir: dir.join("data"), lock: dir.join("lock"), segment_bytes: 1 << 20, require_real_disk: false }
}

/// The first write-ahead segment of a log is anything.
pub fn segments(data: &[u8]) {
    let dir = folder();
    let options = store_options(dir.path());
    Store::create(&options, &seeds::signer()).expect("made");
    std::fs::write(options.dir.join("wal/00000000000000000000.wal"), data).expect("written");
    let open = || patiently(|| Store::open(options.clone(), seeds::signer()), |e| matches!(e, StoreError::InUse(_)));
    // Damage refuses to open; nothing is cut then.
    let Ok((store, _)) = open() else {
        let kept = std::fs::read(options.dir.join("wal/00000000000000000000.wal")).expect("still there");
        assert_eq!(kept, data);
        return;
    };
    let size = store.size();
    store.append(vec![seeds::record(0)]).expect("queued").wait().expect("durable");
    store.publish().expect("published");
    store.close();
    drop(store);
    let (store, report) = open().expect("it opens again");
    assert_eq!((store.size(), store.published().0, report.recovered), (size + 1, size + 1, None));
    store.close();
}

/// A public tree of one bundle, of whatever the bytes say, under a checkpoint that is signed.
struct Public {
    checkpoint: String,
    bundle: Vec<u8>,
    tile: Vec<u8>,
    pruned: Option<Vec<u8>>,
    width: u16,
}

impl Source for Public {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let tile = |level| Tile { level, index: 0, width: self.width }.to_string();
        Ok(match path {
            "checkpoint" => Some(self.checkpoint.clone().into_bytes()),
            "pruned" => self.pruned.clone(),
            path if path == tile(Level::Entries) => Some(self.bundle.clone()),
            path if path == tile(Level::Hashes(0)) => Some(self.tile.clone()),
            _ => None,
        })
    }
}

impl Public {
    /// Width, whether the tile fits the entries, how long the bundle is; then bundle, tile, and the mark of pruning.
    fn of(data: &[u8]) -> Option<(Self, Checkpoint)> {
        let ([width, fits, length @ ..], rest) = data.split_first_chunk::<4>()?;
        let width = u16::from(*width).max(1);
        let (bundle, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let (entries, _) = tiles::split_entries(bundle, width);
        let mut tree = Frontier::default();
        entries.iter().for_each(|entry| tree.push(leaf_hash(entry)));
        let own: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        let tile = if *fits & 1 == 1 { tiles::encode_hashes(&own) } else { rest.to_vec() };
        let pruned = (*fits & 2 == 2).then(|| rest.to_vec());
        let signer = seeds::signer();
        let head = Checkpoint { origin: signer.name().to_owned(), size: u64::from(width), root: tree.root() };
        let checkpoint = head.sign(&signer).expect("signed");
        Some((Self { checkpoint, bundle: bundle.to_vec(), tile, pruned, width }, head))
    }
}

pub fn public(data: &[u8]) {
    let Some((public, head)) = Public::of(data) else { return };
    let key = seeds::signer().verifier();
    let audited = audit(&public, &key, &AuditOptions::default(), &mut |_, _| {});
    let records = tiles::decode_entries(&public.bundle, public.width);
    let records = records.is_ok_and(|all| all.iter().all(|entry| Record::parse(entry.to_vec()).is_ok()));
    // Right is only what is whole in every part, and an audit that calls it right has read all of it.
    if audited.is_ok_and(|report| report.is_ok() && report.entries == head.size) {
        assert!(records && public.tile.len() == usize::from(public.width) * 32);
        for leaf in 0..head.size {
            let (receipt, entry) = Receipt::make(&public, &key, leaf).expect("of a log that is right");
            assert_eq!(receipt.verify(&entry, &key).expect("it holds"), head);
        }
    }
    let wanted = RecordId { host: HOST, epoch: seeds::epoch(), seq: 3 };
    let _ = find_record(&public, &wanted, head.size);
}
