//! `cargo test` over the workspace, its lines shown and counted.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};

use super::Tally;
use crate::{apt, build, host};

/// Tests at a time.
const THREADS: &str = "6";
/// What libtest says of a test that another one starts as a process of its own: it runs, but not by itself.
const HELPER: &str = "... ignored, runs as a child process of another test";

/// Counts of libtest's summary lines.
#[derive(Default)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// Runs every test whose name contains the filter.
pub fn run(filter: &str) -> Result<Tally> {
    // With it calls to the file system are made to fail.
    if !host::has("strace") {
        let suite = apt::host_suite()?;
        apt::Suites::open(&[&suite])?.install(&suite, &["strace"])?;
    }
    host::say("test: unit and integration tests");
    let mut cargo = build::linting_cargo();
    // Most of the collector's tests wait for clocks and other processes: with one for each processor they take three times as long.
    cargo.args(["test", "--workspace", "--no-fail-fast"]).env("RUST_TEST_THREADS", THREADS);
    if !filter.is_empty() {
        cargo.arg(filter);
    }
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let (mut count, mut names, mut helpers) = (Count::default(), Vec::new(), 0);
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            add(&line, &mut count);
            helpers += u32::from(line.ends_with(HELPER));
            names.extend(failed_name(&line).map(str::to_owned));
            if !line.ends_with("... ok") && !line.is_empty() {
                println!("{line}");
            }
        }
    }
    let status = child.wait()?;
    let mut tally = Tally { passed: count.passed, failed: Vec::new() };
    tally.failed.extend(names.into_iter().map(|n| format!("unit test {n}")));
    for lost in tally.failed.len()..count.failed as usize {
        tally.failed.push(format!("unit test (number {lost}, unnamed)"));
    }
    let skipped = count.ignored.saturating_sub(helpers);
    if skipped > 0 {
        tally.failed.push(format!("{skipped} unit tests are ignored: a skip is an error"));
    }
    if !status.success() && tally.failed.is_empty() {
        tally.failed.push(format!("`cargo test --workspace`: {status}"));
    }
    Ok(tally)
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; …`
fn add(line: &str, count: &mut Count) {
    let Some(rest) = line.trim().strip_prefix("test result:") else { return };
    let number = |word: &str| -> u32 {
        rest.split([';', '.'])
            .filter_map(|part| part.trim().strip_suffix(word))
            .find_map(|n| n.trim().parse().ok())
            .unwrap_or(0)
    };
    count.passed += number("passed");
    count.failed += number("failed");
    count.ignored += number("ignored");
}

fn failed_name(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_libtest_prints() {
        let mut count = Count::default();
        add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
            &mut count,
        );
        add(
            "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s",
            &mut count,
        );
        add("test tests::x ... ok", &mut count);
        assert_eq!((count.passed, count.failed, count.ignored), (14, 3, 1));
        assert_eq!(failed_name("test a::b ... FAILED"), Some("a::b"));
        assert_eq!(failed_name("test a::b ... ok"), None);
    }
}
