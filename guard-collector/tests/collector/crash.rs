//! SIGKILL and a full disk at any point: what was acknowledged is there, and nothing is there twice.

use std::collections::BTreeMap;
use std::time::Duration;

use guard_log::record::Kind;
use guard_proto::v1::*;
use tonic::Code;

use crate::host::{Host, Ship};
use crate::world::World;

/// Each number of the host once, in order, with the very bytes.
async fn assert_whole(world: &World, host: &Host) {
    let logged: Vec<_> = world.records().await.into_iter().filter(|r| r.header().host == host.id).collect();
    assert_eq!(logged.len(), host.records.len());
    assert_eq!(logged, host.records);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_append_and_acknowledgement_nothing_is_lost_or_doubled() {
    let mut world = World::new();
    let mut host = Host::new();
    host.fill(40);
    let node = world.node("node-box").await;
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    ship.send(&host.records).await;
    // It is durable, and nobody has read the acknowledgement.
    let mut admin = world.control("admin").await;
    while admin.status(StatusRequest {}).await.expect("status").into_inner().log_size < 42 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.kill();
    drop((ship, node));
    world.start();
    let node = world.node("node-box").await;
    let (mut ship, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
    assert_eq!(welcome.next_seq, 40);
    // A host that does not believe it sends everything again.
    ship.send(&host.records).await;
    assert_eq!(ship.ack().await.expect("ack").next_seq, 40);
    assert_whole(&world, &host).await;
}

/// Kills of a run; `cargo xtask soak` asks for hundreds.
fn kills() -> u64 {
    std::env::var("GUARD_COLLECTOR_KILLS").ok().map_or(24, |n| n.parse().expect("a number"))
}

/// Milliseconds up to a limit, another number each time.
fn moment(limit: u64) -> Duration {
    Duration::from_millis(u64::from(ulid::Ulid::generate().to_bytes()[15]) * limit / 256)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_while_shipping_the_log_stays_whole() {
    let mut world = World::new();
    let (mut host, mut acked, mut partly, mut starts) = (Host::new(), 0, 0, 1);
    for round in 0..kills() {
        host.fill(700);
        let node = world.node("node-box").await;
        let (mut ship, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
        assert!(welcome.next_seq >= acked, "{} were acknowledged, {} are there", acked, welcome.next_seq);
        let from = usize::try_from(welcome.next_seq).expect("number");
        let pid = world.pid();
        let killer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(3) + moment(120)).await;
            let _ = std::process::Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        });
        let mut sent = 0;
        for batch in host.records[from..].chunks(50) {
            ship.send(batch).await;
            sent += 1;
            if sent > 4 {
                match ship.ack().await {
                    Ok(ack) => acked = acked.max(ack.next_seq),
                    Err(_) => break,
                }
            }
        }
        partly += u32::from(acked < host.records.len() as u64);
        killer.await.expect("killed");
        world.kill();
        if round % 3 == 2 {
            // Once more, while it reads what the first kill left.
            world.start_and_kill(moment(60));
            starts += 1;
        }
        world.start();
        starts += 1;
    }
    assert!(partly > 0, "no kill came while records were on their way: the test shows nothing");
    host.ship(&world.node("node-box").await).await;
    assert_whole(&world, &host).await;
    let whats: BTreeMap<String, usize> = world.findings().await.into_iter().fold(BTreeMap::new(), |mut m, f| {
        *m.entry(f.0).or_default() += 1;
        m
    });
    assert_eq!(whats, BTreeMap::from([("bound".to_owned(), 1)]));
    let records = world.records().await;
    let recorded = records.iter().filter(|r| r.header().kind == Kind::COLLECTOR_START).count() as u64;
    assert!((kills() + 1..=starts).contains(&recorded), "{recorded} of {starts} starts");
    world.stop();
    let report = world.audit();
    assert!(report.is_ok(), "{:?}", report.findings);
    assert_eq!(report.entries, records.len() as u64);
    let of_host = report.hosts.iter().find(|h| h.host == host.id).expect("host");
    assert_eq!((of_host.first_seq, of_host.next_seq), (0, host.records.len() as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_nothing_is_unavailable_and_never_acknowledged() {
    let mut world = World::new();
    let mut host = Host::new();
    host.fill(5);
    host.ship(&world.node("node-box").await).await;
    // No file of this process may grow: what a full disk looks like to it.
    let pid = world.pid().to_string();
    let limited = std::process::Command::new("prlimit").args(["--pid", &pid, "--fsize=1000"]).status();
    assert!(limited.expect("prlimit").success());
    host.fill(5);
    let node = world.node("node-box").await;
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    ship.send(&host.records[5..]).await;
    assert_eq!(ship.ack().await.expect_err("not acknowledged").code(), Code::Unavailable);
    // Reading goes on; a greeting is not answered with what is not durable.
    let status = world.control("admin").await.status(StatusRequest {}).await.expect("status").into_inner();
    assert_eq!(status.log_size, 7);
    let next = Ship::open(&node, host.hello()).await.map(|(_, welcome)| welcome.next_seq);
    assert!(matches!(&next, Ok(5)) || next.is_err_and(|s| s.code() == Code::Unavailable));
    world.kill();
    world.start();
    host.ship(&world.node("node-box").await).await;
    assert_whole(&world, &host).await;
    world.stop();
    assert!(world.audit().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_collector_on_the_same_log_does_not_start() {
    let world = World::new();
    let second = crate::world::command(&["serve", "--config", world.config().to_str().expect("UTF-8")]);
    assert_eq!(second.status.code(), Some(70), "{}", String::from_utf8_lossy(&second.stderr));
}
