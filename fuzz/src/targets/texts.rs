//! Parsers that hold nothing but the bytes.

use guard_log::checkpoint::Checkpoint;
use guard_log::cosignature::Cosigner;
use guard_log::frame;
use guard_log::note::{Verifier, open_lines};
use guard_log::policy::Policy;
use guard_log::proof::{Growth, Receipt, RecordId};
use guard_log::pruned::Pruned;
use guard_log::record::{HEADER_LEN, Record};
use guard_log::signer::KeyFile;
use guard_log::tiles::{self, Tile};

use super::seeds;

pub fn frames(data: &[u8]) {
    let found = frame::scan(data);
    assert!(found.good <= data.len());
    let mut again = Vec::new();
    for (at, length) in &found.frames {
        frame::put(&mut again, &data[*at..at + length]);
    }
    assert_eq!(again, data[..found.good]);
    assert!(!found.damaged_middle || found.good < data.len());
}

pub fn records(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(id) = text.parse::<RecordId>()
    {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    let Ok(record) = Record::parse(data.to_vec()) else { return };
    assert_eq!(record.bytes(), data);
    let header = record.header();
    let whole = record.body().len() + HEADER_LEN == data.len() && header.version == 1 && data[3] == 0;
    if whole {
        assert_eq!(Record::seal(&header, record.body()).expect("it was one"), record);
    }
    let _ = Pruned::of(header.seq, &record);
}

/// Every note in one spelling: its text, and each line from what was read of it.
pub fn notes(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok((signed, lines)) = open_lines(text) else { return };
    assert!(text.starts_with(signed) && !lines.is_empty());
    let cosigner = Cosigner::parse(&seeds::witness_vkey()).expect("a key");
    for line in &lines {
        let _ = cosigner.check(signed, line);
    }
    if let Ok(opened) = seeds::signer().verifier().open(text) {
        assert_eq!(opened, signed);
    }
}

pub fn keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(key) = Verifier::parse(text) {
        assert_eq!(Verifier::parse(&key.vkey()), Ok(key));
    }
    if let Ok(key) = KeyFile::from_skey(text) {
        assert_eq!(KeyFile::from_skey(&key.skey()).expect("it was one").vkey(), key.vkey());
    }
    let _ = Cosigner::parse(text);
}

pub fn checkpoints(data: &[u8]) {
    let _ = Checkpoint::open(data, &seeds::signer().verifier());
    let _ = Checkpoint::open_unsigned(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(head) = Checkpoint::parse(text) {
        assert!(text.starts_with(&head.text()), "{head:?}");
        assert_eq!(Checkpoint::parse(&head.text()), Ok(head));
    }
}

pub fn receipts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(receipt) = Receipt::parse(text) else { return };
    assert_eq!(receipt.to_string(), text);
    let _ = receipt.verify(b"entry", &seeds::signer().verifier());
}

pub fn growths(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(growth) = Growth::parse(text) else { return };
    assert_eq!(growth.to_string(), text);
    let key = seeds::signer().verifier();
    let older = Checkpoint { origin: key.name().to_owned(), size: growth.old, root: [3; 32] };
    let _ = growth.verify(&older, &key);
}

pub fn policies(data: &[u8]) {
    let Ok(policy) = Policy::parse(data) else { return };
    let Ok(cosigned) = policy.open(seeds::cosigned_note().as_bytes()) else { return };
    assert_eq!(cosigned.by.len() + cosigned.missing.len(), policy.witnesses().len());
}

/// The first byte says as what the rest is read, the second how wide.
pub fn tiles(data: &[u8]) {
    let Some(([what, width], rest)) = data.split_first_chunk::<2>() else { return };
    let width = u16::from(*width) + 1;
    match what % 3 {
        0 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            if let Ok(tile) = text.parse::<Tile>() {
                assert_eq!(tile.to_string(), text);
                let _ = tile.partials();
            }
        }
        1 => {
            let (entries, problem) = tiles::split_entries(rest, width);
            let mut again = Vec::new();
            for entry in &entries {
                tiles::put_entry(&mut again, entry).expect("it was one");
            }
            assert!(rest.starts_with(&again));
            assert_eq!(problem.is_none(), entries.len() == usize::from(width) && again == rest);
        }
        _ => {
            if let Ok(hashes) = tiles::decode_hashes(rest, width) {
                assert_eq!(tiles::encode_hashes(&hashes), rest);
                let _ = (tiles::subtree(&hashes), tiles::peaks(&hashes));
            }
        }
    }
}

pub fn pruned(data: &[u8]) {
    let Ok((pruned, receipt)) = Pruned::parse(data) else { return };
    assert!(pruned.previous < pruned.first && pruned.first <= pruned.leaf);
    assert_eq!(receipt.index, pruned.leaf);
}
