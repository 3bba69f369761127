//! One month of records: a SQLite file of its own with consecutive leaves.
//!
//! A row holds numbers only: texts stand once in the main file, a session is named by its first leaf. One secondary index
//! (session, leaf); every other question is answered from blocks of [`BLOCK`] leaves, of which the file knows what occurs in
//! them. So a record costs the same however many there are, and a question reads the blocks that can hold an answer. A file
//! may hold more than the main file covers (it is committed first): readers stop at the main file's size, the writer trims at
//! opening. It must not know bodies. Fails: errors of SQLite; a file that has gone is [`IndexError::Dropped`].

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Transaction, params_from_iter};

use super::{IndexError, number, sql};

type Result<T> = std::result::Result<T, IndexError>;

/// Leaves of a block.
pub const BLOCK: u64 = 4096;

const TABLES: &str = "
CREATE TABLE records (leaf INTEGER PRIMARY KEY, session INTEGER, host INTEGER NOT NULL, kind INTEGER NOT NULL,
    wall INTEGER NOT NULL, agent INTEGER NOT NULL, instance INTEGER NOT NULL, initiator INTEGER NOT NULL,
    program INTEGER NOT NULL, category INTEGER NOT NULL, disposition INTEGER NOT NULL, reviewer INTEGER NOT NULL);
CREATE INDEX records_session ON records (session, leaf) WHERE session IS NOT NULL;
CREATE TABLE seen (what INTEGER NOT NULL, name INTEGER NOT NULL, block INTEGER NOT NULL,
    PRIMARY KEY (what, name, block)) WITHOUT ROWID;
CREATE TABLE blocks (block INTEGER PRIMARY KEY, low INTEGER NOT NULL, high INTEGER NOT NULL);
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
#[derive(Clone, Debug)]
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

/// The part that grows.
pub struct Writer {
    connection: Connection,
    /// Which one.
    pub part: Part,
    block: u64,
    seen: HashSet<(u8, i64)>,
    times: HashMap<u64, (i64, i64)>,
}

impl Writer {
    /// Begins a new file; one of that name that nothing lists is thrown away.
    pub fn create(main: &Path, part: Part) -> Result<Self> {
        let path = path_of(main, part.month);
        super::remove(&path)?;
        let connection = connect(&path)?;
        connection.execute_batch(TABLES)?;
        Ok(Self::new(connection, part))
    }

    /// Goes on with a file from leaf `size` on; `None` if it does not hold everything below.
    pub fn open(main: &Path, part: Part, size: u64) -> Result<Option<Self>> {
        let path = path_of(main, part.month);
        if !path.is_file() {
            return Ok(None);
        }
        let connection = connect(&path)?;
        let last: Option<i64> = connection.query_row("SELECT max(leaf) FROM records", [], |row| row.get(0))?;
        if last.map_or(part.first, |leaf| number(leaf) + 1) < size {
            return Ok(None);
        }
        connection.execute("DELETE FROM records WHERE leaf >= ?1", [sql(size)])?;
        Ok(Some(Self::new(connection, part)))
    }

    fn new(connection: Connection, part: Part) -> Self {
        Self { connection, part, block: 0, seen: HashSet::new(), times: HashMap::new() }
    }

    /// Adds rows, durably: the main file must never be ahead.
    pub fn add(&mut self, rows: &[Row]) -> Result<()> {
        let transaction = self.connection.transaction()?;
        // What is noted in memory must not outlive a transaction that fails.
        let mut seen = std::mem::take(&mut self.seen);
        let mut times = std::mem::take(&mut self.times);
        for row in rows {
            insert(&transaction, row)?;
            let block = row.leaf / BLOCK;
            if block != self.block {
                seen.clear();
                self.block = block;
            }
            for (column, name) in COLUMNS.into_iter().zip(row.columns).filter(|(_, name)| *name != 0) {
                if seen.insert((column as u8, name)) {
                    let note = "INSERT OR IGNORE INTO seen (what, name, block) VALUES (?1, ?2, ?3)";
                    transaction.prepare_cached(note)?.execute((column as u8, name, sql(block)))?;
                }
            }
            let time = times.entry(block).or_insert((row.wall, row.wall));
            *time = (time.0.min(row.wall), time.1.max(row.wall));
        }
        for (block, (low, high)) in &times {
            let note = "INSERT INTO blocks (block, low, high) VALUES (?1, ?2, ?3) ON CONFLICT (block) DO UPDATE
                        SET low = min(low, excluded.low), high = max(high, excluded.high)";
            transaction.prepare_cached(note)?.execute((sql(*block), low, high))?;
        }
        transaction.commit()?;
        times.clear();
        (self.seen, self.times) = (seen, times);
        Ok(())
    }
}

/// After a failure between this file's commit and the main file's the same records come again.
fn insert(transaction: &Transaction<'_>, row: &Row) -> Result<()> {
    let [host, agent, instance, initiator, program, category, disposition, reviewer] = row.columns;
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO records (leaf, session, host, kind, wall, agent, instance, initiator, program, category,
             disposition, reviewer) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            sql(row.leaf),
            row.session.map(sql),
            host,
            row.kind,
            row.wall,
            agent,
            instance,
            initiator,
            program,
            category,
            disposition,
            reviewer,
        ))?;
    Ok(())
}

fn connect(path: &Path) -> Result<Connection> {
    let connection = super::connect(path)?;
    // Once for each step, and what lets the main file be less careful.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
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
pub fn find(part: &Connection, wanted: &Wanted, limit: usize) -> Result<Vec<u64>> {
    if wanted.leaves.is_empty() || limit == 0 {
        return Ok(vec![]);
    }
    if wanted.session.is_some() {
        return scan(part, wanted, wanted.leaves.clone(), limit);
    }
    let mut found = vec![];
    for block in blocks(part, wanted)? {
        let leaves = (block * BLOCK).max(wanted.leaves.start)..((block + 1) * BLOCK).min(wanted.leaves.end);
        found.extend(scan(part, wanted, leaves, limit - found.len())?);
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

/// Blocks in which everything that is asked for occurs.
fn blocks(part: &Connection, wanted: &Wanted) -> Result<Vec<u64>> {
    let mut text = "SELECT block FROM blocks WHERE block BETWEEN ? AND ?".to_owned();
    let mut values: Vec<Value> = vec![sql(wanted.leaves.start / BLOCK).into(), sql(wanted.leaves.end / BLOCK).into()];
    if let Some(since) = wanted.since {
        text.push_str(" AND high >= ?");
        values.push(since.into());
    }
    if let Some(until) = wanted.until {
        text.push_str(" AND low < ?");
        values.push(until.into());
    }
    for (column, name) in &wanted.columns {
        text.push_str(
            " AND EXISTS (SELECT 1 FROM seen WHERE seen.what = ? AND seen.name = ? AND seen.block = blocks.block)",
        );
        values.extend([Value::Integer(i64::from(*column as u8)), Value::Integer(*name)]);
    }
    text.push_str(" ORDER BY block");
    let mut statement = part.prepare_cached(&text)?;
    let rows = statement.query_map(params_from_iter(values), |row| row.get(0).map(number))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn scan(part: &Connection, wanted: &Wanted, leaves: Range<u64>, limit: usize) -> Result<Vec<u64>> {
    let mut text = "SELECT leaf FROM records WHERE leaf >= ? AND leaf < ?".to_owned();
    let mut values: Vec<Value> = vec![sql(leaves.start).into(), sql(leaves.end).into()];
    if let Some(session) = wanted.session {
        text.push_str(" AND session = ?");
        values.push(sql(session).into());
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
