//! What is revoked ends at once, everywhere, and stays so.

use std::time::{Duration, Instant};

use guard_collector::body::parse;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use tonic::{Code, Status};

use crate::enrolment::{ask, enrol, files, token};
use crate::host::{Host, Ship};
use crate::world::{World, command};

/// Longest time from the command to the end of a stream.
const SOON: Duration = Duration::from_secs(5);

fn revoke(world: &World, target: &str) -> String {
    let config = world.config();
    let args = ["revoke", target, "--reason", "a test", "--config", config.to_str().expect("UTF-8")];
    let done = command(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8")
}

fn assert_revoked(status: &Status) {
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(status.message().contains("is revoked, by record"), "{status:?}");
}

async fn last<T: std::fmt::Debug>(stream: &mut tonic::Streaming<T>) -> Status {
    let end = async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a status"),
                Err(status) => return status,
            }
        }
    };
    tokio::time::timeout(SOON, end).await.expect("in time")
}

async fn revocations(world: &World) -> Vec<CertificateRevoked> {
    let of = |r: &guard_log::record::Record| match parse(r) {
        Some(Body::CertificateRevoked(revoked)) => Some(revoked),
        _ => None,
    };
    world.records().await.iter().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_cut_and_refused_also_after_a_restart() {
    let mut world = World::enrolling(3600);
    enrol(&world, "box7").await;
    let early = token(&world, "box7", "1h");
    let mut host = Host::new();
    host.fill(3);
    let mut client = world.node("box7").await;
    let (mut ship, _) = Ship::open(&client, host.hello()).await.expect("welcome");
    ship.send(&host.records).await;
    ship.acked(3).await.expect("acknowledged");
    let decisions = DecisionsRequest { host: host.id.0.to_vec() };
    let mut decisions = client.decisions(decisions).await.expect("listens").into_inner();
    // Of another node, which goes on.
    let mut other = Host::new();
    other.fill(1);
    let (mut goes_on, _) = Ship::open(&world.node("box2").await, other.hello()).await.expect("welcome");

    let begun = Instant::now();
    let said = revoke(&world, "box7");
    assert!(said.contains("every certificate of box7") && said.contains("by record"), "{said}");
    assert_revoked(&last(&mut ship.replies).await);
    assert_revoked(&last(&mut decisions).await);
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
    println!("revoked and cut in {took:?}");
    // What it still sends is not logged.
    host.fill(1);
    ship.send(&host.records[3..]).await;
    let report = NodeReport { host: host.id.0.to_vec(), ..NodeReport::default() };
    assert_revoked(&client.report(report.clone()).await.expect_err("refused"));
    assert_revoked(&client.renew(RenewRequest::default()).await.expect_err("refused"));
    assert_revoked(&Ship::open(&client, host.hello()).await.err().expect("refused"));
    goes_on.send(&other.records).await;
    goes_on.acked(1).await.expect("acknowledged");

    world.kill();
    world.start();
    let mut client = world.node("box7").await;
    assert_revoked(&client.report(report.clone()).await.expect_err("refused"));
    let csr = files(&world, "box7").request(false).expect("request");
    let refused = ask(&world, &early, csr).await.expect_err("made before");
    assert!(refused.contains("was revoked after the token was made"), "{refused}");
    // Whoever enrols it again means it.
    enrol(&world, "box7").await;
    world.node("box7").await.report(report).await.expect("taken");
    let logged = world.records().await.iter().filter(|r| r.header().host == host.id).count();
    assert_eq!(logged, 3);
    let [revoked] = &revocations(&world).await[..] else { panic!() };
    assert_eq!((revoked.name.as_str(), revoked.serial.as_str(), revoked.reason.as_str()), ("box7", "", "a test"));
    assert!(revoked.by.contains("uid "), "{}", revoked.by);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_are_cut_by_an_admin_and_by_serial() {
    let mut world = World::enrolling(3600);
    world.client("carl", "viewer");
    let end = Instant::now() + SOON;
    let (mut admin, mut vera) = (world.control("admin").await, world.control("vera").await);
    let wanted = ListCertificatesRequest { name: "carl".into() };
    let serial = loop {
        let found = admin.list_certificates(wanted.clone()).await.expect("listed").into_inner().certificates;
        if let [one] = found.as_slice() {
            assert_eq!((one.role.as_str(), one.revoked), ("viewer", false));
            break one.serial.clone();
        }
        assert!(Instant::now() < end, "a command's certificate is put on record");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let request = |target: &str| RevokeCertificateRequest { target: target.into(), reason: "left".into() };
    for name in ["vera", "bob", "node-box"] {
        let refused = world.control(name).await.revoke_certificate(request("carl")).await.expect_err("refused");
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}");
    }
    let made = CreateJoinTokenRequest { name: "box9".into(), ttl_seconds: 60 };
    assert_eq!(vera.create_join_token(made.clone()).await.expect_err("refused").code(), Code::PermissionDenied);
    let made = admin.create_join_token(made).await.expect("made").into_inner();
    let csr = files(&world, "box9").request(false).expect("request");
    ask(&world, &made.token, csr).await.expect("enrolled");

    let mut carl = world.control("carl").await;
    let mut tail =
        carl.tail(TailRequest { from_now: true, ..TailRequest::default() }).await.expect("tail").into_inner();
    let begun = Instant::now();
    admin.revoke_certificate(request(&serial.to_uppercase())).await.expect("revoked");
    assert_revoked(&last(&mut tail).await);
    println!("revoked and cut in {:?}", begun.elapsed());
    assert_revoked(&carl.who_am_i(WhoAmIRequest {}).await.expect_err("refused"));
    vera.who_am_i(WhoAmIRequest {}).await.expect("others go on");
    // A certificate that was never put on record, by its name; while no collector runs: before it serves.
    world.stop();
    let config = world.config();
    std::thread::scope(|s| {
        let said = s.spawn(|| command(&["revoke", "vera", "--config", config.to_str().expect("UTF-8")]));
        assert!(String::from_utf8_lossy(&said.join().expect("ran").stdout).contains("at the collector's next start"));
    });
    world.start();
    assert_revoked(&world.control("vera").await.who_am_i(WhoAmIRequest {}).await.expect_err("refused"));
    assert_revoked(&world.control("carl").await.who_am_i(WhoAmIRequest {}).await.expect_err("refused"));
    let bad = request("no such: name");
    let mut admin = world.control("admin").await;
    assert_eq!(admin.revoke_certificate(bad).await.expect_err("refused").code(), Code::InvalidArgument);
    assert_eq!(revocations(&world).await.iter().map(|r| r.by.starts_with("uid")).collect::<Vec<_>>(), [false, true]);
}
