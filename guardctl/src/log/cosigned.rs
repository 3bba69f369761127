//! Held to a `tlog-policy` file: the log's key from it, and enough cosignatures.
//!
//! It must not take a log that the policy does not name. Fails: a file that is not a policy is a `config` error; too few
//! cosignatures are a finding.

use std::fs;
use std::io::Read;
use std::path::Path;

use guard_log::policy::{Cosigned, POLICY_MAX, Policy};
use guard_log::tiles::CHECKPOINT;
use guard_log::verify::{Finding, Severity};
use serde_json::{Value, json};

use crate::exit::{CliError, Exit, Result};
use crate::text::escape_str;

/// Reads a policy file.
pub fn read(path: &Path) -> Result<Policy> {
    let bad = |e: &dyn std::fmt::Display| CliError::new(Exit::Config, format_args!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|e| bad(&e))?;
    file.take(POLICY_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| bad(&e))?;
    Policy::parse(&bytes).map_err(|e| bad(&e))
}

/// The key that the policy has for the log of this name.
pub fn vkey(policy: &Policy, origin: &str) -> Result<String> {
    let log = policy.log(origin).ok_or_else(|| {
        CliError::new(
            Exit::No,
            format_args!("the policy names no log {origin:?}, which the checkpoint claims to be of"),
        )
    })?;
    Ok(log.vkey())
}

/// Counts the cosignatures; too few are a finding.
pub fn judge(policy: &Policy, note: &[u8]) -> (Option<Cosigned>, Option<Finding>) {
    let (cosigned, detail) = match policy.open(note) {
        Ok(cosigned) if cosigned.quorum => return (Some(cosigned), None),
        Ok(cosigned) => {
            let detail = lacking(&cosigned);
            (Some(cosigned), detail)
        }
        Err(e) => (None, e.to_string()),
    };
    let where_ = CHECKPOINT.to_owned();
    (cosigned, Some(Finding { severity: Severity::Error, what: "no_quorum", where_, detail }))
}

/// What is lacking, in words.
pub fn lacking(cosigned: &Cosigned) -> String {
    let by: Vec<&str> = cosigned.by.iter().map(|(name, _)| name.as_str()).collect();
    let by = if by.is_empty() { "nobody".to_owned() } else { by.join(", ") };
    format!("cosigned by {by}; not, or not rightly, by {}: no quorum of the policy", cosigned.missing.join(", "))
}

/// For machines.
pub fn json(cosigned: &Cosigned) -> Value {
    let by: Vec<Value> = cosigned.by.iter().map(|(name, time)| json!({"witness": name, "time": time})).collect();
    json!({"quorum": cosigned.quorum, "by": by, "missing": cosigned.missing})
}

/// A line for people.
pub fn text(cosigned: &Cosigned) -> String {
    let by: Vec<String> =
        cosigned.by.iter().map(|(name, time)| format!("{} at {}", escape_str(name), when(*time))).collect();
    let quorum = if cosigned.quorum { "quorum" } else { "NO quorum" };
    let by = if by.is_empty() { "nobody".to_owned() } else { by.join(", ") };
    format!("{quorum}: cosigned by {by} (their clocks)\n")
}

fn when(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| format!("{seconds} s"), |time| time.to_string())
}
