//! Who listens: decision streams of hosts, ship streams, and the nodes' last reports.
//!
//! All of it is memory of the moment and none of it truth. Bounded: a host that does not take its decisions loses its stream
//! and gets the open ones again when it comes back. Fails: never.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_log::record::HostId;
use guard_proto::v1::{Decision, NodeReport};
use tokio::sync::mpsc;

/// Decisions that wait for one host to take them.
const QUEUE: usize = 256;

#[derive(Default)]
struct State {
    listeners: HashMap<HostId, Vec<Listener>>,
    shipping: HashMap<String, u32>,
    reports: HashMap<String, (NodeReport, i64)>,
}

struct Listener {
    node: String,
    queue: mpsc::Sender<Decision>,
}

/// The listeners.
#[derive(Default)]
pub struct Hub(Mutex<State>);

/// A ship stream is open while it lives.
pub struct Shipping<'a> {
    hub: &'a Hub,
    node: String,
}

impl Drop for Shipping<'_> {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        if let Some(count) = state.shipping.get_mut(&self.node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                state.shipping.remove(&self.node);
            }
        }
    }
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for a host's decisions.
    pub fn listen(&self, host: HostId, node: &str) -> mpsc::Receiver<Decision> {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let mut state = self.state();
        let listeners = state.listeners.entry(host).or_default();
        listeners.retain(|l| !l.queue.is_closed());
        listeners.push(Listener { node: node.to_owned(), queue });
        receiver
    }

    /// Sends a decision to the host's listeners, if the node is the one bound to the host.
    pub fn send(&self, host: HostId, bound: &str, decision: &Decision) {
        if let Some(listeners) = self.state().listeners.get_mut(&host) {
            listeners.retain(|l| l.node == bound && l.queue.try_send(decision.clone()).is_ok());
        }
    }

    /// Notes that a node ships.
    pub fn shipping(&self, node: &str) -> Shipping<'_> {
        *self.state().shipping.entry(node.to_owned()).or_default() += 1;
        Shipping { hub: self, node: node.to_owned() }
    }

    /// Keeps a node's last report.
    pub fn report(&self, node: &str, report: NodeReport, seen_ns: i64) {
        self.state().reports.insert(node.to_owned(), (report, seen_ns));
    }

    /// Whether a node ships now, and its last report.
    pub fn node(&self, node: &str) -> (bool, Option<(NodeReport, i64)>) {
        let state = self.state();
        (state.shipping.contains_key(node), state.reports.get(node).cloned())
    }

    /// Names of all nodes that ship or have reported.
    pub fn nodes(&self) -> Vec<String> {
        let state = self.state();
        state.reports.keys().chain(state.shipping.keys()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bound_node_gets_decisions() {
        let (hub, host) = (Hub::default(), HostId([1; 16]));
        let (mut right, mut wrong) = (hub.listen(host, "a"), hub.listen(host, "b"));
        hub.send(host, "a", &Decision { leaf: 7, ..Decision::default() });
        assert_eq!(right.try_recv().expect("sent").leaf, 7);
        assert!(wrong.try_recv().is_err());
    }

    #[test]
    fn a_listener_that_does_not_take_is_dropped() {
        let (hub, host) = (Hub::default(), HostId([1; 16]));
        let mut slow = hub.listen(host, "a");
        for _ in 0..=QUEUE {
            hub.send(host, "a", &Decision::default());
        }
        let taken = std::iter::from_fn(|| slow.try_recv().ok()).count();
        assert_eq!((taken, slow.is_closed()), (QUEUE, true));
    }

    #[test]
    fn shipping_is_counted() {
        let hub = Hub::default();
        let (first, second) = (hub.shipping("a"), hub.shipping("a"));
        drop(first);
        assert!(hub.node("a").0);
        drop(second);
        assert!(!hub.node("a").0);
    }
}
