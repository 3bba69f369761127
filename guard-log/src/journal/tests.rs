//! The journal against crashes, damage, floods and second daemons.

use super::frames::decode;
use super::writer::{FIRST_ZEROS, SPARE};
use super::*;

mod attacks;
mod keeping;

fn options(dir: &Path) -> JournalOptions {
    JournalOptions {
        dir: dir.to_path_buf(),
        segment_bytes: 2000,
        max_bytes: 1 << 20,
        reserve_bytes: 1000,
        session_percent: 100,
        keep: Duration::ZERO,
        require_real_disk: false,
    }
}

fn entry(text: &str) -> Entry {
    Entry { kind: Kind::EXEC, session: SessionId::NONE, boot_ns: 1, wall_unix_ns: 2, body: text.into() }
}

pub(super) fn open(dir: &Path) -> (Journal, OpenReport) {
    open_with(&options(dir))
}

fn open_with(options: &JournalOptions) -> (Journal, OpenReport) {
    // The writer of the journal before ends with its last handle's close, and its lock with it: that is waited for.
    Journal::open(options.clone(), HostId([9; 16])).unwrap()
}

pub(super) fn fill(journal: &Journal, count: usize) {
    for index in 0..count {
        journal.append(entry(&format!("record {index}"))).unwrap().wait().unwrap();
    }
}

#[test]
fn keeps_chain_and_numbers_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3_u64 {
        let (journal, report) = open(dir.path());
        assert_eq!(report.created, round == 0);
        assert_eq!(journal.state().next_seq, round * 30);
        fill(&journal, 30);
        journal.close();
    }
    let (journal, report) = open(dir.path());
    assert!(report.repairs.is_empty());
    let mut previous = [0; 32];
    let mut seq = 0;
    while seq < 90 {
        for record in journal.read(seq, 7, 10_000).unwrap() {
            assert_eq!((record.header().seq, record.header().prev), (seq, previous));
            previous = record.digest();
            seq += 1;
        }
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_length_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 3);
    journal.close();
    drop(journal);
    let path = segment_path(dir.path(), 0);
    std::thread::sleep(Duration::from_millis(50));
    let whole = std::fs::read(&path).unwrap();
    let two = frame::scan(&whole).frames[1];
    for cut in (two.0 + two.1 + 1)..whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let (journal, report) = open(dir.path());
        assert_eq!((report.repairs[0].what, journal.state().next_seq), ("torn_tail", 2));
        journal.close();
    }
}

#[test]
fn an_unsynced_batch_torn_in_its_middle_costs_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 3);
    let tickets: Vec<Ticket> = (0..8).map(|_| journal.append(entry("in a batch")).unwrap()).collect();
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    let epoch = journal.state().epoch;
    journal.close();
    drop(journal);
    std::thread::sleep(Duration::from_millis(50));
    let path = segment_path(dir.path(), 0);
    let mut bytes = std::fs::read(&path).unwrap();
    let frames = frame::scan(&bytes).frames;
    let last = *frames.last().unwrap();
    assert!(frames.len() < 11, "nothing was batched");
    let kept: u64 =
        frames[..frames.len() - 1].iter().map(|(a, n)| decode(&bytes[*a..a + n]).unwrap().len() as u64).sum();
    bytes[last.0 + 10] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!((report.repairs[0].what, journal.state().next_seq), ("torn_tail", kept));
    assert_eq!(journal.state().epoch, epoch);
}

#[test]
fn damage_in_the_middle_is_set_aside_and_a_new_epoch_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let epoch = journal.state().epoch;
    fill(&journal, 5);
    journal.close();
    drop(journal);
    std::thread::sleep(Duration::from_millis(50));
    let path = segment_path(dir.path(), 0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[60] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(report.repairs[0].what, "quarantined");
    assert_ne!(journal.state().epoch, epoch);
    assert_eq!(journal.state().next_seq, 0);
    fill(&journal, 1);
}

#[test]
fn who_waits_writes_and_takes_along_what_nobody_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let later = journal.append_later(entry("later"), Duration::from_secs(60)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let own = std::thread::current().id();
    journal.append_then(entry("now"), move |done| {
        sender.send((done.unwrap().seq, std::thread::current().id() == own)).unwrap();
    });
    let (seq, _) = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(seq, 1);
    assert!(journal.state().durable_next_seq == 2);
    assert_eq!(later.wait().unwrap().seq, 0);
    assert_eq!(journal.append_later(entry("alone"), Duration::from_millis(5)).unwrap().wait().unwrap().seq, 2);
}

#[test]
fn the_least_patient_record_says_when_all_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let patient = journal.append_later(entry("patient"), Duration::from_secs(600)).unwrap();
    // By now the journal's own thread may sleep until then.
    std::thread::sleep(Duration::from_millis(20));
    journal.append_later(entry("less"), Duration::from_millis(1)).unwrap();
    assert_eq!(patient.wait().unwrap().seq, 0);
    let patient = journal.append_later(entry("patient"), Duration::from_millis(1)).unwrap();
    assert_eq!(patient.wait().unwrap().seq, 2);
}

#[test]
fn every_call_back_comes_once_from_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let sender = sender.clone();
                    journal.append_then(entry("flood"), move |done| sender.send(done.unwrap().seq).unwrap());
                    journal.append_later(entry("outcome"), Duration::from_millis(5)).unwrap();
                }
            });
        }
    });
    drop(sender);
    let mut seen: Vec<u64> = receiver.iter().collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 200);
    journal.close();
    drop(journal);
    let (journal, report) = open(dir.path());
    assert!(report.repairs.is_empty());
    assert_eq!(journal.state().next_seq, 400);
}

#[test]
fn a_power_cut_leaves_zeros_or_a_torn_frame_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) =
        Journal::open(JournalOptions { segment_bytes: 20_000, ..options(dir.path()) }, HostId([9; 16])).unwrap();
    fill(&journal, 3);
    let path = segment_path(dir.path(), 0);
    // As the disk holds it now, without a clean end.
    let image = std::fs::read(&path).unwrap();
    let good = frame::scan(&image).good;
    assert!(image.len() == 20_000 && image[good..].iter().all(|b| *b == 0));
    let mut torn = image.clone();
    let mut frame = Vec::new();
    frame::put(&mut frame, &vec![7; 9000]);
    // Of an unsynced write any page may have reached the disk: here the second one only.
    torn[good + 4096..good + 8192].copy_from_slice(&frame[4096..8192]);
    for (image, repairs) in [(image, 0), (torn, 1)] {
        let copy = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join("epoch"), copy.path().join("epoch")).unwrap();
        std::fs::write(segment_path(copy.path(), 0), &image).unwrap();
        let (journal, report) = open(copy.path());
        assert_eq!((report.repairs.len(), journal.state().next_seq), (repairs, 3));
        fill(&journal, 1);
    }
}

#[test]
fn an_open_waits_for_few_zeros_and_goes_on_in_a_segment_that_was_prepared() {
    let dir = tempfile::tempdir().unwrap();
    let large = JournalOptions { segment_bytes: 2 << 20, max_bytes: 64 << 20, ..options(dir.path()) };
    let (journal, _) = open_with(&large);
    assert_eq!(std::fs::metadata(segment_path(dir.path(), 0)).unwrap().len(), FIRST_ZEROS);
    let long = "x".repeat(20_000);
    let mut count = 0;
    while lock(&journal.0.inner).segments.len() == 1 {
        journal.append(entry(&long)).unwrap().wait().unwrap();
        count += 1;
        assert!(count < 2000, "nothing was prepared");
    }
    let (first, _) = lock(&journal.0.inner).segments[1];
    let prepared = std::fs::read(segment_path(dir.path(), first)).unwrap();
    assert_eq!(prepared.len(), 2 << 20);
    // As a power cut leaves both: the chain goes on over them.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("epoch"), copy.path().join("epoch")).unwrap();
    std::fs::copy(segment_path(dir.path(), 0), segment_path(copy.path(), 0)).unwrap();
    std::fs::write(segment_path(copy.path(), first), prepared).unwrap();
    std::fs::write(copy.path().join(SPARE), "whatever").unwrap();
    let (again, report) = open_with(&JournalOptions { dir: copy.path().to_path_buf(), ..large });
    assert!(report.repairs.is_empty());
    assert_eq!(again.state().next_seq, count);
    fill(&again, 1);
}

#[test]
fn a_segment_that_was_prepared_and_not_used_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 3);
    journal.close();
    drop(journal);
    std::fs::write(segment_path(dir.path(), 3), vec![0; 2000]).unwrap();
    for next in [3, 4] {
        let (journal, report) = open(dir.path());
        assert!(report.repairs.is_empty());
        assert_eq!(journal.state().next_seq, next);
        fill(&journal, 1);
        journal.close();
    }
}

#[test]
fn full_refuses_but_for_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let small = JournalOptions { max_bytes: 3000, ..options(dir.path()) };
    let (journal, _) = Journal::open(small, HostId([9; 16])).unwrap();
    let refused = (0..100).find_map(|_| journal.append(entry("0123456789")).err()).unwrap();
    assert!(matches!(refused, JournalError::Full { .. }));
    journal.append_reserved(entry("journal full")).unwrap().wait().unwrap();
}

#[test]
fn a_session_that_has_its_share_is_refused_alone_until_it_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let quarter = JournalOptions { max_bytes: 21_000, session_percent: 25, ..options(dir.path()) };
    let of = |session: u8| Entry { session: SessionId([session; 16]), ..entry("0123456789") };
    let (journal, _) = open_with(&quarter);
    let flood = |session| (0..1000).map_while(|_| journal.append(of(session)).ok()).count();
    let first = flood(1);
    assert!(matches!(journal.append(of(1)), Err(JournalError::Share { .. })));
    let second = flood(2);
    assert!(first > 10 && second > first / 2, "{first}, then {second}");
    journal.append(entry("the node's own")).unwrap().wait().unwrap();
    journal.close();
    drop(journal);
    // What waits is known again after a restart.
    let (journal, _) = open_with(&quarter);
    assert!(matches!(journal.append(of(1)), Err(JournalError::Share { .. })));
    journal.acknowledge(journal.state().next_seq).unwrap();
    journal.append(of(1)).unwrap().wait().unwrap();
}

#[test]
fn few_long_records_are_kept_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let large = JournalOptions { max_bytes: 64 << 20, segment_bytes: 64 << 20, ..options(dir.path()) };
    let (journal, _) = Journal::open(large, HostId([9; 16])).unwrap();
    let tickets: Vec<Ticket> = (0..200).map(|_| journal.append(entry(&"x".repeat(50_000))).unwrap()).collect();
    assert!(tickets.into_iter().all(|ticket| ticket.wait().is_ok()));
    assert!(lock(&journal.0.inner).recent_bytes <= RECENT_BYTES);
    assert_eq!(journal.read(0, 500, 100 << 20).unwrap().len(), 200);
}

#[test]
fn acknowledged_segments_go_and_numbers_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 60);
    journal.acknowledge(50).unwrap();
    let state = journal.state();
    assert!(state.first_seq > 0 && state.first_seq <= 50);
    journal.close();
    drop(journal);
    let (journal, report) = open(dir.path());
    assert!(report.repairs.is_empty());
    assert_eq!(journal.state().next_seq, 60);
    assert_eq!(journal.read(55, 10, 10_000).unwrap().len(), 5);
}

#[test]
fn a_second_daemon_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_journal, _) = open(dir.path());
    assert!(matches!(Journal::open(options(dir.path()), HostId([9; 16])), Err(JournalError::InUse(_))));
}
