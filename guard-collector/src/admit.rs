//! Admission: what of a batch enters the log, and what the log says about it.
//!
//! The state is folded from the log's own records, at start and after each append, so that it cannot disagree with the log:
//! a crash between append and acknowledgement loses nothing and doubles nothing. It must not do I/O and must not change a
//! record. A record that was logged already is dropped; a gap, a broken chain, a clock that went back and a new epoch are
//! admitted together with a finding; a second record for a number that the log holds is refused with a finding.
//!
//! A node's name (its certificate) is bound to a host id at its first batch by a finding `bound` in the same group; from then
//! on neither may appear with another. Fails closed: what does not fit is refused and nothing of it is logged.

use std::collections::{HashMap, HashSet, VecDeque};

use guard_log::record::{Epoch, Header, HostId, Kind, Record};
use guard_proto::v1::AdmitFinding;
use guard_proto::v1::record_body::Body;
use thiserror::Error;

use crate::{body, snapshot};

/// Digests kept in memory for each current epoch; older ones are read from the log.
const RECENT: usize = 1024;
/// Every so many records of an epoch its place in the log is noted, at first.
const PLACE_EVERY: u64 = 1024;
/// Places of one epoch; when there are as many, every second one is forgotten.
const PLACES_MAX: usize = 4096;
/// Epochs of one host: each is a new journal, so many mean that something is wrong.
const EPOCHS_MAX: usize = 1024;
/// Fork findings of one epoch; more say nothing new.
const FORKS_MAX: usize = 64;
/// Wall time may differ by so much between records that were stamped on different threads.
const CLOCK_TOLERANCE_NS: i64 = 5_000_000_000;

/// Why a batch is refused whole.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The certificate's node is bound to another host.
    #[error("node {node} is bound to host {bound}; a new host needs a certificate with a new name")]
    OtherHost {
        /// Name in the certificate.
        node: String,
        /// Its host.
        bound: HostId,
    },
    /// The host is bound to another node.
    #[error("host {host} is bound to another node's certificate")]
    OtherNode {
        /// The host.
        host: HostId,
    },
    /// A record that is not this host's, not of this epoch, or of a kind that hosts do not write.
    #[error("record {seq}: {what}")]
    Foreign {
        /// Its number.
        seq: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Too many journals.
    #[error("host {0} has had {EPOCHS_MAX} journals; it is not admitted with another")]
    TooManyEpochs(HostId),
}

/// A record with what admission needs of it, worked out once and before the ledger is locked.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// The record.
    pub record: Record,
    /// Its head.
    pub header: Header,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// Whether its kind or its body is one that only the collector writes.
    pub collectors: bool,
}

impl From<Record> for Arrival {
    fn from(record: Record) -> Self {
        let (header, digest) = (record.header(), record.digest());
        let collectors = body::is_collectors(header.kind) || body::holds_collectors(&record);
        Self { record, header, digest, collectors }
    }
}

/// What goes into the log, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A host's record as it came.
    Record(Arrival),
    /// What the collector says about it.
    Finding(AdmitFinding),
}

/// What to do with a batch.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Append these (nothing, if all was there already).
    Append(Vec<Item>),
    /// Append these, then refuse the rest: the host's journal is not the one that was logged.
    Fork(Vec<Item>, u64),
    /// Numbers so old that their digests must be read from the log first: from this leaf, up to that.
    Older {
        /// First leaf to read.
        from: u64,
        /// End of the range.
        to: u64,
    },
}

#[derive(Debug, Default)]
struct Mark {
    next_seq: u64,
    last: [u8; 32],
    wall: i64,
    leaf_end: u64,
    recent: VecDeque<(u64, [u8; 32])>,
    places: Vec<(u64, u64)>,
    /// Records between two places are `PLACE_EVERY << thinned`.
    thinned: u32,
    forks: HashSet<u64>,
}

#[derive(Debug, Default)]
struct Host {
    node: Option<String>,
    current: Option<Epoch>,
    epochs: HashMap<Epoch, Mark>,
    findings: u64,
}

/// What the log holds of each host.
#[derive(Debug, Default)]
pub struct Admit {
    hosts: HashMap<HostId, Host>,
    nodes: HashMap<String, HostId>,
}

/// A host as the log knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// Its id.
    pub host: HostId,
    /// Its node's name.
    pub node: String,
    /// Next number of the current epoch.
    pub next_seq: u64,
    /// Findings about it.
    pub findings: u64,
}

enum Known {
    Digest([u8; 32]),
    Absent,
    Older,
}

/// Digests of one epoch that were read from the log.
pub type OlderDigests = HashMap<u64, [u8; 32]>;

// === impl Host ===

impl Host {
    fn keep(&self, id: HostId) -> snapshot::Host {
        let mut epochs: Vec<_> = self.epochs.iter().map(|(epoch, mark)| mark.keep(*epoch)).collect();
        epochs.sort_by(|a, b| a.epoch.cmp(&b.epoch));
        let (node, current) = (self.node.clone(), self.current.map(|e| e.0.to_vec()));
        snapshot::Host { host: id.0.to_vec(), node, current, findings: self.findings, epochs }
    }
}

// === impl Mark ===

impl Mark {
    fn known(&self, seq: u64, older: Option<&OlderDigests>) -> Known {
        if let Ok(found) = self.recent.binary_search_by_key(&seq, |(s, _)| *s) {
            return self.recent.get(found).map_or(Known::Absent, |(_, d)| Known::Digest(*d));
        }
        if self.recent.front().is_some_and(|(first, _)| seq > *first) {
            return Known::Absent;
        }
        match older {
            None => Known::Older,
            Some(older) => older.get(&seq).map_or(Known::Absent, |d| Known::Digest(*d)),
        }
    }

    /// The leaf from which a number is found by reading on.
    fn place(&self, seq: u64) -> u64 {
        let after = self.places.partition_point(|(s, _)| *s <= seq);
        after.checked_sub(1).and_then(|i| self.places.get(i)).map_or(0, |(_, leaf)| *leaf)
    }

    fn keep(&self, epoch: Epoch) -> snapshot::Epoch {
        let mut forks: Vec<u64> = self.forks.iter().copied().collect();
        forks.sort_unstable();
        let (place_seqs, place_leaves) = self.places.iter().copied().unzip();
        snapshot::Epoch {
            epoch: epoch.0.to_vec(),
            next_seq: self.next_seq,
            last: self.last.to_vec(),
            wall: self.wall,
            leaf_end: self.leaf_end,
            place_seqs,
            place_leaves,
            thinned: self.thinned,
            forks,
        }
    }

    fn restore(kept: &snapshot::Epoch) -> Option<(Epoch, Self)> {
        if kept.place_seqs.len() != kept.place_leaves.len() {
            return None;
        }
        let mark = Self {
            next_seq: kept.next_seq,
            last: kept.last.as_slice().try_into().ok()?,
            wall: kept.wall,
            leaf_end: kept.leaf_end,
            recent: VecDeque::new(),
            places: kept.place_seqs.iter().copied().zip(kept.place_leaves.iter().copied()).collect(),
            thinned: kept.thinned,
            forks: kept.forks.iter().copied().collect(),
        };
        Some((Epoch::from_slice(&kept.epoch)?, mark))
    }

    fn fold(&mut self, leaf: u64, header: &Header, digest: [u8; 32]) {
        self.next_seq = self.next_seq.max(header.seq.saturating_add(1));
        (self.last, self.wall, self.leaf_end) = (digest, header.wall_unix_ns, leaf.saturating_add(1));
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((header.seq, digest));
        let every = PLACE_EVERY << self.thinned.min(40);
        if self.places.last().is_none_or(|(seq, _)| header.seq.saturating_sub(*seq) >= every) {
            if self.places.len() >= PLACES_MAX {
                let mut place = 0_u32;
                self.places.retain(|_| {
                    place += 1;
                    place % 2 == 1
                });
                self.thinned += 1;
            }
            self.places.push((header.seq, leaf));
        }
    }
}

// === impl Admit ===

impl Admit {
    /// Whether a node of this name ever shipped.
    pub fn knows(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// For a file, in an order of its own.
    pub fn keep(&self) -> Vec<snapshot::Host> {
        let mut hosts: Vec<_> = self.hosts.iter().map(|(id, host)| host.keep(*id)).collect();
        hosts.sort_by(|a, b| a.host.cmp(&b.host));
        hosts
    }

    /// From a file; `None` if that is not one.
    pub fn restore(kept: &[snapshot::Host]) -> Option<Self> {
        let mut admit = Self::default();
        for kept in kept {
            let id = HostId::from_slice(&kept.host)?;
            let epochs = kept.epochs.iter().map(Mark::restore).collect::<Option<_>>()?;
            let current = match &kept.current {
                Some(bytes) => Some(Epoch::from_slice(bytes)?),
                None => None,
            };
            admit.nodes.extend(kept.node.clone().map(|node| (node, id)));
            admit.hosts.insert(id, Host { node: kept.node.clone(), current, epochs, findings: kept.findings });
        }
        Some(admit)
    }

    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, arrival: &Arrival) {
        let header = &arrival.header;
        if header.kind == Kind::ADMIT_FINDING {
            if let Some(Body::AdmitFinding(finding)) = body::parse(&arrival.record) {
                self.fold_finding(&finding);
            }
            return;
        }
        if body::is_collectors(header.kind) {
            return;
        }
        let host = self.hosts.entry(header.host).or_default();
        if host.current != Some(header.epoch) {
            // Digests of a journal that is not in use are read from the log if they are ever needed.
            if let Some(left) = host.current.and_then(|e| host.epochs.get_mut(&e)) {
                left.recent = VecDeque::new();
            }
            host.current = Some(header.epoch);
        }
        host.epochs.entry(header.epoch).or_default().fold(leaf, header, arrival.digest);
    }

    fn fold_finding(&mut self, finding: &AdmitFinding) {
        let Some(id) = HostId::from_slice(&finding.host) else { return };
        let host = self.hosts.entry(id).or_default();
        if finding.what == "bound" {
            host.node = Some(finding.detail.clone());
            self.nodes.insert(finding.detail.clone(), id);
            return;
        }
        host.findings += 1;
        if finding.what == "fork"
            && let Some(epoch) = Epoch::from_slice(&finding.epoch)
        {
            host.epochs.entry(epoch).or_default().forks.insert(finding.got_seq);
        }
    }

    /// Whether this node may speak for this host.
    pub fn check_binding(&self, node: &str, host: HostId) -> Result<(), Refusal> {
        if let Some(bound) = self.nodes.get(node).filter(|bound| **bound != host) {
            return Err(Refusal::OtherHost { node: node.to_owned(), bound: *bound });
        }
        match self.hosts.get(&host).and_then(|h| h.node.as_deref()) {
            Some(bound) if bound != node => Err(Refusal::OtherNode { host }),
            _ => Ok(()),
        }
    }

    /// The node's name of a host.
    pub fn node_of(&self, host: HostId) -> Option<&str> {
        self.hosts.get(&host)?.node.as_deref()
    }

    /// Next number wanted of an epoch, and the end of the leaves that hold what came before.
    pub fn next(&self, host: HostId, epoch: Epoch) -> (u64, u64) {
        self.mark(host, epoch).map_or((0, 0), |m| (m.next_seq, m.leaf_end))
    }

    /// Every bound host.
    pub fn hosts(&self) -> impl Iterator<Item = HostView> {
        self.hosts.iter().filter_map(|(id, host)| {
            let mark = host.current.and_then(|e| host.epochs.get(&e));
            Some(HostView {
                host: *id,
                node: host.node.clone()?,
                next_seq: mark.map_or(0, |m| m.next_seq),
                findings: host.findings,
            })
        })
    }

    fn mark(&self, host: HostId, epoch: Epoch) -> Option<&Mark> {
        self.hosts.get(&host)?.epochs.get(&epoch)
    }

    /// Decides about a batch. `older` is what an earlier [`Plan::Older`] asked for.
    pub fn plan(
        &self,
        node: &str,
        (host, epoch): (HostId, Epoch),
        arrivals: &[Arrival],
        older: Option<&OlderDigests>,
    ) -> Result<Plan, Refusal> {
        self.check_binding(node, host)?;
        for arrival in arrivals {
            check_own(arrival, host, epoch)?;
        }
        let known = self.hosts.get(&host);
        if known.is_some_and(|h| h.epochs.len() >= EPOCHS_MAX && !h.epochs.contains_key(&epoch)) {
            return Err(Refusal::TooManyEpochs(host));
        }
        let none = Mark::default();
        let mut planner = Planner::new((host, epoch), self.mark(host, epoch).unwrap_or(&none), older);
        let first = arrivals.first().map_or(0, |a| a.header.seq);
        if known.is_none_or(|h| h.node.is_none()) {
            planner.say("bound", first, node.to_owned());
        }
        if let Some(before) = known.and_then(|h| h.current).filter(|before| *before != epoch) {
            planner.say("new_epoch", first, format!("the host's journal was {before} before"));
        }
        for arrival in arrivals {
            match planner.take(arrival) {
                Step::Taken => {}
                Step::Fork(seq) => return Ok(Plan::Fork(planner.items, seq)),
                Step::Older(from) => return Ok(Plan::Older { from, to: planner.mark.leaf_end }),
            }
        }
        Ok(Plan::Append(planner.items))
    }
}

// === impl Planner ===

/// A batch on its way through, record by record.
struct Planner<'a> {
    of: (HostId, Epoch),
    mark: &'a Mark,
    older: Option<&'a OlderDigests>,
    /// Digests of this batch, which the mark does not know yet.
    here: HashMap<u64, [u8; 32]>,
    next: u64,
    last: [u8; 32],
    wall: Option<i64>,
    items: Vec<Item>,
}

enum Step {
    Taken,
    Fork(u64),
    Older(u64),
}

impl<'a> Planner<'a> {
    fn new(of: (HostId, Epoch), mark: &'a Mark, older: Option<&'a OlderDigests>) -> Self {
        let wall = Some(mark.wall).filter(|_| mark.next_seq > 0);
        Self { of, mark, older, here: HashMap::new(), next: mark.next_seq, last: mark.last, wall, items: vec![] }
    }

    fn say(&mut self, what: &str, got_seq: u64, detail: String) {
        self.items.push(Item::Finding(AdmitFinding {
            host: self.of.0.0.to_vec(),
            epoch: self.of.1.0.to_vec(),
            what: what.to_owned(),
            expected_seq: self.next,
            got_seq,
            detail,
        }));
    }

    fn take(&mut self, arrival: &Arrival) -> Step {
        let (header, digest) = (&arrival.header, arrival.digest);
        if header.seq < self.next {
            return self.repeat(header.seq, digest);
        }
        if header.seq > self.next {
            self.say("gap", header.seq, format!("{} records are missing", header.seq - self.next));
        } else if header.prev != self.last {
            let what = format!("logged {}, it follows {}", hex::encode(self.last), hex::encode(header.prev));
            self.say("chain_break", header.seq, what);
        }
        if let Some(wall) = self.wall
            && header.wall_unix_ns < wall.saturating_sub(CLOCK_TOLERANCE_NS)
        {
            let back = wall.saturating_sub(header.wall_unix_ns) / 1_000_000;
            self.say("clock_regress", header.seq, format!("wall time went back by {back} ms"));
        }
        (self.next, self.last, self.wall) = (header.seq.saturating_add(1), digest, Some(header.wall_unix_ns));
        self.here.insert(header.seq, digest);
        self.items.push(Item::Record(arrival.clone()));
        Step::Taken
    }

    /// A number that was passed before: the same record, another one, or one out of a gap.
    fn repeat(&mut self, seq: u64, digest: [u8; 32]) -> Step {
        let known = match self.here.get(&seq) {
            Some(digest) => Known::Digest(*digest),
            None if seq >= self.mark.next_seq => Known::Absent,
            None => self.mark.known(seq, self.older),
        };
        match known {
            Known::Digest(logged) if logged == digest => Step::Taken,
            Known::Digest(logged) => {
                if self.mark.forks.len() < FORKS_MAX && !self.mark.forks.contains(&seq) {
                    self.say("fork", seq, format!("logged {}, came {}", hex::encode(logged), hex::encode(digest)));
                }
                Step::Fork(seq)
            }
            Known::Absent => {
                let what = format!("came late, for a number inside a gap; not logged; {}", hex::encode(digest));
                self.say("repeat", seq, what);
                Step::Taken
            }
            Known::Older => Step::Older(self.mark.place(seq)),
        }
    }
}

fn check_own(arrival: &Arrival, host: HostId, epoch: Epoch) -> Result<(), Refusal> {
    let header = &arrival.header;
    let foreign = |what| Err(Refusal::Foreign { seq: header.seq, what });
    if header.host != host {
        return foreign("it names another host");
    }
    if header.epoch != epoch {
        return foreign("it names another epoch than the greeting");
    }
    if header.seq == u64::MAX {
        return foreign("its number leaves no room for a next one");
    }
    if arrival.collectors {
        return foreign("only the collector writes records of this kind");
    }
    Ok(())
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
