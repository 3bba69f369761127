//! One record as one line of a stream for people.
//!
//! It must not hide a kind. Fails: never.

use guard_policy::roles;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    CredentialAct, DecisionFinding, Exec, ExecDecision, ExecOutcome, ExecRequest, ExecUnjudged, GuardAct,
    ReviewDecision, ReviewDelegated, SessionRenewed, Verdict,
};

use super::{Entry, command, disposition_word, shell_code};
use crate::duration;
use crate::table::Tone;
use crate::text::{command_line, escape, escape_str, quote};
use crate::time;

/// What a line says: what happened, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// One word: a disposition, or what happened.
    pub event: String,
    /// Colour of that word.
    pub tone: Tone,
    /// Command or detail, safe to print.
    pub text: String,
}

/// The tone of a disposition.
pub fn disposition_tone(word: &str) -> Tone {
    match word {
        "allowed" | "inherited" | "approved" => Tone::Good,
        "denied" | "timed_out" | "killed" | "expired" => Tone::Bad,
        "failed" | "pending" => Tone::Warn,
        _ => Tone::Plain,
    }
}

impl Line {
    /// Describes a record.
    pub fn new(entry: &Entry) -> Line {
        match &entry.body {
            Some(body) => describe(body),
            None => line("unknown", Tone::Warn, format!("kind {}, {} bytes", entry.kind, entry.body_len)),
        }
    }
}

fn line(event: &str, tone: Tone, text: String) -> Line {
    Line { event: event.to_owned(), tone, text }
}

fn describe(body: &Body) -> Line {
    match body {
        Body::NodeStart(b) => line(
            "node up",
            Tone::Plain,
            format!("guard-agent {} on {}, {}", escape_str(&b.version), escape_str(&b.kernel), escape_str(&b.mode)),
        ),
        Body::NodeStop(b) => line("node down", Tone::Warn, escape_str(&b.reason)),
        Body::SessionStart(b) => line("start", Tone::Plain, session_start(b)),
        Body::SessionEnd(b) => {
            let code = if b.has_status { format!(", exit code {}", shell_code(b.status)) } else { String::new() };
            let text = format!("{}, {} execs{code}", escape_str(&b.reason), b.execs);
            line("end", Tone::Plain, text)
        }
        Body::SessionRenewed(b) => line("renewed", Tone::Warn, renewed(b)),
        Body::SessionExpired(b) => line(
            "expired",
            Tone::Bad,
            format!("session {}, then: {} {}", escape_str(&b.what), escape_str(&b.on_expiry), escape_str(&b.detail)),
        ),
        Body::CredentialIssued(b) => line("issued", Tone::Plain, credential(b)),
        Body::CredentialRenewed(b) => line("renewed", Tone::Plain, credential(b)),
        Body::CredentialRevoked(b) => line("revoked", Tone::Plain, credential(b)),
        Body::CredentialExpired(b) => line("expired", Tone::Warn, credential(b)),
        Body::CredentialAlert(b) => line("alert", Tone::Bad, credential(b)),
        Body::LongLivedFound(b) => {
            let found: Vec<String> = b.variables.iter().chain(&b.files).map(|f| escape_str(f)).collect();
            line("keys", Tone::Warn, format!("without an end, {}: {}", escape_str(&b.action), found.join(", ")))
        }
        Body::Exec(b) => exec(b),
        Body::ExecRequest(b) => request(b),
        Body::ExecDecision(b) => decision(b),
        Body::ExecOutcome(b) => outcome(b),
        Body::ExecUnjudged(b) => unjudged(b),
        Body::GuardRefusal(b) => line(if b.killed { "killed" } else { "refused" }, Tone::Bad, guard_act(b)),
        Body::GuardObservation(b) => line("seen", Tone::Warn, guard_act(b)),
        Body::Gap(b) => {
            line("gap", Tone::Bad, format!("{} lost {} ({})", escape_str(&b.source), b.lost, escape_str(&b.counter)))
        }
        Body::Canary(b) => line("canary", Tone::Plain, format!("{} {}", escape_str(&b.mode), escape_str(&b.detail))),
        Body::EmergencyStop(b) => {
            line("stop", Tone::Bad, format!("emergency stop by {}: {}", escape_str(&b.user), escape_str(&b.reason)))
        }
        Body::JournalRepair(b) => line(
            "repair",
            Tone::Warn,
            format!("{} in {} at {}, {} bytes", escape_str(&b.what), escape_str(&b.file), b.offset, b.bytes),
        ),
        Body::PolicyLoaded(b) if b.refused => {
            line("policy", Tone::Bad, format!("refused {}: {}", escape_str(&b.source), escape_str(&b.error)))
        }
        Body::PolicyLoaded(b) => {
            let bundle = if b.bundle_serial > 0 { format!(", bundle {}", b.bundle_serial) } else { String::new() };
            let stages = match b.stages.as_slice() {
                [] => String::new(),
                stages => format!(": {}", escape_str(&stages.join(", "))),
            };
            line("policy", Tone::Plain, format!("{} rules from {}{bundle}{stages}", b.rules, escape_str(&b.source)))
        }
        Body::CollectorStart(b) => {
            line("collector", Tone::Plain, format!("started at log size {} {}", b.log_size, escape_str(&b.detail)))
        }
        Body::AdmitFinding(b) => line(
            "finding",
            Tone::Bad,
            format!(
                "{} at host {}: expected {}, got {} {}",
                escape_str(&b.what),
                hex::encode(&b.host),
                b.expected_seq,
                b.got_seq,
                escape_str(&b.detail)
            ),
        ),
        Body::ReviewDecision(b) => review_decision(b),
        Body::DecisionFinding(b) => decision_finding(b),
        Body::CheckpointRefused(b) => line(
            "log",
            Tone::Bad,
            format!("the host refuses the collector's checkpoint ({}): {}", escape_str(&b.what), escape_str(&b.detail)),
        ),
        Body::WitnessFinding(b) => line(
            "witness",
            if b.what == "quorum_back" { Tone::Good } else { Tone::Bad },
            format!(
                "{} {}cosigned up to {}: {}",
                escape_str(&b.what),
                if b.witness.is_empty() { String::new() } else { format!("by {}, ", escape_str(&b.witness)) },
                b.cosigned_size,
                escape_str(&b.detail)
            ),
        ),
        Body::EntriesPruned(b) => line(
            "pruned",
            Tone::Warn,
            format!(
                "{} records, leaves {} to {}, under policy {}; their hashes stay",
                b.records,
                b.previous_first,
                b.first_leaf.saturating_sub(1),
                escape_str(&b.policy)
            ),
        ),
        Body::LogFollowed(b) => line(
            "log",
            Tone::Warn,
            format!(
                "the host follows the log, {} by record {}: from {} to {} {}",
                escape_str(&b.what),
                b.leaf,
                escape_str(&b.old_vkey),
                escape_str(&b.new_vkey),
                escape_str(&b.detail)
            ),
        ),
        Body::KeyRotated(b) => line(
            "key",
            Tone::Warn,
            format!(
                "rotation {}: from {} to {}",
                escape_str(&b.what),
                escape_str(&b.old_vkey),
                escape_str(&b.new_vkey)
            ),
        ),
        Body::LogSucceeded(b) => line("successor", Tone::Warn, statement(&b.statement)),
        Body::PolicyPublished(b) => line(
            "policy",
            Tone::Plain,
            format!("bundle {} published by {}: {}", b.serial, escape_str(&b.by), escape_str(&b.stages.join(", "))),
        ),
        Body::RequestEscalated(b) => line(
            "escalated",
            Tone::Warn,
            format!("request {} to {}", escape_str(&b.request_id), escape_str(&b.to.join(", "))),
        ),
        Body::ReviewDelegated(b) => delegated(b),
        Body::PublishFinding(b) => line(
            "publish",
            if b.what == "back" { Tone::Good } else { Tone::Bad },
            format!("{} {}", escape_str(&b.what), escape_str(&b.detail)),
        ),
        Body::WebhookFinding(b) => line(
            "webhook",
            if b.what == "back" { Tone::Good } else { Tone::Bad },
            format!(
                "{} is {}, told up to leaf {} {}",
                escape_str(&b.webhook),
                escape_str(&b.what),
                b.next_leaf,
                escape_str(&b.detail)
            ),
        ),
        Body::CertificateIssued(b) => line(
            "cert",
            Tone::Plain,
            format!(
                "{} {} {} by {} until {}, serial {}",
                escape_str(&b.how),
                escape_str(&b.role),
                escape_str(&b.name),
                escape_str(&b.by),
                unix(b.not_after_unix),
                escape_str(&b.serial)
            ),
        ),
        Body::CertificateRevoked(b) => line(
            "revoked",
            Tone::Warn,
            format!(
                "certificates of {} {} by {}: {}",
                escape_str(&b.name),
                escape_str(&b.serial),
                escape_str(&b.by),
                escape_str(&b.reason)
            ),
        ),
        Body::CertificateEnding(b) => line(
            "cert",
            Tone::Bad,
            format!("the node's certificate ends at {}: {}", unix(b.not_after_unix), escape_str(&b.error)),
        ),
        Body::BlobErased(b) => line(
            "erased",
            Tone::Warn,
            format!("blob {} by {}: {}", hex::encode(&b.sha256), escape_str(&b.by), escape_str(&b.reason)),
        ),
    }
}

/// A point in time given in seconds.
fn unix(seconds: i64) -> String {
    time::rfc3339(seconds.saturating_mul(1_000_000_000)).unwrap_or_default()
}

fn session_start(b: &guard_proto::v1::SessionStart) -> String {
    let identity = b.identity.clone().unwrap_or_default();
    let (agent, initiator) = (escape_str(&identity.agent), escape_str(&identity.initiator));
    let observed = match b.observed_by {
        0 => String::new(),
        serial => format!(" (OBSERVED by bundle {serial}: verdicts are not enforced)"),
    };
    let parent = match identity.parent_session_id.as_str() {
        "" => String::new(),
        parent => format!(", child of {}", escape_str(parent)),
    };
    format!("{agent} for {initiator}{parent}: {}{observed}", command_line(&b.argv))
}

fn renewed(b: &SessionRenewed) -> String {
    let (old, new) = (time::date_time(b.old_expires_unix_ns), time::date_time(b.new_expires_unix_ns));
    match b.what.as_str() {
        "renewed" => format!("by {}: until {new}, before until {old}", escape_str(&b.by)),
        _ => format!("not until {new}, the end stays {old} {}", escape_str(&b.detail)),
    }
}

/// What, of which kind, for how long, in which try.
fn credential(b: &CredentialAct) -> String {
    let name = if b.name.is_empty() { "the session's login".to_owned() } else { escape_str(&b.name) };
    let mut text = format!("credential {name} ({})", escape_str(&b.kind));
    if b.ttl_ns > 0 {
        text.push_str(&format!(" for {}", duration::show(b.ttl_ns)));
    }
    if b.attempts > 0 {
        text.push_str(&format!(", attempt {}", b.attempts));
    }
    if !b.detail.is_empty() {
        text.push_str(&format!(": {}", escape_str(&b.detail)));
    }
    text
}

fn rule(verdict: &Option<Verdict>) -> String {
    let first = verdict.as_ref().and_then(|v| v.reasons.first());
    first.map(|r| format!(" [{}]", escape_str(&r.rule_id))).unwrap_or_default()
}

fn exec(b: &Exec) -> Line {
    let word = disposition_word(b.disposition);
    let mut text = b.facts.as_ref().map(command).unwrap_or_default();
    text.push_str(&rule(&b.verdict));
    if !b.detail.is_empty() {
        text.push_str(&format!(" {}", escape_str(&b.detail)));
    }
    let tone = if b.not_enforced { Tone::Warn } else { disposition_tone(word) };
    line(word, tone, text)
}

fn request(b: &ExecRequest) -> Line {
    let command = b.facts.as_ref().map(command).unwrap_or_default();
    let text = format!("{command}{} request {}", rule(&b.verdict), escape_str(&b.request_id));
    line("waiting", Tone::Warn, text)
}

fn delegated(b: &ReviewDelegated) -> Line {
    let d = b.delegation.clone().unwrap_or_default();
    let what = format!(
        "{} decides for {} {} up to risk {}",
        escape_str(&d.to),
        escape_str(&d.from),
        escape_str(&d.categories.join(", ")),
        d.max_risk
    );
    if b.ended_by.is_empty() {
        return line("delegated", Tone::Warn, format!("{what} until {}", time::date_time(d.until_unix_ns)));
    }
    line("ended", Tone::Plain, format!("{what}: by {} {}", escape_str(&b.ended_by), escape_str(&b.reason)))
}

fn decision(b: &ExecDecision) -> Line {
    let word = disposition_word(b.disposition);
    let whose: Vec<&str> = b.on_behalf_of.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    let mut by = if b.reviewer.is_empty() { String::new() } else { format!(" by {}", escape_str(&b.reviewer)) };
    if !whose.is_empty() {
        by.push_str(&format!(" for {}", escape_str(&whose.join(", "))));
    }
    if b.unsigned {
        by.push_str(" (not signed)");
    }
    let reason = if b.reason.is_empty() { String::new() } else { format!(": {}", escape_str(&b.reason)) };
    let text = format!("request {}{by} after {}{reason}", escape_str(&b.request_id), duration::show(b.waited_ns));
    line(word, disposition_tone(word), text)
}

fn outcome(b: &ExecOutcome) -> Line {
    let word = disposition_word(b.disposition);
    let event = if word.is_empty() { "exit" } else { word };
    let mut text = format!("exec {}", b.exec_id);
    if b.exited {
        text.push_str(&format!(" exit code {} after {}", shell_code(b.status), duration::show(b.duration_ns)));
    } else if b.errno != 0 {
        text.push_str(&format!(" errno {}", b.errno));
    }
    if !b.reason.is_empty() {
        text.push_str(&format!(" ({})", escape_str(&b.reason)));
    }
    line(event, if word.is_empty() { Tone::Dim } else { disposition_tone(word) }, text)
}

fn unjudged(b: &ExecUnjudged) -> Line {
    let word = disposition_word(b.disposition);
    let mut text = if b.argv.is_empty() { quote(&b.path) } else { command_line(&b.argv) };
    text.push_str(&format!(" errno {}", b.errno));
    for part in [&b.argv_trust, &b.reason] {
        if !part.is_empty() {
            text.push_str(&format!(", {}", escape_str(part)));
        }
    }
    if b.probes > 1 {
        let what = if b.folded { "different attempts, folded" } else { "probes" };
        text.push_str(&format!(", {} {what}", b.probes));
    }
    line(word, disposition_tone(word), text)
}

/// What the host made of a decision.
fn decision_finding(b: &DecisionFinding) -> Line {
    let (id, by) = (escape_str(&b.request_id), escape_str(&b.reviewer));
    match b.what.as_str() {
        "counted" => {
            line("counted", Tone::Warn, format!("approval of request {id} by {by}: {} of {}", b.have, b.needed))
        }
        "revoked" => {
            let reason = if b.detail.is_empty() { String::new() } else { format!(": {}", escape_str(&b.detail)) };
            line("revoked", Tone::Bad, format!("approval of request {id} by {by}, {} execs unused{reason}", b.unused))
        }
        what => {
            let text = format!("{} an approval of request {id} by {by}: {}", escape_str(what), escape_str(&b.detail));
            line("NOT TAKEN", Tone::Bad, text)
        }
    }
}

fn review_decision(b: &ReviewDecision) -> Line {
    let (event, tone) = match (b.approve, b.revoke) {
        (_, true) => ("revoke", Tone::Bad),
        (true, _) => ("approval", Tone::Good),
        (false, _) => ("denial", Tone::Bad),
    };
    let reason = if b.reason.is_empty() { String::new() } else { format!(": {}", escape_str(&b.reason)) };
    let several = if b.needed > 1 { format!(" ({} of {})", b.given, b.needed) } else { String::new() };
    let signed = match b.key_id.as_slice() {
        [] => String::new(),
        id => format!(", signed with key {}", roles::short(id)),
    };
    let whose = b.delegation.as_ref().map(|d| format!(" for {}", escape_str(&d.from))).unwrap_or_default();
    let by = escape_str(&b.reviewer);
    let text = format!("request {} by {by}{whose}{several}{signed}{reason}", escape_str(&b.request_id));
    Line { event: event.to_owned(), tone, text }
}

/// What was done to what, by whom, how often.
fn guard_act(b: &GuardAct) -> String {
    let mut text = escape_str(&b.what);
    for part in [escape_str(&b.operation), escape(&b.target)].iter().filter(|p| !p.is_empty()) {
        text.push(' ');
        text.push_str(part);
    }
    if !b.rule.is_empty() {
        text.push_str(&format!(" [{}]", escape_str(&b.rule)));
    }
    let folded = if b.folded { " (different ones, folded)" } else { "" };
    format!("{text} by pid {} ({}), {}x{folded}", b.pid, escape(&b.comm), b.count.max(1))
}

/// What an admin's statement says, on one line.
fn statement(note: &[u8]) -> String {
    let text = String::from_utf8_lossy(note);
    let text = text.split("\n\n").next().unwrap_or_default();
    text.lines().skip(1).map(escape_str).collect::<Vec<_>>().join(", ")
}
