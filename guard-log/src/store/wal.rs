//! Write-ahead segments: what they hold, how they are loaded, written and read.
//!
//! One frame is one group commit: first leaf `u64`, count `u32`, then each record as `u16` length and bytes, little-endian.
//! So what a crash can tear is the last frame alone, and damage before it is told apart for certain. Segments are named by
//! their first leaf; those below the last public bundle are never needed again, and [`prune`] removes them when they are old.
//! Fails: a torn last frame is cut and reported; any other damage refuses to open and names file and byte.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::StoreError;
use super::error::io_error;
use crate::frame;
use crate::record::{HEADER_LEN, Record};

/// Bytes of a frame's payload before its records.
const GROUP_HEAD: usize = 12;

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameRef {
    /// Its first leaf.
    pub(super) first: u64,
    /// Its records.
    pub(super) count: u64,
    segment: u64,
    offset: u64,
    length: usize,
}

impl FrameRef {
    /// The leaf after its last.
    pub(super) fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Bytes of its payload.
    pub(super) fn length(&self) -> usize {
        self.length
    }
}

/// What loading found.
pub(super) struct Loaded {
    /// Frames from the one with the wanted leaf on.
    pub(super) frames: VecDeque<FrameRef>,
    /// Leaves in all.
    pub(super) size: u64,
    /// The file to go on with, and its bytes; none in a new log.
    pub(super) last: Option<(u64, u64)>,
    /// What was cut.
    pub(super) cut: Option<String>,
}

pub(super) fn segment_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(segment_name(first))
}

/// Name of the segment that begins with this leaf.
pub(crate) fn segment_name(first: u64) -> String {
    format!("{first:020}.wal")
}

/// First leaves of all segments.
pub(super) fn segments(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("listing", dir))? {
        let name = entry.map_err(io_error("listing", dir))?.file_name();
        firsts.extend(name.to_str().and_then(|n| n.strip_suffix(".wal")).and_then(|n| n.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// Loads the segments from the one that holds leaf `from` on, and cuts a torn tail.
pub(super) fn load(dir: &Path, from: u64) -> Result<Loaded, StoreError> {
    let firsts = segments(dir)?;
    let mut loaded = Loaded { frames: VecDeque::new(), size: 0, last: None, cut: None };
    let needed: Vec<u64> = match firsts.iter().rposition(|first| *first <= from) {
        Some(place) => firsts.get(place..).unwrap_or_default().to_vec(),
        None if firsts.is_empty() => return Ok(loaded),
        None => {
            let what = format!("holds no segment with leaf {from}; the first is {}", firsts.first().unwrap_or(&0));
            return Err(StoreError::Disagree { path: dir.to_path_buf(), what, advice: "put the missing segment back" });
        }
    };
    loaded.size = needed.first().copied().unwrap_or(0);
    for (place, first) in needed.iter().enumerate() {
        let length = load_segment(dir, *first, place + 1 == needed.len(), &mut loaded)?;
        loaded.last = Some((*first, length));
    }
    while loaded.frames.front().is_some_and(|frame| frame.end() <= from) {
        loaded.frames.pop_front();
    }
    Ok(loaded)
}

fn load_segment(dir: &Path, first: u64, last: bool, loaded: &mut Loaded) -> Result<u64, StoreError> {
    let path = segment_path(dir, first);
    let damaged = |offset: usize, what: String| StoreError::Damaged { path: path.clone(), offset: offset as u64, what };
    if first != loaded.size {
        return Err(damaged(0, format!("it begins with leaf {first}, the segment before ends at {}", loaded.size)));
    }
    let bytes = Bytes::from(fs::read(&path).map_err(io_error("reading", &path))?);
    let scan = frame::scan(&bytes);
    if scan.good < bytes.len() {
        if !last || scan.damaged_middle {
            return Err(damaged(scan.good, "a frame is broken and whole ones follow".into()));
        }
        cut(&path, scan.good as u64)?;
        let torn = bytes.len() - scan.good;
        loaded.cut = Some(format!("cut a torn write of {torn} bytes at byte {} of {}", scan.good, path.display()));
    }
    for (at, length) in scan.frames {
        let (group_first, records) = decode(&bytes.slice(at..at + length)).map_err(|what| damaged(at, what))?;
        if group_first != loaded.size {
            return Err(damaged(at, format!("a group begins with leaf {group_first}, expected {}", loaded.size)));
        }
        let count = records.len() as u64;
        loaded.frames.push_back(FrameRef { first: group_first, count, segment: first, offset: at as u64, length });
        loaded.size += count;
    }
    Ok(scan.good as u64)
}

fn cut(path: &Path, length: u64) -> Result<(), StoreError> {
    let file = File::options().write(true).open(path).map_err(io_error("opening", path))?;
    file.set_len(length).map_err(io_error("cutting", path))?;
    file.sync_all().map_err(io_error("syncing", path))
}

/// Removes segments whose leaves all lie below `needed` and that were written last longer than `keep` ago, oldest first; how
/// many. A crash in between leaves some of them, which no opening looks at.
pub(super) fn prune(dir: &Path, needed: u64, keep: Duration) -> Result<usize, StoreError> {
    let firsts = segments(dir)?;
    let mut removed = 0;
    for (first, next) in firsts.iter().zip(firsts.iter().skip(1)) {
        let path = segment_path(dir, *first);
        let written = fs::metadata(&path).and_then(|m| m.modified()).map_err(io_error("looking at", &path))?;
        // A clock that went back makes a file look young, and it stays.
        if *next > needed || written.elapsed().unwrap_or_default() < keep {
            break;
        }
        fs::remove_file(&path).map_err(io_error("removing", &path))?;
        removed += 1;
    }
    Ok(removed)
}

/// Bytes that a record takes in a frame.
pub(super) fn cost(record: &Record) -> usize {
    2 + record.bytes().len()
}

/// A whole frame of one group, copied once.
fn encode(first: u64, records: &[Record]) -> Vec<u8> {
    let length = GROUP_HEAD + records.iter().map(cost).sum::<usize>();
    let mut bytes = frame::begin(length);
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&(records.len() as u32).to_le_bytes());
    for record in records {
        // A record is never longer than RECORD_MAX, which is what fits two bytes.
        bytes.extend_from_slice(&(record.bytes().len() as u16).to_le_bytes());
        bytes.extend_from_slice(record.bytes());
    }
    frame::finish(&mut bytes);
    bytes
}

/// First leaf and records of a group. The records are parts of `payload`, not copies of it.
pub(crate) fn decode(payload: &Bytes) -> Result<(u64, Vec<Record>), String> {
    let short = || "a group ends inside a record".to_owned();
    let (first, rest) = payload.split_first_chunk::<8>().ok_or_else(short)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let count = u32::from_le_bytes(*count) as usize;
    let mut records = Vec::with_capacity(count.min(payload.len() / (2 + HEADER_LEN)));
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<2>().ok_or_else(short)?;
        let (bytes, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or_else(short)?;
        records.push(Record::parse(payload.slice_ref(bytes)).map_err(|e| e.to_string())?);
        rest = after;
    }
    if !rest.is_empty() || records.is_empty() {
        return Err(format!("{} bytes follow the {} records of a group", rest.len(), records.len()));
    }
    Ok((u64::from_le_bytes(*first), records))
}

/// Reads one frame back; what is on the disk is checked again.
pub(super) fn read_frame(dir: &Path, frame: &FrameRef) -> Result<Vec<Record>, StoreError> {
    let path = segment_path(dir, frame.segment);
    let file = File::open(&path).map_err(io_error("opening", &path))?;
    let mut bytes = vec![0; frame::HEAD + frame.length];
    file.read_exact_at(&mut bytes, frame.offset - frame::HEAD as u64).map_err(io_error("reading", &path))?;
    let damaged = |what| StoreError::Damaged { path: path.clone(), offset: frame.offset, what };
    let scan = frame::scan(&bytes);
    if scan.frames != [(frame::HEAD, frame.length)] {
        return Err(damaged("the checksum of a group is wrong".to_owned()));
    }
    let (first, records) = decode(&Bytes::from(bytes).slice(frame::HEAD..)).map_err(damaged)?;
    if first != frame.first || records.len() as u64 != frame.count {
        return Err(damaged(format!("a group begins with leaf {first}, expected {}", frame.first)));
    }
    Ok(records)
}

/// The open segment.
pub(super) struct Segment {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    first: u64,
    bytes: u64,
}

impl Segment {
    /// Goes on with the last segment, or begins one at leaf `first`.
    pub(super) fn open(dir: &Path, first: u64, bytes: u64) -> Result<Self, StoreError> {
        let path = segment_path(dir, first);
        let file = File::options().create(true).append(true).open(&path).map_err(io_error("opening", &path))?;
        frame::sync_dir(dir).map_err(io_error("syncing", dir))?;
        Ok(Self { dir: dir.to_path_buf(), path, file, first, bytes })
    }

    /// Writes records as one frame and waits for the disk.
    pub(super) fn write(&mut self, first: u64, records: &[Record], segment_bytes: u64) -> Result<FrameRef, StoreError> {
        if self.bytes >= segment_bytes {
            *self = Self::open(&self.dir, first, 0)?;
        }
        let bytes = encode(first, records);
        self.file.write_all(&bytes).map_err(io_error("writing", &self.path))?;
        self.file.sync_data().map_err(io_error("syncing", &self.path))?;
        let offset = self.bytes + frame::HEAD as u64;
        self.bytes += bytes.len() as u64;
        let count = records.len() as u64;
        Ok(FrameRef { first, count, segment: self.first, offset, length: bytes.len() - frame::HEAD })
    }
}
