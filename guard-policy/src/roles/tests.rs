use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::{Policy, Source};

const FILE: &str = r#"version: 1
roles:
  developer:
    request: ["vcs.*", fs.read, info]
    query: true
  reviewer:
    review: {categories: ["vcs.*"], max_risk: 60}
  root:
    request: ["*"]
    review: {categories: ["*"], max_risk: 100}
    undo: ["fs.*"]
    query: true
    administer: true
    start_for_others: ["*"]
  narrow: {request: [vcs.read, net.fetch], start_for_others: [alice]}
people:
  alice: [developer]
  bob: [reviewer, developer]
  carol: [root]
  nobody: []
services:
  ci: [narrow]
agents:
  coder: [narrow]
  "*": [root]
"#;

fn known() -> Vec<String> {
    static KNOWN: LazyLock<Vec<String>> = LazyLock::new(|| Policy::load(&[]).unwrap().categories());
    KNOWN.clone()
}

fn load(text: &str) -> Result<Roles, String> {
    Roles::load(&Source { name: "roles.yaml", text }, Known::Only(&known())).map_err(|e| e.to_string())
}

fn refused(from: &str, to: &str) -> String {
    assert!(FILE.contains(from));
    load(&FILE.replace(from, to)).unwrap_err()
}

#[test]
fn rights_are_those_of_the_roles_that_a_name_has() {
    let roles = load(FILE).unwrap();
    let may = |name, right| roles.check(Subject::Principal(name), right).is_ok();
    assert!(may("alice", Right::Request("vcs.write")) && !may("alice", Right::Request("net.fetch")));
    assert!(may("bob", Right::Review("vcs.write", 60)) && !may("bob", Right::Review("vcs.write", 61)));
    assert!(!may("bob", Right::Review("fs.read", 0)) && may("bob", Right::Query) && !may("bob", Right::Administer));
    assert!(may("carol", Right::Undo("fs.delete")) && !may("carol", Right::Undo("vcs.write")));
    assert!(may("ci", Right::StartFor("alice")) && !may("ci", Right::StartFor("carol")));
    assert!(may("carol", Right::StartFor("anybody")));
    assert!(!may("mallory", Right::Query) && !may("*", Right::Query) && !may("nobody", Right::Query));
    assert!(may("bob", Right::Review("", 0)) && !may("alice", Right::Review("", 0)));
}

#[test]
fn a_refusal_names_right_category_risk_and_roles() {
    let roles = load(FILE).unwrap();
    let said = |name, right| roles.check(Subject::Principal(name), right).unwrap_err().to_string();
    assert_eq!(
        said("bob", Right::Review("vcs.write", 61)),
        "bob may not review vcs.write at risk 61: its roles `reviewer`, `developer` review this category up to risk 60"
    );
    assert_eq!(said("alice", Right::Administer), "alice may not administer: its role `developer` does not give it");
    assert_eq!(said("mallory", Right::Query), "mallory may not query: it has no role");
}

#[test]
fn a_session_may_what_both_sides_allow() {
    let roles = load(FILE).unwrap();
    let session = |who, agent| roles.session(who, agent, &known());
    assert_eq!(session("alice", "coder").unwrap().effective, ["vcs.read"]);
    assert_eq!(session("carol", "coder").unwrap().effective, ["net.fetch", "vcs.read"]);
    assert_eq!(session("carol", "other").unwrap().effective, known());
    let said = |who, agent| session(who, agent).unwrap_err().to_string();
    assert!(said("mallory", "coder").starts_with("mallory has no role"), "{}", said("mallory", "coder"));
    let narrowed = FILE.replace("vcs.read, net.fetch", "net.fetch");
    let none = load(&narrowed).unwrap().session("alice", "coder", &known()).unwrap_err().to_string();
    assert_eq!(
        none,
        "alice and agent coder may request no category in common: alice has the role `developer`, agent coder has the \
         role `narrow`"
    );
    let closed = load(&FILE.replace("  \"*\": [root]\n", "")).unwrap();
    assert!(closed.session("carol", "other", &known()).unwrap_err().to_string().starts_with("agent other has no role"));
}

#[test]
fn everybody_is_who_has_no_entry_of_their_own() {
    let roles = load(&FILE.replace("  nobody: []", "  nobody: []\n  \"*\": [reviewer]")).unwrap();
    assert_eq!(roles.names_of(Subject::Principal("mallory")), ["reviewer"]);
    assert!(roles.names_of(Subject::Principal("nobody")).is_empty());
    assert_eq!(roles.names_of(Subject::Principal("alice")), ["developer"]);
}

#[test]
fn errors_name_file_line_and_what_is_accepted() {
    let error = refused("fs.read, info", "fs.raed, info");
    assert!(error.starts_with("roles.yaml:4:24: no category of the policy matches `fs.raed`"), "{error}");
    assert!(error.contains("fs.read"), "{error}");
    let error = refused("alice: [developer]", "alice: [develoer]");
    assert!(error.starts_with("roles.yaml:17:11: people: alice has the role `develoer`"), "{error}");
    assert!(error.contains("developer, narrow, reviewer, root"), "{error}");
    let error = refused("    query: true\n  reviewer", "    quary: true\n  reviewer");
    assert!(error.starts_with("roles.yaml:5:") && error.contains("quary") && error.contains("query"), "{error}");
    assert!(refused("alice: [developer]", "\"\": [developer]").starts_with("roles.yaml:17:"));
    assert!(refused("max_risk: 60", "max_risk: 101").contains("risk is 0 to 100"));
    assert!(refused(", max_risk: 60", "").contains("max_risk"));
    assert!(refused("version: 1", "version: 2").contains("this program reads `version: 1`"));
    assert!(refused("  ci: [narrow]", "  alice: [narrow]").contains("under people and under services"));
    assert!(refused("  ci: [narrow]", "  \"*\": [narrow]").contains("counts as a person"));
    assert!(refused("[vcs.read, net.fetch]", "[\"\"]").contains("an empty category"));
    assert!(refused("  alice: [developer]", "  alice: [developer]\n  alice: [root]").contains("roles.yaml:18"));
    assert!(load("").is_err());
}

#[test]
fn where_the_policy_is_not_known_only_the_form_counts() {
    let text = FILE.replace("fs.read, info", "site.own, info");
    assert!(Roles::load(&Source { name: "r", text: &text }, Known::Any).is_ok());
}

fn pattern() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["*", "vcs.*", "fs.*", "vcs.read", "fs.write", "net.fetch", "s*", "*.read", "unknown"])
        .prop_map(str::to_owned)
}

fn list(patterns: &[String]) -> String {
    patterns.iter().map(|p| format!("\"{p}\"")).collect::<Vec<_>>().join(", ")
}

proptest! {
    /// The intersection grants a category exactly if each side alone does.
    #[test]
    fn no_session_has_what_a_side_lacks(
        person in prop::collection::vec(pattern(), 0..4),
        more in prop::collection::vec(pattern(), 0..3),
        agent in prop::collection::vec(pattern(), 0..4),
    ) {
        let text = format!(
            "version: 1\nroles:\n  p: {{request: [{}]}}\n  m: {{request: [{}]}}\n  a: {{request: [{}]}}\n\
             people: {{x: [p, m]}}\nagents: {{y: [a]}}\n",
            list(&person), list(&more), list(&agent)
        );
        let (roles, known) = (load(&text).unwrap(), known());
        let (who, what) = (Subject::Principal("x"), Subject::Agent("y"));
        let both = |c: &String| roles.check(who, Right::Request(c)).is_ok() && roles.check(what, Right::Request(c)).is_ok();
        let expected: Vec<String> = known.iter().filter(|c| both(c)).cloned().collect();
        match roles.session("x", "y", &known) {
            Ok(rights) => prop_assert_eq!(rights.effective, expected),
            Err(NoSession::NothingInCommon { .. }) => prop_assert!(expected.is_empty()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    /// Names that the file does not bind have nothing, whatever they look like.
    #[test]
    fn a_name_without_binding_may_nothing(name in "\\PC{0,12}", category in "[a-z.]{1,12}", risk in 0_u32..200) {
        prop_assume!(!["alice", "bob", "carol", "ci", "nobody"].contains(&name.as_str()));
        let roles = load(FILE).unwrap();
        let subject = Subject::Principal(&name);
        for right in [
            Right::Request(&category), Right::Review(&category, risk), Right::Query, Right::Undo(&category),
            Right::Administer, Right::StartFor(&category),
        ] {
            prop_assert!(roles.check(subject, right).is_err());
        }
        prop_assert!(roles.session(&name, "coder", &known()).is_err());
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = load(&text);
        let _ = load(&format!("version: 1\n{text}"));
    }
}
