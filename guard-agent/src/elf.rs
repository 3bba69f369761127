//! Whether an ELF file is a dynamic loader (or another shared object) that would be started as a program of its own.
//!
//! Such a file maps and runs whatever its arguments name, and the kernel checks none of it. It is told by what it is, not
//! by its name: position independent, with a name for others to link to, and without an interpreter of its own. Programs
//! that are linked statically have no such name; libraries that can be run, such as glibc's, have an interpreter.
//! Bounded reads; a file that makes no sense is no loader, and the kernel will not start it.

use std::io;
use std::os::fd::BorrowedFd;

const ET_DYN: u64 = 3;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_SONAME: u64 = 14;
/// Most bytes of program headers that the kernel accepts (`load_elf_phdrs`, 6.1 to 7.x).
const HEADERS_MAX: usize = 65_536;
/// Bytes of the dynamic section that are looked at.
const DYNAMIC_MAX: usize = 65_536;

/// Places of what is needed, in the two classes of ELF files.
struct Layout {
    word: usize,
    header_offset: usize,
    header_size: usize,
    header_count: usize,
    segment: usize,
    segment_offset: usize,
    segment_size: usize,
}

const ELF64: Layout = Layout {
    word: 8,
    header_offset: 32,
    header_size: 54,
    header_count: 56,
    segment: 56,
    segment_offset: 8,
    segment_size: 32,
};
const ELF32: Layout = Layout {
    word: 4,
    header_offset: 28,
    header_size: 42,
    header_count: 44,
    segment: 32,
    segment_offset: 4,
    segment_size: 16,
};

/// A little-endian number of `size` bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Reads a file's head and says whether it is a loader. `head` holds its first bytes.
pub fn is_loader(file: BorrowedFd<'_>, head: &[u8]) -> io::Result<bool> {
    Ok(looks(head, |offset, bytes| read(file, offset, bytes))?.unwrap_or(false))
}

fn read(file: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; bytes];
    let mut filled = 0;
    while filled < bytes {
        match rustix::io::pread(file, buffer.get_mut(filled..).unwrap_or_default(), offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

fn looks(head: &[u8], mut read: impl FnMut(u64, usize) -> io::Result<Vec<u8>>) -> io::Result<Option<bool>> {
    let layout = match head.get(..6) {
        Some([0x7f, b'E', b'L', b'F', 2, 1]) => ELF64,
        Some([0x7f, b'E', b'L', b'F', 1, 1]) => ELF32,
        _ => return Ok(None),
    };
    let header = || {
        let offset = number(head, layout.header_offset, layout.word)?;
        let size = number(head, layout.header_size, 2)?;
        let count = usize::try_from(number(head, layout.header_count, 2)?).ok()?;
        (number(head, 16, 2)? == ET_DYN && size == layout.segment as u64).then_some((offset, count))
    };
    let Some((offset, count)) = header() else { return Ok(None) };
    if offset > i64::MAX as u64 / 2 {
        return Ok(None);
    }
    let segments = read(offset, (count * layout.segment).min(HEADERS_MAX))?;
    let mut dynamic = None;
    for segment in segments.chunks_exact(layout.segment) {
        match number(segment, 0, 4) {
            Some(PT_INTERP) => return Ok(Some(false)),
            Some(PT_DYNAMIC) => {
                dynamic = number(segment, layout.segment_offset, layout.word).zip(number(
                    segment,
                    layout.segment_size,
                    layout.word,
                ));
            }
            _ => {}
        }
    }
    let Some((offset, size)) = dynamic.filter(|(offset, _)| *offset <= i64::MAX as u64 / 2) else { return Ok(None) };
    let size = usize::try_from(size).unwrap_or(DYNAMIC_MAX).min(DYNAMIC_MAX);
    let entries = read(offset, size)?;
    Ok(Some(entries.chunks_exact(2 * layout.word).any(|e| number(e, 0, layout.word) == Some(DT_SONAME))))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn of(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        let head = read(file.as_fd(), 0, 256).unwrap();
        is_loader(file.as_fd(), &head).unwrap()
    }

    #[test]
    fn the_loader_is_one_and_programs_are_not() {
        for loader in ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(Path::new) {
            assert!(!loader.exists() || of(loader));
        }
        assert!(!of(Path::new("/bin/sh")));
        assert!(!of(&std::env::current_exe().unwrap()));
        assert!(!of(Path::new("/etc/passwd")));
    }

    proptest! {
        #[test]
        fn hostile_files_are_bounded(mut head in proptest::collection::vec(any::<u8>(), 64..256), class in 1_u8..3) {
            head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
            head[16..18].copy_from_slice(&[3, 0]);
            let _ = looks(&head, |_, bytes| {
                assert!(bytes <= HEADERS_MAX);
                Ok(vec![2; bytes])
            });
        }
    }
}
