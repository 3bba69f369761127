//! The life of a session: renewed by those who may, up to its longest life, by no restart; what becomes of it afterwards.

use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::fail_closed::now;
use super::life::{Down, Live};
use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Start};
use crate::wait::{output, seconds, until_true};

/// `guardctl session …` as a user of the host.
fn ask(user: &str, args: &[&str]) -> Result<Output> {
    let mut command = session::as_user(user, "/");
    command.args(["guardctl", "--config", "/etc/guard/guardctl.toml", "--output", "json", "session"]).args(args);
    output(&mut command, seconds(60))
}

/// Renews as a user of the host.
pub(super) fn renewed(user: &str, id: &str, ttl: &str) -> Result<()> {
    let out = ask(user, &["renew", id, "--ttl", ttl])?;
    ensure(out.status.success(), format!("renewal by {user}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Refused with this exit code and these words.
fn refused(user: &str, args: &[&str], code: i32, words: &str) -> Result<()> {
    let out = ask(user, args)?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let good = out.status.code() == Some(code) && said.contains(words);
    ensure(good, format!("{args:?} by {user} ended with {}: {said}", out.status))
}

/// What is kept of the one open session.
fn kept() -> Result<(std::path::PathBuf, Value)> {
    let entries = std::fs::read_dir("/var/lib/guard/agent/sessions")?.flatten().map(|e| e.path());
    let path = entries.into_iter().find(|p| p.extension().is_none()).context("no session is kept")?;
    let value = serde_json::from_slice(&std::fs::read(&path)?)?;
    Ok((path, value))
}

/// Has the next daemon find what one leaves that died in the middle of a renewal.
fn cut_short(change: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let down = Down::new()?;
    let (path, mut value) = kept()?;
    change(&mut value["state"])?;
    std::fs::write(path, serde_json::to_vec(&value)?)?;
    down.up()
}

/// The end of the one open session, in boot time.
pub(super) fn expiry() -> Result<u64> {
    kept()?.1["state"]["expires_boot_ns"].as_u64().context("no end is kept")
}

fn of<'a>(records: &'a [Value], kind: &str, what: &str) -> Vec<&'a Value> {
    ctl::of_kind(records, kind).into_iter().map(|r| &r["body"]).filter(|b| b["what"] == what).collect()
}

pub fn session_renewed_and_ended() -> Result<()> {
    // Restarts take long under emulation: only what is to expire has a short life.
    let settings = "long_lived = \"refuse\"\nenv_keep = [\"PATH\", \"LANG\", \"DEPLOY_TOKEN\"]\ndefault_ttl_seconds = 300\nmax_ttl_seconds = 400\nmax_life_seconds = 405\non_expiry = \"freeze\"\nexpiry_grace_seconds = 1";
    guest::restart_with_session(settings, "")?;
    keys_without_an_end_are_refused()?;
    let live = Live::start_with("300s", &["--ticket", "OPS-7", "--job", "nightly"])?;
    let id = live.session.id.clone();
    who_may_renew(&live, &id)?;
    no_restart_extends(&live, &id)?;
    // More than five seconds are gone by now: this would be beyond the longest life.
    refused("alice", &["renew", &id, "--ttl", "400s"], 77, "at most 405 s")?;
    ended_by_hand(live, &id)?;
    let live = Live::start("20s")?;
    let id = live.session.id.clone();
    expired_with_the_daemon_killed(live, &id)
}

/// Named in the refusal, never shown.
fn keys_without_an_end_are_refused() -> Result<()> {
    let key = "DEPLOY_TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ012345";
    let start = Start { ttl: "300s", ..ALICE };
    let out = output(&mut session::command_with(&start, &[key], &["true"]), seconds(60))?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure(out.status.code() == Some(77) && said.contains("$DEPLOY_TOKEN") && !said.contains("ghp_"), said)
}

fn who_may_renew(live: &Live, id: &str) -> Result<()> {
    let before = expiry()?;
    refused("bob", &["renew", id], 77, "is alice's")?;
    refused("alice", &["renew", id, "--ttl", "401s"], 64, "400 s allowed")?;
    ensure(expiry()? == before, "a refused renewal moved the end")?;
    renewed("alice", id, "350s")?;
    renewed("root", id, "380s")?;
    ensure(expiry()? > before, "the later end is not kept")?;
    let told = || live.session.events().iter().filter(|e| e["kind"] == "renewed").count();
    until_true("guardctl hears of both", seconds(10), || Ok(told() == 2))?;
    let records = ctl::records(id)?;
    let who: Vec<_> = of(&records, "session_renewed", "renewed").iter().map(|b| b["by"].clone()).collect();
    ensure(who == ["alice", "root"], format!("renewed by {who:?}"))?;
    let start = ctl::of_kind(&records, "session_start").first().map(|r| r["body"].clone()).context("no start")?;
    ensure(start["ticket"] == "OPS-7" && start["job"] == "nightly", start)
}

/// Whatever a daemon that died in a renewal has left, the next one finds one of the two ends, and says which in the log.
fn no_restart_extends(live: &Live, id: &str) -> Result<()> {
    let end = expiry()?;
    cut_short(|state| {
        state["renewal"] = serde_json::json!({"boot_ns": end + 60_000_000_000_u64, "unix_ns": 1});
        Ok(())
    })?;
    live.runs_after(now())?;
    ensure(expiry()? == end, "a renewal that never reached the kernel moved the end")?;
    let records = ctl::records(id)?;
    ensure(of(&records, "session_renewed", "not_in_force").len() == 1, "nothing says that it is not in force")?;
    cut_short(|state| {
        state["renewal"] = serde_json::json!({"boot_ns": end, "unix_ns": state["expires_unix_ns"]});
        state["expires_boot_ns"] = (end - 60_000_000_000).into();
        Ok(())
    })?;
    live.runs_after(now())?;
    ensure(expiry()? == end, "a renewal that the kernel has was lost")?;
    let last = ctl::records(id)?;
    ensure(of(&last, "session_renewed", "not_in_force").len() == 1, "one that is in force is said not to be")
}

fn expired_with_the_daemon_killed(live: Live, id: &str) -> Result<()> {
    let down = Down::new()?;
    let left = expiry()?.saturating_sub(boot_ns());
    std::thread::sleep(Duration::from_nanos(left) + seconds(2));
    live.nothing_runs(5)?;
    down.up()?;
    refused("alice", &["renew", id], 1, "has expired")?;
    let events =
        || live.session.events().iter().filter_map(|e| e["kind"].as_str().map(str::to_owned)).collect::<Vec<_>>();
    until_true("guardctl hears that it is frozen", seconds(30), || Ok(events().iter().any(|k| k == "frozen")))?;
    let size = std::fs::metadata(&live.log)?.len();
    std::thread::sleep(seconds(2));
    ensure(std::fs::metadata(&live.log)?.len() == size, "a process of it still runs")?;
    ensure(guest::alive(live.pid)?, "it is frozen, not killed")?;
    ended_by_hand(live, id)?;
    let records = ctl::records(id)?;
    for what in ["expired", "frozen"] {
        ensure(of(&records, "session_expired", what).len() == 1, format!("records of `{what}`"))?;
    }
    Ok(())
}

fn ended_by_hand(live: Live, id: &str) -> Result<()> {
    refused("bob", &["end", id], 77, "is alice's")?;
    let out = ask("alice", &["end", id, "--reason", "done"])?;
    ensure(out.status.success(), String::from_utf8_lossy(&out.stderr))?;
    let pid = live.pid;
    let ended = live.ended()?;
    ensure(ended.code == 137 && !guest::alive(pid)?, &ended)?;
    let records = ctl::records(id)?;
    let end = ctl::of_kind(&records, "session_end").first().map(|r| r["body"].clone()).context("no end")?;
    ensure(end["reason"] == "ended" && end["detail"] == "by alice: done", end)
}

/// Boot time.
pub(super) fn boot_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}
