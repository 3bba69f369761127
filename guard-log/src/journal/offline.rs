//! A journal looked at from outside: its folder, or a copy of it, without a daemon.
//!
//! It must not write, cut, lock or repair: a journal may be evidence, or in use. Memory is bounded by one segment. Fails: a folder
//! that is no journal, or a file that cannot be read, is an error; what is wrong inside is a finding that names file and byte.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::io_error;
use super::frames::decode;
use super::load::{Life, read_cursor, read_epoch, segment_names};
use super::{JournalError, segment_path};
use crate::frame;
use crate::record::{Epoch, HostId, Record};

/// Longest segment that is read: several times what any configuration makes.
const SEGMENT_MAX: u64 = 256 << 20;
/// Findings that are kept; more say nothing new.
const FINDINGS_MAX: usize = 1000;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// `torn_tail` (a write that a crash cut short; the daemon cuts it), or damage: `damaged`, `not_a_record`, `missing`,
    /// `chain_break`, `foreign`, `no_epoch`, `quarantine`.
    pub what: &'static str,
    /// The file.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// In words.
    pub detail: String,
}

impl Flaw {
    /// Whether records may be lost or changed; a torn tail was never promised to anybody.
    pub fn is_damage(&self) -> bool {
        self.what != "torn_tail"
    }
}

/// What a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// Its life, if its file can be read.
    pub epoch: Option<Epoch>,
    /// Whose, by its first record.
    pub host: Option<HostId>,
    /// First number held.
    pub first_seq: Option<u64>,
    /// The number after the last one held.
    pub next_seq: u64,
    /// Everything below is acknowledged by the collector.
    pub acked_next_seq: u64,
    /// Records read.
    pub records: u64,
    /// Segments.
    pub segments: usize,
    /// What is wrong, in order.
    pub flaws: Vec<Flaw>,
    last: Option<[u8; 32]>,
}

impl Examined {
    /// Whether nothing is damaged.
    pub fn is_whole(&self) -> bool {
        !self.flaws.iter().any(Flaw::is_damage)
    }

    fn flaw(&mut self, what: &'static str, path: &Path, offset: usize, detail: String) {
        if self.flaws.len() < FINDINGS_MAX {
            self.flaws.push(Flaw { what, file: path.display().to_string(), offset: offset as u64, detail });
        }
    }
}

/// Reads a journal from its first record to its last, and hands each to the caller until that says false.
pub fn examine(dir: &Path, each: &mut dyn FnMut(&Record) -> bool) -> Result<Examined, JournalError> {
    let firsts = segment_names(dir)?;
    let mut found = Examined { segments: firsts.len(), ..Examined::default() };
    match read_epoch(dir)? {
        Life::Is(epoch) => {
            found.epoch = Some(epoch);
            found.acked_next_seq = read_cursor(dir, epoch)?;
        }
        Life::None if firsts.is_empty() => {
            let none = std::io::Error::new(std::io::ErrorKind::NotFound, "no journal is there (no segments, no epoch)");
            return Err(io_error("reading", dir)(none));
        }
        Life::None | Life::Unreadable => {
            found.flaw("no_epoch", dir, 0, "the file `epoch` is missing or is none".into());
        }
    }
    quarantines(dir, &mut found)?;
    let acked = found.acked_next_seq;
    if let Some(first) = firsts.first() {
        found.next_seq = *first;
        if *first > acked {
            let detail = format!("records {acked} to {} are neither here nor acknowledged", first - 1);
            found.flaw("missing", &segment_path(dir, *first), 0, detail);
        }
    }
    for (place, first) in firsts.iter().enumerate() {
        if !segment(dir, *first, place + 1 == firsts.len(), &mut found, each)? {
            return Ok(found);
        }
    }
    if found.next_seq < acked {
        let detail = format!("everything below {acked} was acknowledged, the segments end at {}", found.next_seq);
        found.flaw("missing", dir, 0, detail);
    }
    Ok(found)
}

fn quarantines(dir: &Path, found: &mut Examined) -> Result<(), JournalError> {
    for entry in std::fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let path = entry.map_err(io_error("listing", dir))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("quarantine-")) {
            found.flaw(
                "quarantine",
                &path,
                0,
                "an earlier life was set aside as damaged; look at it by its own path".into(),
            );
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error("opening", path))?;
    file.take(SEGMENT_MAX + 1).read_to_end(&mut bytes).map_err(io_error("reading", path))?;
    if bytes.len() as u64 > SEGMENT_MAX {
        let long = std::io::Error::new(std::io::ErrorKind::FileTooLarge, "longer than any segment");
        return Err(io_error("reading", path)(long));
    }
    Ok(bytes)
}

/// False when the caller has enough.
fn segment(
    dir: &Path,
    first: u64,
    last: bool,
    found: &mut Examined,
    each: &mut dyn FnMut(&Record) -> bool,
) -> Result<bool, JournalError> {
    let path = segment_path(dir, first);
    let bytes = read(&path)?;
    if first != found.next_seq {
        let detail = format!("its name says record {first}, the segment before ends at {}", found.next_seq);
        found.flaw("missing", &path, 0, detail);
        (found.next_seq, found.last) = (first, None);
    }
    let scan = frame::scan(&bytes);
    for (at, length) in &scan.frames {
        let Some(records) = decode(bytes.get(*at..at + length).unwrap_or_default()) else {
            found.flaw("not_a_record", &path, *at, "a whole frame does not hold whole records".into());
            continue;
        };
        for record in records {
            take(&path, *at, &record, found);
            if !each(&record) {
                return Ok(false);
            }
        }
    }
    // Zeros are what a segment is filled with before it is used.
    if bytes.get(scan.good..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
        let left = bytes.len() - scan.good;
        if last && !scan.damaged_middle {
            found.flaw("torn_tail", &path, scan.good, format!("a write of at most {left} bytes was cut short"));
        } else {
            found.flaw("damaged", &path, scan.good, format!("no whole frame; {left} bytes from here on are not read"));
        }
    }
    Ok(true)
}

fn take(path: &Path, at: usize, record: &Record, found: &mut Examined) {
    let header = record.header();
    let host = *found.host.get_or_insert(header.host);
    if header.host != host || found.epoch.is_some_and(|epoch| epoch != header.epoch) {
        found.flaw(
            "foreign",
            path,
            at,
            format!("record {} is of host {}, epoch {}", header.seq, header.host, header.epoch),
        );
    }
    found.first_seq.get_or_insert(header.seq);
    if header.seq != found.next_seq {
        found.flaw("missing", path, at, format!("record {} follows, expected {}", header.seq, found.next_seq));
    } else if found.last.is_some_and(|last| last != header.prev) {
        let detail = format!("record {} does not continue the record before it", header.seq);
        found.flaw("chain_break", path, at, detail);
    }
    (found.next_seq, found.last) = (header.seq.saturating_add(1), Some(record.digest()));
    found.records += 1;
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fill, open};
    use super::*;

    fn look(dir: &Path) -> (Examined, Vec<u64>) {
        let mut seqs = Vec::new();
        let found = examine(dir, &mut |record| {
            seqs.push(record.header().seq);
            true
        });
        (found.unwrap(), seqs)
    }

    fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
        segment_names(dir).unwrap().into_iter().map(|first| segment_path(dir, first)).collect()
    }

    /// Every file's name and bytes.
    fn content(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
        let files = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
        let mut all: Vec<_> = files.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
        all.sort();
        all
    }

    fn journal() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 60);
        journal.close();
        dir
    }

    #[test]
    fn a_whole_journal_is_read_from_end_to_end_and_left_as_it_is() {
        let dir = journal();
        let before = content(dir.path());
        let (found, seqs) = look(dir.path());
        assert!(found.is_whole() && found.flaws.is_empty(), "{:?}", found.flaws);
        assert_eq!(seqs, (0..60).collect::<Vec<_>>());
        assert_eq!((found.records, found.first_seq, found.next_seq), (60, Some(0), 60));
        assert!(found.segments > 2 && found.host.is_some() && found.epoch.is_some());
        assert_eq!(content(dir.path()), before);
    }

    #[test]
    fn every_flaw_is_named_with_its_file_and_nothing_is_mended() {
        type Hurt = fn(&Path);
        let cases: [(&str, Hurt); 8] = [
            ("damaged", |dir| flip(&segments(dir)[1], 40)),
            ("missing", |dir| std::fs::remove_file(&segments(dir)[1]).unwrap()),
            // Of the first segment nothing but its name says what it began with.
            ("missing", |dir| std::fs::rename(&segments(dir)[1], &segments(dir)[0]).unwrap()),
            ("missing", |dir| std::fs::remove_file(&segments(dir)[0]).unwrap()),
            ("missing", |dir| {
                let epoch = std::fs::read_to_string(dir.join("epoch")).unwrap();
                std::fs::write(dir.join("acked"), format!("61 {epoch}")).unwrap();
            }),
            ("torn_tail", |dir| {
                let path = segments(dir).pop().unwrap();
                let mut bytes = std::fs::read(&path).unwrap();
                let good = frame::scan(&bytes).good;
                bytes.truncate(good - 3);
                std::fs::write(&path, bytes).unwrap();
            }),
            ("no_epoch", |dir| std::fs::write(dir.join("epoch"), "nonsense").unwrap()),
            ("foreign", |dir| std::fs::write(dir.join("epoch"), "11".repeat(16)).unwrap()),
        ];
        for (what, hurt) in cases {
            let dir = journal();
            hurt(dir.path());
            let before = content(dir.path());
            let (found, _) = look(dir.path());
            assert!(found.flaws.iter().any(|flaw| flaw.what == what), "{what}: {:?}", found.flaws);
            assert_eq!(found.is_whole(), what == "torn_tail", "{what}");
            assert_eq!(content(dir.path()), before, "{what}");
        }
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn an_empty_folder_is_no_journal() {
        let dir = tempfile::tempdir().unwrap();
        assert!(examine(dir.path(), &mut |_| true).unwrap_err().to_string().contains("no journal is there"));
        assert!(examine(&dir.path().join("none"), &mut |_| true).is_err());
    }
}
