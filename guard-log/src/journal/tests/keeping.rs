//! What is acknowledged stays for a while, gives way, and is as good as new when it is needed again.

use std::time::SystemTime;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn keeping(dir: &Path) -> JournalOptions {
    JournalOptions { keep: HOUR, max_bytes: 60_000, ..options(dir) }
}

/// Makes every segment look as old as that.
fn age(dir: &Path, age: Duration) {
    for first in load::segment_names(dir).unwrap() {
        let file = File::options().write(true).open(segment_path(dir, first)).unwrap();
        let then = SystemTime::now() - age;
        file.set_times(std::fs::FileTimes::new().set_modified(then)).unwrap();
    }
}

/// Every record from a number on, in order and chained.
fn read_all(journal: &Journal, from: u64) -> Vec<u64> {
    let (mut next, mut seqs, mut last) = (from, Vec::new(), None);
    loop {
        let records = journal.read(next, 50, 1 << 20).unwrap();
        if records.is_empty() {
            return seqs;
        }
        for record in records {
            let header = record.header();
            assert!(last.is_none_or(|last| last == header.prev), "record {} does not follow", header.seq);
            (last, next) = (Some(record.digest()), header.seq + 1);
            seqs.push(header.seq);
        }
    }
}

#[test]
fn what_is_acknowledged_stays_until_it_is_of_age_also_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(&keeping(dir.path()));
    fill(&journal, 100);
    journal.acknowledge(100).unwrap();
    let state = journal.state();
    assert!((state.first_seq, state.acked_next_seq) == (0, 100) && state.kept_bytes > 10_000, "{state:?}");
    journal.close();
    drop(journal);
    let (journal, report) = open_with(&keeping(dir.path()));
    assert!(report.repairs.is_empty(), "{report:?}");
    assert_eq!(read_all(&journal, 0), (0..100).collect::<Vec<_>>());
    age(dir.path(), 2 * HOUR);
    fill(&journal, 1);
    journal.acknowledge(101).unwrap();
    let state = journal.state();
    assert!(state.first_seq > 80 && state.kept_bytes == 0, "{state:?}");
    assert_eq!(read_all(&journal, state.first_seq), (state.first_seq..101).collect::<Vec<_>>());
}

#[test]
fn what_is_kept_takes_half_at_most_and_refuses_nothing_that_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(&keeping(dir.path()));
    let on_disk = || -> u64 {
        let firsts = load::segment_names(dir.path()).unwrap();
        // Zeros that wait to be used are not counted.
        firsts
            .iter()
            .map(|first| frame::scan(&std::fs::read(segment_path(dir.path(), *first)).unwrap()).good as u64)
            .sum()
    };
    for round in 1..=20 {
        fill(&journal, 50);
        journal.acknowledge(round * 50).unwrap();
        assert!(journal.state().kept_bytes <= 30_000, "{:?}", journal.state());
    }
    assert!(journal.state().kept_bytes > 20_000, "{:?}", journal.state());
    // Now nobody acknowledges: what is kept gives way until all is new, and then it is full as ever.
    let mut taken = 0_u64;
    while let Ok(ticket) = journal.append(entry(&"x".repeat(100))) {
        ticket.wait().unwrap();
        taken += 1;
        assert!(on_disk() <= 60_000 + 2000, "{}", on_disk());
    }
    assert!(taken * 228 > 55_000, "{taken}");
    // As long as those: how much room the last one leaves depends on how many shared a frame.
    let full = journal.append(entry(&"x".repeat(100))).err().unwrap();
    assert!(matches!(full, JournalError::Full { .. }), "{full}");
    assert_eq!(journal.state().kept_bytes, 0);
}

#[test]
fn what_a_log_lacks_after_all_is_as_good_as_new() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open_with(&keeping(dir.path()));
    fill(&journal, 100);
    journal.acknowledge(100).unwrap();
    journal.unacknowledge(30).unwrap();
    age(dir.path(), 2 * HOUR);
    // Old or not: it is not acknowledged.
    journal.acknowledge(30).unwrap();
    let first = journal.state().first_seq;
    assert!(first <= 30, "{:?}", journal.state());
    assert_eq!(read_all(&journal, 30), (30..100).collect::<Vec<_>>());
    journal.close();
    drop(journal);
    let (journal, report) = open_with(&keeping(dir.path()));
    assert!(report.repairs.is_empty() && journal.state().acked_next_seq == 30, "{:?}", journal.state());
    assert_eq!(read_all(&journal, 30), (30..100).collect::<Vec<_>>());
    // No further back than there is something.
    journal.acknowledge(100).unwrap();
    let first = journal.state().first_seq;
    assert!(first > 30);
    journal.unacknowledge(0).unwrap();
    assert_eq!(journal.state().acked_next_seq, first);
}

#[test]
fn a_kept_segment_that_is_damaged_or_gone_is_passed_over_and_costs_nothing_else() {
    for damage in [(|path: &Path| std::fs::write(path, "nonsense").unwrap()) as fn(&Path), |path: &Path| {
        std::fs::remove_file(path).unwrap();
    }] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open_with(&keeping(dir.path()));
        fill(&journal, 100);
        journal.acknowledge(100).unwrap();
        journal.close();
        drop(journal);
        let firsts = load::segment_names(dir.path()).unwrap();
        damage(&segment_path(dir.path(), firsts[2]));
        let (journal, report) = open_with(&keeping(dir.path()));
        assert!(report.repairs.is_empty(), "{report:?}");
        let mut next = 0;
        let lost = loop {
            match journal.read(next, 50, 1 << 20) {
                Ok(records) => next = records.last().unwrap().header().seq + 1,
                Err(error) => break error,
            }
        };
        assert_eq!(next, firsts[2], "{lost}");
        let first = journal.state().first_seq;
        assert_eq!(first, firsts[3]);
        assert_eq!(read_all(&journal, first), (first..100).collect::<Vec<_>>());
        fill(&journal, 1);
    }
}
