//! A terminal as a person's shell would have it, with guardctl as its foreground job.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

const PATIENCE: Duration = Duration::from_secs(20);

/// Both sides of a pseudo-terminal; what appears on it is collected.
pub struct Terminal {
    master: File,
    slave: OwnedFd,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    /// A terminal of this size.
    pub fn new(rows: u16, columns: u16) -> Terminal {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let terminal = Terminal { master: master.into(), slave: slave.expect("opens"), shown: Arc::default() };
        terminal.resize(rows, columns);
        let mut reader = terminal.master.try_clone().expect("clone");
        let shown = Arc::clone(&terminal.shown);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = reader.read(&mut buffer) {
                shown.lock().expect("lock").push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        terminal
    }

    /// Starts `guardctl` as the foreground job, with this as its controlling terminal. The shell in between stays the
    /// session's leader, as a person's shell would, so that job control works.
    pub fn spawn(&mut self, guardctl: Command) -> Child {
        let fd = || Stdio::from(self.slave.try_clone().expect("clone"));
        let mut command = Command::new("setsid");
        // Job control as an interactive shell has it: a stopped job comes back with `fg` when a line is typed.
        let shell = "set -m; \"$@\"; code=$?; while [ $code -eq 147 ]; do read -r; fg; code=$?; done; exit $code";
        command.args(["--ctty", "bash", "-c", shell, "bash"]);
        command.arg(guardctl.get_program()).args(guardctl.get_args());
        for (name, value) in guardctl.get_envs() {
            command.env(name, value.expect("set"));
        }
        command.stdin(fd()).stdout(fd()).stderr(fd()).spawn().expect("starts")
    }

    /// The pid of guardctl below the shell.
    pub fn guardctl(&self, shell: &Child) -> u32 {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.id())).expect("children");
        children.split_whitespace().next().expect("a child").parse().expect("a pid")
    }

    /// The settings, for comparison.
    pub fn settings(&self) -> String {
        format!("{:?}", tcgetattr(&self.slave).expect("settings"))
    }

    /// Whether lines are edited and signals made by keys.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.slave).expect("settings").local_modes.contains(LocalModes::ICANON | LocalModes::ISIG)
    }

    /// Changes the window size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).expect("sized");
    }

    /// Types.
    pub fn write(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits until this text has appeared.
    pub fn read_until(&self, text: &str) {
        let start = Instant::now();
        while !self.shown.lock().expect("lock").contains(text) {
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {:?}", self.shown.lock().expect("lock"));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Forgets what has appeared.
    pub fn forget(&self) {
        self.shown.lock().expect("lock").clear();
    }
}

/// Waits until a stream has shown this text.
pub fn read_until(stream: &mut impl Read, text: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 1024];
    while !seen.contains(text) {
        let n = stream.read(&mut buffer).expect("reads");
        assert!(n > 0, "no {text:?} in {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

/// Waits for a child, not for ever.
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waits") {
            return status;
        }
        if start.elapsed() > limit {
            let _ = child.kill();
            panic!("still running after {limit:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("pid")).expect("not zero");
    kill_process(pid, signal).expect("signalled");
}

/// The state letter of a process in procfs.
pub fn state(pid: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    stat.rsplit(") ").next().and_then(|s| s.chars().next()).expect("a state")
}

/// Waits until a process is in this state.
pub fn wait_state(pid: u32, wanted: char) {
    let start = Instant::now();
    while state(pid) != wanted {
        assert!(start.elapsed() < PATIENCE, "pid {pid} is {}, not {wanted}", state(pid));
        thread::sleep(Duration::from_millis(5));
    }
}
