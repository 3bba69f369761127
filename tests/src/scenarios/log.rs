//! P4: no silent loss, whatever happens to the collector.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::guest::{self, ensure};
use crate::session::{ALICE, Session};
use crate::wait::{seconds, until_true};
use crate::{attacks, ctl, session};

/// Every host's records carry every number once, in order.
pub fn sequences_are_whole(from: u64) -> Result<()> {
    let mut next: HashMap<String, u64> = HashMap::new();
    for record in ctl::records_from(from)? {
        let host = record["host"].as_str().context("a record without host")?.to_owned();
        let seq = record["seq"].as_u64().context("a record without number")?;
        if let Some(expected) = next.get(&host) {
            ensure(seq == *expected, format!("host {host}: number {seq} where {expected} is due"))?;
        }
        ensure(record["kind"] != "admit_finding" || record["body"]["what"] == "bound", &record)?;
        next.insert(host, seq + 1);
    }
    ensure(!next.is_empty(), "no record at all")
}

pub fn p4_collector_killed_again_and_again() -> Result<()> {
    let from = ctl::log_size()?;
    let script = attacks::path("try.py");
    let session = Session::start(
        &ALICE,
        &["python3", &script, "--times", "150", "--pause", "0.05", "/usr/bin/cat", "/etc/hostname"],
    )?;
    for _ in 0..4 {
        std::thread::sleep(seconds(1));
        guest::kill_collector()?;
        guest::start_collector()?;
    }
    let ended = session.wait(seconds(120))?;
    let ran = ended.out.lines().filter(|l| *l == "ran 0").count();
    ensure(ran == 150, format!("{ran} of 150 execs ran while the collector came and went"))?;
    guest::enforcing()?;
    ctl::verify()?;
    let records = ctl::records(&ended.id)?;
    let recorded = ctl::execs_of(&records, "/usr/bin/cat").len();
    ensure(recorded == 150, format!("{recorded} records of 150 execs"))?;
    sequences_are_whole(from)
}

pub fn p4_collector_absent_then_back() -> Result<()> {
    let from = ctl::log_size()?;
    let dir = guest::fresh_dir("absent")?;
    let (script, made) = (attacks::path("try.py"), format!("{dir}/made"));
    guest::kill_collector()?;
    let allowed = session::run(&ALICE, &["python3", &script, "--times", "20", "/usr/bin/cat", "/etc/hostname"])?;
    let ran = allowed.out.lines().filter(|l| *l == "ran 0").count();
    ensure(ran == 20, format!("{ran} of 20 allowed execs ran without a collector: {allowed}"))?;
    let asked = Session::start(&ALICE, &["python3", &script, "/usr/bin/mkdir", &made])?.wait(seconds(40))?;
    ensure(asked.out.trim() == "errno 1", format!("nobody can be asked, yet: {}", asked.out))?;
    let local = ctl::json("root", &["status", "--local"])?;
    ensure(local["collector_connected"] == false, "the daemon believes that it is connected")?;
    ensure(local["report"]["journal_backlog"].as_u64().is_some_and(|b| b > 20), "no backlog")?;
    guest::start_collector()?;
    guest::enforcing()?;
    until_true("the backlog is shipped", seconds(40), || {
        Ok(ctl::json("root", &["status", "--local"])?["report"]["journal_backlog"] == 0)
    })?;
    ctl::verify()?;
    sequences_are_whole(from)?;
    let records = ctl::records(&allowed.id)?;
    ensure(ctl::execs_of(&records, "/usr/bin/cat").len() == 20, "records are missing")
}

/// No room for the record means no exec, until the collector has taken what is there.
pub fn p1_no_room_no_exec() -> Result<()> {
    guest::configure(guest::USUAL)?;
    let small = std::fs::read_to_string(guest::CONFIG)?;
    guest::stop_daemon()?;
    std::fs::write(
        guest::CONFIG,
        small.replace("/var/lib/guard/journal\"", "/var/lib/guard/journal-small\"\nmax_mib = 4"),
    )?;
    let _ = std::fs::remove_dir_all("/var/lib/guard/journal-small");
    guest::start_daemon()?;
    let from = ctl::log_size()?;
    guest::kill_collector()?;
    let (script, large) = (attacks::path("try.py"), "x".repeat(20_000));
    let full =
        Session::start(&ALICE, &["python3", &script, "--times", "250", "/usr/bin/true", &large])?.wait(seconds(90))?;
    let ran = full.out.lines().filter(|l| *l == "ran 0").count();
    let refused = full.out.lines().skip(ran).filter(|l| *l == "errno 1").count();
    ensure(ran > 10 && refused > 10 && ran + refused == 250, format!("{ran} ran, then {refused} were refused"))?;
    guest::start_collector()?;
    guest::enforcing()?;
    until_true("the backlog is shipped", seconds(40), || {
        Ok(ctl::json("root", &["status", "--local"])?["report"]["journal_backlog"] == 0)
    })?;
    let recorded = ctl::execs_of(&ctl::records(&full.id)?, "/usr/bin/true").len();
    ensure(recorded >= ran, format!("{recorded} records of {ran} execs"))?;
    let again = session::run(&ALICE, &["python3", &script, "/usr/bin/true", &large])?;
    ensure(again.out.trim() == "ran 0", format!("with room again: {again}"))?;
    ctl::verify()?;
    sequences_are_whole(from)
}

/// The whole collector put back to an older copy, its lock too, so that nothing on its own machine can tell.
pub fn p5_older_copy_of_the_log_is_not_believed() -> Result<()> {
    const COLLECTOR: &str = "/var/lib/guard/collector";
    let (older, newest) = ("/var/lib/guard/collector-older", "/var/lib/guard/collector-newest");
    guest::kill_collector()?;
    copy(COLLECTOR, older)?;
    guest::start_collector()?;
    guest::enforcing()?;
    let ran = session::run(&ALICE, &["true"])?;
    ctl::records(&ran.id)?;
    until_true("what ran is in the public checkpoint", seconds(30), || {
        let status = ctl::json("root", &["status"])?;
        Ok(status["checkpoint_size"] == status["log_size"])
    })?;
    // One more, so that the host has seen that checkpoint.
    session::run(&ALICE, &["true"])?;
    ctl::shipped()?;
    guest::kill_collector()?;
    std::fs::rename(COLLECTOR, newest)?;
    std::fs::rename(older, COLLECTOR)?;
    guest::start_collector()?;
    let refused = until_refused();
    guest::kill_collector()?;
    std::fs::remove_dir_all(COLLECTOR)?;
    std::fs::rename(newest, COLLECTOR)?;
    guest::start_collector()?;
    refused?;
    guest::enforcing()?;
    ctl::shipped()?;
    let said = ctl::records_from(0)?.into_iter().filter(|r| r["kind"] == "checkpoint_refused").collect::<Vec<_>>();
    ensure(said.len() == 1 && said.iter().all(|r| r["body"]["what"] == "rollback"), format!("{said:?}"))?;
    ctl::verify().map(drop)
}

fn copy(from: &str, to: &str) -> Result<()> {
    let _ = std::fs::remove_dir_all(to);
    let copied = std::process::Command::new("cp").args(["-a", from, to]).status()?;
    ensure(copied.success(), format!("{from} could not be copied"))
}

/// The host says why it does not ship, and keeps what it has.
fn until_refused() -> Result<()> {
    until_true("the host refuses the older copy", seconds(40), || {
        let local = ctl::json("root", &["status", "--local"])?;
        let why = local["collector_error"].as_str().unwrap_or_default();
        Ok(why.contains("is not believed (rollback)") && local["collector_connected"] == false)
    })?;
    session::run(&ALICE, &["true"])?;
    let local = ctl::json("root", &["status", "--local"])?;
    ensure(local["report"]["journal_backlog"].as_u64().is_some_and(|b| b > 0), "records went to the older copy")
}
