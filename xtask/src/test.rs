//! All tests, and their sum: unit and integration tests here, then scenarios in guests on every kernel series.
//!
//! A kernel that cannot be had, a scenario that says nothing and an ignored test are failures, never skips. Progress is
//! shown as it comes. Fails: exit 1 with the names; a filter that matches nothing is an error.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;

use crate::collector::Tools;
use crate::{build, fuzz, host, interop, kernels, vm};

mod guests;
mod identity;
pub mod powercut;
mod units;

/// Power cuts of `p1_record_before_run` in a test run; each is a boot. `cargo xtask soak` makes many.
const CUTS: u32 = 3;
/// The kernel on which everything runs.
const MAIN: &str = "6.12";

/// `cargo xtask test`.
#[derive(Args)]
pub struct TestArgs {
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Only this kernel series; may be given several times.
    #[arg(long = "kernel")]
    kernels: Vec<String>,
    /// Everything on every kernel, also what does not depend on it.
    #[arg(long)]
    all: bool,
    /// How often `p1_record_before_run` cuts the power.
    #[arg(long, default_value_t = CUTS)]
    cuts: u32,
}

/// What a part of the tests came to.
#[derive(Default)]
pub struct Tally {
    /// Tests that held.
    pub passed: u32,
    /// Those that did not, with the reason.
    pub failed: Vec<String>,
}

impl Tally {
    /// Counts one.
    pub fn add(&mut self, name: &str, done: Result<()>) {
        match done {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("{name}: {error:#}")),
        }
    }

    fn join(&mut self, part: Self) {
        self.passed += part.passed;
        self.failed.extend(part.failed);
    }
}

/// Runs `cargo xtask test`.
pub fn command(args: &TestArgs) -> Result<u8> {
    let started = Instant::now();
    let filter = args.filter.as_deref().unwrap_or_default();
    let series = chosen(&args.kernels)?;
    build::all()?;
    let mut all = Tally::default();
    let mut parts = Vec::new();
    let mut note = |name: &str, tally: Tally, took: Duration, all: &mut Tally| {
        parts.push(format!("{name}: {} passed, {} failed, {} s", tally.passed, tally.failed.len(), took.as_secs()));
        all.join(tally);
    };
    note("set-up", Tally::default(), started.elapsed(), &mut all);
    if args.kernels.is_empty() {
        let (tally, took) = timed(|| units::run(filter));
        note("unit and integration tests", tally?, took, &mut all);
        if "fuzz_briefly".contains(filter) {
            let (done, took) = timed(fuzz::briefly);
            let mut tally = Tally::default();
            tally.add("fuzz_briefly", done);
            note("fuzz targets", tally, took, &mut all);
        }
        let (others, took) = timed(|| programs_of_others(filter));
        if others.passed > 0 || !others.failed.is_empty() {
            note("programs of others", others, took, &mut all);
        }
    }
    let scenarios = guests::matching(filter)?;
    // Asked for by name or by kernel: all of it. Else what need not run on each kernel runs on one.
    let whole = args.all || !filter.is_empty() || !args.kernels.is_empty();
    vm::prepare(&series)?;
    for (series, part, (tally, took)) in in_guests(series, |series, part| {
        timed(|| match part {
            Part::Scenarios => guests::run(series, &scenarios, whole || series.name == MAIN, whole),
            Part::HostDriven => host_driven(series, filter, args.cuts),
        })
    })? {
        let how = if matches!(part, Part::HostDriven) { ", driven from outside" } else { "" };
        note(&format!("kernel {}{how}", series.name), tally, took, &mut all);
    }
    if all.passed == 0 && all.failed.is_empty() {
        bail!("no test's name contains `{filter}`");
    }
    println!();
    for line in &all.failed {
        println!("FAILED {line}");
    }
    for part in parts {
        println!("{part}");
    }
    host::say(&format!("test: {} s", started.elapsed().as_secs()));
    println!("{} passed, {} failed", all.passed, all.failed.len());
    Ok(u8::from(!all.failed.is_empty()))
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    (work(), started.elapsed())
}

fn programs_of_others(filter: &str) -> Tally {
    type Test = (&'static str, fn(&Tools) -> Result<()>);
    const TESTS: [Test; 2] = [("interop_witness", interop::witness), ("interop_outsiders", interop::outsiders)];
    let mut tally = Tally::default();
    for (name, test) in TESTS.into_iter().filter(|(name, _)| name.contains(filter)) {
        tally.add(name, Tools::debug().and_then(|tools| test(&tools)));
    }
    tally
}

/// What runs on a kernel.
#[derive(Clone, Copy)]
enum Part {
    Scenarios,
    HostDriven,
}

/// Guests wait a lot: two at a time. The longest begins first.
fn in_guests<T: Send>(
    mut series: Vec<kernels::Series>,
    run: impl Fn(kernels::Series, Part) -> T + Sync,
) -> Result<Vec<(kernels::Series, Part, T)>> {
    const AT_ONCE: usize = 2;
    series.sort_by_key(|series| series.name != MAIN);
    let host_driven = series.iter().filter(|series| series.name == MAIN).map(|series| (*series, Part::HostDriven));
    let host_driven: Vec<_> = host_driven.collect();
    let parts: Vec<_> = series.into_iter().map(|series| (series, Part::Scenarios)).chain(host_driven).collect();
    let queue = Mutex::new(parts.into_iter());
    let next = || queue.lock().ok()?.next();
    let work = || std::iter::from_fn(next).map(|(series, part)| (series, part, run(series, part))).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut done = Vec::new();
        for worker in workers {
            done.extend(worker.join().map_err(|_| anyhow!("a thread that runs guests panicked"))?);
        }
        Ok(done)
    })
}

fn chosen(names: &[String]) -> Result<Vec<kernels::Series>> {
    if names.is_empty() { Ok(kernels::SERIES.to_vec()) } else { names.iter().map(|n| kernels::series(n)).collect() }
}

/// What needs more than one boot, or a kernel without Guard's hooks.
fn host_driven(series: kernels::Series, filter: &str, cuts: u32) -> Tally {
    type Test<'a> = (&'a str, &'a dyn Fn() -> Result<()>);
    let tests: [Test<'_>; 4] = [
        ("p8_refuses_to_start_without_bpf_lsm", &|| guests::without_lsm(series)),
        ("identity_and_credentials", &|| identity::run(series)),
        ("units_under_systemd", &|| guests::under_systemd(series)),
        ("p1_record_before_run", &|| powercut::run(series, cuts).map(|_| ())),
    ];
    let mut tally = Tally::default();
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(filter)) {
        host::say(&format!("test: kernel {}: {name}", series.name));
        let done = test();
        println!("  {} {name}", if done.is_ok() { "ok" } else { "FAILED" });
        tally.add(&format!("kernel {}: {name}", series.name), done);
    }
    tally
}
