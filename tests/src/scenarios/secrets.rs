//! Secrets in arguments are written down nowhere; what a record cannot hold lies beside the log and can be erased.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Session};
use crate::wait::{output, seconds};
use crate::{attacks, ctl};

/// What no file of Guard's may hold.
const SECRET: &str = "hunter22-never-written";
/// Everything that Guard writes: journal, log, index, blobs, state; and its output.
const WRITTEN: [&str; 2] = ["/var/lib/guard", "/run/guard"];

pub fn secrets_in_arguments_are_written_nowhere() -> Result<()> {
    let word = format!("--password={SECRET}");
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/true", &word, &format!("https://bob:{SECRET}@host/")])?;
    let request = ctl::pending(&session.id)?;
    ensure(!request.to_string().contains(SECRET), "a reviewer is shown the secret")?;
    ctl::approve(&request, &[])?;
    let ended = session.wait(seconds(60))?;
    let records = ctl::records(&ended.id)?;
    let exec = ctl::execs_of(&records, "/usr/bin/true");
    let facts = exec.first().map(|r| &r["body"]["facts"]).context("no record of true")?;
    ensure(facts["argv"][1] == "--password=***" && facts["argv"][2] == "https://bob:***@host/", facts)?;
    ensure(facts["masked"].as_array().is_some_and(|m| m.len() == 2), facts)?;
    written_nowhere()?;
    erased_on_the_record(facts)
}

/// The start of the session has it in its arguments too.
fn written_nowhere() -> Result<()> {
    ctl::shipped()?;
    for place in WRITTEN {
        let found = output(Command::new("grep").args(["-rlaF", SECRET, place]), seconds(60))?;
        let files = String::from_utf8_lossy(&found.stdout).into_owned();
        ensure(files.trim().is_empty(), format!("the secret is in {files}"))?;
    }
    Ok(())
}

fn erased_on_the_record(facts: &Value) -> Result<()> {
    let id = facts["blob"].as_str().context("no blob")?;
    let blob = ctl::json("root", &["blob", "show", id])?;
    let salt = hex::decode(blob["salt"].as_str().context("no salt")?)?;
    let digest = hex::encode(Sha256::new_with_prefix(&salt).chain_update(SECRET).finalize());
    ensure(blob["secrets"][0]["sha256"] == digest.as_str(), &blob)?;
    let erase = ["blob", "erase", id, "--reason", "a test"];
    ensure(ctl::json("bob", &erase).is_err(), "a reviewer may erase")?;
    ctl::json("root", &erase)?;
    ensure(ctl::json("root", &["blob", "show", id]).is_err(), "it is still there")?;
    let name = format!("/var/lib/guard/collector/store/blobs/{}/{id}", id.get(..2).unwrap_or_default());
    ensure(!Path::new(&name).exists(), format!("{name} is still there"))?;
    let verified = ctl::verify()?;
    ensure(verified["ok"] == true, verified)
}

pub fn long_arguments_are_kept_whole_beside_the_log() -> Result<()> {
    // Else the host keeps a copy for a successor of the log.
    guest::restart_with_journal("keep_hours = 0")?;
    let session = Session::attack(&ALICE, "long_argv.py", &[])?;
    let id = session.id.clone();
    let ended = ctl::approving(&id, || session.wait(seconds(50)))?;
    let records = ctl::records(&ended.id)?;
    let exec = ctl::execs_of(&records, "true");
    let facts = exec.first().map(|r| &r["body"]["facts"]).context("no record of the long exec")?;
    ctl::shipped()?;
    let blob = ctl::json("root", &["blob", "show", facts["blob"].as_str().context("no blob")?])?;
    let mut hash = Sha256::new();
    for text in blob["argv"].as_array().context("no arguments in the blob")? {
        hash.update(text.as_str().context("not a text")?);
        hash.update([0]);
    }
    ensure(facts["argv_sha256"] == hex::encode(hash.finalize()).as_str(), "the blob is not what the record is about")?;
    ensure(facts["argv_count"] == blob["argv"].as_array().map_or(0, Vec::len), "arguments are missing")?;
    let left = std::fs::read_dir("/var/lib/guard/journal/blobs")?.count();
    ensure(left == 0, format!("{left} blobs are still on the host after they were shipped"))
}

/// Arguments that no record can hold, and no place to keep them: no exec. Others run on.
pub fn p2_arguments_that_cannot_be_kept() -> Result<()> {
    const BLOBS: &str = "/var/lib/guard/journal/blobs";
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "ro", "tmpfs", BLOBS]).status()?;
    ensure(mounted.success(), "the folder of blobs could not be made read-only")?;
    let tried = without_room();
    let free = Command::new("umount").arg(BLOBS).status()?;
    ensure(free.success(), "the folder of blobs stays read-only")?;
    tried?;
    let again = attempt("/bin/echo", &["--token", SECRET])?;
    ensure(again.out.ends_with("ran 0\n"), format!("with room again: {again}"))
}

fn without_room() -> Result<()> {
    let refused = attempt("/bin/echo", &["--token", SECRET])?;
    ensure(refused.out.trim() == "errno 1", &refused)?;
    let records = ctl::records(&refused.id)?;
    let exec = ctl::execs_of(&records, "/bin/echo");
    let body = exec.first().map(|r| &r["body"]).context("the refusal has no record")?;
    let rule = body["verdict"]["reasons"][0]["rule"].as_str().unwrap_or_default();
    ensure(body["disposition"] == "denied" && rule == "builtin.not-kept", body)?;
    ensure(!body.to_string().contains(SECRET), "the record of the refusal holds the secret")?;
    let ordinary = attempt("/usr/bin/true", &[])?;
    ensure(ordinary.out.trim() == "ran 0", format!("an exec that needs no blob: {ordinary}"))
}

/// One exec, its arguments given through a file: the session's own start must not need a blob.
fn attempt(program: &str, args: &[&str]) -> Result<session::Ended> {
    let dir = guest::fresh_dir("kept")?;
    let list = format!("{dir}/command");
    std::fs::write(&list, [&[program], args].concat().join("\n"))?;
    session::run(&ALICE, &["python3", &attacks::path("try_listed.py"), &list])
}
