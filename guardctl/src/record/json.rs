//! Record bodies as JSON, with the names of the contract.
//!
//! It must not lose bytes: what is not UTF-8 becomes `{"base64": …}`. Fails: never.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    CanaryResult, CredentialAct, DecisionFinding, Delegation, EnvValue, Exec, ExecDecision, ExecFacts, ExecOutcome,
    ExecRequest, ExecUnjudged, FileFact, GuardAct, Identity, Kind, NodeStart, ProcessRef, ReviewDecision, RoleSnapshot,
    SessionEnd, SessionRenewed, SessionStart, Timing, Verdict,
};
use serde_json::{Value, json};

use super::{disposition_word, shell_code, tier_word};
use crate::time::rfc3339;

/// A text that somebody else controls: a JSON string where it is UTF-8, else an object with the base64 of its bytes.
pub fn text_value(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// The kind's name and the body.
pub fn body(body: &Body) -> (&'static str, Value) {
    match body {
        Body::NodeStart(b) => ("node_start", node_start(b)),
        Body::NodeStop(b) => ("node_stop", json!({"reason": b.reason, "sessions_closed": b.sessions_closed})),
        Body::SessionStart(b) => ("session_start", session_start(b)),
        Body::SessionEnd(b) => ("session_end", session_end(b)),
        Body::SessionRenewed(b) => ("session_renewed", session_renewed(b)),
        Body::SessionExpired(b) => (
            "session_expired",
            json!({"identity": identity(&b.identity), "what": b.what, "on_expiry": b.on_expiry, "grace_ns": b.grace_ns,
                "detail": b.detail}),
        ),
        Body::CredentialIssued(b) => ("credential_issued", credential(b)),
        Body::CredentialRenewed(b) => ("credential_renewed", credential(b)),
        Body::CredentialRevoked(b) => ("credential_revoked", credential(b)),
        Body::CredentialExpired(b) => ("credential_expired", credential(b)),
        Body::CredentialAlert(b) => ("credential_alert", credential(b)),
        Body::LongLivedFound(b) => (
            "long_lived_found",
            json!({"identity": identity(&b.identity), "action": b.action, "variables": b.variables, "files": b.files}),
        ),
        Body::Exec(b) => ("exec", exec(b)),
        Body::ExecRequest(b) => ("exec_request", exec_request(b)),
        Body::ExecDecision(b) => ("exec_decision", exec_decision(b)),
        Body::ExecOutcome(b) => ("exec_outcome", exec_outcome(b)),
        Body::ExecUnjudged(b) => ("exec_unjudged", exec_unjudged(b)),
        Body::GuardRefusal(b) => ("guard_refusal", guard_act(b)),
        Body::GuardObservation(b) => ("guard_observation", guard_act(b)),
        Body::Gap(b) => (
            "gap",
            json!({"source": b.source, "counter": b.counter, "lost": b.lost, "total": b.total, "session": b.session_id}),
        ),
        Body::Canary(b) => ("canary", canary(b)),
        Body::EmergencyStop(b) => (
            "emergency_stop",
            json!({"uid": b.uid, "user": b.user, "reason": b.reason, "sessions": b.sessions, "pid": b.pid}),
        ),
        Body::JournalRepair(b) => {
            ("journal_repair", json!({"what": b.what, "file": b.file, "offset": b.offset, "bytes": b.bytes}))
        }
        Body::PolicyLoaded(b) => (
            "policy_loaded",
            json!({"digest": b.digest, "source": b.source, "rules": b.rules, "refused": b.refused, "error": b.error,
                "roles_digest": some(&b.roles_digest), "roles_source": some(&b.roles_source),
                "sigma_rules": b.sigma_rules, "sigma_set_aside": b.sigma_set_aside, "sigma_digest": some(&b.sigma_digest),
                "bundle": (b.bundle_serial > 0).then_some(b.bundle_serial), "bundle_digest": some(&b.bundle_digest),
                "stages": b.stages}),
        ),
        Body::CollectorStart(b) => (
            "collector_start",
            json!({"version": b.version, "log_size": b.log_size, "origin": b.origin, "recovered": b.recovered,
                "detail": b.detail}),
        ),
        Body::AdmitFinding(b) => (
            "admit_finding",
            json!({"host": hex::encode(&b.host), "epoch": hex::encode(&b.epoch), "what": b.what,
                "expected_seq": b.expected_seq, "got_seq": b.got_seq, "detail": b.detail}),
        ),
        Body::ReviewDecision(b) => ("review_decision", review_decision(b)),
        Body::DecisionFinding(b) => ("decision_finding", decision_finding(b)),
        Body::CheckpointRefused(b) => (
            "checkpoint_refused",
            json!({"what": b.what, "seen": text_value(&b.seen), "refused": text_value(&b.refused), "detail": b.detail}),
        ),
        Body::WitnessFinding(b) => (
            "witness_finding",
            json!({"what": b.what, "witness": some(&b.witness), "cosigned_size": b.cosigned_size, "detail": b.detail}),
        ),
        Body::EntriesPruned(b) => (
            "entries_pruned",
            json!({"first_leaf": b.first_leaf, "previous_first": b.previous_first, "policy": b.policy,
                "records": b.records}),
        ),
        Body::LogFollowed(b) => (
            "log_followed",
            json!({"what": b.what, "old_vkey": b.old_vkey, "new_vkey": b.new_vkey, "seen": text_value(&b.seen),
                "leaf": b.leaf, "detail": b.detail}),
        ),
        Body::KeyRotated(b) => ("key_rotated", json!({"what": b.what, "old_vkey": b.old_vkey, "new_vkey": b.new_vkey})),
        Body::LogSucceeded(b) => {
            ("log_succeeded", json!({"statement": text_value(&b.statement), "kept": text_value(&b.kept)}))
        }
        Body::WebhookFinding(b) => (
            "webhook_finding",
            json!({"what": b.what, "webhook": b.webhook, "next_leaf": b.next_leaf, "detail": b.detail}),
        ),
        Body::PolicyPublished(b) => (
            "policy_published",
            json!({"serial": b.serial, "digest": b.digest, "by": b.by, "stages": b.stages, "files": b.files,
                "admin_key": b.admin_key, "made": rfc3339(b.made_unix_ns)}),
        ),
        Body::RequestEscalated(b) => (
            "request_escalated",
            json!({"request": b.request_id, "host": hex::encode(&b.host), "session": b.session_id, "to": b.to,
                "deadline": rfc3339(b.deadline_unix_ns)}),
        ),
        Body::ReviewDelegated(b) => (
            "review_delegated",
            json!({"delegation": b.delegation.as_ref().map(delegation), "key_id": hex_or_none(&b.key_id),
                "ended_by": some(&b.ended_by), "reason": some(&b.reason)}),
        ),
        Body::PublishFinding(b) => ("publish_finding", json!({"what": b.what, "detail": b.detail})),
        Body::CertificateIssued(b) => (
            "certificate_issued",
            json!({"name": b.name, "role": b.role, "serial": b.serial, "how": b.how, "by": b.by,
                "not_before": unix(b.not_before_unix), "not_after": unix(b.not_after_unix),
                "public_key": hex::encode(&b.public_key), "token": some(&b.token), "replaces": some(&b.replaces),
                "subject": some(&b.subject)}),
        ),
        Body::CertificateRevoked(b) => (
            "certificate_revoked",
            json!({"name": some(&b.name), "serial": some(&b.serial), "by": b.by, "reason": b.reason}),
        ),
        Body::CertificateEnding(b) => {
            ("certificate_ending", json!({"serial": b.serial, "not_after": unix(b.not_after_unix), "error": b.error}))
        }
        Body::BlobErased(b) => {
            ("blob_erased", json!({"sha256": hex::encode(&b.sha256), "by": b.by, "reason": b.reason, "bytes": b.bytes}))
        }
    }
}

/// A point in time given in seconds.
fn unix(seconds: i64) -> Value {
    json!(rfc3339(seconds.saturating_mul(1_000_000_000)))
}

fn identity(identity: &Option<Identity>) -> Value {
    identity.as_ref().map_or(Value::Null, |i| {
        json!({"session": i.session_id, "agent": i.agent, "instance": i.instance, "initiator": i.initiator,
            "initiator_uid": i.initiator_uid, "started_by": some(&i.started_by), "categories": (!i.categories.is_empty()).then_some(&i.categories),
            "rights_digest": hex::encode(&i.rights_digest), "roles_digest": some(&i.roles_digest),
            "roles_serial": (i.roles_serial > 0).then_some(i.roles_serial),
            "roles_age_seconds": (i.roles_serial > 0).then_some(i.roles_age_seconds),
            "parent": some(&i.parent_session_id), "max_risk": i.max_risk})
    })
}

fn node_start(b: &NodeStart) -> Value {
    json!({"version": b.version, "kernel": b.kernel, "mode": b.mode, "canary": b.canary.as_ref().map(canary),
        "boot_id": b.boot_id, "pid": b.pid, "policy_digest": b.policy_digest, "journal_dir": b.journal_dir, "lsm": b.lsm,
        "adopted": b.adopted, "sessions_adopted": b.sessions_adopted})
}

fn canary(b: &CanaryResult) -> Value {
    json!({"ungranted_denied": b.ungranted_denied, "granted_ran": b.granted_ran,
        "wrong_argv_killed": b.wrong_argv_killed, "mode": b.mode, "detail": b.detail})
}

fn session_start(b: &SessionStart) -> Value {
    json!({"identity": identity(&b.identity), "ttl_ns": b.ttl_ns, "expires": rfc3339(b.expires_unix_ns),
        "purpose": b.purpose, "profile": b.profile, "argv": texts(&b.argv), "cwd": text_value(&b.cwd), "tty": b.tty,
        "policy_digest": b.policy_digest, "uid": b.uid, "gid": b.gid, "kernel_mode": b.kernel_mode,
        "session_key": b.session_key, "cgroup_id": b.cgroup_id, "expires_boot_ns": b.expires_boot_ns,
        "roles": b.roles.as_ref().map(role_snapshot), "ticket": some(&b.ticket), "job": some(&b.job),
        "credentials": b.credentials, "observed_by": bundle(b.observed_by)})
}

/// Serial number of the bundle by whose stage `observe` verdicts are not enforced; null: they are.
fn bundle(serial: u64) -> Option<u64> {
    (serial > 0).then_some(serial)
}

fn role_snapshot(b: &RoleSnapshot) -> Value {
    json!({"digest": b.digest, "source": b.source, "initiator_roles": b.initiator_roles, "agent_roles": b.agent_roles,
        "starter_roles": b.starter_roles, "initiator_categories": b.initiator_categories,
        "agent_categories": b.agent_categories, "roles": b.roles.iter().map(crate::rights::role_json).collect::<Vec<_>>()})
}

fn session_renewed(b: &SessionRenewed) -> Value {
    json!({"identity": identity(&b.identity), "what": b.what, "by": b.by, "by_uid": b.by_uid,
        "old_expires": rfc3339(b.old_expires_unix_ns), "new_expires": rfc3339(b.new_expires_unix_ns),
        "old_expires_boot_ns": b.old_expires_boot_ns, "new_expires_boot_ns": b.new_expires_boot_ns, "detail": b.detail})
}

fn credential(b: &CredentialAct) -> Value {
    json!({"identity": identity(&b.identity), "name": some(&b.name), "credential_kind": b.kind,
        "lease_sha256": some(&hex::encode(&b.lease_sha256)), "ttl_ns": b.ttl_ns, "files": b.files,
        "attempts": b.attempts, "detail": b.detail})
}

fn session_end(b: &SessionEnd) -> Value {
    json!({"identity": identity(&b.identity), "reason": b.reason, "exit_code": b.has_status.then(|| shell_code(b.status)),
        "execs": b.execs, "duration_ns": b.duration_ns, "detail": b.detail})
}

fn exec(b: &Exec) -> Value {
    json!({"identity": identity(&b.identity), "facts": b.facts.as_ref().map(facts),
        "verdict": b.verdict.as_ref().map(verdict), "disposition": disposition_word(b.disposition), "detail": b.detail,
        "inherited_from": b.inherited_from, "request": some(&b.request_id), "reviewer": some(&b.reviewer),
        "observed_by": bundle(b.observed_by), "not_enforced": b.not_enforced, "timing": b.timing.as_ref().map(timing)})
}

fn exec_request(b: &ExecRequest) -> Value {
    json!({"identity": identity(&b.identity), "facts": b.facts.as_ref().map(facts),
        "verdict": b.verdict.as_ref().map(verdict), "request": b.request_id, "deadline": rfc3339(b.deadline_unix_ns),
        "hold_max_ns": b.hold_max_ns, "digest": hex::encode(&b.digest), "timing": b.timing.as_ref().map(timing),
        "kinds": kinds(b), "kinds_max_risk": b.kinds_max_risk})
}

/// What an approval with scope kind covers.
pub fn kinds(b: &ExecRequest) -> Vec<Value> {
    let kind = |k: &Kind| json!({"rule": k.rule_id, "category": k.category, "scope": k.scope});
    b.kinds.iter().map(kind).collect()
}

/// Parts of a hold, each the time since the part before.
fn timing(b: &Timing) -> Value {
    json!({"hold_to_read_ns": b.hold_to_read, "facts_ns": b.facts, "digest_ns": b.digest, "policy_ns": b.policy})
}

fn exec_decision(b: &ExecDecision) -> Value {
    json!({"identity": identity(&b.identity), "request": b.request_id, "exec": b.exec_id,
        "disposition": disposition_word(b.disposition), "reviewer": some(&b.reviewer), "reason": b.reason,
        "waited_ns": b.waited_ns, "held": b.held, "decision_leaf": b.decision_leaf, "retry_of": b.retry_of,
        "reviewers": b.reviewers, "key_ids": b.key_ids.iter().map(hex::encode).collect::<Vec<_>>(),
        "decision_leaves": b.decision_leaves, "on_behalf_of": b.on_behalf_of, "unsigned": b.unsigned})
}

/// A delegation in its documented form.
pub fn delegation(d: &Delegation) -> Value {
    json!({"id": d.id, "from": d.from, "to": d.to, "categories": d.categories, "max_risk": d.max_risk,
        "made": rfc3339(d.made_unix_ns), "until": rfc3339(d.until_unix_ns), "reason": some(&d.reason),
        "signature": hex_or_none(&d.signature)})
}

fn decision_finding(b: &DecisionFinding) -> Value {
    json!({"identity": identity(&b.identity), "what": b.what, "request": b.request_id, "reviewer": b.reviewer,
        "key_id": hex_or_none(&b.key_id), "decision_leaf": b.decision_leaf, "detail": b.detail,
        "approvals": b.have, "needed": b.needed, "unused": b.unused})
}

fn hex_or_none(bytes: &[u8]) -> Option<String> {
    (!bytes.is_empty()).then(|| hex::encode(bytes))
}

fn exec_outcome(b: &ExecOutcome) -> Value {
    json!({"identity": identity(&b.identity), "exec": b.exec_id, "disposition": some(disposition_word(b.disposition)),
        "started": b.started, "errno": b.errno, "exit_code": b.exited.then(|| shell_code(b.status)),
        "duration_ns": b.duration_ns, "reason": b.reason})
}

fn exec_unjudged(b: &ExecUnjudged) -> Value {
    json!({"identity": identity(&b.identity), "exec": b.exec_id, "pid": b.pid, "tid": b.tid, "uid": b.uid,
        "comm": text_value(&b.comm), "path": text_value(&b.path), "argv": texts(&b.argv), "argv_trust": b.argv_trust,
        "argv_cut": b.argv_cut, "errno": b.errno, "reason": b.reason, "probes": b.probes,
        "disposition": disposition_word(b.disposition), "root_exec": b.root_exec_id, "parent_exec": b.parent_exec_id,
        "folded": b.folded})
}

fn review_decision(b: &ReviewDecision) -> Value {
    json!({"request": b.request_id, "digest": hex::encode(&b.digest), "reviewer": b.reviewer, "approve": b.approve,
        "reason": b.reason, "scope": b.scope, "categories": b.categories, "max_execs": b.max_execs,
        "expires": rfc3339(b.expires_unix_ns), "host": hex::encode(&b.host), "session": b.session_id, "agent": b.agent,
        "revoke": b.revoke, "approval": (b.given > 0).then_some(b.given), "needed": (b.needed > 0).then_some(b.needed),
        "key_id": hex_or_none(&b.key_id), "signature": hex_or_none(&b.signature), "decided": rfc3339(b.decided_unix_ns),
        "record_sha256": hex_or_none(&b.record_sha256), "delegation": b.delegation.as_ref().map(delegation)})
}

/// What the kernel and the held task said.
pub fn facts(b: &ExecFacts) -> Value {
    json!({"exec": b.exec_id, "boot_id": b.boot_id, "pid": b.pid, "tid": b.tid, "uid": b.uid, "gid": b.gid,
        "argv": texts(&b.argv), "argv_count": b.argv_count, "argv_omitted": b.argv_omitted,
        "argv_sha256": hex::encode(&b.argv_sha256), "cwd": text_value(&b.cwd),
        "files": b.files.iter().map(file).collect::<Vec<_>>(),
        "ancestry": b.ancestry.iter().map(process).collect::<Vec<_>>(), "parent_exec": b.parent_exec_id,
        "root_exec": b.root_exec_id, "entry": b.entry, "env_count": b.envc, "env_sha256": hex::encode(&b.env_sha256),
        "masked": b.masked.iter().map(|m| json!({"arg": m.arg, "why": m.why})).collect::<Vec<_>>(),
        "blob": some(&hex::encode(&b.blob_sha256)),
        "env_values": b.env_values.iter().map(env_value).collect::<Vec<_>>(), "env_notable": texts(&b.env_notable), "path_arg": text_value(&b.path_arg), "tty": some(&b.tty)})
}

fn env_value(value: &EnvValue) -> Value {
    json!({"name": text_value(&value.name), "value": text_value(&value.value)})
}

fn file(f: &FileFact) -> Value {
    json!({"path": text_value(&f.path), "role": f.role, "sha256": hex::encode(&f.sha256), "dev": f.dev, "ino": f.ino,
        "size": f.size})
}

fn process(p: &ProcessRef) -> Value {
    json!({"pid": p.pid, "uid": p.uid, "comm": text_value(&p.comm), "exec": p.exec_id, "exe": text_value(&p.exe)})
}

/// What policy said; `anomalies` is null when this version does not cover them.
pub fn verdict(b: &Verdict) -> Value {
    let reasons = b.reasons.iter().map(|r| json!({"rule": r.rule_id, "text": r.text, "evidence": r.evidence}));
    json!({"tier": tier_word(b.tier), "category": b.category, "categories": b.categories, "risk": b.risk, "novelty": b.novelty,
        "reasons": reasons.collect::<Vec<_>>(), "policy_digest": b.policy_digest, "targets": b.targets,
        "anomalies": b.anomalies_covered.then_some(&b.anomalies),
        "shadow": b.shadow.as_ref().map(|s| json!({"tier": tier_word(s.tier), "rule": some(&s.rule_id), "text": some(&s.text),
            "risk": s.risk, "policy_digest": s.policy_digest, "bundle": s.serial}))})
}

fn texts(list: &[Vec<u8>]) -> Vec<Value> {
    list.iter().map(|b| text_value(b)).collect()
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

fn guard_act(b: &GuardAct) -> Value {
    json!({"identity": identity(&b.identity), "what": b.what, "operation": b.operation, "target": text_value(&b.target),
        "rule": b.rule, "number": b.number, "killed": b.killed, "pid": b.pid, "comm": text_value(&b.comm),
        "program": b.program, "uid": b.uid, "other_pid": b.other_pid, "exec": b.exec_id,
        "root_exec": b.root_exec_id, "dev": b.dev, "ino": b.ino, "count": b.count,
        "folded": b.folded})
}
