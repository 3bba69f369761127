//! Every so often, until the collector stops: what publishes, saves, prunes and asks witnesses begins each round with it.
//!
//! It must not catch up with rounds that were missed: each is as good as several. Fails: never.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior};

use crate::node::stopped;

/// The rounds.
pub struct Ticks {
    interval: Interval,
    stopping: watch::Receiver<bool>,
}

impl Ticks {
    /// The first round begins at once.
    pub fn new(every: Duration, stopping: watch::Receiver<bool>) -> Self {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, stopping }
    }

    /// Waits for the next round; false when the collector stops.
    pub async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interval.tick() => true,
            () = stopped(self.stopping.clone()) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rounds_end_when_the_collector_stops() {
        let (stop, stopping) = watch::channel(false);
        let mut ticks = Ticks::new(Duration::from_secs(3600), stopping);
        assert!(ticks.next().await);
        let (next, _) = tokio::join!(ticks.next(), async { stop.send_replace(true) });
        assert!(!next);
    }
}
