//! What witnesses are sent (`tlog-witness`), receipts (`tlog-proof`) and the policy of the specification (`tlog-policy`).

use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::policy::Policy;
use guard_log::proof::{Growth, Receipt};

use crate::data::{bytes, json, list, string, vkey};

/// Requests of the tests of `torchwood`'s witness, each signed by a log of its own.
#[test]
fn requests_that_a_witness_took_are_consistent_for_us_too() {
    let all = json("witness/add-checkpoint.json");
    let mut seen: Vec<Checkpoint> = Vec::new();
    for request in list(&all["taken"]) {
        let growth = Growth::parse(string(request)).unwrap();
        assert_eq!(growth.to_string(), string(request));
        let origin = growth.note.lines().next().unwrap();
        let key = Verifier::parse(&vkey(origin, 1, &bytes(string(&all["logs"][origin])))).unwrap();
        let older = seen.iter().find(|head| head.origin == origin && head.size == growth.old);
        let older = older.cloned().unwrap_or_else(|| Checkpoint::empty(origin));
        let head = growth.verify(&older, &key).unwrap();
        let mut other = older.clone();
        other.root[5] ^= 1;
        assert!(older.size == 0 || growth.verify(&other, &key).is_err(), "{request}");
        seen.push(head);
    }
    assert_eq!(seen.iter().map(|head| head.size).collect::<Vec<_>>(), [1, 3, 5, 1]);
    for request in list(&all["refused"]) {
        assert!(Growth::parse(string(request)).is_err());
    }
}

#[test]
fn what_is_no_proof_for_the_reference_is_none() {
    let all = json("proofs/not-proofs.json");
    for text in list(&all) {
        assert!(Receipt::parse(string(text)).is_err(), "{text}");
    }
    assert_eq!(list(&all).len(), 7);
}

#[test]
fn the_policy_of_the_specification_is_read() {
    let all = json("c2sp/examples.json");
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(string(&all["policy"]).lines()) {
        let algorithm = if line.starts_with("log") { 1 } else { 4 };
        // Any 32 bytes of a point: the compressed base point, and its multiples by signing keys.
        let seed = [number; 32];
        let key = ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key();
        lines.push(line.replace("<vkey>", &vkey(&format!("key.test/{number}"), algorithm, key.as_bytes())));
    }
    let policy = Policy::parse(format!("{}\n", lines.join("\n")).as_bytes()).unwrap();
    let names: Vec<&str> = policy.witnesses().iter().map(|witness| witness.name.as_str()).collect();
    assert_eq!(names, ["X1", "X2", "X3", "Y1", "Y2", "Y3"]);
    assert!(policy.log("key.test/1").is_some());
}
