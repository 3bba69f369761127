//! What people ask of the index.
//!
//! Every answer comes from one state of the tables and says how much of the log that is. It must not return records: callers
//! read those from the log by leaf. Fails: errors of SQLite.

use guard_log::record::{HostId, Kind};
use guard_proto::v1::{SessionStart, SessionSummary};
use prost::Message;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, Transaction, params_from_iter};

use super::{Index, IndexError, number, sql};
use crate::reviews::undecided;

type Result<T> = std::result::Result<T, IndexError>;

/// Execs shown with a request.
const BEFORE: u32 = 5;

/// Which sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only open ones.
    pub open_only: bool,
    /// Of this agent, unless empty.
    pub agent: String,
    /// Of this initiator, unless empty.
    pub initiator: String,
    /// Only sessions whose first leaf is below.
    pub below: Option<u64>,
    /// At most so many.
    pub limit: u32,
}

/// Sessions, newest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The sessions.
    pub sessions: Vec<SessionSummary>,
    /// The leaf below which the next page begins, if there is more.
    pub next: Option<u64>,
}

/// A session and the first leaves of its records.
pub type SessionLeaves = (SessionSummary, Vec<u64>);

/// Which records.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this session, unless empty.
    pub session: String,
    /// Of this agent, unless empty.
    pub agent: String,
    /// Of this initiator, unless empty.
    pub initiator: String,
    /// Of this host.
    pub host: Option<HostId>,
    /// With this disposition, unless empty.
    pub disposition: String,
    /// With this category, unless empty.
    pub category: String,
    /// With this reviewer, unless empty.
    pub reviewer: String,
    /// Wall time from, in ns; 0 for none.
    pub since: i64,
    /// Wall time until (exclusive), in ns; 0 for none.
    pub until: i64,
    /// Only leaves above.
    pub after: Option<u64>,
    /// At most so many.
    pub limit: u32,
}

/// A request as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Host that asked.
    pub host: HostId,
    /// Name of its node.
    pub host_name: String,
    /// Leaf of the request.
    pub leaf: u64,
    /// Its session.
    pub session: String,
    /// Wall time of the request.
    pub opened: i64,
    /// State in one word.
    pub state: String,
    /// Reviewer, if any.
    pub reviewer: String,
    /// Reason, if any.
    pub reason: String,
}

const SESSION: &str =
    "SELECT s.leaf, s.session, s.host, s.agent, s.instance, s.initiator, s.started, s.ended, s.expires,
    s.end_reason, s.purpose, s.start, coalesce(h.node, '') FROM sessions s LEFT JOIN hosts h ON h.host = s.host";
const REVIEW: &str = "SELECT r.host, coalesce(h.node, ''), r.leaf, r.session, r.opened, r.state, r.reviewer, r.reason,
    r.deadline FROM reviews r LEFT JOIN hosts h ON h.host = r.host";

fn summary(row: &Row<'_>) -> rusqlite::Result<(u64, SessionSummary)> {
    let start: Option<Vec<u8>> = row.get(11)?;
    let start = start.and_then(|bytes| SessionStart::decode(bytes.as_slice()).ok()).unwrap_or_default();
    let summary = SessionSummary {
        session_id: row.get(1)?,
        host: row.get(2)?,
        agent: row.get(3)?,
        instance: row.get(4)?,
        initiator: row.get(5)?,
        started_unix_ns: row.get(6)?,
        ended_unix_ns: row.get(7)?,
        expires_unix_ns: row.get(8)?,
        end_reason: row.get(9)?,
        purpose: row.get(10)?,
        argv: start.argv,
        host_name: row.get(12)?,
        ..SessionSummary::default()
    };
    Ok((number(row.get(0)?), summary))
}

fn count(tables: &Transaction<'_>, s: &mut SessionSummary) -> Result<()> {
    let mut counts =
        tables.prepare_cached("SELECT disposition, count(*) FROM execs WHERE session = ?1 GROUP BY disposition")?;
    let mut rows = counts.query([&s.session_id])?;
    while let Some(row) = rows.next()? {
        let (word, n): (String, u32) = (row.get(0)?, row.get(1)?);
        s.execs = s.execs.saturating_add(n);
        match word.as_str() {
            "allowed" => s.allowed = n,
            "inherited" => s.inherited = n,
            "approved" => s.approved = n,
            "denied" => s.denied = n,
            "timed_out" => s.timed_out = n,
            "expired" => s.expired = n,
            "killed" => s.killed = n,
            "failed" => s.failed = n,
            "pending" => s.pending = n,
            // Of a newer version: counted as an exec and nothing else.
            _ => {}
        }
    }
    Ok(())
}

fn found(row: &Row<'_>, now_ns: i64) -> rusqlite::Result<Found> {
    let (state, deadline): (String, i64) = (row.get(5)?, row.get(8)?);
    let host: Vec<u8> = row.get(0)?;
    Ok(Found {
        host: HostId::from_slice(&host).unwrap_or_default(),
        host_name: row.get(1)?,
        leaf: number(row.get(2)?),
        session: row.get(3)?,
        opened: row.get(4)?,
        state: if state.is_empty() { undecided(deadline, now_ns).to_owned() } else { state },
        reviewer: row.get(6)?,
        reason: row.get(7)?,
    })
}

fn leaves(tables: &Transaction<'_>, sql: &str, values: Vec<Value>) -> Result<Vec<u64>> {
    let mut statement = tables.prepare_cached(sql)?;
    let rows = statement.query_map(params_from_iter(values), |row| row.get(0).map(number))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Collects conditions with their values.
#[derive(Default)]
struct Where(String, Vec<Value>);

impl Where {
    fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.0.push_str(if self.0.is_empty() { " WHERE " } else { " AND " });
        self.0.push_str(condition);
        self.1.push(value.into());
    }

    fn and_text(&mut self, condition: &str, value: &str) {
        if !value.is_empty() {
            self.and(condition, value.to_owned());
        }
    }
}

// === impl Index ===

impl Index {
    /// Sessions, newest first.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<(Page, u64)> {
        let mut conditions = Where::default();
        if filter.open_only {
            conditions.and("s.ended = ?", 0);
        }
        conditions.and_text("s.agent = ?", &filter.agent);
        conditions.and_text("s.initiator = ?", &filter.initiator);
        if let Some(below) = filter.below {
            conditions.and("s.leaf < ?", sql(below));
        }
        let limit = filter.limit as usize;
        self.answer(|tables| {
            let Where(text, mut values) = conditions;
            values.push(Value::Integer(i64::from(filter.limit) + 1));
            let mut statement = tables.prepare_cached(&format!("{SESSION}{text} ORDER BY s.leaf DESC LIMIT ?"))?;
            let rows = statement.query_map(params_from_iter(values), summary)?;
            let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let more = found.len() > limit;
            found.truncate(limit);
            let next = found.last().map(|(leaf, _)| *leaf).filter(|_| more);
            let mut sessions = Vec::with_capacity(found.len());
            for (_, mut session) in found {
                count(tables, &mut session)?;
                sessions.push(session);
            }
            Ok(Page { sessions, next })
        })
    }

    /// One session, and the first leaves of its records.
    pub fn session(&self, id: &str, limit: u32) -> Result<(Option<SessionLeaves>, u64)> {
        self.answer(|tables| {
            let mut statement = tables.prepare_cached(&format!("{SESSION} WHERE s.session = ?1"))?;
            let Some((_, mut session)) = statement.query_row([id], summary).optional()? else { return Ok(None) };
            count(tables, &mut session)?;
            let leaves = leaves(
                tables,
                "SELECT leaf FROM records WHERE session = ? ORDER BY leaf LIMIT ?",
                vec![id.to_owned().into(), Value::Integer(limit.into())],
            )?;
            Ok(Some((session, leaves)))
        })
    }

    /// Sessions that have not ended.
    pub fn open_sessions(&self) -> Result<(u32, u64)> {
        self.answer(|tables| {
            Ok(tables.query_row("SELECT count(*) FROM sessions WHERE ended = 0", [], |row| row.get(0))?)
        })
    }

    /// Leaves of records, in log order.
    pub fn query(&self, filter: &Filter) -> Result<(Vec<u64>, u64)> {
        let mut conditions = Where::default();
        conditions.and_text("session = ?", &filter.session);
        conditions.and_text("agent = ?", &filter.agent);
        conditions.and_text("initiator = ?", &filter.initiator);
        conditions.and_text("disposition = ?", &filter.disposition);
        conditions.and_text("category = ?", &filter.category);
        conditions.and_text("reviewer = ?", &filter.reviewer);
        if let Some(host) = filter.host {
            conditions.and("host = ?", host.0.to_vec());
        }
        if filter.since != 0 {
            conditions.and("wall >= ?", filter.since);
        }
        if filter.until != 0 {
            conditions.and("wall < ?", filter.until);
        }
        if let Some(after) = filter.after {
            conditions.and("leaf > ?", sql(after));
        }
        let Where(text, mut values) = conditions;
        values.push(Value::Integer(filter.limit.into()));
        self.answer(|tables| leaves(tables, &format!("SELECT leaf FROM records{text} ORDER BY leaf LIMIT ?"), values))
    }

    /// The newest requests, closed ones too, in log order.
    pub fn reviews(&self, session: &str, limit: u32, now_ns: i64) -> Result<(Vec<Found>, u64)> {
        let mut conditions = Where::default();
        conditions.and_text("r.session = ?", session);
        let Where(text, mut values) = conditions;
        values.push(Value::Integer(limit.into()));
        self.answer(|tables| {
            let mut statement = tables.prepare_cached(&format!("{REVIEW}{text} ORDER BY r.leaf DESC LIMIT ?"))?;
            let rows = statement.query_map(params_from_iter(values), |row| found(row, now_ns))?;
            let mut all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            all.reverse();
            Ok(all)
        })
    }

    /// One request.
    pub fn review(&self, request: &str, now_ns: i64) -> Result<(Option<Found>, u64)> {
        self.answer(|tables| {
            let mut statement = tables.prepare_cached(&format!("{REVIEW} WHERE r.request = ?1"))?;
            Ok(statement.query_row([request], |row| found(row, now_ns)).optional()?)
        })
    }

    /// Leaves of what ran in a session just before a leaf, newest first.
    pub fn before(&self, session: &str, leaf: u64) -> Result<(Vec<u64>, u64)> {
        self.answer(|tables| {
            // Retries have the leaf of their decision, which carries no facts.
            leaves(
                tables,
                "SELECT e.leaf FROM execs e JOIN records r ON r.leaf = e.leaf
                 WHERE e.session = ? AND e.leaf < ? AND r.kind IN (?, ?)
                 AND e.disposition IN ('allowed', 'inherited', 'approved') ORDER BY e.leaf DESC LIMIT ?",
                vec![
                    session.to_owned().into(),
                    sql(leaf).into(),
                    i64::from(Kind::EXEC.0).into(),
                    i64::from(Kind::EXEC_REQUEST.0).into(),
                    Value::Integer(BEFORE.into()),
                ],
            )
        })
    }
}
