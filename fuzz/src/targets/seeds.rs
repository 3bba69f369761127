//! Real encodings, made by the code that writes them.

use ed25519_dalek::{Signer as _, SigningKey};
use guard_log::checkpoint::Checkpoint;
use guard_log::journal::Journal;
use guard_log::proof::{Growth, Receipt};
use guard_log::record::{Epoch, Header, Kind, Record, SessionId};
use guard_log::signer::KeyFile;
use guard_log::store::Store;
use guard_log::tiles::{encode_hashes, put_entry};
use guard_log::tree::leaf_hash;
use guard_log::verify::{Folder, Source};

use super::stored::{self, HOST};

/// The key of an example that everybody knows.
const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
/// A journal's life.
pub const EPOCH: &str = "07070707070707070707070707070707";

pub fn signer() -> KeyFile {
    KeyFile::from_skey(SKEY).expect("a key")
}

pub fn epoch() -> Epoch {
    EPOCH.parse().expect("an epoch")
}

fn record_of(seq: u64, prev: [u8; 32], kind: Kind, body: &[u8]) -> Record {
    let header = Header {
        version: 1,
        kind,
        host: HOST,
        epoch: epoch(),
        seq,
        prev,
        boot_ns: 5,
        wall_unix_ns: 6,
        session: SessionId::NONE,
    };
    Record::seal(&header, body).expect("a record")
}

pub fn record(seq: u64) -> Record {
    record_of(seq, [0; 32], Kind::EXEC, b"body")
}

/// A host's chain.
fn chain(count: u64) -> Vec<Record> {
    let mut prev = [0; 32];
    let next = |seq: u64| {
        let record = record_of(seq, prev, Kind::EXEC, format!("record {seq}").as_bytes());
        prev = record.digest();
        record
    };
    (0..count).map(next).collect()
}

pub fn records() -> Vec<Vec<u8>> {
    let id = format!("{HOST}/{EPOCH}/12").into_bytes();
    vec![record(7).bytes().to_vec(), prune_record().bytes().to_vec(), id]
}

/// Entries below 256 go, as a collector says it.
fn prune_record() -> Record {
    // Field 37: first = 256, previous = 0, policy.
    let inner = [[0x08, 0x80, 0x02].as_slice(), &[0x1a, 7], b"30 days"].concat();
    let body = [&[0xaa, 0x02, inner.len() as u8], inner.as_slice()].concat();
    record_of(300, [0; 32], Kind::ENTRIES_PRUNED, &body)
}

pub fn frames() -> Vec<Vec<u8>> {
    let mut all = journal_segments();
    let mut torn = all.concat();
    torn.truncate(torn.len() / 2);
    all.push(torn);
    all
}

const WITNESS: [u8; 32] = [5; 32];
const WITNESS_NAME: &str = "witness.test/one";

fn key_line(name: &str, algorithm: u8, key: &[u8], data: &[u8]) -> (String, String) {
    use std::fmt::Write as _;
    let digest = sha256(&[name.as_bytes(), b"\n", &[algorithm], key].concat());
    let id = digest.get(..4).expect("a digest");
    let mut hexadecimal = String::new();
    id.iter().for_each(|byte| write!(hexadecimal, "{byte:02x}").expect("written"));
    let vkey = format!("{name}+{hexadecimal}+{}", base64(&[&[algorithm], key].concat()));
    (vkey, format!("\u{2014} {name} {}\n", base64(&[id, data].concat())))
}

pub fn witness_vkey() -> String {
    let key = SigningKey::from_bytes(&WITNESS).verifying_key();
    key_line(WITNESS_NAME, 4, key.as_bytes(), &[]).0
}

fn head() -> Checkpoint {
    Checkpoint { origin: signer().name().to_owned(), size: 3, root: [3; 32] }
}

pub fn cosigned_note() -> String {
    let (head, time) = (head(), 1_700_000_000_u64);
    let key = SigningKey::from_bytes(&WITNESS);
    let signature = key.sign(format!("cosignature/v1\ntime {time}\n{}", head.text()).as_bytes());
    let data = [time.to_be_bytes().as_slice(), &signature.to_bytes()].concat();
    head.sign(&signer()).expect("signed") + &key_line(WITNESS_NAME, 4, key.verifying_key().as_bytes(), &data).1
}

pub fn notes() -> Vec<Vec<u8>> {
    let text = head().text().into_bytes();
    let empty = Checkpoint::empty("PeterNeumann").sign(&signer()).expect("signed");
    let prose = signer().note("text\n\nwith an empty line\n").expect("signed");
    vec![cosigned_note().into_bytes(), empty.into_bytes(), prose.into_bytes(), text]
}

pub fn keys() -> Vec<Vec<u8>> {
    vec![SKEY.as_bytes().to_vec(), signer().vkey().into_bytes(), witness_vkey().into_bytes()]
}

pub fn policies() -> Vec<Vec<u8>> {
    let (log, witness) = (signer().vkey(), witness_vkey());
    let groups = format!(
        "# comment\nlog {log} https://log.test/\nwitness w {witness} https://w.test\ngroup g any w\nquorum g\n"
    );
    vec![groups.into_bytes(), format!("log {log}\n\tquorum  none\n").into_bytes()]
}

/// A log of 300 records, and what is in its folder.
fn with_log<T>(read: impl FnOnce(&Folder) -> T) -> T {
    let dir = stored::folder();
    let options = stored::store_options(dir.path());
    Store::create(&options, &signer()).expect("made");
    let (store, _) = Store::open(options.clone(), signer()).expect("opened");
    store.append(chain(300)).expect("queued").wait().expect("durable");
    store.publish().expect("published");
    store.close();
    read(&Folder::open(&options.dir.join("log")).expect("opened"))
}

fn first_receipt() -> Receipt {
    with_log(|log| Receipt::make(log, &signer().verifier(), 7).expect("made").0)
}

pub fn receipts() -> Vec<Vec<u8>> {
    let receipt = first_receipt();
    let extra = Receipt { extra: Some(b"more".to_vec()), ..receipt.clone() };
    vec![receipt.to_string().into_bytes(), extra.to_string().into_bytes()]
}

pub fn growths() -> Vec<Vec<u8>> {
    with_log(|log| {
        let note = log.fetch("checkpoint").expect("read").expect("there");
        let note = String::from_utf8(note).expect("text");
        let head = Checkpoint::open(note.as_bytes(), &signer().verifier()).expect("signed");
        let of = |old| Growth::make(log, head.size, old, &note, &head).expect("made").to_string().into_bytes();
        vec![of(0), of(7), of(256), of(300)]
    })
}

pub fn pruned() -> Vec<Vec<u8>> {
    let receipt = Receipt { extra: Some(prune_record().bytes().to_vec()), index: 300, ..first_receipt() };
    vec![receipt.to_string().into_bytes()]
}

/// A bundle of a few entries, and the tile over them.
fn bundle(count: u64) -> (Vec<u8>, Vec<u8>) {
    let (mut bundle, mut hashes) = (Vec::new(), Vec::new());
    for record in chain(count) {
        put_entry(&mut bundle, record.bytes()).expect("it fits");
        hashes.push(leaf_hash(record.bytes()));
    }
    (bundle, encode_hashes(&hashes))
}

pub fn tiles() -> Vec<Vec<u8>> {
    let (bundle, tile) = bundle(3);
    let paths = ["tile/0/x001/x234/067", "tile/entries/000.p/112", "tile/7/000.p/1"];
    let mut all: Vec<Vec<u8>> = paths.iter().map(|path| [&[0, 0], path.as_bytes()].concat()).collect();
    all.extend([[&[1, 2], bundle.as_slice()].concat(), [&[2, 2], tile.as_slice()].concat()]);
    all
}

pub fn journal() -> Vec<Vec<u8>> {
    let acked = |acked: u8, segment: Vec<u8>| [&[acked], segment.as_slice()].concat();
    let segments = journal_segments();
    let all = segments.iter().cloned().map(|segment| acked(0, segment));
    all.chain(segments.last().cloned().map(|segment| acked(5, segment))).collect()
}

fn journal_segments() -> Vec<Vec<u8>> {
    let of = |count: u64| {
        let dir = stored::folder();
        std::fs::write(dir.path().join("epoch"), EPOCH).expect("written");
        let (journal, _) = Journal::open(stored::journal_options(dir.path()), HOST).expect("opened");
        for number in 0..count {
            journal.append(stored::entry(&format!("record {number}"))).expect("queued").wait().expect("durable");
        }
        journal.close();
        let bytes = std::fs::read(dir.path().join("00000000000000000000.seg")).expect("read");
        // The zeros after the last frame say nothing new.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 9);
        bytes.get(..end).unwrap_or(&bytes).to_vec()
    };
    vec![Vec::new(), of(1), of(5)]
}

pub fn segments() -> Vec<Vec<u8>> {
    let dir = stored::folder();
    let options = stored::store_options(dir.path());
    Store::create(&options, &signer()).expect("made");
    let (store, _) = Store::open(options.clone(), signer()).expect("opened");
    let records = chain(5);
    for group in records.chunks(2) {
        store.append(group.to_vec()).expect("queued").wait().expect("durable");
    }
    store.close();
    let bytes = std::fs::read(options.dir.join("wal/00000000000000000000.wal")).expect("read");
    vec![Vec::new(), bytes]
}

pub fn public() -> Vec<Vec<u8>> {
    let (bundle, tile) = bundle(4);
    let length = (bundle.len() as u16).to_le_bytes();
    let head = |fits: u8| [4, fits, length[0], length[1]];
    let mark = pruned().concat();
    vec![
        [head(1).as_slice(), &bundle].concat(),
        [head(0).as_slice(), &bundle, &tile].concat(),
        [head(3).as_slice(), &bundle, &mark].concat(),
    ]
}

/// The only digest that the seeds need; `guard-log` hashes leaves with a zero before them.
fn sha256(data: &[u8]) -> Vec<u8> {
    use sha2::Digest as _;
    sha2::Sha256::digest(data).to_vec()
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}
