//! The part that grows: rows of the last block, made into one piece once it is complete.
//!
//! A file whose main file is behind holds leaves that will come again: opening removes them, out of blocks too. It must commit a
//! step whole. Fails: errors of SQLite, after which nothing of the step is remembered.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction};

use super::packed::{self, Packed};
use super::{BLOCK, IndexError, Part, Result, Row, TABLES, number, path_of, session_leaf, session_number, sql};

/// The part that grows.
pub struct Writer {
    connection: Connection,
    /// Which one.
    pub part: Part,
    /// The rows that are in no block yet, as the table has them.
    open: Vec<Row>,
    /// The leaf that comes next; none after a step that failed.
    next: Option<u64>,
}

impl Writer {
    /// Begins a new file; one of that name that nothing lists is thrown away.
    pub fn create(main: &Path, part: Part) -> Result<Self> {
        let path = path_of(main, part.month);
        super::super::remove(&path)?;
        let connection = connect(&path)?;
        connection.execute_batch(TABLES)?;
        Ok(Self { connection, part, open: vec![], next: Some(part.first) })
    }

    /// Goes on with a file from leaf `size` on; `None` if it does not hold everything below.
    pub fn open(main: &Path, part: Part, size: u64) -> Result<Option<Self>> {
        let path = path_of(main, part.month);
        if !path.is_file() {
            return Ok(None);
        }
        let mut connection = connect(&path)?;
        let transaction = connection.transaction()?;
        let Ok(()) = reopen(&transaction, size)? else { return Ok(None) };
        transaction.execute("DELETE FROM records WHERE leaf >= ?1", [sql(size)])?;
        let packed: Option<i64> =
            transaction.query_row("SELECT max(first + count) FROM blocks", [], |row| row.get(0))?;
        let open = open_rows(&transaction)?;
        transaction.commit()?;
        let from = packed.map_or(part.first, number);
        if open.iter().map(|row| row.leaf).ne(from..size) {
            return Ok(None);
        }
        Ok(Some(Self { connection, part, open, next: Some(size) }))
    }

    /// Adds rows of consecutive leaves, durably: the main file must never be ahead. After an error it has to be opened again.
    pub fn add(&mut self, rows: &[Row]) -> Result<()> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
        // A block must have each leaf once, also after a step of which only this file's part was committed.
        if self.next.take() != Some(first.leaf) {
            let why = format!("leaf {} does not follow what {} holds", first.leaf, self.part.month);
            return Err(IndexError::Thread(why));
        }
        let transaction = self.connection.transaction()?;
        let (mut open, mut stored) = (std::mem::take(&mut self.open), true);
        let mut rest = rows;
        while let Some(first) = rest.first() {
            let left = usize::try_from(BLOCK - first.leaf % BLOCK).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(left.min(rest.len()));
            open.extend_from_slice(now);
            rest = later;
            if now.len() == left {
                close(&transaction, &open, stored)?;
                (open, stored) = (vec![], false);
            }
        }
        for row in open.iter().filter(|row| row.leaf >= first.leaf) {
            insert(&transaction, row)?;
        }
        transaction.commit()?;
        (self.open, self.next) = (open, Some(last.leaf + 1));
        Ok(())
    }
}

/// Makes rows one piece; those that are in the table (`stored`) leave it.
fn close(transaction: &Transaction<'_>, rows: &[Row], stored: bool) -> Result<()> {
    let Some(first) = rows.first() else { return Ok(()) };
    let block = first.leaf / BLOCK;
    let (low, high) = rows.iter().fold((i64::MAX, i64::MIN), |t, row| (t.0.min(row.wall), t.1.max(row.wall)));
    let (bytes, seen) = packed::pack(rows);
    transaction
        .prepare_cached("INSERT INTO blocks (block, first, count, low, high, packed) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute((sql(block), sql(first.leaf), sql(rows.len() as u64), low, high, bytes))?;
    let mut note = transaction.prepare_cached("INSERT INTO seen (what, name, block) VALUES (?1, ?2, ?3)")?;
    for (what, name) in seen {
        note.execute((what, name, sql(block)))?;
    }
    if stored {
        transaction.execute("DELETE FROM records", [])?;
    }
    Ok(())
}

/// Makes the block that holds leaf `size` rows again, and drops those after it; `Err` if it is no block.
fn reopen(transaction: &Transaction<'_>, size: u64) -> Result<std::result::Result<(), packed::Damaged>> {
    type Found = (i64, i64, Vec<u8>);
    let found: Option<Found> = transaction
        .query_row(
            "SELECT first, count, packed FROM blocks WHERE first < ?1 AND first + count > ?1",
            [sql(size)],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let ahead = "first + count > ?1";
    let Some((first, count, bytes)) = found else {
        remove_blocks(transaction, ahead, size)?;
        return Ok(Ok(()));
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let rows = match Packed::open(number(first), count, &bytes).and_then(|packed| packed.rows()) {
        Ok(rows) => rows,
        Err(damaged) => return Ok(Err(damaged)),
    };
    remove_blocks(transaction, ahead, size)?;
    transaction.execute("DELETE FROM records", [])?;
    for row in rows.iter().filter(|row| row.leaf < size) {
        insert(transaction, row)?;
    }
    Ok(Ok(()))
}

fn remove_blocks(transaction: &Transaction<'_>, which: &str, size: u64) -> Result<()> {
    let seen = format!("DELETE FROM seen WHERE block IN (SELECT block FROM blocks WHERE {which})");
    transaction.execute(&seen, [sql(size)])?;
    transaction.execute(&format!("DELETE FROM blocks WHERE {which}"), [sql(size)])?;
    Ok(())
}

fn open_rows(transaction: &Transaction<'_>) -> Result<Vec<Row>> {
    let mut statement = transaction.prepare(
        "SELECT leaf, session, kind, wall, host, agent, instance, initiator, program, category, disposition, reviewer
         FROM records ORDER BY leaf",
    )?;
    let rows = statement.query_map([], |row| {
        let mut columns = [0; 8];
        for (at, column) in columns.iter_mut().enumerate() {
            *column = row.get(4 + at)?;
        }
        let (leaf, session) = (number(row.get(0)?), session_leaf(row.get(1)?));
        Ok(Row { leaf, session, kind: row.get(2)?, wall: row.get(3)?, columns })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn insert(transaction: &Transaction<'_>, row: &Row) -> Result<()> {
    let [host, agent, instance, initiator, program, category, disposition, reviewer] = row.columns;
    transaction
        .prepare_cached(
            "INSERT INTO records (leaf, session, host, kind, wall, agent, instance, initiator, program, category,
             disposition, reviewer) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute((
            sql(row.leaf),
            session_number(row.session),
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
    let connection = super::super::connect(path)?;
    // Once for each step, and what lets the main file be less careful.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}
