use guard_policy::Source;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Exec, MaskedArg, SessionStart};

use super::*;
use crate::record::Entry;
use crate::testing::ran;

fn policy(rules: &str) -> Policy {
    let text = format!("version: 1\nextends: default\nrules:\n{rules}");
    Policy::load(&[Source { name: "t", text: &text }]).unwrap()
}

/// Allows `cargo test`, denies `ls`.
fn new() -> Policy {
    policy(
        "  - {id: own.cargo, tier: allow, reason: x, when: {act: [build.run], program: [cargo], any_arg: [test]}}\n  \
         - {id: own.ls, tier: deny, reason: x, when: {program: [ls]}}\n",
    )
}

fn exec(argv: &[&str], tier: v1::Tier, digest: &str) -> Exec {
    let verdict = v1::Verdict {
        tier: tier.into(),
        risk: 12,
        reasons: vec![v1::Reason { rule_id: "own.then".into(), ..v1::Reason::default() }],
        policy_digest: digest.into(),
        ..v1::Verdict::default()
    };
    Exec { facts: Some(ran(argv)), verdict: Some(verdict), ..Exec::default() }
}

fn recorded(execs: Vec<Exec>) -> Recorded {
    let start = SessionStart { cwd: b"/home/alice/repo".to_vec(), ..SessionStart::default() };
    let bodies = [Body::SessionStart(start)].into_iter().chain(execs.into_iter().map(Body::Exec));
    let mut recorded = Recorded::default();
    for (leaf, body) in (0..).zip(bodies) {
        recorded.take(Entry::for_test(leaf, 1, "s", 5, Some(body)), &|_| true).unwrap();
    }
    recorded
}

fn log(digest: &str) -> Recorded {
    let mut masked = exec(&["curl", "-u", "***"], v1::Tier::Review, digest);
    masked.facts.as_mut().unwrap().masked = vec![MaskedArg::default()];
    recorded(vec![
        exec(&["ls", "-l"], v1::Tier::Allow, digest),
        exec(&["cargo", "test"], v1::Tier::Review, digest),
        exec(&["cargo", "test"], v1::Tier::Review, digest),
        exec(&["rm", "-rf", "/"], v1::Tier::Deny, digest),
        masked,
    ])
}

#[test]
fn what_would_newly_run_comes_first_and_nothing_is_called_the_same_unjudged() {
    let old = policy("  []\n");
    let diff = Diff::of(Some(&old), &new(), &log(&old.digest()), None);
    let kinds: Vec<_> = diff.ordered().iter().map(|(c, s)| (kind(c.from, c.to), s.count)).collect();
    assert_eq!(kinds, [("review -> allow".to_owned(), 2), ("allow -> deny".to_owned(), 1)]);
    assert_eq!((diff.records, diff.same, diff.unreplayed(), diff.disagree), (5, 1, 1, 0));
    insta::assert_snapshot!(diff.text());
}

#[test]
fn the_same_policy_changes_nothing_but_an_unreplayed_record_is_not_the_same() {
    let old = policy("  []\n");
    let diff = Diff::of(Some(&old), &old, &log(""), None);
    assert_eq!(diff.changed(), 0);
    assert!(diff.answer().unwrap_err().message.contains("1 records could not be replayed"));
    let whole = recorded(vec![exec(&["ls"], v1::Tier::Allow, "")]);
    assert_eq!(Diff::of(Some(&old), &old, &whole, None).answer(), Ok(()));
    let none = Diff::of(Some(&old), &old, &recorded(vec![]), None);
    assert!(none.answer().unwrap_err().message.contains("nothing was compared"));
}

#[test]
fn a_path_that_is_no_text_is_not_lost() {
    let mut odd = exec(&["ls"], v1::Tier::Allow, "x");
    odd.facts.as_mut().unwrap().files[0].path = b"/opt/\xff/ls".to_vec();
    let diff = Diff::of(None, &new(), &recorded(vec![odd]), None);
    assert_eq!(diff.json()["changes"][0]["program"], json!({"base64": "L29wdC//L2xz"}));
    assert!(diff.text().contains(r"/opt/\xff/ls"), "{}", diff.text());
}

#[test]
fn a_policy_is_compared_with_what_was_recorded() {
    let diff = Diff::of(None, &new(), &log("x"), None);
    let tiers: Vec<_> =
        diff.totals().into_iter().filter(|((w, ..), _)| *w < 6).map(|((_, f, t), n)| (f, t, n)).collect();
    assert_eq!(tiers, [(Tier::Review, Tier::Allow, 2), (Tier::Allow, Tier::Deny, 1)]);
    insta::assert_snapshot!(format!("{:#}", diff.json()));
}
