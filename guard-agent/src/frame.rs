//! Length-prefixed messages over a Unix stream socket, with descriptors on the first byte.
//!
//! Used between daemon and launcher and on the control socket. Bounded: a longer message than the caller allows is an
//! error, and so are more descriptors than [`FDS_MAX`].

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Most descriptors in one message.
pub const FDS_MAX: usize = 5;

/// Sends one message.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes();
    if fds.is_empty() {
        (&*socket).write_all(&length)?;
    } else {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors in one message"));
        }
        let sent = sendmsg(socket, &[IoSlice::new(&length)], &mut ancillary, SendFlags::NOSIGNAL)?;
        (&*socket).write_all(length.get(sent..).unwrap_or_default())?;
    }
    (&*socket).write_all(bytes)
}

/// Receives one message of at most `max` bytes. Nothing at the orderly end of the stream.
pub fn receive(socket: &UnixStream, max: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut length = [0_u8; 4];
    let mut fds = Vec::new();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut length)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    (&*socket).read_exact(length.get_mut(got.bytes..).unwrap_or_default())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes is longer than the {max} allowed here"),
        ));
    }
    let mut bytes = vec![0_u8; length];
    (&*socket).read_exact(&mut bytes)?;
    Ok(Some((bytes, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn carries_bytes_and_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, b"hello", &[file.as_fd(), file.as_fd(), file.as_fd()]).unwrap();
        send(&a, b"", &[]).unwrap();
        let (bytes, fds) = receive(&b, 10).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (b"hello".as_slice(), 3));
        assert_eq!(receive(&b, 10).unwrap().unwrap().0, b"");
        drop(a);
        assert!(receive(&b, 10).unwrap().is_none());
    }

    #[test]
    fn refuses_what_is_too_long() {
        let (a, b) = UnixStream::pair().unwrap();
        send(&a, &[0; 11], &[]).unwrap();
        assert_eq!(receive(&b, 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
