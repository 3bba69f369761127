//! What a host needs to hold the log to its word: each checkpoint with the proof that it continues the last one.

use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::proof::Receipt;
use guard_log::tree::{self, Hash};
use guard_proto::v1::{ProveRequest, ShipHello, ShipWelcome};

use crate::host::{Host, Ship};
use crate::world::World;

/// The checkpoint, if the proof shows that it continues `before`.
fn continues(before: &Checkpoint, note: &[u8], proof: &[Vec<u8>], key: &Verifier) -> Checkpoint {
    let head = Checkpoint::open(note, key).expect("a signed checkpoint");
    let hashes: Vec<Hash> = proof.iter().map(|h| h.as_slice().try_into().expect("32 bytes")).collect();
    tree::verify_consistency(before.size, head.size, &hashes, &before.root, &head.root).expect("consistent");
    head
}

fn opened(welcome: &ShipWelcome) -> (Verifier, Checkpoint) {
    let key = Verifier::parse(&welcome.log_vkey).expect("the log's key");
    let head = Checkpoint::open(&welcome.checkpoint, &key).expect("a signed checkpoint");
    (key, head)
}

/// Receipts that the collector makes hold without it; none of what is not public.
async fn proved(world: &World, head: &Checkpoint, key: &Verifier) {
    let mut control = world.control("admin").await;
    for leaf in [0, 255, 256, head.size - 1] {
        let proved = control.prove(ProveRequest { leaf }).await.expect("a receipt").into_inner();
        let receipt = Receipt::parse(&proved.receipt).expect("tlog-proof");
        assert_eq!(receipt.index, leaf);
        receipt.verify(&proved.record, key).expect("holds");
        receipt.verify(b"another record", key).expect_err("holds for its record only");
    }
    let beyond = control.prove(ProveRequest { leaf: 1 << 40 }).await.expect_err("not public");
    assert_eq!(beyond.code(), tonic::Code::OutOfRange, "{beyond}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_new_checkpoint_comes_with_its_proof_also_to_a_host_that_comes_again() {
    let mut world = World::new();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(700);
    let (mut ship, welcome) = Ship::open(&node, host.hello()).await.expect("welcome");
    let (key, first) = opened(&welcome);
    let (mut last, mut heads) = (first.clone(), 0);
    for batch in host.records.chunks(100) {
        ship.send(batch).await;
        let ack = ship.ack().await.expect("ack");
        if !ack.checkpoint.is_empty() {
            last = continues(&last, &ack.checkpoint, &ack.consistency, &key);
            heads += 1;
        }
        // Longer than the collector takes to publish.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    assert!(heads >= 2 && last.size > first.size, "{heads} checkpoints, the last of size {}", last.size);
    proved(&world, &last, &key).await;
    drop(ship);
    world.kill();
    world.start();
    let again = world.node("node-box").await;
    let hello = ShipHello { checkpoint_size: last.size, ..host.hello() };
    let (_ship, welcome) = Ship::open(&again, hello).await.expect("welcome");
    continues(&last, &welcome.checkpoint, &welcome.consistency, &key);
    // A host that has seen more than this log ever showed gets the checkpoint, and no proof of anything.
    let hello = ShipHello { checkpoint_size: last.size + 1_000_000, ..host.hello() };
    let (_ship, welcome) = Ship::open(&again, hello).await.expect("welcome");
    assert!(opened(&welcome).1.size < last.size + 1_000_000 && welcome.consistency.is_empty());
}
