//! Alerts: tells receivers of webhooks what somebody has to look at, as the Standard Webhooks specification has it.
//!
//! The log is the queue: each receiver has a place in it that survives the collector, and gets each event at least once, in order,
//! with an id that stays the same ([`queue`]). It must not slow anything else: each receiver is a task that reads what is durable.
//! Fails: a receiver that does not take a message is tried again, less and less often, for ever; one that fails for long, and what
//! retention takes away before it was told, are records. Only `410 Gone` ends it, until a HUP or a restart.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guard_log::frame;
use guard_log::record::{Record, SessionId};
use guard_log::store::StoreError;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{ExecRequest, WebhookFinding, WebhookState};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::body;
use crate::index::Index;
use crate::ledger::Ledger;
use crate::node::stopped;
use crate::own::now_ns;

pub mod config;
pub mod event;
mod post;
mod queue;
pub mod secret;
mod text;
pub mod try_out;
pub mod where_to;

use config::Webhook;
use event::Kind;
use post::{Answer, Poster};
use queue::{Message, Place, Queue};
use text::{BODY_MAX, BUDGETS, Cut, ascii_json};

/// The folder of the receivers' places, beside the log's folder and not in it: it is no part of the log.
pub const FOLDER: &str = "alerts";
const READ_RECORDS: usize = 256;
const READ_BYTES: usize = 1 << 20;
/// How long one wait for new records occupies a thread.
const WAIT: Duration = Duration::from_millis(500);
/// Pause after a first failure of a receiver; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// What was only looked at is kept so often.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Room in a message beside what is told of the event.
const FRAME_BYTES: usize = 1024;
/// How long the end of a request waits for the index to know where the request is.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// What is known of a receiver for `status`.
#[derive(Debug, Default)]
struct Known {
    next: u64,
    waiting: bool,
    sent: u64,
    sent_ns: i64,
    error: String,
    /// Why its place in the log is not kept, or the log not read.
    trouble: String,
    failures: u32,
    failing_since: Option<(Instant, i64)>,
    /// That it fails was recorded.
    said: bool,
    disabled: bool,
}

/// One receiver.
struct Target {
    webhook: Webhook,
    poster: Mutex<Arc<Poster>>,
    known: Mutex<Known>,
    again: Notify,
    ledger: Arc<Ledger>,
    index: Arc<Index>,
}

/// All of them.
#[derive(Default)]
pub struct Alerts {
    targets: Vec<(Arc<Target>, Mutex<Option<Queue>>)>,
}

impl Alerts {
    /// Reads secrets and places. Blocks.
    pub fn open(
        webhooks: &[Webhook],
        folder: PathBuf,
        ledger: &Arc<Ledger>,
        index: &Arc<Index>,
    ) -> Result<Self, String> {
        if !webhooks.is_empty() {
            frame::make_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let one = |webhook: &Webhook| {
            let store = ledger.store();
            let poster = Mutex::new(Arc::new(Poster::new(webhook)?));
            let (queue, odd) =
                Queue::open(queue::path(&folder, &webhook.name), webhook.fold, (store.origin(), store.size()))?;
            if let Some(odd) = odd {
                tracing::warn!(webhook = webhook.name, "its place in the log: {odd}");
            }
            let known = Known { next: queue.next, waiting: queue.outbox.is_some(), ..Known::default() };
            let target = Target {
                webhook: webhook.clone(),
                poster,
                known: Mutex::new(known),
                again: Notify::new(),
                ledger: Arc::clone(ledger),
                index: Arc::clone(index),
            };
            Ok((Arc::new(target), Mutex::new(Some(queue))))
        };
        Ok(Self { targets: webhooks.iter().map(one).collect::<Result<_, String>>()? })
    }

    /// For `status`.
    pub fn status(&self, log_size: u64) -> Vec<WebhookState> {
        self.targets.iter().map(|(target, _)| target.status(log_size)).collect()
    }

    /// What has to be recorded before the leaves below `first` are taken away: who has not been told of them.
    pub fn behind(&self, first: u64) -> Vec<WebhookFinding> {
        let behind = self.targets.iter().filter(|(target, _)| target.known().next < first);
        behind
            .map(|(target, _)| {
                let next = target.known().next;
                let detail = format!("leaves {next} to {} go by retention and were not looked at for it", first - 1);
                target.finding("untold", detail)
            })
            .collect()
    }

    /// Tells until the collector stops; a HUP reads secrets and authorities again and tries everybody at once.
    pub async fn run(self: Arc<Self>, stopping: watch::Receiver<bool>) {
        let mut telling = JoinSet::new();
        for (target, queue) in &self.targets {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(queue) = queue {
                telling.spawn(Arc::clone(target).run(queue, stopping.clone()));
            }
        }
        if telling.is_empty() {
            return;
        }
        match signal(SignalKind::hangup()) {
            Ok(mut hangup) => {
                while tokio::select! {
                    _ = hangup.recv() => true,
                    () = stopped(stopping.clone()) => false,
                } {
                    self.targets.iter().for_each(|(target, _)| target.reload());
                }
            }
            Err(error) => tracing::error!(%error, "webhooks are not reloaded: no signal can be listened to"),
        }
        while telling.join_next().await.is_some() {}
    }
}

// === impl Target ===

impl Target {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poster(&self) -> Arc<Poster> {
        Arc::clone(&self.poster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn status(&self, log_size: u64) -> WebhookState {
        let known = self.known();
        WebhookState {
            name: self.webhook.name.clone(),
            url: self.webhook.shown(),
            next_leaf: known.next,
            lag: log_size.saturating_sub(known.next),
            waiting: known.waiting,
            sent: known.sent,
            sent_unix_ns: known.sent_ns,
            error: [known.error.as_str(), known.trouble.as_str()].join(" ").trim().to_owned(),
            failures: known.failures,
            failing_since_unix_ns: known.failing_since.map_or(0, |(_, at)| at),
            disabled: known.disabled,
        }
    }

    fn finding(&self, what: &str, detail: String) -> WebhookFinding {
        let (what, webhook, next_leaf) = (what.to_owned(), self.webhook.name.clone(), self.known().next);
        WebhookFinding { what, webhook, next_leaf, detail }
    }

    fn say(&self, what: &str, detail: String) {
        let body = Body::WebhookFinding(self.finding(what, detail));
        if let Err(error) = self.ledger.say(SessionId::NONE, body) {
            tracing::error!(webhook = self.webhook.name, %error, "what became of a webhook is not recorded");
        }
    }

    fn reload(&self) {
        match Poster::new(&self.webhook) {
            Ok(poster) => *self.poster.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(poster),
            Err(error) => tracing::error!(error, "the webhook goes on with what was read before"),
        }
        self.known().disabled = false;
        self.again.notify_one();
    }

    async fn run(self: Arc<Self>, mut queue: Queue, stopping: watch::Receiver<bool>) {
        tokio::select! {
            () = self.tell(&mut queue) => {}
            // A message that is under way is sent again after the next start, with the same id.
            () = stopped(stopping) => {}
        }
        self.keep(&mut queue);
    }

    /// Never ends by itself. Wherever it is dropped, the queue is one to go on from.
    async fn tell(&self, queue: &mut Queue) {
        let (mut kept, mut looked_at) = (Instant::now(), queue.next);
        loop {
            if let Some(message) = &queue.outbox {
                if self.post(message).await {
                    queue.outbox = None;
                    self.known().waiting = false;
                }
                continue;
            }
            match self.look(queue).await {
                Ok(()) => self.known().trouble.clear(),
                Err(error) => {
                    self.trouble(error);
                    tokio::time::sleep(WAIT).await;
                }
            }
            self.known().next = queue.next;
            let new = queue.outbox.is_some();
            if new || (queue.next != looked_at && kept.elapsed() > KEEP_EVERY) {
                self.known().waiting = new;
                self.keep(queue);
                (kept, looked_at) = (Instant::now(), queue.next);
            }
        }
    }

    /// What cannot be kept is sent all the same: the receiver may get it once more after a crash.
    fn keep(&self, queue: &mut Queue) {
        if let Err(error) = tokio::task::block_in_place(|| queue.keep()) {
            self.trouble(format!("its place in the log cannot be kept: {error}"));
        }
    }

    fn trouble(&self, error: String) {
        let mut known = self.known();
        if known.trouble != error {
            tracing::error!(webhook = self.webhook.name, error, "alerts stand still or may be told twice");
        }
        known.trouble = error;
    }

    /// Sends the message once, waits as long as it has to after a failure; true once the receiver has it.
    async fn post(&self, message: &Message) -> bool {
        if self.known().disabled {
            self.again.notified().await;
            return false;
        }
        match self.poster().send(message).await {
            Answer::Taken(..) => {
                self.took(message);
                true
            }
            Answer::Gone => {
                self.known().disabled = true;
                self.fail("it answers 410 Gone: it wants no more");
                self.say("disabled", "it answers 410 Gone; a HUP or a restart tries it again".to_owned());
                false
            }
            Answer::Failed(error) => {
                let pause = self.fail(&error);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.again.notified() => {}
                }
                false
            }
        }
    }

    fn took(&self, message: &Message) {
        let was = {
            let mut known = self.known();
            known.sent += 1;
            known.sent_ns = now_ns();
            known.failing_since = None;
            known.failures = 0;
            known.error.clear();
            std::mem::take(&mut known.said)
        };
        tracing::debug!(webhook = self.webhook.name, id = message.id, "told");
        if was {
            tracing::info!(webhook = self.webhook.name, "the webhook takes messages again");
            self.say("back", String::new());
        }
    }

    /// Notes a failure, records it if it lasts; how long to wait.
    fn fail(&self, error: &str) -> Duration {
        let (lasting, failures) = {
            let mut known = self.known();
            if known.error != error {
                tracing::warn!(webhook = self.webhook.name, error, "a message was not taken");
            }
            error.clone_into(&mut known.error);
            known.failures += 1;
            let since = known.failing_since.get_or_insert_with(|| (Instant::now(), now_ns())).0;
            let lasting = since.elapsed() >= self.webhook.failing_after && !known.said;
            known.said |= lasting;
            (lasting, known.failures)
        };
        if lasting {
            tracing::error!(webhook = self.webhook.name, error, "nobody is told by this webhook any more");
            self.say("failing", error.to_owned());
        }
        pause(failures)
    }

    /// Looks at what comes next: at most one message is made of it. Waits a moment if there is nothing.
    async fn look(&self, queue: &mut Queue) -> Result<(), String> {
        if queue.fold_due(now_ns())? {
            return Ok(());
        }
        let (store, next) = (self.ledger.store().clone(), queue.next);
        let read = move || {
            if store.size() <= next && !store.wait_past(next, WAIT) {
                return Ok(Vec::new());
            }
            store.read(next, READ_RECORDS, READ_BYTES)
        };
        let records = match tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())? {
            Ok(records) => records,
            // Who has not been told of them was recorded before they went.
            Err(StoreError::Pruned { .. }) => {
                queue.next = self.ledger.store().first().max(next + 1);
                return Ok(());
            }
            Err(error) => return Err(format!("the log cannot be read: {error}")),
        };
        if records.is_empty() {
            // A log that is closed does not wait.
            tokio::time::sleep(WAIT / 10).await;
        }
        for (leaf, record) in records {
            self.consider(queue, leaf, &record).await?;
            queue.next = leaf + 1;
            if queue.outbox.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Makes a message of a leaf, or counts it, or passes over it.
    async fn consider(&self, queue: &mut Queue, leaf: u64, record: &Record) -> Result<(), String> {
        let Some(body) = body::parse(record) else { return Ok(()) };
        // What befell this receiver is told to the others.
        if matches!(&body, Body::WebhookFinding(finding) if finding.webhook == self.webhook.name) {
            return Ok(());
        }
        let request = match event::needs_request(&body) {
            Some(id) => self.request(id, leaf).await,
            None => None,
        };
        let Some(event) = fitted(record, &body, request.as_ref()) else { return Ok(()) };
        let host = record.header().host;
        if let Some(mode) = &event.mode
            && !queue.is_news(&host.to_string(), mode)
        {
            return Ok(());
        }
        let below = event.risk.is_some_and(|risk| risk < self.webhook.min_risk) && event.kind == Kind::ExecDenied;
        if !self.webhook.kinds.contains(&event.kind) || below {
            return Ok(());
        }
        let node = self.ledger.state().admit.node_of(host).unwrap_or_default().to_owned();
        let place = Place { leaf, record_sha256: record.digest(), host: host.to_string(), node: &node };
        queue.take(event, &place, now_ns())
    }

    /// The request that a decision of a host ends; `None` if it cannot be had: then less is told.
    async fn request(&self, id: &str, leaf: u64) -> Option<ExecRequest> {
        tokio::time::timeout(REQUEST_WAIT, self.index.wait_for(leaf)).await.ok()?.ok()?;
        let (index, store, id) = (Arc::clone(&self.index), self.ledger.store().clone(), id.to_owned());
        let read = move || {
            let found = index.review(&id, now_ns()).ok()?.0?;
            let (_, record) = store.read(found.leaf, 1, READ_BYTES).ok()?.into_iter().next()?;
            match body::parse(&record) {
                Some(Body::ExecRequest(request)) if request.request_id == id => Some(request),
                _ => None,
            }
        };
        tokio::task::spawn_blocking(read).await.ok()?
    }
}

/// The event of a record, with as much told as a message can hold.
fn fitted(record: &Record, body: &Body, request: Option<&ExecRequest>) -> Option<event::Event> {
    let mut last = None;
    for budget in BUDGETS {
        let mut cut = Cut::to(budget);
        let mut event = event::of(record, body, request, &mut cut)?;
        if cut.cut {
            event.data.insert("cut".to_owned(), true.into());
        }
        let fits = ascii_json(&event.data).is_ok_and(|text| text.len() + FRAME_BYTES <= BODY_MAX);
        last = Some(event);
        if fits {
            break;
        }
    }
    last
}

/// Between half of what doubles with each failure and all of it, so that many collectors do not come back at once.
fn pause(failures: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX);
    let mut random = [0; 2];
    // Without randomness the longest it is.
    let part = match rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX),
        Err(_) => 1.0,
    };
    longest.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_never_the_same() {
        for (failures, low, high) in [(1, 500, 1000), (2, 1000, 2000), (5, 8000, 16_000), (99, 150_000, 300_000)] {
            let pauses: Vec<u128> = (0..50).map(|_| pause(failures).as_millis()).collect();
            assert!(pauses.iter().all(|p| (low..=high).contains(p)), "{failures}: {pauses:?}");
            assert!(pauses.iter().any(|p| *p != pauses[0]));
        }
    }
}
