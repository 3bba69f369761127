//! The log against programs that others wrote: `litewitness`, a C2SP witness, cosigns it and refuses a rollback; Tessera's
//! `fsck` and Go's `x/mod` ([`outsiders`]) read it and notice what was changed.
//!
//! It runs here, on loopback, with the collector as it ships. The programs come from Debian's packages, unpacked into the cache,
//! never installed. Fails: with what the other program, or Guard about it, said.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::collector::{Collector, Tools};
use crate::{apt, build, host};

mod go;
mod outsiders;

pub use outsiders::outsiders;

/// Suite of all of them.
const SUITE: &str = "sid";
/// Package of the witness.
const PACKAGE: &str = "torchwood";
/// Records of one step.
const RECORDS: u64 = 2_000;
const PATIENCE: Duration = Duration::from_secs(90);

/// Runs all of it, by itself.
pub fn command() -> Result<u8> {
    build::all()?;
    let tools = Tools::debug()?;
    witness(&tools)?;
    outsiders(&tools)?;
    host::say("interop: ok");
    Ok(0)
}

/// The witness cosigns a log that grows, says so after a restart, and refuses an older copy.
pub fn witness(tools: &Tools) -> Result<()> {
    let programs = programs()?;
    std::fs::create_dir_all(host::target())?;
    let place = tempfile::Builder::new().prefix("interop-").tempdir_in(host::target())?;
    let dir = place.path().join("collector");
    Collector::make(tools, &dir)?;
    let log = std::fs::read_to_string(dir.join("log.vkey"))?.trim().to_owned();
    let witness = Witness::start(&programs, place.path(), &log)?;
    let policy = format!("log {log}\nwitness lite {} {}\nquorum lite\n", witness.vkey, witness.url);
    std::fs::write(dir.join("witnesses"), policy)?;
    let file = dir.join("collector.toml");
    let config = std::fs::read_to_string(&file)?;
    std::fs::write(&file, config + "\n[witness]\npolicy = \"witnesses\"\nask_ms = 100\nwithout_quorum = \"go_on\"\n")?;

    host::say("interop: litewitness cosigns");
    let collector = Collector::serve(tools, dir.clone())?;
    collector.load(tools, RECORDS, None)?;
    let person = Person::new(&dir, &collector.address)?;
    person
        .until(|s| witnesses(s, "quorum") == true && s.get("checkpoint_size") == Some(witnesses(s, "cosigned_size")))?;
    verifies(&person, place.path())?;
    let dir = collector.stop()?;

    host::say("interop: litewitness refuses an older copy of the log");
    let copy = place.path().join("copy");
    host::run_quiet(host::cmd("cp", ["-a"]).arg(&dir).arg(&copy))?;
    let collector = Collector::serve(tools, dir)?;
    collector.load(tools, RECORDS, None)?;
    let person = Person::new(&copy, &collector.address)?;
    let newer = person.until(|s| s.get("checkpoint_size") == Some(witnesses(s, "cosigned_size")))?;
    collector.stop()?;
    // Lock and all: only somebody outside can know better.
    let collector = Collector::serve(tools, copy.clone())?;
    let person = Person::new(&copy, &collector.address)?;
    let refused = person.until(|s| witness_error(s).contains("an older copy?"))?;
    ensure!(witnesses(&refused, "quorum") == false, "the quorum counts: {refused}");
    let size = witnesses(&newer, "cosigned_size").to_string();
    ensure!(witness_error(&refused).contains(&size), "the witness has seen {size}: {refused}");
    person.until(|_| person.records().is_ok_and(|text| text.contains("\"conflict\"")))?;
    collector.stop()?;
    Ok(())
}

fn witnesses<'a>(status: &'a Value, key: &str) -> &'a Value {
    status.get("witnesses").and_then(|w| w.get(key)).unwrap_or(&Value::Null)
}

fn witness_error(status: &Value) -> &str {
    witnesses(status, "witnesses").pointer("/0/error").and_then(Value::as_str).unwrap_or_default()
}

/// The whole log and one record's receipt, held to the policy.
fn verifies(person: &Person, place: &Path) -> Result<()> {
    let (policy, receipt, record) = (person.dir.join("witnesses"), place.join("receipt"), place.join("record"));
    let text = |path: &Path| path.display().to_string();
    let (policy, receipt, record) = (text(&policy), text(&receipt), text(&record));
    let said = person.guardctl(&["log", "verify", "--policy", &policy])?;
    ensure!(said.contains("cosigned by lite"), "no word of the witness: {said}");
    person.guardctl(&["log", "prove", "7", "--out", &receipt, "--save-record", &record])?;
    let said = person.guardctl(&["log", "verify", "--proof", &receipt, "--record", &record, "--policy", &policy])?;
    ensure!(said.contains("cosigned by lite"), "no word of the witness: {said}");
    Ok(())
}

/// Who asks the collector, with `guardctl`.
struct Person {
    dir: PathBuf,
}

impl Person {
    fn new(dir: &Path, address: &str) -> Result<Self> {
        let own = dir.join("clients/admin");
        let path = |name: &str| own.join(name).display().to_string();
        let text = format!(
            "collector = \"https://localhost:{}\"\nca = {:?}\ncert = {:?}\nkey = {:?}\nstate = {:?}\n",
            address.rsplit(':').next().unwrap_or_default(),
            path("ca.pem"),
            path("cert.pem"),
            path("key.pem"),
            path("state.json"),
        );
        std::fs::write(own.join("guardctl.toml"), text)?;
        Ok(Self { dir: dir.to_path_buf() })
    }

    fn guardctl(&self, arguments: &[&str]) -> Result<String> {
        let mut guardctl = Command::new(host::target().join("debug/guardctl"));
        guardctl.arg("--config").arg(self.dir.join("clients/admin/guardctl.toml")).args(arguments);
        host::output(&mut guardctl)
    }

    fn records(&self) -> Result<String> {
        self.guardctl(&["query", "--limit", "10000", "--output", "json"])
    }

    /// Asks for the status until it holds.
    fn until(&self, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status: Value = serde_json::from_str(&self.guardctl(&["status", "--output", "json"])?)?;
            if holds(&status) {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("not after {} s: {status:#}", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Folder with the programs of the package.
fn programs() -> Result<PathBuf> {
    let into = host::cache()?.join("interop").join(PACKAGE);
    let programs = into.join("usr/bin");
    if !programs.join("litewitness").exists() {
        std::fs::create_dir_all(&into)?;
        apt::Suites::open(&[SUITE])?.unpack(PACKAGE, &into)?;
    }
    if !host::has("ssh-agent") {
        let suite = apt::host_suite()?;
        apt::Suites::open(&[&suite])?.install(&suite, &["openssh-client"])?;
    }
    Ok(programs)
}

/// `litewitness` with its key in an `ssh-agent`.
struct Witness {
    children: Vec<Child>,
    vkey: String,
    url: String,
}

impl Drop for Witness {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Witness {
    fn start(programs: &Path, place: &Path, log: &str) -> Result<Self> {
        let (key, socket, db) = (place.join("witness-key"), place.join("agent.sock"), place.join("witness.db"));
        host::run_quiet(host::cmd("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
        let mut this = Self { children: Vec::new(), vkey: String::new(), url: String::new() };
        let mut agent = host::cmd("ssh-agent", ["-D", "-a"]);
        this.children.push(agent.arg(&socket).stdout(Stdio::null()).spawn().context("starting ssh-agent")?);
        let end = Instant::now() + Duration::from_secs(10);
        while !socket.exists() {
            ensure!(Instant::now() < end, "ssh-agent makes no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        host::run_quiet(host::cmd("ssh-add", ["-q"]).arg(&key).env("SSH_AUTH_SOCK", &socket))?;
        let print = host::output(host::cmd("ssh-keygen", ["-l", "-f"]).arg(&key))?;
        let print = print.split(' ').nth(1).context("no fingerprint")?.to_owned();
        let origin = log.split('+').next().unwrap_or_default();
        let tell = |what: &str| {
            let mut tell = Command::new(programs.join("witnessctl"));
            tell.args([what, "-origin", origin, "-db"]).arg(&db);
            tell
        };
        host::run_quiet(&mut tell("add-log"))?;
        host::run_quiet(tell("add-key").args(["-key", log]))?;
        // It does not say which port it was given, so it is told one that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut serve = Command::new(programs.join("litewitness"));
        serve.args(["-listen", &address, "-name", "witness.test/lite", "-key", &print, "-db"]).arg(&db);
        serve.arg("-ssh-agent").arg(&socket).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = serve.spawn().context("starting litewitness")?;
        let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
        this.children.push(child);
        while this.url.is_empty() {
            let line = lines.next().context("litewitness ended")??;
            let word = |key: &str| line.split_once(key).and_then(|(_, rest)| rest.split(' ').next());
            if let Some(vkey) = word("vkey=") {
                this.vkey = vkey.to_owned();
            }
            if line.contains("msg=listening") {
                this.url = format!("http://{address}");
            }
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(this)
    }
}
