//! A proof of a Sigsum log in production: the log signs, and eight witnesses of others cosign, the very texts that C2SP specifies.
//! Sigsum writes them otherwise; put into the forms of a note, a receipt and a policy they have to hold.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_log::cosignature::Cosigner;
use guard_log::note::open_lines;
use guard_log::policy::Policy;
use guard_log::proof::Receipt;
use sha2::{Digest as _, Sha256};

use crate::data::{bytes, hash, key_id, text, vkey};

/// What was logged, and by whom.
const DATA: &[u8] = b"Hello, Sigsum!\n";

fn digest(data: &[u8]) -> Vec<u8> {
    Sha256::digest(data).to_vec()
}

/// Values of a `key=value` file, by key.
fn values(file: &str) -> HashMap<String, Vec<String>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    for (key, value) in text(file).lines().filter_map(|line| line.split_once('=')) {
        found.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    found
}

fn origin(key_hash: &str) -> String {
    format!("sigsum.org/v1/tree/{key_hash}")
}

/// Sigsum's policy with its keys in the form of notes.
fn policy() -> String {
    let line = |line: &str| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["log", key, url] => {
            let key = bytes(key);
            format!("log {} {url}", vkey(&origin(&hex::encode(digest(&key))), 1, &key))
        }
        ["witness", name, key] => format!("witness {name} {}", vkey(name, 4, &bytes(key))),
        _ => line.to_owned(),
    };
    text("sigsum/policy").lines().map(|l| line(l) + "\n").collect()
}

/// The signed and cosigned checkpoint, with the lines of the witnesses that `which` takes.
fn note(policy: &Policy, which: impl Fn(usize) -> bool) -> String {
    let proof = values("sigsum/hello.proof");
    let origin = origin(&proof["log"][0]);
    let root = STANDARD.encode(hash(&proof["root_hash"][0]));
    let mut note = format!("{origin}\n{}\n{root}\n\n", proof["size"][0]);
    let id = |name: &str, algorithm, key: &[u8]| key_id(name, algorithm, key);
    let log = policy.log(&origin).unwrap();
    let data = [id(&origin, 1, log.key_bytes()).to_vec(), bytes(&proof["signature"][0])].concat();
    note += &format!("\u{2014} {origin} {}\n", STANDARD.encode(data));
    for (place, cosignature) in proof["cosignature"].iter().enumerate().filter(|(place, _)| which(*place)) {
        let [key_hash, time, signature] = cosignature.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{cosignature}")
        };
        let of = |witness: &&guard_log::policy::PolicyWitness| hex::encode(digest(witness.key.key_bytes())) == key_hash;
        let (name, key) = match policy.witnesses().iter().find(of) {
            Some(witness) => (witness.key.name().to_owned(), *witness.key.key_bytes()),
            None => panic!("no witness {place} in the policy"),
        };
        let time = time.parse::<u64>().unwrap().to_be_bytes();
        let data = [id(&name, 4, &key).to_vec(), time.to_vec(), bytes(signature)].concat();
        note += &format!("\u{2014} {name} {}\n", STANDARD.encode(data));
    }
    note
}

#[test]
fn eight_witnesses_of_others_cosigned_it_and_fewer_are_counted() {
    let policy = Policy::parse(policy().as_bytes()).unwrap();
    let whole = note(&policy, |_| true);
    let cosigned = policy.open(whole.as_bytes()).unwrap();
    assert_eq!((cosigned.by.len(), cosigned.quorum, cosigned.checkpoint.size), (8, true, 381_382));
    assert!(cosigned.by.iter().all(|(_, time)| *time == 1_770_193_051));
    let none = policy.open(note(&policy, |_| false).as_bytes()).unwrap();
    assert_eq!((none.by.len(), none.quorum), (0, false));
    // Four of six are needed, of which one is two of three.
    let counts: Vec<bool> =
        (0..=8).map(|n| policy.open(note(&policy, |at| at < n).as_bytes()).unwrap().quorum).collect();
    assert!(!counts[3] && counts[7], "{counts:?}");
}

#[test]
fn a_cosignature_dated_otherwise_or_over_another_head_is_none() {
    let policy = Policy::parse(policy().as_bytes()).unwrap();
    let whole = note(&policy, |_| true);
    let (head, lines) = open_lines(&whole).unwrap();
    let mut checked = 0;
    for witness in policy.witnesses() {
        let key: &Cosigner = &witness.key;
        let line = lines.iter().find(|line| line.name == key.name()).unwrap();
        assert_eq!(key.check(head, line), Ok(Some(1_770_193_051)));
        let mut later = line.clone();
        later.signature[7] ^= 1;
        assert!(key.check(head, &later).is_err());
        assert!(key.check(&head.replace("381382", "381383"), line).is_err());
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn the_receipt_of_its_leaf_holds() {
    let policy = Policy::parse(policy().as_bytes()).unwrap();
    let proof = values("sigsum/hello.proof");
    let hashes: String = proof["node_hash"].iter().map(|h| format!("{}\n", STANDARD.encode(hash(h)))).collect();
    let note = note(&policy, |_| true);
    let file = format!("c2sp.org/tlog-proof@v1\nindex {}\n{hashes}\n{note}", proof["leaf_index"][0]);
    let receipt = Receipt::parse(&file).unwrap();
    assert_eq!(receipt.to_string(), file);
    // A leaf is the checksum of the message, which is the digest of the data, its signature, and the signer's key's digest.
    let (signer, signature) = proof["leaf"][0].split_once(' ').unwrap();
    let entry = [digest(&digest(DATA)), bytes(signature), bytes(signer)].concat();
    let log = policy.log(&origin(&proof["log"][0])).unwrap();
    assert_eq!(receipt.verify(&entry, log).unwrap().size, 381_382);
    let other = [digest(&digest(b"Hello, Sigsun!\n")), bytes(signature), bytes(signer)].concat();
    assert!(receipt.verify(&other, log).is_err());
}
