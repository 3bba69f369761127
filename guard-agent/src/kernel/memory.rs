//! Reads strings and string vectors from a held task's memory.
//!
//! What is read here is what was judged; the kernel programs compare their own copy after commit. Every read is bounded.
//! Fails: an unreadable byte is an error, never a shorter vector. A read may block on a page that the task controls: the
//! caller runs it where a watchdog can end the task.

use std::io;

/// The kernel's own limit for arguments and environment together is below this (a quarter of an 8 MiB stack, and 6 MiB).
pub const VECTOR_BYTES_MAX: usize = 6 << 20;
/// Most strings of one vector.
pub const STRINGS_MAX: usize = 1 << 20;
/// The kernel's limit for one path.
pub const PATH_MAX: usize = 4096;
/// Reads never cross this border in one piece, so that a string before an unmapped page can be read.
const PAGE: u64 = 4096;

/// Memory of one process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pid: u32,
}

impl Memory {
    /// Memory of the process that a thread belongs to.
    pub fn of(pid: u32) -> Self {
        Self { pid }
    }

    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<usize> {
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
        let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: into.len() };
        // SAFETY: the local vector describes `into`, which outlives the call; the kernel checks the remote one.
        let count =
            unsafe { libc::process_vm_readv(self.pid.cast_signed(), &raw const local, 1, &raw const remote, 1, 0) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// A NUL-terminated string of at most `max` bytes.
    pub fn string(&self, address: u64, max: usize) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut at = address;
        let mut page = [0_u8; PAGE as usize];
        while text.len() <= max {
            let length = usize::try_from(PAGE - at % PAGE).unwrap_or(1);
            let piece = page.get_mut(..length).unwrap_or_default();
            let count = self.read(at, piece)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = piece.get(..count).unwrap_or_default();
            if let Some(end) = piece.iter().position(|b| *b == 0) {
                text.extend_from_slice(piece.get(..end).unwrap_or_default());
                return if text.len() <= max { Ok(text) } else { Err(too_long()) };
            }
            text.extend_from_slice(piece);
            at = at.checked_add(count as u64).ok_or_else(too_long)?;
        }
        Err(too_long())
    }

    /// A NULL-terminated vector of string pointers, with all its strings. A null vector is an empty one.
    pub fn strings(&self, address: u64) -> io::Result<Vec<Vec<u8>>> {
        let mut strings = Vec::new();
        if address == 0 {
            return Ok(strings);
        }
        let mut bytes = 0;
        let mut near = Page::default();
        for pointer in self.pointers(address)? {
            let text = match near.string(self, pointer) {
                Some(text) => text,
                None => self.string(pointer, VECTOR_BYTES_MAX)?,
            };
            bytes += text.len() + 9;
            if bytes > VECTOR_BYTES_MAX {
                return Err(too_long());
            }
            strings.push(text);
        }
        Ok(strings)
    }

    fn pointers(&self, address: u64) -> io::Result<Vec<u64>> {
        let mut pointers = Vec::new();
        let mut at = address;
        let mut page = [0_u8; PAGE as usize];
        while pointers.len() < STRINGS_MAX {
            // Whole words up to the end of the page; a word that crosses it is read on its own.
            let room = usize::try_from(PAGE - at % PAGE).unwrap_or(8) / 8 * 8;
            let piece = page.get_mut(..room.max(8)).unwrap_or_default();
            let count = self.read(at, piece)?;
            if count < 8 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for word in piece.get(..count / 8 * 8).unwrap_or_default().chunks_exact(8) {
                let pointer = word.try_into().map(u64::from_ne_bytes).unwrap_or(0);
                if pointer == 0 {
                    return Ok(pointers);
                }
                pointers.push(pointer);
            }
            at = at.checked_add((count / 8 * 8) as u64).ok_or_else(too_long)?;
        }
        Err(too_long())
    }
}

/// The page that was read last: the strings of a vector mostly lie side by side.
#[derive(Default)]
struct Page {
    start: u64,
    bytes: Vec<u8>,
}

impl Page {
    /// A string that ends within its page; nothing if it does not, or if the page cannot be read.
    fn string(&mut self, memory: &Memory, address: u64) -> Option<Vec<u8>> {
        let start = address - address % PAGE;
        if self.bytes.is_empty() || self.start != start {
            let mut page = [0_u8; PAGE as usize];
            let count = memory.read(start, &mut page).unwrap_or(0);
            self.start = start;
            self.bytes = page.get(..count)?.to_vec();
        }
        let rest = self.bytes.get(usize::try_from(address - start).ok()?..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        rest.get(..end).map(<[u8]>::to_vec)
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "longer than the kernel would accept")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_own_vectors_whole() {
        let texts = [c"git".to_owned(), std::ffi::CString::new(vec![b'x'; 100_000]).unwrap(), c"".to_owned()];
        let mut pointers: Vec<u64> = texts.iter().map(|t| t.as_ptr() as u64).collect();
        pointers.push(0);
        let read = Memory::of(std::process::id()).strings(pointers.as_ptr() as u64).unwrap();
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [3, 100_000, 0]);
        assert!(Memory::of(std::process::id()).strings(0).unwrap().is_empty());
    }

    #[test]
    fn unmapped_memory_is_an_error() {
        assert!(Memory::of(std::process::id()).strings(8).is_err());
        assert!(Memory::of(std::process::id()).string(u64::MAX - 3, 10).is_err());
    }
}
