//! Requests for review and their decisions.

use guard_proto::v1::*;
use tonic::{Code, Status, Streaming};

use crate::host::Host;
use crate::world::{ControlClient, World};

const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

async fn asked(world: &World, seconds: i64) -> (Host, Vec<u8>) {
    let mut host = Host::new();
    host.start_session();
    host.exec(1, &["git", "status"], Disposition::Allowed);
    host.exec(2, &["rm", "-rf", "/"], Disposition::Denied);
    let digest = host.request(REQUEST, 3, &["git", "commit"], seconds);
    host.ship(&world.node("node-box").await).await;
    (host, digest)
}

fn approve(digest: &[u8]) -> DecideRequest {
    DecideRequest {
        request_id: REQUEST.into(),
        digest: digest.to_vec(),
        approve: true,
        reason: "looks right".into(),
        scope: "once".into(),
        max_execs: 1,
        ..DecideRequest::default()
    }
}

async fn refused(client: &mut ControlClient, request: DecideRequest) -> Code {
    client.decide(request).await.expect_err("refused").code()
}

async fn pending(client: &mut ControlClient) -> Vec<Review> {
    client.list_reviews(ListReviewsRequest::default()).await.expect("list").into_inner().reviews
}

async fn get(client: &mut ControlClient) -> Result<Review, Status> {
    client.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.map(tonic::Response::into_inner)
}

async fn listen(world: &World, host: &Host) -> Streaming<Decision> {
    let request = DecisionsRequest { host: host.id.0.to_vec() };
    world.node("node-box").await.decisions(request).await.expect("stream").into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_is_logged_and_reaches_the_host() {
    let mut world = World::new();
    let (mut host, digest) = asked(&world, 60).await;
    let mut live = listen(&world, &host).await;
    let mut bob = world.control("bob").await;
    let waiting = pending(&mut bob).await;
    assert_eq!(waiting.len(), 1);
    assert_eq!((waiting[0].state.as_str(), waiting[0].host_name.as_str()), ("pending", "box"));
    let shown = get(&mut bob).await.expect("review");
    let before: Vec<_> = shown.before.iter().map(|f| f.argv[0].clone()).collect();
    assert_eq!(before, [b"git".to_vec()], "what ran before; the denied one did not");

    let reply = bob.decide(approve(&digest)).await.expect("decided").into_inner();
    let review = reply.review.expect("review");
    assert_eq!((review.state.as_str(), review.reviewer.as_str()), ("approved", "bob"));
    let decision = live.message().await.expect("live").expect("decision");
    assert_eq!((decision.request_id.as_str(), decision.approve, decision.leaf), (REQUEST, true, reply.leaf));
    assert_eq!((decision.digest, decision.reviewer.as_str(), decision.scope.as_str()), (digest.clone(), "bob", "once"));
    assert!(decision.expires_unix_ns > guard_collector::own::now_ns());
    let logged = world.records().await.swap_remove(usize::try_from(reply.leaf).expect("leaf"));
    let Some(record_body::Body::ReviewDecision(body)) = guard_collector::body::parse(&logged) else {
        panic!("{logged:?}")
    };
    assert_eq!((body.reviewer.as_str(), body.reason.as_str(), body.host), ("bob", "looks right", host.id.0.to_vec()));
    assert_eq!(logged.header().session, host.session);
    assert!(pending(&mut bob).await.is_empty());

    // A host that connects again gets it again, also from a collector that was started anew.
    let again = listen(&world, &host).await.message().await.expect("stream").expect("decision");
    assert_eq!(again.leaf, reply.leaf);
    drop(live);
    world.kill();
    world.start();
    let again = listen(&world, &host).await.message().await.expect("stream").expect("decision");
    assert_eq!(again.leaf, reply.leaf);

    // Once the host has recorded what became of it, it is closed.
    host.decision(REQUEST, 3, Disposition::Approved, 0);
    let size = host.ship(&world.node("node-box").await).await.log_size;
    let mut bob = world.control("bob").await;
    let all = ListReviewsRequest { all: true, ..ListReviewsRequest::default() };
    bob.list_sessions(ListSessionsRequest { at_least: size, ..Default::default() }).await.expect("indexed");
    let reviews = bob.list_reviews(all).await.expect("list").into_inner().reviews;
    assert_eq!((reviews[0].state.as_str(), reviews[0].reviewer.as_str()), ("approved", "bob"));
    let mut stream = listen(&world, &host).await;
    let silence = tokio::time::timeout(std::time::Duration::from_millis(300), stream.message()).await;
    assert!(silence.is_err(), "nothing is open");
    assert_eq!(refused(&mut bob, approve(&digest)).await, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_the_request_is_no_decision() {
    let world = World::new();
    let (host, digest) = asked(&world, 60).await;
    let (mut alice, mut bob) = (world.control("alice").await, world.control("bob").await);
    assert_eq!(refused(&mut bob, approve(&[0; 32])).await, Code::FailedPrecondition, "wrong digest");
    assert_eq!(refused(&mut bob, approve(&[])).await, Code::FailedPrecondition, "no digest");
    assert_eq!(refused(&mut alice, approve(&digest)).await, Code::PermissionDenied, "own session");
    let unknown = DecideRequest { request_id: "x".into(), ..approve(&digest) };
    assert_eq!(refused(&mut bob, unknown).await, Code::NotFound);
    let odd = [
        DecideRequest { scope: "all".into(), ..approve(&digest) },
        DecideRequest { scope: String::new(), ..approve(&digest) },
        DecideRequest { max_execs: 2, ..approve(&digest) },
        DecideRequest { categories: vec!["a".into()], ..approve(&digest) },
        DecideRequest { scope: "root".into(), max_execs: 0, categories: vec!["a".into()], ..approve(&digest) },
        DecideRequest { scope: "root".into(), max_execs: 1001, categories: vec!["a".into()], ..approve(&digest) },
        DecideRequest { scope: "root".into(), max_execs: 5, ..approve(&digest) },
        DecideRequest { scope: "root".into(), max_execs: 5, categories: vec!["A B".into()], ..approve(&digest) },
        DecideRequest { reason: "r".repeat(3000), ..approve(&digest) },
    ];
    for request in odd {
        assert_eq!(refused(&mut bob, request.clone()).await, Code::InvalidArgument, "{request:?}");
    }
    assert_eq!(pending(&mut bob).await.len(), 1, "nothing was decided");
    assert_eq!(world.records().await.len(), host.records.len() + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_decisions_one_counts() {
    let world = World::new();
    let (_, digest) = asked(&world, 60).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let deny = DecideRequest { approve: false, ..approve(&digest) };
    let (first, second) = tokio::join!(bob.decide(approve(&digest)), admin.decide(deny));
    let refusal = match (first, second) {
        (Ok(_), Err(status)) | (Err(status), Ok(_)) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    let decisions =
        world.records().await.iter().filter(|r| r.header().kind == guard_log::record::Kind::REVIEW_DECISION).count();
    assert_eq!(decisions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_deadline_nobody_decides() {
    let world = World::new();
    let (mut host, digest) = asked(&world, -1).await;
    let mut bob = world.control("bob").await;
    assert_eq!(refused(&mut bob, approve(&digest)).await, Code::FailedPrecondition);
    assert_eq!(get(&mut bob).await.expect("review").state, "pending", "the host's word is still awaited");
    host.decision(REQUEST, 3, Disposition::TimedOut, 0);
    host.request("01KG9F6R00ABCDEFGHJKMNPQRT", 4, &["git", "push"], -10);
    let size = host.ship(&world.node("node-box").await).await.log_size;
    bob.list_sessions(ListSessionsRequest { at_least: size, ..Default::default() }).await.expect("indexed");
    assert_eq!(get(&mut bob).await.expect("review").state, "timed_out");
    let silent = GetReviewRequest { request_id: "01KG9F6R00ABCDEFGHJKMNPQRT".into() };
    assert_eq!(bob.get_review(silent).await.expect("review").into_inner().state, "expired");
    assert!(pending(&mut bob).await.is_empty());
    assert_eq!(refused(&mut bob, approve(&digest)).await, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_approval_carries_its_bounds() {
    let world = World::new();
    let (host, digest) = asked(&world, 60).await;
    let mut live = listen(&world, &host).await;
    let categories = vec!["vcs.write".to_owned(), "fs.write".to_owned()];
    let wanted =
        DecideRequest { scope: "root".into(), max_execs: 7, categories: categories.clone(), ..approve(&digest) };
    world.control("bob").await.decide(wanted).await.expect("decided");
    let decision = live.message().await.expect("live").expect("decision");
    assert_eq!((decision.scope.as_str(), decision.max_execs, decision.categories), ("root", 7, categories));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_cannot_close_a_request() {
    let world = World::new();
    let (host, _) = asked(&world, 60).await;
    let mut other = Host { session: host.session, ..Host::new() };
    other.decision(REQUEST, 3, Disposition::Approved, 0);
    other.end_session();
    let size = other.ship(&world.node("box2").await).await.log_size;
    let mut bob = world.control("bob").await;
    assert_eq!(pending(&mut bob).await.len(), 1);
    let get = GetSessionRequest { session_id: host.session.to_string(), at_least: size };
    let session = bob.get_session(get).await.expect("session").into_inner();
    let summary = session.summary.expect("summary");
    assert_eq!((summary.ended_unix_ns, summary.pending, session.entries.len()), (0, 1, host.records.len()));
}
