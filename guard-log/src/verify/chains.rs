//! Every host's records: without a gap, each naming the digest of the one before, or admitted not to.
//!
//! It must not judge a host by entries that are not the signed ones. Fails: breaks that no admission names are errors.

use std::collections::{HashMap, HashSet};

use super::admitted::{self, Admission};
use super::report::{Findings, HostReport};
use crate::record::{Epoch, HostId, Record};

/// Admissions and breaks that are remembered; a log with more of them is not right anyway.
const REMEMBERED_MAX: usize = 100_000;

/// Journals that are followed: many times what a fleet has, so that a log of made-up hosts does not fill the memory.
const JOURNALS_MAX: usize = 1 << 19;

struct Chain {
    place: usize,
    last: [u8; 32],
    /// Changed entries before its last record; while that is behind, a break may be theirs.
    doubts: u64,
}

struct Break {
    what: &'static str,
    leaf: u64,
    admission: Admission,
}

#[derive(Default)]
pub(super) struct Chains {
    chains: HashMap<(HostId, Epoch), Chain>,
    hosts: Vec<HostReport>,
    admissions: HashSet<Admission>,
    breaks: Vec<Break>,
    breaks_left_out: u64,
    /// Records of journals that are not followed.
    journals_left_out: u64,
    doubts: u64,
}

impl Chains {
    /// An entry is missing or not the signed one: what follows on it cannot be judged.
    pub(super) fn doubt(&mut self) {
        self.doubts += 1;
    }

    /// The next record of the log.
    pub(super) fn add(&mut self, leaf: u64, record: &Record) {
        if let Some(admission) = admitted::parse(record).filter(|_| self.admissions.len() < REMEMBERED_MAX) {
            self.admissions.insert(admission);
        }
        let header = record.header();
        let (key, digest, doubts) = ((header.host, header.epoch), record.digest(), self.doubts);
        let Some(chain) = self.chains.get_mut(&key) else {
            let place = self.hosts.len();
            if place >= JOURNALS_MAX {
                self.journals_left_out += 1;
                return;
            }
            self.chains.insert(key, Chain { place, last: digest, doubts });
            let (host, epoch, first_seq) = (header.host, header.epoch, header.seq);
            self.hosts.push(HostReport { host, epoch, first_seq, next_seq: first_seq.saturating_add(1), records: 1 });
            if doubts == 0 {
                self.judge(leaf, record, 0, &[0; 32]);
            }
            return;
        };
        let (last, sure) = (chain.last, chain.doubts == doubts);
        let Some(host) = self.hosts.get_mut(chain.place) else { return };
        let expected = host.next_seq;
        host.records += 1;
        if header.seq >= expected {
            host.next_seq = header.seq.saturating_add(1);
            (chain.last, chain.doubts) = (digest, doubts);
        }
        if sure {
            self.judge(leaf, record, expected, &last);
        }
    }

    fn judge(&mut self, leaf: u64, record: &Record, expected: u64, last: &[u8; 32]) {
        let header = record.header();
        let what = match header.seq.cmp(&expected) {
            std::cmp::Ordering::Greater => "gap",
            std::cmp::Ordering::Less => "repeat",
            std::cmp::Ordering::Equal if header.prev != *last => "chain_break",
            std::cmp::Ordering::Equal => return,
        };
        if self.breaks.len() >= REMEMBERED_MAX {
            self.breaks_left_out += 1;
            return;
        }
        let admission = Admission {
            host: header.host,
            epoch: header.epoch,
            what: what.to_owned(),
            expected_seq: expected,
            got_seq: header.seq,
        };
        self.breaks.push(Break { what, leaf, admission });
    }

    /// Hosts in order of appearance; breaks become findings.
    pub(super) fn finish(self, findings: &mut Findings) -> Vec<HostReport> {
        for found in &self.breaks {
            let Admission { host, epoch, expected_seq, got_seq, .. } = &found.admission;
            let where_ = format!("leaf {}, host {host}, epoch {epoch}", found.leaf);
            let detail = match found.what {
                "gap" => format!("records {expected_seq} to {} are not in the log", got_seq.saturating_sub(1)),
                "repeat" => format!("record {got_seq} comes again or late; {expected_seq} was next"),
                _ => format!(
                    "record {got_seq} does not name the digest of record {} before it",
                    got_seq.saturating_sub(1)
                ),
            };
            if !self.admissions.contains(&found.admission) {
                findings.error(found.what, where_, detail);
                continue;
            }
            let what = match found.what {
                "gap" => "admitted_gap",
                "repeat" => "admitted_repeat",
                _ => "admitted_chain_break",
            };
            findings.information(what, where_, format!("{detail}; the collector recorded this when it happened"));
        }
        if self.journals_left_out > 0 {
            let detail = format!("{} records are of more journals than are followed", self.journals_left_out);
            findings.unchecked("many_journals", "log", detail);
        }
        if self.breaks_left_out > 0 {
            findings.error("gap", "log", format!("{} more breaks were not looked at", self.breaks_left_out));
        }
        self.hosts
    }
}
