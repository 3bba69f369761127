//! A power cut between any two promises, in a model of a disk: of what was written since the last sync each sector may be old
//! or new, each file made or removed may be there or not.
//!
//! The model's order is what the code promises: a cursor before removals, tiles before the lock, the lock before the
//! checkpoint, a frame whole before the next. It shows that every state this order allows is opened and loses nothing; that the
//! code syncs in this order is shown by the power cuts of `p1_record_before_run`. A failure prints its seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use guard_log::journal::Journal;
use guard_log::store::Store;

use crate::check::{self, Said};
use crate::driver::{HOST, entry, hex, journal_options, leaves, signer, store_options};

const SECTOR: usize = 512;
/// Power cuts of the journal and of the log in a test run.
const CUTS: [u64; 2] = [8_000, 2_000];

/// Every file of a folder, by name.
type Disk = BTreeMap<PathBuf, Vec<u8>>;

fn image(root: &Path) -> Disk {
    let (mut disk, mut folders) = (Disk::new(), vec![root.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if file.is_dir() {
                folders.push(file);
            } else {
                disk.insert(file.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(&file).unwrap());
            }
        }
    }
    disk
}

fn put(root: &Path, disk: &Disk) {
    for (name, bytes) in disk {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

/// A file that grew in place: its length is one of the two, or between; each sector that differs is old or new.
fn torn(old: &[u8], new: &[u8], random: &mut Random) -> Vec<u8> {
    let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
    let length = short + random.below(long - short + 1);
    let mut bytes = vec![0; length];
    for at in (0..length).step_by(SECTOR) {
        let from = if random.coin() { new } else { old };
        let end = length.min(at + SECTOR).min(from.len());
        if at < end {
            bytes[at..end].copy_from_slice(&from[at..end]);
        }
    }
    bytes
}

fn is(name: &Path, ending: &str) -> bool {
    name.to_str().unwrap().ends_with(ending)
}

/// What the disk may hold when the power goes between two promises.
fn cut(old: &Disk, new: &Disk, random: &mut Random) -> Disk {
    let mut disk = old.clone();
    // Groups that become durable one after the other; of the first one that does not, any part may be there.
    let step = |name: &Path| match name {
        name if is(name, ".seg") || is(name, ".wal") => usize::from(!new.contains_key(name)) * 4,
        name if is(name, "lock/head") => 2,
        name if is(name, "checkpoint") || is(name, "acked") => 3,
        _ if new.contains_key(name) => 1,
        _ => 4,
    };
    let reached = random.below(6);
    for name in old.keys().chain(new.keys()) {
        let (before, after) = (old.get(name), new.get(name));
        if before == after || step(name) > reached {
            continue;
        }
        let whole = step(name) < reached;
        match (before, after) {
            (_, Some(after)) if is(name, ".seg") || is(name, ".wal") => {
                let before = before.cloned().unwrap_or_default();
                let bytes = if whole { after.clone() } else { torn(&before, after, random) };
                disk.insert(name.clone(), bytes);
            }
            (_, Some(after)) if whole || random.coin() => drop(disk.insert(name.clone(), after.clone())),
            // Made beside its place, whatever of it was written.
            (_, Some(after)) => {
                drop(disk.insert(name.with_extension("tmp"), torn(&[], after, random)));
            }
            (_, None) if whole || random.coin() => drop(disk.remove(name)),
            (_, None) => {}
        }
    }
    disk
}

/// Cuts the power so often between the steps of a history, each with what had been promised at its begin.
fn cuts(history: &[(Disk, Said)], count: u64, check: impl Fn(&Path, &Said) -> Result<(), String> + Sync) {
    let begin = std::env::var("GUARD_CRASH_SEED").map_or(0, |seed| seed.parse().unwrap());
    let next = std::sync::atomic::AtomicU64::new(begin);
    let work = || loop {
        let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if seed >= begin + count {
            return;
        }
        let mut random = Random(seed);
        let step = random.below(history.len() - 1);
        let ((old, said), (new, _)) = (&history[step], &history[step + 1]);
        let dir = crate::inject::folder();
        put(dir.path(), &cut(old, new, &mut random));
        let found = check(dir.path(), said);
        assert!(found.is_ok(), "GUARD_CRASH_SEED={seed}, after step {step}: {}", found.unwrap_err());
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(work);
        }
    });
}

#[test]
fn a_power_cut_at_any_of_thousands_of_points_costs_nothing_promised_of_the_journal() {
    let dir = crate::inject::folder();
    let (journal, _) = Journal::open(journal_options(dir.path()), HOST).unwrap();
    let mut said = Said { epoch: Some(journal.state().epoch.to_string()), ..Said::default() };
    let mut history = vec![(image(dir.path()), said.clone())];
    for number in 0..90 {
        // One frame at a time: the next one is not begun before the disk holds it.
        let done = journal.append(entry(number)).and_then(|ticket| ticket.wait()).unwrap();
        said.journal.insert(done.seq, hex(&done.digest));
        history.push((image(dir.path()), said.clone()));
        if number % 7 == 6 {
            said.acknowledged = *said.journal.keys().last().unwrap();
            history.last_mut().unwrap().1 = said.clone();
            journal.acknowledge(said.acknowledged).unwrap();
            history.push((image(dir.path()), said.clone()));
        }
    }
    journal.close();
    for (disk, _) in &mut history {
        disk.retain(|name, _| !is(name, "spare"));
    }
    cuts(&history, CUTS[0], check::journal);
}

#[test]
fn a_power_cut_at_any_of_thousands_of_points_costs_nothing_promised_of_the_log() {
    let dir = crate::inject::folder();
    Store::create(&store_options(dir.path()), &signer(dir.path())).unwrap();
    let (store, _) = Store::open(store_options(dir.path()), signer(dir.path())).unwrap();
    let mut said = Said { created: true, ..Said::default() };
    let mut history = vec![(image(dir.path()), said.clone())];
    for group in leaves(700).chunks(70) {
        let ticket = store.append(group.to_vec()).unwrap();
        let first = ticket.first_leaf();
        ticket.wait().unwrap();
        said.leaves = first + group.len() as u64;
        history.push((image(dir.path()), said.clone()));
        store.publish().unwrap();
        said.published = said.leaves;
        history.push((image(dir.path()), said.clone()));
    }
    store.close();
    cuts(&history, CUTS[1], check::store);
}
