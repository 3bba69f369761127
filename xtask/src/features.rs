//! One set of features for every build: what a fresh clone compiles for the binaries is what it compiles for the tests.
//!
//! Cargo unites features over what one command builds. Where `cargo test --workspace` turned on one more than the build of the
//! binaries, everything above it would be compiled twice: five minutes of a first run were. The manifests of `guard-tests` and
//! `xtask`, which are in each of these builds, name the difference. Compiles nothing. Fails: with what to add.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{build, host};

/// What cargo would compile, as `--unit-graph` prints it.
#[derive(Deserialize)]
struct Graph {
    units: Vec<Unit>,
}

#[derive(Deserialize)]
struct Unit {
    pkg_id: String,
    features: BTreeSet<String>,
}

/// Foreign package → the sets of features that it is compiled with.
type Sets = BTreeMap<String, BTreeSet<BTreeSet<String>>>;

/// Compares the builds that xtask makes with that of all tests.
pub fn check() -> Result<()> {
    let tests = sets(&["test", "--workspace", "--no-run"])?;
    let mut missing = Vec::new();
    let own = ["build", "--package", "xtask"];
    for (name, arguments) in [("guard-tests", build::selection().as_slice()), ("xtask", &own)] {
        missing.extend(more(&sets(arguments)?, &tests).into_iter().map(|what| format!("{name}/Cargo.toml: {what}")));
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("compiled twice for want of features, at the end of the manifests:\n  {}", missing.join("\n  "))
}

fn sets(arguments: &[&str]) -> Result<Sets> {
    let mut cargo = build::cargo();
    cargo.env("RUSTC_BOOTSTRAP", "1").args(arguments).args(["--locked", "-Z", "unstable-options", "--unit-graph"]);
    read(&host::output(&mut cargo)?)
}

fn read(text: &str) -> Result<Sets> {
    let graph: Graph = serde_json::from_str(text).context("`cargo --unit-graph` is not as it was")?;
    let mut sets = Sets::new();
    for unit in graph.units.into_iter().filter(|unit| !unit.pkg_id.starts_with("path+")) {
        let name = unit.pkg_id.rsplit(['/', '#']).next().unwrap_or_default().to_owned();
        sets.entry(name).or_default().insert(unit.features);
    }
    Ok(sets)
}

/// What the one build compiles that the tests do not, with the features in between.
fn more(one: &Sets, tests: &Sets) -> Vec<String> {
    let mut found = Vec::new();
    for (name, sets) in one {
        let known = tests.get(name).cloned().unwrap_or_default();
        for set in sets.difference(&known) {
            let nearest = known.iter().min_by_key(|other| other.symmetric_difference(set).count());
            let lacks: Vec<&String> = nearest.into_iter().flat_map(|other| other.difference(set)).collect();
            found.push(format!("{name} with {lacks:?}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(features: &str) -> Sets {
        read(&format!(
            r#"{{"units": [{{"pkg_id": "registry+x#syn@3.0.1", "features": [{features}]}},
                {{"pkg_id": "path+file:///own#0.1.0", "features": ["a"]}}]}}"#
        ))
        .unwrap()
    }

    #[test]
    fn names_the_features_that_are_not_the_same() {
        let tests = graph(r#""fold", "full""#);
        assert!(more(&tests, &tests).is_empty());
        assert_eq!(more(&graph(r#""full""#), &tests), [r#"syn@3.0.1 with ["fold"]"#]);
    }
}
