//! P2: sessions outlive the daemon. Without one nothing starts; with the next one they go on, as they were and no longer.

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::fail_closed::{notes, now};
use super::log::sequences_are_whole;
use crate::ctl;
use crate::guest::{self, ensure};
use crate::neighbour::Neighbour;
use crate::session::{self, ALICE, Ended, Session, Start};
use crate::wait::{output, seconds, until, until_true};

/// A session whose entry process starts programs all the time and does what it is told.
pub struct Live {
    pub(super) session: Session,
    stdin: ChildStdin,
    pub(super) log: String,
    pub(super) pid: i32,
}

impl Live {
    /// Starts it, and waits until an exec of it has run.
    pub fn start(ttl: &str) -> Result<Self> {
        Self::start_with(ttl, &[])
    }

    /// The same, with more options of `guardctl run`.
    pub fn start_with(ttl: &str, options: &[&str]) -> Result<Self> {
        let log = format!("/tmp/live-{}.log", std::process::id());
        let _ = std::fs::remove_file(&log);
        let mut session = Session::attack(&Start { ttl, stdin: true, options, ..ALICE }, "live.py", &[&log])?;
        let stdin = session.stdin().context("no stdin")?;
        let mut live = Self { session, stdin, log, pid: 0 };
        live.runs_after(0.0)?;
        let pid = notes(&live.log)?.into_iter().find(|n| n.1 == "pid").and_then(|n| n.2.parse().ok());
        live.pid = pid.context("no pid")?;
        Ok(live)
    }

    /// One of its execs, begun after a moment, has run.
    pub fn runs_after(&self, moment: f64) -> Result<()> {
        until_true("execs of the session run", seconds(30), || {
            Ok(notes(&self.log)?.iter().any(|n| n.0 > moment && n.1 == "true" && n.2 == "ran 0"))
        })
    }

    /// At least this many more execs are tried, and none runs.
    pub(super) fn nothing_runs(&self, least: usize) -> Result<f64> {
        let moment = now() + 0.3;
        let after = || -> Result<Vec<_>> {
            Ok(notes(&self.log)?.into_iter().filter(|n| n.0 > moment && n.1 == "true").collect())
        };
        until_true("execs are tried without a daemon", seconds(30), || Ok(after()?.len() >= least))?;
        match after()?.iter().find(|n| n.2 != "errno 1") {
            Some(ran) => bail!("an exec ended in `{}` instead of EPERM", ran.2),
            None => Ok(now()),
        }
    }

    pub(super) fn tell(&mut self, line: &str, answer: &str) -> Result<String> {
        writeln!(self.stdin, "{line}")?;
        self.session.line(answer, seconds(20))
    }

    /// Tells it something whose answer nobody waits for.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{line}")?)
    }

    /// Waits for its end, whatever ends it.
    pub fn ended(self) -> Result<Ended> {
        self.session.wait(seconds(60))
    }

    fn exit(mut self, code: i32) -> Result<Ended> {
        self.tell(&format!("exit {code}"), "bye")?;
        self.session.wait(seconds(30))
    }
}

/// The daemon is dead and its supervisor asleep.
pub struct Down(i32);

impl Down {
    /// Stops the supervisor and kills the daemon.
    pub fn new() -> Result<Self> {
        let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
        guest::signal(supervisor, Signal::STOP)?;
        let down = Self(supervisor);
        guest::signal(daemon, Signal::KILL)?;
        until_true("the daemon is gone", seconds(10), || Ok(!guest::alive(daemon)?))?;
        Ok(down)
    }

    /// Lets the supervisor start the next daemon, and waits until that enforces.
    pub fn up(self) -> Result<()> {
        drop(self);
        guest::enforcing().context("the next daemon")
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        let _ = guest::signal(self.0, Signal::CONT);
    }
}

fn end_of(records: &[Value]) -> Result<&Value> {
    let ends = ctl::of_kind(records, "session_end");
    ensure(ends.len() == 1, format!("{} records of the session's end", ends.len()))?;
    ends.first().map(|r| &r["body"]).context("no end")
}

fn adopted_since(leaf: u64, id: &str) -> Result<bool> {
    let records = ctl::records_from(leaf)?;
    Ok(ctl::of_kind(&records, "node_start")
        .iter()
        .any(|r| r["body"]["sessions_adopted"].as_array().is_some_and(|ids| ids.iter().any(|i| i == id))))
}

/// Ended with this code, and guardctl, the record and the outcome of the entry's own exec say so.
fn ended_well(ended: &Ended, code: i32) -> Result<()> {
    ensure(ended.code == code, format!("guardctl ended with {}: {ended}", ended.code))?;
    let records = ctl::records(&ended.id)?;
    let end = end_of(&records)?;
    ensure(end["reason"] == "exited" && end["exit_code"] == code, end)?;
    let outcomes = ctl::of_kind(&records, "exec_outcome");
    let own = outcomes.iter().any(|r| r["body"]["exit_code"] == code);
    ensure(own, "the outcome of the entry process's exec is not recorded")
}

pub fn p2_session_outlives_the_daemon() -> Result<()> {
    let from = ctl::log_size()?;
    let mut live = Live::start("10m")?;
    let id = live.session.id.clone();
    let down = Down::new()?;
    live.nothing_runs(10)?;
    live.tell("say between", "between").context("its pipes do not depend on the daemon")?;
    down.up()?;
    live.runs_after(now())?;
    ensure(adopted_since(from, &id)?, "no start of a daemon says that it adopted the session")?;
    let records = ctl::records(&id)?;
    let denied =
        ctl::of_kind(&records, "exec_unjudged").iter().filter(|r| r["body"]["disposition"] == "denied").count();
    ensure(denied >= 5, format!("{denied} records of execs that were denied while no daemon ran"))?;
    let lines = |kind: &str| live.session.events().iter().any(|e| e["kind"] == kind);
    until_true("guardctl says that the daemon went and came", seconds(10), || Ok(lines("lost") && lines("adopted")))?;
    // Once more, and then a signal through the new daemon's connection must still reach nobody else than the session.
    Down::new()?.up()?;
    live.runs_after(now())?;
    ended_well(&live.exit(7)?, 7)?;
    ctl::verify()?;
    sequences_are_whole(from)
}

/// Asks the control socket for a session, as guardctl does when its daemon is back, and prints the answer.
const ATTACH: &str = r#"
import socket, struct, sys
name = sys.argv[1].encode()
inner = b"\x0a" + bytes([len(name)]) + name
message = b"\x42" + bytes([len(inner)]) + inner
line = socket.socket(socket.AF_UNIX)
line.settimeout(20)
line.connect("/run/guard/control.sock")
line.sendall(struct.pack("<I", len(message)) + message)
answer = line.makefile("rb")
print(answer.read(struct.unpack("<I", answer.read(4))[0]))
"#;

/// While its own guardctl is away nobody else gets a session, not its user and not root; and it ends when that one is gone.
pub fn p2_only_its_guardctl_comes_again() -> Result<()> {
    let live = Live::start("10m")?;
    let (id, pid, guardctl) = (live.session.id.clone(), live.pid, live.session.pid());
    guest::signal(guardctl, Signal::STOP)?;
    Down::new()?.up()?;
    for user in ["alice", "root"] {
        let mut other = session::as_user(user, "/");
        let out = output(other.args(["python3", "-c", ATTACH, &id]), seconds(40))?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure(said.contains("belongs to another guardctl"), format!("as {user}: {said}"))?;
    }
    guest::signal(guardctl, Signal::CONT)?;
    let adopted = || live.session.events().iter().any(|e| e["kind"] == "adopted");
    until_true("its own guardctl gets it", seconds(30), || Ok(adopted()))?;
    live.runs_after(now())?;
    let down = Down::new()?;
    guest::signal(guardctl, Signal::KILL)?;
    down.up()?;
    until_true("the session ends without its guardctl", seconds(30), || Ok(!guest::alive(pid)?))?;
    let records = ctl::records(&id)?;
    let end = end_of(&records)?;
    ensure(end["reason"] == "ended", end)
}

pub fn p2_supervisor_killed_then_adopted() -> Result<()> {
    let live = Live::start("10m")?;
    let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
    let neighbour = Neighbour::start();
    guest::signal(supervisor, Signal::KILL)?;
    until_true("the daemon goes with its supervisor", seconds(10), || Ok(!guest::alive(daemon)?))?;
    live.nothing_runs(10)?;
    neighbour.unharmed()?;
    guest::start_daemon()?;
    live.runs_after(now())?;
    guest::signal(live.session.pid(), Signal::TERM).context("a signal through the new daemon")?;
    let ended = live.session.wait(seconds(30))?;
    ensure(ended.code == 143, format!("a forwarded SIGTERM: {ended}"))
}

pub fn p2_expiry_without_a_daemon() -> Result<()> {
    let started = now();
    let live = Live::start("15s")?;
    let down = Down::new()?;
    live.nothing_runs(5)?;
    std::thread::sleep(Duration::from_secs_f64((started + 18.0 - now()).clamp(0.0, 20.0)));
    let moment = now();
    down.up()?;
    let pid = live.pid;
    let log = live.log.clone();
    let ended = live.session.wait(seconds(30))?;
    ensure(!guest::alive(pid)?, "a process of an expired session lives")?;
    let late = notes(&log)?.into_iter().find(|n| n.0 > moment && n.2 == "ran 0");
    ensure(late.is_none(), format!("an exec ran after the end: {late:?}"))?;
    let exited = ended.events.iter().find(|e| e["event"] == "exited").context("guardctl was not told")?;
    ensure(exited["reason"] == "expired" && ended.code != 0, exited)?;
    let records = ctl::records(&ended.id)?;
    let end = end_of(&records)?;
    ensure(end["reason"] == "expired", end)
}

/// Its number is another process's by the time the next daemon comes.
pub fn p2_entry_ended_without_a_daemon() -> Result<()> {
    let mut live = Live::start("10m")?;
    let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
    guest::signal(supervisor, Signal::KILL)?;
    until_true("the daemon is gone", seconds(10), || Ok(!guest::alive(daemon)?))?;
    live.nothing_runs(3)?;
    live.tell("exit 7", "bye")?;
    let pid = live.pid;
    until_true("the entry process is gone", seconds(10), || Ok(!Path::new(&format!("/proc/{pid}")).exists()))?;
    let mut other = until("a neighbour with the number of the entry process", seconds(20), || {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let mut child = Command::new("/usr/bin/sleep").arg("100").spawn()?;
        if i32::try_from(child.id()) == Ok(pid) {
            return Ok(Some(child));
        }
        child.kill()?;
        child.wait()?;
        Ok(None)
    })?;
    guest::start_daemon()?;
    let ended = live.session.wait(seconds(30));
    let unharmed = other.try_wait()?.is_none();
    other.kill()?;
    other.wait()?;
    ensure(unharmed, "a neighbour was taken for the session's entry process")?;
    ended_well(&ended?, 7)
}

/// The reviewer's answer comes too late; nothing stays open for ever; a script that runs stays frozen.
pub fn p2_requests_and_scripts_outlive_the_daemon() -> Result<()> {
    let dir = guest::fresh_dir("life")?;
    let (script, made) = (format!("{dir}/script"), format!("{dir}/made"));
    std::fs::write(&script, "#!/bin/bash\nwhile read -t 0.2 x < /dev/zero || true; do :; done\n")?;
    std::os::unix::fs::chown(&script, Some(1000), Some(1000))?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut live = Live::start("10m")?;
    let id = live.session.id.clone();
    writeln!(live.stdin, "start {script}")?;
    ctl::approve(&ctl::pending(&id)?, &[])?;
    live.session.line("start ok", seconds(20))?;
    ensure(live.tell(&format!("write {script}"), "write ")? == "errno 1", "a script that runs was opened for writing")?;
    ensure(live.tell(&format!("turn {script}"), "turn ")? == "errno 1", "the name of a script that runs was turned")?;
    writeln!(live.stdin, "start /usr/bin/mkdir {made}")?;
    let request = ctl::pending(&id)?;
    Down::new()?.up()?;
    live.session.line("start errno 1", seconds(20)).context("the held exec did not end in EPERM")?;
    live.runs_after(now())?;
    let records = ctl::records(&id)?;
    let decisions = ctl::of_kind(&records, "exec_decision");
    let closed =
        decisions.iter().find(|r| r["body"]["request"] == request["request"]).context("it was never closed")?;
    let body = &closed["body"];
    ensure(body["disposition"] == "denied" && body["reason"].as_str().is_some_and(|r| r.contains("restarted")), body)?;
    ensure(ctl::approve(&request, &[]).is_err(), "a request of a dead daemon was approved")?;
    ensure(!Path::new(&made).exists(), "it ran")?;
    for what in ["write", "turn"] {
        writeln!(live.stdin, "{what} {script}")?;
        let second = until("the answer about the script", seconds(20), || {
            let start = format!("{what} ");
            Ok(live.session.out().lines().filter_map(|l| l.strip_prefix(&start).map(str::to_owned)).nth(1))
        })?;
        ensure(second == "errno 1", format!("after the restart, on a script that runs: {what}: {second}"))?;
    }
    ended_well(&live.exit(3)?, 3)
}

/// A new file at the supervisor's path takes over; then the supervisor leaves, and another one comes.
pub fn p2_upgrade_keeps_sessions() -> Result<()> {
    const PROGRAM: &str = "/usr/local/bin/guard-agent";
    let from = ctl::log_size()?;
    let live = Live::start("10m")?;
    let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
    let mut bytes = std::fs::read(PROGRAM)?;
    bytes.extend_from_slice(b"another version");
    let next = format!("{PROGRAM}.next");
    std::fs::write(&next, bytes)?;
    std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    std::fs::rename(&next, PROGRAM)?;
    let done = output(Command::new(PROGRAM).args(["upgrade", "--config", guest::CONFIG]), seconds(90))?;
    ensure(done.status.success(), format!("upgrade: {}", String::from_utf8_lossy(&done.stderr)))?;
    ensure(guest::supervisor()? == supervisor, "the supervisor has another process id")?;
    let inode = |path: &str| std::fs::metadata(path).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
    let installed = inode(PROGRAM)?;
    for pid in [supervisor, guest::daemon()?] {
        ensure(pid != daemon && inode(&format!("/proc/{pid}/exe"))? == installed, "the old version runs")?;
    }
    guest::enforcing()?;
    live.runs_after(now())?;
    ensure(adopted_since(from, &live.session.id)?, "the new version did not adopt the session")?;
    guest::signal(supervisor, Signal::USR1)?;
    until_true("the supervisor leaves", seconds(15), || Ok(!guest::alive(supervisor)?))?;
    live.nothing_runs(5)?;
    guest::start_daemon()?;
    live.runs_after(now())?;
    ended_well(&live.exit(0)?, 0)?;
    let records = ctl::records_from(from)?;
    let left = ctl::of_kind(&records, "node_stop").iter().filter(|r| r["body"]["sessions_closed"] == 0).count();
    ensure(left >= 2, format!("{left} records of daemons that left"))?;
    sequences_are_whole(from)
}

/// What a version with other layouts cannot go on with ends, and says why.
pub fn p2_other_layout_ends_sessions() -> Result<()> {
    let live = Live::start("10m")?;
    let down = Down::new()?;
    live.nothing_runs(3)?;
    let pins = std::fs::read_dir("/sys/fs/bpf/guard")?.flatten().next().context("no pins")?.path();
    let version: u32 =
        pins.to_string_lossy().rsplit("abi").next().and_then(|n| n.parse().ok()).context("no version")?;
    let other = version + 1000;
    std::fs::rename(&pins, format!("/sys/fs/bpf/guard/abi{other}"))?;
    for entry in std::fs::read_dir("/var/lib/guard/agent/sessions")?.flatten() {
        let text = std::fs::read_to_string(entry.path())?;
        std::fs::write(entry.path(), text.replace(&format!("\"abi\": {version},"), &format!("\"abi\": {other},")))?;
    }
    down.up()?;
    let ended = live.session.wait(seconds(30))?;
    ensure(ended.code == 137, format!("guardctl ended with {}: {ended}", ended.code))?;
    let records = ctl::records(&ended.id)?;
    let end = end_of(&records)?;
    let said = end["detail"].as_str().is_some_and(|d| d.contains(&format!("layout {other}")));
    ensure(end["reason"] == "daemon_restarted" && said, end)?;
    ensure(!guest::alive(live.pid)?, "its entry process lives")?;
    let again = session::run(&ALICE, &["true"])?;
    ensure(again.code == 0, &again)
}

pub fn p2_second_daemon_refuses() -> Result<()> {
    let live = Live::start("10m")?;
    let out = output(Command::new("guard-agent").args(["run", "--config", guest::CONFIG]), seconds(40))?;
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure(out.status.code() == Some(69), format!("the second one ended with {}: {text}", out.status))?;
    let named = text.contains(&format!("another guard-agent (process {})", guest::supervisor()?));
    ensure(named, format!("it does not say who runs: {text}"))?;
    live.runs_after(now())?;
    guest::enforcing()?;
    ended_well(&live.exit(0)?, 0)
}

pub fn terminal_outlives_the_daemon() -> Result<()> {
    let typed = "guardctl --config /etc/guard/guardctl.toml run --agent coder -- \
                 bash -c 'echo one; read word; echo two-$word; exit 5'";
    let mut command = session::as_user("alice", "/home/alice");
    command.args(["script", "-qefc", typed, "/tmp/typescript"]);
    let _ = std::fs::remove_file("/tmp/typescript");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let shown = |what: &str| {
        until_true(&format!("the terminal shows `{what}`"), seconds(30), || {
            Ok(std::fs::read_to_string("/tmp/typescript").unwrap_or_default().contains(what))
        })
    };
    shown("one")?;
    let down = Down::new()?;
    child.stdin.as_mut().context("no stdin")?.write_all(b"word\n")?;
    shown("two-word").context("without a daemon")?;
    down.up()?;
    let code = crate::wait::child(&mut child, seconds(30))?;
    ensure(code == Some(5), format!("guardctl on a terminal ended with {code:?}"))
}

/// Nothing outside waits for a daemon that stands still, nor for its supervisor.
pub fn p6_daemon_and_supervisor_stopped() -> Result<()> {
    let live = Live::start("10m")?;
    let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
    guest::signal(supervisor, Signal::STOP)?;
    guest::signal(daemon, Signal::STOP)?;
    let neighbour = Neighbour::start();
    let end = now() + 12.0;
    let mut logins = 0;
    let result = loop {
        let login = output(Command::new("su").args(["-", "alice", "-c", "id -un; git --version; ls /"]), seconds(10));
        match login {
            Ok(out) if out.status.success() && out.stdout.starts_with(b"alice") => logins += 1,
            Ok(out) => break Err(anyhow::anyhow!("su: {} {}", out.status, String::from_utf8_lossy(&out.stderr))),
            Err(error) => break Err(error),
        }
        if now() > end {
            break Ok(());
        }
    };
    guest::signal(daemon, Signal::CONT)?;
    guest::signal(supervisor, Signal::CONT)?;
    result?;
    ensure(logins >= 3, format!("{logins} logins"))?;
    neighbour.unharmed()?;
    guest::enforcing()?;
    live.runs_after(now())?;
    ended_well(&live.exit(0)?, 0)
}
