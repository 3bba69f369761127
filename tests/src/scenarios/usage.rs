//! What a person sees of a governed session: output, codes, terminals, records of ordinary and odd execs.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Signal;
use sha2::{Digest, Sha256};

use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Session, Start};
use crate::wait::{output, seconds};
use crate::{attacks, ctl};

pub fn governed_exec_runs_and_is_recorded() -> Result<()> {
    let ended = session::run(&ALICE, &["python3", &attacks::path("try.py"), "/usr/bin/cat", "/etc/hostname"])?;
    ensure(ended.code == 0, &ended)?;
    ensure(ended.out.contains("guest") && ended.out.contains("ran 0"), &ended)?;
    let records = ctl::records(&ended.id)?;
    for kind in ["session_start", "exec", "exec_outcome", "session_end"] {
        ensure(!ctl::of_kind(&records, kind).is_empty(), format!("no {kind} among {} records", records.len()))?;
    }
    let cat = ctl::execs_of(&records, "/usr/bin/cat");
    let cat = cat.first().context("no record of cat")?;
    let body = &cat["body"];
    ensure(body["disposition"] == "allowed" && body["verdict"]["tier"] == "allow", body)?;
    ensure(body["facts"]["argv"][1] == "/etc/hostname" && body["facts"]["cwd"] == "/home/alice", body)?;
    let digest = hex::encode(Sha256::digest(std::fs::read("/usr/bin/cat")?));
    ensure(body["facts"]["files"][0]["sha256"] == digest.as_str(), "the digest is not that of /usr/bin/cat")?;
    let outcome = records.iter().find(|r| r["kind"] == "exec_outcome" && r["body"]["exec"] == body["facts"]["exec"]);
    let outcome = outcome.context("no outcome of cat")?;
    ensure(outcome["body"]["started"] == true && outcome["body"]["exit_code"] == 0, outcome)
}

pub fn exit_codes_are_those_of_the_command() -> Result<()> {
    let precious = guest::fresh_dir("precious")?;
    for (argv, code) in [
        (vec!["bash", "-c", "exit 7"], 7),
        (vec!["bash", "-c", "kill -TERM $$"], 143),
        (vec!["rm", "-rf", precious.as_str()], 126),
    ] {
        let out = output(&mut session::command(&ALICE, &argv), seconds(40))?;
        ensure(out.status.code() == Some(code), format!("{argv:?}: {} instead of {code}", out.status))?;
    }
    ensure(std::path::Path::new(&precious).exists(), "rm ran")?;
    let session = Session::start(&ALICE, &["sleep", "100"])?;
    guest::signal(session.pid(), Signal::TERM)?;
    let ended = session.wait(seconds(20))?;
    ensure(ended.code == 143, format!("a forwarded SIGTERM: {}", ended.code))
}

pub fn terminal_and_pipes_are_relayed() -> Result<()> {
    let mut session = Session::start(&Start { stdin: true, ..ALICE }, &["cat"])?;
    session.stdin().context("no stdin")?.write_all(b"through a pipe\n")?;
    let ended = session.wait(seconds(20))?;
    ensure(ended.out == "through a pipe\n" && ended.code == 0, &ended)?;
    let typed = "guardctl --config /etc/guard/guardctl.toml run --agent coder -- tty";
    let mut command = session::as_user("alice", "/home/alice");
    let out = output(command.args(["script", "-qec", typed, "/dev/null"]), seconds(40))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure(text.contains("/dev/pts/"), format!("tty printed {text:?}"))
}

pub fn path_probes_are_folded() -> Result<()> {
    let ended = session::run(&ALICE, &["python3", &attacks::path("probes.py")])?;
    let records = ctl::records(&ended.id)?;
    let probes: Vec<_> = ctl::of_kind(&records, "exec_unjudged")
        .into_iter()
        .filter(|r| r["body"]["path"].as_str().is_some_and(|p| p.starts_with("/nowhere/")))
        .collect();
    ensure(probes.len() == 1, format!("{} records instead of one", probes.len()))?;
    let body = probes.first().map(|p| &p["body"]).context("no probe")?;
    ensure(body["probes"] == 5 && body["errno"] == 2 && body["disposition"] == "failed", body)?;
    ensure(body["argv_trust"] == "untrusted", body)?;
    ensure(!ctl::execs_of(&records, "true").is_empty(), "the exec that the probes led to has no record")
}

pub fn long_argv_is_judged_and_recorded() -> Result<()> {
    let session = Session::attack(&ALICE, "long_argv.py", &[])?;
    let id = session.id.clone();
    // Whatever policy says of it, a person can let it run.
    let ended = ctl::approving(&id, || session.wait(seconds(50)))?;
    ensure(ended.out.contains("ran 0"), &ended)?;
    let records = ctl::records(&ended.id)?;
    let exec = ctl::execs_of(&records, "true");
    let facts = exec.first().map(|r| &r["body"]["facts"]).context("no record of the long exec")?;
    let mut hash = Sha256::new();
    hash.update(b"true\0");
    for letter in b'a'..b'a' + 15 {
        hash.update(vec![letter; 130_000]);
        hash.update([0]);
    }
    ensure(facts["argv_count"] == 16, format!("argv_count {}", facts["argv_count"]))?;
    let digest = hex::encode(hash.finalize());
    ensure(facts["argv_sha256"] == digest.as_str(), "the digest is not that of the complete argv")?;
    ensure(facts["argv_omitted"].as_u64().is_some_and(|n| n > 0), "a record cannot hold 2 MB, and does not say so")
}

pub fn bad_policy_is_refused_with_line() -> Result<()> {
    let bad = "/etc/guard/bad.yaml";
    std::fs::write(bad, "version: 1\nrules:\n  - id: x\n    tier: perhaps\n    no_such_key: [\n")?;
    let shipped = std::fs::read_to_string("/mnt/payload/etc/agent.toml")?;
    let config = "/etc/guard/agent-bad.toml";
    std::fs::write(config, shipped.replace("files = []", "files = [\"/etc/guard/bad.yaml\"]"))?;
    guest::stop_daemon()?;
    for subcommand in ["check", "run"] {
        let out = output(Command::new("guard-agent").args([subcommand, "--config", config]), seconds(40))?;
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure(out.status.code() == Some(78), format!("{subcommand}: {} {text}", out.status))?;
        ensure(text.contains("bad.yaml:"), format!("{subcommand} names no line: {text}"))?;
    }
    ensure(guest::supervisor().is_err(), "something was started")?;
    ensure(ctl::json("root", &["status", "--local"]).is_err(), "a control socket answers")?;
    guest::start_daemon()
}
