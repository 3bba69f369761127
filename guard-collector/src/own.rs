//! The collector's own chain of records: its start, its findings, reviewers' decisions.
//!
//! Host id, epoch, number and last digest are folded from the log; a log without any gets random ids at the first append, so
//! no file beside the log can disagree with it. It must not be used but under the ledger's lock. Fails: a record that is too
//! long or a machine without randomness is an error and nothing is numbered.

use std::io;

use guard_log::record::{Epoch, Header, HostId, Record, SessionId};
use guard_proto::v1::RecordBody;
use guard_proto::v1::record_body::Body;
use prost::Message;
use rustix::time::{ClockId, clock_gettime};

use crate::admit::Arrival;
use crate::{body, snapshot};

/// Where the chain stands.
#[derive(Clone, Debug)]
pub struct Own {
    host: HostId,
    epoch: Epoch,
    next_seq: u64,
    last: [u8; 32],
}

impl Own {
    /// With ids for a log that has none yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { host: HostId::random()?, epoch: Epoch::random()?, next_seq: 0, last: [0; 32] })
    }

    /// The same collector's, from its first number on.
    pub fn begin_epoch(&self) -> io::Result<Self> {
        Ok(Self { host: self.host, epoch: Epoch::random()?, next_seq: 0, last: [0; 32] })
    }

    /// The collector's host id.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// Takes a record of the log, in order.
    pub fn fold(&mut self, arrival: &Arrival) {
        let header = &arrival.header;
        if body::is_collectors(header.kind) {
            (self.host, self.epoch) = (header.host, header.epoch);
            (self.next_seq, self.last) = (header.seq.saturating_add(1), arrival.digest);
        }
    }

    /// For a file.
    pub fn keep(&self) -> snapshot::Own {
        let (host, epoch) = (self.host.0.to_vec(), self.epoch.0.to_vec());
        snapshot::Own { host, epoch, next_seq: self.next_seq, last: self.last.to_vec() }
    }

    /// From a file; `None` if that is not one.
    pub fn restore(kept: &snapshot::Own) -> Option<Self> {
        let (host, epoch) = (HostId::from_slice(&kept.host)?, Epoch::from_slice(&kept.epoch)?);
        Some(Self { host, epoch, next_seq: kept.next_seq, last: kept.last.as_slice().try_into().ok()? })
    }

    /// Makes the next record.
    pub fn seal(&mut self, session: SessionId, body: Body) -> io::Result<Record> {
        let header = Header {
            version: 1,
            kind: body::kind_of(&body),
            host: self.host,
            epoch: self.epoch,
            seq: self.next_seq,
            prev: self.last,
            boot_ns: u64::try_from(ns(ClockId::Boottime)).unwrap_or(0),
            wall_unix_ns: ns(ClockId::Realtime),
            session,
        };
        let body = RecordBody { body: Some(body) }.encode_to_vec();
        let record = Record::seal(&header, &body).map_err(io::Error::other)?;
        (self.next_seq, self.last) = (self.next_seq + 1, record.digest());
        Ok(record)
    }
}

fn ns(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// Wall time in ns since 1970.
pub fn now_ns() -> i64 {
    ns(ClockId::Realtime)
}
