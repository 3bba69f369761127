//! The socket inside a session, and the child sessions that are started through it: own status, deny reasons, fewer rights and
//! never more, no longer than the parent.

use std::io::Write;
use std::path::Path;
use std::process::ChildStdin;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::fail_closed::{notes, now};
use super::life::Down;
use crate::guest::{self, ensure};
use crate::session::{self, ALICE, ROOT, Session, Start};
use crate::wait::{output, seconds, until, until_true};
use crate::{attacks, ctl};

const ROLES_FILE: &str = "/etc/guard/roles.yaml";
const ROLES: &str = "version: 1
roles:
  developer: {request: ['*']}
  reviewer: {review: {categories: ['*'], max_risk: 100}}
  tool: {request: [unknown, info, 'host.*', fs.read, fs.list, fs.write, 'vcs.*', 'code.*', shell]}
people: {alice: [developer], root: [developer], bob: [reviewer]}
agents: {coder: [tool]}
";
const SETTINGS: &str = "long_lived = \"strip\"\nenv_keep = [\"PATH\", \"LANG\", \"DEPLOY_TOKEN\"]\non_expiry = \"kill\"\nexpiry_grace_seconds = 1";
/// A child whose command is not decided in time is over.
const HOLD: &str = "[hold]\nmax_seconds = 60\nreview_deadline_seconds = 90\ncollector_grace_seconds = 3";
/// Of the child that lives for long.
const LOG: &str = "/tmp/child-live.log";
const SOCKET: &str = "/run/guard/session/socket";
/// Asks a socket as `inside.py` does, from wherever it runs.
const ASK: &str = "import socket, struct, sys\nline = socket.socket(socket.AF_UNIX)\nline.settimeout(20)\n\
    line.connect(sys.argv[1])\nline.sendall(struct.pack('<I', 3) + b'\\xc2\\x02\\x00')\n\
    answer = line.makefile('rb')\nprint(answer.read(struct.unpack('<I', answer.read(4))[0]))\n";

/// A session whose entry process does what it is told.
struct Agent {
    session: Session,
    stdin: ChildStdin,
    asked: u32,
    pid: i32,
}

impl Agent {
    fn start(ttl: &str) -> Result<Self> {
        let mut session = Session::attack(&Start { ttl, stdin: true, ..ALICE }, "inside.py", &[])?;
        let stdin = session.stdin().context("no stdin")?;
        let pid = session.line("pid ", seconds(30))?.parse()?;
        Ok(Self { session, stdin, asked: 0, pid })
    }

    fn tell(&mut self, wish: &Value) -> Result<u32> {
        writeln!(self.stdin, "{wish}")?;
        self.asked += 1;
        Ok(self.asked - 1)
    }

    fn ask(&mut self, wish: &Value) -> Result<Value> {
        let number = self.tell(wish)?;
        let line = self.session.line(&format!("{number} "), seconds(90)).with_context(|| wish.to_string())?;
        Ok(serde_json::from_str(&line)?)
    }

    /// `guardctl --output json session …` inside; its answer.
    fn guardctl(&mut self, args: &[&str]) -> Result<Value> {
        self.ask(&json!({"run": guardctl(args)}))
    }

    /// The same, which must end well: what it printed.
    fn told(&mut self, args: &[&str]) -> Result<Value> {
        let ended = self.guardctl(args)?;
        ensure(ended["code"] == 0, format!("{args:?}: {ended}"))?;
        Ok(serde_json::from_str(ended["out"].as_str().unwrap_or_default())?)
    }

    /// Refused with this exit code and these words.
    fn refused(&mut self, args: &[&str], code: i32, words: &str) -> Result<()> {
        let ended = self.guardctl(args)?;
        let said = ended["err"].as_str().unwrap_or_default();
        ensure(ended["code"] == code && said.contains(words), format!("{args:?}: {ended}"))
    }

    /// Starts a child that waits, and gives its id once it runs.
    fn child(&mut self, name: &str, args: &[&str]) -> Result<String> {
        let known = self.children()?;
        self.ask(&json!({"start": guardctl(&[&["child"], args].concat()), "as": name}))?;
        until("the child session runs", seconds(60), || Ok(self.children()?.into_iter().find(|id| !known.contains(id))))
    }

    fn children(&mut self) -> Result<Vec<String>> {
        let status = self.told(&["status"])?;
        let ids = status["children"].as_array().context("no children")?;
        Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
    }
}

fn guardctl(args: &[&str]) -> Vec<String> {
    let before = ["/usr/local/bin/guardctl", "--output", "json", "session"];
    before.iter().chain(args).map(|arg| (*arg).to_owned()).collect()
}

/// Id of a child, as the guardctl that ran it said.
fn started(ended: &Value) -> Result<String> {
    let events = ended["err"].as_str().unwrap_or_default().lines();
    let found = events.filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|e| e["event"] == "started");
    found.and_then(|e| e["session"].as_str().map(str::to_owned)).with_context(|| format!("no start: {ended}"))
}

pub fn p7_child_sessions_may_less() -> Result<()> {
    std::fs::write(ROLES_FILE, ROLES)?;
    guest::restart_whole(SETTINGS, &format!("{HOLD}\n[roles]\nfile = \"{ROLES_FILE}\""))?;
    let mut agent = Agent::start("10m")?;
    status_and_messages(&mut agent)?;
    nobody_else_is_answered(&agent)?;
    a_child_may_less(&mut agent)?;
    never_more(&mut agent)?;
    let child = start_live(&mut agent, "live", LOG)?;
    apart(&mut agent, &child)?;
    through_a_restart(&mut agent, &child)?;
    bounded(&mut agent)?;
    ends_with_its_parent(agent, &child)
}

pub fn p7_child_sessions_expire_without_a_daemon() -> Result<()> {
    std::fs::write(ROLES_FILE, ROLES)?;
    guest::restart_whole(SETTINGS, &format!("{HOLD}\n[roles]\nfile = \"{ROLES_FILE}\""))?;
    keys_are_stripped()?;
    both_expire_without_a_daemon()
}

fn status_and_messages(agent: &mut Agent) -> Result<()> {
    let id = agent.session.id.clone();
    let status = agent.told(&["status"])?;
    ensure(status["session"] == *id && status["initiator"] == "alice" && status["rights"]["limited"] == true, &status)?;
    let categories = status["rights"]["categories"].as_array().context("no categories")?;
    ensure(categories.contains(&json!("fs.read")) && !categories.contains(&json!("fs.delete")), &status)?;
    let denied = agent.ask(&json!({"run": ["/usr/bin/rm", "/home/alice/nothing"]}))?;
    ensure(denied["errno"] == 1, format!("rm: {denied}"))?;
    // The reason is there before the process has its EPERM.
    let from = status["next_message"].to_string();
    let told = agent.told(&["messages", "--from", &from])?;
    let all = told["messages"].as_array().context("no messages")?;
    let reason = all.iter().find(|m| m["kind"] == "denied" && m["text"].as_str().is_some_and(|t| t.contains("rm")));
    let reason = reason.with_context(|| told.to_string())?;
    ensure(reason["text"].as_str().is_some_and(|t| t.contains("may not request fs.delete")), reason)?;
    ensure(reason["rules"][0] == "roles.category" && reason["pid"].as_u64() > Some(0), reason)?;
    let raw = agent.ask(&json!({"ask": SOCKET}))?;
    ensure(raw["said"].as_str().is_some_and(|said| said.contains(&id)), format!("without guardctl: {raw}"))
}

/// Not another session, though it is root's; not a neighbour, though it is alice's or root's.
fn nobody_else_is_answered(agent: &Agent) -> Result<()> {
    let host = format!("/run/guard/inside/{}/socket", agent.session.id);
    let through = format!("/proc/{}/root{SOCKET}", agent.pid);
    let other = format!("stream:{host}");
    let ended = session::run(&ROOT, &["python3", &attacks::path("sockets.py"), &other])?;
    ensure(ended.out.contains(&format!("{other} errno 1")), format!("another session: {}", ended.out))?;
    for (user, path) in [("root", &host), ("root", &through), ("alice", &through)] {
        let out = output(session::as_user(user, "/").args(["python3", "-c", ASK, path]), seconds(30))?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let kept_out = !out.status.success() || said.contains("is not one of session");
        ensure(kept_out && !said.contains("spiffe://"), format!("{user} at {path}: {said}"))?;
    }
    let root = output(session::as_user("root", "/").args(["python3", "-c", ASK, &host]), seconds(30))?;
    let said = String::from_utf8_lossy(&root.stdout).into_owned();
    ensure(said.contains("is not one of session"), format!("the daemon has told root outside: {said}"))?;
    let out = output(session::as_user("alice", "/").args(["python3", "-c", ASK, &host]), seconds(30))?;
    ensure(!out.status.success(), "alice outside reaches the socket on the host")
}

fn a_child_may_less(agent: &mut Agent) -> Result<()> {
    let parent = agent.session.id.clone();
    let lists = ["child", "--categories", "fs.read,info", "--max-risk", "40", "--"];
    let ended = agent.guardctl(&[&lists[..], &["/usr/bin/cat", "/etc/hostname"]].concat())?;
    let own = std::fs::read_to_string("/etc/hostname")?;
    ensure(ended["code"] == 0 && ended["out"] == *own, format!("cat in a child: {ended}"))?;
    let child = started(&ended)?;
    // What the parent may and the child may not.
    let made = format!("{}/made", guest::fresh_dir("child")?);
    let ended = agent.guardctl(&[&lists[..], &["/usr/bin/mkdir", &made]].concat())?;
    ensure(ended["code"] == 126 && !Path::new(&made).exists(), format!("mkdir in a child: {ended}"))?;
    let records = ctl::records(&started(&ended)?)?;
    let mkdir = ctl::execs_of(&records, "/usr/bin/mkdir");
    let body = &mkdir.first().context("no record of mkdir")?["body"];
    ensure(body["disposition"] == "denied" && body["verdict"]["reasons"][0]["rule"] == "session.child.category", body)?;
    let records = ctl::records(&child)?;
    let start = ctl::of_kind(&records, "session_start").first().map(|r| r["body"].clone()).context("no start")?;
    ensure(start["identity"]["categories"] == json!(["fs.read", "info"]), &start)?;
    let chained = |r: &&Value| !r["body"]["identity"].is_null();
    for record in records.iter().filter(chained) {
        let who = &record["body"]["identity"];
        ensure(who["parent"] == *parent && who["initiator"] == "alice" && who["max_risk"] == 40, record)?;
    }
    ensure(records.iter().filter(chained).count() >= 3, "records with the chain")?;
    let shown = ctl::json("root", &["session", "show", &parent])?;
    ensure(shown["session"]["children"].as_array().is_some_and(|c| c.contains(&json!(child))), &shown["session"])?;
    let shown = ctl::json("root", &["session", "show", &child])?;
    ensure(shown["session"]["parent"] == *parent, &shown["session"])?;
    let listed = ctl::json("root", &["session", "list", "--parent", &parent])?;
    ensure(listed["sessions"].as_array().is_some_and(|s| s.len() == 2), &listed)
}

fn never_more(agent: &mut Agent) -> Result<()> {
    let cat = ["--", "/usr/bin/cat", "/etc/hostname"];
    let wish = |args: &[&'static str]| [&["child"], args, &cat[..]].concat();
    agent.refused(&wish(&["--categories", "fs.read,fs.delete"]), 77, "may not request fs.delete")?;
    agent.refused(&wish(&["--categories", "*"]), 77, "may not request")?;
    agent.refused(&wish(&["--categories", "fs.read", "--ttl", "11m"]), 77, "longer than")?;
    // One that asks in turn, from where it was put.
    let nested = guardctl(&wish(&["--categories", "fs.read"]));
    let nested: Vec<&str> = nested.iter().map(String::as_str).collect();
    let all = ["child", "--categories", "fs.read,info", "--"];
    agent.refused(&[&all[..], &nested].concat(), 77, "a child session starts no child sessions")?;
    // From a process that has confined itself: a filter of system calls that lets everything through.
    let filter = "import ctypes, os, sys, struct; libc = ctypes.CDLL(None, use_errno=True); \
        code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000)); \
        program = struct.pack('HxxxxxxP', 1, ctypes.addressof(code)); \
        assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0; \
        os.execv(sys.argv[1], sys.argv[1:])";
    let confined: Vec<String> = ["/usr/bin/python3", "-c", filter]
        .iter()
        .map(|s| (*s).to_owned())
        .chain(guardctl(&wish(&["--categories", "fs.read"])))
        .collect();
    agent.tell(&json!({"run": confined}))?;
    let start = format!("{} ", agent.asked - 1);
    let line = ctl::approving(&agent.session.id, || agent.session.line(&start, seconds(60)))?;
    let ended: Value = serde_json::from_str(&line)?;
    let said = ended["err"].as_str().unwrap_or_default();
    ensure(ended["code"] == 77 && said.contains("a filter of system calls"), format!("a confined caller: {ended}"))
}

/// A child that waits, with the log of its own attempts.
fn live(log: &str) -> Result<Vec<String>> {
    let _ = std::fs::remove_file(log);
    let argv = ["--categories", "info,unknown,fs.read,code.run", "--", "python3", &attacks::path("live.py"), log];
    Ok(argv.iter().map(|arg| (*arg).to_owned()).collect())
}

/// Its command is asked about: nobody outside has named it.
fn start_live(agent: &mut Agent, name: &str, log: &str) -> Result<String> {
    let argv = live(log)?;
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let child = agent.child(name, &argv)?;
    let asked = until("its command is judged", seconds(30), || {
        if Path::new(log).exists() {
            return Ok(Some(None));
        }
        let list = ctl::json("bob", &["review", "list", "--session", &child])?;
        Ok(list["reviews"].as_array().and_then(|r| r.first().cloned()).map(Some))
    })?;
    if let Some(request) = asked {
        ctl::approve(&request, &[])?;
    }
    runs_after(log, 0.0)?;
    Ok(child)
}

fn runs_after(log: &str, moment: f64) -> Result<()> {
    until_true("execs of the child run", seconds(40), || {
        Ok(Path::new(log).exists() && notes(log)?.iter().any(|n| n.0 > moment && n.1 == "true" && n.2 == "ran 0"))
    })
}

fn pid_of(log: &str) -> Result<i32> {
    notes(log)?.into_iter().find(|n| n.1 == "pid").and_then(|n| n.2.parse().ok()).context("no pid")
}

/// Neither gets into the other's cgroup, nor at its processes.
fn apart(agent: &mut Agent, child: &str) -> Result<()> {
    let (own, pid) = (agent.pid, pid_of(LOG)?);
    let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    ensure(of(pid)?.contains(&format!("/s-{child}")) && of(own)?.contains(&agent.session.id), of(pid)?)?;
    let procs = format!("/sys/fs/cgroup/guard/s-{child}/cgroup.procs");
    // Nothing but the kernel programs is in the way.
    std::fs::set_permissions(&procs, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let answer = agent.ask(&json!({"write": procs, "text": own.to_string()}))?;
    ensure(answer["errno"] == 1, format!("the parent's process into the child's cgroup: {answer}"))?;
    let answer = agent.ask(&json!({"kill": pid}))?;
    ensure(answer["errno"] == 1, format!("a signal from the parent: {answer}"))?;
    ensure(of(own)?.contains(&agent.session.id) && guest::alive(pid)?, "the attack worked")
}

/// The next daemon finds parent and child; the socket inside is there again, and the child's guardctl comes again through it.
fn through_a_restart(agent: &mut Agent, child: &str) -> Result<()> {
    let before = agent.told(&["messages"])?;
    Down::new()?.up()?;
    runs_after(LOG, now())?;
    let status = agent.told(&["status"])?;
    ensure(status["session"] == *agent.session.id && status["children"] == json!([child]), &status)?;
    let after = agent.told(&["messages"])?;
    ensure(after["epoch"] != before["epoch"], "messages of the dead daemon look like the new one's")?;
    let records = ctl::records(child)?;
    ensure(ctl::of_kind(&records, "session_end").is_empty() && guest::alive(pid_of(LOG)?)?, "the child ended")
}

/// Many at once: with the one that runs there are four, and two too many.
fn bounded(agent: &mut Agent) -> Result<()> {
    let waiting = guardctl(&["child", "--categories", "info", "--", "/usr/bin/sleep", "280"]);
    for number in 0..5 {
        agent.ask(&json!({"start": waiting, "as": format!("bomb {number}")}))?;
    }
    until_true("two are refused", seconds(60), || Ok(agent.ask(&json!({"ended": true}))?["codes"] == json!([69, 69])))?;
    let running = agent.children()?.len();
    ensure(running == 4, format!("{running} children run"))
}

/// Together with all its children; the one that came through the restart says why.
fn ends_with_its_parent(mut agent: Agent, child: &str) -> Result<()> {
    let pid = pid_of(LOG)?;
    let children = agent.children()?;
    agent.tell(&json!({"exit": 0}))?;
    let ended = agent.session.wait(seconds(60))?;
    ensure(ended.code == 0, &ended)?;
    until_true("the child's process is gone", seconds(20), || Ok(!guest::alive(pid)?))?;
    ensure(children.contains(&child.to_owned()), "the child was not known any more")?;
    for child in &children {
        let records = ctl::records(child)?;
        let end = ctl::of_kind(&records, "session_end").first().map(|r| r["body"].clone()).context("no end")?;
        ensure(end["reason"] == "parent_ended", end)?;
    }
    Ok(())
}

/// The expiry is in the kernel: with no daemon nothing of either starts any more. The next daemon kills both.
fn both_expire_without_a_daemon() -> Result<()> {
    let begun = now();
    let mut agent = Agent::start("90s")?;
    let log = "/tmp/child-expiry.log";
    let child = start_live(&mut agent, "expiry", log)?;
    let pid = pid_of(log)?;
    let down = Down::new()?;
    std::thread::sleep(std::time::Duration::from_secs_f64((begun + 93.0 - now()).clamp(0.0, 95.0)));
    let moment = now();
    std::thread::sleep(seconds(1));
    let ran = notes(log)?.into_iter().find(|n| n.0 > moment && n.1 == "true" && n.2 != "errno 1");
    ensure(ran.is_none(), format!("after its parent's end the child ran {ran:?}"))?;
    down.up()?;
    let (own, id) = (agent.pid, agent.session.id.clone());
    let ended = agent.session.wait(seconds(30))?;
    ensure(ended.code == 137, &ended)?;
    until_true("processes of both are killed", seconds(20), || Ok(!guest::alive(pid)? && !guest::alive(own)?))?;
    for id in [&id, &child] {
        let records = ctl::records(id)?;
        let end = ctl::of_kind(&records, "session_end").first().map(|r| r["body"].clone()).context("no end")?;
        ensure(end["reason"] == "expired" || (*id == child && end["reason"] == "parent_ended"), end)?;
    }
    let records = ctl::records(&id)?;
    let expired = ctl::of_kind(&records, "session_expired").first().map(|r| r["body"].clone());
    ensure(expired.is_some_and(|b| b["on_expiry"] == "kill"), "no record of the expiry")
}

/// A variable that holds a key without an end is on record and not in the session.
fn keys_are_stripped() -> Result<()> {
    const KEY: &str = "DEPLOY_TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ012345";
    let show = ["python3", "-c", "import os; print('key' if 'DEPLOY_TOKEN' in os.environ else 'no key')"];
    let out = output(&mut session::command_with(&ALICE, &[KEY], &show), seconds(60))?;
    let (text, said) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure(text.trim() == "no key", format!("stripped: {text}{said}"))?;
    let records = ctl::records(&started(&json!({"err": said}))?)?;
    let found =
        ctl::of_kind(&records, "long_lived_found").first().map(|r| r["body"].clone()).context("not recorded")?;
    ensure(found["action"] == "strip" && found["variables"] == json!(["DEPLOY_TOKEN"]), found)
}
