//! The state that every part of the daemon shares, and the one way into the journal.
//!
//! It must not decide. Locks here are held for map operations only, never over a call that may block.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_log::journal::{Appended, Entry, Journal, JournalError, Ticket};
use guard_log::record::{HostId, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, Gap, SessionExited};

use crate::approvals::Approvals;
use crate::blobs::{Blobs, DigestKey};
use crate::config::{Config, Mode};
use crate::credentials::Credentials;
use crate::files::{Contents, Freezes};
use crate::fresh::Fresh;
use crate::kept::Owner;
use crate::kernel::canary::Measured;
use crate::kernel::load::Kernel;
use crate::launcher::Launcher;
use crate::losses::Losses;
use crate::novelty::Novelty;
use crate::policies::{Current, InForce, Policies};
use crate::protect::Protected;
use crate::reach::Reach;
use crate::record;
use crate::seen::Seen;
use crate::session::Session;
use crate::ship::Link;

/// The daemon.
pub struct Node {
    /// Its configuration.
    pub config: Config,
    /// The kernel side.
    pub kernel: Kernel,
    /// Starts entry processes.
    pub launcher: Launcher,
    /// The chain of records.
    pub journal: Journal,
    /// This host.
    pub host: HostId,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Release of the running kernel.
    pub release: String,
    /// Requests for review.
    pub approvals: Approvals,
    /// Connection to the collector.
    pub link: Link,
    /// How old the host's signed roles are.
    pub fresh: Fresh,
    /// What was seen of its log.
    pub seen: Seen,
    /// Contents of files.
    pub contents: Contents,
    /// Files that must not be written now.
    pub freezes: Freezes,
    /// What records cannot hold, until it is shipped.
    pub blobs: Blobs,
    /// Makes digests say nothing to others.
    pub digest_key: DigestKey,
    /// What agents did before.
    pub novelty: Novelty,
    /// What was lost and has its record.
    pub losses: Losses,
    /// Sockets and addresses that sessions may connect to.
    pub reach: Reach,
    /// Names and files that governed tasks may not change, or not read.
    pub protected: Protected,
    /// What judges.
    pub policies: Current,
    /// What sessions were given by the provider.
    pub credentials: Credentials,
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    exited: Mutex<Vec<(Owner, String, SessionExited)>>,
    measured: Mutex<(Measured, i64)>,
    lost_records: Mutex<HashMap<SessionId, u64>>,
    stopping: AtomicBool,
}

/// What [`Node::new`] takes.
pub struct Parts {
    /// Configuration.
    pub config: Config,
    /// Kernel side.
    pub kernel: Kernel,
    /// Launcher.
    pub launcher: Launcher,
    /// Journal.
    pub journal: Journal,
    /// Host.
    pub host: HostId,
    /// Policy.
    pub policies: Policies,
    /// Protected paths.
    pub protected: Protected,
    /// First canary.
    pub measured: Measured,
    /// Sockets and addresses.
    pub reach: Reach,
    /// Blobs and the key of digests.
    pub kept: (Blobs, DigestKey),
    /// The collector's log.
    pub seen: Seen,
    /// Credentials.
    pub credentials: Credentials,
    /// Boot id and kernel release.
    pub boot: (String, String),
}

/// How long a record may wait for another to go to the disk with. A killed daemon takes it along:
/// of an exec that has its record already, only how it went on. A command that starts programs one after the other then
/// needs the disk once for each, not twice.
fn patience(body: &Body) -> Duration {
    const SOON: Duration = Duration::from_millis(5);
    const OUTCOME: Duration = Duration::from_millis(25);
    match body {
        Body::ExecOutcome(outcome) if outcome.disposition() != Disposition::Killed => OUTCOME,
        _ => SOON,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            novelty: Novelty::open(&parts.config.node.state_dir, parts.kept.1.salt(&SessionId::NONE.0)),
            losses: Losses::read(&parts.config.node.state_dir, &parts.boot.0),
            protected: parts.protected,
            fresh: Fresh::read(&parts.config, &parts.boot.0),
            config: parts.config,
            kernel: parts.kernel,
            launcher: parts.launcher,
            journal: parts.journal,
            host: parts.host,
            boot_id: parts.boot.0,
            release: parts.boot.1,
            approvals: Approvals::default(),
            link: Link::default(),
            seen: parts.seen,
            credentials: parts.credentials,
            contents: Contents::default(),
            freezes: Freezes::default(),
            blobs: parts.kept.0,
            digest_key: parts.kept.1,
            reach: parts.reach,
            sessions: Mutex::default(),
            exited: Mutex::default(),
            policies: parts.policies.into(),
            measured: Mutex::new((parts.measured, crate::kernel::time::wall_unix_ns())),
            lost_records: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// Queues a record. One that is too long for the log is cut down to what identifies it, and says so; one that finds no
    /// room is counted for its session.
    pub fn append(&self, session: SessionId, body: Body) -> Result<Ticket, JournalError> {
        self.append_entry(session, self.made(session, body))
    }

    /// A record that fits into the log, with the age of the host's signed roles in it.
    pub fn made(&self, session: SessionId, body: Body) -> Entry {
        record::fitting(session, self.aged(body))
    }

    fn aged(&self, body: Body) -> Body {
        if !self.config.policy.from_collector {
            return body;
        }
        record::aged(body, self.fresh.age_seconds(self.policies.serial()))
    }

    /// As [`Self::append`], of a record that is made already.
    pub fn append_entry(&self, session: SessionId, entry: Entry) -> Result<Ticket, JournalError> {
        let queued = self.journal.append(entry);
        if queued.is_err() {
            self.give_back_lost_records(session, 1);
        }
        queued
    }

    /// Records what a held task waits for: calls back when it is durable, or with what is in the way, which is counted. No
    /// thread is woken for it unless another one is writing.
    pub fn append_then(
        self: &Arc<Self>,
        session: SessionId,
        body: Body,
        call: impl FnOnce(Result<Appended, JournalError>) + Send + 'static,
    ) {
        let node = Arc::clone(self);
        self.journal.append_then(self.made(session, body), move |done| {
            if let Err(error) = &done {
                node.lose(session, error);
            }
            call(done);
        });
    }

    /// Queues a record of something that has happened whether or not there is room for it, and that nothing waits for.
    /// What finds no room is counted and becomes a gap record.
    pub fn keep(&self, session: SessionId, body: Body) -> Option<Ticket> {
        let within = patience(&body);
        match self.journal.append_later(self.made(session, body), within) {
            Ok(ticket) => Some(ticket),
            Err(error) => {
                self.lose(session, &error);
                None
            }
        }
    }

    /// As [`Self::keep`], for a refusal that a held task waits for: calls back when it is recorded or counted as lost.
    pub fn keep_then(self: &Arc<Self>, session: SessionId, body: Body, call: impl FnOnce(bool) + Send + 'static) {
        self.append_then(session, body, move |done| call(done.is_ok()));
    }

    fn lose(&self, session: SessionId, error: &JournalError) {
        self.give_back_lost_records(session, 1);
        tracing::debug!(%error, "a record could not be kept; it is counted");
    }

    /// Counts records of a session that could not be kept.
    pub fn give_back_lost_records(&self, session: SessionId, count: u64) {
        *lock(&self.lost_records).entry(session).or_default() += count;
    }

    /// Records that found no room in the journal, since it was asked last, by session.
    pub fn take_lost_records(&self) -> HashMap<SessionId, u64> {
        std::mem::take(&mut *lock(&self.lost_records))
    }

    /// Queues a record that may use the journal's reserve, for what must be said even when it is full. A failure is
    /// logged: the journal is then closed, and nothing governed runs any more.
    pub fn note(&self, session: SessionId, body: Body) -> Option<Ticket> {
        match self.journal.append_reserved(record::entry(session, self.aged(body))) {
            Ok(ticket) => Some(ticket),
            Err(error) => {
                tracing::error!(%error, "a record could not be kept");
                None
            }
        }
    }

    /// Queues a record about lost events.
    pub fn note_gap(&self, session: SessionId, source: &str, counter: &str, lost: u64, total: u64) -> Option<Ticket> {
        let session_id = if session == SessionId::NONE { String::new() } else { session.to_string() };
        let gap = Gap { source: source.into(), counter: counter.into(), lost, total, session_id };
        self.note(session, Body::Gap(gap))
    }

    /// Whether execs are judged but never denied.
    pub fn observes(&self) -> bool {
        self.config.kernel.mode == Mode::Observe
    }

    // === sessions ===

    /// A session by the kernel's key.
    pub fn session(&self, key: u64) -> Option<Arc<Session>> {
        lock(&self.sessions).get(&key).cloned()
    }

    /// A session by its id.
    pub fn session_by_id(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.sessions).values().find(|s| s.identity.session_id == id).cloned()
    }

    /// Open child sessions of one.
    pub fn children_of(&self, id: &str) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().filter(|s| s.is_child() && s.identity.parent_session_id == id).cloned().collect()
    }

    /// All open sessions.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().cloned().collect()
    }

    /// Adds one, unless the daemon is stopping or has its fill; then it says why.
    pub fn add_session(&self, session: &Arc<Session>) -> Result<(), String> {
        let mut sessions = lock(&self.sessions);
        if self.is_stopping() {
            return Err("the daemon is stopping".into());
        }
        if sessions.len() >= self.config.session.max_sessions {
            return Err(format!("{} sessions are open, which is the limit (session.max_sessions)", sessions.len()));
        }
        sessions.insert(session.key, Arc::clone(session));
        Ok(())
    }

    /// Adds one that an earlier daemon started: it was within the limits then.
    pub fn adopt_session(&self, session: &Arc<Session>) {
        lock(&self.sessions).insert(session.key, Arc::clone(session));
    }

    /// Keeps how a session ended, for a guardctl that lives and will ask.
    pub fn keep_exited(&self, owner: Owner, session: &str, exited: SessionExited) {
        const KEPT_MAX: usize = 1000;
        let mut kept = lock(&self.exited);
        kept.retain(|(owner, _, _)| owner.process.lives());
        if owner.process.lives() && kept.len() < KEPT_MAX {
            kept.push((owner, session.to_owned(), exited));
        }
    }

    /// How a session ended, if its owner has not yet been told.
    pub fn take_exited(&self, owner: Owner, session: &str) -> Option<SessionExited> {
        let mut kept = lock(&self.exited);
        let place = kept.iter().position(|(o, id, _)| *o == owner && id == session)?;
        Some(kept.swap_remove(place).2)
    }

    /// Removes one.
    pub fn remove_session(&self, key: u64) {
        lock(&self.sessions).remove(&key);
    }

    /// From now on no session starts.
    pub fn set_stopping(&self) {
        let _sessions = lock(&self.sessions);
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the daemon stops.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    // === policy ===

    /// The policy of agents for which no bundle is rolled out further.
    pub fn policy(&self) -> Arc<InForce> {
        self.policies.base()
    }

    // === measured mode ===

    /// Keeps the result of a canary.
    pub fn set_measured(&self, measured: Measured) {
        *lock(&self.measured) = (measured, crate::kernel::time::wall_unix_ns());
    }

    /// The last canary and when it was.
    pub fn measured(&self) -> (Measured, i64) {
        lock(&self.measured).clone()
    }
}
