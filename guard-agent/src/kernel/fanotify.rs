//! Permission events: an exec waits in the kernel until its event is answered.
//!
//! One group per session. Marks sit on the mounts of the session's private mount namespace, which nothing else uses.
//! Fails: when the last descriptor of a group closes, the kernel answers what is held with "allow"; the default deny of
//! the kernel programs then refuses, because there is no grant.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// One event without further information.
const EVENT: usize = size_of::<libc::fanotify_event_metadata>();

/// A fanotify group.
pub struct Group {
    fd: OwnedFd,
}

/// A held exec: the file that is being opened for execution, and by which thread.
#[derive(Debug)]
pub struct Held {
    /// The opened file.
    pub file: OwnedFd,
    /// Thread id in the initial namespace.
    pub tid: u32,
}

impl Group {
    /// Makes a group for exec permission events.
    pub fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLASS_CONTENT
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK
            | libc::FAN_REPORT_TID
            | libc::FAN_UNLIMITED_QUEUE
            | libc::FAN_UNLIMITED_MARKS;
        let file_flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE;
        // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
        let fd = unsafe { libc::fanotify_init(flags, file_flags.cast_unsigned()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Holds execs of files reached through the mount that `path` lies on.
    pub fn mark_mount(&self, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let done = unsafe {
            libc::fanotify_mark(
                self.fd.as_raw_fd(),
                libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT,
                libc::FAN_OPEN_EXEC_PERM,
                libc::AT_FDCWD,
                path.as_ptr(),
            )
        };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes one held exec, if there is one: what a thread does not take, another can.
    pub fn read(&self) -> io::Result<Option<Held>> {
        let mut buffer = [0_u8; EVENT];
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                // An event without a descriptor has been answered by the kernel.
                Ok(count) => match parse(buffer.get(..count).unwrap_or_default()) {
                    Some(held) => return Ok(Some(held)),
                    None => continue,
                },
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers a held exec.
    pub fn answer(&self, file: BorrowedFd<'_>, allow: bool) -> io::Result<()> {
        let response = libc::fanotify_response {
            fd: file.as_raw_fd(),
            response: if allow { libc::FAN_ALLOW } else { libc::FAN_DENY },
        };
        let mut bytes = [0_u8; 8];
        let (fd, code) = bytes.split_at_mut(4);
        fd.copy_from_slice(&response.fd.to_ne_bytes());
        code.copy_from_slice(&response.response.to_ne_bytes());
        rustix::io::write(&self.fd, &bytes)?;
        Ok(())
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn parse(bytes: &[u8]) -> Option<Held> {
    if bytes.len() < EVENT {
        return None;
    }
    // SAFETY: the length was checked; the struct is plain integers; unaligned reads are allowed.
    let event = unsafe { bytes.as_ptr().cast::<libc::fanotify_event_metadata>().read_unaligned() };
    if event.fd < 0 {
        return None;
    }
    // SAFETY: the kernel has just opened this descriptor for us; nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(event.fd) };
    Some(Held { file, tid: event.pid.unsigned_abs() })
}
