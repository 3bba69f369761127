//! Decisions that reviewers sign, several of them for one request, and their end: the real collector, and what a daemon makes of
//! what it hands on.

use guard_bundle::{Bundle, Stage};
use guard_log::signer::KeyFile;
use guard_policy::Source;
use guard_policy::decision::{ReviewSigner, Statement};
use guard_policy::roles::{Known, Roles};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use sha2::{Digest, Sha256};
use tonic::{Code, Status, Streaming};

use crate::ballot::{Ballot, Question, Taken, Trust};
use crate::host::Host;
use crate::world::{ControlClient, World};

pub const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

pub fn signer(name: &str) -> ReviewSigner {
    ReviewSigner::from_seed(&Sha256::digest(name).into())
}

fn roles(more: &str) -> String {
    let key = |name: &str| format!("{name}: [{{key: '{}'}}]", signer(name).public().text());
    format!(
        "version: 1\nroles: {{all: {{review: {{categories: ['*'], max_risk: 100}}, query: true}}}}\n\
         people: {{bob: [all], admin: [all], vera: [all]}}\nkeys: {{{}, {}}}\n{more}",
        key("bob"),
        key("admin")
    )
}

const TWO: &str = "approvals: {needed: [{categories: ['vcs.*'], reviewers: 2}]}\n";

/// A collector, with a role file or without, and a host that asks for a commit.
pub async fn asked(file: Option<&str>) -> (World, Host, Ballot) {
    let mut world = World::stopped();
    if let Some(text) = file {
        std::fs::write(world.path("c/roles.yaml"), text).expect("written");
        world.edit_config("# roles = \"roles.yaml\"", "roles = \"roles.yaml\"");
    }
    world.start();
    let mut host = Host::new();
    host.start_session();
    host.request(REQUEST, 3, &["git", "commit"], 60);
    host.ship(&world.node("node-box").await).await;
    let ballot = ballot(&host);
    (world, host, ballot)
}

/// As the host's daemon recorded the request.
pub fn ballot(host: &Host) -> Ballot {
    let record = host.records.last().expect("a request");
    match guard_collector::body::parse(record) {
        Some(Body::ExecRequest(request)) => {
            Ballot::new(Question::of(&request, record.body(), record.header().wall_unix_ns))
        }
        other => panic!("{other:?}"),
    }
}

pub fn take(ballot: &mut Ballot, decision: &Decision, file: &str) -> Taken {
    let roles = Roles::load(&Source { name: "roles.yaml", text: file }, Known::Any).expect("roles");
    ballot.take(decision, Trust { roles: Some(&roles), required: false }, guard_collector::own::now_ns())
}

pub async fn get(client: &mut ControlClient) -> Review {
    client.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.expect("review").into_inner()
}

pub fn unsigned(shown: &Review) -> DecideRequest {
    let record = guard_log::record::Record::parse(shown.record.clone()).expect("the request's record");
    DecideRequest {
        request_id: REQUEST.into(),
        digest: shown.request.clone().expect("request").digest,
        approve: true,
        reason: "looks right".into(),
        scope: "once".into(),
        max_execs: 1,
        decided_unix_ns: guard_collector::own::now_ns(),
        record_sha256: Sha256::digest(record.body()).to_vec(),
        expires_unix_ns: shown.approval_until_unix_ns,
        ..DecideRequest::default()
    }
}

pub fn signed(mut decision: DecideRequest, reviewer: &str, key: &str) -> DecideRequest {
    let statement = Statement {
        request_id: &decision.request_id,
        digest: &decision.digest,
        record_sha256: &decision.record_sha256,
        approve: decision.approve,
        scope: &decision.scope,
        categories: &decision.categories,
        max_execs: decision.max_execs,
        expires_unix_ns: decision.expires_unix_ns,
        reason: &decision.reason,
        reviewer,
        decided_unix_ns: decision.decided_unix_ns,
        delegation_id: &decision.delegation_id,
    };
    decision.signature = signer(key).sign(&statement).to_vec();
    decision
}

pub async fn refused(client: &mut ControlClient, decision: DecideRequest) -> Status {
    client.decide(decision).await.expect_err("refused")
}

pub async fn listen(world: &World, host: &Host) -> Streaming<Decision> {
    let request = DecisionsRequest { host: host.id.0.to_vec() };
    world.node("node-box").await.decisions(request).await.expect("stream").into_inner()
}

pub async fn next(stream: &mut Streaming<Decision>) -> Decision {
    let wait = tokio::time::timeout(std::time::Duration::from_secs(10), stream.message());
    wait.await.expect("in time").expect("stream").expect("a decision")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_take_a_right_that_reaches_as_far_as_they_do() {
    // bob may review up to 60; from 70 on it takes two.
    let file = roles("approvals: {needed: [{risk_from: 70, reviewers: 2}]}\n")
        .replace("roles: {all:", "roles: {low: {review: {categories: ['vcs.*'], max_risk: 60}}, all:")
        .replace("bob: [all]", "bob: [low]");
    let (world, mut host, _) = asked(Some(&file)).await;
    let (low, high) = ("01KG9F6R00ABCDEFGHJKMNPQRT", "01KG9F6R00ABCDEFGHJKMNPQRV");
    host.request_of_kinds(low, ("vcs.write", 45), 59);
    host.request_of_kinds(high, ("vcs.write", 60), 79);
    host.ship(&world.node("node-box").await).await;
    let shown = async |id: &str| {
        let mut client = world.control("admin").await;
        client.get_review(GetReviewRequest { request_id: id.into() }).await.expect("review").into_inner()
    };
    let decision = |shown: &Review, id: &str, scope: &str, max_execs| DecideRequest {
        request_id: id.into(),
        scope: scope.into(),
        max_execs,
        ..unsigned(shown)
    };
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let (of_low, of_high) = (shown(low).await, shown(high).await);
    let beyond = refused(&mut bob, signed(decision(&of_high, high, "kind", 9), "bob", "bob")).await;
    assert_eq!(beyond.code(), Code::PermissionDenied, "{beyond}");
    bob.decide(signed(decision(&of_low, low, "kind", 9), "bob", "bob")).await.expect("59 is within 60");
    let reply = admin.decide(signed(decision(&of_high, high, "kind", 9), "admin", "admin")).await.expect("counted");
    let review = reply.into_inner().review.expect("review");
    assert_eq!(review.state, "pending", "what it lets through takes two reviewers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_reviewer_signed_is_taken_and_the_host_can_check_it() {
    let file = roles("");
    let (world, host, mut ballot) = asked(Some(&file)).await;
    let mut live = listen(&world, &host).await;
    let (mut bob, mut vera) = (world.control("bob").await, world.control("admin").await);
    let shown = get(&mut bob).await;
    let plain = unsigned(&shown);
    let none = refused(&mut bob, plain.clone()).await;
    assert!(none.code() == Code::PermissionDenied && none.message().contains("guardctl key new"), "{none}");
    for wrong in [
        signed(plain.clone(), "bob", "mallory"),
        signed(plain.clone(), "admin", "admin"),
        DecideRequest { scope: "session".into(), max_execs: 9, ..signed(plain.clone(), "bob", "bob") },
        DecideRequest { reason: "other".into(), ..signed(plain.clone(), "bob", "bob") },
    ] {
        let status = refused(&mut bob, wrong).await;
        assert!(status.message().contains("not one of bob's keys"), "{status}");
    }
    // bob's signature in somebody else's hands.
    let stolen = refused(&mut vera, signed(plain.clone(), "bob", "bob")).await;
    assert!(stolen.message().contains("not one of admin's keys"), "{stolen}");
    let kinds = DecideRequest { scope: "kind".into(), max_execs: 9, ..plain.clone() };
    let none = refused(&mut bob, signed(kinds, "bob", "bob")).await;
    assert!(none.message().contains("offers none for this request"), "{none}");
    let late = DecideRequest { expires_unix_ns: plain.expires_unix_ns + 3_600_000_000_000, ..plain.clone() };
    assert_eq!(refused(&mut bob, signed(late, "bob", "bob")).await.code(), Code::InvalidArgument);
    let other = DecideRequest { record_sha256: vec![1; 32], ..plain.clone() };
    assert_eq!(refused(&mut bob, signed(other, "bob", "bob")).await.code(), Code::FailedPrecondition);

    let leaf = bob.decide(signed(plain, "bob", "bob")).await.expect("decided").into_inner().leaf;
    let decision = next(&mut live).await;
    assert_eq!(decision.leaf, leaf);
    // A collector that changes what was signed, or makes one up, gets nowhere.
    let wider = Decision {
        scope: "root".into(),
        max_execs: 100,
        categories: vec!["fs.delete".into()],
        leaf: 8,
        ..decision.clone()
    };
    assert!(matches!(take(&mut ballot, &wider, &file), Taken::Refused(_)));
    let made_up = Decision { signature: vec![], leaf: 9, ..decision.clone() };
    assert!(matches!(take(&mut ballot, &made_up, &file), Taken::Refused(_)));
    match take(&mut ballot, &decision, &file) {
        Taken::Approved(agreed) => assert_eq!(agreed.key_ids, [signer("bob").public().id().to_vec()]),
        other => panic!("{other:?}"),
    }
    let logged = world.records().await.swap_remove(usize::try_from(leaf).expect("leaf"));
    match guard_collector::body::parse(&logged) {
        Some(Body::ReviewDecision(body)) => {
            assert_eq!(body.key_id, signer("bob").public().id());
            assert_eq!((body.signature, body.record_sha256), (decision.signature, decision.record_sha256));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_needs_no_signature() {
    let (world, _host, _) = asked(Some(&roles(""))).await;
    let mut vera = world.control("admin").await;
    let deny = DecideRequest { approve: false, ..unsigned(&get(&mut vera).await) };
    let wrong = signed(DecideRequest { max_execs: 0, ..deny.clone() }, "admin", "mallory");
    assert_eq!(refused(&mut vera, wrong).await.code(), Code::PermissionDenied, "but a wrong one is no decision");
    let review = vera.decide(deny).await.expect("denied").into_inner().review.expect("review");
    assert_eq!(review.state, "denied");
}

/// A collector without a role file asks for no signature: as one would that is in other hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_did_not_take_waits_again() {
    let file = roles("");
    let (mut world, mut host, mut ballot) = asked(None).await;
    let mut live = listen(&world, &host).await;
    let mut bob = world.control("bob").await;
    let plain = unsigned(&get(&mut bob).await);
    bob.decide(DecideRequest { expires_unix_ns: 0, ..plain.clone() }).await.expect("this collector takes it");
    let decision = next(&mut live).await;
    let Taken::Refused(why) = take(&mut ballot, &decision, &file) else { panic!("taken") };
    let found = DecisionFinding {
        what: "refused".into(),
        request_id: REQUEST.into(),
        reviewer: "bob".into(),
        decision_leaf: decision.leaf,
        detail: why,
        ..DecisionFinding::default()
    };
    host.append(host.session, Body::DecisionFinding(found));
    let size = host.ship(&world.node("node-box").await).await.log_size;
    world.kill();
    world.start();
    let mut bob = world.control("bob").await;
    bob.list_sessions(ListSessionsRequest { at_least: size, ..Default::default() }).await.expect("indexed");
    let review = get(&mut bob).await;
    assert_eq!((review.state.as_str(), review.given.len(), review.refused.len()), ("pending", 0, 1));
    assert!(review.refused[0].starts_with("bob: the decision of bob is not signed"), "{:?}", review.refused);
    let mut live = listen(&world, &host).await;
    bob.decide(signed(plain, "bob", "bob")).await.expect("decided");
    assert!(matches!(take(&mut ballot, &next(&mut live).await, &file), Taken::Approved(_)));
    assert_eq!(get(&mut bob).await.state, "approved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_reviewers_are_counted_from_the_log_and_again_by_the_host() {
    let file = roles(TWO);
    let (mut world, host, mut ballot) = asked(Some(&file)).await;
    let mut bob = world.control("bob").await;
    let shown = get(&mut bob).await;
    assert_eq!((shown.needed, shown.given.len()), (2, 0));
    let plain = unsigned(&shown);
    let review = bob.decide(signed(plain.clone(), "bob", "bob")).await.expect("taken").into_inner().review;
    assert_eq!(review.expect("review").state, "pending");
    let twice = refused(&mut bob, signed(plain.clone(), "bob", "bob")).await;
    assert!(twice.message().contains("takes somebody else too"), "{twice}");
    world.kill();
    world.start();
    let mut admin = world.control("admin").await;
    let shown = get(&mut admin).await;
    let by: Vec<_> = shown.given.iter().map(|g| g.reviewer.as_str()).collect();
    assert_eq!((shown.state.as_str(), shown.needed, by), ("pending", 2, vec!["bob"]));
    let wider = DecideRequest { scope: "session".into(), max_execs: 4, ..unsigned(&shown) };
    let other = refused(&mut admin, signed(wider, "admin", "admin")).await;
    assert!(other.message().contains("bob approved request") && other.message().contains("scope once"), "{other}");
    let mut live = listen(&world, &host).await;
    let first = next(&mut live).await;
    assert!(matches!(take(&mut ballot, &first, &file), Taken::Counted { have: 1, needed: 2, .. }));
    admin.decide(signed(unsigned(&shown), "admin", "admin")).await.expect("taken");
    match take(&mut ballot, &next(&mut live).await, &file) {
        Taken::Approved(agreed) => assert_eq!(agreed.reviewers, ["bob", "admin"]),
        other => panic!("{other:?}"),
    }
    let review = get(&mut admin).await;
    assert_eq!((review.state.as_str(), review.reviewer.as_str(), review.given.len()), ("approved", "admin", 2));
    let size = world.records().await.len() as u64;
    admin.list_sessions(ListSessionsRequest { at_least: size, ..Default::default() }).await.expect("indexed");
    let stats = admin.review_stats(ReviewStatsRequest::default()).await.expect("stats").into_inner().reviewers;
    let counts: Vec<_> = stats.iter().map(|s| (s.reviewer.as_str(), s.decisions, s.approved)).collect();
    assert_eq!(counts, [("admin", 1, 1), ("bob", 1, 1)]);
    assert!(stats.iter().all(|s| s.median_ns > 0 && s.median_ns == s.p90_ns), "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_denial_denies_what_another_approved() {
    let (world, _host, _) = asked(Some(&roles(TWO))).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let plain = unsigned(&get(&mut bob).await);
    bob.decide(signed(plain.clone(), "bob", "bob")).await.expect("taken");
    let deny = DecideRequest { approve: false, ..plain };
    let review = admin.decide(deny).await.expect("denied").into_inner().review.expect("review");
    assert_eq!((review.state.as_str(), review.reviewer.as_str()), ("denied", "admin"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_approval_reaches_its_host_until_that_says_so() {
    let (mut world, mut host, _) = asked(Some(&roles(""))).await;
    let mut bob = world.control("bob").await;
    let wanted = RevokeRequest { request_id: REQUEST.into(), reason: "a mistake".into() };
    let early = bob.revoke(wanted.clone()).await.expect_err("nothing to revoke");
    assert!(early.message().contains("is pending") && early.message().contains("review deny"), "{early}");
    let plain = unsigned(&get(&mut bob).await);
    bob.decide(signed(plain, "bob", "bob")).await.expect("decided");
    host.decision(REQUEST, 3, Disposition::Approved, 0);
    let size = host.ship(&world.node("node-box").await).await.log_size;
    bob.list_sessions(ListSessionsRequest { at_least: size, ..Default::default() }).await.expect("indexed");
    let mut live = listen(&world, &host).await;
    let alice = world.control("alice").await.revoke(wanted.clone()).await.expect_err("no role");
    assert_eq!(alice.code(), Code::PermissionDenied);
    let leaf = bob.revoke(wanted).await.expect("revoked").into_inner().leaf;
    let told = next(&mut live).await;
    assert_eq!((told.revoke, told.request_id.as_str(), told.leaf), (true, REQUEST, leaf));
    // A host that was away hears it when it comes back, also from a collector that was started anew.
    world.kill();
    world.start();
    assert!(next(&mut listen(&world, &host).await).await.revoke);
    let found = DecisionFinding { what: "revoked".into(), request_id: REQUEST.into(), ..DecisionFinding::default() };
    host.append(host.session, Body::DecisionFinding(found));
    host.ship(&world.node("node-box").await).await;
    let silence =
        tokio::time::timeout(std::time::Duration::from_millis(300), listen(&world, &host).await.message()).await;
    assert!(silence.is_err(), "it knows");
}

/// The admin key signed bob's role away while the collector still goes by the file before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_a_newer_bundle_took_away_approves_nothing_at_the_host() {
    let before = roles("");
    let (world, host, mut ballot) = asked(Some(&before)).await;
    let admin = KeyFile::read(&world.path("c/admin.skey")).expect("admin key");
    let bundle = |serial, roles: &str| {
        let files = vec![("policy/team.yaml".into(), "version: 1\n".into()), ("roles.yaml".into(), roles.to_owned())];
        Bundle::sign(serial, 1, vec![("*".into(), Stage::Enforce)], files, &admin).expect("signed")
    };
    let mut bob = world.control("bob").await;
    let shown = get(&mut bob).await;
    let after = bundle(2, &before.replace("bob: [all]", "bob: []"));
    let mut live = listen(&world, &host).await;
    bob.decide(signed(unsigned(&shown), "bob", "bob")).await.expect("the collector does not know yet");
    let decision = next(&mut live).await;
    match take(&mut ballot, &decision, after.roles().expect("roles")) {
        Taken::Refused(why) => assert!(why.contains("bob may not review vcs.write"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(take(&mut ballot, &decision, bundle(1, &before).roles().expect("roles")), Taken::Approved(_)));
}
