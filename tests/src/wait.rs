//! Waiting with a limit: no scenario hangs for ever, and every limit says what did not happen.

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(30);

/// Longest time between two looks.
const STEP_MAX: Duration = Duration::from_millis(700);

/// How much longer than its limit anything is waited for: limits are those of an idle machine, and this emulation has been seen at a
/// third of that speed.
const PATIENCE: u32 = 2;

/// Shorter to write.
pub const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Asks until there is an answer; an error names what never came.
pub fn until<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let (start, limit) = (Instant::now(), limit * PATIENCE);
    loop {
        let asked = Instant::now();
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            let why = last.map_or(String::new(), |e| format!(" ({e:#})"));
            bail!("not within {} s: {what}{why}", limit.as_secs());
        }
        // What is asked of guardctl takes half a second of a processor that what is waited for needs: every other half at most.
        std::thread::sleep(asked.elapsed().clamp(STEP, STEP_MAX));
    }
}

/// As [`until`], for a condition.
pub fn until_true(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || Ok(ask()?.then_some(())))
}

/// Waits for a child's end, or kills it.
pub fn child(child: &mut Child, limit: Duration) -> Result<Option<i32>> {
    let (start, limit) = (Instant::now(), limit * PATIENCE);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(std::os::unix::process::ExitStatusExt::signal(&status).map_or(status.code(), |s| Some(128 + s)));
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(STEP);
    }
}

/// Runs a command to its end, with a limit, and gives everything it printed.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let line = format!("{command:?}");
    let mut running = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {line}"))?;
    let (out, err) = (drain(running.stdout.take()), drain(running.stderr.take()));
    let Some(_) = child(&mut running, limit)? else { bail!("still running after {} s: {line}", limit.as_secs()) };
    let status = running.wait()?;
    let join = |thread: std::thread::JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: join(out), stderr: join(err) })
}

fn drain(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        bytes
    })
}
