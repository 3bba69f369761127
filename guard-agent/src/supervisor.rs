//! The parent of the daemon: kills it when it hangs, starts it again when it died, hands over to a new version.
//!
//! It has one thread and no fanotify descriptor, so that what a hung daemon holds ends in EPERM when it is killed. It takes
//! in the entry processes of sessions whose launcher is gone. It must not do anything else. Fails: a daemon that dies
//! before it was ever ready ends the supervisor with its code.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::exit::Code;
use crate::kernel::spawn;

/// Time that a daemon may take for one step of its start.
const READY: Duration = Duration::from_secs(60);
/// Time that a daemon may take to leave its sessions to the next one.
const LEAVE: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// Asks the daemon to end and to leave its sessions to the next one.
pub const LEAVE_SIGNAL: i32 = libc::SIGUSR1;
/// Asks the supervisor for the same, and to go on as the program that now lies at its path.
pub const UPGRADE_SIGNAL: i32 = libc::SIGUSR2;
/// Signals that reach the daemon through its signal descriptor.
pub const SIGNALS: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, LEAVE_SIGNAL];

/// What the daemon says while it starts, after each step.
const STEP: u8 = b'+';
/// What the daemon says from when it is ready.
const BEAT: u8 = b'.';

/// The daemon's end of the pipe on which it says that it lives.
pub struct Heart(OwnedFd);

impl Heart {
    /// Gives a sign of life; the first one says that the daemon is ready.
    pub fn beat(&self) {
        let _ = rustix::io::write(&self.0, &[BEAT]);
    }

    /// Says that the start goes on: on a slow or busy host the kernel's verifier takes its time.
    pub fn step(&self) {
        let _ = rustix::io::write(&self.0, &[STEP]);
    }
}

/// How the supervisor ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this code.
    Exit(i32),
    /// As another program, under the same process id.
    Upgrade,
}

/// What the supervisor was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    #[default]
    Nothing,
    Upgrade,
    Leave,
    Stop,
}

/// Runs `daemon` in a child, for as long as it takes.
pub fn run(heartbeat: Duration, daemon: impl Fn(Heart) -> Code) -> io::Result<End> {
    spawn::adopt_orphans()?;
    let [term, int, hup, leave] = SIGNALS;
    let signals = spawn::signal_fd(&[libc::SIGCHLD, term, int, hup, leave, UPGRADE_SIGNAL])?;
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
        if let Some(end) = ended.verdict() {
            return Ok(end);
        }
        tracing::error!(status = ended.status, "the daemon died; it is started again, execs are denied meanwhile");
        pause = if started.elapsed() > PAUSE_MAX * 3 { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        if let Some(end) = rest(pause, &signals)? {
            return Ok(end);
        }
    }
}

/// Waits before the next start, unless it is asked for something: there is no daemon to pass it on to.
fn rest(pause: Duration, signals: &OwnedFd) -> io::Result<Option<End>> {
    let end = Instant::now() + pause;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        wait(&mut [PollFd::new(signals, PollFlags::IN)], left)?;
        while spawn::reap().is_some() {}
        match pass_on(None, signals) {
            Asked::Nothing => {}
            Asked::Upgrade => return Ok(Some(End::Upgrade)),
            // Without a daemon nobody could end the sessions in order: they stay, denied, for the next start.
            Asked::Leave | Asked::Stop => return Ok(Some(End::Exit(0))),
        }
    }
}

struct Ended {
    status: i32,
    ready: bool,
    asked: Asked,
}

impl Ended {
    /// How to end, or nothing if the daemon is to be started again.
    fn verdict(&self) -> Option<End> {
        let code = libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status));
        match (code, self.asked) {
            // However it ended: the sessions are the next one's.
            (_, Asked::Upgrade) => Some(End::Upgrade),
            (_, Asked::Leave) => Some(End::Exit(0)),
            (Some(code), _) if code == 0 || !self.ready => Some(End::Exit(code)),
            (_, Asked::Stop) => Some(End::Exit(code.unwrap_or(Code::Internal as i32))),
            (None, Asked::Nothing) if !self.ready => Some(End::Exit(Code::Internal as i32)),
            (_, Asked::Nothing) => None,
        }
    }
}

fn wait(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<()> {
    match poll(fds, Timespec::try_from(limit).ok().as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn watch(pid: i32, beats: &OwnedFd, signals: &OwnedFd, heartbeat: Duration) -> io::Result<Ended> {
    let mut ready = false;
    let mut asked = Asked::Nothing;
    let mut last = Instant::now();
    loop {
        let limit = match (asked, ready) {
            (Asked::Leave | Asked::Upgrade, _) => LEAVE,
            (_, true) => heartbeat,
            (_, false) => READY,
        };
        let left = limit.saturating_sub(last.elapsed());
        let mut fds = [PollFd::new(beats, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        wait(&mut fds, left)?;
        let [beat, signal] = &fds;
        let (beat, signal) = (beat.revents().contains(PollFlags::IN), !signal.revents().is_empty());
        if beat {
            let mut bytes = [0_u8; 64];
            let count = rustix::io::read(beats, &mut bytes).unwrap_or(0);
            ready |= says_ready(bytes.get(..count).unwrap_or_default());
            last = Instant::now();
        }
        if signal {
            asked = asked.max(pass_on(Some(pid), signals));
        }
        while let Some((ended, status)) = spawn::reap() {
            if ended == pid {
                return Ok(Ended { status, ready, asked });
            }
        }
        // A daemon that was asked to stop ends sessions for as long as that takes.
        if asked != Asked::Stop && last.elapsed() >= limit {
            tracing::error!(seconds = limit.as_secs(), "the daemon gives no sign of life; it is killed");
            let _ = spawn::signal(pid, libc::SIGKILL);
            last = Instant::now();
        }
    }
}

/// Whether a daemon that said this is past its start.
fn says_ready(said: &[u8]) -> bool {
    said.contains(&BEAT)
}

/// Passes signals on to the daemon. Says what they ask for.
fn pass_on(pid: Option<i32>, signals: &OwnedFd) -> Asked {
    const RECORD: usize = size_of::<libc::signalfd_siginfo>();
    let mut asked = Asked::Nothing;
    let mut bytes = [0_u8; RECORD];
    while let Ok(RECORD) = rustix::io::read(signals, &mut bytes) {
        let number = bytes.first_chunk::<4>().map_or(0, |b| u32::from_ne_bytes(*b)).cast_signed();
        let (meaning, passed) = match number {
            UPGRADE_SIGNAL => (Asked::Upgrade, LEAVE_SIGNAL),
            LEAVE_SIGNAL => (Asked::Leave, LEAVE_SIGNAL),
            libc::SIGHUP => (Asked::Nothing, number),
            libc::SIGTERM | libc::SIGINT => (Asked::Stop, number),
            _ => continue,
        };
        if let Some(pid) = pid {
            let _ = spawn::signal(pid, passed);
        }
        asked = asked.max(meaning);
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: i32, ready: bool, asked: Asked) -> Option<End> {
        Ended { status, ready, asked }.verdict()
    }

    #[test]
    fn what_ends_and_what_is_started_again() {
        assert_eq!(verdict(0, true, Asked::Nothing), Some(End::Exit(0)));
        assert_eq!(verdict(78 << 8, false, Asked::Nothing), Some(End::Exit(78)));
        assert_eq!(verdict(libc::SIGKILL, true, Asked::Nothing), None);
        assert_eq!(verdict(70 << 8, true, Asked::Nothing), None);
        assert_eq!(verdict(libc::SIGKILL, true, Asked::Stop), Some(End::Exit(70)));
        assert_eq!(verdict(libc::SIGKILL, false, Asked::Nothing), Some(End::Exit(70)));
    }

    #[test]
    fn steps_of_a_start_are_signs_of_life_and_not_yet_ready() {
        let (beats, heart) = rustix::pipe::pipe().unwrap();
        let heart = Heart(heart);
        let said = || {
            let mut bytes = [0_u8; 64];
            let count = rustix::io::read(&beats, &mut bytes).unwrap();
            bytes.get(..count).unwrap().to_vec()
        };
        heart.step();
        heart.step();
        let steps = said();
        assert_eq!((steps.len(), says_ready(&steps)), (2, false));
        heart.step();
        heart.beat();
        assert!(says_ready(&said()));
    }

    #[test]
    fn a_daemon_that_leaves_is_followed_by_the_next_version_or_by_none() {
        for status in [0, libc::SIGKILL, 70 << 8] {
            assert_eq!(verdict(status, true, Asked::Upgrade), Some(End::Upgrade));
            assert_eq!(verdict(status, true, Asked::Leave), Some(End::Exit(0)));
        }
        assert!(Asked::Stop > Asked::Leave && Asked::Leave > Asked::Upgrade);
    }
}
