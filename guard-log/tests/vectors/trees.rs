//! Roots and proofs of RFC 6962: the tree of eight leaves that implementations share, a CT log of a thousand million leaves, and
//! Sigsum's right and wrong proofs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_log::tree::{Frontier, Hash, empty_root, leaf_hash, verify_consistency, verify_inclusion};

use crate::data::{bytes, hash, hash64, hashes64, json, list, number, string};

fn hashes(value: &serde_json::Value) -> Vec<Hash> {
    list(value).iter().map(|text| hash(string(text))).collect()
}

#[test]
fn the_eight_leaves_of_the_reference_have_its_roots() {
    let all = json("rfc6962/trees.json");
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), empty_root());
    for (leaf, root) in list(&all["leaves"]).iter().zip(hashes(&all["roots"])) {
        frontier.push(leaf_hash(&bytes(string(leaf))));
        assert_eq!(frontier.root(), root);
    }
}

#[test]
fn the_proofs_of_the_reference_hold_and_no_other() {
    let all = json("rfc6962/trees.json");
    let (roots, leaves) = (hashes(&all["roots"]), list(&all["leaves"]));
    let mut held = 0;
    for case in list(&all["inclusion"]).iter().filter(|case| number(&case["size"]) > 0) {
        let (index, size, proof) = (number(&case["leaf_from_1"]) - 1, number(&case["size"]), hashes(&case["proof"]));
        let leaf = leaf_hash(&bytes(string(&leaves[index as usize])));
        let root = roots[size as usize - 1];
        let check = |leaf: &Hash, index, size, proof: &[Hash], root| verify_inclusion(leaf, index, size, proof, root);
        check(&leaf, index, size, &proof, &root).unwrap();
        for wrong in mutations(&proof) {
            assert!(check(&leaf, index, size, &wrong, &root).is_err(), "leaf {index} of {size}: {wrong:?}");
        }
        // Another place for it, where the proof could have the same length.
        let elsewhere = (0..9).filter(|at| *at != index);
        assert!(elsewhere.into_iter().all(|at| check(&leaf, at, size, &proof, &root).is_err()));
        assert!(check(&leaf, index, size, &proof, &empty_root()).is_err());
        held += 1;
    }
    for case in list(&all["consistency"]) {
        let (old, size, proof) = (number(&case["size1"]), number(&case["size2"]), hashes(&case["proof"]));
        let (older, root) = (roots[old as usize - 1], roots[size as usize - 1]);
        verify_consistency(old, size, &proof, &older, &root).unwrap();
        for wrong in mutations(&proof) {
            assert!(verify_consistency(old, size, &wrong, &older, &root).is_err(), "{old} to {size}: {wrong:?}");
        }
        assert!(verify_consistency(old, size, &proof, &empty_root(), &root).is_err());
        assert!(verify_consistency(old, size, &proof, &older, &empty_root()).is_err());
        held += 1;
    }
    assert_eq!(held, 10);
}

/// One more hash before or after, one less, each one changed.
fn mutations(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let extra = [[7; 32]];
    let mut all = vec![[proof, &extra].concat(), [&extra, proof].concat()];
    if !proof.is_empty() {
        all.extend([proof[1..].to_vec(), proof[..proof.len() - 1].to_vec()]);
    }
    for place in 0..proof.len() {
        let mut changed = proof.to_vec();
        changed[place][31] ^= 16;
        all.push(changed);
    }
    all
}

#[test]
fn proofs_of_a_log_of_a_thousand_million_certificates_hold() {
    let head = json("argon2020/sth.json");
    let (size, root) = (number(&head["tree_size"]), hash64(&head["sha256_root_hash"]));
    assert_eq!(size, 961_984_013);
    let leaf = STANDARD.decode(string(&json("argon2020/entries.json")["entries"][0]["leaf_input"])).unwrap();
    let proof = json("argon2020/proof.json");
    let (index, hashes) = (number(&proof["leaf_index"]), hashes64(&proof["audit_path"]));
    verify_inclusion(&leaf_hash(&leaf), index, size, &hashes, &root).unwrap();
    assert!(verify_inclusion(&leaf_hash(&leaf), index + 1, size, &hashes, &root).is_err());
    assert!(verify_inclusion(&leaf_hash(&leaf[1..]), index, size, &hashes, &root).is_err());
    // As the test that comes with the files says.
    let (old, older) = (3_654_490, hash64(&"AuIZ5V6sDUj1vn3Y1K85oOaQ7y+FJJKtyRTl1edIKBQ=".into()));
    let hashes = hashes64(&json("argon2020/consistency.json")["consistency"]);
    verify_consistency(old, size, &hashes, &older, &root).unwrap();
    assert!(verify_consistency(old + 1, size, &hashes, &older, &root).is_err());
    assert!(verify_consistency(old, size, &hashes, &root, &older).is_err());
}

#[test]
fn sigsum_and_we_agree_on_what_is_included() {
    for (file, holds, count) in [("sigsum/inclusion-valid.json", true, 4), ("sigsum/inclusion-invalid.json", false, 4)]
    {
        let cases = json(file);
        assert!(list(&cases).len() >= count, "{file}: {}", list(&cases).len());
        for case in list(&cases) {
            let path = hashes64(&case["inclusion_path"]);
            let (index, size) = (number(&case["leaf_index"]), number(&case["tree_size"]));
            let done = verify_inclusion(&hash64(&case["leaf_hash"]), index, size, &path, &hash64(&case["root_hash"]));
            assert_eq!(done.is_ok(), holds, "{case}");
        }
    }
}
