//! The one way into the log: admission, the collector's own records and decisions, in one order.
//!
//! A lock is held from planning to append, so the order of leaves is the order of admission; what is kept in memory is folded
//! from the very records that were appended. It must not answer before the records are durable. Fails closed: after the store
//! has failed, nothing more is appended until the process is started anew and has read the log again.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use guard_log::record::{Epoch, HostId, Record, SessionId};
use guard_log::store::{Store, StoreError};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{CollectorStart, DecideRequest, Delegation, LogSucceeded, ReviewDecision};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tonic::Status;

use crate::admit::{Admit, Arrival, Item, OlderDigests, Plan, Refusal};
use crate::certificates::Certificates;
use crate::identity::Caller;
use crate::own::{Own, now_ns};
use crate::reviews::{Open, Permit, Reviews};
use crate::snapshot::{self, Snapshot};

/// Records read at a time when the log is folded.
const READ_RECORDS: usize = 4096;
const READ_BYTES: usize = 8 << 20;
/// Longest wait for the disk before the file for the next start is written.
const SAVE_WAIT: Duration = Duration::from_secs(20);

/// Why nothing was appended.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The store does not take or keep records.
    #[error("the log takes no records: {0}")]
    Store(String),
    /// The batch is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What would be needed was pruned.
    #[error("{0}")]
    Pruned(String),
    /// A record of the collector's own could not be made.
    #[error("cannot make a record: {0}")]
    Own(#[from] io::Error),
}

impl From<LedgerError> for Status {
    fn from(error: LedgerError) -> Self {
        let text = error.to_string();
        match error {
            LedgerError::Store(_) => Status::unavailable(text),
            LedgerError::Refused(Refusal::OtherHost { .. } | Refusal::OtherNode { .. }) => {
                Status::permission_denied(text)
            }
            LedgerError::Refused(Refusal::Foreign { .. }) => Status::invalid_argument(text),
            LedgerError::Refused(Refusal::TooManyEpochs(_)) => Status::resource_exhausted(text),
            LedgerError::Pruned(_) => Status::failed_precondition(text),
            LedgerError::Own(_) => Status::internal(text),
        }
    }
}

/// Everything derived from the log.
#[derive(Debug)]
pub struct State {
    /// What the log holds of each host.
    pub admit: Admit,
    /// The collector's chain.
    pub own: Own,
    /// Open requests.
    pub reviews: Reviews,
    /// Certificates that were issued and revoked.
    pub certificates: Certificates,
    /// Leaves that it is folded from.
    pub size: u64,
    /// Digest of the last of them.
    pub last: [u8; 32],
}

impl State {
    fn new() -> io::Result<Self> {
        let (admit, reviews, certificates) = (Admit::default(), Reviews::default(), Certificates::default());
        Ok(Self { admit, reviews, certificates, own: Own::new()?, size: 0, last: [0; 32] })
    }

    /// From a file that agrees with the log; open requests are read from the log.
    pub fn restore(kept: &Snapshot, store: &Store) -> Result<Self, String> {
        let odd = || "it is not one that this version writes".to_owned();
        let own = kept.own.as_ref().and_then(Own::restore).ok_or_else(odd)?;
        let admit = Admit::restore(&kept.hosts).ok_or_else(odd)?;
        let last = kept.last.as_slice().try_into().map_err(|_| odd())?;
        let certificates = kept.certificates.as_ref().map(Certificates::restore).unwrap_or_default();
        let mut reviews = Reviews::default();
        // Of those that were pruned the deadline had long passed.
        for leaf in kept.reviews.iter().copied().filter(|leaf| (store.first()..kept.size).contains(leaf)) {
            let found = store.read(leaf, 1, READ_BYTES).map_err(|e| e.to_string())?;
            found.iter().for_each(|(leaf, record)| reviews.fold(*leaf, record));
        }
        Ok(Self { admit, own, reviews, certificates, size: kept.size, last })
    }

    fn fold(&mut self, leaf: u64, arrival: &Arrival) {
        self.own.fold(arrival);
        self.admit.fold(leaf, arrival);
        self.reviews.fold(leaf, &arrival.record);
        self.certificates.fold(leaf, arrival);
        (self.size, self.last) = (leaf.saturating_add(1), arrival.digest);
    }
}

/// Records on their way to the disk.
pub struct Durable(oneshot::Receiver<Result<(), String>>);

impl Durable {
    /// As [`Self::wait`], for a thread that may block.
    pub fn block(self) -> Result<(), LedgerError> {
        match self.0.blocking_recv() {
            Ok(result) => result.map_err(LedgerError::Store),
            Err(_) => Err(LedgerError::Store("it was closed".to_owned())),
        }
    }

    /// Waits until they are durable.
    pub async fn wait(self) -> Result<(), LedgerError> {
        match self.0.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(LedgerError::Store(cause)),
            Err(_) => Err(LedgerError::Store("it was closed".to_owned())),
        }
    }
}

/// An admitted batch.
pub struct Admitted {
    /// Everything below is logged once `durable` says so.
    pub next_seq: u64,
    /// End of the leaves that hold it.
    pub leaf_end: u64,
    /// The batch's own records; `None` when all were logged before.
    pub durable: Option<Durable>,
    /// The number at which the host's journal differs from what was logged.
    pub fork: Option<u64>,
}

/// The log with what is derived from it.
pub struct Ledger {
    store: Store,
    state: Mutex<State>,
    failed: Arc<OnceLock<String>>,
    /// Changes with every revocation.
    revocations: watch::Sender<u64>,
    /// The file that spares reading the whole log at the next start, and the size it was written at.
    snapshot: PathBuf,
    saved: AtomicU64,
}

impl Ledger {
    /// Reads what the file of an earlier run does not cover; the whole log if there is none, or if it does not fit. A
    /// log whose entries were pruned begins with the file that was kept then.
    pub fn open(store: Store, snapshot: PathBuf) -> Result<Self, LedgerError> {
        let mut kept = read_snapshot(&snapshot, &store);
        if let (None, Some(pruned)) = (&kept, store.pruned()) {
            let copy = pruned_snapshot(&snapshot);
            kept = read_snapshot(&copy, &store);
            if kept.is_none() {
                return Err(LedgerError::Pruned(format!(
                    "{pruned}, so the log alone does not say any more what was admitted of each host, and neither {} \
                     nor {} is there and fits: put one of them back from a backup",
                    snapshot.display(),
                    copy.display()
                )));
            }
        }
        let mut state = match kept {
            Some(state) => state,
            None => State::new()?,
        };
        let saved = AtomicU64::new(state.size);
        loop {
            let records =
                store.read(state.size, READ_RECORDS, READ_BYTES).map_err(|e| LedgerError::Store(e.to_string()))?;
            if records.is_empty() {
                break;
            }
            for (leaf, record) in records {
                state.fold(leaf, &record.into());
            }
        }
        let revocations = watch::Sender::new(state.certificates.revocations());
        Ok(Self { store, state: Mutex::new(state), failed: Arc::default(), revocations, snapshot, saved })
    }

    /// Writes the file for the next start when so many records are not in it; blocks until they are durable.
    pub fn save(&self, unless_fewer: u64) -> Result<(), String> {
        let (size, content) = {
            let state = self.state();
            if state.size < self.saved.load(Ordering::Relaxed).saturating_add(unless_fewer.max(1)) {
                return Ok(());
            }
            (state.size, snapshot::encode(&state, self.store.origin()))
        };
        if self.store.size() < size && !self.store.wait_past(size - 1, SAVE_WAIT) {
            return Err(format!("{size} leaves are not durable yet"));
        }
        snapshot::write(&self.snapshot, &content)?;
        self.saved.store(size, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the copy of the file for the next start that stays for as long as nothing more is pruned; the first leaf
    /// that a start with it needs. Blocks.
    pub fn settle(&self) -> Result<u64, String> {
        let (size, needed, content) = {
            let state = self.state();
            let last = state.size.saturating_sub(1);
            let needed = state.reviews.needed(now_ns()).map_or(last, |leaf| leaf.min(last));
            (state.size, needed, snapshot::encode(&state, self.store.origin()))
        };
        if self.store.size() < size && !self.store.wait_past(size - 1, SAVE_WAIT) {
            return Err(format!("{size} leaves are not durable yet"));
        }
        snapshot::write(&pruned_snapshot(&self.snapshot), &content)?;
        Ok(needed)
    }

    /// The store, for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is derived; hold it briefly.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the collector started.
    pub fn start(&self, recovered: Option<String>) -> Result<Durable, LedgerError> {
        let start = CollectorStart {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_size: self.store.size(),
            origin: self.store.origin().to_owned(),
            recovered: recovered.is_some(),
            detail: recovered.unwrap_or_default(),
        };
        Ok(self.say(SessionId::NONE, Body::CollectorStart(start))?.1)
    }

    /// Appends the first record of a successor. The collector's own chain begins anew: what it wrote into the log before, after
    /// the copy was made, bears numbers that must not be given twice.
    pub fn succeed(&self, body: LogSucceeded) -> Result<Durable, LedgerError> {
        let mut state = self.state();
        let record = state.own.begin_epoch()?.seal(SessionId::NONE, Body::LogSucceeded(body))?;
        Ok(self.append(&mut state, vec![record.into()])?.1)
    }

    /// Appends a record of the collector's own: its leaf, and what waits for the disk.
    pub fn say(&self, session: SessionId, body: Body) -> Result<(u64, Durable), LedgerError> {
        let mut state = self.state();
        let record = state.own.clone().seal(session, body)?;
        self.append(&mut state, vec![record.into()])
    }

    /// Appends a record of the collector's own that is made of what is known just now, or nothing.
    pub fn say_if(
        &self,
        make: impl FnOnce(&State) -> Result<(SessionId, Body), Status>,
    ) -> Result<(u64, Durable), Status> {
        let mut state = self.state();
        let (session, body) = make(&state)?;
        let record = state.own.clone().seal(session, body).map_err(LedgerError::Own)?;
        Ok(self.append(&mut state, vec![record.into()])?)
    }

    /// Admits a batch of one host. Blocks for the store's queue, not for the disk.
    pub fn admit(&self, node: &str, of: (HostId, Epoch), records: Vec<Record>) -> Result<Admitted, LedgerError> {
        // Hashing takes longest; others append meanwhile.
        let arrivals: Vec<Arrival> = records.into_iter().map(Arrival::from).collect();
        let mut older: Option<OlderDigests> = None;
        // Twice at most: the second time with the digests that the first asked for.
        loop {
            let mut state = self.state();
            if of.0 == state.own.host() {
                return Err(Refusal::Foreign { seq: 0, what: "it names the collector's own host id" }.into());
            }
            let (items, fork) = match state.admit.plan(node, of, &arrivals, older.as_ref())? {
                Plan::Append(items) => (items, None),
                Plan::Fork(items, seq) => (items, Some(seq)),
                Plan::Older { from, to } => {
                    drop(state);
                    let last = arrivals.last().map_or(0, |a| a.header.seq);
                    older = Some(self.digests(of, from..to, last)?);
                    continue;
                }
            };
            let durable = match items.is_empty() {
                true => None,
                false => {
                    let mut own = state.own.clone();
                    let sealed: Result<Vec<Arrival>, io::Error> = items
                        .into_iter()
                        .map(|item| match item {
                            Item::Record(arrival) => Ok(arrival),
                            Item::Finding(finding) => {
                                tracing::warn!(host = %of.0, node, what = %finding.what, expected = finding.expected_seq,
                                    got = finding.got_seq, detail = %finding.detail, "admission finding");
                                own.seal(SessionId::NONE, Body::AdmitFinding(finding)).map(Arrival::from)
                            }
                        })
                        .collect();
                    Some(self.append(&mut state, sealed?)?.1)
                }
            };
            let (next_seq, leaf_end) = state.admit.next(of.0, of.1);
            return Ok(Admitted { next_seq, leaf_end, durable, fork });
        }
    }

    /// Digests of one epoch in a range of leaves, up to number `last`.
    fn digests(&self, of: (HostId, Epoch), leaves: Range<u64>, last: u64) -> Result<OlderDigests, LedgerError> {
        let (mut found, mut next) = (OlderDigests::new(), leaves.start);
        while next < leaves.end {
            let records = self.store.read(next, READ_RECORDS, READ_BYTES).map_err(|error| match error {
                StoreError::Pruned { .. } => LedgerError::Pruned(format!(
                    "records that come again cannot be compared with those logged: {error}"
                )),
                error => LedgerError::Store(error.to_string()),
            })?;
            let Some((end, _)) = records.last() else { break };
            next = end + 1;
            for (_, record) in &records {
                let header = record.header();
                if (header.host, header.epoch) != of {
                    continue;
                }
                if header.seq > last {
                    return Ok(found);
                }
                found.insert(header.seq, record.digest());
            }
        }
        Ok(found)
    }

    /// Checks and appends a reviewer's decision: its leaf, its body, and when it is durable. `permit` says whether the caller's
    /// roles cover the request now, and how many must approve it.
    pub fn decide(
        &self,
        wanted: &DecideRequest,
        caller: &Caller,
        expires: i64,
        permit: impl FnOnce(&Open, Option<&Delegation>) -> Result<Permit, Status>,
    ) -> Result<(u64, ReviewDecision, Durable), Status> {
        let mut state = self.state();
        let decided = state.reviews.check(wanted, caller, (self.store.size(), now_ns(), expires), permit)?;
        let sealed = state.own.clone().seal(decided.session, Body::ReviewDecision(decided.body.clone()));
        let record = sealed.map_err(LedgerError::Own)?;
        let (leaf, durable) = self.append(&mut state, vec![record.into()])?;
        Ok((leaf, decided.body, durable))
    }

    fn append(&self, state: &mut State, arrivals: Vec<Arrival>) -> Result<(u64, Durable), LedgerError> {
        if let Some(cause) = self.failed.get() {
            return Err(LedgerError::Store(cause.clone()));
        }
        let records = arrivals.iter().map(|a| a.record.clone()).collect();
        let ticket = self.store.append(records).map_err(|e| {
            let cause = e.to_string();
            tracing::error!(error = %cause, "the log takes no records");
            LedgerError::Store(cause)
        })?;
        let first = ticket.first_leaf();
        for (leaf, arrival) in (first..).zip(&arrivals) {
            state.fold(leaf, arrival);
        }
        let now = state.certificates.revocations();
        self.revocations.send_if_modified(|seen| std::mem::replace(seen, now) != now);
        let (done, durable) = oneshot::channel();
        let failed = Arc::clone(&self.failed);
        ticket.on_done(move |result| {
            let result = result.map_err(|e| e.to_string());
            // Memory is ahead of the disk now.
            if let Err(cause) = &result
                && failed.set(cause.clone()).is_ok()
            {
                tracing::error!(error = %cause, "the log failed; restart the collector when the cause is removed");
            }
            let _ = done.send(result);
        });
        Ok((first, Durable(durable)))
    }

    /// Tells of revocations from now on.
    pub fn revocations(&self) -> watch::Receiver<u64> {
        self.revocations.subscribe()
    }

    /// Why nothing is appended any more, if so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }
}

/// What spares reading the log, if the log agrees with it.
fn read_snapshot(path: &Path, store: &Store) -> Option<State> {
    snapshot::read(path, store).unwrap_or_else(|why| {
        tracing::warn!(file = %path.display(), why, "the snapshot of admission does not fit");
        None
    })
}

/// The copy as of the last pruning.
fn pruned_snapshot(snapshot: &Path) -> PathBuf {
    snapshot.with_extension("pruned")
}

#[cfg(test)]
mod tests;
