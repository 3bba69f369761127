//! The parent of the daemon: kills it when it hangs, starts it again when it died.
//!
//! It has one thread and no fanotify descriptor, so that what a hung daemon holds ends in EPERM when it is killed. It
//! must not do anything else. Fails: a daemon that dies before it was ever ready ends the supervisor with its code.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::Code;
use crate::kernel::spawn;

/// Time that a daemon may take until it is ready.
const READY: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Signals that reach the daemon through its signal descriptor.
pub const SIGNALS: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The daemon's end: one byte means "I live"; the first one means "I am ready".
pub struct Heart(OwnedFd);

impl Heart {
    /// Gives a sign of life.
    pub fn beat(&self) {
        let _ = rustix::io::write(&self.0, b".");
    }
}

/// Runs `daemon` in a child, for as long as it takes. Returns the code to exit with.
pub fn run(heartbeat: Duration, daemon: impl Fn(Heart) -> Code) -> io::Result<i32> {
    let signals = spawn::signal_fd(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
    let mut pause = PAUSE_MIN;
    loop {
        let (beats, heart) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let started = Instant::now();
        let pid = spawn::fork()?;
        if pid == 0 {
            drop((beats, signals));
            spawn::die_with_parent();
            std::process::exit(daemon(Heart(heart)) as i32);
        }
        drop(heart);
        let ended = watch(pid, &beats, &signals, heartbeat)?;
        if let Some(code) = ended.verdict() {
            return Ok(code);
        }
        tracing::error!(status = ended.status, "the daemon died; it is started again, execs are denied meanwhile");
        pause = if started.elapsed() > PAUSE_MAX * 3 { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        thread::sleep(pause);
    }
}

struct Ended {
    status: i32,
    ready: bool,
    asked: bool,
}

impl Ended {
    /// The code to exit with, or nothing if the daemon is to be started again.
    fn verdict(&self) -> Option<i32> {
        let code = libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status));
        match code {
            Some(code) if code == 0 || !self.ready => Some(code),
            _ if self.asked => Some(code.unwrap_or(Code::Internal as i32)),
            None if !self.ready => Some(Code::Internal as i32),
            _ => None,
        }
    }
}

fn watch(pid: i32, beats: &OwnedFd, signals: &OwnedFd, heartbeat: Duration) -> io::Result<Ended> {
    let mut ready = false;
    let mut asked = false;
    let mut last = Instant::now();
    loop {
        let limit = if ready { heartbeat } else { READY };
        let left = limit.saturating_sub(last.elapsed());
        let mut fds = [PollFd::new(beats, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [beat, signal] = &fds;
        let (beat, signal) = (beat.revents().contains(PollFlags::IN), !signal.revents().is_empty());
        if beat {
            let mut bytes = [0_u8; 64];
            let _ = rustix::io::read(beats, &mut bytes);
            ready = true;
            last = Instant::now();
        }
        if signal {
            asked |= pass_on(pid, signals);
        }
        while let Some((ended, status)) = spawn::reap() {
            if ended == pid {
                return Ok(Ended { status, ready, asked });
            }
        }
        if !asked && last.elapsed() >= limit {
            tracing::error!(seconds = limit.as_secs(), "the daemon gives no sign of life; it is killed");
            let _ = spawn::signal(pid, libc::SIGKILL);
            last = Instant::now();
        }
    }
}

/// Passes signals on to the daemon. True if one of them asks it to end.
fn pass_on(pid: i32, signals: &OwnedFd) -> bool {
    const RECORD: usize = size_of::<libc::signalfd_siginfo>();
    let mut asked = false;
    let mut bytes = [0_u8; RECORD];
    while let Ok(RECORD) = rustix::io::read(signals, &mut bytes) {
        let number = bytes.first_chunk::<4>().map_or(0, |b| u32::from_ne_bytes(*b)).cast_signed();
        if SIGNALS.contains(&number) {
            let _ = spawn::signal(pid, number);
            asked |= number != libc::SIGHUP;
        }
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: i32, ready: bool, asked: bool) -> Option<i32> {
        Ended { status, ready, asked }.verdict()
    }

    #[test]
    fn what_ends_and_what_is_started_again() {
        assert_eq!(verdict(0, true, false), Some(0));
        assert_eq!(verdict(78 << 8, false, false), Some(78));
        assert_eq!(verdict(libc::SIGKILL, true, false), None);
        assert_eq!(verdict(70 << 8, true, false), None);
        assert_eq!(verdict(libc::SIGKILL, true, true), Some(70));
        assert_eq!(verdict(libc::SIGKILL, false, false), Some(70));
    }
}
