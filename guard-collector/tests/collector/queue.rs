//! Many requests at once, a collector that is killed among them, clocks that differ.

use std::time::{Duration, Instant};

use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use tonic::Code;

use crate::host::Host;
use crate::world::{ControlClient, World};

/// Open requests of one host that can be approved.
const PER_HOST: usize = 1024;

fn id(n: usize) -> String {
    format!("01KG9F6R00ABCDEFGHJK{n:06}")
}

async fn status(client: &mut ControlClient) -> StatusReply {
    client.status(StatusRequest {}).await.expect("status").into_inner()
}

fn decide(n: usize, digest: &[u8], approve: bool) -> DecideRequest {
    DecideRequest {
        request_id: id(n),
        digest: digest.to_vec(),
        approve,
        scope: "once".into(),
        max_execs: u32::from(approve),
        ..DecideRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_killed_with_a_thousand_pending_has_them_all_again() {
    let mut world = World::new();
    let mut host = Host::new();
    host.start_session();
    let digests: Vec<Vec<u8>> = (0..1000).map(|n| host.request(&id(n), n as u64, &["git", "push"], 300)).collect();
    host.ship(&world.node("node-box").await).await;
    let mut bob = world.control("bob").await;
    assert_eq!(status(&mut bob).await.pending_reviews, 1000);
    // Some are decided, and the host has not said yet what it did.
    for (n, digest) in digests.iter().enumerate().take(10) {
        bob.decide(decide(n, digest, n % 2 == 0)).await.expect("decided");
    }
    world.kill();
    let start = Instant::now();
    world.start();
    let mut bob = world.control("bob").await;
    assert_eq!(status(&mut bob).await.pending_reviews, 990);
    println!("started again with 1,000 open requests in {:?}", start.elapsed());
    let listed = ListReviewsRequest { limit: 500, ..ListReviewsRequest::default() };
    let reviews = bob.list_reviews(listed).await.expect("list").into_inner().reviews;
    assert_eq!(reviews.len(), 500, "as many as one answer holds, the oldest first");
    assert_eq!(reviews[0].request.as_ref().map(|r| r.request_id.as_str()), Some(id(10).as_str()));
    // What was decided stays decided and comes to the host again; the last one can still be.
    assert_eq!(bob.decide(decide(0, &digests[0], false)).await.expect_err("decided").code(), Code::FailedPrecondition);
    bob.decide(decide(999, &digests[999], true)).await.expect("decided");
    let request = DecisionsRequest { host: host.id.0.to_vec() };
    let mut stream = world.node("node-box").await.decisions(request).await.expect("stream").into_inner();
    let mut came = vec![];
    while came.len() < 11 {
        let wait = tokio::time::timeout(Duration::from_secs(10), stream.message());
        came.push(wait.await.expect("in time").expect("stream").expect("a decision").request_id);
    }
    came.sort();
    let wanted: Vec<String> = (0..10).chain([999]).map(id).collect();
    assert_eq!(came, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_agent_fills_its_own_hosts_queue_alone() {
    let world = World::new();
    let mut loops = Host::new();
    loops.start_session();
    let digests: Vec<Vec<u8>> = (0..10_000).map(|n| loops.request(&id(n), n as u64, &["git", "push"], 300)).collect();
    let start = Instant::now();
    loops.ship(&world.node("node-box").await).await;
    println!("10,000 requests are in the log after {:?}", start.elapsed());
    let mut bob = world.control("bob").await;
    assert_eq!(status(&mut bob).await.pending_reviews as usize, PER_HOST);
    // Beyond the bound they are on record, and nobody can approve them.
    let beyond = bob.decide(decide(9_999, &digests[9_999], true)).await.expect_err("not open");
    assert!([Code::NotFound, Code::FailedPrecondition].contains(&beyond.code()), "{beyond}");
    // Another host is asked about as ever, and soon.
    let mut other = Host::new();
    other.start_session();
    let digest = other.request("01KG9F6R00ABCDEFGHJKMNPQRS", 3, &["git", "commit"], 60);
    other.ship(&world.node("box2").await).await;
    let wanted = DecideRequest { request_id: "01KG9F6R00ABCDEFGHJKMNPQRS".into(), ..decide(0, &digest, true) };
    let asked = Instant::now();
    bob.decide(wanted).await.expect("decided");
    println!("with a full queue a decision takes {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(10));
    // What its host closes makes room.
    loops.decision(&id(0), 0, Disposition::Denied, 0);
    loops.request(&id(10_000), 7, &["git", "push"], 300);
    loops.ship(&world.node("node-box").await).await;
    assert_eq!(status(&mut bob).await.pending_reviews as usize, PER_HOST);
}

/// A host whose clock is ten minutes off: what cannot be decided is denied by its own deadline, and is said why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_differ_by_ten_minutes_approve_nothing_by_accident() {
    let world = World::new();
    let ask = async |name: &str, number: usize, skew: i64| {
        let mut host = Host::new();
        host.start_session();
        let now = guard_collector::own::now_ns() + skew * 1_000_000_000;
        let request = ExecRequest {
            identity: Some(host.identity()),
            request_id: id(number),
            deadline_unix_ns: now + 300_000_000_000,
            digest: vec![1; 32],
            ..ExecRequest::default()
        };
        host.append_at(host.session, Body::ExecRequest(request), now);
        host.ship(&world.node(name).await).await;
    };
    ask("node-box", 1, 600).await;
    ask("box2", 2, -600).await;
    let mut bob = world.control("bob").await;
    bob.decide(decide(1, &[1; 32], true))
        .await
        .expect("a host that is ahead is open longer here, its own clock ends it");
    let behind = bob.decide(decide(2, &[1; 32], true)).await.expect_err("its deadline has passed here");
    assert_eq!(behind.code(), Code::FailedPrecondition);
    assert!(behind.message().contains("by this collector's clock"), "{behind}");
}
