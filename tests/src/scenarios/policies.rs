//! Signed policy bundles, from the admin key to a verdict.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{self, ALICE};
use crate::wait::{output, seconds, until_true};
use crate::{attacks, ctl};

const ADMIN: &str = "/var/lib/guard/collector/admin";
const FOLDER: &str = "/root/policies";

/// On top of the built-in policy, which lets anybody read these files.
const STRICT: &str = "version: 1\nextends: default\nrules:\n  - id: own.no-cat\n    tier: deny\n    \
    reason: nothing is shown here\n    when: {program: [cat]}\n    match: [\"cat README.md\"]\n";
const BROKEN: &str = "version: 1\nextends: default\nrules:\n  - id: own.broken\n    tier: perhaps\n";

fn sign(serial: u32, policy: &str, stage: &str) -> Result<String> {
    let (file, to) = (format!("{FOLDER}/team.yaml"), format!("{FOLDER}/{serial}.bundle"));
    std::fs::write(&file, policy)?;
    let args = [
        "policy",
        "sign",
        &file,
        "--admin-key",
        &format!("{ADMIN}.skey"),
        "--serial",
        &serial.to_string(),
        "--stage",
        stage,
        "--to",
        &to,
    ];
    let out = output(&mut ctl::command("admin", &args), seconds(20))?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(to)
}

fn publish(bundle: &str) -> Result<()> {
    ctl::json("admin", &["policy", "publish", bundle]).map(drop)
}

fn has(serial: u32) -> Result<()> {
    until_true(&format!("the host has bundle {serial}"), seconds(20), || {
        Ok(ctl::json("admin", &["status"])?["nodes"][0]["report"]["bundle"] == serial)
    })
}

/// The disposition of `cat /etc/hostname`, and its verdict.
fn cat() -> Result<(Value, Value)> {
    let body = cat_of("/etc/hostname")?;
    Ok((body["disposition"].clone(), body["verdict"].clone()))
}

/// The record of `cat PATH`, and of its session's start.
fn cat_of(path: &str) -> Result<Value> {
    let ended = session::run(&ALICE, &["python3", &attacks::path("try.py"), "/usr/bin/cat", path])?;
    let records = ctl::records(&ended.id)?;
    let mut body = ctl::execs_of(&records, "/usr/bin/cat").first().context("no record of cat")?["body"].clone();
    let start = records.iter().find(|r| r["kind"] == "session_start").context("no start of the session")?;
    body["session_observed_by"] = start["body"]["observed_by"].clone();
    Ok(body)
}

/// In the stage `observe` what is denied runs, and everything says so; what protects credentials and the host holds.
fn observed() -> Result<()> {
    let body = cat_of("/etc/hostname")?;
    let ran = body["disposition"] == "allowed" && body["not_enforced"] == true && body["verdict"]["tier"] == "deny";
    ensure(ran && body["observed_by"] == 2 && body["session_observed_by"] == 2, &body)?;
    let kept = cat_of("/etc/shadow")?;
    ensure(kept["disposition"] == "denied" && kept["observed_by"] == 2 && kept["not_enforced"] == false, &kept)?;
    let status = ctl::json("admin", &["status"])?;
    ensure(status["nodes"][0]["report"]["observed"][0]["agent"] == "coder", &status)?;
    let report = ctl::json("admin", &["policy", "shadow", "--agent", "coder"])?;
    ensure(report["would_deny"] == 2, &report)
}

/// In shadow what was in force goes on judging, and the bundle's verdict is recorded; observed, it judges and what it denies runs,
/// but for what protects credentials; in force it judges; a daemon that starts again
/// has it still; what does not load changes nothing, and is recorded.
pub fn policy_bundles_are_shadowed_then_enforced() -> Result<()> {
    if !Path::new(FOLDER).is_dir() {
        std::fs::create_dir_all(FOLDER)?;
    }
    let vkey = std::fs::read_to_string(format!("{ADMIN}.vkey"))?;
    let shipped = std::fs::read_to_string(guest::SHIPPED)?;
    let (collector, policy) = ("[collector]\n", "[policy]\n");
    ensure(shipped.contains(collector) && shipped.contains(policy), "the shipped configuration lacks a table")?;
    let text = shipped
        .replace(collector, &format!("{collector}admin_vkey = \"{}\"\n", vkey.trim()))
        .replace(policy, &format!("{policy}from_collector = true\n"));
    guest::stop_daemon()?;
    std::fs::write(guest::CONFIG, format!("{text}\n{}\n", guest::USUAL))?;
    guest::start_daemon()?;
    let (disposition, verdict) = cat()?;
    ensure(disposition == "allowed" && verdict["shadow"].is_null(), &verdict)?;

    publish(&sign(1, STRICT, "*=shadow")?)?;
    has(1)?;
    let (disposition, verdict) = cat()?;
    let shadow = &verdict["shadow"];
    ensure(disposition == "allowed" && shadow["tier"] == "deny" && shadow["rule"] == "own.no-cat", &verdict)?;
    let report = ctl::json("admin", &["policy", "shadow", "--agent", "coder"])?;
    ensure(report["changes"][0]["rule"] == "own.no-cat" && report["changes"][0]["count"] == 1, &report)?;

    publish(&sign(2, STRICT, "coder=observe:1h")?)?;
    has(2)?;
    observed()?;

    publish(&sign(3, STRICT, "*=enforce")?)?;
    has(3)?;
    ensure(cat()?.0 == "denied", "bundle 3 is in force")?;

    // What no host would take is not signed.
    let refused = sign(4, BROKEN, "*=enforce").err().context("a policy that does not load was signed")?;
    ensure(format!("{refused:#}").contains("perhaps"), format!("{refused:#}"))?;
    guest::stop_daemon()?;
    guest::start_daemon()?;
    has(3)?;
    ensure(cat()?.0 == "denied", "the next daemon has bundle 3 still")?;
    for name in ["policy.bundle", "policy.candidate.bundle"] {
        let _ = std::fs::remove_file(format!("/var/lib/guard/agent/{name}"));
    }
    let _ = Command::new("rm").args(["-r", FOLDER]).status();
    Ok(())
}
