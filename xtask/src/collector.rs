//! A collector of its own for a measurement or a test, and the load that ships to it.
//!
//! Everything lies in the folder that the caller names; the collector ends with the value. Fails: a collector that does not
//! start is an error with what it said.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{build, host};

/// Hosts that ship at the same time.
pub const HOSTS: usize = 4;

/// What is shipped, and what loads it.
pub struct Tools {
    collector: PathBuf,
    load: PathBuf,
}

impl Tools {
    /// With the compiler's full effort, for figures.
    pub fn release() -> Result<Self> {
        host::say("building the collector and its load for release");
        Self::build(&["build", "--package", "guard-collector", "--release"], "release")
    }

    /// As the tests have them, after [`build::all`].
    pub fn debug() -> Result<Self> {
        Self::build(&build::selection(), "debug")
    }

    fn build(selection: &[&str], folder: &str) -> Result<Self> {
        host::run(build::linting_cargo().args(selection).args(["--quiet", "--bins", "--example", "log_load"]))?;
        let built = host::target().join(folder);
        Ok(Self { collector: built.join("guard-collector"), load: built.join("examples/log_load") })
    }

    /// The load, to be given its arguments.
    pub fn load(&self) -> Command {
        Command::new(&self.load)
    }
}

/// Runs the load; its answer.
pub fn measure(load: &mut Command) -> Result<Value> {
    let answer = host::output(load)?;
    serde_json::from_str(&answer).with_context(|| format!("not JSON: {answer}"))
}

/// A collector with certificates for its hosts, in a folder of its own.
pub struct Collector {
    dir: PathBuf,
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Drop for Collector {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    /// Makes one and starts it.
    pub fn start(tools: &Tools, dir: &Path) -> Result<Self> {
        Self::make(tools, dir)?;
        Self::serve(tools, dir.to_path_buf())
    }

    /// Makes one with certificates for its hosts, on any free port.
    pub fn make(tools: &Tools, dir: &Path) -> Result<()> {
        let program = &tools.collector;
        host::run_quiet(Command::new(program).args(["init", "--name", "bench", "--dir"]).arg(dir))?;
        for host in 0..HOSTS {
            let mut client = Command::new(program);
            client.args(["client", "--role", "node", "--name", &format!("host{host}"), "--dir"]).arg(dir);
            host::run_quiet(client.arg("--out").arg(dir.join(format!("clients/host{host}"))))?;
        }
        let file = dir.join("collector.toml");
        let config = std::fs::read_to_string(&file)?;
        ensure!(config.contains("127.0.0.1:7443"), "the default configuration listens elsewhere");
        Ok(std::fs::write(&file, config.replace("127.0.0.1:7443", "127.0.0.1:0"))?)
    }

    /// Starts the one in a folder.
    pub fn serve(tools: &Tools, dir: PathBuf) -> Result<Self> {
        let mut serve = Command::new(&tools.collector);
        // As the shipped unit does.
        serve.env("MALLOC_ARENA_MAX", "2");
        serve.args(["serve", "--config"]).arg(dir.join("collector.toml")).stderr(Stdio::piped());
        let mut child = serve.spawn().context("starting the collector")?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let mut said = String::new();
        let address = loop {
            let Some(line) = lines.next() else { bail!("the collector did not start: {said}") };
            let line = line?;
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split(' ').next().unwrap_or_default().to_owned();
            }
            said += &line;
        };
        // A full pipe would stop the collector.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).filter(|l| l.contains("ERROR")).for_each(|l| host::say(&l))
        });
        Ok(Self { dir, child, address })
    }

    /// Ships records to it, at most so many in a second.
    pub fn load(&self, tools: &Tools, records: u64, rate: Option<u64>) -> Result<Value> {
        let mut load = tools.load();
        load.args(["guard", "--address", &self.address, "--pid", &self.child.id().to_string()]);
        load.args(["--records", &records.to_string(), "--reader"]).arg(self.dir.join("clients/admin"));
        for host in 0..HOSTS {
            load.arg("--node").arg(self.dir.join(format!("clients/host{host}")));
        }
        measure(load.args(rate.map(|r| format!("--rate={r}"))))
    }

    /// Times questions to it.
    pub fn ask(&self, tools: &Tools) -> Result<Value> {
        let mut load = tools.load();
        measure(load.args(["ask", "--address", &self.address, "--reader"]).arg(self.dir.join("clients/admin")))
    }

    /// Ends it as systemd does; returns its folder.
    pub fn stop(mut self) -> Result<PathBuf> {
        host::run_quiet(&mut host::cmd("kill", ["-TERM", &self.child.id().to_string()]))?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "the collector ended with {ended}");
        Ok(self.dir.clone())
    }
}
