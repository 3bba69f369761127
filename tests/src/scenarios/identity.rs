//! P7: every verdict has an owner. P8: Guard is honest about itself.

use std::process::Command;

use anyhow::{Context, Result};

use crate::guest::{self, ensure};
use crate::session::{self, ALICE, ROOT, Session, Start};
use crate::wait::{output, seconds, until_true};
use crate::{attacks, ctl};

pub fn p7_identity() -> Result<()> {
    let dir = guest::fresh_dir("owned")?;
    let made = format!("{dir}/made");
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", &made])?;
    ctl::approve(&ctl::pending(&session.id)?, &[])?;
    let ended = session.wait(seconds(30))?;
    let records = ctl::records(&ended.id)?;
    ensure(records.len() >= 6, format!("only {} records", records.len()))?;
    for record in records.iter().filter(|r| r["kind"] != "review_decision") {
        let who = &record["body"]["identity"];
        ensure(who["initiator"] == "alice" && who["initiator_uid"] == 1000, record)?;
        ensure(who["agent"] == "coder" && who["session"] == ended.id.as_str(), record)?;
        ensure(who["instance"].as_str().is_some_and(|i| i.starts_with("spiffe://")), record)?;
        ensure(who["rights_digest"].as_str().is_some_and(|d| d.len() == 64), record)?;
        ensure(record["session"] == ended.id.as_str(), record)?;
    }
    for exec in ctl::execs_of(&records, "/usr/bin/mkdir") {
        ensure(exec["body"]["facts"]["uid"] == 1000, exec)?;
        ensure(exec["body"]["facts"]["ancestry"][0]["pid"].as_u64().is_some_and(|p| p > 1), exec)?;
    }
    let decision = ctl::of_kind(&records, "exec_decision");
    let decision = decision.first().context("no decision")?;
    ensure(decision["body"]["reviewer"] == "bob" && decision["body"]["disposition"] == "approved", decision)?;
    started_for_another()
}

fn started_for_another() -> Result<()> {
    let ended = session::run(&Start { options: &["--for", "alice"], cwd: "/", ..ROOT }, &["id", "-u"])?;
    ensure(ended.out.trim() == "1000", format!("uid of a session for alice: {ended}"))?;
    let records = ctl::records(&ended.id)?;
    let start = ctl::of_kind(&records, "session_start");
    let who = start.first().map(|r| &r["body"]["identity"]).context("no start")?;
    ensure(who["initiator"] == "alice" && who["started_by"] == "root", who)?;
    let refused =
        output(&mut session::command(&Start { options: &["--for", "bob"], ..ALICE }, &["true"]), seconds(30))?;
    ensure(refused.status.code() == Some(77), format!("alice started a session for bob: {}", refused.status))
}

pub fn p7_initiator_does_not_approve() -> Result<()> {
    let made = "/home/bob/made";
    let session =
        Session::attack(&Start { user: "bob", cwd: "/home/bob", ..ALICE }, "try.py", &["/usr/bin/mkdir", made])?;
    let request = ctl::pending(&session.id)?;
    ensure(ctl::approve(&request, &[]).is_err(), "the initiator approved their own request")?;
    let id = request["request"].as_str().context("no id")?;
    ctl::json("root", &["review", "deny", id, "--reason", "a test"])?;
    let ended = session.wait(seconds(30))?;
    ensure(ended.out.trim() == "errno 1", &ended)?;
    ensure(!std::path::Path::new(made).exists(), "it ran")
}

fn local_mode() -> Result<String> {
    let status = ctl::json("root", &["status", "--local"])?;
    Ok(status["report"]["mode"].as_str().unwrap_or_default().to_owned())
}

pub fn p8_status_is_measured() -> Result<()> {
    ensure(local_mode()? == "enforcing", "not enforcing at the start")?;
    let stop = ["guard-agent", "emergency-stop", "--config", guest::CONFIG, "--reason", "a test"];
    let mut alice = session::as_user("alice", "/home/alice");
    let refused = output(alice.args(stop), seconds(30))?;
    ensure(!refused.status.success(), "alice may lift enforcement")?;
    ensure(local_mode()? == "enforcing", "alice lifted enforcement")?;
    let from = ctl::log_size()?;
    let done = output(Command::new("guard-agent").args(stop.get(1..).unwrap_or_default()), seconds(30))?;
    ensure(done.status.success(), format!("emergency-stop: {}", String::from_utf8_lossy(&done.stderr)))?;
    until_true("status says that enforcement is lifted", seconds(20), || Ok(local_mode()? == "lifted"))?;
    until_true("the collector's status too", seconds(20), || {
        let status = ctl::json("root", &["status"])?;
        Ok(status["nodes"].as_array().is_some_and(|n| n.iter().any(|n| n["report"]["mode"] == "lifted")))
    })?;
    let records = ctl::records_from(from)?;
    let stop = ctl::of_kind(&records, "emergency_stop");
    let stop = stop.first().context("the emergency stop is not recorded")?;
    ensure(stop["body"]["uid"] == 0 && stop["body"]["reason"] == "a test", stop)?;
    guest::restart_daemon(guest::USUAL).context("enforcing again after a restart")?;
    let ended = session::run(&ALICE, &["python3", &attacks::path("try.py"), "/usr/bin/true"])?;
    ensure(ended.out.trim() == "ran 0", &ended)
}
