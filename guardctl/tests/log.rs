//! `guardctl log` against a log made by the store and served over real gRPC and TLS, right and changed.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "the collector is shared with other tests")]

use std::fs;
use std::process::{Command, Output};

use collector::{Collector, PUBLIC, VKEY};
use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
use guard_log::signer::KeyFile;
use guard_log::store::{Store, StoreOptions};
use guard_policy::decision::{DelegationStatement, ReviewSigner, Statement};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    AdmitFinding, Delegation, Disposition, Exec, ExecDecision, ExecFacts, ExecRequest, FileFact, RecordBody,
    ReviewDecision, SessionStart, Tier, Verdict,
};
use prost::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

#[path = "collector/collector.rs"]
mod collector;

struct Chain(u8, u64, [u8; 32]);

impl Chain {
    fn next(&mut self, kind: Kind, body: &[u8]) -> Record {
        let header = Header {
            version: 1,
            kind,
            host: HostId([self.0; 16]),
            epoch: Epoch([self.0; 16]),
            seq: self.1,
            prev: self.2,
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SessionId::NONE,
        };
        let record = Record::seal(&header, body).expect("sealed");
        (self.1, self.2) = (self.1 + 1, record.digest());
        record
    }
}

/// A collector with a log that grows.
struct Logged {
    collector: Collector,
    store: Store,
    host: Chain,
}

impl Logged {
    fn new() -> Logged {
        let logged = Logged::of(Collector::start(), &KeyFile::generate("guard.test/log").expect("key"), "log");
        fs::write(logged.collector.file(VKEY), logged.store.vkey()).expect("written");
        logged
    }

    fn of(collector: Collector, signer: &KeyFile, name: &str) -> Logged {
        let options = StoreOptions {
            dir: collector.file(name).join("data"),
            lock: collector.file(name).join("lock"),
            segment_bytes: 1 << 20,
            require_real_disk: false,
        };
        let again = KeyFile::from_skey(&signer.skey()).expect("key");
        Store::create(&options, signer).expect("created");
        let (store, _) = Store::open(options, again).expect("opened");
        Logged { collector, store, host: Chain(1, 0, [0; 32]) }
    }

    fn grow(&mut self, records: usize) {
        let group: Vec<Record> = (0..records).map(|_| self.host.next(Kind::EXEC, b"body")).collect();
        self.append(group);
    }

    fn append(&self, group: Vec<Record>) {
        self.store.append(group).expect("queued").wait().expect("durable");
        self.store.publish().expect("published");
    }

    fn guardctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
        command.arg("--config").arg(self.collector.config()).args(arguments).stdin(std::process::Stdio::null());
        command.output().expect("guardctl runs")
    }

    fn json(&self, arguments: &[&str], code: i32) -> Value {
        let output = self.guardctl(&[&["-o", "json", "log"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }
}

#[test]
fn a_log_verifies_and_is_remembered_and_may_only_grow() {
    let mut log = Logged::new();
    log.grow(300);
    let first = log.guardctl(&["log", "verify"]);
    assert_eq!(first.status.code(), Some(0), "{first:?}");
    let shown = String::from_utf8_lossy(&first.stdout).into_owned();
    assert!(shown.starts_with("log OK: 300 records of 1 journals, size 300, root "), "{shown}");
    assert!(String::from_utf8_lossy(&first.stderr).contains("first use of this log"), "{first:?}");
    log.grow(10);
    let second = log.json(&["verify"], 0);
    assert_eq!((&second["ok"], &second["size"], &second["records"]), (&true.into(), &310.into(), &310.into()));
    assert_eq!((&second["consistent_with"], &second["key_from"]), (&300.into(), &"state".into()));
    assert_eq!(second["hosts"][0]["next_seq"], 310);
    assert_eq!(log.json(&["checkpoint"], 0)["size"], 310);
    assert_eq!(log.json(&["vkey"], 0)["vkey"], log.store.vkey());
}

#[test]
fn a_changed_entry_is_exit_1_and_is_not_remembered() {
    let mut log = Logged::new();
    log.grow(300);
    log.json(&["verify"], 0);
    log.grow(10);
    let state = fs::read(log.collector.file("state.json")).expect("state");
    let path = log.collector.file(PUBLIC).join("tile/entries/001.p/54");
    let mut bytes = fs::read(&path).expect("bundle");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&path, bytes).expect("written");
    let found = log.json(&["verify"], 1);
    assert_eq!((&found["ok"], &found["consistent_with"]), (&false.into(), &Value::Null));
    assert_eq!(found["findings"][0]["what"], "changed_entry");
    assert_eq!(found["findings"][0]["where"], "tile/entries/001.p/54, leaf 309");
    let shown = log.guardctl(&["log", "verify"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("error changed_entry: tile/entries/001.p/54, leaf 309"));
    assert!(String::from_utf8_lossy(&shown.stderr).contains("log verification failed: 1 findings"), "{shown:?}");
    assert_eq!(fs::read(log.collector.file("state.json")).expect("state"), state);
}

#[test]
fn another_log_under_the_same_key_is_a_fork_and_another_key_is_refused() {
    let mut log = Logged::new();
    log.grow(20);
    log.json(&["verify"], 0);
    let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    let mut fork = Logged::of(Collector::start(), &KeyFile::from_skey(skey).expect("key"), "log");
    fs::write(fork.collector.file(VKEY), fork.store.vkey()).expect("written");
    fork.grow(30);
    fork.json(&["verify"], 0);
    fs::remove_dir_all(fork.collector.file("log")).expect("removed");
    let mut fork = Logged::of(fork.collector, &KeyFile::from_skey(skey).expect("key"), "log");
    fork.host = Chain(2, 0, [0; 32]);
    fork.grow(40);
    let found = fork.json(&["verify"], 1);
    assert_eq!((&found["findings"][0]["what"], &found["findings"][0]["where"]), (&"fork".into(), &"checkpoint".into()));
    fs::remove_dir_all(fork.collector.file("log")).expect("removed");
    let other = KeyFile::generate("PeterNeumann").expect("key");
    let mut other = Logged::of(fork.collector, &other, "log");
    fs::write(other.collector.file(VKEY), other.store.vkey()).expect("written");
    other.grow(40);
    let refused = other.guardctl(&["log", "verify"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not signed by PeterNeumann"), "{refused:?}");
    drop(log);
}

#[test]
fn an_export_verifies_without_the_collector() {
    let mut log = Logged::new();
    log.grow(600);
    let to = log.collector.file("export");
    let folder = to.to_str().expect("UTF-8");
    let exported = log.json(&["export", folder], 0);
    assert_eq!((&exported["size"], &exported["files"]), (&600.into(), &8.into()));
    assert_eq!(log.json(&["verify", "--dir", folder], 0)["consistent_with"], 600);
    fs::remove_file(log.collector.file("state.json")).expect("removed");
    let refused = log.guardctl(&["log", "verify", "--dir", folder]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let vkey = log.store.vkey();
    assert_eq!(log.json(&["verify", "--dir", folder, "--vkey", &vkey], 0)["key_from"], "argument");
    fs::remove_file(to.join("tile/0/001")).expect("removed");
    let found = log.json(&["verify", "--dir", folder, "--vkey", &vkey], 1);
    assert_eq!(found["findings"][0]["where"], "tile/0/001");
    let other = log.collector.file("other");
    log.json(&["verify", "--export", other.to_str().expect("UTF-8")], 0);
    assert!(other.join("checkpoint").is_file());
}

#[test]
fn a_gap_that_the_collector_admitted_is_a_note() {
    let mut log = Logged::new();
    log.grow(3);
    let lost = (log.host.next(Kind::EXEC, b""), log.host.next(Kind::EXEC, b""));
    let finding = AdmitFinding {
        host: vec![1; 16],
        epoch: vec![1; 16],
        what: "gap".into(),
        expected_seq: 3,
        got_seq: 5,
        detail: "2 records are missing".into(),
    };
    let body = RecordBody { body: Some(Body::AdmitFinding(finding)) }.encode_to_vec();
    let admission = Chain(9, 0, [0; 32]).next(Kind::ADMIT_FINDING, &body);
    let after = log.host.next(Kind::EXEC, b"");
    log.append(vec![admission, after]);
    drop(lost);
    let found = log.json(&["verify"], 0);
    assert_eq!((&found["ok"], &found["findings"][0]["what"]), (&true.into(), &"admitted_gap".into()));
    assert_eq!(found["findings"][0]["severity"], "information");
}

#[test]
fn a_copied_log_folder_is_audited_without_the_collector() {
    let mut log = Logged::new();
    log.grow(300);
    log.store.append(vec![log.host.next(Kind::EXEC, b"body")]).expect("queued").wait().expect("durable");
    let (dir, lock, vkey) = (log.collector.file("log/data"), log.collector.file("log/lock"), log.store.vkey());
    let of = ["audit", dir.to_str().expect("UTF-8"), "--lock", lock.to_str().expect("UTF-8")];
    let unsigned = log.json(&of, 78);
    let first = &unsigned["findings"][0];
    assert_eq!((&first["what"], &first["severity"]), (&"no_key".into(), &"unchecked".into()));
    let signed = [&of[..], &["--vkey", &vkey]].concat();
    let found = log.json(&signed, 0);
    assert_eq!((&found["ok"], &found["records"], &found["unpublished"]), (&true.into(), &300.into(), &1.into()));
    assert!(!log.collector.file("state.json").exists(), "an audit remembers nothing");
    fs::write(dir.join("log/tile/extra"), "x").expect("written");
    let found = log.json(&signed, 1);
    assert_eq!(
        (&found["findings"][0]["what"], &found["findings"][0]["where"]),
        (&"stray_file".into(), &"log/tile/extra".into())
    );
    let nothing = log.guardctl(&["log", "audit", dir.join("wal").to_str().expect("UTF-8")]);
    assert_eq!(nothing.status.code(), Some(78), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("no log is there"), "{nothing:?}");
}

fn recorded(argv: &[&str], tier: Tier) -> Vec<u8> {
    let facts = ExecFacts {
        argv: argv.iter().map(|w| w.as_bytes().to_vec()).collect(),
        argv_count: u32::try_from(argv.len()).expect("few"),
        cwd: b"/home/alice/repo".to_vec(),
        uid: 1000,
        files: vec![FileFact {
            path: format!("/usr/bin/{}", argv[0]).into_bytes(),
            role: "program".into(),
            ..FileFact::default()
        }],
        ..ExecFacts::default()
    };
    let verdict = Verdict { tier: tier.into(), ..Verdict::default() };
    let exec = Exec { facts: Some(facts), verdict: Some(verdict), ..Exec::default() };
    RecordBody { body: Some(Body::Exec(exec)) }.encode_to_vec()
}

#[test]
fn recorded_execs_are_judged_again_by_another_policy() {
    let mut log = Logged::new();
    let start = SessionStart { cwd: b"/home/alice/repo".to_vec(), ..SessionStart::default() };
    let start = RecordBody { body: Some(Body::SessionStart(start)) }.encode_to_vec();
    let mut group = vec![log.host.next(Kind::SESSION_START, &start)];
    for (argv, tier) in [
        (&["ls", "-l"][..], Tier::Allow),
        (&["cargo", "test"], Tier::Review),
        (&["rm", "-rf", "/"], Tier::Deny),
        (&["ls"], Tier::Allow),
    ] {
        group.push(log.host.next(Kind::EXEC, &recorded(argv, tier)));
    }
    log.append(group);
    let policy = |name: &str, rules: &str| {
        let path = log.collector.file(name);
        fs::write(&path, format!("version: 1\nextends: default\nrules:\n{rules}")).expect("written");
        path.display().to_string()
    };
    let old = policy("old.yaml", "  []\n");
    let new = policy(
        "new.yaml",
        "  - {id: own.cargo, tier: allow, reason: x, when: {act: [build.run], program: [cargo], any_arg: [test]}}\n  \
         - {id: own.ls, tier: deny, reason: x, when: {program: [ls]}}\n",
    );
    let (folder, key) = (log.collector.file(PUBLIC).display().to_string(), log.store.vkey().to_owned());
    let offline = ["--dir", folder.as_str(), "--vkey", key.as_str()];
    let diff = |arguments: &[&str], code: i32| {
        let output = log.guardctl(&[&["-o", "json", "policy", "diff"], arguments, &offline].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    };
    let changes = |said: &Value| -> Vec<String> {
        let all = said["changes"].as_array().expect("changes");
        all.iter()
            .map(|c| format!("{} {} {} {}", c["from"], c["to"], c["program"], c["count"]).replace('"', ""))
            .collect()
    };
    let found = diff(&[&old, &new], 1);
    assert_eq!((&found["records"], &found["same"]), (&4.into(), &1.into()));
    let expected = ["review allow /usr/bin/cargo 1", "allow deny /usr/bin/ls 2"];
    assert_eq!(changes(&found), expected);
    assert_eq!(diff(&[&old, &old], 0)["changed"], 0);
    // What was recorded holds no risk, so that `rm` differs in that alone.
    assert_eq!(changes(&diff(&["--recorded", &new], 1))[..2], expected);
    assert_eq!(diff(&[&old, &new, "--agent", "nobody"], 1)["records"], 0);
    let shown = log.guardctl(&[&["policy", "diff", &old, &new][..], &offline].concat());
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.starts_with("     1  review -> allow  /usr/bin/cargo\n"), "{text}");
    // A log that was tampered with is not judged at all.
    let path = log.collector.file(PUBLIC).join("tile/entries/000.p/5");
    let mut bytes = fs::read(&path).expect("bundle");
    *bytes.last_mut().expect("bytes") ^= 1;
    fs::write(&path, bytes).expect("written");
    let refused = log.guardctl(&[&["policy", "diff", &old, &new][..], &offline].concat());
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0), "{refused:?}");
}

const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

/// Reviewers whose keys the role file names.
fn reviewers(bob: &ReviewSigner, carol: &ReviewSigner) -> String {
    let key = |name: &str, signer: &ReviewSigner| format!("{name}: [{{key: '{}'}}]", signer.public().text());
    format!(
        "version: 1\nroles: {{r: {{review: {{categories: ['*'], max_risk: 100}}}}, none: {{query: true}}}}\n\
         people: {{carol: [r], bob: [none]}}\nkeys: {{{}, {}}}\napprovals: {{delegate: {{max_hours: 24}}}}\n",
        key("bob", bob),
        key("carol", carol)
    )
}

/// bob, who has the right from carol alone, approves what was shown.
fn approved(shown: &[u8], bob: &ReviewSigner, carol: &ReviewSigner) -> ReviewDecision {
    let made = DelegationStatement {
        id: "01KG9F6Q00ABCDEFGHJKMNPQRS",
        from: "carol",
        to: "bob",
        categories: &["vcs.*".to_owned()],
        max_risk: 60,
        made_unix_ns: 0,
        until_unix_ns: 3_600_000_000_000,
        reason: "on leave",
    };
    let delegation = Delegation {
        id: made.id.into(),
        from: made.from.into(),
        to: made.to.into(),
        categories: made.categories.to_vec(),
        max_risk: made.max_risk,
        made_unix_ns: made.made_unix_ns,
        until_unix_ns: made.until_unix_ns,
        reason: made.reason.into(),
        signature: carol.delegate(&made).to_vec(),
    };
    let record_sha256 = Sha256::digest(shown).to_vec();
    let statement = Statement {
        request_id: REQUEST,
        digest: &[1; 32],
        record_sha256: &record_sha256,
        approve: true,
        scope: "kind",
        categories: &[],
        max_execs: 9,
        expires_unix_ns: 0,
        reason: "",
        reviewer: "bob",
        decided_unix_ns: 0,
        delegation_id: made.id,
    };
    ReviewDecision {
        request_id: REQUEST.into(),
        digest: vec![1; 32],
        reviewer: "bob".into(),
        approve: true,
        scope: "kind".into(),
        max_execs: 9,
        signature: bob.sign(&statement).to_vec(),
        record_sha256,
        delegation: Some(delegation),
        ..ReviewDecision::default()
    }
}

#[test]
fn decisions_of_a_copied_log_are_verified_with_a_role_file_alone() {
    let mut log = Logged::new();
    let (bob, carol) = (ReviewSigner::from_seed(&[5; 32]), ReviewSigner::from_seed(&[6; 32]));
    let body = |body| RecordBody { body: Some(body) }.encode_to_vec();
    let request = ExecRequest { request_id: REQUEST.into(), digest: vec![1; 32], ..ExecRequest::default() };
    let shown = body(Body::ExecRequest(request));
    let decision = body(Body::ReviewDecision(approved(&shown, &bob, &carol)));
    let host = ExecDecision {
        request_id: REQUEST.into(),
        disposition: Disposition::Approved.into(),
        decision_leaves: vec![1],
        ..ExecDecision::default()
    };
    let decided = Chain(9, 0, [0; 32]).next(Kind::REVIEW_DECISION, &decision);
    let asked = log.host.next(Kind::EXEC_REQUEST, &shown);
    let ran = log.host.next(Kind::EXEC_DECISION, &body(Body::ExecDecision(host)));
    log.append(vec![asked, decided, ran]);
    let (to, roles) = (log.collector.file("export"), log.collector.file("roles.yaml"));
    let (folder, file) = (to.to_str().expect("UTF-8"), roles.to_str().expect("UTF-8"));
    log.json(&["export", folder], 0);
    let verify = |more: &[&str], code: i32| {
        let arguments = [&["-o", "json", "review", "verify", "--roles", file, "--dir", folder], more].concat();
        let output = log.guardctl(&arguments);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    };
    fs::write(&roles, reviewers(&bob, &carol)).expect("written");
    let found = verify(&[], 0);
    let holds: Vec<_> = found["decisions"].as_array().expect("decisions").iter().map(|d| &d["holds"]).collect();
    assert_eq!((&found["ok"], holds), (&true.into(), vec![&Value::from(true); 2]), "{found}");
    assert_eq!(verify(&["01KG9F6Q00ABCDEFGHJKMNPQRT"], 0)["decisions"], serde_json::json!([]), "another session");
    // A delegation that carol's key did not sign carries nothing, and so does what the host made of it.
    fs::write(&roles, reviewers(&bob, &ReviewSigner::from_seed(&[7; 32]))).expect("written");
    let found = verify(&[], 1);
    assert!(found["decisions"][0]["why"].as_str().is_some_and(|why| why.contains("carol")), "{found}");
    assert_eq!(found["decisions"][1]["holds"], false);
}
