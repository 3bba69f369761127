//! Zeros that segments are filled with before they are used, and the room for them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Zeros written at once.
const ZEROS: usize = 256 << 10;

/// Bytes that are free on the disk; none if that cannot be told.
pub(super) fn room(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// How zeros are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// With one sync at the end: nothing else wants the disk yet.
    Fast,
    /// With a sync after each piece, so that records that are written meanwhile do not wait for all of it.
    Gentle,
}

/// Writes zeros up to a length, durably.
pub(super) fn zero(file: &File, from: u64, to: u64, pace: Pace) -> io::Result<()> {
    let zeros = vec![0_u8; ZEROS];
    let mut at = from;
    while at < to {
        let length = usize::try_from(to - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_all_at(zeros.get(..length).unwrap_or_default(), at)?;
        if pace == Pace::Gentle {
            file.sync_data()?;
        }
        at += length as u64;
    }
    file.sync_all()
}
