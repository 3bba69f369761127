//! Repairs that were made and are not yet known to be recorded: a file of their own, written before the repair.
//!
//! So a repair is told at each opening until somebody says that it is in the journal, also if the one that made it died at
//! once or could not write records. Fails: a note that finds no room on the disk is told this time only.

use std::io;
use std::path::{Path, PathBuf};

use super::error::io_error;
use super::{JournalError, OpenReport, Repair};
use crate::frame;

/// Repairs that are kept; of a folder that breaks more often the first ones say enough.
const KEPT: usize = 256;
/// Longest file that is read.
const FILE_MAX: u64 = 1 << 20;
/// What a repair may be.
const KINDS: [&str; 3] = ["torn_tail", "missing", "quarantined"];

fn path(dir: &Path) -> PathBuf {
    dir.join("repairs")
}

/// Those of earlier openings.
pub(super) fn read(dir: &Path) -> Result<Vec<Repair>, JournalError> {
    let path = path(dir);
    let text = match frame::read_text(&path, FILE_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("reading", &path)(error)),
    };
    Ok(text.lines().filter_map(parse).take(KEPT).collect())
}

fn parse(line: &str) -> Option<Repair> {
    let mut parts = line.splitn(4, ' ');
    let what = parts.next()?;
    let what = KINDS.into_iter().find(|kind| *kind == what)?;
    let (offset, bytes) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(Repair { what, file: parts.next()?.to_owned(), offset, bytes })
}

/// Notes one that is about to be made.
pub(super) fn note(dir: &Path, repair: Repair, report: &mut OpenReport) -> Result<(), JournalError> {
    if report.repairs.contains(&repair) || report.repairs.len() >= KEPT {
        return Ok(());
    }
    report.repairs.push(repair);
    let line = |r: &Repair| format!("{} {} {} {}\n", r.what, r.offset, r.bytes, r.file.replace('\n', "?"));
    let text: String = report.repairs.iter().map(line).collect();
    let path = path(dir);
    match frame::replace(&path, text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(io_error("writing", &path)(error)),
        _ => Ok(()),
    }
}

/// They are recorded.
pub(super) fn forget(dir: &Path) -> Result<(), JournalError> {
    let path = path(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", &path)(error)),
        _ => Ok(()),
    }
}
