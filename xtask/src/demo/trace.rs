//! Splits a file of recorded agent commands (JSON lines with `session`, `shell`, and `execs` or `argv`) into one file for each
//! session, for the guest.
//!
//! Fails: a line that is no JSON object with a session, or a session that the file does not hold, is named.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

/// Writes `traces/NNN-SESSION.json` below a temporary folder.
pub fn split(file: &Path, wanted: &[String], first: Option<usize>) -> Result<TempDir> {
    let mut order: Vec<String> = Vec::new();
    let mut sessions: HashMap<String, Vec<Value>> = HashMap::new();
    for (number, line) in BufReader::new(super::readable(file)?).lines().enumerate() {
        let line = line.with_context(|| format!("{}:{}", file.display(), number + 1))?;
        let record: Value = serde_json::from_str(&line)
            .with_context(|| format!("{}:{}: not a JSON object", file.display(), number + 1))?;
        let text = |name| record.get(name).and_then(Value::as_str);
        let (Some(session), Some(_)) = (text("session"), text("shell")) else {
            bail!("{}:{}: no `session` and `shell`", file.display(), number + 1);
        };
        let records = sessions.entry(session.to_owned()).or_default();
        if records.is_empty() {
            order.push(session.to_owned());
        }
        records.push(record);
    }
    if let Some(missing) = wanted.iter().find(|w| !sessions.contains_key(*w)) {
        bail!("{} holds no session `{missing}`", file.display());
    }
    if !wanted.is_empty() {
        order.retain(|s| wanted.contains(s));
    }
    if let Some(first) = first {
        order.sort_by_key(|s| std::cmp::Reverse(sessions.get(s).map_or(0, |r| r.iter().filter(|r| likely(r)).count())));
        order.truncate(first);
    }
    let dir = tempfile::tempdir()?;
    let traces = dir.path().join("traces");
    std::fs::create_dir(&traces)?;
    for (number, session) in order.iter().enumerate() {
        let safe: String = session.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let records = sessions.get(session).map(serde_json::to_vec).context("a session without records")??;
        std::fs::write(traces.join(format!("{number:03}-{safe}.json")), records)?;
    }
    Ok(dir)
}

/// Programs that agents run most and that the guest has: only for choosing sessions, the guest decides what it runs.
const COMMON: [&str; 30] = [
    "awk", "bash", "cat", "cd", "chmod", "cp", "diff", "echo", "file", "find", "git", "grep", "head", "jq", "ls",
    "make", "mkdir", "mv", "node", "pwd", "python3", "rm", "sed", "sleep", "sort", "tail", "tar", "touch", "wc",
    "which",
];

/// Whether a record holds the whole command, and programs that the guest has.
fn likely(record: &Value) -> bool {
    let common = |argv: &Value| argv.get(0).and_then(Value::as_str).is_some_and(|program| COMMON.contains(&program));
    let programs = match (record.get("execs").and_then(Value::as_array), record.get("argv")) {
        (Some(execs), _) => !execs.is_empty() && execs.iter().all(common),
        (None, Some(argv)) => common(argv),
        (None, None) => false,
    };
    programs && record.get("truncated") != Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &TempDir) -> Vec<String> {
        let read = std::fs::read_dir(dir.path().join("traces")).expect("folder");
        let mut names: Vec<_> = read.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn sessions_are_kept_apart_and_in_order() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("t.jsonl");
        let line = |s: &str| format!("{{\"session\":\"{s}\",\"shell\":\"ls\",\"argv\":[\"ls\"]}}\n");
        std::fs::write(&file, [line("b/1"), line("a"), line("a")].concat()).expect("written");
        assert_eq!(names(&split(&file, &[], None).expect("splits")), ["000-b-1.json", "001-a.json"]);
        assert_eq!(names(&split(&file, &["a".into()], None).expect("splits")), ["000-a.json"]);
        assert_eq!(names(&split(&file, &[], Some(1)).expect("splits")), ["000-a.json"]);
        let error = split(&file, &["c".into()], None).expect_err("missing").to_string();
        assert!(error.contains("no session `c`"), "{error}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("t.jsonl");
        std::fs::write(&file, "{\"session\":\"a\",\"shell\":\"ls\"}\n[1]\n").expect("written");
        let error = split(&file, &[], None).expect_err("no object").to_string();
        assert!(error.contains("t.jsonl:2"), "{error}");
    }
}
