//! Blocks of every shape come back as they were; damaged bytes are refused or harmless.

use super::super::{BLOCK, Column};
use super::*;

/// Columns with one value, few, more than a byte can number, and all different.
fn rows(count: u64) -> Vec<Row> {
    let mut seed = 7_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    (0..count)
        .map(|at| Row {
            leaf: 100 + at,
            session: (at % 3 != 0).then_some(at % 700),
            kind: (at % 5) as u16,
            wall: 1_700_000_000_000_000_000 + (at * 1000) as i64 - (random() % 5000) as i64,
            columns: [
                1,
                (at % 2) as i64,
                (at % 300) as i64,
                -((at % 7) as i64),
                i64::MAX - (at % 4) as i64,
                at as i64,
                i64::MIN + at as i64,
                (random() % 1_000_000) as i64,
            ],
        })
        .collect()
}

#[test]
fn a_block_gives_its_rows_back() {
    for count in [1, 2, 255, 257, 1025, BLOCK] {
        let rows = rows(count);
        let (bytes, seen) = pack(&rows);
        let packed = Packed::open(100, rows.len(), &bytes).expect("opened");
        assert_eq!(packed.rows().expect("rows"), rows);
        assert!(seen.contains(&(Column::Host as u8, 1)) && !seen.iter().any(|(_, name)| *name == 0));
        assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), seen.len());
    }
}

#[test]
fn a_question_finds_what_a_look_at_each_row_finds() {
    let rows = rows(BLOCK);
    let (bytes, _) = pack(&rows);
    let packed = Packed::open(100, rows.len(), &bytes).expect("opened");
    let middle = rows[2000].wall;
    let questions = [
        Wanted { session: Some(5), ..Wanted::default() },
        Wanted { session: Some(5), columns: vec![(Column::Agent, 1)], ..Wanted::default() },
        Wanted { columns: vec![(Column::Instance, 299), (Column::Host, 1)], ..Wanted::default() },
        Wanted { columns: vec![(Column::Category, 17)], ..Wanted::default() },
        Wanted { columns: vec![(Column::Host, 2)], ..Wanted::default() },
        Wanted { since: Some(middle), ..Wanted::default() },
        Wanted { until: Some(middle), columns: vec![(Column::Initiator, -3)], ..Wanted::default() },
        Wanted::default(),
    ];
    for wanted in questions {
        for (leaves, limit) in [(0..u64::MAX, usize::MAX), (1000..3000, 7)] {
            let fits = |row: &&Row| {
                leaves.contains(&row.leaf)
                    && wanted.session.is_none_or(|s| row.session == Some(s))
                    && wanted.columns.iter().all(|(c, name)| row.columns[*c as usize - 1] == *name)
                    && wanted.since.is_none_or(|t| row.wall >= t)
                    && wanted.until.is_none_or(|t| row.wall < t)
            };
            let all: Vec<u64> = rows.iter().filter(fits).map(|row| row.leaf).take(limit).collect();
            assert_eq!(packed.find(&wanted, &leaves, limit).expect("found"), all, "{wanted:?}");
        }
    }
}

#[test]
fn damaged_bytes_are_refused_or_harmless() {
    let rows = rows(300);
    let (bytes, _) = pack(&rows);
    let wanted = Wanted { session: Some(5), since: Some(0), columns: vec![(Column::Agent, 1)], ..Wanted::default() };
    let ask = |count: usize, bytes: &[u8]| {
        let packed = Packed::open(100, count, bytes)?;
        packed.find(&wanted, &(0..u64::MAX), 10)?;
        packed.rows()
    };
    assert!(ask(300, &bytes).is_ok());
    assert_eq!(ask(BLOCK as usize + 1, &bytes), Err(Damaged));
    assert_eq!(ask(301, &bytes), Err(Damaged));
    for cut in 0..bytes.len() {
        assert_eq!(ask(300, &bytes[..cut]), Err(Damaged), "{cut}");
    }
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        for flip in [1, 0x80, 0xff] {
            bytes[at] ^= flip;
            let _ = ask(300, &bytes);
        }
    }
}
