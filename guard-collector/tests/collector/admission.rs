//! Sequence, chain and duplicates, over the wire.

use guard_log::record::{Epoch, HostId, Kind, Record};
use guard_log::verify::Severity;
use guard_proto::v1::*;
use tonic::Code;

use crate::host::{Host, Ship};
use crate::world::World;

fn finding(what: &str, expected: u64, got: u64) -> (String, u64, u64) {
    (what.to_owned(), expected, got)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_are_logged_once_and_in_order() {
    let mut world = World::new();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(10);
    let (mut ship, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
    assert_eq!(welcome.next_seq, 0);
    ship.send(&host.records[..6]).await;
    ship.send(&host.records[..6]).await;
    ship.send(&host.records[3..]).await;
    let acks = [ship.ack().await, ship.ack().await, ship.ack().await].map(|a| a.expect("ack").next_seq);
    assert_eq!(acks, [6, 6, 10]);
    let logged: Vec<Record> = world.records().await.into_iter().filter(|r| r.header().kind == Kind::GAP).collect();
    assert_eq!(logged, host.records, "the very bytes that were sent");
    assert_eq!(world.findings().await, [finding("bound", 0, 0)]);
    drop(ship);
    world.stop();
    let report = world.audit();
    assert!(report.is_ok(), "{:?}", report.findings);
    assert_eq!(report.findings.len(), 0, "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_and_broken_chains_are_said_in_the_log() {
    let mut world = World::new();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(12);
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    ship.send(&host.records[..3]).await;
    ship.send(&host.records[5..7]).await;
    let strange = Header8 { prev: [9; 32] }.of(&host.records[7]);
    ship.send(&[strange]).await;
    ship.acked(8).await.expect("admitted");
    assert_eq!(world.findings().await, [finding("bound", 0, 0), finding("gap", 3, 5), finding("chain_break", 7, 7)]);
    let status = world.control("admin").await.status(StatusRequest {}).await.expect("status").into_inner();
    let state = status.nodes.iter().find(|n| n.node == "box").expect("node");
    assert_eq!((state.findings, state.next_seq, state.connected), (2, 8, true));
    drop(ship);
    world.stop();
    let report = world.audit();
    let whats: Vec<_> =
        report.findings.iter().filter(|f| f.severity == Severity::Information).map(|f| f.what).collect();
    assert!(whats.contains(&"admitted_gap"), "{:?}", report.findings);
}

/// A record with one thing changed.
struct Header8 {
    prev: [u8; 32],
}

impl Header8 {
    fn of(&self, record: &Record) -> Record {
        let header = guard_log::record::Header { prev: self.prev, ..record.header() };
        Record::seal(&header, record.body()).expect("sealed")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_is_refused_until_a_new_epoch() {
    let world = World::new();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(4);
    host.ship(&node).await;
    let mut forked = Host { id: host.id, epoch: host.epoch, records: vec![], session: host.session };
    forked.fill(2);
    forked.start_session();
    let (mut ship, welcome) = Ship::open(&node, forked.hello()).await.expect("welcome");
    assert_eq!(welcome.next_seq, 4);
    ship.send(&[Header8 { prev: [1; 32] }.of(&host.records[3])]).await;
    let refused = ship.ack().await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(world.findings().await, [finding("bound", 0, 0), finding("fork", 4, 3)]);
    forked.epoch = Epoch::random().expect("random");
    forked.records.clear();
    forked.fill(2);
    forked.ship(&node).await;
    assert_eq!(world.findings().await.last(), Some(&finding("new_epoch", 0, 0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_went_back_is_said() {
    let world = World::new();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(1);
    let now = host.records[0].header().wall_unix_ns;
    let gap = || record_body::Body::Gap(Gap::default());
    host.append_at(guard_log::record::SessionId::NONE, gap(), now - 60_000_000_000);
    host.append_at(guard_log::record::SessionId::NONE, gap(), now - 59_000_000_000);
    host.ship(&node).await;
    assert_eq!(world.findings().await, [finding("bound", 0, 0), finding("clock_regress", 1, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_speaks_for_its_own_host_only() {
    let world = World::new();
    let (node, other, mut host) = (world.node("node-box").await, world.node("box2").await, Host::new());
    host.fill(1);
    host.ship(&node).await;
    let code = |r: Result<(Ship, ShipWelcome), tonic::Status>| r.err().expect("refused").code();
    assert_eq!(code(Ship::open(&other, host.hello()).await), Code::PermissionDenied);
    let mut second = Host::new();
    second.fill(1);
    assert_eq!(code(Ship::open(&node, second.hello()).await), Code::PermissionDenied);
    let report = NodeReport { host: host.id.0.to_vec(), ..NodeReport::default() };
    let refused = other.clone().report(report).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Records of a host inside another host's stream.
    let (mut ship, _) = Ship::open(&other, second.hello()).await.expect("a new host");
    ship.send(&host.records).await;
    assert_eq!(ship.ack().await.expect_err("refused").code(), Code::InvalidArgument);
    assert_eq!(world.findings().await, [finding("bound", 0, 0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_record_or_too_much_is_refused() {
    let world = World::new();
    let (node, host) = (world.node("node-box").await, Host::new());
    for batch in [vec![], vec![b"junk".to_vec().into()], vec![vec![0; 200].into(); 2000]] {
        let (tx, rx) = tokio::sync::mpsc::channel(4);
        let send = |message| tx.try_send(ShipRequest { message: Some(message) }).expect("queued");
        send(ship_request::Message::Hello(host.hello()));
        send(ship_request::Message::Batch(ShipBatch { records: batch, blobs: vec![] }));
        let stream = tokio_stream::wrappers::ReceiverStream::new(rx);
        let mut replies = node.clone().ship(stream).await.expect("stream").into_inner();
        replies.message().await.expect("welcome");
        assert_eq!(replies.message().await.expect_err("refused").code(), Code::InvalidArgument);
    }
    let nobody = ShipHello { host: vec![1; 3], ..host.hello() };
    assert_eq!(Ship::open(&node, nobody).await.err().expect("refused").code(), Code::InvalidArgument);
    let own = world.records().await[0].header().host;
    assert_ne!(own, HostId::default());
    let mut spoof = Host { id: own, ..Host::new() };
    spoof.fill(1);
    let (mut ship, _) = Ship::open(&node, spoof.hello()).await.expect("welcome");
    ship.send(&spoof.records).await;
    assert_eq!(ship.ack().await.expect_err("refused").code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_sends_too_much_is_slowed_down_told_and_loses_nothing() {
    let mut world = World::stopped();
    world.edit_config("records_per_second = 100000", "records_per_second = 100");
    world.start();
    let (mut host, mut other) = (Host::new(), Host::new());
    host.fill(300);
    let (node, neighbour) = (world.node("node-box").await, world.node("box2").await);
    let start = std::time::Instant::now();
    host.ship(&node).await;
    assert!(start.elapsed() >= std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    // Others do not wait for it.
    let (mut slow, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    host.fill(1200);
    for batch in host.records[300..].chunks(1000) {
        slow.send(batch).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let start = std::time::Instant::now();
    other.fill(50);
    other.ship(&neighbour).await;
    assert!(start.elapsed() < std::time::Duration::from_secs(2), "{:?}", start.elapsed());
    // Another connection of the same node is told, and nothing of it is logged.
    let (mut more, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
    assert_eq!(welcome.next_seq, 300);
    more.send(&host.records[300..310]).await;
    let told = more.ack().await.expect_err("told");
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("node.records_per_second = 100"), "{}", told.message());
    // The first one is taken when it is paid for.
    assert_eq!(slow.ack().await.expect("acknowledged").next_seq, 1300);
}
