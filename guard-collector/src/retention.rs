//! Retention: takes entries of the log away when a written policy says so, after a record of it.
//!
//! A bundle's age is that of its file, which the collector's own clock gave it moments after admission: hosts' clocks
//! may lie, in one direction to have evidence removed early, in the other to keep everything for ever. Whole full
//! bundles go, oldest first, and never one that a start, the index, an open request or a write-ahead segment needs.
//! It must not remove anything before the record of that is durable and below the public checkpoint. Fails: nothing
//! more is removed until the next round; what a crash cut short is completed first.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use guard_log::note::Verifier;
use guard_log::proof::Receipt;
use guard_log::record::SessionId;
use guard_proto::v1::EntriesPruned;
use guard_proto::v1::record_body::Body;
use tokio::sync::watch;

use crate::alerts::Alerts;
use crate::blobs::Blobs;
use crate::index::Index;
use crate::ledger::Ledger;
use crate::proofs::Public;
use crate::publish::Published;
use crate::ticks::Ticks;

/// How often it is looked whether something became too old: each time that something did is a record.
const EVERY: Duration = Duration::from_secs(3600);
/// Longest wait for the record to be durable.
const DURABLE_WAIT: Duration = Duration::from_secs(20);
const DAY: u64 = 86_400;

/// How long entries stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Days since admission.
    pub days: u64,
    /// The newest records, which stay in any case.
    pub minimum: u64,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { days, minimum } = self;
        write!(f, "retention: entries_days = {days}, minimum_records = {minimum}")
    }
}

/// What prunes.
pub struct Retention {
    /// For ever, if none.
    pub policy: Option<Policy>,
    /// How long write-ahead segments stay: they hold the entries too.
    pub keep_segments: Duration,
    /// The way into the log.
    pub ledger: Arc<Ledger>,
    /// What has to have read an entry before it goes.
    pub index: Arc<Index>,
    /// The checkpoint that has to cover the record.
    pub published: Arc<Published>,
    /// What only pruned records name goes with them.
    pub blobs: Blobs,
    /// Who has not been told of an entry before it goes.
    pub alerts: Arc<Alerts>,
}

impl Retention {
    /// Completes what a crash cut short, and removes what is too old at `now`, with the blobs that nothing else names; how many
    /// bundles went. Blocks.
    pub fn round(&self, now: SystemTime) -> Result<u64, String> {
        let size = self.ledger.store().size();
        let removed = self.entries(now)?;
        if let Some(policy) = self.policy {
            self.forget_blobs(policy, now, size)?;
        }
        Ok(removed)
    }

    /// Blobs are looked for on the disk, not among the records that go: so a crash leaves none for ever. Only with an index of all
    /// `size` records: what came since names blobs that came, or came again, with it.
    fn forget_blobs(&self, policy: Policy, now: SystemTime, size: u64) -> Result<(), String> {
        let first = self.ledger.store().first();
        let then = now.checked_sub(Duration::from_secs(policy.days * DAY)).ok_or("the clock is before the policy")?;
        if first == 0 {
            return Ok(());
        }
        let mut erased = 0_u64;
        for id in self.blobs.older(then).map_err(|e| e.to_string())? {
            let (named, covered) = self.index.names_blob(&id, first).map_err(|e| e.to_string())?;
            if covered < size {
                return Ok(());
            }
            if !named {
                self.blobs.erase(&id).map_err(|e| e.to_string())?;
                erased += 1;
            }
        }
        if erased > 0 {
            tracing::info!(erased, "blobs that only pruned records named were erased");
        }
        Ok(())
    }

    fn entries(&self, now: SystemTime) -> Result<u64, String> {
        let store = self.ledger.store();
        let completed = store.finish_pruning().map_err(|e| e.to_string())?;
        let Some(policy) = self.policy else { return Ok(completed) };
        let then = now.checked_sub(Duration::from_secs(policy.days * DAY)).ok_or("the clock is before the policy")?;
        store.prune_segments(self.keep_segments).map_err(|e| e.to_string())?;
        let below = store.size().saturating_sub(policy.minimum);
        let previous = store.first();
        // Looked at twice: without anything to do, nothing is written.
        if store.older(then, below).map_err(|e| e.to_string())? == previous {
            return Ok(completed);
        }
        let indexed = self.index.settle().map_err(|e| e.to_string())?.saturating_sub(1);
        let needed = self.ledger.settle()?.min(indexed);
        let first = store.older(then, below.min(needed)).map_err(|e| e.to_string())?;
        if first == previous {
            return Ok(completed);
        }
        self.prune(policy, previous, first).map(|removed| completed + removed)
    }

    fn prune(&self, policy: Policy, previous_first: u64, first_leaf: u64) -> Result<u64, String> {
        let store = self.ledger.store();
        // The policy does not wait for a receiver that may never come back; that it was not told stays in the log.
        for untold in self.alerts.behind(first_leaf) {
            tracing::error!(
                webhook = untold.webhook,
                detail = untold.detail,
                "entries go that a webhook was not told of"
            );
            self.ledger.say(SessionId::NONE, Body::WebhookFinding(untold)).map_err(|e| e.to_string())?;
        }
        let (policy, records) = (policy.to_string(), first_leaf - previous_first);
        let body = Body::EntriesPruned(EntriesPruned { first_leaf, previous_first, policy: policy.clone(), records });
        let (leaf, _) = self.ledger.say(SessionId::NONE, body).map_err(|e| e.to_string())?;
        if store.size() <= leaf && !store.wait_past(leaf, DURABLE_WAIT) {
            return Err(format!("record {leaf} of the pruning is not durable yet"));
        }
        self.published.publish(store)?;
        let key = Verifier::parse(&store.vkey()).map_err(|e| e.to_string())?;
        let (receipt, record) = Receipt::make(&Public(store), &key, leaf).map_err(|e| e.to_string())?;
        let removed = store.prune(receipt, record).map_err(|e| e.to_string())?;
        tracing::info!(first_leaf, previous_first, leaf, policy, bundles = removed, "entries were pruned");
        Ok(removed)
    }
}

/// Runs until the collector stops.
pub async fn run(retention: Arc<Retention>, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(EVERY, stopping);
    while ticks.next().await {
        let retention = retention.clone();
        match tokio::task::spawn_blocking(move || retention.round(SystemTime::now())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(error, "entries were not pruned; it is tried again in an hour"),
            // A panic in there has been said by the runtime.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
