//! Each damage to a copied folder is found and named. Folders are real ones, made by the store.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;
use crate::record::Kind;
use crate::signer::KeyFile;
use crate::store::Store;
use crate::testing::{Host, Log, two_hosts};

/// A body that starts so names a blob or erases it; digest follows.
const NAMES: &[u8] = b"names";
const ERASES: &[u8] = b"erase";
const BLOB_MAX: u64 = 1000;

fn said(record: &Record) -> Option<Said> {
    let (word, id) = record.body().split_at_checked(NAMES.len())?;
    let id = id.try_into().ok()?;
    match word {
        word if word == NAMES => Some(Said::Names(id)),
        word if word == ERASES => Some(Said::Erases(id)),
        _ => None,
    }
}

fn id(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

fn blob_path(content: &[u8]) -> String {
    let name = hex::encode(id(content));
    format!("blobs/{}/{name}", &name[..2])
}

/// 300 published entries of two hosts, then of a third: `kept` and `erased` are named, `erased` is erased, five
/// entries are admitted and not published.
struct Copy {
    log: Log,
}

impl Copy {
    fn new() -> Self {
        let (mut host, mut records) = (Host::new(3), two_hosts(297));
        let body = |word: &[u8], content: &[u8]| [word, &id(content)].concat();
        records.push(host.next_of(Kind::EXEC, &body(NAMES, b"kept")));
        records.push(host.next_of(Kind::EXEC, &body(NAMES, b"erased")));
        records.push(host.next_of(Kind::EXEC, &body(ERASES, b"erased")));
        let skey = KeyFile::generate("guard.test/log").unwrap().skey().to_string();
        let log = Log::of(&skey, &[&records[..100], &records[100..200], &records[200..280], &records[280..]]);
        let (store, _) = Store::open(log.options(), log.signer()).unwrap();
        store.append((0..5).map(|_| host.next()).collect()).unwrap().wait().unwrap();
        store.close();
        let copy = Self { log };
        copy.write(&blob_path(b"kept"), b"kept");
        fs::copy(copy.log.options().lock, copy.at("lock")).unwrap();
        copy
    }

    fn at(&self, name: &str) -> PathBuf {
        self.log.options().dir.join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        let _ = fs::remove_file(self.at(name));
        fs::write(self.at(name), bytes).unwrap();
    }

    /// Changes a file and leaves its mode.
    fn change(&self, name: &str, call: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.at(name)).unwrap();
        let mode = fs::metadata(self.at(name)).unwrap().permissions();
        call(&mut bytes);
        self.write(name, &bytes);
        fs::set_permissions(self.at(name), mode).unwrap();
    }

    fn audit_with(&self, key: Option<&Verifier>) -> DirReport {
        let options = DirOptions { key, admin: None, previous: None, lock: None, blobs: Blobs { max: BLOB_MAX, said } };
        LogDir::open(&self.log.options().dir).unwrap().audit(&options)
    }

    fn audit(&self) -> DirReport {
        self.audit_with(Some(&self.log.signer().verifier()))
    }
}

fn state(report: &DirReport, part: Part) -> State {
    report.parts.iter().find(|found| found.part == part).unwrap().state
}

fn said_of(report: &DirReport) -> Vec<String> {
    report.findings.iter().map(Finding::to_string).collect()
}

/// Names, bytes and modes of everything below.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>, u32)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        if path.is_dir() && !path.is_symlink() {
            all.extend(content(&path));
        } else if path.is_file() && fs::metadata(&path).unwrap().len() < 1 << 30 {
            all.push((path.clone(), fs::read(&path).unwrap(), mode));
        }
    }
    all.sort();
    all
}

#[test]
fn a_folder_that_is_right_is_verified_in_every_part_and_left_as_it_is() {
    let copy = Copy::new();
    let before = content(copy.log.dir.path());
    let report = copy.audit();
    assert!(report.findings.is_empty(), "{:#?}", said_of(&report));
    for part in &report.parts {
        let absent = [Part::History, Part::Cosignatures].contains(&part.part);
        let expected = if absent { State::Absent } else { State::Verified };
        assert_eq!(part.state, expected, "{part:?}");
    }
    assert_eq!((report.entries, report.unpublished, report.hosts.len()), (300, 5, 3));
    assert_eq!(report.hosts[2].next_seq, 8, "entries past the checkpoint continue their host's chain");
    assert_eq!(content(copy.log.dir.path()), before);
}

#[test]
fn an_exported_log_is_known_by_its_form_and_lacks_nothing() {
    let copy = Copy::new();
    let key = copy.log.signer().verifier();
    let options = DirOptions {
        key: Some(&key),
        admin: None,
        previous: Some(copy.log.head()),
        lock: None,
        blobs: Blobs { max: BLOB_MAX, said },
    };
    let report = LogDir::open(&copy.at("log")).unwrap().audit(&options);
    assert!(report.findings.is_empty(), "{:#?}", said_of(&report));
    assert_eq!((report.form, report.entries), (Form::Exported, 300));
    for part in [Part::Lock, Part::Segments, Part::Blobs, Part::Modes] {
        assert_eq!(state(&report, part), State::Absent, "{part:?}");
    }
    assert_eq!(state(&report, Part::History), State::Verified);
}

#[test]
fn without_a_key_the_signature_alone_is_not_checked() {
    let report = Copy::new().audit_with(None);
    assert_eq!(said_of(&report), ["no_key: checkpoint: signature not checked: no key given"]);
    assert_eq!(state(&report, Part::Checkpoint), State::Unchecked);
    assert_eq!((state(&report, Part::Root), report.entries), (State::Verified, 300));
}

type Hurt = fn(&Copy);

/// What was done, the part that has to say so, the start of a finding that has to name it.
const ROWS: &[(&str, Part, &str, Hurt)] = &[
    ("flipped byte in a bundle", Part::Entries, "changed_entry: tile/entries/000, leaf 255: ", |copy| {
        copy.change("log/tile/entries/000", |bytes| *bytes.last_mut().unwrap() ^= 1);
    }),
    ("flipped byte in a tile", Part::Tiles, "wrong_tile: tile/0/000: ", |copy| {
        copy.change("log/tile/0/000", |bytes| bytes[40] ^= 1);
    }),
    ("flipped byte in a tile of level 1", Part::Tiles, "wrong_tile: tile/1/000.p/1: ", |copy| {
        copy.change("log/tile/1/000.p/1", |bytes| bytes[3] ^= 1);
    }),
    ("flipped byte in a superseded partial tile", Part::Tiles, "wrong_partial: log/tile/0/001.p/1: ", |copy| {
        let tile = fs::read(copy.at("log/tile/0/001.p/44")).unwrap();
        copy.write("log/tile/0/001.p/1", &tile[1..33]);
    }),
    ("truncated checkpoint", Part::Checkpoint, "malformed_checkpoint: checkpoint: ", |copy| {
        copy.change("log/checkpoint", |bytes| bytes.truncate(60));
    }),
    ("missing checkpoint", Part::Checkpoint, "missing_checkpoint: checkpoint: ", |copy| {
        fs::remove_file(copy.at("log/checkpoint")).unwrap();
    }),
    (
        "older checkpoint",
        Part::Lock,
        "lock_ahead: lock: it says that 300 entries were published, the checkpoint has 200",
        older,
    ),
    ("older checkpoint, by its files", Part::Files, "beyond_checkpoint: log/tile/0/000: ", older),
    ("checkpoint of another key", Part::Checkpoint, "not_signed: checkpoint: ", |copy| {
        let other = KeyFile::generate("guard.test/log").unwrap();
        copy.write("log/checkpoint", copy.log.head().sign(&other).unwrap().as_bytes());
    }),
    ("checkpoint of a size without end", Part::Entries, "missing_entries: tile/entries/", |copy| {
        let head = Checkpoint { size: 1 << 62, ..copy.log.head() };
        copy.write("log/checkpoint", head.sign(&copy.log.signer()).unwrap().as_bytes());
    }),
    ("tile replaced by a link", Part::Files, "not_a_file: log/tile/0/000: it is a symbolic link", |copy| {
        fs::rename(copy.at("log/tile/0/000"), copy.log.dir.path().join("elsewhere")).unwrap();
        symlink(copy.log.dir.path().join("elsewhere"), copy.at("log/tile/0/000")).unwrap();
    }),
    (
        "folder of tiles replaced by a link",
        Part::Files,
        "not_a_file: log/tile/entries: it is a symbolic link",
        |copy| {
            fs::rename(copy.at("log/tile/entries"), copy.log.dir.path().join("elsewhere")).unwrap();
            symlink(copy.log.dir.path().join("elsewhere"), copy.at("log/tile/entries")).unwrap();
        },
    ),
    ("extra file", Part::Files, "stray_file: log/tile/0/notes.txt: ", |copy| copy.write("log/tile/0/notes.txt", b"x")),
    ("extra file at the top", Part::Files, "stray_file: id_ed25519: ", |copy| copy.write("id_ed25519", b"x")),
    ("extra folder", Part::Files, "stray_file: wal/more: ", |copy| copy.write("wal/more/file", b"x")),
    ("a name that hides", Part::Files, "stray_file: log/tile/0/0000: ", |copy| copy.write("log/tile/0/0000", b"x")),
    ("writable full tile", Part::Modes, "writable: log/tile/entries/000: mode 0644: ", |copy| {
        fs::set_permissions(copy.at("log/tile/entries/000"), fs::Permissions::from_mode(0o644)).unwrap();
    }),
    ("missing bundle", Part::Entries, "missing_entries: tile/entries/000: ", |copy| {
        fs::remove_file(copy.at("log/tile/entries/000")).unwrap();
    }),
    ("missing tile", Part::Tiles, "missing_tile: tile/0/000: ", |copy| {
        fs::remove_file(copy.at("log/tile/0/000")).unwrap();
    }),
    ("partial tile of another width", Part::Tiles, "wrong_tile: tile/0/001.p/44: ", |copy| {
        copy.change("log/tile/0/001.p/44", |bytes| bytes.truncate(43 * 32));
    }),
    (
        "segment of another host's chain",
        Part::Chains,
        "gap: leaf 300, host 04040404040404040404040404040404, ",
        |copy| {
            let mut host = Host::new(4);
            host.seq = 7;
            unpublished(copy, &host.next());
        },
    ),
    (
        "segment with a broken chain",
        Part::Chains,
        "chain_break: leaf 300, host 03030303030303030303030303030303, ",
        |copy| {
            let mut host = Host::new(3);
            host.seq = 3;
            unpublished(copy, &host.next());
        },
    ),
    ("segment of another log", Part::Segments, "segment_differs: wal/00000000000000000000.wal, leaf 0: ", |copy| {
        let other = Log::of(&copy.log.skey, &[&[Host::new(8).next()], &two_hosts(305)]);
        let segment = fs::read(other.options().dir.join("wal/00000000000000000000.wal")).unwrap();
        copy.write("wal/00000000000000000000.wal", &segment);
    }),
    ("flipped byte in a segment", Part::Segments, "segment_damaged: wal/00000000000000000000.wal, byte 0: ", |copy| {
        copy.change("wal/00000000000000000000.wal", |bytes| bytes[100] ^= 1);
    }),
    ("missing segment", Part::Segments, "segments_short: wal: there are none", |copy| {
        fs::remove_file(copy.at("wal/00000000000000000000.wal")).unwrap();
    }),
    ("segment cut short of the checkpoint", Part::Segments, "segments_short: wal: they end at leaf 200, ", |copy| {
        let segment = copy.at("wal/00000000000000000000.wal");
        let scan = crate::frame::scan(&fs::read(&segment).unwrap());
        let (at, length) = scan.frames[1];
        fs::File::options().write(true).open(segment).unwrap().set_len((at + length) as u64).unwrap();
    }),
    ("blob changed", Part::Blobs, "changed_blob: blobs/79/79f076ab", |copy| {
        copy.write(&blob_path(b"kept"), b"other");
    }),
    ("blob missing", Part::Blobs, "missing_blob: leaf 297: blob 79f076ab", |copy| {
        fs::remove_file(copy.at(&blob_path(b"kept"))).unwrap();
    }),
    ("all blobs missing", Part::Blobs, "missing_blob: leaf 297: blob 79f076ab", |copy| {
        fs::remove_dir_all(copy.at("blobs")).unwrap();
    }),
    ("blob stray", Part::Blobs, "stray_blob: blobs/", |copy| copy.write(&blob_path(b"stray"), b"stray")),
    ("blob kept though erased", Part::Blobs, "erased_blob_kept: blobs/", |copy| {
        copy.write(&blob_path(b"erased"), b"erased");
    }),
    ("blob under a wrong folder", Part::Files, "stray_file: blobs/00/79f076ab", |copy| {
        copy.write(&blob_path(b"kept").replace("blobs/79", "blobs/00"), b"kept");
    }),
    ("huge bundle", Part::Files, "too_large: log/tile/entries/000: it has 1099511627776 bytes", |copy| {
        huge(&copy.at("log/tile/entries/000"));
    }),
    ("huge checkpoint", Part::Checkpoint, "unread_checkpoint: checkpoint: it has 1099511627776 bytes", |copy| {
        huge(&copy.at("log/checkpoint"));
    }),
    ("huge segment", Part::Segments, "segment_damaged: wal/00000000000000000000.wal, byte 0: ", |copy| {
        huge(&copy.at("wal/00000000000000000000.wal"));
    }),
    ("huge blob", Part::Files, "too_large: blobs/79/79f076ab", |copy| huge(&copy.at(&blob_path(b"kept")))),
    ("cosigned checkpoint of another root", Part::Cosignatures, "cosigned_differs: cosigned: ", |copy| {
        cosign(copy, &Checkpoint { size: 100, root: [1; 32], ..copy.log.head() }, &copy.log.signer());
    }),
    ("cosigned checkpoint ahead of the log", Part::Cosignatures, "cosigned_ahead: cosigned: ", |copy| {
        cosign(copy, &Checkpoint { size: 301, ..copy.log.head() }, &copy.log.signer());
    }),
    ("cosigned checkpoint of another key", Part::Cosignatures, "cosigned_not_signed: cosigned: ", |copy| {
        cosign(copy, &copy.log.head(), &KeyFile::generate("guard.test/log").unwrap());
    }),
    ("cosigned checkpoint cut short", Part::Cosignatures, "malformed_cosigned: cosigned: ", |copy| {
        copy.write("log/cosigned", b"guard.test/log\n3");
    }),
    ("lock of another log", Part::Lock, "other_lock: lock: ", |copy| {
        let head = Checkpoint { origin: "elsewhere.test/log".into(), ..copy.log.head() };
        copy.write("lock", head.text().as_bytes());
    }),
    ("lock with another root", Part::Lock, "lock_differs: lock: ", |copy| {
        copy.write("lock", Checkpoint { root: [1; 32], ..copy.log.head() }.text().as_bytes());
    }),
    ("lock put back", Part::Lock, "lock_behind: lock: ", |copy| {
        copy.write("lock", Checkpoint { size: 200, ..copy.log.head() }.text().as_bytes());
    }),
    ("lock that says more than is there", Part::Lock, "lock_ahead: lock: ", |copy| {
        copy.write("lock", Checkpoint { size: 999, ..copy.log.head() }.text().as_bytes());
    }),
];

fn cosign(copy: &Copy, head: &Checkpoint, signer: &KeyFile) {
    copy.write("log/cosigned", head.sign(signer).unwrap().as_bytes());
}

fn older(copy: &Copy) {
    let old = Log::of(&copy.log.skey, &[&two_hosts(200)]);
    copy.write("log/checkpoint", &fs::read(old.file(CHECKPOINT)).unwrap());
}

/// Puts a record in the place of those that are not published.
fn unpublished(copy: &Copy, record: &Record) {
    let path = copy.at("wal/00000000000000000000.wal");
    let scan = crate::frame::scan(&fs::read(&path).unwrap());
    let (last, _) = *scan.frames.last().unwrap();
    let mut payload = 300_u64.to_le_bytes().to_vec();
    payload.extend(1_u32.to_le_bytes());
    payload.extend((record.bytes().len() as u16).to_le_bytes());
    payload.extend(record.bytes().iter());
    let mut frame = Vec::new();
    crate::frame::put(&mut frame, &payload);
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len((last - crate::frame::HEAD) as u64).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    file.write_all(&frame).unwrap();
}

fn huge(path: &Path) {
    let _ = fs::remove_file(path);
    fs::File::create(path).unwrap().set_len(1 << 40).unwrap();
}

#[test]
fn every_damage_is_found_and_named_and_nothing_is_changed() {
    for (damage, part, expected, hurt) in ROWS {
        let copy = Copy::new();
        hurt(&copy);
        let before = content(copy.log.dir.path());
        let report = copy.audit();
        let said = said_of(&report);
        assert!(said.iter().any(|said| said.starts_with(expected)), "{damage}: {said:#?}");
        let found = state(&report, *part);
        let expected = if *damage == "huge checkpoint" { State::Unchecked } else { State::Wrong };
        assert_eq!(found, expected, "{damage}: {said:#?}");
        assert_eq!(content(copy.log.dir.path()), before, "{damage}");
    }
}

#[test]
fn what_a_crash_leaves_is_information() {
    let copy = Copy::new();
    let segment = copy.at("wal/00000000000000000000.wal");
    let length = fs::metadata(&segment).unwrap().len();
    fs::File::options().write(true).open(&segment).unwrap().set_len(length - 3).unwrap();
    copy.write("log/tile/0/001.tmp", b"half");
    copy.write(&format!("{}.new", blob_path(b"kept")), b"half");
    let report = copy.audit();
    assert_eq!(report.count(Severity::Information), 3, "{:#?}", said_of(&report));
    assert_eq!((report.findings.len(), report.unpublished), (3, 0));
    assert_eq!(state(&report, Part::Segments), State::Verified);
}

#[test]
fn what_cannot_be_read_is_neither_missing_nor_verified() {
    let copy = Copy::new();
    fs::remove_file(copy.at("log/tile/entries/000")).unwrap();
    fs::create_dir(copy.at("log/tile/entries/000")).unwrap();
    let report = copy.audit();
    let said = said_of(&report);
    assert!(said.iter().any(|said| said.starts_with("unread_entries: tile/entries/000: ")), "{said:#?}");
    assert!(!said.iter().any(|said| said.starts_with("missing_entries")), "{said:#?}");
    for part in [Part::Entries, Part::Chains] {
        assert_eq!(state(&report, part), State::Unchecked, "{part:?}");
    }
    // Which blobs those entries name is not known, so none is a stray.
    copy.write(&blob_path(b"stray"), b"stray");
    assert_eq!(state(&copy.audit(), Part::Blobs), State::Unchecked);
}

#[test]
fn a_folder_without_a_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(LogDir::open(dir.path()).unwrap_err().to_string().starts_with("no log is there"));
    symlink("/etc", dir.path().join("log")).unwrap();
    assert!(LogDir::open(dir.path()).unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn a_cosigned_checkpoint_of_any_size_is_compared_with_the_tree() {
    let copy = Copy::new();
    for size in [0, 99, 256, 300] {
        let old = Log::of(&copy.log.skey, &[&two_hosts(297)[..size.min(297)]]);
        let head = if size == 300 { copy.log.head() } else { old.head() };
        cosign(&copy, &head, &copy.log.signer());
        let report = copy.audit();
        assert!(report.findings.is_empty(), "{size}: {:#?}", said_of(&report));
        assert_eq!((report.cosigned.as_ref(), state(&report, Part::Cosignatures)), (Some(&head), State::Verified));
    }
}

#[test]
fn an_edge_tile_that_cannot_be_read_leaves_the_entries_verified() {
    let copy = Copy::new();
    fs::remove_file(copy.at("log/tile/1/000.p/1")).unwrap();
    fs::create_dir(copy.at("log/tile/1/000.p/1")).unwrap();
    let report = copy.audit();
    for (part, expected) in
        [(Part::Tiles, State::Unchecked), (Part::Entries, State::Verified), (Part::Root, State::Verified)]
    {
        assert_eq!(state(&report, part), expected, "{part:?}: {:#?}", said_of(&report));
    }
}

#[test]
fn segments_that_cannot_be_read_are_not_called_missing() {
    let copy = Copy::new();
    fs::rename(copy.at("wal"), copy.log.dir.path().join("elsewhere")).unwrap();
    symlink(copy.log.dir.path().join("elsewhere"), copy.at("wal")).unwrap();
    let report = copy.audit();
    assert_eq!(state(&report, Part::Segments), State::Unchecked, "{:#?}", said_of(&report));
    assert!(said_of(&report).iter().any(|said| said.starts_with("not_a_file: wal: ")));
}

#[test]
fn any_changed_byte_of_any_file_is_told() {
    let copy = Copy::new();
    let files: Vec<_> =
        content(&copy.log.options().dir).into_iter().filter(|(_, bytes, _)| !bytes.is_empty()).collect();
    assert!(files.len() > 10, "{}", files.len());
    for (path, bytes, mode) in files {
        let name = path.strip_prefix(copy.log.options().dir).unwrap().display().to_string();
        for place in (0..bytes.len()).step_by(1 + bytes.len() / 7).chain([bytes.len() - 1]) {
            copy.change(&name, |bytes| bytes[place] ^= 4);
            let report = copy.audit();
            let told = report.count(Severity::Error) + report.count(Severity::Unchecked);
            assert!(told > 0, "{name}, byte {place} of {}, mode {mode:o}", bytes.len());
            copy.change(&name, |changed| changed.clone_from(&bytes));
        }
    }
    assert!(copy.audit().findings.is_empty());
}
