//! The script that an interpreter reads is the one that was judged, whatever the session does to its name.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{ALICE, Ended, Session, Start};
use crate::wait::seconds;
use crate::{attacks, ctl};

/// Execs of the race. Without the protection, one in a few reads the other script.
const TURNS: &str = "30";
/// Folder of the two scripts: root's, so that only the link to them is the session's.
const SCRIPTS: &str = "/usr/local/share/guard-scripts";

fn scripts(interpreter: &str) -> Result<(String, String)> {
    let make = |name: &str| -> Result<String> {
        let path = format!("{SCRIPTS}/{name}");
        std::fs::create_dir_all(SCRIPTS)?;
        let text = match interpreter {
            "/bin/sh" => format!("#!/bin/sh\necho $$ {name}\n"),
            other => format!("#!{other}\nimport os\nprint(os.getpid(), '{name}')\n"),
        };
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(path)
    };
    Ok((make("good")?, make("other")?))
}

/// Category that a script of this kind has.
fn category(link: &str) -> Result<String> {
    let session = Session::start(&ALICE, &["python3", &attacks::path("try.py"), link])?;
    let request = ctl::pending(&session.id)?;
    Ok(request["verdict"]["category"].as_str().context("a request without category")?.to_owned())
}

fn race(interpreter: &str) -> Result<(Ended, Vec<Value>)> {
    let (good, other) = scripts(interpreter)?;
    let dir = guest::fresh_dir("turn")?;
    let link = format!("{dir}/link");
    std::os::unix::fs::symlink(&good, &link)?;
    let category = category(&link)?;
    let command = format!("python3 {} {TURNS} {link} {good} {other}", attacks::path("script_turn.py"));
    let start = Start { cwd: &dir, ..ALICE };
    let session = Session::attack(&start, "try.py", &["/bin/sh", "-c", &command])?;
    let request = ctl::pending(&session.id)?;
    let mut covered = vec!["--scope", "root", "--max-execs", "500"];
    let categories =
        [category.as_str(), "shell", "interpreter", request["verdict"]["category"].as_str().unwrap_or("shell")];
    for one in &categories {
        covered.extend(["--category", one]);
    }
    ctl::approve(&request, &covered)?;
    let ended = session.wait(seconds(150))?;
    let records = ctl::records(&ended.id)?;
    Ok((ended, records))
}

fn what_ran_was_judged(interpreter: &str) -> Result<()> {
    let (ended, records) = race(interpreter)?;
    let judged: HashMap<i64, &str> = records
        .iter()
        .filter(|r| r["kind"] == "exec" && r["body"]["facts"]["argv"][0].to_string().contains("/turn/link"))
        .filter_map(|r| Some((r["body"]["facts"]["pid"].as_i64()?, r["body"]["facts"]["files"][0]["path"].as_str()?)))
        .collect();
    let mut ran = 0;
    for line in ended.out.lines() {
        let mut words = line.split(' ');
        let (Some(pid), Some(word), None) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(pid) = pid.parse::<i64>() else { continue };
        let path = judged.get(&pid).with_context(|| format!("`{line}` ran without a record; {ended}"))?;
        ensure(path.ends_with(word), format!("judged {path}, but `{word}` was read"))?;
        ran += 1;
    }
    ensure(ran >= 5, format!("{ran} scripts ran: the race shows nothing; {ended}"))?;
    let refused = ended.out.lines().find_map(|l| l.strip_prefix("turned ")?.split(' ').nth(2)?.parse::<u32>().ok());
    ensure(refused.is_some_and(|n| n > 0), format!("no turn was refused: the race never hit the moment; {ended}"))?;
    let told = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "script_name");
    ensure(told, "the refused turns are not recorded")
}

pub fn p3_script_name_turned() -> Result<()> {
    what_ran_was_judged("/bin/sh")
}

/// Python looks at its script twice, and `env` replaces itself by python.
pub fn p3_script_name_turned_behind_env() -> Result<()> {
    what_ran_was_judged("/usr/bin/env python3")
}

/// A name is kept for as long as something may read through it, against each way to turn it, and free again afterwards.
pub fn p3_script_name_kept_then_free() -> Result<()> {
    let waits = format!("{SCRIPTS}/waits");
    std::fs::create_dir_all(SCRIPTS)?;
    std::fs::write(&waits, "#!/bin/sh\necho began\nread word\necho $word\n")?;
    std::fs::set_permissions(&waits, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let dir = guest::fresh_dir("turn")?;
    let link = format!("{dir}/link");
    std::os::unix::fs::symlink(&waits, &link)?;
    let session = Session::attack(&Start { cwd: &dir, ..ALICE }, "script_name_kept.py", &[&link])?;
    ctl::approve(&ctl::pending(&session.id)?, &[])?;
    let ended = session.wait(seconds(60))?;
    let said: Vec<&str> = ended.out.lines().collect();
    let expected = ["script began", "meanwhile refused", "script go on"];
    let free = said.get(3).is_some_and(|line| line.starts_with("afterwards ") && line.ends_with(" done"));
    ensure(said.starts_with(&expected) && free && said.len() == 4, &ended)
}
