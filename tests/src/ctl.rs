//! `guardctl` as the scenarios use it: JSON in, JSON out, as root (administrator) or bob (reviewer).

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait::{output, seconds, until, until_true};

/// Between two looks at what waits.
const PAUSE: Duration = Duration::from_millis(300);

/// `guardctl` for a person; `root` is the administrator.
pub fn command(person: &str, args: &[&str]) -> Command {
    let config = match person {
        "bob" => "/etc/guard/guardctl-bob.toml",
        _ => "/etc/guard/guardctl.toml",
    };
    let mut command = Command::new("guardctl");
    command.args(["--config", config, "--output", "json"]).args(args);
    command
}

/// One answer.
pub fn json(person: &str, args: &[&str]) -> Result<Value> {
    let out = output(&mut command(person, args), seconds(60))?;
    let text = String::from_utf8_lossy(&out.stdout);
    if !out.status.success() {
        bail!(
            "guardctl {}: {} {}{}",
            args.join(" "),
            out.status,
            text.trim(),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    serde_json::from_str(&text).with_context(|| format!("guardctl {}: not JSON: {text}", args.join(" ")))
}

/// An answer of one object a line.
pub fn lines(person: &str, args: &[&str]) -> Result<Vec<Value>> {
    let out = output(&mut command(person, args), seconds(120))?;
    if !out.status.success() {
        bail!("guardctl {}: {} {}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    String::from_utf8_lossy(&out.stdout).lines().map(|line| serde_json::from_str(line).context("not JSON")).collect()
}

/// Waits until everything that the daemon has journaled so far is in the log; gives the log's size.
pub fn shipped() -> Result<u64> {
    let local = json("root", &["status", "--local"])?;
    let next = local["report"]["journal_next_seq"].as_u64().context("no journal_next_seq")?;
    let mut size = 0;
    until_true("the log holds what the journal held", seconds(60), || {
        let status = json("root", &["status"])?;
        size = status["log_size"].as_u64().unwrap_or(0);
        Ok(status["nodes"].as_array().is_some_and(|nodes| {
            nodes.iter().any(|n| n["admitted_next_seq"].as_u64().is_some_and(|admitted| admitted >= next))
        }))
    })?;
    Ok(size)
}

/// Every record of a session that is journaled by now, in log order.
pub fn records(session: &str) -> Result<Vec<Value>> {
    let size = shipped()?.to_string();
    lines("root", &["query", "--session", session, "--limit", "1000000", "--at-least", &size])
}

/// Every record from a leaf on.
pub fn records_from(leaf: u64) -> Result<Vec<Value>> {
    let size = shipped()?.to_string();
    let after = leaf.checked_sub(1).map(|l| l.to_string());
    let mut args = vec!["query", "--limit", "1000000", "--at-least", &size];
    if let Some(after) = &after {
        args.extend(["--after", after]);
    }
    lines("root", &args)
}

/// Log size now.
pub fn log_size() -> Result<u64> {
    json("root", &["status"])?["log_size"].as_u64().context("no log_size")
}

/// The next request of a session that waits.
pub fn pending(session: &str) -> Result<Value> {
    until("a request waits for review", seconds(20), || {
        let list = json("bob", &["review", "list", "--session", session])?;
        Ok(list["reviews"].as_array().and_then(|r| r.iter().find(|r| r["state"] == "pending")).cloned())
    })
}

/// Approves as bob.
pub fn approve(request: &Value, more: &[&str]) -> Result<()> {
    let id = request["request"].as_str().context("a request without id")?;
    // What critical risk takes; of a lower one nobody asks for it.
    let last = id.get(id.len().saturating_sub(6)..).unwrap_or(id);
    let mut args = vec!["review", "approve", id, "--yes", "--confirm", last, "--reason", "a test"];
    args.extend(more);
    json("bob", &args).map(|_| ())
}

/// Does something while a person approves whatever is asked in a session: policy may ask, or may not.
pub fn approving<T>(session: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let list = json("bob", &["review", "list", "--session", session]).unwrap_or_default();
                for request in list["reviews"].as_array().into_iter().flatten().filter(|r| r["state"] == "pending") {
                    let _ = approve(request, &["--scope", "root"]);
                }
                std::thread::sleep(PAUSE);
            }
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        done
    })
}

/// The log verifies.
pub fn verify() -> Result<Value> {
    let size = shipped()?;
    let found = until("a checkpoint that covers the log", seconds(20), || {
        let verified = json("root", &["log", "verify"])?;
        Ok(verified["size"].as_u64().is_some_and(|s| s >= size).then_some(verified))
    })?;
    if found["ok"] != true {
        bail!("log verify: {found}");
    }
    Ok(found)
}

/// Records of one kind.
pub fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|r| r["kind"] == kind).collect()
}

/// The judged execs (records and requests) whose program is called so.
pub fn execs_of<'a>(records: &'a [Value], argv0: &str) -> Vec<&'a Value> {
    records
        .iter()
        .filter(|r| r["kind"] == "exec" || r["kind"] == "exec_request")
        .filter(|r| r["body"]["facts"]["argv"][0] == argv0)
        .collect()
}
