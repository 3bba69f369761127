//! Held to a `tlog-policy` file: the log's key from it, and enough cosignatures.
//!
//! It must not take a log that the policy does not name. Fails: a file that is not a policy is a `config` error; too few
//! cosignatures are a finding.

use std::fs;
use std::io::Read;
use std::path::Path;

use guard_log::checkpoint::Checkpoint;
use guard_log::policy::{Cosigned, POLICY_MAX, Policy};
use guard_log::proof::Growth;
use guard_log::tiles::{CHECKPOINT, COSIGNED};
use guard_log::verify::{AuditReport, Finding, Severity, Source};
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

/// The newest checkpoint that witnesses cosigned, where the log keeps one.
pub fn fetch(source: &dyn Source) -> Result<Option<Vec<u8>>> {
    source.fetch(COSIGNED).map_err(|e| CliError::new(Exit::Unavailable, e))
}

/// Counts the cosignatures of the checkpoint that was audited or, if they are too few, of the one that witnesses cosigned last,
/// which `continues` has to find to be the beginning of the audited log. Too few are a finding.
pub fn judge(
    policy: &Policy,
    note: &[u8],
    earlier: Option<&[u8]>,
    continues: &dyn Fn(&Checkpoint) -> std::result::Result<(), String>,
) -> (Option<Cosigned>, Option<Finding>) {
    let open = |note| policy.open(note).map_err(|e| e.to_string());
    let newest = open(note);
    if newest.as_ref().is_ok_and(|cosigned| cosigned.quorum) {
        return (newest.ok(), None);
    }
    let (where_, judged) = match earlier {
        None => (CHECKPOINT, newest),
        Some(note) => {
            let judged = open(note).and_then(|cosigned| continues(&cosigned.checkpoint).map(|()| cosigned));
            (COSIGNED, judged)
        }
    };
    let detail = match &judged {
        Ok(cosigned) if cosigned.quorum => return (judged.ok(), None),
        Ok(cosigned) => lacking(cosigned),
        Err(error) => error.clone(),
    };
    let finding = Finding { severity: Severity::Error, what: "no_quorum", where_: where_.to_owned(), detail };
    (judged.ok(), Some(finding))
}

/// Proves from the log's tiles that the audited checkpoint continues an earlier one.
pub fn continued(source: &dyn Source, before: &Checkpoint, report: &AuditReport) -> std::result::Result<(), String> {
    let (head, text) = (&report.checkpoint, String::from_utf8_lossy(&report.note));
    Growth::make(source, head.size, before.size, &text, head)
        .and_then(|growth| growth.verify(before, &report.signed_by))
        .map(drop)
        .map_err(|e| format!("the checkpoint of {} leaves does not continue the cosigned one: {e}", head.size))
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
    json!({"quorum": cosigned.quorum, "size": cosigned.checkpoint.size, "by": by, "missing": cosigned.missing})
}

/// A line for people.
pub fn text(cosigned: &Cosigned) -> String {
    let by: Vec<String> =
        cosigned.by.iter().map(|(name, time)| format!("{} at {}", escape_str(name), when(*time))).collect();
    let quorum = if cosigned.quorum { "quorum" } else { "NO quorum" };
    let by = if by.is_empty() { "nobody".to_owned() } else { by.join(", ") };
    format!("{quorum} at {} records: cosigned by {by} (their clocks)\n", cosigned.checkpoint.size)
}

fn when(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    time.map_or_else(|| format!("{seconds} s"), |time| time.to_string())
}
