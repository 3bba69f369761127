//! One month of records: a SQLite file of its own with consecutive leaves.
//!
//! A row holds numbers only: texts stand once in the main file, a session is named by its first leaf. [`BLOCK`] leaves that are
//! complete are one row of bytes ([`packed`]), of which the file also knows what occurs in them; those of the last block, which
//! still grows, are rows of a small table ([`writer`]). So a record costs the same however many there are, and a question reads
//! the blocks that can hold an answer, and the rows of the last one. A file may hold more than the main file covers (it is
//! committed first): readers stop at the main file's size, the writer trims at opening. It must not know bodies. Fails: errors of
//! SQLite; a file that has gone is [`IndexError::Dropped`], one whose blocks are no blocks [`IndexError::Damaged`].

use std::ops::Range;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};

mod packed;
mod writer;

pub use writer::Writer;

use packed::Packed;

use super::{IndexError, number, sql};

type Result<T> = std::result::Result<T, IndexError>;

/// Leaves of a block.
pub const BLOCK: u64 = 4096;

/// `records` has the rows that are in no block yet; `seen` says in which blocks a column has a value ([`Column`], or
/// [`SESSION`]), `blocks` between which wall times their records are.
const TABLES: &str = "
CREATE TABLE records (leaf INTEGER PRIMARY KEY, session INTEGER NOT NULL, host INTEGER NOT NULL, kind INTEGER NOT NULL,
    wall INTEGER NOT NULL, agent INTEGER NOT NULL, instance INTEGER NOT NULL, initiator INTEGER NOT NULL,
    program INTEGER NOT NULL, category INTEGER NOT NULL, disposition INTEGER NOT NULL, reviewer INTEGER NOT NULL);
CREATE TABLE blocks (block INTEGER PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL, low INTEGER NOT NULL,
    high INTEGER NOT NULL, packed BLOB NOT NULL);
CREATE TABLE seen (what INTEGER NOT NULL, name INTEGER NOT NULL, block INTEGER NOT NULL,
    PRIMARY KEY (what, name, block)) WITHOUT ROWID;
";

/// A month as a file is named: year and month as one number, such as 202611.
pub type Month = i64;

/// One file, as the main file lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Its first leaf.
    pub first: u64,
    /// Its month.
    pub month: Month,
}

/// Columns of a record, each the number of a text, or 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Column {
    /// The host's id.
    Host = 1,
    /// The agent.
    Agent,
    /// Its running copy.
    Instance,
    /// Who asked for the work.
    Initiator,
    /// Path of the program.
    Program,
    /// Category.
    Category,
    /// Disposition, by [`super::words`].
    Disposition,
    /// Reviewer.
    Reviewer,
}

const COLUMNS: [Column; 8] = [
    Column::Host,
    Column::Agent,
    Column::Instance,
    Column::Initiator,
    Column::Program,
    Column::Category,
    Column::Disposition,
    Column::Reviewer,
];

/// The session among what `seen` knows.
const SESSION: u8 = 9;

/// A session as a number: 0 for none.
fn session_number(first_leaf: Option<u64>) -> i64 {
    first_leaf.map_or(0, |leaf| sql(leaf).saturating_add(1))
}

fn session_leaf(number: i64) -> Option<u64> {
    number.checked_sub(1).and_then(|leaf| u64::try_from(leaf).ok())
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Agent => "agent",
            Self::Instance => "instance",
            Self::Initiator => "initiator",
            Self::Program => "program",
            Self::Category => "category",
            Self::Disposition => "disposition",
            Self::Reviewer => "reviewer",
        }
    }
}

/// One record's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its leaf.
    pub leaf: u64,
    /// First leaf of its session.
    pub session: Option<u64>,
    /// Its kind.
    pub kind: u16,
    /// Host's wall time, ns.
    pub wall: i64,
    /// In the order of [`Column`].
    pub columns: [i64; 8],
}

impl Row {
    /// Of a leaf, with nothing in it yet.
    fn at(leaf: u64) -> Self {
        Self { leaf, session: None, kind: 0, wall: 0, columns: [0; 8] }
    }
}

/// What is asked of a part.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// First leaf of the session.
    pub session: Option<u64>,
    /// Columns with the value they must have.
    pub columns: Vec<(Column, i64)>,
    /// Wall time from.
    pub since: Option<i64>,
    /// Wall time until, exclusive.
    pub until: Option<i64>,
    /// These leaves only.
    pub leaves: Range<u64>,
}

/// File of a month beside the main file.
pub fn path_of(main: &Path, month: Month) -> PathBuf {
    let stem = main.file_stem().unwrap_or_default().to_string_lossy();
    main.with_file_name(format!("{stem}-{:04}-{:02}.sqlite", month / 100, month % 100))
}

/// Whether a file's name is that of a month of this index, or of SQLite's files beside it.
pub fn is_part_of(main: &Path, name: &str) -> bool {
    let stem = main.file_stem().unwrap_or_default().to_string_lossy();
    let rest = name.strip_prefix(&*stem).and_then(|r| r.strip_prefix('-'));
    rest.and_then(|r| r.split_once(".sqlite")).is_some_and(|(month, end)| {
        month.split('-').map(str::len).eq([4, 2])
            && month.bytes().all(|b| b.is_ascii_digit() || b == b'-')
            && ["", "-wal", "-shm"].contains(&end)
    })
}

/// The month of a point in time (ns since 1970), in UTC.
pub fn month_of(wall_ns: i64) -> Month {
    // Days to civil date; years begin in March, so that the leap day is the last.
    let days = wall_ns.div_euclid(86_400_000_000_000) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2)) * 100 + month
}

/// Opens a part for reading.
pub fn reader(main: &Path, part: Part) -> Result<Connection> {
    let path = path_of(main, part.month);
    if !path.is_file() {
        return Err(IndexError::Dropped { path, first: part.first });
    }
    super::open_reader(&path)
}

/// Flags of connections that only read.
pub const READ: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Leaves that fit, in order, at most `limit`.
pub fn find(part: &Connection, path: impl Fn() -> PathBuf, wanted: &Wanted, limit: usize) -> Result<Vec<u64>> {
    if wanted.leaves.is_empty() || limit == 0 {
        return Ok(vec![]);
    }
    // One state of the file: a block that is completed between two questions would be in neither.
    let state = part.unchecked_transaction()?;
    let (text, values) = blocks(wanted);
    let mut statement = state.prepare_cached(&text)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut found = vec![];
    while let Some(row) = rows.next()? {
        let (first, count) = (number(row.get(0)?), number(row.get(1)?));
        let bytes = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let some = Packed::open(first, count, bytes).and_then(|p| p.find(wanted, &wanted.leaves, limit - found.len()));
        found.extend(some.map_err(|packed::Damaged| IndexError::Damaged { path: path(), first })?);
        if found.len() >= limit {
            return Ok(found);
        }
    }
    found.extend(scan(&state, wanted, limit - found.len())?);
    Ok(found)
}

/// Asks for the blocks in which everything that is asked for occurs, in order.
fn blocks(wanted: &Wanted) -> (String, Vec<Value>) {
    let session = wanted.session.map(|leaf| (SESSION, session_number(Some(leaf))));
    let mut names = session.into_iter().chain(wanted.columns.iter().map(|(column, name)| (*column as u8, *name)));
    let mut text = "SELECT b.first, b.count, b.packed FROM ".to_owned();
    let mut values: Vec<Value> = vec![];
    // Blocks that have the first thing are looked up, not all blocks asked; a session comes first, it has the fewest.
    let first = names.next();
    match first {
        Some((what, name)) => {
            text.push_str(
                "seen s CROSS JOIN blocks b ON b.block = s.block WHERE s.what = ? AND s.name = ? AND s.block",
            );
            values.extend([Value::Integer(i64::from(what)), Value::Integer(name)]);
        }
        None => text.push_str("blocks b WHERE b.block"),
    }
    text.push_str(" BETWEEN ? AND ?");
    values.extend([sql(wanted.leaves.start / BLOCK).into(), sql(wanted.leaves.end / BLOCK).into()]);
    if let Some(since) = wanted.since {
        text.push_str(" AND b.high >= ?");
        values.push(since.into());
    }
    if let Some(until) = wanted.until {
        text.push_str(" AND b.low < ?");
        values.push(until.into());
    }
    for (what, name) in names {
        text.push_str(" AND EXISTS (SELECT 1 FROM seen o WHERE o.what = ? AND o.name = ? AND o.block = b.block)");
        values.extend([Value::Integer(i64::from(what)), Value::Integer(name)]);
    }
    text.push_str(if first.is_some() { " ORDER BY s.block" } else { " ORDER BY b.block" });
    (text, values)
}

/// Among the rows of the last block, which is not complete.
fn scan(part: &Connection, wanted: &Wanted, limit: usize) -> Result<Vec<u64>> {
    let mut text = "SELECT leaf FROM records WHERE leaf >= ? AND leaf < ?".to_owned();
    let mut values: Vec<Value> = vec![sql(wanted.leaves.start).into(), sql(wanted.leaves.end).into()];
    if wanted.session.is_some() {
        text.push_str(" AND session = ?");
        values.push(session_number(wanted.session).into());
    }
    for (column, name) in &wanted.columns {
        text.push_str(&format!(" AND {} = ?", column.name()));
        values.push(Value::Integer(*name));
    }
    if let Some(since) = wanted.since {
        text.push_str(" AND wall >= ?");
        values.push(since.into());
    }
    if let Some(until) = wanted.until {
        text.push_str(" AND wall < ?");
        values.push(until.into());
    }
    text.push_str(" ORDER BY leaf LIMIT ?");
    values.push(Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    let mut statement = part.prepare_cached(&text)?;
    let rows = statement.query_map(params_from_iter(values), |row| row.get(0).map(number))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        let day = 86_400_000_000_000_i64;
        for (days, month) in
            [(0, 197_001), (30, 197_001), (31, 197_002), (59, 197_003), (-1, 196_912), (20_454, 202_601)]
        {
            assert_eq!(month_of(days * day), month, "{days}");
        }
        // The leap day of 2024.
        assert_eq!([19_782, 19_783].map(|d| month_of(d * day)), [202_402, 202_403]);
        assert_eq!(month_of(19_783 * day - 1), 202_402);
        let _ = (month_of(i64::MIN), month_of(i64::MAX));
    }

    #[test]
    fn only_files_of_this_index_are_its_parts() {
        let main = Path::new("/x/index.sqlite");
        assert_eq!(path_of(main, 202_611), Path::new("/x/index-2026-11.sqlite"));
        for name in ["index-2026-11.sqlite", "index-2026-11.sqlite-wal", "index-1970-01.sqlite-shm"] {
            assert!(is_part_of(main, name), "{name}");
        }
        for name in ["index.sqlite", "index-2026-1.sqlite", "index-2026-11.sqlite.old", "other-2026-11.sqlite"] {
            assert!(!is_part_of(main, name), "{name}");
        }
    }
}
