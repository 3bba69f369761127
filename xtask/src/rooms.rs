//! The dependency rules of ARCHITECTURE.md: which of our crates may know which, and what nobody may depend on.
//!
//! Reads `cargo metadata`; needs no network and no other tool. Fails: with every breach.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{build, host};

/// Crate → crates of ours that it may depend on. The table "Rooms" of ARCHITECTURE.md.
const ROOMS: [(&str, &[&str]); 11] = [
    ("guard-common", &[]),
    ("guard-policy", &[]),
    ("guard-sigma", &[]),
    ("guard-bundle", &["guard-log", "guard-proto"]),
    ("guard-log", &[]),
    ("guard-proto", &[]),
    ("guard-agent", &["guard-common", "guard-bundle", "guard-policy", "guard-sigma", "guard-log", "guard-proto"]),
    ("guard-collector", &["guard-bundle", "guard-log", "guard-policy", "guard-proto"]),
    ("guardctl", &["guard-bundle", "guard-policy", "guard-log", "guard-proto"]),
    ("guard-tests", &[]),
    ("xtask", &[]),
];

/// Crate of ours → foreign crates that have no place in it.
const NOT_IN: [(&str, &[&str]); 2] =
    [("guard-policy", &["tokio", "rustix", "libc", "tonic", "prost"]), ("guard-log", &["tokio", "tonic", "prost"])];

/// What nobody may depend on, directly or not: one TLS provider, no unmaintained or unsound crates (deny.toml).
const NOWHERE: [&str; 5] = ["ring", "openssl", "serde_yaml", "serde_yml", "backoff"];

/// Checks them.
pub fn check() -> Result<()> {
    let text = host::output(build::cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is not JSON")?;
    let mut breaches = own(&direct(&metadata)?);
    // What is compiled; `cargo metadata` also lists optional crates that nobody has turned on.
    let tree = ["tree", "--workspace", "--locked", "--prefix", "none", "--format", "{p}", "--edges", "normal,build"];
    breaches.extend(foreign(&host::output(build::cargo().args(tree))?));
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("dependency rules (ARCHITECTURE.md, deny.toml):\n  {}", breaches.join("\n  "))
}

/// Crates of the workspace with the names of what they declare, without what only their tests use.
fn direct(metadata: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let members: Vec<String> =
        list(metadata.get("workspace_members").unwrap_or(&Value::Null)).iter().filter_map(text).collect();
    let mut found = BTreeMap::new();
    for package in list(metadata.get("packages").unwrap_or(&Value::Null)) {
        let field = |name: &str| package.get(name).cloned().unwrap_or_default();
        if !field("id").as_str().is_some_and(|id| members.iter().any(|m| m == id)) {
            continue;
        }
        let needs = list(&field("dependencies"))
            .iter()
            .filter(|d| d.get("kind").is_none_or(|k| k.as_str() != Some("dev")))
            .filter_map(|d| d.get("name").and_then(text))
            .collect();
        found.insert(text(&field("name")).context("a package without name")?, needs);
    }
    Ok(found)
}

fn own(crates: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut breaches = Vec::new();
    for (name, needs) in crates {
        let Some((_, may)) = ROOMS.iter().find(|(room, _)| room == name) else {
            breaches.push(format!("{name} is no room of ARCHITECTURE.md"));
            continue;
        };
        for need in needs.iter().filter(|n| crates.contains_key(*n) && !may.contains(&n.as_str())) {
            breaches.push(format!("{name} may not know {need}"));
        }
        let barred = NOT_IN.iter().find(|(room, _)| room == name).map_or(&[][..], |(_, barred)| barred);
        for need in needs.iter().filter(|n| barred.contains(&n.as_str())) {
            breaches.push(format!("{name} may not depend on {need}"));
        }
    }
    breaches
}

fn foreign(tree: &str) -> Vec<String> {
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    NOWHERE.iter().filter(|n| names.contains(**n)).map(|name| format!("{name} is among the dependencies")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breach_is_named() {
        let crates: BTreeMap<String, Vec<String>> = [
            ("guard-log".to_owned(), vec!["guard-proto".to_owned(), "tokio".to_owned(), "bytes".to_owned()]),
            ("guard-proto".to_owned(), vec![]),
            ("guard-new".to_owned(), vec![]),
        ]
        .into();
        let found = own(&crates);
        assert_eq!(foreign("tokio v1.0.0\nring v0.17.14\nring v0.17.14 (*)"), ["ring is among the dependencies"]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.contains(&"guard-log may not know guard-proto".to_owned()));
    }
}
