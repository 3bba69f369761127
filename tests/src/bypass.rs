//! The bypass programs: one row for each technique, with what must come of the attempt and what must be recorded.
//!
//! All rows of one user run in one session, one after another, through `tests/bypass/driver.c`. A row's records are those of
//! the processes that its program started, found by exec numbers, never by names. Each row is reported under its own name.
//! Fails: a row that printed nothing, or whose record is missing, has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::ctl;
use crate::guest::ensure;
use crate::session::{ALICE, ROOT, Session, Start};
use crate::wait::seconds;

mod race;
mod rows;
mod world;

use rows::ROWS;
use world::World;
pub use world::{install, program};

/// In front of a row's name where tests are listed and reported.
const PREFIX: &str = "bypass_";
/// Longest time of all rows of one user, in seconds.
const LIMIT: u64 = 900;
/// Longest time of one row.
const ROW_LIMIT: u64 = 150;

/// One technique.
struct Row {
    /// Its name.
    name: &'static str,
    /// Program of `tests/bypass` and its arguments.
    run: &'static [&'static str],
    /// Who tries.
    users: Users,
    /// What the program must print as its result; several possibilities are separated by ` | `.
    prints: &'static str,
    /// What must be recorded of it.
    record: Record,
    /// A look of its own at what came of it.
    also: Option<fn(&Tried) -> Result<()>>,
}

/// Who tries a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Users {
    /// An ordinary user and root.
    Both,
    /// Only an ordinary user.
    User,
    /// Only root.
    Root,
}

/// A record that must be there.
#[derive(Clone, Copy)]
struct Record {
    /// Kinds, separated by ` | `; empty: there must be none of the kinds that say an exec was tried; `*`: anything.
    kind: &'static str,
    /// Texts that its JSON form holds, separated by ` & `.
    says: &'static str,
    /// Its disposition; empty for kinds that have none.
    disposition: &'static str,
}

/// What came of a row for one user.
struct Tried {
    /// The user.
    user: &'static str,
    /// What the program printed, without the result.
    lines: Vec<String>,
    /// The result.
    result: String,
    /// The records of what its program started, without the program's own.
    records: Vec<Value>,
}

/// Names of the rows, as tests are listed.
pub fn names() -> impl Iterator<Item = String> {
    ROWS.iter().map(|row| format!("{PREFIX}{}", row.name))
}

fn row(name: &str) -> Option<&'static Row> {
    let name = name.strip_prefix(PREFIX)?;
    ROWS.iter().find(|row| row.name == name)
}

/// Whether a test of this name is a row.
pub fn is_row(name: &str) -> bool {
    row(name).is_some()
}

/// Only the races, with many tries in all; true if nothing ran that was not judged.
pub fn races(tries: u32) -> Result<bool> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| row.run.first() == Some(&"race")).collect();
    let mut world = World::make()?;
    world.tries = Some(tries.div_ceil(u32::try_from(rows.len())?));
    let limit = u64::from(tries) + 600;
    let ran = session(&world, &ALICE, &rows, limit);
    let mut good = true;
    for row in rows {
        let done = judge(row, &[("user", &ran)]);
        good &= done.is_ok();
        println!("{} {}{}", if done.is_ok() { "ok" } else { "FAILED" }, PREFIX, row.name);
        if let Err(error) = done {
            println!("  {error:#}");
        }
    }
    Ok(good)
}

/// Runs the named rows for every user; gives for each what came of it, and how long it took.
pub fn run(names: &[&str]) -> Vec<(String, Result<Duration>)> {
    let chosen: Vec<&Row> = names.iter().filter_map(|n| row(n)).collect();
    let world = match World::make() {
        Ok(world) => world,
        Err(error) => {
            let why = format!("before the rows: {error:#}");
            return chosen.iter().map(|r| (format!("{PREFIX}{}", r.name), Err(anyhow!("{why}")))).collect();
        }
    };
    let (user, root) = std::thread::scope(|scope| {
        let user = scope.spawn(|| session(&world, &ALICE, &chosen, LIMIT));
        let root = scope.spawn(|| session(&world, &ROOT, &chosen, LIMIT));
        (joined(user.join()), joined(root.join()))
    });
    chosen
        .iter()
        .map(|row| (format!("{PREFIX}{}", row.name), judge(row, &[("user", &user), ("root", &root)])))
        .collect()
}

fn joined(thread: std::thread::Result<Result<Ran>>) -> Result<Ran> {
    thread.map_err(|_| anyhow!("the thread of a session panicked"))?
}

/// What one user's session came to.
struct Ran {
    printed: BTreeMap<String, Printed>,
    records: Vec<Value>,
    how: String,
}

/// What the driver said of one row.
#[derive(Default)]
struct Printed {
    pids: BTreeSet<u64>,
    lines: Vec<String>,
    result: Option<String>,
    status: String,
    took: Duration,
}

impl Users {
    fn has(self, user: &str) -> bool {
        match self {
            Self::Both => true,
            Self::User => user != "root",
            Self::Root => user == "root",
        }
    }
}

fn session(world: &World, start: &Start<'_>, rows: &[&Row], limit: u64) -> Result<Ran> {
    let base = format!("{}/bypass", start.cwd);
    let table = world.table(start.user, rows)?;
    let _ = std::fs::remove_dir_all(&base);
    let start = Start { ttl: "8h", ..*start };
    let row_limit = if limit > LIMIT { limit } else { ROW_LIMIT }.to_string();
    let session = Session::start(&start, &[&world::program("driver"), &table, &base, &row_limit])?;
    let ended = session.wait(seconds(limit))?;
    // A busy machine may take long to ship; what was tried is not to be lost for that.
    let records = ctl::records(&ended.id).or_else(|_| ctl::records(&ended.id))?;
    Ok(Ran { printed: printed(&ended.out), records, how: format!("the session ended with {}", ended.code) })
}

/// Lines `NAME| TEXT` of the driver, by name.
fn printed(out: &str) -> BTreeMap<String, Printed> {
    let mut rows: BTreeMap<String, Printed> = BTreeMap::new();
    for (name, text) in out.lines().filter_map(|line| line.split_once("| ")) {
        let row = rows.entry(name.to_owned()).or_default();
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["start" | "pid", pid] => row.pids.extend(pid.parse::<u64>()),
            ["end", status, "after", ms, "ms"] => {
                row.took = Duration::from_millis(ms.parse().unwrap_or(0));
                row.status = (*status).to_owned();
            }
            ["=", ..] => row.result = Some(text.get(2..).unwrap_or_default().to_owned()),
            _ => row.lines.push(text.to_owned()),
        }
    }
    rows
}

fn judge(row: &Row, ran: &[(&'static str, &Result<Ran>)]) -> Result<Duration> {
    let mut took = Duration::ZERO;
    let mut wrong = Vec::new();
    for (user, ran) in ran.iter().filter(|(user, _)| row.users.has(user)) {
        match ran.as_ref().map_err(|e| anyhow!("{e:#}")).and_then(|ran| one(row, user, ran)) {
            Ok(time) => took += time,
            Err(error) => wrong.push(format!("as {user}: {error:#}")),
        }
    }
    if wrong.is_empty() { Ok(took) } else { bail!("{}", wrong.join("; ")) }
}

fn one(row: &Row, user: &'static str, ran: &Ran) -> Result<Duration> {
    let printed = ran.printed.get(row.name).with_context(|| format!("never started; {}", ran.how))?;
    let tried = Tried {
        user,
        lines: printed.lines.clone(),
        result: printed.result.clone().with_context(|| {
            let records = of_row(&ran.records, &printed.pids);
            format!("no result, status `{}`, printed {:?}{}", printed.status, printed.lines, shown(&records))
        })?,
        records: of_row(&ran.records, &printed.pids),
    };
    let expected = row.prints.split(" | ").any(|p| p == tried.result);
    ensure(expected, format!("`{}` instead of `{}`{}", tried.result, row.prints, shown(&tried.records)))?;
    row.record.is_in(&tried.records)?;
    row.also.map_or(Ok(()), |also| also(&tried))?;
    Ok(printed.took)
}

/// Numbers of a record: the exec that it is about, the one that tried it, the process.
struct Numbers {
    exec: u64,
    parent: u64,
    pid: u64,
}

fn numbers(record: &Value) -> Numbers {
    let body = &record["body"];
    let first = |values: [&Value; 3]| values.into_iter().find_map(Value::as_u64).unwrap_or(0);
    Numbers {
        exec: first([&body["facts"]["exec"], &body["exec"], &Value::Null]),
        parent: first([&body["facts"]["parent_exec"], &body["parent_exec"], &Value::Null]),
        pid: first([&body["facts"]["pid"], &body["pid"], &Value::Null]),
    }
}

/// The records of processes with these ids and of all that they started, without that of the row's own program.
fn of_row(records: &[Value], pids: &BTreeSet<u64>) -> Vec<Value> {
    let mut execs = BTreeSet::new();
    let mut own = 0;
    let mut found = Vec::new();
    for record in records {
        let Numbers { exec, parent, pid } = numbers(record);
        let ours = pids.contains(&pid) || execs.contains(&parent) || execs.contains(&exec);
        if !ours {
            continue;
        }
        if own == 0 {
            own = exec;
        }
        execs.extend(Some(exec).filter(|e| *e != 0));
        let about_program = exec == own && record["kind"].as_str().is_some_and(|k| k.starts_with("exec"));
        if !about_program {
            found.push(record.clone());
        }
    }
    found
}

fn shown(records: &[Value]) -> String {
    let one = |r: &Value| {
        let body = &r["body"];
        let why = [&body["reason"], &body["what"], &body["detail"], &body["verdict"]["reasons"], &body["errno"]];
        let why: Vec<String> = why.iter().filter(|v| !v.is_null()).map(|v| v.to_string()).collect();
        let kind = r["kind"].as_str().unwrap_or_default();
        format!("{kind} {} {} {}", body["disposition"], body["facts"]["argv"], why.join(" "))
    };
    let all: Vec<String> = records.iter().take(6).map(one).map(|t| t.chars().take(300).collect()).collect();
    format!("; recorded: [{}]", all.join(", "))
}

impl Record {
    /// Whether one of the records is this one.
    fn is_in(&self, records: &[Value]) -> Result<()> {
        if self.kind == "*" {
            return Ok(());
        }
        if self.kind.is_empty() {
            let none = !records.iter().any(|r| r["kind"].as_str().is_some_and(|k| k.starts_with("exec")));
            return ensure(none, format!("an exec is recorded that was none{}", shown(records)));
        }
        let found = records.iter().any(|record| {
            let text = record["body"].to_string();
            self.kind.split(" | ").any(|kind| record["kind"] == kind)
                && self.says.split(" & ").all(|word| text.contains(word))
                && (self.disposition.is_empty() || record["body"]["disposition"] == self.disposition)
        });
        let what = format!("{} `{}` {}", self.kind, self.says, self.disposition);
        ensure(found, format!("no record {what}{}", shown(records)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own() {
        let names: BTreeSet<&str> = ROWS.iter().map(|r| r.name).collect();
        assert_eq!(names.len(), ROWS.len());
        assert!(ROWS.iter().all(|r| r.run.iter().all(|word| !word.contains([' ', '\n']))));
    }

    #[test]
    fn records_are_found_by_number() {
        let exec = |pid: u64, exec: u64, parent: u64| json!({"kind": "exec", "body": {"facts": {"pid": pid, "exec": exec, "parent_exec": parent}}});
        let all = [exec(7, 70, 1), exec(8, 80, 70), exec(9, 90, 1), exec(10, 100, 80)];
        let found = of_row(&all, &BTreeSet::from([7]));
        assert_eq!(found, [all[1].clone(), all[3].clone()]);
    }

    #[test]
    fn reads_what_the_driver_prints() {
        let rows = printed("a| start 5\na| pid 6\na| hello\na| = errno 1\na| end 0 after 12 ms\n");
        let row = &rows["a"];
        assert_eq!(row.pids, BTreeSet::from([5, 6]));
        assert_eq!(row.result.as_deref(), Some("errno 1"));
        assert_eq!(row.took, Duration::from_millis(12));
    }
}
