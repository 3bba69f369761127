//! RFC 6962 trees: hashes, roots, and inclusion and consistency proofs. Pure; knows no files.
//!
//! It must not decide where nodes come from: proofs are made over a caller's reader of perfect subtrees. Fails: a proof
//! that does not verify is an error that says which of its parts is wrong, never a panic, whatever its numbers.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A node.
pub type Hash = [u8; 32];

/// Most hashes of a proof over 2^63 leaves, with room.
const PROOF_MAX: usize = 2 * 64;

/// Why a proof does not hold.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProofError {
    /// The numbers make no sense together.
    #[error("{what} {index} does not fit a tree of {size} leaves")]
    Range {
        /// Leaf or size.
        what: &'static str,
        /// Its value.
        index: u64,
        /// Size of the tree.
        size: u64,
    },
    /// Too few or too many hashes.
    #[error("a proof of {0} hashes has the wrong length")]
    Length(usize),
    /// The older root does not come out.
    #[error("the proof does not lead to the older root")]
    OldRoot,
    /// The root does not come out.
    #[error("the proof does not lead to the root")]
    Root,
}

/// Hash of a leaf's bytes.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Root of the tree without leaves.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Reads the root of the perfect subtree of 2^level leaves that starts at leaf `index << level`.
pub type ReadNode<'a, E> = dyn FnMut(u32, u64) -> Result<Hash, E> + 'a;

/// Root of a tree of `size` leaves.
pub fn root<E>(size: u64, read: &mut ReadNode<'_, E>) -> Result<Hash, E> {
    if size == 0 { Ok(empty_root()) } else { range(0, size, read) }
}

/// Root of leaves `from..to` as a subtree: perfect subtrees, folded from the right. Requires `from < to`.
fn range<E>(mut from: u64, to: u64, read: &mut ReadNode<'_, E>) -> Result<Hash, E> {
    let mut peaks = Vec::new();
    while from < to {
        let level = (to - from).ilog2();
        peaks.push(read(level, from >> level)?);
        from += 1 << level;
    }
    Ok(fold(&peaks))
}

/// Root over perfect subtrees, largest first; of none it is the empty tree's.
pub fn fold(peaks: &[Hash]) -> Hash {
    let mut rest = peaks.iter().rev();
    let Some(last) = rest.next() else { return empty_root() };
    rest.fold(*last, |right, left| node_hash(left, &right))
}

/// Largest power of two below `size`, for `size` > 1.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

/// Proof that leaf `index` is in the tree of `size` leaves.
pub fn inclusion_proof<E: From<ProofError>>(index: u64, size: u64, read: &mut ReadNode<'_, E>) -> Result<Vec<Hash>, E> {
    if index >= size {
        return Err(ProofError::Range { what: "leaf", index, size }.into());
    }
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to - from > 1 {
        let middle = from + split(to - from);
        if index < middle {
            proof.push(range(middle, to, read)?);
            to = middle;
        } else {
            proof.push(range(from, middle, read)?);
            from = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// Proof that the tree of `old` leaves is a prefix of the tree of `size` leaves.
pub fn consistency_proof<E: From<ProofError>>(old: u64, size: u64, read: &mut ReadNode<'_, E>) -> Result<Vec<Hash>, E> {
    if old > size {
        return Err(ProofError::Range { what: "older size", index: old, size }.into());
    }
    if old == 0 || old == size {
        return Ok(Vec::new());
    }
    let (mut from, mut to) = (0, size);
    let mut proof = Vec::new();
    while to != old {
        let middle = from + split(to - from);
        if old <= middle {
            proof.push(range(middle, to, read)?);
            to = middle;
        } else {
            proof.push(range(from, middle, read)?);
            from = middle;
        }
    }
    // The old tree itself is a node only if it is perfect from leaf 0; the verifier knows its root then.
    if from != 0 {
        proof.push(range(from, to, read)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks an inclusion proof (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range { what: "leaf", index, size });
    }
    if proof.len() > PROOF_MAX {
        return Err(ProofError::Length(proof.len()));
    }
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for other in proof {
        if last == 0 {
            return Err(ProofError::Length(proof.len()));
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(other, &hash);
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, other);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(ProofError::Length(proof.len())),
    }
}

/// Checks a consistency proof (RFC 9162, 2.1.4.2).
pub fn verify_consistency(old: u64, size: u64, proof: &[Hash], old_root: &Hash, root: &Hash) -> Result<(), ProofError> {
    if old > size {
        return Err(ProofError::Range { what: "older size", index: old, size });
    }
    if proof.len() > PROOF_MAX || ((old == 0 || old == size) != proof.is_empty()) {
        return Err(ProofError::Length(proof.len()));
    }
    if old == 0 {
        return if *old_root == empty_root() { Ok(()) } else { Err(ProofError::OldRoot) };
    }
    if old == size {
        return if old_root == root { Ok(()) } else { Err(ProofError::Root) };
    }
    walk_consistency(old, size, proof, old_root, root)
}

fn walk_consistency(old: u64, size: u64, proof: &[Hash], old_root: &Hash, root: &Hash) -> Result<(), ProofError> {
    let wrong_length = ProofError::Length(proof.len());
    let (first, rest) = match proof.split_first() {
        _ if old.is_power_of_two() => (*old_root, proof),
        Some((first, rest)) => (*first, rest),
        None => return Err(wrong_length),
    };
    let (mut place, mut last) = (old - 1, size - 1);
    while place & 1 == 1 {
        (place, last) = (place >> 1, last >> 1);
    }
    let (mut older, mut newer) = (first, first);
    for other in rest {
        if last == 0 {
            return Err(wrong_length);
        }
        if place & 1 == 1 || place == last {
            older = node_hash(other, &older);
            newer = node_hash(other, &newer);
            while place & 1 == 0 && place != 0 {
                (place, last) = (place >> 1, last >> 1);
            }
        } else {
            newer = node_hash(&newer, other);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    match (last == 0, older == *old_root, newer == *root) {
        (true, true, true) => Ok(()),
        (true, false, _) => Err(ProofError::OldRoot),
        (true, true, false) => Err(ProofError::Root),
        (false, ..) => Err(wrong_length),
    }
}

/// A tree that grows and remembers only its perfect subtrees, at most one of each height.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Adds a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        // Each trailing one of the size is a perfect subtree that this leaf completes into a larger one.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Its perfect subtrees, largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// Leaves so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over them.
    pub fn root(&self) -> Hash {
        fold(&self.peaks)
    }
}

#[cfg(test)]
mod tests {
    use ct_merkle::mem_backed_tree::MemoryBackedTree;
    use ct_merkle::{ConsistencyProof, InclusionProof, RootHash};
    use proptest::prelude::*;

    use super::*;

    /// Inputs and roots of the certificate-transparency reference tests.
    const LEAVES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    type Theirs = MemoryBackedTree<Sha256, [u8; 8]>;

    fn entry(index: u64) -> [u8; 8] {
        index.to_le_bytes()
    }

    /// Reads nodes of the tree whose leaves are [`entry`].
    fn node(level: u32, index: u64) -> Result<Hash, ProofError> {
        let first = index << level;
        Ok(match level {
            0 => leaf_hash(&entry(first)),
            _ => node_hash(&node(level - 1, index * 2)?, &node(level - 1, index * 2 + 1)?),
        })
    }

    fn ours(size: u64) -> Hash {
        root(size, &mut node).unwrap()
    }

    fn theirs(size: u64) -> Theirs {
        let mut tree = Theirs::new();
        (0..size).for_each(|index| tree.push(entry(index)));
        tree
    }

    #[test]
    fn roots_are_those_of_the_reference() {
        assert_eq!(hex::encode(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        let mut frontier = Frontier::default();
        for (leaf, root) in LEAVES.iter().zip(ROOTS) {
            frontier.push(leaf_hash(&hex::decode(leaf).unwrap()));
            assert_eq!(hex::encode(frontier.root()), root);
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        let root = ours(3);
        assert!(verify_inclusion(&root, 3, 3, &[], &root).is_err());
        assert!(verify_inclusion(&root, 0, 0, &[], &root).is_err());
        assert!(verify_inclusion(&root, u64::MAX - 1, u64::MAX, &[root; 100], &root).is_err());
        assert!(verify_inclusion(&root, 0, 3, &[root; 129], &root).is_err());
        assert!(verify_consistency(4, 3, &[], &root, &root).is_err());
        assert!(verify_consistency(0, 3, &[], &root, &root).is_err());
        assert!(verify_consistency(0, 3, &[], &empty_root(), &root).is_ok());
        assert!(verify_consistency(u64::MAX - 1, u64::MAX, &[root; 100], &root, &root).is_err());
        assert!(inclusion_proof::<ProofError>(3, 3, &mut node).is_err());
        assert!(consistency_proof::<ProofError>(4, 3, &mut node).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn another_implementation_agrees(size in 1_u64..300, index in any::<u64>(), old in any::<u64>()) {
            let (index, old) = (index % size, old % size + 1);
            let tree = theirs(size);
            let their_root = tree.root();
            prop_assert_eq!(their_root.as_bytes().as_slice(), ours(size));
            let inclusion = inclusion_proof::<ProofError>(index, size, &mut node).unwrap();
            let their_proof = tree.prove_inclusion(index as usize);
            prop_assert_eq!(their_proof.as_bytes(), inclusion.concat());
            let proof = InclusionProof::try_from_bytes(inclusion.concat()).unwrap();
            tree.root().verify_inclusion(&entry(index), index, &proof).unwrap();
            if old < size {
                let consistency = consistency_proof::<ProofError>(old, size, &mut node).unwrap();
                let their_proof = tree.prove_consistency((size - old) as usize);
                prop_assert_eq!(their_proof.as_bytes(), consistency.concat());
                let proof = ConsistencyProof::try_from_bytes(consistency.concat()).unwrap();
                tree.root().verify_consistency(&RootHash::new(ours(old).into(), old), &proof).unwrap();
            }
        }

        #[test]
        fn proofs_hold_and_changed_ones_do_not(
            size in 1_u64..300, index in any::<u64>(), old in any::<u64>(), bit in 0_usize..256, place in any::<usize>()
        ) {
            let (index, old) = (index % size, old % (size + 1));
            let (leaf, top, older) = (leaf_hash(&entry(index)), ours(size), ours(old));
            let flip = |hash: &Hash| { let mut h = *hash; h[bit / 8] ^= 1 << (bit % 8); h };
            let inclusion = inclusion_proof::<ProofError>(index, size, &mut node).unwrap();
            prop_assert_eq!(verify_inclusion(&leaf, index, size, &inclusion, &top), Ok(()));
            prop_assert!(verify_inclusion(&flip(&leaf), index, size, &inclusion, &top).is_err());
            prop_assert!(verify_inclusion(&leaf, index, size, &inclusion, &flip(&top)).is_err());
            let consistency = consistency_proof::<ProofError>(old, size, &mut node).unwrap();
            prop_assert_eq!(verify_consistency(old, size, &consistency, &older, &top), Ok(()));
            if old > 0 {
                prop_assert!(verify_consistency(old, size, &consistency, &flip(&older), &top).is_err());
                prop_assert!(verify_consistency(old, size, &consistency, &older, &flip(&top)).is_err());
            }
            for (proof, is_inclusion) in [(inclusion, true), (consistency, false)] {
                let check = |proof: &[Hash]| match is_inclusion {
                    true => verify_inclusion(&leaf, index, size, proof, &top),
                    false => verify_consistency(old, size, proof, &older, &top),
                };
                if proof.is_empty() {
                    continue;
                }
                let mut changed = proof.clone();
                let at = place % proof.len();
                changed[at] = flip(&changed[at]);
                prop_assert!(check(&changed).is_err());
                prop_assert!(check(&proof[1..]).is_err());
                prop_assert!(check(&[proof.as_slice(), &[top]].concat()).is_err());
            }
        }
    }
}
