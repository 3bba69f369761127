//! The store against crashes, restored backups, second writers and changed files.

use std::sync::mpsc;

use super::*;
use crate::record::{Epoch, Header, HostId, Kind, SessionId};
use crate::signer::KeyFile;
use crate::tree::{self, leaf_hash};

const ORIGIN: &str = "guard.test/log";

struct Place {
    dir: tempfile::TempDir,
    skey: String,
}

impl Place {
    fn new() -> Self {
        let place =
            Self { dir: tempfile::tempdir().unwrap(), skey: KeyFile::generate(ORIGIN).unwrap().skey().to_string() };
        Store::create(&place.options(), &place.signer()).unwrap();
        place
    }

    fn signer(&self) -> KeyFile {
        KeyFile::from_skey(&self.skey).unwrap()
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            dir: self.dir.path().join("data"),
            lock: self.dir.path().join("lock/head"),
            segment_bytes: 20_000,
            require_real_disk: false,
        }
    }

    fn open(&self) -> (Store, StoreReport) {
        self.tried().unwrap()
    }

    fn refused(&self) -> String {
        self.tried().unwrap_err().to_string()
    }

    fn tried(&self) -> Result<(Store, StoreReport), StoreError> {
        Store::open(self.options(), self.signer())
    }

    fn copy(&self, to: &str) {
        copy(&self.options().dir, &self.dir.path().join(to));
    }

    fn restore(&self, from: &str) {
        std::fs::remove_dir_all(self.options().dir).unwrap();
        copy(&self.dir.path().join(from), &self.options().dir);
    }

    /// The last segment's file.
    fn segment(&self) -> PathBuf {
        let wal = self.options().wal();
        wal::segment_path(&wal, *wal::segments(&wal).unwrap().last().unwrap())
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

fn record(number: u64) -> Record {
    let header = Header {
        version: 1,
        kind: Kind::EXEC,
        host: HostId([1; 16]),
        epoch: Epoch([2; 16]),
        seq: number,
        prev: [0; 32],
        boot_ns: 0,
        wall_unix_ns: 0,
        session: SessionId::NONE,
    };
    Record::seal(&header, format!("body {number}").as_bytes()).unwrap()
}

fn fill(store: &Store, from: u64, to: u64) {
    let mut last = None;
    for number in from..to {
        let ticket = store.append(vec![record(number)]).unwrap();
        // Several frames, some with several records.
        if number % 32 == 31 {
            ticket.wait().unwrap();
        } else {
            last = Some(ticket);
        }
    }
    if let Some(ticket) = last {
        ticket.wait().unwrap();
    }
}

/// Demands that exactly the records `0..size` are there, and that the public head, if it covers them, is theirs.
fn check(store: &Store, size: u64) {
    assert_eq!(store.size(), size);
    let mut frontier = tree::Frontier::default();
    let verifier = Verifier::parse(&store.vkey()).unwrap();
    let (public, note) = store.published();
    let head = Checkpoint::open(note.as_bytes(), &verifier).unwrap();
    assert_eq!((head.size, note.into_bytes()), (public, store.resource("checkpoint").unwrap().unwrap()));
    while frontier.size() < size {
        if frontier.size() == public {
            assert_eq!(frontier.root(), head.root);
        }
        // One at a time where the public head is met, so that its root is compared.
        let step = if public > frontier.size() { (public - frontier.size()).min(100) } else { 100 };
        for (leaf, found) in store.read(frontier.size(), step as usize, 5000).unwrap() {
            assert_eq!((leaf, &found), (frontier.size(), &record(leaf)));
            frontier.push(leaf_hash(found.bytes()));
        }
    }
    if public == size {
        assert_eq!(frontier.root(), head.root);
    }
}

#[test]
fn what_is_appended_is_there_after_reopening_published_or_not() {
    let place = Place::new();
    let (store, report) = place.open();
    assert_eq!(report, StoreReport { created: true, recovered: None });
    fill(&store, 0, 700);
    check(&store, 700);
    assert!(store.publish().unwrap());
    assert!(!store.publish().unwrap());
    check(&store, 700);
    fill(&store, 700, 1100);
    store.close();
    assert!(store.append(vec![record(0)]).is_err());
    drop(store);
    let (store, report) = place.open();
    assert_eq!(report, StoreReport::default());
    assert_eq!(store.published().0, 700);
    assert!(wal::segments(&place.options().wal()).unwrap().len() > 3);
    fill(&store, 1100, 1101);
    assert!(store.publish().unwrap());
    check(&store, 1101);
    drop(store);
    check(&place.open().0, 1101);
}

#[test]
fn groups_are_consecutive_whoever_appends_and_called_back() {
    let place = Place::new();
    let (store, _) = place.open();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (store, sender) = (store.clone(), sender.clone());
            scope.spawn(move || {
                for round in 0..50 {
                    let group: Vec<Record> = (0..3).map(|part| record(thread * 1000 + round * 10 + part)).collect();
                    let ticket = store.append(group.clone()).unwrap();
                    let (first, sender) = (ticket.first_leaf(), sender.clone());
                    ticket.on_done(move |result| sender.send((first, group, result)).unwrap());
                }
            });
        }
    });
    drop(sender);
    let mut leaves = 0;
    for (first, group, result) in receiver {
        result.unwrap();
        let found: Vec<Record> = store.read(first, 3, 1 << 20).unwrap().into_iter().map(|(_, r)| r).collect();
        assert_eq!(found, group);
        leaves += 3;
    }
    assert_eq!((leaves, store.size()), (600, 600));
    assert!(store.wait_past(599, Duration::ZERO));
    assert!(!store.wait_past(600, Duration::from_millis(5)));
}

#[test]
fn a_torn_write_is_cut_at_every_byte() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 5);
    store.publish().unwrap();
    let before = std::fs::metadata(place.segment()).unwrap().len();
    store.append(vec![record(5), record(6)]).unwrap().wait().unwrap();
    drop(store);
    let whole = std::fs::read(place.segment()).unwrap();
    for cut in before as usize + 1..whole.len() {
        std::fs::write(place.segment(), &whole[..cut]).unwrap();
        let (store, report) = place.open();
        assert!(report.recovered.unwrap().contains("cut a torn write"));
        check(&store, 5);
    }
    // Pages of an unsynced write may reach the disk in any order: the length is there, the bytes are not.
    let mut zeros = whole.clone();
    zeros[before as usize..].fill(0);
    std::fs::write(place.segment(), &zeros).unwrap();
    check(&place.open().0, 5);
    zeros[whole.len() - 40..].copy_from_slice(&whole[whole.len() - 40..]);
    std::fs::write(place.segment(), &zeros).unwrap();
    let (store, _) = place.open();
    fill(&store, 5, 9);
    store.publish().unwrap();
    check(&store, 9);
}

#[test]
fn damage_before_the_end_is_refused_with_file_and_byte() {
    let place = Place::new();
    let (store, _) = place.open();
    for number in 0..5 {
        fill(&store, number, number + 1);
    }
    drop(store);
    let mut bytes = std::fs::read(place.segment()).unwrap();
    bytes[60] ^= 1;
    std::fs::write(place.segment(), bytes).unwrap();
    let refused = place.refused();
    assert!(refused.contains("00000000000000000000.wal is damaged at byte 0"), "{refused}");
}

/// Stops after 0 to 3 steps of publishing, then reopens.
#[test]
fn a_stop_between_any_two_steps_of_publishing_is_completed() {
    for steps in 0..4 {
        for (before, after) in [(0, 3), (0, 256), (200, 300), (256, 512), (512, 513), (300, 1000)] {
            let place = Place::new();
            let (store, _) = place.open();
            fill(&store, 0, before);
            store.publish().unwrap();
            fill(&store, before, after);
            {
                let shared = &store.0.0;
                let mut publisher = lock(&shared.publisher);
                let mut edge = publisher.load_edge(&**shared).unwrap();
                if steps >= 1 {
                    publisher.write_tiles(&mut edge, &**shared, after).unwrap();
                }
                if steps >= 2 {
                    publisher.swap(&edge).unwrap();
                }
                if steps >= 3 {
                    publisher.announce().unwrap();
                }
            }
            drop(store);
            let (store, report) = place.open();
            assert_eq!(store.published().0, if steps >= 2 { after } else { before });
            assert_eq!(report.recovered.is_some(), steps == 2, "{report:?}");
            check(&store, after);
            fill(&store, after, after + 10);
            store.publish().unwrap();
            check(&store, after + 10);
        }
    }
}

#[test]
fn a_failed_publication_is_tried_again() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 300);
    store.publish().unwrap();
    fill(&store, 300, 600);
    // A file where a folder has to be: as a full disk, an error in the middle.
    let blocked = place.options().log().join("tile/0/002.p");
    std::fs::write(&blocked, "x").unwrap();
    assert!(store.publish().unwrap_err().to_string().contains("002.p"));
    assert_eq!(store.published().0, 300);
    std::fs::remove_file(&blocked).unwrap();
    assert!(store.publish().unwrap());
    check(&store, 600);
}

#[test]
fn a_key_that_does_not_sign_stops_publishing_and_nothing_else() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::signer::tests::Device;

    let place = Place::new();
    let gone = Arc::new(AtomicBool::new(false));
    let open = || Device { key: place.signer(), gone: gone.clone(), lies: false };
    let (store, _) = Store::open(place.options(), open()).unwrap();
    fill(&store, 0, 10);
    store.publish().unwrap();
    gone.store(true, Ordering::SeqCst);
    fill(&store, 10, 20);
    for _ in 0..2 {
        let refused = store.publish().unwrap_err();
        assert!(
            matches!(&refused, StoreError::Sign(cause) if cause.to_string().contains("does not answer")),
            "{refused}"
        );
    }
    // Not even the lock moved, records are taken, and a start does not depend on the key.
    assert!(std::fs::read_to_string(place.options().lock).unwrap().contains("\n10\n"));
    fill(&store, 20, 30);
    check(&store, 30);
    drop(store);
    let (store, _) = Store::open(place.options(), open()).unwrap();
    assert!(store.publish().is_err());
    gone.store(false, Ordering::SeqCst);
    assert!(store.publish().unwrap());
    assert_eq!(store.published().0, 30);
    check(&store, 30);
}

/// As a crash leaves them: sealed, and perhaps with half of the bytes.
#[test]
fn unnamed_files_of_a_cut_publication_do_not_disturb() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 600);
    let folder = place.options().log().join("tile/0");
    std::fs::create_dir_all(&folder).unwrap();
    let left = folder.join("000.tmp");
    std::fs::write(&left, "half").unwrap();
    std::fs::set_permissions(&left, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    assert!(store.publish().unwrap());
    assert!(!left.exists());
    check(&store, 600);
    drop(store);
    check(&place.open().0, 600);
}

#[test]
fn old_segments_go_when_the_public_bundles_hold_them_and_nothing_is_missing() {
    let place = Place::new();
    let (store, _) = place.open();
    let wal = place.options().wal();
    fill(&store, 0, 1000);
    let all = wal::segments(&wal).unwrap();
    assert_eq!(store.prune_segments(Duration::ZERO).unwrap(), 0, "nothing is public");
    store.publish().unwrap();
    assert_eq!(store.prune_segments(Duration::from_secs(3600)).unwrap(), 0, "nothing is old");
    let removed = store.prune_segments(Duration::ZERO).unwrap();
    let left = wal::segments(&wal).unwrap();
    assert!(removed > 0 && left.first().is_some_and(|first| *first <= 768), "{removed} of {all:?}, left {left:?}");
    assert!(left.get(1).is_none_or(|second| *second > 768), "only what is needed stays");
    check(&store, 1000);
    drop(store);
    let (store, report) = place.open();
    assert_eq!(report.recovered, None);
    fill(&store, 1000, 1300);
    store.publish().unwrap();
    store.prune_segments(Duration::ZERO).unwrap();
    check(&store, 1300);
    drop(store);
    check(&place.open().0, 1300);
    // A crash between two removals: segments before a gap are looked at by nobody.
    std::fs::copy(place.segment(), wal::segment_path(&wal, 7)).unwrap();
    check(&place.open().0, 1300);
}

#[test]
fn segments_are_removed_by_one_at_a_time() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 3000);
    store.publish().unwrap();
    let together = std::sync::Barrier::new(4);
    let prune = || {
        together.wait();
        store.prune_segments(Duration::ZERO).unwrap()
    };
    let removed: usize = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(prune)).collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    assert!(removed > 10, "{removed}");
}

/// More tiles than are synced one by one, and more than are open at once.
#[test]
fn a_large_publication_is_whole_and_leaves_no_unnamed_file() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 40_000);
    assert!(store.publish().unwrap());
    check(&store, 40_000);
    for folder in ["tile/0", "tile/1", "tile/entries"] {
        for entry in std::fs::read_dir(place.options().log().join(folder)).unwrap() {
            assert!(entry.unwrap().path().extension().is_none_or(|e| e != "tmp"));
        }
    }
    drop(store);
    check(&place.open().0, 40_000);
}

#[test]
fn an_older_copy_is_refused_because_the_lock_is_ahead() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 300);
    store.publish().unwrap();
    place.copy("backup");
    fill(&store, 300, 310);
    store.publish().unwrap();
    drop(store);
    place.restore("backup");
    let refused = place.refused();
    assert!(refused.contains("holds 300 leaves") && refused.contains("310 were published"), "{refused}");
    // Also when as many other leaves were added elsewhere: the root tells.
    let elsewhere = place.options().lock;
    let lock_text = std::fs::read(&elsewhere).unwrap();
    let ours = std::fs::read(place.dir.path().join("backup/log/checkpoint")).unwrap();
    let text = Verifier::parse(&place.signer().vkey()).unwrap().open(std::str::from_utf8(&ours).unwrap()).unwrap();
    std::fs::write(&elsewhere, text).unwrap();
    let (store, _) = place.open();
    fill(&store, 400, 410);
    drop(store);
    std::fs::write(&elsewhere, lock_text).unwrap();
    let refused = place.refused();
    assert!(refused.contains("says root") && refused.contains("another history"), "{refused}");
}

#[test]
fn an_older_or_foreign_lock_is_refused() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 10);
    store.publish().unwrap();
    let older = std::fs::read(place.options().lock).unwrap();
    fill(&store, 10, 20);
    store.publish().unwrap();
    drop(store);
    let newest = std::fs::read_to_string(place.options().lock).unwrap();
    std::fs::write(place.options().lock, older).unwrap();
    let refused = place.refused();
    assert!(refused.contains("holds 10 leaves") && refused.contains("the public checkpoint 20 leaves"), "{refused}");
    std::fs::write(place.options().lock, newest.replace(ORIGIN, "other.test/log")).unwrap();
    assert!(place.refused().contains("belongs to log"));
    std::fs::remove_file(place.options().lock).unwrap();
    assert!(place.refused().contains("is missing"));
}

#[test]
fn a_second_writer_is_refused_also_with_a_copy_of_the_folder() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 3);
    assert!(matches!(Store::open(place.options(), place.signer()), Err(StoreError::InUse(_))));
    place.copy("copy");
    let other = StoreOptions { dir: place.dir.path().join("copy"), ..place.options() };
    assert!(matches!(Store::open(other, place.signer()), Err(StoreError::InUse(_))));
}

#[test]
fn a_lock_that_moved_closes_the_log() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 3);
    let moved = Checkpoint { origin: ORIGIN.into(), size: 2, root: [7; 32] };
    std::fs::write(place.options().lock, moved.text()).unwrap();
    assert!(matches!(store.publish(), Err(StoreError::Forked { found: 2, left: 0, .. })));
    assert!(matches!(store.append(vec![record(3)]), Err(StoreError::Closed(_))));
    assert_eq!(store.published().0, 0);
}

#[test]
fn tiles_that_were_changed_are_refused_by_name() {
    for name in ["tile/0/001.p/44", "tile/1/000.p/1", "checkpoint"] {
        let place = Place::new();
        let (store, _) = place.open();
        fill(&store, 0, 300);
        store.publish().unwrap();
        drop(store);
        let path = place.options().log().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let refused = place.refused();
        let named = if name.starts_with("tile/1") { "checkpoint" } else { name };
        assert!(refused.contains(named), "{name}: {refused}");
    }
}

#[test]
fn only_resources_can_be_named() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 257);
    store.publish().unwrap();
    std::os::unix::fs::symlink(place.options().lock, place.options().log().join("tile/x")).unwrap();
    for path in [
        "",
        "/etc/passwd",
        "../wal/lock",
        "tile/../checkpoint",
        "tile/x",
        "tile/0/0",
        "tile/0/000.p/0",
        "tile/0/x000/000",
    ] {
        assert!(matches!(store.resource(path), Err(StoreError::Path(_))), "{path}");
    }
    assert_eq!(store.resource("tile/0/000").unwrap().unwrap().len(), 8192);
    assert_eq!(store.resource("tile/0/001.p/1").unwrap().unwrap().len(), 32);
    assert_eq!(store.resource("tile/0/002").unwrap(), None);
    let full = std::fs::metadata(place.options().log().join("tile/entries/000")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&full.permissions()) & 0o777, 0o444);
}

#[test]
fn superseded_partial_tiles_go() {
    let place = Place::new();
    let (store, _) = place.open();
    for number in 0..256 {
        fill(&store, number, number + 1);
        if number % 50 == 0 || number == 255 {
            store.publish().unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(place.options().log().join("tile/0")).unwrap().count(), 1);
    check(&store, 256);
}

#[test]
fn create_never_overwrites() {
    let place = Place::new();
    assert!(matches!(Store::create(&place.options(), &place.signer()), Err(StoreError::Exists(_))));
    let (store, _) = place.open();
    fill(&store, 0, 1);
    drop(store);
    std::fs::remove_file(place.options().lock).unwrap();
    assert!(matches!(Store::create(&place.options(), &place.signer()), Err(StoreError::Exists(_))));
    let inside = StoreOptions { lock: place.options().dir.join("lock"), ..place.options() };
    assert!(matches!(Store::create(&inside, &place.signer()), Err(StoreError::LockInside { .. })));
}

#[test]
fn damaged_bundles_are_not_handed_out() {
    let place = Place::new();
    let (store, _) = place.open();
    fill(&store, 0, 600);
    store.publish().unwrap();
    drop(store);
    let path = place.options().log().join("tile/entries/001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[130] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    let (store, _) = place.open();
    assert_eq!(store.read(0, 256, 1 << 20).unwrap().len(), 256);
    assert!(store.read(256, 10, 1 << 20).unwrap_err().to_string().contains("tile/entries/001"));
}

/// The process that [`a_killed_process_loses_nothing_it_acknowledged`] kills.
#[test]
#[ignore = "runs as a child process of another test"]
fn killed_child() {
    let place = Place { dir: tempfile::tempdir().unwrap(), skey: std::env::var("GUARD_LOG_SKEY").unwrap() };
    let dir = PathBuf::from(std::env::var("GUARD_LOG_DIR").unwrap());
    let options = StoreOptions { dir: dir.join("data"), lock: dir.join("lock/head"), ..place.options() };
    let (store, _) = Store::open(options, place.signer()).unwrap();
    let publisher = store.clone();
    std::thread::spawn(move || {
        loop {
            publisher.publish().unwrap();
        }
    });
    for number in store.size().. {
        store.append(vec![record(number)]).unwrap().wait().unwrap();
        println!("\nacknowledged {number}");
    }
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let place = Place::new();
    let mut size = 0;
    for round in 0..8_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "store::tests::killed_child"])
            .env("GUARD_LOG_DIR", place.dir.path())
            .env("GUARD_LOG_SKEY", &place.skey)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut acknowledged = lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        let mut last = acknowledged.by_ref().nth(30 + 7 * round as usize).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        last = acknowledged.last().unwrap_or(last);
        let (store, _) = place.open();
        assert!(store.size() > last && store.size() > size);
        size = store.size();
        check(&store, size);
    }
}

#[test]
fn a_cosigned_checkpoint_is_kept_and_is_never_ahead_of_the_public_one() {
    let place = Place::new();
    let (store, _) = place.open();
    assert_eq!(store.cosigned().unwrap(), None);
    let (size, note) = store.published();
    assert_eq!(size, 0);
    store.keep_cosigned(&note).unwrap();
    assert_eq!(store.cosigned().unwrap(), Some(note.clone().into_bytes()));
    assert_eq!(store.resource("cosigned").unwrap(), Some(note.into_bytes()));
    // Another log's, and one of more leaves than this folder has.
    let stranger = KeyFile::generate(ORIGIN).unwrap();
    assert!(store.keep_cosigned(&Checkpoint::empty(ORIGIN).sign(&stranger).unwrap()).is_err());
    let more = Checkpoint { size: 5, root: [1; 32], ..Checkpoint::empty(ORIGIN) }.sign(&place.signer()).unwrap();
    assert!(matches!(store.keep_cosigned(&more), Err(StoreError::Disagree { .. })));
    std::fs::write(place.options().log().join("cosigned"), more).unwrap();
    let error = store.cosigned().unwrap_err().to_string();
    assert!(error.contains("cosigned at 5 leaves, the public checkpoint has 0"), "{error}");
}
