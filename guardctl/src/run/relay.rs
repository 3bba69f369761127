//! Moves bytes between the caller's descriptors and the session's: one pseudo-terminal, or three pipes.
//!
//! It must not lose output: what the session wrote before it ended is written out before guardctl exits, with a limit for
//! background processes that keep the descriptors. Fails: a side that is closed stops its own direction only.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, read};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::isatty;
use tokio::sync::mpsc;

use super::terminal::{self, Pair, RawMode};
use crate::exit::{CliError, Exit, Result};

const CHUNK: usize = 64 * 1024;
/// How long the rest of the output is waited for after the session ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How often a background job looks whether it came to the foreground, in milliseconds.
const FOREGROUND_CHECK_MS: i64 = 200;

/// What the relay tells the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// The stop key was typed at a program that leaves it to the kernel.
    StopKey,
}

/// Both sides of the session's input and output.
pub struct Relay {
    kind: Kind,
    session_side: Option<[OwnedFd; 3]>,
    outputs: Vec<tokio::task::JoinHandle<()>>,
    send: mpsc::Sender<RelayEvent>,
    events: mpsc::Receiver<RelayEvent>,
}

enum Kind {
    Terminal { master: Arc<OwnedFd>, raw: Arc<Mutex<RawMode>> },
    Pipes(Option<[OwnedFd; 3]>),
}

impl Relay {
    /// A pseudo-terminal when stdin, stdout and stderr are all terminals, else three pipes.
    pub fn new() -> Result<Relay> {
        let (send, events) = mpsc::channel(4);
        let terminal = isatty(io::stdin()) && isatty(io::stdout()) && isatty(io::stderr());
        let (kind, session_side) = if terminal { open_terminal() } else { open_pipes() }
            .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot make the session's descriptors: {e}")))?;
        Ok(Relay { kind, session_side: Some(session_side), outputs: Vec::new(), send, events })
    }

    /// Whether the session gets a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self.kind, Kind::Terminal { .. })
    }

    /// The session's descriptors, once; the caller closes its copies after sending, so that the end of output can be seen.
    pub fn take_session_side(&mut self) -> Result<[OwnedFd; 3]> {
        self.session_side.take().ok_or_else(|| CliError::new(Exit::Internal, "descriptors were already sent"))
    }

    /// Starts moving bytes.
    pub fn start(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Terminal { master, raw } => {
                let (input, output) = (Arc::clone(master), Arc::clone(master));
                let (raw, send) = (Arc::clone(raw), self.send.clone());
                if terminal::in_foreground(io::stdin().as_fd()) {
                    lock(&raw).enter();
                }
                // Never joined: it may block on a key that nobody presses. The process ends with it.
                thread::spawn(move || type_into(&input, &raw, &send));
                self.outputs.push(tokio::task::spawn_blocking(move || copy(&output, &mut io::stdout().lock())));
            }
            Kind::Pipes(pipes) => {
                let Some([stdin, stdout, stderr]) = pipes.take() else { return Ok(()) };
                thread::spawn(move || {
                    copy_input(std::fs::File::from(stdin));
                });
                self.outputs.push(tokio::task::spawn_blocking(move || copy(&stdout, &mut io::stdout().lock())));
                self.outputs.push(tokio::task::spawn_blocking(move || copy(&stderr, &mut io::stderr())));
            }
        }
        Ok(())
    }

    /// What happened; pends for ever when nothing does.
    pub async fn next_event(&mut self) -> RelayEvent {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Passes the caller's terminal size on.
    pub fn resize(&self) {
        if let Kind::Terminal { master, .. } = &self.kind {
            terminal::copy_size(io::stdin().as_fd(), master.as_fd());
        }
    }

    /// Gives the terminal back before guardctl stops.
    pub fn suspend(&self) {
        if let Kind::Terminal { raw, .. } = &self.kind {
            lock(raw).give_back();
        }
    }

    /// Takes the terminal again after a stop, if guardctl is in the foreground.
    pub fn resume(&self) {
        if let Kind::Terminal { raw, .. } = &self.kind
            && terminal::in_foreground(io::stdin().as_fd())
        {
            let mut raw = lock(raw);
            raw.take_again();
            raw.enter();
            drop(raw);
            self.resize();
        }
    }

    /// Waits for the rest of the output, then restores the terminal.
    pub async fn finish(&mut self) {
        drop(self.session_side.take());
        let outputs = std::mem::take(&mut self.outputs);
        let all = async {
            for output in outputs {
                let _ = output.await;
            }
        };
        let _ = tokio::time::timeout(DRAIN, all).await;
        self.suspend();
    }
}

fn lock(raw: &Mutex<RawMode>) -> MutexGuard<'_, RawMode> {
    raw.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_terminal() -> io::Result<(Kind, [OwnedFd; 3])> {
    let stdin = io::stdin();
    let Pair { master, slave } = terminal::open_pair(stdin.as_fd())?;
    let raw = RawMode::new(fcntl_dupfd_cloexec(stdin.as_fd(), 3)?);
    let session = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok((Kind::Terminal { master: Arc::new(master), raw: Arc::new(Mutex::new(raw)) }, session))
}

fn open_pipes() -> io::Result<(Kind, [OwnedFd; 3])> {
    let (in_read, in_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((Kind::Pipes(Some([in_write, out_read, err_read])), [in_read, out_write, err_write]))
}

/// Copies until the other end is closed. When `to` is closed, `from` is dropped by the caller and its writers get SIGPIPE.
fn copy(from: &OwnedFd, to: &mut impl Write) {
    let mut buffer = vec![0u8; CHUNK];
    loop {
        match read(from, &mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let chunk = buffer.get(..n).unwrap_or_default();
                if to.write_all(chunk).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            // EIO: the last process of the session closed its side of the terminal.
            Err(_) => return,
        }
    }
}

fn copy_input(mut to: std::fs::File) {
    let mut buffer = vec![0u8; CHUNK];
    let stdin = io::stdin();
    loop {
        match read(stdin.as_fd(), &mut buffer) {
            Ok(0) => return,
            Ok(n) if to.write_all(buffer.get(..n).unwrap_or_default()).is_ok() => {}
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Reads what is typed and writes it into the session's terminal; waits while guardctl is a background job.
fn type_into(master: &OwnedFd, raw: &Mutex<RawMode>, send: &mpsc::Sender<RelayEvent>) {
    let mut buffer = vec![0u8; 4096];
    let mut to = match master.try_clone() {
        Ok(fd) => std::fs::File::from(fd),
        Err(_) => return,
    };
    let mut stdin = stdin_file();
    loop {
        if !terminal::in_foreground(io::stdin().as_fd()) {
            thread::sleep(Duration::from_millis(FOREGROUND_CHECK_MS.unsigned_abs()));
            continue;
        }
        lock(raw).enter();
        if !readable() {
            continue;
        }
        let n = match stdin.as_mut().map(|s| s.read(&mut buffer)) {
            Some(Ok(n)) if n > 0 => n,
            Some(Err(e)) if e.kind() == io::ErrorKind::Interrupted => continue,
            _ => return,
        };
        let typed = buffer.get(..n).unwrap_or_default();
        if terminal::is_stop_key(master.as_fd(), typed) {
            let _ = send.blocking_send(RelayEvent::StopKey);
        } else if to.write_all(typed).is_err() {
            return;
        }
    }
}

/// Stdin without the buffer that `std` puts before it.
fn stdin_file() -> Option<std::fs::File> {
    fcntl_dupfd_cloexec(io::stdin().as_fd(), 3).ok().map(std::fs::File::from)
}

fn readable() -> bool {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let wait = Timespec { tv_sec: 0, tv_nsec: FOREGROUND_CHECK_MS * 1_000_000 };
    poll(&mut fds, Some(&wait)).is_ok_and(|n| n > 0)
}
