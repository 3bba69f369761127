//! Opening: what the folder holds, what a crash has torn, what is damaged.
//!
//! It must never make up a number that the journal may have given before. Fails: a torn tail is cut, damage moves all segments
//! to a quarantine folder and a new epoch begins, both reported; a file that cannot be read is an error.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;

use super::error::io_error;
use super::frames::decode;
use super::shares::Shares;
use super::{Inner, JournalError, OpenReport, Repair, segment_path};
use crate::frame;
use crate::record::{Epoch, HostId};

pub(super) fn take_lock(dir: &Path) -> Result<File, JournalError> {
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io_error("creating", &path))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| JournalError::InUse(dir.to_path_buf()))?;
    Ok(file)
}

pub(super) fn read_epoch(dir: &Path, report: &mut OpenReport) -> Result<Epoch, JournalError> {
    let path = dir.join("epoch");
    match std::fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse()
            .map_err(|_| io_error("reading", &path)(io::Error::new(io::ErrorKind::InvalidData, "not an epoch"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            report.created = true;
            new_epoch(&path)
        }
        Err(error) => Err(io_error("reading", &path)(error)),
    }
}

fn new_epoch(path: &Path) -> Result<Epoch, JournalError> {
    let epoch = Epoch::random().map_err(io_error("drawing an epoch for", path))?;
    frame::replace(path, epoch.to_string().as_bytes()).map_err(io_error("writing", path))?;
    Ok(epoch)
}

pub(super) fn load(dir: &Path, host: HostId, epoch: Epoch, report: &mut OpenReport) -> Result<Inner, JournalError> {
    let acked = std::fs::read_to_string(dir.join("acked")).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
    let mut inner = Inner {
        host,
        epoch,
        next_seq: acked,
        last_digest: [0; 32],
        durable_next: acked,
        acked_next: acked,
        queue: Vec::new(),
        queued_bytes: 0,
        queued_since: None,
        urgent: false,
        writing: false,
        recent: VecDeque::new(),
        recent_bytes: 0,
        shares: Shares::default(),
        segments: VecDeque::new(),
        failed: None,
        closing: false,
        ended: false,
    };
    let firsts = segment_names(dir)?;
    for (place, first) in firsts.iter().enumerate() {
        if !load_segment(dir, *first, place + 1 == firsts.len(), place == 0, &mut inner, report)? {
            return quarantine(dir, host, &firsts, report);
        }
    }
    Ok(inner)
}

fn segment_names(dir: &Path) -> Result<Vec<u64>, JournalError> {
    let mut firsts: Vec<u64> = std::fs::read_dir(dir)
        .map_err(io_error("listing", dir))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".seg")?.parse().ok())
        .collect();
    firsts.sort_unstable();
    Ok(firsts)
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
        let file = File::options().write(true).open(&path).map_err(io_error("opening", &path))?;
        file.set_len(scan.good as u64).map_err(io_error("cutting", &path))?;
        file.sync_all().map_err(io_error("syncing", &path))?;
        report.repairs.push(Repair {
            what: "torn_tail",
            file: path.display().to_string(),
            offset: scan.good as u64,
            bytes: (bytes.len() - scan.good) as u64,
        });
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
        expected += 1;
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

/// Sets all segments aside as evidence and begins a new epoch.
fn quarantine(dir: &Path, host: HostId, firsts: &[u64], report: &mut OpenReport) -> Result<Inner, JournalError> {
    let epoch_path = dir.join("epoch");
    let aside = dir.join(format!("quarantine-{}", std::fs::read_to_string(&epoch_path).unwrap_or_default().trim()));
    std::fs::create_dir_all(&aside).map_err(io_error("creating", &aside))?;
    let mut bytes = 0;
    for first in firsts {
        let path = segment_path(dir, *first);
        bytes += std::fs::metadata(&path).map_or(0, |m| m.len());
        std::fs::rename(&path, aside.join(format!("{first:020}.seg"))).map_err(io_error("setting aside", &path))?;
    }
    let _ = std::fs::remove_file(dir.join("acked"));
    let epoch = new_epoch(&epoch_path)?;
    report.repairs.push(Repair { what: "quarantined", file: aside.display().to_string(), offset: 0, bytes });
    load(dir, host, epoch, report)
}
