//! A log that Tessera wrote, audited as ours are; names and widths of tiles as the specification counts them.

use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::proof::{Growth, Receipt};
use guard_log::tiles::{Level, Tile, decode_entries, decode_hashes};
use guard_log::tree::{Frontier, leaf_hash};
use guard_log::verify::{Folder, Source};

use crate::data::{json, list, number, path, string, text};

const WORDS: [&str; 15] = [
    "one", "two", "three", "four", "five", "six", "seven", "eit", "nain", "ten", "ileven", "twelf", "threeten",
    "fourten", "fivten",
];

fn key() -> Verifier {
    Verifier::parse(text("tessera/log.vkey").trim()).unwrap()
}

fn head(size: u64) -> Checkpoint {
    Checkpoint::open(text(&format!("tessera/checkpoint.{size}")).as_bytes(), &key()).unwrap()
}

#[test]
fn every_size_of_a_log_of_tessera_has_the_root_that_it_signed() {
    let mut frontier = Frontier::default();
    assert_eq!(head(0), Checkpoint::empty(key().name()));
    for size in 1..=15 {
        frontier.push(leaf_hash(WORDS[size as usize - 1].as_bytes()));
        assert_eq!(head(size), Checkpoint { origin: key().name().to_owned(), size, root: frontier.root() });
        let bundle = std::fs::read(path(&format!("tessera/tile/entries/000.p/{size}"))).unwrap();
        let entries = decode_entries(&bundle, size as u16).unwrap();
        assert_eq!(entries, WORDS[..size as usize].iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
        let tile = std::fs::read(path(&format!("tessera/tile/0/000.p/{size}"))).unwrap();
        let hashes = decode_hashes(&tile, size as u16).unwrap();
        assert_eq!(hashes, entries.iter().map(|entry| leaf_hash(entry)).collect::<Vec<_>>());
    }
}

#[test]
fn receipts_and_growth_are_made_from_tiles_of_tessera() {
    let source = Folder::open(&path("tessera")).unwrap();
    let note = String::from_utf8(source.fetch("checkpoint").unwrap().unwrap()).unwrap();
    for leaf in 0..15 {
        let (receipt, entry) = Receipt::make(&source, &key(), leaf).unwrap();
        assert_eq!(entry, WORDS[leaf as usize].as_bytes());
        let read = Receipt::parse(&receipt.to_string()).unwrap();
        assert_eq!(read.verify(&entry, &key()).unwrap(), head(15));
        assert!(read.verify(b"other", &key()).is_err());
    }
    for old in 0..=15 {
        let growth = Growth::make(&source, 15, old, &note, &head(15)).unwrap();
        assert_eq!(growth.verify(&head(old), &key()).unwrap(), head(15));
        let mut rewritten = head(old);
        rewritten.root[0] ^= 1;
        assert!(old == 0 || growth.verify(&rewritten, &key()).is_err(), "from {old}");
    }
}

#[test]
fn tiles_are_named_and_counted_as_the_specification_says() {
    let all = json("c2sp/examples.json");
    let index = number(&all["tile"]["index"]);
    let tile = Tile { level: Level::Hashes(0), index, width: 256 };
    assert_eq!(tile.to_string(), format!("tile/0/{}", string(&all["tile"]["path"])));
    assert_eq!(tile.to_string().parse(), Ok(tile));
    for tree in [&all["tree"], &all["tree_256"]] {
        let size = number(&tree["size"]);
        for (level, row) in list(&tree["tiles"]).iter().enumerate() {
            let at = |index| Tile::at(Level::Hashes(level as u8), index, size).map(|tile| u64::from(tile.width));
            let (full, partial) = (number(&row["full"]), number(&row["partial"]));
            assert!((0..full).all(|index| at(index) == Some(256)), "{row}");
            assert_eq!(at(full), (partial > 0).then_some(partial), "{row}");
            assert_eq!(at(full + 1), None);
        }
        let above = list(&tree["tiles"]).len() as u8;
        assert_eq!(Tile::at(Level::Hashes(above), 0, size), None);
    }
}
