//! P7: what a session may request is what the roles of its agent and of its initiator both allow, from its start to its end.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Session, Start};
use crate::wait::{output, seconds, until_true};

const FILE: &str = "/etc/guard/roles.yaml";
/// The agent's role has no fs.write.
const ROLES: &str = "version: 1
roles:
  developer: {request: ['*']}
  tool: {request: [unknown, info, 'host.*', fs.read, fs.list, 'vcs.*', 'code.*', shell]}
people: {alice: [developer]}
agents: {coder: [tool]}
";
/// Runs each line of its input and says how that ended.
const LINES: &str = "import subprocess, sys
for line in sys.stdin:
    try:
        print('ran', subprocess.run(line.split()).returncode, line.split()[-1], flush=True)
    except OSError as e:
        print('errno', e.errno, line.split()[-1], flush=True)
";

fn error() -> Result<String> {
    Ok(ctl::json("root", &["status", "--local"])?["report"]["policy_error"].as_str().unwrap_or_default().to_owned())
}

fn reload(text: &str) -> Result<()> {
    std::fs::write(FILE, text)?;
    guest::signal(guest::supervisor()?, Signal::HUP)
}

pub fn p7_roles_limit_a_session() -> Result<()> {
    std::fs::write(FILE, ROLES)?;
    guest::restart_daemon(&format!("{}\n[roles]\nfile = \"{FILE}\"", guest::USUAL))?;
    let made = format!("{}/made", guest::fresh_dir("roles")?);
    let mut session = Session::start(&Start { stdin: true, ..ALICE }, &["python3", "-c", LINES])?;
    let mut stdin = session.stdin().context("no stdin")?;
    writeln!(stdin, "/usr/bin/mkdir {made}\n/usr/bin/true one")?;
    session.line(&format!("errno 1 {made}"), seconds(30))?;
    session.line("ran 0 one", seconds(30))?;
    // Neither a wider file nor the next daemon widens what has started.
    reload(&ROLES.replace("[unknown,", "['*', unknown,"))?;
    guest::signal(guest::daemon()?, Signal::KILL)?;
    guest::enforcing()?;
    writeln!(stdin, "/usr/bin/mkdir {made}2\n/usr/bin/true two")?;
    session.line(&format!("errno 1 {made}2"), seconds(30))?;
    session.line("ran 0 two", seconds(30))?;
    drop(stdin);
    let ended = session.wait(seconds(30))?;
    ensure(!Path::new(&made).exists() && !Path::new(&format!("{made}2")).exists(), "a mkdir ran")?;
    recorded(&ctl::records(&ended.id)?)?;
    refused(&made)
}

/// The first record holds the whole set; each refusal says whose role lacks what, and nobody was asked.
fn recorded(records: &[Value]) -> Result<()> {
    let start = ctl::of_kind(records, "session_start");
    let start = start.first().map(|r| &r["body"]).context("no start")?;
    let (roles, categories) = (&start["roles"], &start["identity"]["categories"]);
    ensure(roles["initiator_roles"][0] == "developer" && roles["agent_roles"][0] == "tool", start)?;
    ensure(roles["digest"] == start["identity"]["roles_digest"], start)?;
    let has = |list: &Value, name: &str| list.as_array().is_some_and(|l| l.iter().any(|c| c == name));
    ensure(has(categories, "fs.read") && !has(categories, "fs.write"), start)?;
    ensure(has(&roles["initiator_categories"], "fs.write") && !has(&roles["agent_categories"], "fs.write"), start)?;
    ensure(ctl::of_kind(records, "exec_request").is_empty(), "somebody was asked")?;
    let denied = ctl::execs_of(records, "/usr/bin/mkdir");
    ensure(denied.len() == 2, format!("{} records of two mkdirs", denied.len()))?;
    for exec in denied {
        let reason = &exec["body"]["verdict"]["reasons"][0];
        ensure(exec["body"]["disposition"] == "denied" && reason["rule"] == "roles.category", exec)?;
        let text = "the session may not request fs.write: the role `tool` of agent coder does not allow it";
        ensure(reason["text"] == text, reason)?;
    }
    Ok(())
}

/// Without a role there is no session, and a wrong file changes nothing but what `status` says.
fn refused(made: &str) -> Result<()> {
    let bob = Start { user: "bob", cwd: "/home/bob", ..ALICE };
    let out = output(&mut session::command(&bob, &["/usr/bin/true"]), seconds(30))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure(out.status.code() == Some(77) && said.contains("bob has no role on this host"), &said)?;
    let others = Start { options: &["--for", "bob"], ..ALICE };
    let out = output(&mut session::command(&others, &["/usr/bin/true"]), seconds(30))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure(out.status.code() == Some(77) && said.contains("alice may not start sessions for bob"), &said)?;
    reload("version: 1\nroles: {x: {request: [fs.raed]}}\n")?;
    until_true("status shows the wrong file", seconds(20), || Ok(error()?.contains("roles.yaml:2:")))?;
    // The file before it is in force: it gives the agent everything, so that a person is asked.
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", made])?;
    ctl::approve(&ctl::pending(&session.id)?, &[])?;
    ensure(session.wait(seconds(30))?.out.trim() == "ran 0", "the approved exec did not run")?;
    reload(ROLES)?;
    until_true("status shows no error", seconds(20), || Ok(error()?.is_empty()))
}
