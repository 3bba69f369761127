//! Write-ahead segments: a second copy of published entries, and the only one of those past the checkpoint.
//!
//! Read frame by frame, at most one is held. It must not cut or repair. Fails: damage names segment and byte; a torn
//! tail, which the collector cuts at its next start, is information.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;

use super::super::folder::Folder;
use super::super::report::Findings;
use super::super::walk::Walk;
use super::Form;
use super::lock::{self, Lock};
use super::parts::Facts;
use crate::checkpoint::Checkpoint;
use crate::frame::{self, HEAD, PAYLOAD_MAX};
use crate::record::Record;
use crate::store::wal::{decode, segment_name};
use crate::tiles::WIDTH;
use crate::tree::leaf_hash;

/// Folder of the segments.
pub(super) const FOLDER: &str = "wal";
/// Longest frame.
const FRAME_MAX: u64 = (HEAD + PAYLOAD_MAX) as u64;

/// First leaf of a segment, by its name.
pub(super) fn first_leaf(name: &str) -> Option<u64> {
    let first = name.strip_suffix(".wal")?.parse().ok()?;
    (segment_name(first) == name).then_some(first)
}

/// Reads the segments on top of the published entries, and judges the lock by where they lead.
pub(super) fn follow(
    root: &Folder,
    form: Form,
    head: &Checkpoint,
    lock: Option<&Lock>,
    walk: &mut Walk<'_>,
    facts: &mut Facts,
) {
    let mut reading =
        Reading { head, lock, reached: None, walk, next: None, differs: None, unpublished: 0, lost: false };
    reading.note_lock();
    match firsts(root) {
        Ok(None) if form == Form::Store => {
            let detail = "no segments are in the copy: entries that were admitted and not published are not known";
            reading.findings().unchecked("missing_segments", FOLDER, detail);
            reading.lost = true;
        }
        Ok(None) => {}
        Ok(Some(firsts)) => {
            facts.segments = Some(firsts.len());
            for (place, first) in firsts.iter().enumerate() {
                reading.segment(root, *first, place + 1 == firsts.len());
            }
            reading.end(firsts.is_empty());
        }
        Err(error) => reading.unread(FOLDER, &error),
    }
    facts.unpublished = reading.unpublished;
    facts.segments_whole = !reading.lost;
    let reached = reading.reached;
    if let Some(lock) = lock {
        lock::judge(lock, head, reached, walk);
    }
}

/// First leaves of the segments, in order; none if there is no folder of segments.
fn firsts(root: &Folder) -> io::Result<Option<Vec<u64>>> {
    let Some(folder) = root.within(FOLDER)? else { return Ok(None) };
    let names = folder.names()?.names;
    Ok(Some(names.iter().filter_map(|name| first_leaf(name.to_str()?)).collect()))
}

struct Reading<'a, 'b> {
    head: &'a Checkpoint,
    lock: Option<&'a Lock>,
    /// Root at the lock's size.
    reached: Option<[u8; 32]>,
    walk: &'a mut Walk<'b>,
    /// The leaf that has to be next.
    next: Option<u64>,
    /// First leaf of this segment that is not the published one, and how many there are.
    differs: Option<(u64, u64)>,
    unpublished: u64,
    /// Entries may be in a segment that was not, or not wholly, read.
    lost: bool,
}

impl Reading<'_, '_> {
    fn findings(&mut self) -> &mut Findings {
        &mut self.walk.findings
    }

    fn unread(&mut self, path: &str, error: &io::Error) {
        self.lost = true;
        self.findings().unchecked("unread_segments", path, error);
    }

    fn error(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.lost = true;
        self.findings().error(what, where_, detail);
    }

    fn note_lock(&mut self) {
        if self.lock.is_some_and(|lock| lock.head.size == self.walk.edge.size()) {
            self.reached = self.walk.root();
        }
    }

    fn segment(&mut self, root: &Folder, first: u64, last: bool) {
        let path = format!("{FOLDER}/{}", segment_name(first));
        if let Some(next) = self.next.filter(|next| *next != first) {
            let detail = format!("it begins with leaf {first}, the segment before ends at {next}");
            self.error("segment_order", &path, detail);
        }
        self.next = Some(first);
        let read = root.file(&path).and_then(|file| match file {
            Some((file, length)) => self.frames(&path, file, length, last),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        });
        if let Err(error) = read {
            self.unread(&path, &error);
        }
        if let Some((leaf, count)) = self.differs.take() {
            let detail = format!("{count} entries from there on are not those that were published");
            self.findings().error("segment_differs", format!("{path}, leaf {leaf}"), detail);
        }
    }

    fn frames(&mut self, path: &str, mut file: File, length: u64, last: bool) -> io::Result<()> {
        let mut at = 0;
        while at < length {
            let Some(payload) = payload(&mut file, length - at)? else {
                return self.broken(path, &mut file, at, length, last);
            };
            let next = at + HEAD as u64 + payload.len() as u64;
            match decode(&Bytes::from(payload)) {
                Ok((first, records)) => self.group(path, at, first, &records),
                Err(what) => self.error("segment_damaged", format!("{path}, byte {at}"), what),
            }
            at = next;
        }
        Ok(())
    }

    /// What is no whole frame is a torn tail only at the end of the last segment, and shorter than a frame.
    fn broken(&mut self, path: &str, file: &mut File, at: u64, length: u64, last: bool) -> io::Result<()> {
        let left = length - at;
        let where_ = format!("{path}, byte {at}");
        let rest = if last { tail(file, at, left)? } else { None };
        match rest.filter(|rest| !frame::scan(rest).damaged_middle) {
            None => {
                self.error("segment_damaged", where_, format!("no whole frame; {left} bytes from here on are not read"))
            }
            Some(rest) if claimed(&rest) <= left => {
                self.lost = true;
                let detail =
                    format!("the last group, {left} bytes, is not what was written: cut short by a crash, or changed");
                self.findings().unchecked("torn_tail", where_, detail);
            }
            Some(_) => {
                let detail = format!("a write of {left} bytes was cut short; the collector cuts it at its next start");
                self.findings().information("torn_tail", where_, detail);
            }
        }
        Ok(())
    }

    fn group(&mut self, path: &str, at: u64, first: u64, records: &[Record]) {
        if let Some(next) = self.next.filter(|next| *next != first) {
            let detail = format!("a group begins with leaf {first}, expected {next}");
            self.error("segment_order", format!("{path}, byte {at}"), detail);
        }
        let mut leaf = first;
        for record in records {
            self.entry(path, leaf, record);
            leaf = leaf.saturating_add(1);
        }
        self.next = Some(leaf);
    }

    fn entry(&mut self, path: &str, leaf: u64, record: &Record) {
        if leaf < self.head.size {
            self.compare(leaf, record);
            return;
        }
        let size = self.walk.edge.size();
        if leaf > size {
            let detail = format!("leaf {leaf} follows, expected {size}: entries that were admitted are missing");
            self.error("segment_order", path, detail);
            self.walk.skip();
        }
        // An entry that comes again was named as out of order; counting it would hide what it stands in for.
        if leaf == size {
            self.walk.unpublished(record);
            self.unpublished += 1;
            self.note_lock();
        }
    }

    fn compare(&mut self, leaf: u64, record: &Record) {
        // Tiles are judged, and named, in their own part.
        let mut aside = Findings::default();
        let Ok(Some(tile)) = self.walk.tiles.tile(0, leaf / WIDTH, &mut aside) else { return };
        let place = usize::try_from(leaf % WIDTH).unwrap_or(usize::MAX);
        if tile.believed && tile.hashes.get(place).is_some_and(|hash| *hash != leaf_hash(record.bytes())) {
            let (_, count) = self.differs.get_or_insert((leaf, 0));
            *count += 1;
        }
    }

    /// The collector opens its log only if the segments reach as far as the checkpoint.
    fn end(&mut self, none: bool) {
        let reached = self.next.unwrap_or(0);
        // Where some could not be read, or are named as wrong already, it is not known how far they reach.
        if reached < self.head.size && !self.lost {
            let held = if none { "there are none".to_owned() } else { format!("they end at leaf {reached}") };
            let detail =
                format!("{held}, the checkpoint at {}: segments, or the end of one, are missing", self.head.size);
            self.error("segments_short", FOLDER, detail);
        }
    }
}

/// The end of a segment, if it is short enough for a frame.
fn tail(file: &mut File, at: u64, left: u64) -> io::Result<Option<Vec<u8>>> {
    if left > FRAME_MAX {
        return Ok(None);
    }
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(left).read_to_end(&mut rest)?;
    Ok(Some(rest))
}

/// How long a frame says that it is, with its head.
fn claimed(frame: &[u8]) -> u64 {
    let length = frame.first_chunk::<4>().map_or(u64::MAX, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    length.saturating_add(HEAD as u64)
}

/// The next frame's payload; `None` if none is whole.
fn payload(file: &mut File, left: u64) -> io::Result<Option<Vec<u8>>> {
    if left < HEAD as u64 {
        return Ok(None);
    }
    let mut frame = vec![0; HEAD];
    file.read_exact(&mut frame)?;
    let length = claimed(&frame);
    if length <= HEAD as u64 || length > FRAME_MAX.min(left) {
        return Ok(None);
    }
    let length = length - HEAD as u64;
    file.take(length).read_to_end(&mut frame)?;
    let whole = frame::scan(&frame).frames.len() == 1;
    Ok(whole.then(|| frame.split_off(HEAD)))
}
