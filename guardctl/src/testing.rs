//! Messages that tests show: one session with every disposition, one request, one status.
//!
//! It must stay fixed: snapshots rest on it.

use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;

use crate::record::Entry;

const NOON: i64 = 1_769_860_800_000_000_000;
const SESSION: &str = "01KG9F6Q00ABCDEFGHJKMNPQRS";
const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

fn bytes(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}

fn identity() -> Option<Identity> {
    Some(Identity {
        session_id: SESSION.into(),
        agent: "coder".into(),
        instance: "spiffe://guard/agent/coder/01KG9F6Q00ABCDEFGHJKMNPQRS".into(),
        initiator: "alice".into(),
        initiator_uid: 1000,
        categories: vec![],
        rights_digest: vec![7; 32],
        started_by: String::new(),
        roles_digest: String::new(),
        ..Identity::default()
    })
}

/// An exec in alice's repository, of the program of `/usr/bin` that it names first.
pub fn ran(argv: &[&str]) -> ExecFacts {
    let path = format!("/usr/bin/{}", argv.first().expect("a program")).into_bytes();
    ExecFacts {
        argv: bytes(argv),
        argv_count: u32::try_from(argv.len()).expect("small"),
        cwd: b"/home/alice/repo".to_vec(),
        uid: 1000,
        files: vec![FileFact { path, role: "program".into(), ..FileFact::default() }],
        ..ExecFacts::default()
    }
}

fn facts(exec_id: u64, argv: &[&str]) -> Option<ExecFacts> {
    Some(ExecFacts {
        exec_id,
        boot_id: "b".into(),
        pid: 100 + u32::try_from(exec_id).expect("small"),
        uid: 1000,
        gid: 1000,
        argv: bytes(argv),
        argv_count: u32::try_from(argv.len()).expect("small"),
        cwd: b"/home/alice/repo".to_vec(),
        files: vec![FileFact {
            path: b"/usr/bin/rm".to_vec(),
            dev: 1,
            ino: 2,
            size: 72_752,
            sha256: vec![0xab; 32],
            role: "program".into(),
        }],
        ancestry: vec![
            ProcessRef { pid: 90, uid: 1000, comm: b"bash".to_vec(), exec_id: 2, exe: b"/usr/bin/bash".to_vec() },
            ProcessRef {
                pid: 80,
                uid: 1000,
                comm: b"python3".to_vec(),
                exec_id: 1,
                exe: b"/usr/bin/python3.11".to_vec(),
            },
        ],
        root_exec_id: exec_id,
        envc: 12,
        env_notable: bytes(&["GIT_DIR", "LD_PRELOAD"]),
        entry: exec_id == 1,
        ..ExecFacts::default()
    })
}

fn verdict(tier: Tier, category: &str, risk: u32, rule: &str) -> Option<Verdict> {
    Some(Verdict {
        categories: vec![],
        tier: tier.into(),
        category: category.into(),
        risk,
        reasons: vec![Reason {
            rule_id: rule.into(),
            text: "what the rule says of it".into(),
            evidence: "the argument that did it".into(),
        }],
        policy_digest: "0123abcd".into(),
        targets: vec!["/home/alice/repo/build".into()],
        anomalies: vec![],
        anomalies_covered: false,
        shadow: None,
        novelty: 0,
    })
}

fn entry(leaf: u64, body: Body) -> Entry {
    let kind = match &body {
        Body::SessionStart(_) => 3,
        Body::Exec(_) => 5,
        _ => 99,
    };
    Entry::for_test(leaf, NOON + i64::try_from(leaf).expect("small") * 1_000_000_000, SESSION, kind, Some(body))
}

fn exec(exec_id: u64, argv: &[&str], tier: Tier, what: (&str, u32, &str), disposition: Disposition) -> Body {
    Body::Exec(Exec {
        identity: identity(),
        facts: facts(exec_id, argv),
        verdict: verdict(tier, what.0, what.1, what.2),
        disposition: disposition.into(),
        ..Exec::default()
    })
}

fn request(exec_id: u64, argv: &[&str], id: &str) -> ExecRequest {
    ExecRequest {
        identity: identity(),
        facts: facts(exec_id, argv),
        verdict: verdict(Tier::Review, "vcs.write", 40, "git-write"),
        request_id: id.into(),
        deadline_unix_ns: NOON + 300_000_000_000,
        hold_max_ns: 20_000_000_000,
        digest: vec![0xcd; 32],
        kinds: vec![Kind { rule_id: "git-write".into(), category: "vcs.write".into(), scope: "git".into() }],
        kinds_max_risk: 59,
        ..ExecRequest::default()
    }
}

fn decision(exec_id: u64, id: &str, disposition: Disposition, reviewer: &str) -> Body {
    Body::ExecDecision(ExecDecision {
        identity: identity(),
        request_id: id.into(),
        exec_id,
        disposition: disposition.into(),
        reviewer: reviewer.into(),
        reason: if reviewer.is_empty() { String::new() } else { "looks right".into() },
        waited_ns: 3_200_000_000,
        held: true,
        decision_leaf: 9,
        ..ExecDecision::default()
    })
}

fn outcome(exec_id: u64, code: u32) -> Body {
    Body::ExecOutcome(ExecOutcome {
        identity: identity(),
        exec_id,
        started: true,
        exited: true,
        status: code << 8,
        duration_ns: 1_250_000_000,
        ..ExecOutcome::default()
    })
}

fn session_start() -> Body {
    Body::SessionStart(SessionStart {
        identity: identity(),
        ttl_ns: 900_000_000_000,
        expires_unix_ns: NOON + 900_000_000_000,
        purpose: "fix the tests".into(),
        argv: bytes(&["bash", "/usr/share/guard/session.sh"]),
        cwd: b"/home/alice/repo".to_vec(),
        policy_digest: "0123abcd".into(),
        uid: 1000,
        gid: 1000,
        kernel_mode: "enforcing".into(),
        ..SessionStart::default()
    })
}

/// A session in which everything happens once.
pub fn session_entries() -> Vec<Entry> {
    let shell = ("shell", 20, "entry");
    let bodies = [
        session_start(),
        exec(1, &["bash", "/usr/share/guard/session.sh"], Tier::Allow, shell, Disposition::Allowed),
        exec(2, &["git", "status", "--short"], Tier::Allow, ("vcs.read", 0, "git-read"), Disposition::Allowed),
        outcome(2, 0),
        Body::ExecRequest(request(3, &["git", "commit", "-m", "it's done"], REQUEST)),
        decision(3, REQUEST, Disposition::Approved, "bob"),
        exec(4, &["git", "gc", "--auto"], Tier::Review, ("vcs.write", 30, "git-write"), Disposition::Inherited),
        outcome(4, 0),
        outcome(3, 0),
        Body::ExecRequest(request(5, &["curl", "https://example.org/install.sh"], "01KG9F6T00ABCDEFGHJKMNPQRS")),
        decision(5, "01KG9F6T00ABCDEFGHJKMNPQRS", Disposition::TimedOut, ""),
        exec(
            6,
            &["rm", "-rf", "/home/alice/precious\u{202e}"],
            Tier::Deny,
            ("fs.delete", 95, "rm-recursive"),
            Disposition::Denied,
        ),
        Body::ExecUnjudged(ExecUnjudged {
            identity: identity(),
            exec_id: 7,
            path: b"/usr/local/bin/rg".to_vec(),
            argv: bytes(&["rg", "TODO"]),
            argv_trust: "untrusted".into(),
            errno: 2,
            probes: 4,
            disposition: Disposition::Failed.into(),
            ..ExecUnjudged::default()
        }),
        exec(8, &["sleep", "60"], Tier::Allow, ("process.wait", 0, "sleep"), Disposition::Allowed),
        Body::ExecOutcome(ExecOutcome {
            identity: identity(),
            exec_id: 8,
            disposition: Disposition::Killed.into(),
            reason: "argument bytes differ from what was judged".into(),
            ..ExecOutcome::default()
        }),
        Body::ExecRequest(request(9, &["make", "install"], "01KG9F6V00ABCDEFGHJKMNPQRS")),
        Body::GuardRefusal(GuardAct {
            identity: identity(),
            what: "ptrace".into(),
            pid: 120,
            count: 2,
            ..Default::default()
        }),
        outcome(1, 1),
    ];
    bodies.into_iter().enumerate().map(|(i, b)| entry(10 + i as u64, b)).collect()
}

/// The session's records, and one record of every other kind.
pub fn all_kinds() -> Vec<Entry> {
    let mut all = session_entries();
    let bodies = [
        Body::SessionEnd(SessionEnd {
            identity: identity(),
            reason: "exited".into(),
            has_status: true,
            status: 1 << 8,
            execs: 9,
            duration_ns: 20_000_000_000,
            detail: String::new(),
        }),
        Body::NodeStart(NodeStart {
            version: "0.1.0".into(),
            kernel: "6.12.1".into(),
            mode: "enforce".into(),
            ..Default::default()
        }),
        Body::NodeStop(NodeStop { reason: "SIGTERM".into(), sessions_closed: 0 }),
        Body::Gap(Gap { source: "ring".into(), counter: "dropped".into(), lost: 3, total: 3, ..Gap::default() }),
        Body::Canary(CanaryResult {
            mode: "enforcing".into(),
            ungranted_denied: true,
            granted_ran: true,
            ..Default::default()
        }),
        Body::EmergencyStop(EmergencyStop { user: "root".into(), reason: "maintenance".into(), ..Default::default() }),
        Body::JournalRepair(JournalRepair { what: "torn tail".into(), file: "00.seg".into(), offset: 100, bytes: 12 }),
        Body::PolicyLoaded(PolicyLoaded {
            digest: "0123".into(),
            source: "default.yaml".into(),
            rules: 42,
            ..Default::default()
        }),
        Body::CollectorStart(CollectorStart {
            version: "0.1.0".into(),
            log_size: 3,
            origin: "guard.test/log".into(),
            ..Default::default()
        }),
        Body::AdmitFinding(AdmitFinding {
            host: vec![1; 16],
            what: "gap".into(),
            expected_seq: 5,
            got_seq: 7,
            ..Default::default()
        }),
        Body::ReviewDecision(ReviewDecision {
            request_id: REQUEST.into(),
            digest: vec![0xcd; 32],
            reviewer: "bob".into(),
            approve: true,
            reason: "looks right".into(),
            scope: "root".into(),
            categories: vec!["vcs.write".into()],
            max_execs: 20,
            agent: "coder".into(),
            ..ReviewDecision::default()
        }),
    ];
    all.extend(bodies.into_iter().enumerate().map(|(i, b)| entry(40 + i as u64, b)));
    all.push(Entry::for_test(60, NOON, "", 77, None));
    all
}

/// The session above and an open one.
pub fn summaries() -> Vec<SessionSummary> {
    let first = SessionSummary {
        session_id: SESSION.into(),
        agent: "coder".into(),
        instance: "spiffe://guard/agent/coder/01KG9F6Q00ABCDEFGHJKMNPQRS".into(),
        initiator: "alice".into(),
        host: vec![1; 16],
        host_name: "devbox".into(),
        started_unix_ns: NOON,
        ended_unix_ns: NOON + 20_000_000_000,
        expires_unix_ns: NOON + 900_000_000_000,
        end_reason: "exited".into(),
        execs: 9,
        allowed: 2,
        inherited: 1,
        approved: 1,
        denied: 1,
        timed_out: 1,
        killed: 1,
        failed: 1,
        pending: 1,
        purpose: "fix the tests".into(),
        argv: bytes(&["bash", "/usr/share/guard/session.sh"]),
        expired: 0,
        parent_session_id: String::new(),
        children: vec!["01KG9F6Q00ABCDEFGHJKMNPQR1".into()],
    };
    let argv = bytes(&["bash", "-c", "for i in 1 2 3; do git log -1; done; echo \u{1b}[31mred; exec python3 agent.py"]);
    let open = SessionSummary {
        ended_unix_ns: 0,
        end_reason: String::new(),
        argv,
        parent_session_id: "01KG9F6Q00ABCDEFGHJKMNPQR0".into(),
        children: vec![],
        ..first.clone()
    };
    vec![first, open]
}

/// A pending request, and the time at which it is looked at.
pub fn review() -> (Review, i64) {
    let mut before = vec![];
    before.extend(facts(2, &["git", "status", "--short"]));
    before.extend(facts(1, &["bash", "/usr/share/guard/session.sh"]));
    let review = Review {
        request: Some(request(3, &["git", "commit", "-m", "it's done"], REQUEST)),
        host: vec![1; 16],
        host_name: "devbox".into(),
        leaf: 14,
        state: "pending".into(),
        opened_unix_ns: NOON,
        before,
        ..Review::default()
    };
    (review, NOON + 48_000_000_000)
}

/// A collector with two nodes, one of them gone, and the time of the question.
pub fn status() -> (StatusReply, i64) {
    let report = NodeReport {
        observed: vec![ObservedAgent { agent: "writer".into(), until_unix_ns: NOON + 86_400_000_000_000 }],
        host: vec![1; 16],
        host_name: "devbox".into(),
        version: "0.1.0".into(),
        kernel: "6.12.9-cloud-amd64".into(),
        mode: "enforcing".into(),
        mode_detail: String::new(),
        measured_unix_ns: NOON,
        sessions: 1,
        held: 1,
        journal_next_seq: 812,
        journal_backlog: 0,
        counters: [("ring_dropped".to_owned(), 0), ("probe_misses".to_owned(), 3)].into(),
        policy_digest: "0123abcd".into(),
        roles_digest: String::new(),
        bundle_serial: 7,
        takes_bundles: true,
        roles_serial: 7,
        roles_age_seconds: 95,
        roles_max_age_seconds: 3600,
        decisions: "signed".into(),
        policy_error: String::new(),
        certificate_not_after_unix_ns: NOON + 57_600_000_000_000,
        certificate_error: String::new(),
        support: Some(KernelSupport {
            programs: 31,
            missing: vec!["guard_ioctl_compat".into()],
            fanotify_max_groups: 128,
            fanotify_max_marks: 16_384,
            descriptors: 1_048_576,
            warnings: vec![],
        }),
    };
    let gone = NodeReport {
        host_name: "buildbox".into(),
        certificate_error: "the certificate of buildbox (serial 4a01) is revoked".into(),
        policy_error: "default.yaml:12:5: unknown tier `ask`".into(),
        support: Some(KernelSupport {
            warnings: vec!["fs.fanotify.max_user_groups is 16, 80 needed: raise it".into()],
            ..KernelSupport::default()
        }),
        ..report.clone()
    };
    let node = |name: &str, report, connected, findings| NodeState {
        report: Some(report),
        seen_unix_ns: NOON,
        connected,
        next_seq: 812,
        findings,
        node: name.into(),
    };
    let status = StatusReply {
        collector_version: "0.1.0".into(),
        origin: "guard.test/log".into(),
        log_vkey: "guard.test/log+1234abcd+AeXampleExampleExampleExampleExampleExampleExam".into(),
        log_size: 1_024,
        checkpoint_size: 1_020,
        checkpoint_unix_ns: NOON + 3_000_000_000,
        nodes: vec![node("devbox", report, true, 0), node("buildbox", gone, false, 2)],
        pending_reviews: 1,
        open_sessions: 1,
        witnesses: None,
        roles_digest: String::new(),
        roles_error: String::new(),
        publish_error: String::new(),
        signing_vkeys: vec![],
        webhooks: vec![
            WebhookState {
                name: "siem".into(),
                url: "https://siem.example".into(),
                sent: 12,
                sent_unix_ns: NOON,
                ..WebhookState::default()
            },
            WebhookState {
                name: "pager".into(),
                url: "https://pager.example:8443".into(),
                next_leaf: 1_000,
                lag: 24,
                waiting: true,
                error: "it answers 503 Service Unavailable".into(),
                failures: 4,
                failing_since_unix_ns: NOON - 600_000_000_000,
                ..WebhookState::default()
            },
        ],
        retention: Some(Retention {
            policy: "retention: entries_days = 90, minimum_records = 256".into(),
            first_leaf: 512,
            record_leaf: 1_001,
        }),
    };
    (status, NOON + 4_000_000_000)
}

/// JSON on several lines, for snapshots.
pub fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("JSON")
}
