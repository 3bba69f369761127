//! Puts a session's records together: one [`Command`] for each exec, in the order in which they were attempted.
//!
//! It must not invent: what no record says stays empty. Fails: never; records that refer to nothing known are kept as what
//! they are.

use std::collections::HashMap;

use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    Exec, ExecDecision, ExecFacts, ExecOutcome, ExecRequest, ExecUnjudged, Identity, Reason, ReviewDecision,
    SessionEnd, SessionStart, Verdict,
};

use crate::record::{Entry, command, disposition_word, shell_code, tier_word};
use crate::text::{command_line, quote};

/// One exec, from attempt to end.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Leaf of its first record.
    pub leaf: u64,
    /// Host's wall clock at that record.
    pub time_ns: i64,
    /// The kernel's number.
    pub exec_id: u64,
    /// The argument vector as recorded.
    pub argv: Vec<Vec<u8>>,
    /// The same, quoted, safe to print.
    pub text: String,
    /// Whether it is the session's entry process.
    pub entry: bool,
    /// Tier, empty when it was never judged.
    pub tier: &'static str,
    /// Category.
    pub category: String,
    /// Risk, 0..100.
    pub risk: u32,
    /// Rules that decided.
    pub reasons: Vec<Reason>,
    /// Disposition, or `pending`.
    pub disposition: &'static str,
    /// Reviewer, where there was one.
    pub reviewer: String,
    /// Ids of the keys that signed the approval, as the host checked them.
    pub key_ids: Vec<Vec<u8>>,
    /// Reviewer's reason, or what else is said about the disposition.
    pub detail: String,
    /// Request id, where a person was asked.
    pub request: String,
    /// How long the request waited, in nanoseconds.
    pub waited_ns: u64,
    /// Exit code as a shell shows it.
    pub exit_code: Option<u32>,
    /// Error number of the exec itself.
    pub errno: u32,
    /// Run time in nanoseconds.
    pub duration_ns: Option<u64>,
    /// PATH probes folded into this record.
    pub probes: u32,
    /// It ran although its verdict would have held or denied it: host or agent were only observed.
    pub not_enforced: bool,
}

/// What the records of one session say.
#[derive(Debug, Default)]
pub struct History {
    /// Every exec, in order of its first record.
    pub commands: Vec<Command>,
    /// The identity chain, from the first record that has one.
    pub identity: Option<Identity>,
    /// How it started.
    pub start: Option<SessionStart>,
    /// How it ended.
    pub end: Option<SessionEnd>,
    /// Anomalies that fired, with the command's index.
    pub anomalies: Vec<(usize, String)>,
    /// Verdicts that anomaly detection covered.
    pub covered: usize,
    /// All verdicts.
    pub verdicts: usize,
    /// Attempts at Guard itself (ptrace, cgroup files) that were refused.
    pub refusals: u32,
    by_exec: HashMap<u64, usize>,
    by_request: HashMap<String, usize>,
}

impl History {
    /// Reads records in log order.
    pub fn new(entries: &[Entry]) -> History {
        let mut history = History::default();
        for entry in entries {
            if let Some(body) = &entry.body {
                history.add(entry, body);
            }
        }
        history
    }

    /// How many commands ended with this disposition.
    pub fn count(&self, disposition: &str) -> usize {
        self.commands.iter().filter(|c| c.disposition == disposition).count()
    }

    fn add(&mut self, entry: &Entry, body: &Body) {
        match body {
            Body::SessionStart(b) => {
                self.identity.clone_from(&b.identity); // it alone names the rights in full
                self.start = Some(b.clone());
            }
            Body::SessionEnd(b) => self.end = Some(b.clone()),
            Body::Exec(b) => self.exec(entry, b),
            Body::ExecRequest(b) => self.request(entry, b),
            Body::ExecDecision(b) => self.decision(entry, b),
            Body::ExecOutcome(b) => self.outcome(b),
            Body::ExecUnjudged(b) => self.unjudged(entry, b),
            Body::GuardRefusal(b) => self.refusals += b.count.max(1),
            Body::ReviewDecision(b) if !b.revoke => self.review(b),
            // Said by the decision that ended the request, and in the stream of records.
            Body::ReviewDecision(_) | Body::DecisionFinding(_) => {}
            // Not about commands, or not about one session.
            Body::SessionRenewed(_)
            | Body::SessionExpired(_)
            | Body::LongLivedFound(_)
            | Body::CredentialIssued(_)
            | Body::CredentialRenewed(_)
            | Body::CredentialRevoked(_)
            | Body::CredentialExpired(_)
            | Body::CredentialAlert(_)
            | Body::NodeStart(_)
            | Body::NodeStop(_)
            | Body::GuardObservation(_)
            | Body::Gap(_)
            | Body::Canary(_)
            | Body::EmergencyStop(_)
            | Body::JournalRepair(_)
            | Body::PolicyLoaded(_)
            | Body::CollectorStart(_)
            | Body::AdmitFinding(_)
            | Body::CheckpointRefused(_)
            | Body::BlobErased(_)
            | Body::WitnessFinding(_)
            | Body::EntriesPruned(_)
            | Body::LogFollowed(_)
            | Body::KeyRotated(_)
            | Body::LogSucceeded(_)
            | Body::PublishFinding(_)
            | Body::WebhookFinding(_)
            | Body::PolicyPublished(_)
            | Body::RequestEscalated(_)
            | Body::ReviewDelegated(_)
            | Body::CertificateIssued(_)
            | Body::CertificateRevoked(_)
            | Body::CertificateEnding(_) => {}
        }
    }

    fn identify(&mut self, identity: &Option<Identity>) {
        if self.identity.is_none() {
            self.identity.clone_from(identity);
        }
    }

    fn push(&mut self, entry: &Entry, facts: Option<&ExecFacts>, verdict: Option<&Verdict>) -> usize {
        let index = self.commands.len();
        let mut new = Command { leaf: entry.leaf, time_ns: entry.wall_ns, ..Command::default() };
        if let Some(facts) = facts {
            new.exec_id = facts.exec_id;
            new.argv.clone_from(&facts.argv);
            new.text = command(facts);
            new.entry = facts.entry;
            self.by_exec.insert(facts.exec_id, index);
        }
        if let Some(verdict) = verdict {
            self.verdicts += 1;
            self.covered += usize::from(verdict.anomalies_covered);
            self.anomalies.extend(verdict.anomalies.iter().map(|a| (index, a.clone())));
            new.tier = tier_word(verdict.tier);
            new.category.clone_from(&verdict.category);
            new.risk = verdict.risk;
            new.reasons.clone_from(&verdict.reasons);
        }
        self.commands.push(new);
        index
    }

    fn exec(&mut self, entry: &Entry, b: &Exec) {
        self.identify(&b.identity);
        let index = self.push(entry, b.facts.as_ref(), b.verdict.as_ref());
        if let Some(command) = self.commands.get_mut(index) {
            command.disposition = disposition_word(b.disposition);
            command.reviewer.clone_from(&b.reviewer);
            command.detail.clone_from(&b.detail);
            command.request.clone_from(&b.request_id);
            command.not_enforced = b.not_enforced;
        }
    }

    fn request(&mut self, entry: &Entry, b: &ExecRequest) {
        self.identify(&b.identity);
        let index = self.push(entry, b.facts.as_ref(), b.verdict.as_ref());
        if let Some(command) = self.commands.get_mut(index) {
            command.disposition = "pending";
            command.request.clone_from(&b.request_id);
        }
        self.by_request.insert(b.request_id.clone(), index);
    }

    fn decision(&mut self, entry: &Entry, b: &ExecDecision) {
        let asked = self.by_request.get(&b.request_id).copied();
        // The identical exec, tried again after the approval, is a command of its own.
        let index = match asked {
            Some(index) if b.retry_of == 0 => index,
            _ => match self.by_exec.get(&b.exec_id).copied() {
                Some(index) => index,
                None => self.retry(entry, asked, b.exec_id),
            },
        };
        if let Some(command) = self.commands.get_mut(index) {
            command.disposition = disposition_word(b.disposition);
            command.reviewer.clone_from(&b.reviewer);
            command.key_ids.clone_from(&b.key_ids);
            command.detail.clone_from(&b.reason);
            command.request.clone_from(&b.request_id);
            command.waited_ns = b.waited_ns;
        }
    }

    fn retry(&mut self, entry: &Entry, asked: Option<usize>, exec_id: u64) -> usize {
        let index = self.commands.len();
        let like = asked.and_then(|i| self.commands.get(i)).cloned().unwrap_or_default();
        let retried = Command { leaf: entry.leaf, time_ns: entry.wall_ns, exec_id, exit_code: None, ..like };
        self.commands.push(Command { errno: 0, duration_ns: None, ..retried });
        self.by_exec.insert(exec_id, index);
        index
    }

    /// The collector's record of a decision: says who and why if the host's own record is not there yet.
    fn review(&mut self, b: &ReviewDecision) {
        let asked = self.by_request.get(&b.request_id).copied();
        if let Some(command) = asked.and_then(|i| self.commands.get_mut(i))
            && command.reviewer.is_empty()
        {
            command.reviewer.clone_from(&b.reviewer);
            command.detail.clone_from(&b.reason);
        }
    }

    fn outcome(&mut self, b: &ExecOutcome) {
        let Some(command) = self.by_exec.get(&b.exec_id).and_then(|i| self.commands.get_mut(*i)) else { return };
        let word = disposition_word(b.disposition);
        if !word.is_empty() {
            command.disposition = word;
            command.detail.clone_from(&b.reason);
        }
        if b.errno != 0 {
            command.errno = b.errno;
        }
        if b.exited {
            command.exit_code = Some(shell_code(b.status));
            command.duration_ns = Some(b.duration_ns);
        }
    }

    fn unjudged(&mut self, entry: &Entry, b: &ExecUnjudged) {
        self.identify(&b.identity);
        let word = disposition_word(b.disposition);
        // A judged exec that the kernel refused later is the same attempt.
        if let Some(known) = self.by_exec.get(&b.exec_id).and_then(|i| self.commands.get_mut(*i)) {
            if !word.is_empty() {
                known.disposition = word;
            }
            known.errno = b.errno;
            known.detail.clone_from(&b.reason);
            return;
        }
        let text = if b.argv.is_empty() { quote(&b.path) } else { command_line(&b.argv) };
        self.by_exec.insert(b.exec_id, self.commands.len());
        self.commands.push(Command {
            leaf: entry.leaf,
            time_ns: entry.wall_ns,
            exec_id: b.exec_id,
            argv: b.argv.clone(),
            text,
            disposition: word,
            detail: b.reason.clone(),
            errno: b.errno,
            probes: b.probes,
            ..Command::default()
        });
    }
}
