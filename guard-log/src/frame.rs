//! Framing of the write-ahead files: length, CRC32C, bytes. A torn tail is told from damage in the middle by its place.

use std::io;
use std::path::Path;

/// Bytes before each payload.
pub const HEAD: usize = 8;
/// Longest payload that is taken for real.
pub const PAYLOAD_MAX: usize = 64 << 20;

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

/// Looks a little way for a frame that is whole again, at the place where the broken one says it ends.
fn whole_frame_after(bytes: &[u8], at: usize) -> bool {
    let Some(length) = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes) else {
        return false;
    };
    frame_at(bytes, at.saturating_add(HEAD + length as usize)).is_some()
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
}
