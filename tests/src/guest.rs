//! Guard's own processes in the guest: who they are, stopping, killing, restarting them with another configuration.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::ctl;
use crate::wait::{seconds, until_true};

/// The daemon's configuration in force.
pub const CONFIG: &str = "/etc/guard/agent.toml";
pub const SHIPPED: &str = "/mnt/payload/etc/agent.toml";
pub const COLLECTOR_CONFIG: &str = "/var/lib/guard/collector/collector.toml";
/// Where the daemon listens.
const CONTROL: &str = "/run/guard/control.sock";
/// Where the daemon's log goes; shown when a scenario fails.
pub const AGENT_LOG: &str = "/run/guard-agent.log";
/// Where the collector's log goes.
pub const COLLECTOR_LOG: &str = "/run/guard-collector.log";

/// A process as /proc shows it.
struct Process {
    pid: i32,
    parent: i32,
    name: String,
}

fn processes() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let (Some((head, tail)), Some(start)) = (stat.rsplit_once(')'), stat.find('(')) else { continue };
        let mut fields = tail.split_whitespace();
        let (state, parent) = (fields.next().unwrap_or("Z"), fields.next().and_then(|p| p.parse().ok()).unwrap_or(0));
        if state != "Z" {
            found.push(Process { pid, parent, name: head.get(start + 1..).unwrap_or_default().to_owned() });
        }
    }
    Ok(found)
}

/// Process ids of the guard-agent processes: supervisor first, then its child, the daemon.
fn agents() -> Result<Vec<Process>> {
    let all: Vec<Process> = processes()?.into_iter().filter(|p| p.name == "guard-agent").collect();
    let is_agent = |pid| all.iter().any(|p| p.pid == pid);
    let supervisor = all.iter().find(|p| !is_agent(p.parent)).map(|p| p.pid);
    let daemon = supervisor.and_then(|s| all.iter().find(|p| p.parent == s).map(|p| p.pid));
    Ok(all.into_iter().filter(|p| Some(p.pid) == supervisor || Some(p.pid) == daemon).collect())
}

/// The supervisor: the agent process that no agent process started.
pub fn supervisor() -> Result<i32> {
    let all = agents()?;
    let found = all.iter().find(|p| !all.iter().any(|q| q.pid == p.parent));
    found.map(|p| p.pid).context("no supervisor runs")
}

/// The daemon: the supervisor's child.
pub fn daemon() -> Result<i32> {
    let parent = supervisor()?;
    agents()?.iter().find(|p| p.parent == parent).map(|p| p.pid).context("no daemon runs")
}

/// Sends a signal.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("not a process id")?;
    kill_process(pid, signal).with_context(|| format!("signalling {pid:?}"))
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: i32) -> Result<bool> {
    Ok(processes()?.iter().any(|p| p.pid == pid))
}

fn named(name: &str) -> Result<Vec<i32>> {
    Ok(processes()?.into_iter().filter(|p| p.name == name).map(|p| p.pid).collect())
}

/// Writes a configuration: the shipped one with some tables added.
pub fn configure(tables: &str) -> Result<()> {
    Ok(std::fs::write(CONFIG, with(tables)?)?)
}

fn with(tables: &str) -> Result<String> {
    Ok(format!("{}\n{tables}\n", std::fs::read_to_string(SHIPPED)?))
}

/// Stop, configure with a policy file of one's own, start.
pub fn restart_with_policy(file: &str, tables: &str) -> Result<()> {
    let (none, own) = ("files = []", format!("files = [\"{file}\"]"));
    let text = with(tables)?;
    ensure(text.contains(none), "the shipped configuration names policy files already")?;
    stop_daemon()?;
    std::fs::write(CONFIG, text.replace(none, &own))?;
    start_daemon()
}

/// Stop, add a setting of the journal, start.
pub fn restart_with_journal(setting: &str) -> Result<()> {
    let text = with(USUAL)?;
    ensure(text.contains("[journal]\n"), "the shipped configuration has no [journal]")?;
    stop_daemon()?;
    std::fs::write(CONFIG, text.replace("[journal]\n", &format!("[journal]\n{setting}\n")))?;
    start_daemon()
}

/// Stop, add settings of sessions, start.
pub fn restart_with_session(settings: &str, tables: &str) -> Result<()> {
    restart_whole(settings, &format!("{USUAL}\n{tables}"))
}

/// The same, where the tables say how long a hold is too.
pub fn restart_whole(settings: &str, tables: &str) -> Result<()> {
    let text = with(tables)?;
    ensure(text.contains("[session]\n"), "the shipped configuration has no [session]")?;
    stop_daemon()?;
    std::fs::write(CONFIG, text.replace("[session]\n", &format!("[session]\n{settings}\n")))?;
    start_daemon()
}

/// What most scenarios run with: short holds, so that nothing takes minutes.
pub const USUAL: &str = "[hold]\nmax_seconds = 10\nreview_deadline_seconds = 60\ncollector_grace_seconds = 3";

/// Stops the daemon as a host's shutdown would.
pub fn stop_daemon() -> Result<()> {
    if let Ok(pid) = supervisor() {
        signal(pid, Signal::TERM)?;
    }
    until_true("guard-agent ends after SIGTERM", seconds(60), || Ok(named("guard-agent")?.is_empty()))
}

/// Starts the daemon with the configuration in force and waits until it measures that it enforces.
pub fn start_daemon() -> Result<()> {
    start_daemon_of(Path::new("guard-agent"))
}

/// The same, of another file.
pub fn start_daemon_of(program: &Path) -> Result<()> {
    spawn(Command::new(program).args(["run", "--config", CONFIG]), AGENT_LOG)?;
    enforcing()
}

/// Waits until the local daemon says, measured, that it enforces, and the collector sees it.
pub fn enforcing() -> Result<()> {
    // Cheap to ask, while the verifier needs the processors. The next daemon listens when it has measured.
    until_true("the daemon listens", seconds(150), || Ok(UnixStream::connect(CONTROL).is_ok()))?;
    until_true("the daemon enforces and is connected", seconds(150), || {
        let status = ctl::json("root", &["status", "--local"])?;
        Ok(status["report"]["mode"] == "enforcing" && status["collector_connected"] == true)
    })
}

/// Stop, configure, start.
pub fn restart_daemon(tables: &str) -> Result<()> {
    stop_daemon()?;
    configure(tables)?;
    start_daemon()
}

/// Kills the collector without warning.
pub fn kill_collector() -> Result<()> {
    for pid in named("guard-collector")? {
        signal(pid, Signal::KILL)?;
    }
    until_true("guard-collector is gone", seconds(10), || Ok(named("guard-collector")?.is_empty()))
}

/// Lets the collector stand still, or go on.
pub fn hold_collector(still: bool) -> Result<()> {
    for pid in named("guard-collector")? {
        signal(pid, if still { Signal::STOP } else { Signal::CONT })?;
    }
    Ok(())
}

/// Starts the collector; returns at once.
pub fn start_collector() -> Result<()> {
    spawn(Command::new("guard-collector").args(["serve", "--config", COLLECTOR_CONFIG]), COLLECTOR_LOG)
}

/// Detached in a process group of its own, its output appended to a log file.
fn spawn(command: &mut Command, log: &str) -> Result<()> {
    let log = File::options().create(true).append(true).open(log)?;
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    Ok(())
}

/// Makes the guest as a scenario expects it, whatever the one before left behind. What begins with a daemon of its `own`
/// configuration needs none that runs well: a start is what takes longest here.
pub fn recover(own: bool) -> Result<()> {
    for pid in named("guard-agent")?.into_iter().chain(named("guard-collector")?) {
        signal(pid, Signal::CONT)?;
    }
    if named("guard-collector")?.is_empty() {
        start_collector()?;
    }
    let usual = std::fs::read_to_string(CONFIG).is_ok_and(|text| with(USUAL).is_ok_and(|usual| text == usual));
    let well = ctl::json("root", &["status", "--local"]).is_ok_and(|s| s["report"]["mode"] == "enforcing");
    if well && own {
        return Ok(());
    }
    if well && usual {
        return enforcing();
    }
    if stop_daemon().is_err() {
        for pid in named("guard-agent")? {
            signal(pid, Signal::KILL)?;
        }
        until_true("guard-agent is gone", seconds(10), || Ok(named("guard-agent")?.is_empty()))?;
    }
    if own {
        return Ok(());
    }
    configure(USUAL)?;
    start_daemon()
}

/// The last lines of a file.
pub fn tail(path: &str, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}

/// A fresh folder of alice's, owned by her.
pub fn fresh_dir(name: &str) -> Result<String> {
    let dir = format!("/home/alice/{name}");
    if Path::new(&dir).exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir(&dir)?;
    std::os::unix::fs::chown(&dir, Some(1000), Some(1000))?;
    Ok(dir)
}

/// Copies a program for alice, hers to change.
pub fn copy_for_alice(from: &str, to: &str) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copying {from} to {to}"))?;
    std::os::unix::fs::chown(to, Some(1000), Some(1000))?;
    Ok(())
}

/// Refuses to go on when a condition does not hold.
pub fn ensure(holds: bool, what: impl std::fmt::Display) -> Result<()> {
    if holds { Ok(()) } else { bail!("{what}") }
}
