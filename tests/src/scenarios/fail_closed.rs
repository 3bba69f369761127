//! P2: the kernel denies by default; whatever breaks, nothing becomes allowed.

use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::guest::{self, ensure};
use crate::neighbour::Neighbour;
use crate::session::{ALICE, ROOT, Session, Start};
use crate::wait::{seconds, until, until_true};
use crate::{attacks, ctl, session};

/// A process of a session that outlives the entry process and notes what its execs come to.
struct Worker {
    session: Session,
    log: String,
    pid: i32,
}

impl Worker {
    fn start(ttl: &str, command: &[&str]) -> Result<Self> {
        let log = format!("/tmp/worker-{}.log", std::process::id());
        let mut args = vec![log.as_str(), "--"];
        args.extend(command);
        let _ = std::fs::remove_file(&log);
        let session = Session::attack(&Start { ttl, ..ALICE }, "worker.py", &args)?;
        let word = if command.is_empty() { "true" } else { "trying" };
        let mut worker = Self { session, log, pid: 0 };
        until_true("the worker is at work", seconds(20), || Ok(worker.notes()?.iter().any(|n| n.1 == word)))?;
        let notes = worker.notes()?;
        let first = notes.iter().find(|n| n.1 == "first").context("no first exec")?;
        ensure(first.2 == "ran 0", format!("with the daemon alive an allowed exec must run: {}", first.2))?;
        worker.pid = notes.iter().find(|n| n.1 == "pid").and_then(|n| n.2.parse().ok()).context("no pid")?;
        Ok(worker)
    }

    fn notes(&self) -> Result<Vec<(f64, String, String)>> {
        notes(&self.log)
    }

    /// Waits for the result of the held command.
    fn command_result(&self, limit: u64) -> Result<String> {
        until("the held exec ends", seconds(limit), || {
            Ok(self.notes()?.iter().find(|n| n.1 == "command").map(|n| n.2.clone()))
        })
    }

    /// An exec that began after a moment has run.
    fn runs_after(&self, moment: f64) -> Result<()> {
        until_true("execs of the session run again", seconds(30), || {
            Ok(self.notes()?.iter().any(|n| n.0 > moment && n.1 == "true" && n.2 == "ran 0"))
        })
    }

    /// Everything tried after a moment was refused, and something was tried.
    fn all_refused_after(&self, moment: f64, least: usize) -> Result<()> {
        let after: Vec<_> = self.notes()?.into_iter().filter(|n| n.0 > moment && n.1 == "true").collect();
        if let Some(ran) = after.iter().find(|n| n.2 != "errno 1") {
            ensure(false, format!("an exec ended in `{}` instead of EPERM", ran.2))?;
        }
        ensure(after.len() >= least, format!("only {} execs were tried", after.len()))
    }
}

/// What an attack program noted: time, what, result.
pub fn notes(log: &str) -> Result<Vec<(f64, String, String)>> {
    let text = std::fs::read_to_string(log)?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (time, rest) = line.split_once(' ')?;
            let (what, result) = rest.split_once(' ').unwrap_or((rest, ""));
            Some((time.parse().ok()?, what.to_owned(), result.to_owned()))
        })
        .collect())
}

/// Monotonic seconds, as the attack programs note them.
pub fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The session that the worker was in has ended for this reason, and none of its processes is left.
fn closed(worker: &Worker, reason: &str) -> Result<()> {
    until_true("the session's processes are gone", seconds(20), || Ok(!guest::alive(worker.pid)?))?;
    let id = &worker.session.id;
    let end = until("the session's end is recorded", seconds(20), || {
        Ok(ctl::records(id)?.into_iter().find(|r| r["kind"] == "session_end"))
    })?;
    ensure(end["body"]["reason"] == reason, format!("ended with {} instead of {reason}", end["body"]["reason"]))
}

pub fn p2_daemon_killed_while_held() -> Result<()> {
    let dir = guest::fresh_dir("held")?;
    let made = format!("{dir}/made");
    let worker = Worker::start("10m", &["/usr/bin/mkdir", &made])?;
    ctl::pending(&worker.session.id)?;
    let neighbour = Neighbour::start();
    // The supervisor sleeps, so that there is time to see what happens without a daemon.
    let supervisor = guest::supervisor()?;
    guest::signal(supervisor, Signal::STOP)?;
    guest::signal(guest::daemon()?, Signal::KILL)?;
    let result = worker.command_result(15);
    let moment = now();
    std::thread::sleep(seconds(3));
    let refused = worker.all_refused_after(moment, 10);
    guest::signal(supervisor, Signal::CONT)?;
    neighbour.unharmed()?;
    ensure(result? == "errno 1", "the held exec did not end in EPERM")?;
    refused?;
    ensure(!Path::new(&made).exists(), "the held program ran")?;
    guest::enforcing().context("after the restart")?;
    worker.runs_after(now())?;
    let again = session::run(&ALICE, &["true"])?;
    ensure(again.code == 0, "a new session does not run after the restart")?;
    ctl::verify().map(|_| ())
}

pub fn p2_daemon_stopped() -> Result<()> {
    let dir = guest::fresh_dir("held")?;
    let made = format!("{dir}/made");
    let worker = Worker::start("10m", &["/usr/bin/mkdir", &made])?;
    ctl::pending(&worker.session.id)?;
    let neighbour = Neighbour::start();
    let daemon = guest::daemon()?;
    guest::signal(daemon, Signal::STOP)?;
    // Heartbeat 20 s, and some for a busy machine.
    let result = worker.command_result(60).context("the supervisor did not end a stopped daemon")?;
    ensure(result == "errno 1", format!("the held exec ended in `{result}`"))?;
    ensure(!guest::alive(daemon)?, "the stopped daemon is still there")?;
    neighbour.unharmed()?;
    ensure(!Path::new(&made).exists(), "the held program ran")?;
    guest::enforcing().context("after the restart")?;
    worker.runs_after(now())
}

pub fn p2_no_daemon_no_exec() -> Result<()> {
    let worker = Worker::start("10m", &[])?;
    let (supervisor, daemon) = (guest::supervisor()?, guest::daemon()?);
    let neighbour = Neighbour::start();
    guest::signal(supervisor, Signal::KILL)?;
    let _ = guest::signal(daemon, Signal::KILL);
    until_true("the daemon is gone", seconds(10), || Ok(!guest::alive(daemon)?))?;
    let moment = now() + 0.2;
    std::thread::sleep(seconds(3));
    worker.all_refused_after(moment, 10)?;
    neighbour.unharmed()?;
    guest::start_daemon()?;
    worker.runs_after(now())?;
    // What happened meanwhile was refused by the kernel alone, and is recorded all the same.
    let records = ctl::records(&worker.session.id)?;
    let denied = ctl::of_kind(&records, "exec_unjudged").iter().any(|r| r["body"]["disposition"] == "denied");
    ensure(denied, "no record says that execs were refused while no daemon ran")
}

pub fn p2_expired_session() -> Result<()> {
    let started = now();
    let worker = Worker::start("4s", &[])?;
    let id = worker.session.id.clone();
    let ended_by = started + 6.0;
    until_true("the session is over", seconds(20), || Ok(!guest::alive(worker.pid)?))?;
    let late = worker.notes()?.into_iter().find(|n| n.0 > ended_by && n.2 == "ran 0");
    ensure(late.is_none(), format!("an exec ran after the end: {late:?}"))?;
    closed(&worker, "expired")?;
    let ended = worker.session.wait(seconds(20))?;
    ensure(ended.code != 0, "guardctl calls an expired session a success")?;
    let exited = ended.events.iter().find(|e| e["event"] == "exited").context("guardctl was not told")?;
    ensure(exited["reason"] == "expired", format!("{exited} of {id}"))
}

pub fn p2_unmarked_mount() -> Result<()> {
    guest::restart_daemon("[hold]\nmax_seconds = 2\nreview_deadline_seconds = 2\ncollector_grace_seconds = 2")?;
    let dir = guest::fresh_dir("unmarked")?;
    let ended = session::run(&Start { cwd: &dir, ..ALICE }, &["python3", &attacks::path("unmarked.py")])?;
    for name in ["memfd", "memfd_by_path", "deleted", "new_mount"] {
        let result = ended.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).context("no result")?;
        // The profile refuses the namespace in which the mount would be made: the attack gives up with exit code 101.
        let no_namespace = name == "new_mount" && result == format!("ran {}", 101 << 8);
        let refused = result == "errno 1" || result == "errno 13" || no_namespace;
        ensure(refused, format!("{name}: `{result}` instead of EPERM"))?;
    }
    let records = ctl::records(&ended.id)?;
    let refused = records.iter().filter(|r| r["body"]["disposition"] == "denied").count();
    ensure(refused >= 2, format!("{refused} refusals recorded"))
}

pub fn p2_mount_made_inside() -> Result<()> {
    guest::restart_daemon("[hold]\nmax_seconds = 2\nreview_deadline_seconds = 2\ncollector_grace_seconds = 2")?;
    let ended = session::run(&ROOT, &["python3", &attacks::path("mount_inside.py")])?;
    let result = ended.out.lines().find_map(|l| l.strip_prefix("program ")).unwrap_or("errno 1");
    ensure(result == "errno 1", format!("a program on a mount made inside: `{result}`"))?;
    ensure(ended.out.contains("program ") || ended.out.contains("mount refused"), &ended)
}

pub fn p2_cgroup_escape() -> Result<()> {
    let precious = guest::fresh_dir("precious")?;
    let ended = session::run(&ROOT, &["python3", &attacks::path("escape.py")])?;
    ensure(!ended.out.contains("moved"), format!("the session left its cgroup: {}", ended.out))?;
    ensure(ended.out.contains("rm errno 1"), &ended)?;
    ensure(Path::new(&precious).exists(), "rm ran")?;
    let records = ctl::records(&ended.id)?;
    let refusal = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "cgroup_write");
    ensure(refusal, "the attempt to leave is not recorded")
}

pub fn p2_clean_stop_closes_sessions() -> Result<()> {
    let worker = Worker::start("10m", &[])?;
    guest::stop_daemon()?;
    until_true("the session's processes are gone", seconds(20), || Ok(!guest::alive(worker.pid)?))?;
    let status = std::process::Command::new("/usr/bin/true").status()?;
    ensure(status.success(), "the host is not usable after a clean stop")?;
    guest::start_daemon()?;
    closed(&worker, "daemon_stopped")
}
