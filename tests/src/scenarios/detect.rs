//! Sigma rules beside the policy.

use anyhow::{Context, Result};

use crate::guest::{self, ensure};
use crate::session::{self, ALICE};
use crate::{attacks, ctl};

const FOLDER: &str = "/etc/guard/sigma";
const RULE: &str = "title: The host's name is asked for\nid: 7f6e5d4c-0000-4000-8000-000000000001\nlevel: medium\n\
    logsource: {category: process_creation, product: linux}\n\
    detection: {a: {Image|endswith: /cat, CommandLine|contains: hostname}, condition: a}\n";
const LACKING: &str = "title: Needs more\nlogsource: {category: process_creation, product: linux}\n\
    detection: {a: {LogonId: '1'}, condition: a}\n";

/// A match stands in the record with its risk, and the record of the policy says what is in force.
pub fn sigma_rules_add_to_the_verdict() -> Result<()> {
    std::fs::create_dir_all(FOLDER)?;
    std::fs::write(format!("{FOLDER}/name.yml"), RULE)?;
    std::fs::write(format!("{FOLDER}/more.yml"), LACKING)?;
    let from = ctl::log_size()?;
    guest::restart_daemon(&format!("{}\n[sigma]\npaths = [\"{FOLDER}\"]", guest::USUAL))?;
    let loaded = ctl::of_kind(&ctl::records_from(from)?, "policy_loaded").last().map(|r| r["body"].clone());
    let loaded = loaded.context("no record of the policy")?;
    ensure(loaded["sigma_rules"] == 1 && loaded["sigma_set_aside"] == 1, &loaded)?;
    let command = ["python3", &attacks::path("try.py"), "/usr/bin/cat", "/etc/hostname"];
    let ended = session::run(&ALICE, &command)?;
    let records = ctl::records(&ended.id)?;
    let cat = ctl::execs_of(&records, "/usr/bin/cat");
    let body = &cat.first().context("no record of cat")?["body"];
    let rules = body["verdict"]["reasons"].as_array().context("no reasons")?;
    let rule = rules.iter().find(|r| r["rule"] == "sigma:7f6e5d4c-0000-4000-8000-000000000001");
    let rule = rule.with_context(|| body.to_string())?;
    ensure(rule["text"].as_str().is_some_and(|t| t.contains("medium") && t.contains("host's name")), rule)?;
    ensure(body["disposition"] == "allowed" && body["verdict"]["risk"].as_u64() >= Some(10), body)?;
    std::fs::remove_dir_all(FOLDER)?;
    Ok(())
}
