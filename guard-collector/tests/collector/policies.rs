//! Policy bundles: taken from an administrator with the admin key's signature, recorded, handed to hosts that are behind.

use std::time::Duration;

use guard_bundle::{Bundle, Stage};
use guard_log::record::Kind;
use guard_log::signer::KeyFile;
use guard_proto::v1::*;
use tonic::Code;

use crate::host::{Host, Ship};
use crate::world::{NodeClient, World};

fn bundle(serial: u64, key: &KeyFile) -> PolicyBundle {
    let files = vec![("policy/team.yaml".to_owned(), "version: 1\n".to_owned())];
    let stages = vec![("*".to_owned(), Stage::Enforce)];
    Bundle::sign(serial, 1, stages, files, key).expect("signed").bytes().clone()
}

fn publish(bundle: PolicyBundle) -> PublishPolicyRequest {
    PublishPolicyRequest { bundle: Some(bundle) }
}

async fn stream(node: &mut NodeClient, host: &Host, serial: u64) -> tonic::Streaming<PolicyBundle> {
    let asked = PoliciesRequest { host: host.hello().host.clone(), serial };
    node.policies(asked).await.expect("a stream").into_inner()
}

async fn next(stream: &mut tonic::Streaming<PolicyBundle>) -> PolicyBundle {
    let next = tokio::time::timeout(Duration::from_secs(10), stream.message()).await.expect("in time");
    next.expect("no error").expect("not ended")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_needs_the_admin_key_and_reaches_the_hosts_that_are_behind() {
    let mut world = World::new();
    let admin = KeyFile::read(&world.path("c/admin.skey")).expect("admin key");
    let (mut node, host) = (world.node("node-box").await, Host::new());
    drop(Ship::open(&node, host.hello()).await.expect("bound"));
    let mut waiting = stream(&mut node, &host, 0).await;
    let mut control = world.control("admin").await;
    assert_eq!(control.get_policy(GetPolicyRequest {}).await.expect_err("none yet").code(), Code::NotFound);

    // Nobody but an administrator, and nothing but what the admin key signed: a stolen collector has another.
    let refused = world.control("bob").await.publish_policy(publish(bundle(5, &admin))).await.expect_err("a reviewer");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let other = KeyFile::generate(admin.name()).expect("key");
    let refused = control.publish_policy(publish(bundle(5, &other))).await.expect_err("another key");
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("manifest"), "{refused}");
    let mut changed = bundle(5, &admin);
    changed.files[0].content.push(b' ');
    let refused = control.publish_policy(publish(changed)).await.expect_err("changed");
    assert!(refused.message().contains("not the one that was signed"), "{refused}");

    let reply = control.publish_policy(publish(bundle(5, &admin))).await.expect("published").into_inner();
    assert_eq!(next(&mut waiting).await, bundle(5, &admin));
    let refused = control.publish_policy(publish(bundle(5, &admin))).await.expect_err("again");
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("serial 5"), "{refused}");
    control.publish_policy(publish(bundle(6, &admin))).await.expect("published");
    assert_eq!(next(&mut waiting).await, bundle(6, &admin));
    // What a host learns with each report: by it the age of its roles is counted.
    let report = NodeReport { host: host.hello().host.clone(), ..NodeReport::default() };
    assert_eq!(node.report(report).await.expect("taken").into_inner().bundle_serial, Some(6));

    // It outlives the collector; a host that has it gets nothing, one that is behind does.
    world.kill();
    world.start();
    let mut node = world.node("node-box").await;
    assert_eq!(next(&mut stream(&mut node, &host, 5).await).await, bundle(6, &admin));
    let mut current = stream(&mut node, &host, 6).await;
    assert!(tokio::time::timeout(Duration::from_millis(300), current.message()).await.is_err(), "nothing is newer");
    let newest = world.control("vera").await.get_policy(GetPolicyRequest {}).await.expect("newest").into_inner();
    assert_eq!(newest, bundle(6, &admin));
    let records = world.records().await;
    let published: Vec<_> = records.iter().filter(|r| r.header().kind == Kind(41)).collect();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0].bytes(), records[usize::try_from(reply.leaf).expect("fits")].bytes());
}
