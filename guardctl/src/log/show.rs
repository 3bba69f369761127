//! The answer of `log verify`, for people and as JSON.
//!
//! It must say `ok` only of an audit without an error.

use guard_log::checkpoint::Checkpoint;
use guard_log::policy::Cosigned;
use guard_log::verify::{AuditReport, Finding, HostReport, Severity};
use serde_json::{Value, json};

use super::cosigned;
use crate::output::Out;
use crate::table::Tone;
use crate::text::escape_str;

/// What was audited, and against what.
#[derive(Debug)]
pub struct Verified {
    /// The audit.
    pub report: AuditReport,
    /// The earlier checkpoint that it was held against.
    pub previous: Option<Checkpoint>,
    /// Where the key came from.
    pub key_from: &'static str,
    /// Who cosigned, where a policy was named.
    pub cosigned: Option<Cosigned>,
}

impl Verified {
    /// Findings for which the log is not believed: errors, and what could not be checked.
    pub fn errors(&self) -> usize {
        self.report.findings.iter().filter(|f| f.severity != Severity::Information).count()
    }

    /// One object.
    pub fn json(&self) -> Value {
        let report = &self.report;
        json!({
            "ok": report.is_ok(), "size": report.checkpoint.size, "root": hex::encode(report.checkpoint.root),
            "origin": report.checkpoint.origin, "records": report.entries,
            "hosts": report.hosts.iter().map(host_json).collect::<Vec<_>>(),
            "consistent_with": self.previous.as_ref().filter(|_| report.is_ok()).map(|before| before.size),
            "key_from": self.key_from, "cosigned": self.cosigned.as_ref().map(cosigned::json),
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        })
    }

    /// Lines for people.
    pub fn text(&self, out: &Out) -> String {
        let report = &self.report;
        let head = &report.checkpoint;
        let verdict = if report.is_ok() { out.paint(Tone::Good, "OK") } else { out.paint(Tone::Bad, "FAILED") };
        let mut text = format!(
            "log {verdict}: {} records of {} journals, size {}, root {}\norigin {}, key from {}\n",
            report.entries,
            report.hosts.len(),
            head.size,
            hex::encode(head.root),
            escape_str(&head.origin),
            self.key_from
        );
        match &self.previous {
            Some(before) if report.is_ok() => {
                text.push_str(&format!("continues the log verified earlier at size {}\n", before.size));
            }
            Some(before) => text.push_str(&format!("held against the log verified earlier at size {}\n", before.size)),
            None => text.push_str("no earlier checkpoint to hold it against\n"),
        }
        text.push_str(&self.cosigned.as_ref().map(cosigned::text).unwrap_or_default());
        for finding in &report.findings {
            let (word, tone) = weight(finding.severity);
            text.push_str(&format!(
                "{} {}: {}: {}\n",
                out.paint(tone, word),
                finding.what,
                escape_str(&finding.where_),
                escape_str(&finding.detail)
            ));
        }
        text
    }
}

/// The word for people, and its tone.
pub fn weight(severity: Severity) -> (&'static str, Tone) {
    match severity {
        Severity::Error => ("error", Tone::Bad),
        Severity::Unchecked => ("not checked", Tone::Warn),
        Severity::Information => ("note", Tone::Warn),
    }
}

/// A host, for machines.
pub fn host_json(host: &HostReport) -> Value {
    json!({"host": host.host.to_string(), "epoch": host.epoch.to_string(), "first_seq": host.first_seq,
        "next_seq": host.next_seq, "records": host.records})
}

/// A finding, for machines.
pub fn finding_json(finding: &Finding) -> Value {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Unchecked => "unchecked",
        Severity::Information => "information",
    };
    json!({"severity": severity, "what": finding.what, "where": finding.where_, "detail": finding.detail})
}
