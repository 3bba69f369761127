use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, Exec, ExecDecision, ExecRequest, SessionStart};

use super::*;
use crate::record::Entry;
use crate::testing::ran;

/// A log of one session in `/home/alice/repo`.
#[derive(Default)]
struct Log {
    recorded: Recorded,
    leaf: u64,
}

impl Log {
    fn new() -> Self {
        let mut log = Self::default();
        log.add(Body::SessionStart(SessionStart { cwd: b"/home/alice/repo".to_vec(), ..SessionStart::default() }));
        log
    }

    fn add(&mut self, body: Body) {
        let entry = Entry::for_test(self.leaf, 1, "s", 5, Some(body));
        self.recorded.take(entry, &|_| true).unwrap();
        self.leaf += 1;
    }

    /// A request and what came of it.
    fn asked(&mut self, argv: &[&str], disposition: Disposition, reviewer: &str) -> &mut Self {
        let request_id = format!("r{}", self.leaf);
        let request = ExecRequest {
            facts: Some(ran(argv)),
            verdict: Some(guard_proto::v1::Verdict::default()),
            request_id: request_id.clone(),
            ..ExecRequest::default()
        };
        self.add(Body::ExecRequest(request));
        let reviewer = reviewer.to_owned();
        self.add(Body::ExecDecision(ExecDecision {
            request_id,
            disposition: disposition.into(),
            reviewer,
            ..ExecDecision::default()
        }));
        self
    }

    fn approved(&mut self, argv: &[&str]) -> &mut Self {
        self.asked(argv, Disposition::Approved, "bob")
    }

    fn ran(&mut self, argv: &[&str], disposition: Disposition, request_id: &str, reviewer: &str) -> &mut Self {
        self.add(Body::Exec(Exec {
            facts: Some(ran(argv)),
            verdict: Some(guard_proto::v1::Verdict::default()),
            disposition: disposition.into(),
            request_id: request_id.into(),
            reviewer: reviewer.into(),
            ..Exec::default()
        }));
        self
    }

    fn suggest(&self, policy: &str) -> Suggested {
        let texts = Texts(vec![("p.yaml".into(), policy.into())]);
        Suggested::of(&texts, &self.recorded, &args()).unwrap()
    }
}

fn args() -> SuggestArgs {
    SuggestArgs {
        policy: PolicyArgs { files: vec![], profile: None },
        min: 2,
        max_risk: 50,
        of: RecordedArgs::default(),
    }
}

const DEVELOPER: &str = "version: 1\nextends: developer\n";

/// What the proposed file says of a command.
fn tier(suggested: &Suggested, argv: &[&str]) -> Tier {
    let texts = Texts(vec![("p.yaml".into(), DEVELOPER.into())]);
    let policy = with(&texts, &suggested.file(false)).unwrap();
    let facts = ran(argv);
    let beside = Beside { workspace: Some(b"/home/alice/repo"), home: None };
    let said = guard_proto::v1::Verdict::default();
    Replay::of(&facts, &said, beside).unwrap().judge(&policy).tier
}

#[test]
fn what_was_approved_again_and_again_is_proposed_and_nothing_more() {
    let mut log = Log::new();
    for _ in 0..3 {
        log.approved(&["cargo", "build", "--release"]).approved(&["touch", "src/main.rs"]);
    }
    log.approved(&["cargo", "build"]).approved(&["touch", "/home/alice/repo/README.md"]).approved(&["make", "install"]);
    let suggested = log.suggest(DEVELOPER);
    let ids: Vec<&str> = suggested.rules.iter().map(|(_, r)| r.id.as_str()).collect();
    assert_eq!(ids, ["suggested.cargo-build", "suggested.touch"], "{}", suggested.text());
    assert_eq!(suggested.left.get("approved fewer than 2 times (--min)"), Some(&1));
    for (argv, wanted) in [
        (vec!["cargo", "build"], Tier::Allow),
        (vec!["cargo", "build", "--release"], Tier::Allow),
        (vec!["cargo", "build", "--workspace"], Tier::Review),
        (vec!["cargo", "test"], Tier::Review),
        (vec!["touch", "docs/new.md"], Tier::Allow),
        (vec!["touch", "-c", "docs/new.md"], Tier::Review),
        (vec!["touch", "../other/x"], Tier::Review),
        (vec!["touch", "docs/new.md", "/home/alice/x"], Tier::Review),
        (vec!["make", "install"], Tier::Review),
    ] {
        assert_eq!(tier(&suggested, &argv), wanted, "{argv:?}\n{}", suggested.text());
    }
}

#[test]
fn an_approval_counts_once_and_what_others_cover_not_at_all() {
    let mut log = Log::new();
    log.approved(&["cargo", "build"]);
    let request = "r1";
    log.ran(&["cargo", "build"], Disposition::Approved, request, "bob");
    log.ran(&["cargo", "build"], Disposition::Inherited, request, "bob");
    log.asked(&["cargo", "build"], Disposition::TimedOut, "");
    assert!(log.suggest(DEVELOPER).rules.is_empty());
    // Its request is older than what was asked for.
    log.ran(&["cargo", "build"], Disposition::Approved, "older", "carol");
    let suggested = log.suggest(DEVELOPER);
    let rule = &suggested.rules[0].1;
    assert_eq!((rule.approved, rule.besides), (2, 1));
    assert_eq!(rule.reviewers.iter().map(String::as_str).collect::<Vec<_>>(), ["bob", "carol"]);
}

#[test]
fn what_a_person_denied_is_not_proposed() {
    let mut log = Log::new();
    log.approved(&["touch", "a"]).approved(&["touch", "b"]);
    log.asked(&["touch", "secret.txt"], Disposition::Denied, "carol");
    let suggested = log.suggest(DEVELOPER);
    assert!(suggested.rules.is_empty());
    let why = suggested.left.keys().next().unwrap();
    assert!(why.contains("denied") && why.contains("touch secret.txt"), "{why}");
    assert!(suggested.text().contains("rules: []"));
}

#[test]
fn where_a_missing_rule_is_not_the_only_reason_the_reason_is_said() {
    let mut log = Log::new();
    for _ in 0..2 {
        log.approved(&["ls", "-l"]).approved(&["cargo", "build", "--nope"]).approved(&["bash", "-c", "cargo build"]);
        log.approved(&["rm", "-rf", "/home/alice/repo/src"]);
    }
    let suggested = log.suggest(DEVELOPER);
    assert!(suggested.rules.is_empty(), "{}", suggested.text());
    assert_eq!(suggested.left.values().sum::<u32>(), 8);
    let text = suggested.text();
    for why in ["allows it already", "builtin.unknown-flag asks for a person"] {
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn the_file_is_yaml_whatever_was_in_the_arguments() {
    let mut log = Log::new();
    for word in ["x: y\"]", "# nothing", "\n- a", "\u{1b}[31mred"] {
        log.approved(&["npm", "run", word]).approved(&["npm", "run", word]);
    }
    let suggested = log.suggest(DEVELOPER);
    assert_eq!(suggested.rules.len(), 4, "{}", suggested.text());
    assert_eq!(tier(&suggested, &["npm", "run", "x: y\"]"]), Tier::Allow);
    assert_eq!(tier(&suggested, &["npm", "run", "other"]), Tier::Review);
    assert!(!suggested.text().contains('\u{1b}'));
    assert_eq!(suggested.json()["rules"].as_array().map(Vec::len), Some(4));
}

/// The attack: approved with one folder, the rule would let it write into any other.
#[test]
fn a_flag_is_not_allowed_with_values_that_nobody_saw() {
    let mut log = Log::new();
    for _ in 0..2 {
        log.approved(&["cargo", "build", "--features", "x"]).approved(&[
            "cargo",
            "test",
            "--target-dir",
            "/home/alice/x",
        ]);
        log.approved(&["cargo", "bench", "--target-dir", "out"]).approved(&["touch", "-r", "a", "b"]);
    }
    let suggested = log.suggest(DEVELOPER);
    let text = suggested.text();
    assert!(suggested.rules.is_empty() && text.contains("the flag -F has a value"), "{text}");
    for argv in [
        vec!["cargo", "build", "--features", "y"],
        vec!["cargo", "test", "--target-dir", "/home/alice/x"],
        vec!["cargo", "bench", "--target-dir", "/home/alice/x"],
        vec!["touch", "-r", "/home/alice/x", "c"],
    ] {
        assert_eq!(tier(&suggested, &argv), Tier::Review, "{argv:?}: {text}");
    }
}
