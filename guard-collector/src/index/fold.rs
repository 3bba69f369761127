//! One record of the log into the tables. Agrees with how guardctl puts a session's records together.
//!
//! It must depend on nothing but the record and the tables, so that a rebuild gives the same answers. A record of another host
//! than a session's own does not count for that session. Fails: errors of SQLite; a body that is not understood is a record
//! without more.

use guard_log::record::{Header, Record};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{ExecDecision, ExecFacts, ExecRequest, ReviewDecision, SessionEnd, SessionStart, Verdict};
use prost::Message;
use rusqlite::{OptionalExtension, Transaction};

use super::{IndexError, sql};
use crate::body;

type Result<T> = std::result::Result<T, IndexError>;

/// What a record says in the columns that queries ask for.
#[derive(Default)]
struct Columns<'a> {
    disposition: &'a str,
    category: &'a str,
    reviewer: &'a str,
}

struct Fold<'a> {
    tables: &'a Transaction<'a>,
    leaf: u64,
    header: Header,
    session: Option<String>,
}

/// Takes one record.
pub fn record(tables: &Transaction<'_>, leaf: u64, record: &Record) -> Result<()> {
    let (header, body) = (record.header(), body::parse(record));
    let mut fold = Fold { tables, leaf, header, session: None };
    fold.session = fold.own_session(body.as_ref())?;
    fold.insert_record(body.as_ref())?;
    match body {
        Some(body) => fold.body(&body),
        None => Ok(()),
    }
}

fn columns<'a>(body: &'a Body) -> Columns<'a> {
    let category = |v: Option<&'a Verdict>| v.map_or("", |v| v.category.as_str());
    match body {
        Body::Exec(b) => Columns {
            disposition: body::word(b.disposition),
            category: category(b.verdict.as_ref()),
            reviewer: &b.reviewer,
        },
        Body::ExecRequest(b) => Columns { category: category(b.verdict.as_ref()), ..Columns::default() },
        Body::ExecDecision(b) => {
            Columns { disposition: body::word(b.disposition), reviewer: &b.reviewer, ..Columns::default() }
        }
        Body::ExecOutcome(b) => Columns { disposition: body::word(b.disposition), ..Columns::default() },
        Body::ExecUnjudged(b) => Columns { disposition: body::word(b.disposition), ..Columns::default() },
        Body::ReviewDecision(b) => Columns { reviewer: &b.reviewer, ..Columns::default() },
        _ => Columns::default(),
    }
}

impl Fold<'_> {
    /// The record's session, if it belongs to this host (or the collector writes about it).
    fn own_session(&self, body: Option<&Body>) -> Result<Option<String>> {
        if self.header.session.is_none() {
            return Ok(None);
        }
        let id = self.header.session.to_string();
        if body::is_collectors(self.header.kind) {
            return Ok(Some(id));
        }
        let identity = body.and_then(body::identity);
        let text = |f: fn(&guard_proto::v1::Identity) -> &String| identity.map(f).cloned().unwrap_or_default();
        self.tables
            .prepare_cached(
                "INSERT OR IGNORE INTO sessions (leaf, session, host, agent, instance, initiator, started, ended, expires,
                 end_reason, purpose) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, '', '')",
            )?
            .execute((
                sql(self.leaf),
                &id,
                self.header.host.0.as_slice(),
                text(|i| &i.agent),
                text(|i| &i.instance),
                text(|i| &i.initiator),
                self.header.wall_unix_ns,
            ))?;
        let owner: Vec<u8> = self
            .tables
            .prepare_cached("SELECT host FROM sessions WHERE session = ?1")?
            .query_row([&id], |row| row.get(0))?;
        Ok((owner == self.header.host.0).then_some(id))
    }

    fn insert_record(&self, body: Option<&Body>) -> Result<()> {
        let columns = body.map(columns).unwrap_or_default();
        let of_session: Option<(String, String)> = match &self.session {
            None => None,
            Some(session) => self
                .tables
                .prepare_cached("SELECT agent, initiator FROM sessions WHERE session = ?1")?
                .query_row([session], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?,
        };
        let (agent, initiator) = match body.and_then(body::identity) {
            Some(identity) => (Some(identity.agent.clone()), Some(identity.initiator.clone())),
            None => of_session.unzip(),
        };
        let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
        self.tables
            .prepare_cached(
                "INSERT INTO records (leaf, host, session, kind, wall, agent, initiator, disposition, category, reviewer)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute((
                sql(self.leaf),
                self.header.host.0.as_slice(),
                &self.session,
                self.header.kind.0,
                self.header.wall_unix_ns,
                agent,
                initiator,
                some(columns.disposition),
                some(columns.category),
                some(columns.reviewer),
            ))?;
        Ok(())
    }

    fn body(&self, body: &Body) -> Result<()> {
        match body {
            Body::AdmitFinding(b) if b.what == "bound" => {
                self.tables
                    .execute("INSERT OR REPLACE INTO hosts (host, node) VALUES (?1, ?2)", (&b.host, &b.detail))?;
                Ok(())
            }
            Body::ReviewDecision(b) => self.review_decision(b),
            // Requests count whether or not they name a session; what follows belongs to a session.
            Body::ExecRequest(b) => self.request(b),
            Body::ExecDecision(b) => self.decision(b),
            Body::SessionStart(b) => self.with_session(|s| self.session_start(s, b)),
            Body::SessionEnd(b) => self.with_session(|s| self.session_end(s, b)),
            Body::Exec(b) => self.with_session(|s| self.push(s, b.facts.as_ref(), None, body::word(b.disposition))),
            Body::ExecOutcome(b) => self.with_session(|s| match body::word(b.disposition) {
                "" => Ok(()),
                word => self.set_exec(s, b.exec_id, word).map(|_| ()),
            }),
            Body::ExecUnjudged(b) => self.with_session(|s| {
                // A judged exec that the kernel refused later is the same attempt.
                let word = body::word(b.disposition);
                match self.find_exec(s, b.exec_id)? {
                    Some(_) if word.is_empty() => Ok(()),
                    Some(_) => self.set_exec(s, b.exec_id, word).map(|_| ()),
                    None => self.insert_exec(s, Some(b.exec_id), None, word),
                }
            }),
            Body::NodeStart(_)
            | Body::NodeStop(_)
            | Body::GuardRefusal(_)
            | Body::GuardObservation(_)
            | Body::Gap(_)
            | Body::Canary(_)
            | Body::EmergencyStop(_)
            | Body::JournalRepair(_)
            | Body::PolicyLoaded(_)
            | Body::CollectorStart(_)
            | Body::AdmitFinding(_)
            | Body::CheckpointRefused(_)
            | Body::BlobErased(_) => Ok(()),
        }
    }

    fn with_session(&self, f: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        self.session.as_deref().map_or(Ok(()), f)
    }

    fn session_start(&self, session: &str, b: &SessionStart) -> Result<()> {
        let identity = b.identity.clone().unwrap_or_default();
        self.tables
            .prepare_cached(
                "UPDATE sessions SET agent = ?2, instance = ?3, initiator = ?4, started = ?5, expires = ?6, purpose = ?7,
                 start = ?8 WHERE session = ?1",
            )?
            .execute((
                session,
                identity.agent,
                identity.instance,
                identity.initiator,
                self.header.wall_unix_ns,
                b.expires_unix_ns,
                &b.purpose,
                // Only its argument vector is asked for.
                SessionStart { argv: b.argv.clone(), ..SessionStart::default() }.encode_to_vec(),
            ))?;
        Ok(())
    }

    fn session_end(&self, session: &str, b: &SessionEnd) -> Result<()> {
        self.tables.prepare_cached("UPDATE sessions SET ended = ?2, end_reason = ?3 WHERE session = ?1")?.execute((
            session,
            self.header.wall_unix_ns.max(1),
            &b.reason,
        ))?;
        Ok(())
    }

    fn insert_exec(&self, session: &str, exec_id: Option<u64>, request: Option<&str>, word: &str) -> Result<()> {
        self.tables
            .prepare_cached(
                "INSERT INTO execs (session, leaf, exec_id, request, disposition) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute((session, sql(self.leaf), exec_id.map(u64::cast_signed), request, word))?;
        Ok(())
    }

    fn push(&self, session: &str, facts: Option<&ExecFacts>, request: Option<&str>, word: &str) -> Result<()> {
        self.insert_exec(session, facts.map(|f| f.exec_id), request, word)
    }

    fn find_exec(&self, session: &str, exec_id: u64) -> Result<Option<i64>> {
        let mut find = self
            .tables
            .prepare_cached("SELECT id FROM execs WHERE session = ?1 AND exec_id = ?2 ORDER BY id DESC LIMIT 1")?;
        Ok(find.query_row((session, exec_id.cast_signed()), |row| row.get(0)).optional()?)
    }

    fn set(&self, id: i64, word: &str) -> Result<()> {
        self.tables.prepare_cached("UPDATE execs SET disposition = ?2 WHERE id = ?1")?.execute((id, word))?;
        Ok(())
    }

    fn set_exec(&self, session: &str, exec_id: u64, word: &str) -> Result<bool> {
        match self.find_exec(session, exec_id)? {
            Some(id) => self.set(id, word).map(|()| true),
            None => Ok(false),
        }
    }

    fn request(&self, b: &ExecRequest) -> Result<()> {
        self.with_session(|s| self.push(s, b.facts.as_ref(), Some(&b.request_id), "pending"))?;
        // Another host cannot take over a request that is open.
        self.tables
            .prepare_cached(
                "INSERT INTO reviews (request, host, leaf, session, opened, deadline, state, reviewer, reason, closed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', '', '', 0)
                 ON CONFLICT (request) DO UPDATE SET host = excluded.host, leaf = excluded.leaf,
                 session = excluded.session, opened = excluded.opened, deadline = excluded.deadline, state = '',
                 reviewer = '', reason = '', closed = 0 WHERE reviews.host = excluded.host OR reviews.closed = 1",
            )?
            .execute((
                &b.request_id,
                self.header.host.0.as_slice(),
                sql(self.leaf),
                self.header.session.to_string(),
                self.header.wall_unix_ns,
                b.deadline_unix_ns,
            ))?;
        Ok(())
    }

    fn decision(&self, b: &ExecDecision) -> Result<()> {
        let word = body::word(b.disposition);
        self.with_session(|session| {
            let asked: Option<i64> = self
                .tables
                .prepare_cached("SELECT id FROM execs WHERE session = ?1 AND request = ?2 ORDER BY id DESC LIMIT 1")?
                .query_row((session, &b.request_id), |row| row.get(0))
                .optional()?;
            match asked {
                Some(id) if b.retry_of == 0 => self.set(id, word),
                // The identical exec, tried again after the approval, is an exec of its own.
                _ if self.set_exec(session, b.exec_id, word)? => Ok(()),
                _ => self.insert_exec(session, Some(b.exec_id), None, word),
            }
        })?;
        self.tables
            .prepare_cached(
                "UPDATE reviews SET state = ?3, closed = 1, reviewer = CASE WHEN ?4 = '' THEN reviewer ELSE ?4 END,
                 reason = CASE WHEN ?5 = '' THEN reason ELSE ?5 END WHERE request = ?1 AND host = ?2 AND closed = 0",
            )?
            .execute((&b.request_id, self.header.host.0.as_slice(), word, &b.reviewer, &b.reason))?;
        Ok(())
    }

    fn review_decision(&self, b: &ReviewDecision) -> Result<()> {
        let word = if b.approve { "approved" } else { "denied" };
        self.tables
            .prepare_cached(
                "UPDATE reviews SET state = ?3, reviewer = ?4, reason = ?5
                 WHERE request = ?1 AND host = ?2 AND closed = 0",
            )?
            .execute((&b.request_id, &b.host, word, &b.reviewer, &b.reason))?;
        Ok(())
    }
}
