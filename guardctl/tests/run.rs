//! `guardctl run` against a daemon made here: real sockets, real descriptors, a real pseudo-terminal.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(clippy::large_enum_variant, reason = "a handful of values in a test")]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Daemon, Script};
use guard_proto::v1::{LocalError, SessionMessage, local_reply::Reply};
use terminal::Terminal;

#[path = "run/daemon.rs"]
mod daemon;
#[path = "run/terminal.rs"]
mod terminal;

fn guardctl(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--config").arg(daemon.config()).args(arguments).env("NO_COLOR", "1");
    command
}

fn run_arguments<'a>(command: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["run", "--agent", "coder", "--ttl", "1h30m", "--purpose", "test", "--"];
    arguments.extend_from_slice(command);
    arguments
}

#[test]
fn pipes_carry_input_output_and_the_exit_code() {
    let daemon = Daemon::start(Script::Run);
    let mut child = guardctl(&daemon, &run_arguments(&["sh", "-c", "cat; echo to-stderr >&2; exit 7"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("guardctl starts");
    child.stdin.take().expect("a pipe").write_all(b"line 1\nline 2\n").expect("written");
    let output = child.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "line 1\nline 2\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "to-stderr\n");
    assert_eq!(output.status.code(), Some(7));
    let start = daemon.started();
    assert_eq!(start.agent, "coder");
    assert_eq!(start.ttl_seconds, 5_400);
    assert_eq!(start.purpose, "test");
    assert_eq!(start.cwd, std::env::current_dir().expect("cwd").into_os_string().into_encoded_bytes());
    assert!(start.env.contains(&b"NO_COLOR=1".to_vec()));
    assert!(!start.tty);
}

#[test]
fn a_child_session_is_asked_of_the_sessions_own_socket_without_a_configuration() {
    let daemon = Daemon::start(Script::Run);
    let arguments = ["session", "child", "--categories", "fs.read,vcs.read", "--ttl", "5m", "--max-risk", "30", "--"];
    let output = Command::new(env!("CARGO_BIN_EXE_guardctl"))
        .args(["--config", "/nowhere/guardctl.toml"])
        .args(arguments)
        .args(["sh", "-c", "cat; exit 3"])
        .env("GUARD_SESSION_SOCKET", daemon.socket())
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let child = daemon.child();
    assert_eq!(child.categories, ["fs.read", "vcs.read"]);
    assert_eq!((child.ttl_seconds, child.max_risk, child.tty), (300, Some(30), false));
}

#[test]
fn outside_a_session_there_is_no_socket_of_its_own() {
    let output = Command::new(env!("CARGO_BIN_EXE_guardctl"))
        .args(["session", "messages"])
        .env("GUARD_SESSION_SOCKET", "/nowhere/socket")
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69));
    assert!(said.contains("/nowhere/socket") && said.contains("inside a governed session"), "{said}");
}

#[test]
fn megabytes_pass_unchanged() {
    let daemon = Daemon::start(Script::Run);
    let output = guardctl(&daemon, &run_arguments(&["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x"]))
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    assert_eq!(output.stdout.len(), 5_000_000);
    assert!(output.stdout.iter().all(|b| *b == b'x'));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_closed_reader_ends_the_writer() {
    let daemon = Daemon::start(Script::Run);
    let mut child = guardctl(&daemon, &run_arguments(&["sh", "-c", "yes; exit 3"]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("guardctl starts");
    drop(child.stdout.take());
    let status = terminal::wait(&mut child, Duration::from_secs(20));
    assert_eq!(status.code(), Some(3), "yes was ended by its pipe, then the shell went on");
}

#[test]
fn death_by_signal_is_128_plus_its_number() {
    let daemon = Daemon::start(Script::Run);
    let status = guardctl(&daemon, &run_arguments(&["sh", "-c", "kill -KILL $$"])).stdin(Stdio::null()).status();
    assert_eq!(status.expect("runs").code(), Some(137));
}

#[test]
fn signals_are_forwarded() {
    let daemon = Daemon::start(Script::Run);
    let script = "trap 'echo got-term; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = guardctl(&daemon, &run_arguments(&["sh", "-c", script]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("guardctl starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    terminal::read_until(&mut stdout, "ready");
    terminal::signal(child.id(), rustix::process::Signal::TERM);
    terminal::read_until(&mut stdout, "got-term");
    assert_eq!(terminal::wait(&mut child, Duration::from_secs(20)).code(), Some(5));
}

#[test]
fn messages_are_lines_on_stderr_that_cannot_be_forged() {
    let message = SessionMessage {
        kind: "review".into(),
        text: "git commit waits for review\nsecond \x1b[2Kline".into(),
        request_id: "01KG9F6R00ABCDEFGHJKMNPQRS".into(),
        ..SessionMessage::default()
    };
    let daemon = Daemon::start(Script::Say(message));
    let output = guardctl(&daemon, &run_arguments(&["true"])).stdin(Stdio::null()).output().expect("runs");
    let stderr = String::from_utf8_lossy(&output.stderr).replace('\r', "");
    let expected = "guard: git commit waits for review (request 01KG9F6R00ABCDEFGHJKMNPQRS)\n\
                    guard: second \\x1b[2Kline (request 01KG9F6R00ABCDEFGHJKMNPQRS)\n";
    assert_eq!(stderr, expected);
    assert!(output.stdout.is_empty());
}

#[test]
fn refusals_have_a_hint_and_an_exit_code() {
    let refusal = LocalError { code: "denied".into(), message: "no right".into(), hint: "ask an admin".into() };
    let daemon = Daemon::start(Script::Reply(Reply::Error(refusal)));
    let output = guardctl(&daemon, &run_arguments(&["true"])).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(output.status.code(), Some(77));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "guardctl: no right\n  hint: ask an admin\n");
}

#[test]
fn a_daemon_that_dies_is_unavailable() {
    let daemon = Daemon::start(Script::Vanish);
    let output = guardctl(&daemon, &run_arguments(&["true"])).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("guardctl: lost the daemon"));
}

#[test]
fn no_daemon_is_unavailable() {
    let daemon = Daemon::nowhere();
    let output = guardctl(&daemon, &run_arguments(&["true"])).stdin(Stdio::null()).output().expect("runs");
    assert_eq!(output.status.code(), Some(69));
}

#[test]
fn a_terminal_becomes_a_fresh_one_with_size_and_back() {
    let daemon = Daemon::start(Script::Run);
    let mut terminal = Terminal::new(33, 101);
    let before = terminal.settings();
    // `stty size` asks the terminal that the session got; `tty` proves that it is another one.
    let mut child =
        terminal.spawn(guardctl(&daemon, &run_arguments(&["sh", "-c", "stty size; tty; read x; echo got:$x; exit 4"])));
    terminal.read_until("33 101");
    terminal.read_until("/dev/pts/");
    assert!(!terminal.is_cooked(), "the caller's terminal is raw while the session runs");
    terminal.write("hello\r");
    terminal.read_until("got:hello");
    assert_eq!(terminal::wait(&mut child, Duration::from_secs(20)).code(), Some(4));
    assert_eq!(terminal.settings(), before, "the terminal is as it was");
    assert!(daemon.started().tty);
}

#[test]
fn a_new_window_size_reaches_the_session() {
    let daemon = Daemon::start(Script::Run);
    let mut terminal = Terminal::new(24, 80);
    let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut child = terminal.spawn(guardctl(&daemon, &run_arguments(&["sh", "-c", script])));
    terminal.read_until("ready");
    terminal.resize(50, 132);
    terminal.read_until("50 132");
    assert_eq!(terminal::wait(&mut child, Duration::from_secs(20)).code(), Some(0));
}

#[test]
fn control_c_goes_to_the_session_not_to_guardctl() {
    let daemon = Daemon::start(Script::Run);
    let mut terminal = Terminal::new(24, 80);
    let script = "trap 'echo interrupted; exit 6' INT; echo ready; while :; do sleep 0.05; done";
    let mut child = terminal.spawn(guardctl(&daemon, &run_arguments(&["sh", "-c", script])));
    terminal.read_until("ready");
    terminal.write("\x03");
    terminal.read_until("interrupted");
    assert_eq!(terminal::wait(&mut child, Duration::from_secs(20)).code(), Some(6));
}

#[test]
fn control_z_stops_the_session_and_gives_the_terminal_back() {
    let daemon = Daemon::start(Script::Run);
    let mut terminal = Terminal::new(24, 80);
    let cooked = terminal.settings();
    let script = "echo ready; while :; do echo tick; sleep 0.2; done";
    let mut child = terminal.spawn(guardctl(&daemon, &run_arguments(&["sh", "-c", script])));
    terminal.read_until("tick");
    terminal.write("\x1a");
    terminal::wait_state(terminal.guardctl(&child), 'T');
    assert_eq!(terminal.settings(), cooked, "a shell would get its terminal back");
    // The command is stopped too. The daemon does that; guardctl asks for it and does not wait.
    terminal::wait_state(daemon.session_pid(), 'T');
    terminal.forget();
    terminal.write("\r");
    terminal.read_until("tick");
    assert!(!terminal.is_cooked(), "raw again in the foreground");
    terminal.write("\x03");
    assert_eq!(terminal::wait(&mut child, Duration::from_secs(20)).code(), Some(130));
}
