//! The role file, inside what certificates allow: who decides what, who reads, who administers, and what is said of it.

use std::process::Command;
use std::time::Duration;

use guard_proto::v1::*;
use tonic::{Code, Status};

use crate::host::Host;
use crate::world::{ControlClient, World};

const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";
const ROLES: &str = "version: 1
roles:
  vcs-reviewer: {review: {categories: ['vcs.*'], max_risk: 60}}
  auditor: {query: true}
  owner: {request: ['*'], review: {categories: ['*'], max_risk: 100}, query: true, administer: true}
people: {bob: [vcs-reviewer], vera: [auditor], admin: [owner]}
agents: {coder: [owner]}
";

fn write(world: &World, text: &str) {
    std::fs::write(world.path("c/roles.yaml"), text).expect("written");
}

/// A collector with these roles, and a host that asks for a commit, which has this risk.
async fn asked(roles: &str, risk: u32) -> (World, Host, Vec<u8>) {
    let mut world = World::stopped();
    write(&world, roles);
    world.edit_config("# roles = \"roles.yaml\"", "roles = \"roles.yaml\"");
    world.start();
    let mut host = Host::new();
    host.start_session();
    host.exec(1, &["git", "status"], Disposition::Allowed);
    let digest = host.request_of(REQUEST, &["git", "commit"], ("vcs.write", risk));
    host.ship(&world.node("node-box").await).await;
    (world, host, digest)
}

fn deny(digest: &[u8]) -> DecideRequest {
    DecideRequest {
        request_id: REQUEST.into(),
        digest: digest.to_vec(),
        scope: "once".into(),
        ..DecideRequest::default()
    }
}

fn approve(digest: &[u8], categories: &[&str]) -> DecideRequest {
    let (scope, max_execs) = if categories.is_empty() { ("once", 1) } else { ("root", 3) };
    let categories = categories.iter().map(|c| (*c).to_owned()).collect();
    DecideRequest { approve: true, scope: scope.into(), max_execs, categories, ..deny(digest) }
}

fn said<T>(result: Result<T, Status>) -> String {
    let status = result.err().expect("refused");
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    status.message().to_owned()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..100 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

async fn can(client: &mut ControlClient, request: CanIRequest) -> (bool, String) {
    let reply = client.can_i(request).await.expect("answer").into_inner();
    (reply.allowed, reply.reason)
}

fn about(right: &str, category: &str, risk: u32) -> CanIRequest {
    CanIRequest { right: right.into(), category: category.into(), risk, ..CanIRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reviewer_decides_what_category_and_risk_of_the_role_cover() {
    let (world, _host, digest) = asked(ROLES, 60).await;
    let mut bob = world.control("bob").await;
    let beyond = said(bob.decide(approve(&digest, &["vcs.write", "fs.delete"])).await);
    assert_eq!(beyond, "bob may not review fs.delete at risk 60: its role `vcs-reviewer` does not give it");
    let alice = said(world.control("alice").await.decide(deny(&digest)).await);
    assert!(alice.contains("alice"), "{alice}");
    let pending = bob.list_reviews(ListReviewsRequest::default()).await.expect("list").into_inner().reviews;
    assert_eq!(pending.len(), 1);
    bob.decide(approve(&digest, &["vcs.write"])).await.expect("decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_risk_above_the_role_is_neither_shown_nor_decided() {
    let (world, _host, digest) = asked(ROLES, 61).await;
    let mut bob = world.control("bob").await;
    let text = "bob may not review vcs.write at risk 61: its roles";
    let why = said(bob.decide(approve(&digest, &[])).await);
    assert!(why.contains("risk 61") && why.contains("up to risk 60"), "{why} {text}");
    assert_eq!(said(bob.decide(deny(&digest)).await), why);
    assert_eq!(said(bob.get_review(GetReviewRequest { request_id: REQUEST.into() }).await), why);
    for all in [false, true] {
        let request = ListReviewsRequest { all, ..ListReviewsRequest::default() };
        assert_eq!(bob.list_reviews(request).await.expect("list").into_inner().reviews, []);
    }
    world.control("admin").await.decide(approve(&digest, &[])).await.expect("decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_request_must_be_covered() {
    let (world, mut host, _) = asked(ROLES, 10).await;
    let id = "01KG9F6R00ABCDEFGHJKMNPQRT";
    let digest = host.request_of_parts(id, &["sh"], ("vcs.write", 10), &["fs.delete", "vcs.write"]);
    host.ship(&world.node("node-box").await).await;
    let request = DecideRequest { request_id: id.into(), ..approve(&digest, &[]) };
    let why = said(world.control("bob").await.decide(request).await);
    assert!(why.starts_with("bob may not review fs.delete at risk 10"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_was_lost_after_showing_decides_nothing() {
    let (world, _host, digest) = asked(ROLES, 10).await;
    let mut bob = world.control("bob").await;
    let shown = bob.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.expect("shown").into_inner();
    assert_eq!(shown.state, "pending");
    write(&world, &ROLES.replace("bob: [vcs-reviewer], ", ""));
    // At once: the decision looks at the file itself.
    let why = said(bob.decide(approve(&digest, &[])).await);
    assert_eq!(why, "bob may not review vcs.write at risk 10: it has no role");
    write(&world, ROLES);
    bob.decide(approve(&digest, &[])).await.expect("decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_needs_query_and_erasing_needs_administer() {
    let (world, host, _) = asked(&ROLES.replace("owner: {request", "owner: {undo: ['*'], request"), 10).await;
    let (mut bob, mut vera) = (world.control("bob").await, world.control("vera").await);
    let session = GetSessionRequest { session_id: host.session.to_string(), at_least: 3 };
    let why = "bob may not query: its role `vcs-reviewer` does not give it";
    assert_eq!(said(bob.get_session(session.clone()).await), why);
    assert_eq!(said(bob.list_sessions(ListSessionsRequest::default()).await), why);
    assert_eq!(said(bob.query(QueryRequest::default()).await), why);
    assert_eq!(said(bob.tail(TailRequest::default()).await), why);
    assert_eq!(said(bob.read_log(ReadLogRequest { path: "checkpoint".into() }).await), why);
    assert_eq!(said(bob.get_blob(GetBlobRequest::default()).await), why);
    vera.get_session(session).await.expect("vera may query");
    // A stream ends when its reader loses the role.
    let mut tail = vera.tail(TailRequest::default()).await.expect("tail").into_inner();
    tail.message().await.expect("a record").expect("a record");
    write(&world, &ROLES.replace("vera: [auditor], ", ""));
    let more = async |tail: &mut tonic::Streaming<LogEntry>| tail.message().await;
    until("vera is refused", async || vera.list_sessions(ListSessionsRequest::default()).await.is_err()).await;
    let mut host = host;
    for _ in 0..200 {
        host.fill(1);
    }
    host.ship(&world.node("node-box").await).await;
    let mut read = 0;
    let ended = loop {
        match more(&mut tail).await {
            Ok(Some(_)) => read += 1,
            Ok(None) => panic!("ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert!(read < 100, "{read} records after the role was lost");
    write(&world, &ROLES.replace(", administer: true", ""));
    let mut admin = world.control("admin").await;
    let erase = EraseBlobRequest { sha256: vec![0; 32], reason: "a test".into() };
    until("admin may not administer", async || {
        admin.erase_blob(erase.clone()).await.expect_err("there is no such blob").code() == Code::PermissionDenied
    })
    .await;
    assert_eq!(said(admin.erase_blob(erase).await), "admin may not administer: its role `owner` does not give it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_file_changes_nothing_and_is_shown() {
    let (world, _host, digest) = asked(ROLES, 10).await;
    let mut admin = world.control("admin").await;
    let before = admin.status(StatusRequest {}).await.expect("status").into_inner();
    assert!(before.roles_digest.len() == 64 && before.roles_error.is_empty());
    write(&world, "version: 1\npeople: {bob: [nobody]}\n");
    assert!(Command::new("kill").args(["-HUP", &world.pid().to_string()]).status().expect("kill").success());
    until("status says it", async || {
        let status = admin.status(StatusRequest {}).await.expect("status").into_inner();
        assert_eq!(status.roles_digest, before.roles_digest);
        status.roles_error.contains("roles.yaml:2:") && status.roles_error.contains("which nothing defines")
    })
    .await;
    world.control("bob").await.decide(approve(&digest, &[])).await.expect("bob still decides");
}

#[test]
fn a_collector_does_not_start_with_a_wrong_role_file() {
    let world = World::stopped();
    world.edit_config("# roles = \"roles.yaml\"", "roles = \"roles.yaml\"");
    let config = world.config();
    let serve = || crate::world::command(&["serve", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(serve().status.code(), Some(78), "there is no file");
    write(&world, "version: 1\nrules: []\n");
    let refused = serve();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{text}");
    assert!(text.contains("roles.yaml:2:1: unknown field `rules`"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_learn_their_rights_and_only_administrators_those_of_others() {
    let (world, _host, _) = asked(ROLES, 10).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let who = bob.who_am_i(WhoAmIRequest {}).await.expect("answer").into_inner();
    assert_eq!((who.name.as_str(), who.roles.as_slice()), ("bob", ["reviewer".to_owned()].as_slice()));
    assert!(who.roles_in_force);
    let bound = &who.bound[0];
    assert_eq!((bound.name.as_str(), bound.review_max_risk, bound.query), ("vcs-reviewer", 60, false));
    assert!(can(&mut bob, about("review", "vcs.write", 60)).await.0);
    assert!(!can(&mut bob, about("review", "vcs.write", 61)).await.0);
    let (allowed, why) = can(&mut bob, about("administer", "", 0)).await;
    assert!(!allowed && why.contains("a certificate of the role reviewer"), "{why}");
    // The certificate is the outer bound: the file gives vera more than a viewer may.
    write(&world, &ROLES.replace("vera: [auditor]", "vera: [owner]"));
    let mut vera = world.control("vera").await;
    until("vera is an owner", async || can(&mut vera, about("request", "fs.read", 0)).await.0).await;
    assert!(!can(&mut vera, about("review", "vcs.write", 1)).await.0);
    let other = CanIRequest { person: "vera".into(), ..about("query", "", 0) };
    assert!(said(bob.can_i(other.clone()).await).starts_with("asking about others: "));
    assert!(said(vera.can_i(CanIRequest { person: "bob".into(), ..other.clone() }).await).starts_with("asking about"));
    assert!(can(&mut admin, other).await.0);
    let session = |agent: &str, person: &str| CanIRequest {
        agent: agent.into(),
        person: person.into(),
        ..about("request", "fs.write", 0)
    };
    assert!(can(&mut admin, session("coder", "")).await.0);
    let (allowed, why) = can(&mut admin, session("other", "")).await;
    assert!(!allowed && why == "agent other may not request fs.write: it has no role", "{why}");
    assert!(!can(&mut admin, session("coder", "bob")).await.0);
    let wrong = admin.can_i(about("fly", "", 0)).await.expect_err("refused");
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("administer"), "{wrong}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_role_file_certificates_alone_say() {
    let world = World::new();
    let mut bob = world.control("bob").await;
    assert!(!bob.who_am_i(WhoAmIRequest {}).await.expect("answer").into_inner().roles_in_force);
    let (allowed, why) = can(&mut bob, about("review", "vcs.write", 99)).await;
    assert!(allowed && why.contains("no role file"), "{why}");
    assert!(!can(&mut bob, about("administer", "", 0)).await.0);
}
