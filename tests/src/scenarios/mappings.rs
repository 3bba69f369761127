//! Executable mappings are judged by the file behind them.

use anyhow::{Context, Result, ensure as must};
use serde_json::Value;

use crate::guest::ensure;
use crate::session::{self, ALICE, Ended, ROOT, Start};
use crate::{attacks, ctl, guest};

const STRICT: &str =
    "[session.profiles]\ncoder = \"strict\"\n[profile.strict]\nmemory_exec = \"deny\"\nwritable_exec = \"deny\"";
/// Memory that no file backs, or whose pages the program wrote.
const MEMORY: [&str; 5] = ["anonymous", "anonymous_shared", "anonymous_later", "system_writable", "system_changed"];
/// Files that the session wrote.
const WRITTEN: [&str; 5] = ["own", "own_later", "memfd", "deleted", "dlopen"];
/// Files that it could not write.
const SYSTEM: [&str; 2] = ["system", "system_later"];

fn attack(start: &Start<'_>) -> Result<(Ended, Vec<Value>)> {
    let dir = guest::fresh_dir("mappings")?;
    let ended = session::run(start, &["python3", &attacks::path("mappings.py"), &dir])?;
    let records = ctl::records(&ended.id)?;
    Ok((ended, records))
}

fn results(ended: &Ended, names: &[&str], expected: fn(&str) -> bool) -> Result<()> {
    for name in names {
        let result =
            ended.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).context(ended.to_string())?;
        must!(expected(result), "{name}: `{result}`; {ended}");
    }
    Ok(())
}

fn recorded(records: &[Value], kind: &str, what: &str) -> bool {
    ctl::of_kind(records, kind).iter().any(|r| r["body"]["what"] == what)
}

fn done(result: &str) -> bool {
    result == "done"
}

fn refused(result: &str) -> bool {
    matches!(result, "errno 1" | "errno 13")
}

/// The default profile lets just-in-time compilers work, and records what the session wrote and then maps.
pub fn mappings_are_recorded() -> Result<()> {
    let (ended, records) = attack(&ALICE)?;
    results(&ended, &MEMORY, done)?;
    results(&ended, &WRITTEN, done)?;
    results(&ended, &SYSTEM, done)?;
    ensure(recorded(&records, "guard_observation", "writable_exec"), "a mapping of an own file is not recorded")?;
    let named =
        ctl::of_kind(&records, "guard_observation").iter().any(|r| r["body"]["target"].to_string().contains("own.so"));
    ensure(named, format!("no record names own.so: {records:?}"))?;
    let node = session::run(&ALICE, &["node", "-e", "let s=0; for (let i=0;i<1e6;i++) s+=i; console.log(s)"]);
    ensure(node.is_ok(), "node does not start")
}

/// A strict profile refuses both; what the session cannot write is still mapped.
pub fn strict_profile_refuses_mappings() -> Result<()> {
    guest::restart_daemon(STRICT)?;
    for start in [&ALICE, &ROOT] {
        let (ended, records) = attack(start)?;
        results(&ended, &MEMORY, refused)?;
        results(&ended, &["memfd", "deleted"], refused)?;
        results(&ended, &SYSTEM, done)?;
        if start.user == "alice" {
            results(&ended, &WRITTEN, refused)?;
        }
        for what in ["memory_exec", "writable_exec"] {
            ensure(recorded(&records, "guard_refusal", what), format!("{what} of {} is not recorded", start.user))?;
        }
    }
    Ok(())
}
