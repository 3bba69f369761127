//! Framing of the write-ahead files: length, CRC32C, bytes. A torn tail is told from damage in the middle by its place. And what
//! journal and log do alike with files: replacing them durably, reading them with a bound, taking them for one process.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Bytes before each payload.
pub const HEAD: usize = 8;
/// Longest payload that is taken for real.
pub const PAYLOAD_MAX: usize = 64 << 20;
/// How a record begins.
const RECORD_BEGIN: [u8; 2] = *b"GR";
/// Bytes of a payload before its first record: the journal's and the log's.
const RECORD_AT: [usize; 2] = [4, 14];
/// Bytes that are summed up at most in looking for a whole frame; where that is not enough, there counts as one.
const SEARCH_MAX: usize = 1 << 30;

/// Appends one frame to a buffer.
pub fn put(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

/// A buffer for one frame whose payload of about `length` bytes is appended next; [`finish`] completes it.
pub fn begin(length: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD + length);
    frame.extend_from_slice(&[0; HEAD]);
    frame
}

/// Fills in the head of a frame that was begun with [`begin`].
pub fn finish(frame: &mut [u8]) {
    if let Some((head, payload)) = frame.split_first_chunk_mut::<HEAD>() {
        let (length, crc) = ((payload.len() as u32).to_le_bytes(), crc32c::crc32c(payload).to_le_bytes());
        head.iter_mut().zip(length.into_iter().chain(crc)).for_each(|(to, from)| *to = from);
    }
}

/// What was found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Whole frames: place of the payload and its length.
    pub frames: Vec<(usize, usize)>,
    /// Where the whole frames end.
    pub good: usize,
    /// Whether whole frames follow the damage: then it is no torn tail.
    pub damaged_middle: bool,
}

/// Reads frames until the end or the first one that is not whole.
pub fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan::default();
    while let Some((payload, next)) = frame_at(bytes, found.good) {
        found.frames.push((payload, next - payload));
        found.good = next;
    }
    found.damaged_middle = found.good < bytes.len() && whole_frame_after(bytes, found.good);
    found
}

fn frame_at(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let length = word(at)? as usize;
    let crc = word(at + 4)?;
    if length == 0 || length > PAYLOAD_MAX {
        return None;
    }
    let payload = bytes.get(at + HEAD..at + HEAD + length)?;
    (crc32c::crc32c(payload) == crc).then_some((at + HEAD, at + HEAD + length))
}

/// Looks for a frame that is whole after a broken one: at the place where that one says it ends and, as its length may be
/// what is damaged, wherever a record begins that a frame can begin with. A torn frame is the last one, so nothing whole can
/// follow it but by its content: bytes of a record that look like a frame make damage of a torn tail, never the reverse.
fn whole_frame_after(bytes: &[u8], at: usize) -> bool {
    let length_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let Some(claimed) = length_at(at) else { return false };
    if frame_at(bytes, at.saturating_add(HEAD + claimed as usize)).is_some() {
        return true;
    }
    let mut budget = SEARCH_MAX;
    let records = (at..bytes.len()).filter(|place| bytes.get(*place..place + 2) == Some(&RECORD_BEGIN));
    for (record, before) in records.flat_map(|place| RECORD_AT.map(|before| (place, before))) {
        let Some(start) = record.checked_sub(before + HEAD).filter(|start| *start > at) else { continue };
        let length = length_at(start).map_or(0, |length| length as usize);
        if length < before || length > bytes.len() - start {
            continue;
        }
        match budget.checked_sub(length) {
            Some(left) => budget = left,
            None => return true,
        }
        if frame_at(bytes, start).is_some() {
            return true;
        }
    }
    false
}

/// Takes a file for this process until it is closed; false if another has it. A process that one of this one's threads has forked
/// holds what was closed here until it executes its program: that moment is waited for.
pub fn take(file: &File) -> io::Result<bool> {
    const STEP: Duration = Duration::from_millis(20);
    const STEPS: u32 = 50;
    for step in 0..STEPS {
        match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) if step + 1 < STEPS => std::thread::sleep(STEP),
            Err(rustix::io::Errno::WOULDBLOCK) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Makes a file's new content appear whole or not at all, durably.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = std::fs::File::create(&temporary)?;
    io::Write::write_all(&mut &file, bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Reads a file of at most `max` bytes; more is [`io::ErrorKind::FileTooLarge`].
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, max + 1), &mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {max} bytes")));
    }
    Ok(bytes)
}

/// Reads a text file of at most `max` bytes; more, or no UTF-8, is [`io::ErrorKind::InvalidData`].
pub fn read_text(path: &Path, max: u64) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(std::fs::File::open(path)?, max + 1), &mut text)?;
    if text.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {max} bytes")));
    }
    Ok(text)
}

/// Makes a folder and those above it, durably.
pub fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_dir(parent),
    }
}

/// Whether a folder lies on a file system that forgets.
pub fn in_memory(dir: &Path) -> io::Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let stat = rustix::fs::statfs(dir)?;
    Ok([TMPFS, RAMFS].contains(&(stat.f_type as i64)))
}

/// Makes the entries of a folder durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_torn_tail_is_cut_at_a_frame() {
        let mut bytes = Vec::new();
        put(&mut bytes, b"one");
        let first = bytes.len();
        put(&mut bytes, b"second");
        for end in 0..bytes.len() {
            let scan = scan(&bytes[..end]);
            assert_eq!(scan.good, if end >= first { first } else { 0 });
            assert!(!scan.damaged_middle);
        }
        assert_eq!(scan(&bytes).frames.len(), 2);
    }

    #[test]
    fn a_frame_made_in_place_is_the_same() {
        let (mut put_there, mut made) = (Vec::new(), begin(3));
        put(&mut put_there, b"one");
        made.extend_from_slice(b"one");
        finish(&mut made);
        assert_eq!(made, put_there);
    }

    #[test]
    fn damage_in_the_middle_is_told_apart() {
        let mut bytes = Vec::new();
        put(&mut bytes, b"one");
        put(&mut bytes, b"two");
        bytes[HEAD] ^= 1;
        assert!(scan(&bytes).damaged_middle);
    }

    #[test]
    fn damage_of_a_length_is_told_apart_by_the_records_that_follow() {
        for before in RECORD_AT {
            let payload = [vec![9; before], b"GR and the rest".to_vec()].concat();
            let mut bytes = Vec::new();
            (0..3).for_each(|_| put(&mut bytes, &payload));
            for changed in 0..4 {
                let mut bytes = bytes.clone();
                bytes[changed] ^= 0x41;
                assert!(scan(&bytes).damaged_middle, "{before} {changed}");
            }
            bytes[HEAD + payload.len() + 1] ^= 1;
            assert_eq!((scan(&bytes).frames.len(), scan(&bytes).damaged_middle), (1, true));
        }
    }

    #[test]
    fn content_that_looks_like_frames_without_end_is_damage_and_takes_no_time() {
        // Every few bytes a frame that might reach to the end.
        let mut bytes = [0xff, 0xff, 0xff, 0, 1, 2, 3, 4, 5, 6, 7, 8, b'G', b'R'].repeat(200_000);
        bytes.resize(18 << 20, 0);
        assert!(scan(&bytes).damaged_middle);
    }
}
