//! The caller's terminal and the session's: raw mode and back, sizes, and whether the stop key should stop the command.
//!
//! It must not leave a terminal raw: the saved settings come back on drop, on suspension and on every way out. Fails:
//! opening a pseudo-terminal is an error; later calls on a terminal that has gone away are ignored.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, getpgrp};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

/// A fresh pseudo-terminal: the side that guardctl keeps, and the side that the session gets.
pub struct Pair {
    /// Guardctl's side.
    pub master: OwnedFd,
    /// The session's side.
    pub slave: OwnedFd,
}

/// Opens a pseudo-terminal with the settings and size of `like`.
pub fn open_pair(like: BorrowedFd<'_>) -> io::Result<Pair> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    termios::tcsetattr(&slave, OptionalActions::Now, &termios::tcgetattr(like)?)?;
    copy_size(like, master.as_fd());
    Ok(Pair { master, slave })
}

/// Gives `to` the size of `from`; the kernel then sends SIGWINCH to the session's foreground group.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = termios::tcgetwinsize(from) {
        let _ = termios::tcsetwinsize(to, size);
    }
}

/// Whether this process may use the terminal now, or is a background job of it.
pub fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    // Without job control (no controlling terminal) there is nobody to be in the background of.
    termios::tcgetpgrp(terminal).map_or(true, |foreground| foreground == getpgrp())
}

/// The caller's terminal in raw mode, restored on drop.
pub struct RawMode {
    terminal: OwnedFd,
    saved: Option<Termios>,
    given_back: bool,
}

impl RawMode {
    /// Remembers the terminal; changes nothing yet.
    pub fn new(terminal: OwnedFd) -> RawMode {
        RawMode { terminal, saved: None, given_back: false }
    }

    /// Enters raw mode, once; not while the terminal is given back.
    pub fn enter(&mut self) {
        if self.saved.is_some() || self.given_back {
            return;
        }
        if let Ok(saved) = termios::tcgetattr(&self.terminal) {
            let mut raw = saved.clone();
            raw.make_raw();
            if termios::tcsetattr(&self.terminal, OptionalActions::Drain, &raw).is_ok() {
                self.saved = Some(saved);
            }
        }
    }

    /// Allows [`RawMode::enter`] again.
    pub fn take_again(&mut self) {
        self.given_back = false;
    }

    /// Restores what [`RawMode::enter`] found, and keeps it so until [`RawMode::take_again`].
    pub fn give_back(&mut self) {
        self.given_back = true;
        if let Some(saved) = self.saved.take() {
            let _ = termios::tcsetattr(&self.terminal, OptionalActions::Drain, &saved);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Whether `typed` holds the stop key and the session's entry program neither catches nor ignores it. The kernel would drop
/// the stop, because the entry process leads an orphaned process group; so guardctl does what a shell would see.
pub fn is_stop_key(master: BorrowedFd<'_>, typed: &[u8]) -> bool {
    let Ok(settings) = termios::tcgetattr(master) else { return false };
    let key = settings.special_codes[SpecialCodeIndex::VSUSP];
    if !settings.local_modes.contains(LocalModes::ISIG) || key == 0 || typed != [key] {
        return false;
    }
    // With a shell that does job control the foreground group is another one, and the kernel's way works.
    match (termios::tcgetpgrp(master), termios::tcgetsid(master)) {
        (Ok(foreground), Ok(leader)) => foreground == leader && takes_default_stop(leader),
        _ => false,
    }
}

fn takes_default_stop(pid: Pid) -> bool {
    const TSTP_BIT: u64 = 1 << 19;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    // Blocked signals are not asked for: shells block all for moments around a fork.
    match (mask("SigIgn:"), mask("SigCgt:")) {
        (Some(ignored), Some(caught)) => (ignored | caught) & TSTP_BIT == 0,
        _ => false,
    }
}
