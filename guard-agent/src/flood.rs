//! Records that a session can cause at will, without being held for them: failing execs, refused acts.
//!
//! Each session has a rate. Beyond it such records are folded: one a second for each kind, with the exact count. It must not
//! decide and loses nothing: what is taken comes out again, as it went in or counted. Memory is bounded by the number of
//! sessions and of kinds.

use std::collections::HashMap;

use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;

/// Records folded into one cover at most this long.
const FOLD_NS: u64 = 1_000_000_000;
/// Records at once, in seconds of the rate.
const BURST_NS: u64 = 4_000_000_000;
/// Kinds told apart while folding; more are folded together.
const KINDS_MAX: usize = 64;

/// What makes two records foldable: form, what happened, error, operation.
type Kind = (u8, String, u32, String);

struct Folded {
    body: Body,
    since: u64,
}

#[derive(Default)]
struct Bucket {
    id: SessionId,
    /// When the session has its whole burst again.
    full_at: u64,
    folded: HashMap<Kind, Folded>,
}

/// One bucket for each session.
pub struct AtWill {
    interval_ns: u64,
    buckets: HashMap<SessionId, Bucket>,
}

impl AtWill {
    /// For a rate per session.
    pub fn new(per_second: u64) -> Self {
        Self { interval_ns: 1_000_000_000 / per_second.max(1), buckets: HashMap::new() }
    }

    /// Gives the record back if it may be kept as it is; else it is folded.
    pub fn take(&mut self, id: SessionId, body: Body, now: u64) -> Option<Body> {
        let bucket = self.buckets.entry(id).or_insert_with(|| Bucket { id, ..Bucket::default() });
        let full_at = bucket.full_at.max(now);
        if full_at - now <= BURST_NS {
            bucket.full_at = full_at + self.interval_ns;
            return Some(body);
        }
        let mut kind = kind(&body);
        if bucket.folded.len() >= KINDS_MAX && !bucket.folded.contains_key(&kind) {
            kind = (kind.0, String::new(), 0, String::new());
        }
        match bucket.folded.get_mut(&kind) {
            Some(known) => fold(&mut known.body, body),
            None => {
                bucket.folded.insert(kind, Folded { body: begin(body), since: now });
            }
        }
        None
    }

    /// Folded records whose time has come.
    pub fn due(&mut self, now: u64) -> Vec<(SessionId, Body)> {
        let mut due = Vec::new();
        self.buckets.retain(|_, bucket| {
            let over = bucket.folded.extract_if(|_, folded| now.saturating_sub(folded.since) >= FOLD_NS);
            due.extend(over.map(|(_, folded)| (bucket.id, folded.body)));
            !bucket.folded.is_empty() || bucket.full_at > now
        });
        due
    }
}

fn kind(body: &Body) -> Kind {
    match body {
        Body::ExecUnjudged(b) => (0, b.reason.clone(), b.errno, String::new()),
        Body::GuardRefusal(b) => (if b.killed { 1 } else { 2 }, b.what.clone(), 0, b.operation.clone()),
        Body::GuardObservation(b) => (3, b.what.clone(), 0, b.operation.clone()),
        _ => (4, String::new(), 0, String::new()),
    }
}

/// The first of several.
fn begin(mut body: Body) -> Body {
    match &mut body {
        Body::ExecUnjudged(b) => b.folded = true,
        Body::GuardRefusal(b) | Body::GuardObservation(b) => b.folded = true,
        _ => {}
    }
    body
}

/// Adds the count; what is shown is the first.
fn fold(known: &mut Body, body: Body) {
    match (known, body) {
        (Body::ExecUnjudged(known), Body::ExecUnjudged(more)) => {
            known.probes = known.probes.saturating_add(more.probes);
        }
        (Body::GuardRefusal(known), Body::GuardRefusal(more))
        | (Body::GuardObservation(known), Body::GuardObservation(more)) => {
            known.count = known.count.saturating_add(more.count);
        }
        // `kind` keeps forms apart.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use guard_proto::v1::{ExecUnjudged, GuardAct};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn probe(errno: u32, name: &str) -> Body {
        Body::ExecUnjudged(ExecUnjudged { errno, path: name.into(), probes: 1, ..ExecUnjudged::default() })
    }

    fn act(what: &str) -> Body {
        Body::GuardRefusal(GuardAct { what: what.into(), count: 1, ..GuardAct::default() })
    }

    fn count(body: &Body) -> u64 {
        match body {
            Body::ExecUnjudged(b) => b.probes.into(),
            Body::GuardRefusal(b) => b.count.into(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_flood_is_folded_and_every_attempt_is_counted() {
        let mut at_will = AtWill::new(50);
        let id = SessionId([1; 16]);
        let (mut records, mut counted) = (0, 0);
        for n in 0..100_000_u64 {
            // Ten seconds.
            let now = n * SECOND / 10_000;
            let body = if n % 3 == 0 { act("ptrace") } else { probe(2, &n.to_string()) };
            for body in at_will.take(id, body, now).into_iter().chain(at_will.due(now).into_iter().map(|d| d.1)) {
                records += 1;
                counted += count(&body);
            }
        }
        counted += at_will.due(u64::MAX).iter().map(|(_, body)| count(body)).sum::<u64>();
        assert_eq!(counted, 100_000);
        assert!((500..800).contains(&records), "{records}");
    }

    #[test]
    fn sessions_do_not_share_a_rate_and_idle_ones_are_forgotten() {
        let mut at_will = AtWill::new(50);
        for _ in 0..1000 {
            at_will.take(SessionId([1; 16]), probe(2, "x"), SECOND);
        }
        assert!(at_will.take(SessionId([1; 16]), probe(2, "x"), SECOND).is_none());
        assert!(at_will.take(SessionId([2; 16]), probe(2, "x"), SECOND).is_some());
        at_will.due(u64::MAX);
        assert!(at_will.buckets.is_empty());
    }

    #[test]
    fn kinds_are_bounded() {
        let mut at_will = AtWill::new(1);
        for errno in 0..10_000 {
            at_will.take(SessionId([1; 16]), probe(errno, "x"), SECOND);
        }
        assert!(at_will.buckets.values().all(|b| b.folded.len() <= KINDS_MAX + 1));
        assert!(at_will.due(u64::MAX).iter().map(|(_, body)| count(body)).sum::<u64>() > 9_900);
    }
}
