//! What an audit found.
//!
//! It must not grow without bound, whatever the log holds.

use std::fmt;

use crate::checkpoint::Checkpoint;
use crate::record::{Epoch, HostId};

/// Findings kept; the rest is counted.
const FINDINGS_MAX: usize = 1000;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The log itself says so; nothing is wrong with the log.
    Information,
    /// The log is not right.
    Error,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// What, as a stable word.
    pub what: &'static str,
    /// Where: resource, leaf, or host and epoch.
    pub where_: String,
    /// The rest of the story, for people.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.what, self.where_, self.detail)
    }
}

/// One life of a host's journal, as far as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// Whose.
    pub host: HostId,
    /// Which life.
    pub epoch: Epoch,
    /// Its first sequence number in the log.
    pub first_seq: u64,
    /// The number after its last.
    pub next_seq: u64,
    /// Records in the log.
    pub records: u64,
}

/// What an audit found.
#[derive(Clone, Debug)]
pub struct AuditReport {
    /// The checkpoint that was audited.
    pub checkpoint: Checkpoint,
    /// As it was served.
    pub note: Vec<u8>,
    /// Entries read.
    pub entries: u64,
    /// Hosts and epochs, in order of appearance.
    pub hosts: Vec<HostReport>,
    /// Everything found; see [`Self::is_ok`].
    pub findings: Vec<Finding>,
}

impl AuditReport {
    /// Whether nothing is wrong; information may be there.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|f| f.severity == Severity::Information)
    }
}

/// Findings on their way into a report.
#[derive(Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    errors_left_out: u64,
    information_left_out: u64,
}

impl Findings {
    /// Something is wrong.
    pub(super) fn error(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.add(Severity::Error, what, &where_, &detail);
    }

    /// Something to know.
    pub(super) fn information(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.add(Severity::Information, what, &where_, &detail);
    }

    fn add(&mut self, severity: Severity, what: &'static str, where_: &dyn fmt::Display, detail: &dyn fmt::Display) {
        if self.kept.len() < FINDINGS_MAX {
            self.kept.push(Finding { severity, what, where_: where_.to_string(), detail: detail.to_string() });
            return;
        }
        match severity {
            Severity::Error => self.errors_left_out += 1,
            Severity::Information => self.information_left_out += 1,
        }
    }

    /// All of them; what was left out is said, and weighs what it weighed.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        let (errors, information) = (self.errors_left_out, self.information_left_out);
        for (severity, count) in [(Severity::Error, errors), (Severity::Information, information)] {
            if count > 0 {
                let detail = format!("{count} more findings are not listed");
                self.kept.push(Finding { severity, what: "more", where_: "log".to_owned(), detail });
            }
        }
        self.kept
    }
}
