//! The process at the other end of a Unix socket, as the kernel noted it when it connected.
//!
//! It must not believe anything that the process says. Since Linux 6.5 the kernel gives a handle of the very process; before, one
//! is made of its number, which by then may be another process's, if it ended at once. Fails: with the system's error; a process
//! that has ended is nobody.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, pidfd_open};

use super::proc;

/// `SO_PEERPIDFD` (Linux 6.5).
const SO_PEERPIDFD: libc::c_int = 77;

/// One peer.
pub struct Peer {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// User when it connected.
    pub uid: u32,
    handle: OwnedFd,
}

impl Peer {
    /// Who connected.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = socket_peercred(stream)?;
        let handle = match handle(stream) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                pidfd_open(credentials.pid, PidfdFlags::empty())?
            }
            given => given?,
        };
        let pid = credentials.pid.as_raw_nonzero().get().unsigned_abs();
        Ok(Self { pid, uid: credentials.uid.as_raw(), handle })
    }

    /// Whether it still lives: then what was read of its number until now was about this process.
    pub fn lives(&self) -> bool {
        !proc::has_ended(&self.handle)
    }
}

fn handle(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(0);
    // SAFETY: value and length outlive the call, and the length is that of the value.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, (&raw mut fd).cast(), &raw mut length)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this process; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_peer_is_known_and_gone_once_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let _own = UnixStream::connect(&path).unwrap();
        let peer = Peer::of(&listener.accept().unwrap().0).unwrap();
        assert_eq!((peer.pid, peer.lives()), (std::process::id(), true));
        let script =
            "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(30)";
        let mut child = Command::new("python3").args(["-c", script]).arg(&path).spawn().unwrap();
        let peer = Peer::of(&listener.accept().unwrap().0).unwrap();
        assert_eq!((peer.pid, peer.lives()), (child.id(), true));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!peer.lives());
    }
}
