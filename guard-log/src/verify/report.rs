//! What an audit found.
//!
//! It must not grow without bound, whatever the log holds.

use std::collections::BTreeMap;
use std::fmt;

use crate::checkpoint::Checkpoint;
use crate::note::Verifier;
use crate::record::{Epoch, HostId};

/// Findings kept; the rest is counted.
const FINDINGS_MAX: usize = 1000;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The log itself says so; nothing is wrong with the log.
    Information,
    /// It could not be looked at, so nothing is known of it.
    Unchecked,
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
    /// The key that signed it: the one that was given, or one that it leads to.
    pub signed_by: Verifier,
    /// Entries read.
    pub entries: u64,
    /// Hosts and epochs, in order of appearance.
    pub hosts: Vec<HostReport>,
    /// Everything found; see [`Self::is_ok`].
    pub findings: Vec<Finding>,
}

impl AuditReport {
    /// Whether all was checked and nothing is wrong; information may be there.
    pub fn is_ok(&self) -> bool {
        self.findings.iter().all(|f| f.severity == Severity::Information)
    }
}

/// Findings on their way into a report.
#[derive(Default)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    /// All there were, those that are not kept too.
    counts: BTreeMap<(Severity, &'static str), u64>,
    left_out: BTreeMap<Severity, u64>,
}

impl Findings {
    /// Something is wrong.
    pub(super) fn error(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.add(Severity::Error, what, &where_, &detail);
    }

    /// Something could not be looked at.
    pub(super) fn unchecked(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.add(Severity::Unchecked, what, &where_, &detail);
    }

    /// Something to know.
    pub(super) fn information(&mut self, what: &'static str, where_: impl fmt::Display, detail: impl fmt::Display) {
        self.add(Severity::Information, what, &where_, &detail);
    }

    fn add(&mut self, severity: Severity, what: &'static str, where_: &dyn fmt::Display, detail: &dyn fmt::Display) {
        *self.counts.entry((severity, what)).or_default() += 1;
        if self.kept.len() < FINDINGS_MAX {
            self.kept.push(Finding { severity, what, where_: where_.to_string(), detail: detail.to_string() });
            return;
        }
        *self.left_out.entry(severity).or_default() += 1;
    }

    /// How many there are of each kind, in the order of the kinds' words.
    pub(super) fn counts(&self) -> impl Iterator<Item = (Severity, &'static str, u64)> {
        self.counts.iter().map(|((severity, what), count)| (*severity, *what, *count))
    }

    /// All of them; what was left out is said, and weighs what it weighed.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (severity, count) in self.left_out.into_iter().rev() {
            let detail = format!("{count} more findings are not listed");
            self.kept.push(Finding { severity, what: "more", where_: "log".to_owned(), detail });
        }
        self.kept
    }
}
