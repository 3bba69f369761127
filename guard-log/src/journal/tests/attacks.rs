//! Damage, interrupted repairs and lost folder entries: nothing that was durable may go without a word, and the journal goes on.

use std::collections::BTreeSet;

use super::*;

/// A journal with some records, ended well; its epoch.
fn filled(dir: &Path, count: usize) -> Epoch {
    let (journal, _) = open(dir);
    fill(&journal, count);
    let epoch = journal.state().epoch;
    journal.close();
    epoch
}

fn whats(report: &OpenReport) -> Vec<&'static str> {
    report.repairs.iter().map(|r| r.what).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    names.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect::<BTreeSet<_>>().into_iter().collect()
}

fn change(path: &Path, call: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    call(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damage_of_any_frame_before_the_last_one_is_never_taken_for_a_torn_tail() {
    for broken in 0..4_usize {
        for (name, call) in [
            ("length", (|head: &mut [u8]| head[0] ^= 0x40) as fn(&mut [u8])),
            ("huge length", |head| head[3] = 0x7f),
            ("checksum", |head| head[5] ^= 1),
            ("zeroed", |head| head.fill(0)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let epoch = filled(dir.path(), 5);
            change(&segment_path(dir.path(), 0), |bytes| {
                let (at, length) = frame::scan(bytes).frames[broken];
                call(&mut bytes[at - frame::HEAD..at + length]);
            });
            let (journal, report) = open(dir.path());
            assert_eq!(whats(&report), ["quarantined"], "{name} of frame {broken}");
            assert_ne!(journal.state().epoch, epoch);
            fill(&journal, 1);
        }
    }
}

#[test]
fn an_epoch_file_that_is_none_begins_a_new_life_instead_of_never_starting() {
    for text in ["", "not an epoch", "\u{0}\u{0}\u{0}"] {
        let dir = tempfile::tempdir().unwrap();
        let epoch = filled(dir.path(), 3);
        std::fs::write(dir.path().join("epoch"), text).unwrap();
        let (journal, report) = open(dir.path());
        assert_eq!(whats(&report), ["quarantined"]);
        assert!(report.repairs[0].bytes > 0);
        assert_eq!(journal.state().next_seq, 0);
        assert_ne!(journal.state().epoch, epoch);
        fill(&journal, 2);
        journal.close();
        drop(journal);
        let (_, report) = open(dir.path());
        assert_eq!(whats(&report), ["quarantined"], "told until somebody says that it is recorded");
    }
}

#[test]
fn a_quarantine_that_was_cut_short_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let epoch = filled(dir.path(), 60);
    let all = segments(dir.path());
    assert!(all.len() > 2);
    // As a crash leaves it after the first of the moves: what is left looks whole.
    let aside = dir.path().join(format!("quarantine-{epoch}"));
    std::fs::create_dir(&aside).unwrap();
    std::fs::rename(&all[0], aside.join(all[0].file_name().unwrap())).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), ["quarantined"]);
    assert_ne!(journal.state().epoch, epoch);
    assert_eq!(segments(&aside).len(), all.len());
}

#[test]
fn the_cursor_of_an_earlier_life_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 60);
    journal.acknowledge(50).unwrap();
    journal.close();
    drop(journal);
    let cursor = std::fs::read(dir.path().join("acked")).unwrap();
    change(segments(dir.path()).first().unwrap(), |bytes| bytes[60] ^= 1);
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), ["quarantined"]);
    journal.close();
    drop(journal);
    // The folder's entry of the removed cursor had not reached the disk.
    std::fs::write(dir.path().join("acked"), cursor).unwrap();
    let (journal, _) = open(dir.path());
    assert_eq!((journal.state().next_seq, journal.state().acked_next_seq), (0, 0));
}

#[test]
fn removals_below_the_cursor_reach_the_disk_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 60);
    let kept = tempfile::tempdir().unwrap();
    for path in segments(dir.path()) {
        std::fs::copy(&path, kept.path().join(path.file_name().unwrap())).unwrap();
    }
    journal.acknowledge(55).unwrap();
    journal.close();
    drop(journal);
    assert!(segments(kept.path()).len() > segments(dir.path()).len() + 1);
    // The first one is back, the second is not.
    let first = segments(kept.path())[0].clone();
    std::fs::copy(&first, dir.path().join(first.file_name().unwrap())).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), [""; 0]);
    assert_eq!(journal.state().next_seq, 60);
    assert_eq!(journal.read(55, 10, 10_000).unwrap().len(), 5);
    assert!(!dir.path().join(first.file_name().unwrap()).exists());
}

#[test]
fn segments_that_are_missing_above_the_cursor_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 60);
    let all = segments(dir.path());
    std::fs::remove_file(&all[0]).unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), ["missing"]);
    assert_eq!(journal.state().next_seq, 60);
    journal.close();
    drop(journal);
    for path in segments(dir.path()) {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::write(dir.path().join("acked"), "50").unwrap();
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), ["missing", "quarantined"], "an acknowledged journal holds at least one record");
    assert_eq!(journal.state().next_seq, 0);
}

#[test]
fn numbers_below_the_cursor_are_never_given_again() {
    for cut in [0, 300] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        fill(&journal, 60);
        journal.acknowledge(60).unwrap();
        journal.close();
        drop(journal);
        // The disk has lost the newest blocks of what was durable.
        change(segments(dir.path()).last().unwrap(), |bytes| bytes[cut..].fill(0));
        let (journal, report) = open(dir.path());
        assert_eq!(whats(&report).last(), Some(&"quarantined"));
        assert_eq!(journal.state().next_seq, 0);
    }
}

#[test]
fn files_with_other_names_stop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    for name in ["7.seg", "+0000000000000000007.seg", "x.seg", "18446744073709551615.seg.old"] {
        std::fs::write(dir.path().join(name), "whatever").unwrap();
    }
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), [""; 0]);
    assert_eq!(journal.state().next_seq, 3);
}

#[test]
fn a_segment_that_is_damaged_under_the_journals_hands_is_an_error_and_no_silence() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(&JournalOptions { max_bytes: 64 << 20, ..options(dir.path()) });
    let body = "x".repeat(60_000);
    for _ in 0..100 {
        journal.append(entry(&body)).unwrap().wait().unwrap();
    }
    let second = segments(dir.path())[1].clone();
    change(&second, |bytes| bytes[300] ^= 1);
    let error = journal.read(1, 10, 1 << 20).unwrap_err().to_string();
    assert!(error.contains(second.to_str().unwrap()), "{error}");
}

#[test]
fn an_acknowledgement_that_cannot_be_noted_removes_nothing_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 60);
    let (before, bytes) = (segments(dir.path()), journal.state().bytes);
    std::fs::create_dir(dir.path().join("acked.tmp")).unwrap();
    let error = journal.acknowledge(50).unwrap_err().to_string();
    assert!(error.contains("acked"), "{error}");
    assert_eq!((segments(dir.path()), journal.state().bytes), (before.clone(), bytes));
    assert_eq!(journal.read(0, 1, 1000).unwrap()[0].header().seq, 0);
    std::fs::remove_dir(dir.path().join("acked.tmp")).unwrap();
    journal.acknowledge(50).unwrap();
    assert!(segments(dir.path()).len() < before.len() && journal.state().bytes < bytes);
}

#[test]
fn a_repair_is_told_again_until_it_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3);
    change(&segment_path(dir.path(), 0), |bytes| bytes.truncate(bytes.len() - 3));
    // Whoever opened it first could not record it: emergency stop, or a daemon that was killed at once.
    let (journal, first) = open(dir.path());
    fill(&journal, 1);
    journal.close();
    drop(journal);
    let (journal, second) = open(dir.path());
    assert_eq!((whats(&first), &first), (vec!["torn_tail"], &second));
    journal.repairs_recorded().unwrap();
    journal.close();
    drop(journal);
    assert_eq!(whats(&open(dir.path()).1), [""; 0]);
}

#[test]
fn acknowledgements_from_many_threads_never_take_the_cursor_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    fill(&journal, 400);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let journal = journal.clone();
            scope.spawn(move || (0..100).for_each(|n| journal.acknowledge(n * 4 + thread).unwrap()));
        }
    });
    let first = journal.state().first_seq;
    journal.close();
    drop(journal);
    let (journal, report) = open(dir.path());
    assert_eq!(whats(&report), [""; 0]);
    assert!(journal.state().acked_next_seq > first, "{} and {first}", journal.state().acked_next_seq);
}

#[test]
fn a_number_after_which_there_is_none_is_set_aside_as_damage() {
    for seq in [u64::MAX, u64::MAX - 1, (1 << 63) - 1] {
        let dir = tempfile::tempdir().unwrap();
        let epoch = filled(dir.path(), 1);
        for path in segments(dir.path()) {
            std::fs::remove_file(path).unwrap();
        }
        let header = Header {
            version: 1,
            kind: Kind::EXEC,
            host: HostId([9; 16]),
            epoch,
            seq,
            prev: [0; 32],
            boot_ns: 0,
            wall_unix_ns: 0,
            session: SessionId::NONE,
        };
        let record = Record::seal(&header, b"far").unwrap();
        let payload = [&(record.bytes().len() as u32).to_le_bytes(), record.bytes().as_ref()].concat();
        let mut segment = Vec::new();
        frame::put(&mut segment, &payload);
        std::fs::write(segment_path(dir.path(), seq), segment).unwrap();
        let (journal, report) = open(dir.path());
        assert_eq!(whats(&report), ["missing", "quarantined"], "{seq}");
        fill(&journal, 2);
        assert_eq!(journal.state().next_seq, 2);
    }
}
