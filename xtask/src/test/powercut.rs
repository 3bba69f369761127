//! `p1_record_before_run`: governed programs write unique markers to a port that this program reads; the guest's power is
//! cut at a random moment; after the next boot of the same disk every marker seen has its record.
//!
//! It must not forgive: one marker without a record, or a damaged journal, is a failure. What the guest had not yet
//! flushed to its disk is gone with QEMU, as with a power cut.

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::vm::{Spec, Vm};
use crate::{host, kernels};

const NAME: &str = "test-powercut";
/// A boot that has not got so far by then is broken.
const BOOT: Duration = Duration::from_secs(180);
/// The power is cut at a random moment up to this long after the first marker.
const RUN: Duration = Duration::from_millis(2500);

/// What all the cuts came to.
#[derive(Default)]
pub struct Figures {
    /// Power cuts.
    pub cuts: u32,
    /// Markers that this host saw, each with its record.
    pub markers: usize,
    /// Records that have no marker: recorded, and cut before the first instruction.
    pub unseen: usize,
}

/// Cuts the power so many times.
pub fn run(series: kernels::Series, cuts: u32) -> Result<Figures> {
    let _ = std::fs::remove_dir_all(host::target().join("vm").join(NAME));
    let mut figures = Figures::default();
    let mut seen = BTreeSet::new();
    // One boot more than cuts: the last one only looks.
    for round in 0..=cuts {
        let started = Instant::now();
        let mut vm = boot(series, round > 0)?;
        let stdout = vm.take_stdout().context("no output")?;
        let recorded = report(&lines(stdout)).with_context(|| format!("boot {round}\n{}", vm.console_tail()))?;
        check(&seen, &recorded).with_context(|| format!("after power cut {round}"))?;
        figures.markers += seen.len();
        figures.unseen += recorded.len().saturating_sub(seen.len());
        if round == cuts {
            vm.kill()?;
            break;
        }
        first_marker(&vm).with_context(|| format!("boot {round}"))?;
        std::thread::sleep(moment()?);
        vm.kill()?;
        figures.cuts += 1;
        seen = markers(&vm.markers()?);
        let took = started.elapsed().as_secs();
        host::say(&format!("p1: power cut {} of {cuts}: {} markers seen, {took} s", round + 1, seen.len()));
    }
    if figures.markers < cuts as usize {
        bail!("only {} markers in {cuts} power cuts: this shows nothing", figures.markers);
    }
    host::say(&format!(
        "p1: {} power cuts, {} markers, each with its record; {} records whose program was cut before it wrote",
        figures.cuts, figures.markers, figures.unseen
    ));
    Ok(figures)
}

fn boot(series: kernels::Series, again: bool) -> Result<Vm> {
    let spec = Spec {
        keep_data: again,
        keep_payload: again,
        deadline: BOOT,
        ..Spec::new(NAME, series, "guard-guest-tests powercut")
    };
    Vm::boot(&spec, Stdio::piped())
}

fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            if send.send(line.trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    receive
}

/// What the guest says of the boot before, until it runs governed programs again.
fn report(lines: &Receiver<String>) -> Result<HashSet<String>> {
    let end = Instant::now() + BOOT;
    let mut recorded = HashSet::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if let Some(marker) = line.strip_prefix("recorded ") {
                    recorded.insert(marker.to_owned());
                } else if line.starts_with("finding ") {
                    bail!("the log or the journal is not whole: {line}");
                } else if line.starts_with("running ") {
                    return Ok(recorded);
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("the guest is not up after {} s", BOOT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest ended before it ran anything"),
        }
    }
}

fn first_marker(vm: &Vm) -> Result<()> {
    let start = Instant::now();
    while vm.markers().unwrap_or_default().is_empty() {
        if start.elapsed() > Duration::from_secs(40) {
            bail!("no governed program ran\n{}", vm.console_tail());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn moment() -> Result<Duration> {
    let mut bytes = [0_u8; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let part = f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX);
    Ok(RUN.mul_f64(part))
}

/// Whole lines that look like markers; the last one may be cut.
fn markers(bytes: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(bytes);
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| line.trim().to_owned())
        .filter(|line| line.matches('-').count() == 2)
        .collect()
}

fn check(seen: &BTreeSet<String>, recorded: &HashSet<String>) -> Result<()> {
    let lost: Vec<&String> = seen.iter().filter(|m| !recorded.contains(*m)).collect();
    if lost.is_empty() {
        return Ok(());
    }
    bail!(
        "{} programs ran without a durable record, such as {:?}; {} did have one",
        lost.len(),
        lost.first(),
        recorded.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_without_record_is_a_failure() {
        let seen = markers(b"ab-0-1\nab-1-0\nab-2-");
        assert_eq!(seen.len(), 2);
        let mut recorded: HashSet<String> = ["ab-0-1".to_owned()].into();
        assert!(check(&seen, &recorded).is_err());
        recorded.insert("ab-1-0".into());
        assert!(check(&seen, &recorded).is_ok());
    }
}
