//! A host enrols with a join token; its daemon renews the certificate under a running session, is cut off when that is revoked, and
//! goes on with the next one.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{ALICE, Session};
use crate::wait::{output, seconds, until_true};

const COLLECTOR: &str = "/var/lib/guard/collector/collector.toml";
const TLS: &str = "/etc/guard/tls";
/// Every half second something is judged and recorded.
const LOOP: &str = "import subprocess, time
for n in range(60):
    subprocess.run(['/usr/bin/true', str(n)]); time.sleep(0.5)
";

fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = output(Command::new(program).args(args), seconds(60))?;
    let (said, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure(out.status.success(), format!("{program} {}: {said}{error}", args.join(" ")))?;
    Ok(said.trim().to_owned())
}

fn enroll(more: &[&str]) -> Result<()> {
    let token = run("guard-collector", &["node", "token", "guest", "--config", COLLECTOR])?;
    let args = ["enroll", "--config", guest::CONFIG, "--collector", "localhost:7444", "--token", &token];
    run("guard-agent", &[&args, more].concat()).map(|_| ())
}

/// Of what enrolment and renewal gave; the certificate that `init` made is for the scenarios after this one.
fn serials() -> Result<Vec<String>> {
    let all = ctl::records_from(0)?;
    let issued = ctl::of_kind(&all, "certificate_issued").into_iter().map(|record| &record["body"]);
    let ours = issued.filter(|b| b["name"] == "guest" && (b["how"] == "enrolled" || b["how"] == "renewed"));
    let serials: Vec<String> = ours.filter_map(|b| b["serial"].as_str().map(str::to_owned)).collect();
    ensure(serials.len() >= 2, format!("{serials:?}"))?;
    Ok(serials)
}

pub fn p4_certificate_renewed_and_revoked() -> Result<()> {
    let before = fs::read_to_string(COLLECTOR)?;
    let result = through(&before);
    guest::kill_collector()?;
    fs::write(COLLECTOR, before)?;
    guest::start_collector()?;
    result
}

fn through(before: &str) -> Result<()> {
    let after =
        before.replace("# enrol_listen = ", "enrol_listen = ").replace("node_seconds = 86400", "node_seconds = 30");
    guest::stop_daemon()?;
    guest::kill_collector()?;
    fs::write(COLLECTOR, after)?;
    guest::start_collector()?;
    until_true("the collector answers", seconds(30), || Ok(ctl::log_size().is_ok()))?;
    guest::configure(guest::USUAL)?;
    let text = fs::read_to_string(guest::CONFIG)?.replace("/var/lib/guard/collector/clients/node-guest", TLS);
    fs::write(guest::CONFIG, text.replace("[collector]\n", &format!("[collector]\npins = \"{TLS}/pins.toml\"\n")))?;
    let _ = fs::remove_dir_all(TLS);
    enroll(&[])?;
    let again = enroll(&[]).err().map(|e| e.to_string()).unwrap_or_default();
    ensure(again.contains("this node is enrolled"), again)?;
    guest::start_daemon()?;
    let found = findings()?;
    let first = fs::read_to_string(format!("{TLS}/cert.pem"))?;
    let session = Session::start(&ALICE, &["python3", "-c", LOOP])?;
    let ended = session.wait(seconds(120))?;
    let records = ctl::records(&ended.id)?;
    let ran = ctl::execs_of(&records, "/usr/bin/true").len();
    ensure(ran == 60, format!("{ran} records of 60 commands"))?;
    ensure(fs::read_to_string(format!("{TLS}/cert.pem"))? != first, "the certificate is the first one still")?;
    let all = ctl::records_from(0)?;
    let how = |how: &str| {
        let issued = ctl::of_kind(&all, "certificate_issued");
        issued.iter().filter(|r| r["body"]["name"] == "guest" && r["body"]["how"] == how).count()
    };
    ensure(how("enrolled") == 1 && how("renewed") >= 1, format!("{} renewed", how("renewed")))?;
    ensure(findings()? == found, "the collector found something about the host's records")?;
    revocation()
}

fn findings() -> Result<Value> {
    let status = ctl::json("root", &["status"])?;
    let nodes = status["nodes"].as_array().context("no nodes")?;
    Ok(nodes.iter().find(|n| n["node"] == "guest").context("no such node")?["findings"].clone())
}

fn revocation() -> Result<()> {
    let local = || ctl::json("root", &["status", "--local"]);
    let mut revoked = BTreeSet::new();
    until_true("the daemon is cut off", seconds(40), || {
        // It renews meanwhile, until the one that it has is among them.
        for serial in serials()? {
            if revoked.insert(serial.clone()) {
                ctl::json("root", &["certificate", "revoke", &serial, "--reason", "a test"])?;
            }
        }
        let status = local()?;
        let why = status["collector_error"].as_str().unwrap_or_default();
        Ok(status["collector_connected"] == false && why.contains("is revoked, by record"))
    })?;
    // The running daemon takes the next one.
    enroll(&["--again"])?;
    guest::enforcing()?;
    ctl::shipped().map(|_| ())
}
