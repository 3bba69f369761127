//! Makes what is durable public: tiles, lock store, signed checkpoint, a moment after the append and at the end.
//!
//! Acknowledgement does not depend on it. It must not be the only thing that notices a fork: the store's lock does. Fails: the old
//! checkpoint stays and it is tried again; that it stopped, why, and that it goes on are records, and stand in `status`.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use guard_log::record::SessionId;
use guard_log::store::Store;
use guard_proto::v1::PublishFinding;
use guard_proto::v1::record_body::Body;
use tokio::sync::watch;

use crate::ledger::Ledger;
use crate::own::now_ns;
use crate::ticks::Ticks;

/// When the checkpoint was published, and why a newer one is not.
#[derive(Debug, Default)]
pub struct Published {
    at: AtomicI64,
    error: Mutex<String>,
}

impl Published {
    /// As the file's time says.
    pub fn of(checkpoint: &Path) -> Self {
        let modified = std::fs::metadata(checkpoint).and_then(|m| m.modified()).ok();
        let since = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Self { at: AtomicI64::new(i64::try_from(since.as_nanos()).unwrap_or(0)), error: Mutex::default() }
    }

    /// Wall time in ns.
    pub fn at_ns(&self) -> i64 {
        self.at.load(Ordering::Relaxed)
    }

    /// Why new records are not published; empty if they are.
    pub fn error(&self) -> String {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Publishes now; blocks.
    pub fn publish(&self, store: &Store) -> Result<(), String> {
        let result = store.publish().map_err(|e| e.to_string());
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = result.as_ref().err().cloned().unwrap_or_default();
        if result? {
            self.at.store(now_ns(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What has to be recorded now, if anything; `stopped` is whether it was recorded that nothing is published.
fn finding(stopped: &mut bool, error: &str) -> Option<PublishFinding> {
    let (before, now) = (std::mem::replace(stopped, !error.is_empty()), !error.is_empty());
    let what = match (before, now) {
        (false, true) => "stopped",
        (true, false) => "back",
        (false, false) | (true, true) => return None,
    };
    Some(PublishFinding { what: what.to_owned(), detail: error.to_owned() })
}

/// Publishes every so often until the collector stops.
pub async fn run(published: Arc<Published>, ledger: Arc<Ledger>, every: Duration, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(every, stopping);
    let (mut said, mut stopped) = (String::new(), false);
    while ticks.next().await {
        let (published, store) = (published.clone(), ledger.store().clone());
        let result = tokio::task::spawn_blocking(move || published.publish(&store)).await;
        let error = match result {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        };
        if error != said && !error.is_empty() {
            tracing::error!(%error, "the log cannot be published; the old checkpoint stays");
        }
        // Durable without being public; where the store itself takes nothing more, there is nobody to tell but the operator.
        if let Some(finding) = finding(&mut stopped, &error)
            && let Err(error) = ledger.say(SessionId::NONE, Body::PublishFinding(finding))
        {
            tracing::error!(%error, "that nothing is published is not recorded");
        }
        said = error;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;
    use std::sync::atomic::AtomicBool;

    use guard_log::note::Verifier;
    use guard_log::record::Kind;
    use guard_log::signer::{KeyFile, SignError, Signer};

    use super::*;
    use crate::body;
    use crate::testing::Place;

    /// A key in a device that can be pulled out.
    struct Device(KeyFile, Arc<AtomicBool>);

    impl fmt::Debug for Device {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Device")
        }
    }

    impl Signer for Device {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn verifier(&self) -> Verifier {
            self.0.verifier()
        }

        fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
            if self.1.load(Ordering::SeqCst) {
                return Err(SignError { key: self.name().to_owned(), why: "it was pulled out".to_owned() });
            }
            Signer::sign(&self.0, message)
        }
    }

    async fn until(what: impl Fn() -> bool) {
        for _ in 0..2000 {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it does not come about");
    }

    #[tokio::test]
    async fn a_key_that_does_not_sign_stops_publishing_visibly_and_loses_nothing() {
        let place = Place::new(1 << 20);
        let gone = Arc::new(AtomicBool::new(false));
        let device = Device(place.signer(), gone.clone());
        let ledger = Arc::new(place.ledger_with(device));
        let published = Arc::new(Published::default());
        let (stop, stopping) = watch::channel(false);
        let running = tokio::spawn(run(published.clone(), ledger.clone(), Duration::from_millis(10), stopping));
        let start = || ledger.start(None).expect("taken");
        start().wait().await.expect("durable");
        until(|| ledger.store().published().0 == 1).await;
        gone.store(true, Ordering::SeqCst);
        start().wait().await.expect("durable");
        // The second start and what is said of the key.
        until(|| ledger.store().size() == 3).await;
        assert!(published.error().contains("pulled out"), "{}", published.error());
        assert_eq!(ledger.store().published().0, 1);
        // Nothing more is said while it stays so, and records are taken all the same.
        start().wait().await.expect("durable");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(ledger.store().size(), 4);
        gone.store(false, Ordering::SeqCst);
        until(|| ledger.store().published().0 == 5).await;
        assert!(published.error().is_empty());
        stop.send_replace(true);
        running.await.expect("ended");
        let records = ledger.store().read(0, 10, 1 << 20).expect("read");
        let said: Vec<_> = records
            .iter()
            .filter_map(|(leaf, record)| match body::parse(record) {
                Some(Body::PublishFinding(finding)) => Some((*leaf, finding.what)),
                _ => None,
            })
            .collect();
        assert_eq!(said, [(2, "stopped".to_owned()), (4, "back".to_owned())]);
        assert_eq!(records.iter().filter(|(_, r)| r.header().kind == Kind::COLLECTOR_START).count(), 3);
    }
}
