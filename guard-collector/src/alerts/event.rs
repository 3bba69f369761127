//! What a record is to somebody who wants to be woken: nothing, or an event of a kind, with what is told of it.
//!
//! It decides by the record alone, so that a second reading gives the same. It must not tell more of arguments than the record
//! holds, which are masked. Fails: what it does not know is no event; the record stays in the log.

use guard_log::record::{Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecRequest, GuardAct, Identity, PolicyLoaded, RequestEscalated};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::text::Cut;
use crate::body;

/// What can be told: words of the configuration, and the `type` of messages.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An exec that did not run, or was killed for what it was.
    #[serde(rename = "exec.denied")]
    ExecDenied,
    /// A refused act against Guard, or against what keeps a task governed.
    #[serde(rename = "guard.attempt")]
    GuardAttempt,
    /// Any other refused act.
    #[serde(rename = "act.refused")]
    ActRefused,
    /// Records or events that are missing.
    #[serde(rename = "log.gap")]
    LogGap,
    /// An approval that the host did not take: who is said to have made it did not sign it, or may not.
    #[serde(rename = "decision.refused")]
    DecisionRefused,
    /// Nobody has decided a request for so long that another group is asked too.
    #[serde(rename = "review.escalated")]
    ReviewEscalated,
    /// Anything else that is wrong with a host's records, or with the log as a host sees it.
    #[serde(rename = "log.finding")]
    LogFinding,
    /// The log is not published or not cosigned, or is again.
    #[serde(rename = "log.publish")]
    LogPublish,
    /// Somebody lifted enforcement.
    #[serde(rename = "enforcement.stopped")]
    EnforcementStopped,
    /// A node measured that it does not enforce, or that it does again.
    #[serde(rename = "enforcement.mode")]
    EnforcementMode,
    /// A host judges by a bundle that puts agents into the stage `observe`: what is denied to them runs.
    #[serde(rename = "enforcement.observe")]
    EnforcementObserve,
    /// Another receiver of alerts cannot be reached, or can be again.
    #[serde(rename = "webhook.failing")]
    WebhookFailing,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ExecDenied,
        Self::GuardAttempt,
        Self::ActRefused,
        Self::LogGap,
        Self::LogFinding,
        Self::DecisionRefused,
        Self::ReviewEscalated,
        Self::LogPublish,
        Self::EnforcementStopped,
        Self::EnforcementMode,
        Self::EnforcementObserve,
        Self::WebhookFailing,
    ];

    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::ExecDenied => "exec.denied",
            Self::GuardAttempt => "guard.attempt",
            Self::ActRefused => "act.refused",
            Self::LogGap => "log.gap",
            Self::LogFinding => "log.finding",
            Self::DecisionRefused => "decision.refused",
            Self::ReviewEscalated => "review.escalated",
            Self::LogPublish => "log.publish",
            Self::EnforcementStopped => "enforcement.stopped",
            Self::EnforcementMode => "enforcement.mode",
            Self::EnforcementObserve => "enforcement.observe",
            Self::WebhookFailing => "webhook.failing",
        }
    }
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// Of an exec, where it was judged.
    pub risk: Option<u32>,
    /// Events with the same are folded: kind, host, session, and what is told below but for arguments and targets.
    pub same: [u8; 32],
    /// Of arguments and targets.
    pub differs: [u8; 32],
    /// Whose it is, if anybody's.
    pub session: Option<SessionId>,
    /// Host's wall clock.
    pub wall_ns: i64,
    /// What is told beside the record's place.
    pub data: Map<String, Value>,
    /// The mode of a node, where the event is about that.
    pub mode: Option<String>,
}

/// Acts against Guard, or against what keeps a task governed, whatever their target.
const AGAINST_GUARD: [&str; 12] = [
    "bpf",
    "cgroup_write",
    "kernel_load",
    "kernel_setting",
    "raw_device",
    "ptrace",
    "proc_mem",
    "signal",
    "terminal_input",
    "mount_namespace",
    "userfaultfd",
    "task_setting",
];
/// Rules about Guard's own files, keys and sockets begin so.
const GUARDS_OWN: &str = "guard";

/// Dispositions of execs that are told.
fn is_denial(raw: i32) -> bool {
    let denials = [Disposition::Denied, Disposition::TimedOut, Disposition::Expired, Disposition::Killed];
    Disposition::try_from(raw).is_ok_and(|d| denials.contains(&d))
}

/// The request that has to be known to tell of a record.
pub fn needs_request(body: &Body) -> Option<&str> {
    match body {
        Body::ExecDecision(end) if is_denial(end.disposition) => Some(&end.request_id),
        Body::RequestEscalated(escalated) => Some(&escalated.request_id),
        _ => None,
    }
}

/// The event that a record is; `request` is the one that it ends. No text that is told is longer than `cut` says.
pub fn of(record: &Record, body: &Body, request: Option<&ExecRequest>, cut: &mut Cut) -> Option<Event> {
    let Told { kind, risk, same, differs, data, mode } = told(body, request, cut)?;
    let header = record.header();
    let mut digest = Sha256::new();
    for part in [kind.word().as_bytes(), &header.host.0, &header.session.0, same.as_bytes()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut all = Map::new();
    if let Some(identity) = body::identity(body) {
        all.insert("session".to_owned(), session(identity, cut));
    }
    all.extend(data);
    Some(Event {
        kind,
        risk,
        same: digest.finalize().into(),
        differs: Sha256::digest(differs).into(),
        session: Some(header.session).filter(|session| !session.is_none()),
        wall_ns: header.wall_unix_ns,
        data: all,
        mode,
    })
}

struct Told {
    kind: Kind,
    risk: Option<u32>,
    same: String,
    differs: Vec<u8>,
    data: Map<String, Value>,
    mode: Option<String>,
}

impl Told {
    fn new(kind: Kind, same: String, name: &str, data: Value) -> Self {
        let data = Map::from_iter([(name.to_owned(), data)]);
        Self { kind, risk: None, same, differs: Vec::new(), data, mode: None }
    }
}

/// Whose session it is.
pub fn session(identity: &Identity, cut: &mut Cut) -> Value {
    json!({
        "id": cut.text(&identity.session_id), "agent": cut.text(&identity.agent),
        "instance": cut.text(&identity.instance), "initiator": cut.text(&identity.initiator),
        "started_by": cut.some(&identity.started_by),
    })
}

fn told(body: &Body, request: Option<&ExecRequest>, cut: &mut Cut) -> Option<Told> {
    match body {
        Body::Exec(_) | Body::ExecDecision(_) | Body::ExecUnjudged(_) | Body::ExecOutcome(_) => {
            exec(body, request, cut)
        }
        Body::GuardRefusal(act) => Some(refusal(act, cut)),
        Body::Gap(b) => {
            let same = format!("{}/{}/{}", b.source, b.counter, b.session_id);
            let data = json!({"source": cut.text(&b.source), "counter": cut.text(&b.counter), "lost": b.lost});
            Some(Told::new(Kind::LogGap, same, "gap", data))
        }
        Body::JournalRepair(b) if b.what != "torn_tail" => {
            let data =
                json!({"what": cut.text(&b.what), "file": cut.text(&b.file), "offset": b.offset, "bytes": b.bytes});
            Some(Told::new(Kind::LogGap, b.what.clone(), "journal", data))
        }
        // A new host, a new life of one.
        Body::AdmitFinding(b) if ["bound", "new_epoch"].contains(&b.what.as_str()) => None,
        Body::AdmitFinding(b) => {
            let kind = if b.what == "gap" { Kind::LogGap } else { Kind::LogFinding };
            let data = json!({"what": cut.text(&b.what), "host": hex::encode(&b.host), "expected_seq": b.expected_seq,
                "got_seq": b.got_seq, "detail": cut.text(&b.detail)});
            Some(Told::new(kind, format!("{}/{}", b.what, hex::encode(&b.host)), "finding", data))
        }
        Body::DecisionFinding(b) if b.what == "refused" => {
            let data = json!({"request": cut.text(&b.request_id), "reviewer": cut.text(&b.reviewer),
                "detail": cut.text(&b.detail), "decision_leaf": b.decision_leaf});
            Some(Told::new(Kind::DecisionRefused, format!("{}/{}", b.reviewer, b.detail), "decision", data))
        }
        Body::RequestEscalated(b) => Some(escalated(b, request, cut)),
        Body::CheckpointRefused(b) => {
            let what = format!("checkpoint_{}", b.what);
            let data = json!({"what": cut.text(&what), "detail": cut.text(&b.detail)});
            Some(Told::new(Kind::LogFinding, what, "finding", data))
        }
        Body::PublishFinding(b) => {
            let data = json!({"what": cut.text(&b.what), "detail": cut.text(&b.detail)});
            Some(Told::new(Kind::LogPublish, format!("publish/{}", b.what), "publish", data))
        }
        Body::WitnessFinding(b) => {
            let data = json!({"what": cut.text(&b.what), "witness": cut.some(&b.witness),
                "cosigned_size": b.cosigned_size, "detail": cut.text(&b.detail)});
            Some(Told::new(Kind::LogPublish, format!("witness/{}/{}", b.what, b.witness), "publish", data))
        }
        Body::EmergencyStop(b) => {
            let data = json!({"by": cut.text(&b.user), "uid": b.uid, "reason": cut.text(&b.reason),
                "sessions": b.sessions});
            Some(Told::new(Kind::EnforcementStopped, b.user.clone(), "stop", data))
        }
        Body::Canary(b) => Some(mode(&b.mode, &b.detail, cut)),
        Body::NodeStart(b) => b.canary.as_ref().map(|canary| mode(&canary.mode, &canary.detail, cut)),
        Body::PolicyLoaded(b) => observed(b, cut),
        Body::WebhookFinding(b) => {
            let data = json!({"what": cut.text(&b.what), "name": cut.text(&b.webhook), "next_leaf": b.next_leaf,
                "detail": cut.text(&b.detail)});
            Some(Told::new(Kind::WebhookFailing, format!("{}/{}", b.what, b.webhook), "webhook", data))
        }
        _ => None,
    }
}

/// Agents whose verdicts are not enforced any more, each with its end in seconds since 1970.
fn observed(b: &PolicyLoaded, cut: &mut Cut) -> Option<Told> {
    let agents: Vec<&String> = b.stages.iter().filter(|s| s.split(' ').nth(1) == Some("observe")).collect();
    if b.refused || agents.is_empty() {
        return None;
    }
    let shown: Vec<String> = cut.first(&agents).iter().map(|stage| cut.text(stage)).collect();
    let data = json!({"bundle": b.bundle_serial, "stages": shown});
    Some(Told::new(Kind::EnforcementObserve, b.bundle_serial.to_string(), "policy", data))
}

/// Each request is an event of its own: none is folded away.
fn escalated(b: &RequestEscalated, request: Option<&ExecRequest>, cut: &mut Cut) -> Told {
    let verdict = request.and_then(|r| r.verdict.as_ref());
    let facts = request.and_then(|r| r.facts.as_ref());
    let (argv, left) = cut.argv(facts.map_or(&[][..], |f| f.argv.as_slice()));
    let identity = request.and_then(|r| r.identity.as_ref());
    let to: Vec<Value> = cut.first(&b.to).iter().map(|role| json!(cut.text(role))).collect();
    let data = json!({
        "request": cut.text(&b.request_id), "to": to, "deadline_unix_ns": b.deadline_unix_ns, "argv": argv,
        "argv_omitted": u64::from(facts.map_or(0, |f| f.argv_omitted)) + left,
        "category": verdict.and_then(|v| cut.some(&v.category)), "risk": verdict.map(|v| v.risk),
        "session": identity.map(|identity| session(identity, cut)),
    });
    let told = Told::new(Kind::ReviewEscalated, b.request_id.clone(), "review", data);
    Told { risk: verdict.map(|v| v.risk), ..told }
}

fn mode(mode: &str, detail: &str, cut: &mut Cut) -> Told {
    let data = json!({"mode": cut.text(mode), "detail": cut.text(detail)});
    let told = Told::new(Kind::EnforcementMode, mode.to_owned(), "enforcement", data);
    Told { mode: Some(mode.to_owned()), ..told }
}

fn refusal(act: &GuardAct, cut: &mut Cut) -> Told {
    let against = AGAINST_GUARD.contains(&act.what.as_str()) || act.rule.starts_with(GUARDS_OWN);
    let kind = if against { Kind::GuardAttempt } else { Kind::ActRefused };
    let same = format!("{}/{}/{}/{}/{}", act.what, act.operation, act.rule, act.killed, act.program);
    let data = json!({
        "what": cut.text(&act.what), "operation": cut.some(&act.operation), "target": cut.bytes(&act.target),
        "rule": cut.some(&act.rule), "program": cut.some(&act.program), "pid": act.pid, "count": act.count.max(1),
        "killed": act.killed,
    });
    Told { differs: act.target.clone(), ..Told::new(kind, same, "act", data) }
}

fn exec(body: &Body, request: Option<&ExecRequest>, cut: &mut Cut) -> Option<Told> {
    let (raw, facts, verdict, detail) = match body {
        Body::Exec(b) => (b.disposition, b.facts.as_ref(), b.verdict.as_ref(), b.detail.as_str()),
        Body::ExecDecision(b) => (
            b.disposition,
            request.and_then(|r| r.facts.as_ref()),
            request.and_then(|r| r.verdict.as_ref()),
            b.reason.as_str(),
        ),
        Body::ExecUnjudged(b) => (b.disposition, None, None, b.reason.as_str()),
        Body::ExecOutcome(b) => (b.disposition, None, None, b.reason.as_str()),
        _ => return None,
    };
    if !is_denial(raw) {
        return None;
    }
    let (id, request_id, reviewer, path, argv, omitted) = match body {
        Body::Exec(b) => (0, b.request_id.as_str(), b.reviewer.as_str(), &[][..], &[][..], 0),
        Body::ExecDecision(b) => (b.exec_id, b.request_id.as_str(), b.reviewer.as_str(), &[][..], &[][..], 0),
        // What the kernel saw of an attempt that nobody judged: the caller may have changed it meanwhile.
        Body::ExecUnjudged(b) => (b.exec_id, "", "", b.path.as_slice(), b.argv.as_slice(), u32::from(b.argv_cut)),
        Body::ExecOutcome(b) => (b.exec_id, "", "", &[][..], &[][..], 0),
        _ => return None,
    };
    let program = facts.and_then(|f| f.files.iter().find(|f| f.role == "program")).map_or(path, |f| f.path.as_slice());
    let argv = facts.map_or(argv, |f| f.argv.as_slice());
    let reasons = verdict.map_or(&[][..], |v| v.reasons.as_slice());
    let rules: Vec<&str> = reasons.iter().map(|r| r.rule_id.as_str()).collect();
    let word = body::word(raw);
    let same = format!("{word}/{}/{detail}/{}", hex::encode(program), rules.join(","));
    let (shown, left) = cut.argv(argv);
    let reasons: Vec<Value> = cut
        .first(reasons)
        .iter()
        .map(|r| json!({"rule": cut.text(&r.rule_id), "text": cut.text(&r.text), "evidence": cut.some(&r.evidence)}))
        .collect();
    let data = json!({
        "exec": facts.map_or(id, |f| f.exec_id), "program": (!program.is_empty()).then(|| cut.bytes(program)),
        "argv": shown, "argv_omitted": u64::from(facts.map_or(omitted, |f| f.argv_omitted)) + left,
        "argv_trusted": !matches!(body, Body::ExecUnjudged(_)), "cwd": facts.map(|f| cut.bytes(&f.cwd)),
        "disposition": word, "category": verdict.and_then(|v| cut.some(&v.category)), "risk": verdict.map(|v| v.risk),
        "reasons": reasons, "detail": cut.some(detail), "request": cut.some(request_id), "reviewer": cut.some(reviewer),
    });
    let told = Told::new(Kind::ExecDenied, same, "exec", data);
    Some(Told { risk: verdict.map(|v| v.risk), differs: argv.join(&0), ..told })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(stages: &[&str], refused: bool) -> Option<Value> {
        let stages = stages.iter().map(|s| (*s).to_owned()).collect();
        let loaded = PolicyLoaded { bundle_serial: 7, stages, refused, ..PolicyLoaded::default() };
        let told = told(&Body::PolicyLoaded(loaded), None, &mut Cut::to(4096))?;
        assert_eq!(told.kind, Kind::EnforcementObserve);
        told.data.get("policy").cloned()
    }

    #[test]
    fn a_policy_by_which_denials_run_is_told_and_no_other() {
        let told = told_of(&["* enforce", "coder observe 1790000000"], false);
        assert_eq!(told, Some(json!({"bundle": 7, "stages": ["coder observe 1790000000"]})));
        assert_eq!(told_of(&["* enforce", "observe shadow"], false), None);
        assert_eq!(told_of(&["coder observe 1790000000"], true), None, "one that was refused");
        assert_eq!(told_of(&[], false), None);
    }
}
