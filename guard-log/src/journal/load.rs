//! Opening: what the folder holds, what a crash has torn, what is damaged.
//!
//! It must never make up a number that the journal may have given before. Fails: a torn tail is cut, damage moves all segments
//! to a quarantine folder and a new epoch begins, both reported; a file that cannot be read is an error.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::io_error;
use super::frames::decode;
use super::{Inner, JournalError, OpenReport, Repair, repairs, segment_path};
use crate::frame;
use crate::record::{Epoch, HostId};

pub(super) fn take_lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io_error("creating", &path))?;
    match frame::take(&file).map_err(io_error("locking", &path))? {
        true => Ok(file),
        false => Err(JournalError::InUse(dir.to_path_buf())),
    }
}

/// Longest epoch or cursor file that is taken for one.
const SMALL: u64 = 100;
/// More numbers than a journal can give away; a file that says otherwise was made by somebody else, and counting on would end.
const NUMBERS: u64 = 1 << 63;
/// The file that names this life.
const EPOCH: &str = "epoch";
/// The file that says how far the collector acknowledged, in which life.
const CURSOR: &str = "acked";

/// What the epoch's file says.
pub(super) enum Life {
    None,
    Unreadable,
    Is(Epoch),
}

fn read_small(path: &Path) -> Result<Option<String>, JournalError> {
    match frame::read_text(path, SMALL) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not text, or too much of it.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(error) => Err(io_error("reading", path)(error)),
    }
}

pub(super) fn read_epoch(dir: &Path) -> Result<Life, JournalError> {
    let text = read_small(&dir.join(EPOCH))?;
    Ok(text.map_or(Life::None, |text| text.trim().parse().map_or(Life::Unreadable, Life::Is)))
}

fn new_epoch(dir: &Path) -> Result<Epoch, JournalError> {
    let path = dir.join(EPOCH);
    let epoch = Epoch::random().map_err(io_error("drawing an epoch for", &path))?;
    frame::replace(&path, epoch.to_string().as_bytes()).map_err(io_error("writing", &path))?;
    Ok(epoch)
}

/// Everything below is acknowledged. A cursor that is none costs only that records are sent again.
pub(super) fn read_cursor(dir: &Path, epoch: Epoch) -> Result<u64, JournalError> {
    let text = read_small(&dir.join(CURSOR))?.unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    let acked = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    // One of an earlier life counts for nothing. Earlier versions wrote none.
    let of_this_life = words.next().is_none_or(|word| word.parse() == Ok(epoch));
    Ok(if of_this_life { acked } else { 0 })
}

/// Notes durably how far the collector acknowledged.
pub(super) fn write_cursor(dir: &Path, epoch: Epoch, acked: u64) -> Result<(), JournalError> {
    let path = dir.join(CURSOR);
    frame::replace(&path, format!("{acked} {epoch}").as_bytes()).map_err(io_error("writing", &path))
}

/// Reads what is there, repairs what has to be, and begins a new life where the old one cannot go on.
pub(super) fn load(dir: &Path, host: HostId, report: &mut OpenReport) -> Result<Inner, JournalError> {
    let firsts = segment_names(dir)?;
    let aside = match read_epoch(dir)? {
        Life::None if firsts.is_empty() => {
            report.created = true;
            return Ok(Inner::new(host, new_epoch(dir)?, 0));
        }
        Life::None | Life::Unreadable => free_name(dir)?,
        Life::Is(epoch) => {
            let aside = dir.join(format!("quarantine-{epoch}"));
            // One that is there was cut short: what is left may look whole.
            if !exists(&aside)?
                && let Some(inner) = load_life(dir, Inner::new(host, epoch, read_cursor(dir, epoch)?), &firsts, report)?
            {
                return Ok(inner);
            }
            aside
        }
    };
    let epoch = quarantine(dir, &aside, &firsts, report)?;
    Ok(Inner::new(host, epoch, 0))
}

fn exists(path: &Path) -> Result<bool, JournalError> {
    path.try_exists().map_err(io_error("looking for", path))
}

pub(super) fn segment_names(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let mut firsts = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("listing", dir))? {
        // One that cannot be listed must not count as one that is not there: its numbers would be given again.
        let name = entry.map_err(io_error("listing", dir))?.file_name();
        let first = name.to_str().and_then(|n| n.strip_suffix(".seg")).and_then(|n| n.parse::<u64>().ok());
        firsts.extend(first.filter(|first| segment_path(dir, *first).file_name() == Some(&name)));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// The segments of this life; none if they are not whole.
fn load_life(
    dir: &Path,
    mut inner: Inner,
    firsts: &[u64],
    report: &mut OpenReport,
) -> Result<Option<Inner>, JournalError> {
    let acked = inner.acked_next;
    // Of segments below the cursor any may be gone: their removal reaches the disk in any order.
    let unwanted = firsts.iter().skip(1).take_while(|next| **next < acked).count();
    // They are not read: should one be needed again and be damaged, it is passed over.
    let (kept, wanted) = firsts.split_at(unwanted);
    for first in kept {
        let bytes = std::fs::metadata(segment_path(dir, *first)).map_or(0, |found| found.len());
        inner.segments.push_back((*first, bytes));
    }
    if let Some(first) = wanted.first().filter(|first| **first > acked) {
        let file = dir.display().to_string();
        repairs::note(dir, Repair { what: "missing", file, offset: acked, bytes: first - acked }, report)?;
    }
    for (place, first) in wanted.iter().enumerate() {
        if !load_segment(dir, *first, place + 1 == wanted.len(), place == 0, &mut inner, report)? {
            return Ok(None);
        }
    }
    // Numbers below the cursor were given to records that the collector holds; they must not be given again.
    Ok(Some(inner).filter(|inner| inner.next_seq >= acked && (acked == 0 || !wanted.is_empty())))
}

/// False if the segment is damaged other than by a torn tail.
fn load_segment(
    dir: &Path,
    first: u64,
    last: bool,
    oldest: bool,
    inner: &mut Inner,
    report: &mut OpenReport,
) -> Result<bool, JournalError> {
    let path = segment_path(dir, first);
    let bytes = std::fs::read(&path).map_err(io_error("reading", &path))?;
    let scan = frame::scan(&bytes);
    // Zeros are what a segment is filled with before it is used.
    if bytes.get(scan.good..).is_some_and(|rest| rest.iter().any(|b| *b != 0)) {
        if !last || scan.damaged_middle {
            return Ok(false);
        }
        let (offset, torn) = (scan.good as u64, (bytes.len() - scan.good) as u64);
        let repair = Repair { what: "torn_tail", file: path.display().to_string(), offset, bytes: torn };
        repairs::note(dir, repair, report)?;
        let file = File::options().write(true).open(&path).map_err(io_error("opening", &path))?;
        file.set_len(offset).map_err(io_error("cutting", &path))?;
        file.sync_all().map_err(io_error("syncing", &path))?;
    }
    let mut expected = first;
    let decoded = scan.frames.iter().map(|(at, length)| decode(bytes.get(*at..at + length).unwrap_or_default()));
    let Some(groups) = decoded.collect::<Option<Vec<_>>>() else { return Ok(false) };
    for (index, record) in groups.into_iter().flatten().enumerate() {
        let header = record.header();
        let chained = header.prev == inner.last_digest || (oldest && index == 0);
        if header.seq != expected || header.epoch != inner.epoch || !chained {
            return Ok(false);
        }
        let Some(next) = expected.checked_add(1).filter(|next| *next < NUMBERS) else { return Ok(false) };
        expected = next;
        inner.last_digest = record.digest();
        if header.seq >= inner.acked_next {
            inner.shares.charge(header.session, header.seq, (record.bytes().len() + frame::HEAD) as u64);
        }
        inner.remember(record);
    }
    if !oldest && first != inner.next_seq {
        return Ok(false);
    }
    inner.next_seq = expected;
    inner.durable_next = expected;
    inner.segments.push_back((first, scan.good as u64));
    Ok(true)
}

/// A name for what is set aside of a life that cannot be told. Evidence is never written over.
fn free_name(dir: &Path) -> Result<PathBuf, JournalError> {
    let mut number = 0_u64;
    loop {
        let path = dir.join(format!("quarantine-{number}"));
        if !exists(&path)? {
            return Ok(path);
        }
        number += 1;
    }
}

/// Sets all segments aside as evidence and begins a new life. Its epoch is written last: until then an opening goes on here.
fn quarantine(dir: &Path, aside: &Path, firsts: &[u64], report: &mut OpenReport) -> Result<Epoch, JournalError> {
    frame::make_dir(aside).map_err(io_error("creating", aside))?;
    let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
    let before = segment_names(aside)?.into_iter().map(|first| length(segment_path(aside, first)));
    let bytes = before.sum::<u64>() + firsts.iter().map(|first| length(segment_path(dir, *first))).sum::<u64>();
    let repair = Repair { what: "quarantined", file: aside.display().to_string(), offset: 0, bytes };
    repairs::note(dir, repair, report)?;
    for first in firsts {
        let path = segment_path(dir, *first);
        std::fs::rename(&path, segment_path(aside, *first)).map_err(io_error("setting aside", &path))?;
    }
    frame::sync_dir(aside).map_err(io_error("syncing", aside))?;
    frame::sync_dir(dir).map_err(io_error("syncing", dir))?;
    // Its file would count for nothing in the new life; without it there is less to wonder about.
    let _ = std::fs::remove_file(dir.join(CURSOR));
    new_epoch(dir)
}
