//! What people ask of the index.
//!
//! Every answer comes from one state of the tables and says how much of the log that is. It must not return records: callers
//! read those from the log by leaf. Fails: errors of SQLite.

use guard_log::record::HostId;
use guard_proto::v1::{ReviewerStats, SessionStart, SessionSummary};
use prost::Message;
use rusqlite::types::Value;
use rusqlite::{OptionalExtension, Row, Transaction, params_from_iter};

use super::part::{Column, Wanted};
use super::{Asked, Index, IndexError, number, sql, words};
use crate::reviews::undecided;

type Result<T> = std::result::Result<T, IndexError>;

/// Child sessions named with their parent.
const CHILDREN_MAX: u32 = 1000;
/// Execs shown with a request.
const BEFORE: u32 = 5;

/// Median and 90th percentile of times in order: the nearest rank.
fn with_times(stats: ReviewerStats, times: &[u64]) -> ReviewerStats {
    let rank = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
    ReviewerStats { median_ns: rank(50).unwrap_or(0), p90_ns: rank(90).unwrap_or(0), ..stats }
}

/// Which sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    /// Only open ones.
    pub open_only: bool,
    /// Of this agent, unless empty.
    pub agent: String,
    /// Of this initiator, unless empty.
    pub initiator: String,
    /// Child sessions of this one, unless empty.
    pub parent: String,
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
    /// Of this running copy, unless empty.
    pub instance: String,
    /// Of this initiator, unless empty.
    pub initiator: String,
    /// Of this program (path), unless empty.
    pub program: String,
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
    s.end_reason, s.purpose, s.start, coalesce(h.node, ''), s.parent FROM sessions s LEFT JOIN hosts h ON h.host = s.host";
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
        parent_session_id: row.get(13)?,
        ..SessionSummary::default()
    };
    Ok((number(row.get(0)?), summary))
}

/// Ids of a session's children, oldest first. A host speaks of its own sessions only.
fn children(tables: &Transaction<'_>, of: &SessionSummary) -> Result<Vec<String>> {
    let mut find = tables.prepare_cached(
        "SELECT session FROM sessions WHERE parent != '' AND parent = ?1 AND host = ?2 ORDER BY leaf LIMIT ?3",
    )?;
    let rows = find.query_map((&of.session_id, &of.host, CHILDREN_MAX), |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn count(tables: &Transaction<'_>, leaf: u64, s: &mut SessionSummary) -> Result<()> {
    let mut counts =
        tables.prepare_cached("SELECT disposition, count(*) FROM execs WHERE session = ?1 GROUP BY disposition")?;
    let mut rows = counts.query([sql(leaf)])?;
    while let Some(row) = rows.next()? {
        let (word, n): (i64, u32) = (row.get(0)?, row.get(1)?);
        s.execs = s.execs.saturating_add(n);
        match words::word(word) {
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

/// First leaf of a session, which is its number.
fn session_leaf(tables: &Transaction<'_>, session: &str) -> Result<Option<u64>> {
    let mut find = tables.prepare_cached("SELECT leaf FROM sessions WHERE session = ?1")?;
    Ok(find.query_row([session], |row| row.get(0).map(number)).optional()?)
}

/// Number of a text that occurs.
fn name(tables: &Transaction<'_>, text: &[u8]) -> Result<Option<i64>> {
    let mut find = tables.prepare_cached("SELECT id FROM names WHERE text = ?1")?;
    Ok(find.query_row([text], |row| row.get(0)).optional()?)
}

/// The filter in numbers; `None` if it asks for a text that occurs nowhere.
fn wanted(tables: &Transaction<'_>, filter: &Filter) -> Result<Option<Wanted>> {
    let mut wanted = Wanted {
        leaves: filter.after.map_or(0, |after| after.saturating_add(1))..u64::MAX,
        since: Some(filter.since).filter(|t| *t != 0),
        until: Some(filter.until).filter(|t| *t != 0),
        ..Wanted::default()
    };
    if !filter.session.is_empty() {
        wanted.session = session_leaf(tables, &filter.session)?;
        // No record of a session comes before its first.
        let Some(first) = wanted.session else { return Ok(None) };
        wanted.leaves.start = wanted.leaves.start.max(first);
    }
    if !filter.disposition.is_empty() {
        let Some(number) = words::of_word(&filter.disposition) else { return Ok(None) };
        wanted.columns.push((Column::Disposition, number));
    }
    let host = filter.host.map(|host| host.0.to_vec()).unwrap_or_default();
    for (column, text) in [
        (Column::Host, host.as_slice()),
        (Column::Agent, filter.agent.as_bytes()),
        (Column::Instance, filter.instance.as_bytes()),
        (Column::Initiator, filter.initiator.as_bytes()),
        (Column::Program, filter.program.as_bytes()),
        (Column::Category, filter.category.as_bytes()),
        (Column::Reviewer, filter.reviewer.as_bytes()),
    ] {
        if text.is_empty() {
            continue;
        }
        let Some(number) = name(tables, text)? else { return Ok(None) };
        wanted.columns.push((column, number));
    }
    Ok(Some(wanted))
}

fn find(asked: &Asked<'_>, filter: &Filter) -> Result<Vec<u64>> {
    match wanted(&asked.tables, filter)? {
        Some(wanted) => asked.find(wanted, filter.limit as usize),
        None => Ok(vec![]),
    }
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
        conditions.and_text("s.parent != '' AND s.parent = ?", &filter.parent);
        if let Some(below) = filter.below {
            conditions.and("s.leaf < ?", sql(below));
        }
        let limit = filter.limit as usize;
        self.answer(|asked| {
            let tables = &asked.tables;
            let Where(text, mut values) = conditions;
            values.push(Value::Integer(i64::from(filter.limit) + 1));
            let mut statement = tables.prepare_cached(&format!("{SESSION}{text} ORDER BY s.leaf DESC LIMIT ?"))?;
            let rows = statement.query_map(params_from_iter(values), summary)?;
            let mut found = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let more = found.len() > limit;
            found.truncate(limit);
            let next = found.last().map(|(leaf, _)| *leaf).filter(|_| more);
            let mut sessions = Vec::with_capacity(found.len());
            for (leaf, mut session) in found {
                count(tables, leaf, &mut session)?;
                sessions.push(session);
            }
            Ok(Page { sessions, next })
        })
    }

    /// One session with the ids of its children, and the first leaves of its records.
    pub fn session(&self, id: &str, limit: u32) -> Result<(Option<SessionLeaves>, u64)> {
        self.answer(|asked| {
            let mut statement = asked.tables.prepare_cached(&format!("{SESSION} WHERE s.session = ?1"))?;
            let Some((leaf, mut session)) = statement.query_row([id], summary).optional()? else { return Ok(None) };
            count(&asked.tables, leaf, &mut session)?;
            session.children = children(&asked.tables, &session)?;
            let wanted = Wanted { session: Some(leaf), leaves: leaf..u64::MAX, ..Wanted::default() };
            Ok(Some((session, asked.find(wanted, limit as usize)?)))
        })
    }

    /// Sessions that have not ended.
    pub fn open_sessions(&self) -> Result<(u32, u64)> {
        self.answer(|asked| {
            Ok(asked.tables.query_row("SELECT count(*) FROM sessions WHERE ended = 0", [], |row| row.get(0))?)
        })
    }

    /// Leaves of records, in log order.
    pub fn query(&self, filter: &Filter) -> Result<(Vec<u64>, u64)> {
        self.answer(|asked| find(asked, filter))
    }

    /// The newest requests, closed ones too, in log order.
    pub fn reviews(&self, session: &str, limit: u32, now_ns: i64) -> Result<(Vec<Found>, u64)> {
        let mut conditions = Where::default();
        conditions.and_text("r.session = ?", session);
        let Where(text, mut values) = conditions;
        values.push(Value::Integer(limit.into()));
        self.answer(|asked| {
            let mut statement = asked.tables.prepare_cached(&format!("{REVIEW}{text} ORDER BY r.leaf DESC LIMIT ?"))?;
            let rows = statement.query_map(params_from_iter(values), |row| found(row, now_ns))?;
            let mut all = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            all.reverse();
            Ok(all)
        })
    }

    /// One request.
    pub fn review(&self, request: &str, now_ns: i64) -> Result<(Option<Found>, u64)> {
        self.answer(|asked| {
            let mut statement = asked.tables.prepare_cached(&format!("{REVIEW} WHERE r.request = ?1"))?;
            Ok(statement.query_row([request], |row| found(row, now_ns)).optional()?)
        })
    }

    /// Whether a record from leaf `first` on names a blob.
    pub fn names_blob(&self, id: &[u8], first: u64) -> Result<(bool, u64)> {
        self.answer(|asked| {
            let mut find = asked.tables.prepare_cached("SELECT last FROM blobs WHERE id = ?1")?;
            let last: Option<i64> = find.query_row([id], |row| row.get(0)).optional()?;
            Ok(last.is_some_and(|last| number(last) >= first))
        })
    }

    /// How each reviewer has decided since a point in time, by name.
    pub fn review_stats(&self, since: i64) -> Result<(Vec<ReviewerStats>, u64)> {
        self.answer(|asked| {
            let mut find = asked.tables.prepare_cached(
                "SELECT reviewer, waited, approve, at FROM decisions WHERE at >= ?1 ORDER BY reviewer, waited",
            )?;
            let mut rows = find.query([since])?;
            let mut all: Vec<(ReviewerStats, Vec<u64>)> = vec![];
            while let Some(row) = rows.next()? {
                let (reviewer, waited): (String, u64) = (row.get(0)?, number(row.get(1)?));
                let (approve, at): (bool, i64) = (row.get(2)?, row.get(3)?);
                if all.last().is_none_or(|(stats, _)| stats.reviewer != reviewer) {
                    all.push((ReviewerStats { reviewer, ..ReviewerStats::default() }, vec![]));
                }
                let Some((stats, times)) = all.last_mut() else { continue };
                stats.decisions += 1;
                stats.approved += u32::from(approve);
                stats.within_3s += u32::from(approve && waited < 3_000_000_000);
                stats.last_unix_ns = stats.last_unix_ns.max(at);
                times.push(waited);
            }
            Ok(all.into_iter().map(|(stats, times)| with_times(stats, &times)).collect())
        })
    }

    /// Leaves of what ran in a session just before a leaf, newest first.
    pub fn before(&self, session: &str, leaf: u64) -> Result<(Vec<u64>, u64)> {
        self.answer(|asked| {
            let Some(number_of) = session_leaf(&asked.tables, session)? else { return Ok(vec![]) };
            // Retries have the leaf of their decision, which carries no facts.
            let mut statement = asked.tables.prepare_cached(
                "SELECT leaf FROM execs WHERE session = ?1 AND leaf < ?2 AND facts = 1 AND disposition IN (?3, ?4, ?5)
                 ORDER BY leaf DESC LIMIT ?6",
            )?;
            let [allowed, inherited, approved] = ["allowed", "inherited", "approved"].map(words::of_word);
            let values = (sql(number_of), sql(leaf), allowed, inherited, approved, BEFORE);
            let rows = statement.query_map(values, |row| row.get(0).map(number))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }
}
