//! The peers: full rows in SQLite and in PostgreSQL, with one index over host, session and time.
//!
//! They get what favours them: no primary key of their own, no chain, no hash, no TLS, large transactions.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use guard_log::record::Record;
use serde_json::{Value, json};

use crate::records::Journal;
use crate::{Failure, cpu_of};

/// Rows of one transaction of SQLite; durable together.
const SQLITE_ROWS: usize = 8192;
/// Rows of one `COPY`; durable together.
const COPY_ROWS: usize = 50_000;
const CONNECTIONS: usize = 2;

fn answer(records: u64, seconds: f64, cpu: f64) -> Value {
    json!({ "records": records, "seconds": seconds, "records_per_s": records as f64 / seconds, "client_cpu_s": cpu })
}

/// Full rows, write-ahead log, every commit synced.
pub fn sqlite(file: &Path, count: u64) -> Result<Value, Failure> {
    let records: Vec<Record> = Journal::new("sqlite").take(usize::try_from(count)?).collect();
    let mut connection = rusqlite::Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -65_536)?;
    connection.execute_batch(
        "CREATE TABLE records (host BLOB NOT NULL, session BLOB NOT NULL, time INTEGER NOT NULL, record BLOB NOT NULL);
         CREATE INDEX records_by ON records (host, session, time);",
    )?;
    let (cpu, start) = (cpu_of("self")?, Instant::now());
    for rows in records.chunks(SQLITE_ROWS) {
        let transaction = connection.transaction()?;
        let mut insert = transaction.prepare_cached("INSERT INTO records VALUES (?1, ?2, ?3, ?4)")?;
        for record in rows {
            let header = record.header();
            let (host, session) = (header.host.0.as_slice(), header.session.0.as_slice());
            insert.execute((host, session, header.wall_unix_ns, record.bytes().as_ref()))?;
        }
        drop(insert);
        transaction.commit()?;
    }
    Ok(answer(count, start.elapsed().as_secs_f64(), (cpu_of("self")? - cpu).as_secs_f64()))
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// PostgreSQL's binary form of `COPY`.
fn copy_form(records: &[Record]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for record in records {
        let header = record.header();
        out.extend_from_slice(&4_u16.to_be_bytes());
        field(&mut out, &header.host.0);
        field(&mut out, &header.session.0);
        field(&mut out, &header.wall_unix_ns.to_be_bytes());
        field(&mut out, record.bytes());
    }
    out.extend_from_slice(&u16::MAX.to_be_bytes());
    out
}

fn psql(program: &Path, socket: &Path, sql: &str) -> Command {
    let mut command = Command::new(program);
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "guard", "-d", "postgres", "-c", sql, "-h"]).arg(socket);
    command
}

fn ended(status: std::process::ExitStatus) -> Result<(), Failure> {
    if status.success() { Ok(()) } else { Err(format!("psql: {status}").into()) }
}

/// `COPY` of the same columns, one transaction for each part.
pub fn postgres(program: &Path, socket: &Path, count: u64) -> Result<Value, Failure> {
    let records: Vec<Record> = Journal::new("postgres").take(usize::try_from(count)?).collect();
    let parts: Vec<Vec<u8>> = records.chunks(COPY_ROWS).map(copy_form).collect();
    drop(records);
    let table = "DROP TABLE IF EXISTS records; CREATE TABLE records (host bytea NOT NULL, session bytea NOT NULL, \
                 time bigint NOT NULL, record bytea NOT NULL); CREATE INDEX records_by ON records (host, session, time); \
                 CHECKPOINT";
    ended(psql(program, socket, table).status()?)?;
    let (cpu, start) = (cpu_of("self")?, Instant::now());
    let copy = |part: &[u8]| -> Result<(), Failure> {
        let sql = "COPY records FROM STDIN (FORMAT binary)";
        let mut child = psql(program, socket, sql).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().ok_or("no stdin")?.write_all(part)?;
        ended(child.wait()?)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|n| {
                let parts = &parts;
                scope.spawn(move || parts.iter().skip(n).step_by(CONNECTIONS).try_for_each(|part| copy(part)))
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(answer(count, start.elapsed().as_secs_f64(), (cpu_of("self")? - cpu).as_secs_f64()))
}
