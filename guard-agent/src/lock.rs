//! One guard-agent for each state folder and each folder of pins: locks that the supervisor holds.
//!
//! The kernel gives a lock back with its holder's last process, so that no file left behind can fool anybody. Fails: the
//! second one is told who the first one is, and does not start.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::config::Config;
use crate::exit::{Code, Failure};

/// Processes of a guard-agent that was killed may take a moment to be gone.
const PATIENCE: Duration = Duration::from_secs(4);
const PID_MAX: u64 = 16;

/// Held as long as this lives, and as long as a forked child does.
pub struct Locks {
    _state: File,
    _pins: File,
}

/// Takes both, or says who has them.
pub fn take(config: &Config) -> Result<Locks, Failure> {
    let (state, pins) = (&config.node.state_dir, &config.kernel.pin_dir);
    fs::create_dir_all(state).map_err(|e| unavailable(state, &e))?;
    fs::create_dir_all(pins).map_err(|e| {
        let text = format!("{}: {e} (is the BPF file system mounted at /sys/fs/bpf?)", pins.display());
        Failure { code: Code::Unavailable, text }
    })?;
    let path = state.join("lock");
    let options = || File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = options().map_err(|e| unavailable(&path, &e))?;
    lock(&file, &path, Some(&path))?;
    let note = |file: &mut File| -> std::io::Result<()> {
        file.set_len(0)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    note(&mut file).map_err(|e| unavailable(&path, &e))?;
    let folder = File::open(pins).map_err(|e| unavailable(pins, &e))?;
    lock(&folder, pins, None)?;
    Ok(Locks { _state: file, _pins: folder })
}

/// Process id of the supervisor that holds the lock, if one does.
pub fn holder(state_dir: &Path) -> Option<i32> {
    let path = state_dir.join("lock");
    let file = File::open(&path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockShared).is_err().then(|| noted(&path))?
}

fn noted(path: &Path) -> Option<i32> {
    let mut text = String::new();
    File::open(path).ok()?.take(PID_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 1)
}

fn unavailable(path: &Path, error: &std::io::Error) -> Failure {
    Failure { code: Code::Unavailable, text: format!("{}: {error}", path.display()) }
}

fn lock(file: &File, path: &Path, pid_file: Option<&Path>) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => std::thread::sleep(PATIENCE / 80),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let who = pid_file.and_then(noted).map_or(String::new(), |pid| format!(" (process {pid})"));
                let text =
                    format!("{}: another guard-agent{who} runs on this host; this one does not start", path.display());
                return Err(Failure { code: Code::Unavailable, text });
            }
            Err(error) => return Err(unavailable(path, &error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_left_behind_fools_nobody_and_a_holder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        fs::write(&path, "4711\n").unwrap();
        assert_eq!(holder(dir.path()), None);
        let file = File::open(&path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(holder(dir.path()), Some(4711));
        let other = File::open(&path).unwrap();
        let refused = lock(&other, &path, Some(&path)).unwrap_err();
        assert!(refused.text.contains("process 4711") && refused.code == Code::Unavailable);
    }
}
