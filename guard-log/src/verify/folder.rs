//! A folder of untrusted files, read without following a link and without changing it.
//!
//! Every name is resolved by the kernel beneath the folder (`openat2`), so that a link in the place of a file or of a
//! folder on the way leads nowhere; only regular files are opened, and read up to a limit. It must not write. Fails:
//! an error that says what stands in the way; what is not there is `None`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat};
use rustix::io::Errno;

use super::{Source, SourceError};
use crate::tiles::RESOURCE_MAX;

/// Names that are taken from one folder. A folder of tiles has at most three thousand, one of blobs as many as there
/// are blobs / 256.
pub(super) const NAMES_MAX: usize = 1 << 17;

/// A folder, held open.
#[derive(Debug)]
pub struct Folder(OwnedFd);

/// What stands under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) what: What,
    pub(super) bytes: u64,
    pub(super) mode: u32,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    File,
    Folder,
    Link,
    Other,
}

/// Names of a folder, in order.
pub(super) struct Names {
    pub(super) names: Vec<OsString>,
    /// There are more.
    pub(super) more: bool,
}

impl Folder {
    /// Opens the folder that a caller named. That name may be a link: it is the caller's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    fn beneath(&self, name: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        // Without NONBLOCK the opening of a pipe would wait for its writer.
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let open = |flags| openat2(&self.0, name, flags, Mode::empty(), resolve);
        // Evidence keeps its times where the caller may ask for that: of files that are theirs.
        let opened = match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags),
            other => other,
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(io::Error::other("a symbolic link is in the way, and none is followed")),
            Err(error) => Err(error.into()),
        }
    }

    /// A folder below.
    pub(super) fn within(&self, name: &str) -> io::Result<Option<Self>> {
        Ok(self.beneath(name, OFlags::DIRECTORY)?.map(Self))
    }

    /// A regular file, and its length.
    pub(super) fn file(&self, name: &str) -> io::Result<Option<(File, u64)>> {
        let Some(file) = self.beneath(name, OFlags::empty())?.map(File::from) else { return Ok(None) };
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(Some((file, found.len())))
    }

    /// A whole file of at most `max` bytes.
    pub(super) fn read(&self, name: &str, max: u64) -> io::Result<Option<Vec<u8>>> {
        let Some((file, length)) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        if length <= max {
            file.take(max + 1).read_to_end(&mut bytes)?;
        }
        if length.max(bytes.len() as u64) > max {
            let what = format!("it has {length} bytes, and at most {max} are right");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        Ok(Some(bytes))
    }

    /// What stands under a name in this folder itself.
    pub(super) fn look(&self, name: &OsString) -> io::Result<Entry> {
        let found = statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let what = match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => What::File,
            FileType::Directory => What::Folder,
            FileType::Symlink => What::Link,
            _ => What::Other,
        };
        Ok(Entry { what, bytes: u64::try_from(found.st_size).unwrap_or(0), mode: found.st_mode & 0o7777 })
    }

    /// The names in this folder.
    pub(super) fn names(&self) -> io::Result<Names> {
        let mut found = Names { names: Vec::new(), more: false };
        for entry in Dir::read_from(&self.0)? {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            if found.names.len() >= NAMES_MAX {
                found.more = true;
                break;
            }
            found.names.push(name);
        }
        found.names.sort_unstable();
        Ok(found)
    }
}

impl Source for Folder {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.read(path, RESOURCE_MAX).map_err(|error| SourceError::new(path, error))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_is_read_and_nothing_without_end() {
        let (outside, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("plain"), "plain").unwrap();
        symlink(outside.path().join("secret"), at("link")).unwrap();
        symlink(outside.path(), at("away")).unwrap();
        symlink("plain", at("inside")).unwrap();
        fs::File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
        fs::create_dir(at("folder")).unwrap();
        rustix::fs::mkfifoat(CWD, at("pipe"), Mode::RUSR).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        let times = fs::FileTimes::new().set_accessed(old);
        fs::File::options().write(true).open(at("plain")).unwrap().set_times(times).unwrap();
        assert_eq!(folder.fetch("plain").unwrap().unwrap(), b"plain");
        assert!(folder.fetch("none").unwrap().is_none());
        assert_eq!(fs::metadata(at("plain")).unwrap().accessed().unwrap(), old, "reading leaves no trace");
        for name in ["link", "inside", "away/secret", "huge", "pipe", "folder", "../secret", "/etc/passwd"] {
            assert!(folder.fetch(name).is_err(), "{name}");
        }
        let names = folder.names().unwrap();
        assert_eq!((names.names.len(), names.more), (7, false));
    }
}
