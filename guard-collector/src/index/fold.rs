//! One record of the log into the tables. Agrees with how guardctl puts a session's records together.
//!
//! It must depend on nothing but the record and the tables, so that a rebuild gives the same answers; [`Memory`] only spares
//! looking up again what the tables say. A record of another host than a session's own does not count for that session.
//! Fails: errors of SQLite; a body that is not understood is a record without more.

use std::collections::HashMap;

use guard_log::record::{Header, HostId, Kind, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{
    DecisionFinding, ExecDecision, ExecRequest, ReviewDecision, SessionEnd, SessionRenewed, SessionStart,
};
use prost::Message;
use rusqlite::{OptionalExtension, Transaction};

use super::part::Row;
use super::view::{Owner, View, view};
use super::{IndexError, number, sql, words};
use crate::body;

type Result<T> = std::result::Result<T, IndexError>;

/// Texts and sessions that are remembered; beyond that all are forgotten and looked up again.
const NAMES_MAX: usize = 32_768;
const SESSIONS_MAX: usize = 16_384;
/// An exec of which no number is known, which no outcome can name.
const NO_EXEC: i64 = i64::MIN;

/// What the tables say of texts and sessions.
#[derive(Default)]
pub struct Memory {
    names: HashMap<Vec<u8>, i64>,
    sessions: HashMap<SessionId, Session>,
}

#[derive(Clone, Copy)]
struct Session {
    leaf: u64,
    host: HostId,
    /// Agent, instance and initiator.
    owner: [i64; 3],
}

/// Takes records into one transaction of the main file.
pub struct Fold<'a> {
    tables: &'a Transaction<'a>,
    memory: &'a mut Memory,
}

/// One record on its way.
#[derive(Clone, Copy)]
struct At<'a> {
    leaf: u64,
    header: &'a Header,
    session: Option<u64>,
}

impl<'a> Fold<'a> {
    /// Into this transaction; `memory` must be forgotten when it is not committed.
    pub fn new(tables: &'a Transaction<'a>, memory: &'a mut Memory) -> Self {
        if memory.names.len() > NAMES_MAX {
            memory.names.clear();
        }
        if memory.sessions.len() > SESSIONS_MAX {
            memory.sessions.clear();
        }
        Self { tables, memory }
    }

    /// Takes one record; its row for the month's file.
    pub fn record(&mut self, leaf: u64, record: &Record) -> Result<Row> {
        let (header, view) = (record.header(), view(record));
        let session = self.own_session(leaf, &header, view.owner.as_ref())?;
        let [agent, instance, initiator] = match &view.owner {
            Some(owner) => self.owner(owner)?,
            None => session.map(|s| s.owner).unwrap_or_default(),
        };
        let at = At { leaf, header: &header, session: session.map(|s| s.leaf) };
        let columns = [
            self.name(&header.host.0)?,
            agent,
            instance,
            initiator,
            self.name(&view.program)?,
            self.name(view.category.as_bytes())?,
            words::of_raw(view.disposition),
            self.name(view.reviewer.as_bytes())?,
        ];
        self.body(at, &view)?;
        if !view.blob.is_empty() {
            self.tables
                .prepare_cached("INSERT OR REPLACE INTO blobs (id, last) VALUES (?1, ?2)")?
                .execute((&*view.blob, sql(leaf)))?;
        }
        Ok(Row { leaf, session: at.session, kind: header.kind.0, wall: header.wall_unix_ns, columns })
    }

    /// Number of a text; 0 for none.
    fn name(&mut self, text: &[u8]) -> Result<i64> {
        if text.is_empty() {
            return Ok(0);
        }
        if let Some(known) = self.memory.names.get(text) {
            return Ok(*known);
        }
        let found: Option<i64> = self
            .tables
            .prepare_cached("SELECT id FROM names WHERE text = ?1")?
            .query_row([text], |row| row.get(0))
            .optional()?;
        let id = match found {
            Some(id) => id,
            None => {
                self.tables.prepare_cached("INSERT INTO names (text) VALUES (?1)")?.execute([text])?;
                self.tables.last_insert_rowid()
            }
        };
        self.memory.names.insert(text.to_vec(), id);
        Ok(id)
    }

    fn owner(&mut self, owner: &Owner<'_>) -> Result<[i64; 3]> {
        let mut name = |text: &str| self.name(text.as_bytes());
        Ok([name(&owner.agent)?, name(&owner.instance)?, name(&owner.initiator)?])
    }

    /// The record's session, if it belongs to this host (or the collector writes about it).
    fn own_session(&mut self, leaf: u64, header: &Header, owner: Option<&Owner<'_>>) -> Result<Option<Session>> {
        if header.session.is_none() {
            return Ok(None);
        }
        let known = match self.memory.sessions.get(&header.session) {
            Some(session) => Some(*session),
            None => self.find_session(&header.session)?,
        };
        if body::is_collectors(header.kind) {
            return Ok(known);
        }
        let session = match known {
            Some(session) => session,
            None => self.new_session(leaf, header, owner)?,
        };
        Ok(Some(session).filter(|s| s.host == header.host))
    }

    fn find_session(&mut self, id: &SessionId) -> Result<Option<Session>> {
        type Found = (i64, Vec<u8>, String, String, String);
        let found: Option<Found> = self
            .tables
            .prepare_cached("SELECT leaf, host, agent, instance, initiator FROM sessions WHERE session = ?1")?
            .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
            .optional()?;
        let Some((leaf, host, agent, instance, initiator)) = found else { return Ok(None) };
        let owner = [self.name(agent.as_bytes())?, self.name(instance.as_bytes())?, self.name(initiator.as_bytes())?];
        let host = HostId::from_slice(&host).unwrap_or_default();
        Ok(Some(self.remember(*id, Session { leaf: number(leaf), host, owner })))
    }

    fn remember(&mut self, id: SessionId, session: Session) -> Session {
        self.memory.sessions.insert(id, session);
        session
    }

    fn new_session(&mut self, leaf: u64, header: &Header, owner: Option<&Owner<'_>>) -> Result<Session> {
        let none = Owner::default();
        let owner = owner.unwrap_or(&none);
        self.tables
            .prepare_cached(
                "INSERT INTO sessions (leaf, session, host, agent, instance, initiator, started, ended, expires,
                 end_reason, purpose, parent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0, 0, '', '', '')",
            )?
            .execute((
                sql(leaf),
                header.session.to_string(),
                header.host.0.as_slice(),
                &owner.agent,
                &owner.instance,
                &owner.initiator,
                header.wall_unix_ns,
            ))?;
        let owner = self.owner(owner)?;
        Ok(self.remember(header.session, Session { leaf, host: header.host, owner }))
    }

    fn body(&mut self, at: At<'_>, view: &View<'_>) -> Result<()> {
        let disposition = words::of_raw(view.disposition);
        match (&view.rest, at.header.kind) {
            (Some(Body::AdmitFinding(b)), _) if b.what == "bound" => {
                self.tables
                    .execute("INSERT OR REPLACE INTO hosts (host, node) VALUES (?1, ?2)", (&b.host, &b.detail))?;
                Ok(())
            }
            (Some(Body::ReviewDecision(b)), _) => self.review_decision(at, b),
            (Some(Body::DecisionFinding(b)), _) if b.what == "refused" => self.refused(at, b),
            // Requests count whether or not they name a session; what follows belongs to a session.
            (Some(Body::ExecRequest(b)), _) => self.request(at, b, view.exec),
            (Some(Body::ExecDecision(b)), _) => self.decision(at, b),
            (Some(Body::SessionStart(b)), _) => self.session_start(at, b),
            (Some(Body::SessionRenewed(b)), _) => self.session_renewed(at, b),
            (Some(Body::SessionEnd(b)), _) => self.session_end(at, b),
            // A body that is not understood has no number, not even 0.
            (None, Kind::EXEC) if view.understood => self.insert_exec(at, view.exec, None, disposition),
            (None, Kind::EXEC_OUTCOME) => self.outcome(at, view, disposition),
            (None, Kind::EXEC_UNJUDGED) => self.unjudged(at, view, disposition),
            _ => Ok(()),
        }
    }

    fn outcome(&self, at: At<'_>, view: &View<'_>, disposition: i64) -> Result<()> {
        match view.exec {
            Some(exec) if disposition != 0 => self.set_exec(at, exec, disposition).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// A judged exec that the kernel refused later is the same attempt.
    fn unjudged(&self, at: At<'_>, view: &View<'_>, disposition: i64) -> Result<()> {
        let Some(exec) = view.exec else { return Ok(()) };
        match self.find_exec(at, exec)? {
            Some(_) if disposition == 0 => Ok(()),
            Some(leaf) => self.set(at, exec.cast_signed(), leaf, disposition),
            None => self.insert_exec(at, Some(exec), None, disposition),
        }
    }

    fn session_start(&mut self, at: At<'_>, b: &SessionStart) -> Result<()> {
        let Some(leaf) = at.session else { return Ok(()) };
        let identity = b.identity.clone().unwrap_or_default();
        self.tables
            .prepare_cached(
                "UPDATE sessions SET agent = ?2, instance = ?3, initiator = ?4, started = ?5, expires = ?6, purpose = ?7,
                 parent = ?8, start = ?9 WHERE leaf = ?1",
            )?
            .execute((
                sql(leaf),
                &identity.agent,
                &identity.instance,
                &identity.initiator,
                at.header.wall_unix_ns,
                b.expires_unix_ns,
                &b.purpose,
                &identity.parent_session_id,
                // Only its argument vector is asked for.
                SessionStart { argv: b.argv.clone(), ..SessionStart::default() }.encode_to_vec(),
            ))?;
        self.memory.sessions.remove(&at.header.session);
        Ok(())
    }

    fn session_renewed(&self, at: At<'_>, b: &SessionRenewed) -> Result<()> {
        let Some(leaf) = at.session else { return Ok(()) };
        let expires = if b.what == "renewed" { b.new_expires_unix_ns } else { b.old_expires_unix_ns };
        self.tables
            .prepare_cached("UPDATE sessions SET expires = ?2 WHERE leaf = ?1")?
            .execute((sql(leaf), expires))?;
        Ok(())
    }

    fn session_end(&self, at: At<'_>, b: &SessionEnd) -> Result<()> {
        let Some(leaf) = at.session else { return Ok(()) };
        self.tables.prepare_cached("UPDATE sessions SET ended = ?2, end_reason = ?3 WHERE leaf = ?1")?.execute((
            sql(leaf),
            at.header.wall_unix_ns.max(1),
            &b.reason,
        ))?;
        Ok(())
    }

    fn insert_exec(&self, at: At<'_>, exec: Option<u64>, request: Option<&str>, disposition: i64) -> Result<()> {
        let Some(session) = at.session else { return Ok(()) };
        let facts = [Kind::EXEC, Kind::EXEC_REQUEST].contains(&at.header.kind);
        self.tables
            .prepare_cached(
                "INSERT INTO execs (session, exec, leaf, facts, disposition, request) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute((
                sql(session),
                exec.map_or(NO_EXEC, u64::cast_signed),
                sql(at.leaf),
                facts,
                disposition,
                request,
            ))?;
        Ok(())
    }

    /// Leaf of the newest attempt with this number in the session.
    fn find_exec(&self, at: At<'_>, exec: u64) -> Result<Option<i64>> {
        let Some(session) = at.session else { return Ok(None) };
        let mut find = self
            .tables
            .prepare_cached("SELECT leaf FROM execs WHERE session = ?1 AND exec = ?2 ORDER BY leaf DESC LIMIT 1")?;
        Ok(find.query_row((sql(session), exec.cast_signed()), |row| row.get(0)).optional()?)
    }

    fn set(&self, at: At<'_>, exec: i64, leaf: i64, disposition: i64) -> Result<()> {
        let Some(session) = at.session else { return Ok(()) };
        self.tables
            .prepare_cached("UPDATE execs SET disposition = ?4 WHERE session = ?1 AND exec = ?2 AND leaf = ?3")?
            .execute((sql(session), exec, leaf, disposition))?;
        Ok(())
    }

    fn set_exec(&self, at: At<'_>, exec: u64, disposition: i64) -> Result<bool> {
        match self.find_exec(at, exec)? {
            Some(leaf) => self.set(at, exec.cast_signed(), leaf, disposition).map(|()| true),
            None => Ok(false),
        }
    }

    fn request(&self, at: At<'_>, b: &ExecRequest, exec: Option<u64>) -> Result<()> {
        self.insert_exec(at, exec, Some(&b.request_id), words::PENDING)?;
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
                at.header.host.0.as_slice(),
                sql(at.leaf),
                at.header.session.to_string(),
                at.header.wall_unix_ns,
                b.deadline_unix_ns,
            ))?;
        Ok(())
    }

    fn decision(&self, at: At<'_>, b: &ExecDecision) -> Result<()> {
        let disposition = words::of_raw(b.disposition);
        if let Some(session) = at.session {
            let asked: Option<(i64, i64)> = self
                .tables
                .prepare_cached(
                    "SELECT exec, leaf FROM execs WHERE session = ?1 AND request = ?2 ORDER BY leaf DESC LIMIT 1",
                )?
                .query_row((sql(session), &b.request_id), |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match asked {
                Some((exec, leaf)) if b.retry_of == 0 => self.set(at, exec, leaf, disposition)?,
                // The identical exec, tried again after the approval, is an exec of its own.
                _ if self.set_exec(at, b.exec_id, disposition)? => {}
                _ => self.insert_exec(at, Some(b.exec_id), None, disposition)?,
            }
        }
        self.tables
            .prepare_cached(
                "UPDATE reviews SET state = ?3, closed = 1, reviewer = CASE WHEN ?4 = '' THEN reviewer ELSE ?4 END,
                 reason = CASE WHEN ?5 = '' THEN reason ELSE ?5 END WHERE request = ?1 AND host = ?2 AND closed = 0",
            )?
            .execute((&b.request_id, at.header.host.0.as_slice(), body::word(b.disposition), &b.reviewer, &b.reason))?;
        Ok(())
    }

    /// A decision that the host did not take is none: the request waits again.
    fn refused(&self, at: At<'_>, b: &DecisionFinding) -> Result<()> {
        self.tables
            .prepare_cached(
                "UPDATE reviews SET state = '', reviewer = '', reason = ''
                 WHERE request = ?1 AND host = ?2 AND closed = 0 AND state = 'approved'",
            )?
            .execute((&b.request_id, at.header.host.0.as_slice()))?;
        Ok(())
    }

    fn review_decision(&self, at: At<'_>, b: &ReviewDecision) -> Result<()> {
        // The end of an approval is no answer to its request.
        if b.revoke {
            return Ok(());
        }
        self.tables
            .prepare_cached(
                "INSERT OR REPLACE INTO decisions (leaf, reviewer, at, approve, waited)
                 SELECT ?1, ?2, ?3, ?4, max(?3 - opened, 0) FROM reviews WHERE request = ?5 AND host = ?6",
            )?
            .execute((sql(at.leaf), &b.reviewer, at.header.wall_unix_ns, b.approve, &b.request_id, &b.host))?;
        // Nor does one of several approvals end anything.
        if b.approve && b.given < b.needed {
            return Ok(());
        }
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
