//! The daemon's side of the control socket, with `setsid` in the place of the launcher.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use guard_proto::v1::{
    LocalReply, LocalRequest, SessionExited, SessionMessage, SessionStarted, StartChild, StartSession,
    local_reply::Reply, local_request::Request,
};
use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process_group};

/// What the daemon does with a start request.
#[derive(Clone)]
pub enum Script {
    /// Runs the command on the descriptors.
    Run,
    /// Says something, then runs it.
    Say(SessionMessage),
    /// Answers this instead.
    Reply(Reply),
    /// Closes the connection.
    Vanish,
}

#[derive(Default)]
struct Seen {
    start: Option<StartSession>,
    child: Option<StartChild>,
    pid: Option<u32>,
}

/// A listening daemon.
pub struct Daemon {
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Seen>>,
}

impl Daemon {
    /// Listens and serves each connection by `script`.
    pub fn start(script: Script) -> Daemon {
        let daemon = Daemon::nowhere();
        let listener = UnixListener::bind(daemon.socket()).expect("listens");
        let seen = Arc::clone(&daemon.seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.expect("accepts"), &script, &seen);
            }
        });
        daemon
    }

    /// A configuration whose socket nobody listens on.
    pub fn nowhere() -> Daemon {
        let folder = tempfile::tempdir().expect("temporary folder");
        fs::write(folder.path().join("guardctl.toml"), "socket = \"control.sock\"\n").expect("written");
        Daemon { folder, seen: Arc::default() }
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("guardctl.toml")
    }

    /// The request that started a child session.
    pub fn child(&self) -> StartChild {
        self.seen.lock().expect("lock").child.clone().expect("a child session was started")
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// The request that started the session.
    pub fn started(&self) -> StartSession {
        self.seen.lock().expect("lock").start.clone().expect("a session was started")
    }

    /// The session's entry process.
    pub fn session_pid(&self) -> u32 {
        self.seen.lock().expect("lock").pid.expect("a session runs")
    }
}

fn serve(mut stream: UnixStream, script: &Script, seen: &Arc<Mutex<Seen>>) {
    let (request, fds) = receive_start(&mut stream, seen);
    seen.lock().expect("lock").start = Some(request.clone());
    match script {
        Script::Vanish => return,
        Script::Reply(reply) => return send(&mut stream, reply.clone()),
        Script::Run | Script::Say(_) => {}
    }
    let mut child = launch(&request, fds);
    seen.lock().expect("lock").pid = Some(child.id());
    let started = SessionStarted { session_id: "01KG9F6Q00ABCDEFGHJKMNPQRS".into(), ..Default::default() };
    send(&mut stream, Reply::Started(started));
    if let Script::Say(message) = script {
        send(&mut stream, Reply::Message(message.clone()));
    }
    let group = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("not zero");
    let reader = stream.try_clone().expect("clone");
    thread::spawn(move || forward_signals(reader, group));
    let status = child.wait().expect("waits");
    let status = u32::from_ne_bytes(status.into_raw().to_ne_bytes());
    send(&mut stream, Reply::Exited(SessionExited { status, reason: "exited".into(), ..Default::default() }));
}

/// `setsid` makes the command the leader of a session of its own, with the terminal as the controlling one. It forks only
/// when it leads a group already, which a child of the test does not; so the child's pid is the command's.
fn launch(request: &StartSession, fds: [OwnedFd; 3]) -> Child {
    let [stdin, stdout, stderr] = fds;
    let mut command = Command::new("setsid");
    if request.tty {
        command.arg("--ctty");
    }
    command.args(request.argv.iter().map(|a| String::from_utf8(a.clone()).expect("UTF-8")));
    command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().expect("setsid starts")
}

fn forward_signals(mut stream: UnixStream, group: Pid) {
    let mut length = [0u8; 4];
    while stream.read_exact(&mut length).is_ok() {
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut body).expect("a whole frame");
        if let Some(Request::Signal(s)) = LocalRequest::decode(&*body).expect("decodes").request {
            let number = i32::try_from(s.signal).expect("small");
            let _ = kill_process_group(group, Signal::from_named_raw(number).expect("a signal"));
        }
    }
}

fn send(stream: &mut UnixStream, reply: Reply) {
    let body = LocalReply { reply: Some(reply) }.encode_to_vec();
    let mut frame = u32::try_from(body.len()).expect("small").to_le_bytes().to_vec();
    frame.extend(body);
    let _ = stream.write_all(&frame);
}

fn receive_start(stream: &mut UnixStream, seen: &Mutex<Seen>) -> (StartSession, [OwnedFd; 3]) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let mut first = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&*stream, &mut [IoSliceMut::new(&mut first)], &mut control, RecvFlags::CMSG_CLOEXEC).expect("receives");
    let fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|m| match m {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => vec![],
        })
        .collect();
    let mut rest = [0u8; 3];
    stream.read_exact(&mut rest).expect("length");
    let length = u32::from_le_bytes([first[0], rest[0], rest[1], rest[2]]) as usize;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("body");
    stream.set_read_timeout(None).expect("set");
    match LocalRequest::decode(&*body).expect("decodes").request {
        Some(Request::StartSession(start)) => (start, fds.try_into().expect("three descriptors")),
        Some(Request::StartChild(child)) => {
            seen.lock().expect("lock").child = Some(child.clone());
            let start = StartSession { argv: child.argv, tty: child.tty, ..StartSession::default() };
            (start, fds.try_into().expect("three descriptors"))
        }
        other => panic!("not a start: {other:?}"),
    }
}
