//! `guardctl` against a collector made here: real gRPC, real TLS with client certificates, the real binary.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use collector::{Collector, REQUEST};
use guard_policy::decision::ReviewKey;
use rustix::process::Signal;
use serde_json::Value;
use terminal::Terminal;

#[path = "collector/collector.rs"]
mod collector;
#[allow(dead_code, reason = "the tests of `run` use all of it")]
#[path = "run/terminal.rs"]
mod terminal;

fn guardctl(collector: &Collector, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--config").arg(collector.config()).args(arguments).stdin(std::process::Stdio::null());
    command.output().expect("guardctl runs")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn can_i_says_yes_or_no_by_its_exit_code() {
    let collector = Collector::start();
    let yes = guardctl(&collector, &["can-i", "review", "vcs.write", "--risk", "60"]);
    assert_eq!((yes.status.code(), text(&yes).as_str()), (Some(0), "yes: bob and review\n"), "{yes:?}");
    let no = guardctl(&collector, &["can-i", "query"]);
    assert_eq!((no.status.code(), text(&no).as_str()), (Some(1), "no: bob and query\n"), "{no:?}");
    assert_eq!(guardctl(&collector, &["can-i", "query", "--risk", "3"]).status.code(), Some(64));
}

#[test]
fn whoami_shows_name_and_roles() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["whoami"]);
    assert!(text(&output).starts_with("bob: reviewer, viewer\nthe collector has no role file"), "{output:?}");
    assert_eq!(json(&guardctl(&collector, &["whoami", "--output", "json"]))["name"], "bob");
}

#[test]
fn status_shows_the_measured_mode() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["status"]);
    assert!(text(&output).contains("\ndevbox  enforcing"), "{output:?}");
    assert!(!text(&output).contains('\x1b'), "no colour into a pipe");
    assert_eq!(json(&guardctl(&collector, &["-o", "json", "status"]))["nodes"][0]["report"]["mode"], "enforcing");
}

#[test]
fn sessions_are_read_page_by_page() {
    let collector = Collector::start();
    let listed = json(&guardctl(&collector, &["session", "list", "-o", "json", "--limit", "5"]));
    assert_eq!(listed["sessions"].as_array().map(Vec::len), Some(5), "{listed}");
}

#[test]
fn an_approval_carries_the_digest_that_was_shown() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["review", "approve", REQUEST, "--scope", "root", "--reason", "fine"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output).contains(&"cd".repeat(32)), "the digest is shown before it is sent");
    assert!(text(&output).contains("git commit -m 'it'\\''s done'"), "{output:?}");
    assert!(
        text(&output).ends_with(
            "approved 01KG9F6R00ABCDEFGHJKMNPQRS, with up to 20 execs of vcs.write; in the log at leaf 77\n"
        )
    );
    let sent = collector.decided();
    assert_eq!((sent.approve, sent.digest, sent.scope.as_str()), (true, vec![0xcd; 32], "root"));
    assert_eq!((sent.categories, sent.max_execs, sent.reason.as_str()), (vec!["vcs.write".to_owned()], 20, "fine"));
}

#[test]
fn with_a_key_decisions_are_signed_for_exactly_what_was_shown() {
    let collector = Collector::start();
    let made = guardctl(&collector, &["key", "new", "--name", "bob", "-o", "json"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let key = ReviewKey::parse(json(&made)["key"].as_str().expect("key")).expect("a key");
    assert_eq!(guardctl(&collector, &["key", "new"]).status.code(), Some(1), "it is there already");
    assert!(text(&guardctl(&collector, &["key", "show", "--name", "bob"])).contains(&key.text()));
    let args = ["review", "approve", REQUEST, "--scope", "session", "--max-execs", "3", "--reason", "fine"];
    let output = guardctl(&collector, &args);
    let id = hex::encode(&key.id()[..8]);
    assert!(text(&output).contains(&format!("up to 3 times in this session; signed with key {id}")), "{output:?}");
    let sent = collector.decided();
    assert!(key.signed(&collector::statement(&sent, "bob"), &sent.signature));
    assert!(sent.expires_unix_ns < i64::MAX, "an approval is signed for a day at most");
    let denied = guardctl(&collector, &["review", "deny", REQUEST, "-o", "json"]);
    assert_eq!(json(&denied)["key_id"], hex::encode(key.id()));
    let sent = collector.decided();
    assert!(key.signed(&collector::statement(&sent, "bob"), &sent.signature) && !sent.approve);
    // A key that others may read signs nothing.
    let file = collector.file("review.key");
    std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("mode");
    assert_eq!(guardctl(&collector, &["review", "deny", REQUEST]).status.code(), Some(78));
}

#[test]
fn a_delegation_is_signed_and_a_decision_by_it_names_it() {
    let collector = Collector::start();
    let delegate = |more: &[&str]| {
        let args = ["review", "delegate", "--to", "dave", "--categories", "vcs.*,fs.write", "--max-risk", "60"];
        guardctl(&collector, &[&args, more].concat())
    };
    let without = delegate(&["--until", "8h"]);
    assert_eq!(without.status.code(), Some(78), "{without:?}");
    let made = guardctl(&collector, &["key", "new", "--name", "bob", "-o", "json"]);
    let key = ReviewKey::parse(json(&made)["key"].as_str().expect("key")).expect("a key");
    assert_eq!(delegate(&["--until", "yesterday"]).status.code(), Some(64));
    let output = delegate(&["--until", "8h", "--reason", "on leave"]);
    assert!(text(&output).contains("vcs.*, fs.write to dave up to risk 60 until"), "{output:?}");
    let sent = collector.delegated();
    assert_eq!((sent.from.as_str(), sent.to.as_str(), sent.max_risk), ("bob", "dave", 60));
    assert!(key.delegated(&collector::delegation(&sent), &sent.signature));
    let listed = json(&guardctl(&collector, &["review", "delegations", "-o", "json"]));
    assert_eq!((&listed["delegations"][0]["to"], &listed["delegations"][0]["leaf"]), (&"dave".into(), &79.into()));
    // Who decides by it sees for whom, and signs that.
    let approved = guardctl(&collector, &["review", "approve", REQUEST]);
    assert!(text(&approved).contains("for bob, by the delegation"), "{approved:?}");
    assert!(text(&approved).contains("approved 01KG9F6R00ABCDEFGHJKMNPQRS, for bob; signed"), "{approved:?}");
    let decision = collector.decided();
    assert_eq!(decision.delegation_id, sent.id);
    assert!(key.signed(&collector::statement(&decision, "bob"), &decision.signature));
    assert_eq!(guardctl(&collector, &["review", "undelegate", "other"]).status.code(), Some(1));
    assert_eq!(guardctl(&collector, &["review", "undelegate", &sent.id]).status.code(), Some(0));
}

#[test]
fn approvals_are_revoked_and_reviewers_have_figures() {
    let collector = Collector::start();
    let revoked = json(&guardctl(&collector, &["review", "revoke", REQUEST, "--reason", "x", "-o", "json"]));
    assert_eq!((&revoked["decision"], &revoked["leaf"]), (&"revoked".into(), &78.into()));
    assert_eq!(guardctl(&collector, &["review", "revoke", "nothing"]).status.code(), Some(1));
    let stats = json(&guardctl(&collector, &["review", "stats", "--since", "7d", "-o", "json"]));
    assert_eq!(
        (&stats["reviewers"][0]["reviewer"], &stats["reviewers"][0]["approve_rate"]),
        (&"bob".into(), &0.75.into())
    );
}

#[test]
fn critical_risk_takes_a_text_from_the_request_also_without_a_terminal() {
    let (collector, id) = (Collector::start(), collector::CRITICAL[0]);
    let approve = |more: &[&str]| guardctl(&collector, &[&["review", "approve", id], more].concat());
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let none = approve(&["--yes"]);
    assert_eq!(none.status.code(), Some(64), "{none:?}");
    assert!(said(&none).contains("--confirm with `git` or `MNPQRS`"), "{}", said(&none));
    for wrong in ["yes", "rm", ""] {
        assert_eq!(approve(&["--confirm", wrong]).status.code(), Some(1), "{wrong}");
    }
    // What confirms one request confirms no second one with it.
    let batch = approve(&["--identical", "--confirm", "git"]);
    assert!(batch.status.code() == Some(1) && said(&batch).contains("`git 2` or `MNPQRS 2`"), "{batch:?}");
    assert!(collector.nothing_decided());
    let both = approve(&["--identical", "--confirm", "git 2"]);
    assert_eq!(text(&both).matches("approved 01KG9F6").count(), 2, "{both:?}");
    assert_eq!(approve(&["--confirm", "git"]).status.code(), Some(0));
    // A denial is as quick as ever.
    assert_eq!(guardctl(&collector, &["review", "deny", id]).status.code(), Some(0));
}

#[test]
fn on_a_terminal_critical_risk_is_typed_after_a_pause() {
    let (collector, mut terminal) = (Collector::start(), Terminal::new(24, 80));
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--config").arg(collector.config()).args(["review", "approve", collector::CRITICAL[0], "--yes"]);
    let mut shell = terminal.spawn(command);
    terminal.read_until("look at it for 10 s");
    // Typed before it is asked for: thrown away.
    terminal.write("git\n");
    terminal.read_until("to approve exactly this, type");
    assert!(collector.nothing_decided());
    terminal.write("git\n");
    terminal.read_until("01KG9F6V00ABCDEFGHJKMNPQRS; in the log");
    assert_eq!(terminal::wait(&mut shell, Duration::from_secs(20)).code(), Some(0));
    assert!(collector.decided().approve);
}

#[test]
fn another_digest_sends_nothing() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["review", "approve", REQUEST, "--digest", "00"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(collector.nothing_decided());
}

#[test]
fn a_denial_says_why() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["review", "deny", REQUEST, "--reason", "not now", "-o", "json"]);
    assert_eq!(json(&output)["decision"], "denied");
    let sent = collector.decided();
    assert_eq!((sent.approve, sent.reason.as_str()), (false, "not now"));
}

#[test]
fn an_unknown_request_is_exit_1_and_no_right_is_exit_77() {
    let collector = Collector::start();
    let unknown = guardctl(&collector, &["review", "show", "nothing", "-o", "json"]);
    assert_eq!(unknown.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&unknown.stderr).expect("an error object");
    assert_eq!((&error["error"]["kind"], &error["error"]["message"]), (&"no".into(), &"no request `nothing`".into()));
    let denied = guardctl(&collector, &["log", "checkpoint"]);
    assert_eq!(denied.status.code(), Some(77), "{denied:?}");
    assert!(String::from_utf8_lossy(&denied.stderr).contains("hint: `guardctl whoami`"));
}

#[test]
fn a_collector_of_another_ca_is_refused() {
    let (one, other) = (Collector::start(), Collector::start());
    std::fs::copy(other.file("ca.pem"), one.file("ca.pem")).expect("copied");
    let output = guardctl(&one, &["whoami"]);
    assert_eq!(output.status.code(), Some(69), "{output:?}");
}

#[test]
fn nothing_listens_is_exit_69_and_no_certificate_is_exit_78() {
    let collector = Collector::start();
    std::fs::remove_file(collector.file("key.pem")).expect("removed");
    assert_eq!(guardctl(&collector, &["whoami"]).status.code(), Some(78));
    let folder = collector.stop();
    let config = folder.path().join("guardctl.toml");
    std::fs::copy(folder.path().join("key-copy.pem"), folder.path().join("key.pem")).expect("copied");
    let output = Command::new(env!("CARGO_BIN_EXE_guardctl")).arg("--config").arg(config).arg("whoami").output();
    assert_eq!(output.expect("runs").status.code(), Some(69));
}

#[test]
fn a_bad_command_line_is_exit_64() {
    let collector = Collector::start();
    assert_eq!(guardctl(&collector, &["review", "aprove", REQUEST]).status.code(), Some(64));
    assert_eq!(guardctl(&collector, &["query", "--since", "yesterday"]).status.code(), Some(64));
    assert_eq!(guardctl(&collector, &["review", "approve", REQUEST, "--category", "x"]).status.code(), Some(64));
    assert_eq!(guardctl(&collector, &["--help"]).status.code(), Some(0));
}

/// `guardctl review` full screen, with what waits on it.
fn screen(collector: &Collector, terminal: &mut Terminal) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--config").arg(collector.config()).arg("review").env("NO_COLOR", "1").env("TERM", "xterm");
    let shell = terminal.spawn(command);
    terminal.read_until("1 waits");
    assert!(!terminal.is_cooked());
    shell
}

#[test]
fn the_full_screen_sends_the_digest_of_what_it_shows() {
    let (collector, mut terminal) = (Collector::start(), Terminal::new(24, 80));
    let before = terminal.settings();
    let mut shell = screen(&collector, &mut terminal);
    terminal.write("\r");
    // Of what changes on a screen only what differs is written: a word where nothing was comes whole.
    terminal.read_until("initiator");
    terminal.write("afine\r");
    let start = Instant::now();
    while collector.nothing_decided() {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing was sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = collector.decided();
    assert_eq!((sent.approve, sent.digest, sent.scope.as_str()), (true, vec![0xcd; 32], "once"));
    assert_eq!(sent.reason, "fine");
    terminal.write("q");
    assert_eq!(terminal::wait(&mut shell, Duration::from_secs(20)).code(), Some(0));
    terminal.read_until("\u{1b}[?1049l");
    assert_eq!(terminal.settings(), before);
}

#[test]
fn the_full_screen_gives_the_terminal_back_when_it_is_ended() {
    for signal in [Signal::TERM, Signal::HUP] {
        let (collector, mut terminal) = (Collector::start(), Terminal::new(24, 80));
        let before = terminal.settings();
        let mut shell = screen(&collector, &mut terminal);
        terminal::signal(terminal.guardctl(&shell), signal);
        terminal.read_until("\u{1b}[?1049l");
        assert_eq!(terminal::wait(&mut shell, Duration::from_secs(20)).code(), Some(69));
        assert_eq!(terminal.settings(), before);
        assert!(collector.nothing_decided());
    }
}

#[test]
fn where_there_is_no_terminal_for_it_review_is_the_list() {
    let collector = Collector::start();
    let output = guardctl(&collector, &["review"]);
    assert!(text(&output).starts_with("REQUEST") && text(&output).contains(REQUEST), "{output:?}");
    let mut terminal = Terminal::new(24, 80);
    let mut command = Command::new(env!("CARGO_BIN_EXE_guardctl"));
    command.arg("--config").arg(collector.config()).arg("review").env("TERM", "dumb");
    let mut shell = terminal.spawn(command);
    terminal.read_until("this is the plain list");
    terminal.read_until(REQUEST);
    assert_eq!(terminal::wait(&mut shell, Duration::from_secs(20)).code(), Some(0));
}
