//! The launcher: a process with one thread, forked before the daemon has threads or a fanotify descriptor, that starts
//! the entry process of each session and reports how it ended.
//!
//! It must not judge, log or hold anything. It ends when the daemon's end of the socket closes. Entry processes that had
//! their go live on, denied every exec until the next daemon adopts them; those that still wait for it end.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use crate::frame;
use crate::kernel::spawn::{self, Plan};

/// Largest request: the kernel's limit for arguments, JSON-escaped.
const MESSAGE_MAX: usize = 64 << 20;

/// What to start, and as whom.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StartSpec {
    /// Program; without it `argv[0]` is looked up in the environment's `PATH`.
    pub path: Option<Vec<u8>>,
    /// Arguments.
    pub argv: Vec<Vec<u8>>,
    /// Environment, `NAME=value`.
    pub env: Vec<Vec<u8>>,
    /// Working folder.
    pub cwd: Vec<u8>,
    /// Cgroup that the process starts in.
    pub cgroup: PathBuf,
    /// User, group and all groups.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Soft and hard limits by resource number; empty leaves the launcher's own.
    pub limits: Vec<(u64, u64)>,
    /// The descriptors are a terminal.
    pub tty: bool,
    /// Where the mounts of the descriptors after the third are put, in that namespace only.
    pub mounts: Vec<PathBuf>,
    /// A private mount namespace.
    pub namespace: bool,
    /// No new privileges by exec.
    pub no_new_privs: bool,
}

#[derive(Serialize, Deserialize)]
enum Request {
    Start(Box<StartSpec>),
    Go(i32),
    Abandon(i32),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Started(i32),
    Refused(String),
    Exited { pid: i32, status: i32, exec_errno: Option<i32>, step: String },
}

/// How an entry process ended.
#[derive(Clone, Debug, Default)]
pub struct Exit {
    /// Wait status.
    pub status: i32,
    /// Errno if it never reached its program.
    pub exec_errno: Option<i32>,
    /// The step that failed then.
    pub step: String,
}

#[derive(Default)]
struct State {
    replies: Vec<Result<i32, String>>,
    exits: HashMap<i32, Exit>,
    gone: bool,
}

/// The daemon's handle of the launcher.
pub struct Launcher {
    socket: Mutex<UnixStream>,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// A started process that waits before its exec. Dropped without [`Waiting::go`], it ends.
pub struct Waiting<'a> {
    launcher: &'a Launcher,
    pid: i32,
    gone: bool,
}

impl Waiting<'_> {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Lets it exec.
    pub fn go(mut self) -> io::Result<()> {
        self.gone = true;
        self.launcher.send(&Request::Go(self.pid), &[])
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.gone {
            let _ = self.launcher.send(&Request::Abandon(self.pid), &[]);
        }
    }
}

/// The launcher's socket before the daemon has threads.
pub struct Forked(UnixStream);

impl Forked {
    /// Forks the launcher. To be called while this process has one thread.
    pub fn fork() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        if spawn::fork()? == 0 {
            drop(ours);
            let code = if serve(&theirs).is_ok() { 0 } else { 1 };
            std::process::exit(code);
        }
        Ok(Self(ours))
    }

    /// Starts listening for replies.
    pub fn connect(self) -> io::Result<Launcher> {
        let state = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let (reader, shared) = (self.0.try_clone()?, Arc::clone(&state));
        std::thread::Builder::new().name("launcher".into()).spawn(move || listen(&reader, &shared))?;
        Ok(Launcher { socket: Mutex::new(self.0), state })
    }
}

fn listen(socket: &UnixStream, state: &(Mutex<State>, Condvar)) {
    loop {
        let reply = match frame::receive(socket, MESSAGE_MAX) {
            Ok(Some((bytes, _))) => serde_json::from_slice::<Reply>(&bytes).ok(),
            _ => None,
        };
        let mut guard = state.0.lock().unwrap_or_else(PoisonError::into_inner);
        let end = reply.is_none();
        match reply {
            Some(Reply::Started(pid)) => guard.replies.push(Ok(pid)),
            Some(Reply::Refused(why)) => guard.replies.push(Err(why)),
            Some(Reply::Exited { pid, status, exec_errno, step }) => {
                guard.exits.insert(pid, Exit { status, exec_errno, step });
            }
            None => guard.gone = true,
        }
        state.1.notify_all();
        if end {
            return;
        }
    }
}

impl Launcher {
    fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        frame::send(&socket, &bytes, fds)
    }

    /// Starts a process that waits before its exec.
    pub fn start(
        &self,
        spec: &StartSpec,
        stdio: [BorrowedFd<'_>; 3],
        mounts: &[BorrowedFd<'_>],
    ) -> io::Result<Waiting<'_>> {
        let bytes = serde_json::to_vec(&Request::Start(Box::new(spec.clone())))?;
        // The socket stays locked until the answer is here, so that answers cannot be mixed up.
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let fds: Vec<BorrowedFd<'_>> = stdio.into_iter().chain(mounts.iter().copied()).collect();
        frame::send(&socket, &bytes, &fds)?;
        let guard = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut guard, _) = self
            .state
            .1
            .wait_timeout_while(guard, Duration::from_secs(10), |s| s.replies.is_empty() && !s.gone)
            .unwrap_or_else(PoisonError::into_inner);
        match guard.replies.pop() {
            Some(Ok(pid)) => Ok(Waiting { launcher: self, pid, gone: false }),
            Some(Err(why)) => Err(io::Error::other(why)),
            None => Err(io::Error::other("the launcher does not answer")),
        }
    }

    /// Whether its process has ended.
    pub fn is_gone(&self) -> bool {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).gone
    }

    /// Waits until a process has ended.
    pub fn wait(&self, pid: u32, patience: Duration) -> io::Result<Exit> {
        let pid = pid.cast_signed();
        let end = Instant::now() + patience;
        let mut guard = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(exit) = guard.exits.remove(&pid) {
                return Ok(exit);
            }
            if guard.gone {
                return Err(io::Error::other("the launcher has ended"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            guard = self.state.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

// === the launcher's own side ===

struct Running {
    go: Option<OwnedFd>,
    report: OwnedFd,
}

fn serve(socket: &UnixStream) -> io::Result<()> {
    spawn::die_with_parent();
    let signals = spawn::signal_fd(&[libc::SIGCHLD])?;
    let mut running = HashMap::new();
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [from_daemon, from_children] = &fds;
        let (daemon, children) = (!from_daemon.revents().is_empty(), !from_children.revents().is_empty());
        if children {
            let mut info = [0_u8; 128];
            while rustix::io::read(&signals, &mut info).is_ok() {}
            report_ended(socket, &mut running)?;
        }
        if daemon {
            let Some((bytes, fds)) = frame::receive(socket, MESSAGE_MAX)? else { return Ok(()) };
            handle(socket, &bytes, &fds, &mut running)?;
        }
    }
}

fn handle(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd], running: &mut HashMap<i32, Running>) -> io::Result<()> {
    match serde_json::from_slice(bytes)? {
        Request::Start(spec) => {
            let reply = match start(&spec, fds) {
                Ok(child) => {
                    running.insert(child.pid, Running { go: Some(child.go), report: child.report });
                    Reply::Started(child.pid)
                }
                Err(error) => Reply::Refused(error.to_string()),
            };
            frame::send(socket, &serde_json::to_vec(&reply)?, &[])
        }
        Request::Go(pid) => {
            if let Some(go) = running.get_mut(&pid).and_then(|r| r.go.take()) {
                rustix::io::write(&go, b"g")?;
            }
            Ok(())
        }
        Request::Abandon(pid) => {
            if let Some(child) = running.get_mut(&pid) {
                child.go = None;
            }
            Ok(())
        }
    }
}

fn report_ended(socket: &UnixStream, running: &mut HashMap<i32, Running>) -> io::Result<()> {
    while let Some((pid, status)) = spawn::reap() {
        let Some(child) = running.remove(&pid) else { continue };
        let mut bytes = [0_u8; 128];
        // The child has ended, so the pipe holds its report or its end.
        let count = rustix::io::read(&child.report, &mut bytes).unwrap_or(0);
        let report = bytes.get(..count).unwrap_or_default();
        let errno = report.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
        let step = String::from_utf8_lossy(report.get(4..).unwrap_or_default()).into_owned();
        let reply = Reply::Exited { pid, status, exec_errno: errno, step };
        frame::send(socket, &serde_json::to_vec(&reply)?, &[])?;
    }
    Ok(())
}

fn start(spec: &StartSpec, fds: &[OwnedFd]) -> io::Result<spawn::Child> {
    let [stdin, stdout, stderr, mounted @ ..] = fds else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "three descriptors are needed"));
    };
    if mounted.len() != spec.mounts.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor is needed for each mount"));
    }
    let mut mounts = Vec::new();
    for (mount, place) in mounted.iter().zip(&spec.mounts) {
        mounts.push((mount.as_fd(), CString::new(place.as_os_str().as_bytes())?));
    }
    let plan = Plan {
        paths: candidates(spec)?,
        argv: strings(&spec.argv)?,
        env: strings(&spec.env)?,
        cwd: CString::new(spec.cwd.clone())?,
        uid: spec.uid,
        gid: spec.gid,
        groups: spec.groups.clone(),
        umask: spec.umask,
        limits: spec.limits.clone(),
        tty: spec.tty,
        namespace: spec.namespace,
        mounts,
        no_new_privs: spec.no_new_privs,
    };
    let cgroup = std::fs::File::open(&spec.cgroup)?;
    spawn::start(&plan, cgroup.as_fd(), [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
}

fn strings(texts: &[Vec<u8>]) -> io::Result<Vec<CString>> {
    texts.iter().map(|text| CString::new(text.clone()).map_err(io::Error::other)).collect()
}

/// Paths to try, as a shell would: `argv[0]` itself if it has a slash, else each folder of `PATH`.
fn candidates(spec: &StartSpec) -> io::Result<Vec<CString>> {
    let first = spec.argv.first().ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(path) = &spec.path {
        return Ok(vec![CString::new(path.clone())?]);
    }
    if first.contains(&b'/') {
        return Ok(vec![CString::new(first.clone())?]);
    }
    let path = spec.env.iter().find_map(|e| e.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    path.split(|b| *b == b':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| {
            let mut full = dir.to_vec();
            full.push(b'/');
            full.extend_from_slice(first);
            Ok(CString::new(full)?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(argv0: &str, env: &[&str]) -> StartSpec {
        StartSpec {
            argv: vec![argv0.into()],
            env: env.iter().map(|e| e.as_bytes().to_vec()).collect(),
            ..StartSpec::default()
        }
    }

    #[test]
    fn looks_programs_up_as_a_shell_does() {
        let found = candidates(&spec("git", &["PATH=/a::/b"])).unwrap();
        assert_eq!(found, [c"/a/git".to_owned(), c"/b/git".to_owned()]);
        assert_eq!(candidates(&spec("./x", &["PATH=/a"])).unwrap(), [c"./x".to_owned()]);
        assert!(candidates(&StartSpec::default()).is_err());
    }
}
