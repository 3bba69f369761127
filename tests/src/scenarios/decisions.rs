//! P7: an approval is what a reviewer signed with a key that this host knows. The guest's collector has no role file and asks
//! for no signature, so it hands on what one in other hands would.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{ALICE, Session, Start};
use crate::wait::{seconds, until_true};

const ROLES: &str = "/etc/guard/roles.yaml";
const CONFIG: &str = "/etc/guard/guardctl-bob.toml";
const KEY: &str = "/run/guard-test-review.key";
/// Runs each line of its input and says how that ended.
const LINES: &str = "import subprocess, sys
for line in sys.stdin:
    try:
        print('ran', subprocess.run(line.split()).returncode, flush=True)
    except OSError as e:
        print('errno', e.errno, flush=True)
";

pub fn p7_decisions_are_signed() -> Result<()> {
    let before = std::fs::read_to_string(CONFIG)?;
    std::fs::write(CONFIG, format!("{before}\nreview_key = \"{KEY}\"\n"))?;
    let done = signed();
    std::fs::write(CONFIG, before)?;
    let _ = std::fs::remove_file(KEY);
    done
}

/// Makes bob's key; its line and its id.
fn new_key() -> Result<(String, String)> {
    let _ = std::fs::remove_file(KEY);
    let made = ctl::json("bob", &["key", "new", "--name", "bob"])?;
    let text = |name: &str| made[name].as_str().map(str::to_owned).context("no key");
    Ok((text("key")?, text("key_id")?))
}

fn signed() -> Result<()> {
    let (_, foreign) = new_key()?;
    let other = std::fs::read(KEY)?;
    let (key, id) = new_key()?;
    ensure(id != foreign, "two keys are the same")?;
    let good = std::fs::read(KEY)?;
    std::fs::write(
        ROLES,
        format!(
            "version: 1\nroles:\n  all: {{request: ['*']}}\n  reviewer: {{review: {{categories: ['*'], max_risk: 100}}}}\n\
             people: {{alice: [all], bob: [reviewer]}}\nagents: {{coder: [all]}}\nkeys: {{bob: [{{key: '{key}'}}]}}\n"
        ),
    )?;
    let reviews = "[reviews]\ndenials_before_pause = 1\npause_seconds = 30";
    guest::restart_daemon(&format!("{}\n{reviews}\n[roles]\nfile = \"{ROLES}\"", guest::USUAL))?;
    let status = ctl::json("root", &["status", "--local"])?;
    ensure(status["report"]["decisions"] == "signed", &status)?;
    let made = format!("{}/made", guest::fresh_dir("signed")?);
    let command = format!("/usr/bin/mkdir -p {made}");
    let mut session = Session::start(&Start { stdin: true, ..ALICE }, &["python3", "-c", LINES])?;
    let mut stdin = session.stdin().context("no stdin")?;
    writeln!(stdin, "{command}")?;
    let request = ctl::pending(&session.id)?;
    // Neither without a signature nor by a key that the host does not know; the request waits again each time.
    std::fs::remove_file(KEY)?;
    ctl::approve(&request, &[])?;
    waits_again(&request, 1)?;
    std::fs::write(KEY, &other)?;
    std::fs::set_permissions(KEY, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    ctl::approve(&request, &[])?;
    waits_again(&request, 2)?;
    ensure(!Path::new(&made).exists() && !session.out().contains("ran"), "it ran")?;
    std::fs::write(KEY, &good)?;
    // This exact command three times, of which one is used at once.
    ctl::approve(&request, &["--scope", "session", "--max-execs", "3"])?;
    ran(&session, 1)?;
    writeln!(stdin, "{command}")?;
    ran(&session, 2)?;
    ctl::json("bob", &["review", "revoke", request["request"].as_str().context("no id")?])?;
    until_true("the host has revoked it", seconds(5), || Ok(findings(&session.id, "revoked")?.len() == 1))?;
    writeln!(stdin, "{command}")?;
    let again = ctl::pending(&session.id)?;
    let id_again = again["request"].as_str().context("no id")?;
    ctl::json("bob", &["review", "deny", id_again, "--reason", "enough"])?;
    until_true("the denial reaches the command", seconds(20), || Ok(session.out().matches("errno 1").count() == 1))?;
    // Now nobody is asked for a while.
    writeln!(stdin, "{command}")?;
    until_true("it is denied at once", seconds(20), || Ok(session.out().matches("errno 1").count() == 2))?;
    drop(stdin);
    let ended = session.wait(seconds(30))?;
    let said = |text: &str| ended.events.iter().any(|e| e.to_string().contains(text));
    ensure(said("is not taken") && said("nobody is asked") && said("denied by bob: enough"), &ended)?;
    recorded(&ctl::records(&ended.id)?, &id)
}

fn ran(session: &Session, times: usize) -> Result<()> {
    until_true("the approved command runs", seconds(20), || Ok(session.out().matches("ran 0").count() == times))
}

fn waits_again(request: &Value, refused: usize) -> Result<()> {
    let id = request["request"].as_str().context("no id")?;
    until_true("the host refuses the approval and the request waits again", seconds(20), || {
        let review = ctl::json("bob", &["review", "show", id])?;
        let count = review["refused"].as_array().map_or(0, Vec::len);
        Ok(review["state"] == "pending" && count == refused)
    })
}

fn findings(session: &str, what: &str) -> Result<Vec<Value>> {
    let records = ctl::records(session)?;
    let of = ctl::of_kind(&records, "decision_finding").into_iter().filter(|r| r["body"]["what"] == what);
    Ok(of.cloned().collect())
}

/// What was refused, what counted and by which key is in the log.
fn recorded(records: &[Value], id: &str) -> Result<()> {
    let found: Vec<&str> =
        ctl::of_kind(records, "decision_finding").iter().filter_map(|r| r["body"]["what"].as_str()).collect();
    ensure(found == ["refused", "refused", "revoked"], format!("{found:?}"))?;
    let details: Vec<String> =
        ctl::of_kind(records, "decision_finding").iter().map(|r| r["body"]["detail"].to_string()).collect();
    ensure(
        details[0].contains("is not signed") && details[1].contains("not one of bob's keys"),
        format!("{details:?}"),
    )?;
    let decided = ctl::of_kind(records, "exec_decision");
    let approved = decided.iter().find(|r| r["body"]["disposition"] == "approved").context("no approval")?;
    ensure(approved["body"]["key_ids"][0] == id && approved["body"]["reviewer"] == "bob", approved)?;
    let runs = ctl::execs_of(records, "/usr/bin/mkdir");
    let covered = runs.iter().filter(|r| r["body"]["disposition"] == "approved").count();
    ensure(covered == 1, format!("{covered} execs by the session's right"))?;
    let paused = runs.iter().filter(|r| r["body"]["detail"].to_string().contains("nobody is asked")).count();
    ensure(paused == 1, format!("{paused} denied without asking"))
}
