//! Races: execs of the payload while another thread rewrites what it is called with. What ran must be what was judged.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Tried;
use crate::guest::ensure;

/// Argument and environment of one exec, as the payload showed them.
struct Shown<'a> {
    argv: Vec<&'a str>,
    env: Vec<&'a str>,
}

impl<'a> Shown<'a> {
    fn read(text: &'a str) -> Result<Self> {
        let (argv, env) = text.split_once(';').context("the payload showed no environment")?;
        let list = |text: &'a str| text.split(',').filter(|word| !word.is_empty()).collect();
        Ok(Self { argv: list(argv), env: list(env) })
    }

    /// Whether this is what the record says was judged.
    fn is(&self, facts: &Value, salt: &[u8]) -> bool {
        facts["argv"].as_array().is_some_and(|argv| argv.iter().eq(self.argv.iter()))
            && facts["env_sha256"] == digest(salt, &self.env)
            && facts["env_count"] == self.env.len()
    }
}

/// What the host's digests of this session's environments begin with: only root on the host can know it.
fn salt(session: &str) -> Result<[u8; 32]> {
    let key = std::fs::read("/var/lib/guard/agent/digest-key").context("the host's digest key")?;
    let id = ulid::Ulid::from_string(session).context("a session's id")?;
    Ok(Sha256::new_with_prefix(b"guard salt v1").chain_update(key).chain_update(id.to_bytes()).finalize().into())
}

fn digest(salt: &[u8], words: &[&str]) -> String {
    let mut hasher = Sha256::new_with_prefix(salt);
    for word in words {
        hasher.update(word.as_bytes());
        hasher.update([0]);
    }
    hex::encode(hasher.finalize())
}

/// Each exec that ran has a record that says exactly what ran; and the race was one.
pub fn what_ran_was_judged(tried: &Tried) -> Result<()> {
    let session = tried.records.first().and_then(|r| r["session"].as_str()).context("no records")?;
    let salt = salt(session)?;
    let judged: BTreeMap<u64, &Value> = tried
        .records
        .iter()
        .filter(|r| r["kind"] == "exec" && r["body"]["disposition"] == "allowed")
        .filter_map(|r| Some((r["body"]["facts"]["pid"].as_u64()?, &r["body"]["facts"])))
        .collect();
    let (mut ran, mut killed, mut tries) = (0, 0, 0);
    for line in &tried.lines {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let ["try", pid, status, shown] = words.as_slice() else { continue };
        tries += 1;
        if *shown == "-" {
            killed += u32::from(*status == "9");
            continue;
        }
        ran += 1;
        let facts = judged.get(&pid.parse()?).with_context(|| format!("`{shown}` ran without a record"))?;
        let what =
            || format!("`{shown}` ran, judged were {} and an environment of {}", facts["argv"], facts["env_count"]);
        ensure(Shown::read(shown)?.is(facts, &salt), what())?;
    }
    ensure(ran > 0, format!("none of {tries} ran: the race shows nothing"))?;
    ensure(killed > 0, format!("{ran} of {tries} ran and none was killed: the race never hit the moment"))?;
    let told = tried.records.iter().filter(|r| r["body"]["disposition"] == "killed").count();
    ensure(told >= killed as usize, format!("{killed} killed as {}, {told} recorded as killed", tried.user))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn compares_arguments_and_environment() {
        let facts = json!({"argv": ["ran", "show"], "env_count": 1, "env_sha256": digest(b"salt", &["WORD=A"])});
        assert!(Shown::read("ran,show;WORD=A").unwrap().is(&facts, b"salt"));
        assert!(!Shown::read("ran,show;WORD=B").unwrap().is(&facts, b"salt"));
        assert!(!Shown::read("ran,show,WORD=A;").unwrap().is(&facts, b"salt"));
    }
}
