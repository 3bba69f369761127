//! The signals that reach guardctl while a session runs, and what each is for.
//!
//! It must not swallow one: everything that can be caught and means something to a command is forwarded. Fails: a signal
//! that cannot be watched is an error before anything starts.

use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::signal::unix::{self, SignalKind};

use crate::exit::{CliError, Exit, Result};

/// Number of SIGCONT, as `ForwardSignal` carries it.
pub const CONT: u32 = 18;
/// Number of SIGSTOP. The session's entry process leads an orphaned process group, for which the kernel ignores SIGTSTP.
pub const STOP: u32 = 19;

const FORWARDED: [u32; 6] =
    [1 /* HUP */, 2 /* INT */, 3 /* QUIT */, 10 /* USR1 */, 12 /* USR2 */, 15 /* TERM */];
const TSTP: i32 = 20;
const WINCH: i32 = 28;

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Hand it to the session.
    Forward(u32),
    /// The terminal's size changed.
    Resize,
    /// Stop the session, then guardctl.
    Suspend,
    /// Guardctl was continued.
    Resume,
}

/// The watched signals.
#[derive(Debug)]
pub struct Signals {
    receive: tokio::sync::mpsc::Receiver<Work>,
}

impl Signals {
    /// Takes over the signals of this process.
    pub fn new() -> Result<Signals> {
        let (send, receive) = tokio::sync::mpsc::channel(16);
        let kinds = FORWARDED
            .iter()
            .filter_map(|s| i32::try_from(*s).ok().map(|raw| (raw, Work::Forward(*s))))
            .chain([(WINCH, Work::Resize), (TSTP, Work::Suspend), (18, Work::Resume)]);
        for (raw, work) in kinds {
            let mut stream = unix::signal(SignalKind::from_raw(raw))
                .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot watch signal {raw}: {e}")))?;
            let send = send.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if send.send(work).await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Signals { receive })
    }

    /// The next signal; pends for ever when there is none.
    pub async fn next(&mut self) -> Work {
        match self.receive.recv().await {
            Some(work) => work,
            None => std::future::pending().await,
        }
    }
}

/// Stops this process group as the terminal would have; returns when continued.
pub fn stop_self() {
    let group = rustix::process::getpgrp();
    if rustix::process::kill_process_group(group, Signal::STOP).is_err() {
        let own: Pid = getpid();
        // SIGSTOP to oneself cannot be refused.
        let _ = kill_process(own, Signal::STOP);
    }
}

/// The caller's file mode mask. Read from procfs, since asking the kernel by `umask(2)` would change it for a moment.
pub fn current_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("Umask:")).map(str::trim);
    mask.and_then(|m| u32::from_str_radix(m, 8).ok()).unwrap_or(0o077)
}
