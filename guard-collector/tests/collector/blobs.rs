//! What records keep outside the log: it comes with its record, survives, and can be erased while the log stays whole.

use guard_log::record::Kind;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use prost::Message;
use sha2::{Digest, Sha256};
use tonic::Code;

use crate::host::{Host, Ship};
use crate::world::World;

fn blob() -> Vec<u8> {
    Blob { salt: vec![7; 32], argv: vec![b"x".repeat(100_000)], secrets: vec![] }.encode_to_vec()
}

/// A host whose last record names a blob.
fn host(blob: &[u8]) -> Host {
    let mut host = Host::new();
    host.start_session();
    let facts = ExecFacts { blob_sha256: Sha256::digest(blob).to_vec(), ..ExecFacts::default() };
    let exec = Exec { identity: Some(host.identity()), facts: Some(facts), ..Exec::default() };
    host.append(host.session, Body::Exec(exec));
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_comes_with_its_record_and_is_erased_only_on_the_record() {
    let mut world = World::new();
    let (node, content) = (world.node("node-box").await, blob());
    let host = host(&content);
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    ship.send_with(&host.records, vec![content.clone()]).await;
    ship.acked(2).await.expect("acknowledged");
    drop(ship);
    world.kill();
    world.start();
    let mut admin = world.control("admin").await;
    let sha256 = Sha256::digest(&content).to_vec();
    let get = GetBlobRequest { sha256: sha256.clone() };
    assert_eq!(admin.get_blob(get.clone()).await.expect("blob").into_inner().content, content);

    let erase = EraseBlobRequest { sha256: sha256.clone(), reason: "asked for by the customer".into() };
    let refused = world.control("vera").await.erase_blob(erase.clone()).await.expect_err("a viewer erases nothing");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let silent = EraseBlobRequest { reason: String::new(), ..erase.clone() };
    assert_eq!(admin.erase_blob(silent).await.expect_err("no reason").code(), Code::InvalidArgument);
    let leaf = admin.erase_blob(erase.clone()).await.expect("erased").into_inner().leaf;
    assert_eq!(admin.get_blob(get).await.expect_err("erased").code(), Code::NotFound);
    assert_eq!(admin.erase_blob(erase).await.expect_err("erased").code(), Code::NotFound);
    let records = world.records().await;
    assert_eq!(records[usize::try_from(leaf).unwrap()].header().kind, Kind(35));
    assert_eq!(records.iter().filter(|r| r.header().kind == Kind(35)).count(), 1);
    world.stop();
    assert!(world.audit().is_ok(), "{:?}", world.audit().findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_no_record_names_is_refused() {
    let world = World::new();
    let (node, content) = (world.node("node-box").await, blob());
    let host = host(&content);
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    ship.send_with(&host.records, vec![content, b"another".to_vec()]).await;
    let refused = ship.acked(2).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("no record of its batch names it"), "{refused}");
}
