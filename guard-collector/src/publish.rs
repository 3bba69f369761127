//! Makes what is durable public: tiles, lock store, signed checkpoint, a moment after the append and at the end.
//!
//! Acknowledgement does not depend on it. It must not be the only thing that notices a fork: the store's lock does. Fails: an
//! error is said once and tried again; the old checkpoint stays.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use guard_log::store::Store;
use tokio::sync::watch;

use crate::own::now_ns;
use crate::ticks::Ticks;

/// When the checkpoint was published.
#[derive(Debug, Default)]
pub struct Published(AtomicI64);

impl Published {
    /// As the file's time says.
    pub fn of(checkpoint: &Path) -> Self {
        let modified = std::fs::metadata(checkpoint).and_then(|m| m.modified()).ok();
        let since = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Self(AtomicI64::new(i64::try_from(since.as_nanos()).unwrap_or(0)))
    }

    /// Wall time in ns.
    pub fn at_ns(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Publishes now; blocks.
    pub fn publish(&self, store: &Store) -> Result<(), String> {
        if store.publish().map_err(|e| e.to_string())? {
            self.0.store(now_ns(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Publishes every so often until the collector stops.
pub async fn run(published: std::sync::Arc<Published>, store: Store, every: Duration, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(every, stopping);
    let mut said = None;
    while ticks.next().await {
        let (published, store) = (published.clone(), store.clone());
        let result = tokio::task::spawn_blocking(move || published.publish(&store)).await;
        let error = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(error) => Some(error.to_string()),
        };
        if error != said
            && let Some(error) = &error
        {
            tracing::error!(%error, "the log cannot be published; the old checkpoint stays");
        }
        said = error;
    }
}
