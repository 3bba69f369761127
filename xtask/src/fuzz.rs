//! Fuzzing of everything that reads bytes of others: builds the targets of `fuzz/` with coverage instrumentation and runs them.
//!
//! libFuzzer comes with the crate `libfuzzer-sys`; the compiler is the one that builds everything else, since the passes that count
//! coverage need no other. A corpus grows in `target/fuzz/corpus`, inputs that fail are kept in `target/fuzz/found`. Fails: with the
//! input's file, what it showed, and where to put it so that it is tried in every test run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{apt, build, host};

/// What cargo-fuzz passes too: counters and tables of edges, comparisons reported.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Longest input: a little more than the longest record.
const INPUT_MAX: &str = "-max_len=70000";
/// An input that takes longer is a finding, and so is one that takes more memory.
const LIMITS: [&str; 2] = ["-timeout=20", "-rss_limit_mb=1500"];
/// Seconds of each target in a test run.
const BRIEFLY: u32 = 2;

/// `cargo xtask fuzz`.
#[derive(Args)]
pub struct FuzzArgs {
    /// Only this target; without it all, one after the other.
    target: Option<String>,
    /// For how long each is run.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs `cargo xtask fuzz`.
pub fn command(args: &FuzzArgs) -> Result<u8> {
    let fuzzer = Fuzzer::build(&["--features", "policy"])?;
    let all = fuzzer.targets()?;
    let chosen: Vec<&String> = all.iter().filter(|name| args.target.as_ref().is_none_or(|t| t == *name)).collect();
    ensure!(!chosen.is_empty(), "there is no such target; there are {}", all.join(", "));
    let mut failed = 0;
    for name in &chosen {
        match fuzzer.run(name, args.seconds) {
            Ok(said) => host::say(&format!("fuzz: {name}: {said}")),
            Err(error) => {
                host::say(&format!("fuzz: FAILED {error:#}"));
                failed += 1;
            }
        }
    }
    println!("{} targets, {failed} failed", chosen.len());
    Ok(u8::from(failed > 0))
}

/// The targets of guard-log, a moment each.
pub fn briefly() -> Result<()> {
    let fuzzer = Fuzzer::build(&[])?;
    for name in fuzzer.targets()? {
        fuzzer.run(&name, BRIEFLY)?;
    }
    Ok(())
}

struct Fuzzer {
    program: PathBuf,
    folder: PathBuf,
}

impl Fuzzer {
    fn build(features: &[&str]) -> Result<Self> {
        // libFuzzer is C++.
        if !host::has("c++") {
            let suite = apt::host_suite()?;
            apt::Suites::open(&[&suite])?.install(&suite, &["g++"])?;
        }
        host::say("building the fuzz targets");
        let folder = host::target().join("fuzz");
        let triple = triple()?;
        let mut cargo = build::cargo();
        // With a target named, build scripts and macros are not instrumented.
        cargo.current_dir(host::root().join("fuzz")).args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "--target",
            &triple,
        ]);
        cargo.args(features).arg("--target-dir").arg(&folder).env("RUSTFLAGS", INSTRUMENTED);
        host::run(&mut cargo)?;
        Ok(Self { program: folder.join(triple).join("release/guard-fuzz"), folder })
    }

    fn targets(&self) -> Result<Vec<String>> {
        let names = host::output(Command::new(&self.program).env_remove("GUARD_FUZZ_TARGET"))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Its last line of figures; an error with what failed.
    fn run(&self, name: &str, seconds: u32) -> Result<String> {
        let (corpus, found) = (self.folder.join("corpus").join(name), self.folder.join("found").join(name));
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder)?;
        }
        let output = found.join("output");
        let mut fuzzer = Command::new(&self.program);
        fuzzer.arg(&corpus).args([INPUT_MAX, &format!("-max_total_time={seconds}")]).args(LIMITS);
        fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
        fuzzer.env("GUARD_FUZZ_TARGET", name).env("GUARD_FUZZ_SEEDS", &corpus).env("RUST_BACKTRACE", "0");
        // What panics and is caught says so too, often.
        fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&output)?);
        let ended = fuzzer.status().with_context(|| format!("starting {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        if !ended.success() {
            bail!("{name}: {}", why(&said, &output, name));
        }
        let figures =
            said.lines().rev().find(|line| line.contains("DONE")).context("libFuzzer did not end as it does")?;
        Ok(figures.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// What the output of a run that failed says.
fn why(said: &str, output: &Path, name: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    // The last one is what nothing caught, but for the one of the end itself; the text follows the place.
    let panic = lines.iter().rposition(|line| line.starts_with("panicked at") && !line.contains("/rustc/"));
    let from = panic.or_else(|| lines.iter().position(|line| line.contains("ERROR: libFuzzer"))).unwrap_or_default();
    let last = lines.iter().skip(from).take(2).copied().collect::<Vec<_>>().join(" ");
    let input = lines.iter().rev().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path);
    format!(
        "{last}; input: {}; all it said: {}; put the input into fuzz/inputs/{name} when it is mended",
        input.unwrap_or("none was written"),
        output.display()
    )
}

/// The machine that this compiler makes programs for by itself.
fn triple() -> Result<String> {
    let text = host::output(Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV"))?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("`rustc -vV` names no host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_that_nothing_caught_and_its_input_are_named() {
        let said = "panicked at brush:1:1:\ncaught\n#5 NEW\npanicked at src/targets/texts.rs:9:5:\nassertion failed: x\n\
            panicked at /rustc/1/core/panicking.rs:1:1:\n==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='/f/'; Test unit written to /f/crash-1\n";
        let text = why(said, Path::new("/f/output"), "tiles");
        assert!(text.starts_with("panicked at src/targets/texts.rs:9:5: assertion failed: x; input"), "{text}");
        assert!(text.contains("input: /f/crash-1;") && text.ends_with("fuzz/inputs/tiles when it is mended"), "{text}");
    }
}
