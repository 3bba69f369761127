//! The measured state of this node, for the collector and for `guardctl status`.

use std::collections::HashMap;

use guard_common::Counter;
use guard_proto::v1::NodeReport;

use crate::node::Node;
use crate::preflight;

/// Every counter of the kernel programs, by the name that status shows.
pub const COUNTERS: [(&str, Counter); 12] = [
    ("exec_attempts", Counter::Attempts),
    ("exec_granted", Counter::Granted),
    ("exec_refused", Counter::Refused),
    ("exec_killed", Counter::Killed),
    ("exec_started", Counter::Started),
    ("exec_failed", Counter::Failed),
    ("ring_full", Counter::RingFull),
    ("map_full", Counter::MapFull),
    ("guard_refused", Counter::GuardRefused),
    ("guard_observed", Counter::GuardObserved),
    ("forks", Counter::Forks),
    ("exits", Counter::Exits),
];

/// What is in force: measured by the last canary, not configured.
pub fn mode(node: &Node) -> (&'static str, String) {
    if node.kernel.lifted() {
        return ("lifted", "emergency-stop has lifted enforcement; restart guard-agent to enforce again".into());
    }
    let (measured, _) = node.measured();
    match (measured.enforcing(), node.observes()) {
        (_, true) => {
            ("observing", "configured: kernel.mode = \"observe\"; execs are judged and recorded, never denied".into())
        }
        (true, false) => ("enforcing", String::new()),
        (false, false) => ("inert", measured.detail),
    }
}

/// Whether only reviewers' signatures approve.
fn decisions(node: &Node) -> &'static str {
    if crate::approvals::trust(node, &node.policy()).signs() { "signed" } else { "not_signed" }
}

/// All of it.
pub fn report(node: &Node) -> NodeReport {
    let journal = node.journal.state();
    let (mode, mut mode_detail) = mode(node);
    if let Some(why) = &journal.failed {
        mode_detail =
            format!("{mode_detail} the journal is closed, every governed exec is denied: {why}").trim().into();
    }
    let mut counters: HashMap<String, u64> =
        COUNTERS.iter().map(|(name, counter)| ((*name).to_owned(), node.kernel.counter(*counter))).collect();
    counters.insert("journal_bytes".into(), journal.bytes);
    counters.insert("journal_kept_bytes".into(), journal.kept_bytes);
    let (not_after, certificate_error) = node.link.certificate();
    let age = node.fresh.age_seconds(node.policies.serial());
    NodeReport {
        certificate_not_after_unix_ns: not_after.saturating_mul(1_000_000_000),
        certificate_error,
        host: node.host.0.to_vec(),
        host_name: node.config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: node.release.clone(),
        mode: mode.into(),
        mode_detail,
        measured_unix_ns: node.measured().1,
        sessions: u32::try_from(node.sessions().len()).unwrap_or(u32::MAX),
        journal_next_seq: journal.next_seq,
        journal_backlog: journal.next_seq.saturating_sub(journal.acked_next_seq),
        counters,
        policy_digest: node.policy().digest.clone(),
        policy_error: node.policies.error(),
        roles_digest: node.policy().roles.as_ref().map(|r| r.digest().to_owned()).unwrap_or_default(),
        bundle_serial: node.policies.serial(),
        observed: node.policies.observed(),
        takes_bundles: node.config.policy.from_collector,
        roles_serial: node.policy().roles_serial(),
        roles_age_seconds: age.map_or(-1, |age| i64::try_from(age).unwrap_or(i64::MAX)),
        roles_max_age_seconds: node.config.roles.max_age_seconds.unwrap_or(0),
        decisions: decisions(node).into(),
        held: u32::try_from(node.approvals.held()).unwrap_or(u32::MAX),
        support: Some(preflight::support(&node.config, node.kernel.instructions().len(), node.kernel.missing())),
    }
}
