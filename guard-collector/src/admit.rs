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

use crate::body;

/// Digests kept in memory for each current epoch; older ones are read from the log.
const RECENT: usize = 1024;
/// Every so many records of an epoch its place in the log is noted.
const PLACE_EVERY: u64 = 1024;
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

/// What goes into the log, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A host's record as it came.
    Record(Record),
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

    fn fold(&mut self, leaf: u64, header: &Header, digest: [u8; 32]) {
        self.next_seq = self.next_seq.max(header.seq.saturating_add(1));
        (self.last, self.wall, self.leaf_end) = (digest, header.wall_unix_ns, leaf.saturating_add(1));
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((header.seq, digest));
        if self.places.last().is_none_or(|(seq, _)| header.seq.saturating_sub(*seq) >= PLACE_EVERY) {
            self.places.push((header.seq, leaf));
        }
    }
}

// === impl Admit ===

impl Admit {
    /// Takes a record of the log, in order.
    pub fn fold(&mut self, leaf: u64, record: &Record) {
        let header = record.header();
        if header.kind == Kind::ADMIT_FINDING {
            if let Some(Body::AdmitFinding(finding)) = body::parse(record) {
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
        host.epochs.entry(header.epoch).or_default().fold(leaf, &header, record.digest());
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
        records: &[Record],
        older: Option<&OlderDigests>,
    ) -> Result<Plan, Refusal> {
        self.check_binding(node, host)?;
        for record in records {
            check_own(record, host, epoch)?;
        }
        let known = self.hosts.get(&host);
        if known.is_some_and(|h| h.epochs.len() >= EPOCHS_MAX && !h.epochs.contains_key(&epoch)) {
            return Err(Refusal::TooManyEpochs(host));
        }
        let none = Mark::default();
        let mut planner = Planner::new((host, epoch), self.mark(host, epoch).unwrap_or(&none), older);
        let first = records.first().map_or(0, |r| r.header().seq);
        if known.is_none_or(|h| h.node.is_none()) {
            planner.say("bound", first, node.to_owned());
        }
        if let Some(before) = known.and_then(|h| h.current).filter(|before| *before != epoch) {
            planner.say("new_epoch", first, format!("the host's journal was {before} before"));
        }
        for record in records {
            match planner.take(record) {
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

    fn take(&mut self, record: &Record) -> Step {
        let (header, digest) = (record.header(), record.digest());
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
        self.items.push(Item::Record(record.clone()));
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

fn check_own(record: &Record, host: HostId, epoch: Epoch) -> Result<(), Refusal> {
    let header = record.header();
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
    let forged = body::decode(record).is_some_and(|b| body::is_collectors(body::kind_of(&b)));
    if body::is_collectors(header.kind) || forged {
        return foreign("only the collector writes records of this kind");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
