//! The mounts of a mount namespace, as one of its tasks sees them: listed, watched, marked for holding execs.
//!
//! Names in a session's namespace are the session's to change: they are resolved inside the task's root, without symbolic
//! links, so that no mount of anybody else can be marked. Fails: a task that is gone is an error; a mount that cannot be
//! marked stays unmarked, and execs through it are refused.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2, readlinkat};

use super::fanotify::Group;

/// Mounts looked at in one namespace; the rest stays unmarked.
const MOUNTS_MAX: usize = 4096;
/// Bytes of a mount table that are read.
const TABLE_MAX: u64 = 4 << 20;

/// A namespace, seen by one of its tasks.
pub struct View {
    task: OwnedFd,
    root: OwnedFd,
    table: File,
    /// Name of the namespace, such as `mnt:[4026532291]`.
    pub namespace: String,
}

impl View {
    /// As a task sees it now. The caller makes sure that it is the right task: its number may be another's.
    pub fn of_task(tid: u32) -> io::Result<Self> {
        let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self::of_folder(rustix::fs::open(format!("/proc/{tid}"), place, Mode::empty())?)
    }

    fn of_folder(task: OwnedFd) -> io::Result<Self> {
        let namespace = readlinkat(&task, "ns/mnt", Vec::new())?.to_string_lossy().into_owned();
        let root = openat(&task, "root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let table = openat(&task, "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { task, root, table: table.into(), namespace })
    }

    /// As the same task sees it now: it may have changed its root.
    pub fn again(&self) -> io::Result<Self> {
        Self::of_folder(self.task.try_clone()?)
    }

    /// Whether its task is still there.
    pub fn is_alive(&self) -> bool {
        readlinkat(&self.task, "ns/mnt", Vec::new()).is_ok()
    }

    /// Marks every mount that the task can reach. Gives how many.
    pub fn mark(&self, group: &Group) -> io::Result<usize> {
        let mut text = Vec::new();
        // A fresh table: reading the watched one again would need a seek, which forgets no change.
        let table = openat(&self.task, "mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        File::from(table).take(TABLE_MAX).read_to_end(&mut text)?;
        let mut marked = 0;
        for point in points(&text) {
            match self.mark_one(group, &point) {
                Ok(()) => marked += 1,
                // Mounts that are covered by others or cannot be watched hold no programs that the session may start.
                Err(error) => tracing::debug!(mount = %point.display(), %error, "mount not marked"),
            }
        }
        Ok(marked)
    }

    fn mark_one(&self, group: &Group, point: &Path) -> io::Result<()> {
        let inside = if point.as_os_str().is_empty() { Path::new(".") } else { point };
        let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let place = openat2(&self.root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags)?;
        group.mark_mount(Path::new(&format!("/proc/self/fd/{}", place.as_raw_fd())))
    }
}

/// Has an error or urgent condition when the namespace's mounts have changed.
impl AsFd for View {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.table.as_fd()
    }
}

/// Mount points of a table, relative to the root, bounded.
fn points(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .take(MOUNTS_MAX)
        .map(|point| PathBuf::from(std::ffi::OsString::from_vec(super::proc::unescape(point))))
        .map(|point| point.strip_prefix("/").map(Path::to_path_buf).unwrap_or_default())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_relative_to_the_root() {
        let table = b"22 1 0:21 / / rw - ext4 a rw\n23 22 0:22 / /a\\040b rw - tmpfs b rw\nbroken\n";
        assert_eq!(points(table), [PathBuf::new(), PathBuf::from("a b")]);
    }

    #[test]
    fn sees_its_own_namespace() {
        let view = View::of_task(std::process::id()).unwrap();
        assert!(view.namespace.starts_with("mnt:[") && view.is_alive() && view.again().is_ok());
        assert!(View::of_task(u32::MAX).is_err());
    }
}
