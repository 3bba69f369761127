//! Proofs over trees of any size up to 2^62, right and changed: what we take, `tlog_tiles` takes, and the other way round.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests do"
)]

use guard_log::tree::{
    Hash, ProofError, consistency_proof, inclusion_proof, leaf_hash, node_hash, root, verify_consistency,
    verify_inclusion,
};
use proptest::prelude::*;
use tlog_tiles::tlog as theirs;

/// A tree whose leaves are all the same but a few, so that any node of it can be had.
struct Tree {
    size: u64,
    special: Vec<u64>,
    /// Roots of perfect subtrees without a special leaf, by level.
    plain: Vec<Hash>,
}

impl Tree {
    fn new(size: u64, special: Vec<u64>) -> Self {
        let mut plain = vec![leaf_hash(b"plain")];
        for level in 0..63 {
            plain.push(node_hash(&plain[level], &plain[level]));
        }
        Self { size, special, plain }
    }

    fn leaf(&self, index: u64) -> Hash {
        if self.special.contains(&index) { leaf_hash(&index.to_le_bytes()) } else { self.plain[0] }
    }

    fn node(&self, level: u32, index: u64) -> Hash {
        if !self.special.iter().any(|leaf| leaf >> level == index) {
            return self.plain[level as usize];
        }
        match level {
            0 => self.leaf(index),
            _ => node_hash(&self.node(level - 1, index * 2), &self.node(level - 1, index * 2 + 1)),
        }
    }

    fn root(&self, size: u64) -> Hash {
        root(size, &mut |level, index| Ok::<_, ProofError>(self.node(level, index))).unwrap()
    }

    fn inclusion(&self, index: u64) -> Vec<Hash> {
        inclusion_proof(index, self.size, &mut |level, at| Ok::<_, ProofError>(self.node(level, at))).unwrap()
    }

    fn consistency(&self, old: u64) -> Vec<Hash> {
        consistency_proof(old, self.size, &mut |level, at| Ok::<_, ProofError>(self.node(level, at))).unwrap()
    }
}

/// The proof itself, then with one hash changed, taken away, doubled, or two exchanged.
fn mutations(proof: &[Hash]) -> Vec<Vec<Hash>> {
    let mut all = vec![proof.to_vec(), [proof, &[[7; 32]]].concat(), [&[[7; 32]], proof].concat()];
    for place in 0..proof.len() {
        let mut changed = proof.to_vec();
        changed[place][9] ^= 4;
        all.push(changed);
        let mut less = proof.to_vec();
        less.remove(place);
        all.push(less);
        let mut more = proof.to_vec();
        more.insert(place, proof[place]);
        all.push(more);
        let mut exchanged = proof.to_vec();
        exchanged.swap(place, 0);
        all.push(exchanged);
    }
    all
}

fn list(proof: &[Hash]) -> Vec<theirs::Hash> {
    proof.iter().map(|hash| theirs::Hash(*hash)).collect()
}

/// Numbers around one, and of it those that make no overflow.
fn around(number: u64) -> impl Iterator<Item = u64> {
    [Some(number), number.checked_sub(1), number.checked_add(1), Some(number ^ 2)].into_iter().flatten()
}

/// A size of any magnitude.
fn sizes() -> impl Strategy<Value = u64> {
    (1_u64..1 << 62, 0_u32..62).prop_map(|(number, shift)| (number >> shift).max(1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn inclusion_is_the_same_to_both(size in sizes(), index in any::<u64>(), other in any::<u64>()) {
        let (index, other) = (index % size, other % size);
        let tree = Tree::new(size, vec![index, other]);
        let (leaf, head, proof) = (tree.leaf(index), tree.root(size), tree.inclusion(index));
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &head).is_ok());
        for changed in mutations(&proof) {
            for (index, size) in around(index).map(|i| (i, size)).chain(around(size).map(|s| (index, s))) {
                let ours = verify_inclusion(&leaf, index, size, &changed, &head).is_ok();
                let root = theirs::Hash(head);
                let same = theirs::check_record(&list(&changed), size, root, index, theirs::Hash(leaf)).is_ok();
                prop_assert_eq!(ours, same, "leaf {} of {} with {} hashes", index, size, changed.len());
            }
        }
    }

    #[test]
    fn consistency_is_the_same_to_both(size in sizes(), old in any::<u64>(), other in any::<u64>()) {
        let old = old % size + 1;
        let tree = Tree::new(size, vec![old - 1, other % size]);
        let (older, head, proof) = (tree.root(old), tree.root(size), tree.consistency(old));
        prop_assert!(verify_consistency(old, size, &proof, &older, &head).is_ok());
        for changed in mutations(&proof) {
            // Of nothing, which the other implementation does not ask about, everything is a continuation.
            let olds = around(old).filter(|old| *old > 0).map(|old| (old, size));
            for (old, size) in olds.chain(around(size).map(|size| (old, size))) {
                for (older, head) in [(&older, &head), (&head, &older)] {
                    let ours = verify_consistency(old, size, &changed, older, head).is_ok();
                    let (root, before) = (theirs::Hash(*head), theirs::Hash(*older));
                    let same = theirs::check_tree(&list(&changed), size, root, old, before).is_ok();
                    prop_assert_eq!(ours, same, "{} to {} with {} hashes", old, size, changed.len());
                }
            }
        }
    }
}
