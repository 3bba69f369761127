//! The record: a fixed header and an opaque body, serialised once on the host. Nobody re-encodes these bytes.
//!
//! Layout, little-endian: magic `GR`, version `u8`, reserved `u8`, header length `u16`, kind `u16`, host 16, epoch 16,
//! sequence `u64`, digest of the host's previous record 32, boot-time ns `u64`, wall-time ns `i64`, session 16, body.
//! Newer versions may grow the header: readers take what they know and keep all bytes.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most bytes of one record: what a `tlog-tiles` entry can hold.
pub const RECORD_MAX: usize = 65_535;
/// Bytes of the header of version 1.
pub const HEADER_LEN: usize = 112;
const MAGIC: [u8; 2] = *b"GR";
const VERSION: u8 = 1;

/// Why bytes are not a record.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RecordError {
    /// Longer than a log entry can be.
    #[error("a record of {0} bytes is longer than {RECORD_MAX}")]
    TooLong(usize),
    /// Not even a header.
    #[error("{0} bytes are too few for a record header")]
    TooShort(usize),
    /// Something else.
    #[error("not a record: it does not start with the magic bytes")]
    Magic,
    /// The header claims a length that does not fit.
    #[error("a header length of {0} does not fit")]
    HeaderLength(u16),
}

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = hex::FromHexError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
        impl $name {
            /// A random one.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
                Ok(Self(bytes))
            }

            /// From exactly 16 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }
    };
}

id!(HostId, "A host, by a random number made at its first start.");
id!(Epoch, "One life of a host's journal: random, made with the journal.");

/// A session's ULID; all zero means none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// No session.
    pub const NONE: Self = Self([0; 16]);

    /// Whether it names none.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", ulid::Ulid::from(u128::from_be_bytes(self.0)))
    }
}
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for SessionId {
    type Err = RecordError;
    fn from_str(text: &str) -> Result<Self, RecordError> {
        let ulid = ulid::Ulid::from_string(text).map_err(|_| RecordError::TooShort(text.len()))?;
        Ok(Self(u128::from(ulid).to_be_bytes()))
    }
}

/// What a record is about: the number of the body's variant in `guard.v1.RecordBody`. Unknown ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind(pub u16);

#[expect(missing_docs, reason = "named as the variants of guard.v1.RecordBody")]
impl Kind {
    pub const NODE_START: Self = Self(1);
    pub const NODE_STOP: Self = Self(2);
    pub const SESSION_START: Self = Self(3);
    pub const SESSION_END: Self = Self(4);
    pub const EXEC: Self = Self(5);
    pub const EXEC_REQUEST: Self = Self(6);
    pub const EXEC_DECISION: Self = Self(7);
    pub const EXEC_OUTCOME: Self = Self(8);
    pub const EXEC_UNJUDGED: Self = Self(9);
    pub const GUARD_REFUSAL: Self = Self(10);
    pub const GAP: Self = Self(11);
    pub const CANARY: Self = Self(12);
    pub const EMERGENCY_STOP: Self = Self(13);
    pub const JOURNAL_REPAIR: Self = Self(14);
    pub const POLICY_LOADED: Self = Self(15);
    pub const GUARD_OBSERVATION: Self = Self(16);
    pub const DECISION_FINDING: Self = Self(70);
    pub const COLLECTOR_START: Self = Self(32);
    pub const ADMIT_FINDING: Self = Self(33);
    pub const REVIEW_DECISION: Self = Self(34);
    pub const ENTRIES_PRUNED: Self = Self(37);
    pub const KEY_ROTATED: Self = Self(38);
    pub const LOG_SUCCEEDED: Self = Self(39);
}

/// Head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the layout; newer ones than this crate knows are kept.
    pub version: u8,
    /// What it is about.
    pub kind: Kind,
    /// Whose record.
    pub host: HostId,
    /// Which life of the host's journal.
    pub epoch: Epoch,
    /// Gap-free number in that epoch, from 0.
    pub seq: u64,
    /// SHA-256 of the previous record's bytes; zero for the first.
    pub prev: [u8; 32],
    /// `CLOCK_BOOTTIME` in ns.
    pub boot_ns: u64,
    /// Wall time in ns since 1970; information, never order.
    pub wall_unix_ns: i64,
    /// The session, or none.
    pub session: SessionId,
}

/// A record's bytes, known to have a whole header.
#[derive(Clone, PartialEq, Eq)]
pub struct Record(Bytes);

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("header", &self.header()).field("body", &self.body().len()).finish()
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

impl Record {
    /// Serialises a record. The only place that does.
    pub fn seal(header: &Header, body: &[u8]) -> Result<Self, RecordError> {
        let length = HEADER_LEN + body.len();
        if length > RECORD_MAX {
            return Err(RecordError::TooLong(length));
        }
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, 0]);
        bytes.extend_from_slice(&(HEADER_LEN as u16).to_le_bytes());
        bytes.extend_from_slice(&header.kind.0.to_le_bytes());
        bytes.extend_from_slice(&header.host.0);
        bytes.extend_from_slice(&header.epoch.0);
        bytes.extend_from_slice(&header.seq.to_le_bytes());
        bytes.extend_from_slice(&header.prev);
        bytes.extend_from_slice(&header.boot_ns.to_le_bytes());
        bytes.extend_from_slice(&header.wall_unix_ns.to_le_bytes());
        bytes.extend_from_slice(&header.session.0);
        bytes.extend_from_slice(body);
        Ok(Self(bytes.into()))
    }

    /// Takes bytes that came from elsewhere.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, RecordError> {
        let bytes = bytes.into();
        if bytes.len() > RECORD_MAX {
            return Err(RecordError::TooLong(bytes.len()));
        }
        if bytes.len() < HEADER_LEN {
            return Err(RecordError::TooShort(bytes.len()));
        }
        if bytes.get(..2) != Some(&MAGIC) {
            return Err(RecordError::Magic);
        }
        let header = u16::from_le_bytes(array(&bytes, 4));
        if usize::from(header) < HEADER_LEN || usize::from(header) > bytes.len() {
            return Err(RecordError::HeaderLength(header));
        }
        Ok(Self(bytes))
    }

    /// Its head.
    pub fn header(&self) -> Header {
        let b = &self.0;
        Header {
            version: array::<1>(b, 2)[0],
            kind: Kind(u16::from_le_bytes(array(b, 6))),
            host: HostId(array(b, 8)),
            epoch: Epoch(array(b, 24)),
            seq: u64::from_le_bytes(array(b, 40)),
            prev: array(b, 48),
            boot_ns: u64::from_le_bytes(array(b, 80)),
            wall_unix_ns: i64::from_le_bytes(array(b, 88)),
            session: SessionId(array(b, 96)),
        }
    }

    /// Everything after the head.
    pub fn body(&self) -> &[u8] {
        let header = usize::from(u16::from_le_bytes(array(&self.0, 4)));
        self.0.get(header..).unwrap_or_default()
    }

    /// All bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// SHA-256 of all bytes; the next record's `prev`.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            version: 1,
            kind: Kind::EXEC,
            host: HostId([1; 16]),
            epoch: Epoch([2; 16]),
            seq: 7,
            prev: [3; 32],
            boot_ns: 4,
            wall_unix_ns: -5,
            session: SessionId([6; 16]),
        }
    }

    #[test]
    fn comes_back_as_it_was_sealed() {
        let record = Record::seal(&header(), b"body").unwrap();
        let again = Record::parse(record.bytes().clone()).unwrap();
        assert_eq!((again.header(), again.body()), (header(), b"body".as_slice()));
        assert_eq!(again.digest(), record.digest());
    }

    #[test]
    fn newer_headers_are_kept() {
        let mut bytes = Record::seal(&header(), b"").unwrap().bytes().to_vec();
        bytes[2] = 9;
        bytes[4..6].copy_from_slice(&120_u16.to_le_bytes());
        bytes.extend_from_slice(b"12345678body");
        let record = Record::parse(bytes.clone()).unwrap();
        assert_eq!((record.header().version, record.body()), (9, b"body".as_slice()));
        assert_eq!(record.bytes().as_ref(), bytes);
    }

    #[test]
    fn too_long_is_refused() {
        assert!(matches!(Record::seal(&header(), &vec![0; RECORD_MAX]), Err(RecordError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(record) = Record::parse(bytes) {
                let _ = (record.header(), record.body(), record.digest());
            }
        }
    }
}
