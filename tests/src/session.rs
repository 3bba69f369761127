//! A governed session, started through `guardctl run`, with what it prints and what Guard says about it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::attacks;
use crate::wait::{self, seconds, until};

/// Who starts it, and how.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// The user who calls guardctl.
    pub user: &'a str,
    /// Life.
    pub ttl: &'a str,
    /// Its folder.
    pub cwd: &'a str,
    /// More options of `guardctl run`.
    pub options: &'a [&'a str],
    /// Whether the test writes to its standard input.
    pub stdin: bool,
}

/// As alice, in her home, ten minutes.
pub const ALICE: Start<'static> = Start { user: "alice", ttl: "10m", cwd: "/home/alice", options: &[], stdin: false };
/// As root.
pub const ROOT: Start<'static> = Start { user: "root", ttl: "10m", cwd: "/root", options: &[], stdin: false };

/// A running session.
pub struct Session {
    /// Its id.
    pub id: String,
    child: Child,
    out: Arc<Mutex<String>>,
    events: Arc<Mutex<Vec<Value>>>,
    readers: Vec<JoinHandle<()>>,
}

/// How it ended.
pub struct Ended {
    /// Its id.
    pub id: String,
    /// guardctl's exit code; 128 + N for signal N.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// Guard's events: started, messages, exited.
    pub events: Vec<Value>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command as a user with that user's groups, home and little else.
pub fn as_user(user: &str, cwd: &str) -> Command {
    let home = if user == "root" { "/root".to_owned() } else { format!("/home/{user}") };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--init-groups", "env", "-i"]);
    command.arg(format!("HOME={home}")).arg(format!("USER={user}"));
    command.args(["LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"]).current_dir(cwd);
    command
}

/// The command line of a session.
pub fn command(start: &Start<'_>, argv: &[&str]) -> Command {
    command_with(start, &[], argv)
}

/// The same, with more variables for guardctl.
pub fn command_with(start: &Start<'_>, env: &[&str], argv: &[&str]) -> Command {
    let mut command = as_user(start.user, start.cwd);
    command.args(env).args([
        "guardctl",
        "--config",
        "/etc/guard/guardctl.toml",
        "--output",
        "json",
        "run",
        "--agent",
        "coder",
    ]);
    command.args(["--ttl", start.ttl]).args(start.options).arg("--").args(argv);
    command
}

impl Session {
    /// Starts one and waits until the daemon has.
    pub fn start(start: &Start<'_>, argv: &[&str]) -> Result<Self> {
        let mut session = Self::launch(start, argv)?;
        session.id = until("the session starts", seconds(20), || {
            let exited = session.child.try_wait()?.is_some();
            let found = lock(&session.events).iter().find(|e| e["event"] == "started").cloned();
            if found.is_none() && exited {
                bail!("guardctl run ended: {:?}", lock(&session.events));
            }
            Ok(found.and_then(|e| e["session"].as_str().map(str::to_owned)))
        })?;
        Ok(session)
    }

    /// Starts an attack program.
    pub fn attack(start: &Start<'_>, name: &str, args: &[&str]) -> Result<Self> {
        let path = attacks::path(name);
        let mut argv = if name.ends_with(".js") { vec!["node"] } else { vec!["python3"] };
        argv.push(&path);
        argv.extend(args);
        Self::start(start, &argv)
    }

    fn launch(start: &Start<'_>, argv: &[&str]) -> Result<Self> {
        let mut child = command(start, argv)
            .stdin(if start.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting guardctl run")?;
        let (out, events) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Vec::new())));
        let mut readers = Vec::new();
        if let Some(stream) = child.stdout.take() {
            let out = Arc::clone(&out);
            readers.push(std::thread::spawn(move || collect(stream, &out)));
        }
        if let Some(stream) = child.stderr.take() {
            let events = Arc::clone(&events);
            readers.push(std::thread::spawn(move || parse_events(stream, &events)));
        }
        Ok(Self { id: String::new(), child, out, events, readers })
    }

    /// What it has printed so far.
    pub fn out(&self) -> String {
        lock(&self.out).clone()
    }

    /// Guard's messages so far.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.events).clone()
    }

    /// guardctl's process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(-1)
    }

    /// Its standard input.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits until a line of its output starts so; gives the rest of that line.
    pub fn line(&self, start: &str, limit: Duration) -> Result<String> {
        until(&format!("the program prints `{start}`"), limit, || {
            Ok(self.out().lines().find_map(|l| l.strip_prefix(start).map(|rest| rest.trim().to_owned())))
        })
    }

    /// Waits for its end.
    pub fn wait(mut self, limit: Duration) -> Result<Ended> {
        let code = wait::child(&mut self.child, limit)?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let ended = Ended { id: self.id.clone(), code: code.unwrap_or(-1), out: self.out(), events: self.events() };
        if code.is_none() {
            bail!("the session still ran after {} s; it printed: {}", limit.as_secs(), ended.out);
        }
        Ok(ended)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "session {} ended with {}, printed {:?}, Guard said", self.id, self.code, self.out)?;
        self.events.iter().filter(|e| e["event"] != "started").try_for_each(|e| write!(f, " {e}"))
    }
}

/// Starts, waits, ends: for programs that need nobody else.
pub fn run(start: &Start<'_>, argv: &[&str]) -> Result<Ended> {
    Session::start(start, argv)?.wait(seconds(60))
}

fn collect(mut stream: impl Read, into: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        lock(into).push_str(&String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()));
    }
}

/// Guard's events are JSON lines; what the session itself writes to stderr is shown on ours.
fn parse_events(stream: impl Read, into: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        match serde_json::from_str::<Value>(&text) {
            Ok(event) if event.is_object() => lock(into).push(event),
            _ if text.is_empty() => {}
            _ => {
                let _ = writeln!(std::io::stderr(), "  | {text}");
            }
        }
        line.clear();
    }
}
