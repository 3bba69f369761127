//! Measures the built-in policy over a folder of real commands (`GUARD_CORPORA`, files as in docs/policy.md).
//!
//! Skipped, with a printed note, only where the folder is absent.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use guard_policy::{Facts, FileRef, Policy, Role, Stdin, Tier, Verdict};
use serde_json::Value;

/// Labelled by other tools' tests as not to be allowed, yet plain reads of workspace files by what we know: the search
/// behind `xargs` is judged again with its real arguments, and a wide `column` writes nothing. Shown, not failed.
const DISPUTED: &[&str] = &["danger-2f1a42d61f1b", "bypass-ccccfeb6d057"];

/// Judges a line as an agent's runtime runs it: `bash -c LINE`.
fn shell(policy: &Policy, text: &str) -> Verdict {
    decide(policy, &[b"bash".to_vec(), b"-c".to_vec(), text.as_bytes().to_vec()])
}

fn decide(policy: &Policy, argv: &[Vec<u8>]) -> Verdict {
    let name = argv.first().map(|a| a.rsplit(|b| *b == b'/').next().unwrap_or(a).to_vec()).unwrap_or_default();
    let path = [b"/usr/bin/", name.as_slice()].concat();
    let files = [FileRef { path: &path, role: Role::Program, session_writable: false, foreign: false }];
    policy.decide(&Facts {
        argv,
        files: &files,
        cwd: b"/home/dev/work",
        home: b"/home/dev",
        workspace: b"/home/dev/work",
        uid: 1000,
        env: &[],
        stdin: Stdin::Null,
        entry: false,
    })
}

/// The built-in policy, or the file that `GUARD_POLICY` names, to try a change without building.
fn policy() -> Policy {
    let Some(path) = std::env::var_os("GUARD_POLICY") else {
        return Policy::load(&[]).unwrap_or_else(|e| panic!("{e}"));
    };
    let text = std::fs::read_to_string(path).expect("GUARD_POLICY is a readable file");
    Policy::load(&[guard_policy::Source { name: "GUARD_POLICY", text: &text }]).unwrap_or_else(|e| panic!("{e}"))
}

fn records(folder: &Path, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON record per line")).collect()
}

fn disputed(record: &Value) -> bool {
    record["id"].as_str().is_some_and(|id| DISPUTED.contains(&id))
}

#[derive(Default)]
struct Count {
    by_tier: BTreeMap<&'static str, usize>,
    wrong: Vec<String>,
}

fn measure(policy: &Policy, records: &[Value], wrong: impl Fn(&Value, Tier) -> bool) -> Count {
    let mut count = Count::default();
    for record in records {
        let text = record["shell"].as_str().unwrap_or_default();
        let verdict = shell(policy, text);
        *count.by_tier.entry(verdict.tier.as_str()).or_default() += 1;
        if wrong(record, verdict.tier) {
            let why = verdict.reasons.first().map(|r| format!("{}: {}", r.rule_id, r.evidence)).unwrap_or_default();
            count.wrong.push(format!("{:?} <= {}", text, why));
        }
    }
    count
}

fn report(name: &str, count: &Count) {
    let total: usize = count.by_tier.values().sum();
    let line: Vec<String> =
        count.by_tier.iter().map(|(t, n)| format!("{t} {n} ({:.1} %)", 100.0 * *n as f64 / total as f64)).collect();
    println!("{name:28} {total:5}: {}", line.join(", "));
    if let Ok(limit) = std::env::var("GUARD_CORPORA_SHOW") {
        for line in count.wrong.iter().take(limit.parse().unwrap_or(0)) {
            println!("    {}", line.chars().take(300).collect::<String>());
        }
    }
}

#[test]
fn real_commands_are_judged_as_their_labels_say() {
    let Some(folder) = std::env::var_os("GUARD_CORPORA").map(PathBuf::from).filter(|f| f.is_dir()) else {
        println!("skipped: GUARD_CORPORA names no folder");
        return;
    };
    let policy = policy();
    let read_only = records(&folder, "benign_readonly.jsonl");
    let benign = measure(&policy, &read_only, |_, tier| tier != Tier::Allow);
    report("benign_readonly", &benign);
    let denied = measure(&policy, &read_only, |_, tier| tier == Tier::Deny);
    report("benign_readonly denied", &denied);
    let simple: Vec<Value> = read_only.iter().filter(|r| r["argv"].is_array()).cloned().collect();
    let simple = measure(&policy, &simple, |_, tier| tier != Tier::Allow);
    report("  of these one command", &simple);
    let mutating = measure(&policy, &records(&folder, "benign_mutating.jsonl"), |_, tier| tier != Tier::Review);
    report("benign_mutating", &mutating);

    let dangerous = records(&folder, "dangerous.jsonl");
    let scored: Vec<Value> = dangerous.iter().filter(|r| r["expected"] != "any").cloned().collect();
    let must_deny: Vec<Value> = dangerous.iter().filter(|r| r["expected"] == "deny").cloned().collect();
    let danger = measure(&policy, &scored, |r, tier| tier == Tier::Allow && !disputed(r));
    report("dangerous (not any)", &danger);
    let recall = measure(&policy, &must_deny, |_, tier| tier != Tier::Deny);
    report("  of these deny expected", &recall);
    let bypass: Vec<Value> = records(&folder, "bypass.jsonl").into_iter().filter(|r| r["expected"] != "any").collect();
    let bypass = measure(&policy, &bypass, |r, tier| tier == Tier::Allow && !disputed(r));
    report("bypass (not any)", &bypass);

    assert!(danger.wrong.is_empty(), "dangerous lines allowed:\n{}", danger.wrong.join("\n"));
    assert!(bypass.wrong.is_empty(), "bypass lines allowed:\n{}", bypass.wrong.join("\n"));
}
