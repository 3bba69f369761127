//! The daemon's control socket: length-prefixed messages of `local.proto`, descriptors passed on the first byte.
//!
//! It must not trust lengths: a frame above the limit ends the conversation. Fails: a [`CliError`]; a daemon that is not
//! there is `unavailable`, one that says no is what it says.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use guard_proto::LOCAL_MESSAGE_MAX;
use guard_proto::v1::{LocalError, LocalReply, LocalRequest, local_reply, local_request};
use prost::Message;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::exit::{CliError, Exit, Result};

/// Connects to the control socket at `path`.
pub fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|e| {
        let kind = if e.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Unavailable };
        let hint = match e.kind() {
            io::ErrorKind::PermissionDenied => "the socket is for members of the group `guard`",
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                "is guard-agent running on this host? (`systemctl status guard-agent`)"
            }
            _ => "check `socket` in the configuration",
        };
        CliError::new(kind, format_args!("cannot connect to the daemon at {}: {e}", path.display())).hint(hint)
    })
}

/// Encodes one request with its length.
pub fn frame(request: local_request::Request) -> Result<Vec<u8>> {
    let message = LocalRequest { request: Some(request) };
    let length = message.encoded_len();
    if length > LOCAL_MESSAGE_MAX {
        let text =
            format_args!("arguments and environment take {length} bytes, at most {LOCAL_MESSAGE_MAX} can be sent");
        return Err(
            CliError::new(Exit::Usage, text).hint("put long input in a file, or start with a smaller environment")
        );
    }
    let mut bytes = Vec::with_capacity(length + 4);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    message.encode(&mut bytes).map_err(|e| CliError::new(Exit::Internal, e))?;
    Ok(bytes)
}

/// Sends a frame; `fds` travel with its first byte.
pub fn send_with_fds(stream: &UnixStream, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(CliError::new(Exit::Internal, "too many descriptors for one message"));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|e| lost(&io::Error::from(e)))?;
    let rest = frame.get(sent..).unwrap_or_default();
    (&*stream).write_all(rest).map_err(|e| lost(&e))
}

/// One request and its one reply.
pub fn call(path: &Path, request: local_request::Request) -> Result<local_reply::Reply> {
    receive(&ask(path, request)?)
}

/// Sends one request; the replies are to be received.
pub fn ask(path: &Path, request: local_request::Request) -> Result<UnixStream> {
    let mut stream = connect(path)?;
    stream.write_all(&frame(request)?).map_err(|e| lost(&e))?;
    Ok(stream)
}

/// The next reply.
pub fn receive(mut stream: &UnixStream) -> Result<local_reply::Reply> {
    let mut length = [0u8; 4];
    stream.read_exact(&mut length).map_err(|e| lost(&e))?;
    let mut body = vec![0u8; checked_length(length)?];
    stream.read_exact(&mut body).map_err(|e| lost(&e))?;
    match decode(&body)? {
        local_reply::Reply::Error(e) => Err(refused(e)),
        reply => Ok(reply),
    }
}

/// The length in a frame's first four bytes, if it is within the limit.
pub fn checked_length(prefix: [u8; 4]) -> Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > LOCAL_MESSAGE_MAX {
        return Err(CliError::new(Exit::Internal, format_args!("the daemon sent a frame of {length} bytes")));
    }
    Ok(length)
}

/// Decodes one reply.
pub fn decode(body: &[u8]) -> Result<local_reply::Reply> {
    LocalReply::decode(body)
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot read the daemon's answer: {e}")))?
        .reply
        .ok_or_else(|| {
            CliError::new(Exit::Internal, "the daemon's answer is of a kind that this guardctl does not know")
        })
}

/// What the daemon refused, with the exit code that its code stands for.
pub fn refused(error: LocalError) -> CliError {
    let kind = match error.code.as_str() {
        "usage" => Exit::Usage,
        "denied" => Exit::Denied,
        "unavailable" => Exit::Unavailable,
        "expired" | "not_found" => Exit::No,
        _ => Exit::Internal,
    };
    CliError { kind, message: error.message, hint: Some(error.hint).filter(|h| !h.is_empty()) }
}

/// The connection broke.
pub fn lost(error: &io::Error) -> CliError {
    CliError::new(Exit::Unavailable, format_args!("lost the daemon: {error}"))
        .hint("sessions go on when it is back; one whose guardctl is gone is ended; see `guardctl session list`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oversized_frames_are_refused_both_ways() {
        assert!(checked_length([0, 0, 0, 1]).is_err());
        assert_eq!(checked_length([0, 0, 16, 0]), Ok(LOCAL_MESSAGE_MAX));
        let huge = local_request::Request::EmergencyStop(guard_proto::v1::EmergencyStopRequest {
            reason: "x".repeat(LOCAL_MESSAGE_MAX),
        });
        assert_eq!(frame(huge).expect_err("too long").kind, Exit::Usage);
    }

    #[test]
    fn the_daemons_codes_become_exit_codes() {
        let kind =
            |code: &str| refused(LocalError { code: code.into(), message: String::new(), hint: String::new() }).kind;
        let kinds = ["usage", "denied", "unavailable", "expired", "not_found", "internal", "new"].map(kind);
        assert_eq!(
            kinds,
            [Exit::Usage, Exit::Denied, Exit::Unavailable, Exit::No, Exit::No, Exit::Internal, Exit::Internal]
        );
    }
}
