//! Log records as guardctl reads them: the fixed header and a parsed copy of the body.
//!
//! It must not drop what it does not know: an unknown kind is shown with its number and size. Fails: bytes that are no record
//! are an error that names the leaf, since the log should hold none.

use guard_log::record::Record;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecFacts, LogEntry, RecordBody, Tier};
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::exit::{CliError, Exit, Result};
use crate::time;

mod json;
mod line;

pub use json::{
    delegation as delegation_json, facts as facts_json, kinds as kinds_json, text_value, verdict as verdict_json,
};
pub use line::{Line, disposition_tone};

/// The words for dispositions, as the command line takes them.
pub const DISPOSITIONS: [&str; 8] =
    ["allowed", "inherited", "approved", "denied", "timed_out", "expired", "killed", "failed"];

/// One record of the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Leaf index in the log.
    pub leaf: u64,
    /// Host id, hexadecimal.
    pub host: String,
    /// Sequence number on that host.
    pub seq: u64,
    /// Wall clock of the host, nanoseconds since 1970.
    pub wall_ns: i64,
    /// Session id, empty for none.
    pub session: String,
    /// Number of the kind.
    pub kind: u16,
    /// The parsed body; `None` for a kind or form that this version does not know.
    pub body: Option<Body>,
    /// SHA-256 of the body as it was recorded, of a request for review: what reviewers sign.
    pub shown: Option<[u8; 32]>,
    body_len: usize,
}

impl Entry {
    /// Parses one entry as the collector sent it.
    pub fn parse(entry: LogEntry) -> Result<Entry> {
        let leaf = entry.leaf;
        let record = Record::parse(entry.record)
            .map_err(|e| CliError::new(Exit::Internal, format_args!("leaf {leaf} holds no record: {e}")))?;
        let header = record.header();
        let body = RecordBody::decode(record.body()).ok().and_then(|b| b.body);
        let digest = || Sha256::digest(record.body()).into();
        Ok(Entry {
            leaf,
            host: header.host.to_string(),
            seq: header.seq,
            wall_ns: header.wall_unix_ns,
            session: if header.session.is_none() { String::new() } else { header.session.to_string() },
            kind: header.kind.0,
            shown: matches!(body, Some(Body::ExecRequest(_))).then(digest),
            body,
            body_len: record.body().len(),
        })
    }

    /// An entry that no record stands behind.
    #[cfg(test)]
    pub fn for_test(leaf: u64, wall_ns: i64, session: &str, kind: u16, body: Option<Body>) -> Entry {
        let (host, session) = ("01".repeat(16), session.to_owned());
        Entry { leaf, host, seq: leaf, wall_ns, session, kind, body, shown: None, body_len: 12 }
    }

    /// The documented JSON form.
    pub fn json(&self) -> Value {
        let (kind, body) = match &self.body {
            Some(body) => json::body(body),
            None => ("unknown", json!({ "bytes": self.body_len })),
        };
        json!({
            "leaf": self.leaf, "host": self.host, "seq": self.seq, "time": time::rfc3339(self.wall_ns),
            "session": Some(&self.session).filter(|s| !s.is_empty()), "kind": kind, "kind_number": self.kind, "body": body,
        })
    }
}

/// The word for a disposition; empty when it is not set.
pub fn disposition_word(raw: i32) -> &'static str {
    match Disposition::try_from(raw) {
        Ok(Disposition::Unspecified) => "",
        Ok(Disposition::Allowed) => "allowed",
        Ok(Disposition::Inherited) => "inherited",
        Ok(Disposition::Approved) => "approved",
        Ok(Disposition::Denied) => "denied",
        Ok(Disposition::TimedOut) => "timed_out",
        Ok(Disposition::Expired) => "expired",
        Ok(Disposition::Killed) => "killed",
        Ok(Disposition::Failed) => "failed",
        Err(_) => "unknown",
    }
}

/// The word for a tier; empty when it is not set.
pub fn tier_word(raw: i32) -> &'static str {
    match Tier::try_from(raw) {
        Ok(Tier::Unspecified) => "",
        Ok(Tier::Allow) => "allow",
        Ok(Tier::Review) => "review",
        Ok(Tier::Deny) => "deny",
        Err(_) => "unknown",
    }
}

/// The complete argument vector quoted; says so when the record does not carry all of it.
pub fn command(facts: &ExecFacts) -> String {
    let mut text = crate::text::command_line(&facts.argv);
    if facts.argv_omitted > 0 {
        let place = match facts.blob_sha256.as_slice() {
            [] => "that this record does not carry".to_owned(),
            id => format!("in blob {}", hex::encode(id)),
        };
        text.push_str(&format!(" [and {} arguments {place}]", facts.argv_omitted));
    }
    if !facts.masked.is_empty() {
        let secrets = if facts.masked.len() == 1 { "secret" } else { "secrets" };
        text.push_str(&format!(" [{} {secrets} masked as ***]", facts.masked.len()));
    }
    if facts.argv.is_empty() {
        text = format!("[no arguments] {}", crate::text::quote(&facts.path_arg));
    }
    text
}

/// Exit status of a process, as a shell shows it: code, or 128 plus the signal.
pub fn shell_code(wait_status: u32) -> u32 {
    let signal = wait_status & 0x7f;
    if signal == 0 { wait_status >> 8 & 0xff } else { 128 + signal }
}
