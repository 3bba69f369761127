//! The shipped systemd units, installed as docs/operations.md says, under a real systemd.
//!
//! For a guest that was booted with systemd and without Guard: `cargo xtask vm --systemd --no-guard`. Its results are those of
//! `systemctl`. Fails: at the first step that is not as the manual says.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::life::Live;
use crate::guest::{self, ensure};
use crate::wait::{output, seconds, until_true};
use crate::{attacks, ctl};

const COLLECTOR: &str = "/var/lib/guard-collector";
const AGENT: &str = "guard-agent";
const UNIT: &str = "guard-agent.service";

fn shell(text: &str) -> Result<Output> {
    let done = output(Command::new("bash").args(["-ec", text]), seconds(120))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let log = output(Command::new("journalctl").args(["-n", "40", "--no-pager"]), seconds(30))?;
        bail!("`{text}`: {}: {said}\n{}", done.status, String::from_utf8_lossy(&log.stdout));
    }
    Ok(done)
}

/// A property of the unit, as systemd says it.
fn property(name: &str) -> Result<String> {
    let done = shell(&format!("systemctl show -P {name} {UNIT}"))?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn install_collector() -> Result<()> {
    shell(&format!(
        "useradd --system --home-dir {COLLECTOR} guard-collector
         guard-collector init --dir {COLLECTOR} --name guest --host localhost
         guard-collector client --dir {COLLECTOR} --name bob --role reviewer --out /root/bob
         chown -R guard-collector: {COLLECTOR}
         install -m 644 /mnt/copy/systemd/guard-collector.service /etc/systemd/system/
         systemctl enable --now guard-collector"
    ))?;
    // Where the other scenarios look for the administrator's and the reviewer's keys.
    let text = fs::read_to_string("/mnt/payload/etc/guardctl.toml")?;
    fs::create_dir_all("/etc/guard")?;
    let admin = text.replace("/var/lib/guard/collector", COLLECTOR);
    fs::write("/etc/guard/guardctl.toml", &admin)?;
    fs::write("/etc/guard/guardctl-admin.toml", &admin)?;
    let bob = text.replace("/var/lib/guard/collector/clients/admin", "/root/bob");
    Ok(fs::write("/etc/guard/guardctl-bob.toml", bob)?)
}

fn install_agent() -> Result<()> {
    shell(&format!(
        "install -D -m 644 /mnt/copy/agent.toml /etc/guard/agent.toml
         sed -i 's|https://collector.example:7443|https://localhost:7443|' /etc/guard/agent.toml
         sed -i 's|^heartbeat_seconds = 5|heartbeat_seconds = 20|' /etc/guard/agent.toml
         cd {COLLECTOR}/clients/node-guest; install -D -m 600 -t /etc/guard/tls ca.pem cert.pem key.pem; cd /
         guard-agent check --config /etc/guard/agent.toml
         install -m 644 /mnt/copy/systemd/{UNIT} /etc/systemd/system/
         systemctl enable --now {AGENT}"
    ))?;
    guest::enforcing()
}

fn main_pid() -> Result<i32> {
    property("MainPID")?.parse().context("no main process")
}

fn now() -> f64 {
    super::fail_closed::now()
}

/// Everything, in the order of the manual.
pub fn run() -> Result<()> {
    attacks::install()?;
    install_collector().context("the collector")?;
    install_agent().context("the host")?;
    ensure(main_pid()? == guest::supervisor()?, "systemd's main process is not the supervisor")?;
    let live = Live::start("20m")?;
    reloads(&live).context("reload")?;
    replaced(&live, "systemctl restart guard-agent").context("restart")?;
    replaced(&live, &format!("kill -KILL {}", main_pid()?)).context("the main process killed")?;
    upgraded(&live).context("upgrade")?;
    hung(&live).context("the daemon hangs")?;
    stopped(live).context("stop")
}

/// Neither the unit's reload nor systemd's own touches anything.
fn reloads(live: &Live) -> Result<()> {
    let before = (guest::supervisor()?, guest::daemon()?);
    shell("systemctl reload guard-agent; systemctl daemon-reload")?;
    live.runs_after(now())?;
    let after = (guest::supervisor()?, guest::daemon()?);
    if before == after {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&shell("journalctl --no-pager -u guard-agent -n 20")?.stdout).into_owned();
    bail!("supervisor and daemon were {before:?} and are {after:?} after a reload: {log}")
}

/// Another daemon goes on with the session.
fn replaced(live: &Live, how: &str) -> Result<()> {
    let before = guest::daemon()?;
    shell(how)?;
    until_true("another daemon runs", seconds(60), || Ok(guest::daemon().is_ok_and(|daemon| daemon != before)))?;
    goes_on(live)
}

fn goes_on(live: &Live) -> Result<()> {
    guest::enforcing()?;
    live.runs_after(now())?;
    until_true("systemd says that it runs", seconds(20), || Ok(property("SubState")? == "running"))?;
    ensure(main_pid()? == guest::supervisor()?, "systemd's main process is not the supervisor")
}

fn upgraded(live: &Live) -> Result<()> {
    let supervisor = guest::supervisor()?;
    replaced(live, "guard-agent upgrade --config /etc/guard/agent.toml")?;
    ensure(guest::supervisor()? == supervisor, "the upgrade gave the supervisor another process id")
}

fn hung(live: &Live) -> Result<()> {
    let daemon = guest::daemon()?;
    guest::signal(daemon, Signal::STOP)?;
    until_true("the supervisor replaces it", seconds(90), || Ok(guest::daemon().is_ok_and(|next| next != daemon)))?;
    goes_on(live)
}

/// Ends the session in order and takes the programs out.
fn stopped(live: Live) -> Result<()> {
    shell("systemctl stop guard-agent")?;
    let ended = live.ended()?;
    ensure(property("Result")? == "success", format!("systemd says {}", property("Result")?))?;
    let pins = fs::read_dir("/sys/fs/bpf/guard").map(|dir| dir.count()).unwrap_or(0);
    ensure(pins == 0, format!("{pins} pins are left"))?;
    shell("systemctl start guard-agent")?;
    guest::enforcing()?;
    let records = ctl::records(&ended.id)?;
    let reason = ctl::of_kind(&records, "session_end").first().map(|r| r["body"]["reason"].clone()).unwrap_or_default();
    ensure(reason == "daemon_stopped", format!("the session ended with {reason}"))
}
