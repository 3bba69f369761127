//! Requests that nobody decides go to a second group before their deadline: once, whatever becomes of the collector meanwhile.

use std::time::Duration;

use guard_log::record::Kind;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use tonic::Code;

use crate::ballot::{Ballot, Taken};
use crate::host::Host;
use crate::signed::{REQUEST, get, listen, next, signed, signer, take, unsigned};
use crate::world::{ControlClient, World};

const ESCALATED: Kind = Kind(42);

/// bob is asked first, admin once it was escalated: a second after the request.
fn roles() -> String {
    let key = |name: &str| format!("{name}: [{{key: '{}'}}]", signer(name).public().text());
    format!(
        "version: 1\nroles:\n  first: {{review: {{categories: ['vcs.*'], max_risk: 60}}}}\n\
         \x20 lead: {{review: {{categories: ['*'], max_risk: 100, only_escalated: true}}}}\n\
         \x20 reader: {{query: true}}\npeople: {{bob: [first], admin: [lead], vera: [reader]}}\nkeys: {{{}, {}}}\n\
         approvals: {{escalate: [{{to: [lead], before_deadline_seconds: 59, categories: ['vcs.*']}}]}}\n",
        key("bob"),
        key("admin")
    )
}

/// A collector that does not run yet.
fn world() -> World {
    let world = World::stopped();
    std::fs::write(world.path("c/roles.yaml"), roles()).expect("written");
    world.edit_config("# roles = \"roles.yaml\"", "roles = \"roles.yaml\"");
    world
}

async fn ask(world: &World, seconds: i64) -> (Host, Ballot) {
    let mut host = Host::new();
    host.start_session();
    host.request(REQUEST, 3, &["git", "commit"], seconds);
    host.ship(&world.node("node-box").await).await;
    let ballot = crate::signed::ballot(&host);
    (host, ballot)
}

async fn pending(client: &mut ControlClient) -> Vec<Review> {
    client.list_reviews(ListReviewsRequest::default()).await.expect("list").into_inner().reviews
}

async fn until_escalated(world: &World) -> Review {
    let mut bob = world.control("bob").await;
    for _ in 0..100 {
        let review = get(&mut bob).await;
        if review.escalated_unix_ns != 0 {
            return review;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never escalated");
}

/// Records that say so; read by vera, who may query.
async fn escalations(world: &World) -> Vec<RequestEscalated> {
    let mut vera = world.control("vera").await;
    let at_least = vera.status(StatusRequest {}).await.expect("status").into_inner().log_size;
    let query = QueryRequest { limit: 10_000, at_least, ..QueryRequest::default() };
    let mut stream = vera.query(query).await.expect("query").into_inner();
    let mut found = vec![];
    while let Some(entry) = stream.message().await.expect("entry") {
        let record = guard_log::record::Record::parse(entry.record).expect("a record");
        if let Some(Body::RequestEscalated(body)) = guard_collector::body::parse(&record) {
            assert_eq!(record.header().kind, ESCALATED);
            found.push(body);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_group_is_asked_in_time_and_its_approval_counts_at_the_host() {
    let mut world = world();
    world.start();
    let (host, mut ballot) = ask(&world, 60).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let early = get(&mut bob).await;
    if early.escalated_unix_ns == 0 {
        assert!(early.escalates_unix_ns > early.opened_unix_ns);
        let unseen = admin.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.expect_err("not yet");
        assert_eq!(unseen.code(), Code::PermissionDenied);
        assert!(unseen.message().contains("only once it was escalated"), "{unseen}");
    }
    let review = until_escalated(&world).await;
    assert_eq!((review.state.as_str(), review.escalated_to.as_slice()), ("pending", &["lead".to_owned()][..]));
    assert_eq!(review.escalates_unix_ns, 0);
    let shown = pending(&mut admin).await;
    assert_eq!(shown.len(), 1, "shown to the second group");
    // The first group may still decide; here the second one does.
    let mut live = listen(&world, &host).await;
    let decision = signed(unsigned(&get(&mut admin).await), "admin", "admin");
    admin.decide(decision).await.expect("decided");
    assert!(matches!(take(&mut ballot, &next(&mut live).await, &roles()), Taken::Approved(_)));
    let said = escalations(&world).await;
    assert_eq!(
        (said.len(), said[0].request_id.as_str(), said[0].to.as_slice()),
        (1, REQUEST, &["lead".to_owned()][..])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_killed_escalates_once_and_forgets_nothing() {
    let mut world = world();
    world.start();
    let (_host, _) = ask(&world, 60).await;
    // Killed, mostly before the second is over; the time comes while nothing runs.
    world.kill();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.start();
    until_escalated(&world).await;
    for _ in 0..2 {
        world.kill();
        world.start();
        assert_ne!(get(&mut world.control("bob").await).await.escalated_unix_ns, 0, "known from the log");
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    assert_eq!(escalations(&world).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_decided_or_over_is_not_escalated() {
    let mut world = world();
    world.start();
    let mut host = Host::new();
    host.start_session();
    // Over before it came; another category than the rule's; and one that is denied at once.
    host.request("01KG9F6R00ABCDEFGHJKMNPQRT", 4, &["git", "push"], -20);
    host.request_of("01KG9F6R00ABCDEFGHJKMNPQRU", &["rm"], ("fs.delete", 10));
    let digest = host.request(REQUEST, 3, &["git", "commit"], 60);
    host.ship(&world.node("node-box").await).await;
    let deny = DecideRequest { request_id: REQUEST.into(), digest, scope: "once".into(), ..DecideRequest::default() };
    let denied = world.control("bob").await.decide(deny).await.is_ok();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let said: Vec<String> = escalations(&world).await.into_iter().map(|e| e.request_id).collect();
    assert!(denied && said.iter().all(|id| id == REQUEST), "{said:?}");
    assert!(said.len() <= 1);
}

/// The collector's clock and the host's differ: what is late by one clock is still escalated by how long it has waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_clock_is_ahead_is_escalated_by_the_time_that_passes() {
    let mut world = world();
    world.start();
    let mut host = Host::new();
    host.start_session();
    let ahead = 600_000_000_000;
    let now = guard_collector::own::now_ns() + ahead;
    let verdict = Verdict { category: "vcs.write".into(), ..Verdict::default() };
    let request = ExecRequest {
        identity: Some(host.identity()),
        verdict: Some(verdict),
        request_id: REQUEST.into(),
        deadline_unix_ns: now + 60_000_000_000,
        digest: vec![1; 32],
        ..ExecRequest::default()
    };
    host.append_at(host.session, Body::ExecRequest(request), now);
    host.ship(&world.node("node-box").await).await;
    let review = until_escalated(&world).await;
    assert!(review.escalated_unix_ns < now, "by its own times it would be ten minutes later");
}
