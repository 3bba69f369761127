//! Work that no session governs, with Guard loaded and without: every hook costs something.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::figures::ratio;

/// Name and shell text.
const JOBS: [(&str, &str); 3] = [
    ("git status", "cd /root/bench-repository && git status > /dev/null"),
    ("find", "find /usr/lib /usr/share -type f > /dev/null"),
    (
        "python compile",
        "rm -rf /tmp/compiled && python3 -c 'import compileall, sys; \
      sys.pycache_prefix = \"/tmp/compiled\"; compileall.compile_dir(\"/usr/lib/python3.11/json\", quiet=1); \
      compileall.compile_dir(\"/usr/lib/python3.11/email\", quiet=1)'",
    ),
];

/// Times of the jobs, without and with.
pub struct Work {
    without: Vec<Vec<f64>>,
    with: Vec<Vec<f64>>,
}

impl Work {
    /// Makes a repository of some hundred files.
    pub fn prepare() -> Result<Self> {
        let text = "rm -rf /root/bench-repository && mkdir /root/bench-repository && cd /root/bench-repository && \
                    git init -q && for d in $(seq 20); do mkdir d$d; for f in $(seq 20); do echo $f > d$d/f$f; done; done; \
                    git add -A && git -c user.name=a -c user.email=a@b commit -qm all";
        shell(text)?;
        let work = Self { without: vec![Vec::new(); JOBS.len()], with: vec![Vec::new(); JOBS.len()] };
        measure(&mut vec![Vec::new(); JOBS.len()])?;
        Ok(work)
    }

    /// Guard is not loaded.
    pub fn without(&mut self) -> Result<()> {
        measure(&mut self.without)
    }

    /// Guard is loaded.
    pub fn with(&mut self) -> Result<()> {
        measure(&mut self.with)
    }

    /// Loaded ÷ not loaded.
    pub fn report(&self) -> Value {
        let mut all = json!({});
        for (index, (name, _)) in JOBS.iter().enumerate() {
            let (with, without) = (self.with.get(index), self.without.get(index));
            let pairs: Vec<(f64, f64)> =
                with.into_iter().flatten().copied().zip(without.into_iter().flatten().copied()).collect();
            all[name] = ratio(&pairs);
        }
        all
    }
}

/// Each job once more before it counts: programs that were just attached or detached have emptied caches.
fn measure(into: &mut [Vec<f64>]) -> Result<()> {
    for ((_, text), times) in JOBS.iter().zip(into) {
        shell(text)?;
        let start = Instant::now();
        shell(text)?;
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn shell(text: &str) -> Result<()> {
    let status = Command::new("bash").args(["-c", text]).stdin(Stdio::null()).status().context("bash")?;
    if !status.success() {
        bail!("`{text}` ended with {status}");
    }
    Ok(())
}
