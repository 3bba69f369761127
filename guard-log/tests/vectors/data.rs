//! The files, unchanged since they were taken, and their values.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_log::tree::Hash;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../third_party/vectors").join(name)
}

pub fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap()
}

pub fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

pub fn hash64(value: &Value) -> Hash {
    STANDARD.decode(string(value)).unwrap().try_into().unwrap()
}

pub fn hashes64(value: &Value) -> Vec<Hash> {
    list(value).iter().map(hash64).collect()
}

pub fn bytes(hexadecimal: &str) -> Vec<u8> {
    hex::decode(hexadecimal).unwrap()
}

pub fn hash(hexadecimal: &str) -> Hash {
    bytes(hexadecimal).try_into().unwrap()
}

/// A public key as the text of notes: algorithm 1 signs notes, 4 cosigns checkpoints.
pub fn vkey(name: &str, algorithm: u8, key: &[u8]) -> String {
    let data = [&[algorithm], key].concat();
    format!("{name}+{}+{}", hex::encode(key_id(name, algorithm, key)), STANDARD.encode(data))
}

pub fn key_id(name: &str, algorithm: u8, key: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest([name.as_bytes(), b"\n", &[algorithm], key].concat());
    digest[..4].try_into().unwrap()
}

#[test]
fn the_files_are_those_that_were_taken() {
    let sums = text("SHA256SUMS");
    for line in sums.lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let digest = Sha256::digest(std::fs::read(path(name)).unwrap());
        assert_eq!(hex::encode(digest), sum, "{name}");
    }
    assert_eq!(sums.lines().count(), 62);
}
