//! The daemon's side of the connection that started a session: replies in order, on a thread of its own.
//!
//! It must never make the caller wait: whoever holds execs or writes the journal speaks through it. Fails: a peer that does
//! not read loses messages, never the session's end; a peer that is gone loses nothing that is not in the log.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::{io, thread};

use guard_proto::v1::{LocalReply, local_reply};
use prost::Message;

use crate::frame;

/// Messages that wait for a slow peer; more are dropped.
const WAITING: usize = 256;

/// One connection.
pub struct Voice {
    stream: UnixStream,
    queue: SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl Voice {
    /// Takes the connection over.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let own = stream.try_clone()?;
        let (queue, waiting) = sync_channel::<Vec<u8>>(WAITING);
        let thread = thread::Builder::new().name("voice".into()).spawn(move || {
            for bytes in waiting {
                // The socket has a write timeout.
                if frame::send(&stream, &bytes, &[]).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { stream: own, queue, thread })
    }

    /// Queues a reply; drops it when too many wait.
    pub fn say(&self, reply: local_reply::Reply) {
        let _ = self.queue.try_send(LocalReply { reply: Some(reply) }.encode_to_vec());
    }

    /// Waits until all is sent, or the peer has shown that it does not read; then closes the connection.
    pub fn finish(self) {
        drop(self.queue);
        let _ = self.thread.join();
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use guard_proto::v1::{Done, local_reply::Reply};

    use super::*;

    fn done(text: String) -> Reply {
        Reply::Done(Done { text })
    }

    #[test]
    fn replies_come_in_order_and_all_before_the_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let voice = Voice::new(ours).unwrap();
        (0..100).for_each(|n| voice.say(done(n.to_string())));
        voice.finish();
        let texts = (0..100).map(|_| {
            let (bytes, _) = frame::receive(&theirs, 1000).unwrap().unwrap();
            match LocalReply::decode(bytes.as_slice()).unwrap().reply {
                Some(Reply::Done(done)) => done.text,
                other => panic!("{other:?}"),
            }
        });
        assert!(texts.eq((0..100).map(|n| n.to_string())));
    }

    #[test]
    fn a_peer_that_does_not_read_makes_nobody_wait() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let voice = Voice::new(ours).unwrap();
        let begun = std::time::Instant::now();
        (0..5000).for_each(|_| voice.say(done("x".repeat(4000))));
        assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    }
}
