//! A log that a real collector published, read by programs that share no line with Guard, and copies of it that were changed:
//! those have to be refused.
//!
//! `fsck` of Tessera 1.0.4 ends with 0 whatever it found, and may hang with one worker: what counts is the line that it prints, within a
//! limit. Fails: with what the program said.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::go::Programs;
use super::{Person, RECORDS};
use crate::collector::{Collector, Tools};
use crate::host;

/// For one run over a log of this size, which takes a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs them all.
pub fn outsiders(tools: &Tools) -> Result<()> {
    let programs = Programs::get()?;
    let place = tempfile::Builder::new().prefix("interop-").tempdir_in(host::target())?;
    let published = Published::make(tools, place.path())?;
    host::say("interop: fsck and x/mod read the log as it lies, and an export");
    for dir in [&published.log, &published.export] {
        let size = published.readers(&programs, dir)?;
        ensure!(size >= 2 * RECORDS, "a log of {size}");
    }
    published.proofs(&programs)?;
    host::say("interop: fsck and x/mod refuse what was changed");
    for (name, change) in CHANGES {
        let copy = place.path().join(name);
        host::run_quiet(host::cmd("cp", ["-a"]).arg(&published.log).arg(&copy))?;
        change(&published, &programs, &copy).with_context(|| format!("making the copy {name}"))?;
        published.refused(&programs, name, &copy)?;
    }
    Ok(())
}

/// What a collector left, and what an outsider was given of it.
struct Published {
    /// The public tree where it lies.
    log: PathBuf,
    /// The same as `guardctl log export` writes it.
    export: PathBuf,
    key: PathBuf,
    secret: PathBuf,
    /// A checkpoint that had about half of the leaves, and the proof that the log continued it.
    older: PathBuf,
    growth: PathBuf,
    receipt: PathBuf,
    record: PathBuf,
}

impl Published {
    fn make(tools: &Tools, place: &Path) -> Result<Self> {
        let dir = place.join("collector");
        let file = |name: &str| place.join(name);
        let this = Self {
            log: dir.join("data/log"),
            export: file("export"),
            key: dir.join("log.vkey"),
            secret: dir.join("keys/log.skey"),
            older: file("older"),
            growth: file("growth"),
            receipt: file("receipt"),
            record: file("record"),
        };
        let collector = Collector::start(tools, &dir)?;
        let person = Person::new(&dir, &collector.address)?;
        let published = |person: &Person| person.until(|s| s.get("checkpoint_size") == s.get("log_size"));
        collector.load(tools, RECORDS, None)?;
        published(&person)?;
        fs::copy(this.log.join("checkpoint"), &this.older)?;
        collector.load(tools, RECORDS, None)?;
        published(&person)?;
        let text = |path: &Path| path.display().to_string();
        person.guardctl(&["log", "export", &text(&this.export)])?;
        person.guardctl(&["log", "prove", "7", "--out", &text(&this.receipt), "--save-record", &text(&this.record)])?;
        person.guardctl(&["log", "consistency", &text(&this.older), "--out", &text(&this.growth)])?;
        collector.stop()?;
        Ok(this)
    }

    /// Both read a log; its size.
    fn readers(&self, programs: &Programs, dir: &Path) -> Result<u64> {
        let text = fs::read_to_string(dir.join("checkpoint"))?;
        let mut lines = text.lines().skip(1);
        let (size, root) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let (said, in_time) = self.fsck(programs, dir)?;
        let wanted = format!("Successfully fsck'd log with size {size} and root {root} ");
        ensure!(in_time && said.contains(&wanted) && !said.contains("failed"), "fsck of {}: {said}", dir.display());
        let said = host::output(self.outsider(programs, "log").arg(&self.key).arg(dir))?;
        ensure!(said.trim() == format!("verified {size} entries under root {root}"), "x/mod says {said}");
        Ok(size.parse()?)
    }

    /// A receipt and a consistency proof of Guard's hold with `tlog`, and not for another record or another head.
    fn proofs(&self, programs: &Programs) -> Result<()> {
        let said = host::output(self.outsider(programs, "proof").args([&self.key, &self.receipt, &self.record]))?;
        ensure!(said.starts_with("verified leaf 7 of "), "of the receipt: {said}");
        let said = host::output(self.outsider(programs, "growth").args([&self.key, &self.older, &self.growth]))?;
        ensure!(said.starts_with("verified growth from "), "of the growth: {said}");
        let other = self.outsider(programs, "proof").args([&self.key, &self.receipt, &self.older]).output()?;
        ensure!(!other.status.success(), "a receipt was taken for another record");
        let forged = self.older.with_extension("forged");
        fs::write(&forged, self.forge(programs, &fs::read_to_string(&self.older)?)?)?;
        let other = self.outsider(programs, "growth").args([&self.key, &forged, &self.growth]).output()?;
        ensure!(!other.status.success(), "a consistency proof was taken for another older root");
        Ok(())
    }

    fn outsider(&self, programs: &Programs, what: &str) -> Command {
        host::cmd(&programs.outsider.display().to_string(), [what])
    }

    /// What `fsck` says, and whether it ended in time.
    fn fsck(&self, programs: &Programs, dir: &Path) -> Result<(String, bool)> {
        let output = dir.with_extension("fsck");
        let mut fsck = Command::new(&programs.fsck);
        fsck.args(["-N", "4", "-ui=false"]).arg(format!("--storage_url=file://{}/", dir.display()));
        fsck.arg(format!("--public_key={}", self.key.display())).stdin(Stdio::null()).stdout(Stdio::null());
        let mut fsck = fsck.stderr(fs::File::create(&output)?).spawn().context("starting fsck")?;
        let end = Instant::now() + PATIENCE;
        let mut in_time = true;
        while fsck.try_wait()?.is_none() {
            if Instant::now() > end {
                in_time = false;
                fsck.kill()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((fs::read_to_string(&output)?, in_time))
    }

    /// Neither takes the copy, and both say why.
    fn refused(&self, programs: &Programs, name: &str, copy: &Path) -> Result<()> {
        let (said, in_time) = self.fsck(programs, copy)?;
        let refused = in_time && said.contains("fsck failed: ") && !said.contains("Successfully");
        ensure!(refused, "{name}: fsck did not refuse it: {said}");
        let outsider = self.outsider(programs, "log").arg(&self.key).arg(copy).output()?;
        let said = String::from_utf8_lossy(&outsider.stderr);
        ensure!(
            !outsider.status.success() && said.starts_with("outsider: "),
            "{name}: x/mod did not refuse it: {said}"
        );
        Ok(())
    }

    /// The same head with another root, signed by the log's own key, which `x/mod` reads as Guard wrote it.
    fn forge(&self, programs: &Programs, checkpoint: &str) -> Result<String> {
        let (text, _) = checkpoint.split_once("\n\n").context("no checkpoint")?;
        let mut lines: Vec<&str> = text.split('\n').collect();
        let other = turned(lines.pop().context("no root")?);
        lines.push(&other);
        let mut sign = self.outsider(programs, "sign");
        let mut child = sign.arg(&self.secret).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no input")?.write_all(format!("{}\n", lines.join("\n")).as_bytes())?;
        let output = child.wait_with_output()?;
        let note = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && note.contains("\n\n\u{2014} "), "not signed: {note}");
        Ok(note)
    }
}

/// Another first letter.
fn turned(base64: &str) -> String {
    let first = if base64.starts_with('A') { "B" } else { "A" };
    format!("{first}{}", base64.get(1..).unwrap_or_default())
}

type Change = fn(&Published, &Programs, &Path) -> Result<()>;

/// What is done to a copy.
const CHANGES: [(&str, Change); 6] = [
    ("entry", |_, _, copy| flip(&copy.join("tile/entries/003"), 1000)),
    ("last-entry", |_, _, copy| flip(&partial(&copy.join("tile/entries"))?, 40)),
    ("tile", |_, _, copy| flip(&copy.join("tile/0/002"), 32 * 100)),
    ("upper-tile", |_, _, copy| flip(&partial(&copy.join("tile/1"))?, 3)),
    ("changed-checkpoint", |_, _, copy| {
        let path = copy.join("checkpoint");
        let text = fs::read_to_string(&path)?;
        let root = text.lines().nth(2).context("no root")?.to_owned();
        replace(&path, text.replace(&root, &turned(&root)).as_bytes())
    }),
    ("forged-checkpoint", |published, programs, copy| {
        let path = copy.join("checkpoint");
        let forged = published.forge(programs, &fs::read_to_string(&path)?)?;
        replace(&path, forged.as_bytes())
    }),
];

/// The newest partial tile of a level.
fn partial(level: &Path) -> Result<PathBuf> {
    let folder = fs::read_dir(level)?.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some());
    let folder = folder.with_context(|| format!("{} has no partial tile", level.display()))?;
    let width = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u16>().ok());
    let newest = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).max_by_key(width);
    newest.with_context(|| format!("{} is empty", folder.display()))
}

fn flip(path: &Path, at: usize) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let Some(byte) = bytes.get_mut(at) else { bail!("{} has only {} bytes", path.display(), bytes.len()) };
    *byte ^= 1;
    replace(path, &bytes)
}

/// Full tiles are read-only.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::remove_file(path)?;
    Ok(fs::write(path, bytes)?)
}
