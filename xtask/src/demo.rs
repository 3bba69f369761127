//! `cargo xtask demo`: one governed agent session, whole and for real, in a guest that enforces; or real sessions replayed.
//!
//! The guest does the work (`deploy/demo/run.sh`) and prints what happened; lines that start with `@@` are for this
//! program, which checks them. It must not count what it did not see: the last line is printed only when everything
//! held. Fails: exit 1 with the list of what did not hold; 69 when `--native` is asked of a kernel that cannot.

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::vm::{Spec, Vm};
use crate::{build, host, kernels};

mod native;
mod report;
mod trace;

use report::Report;

/// Folder under `target/vm/` with the console and the guest's disks.
const NAME: &str = "demo";

/// `cargo xtask demo`.
#[derive(Args)]
pub struct DemoArgs {
    /// Kernel series: 6.1, 6.12 or 7.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Replays real agent sessions from a file of JSON lines instead of the demo's own script.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// With --trace: only this session; may be given several times.
    #[arg(long = "session", value_name = "ID", requires = "trace")]
    sessions: Vec<String>,
    /// With --trace: at most so many sessions, those with the most commands whose programs the guest has.
    #[arg(long, value_name = "N", requires = "trace")]
    first: Option<usize>,
    /// With --trace: at most so many commands of each session; the rest counts as skipped.
    #[arg(long, value_name = "N", requires = "trace")]
    commands: Option<u32>,
    /// Leaves the VM up with a shell on this terminal; `exit` there ends it.
    #[arg(long, conflicts_with = "native")]
    keep: bool,
    /// Runs on this host instead of a VM, where its kernel allows.
    #[arg(long)]
    native: bool,
}

/// Runs the demo and returns the exit code.
pub fn command(args: &DemoArgs) -> Result<u8> {
    let series = kernels::series(&args.kernel)?;
    if args.native && !native::possible()? {
        return Ok(native::UNAVAILABLE);
    }
    let traces = match &args.trace {
        Some(file) => Some(trace::split(file, &args.sessions, args.first)?),
        None => None,
    };
    let started = Instant::now();
    host::say("demo: building (the first time compiles everything: minutes)");
    build::all()?;
    let mut copy = vec![host::root().join("deploy/demo")];
    copy.extend(traces.as_ref().map(|dir| dir.path().join("traces")));
    let mode = if traces.is_some() { "trace" } else { "demo" };
    let most = args.commands.unwrap_or(u32::MAX);
    let mut report = Report::default();
    let mut progress = Progress { started, stage: "booting the guest".to_owned(), shown: Instant::now() };
    progress.show();
    let code = if args.native {
        let mut child = native::command(&copy, mode)
            .env("COMMANDS", most.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting unshare")?;
        let lines = lines_of(child.stdout.take().context("no output")?);
        follow(&lines, &mut report, &mut progress);
        child.wait()?.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)
    } else {
        in_guest(args, series, mode, &copy, &mut report, &mut progress)?
    };
    finish(&report, mode, code)
}

fn in_guest(
    args: &DemoArgs,
    series: kernels::Series,
    mode: &str,
    copy: &[PathBuf],
    report: &mut Report,
    progress: &mut Progress,
) -> Result<u8> {
    let (keep, most) = (u8::from(args.keep), args.commands.unwrap_or(u32::MAX));
    let text = format!("KEEP={keep} COMMANDS={most} bash /mnt/copy/demo/run.sh {mode} 2>&1");
    let hours = if args.keep || mode == "trace" { 24 } else { 1 };
    let spec = Spec {
        guard: false,
        copy,
        shell: args.keep,
        deadline: Duration::from_secs(hours * 3600),
        ..Spec::new(NAME, series, &text)
    };
    let out = host::target().join("vm").join(NAME).join("out");
    let _ = std::fs::remove_file(&out);
    let mut vm = Vm::boot(&spec, if args.keep { Stdio::inherit() } else { Stdio::piped() })?;
    let over = Arc::new(AtomicBool::new(false));
    let lines = match vm.take_stdout() {
        Some(stdout) => lines_of(stdout),
        None => lines_of(Growing { path: out, file: None, over: Arc::clone(&over) }),
    };
    // The guest is waited for on a thread of its own, so that its deadline holds while its output is shown.
    let waiting = std::thread::spawn(move || {
        let ended = vm.wait();
        over.store(true, Ordering::Relaxed);
        ended
    });
    follow(&lines, report, progress);
    if args.keep {
        println!("{}", report.last_line(mode));
    }
    let ended = waiting.join().map_err(|_| anyhow::anyhow!("the thread that waits for the guest panicked"))??;
    Ok(ended.code)
}

/// Shows the guest's lines as they come, until there are no more.
fn follow(lines: &Receiver<String>, report: &mut Report, progress: &mut Progress) {
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => match line.strip_prefix("@@") {
                Some(told) => {
                    if let Some(stage) = told.strip_prefix("progress ") {
                        progress.stage = stage.to_owned();
                        progress.show();
                    } else if let Some(review) = told.strip_prefix("review ") {
                        println!("  bob {review}");
                    }
                    report.add(told);
                    if told == "done" {
                        return;
                    }
                }
                None => println!("{line}"),
            },
            Err(RecvTimeoutError::Timeout) => progress.tick(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn finish(report: &Report, mode: &str, code: u8) -> Result<u8> {
    let console = host::target().join("vm").join(NAME).join("console.log");
    if console.exists() {
        host::say(&format!("demo: the guest's console is in {}", console.display()));
    }
    let mut wrong = report.wrong(mode);
    if code != 0 {
        wrong.push(format!("the guest's script ended with {code}"));
    }
    for line in report.remarks() {
        println!("{line}");
    }
    if wrong.is_empty() {
        println!("{}", report.last_line(mode));
        return Ok(0);
    }
    for line in &wrong {
        println!("demo: not as it should be: {line}");
    }
    println!("{}", report.last_line(mode));
    Ok(1)
}

/// Says now and then that the demo is alive, with the time it has taken.
struct Progress {
    started: Instant,
    stage: String,
    shown: Instant,
}

impl Progress {
    fn show(&mut self) {
        host::say(&format!("demo: {:3} s: {}", self.started.elapsed().as_secs(), self.stage));
        self.shown = Instant::now();
    }

    fn tick(&mut self) {
        let every = if std::io::stderr().is_terminal() { 5 } else { 15 };
        if self.shown.elapsed() >= Duration::from_secs(every) {
            self.show();
        }
    }
}

/// Lines of a stream, through a channel, so that reading can be given up on.
fn lines_of(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive): (Sender<String>, _) = channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            if send.send(line).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receive
}

/// A file that the guest is still writing.
struct Growing {
    path: PathBuf,
    file: Option<File>,
    over: Arc<AtomicBool>,
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.file.is_none() {
                self.file = File::open(&self.path).ok();
            }
            let n = self.file.as_mut().map_or(Ok(0), |f| f.read(buffer))?;
            if n > 0 || self.over.load(Ordering::Relaxed) {
                return Ok(n);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Refuses early when a file is not there.
fn readable(path: &Path) -> Result<File> {
    match File::open(path) {
        Ok(file) => Ok(file),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    }
}

/// The script of a native run, as a command.
fn script(program: &str, words: &[&str]) -> Command {
    host::cmd(program, words)
}
