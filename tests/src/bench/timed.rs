//! One program for every contestant: it starts a program so and so often when told to, and says how long each took.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::NOOP;
use crate::wait::{seconds, until};

/// Execs before those that count: caches are filled, threads are there.
const WARM: usize = 10;

/// Reads counts from standard input; prints a line of nanoseconds for each. A program that cannot be started counts too.
pub fn child(words: &[&str]) -> Result<bool> {
    let program = words.first().copied().unwrap_or(NOOP);
    for line in std::io::stdin().lock().lines() {
        let count: usize = line?.trim().parse().context("a count")?;
        let times: Vec<String> = (0..count).map(|_| one(program).to_string()).collect();
        println!("times {}", times.join(" "));
    }
    Ok(true)
}

/// Nanoseconds of one fork, exec and wait.
fn one(program: &str) -> u128 {
    let start = Instant::now();
    let _ = Command::new(program).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    start.elapsed().as_nanos()
}

/// The program as it is.
pub fn bare() -> Command {
    let mut command = crate::session::as_user("alice", "/home/alice");
    command.args(["guard-guest-tests", "bench-loop", NOOP]);
    command
}

/// A program that is told to loop.
pub struct Looping {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Looping {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, out })
    }

    /// One round; the program ends with it.
    pub fn round(mut self, execs: usize) -> Result<Vec<f64>> {
        let mut stdin = self.child.stdin.take().context("no stdin")?;
        let mut measured = Vec::new();
        for count in [WARM, execs] {
            writeln!(stdin, "{count}")?;
            measured = loop {
                let mut line = String::new();
                if self.out.read_line(&mut line)? == 0 {
                    bail!("the loop ended early: {:?}", self.child.wait());
                }
                if let Some(times) = parse(&line) {
                    break times;
                }
            };
        }
        drop(stdin);
        self.child.wait()?;
        Ok(measured)
    }
}

/// What a session has printed so far.
pub struct Printed {
    lines: usize,
}

impl Printed {
    /// The times of the line that is awaited, once it is there.
    pub fn check(&self, out: String) -> Option<Vec<f64>> {
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(parse).nth(self.lines)
    }
}

/// As [`Looping::round`], for a session.
pub fn rounds(
    tell: &mut dyn FnMut(&[u8]) -> Result<()>,
    ask: &mut dyn FnMut(&Printed) -> Option<Vec<f64>>,
    execs: usize,
) -> Result<Vec<f64>> {
    let mut measured = Vec::new();
    for (lines, count) in [WARM, execs].into_iter().enumerate() {
        tell(format!("{count}\n").as_bytes())?;
        measured = until("a governed round", seconds(120), || Ok(ask(&Printed { lines })))?;
    }
    Ok(measured)
}

fn parse(line: &str) -> Option<Vec<f64>> {
    line.trim().strip_prefix("times ")?.split(' ').map(|n| n.parse().ok()).collect()
}

/// Lets what was just started or stopped come to rest.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(700));
}
