//! What the ledger derives from the log, kept in a file so that a start reads only what came since.
//!
//! Never the truth: it names the log's origin, how many leaves it is folded from and the digest of the last of them, and is not
//! believed unless the log agrees; then the whole log is read as if there were none. Open requests are kept as leaves and read
//! from the log. Digests of recent records are not kept: they are looked up when a host sends again. It must not be written
//! before its leaves are durable. Fails: an error that is said; the collector goes on, and its next start takes longer.
#![allow(missing_docs, reason = "fields of messages are named as those of the state that they keep")]

use std::path::Path;

use guard_log::frame;
use guard_log::store::Store;
use prost::Message;

use crate::ledger::State;

/// Changes with every change of the form or of what admission derives.
const VERSION: u32 = 2;
/// That of before there were records of certificates; written by an older collector it would lack those that came since.
const WITHOUT_CERTIFICATES: u32 = 1;
/// Longest file that is read.
const FILE_MAX: u64 = frame::PAYLOAD_MAX as u64 + frame::HEAD as u64;

/// The file's message.
#[derive(Clone, PartialEq, Message)]
pub struct Snapshot {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    origin: String,
    /// Leaves that it is folded from.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// Digest of the last of them.
    #[prost(bytes = "vec", tag = "4")]
    pub last: Vec<u8>,
    /// The collector's own chain.
    #[prost(message, optional, tag = "5")]
    pub own: Option<Own>,
    /// What was admitted of each host.
    #[prost(message, repeated, tag = "6")]
    pub hosts: Vec<Host>,
    /// Leaves of open requests and of their decisions, in order.
    #[prost(uint64, repeated, tag = "7")]
    pub reviews: Vec<u64>,
    /// What was issued and revoked.
    #[prost(message, optional, tag = "8")]
    pub certificates: Option<Certificates>,
}

/// Certificates on record.
#[derive(Clone, PartialEq, Message)]
pub struct Certificates {
    #[prost(message, repeated, tag = "1")]
    pub issued: Vec<Certificate>,
    #[prost(message, repeated, tag = "2")]
    pub serials: Vec<Revocation>,
    #[prost(message, repeated, tag = "3")]
    pub names: Vec<Revocation>,
    #[prost(uint64, tag = "4")]
    pub revocations: u64,
}

/// One that was issued.
#[derive(Clone, PartialEq, Message)]
pub struct Certificate {
    #[prost(string, tag = "1")]
    pub serial: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub role: String,
    #[prost(sint64, tag = "4")]
    pub not_after: i64,
    #[prost(uint64, tag = "5")]
    pub leaf: u64,
}

/// One that was revoked, or a name.
#[derive(Clone, PartialEq, Message)]
pub struct Revocation {
    #[prost(string, tag = "1")]
    pub of: String,
    #[prost(uint64, tag = "2")]
    pub leaf: u64,
    #[prost(sint64, tag = "3")]
    pub at: i64,
    #[prost(sint64, tag = "4")]
    pub until: i64,
}

/// The collector's own chain.
#[derive(Clone, PartialEq, Message)]
pub struct Own {
    #[prost(bytes = "vec", tag = "1")]
    pub host: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub epoch: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub next_seq: u64,
    #[prost(bytes = "vec", tag = "4")]
    pub last: Vec<u8>,
}

/// One host.
#[derive(Clone, PartialEq, Message)]
pub struct Host {
    #[prost(bytes = "vec", tag = "1")]
    pub host: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    pub node: Option<String>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub current: Option<Vec<u8>>,
    #[prost(uint64, tag = "4")]
    pub findings: u64,
    #[prost(message, repeated, tag = "5")]
    pub epochs: Vec<Epoch>,
}

/// One journal of a host.
#[derive(Clone, PartialEq, Message)]
pub struct Epoch {
    #[prost(bytes = "vec", tag = "1")]
    pub epoch: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub next_seq: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub last: Vec<u8>,
    #[prost(sint64, tag = "4")]
    pub wall: i64,
    #[prost(uint64, tag = "5")]
    pub leaf_end: u64,
    #[prost(uint64, repeated, tag = "6")]
    pub place_seqs: Vec<u64>,
    #[prost(uint64, repeated, tag = "7")]
    pub place_leaves: Vec<u64>,
    #[prost(uint32, tag = "8")]
    pub thinned: u32,
    #[prost(uint64, repeated, tag = "9")]
    pub forks: Vec<u64>,
}

/// The state as a file's content.
pub fn encode(state: &State, origin: &str) -> Vec<u8> {
    let snapshot = Snapshot {
        version: VERSION,
        origin: origin.to_owned(),
        size: state.size,
        last: state.last.to_vec(),
        own: Some(state.own.keep()),
        hosts: state.admit.keep(),
        reviews: state.reviews.leaves(),
        certificates: Some(state.certificates.keep()),
    };
    frame_of(&snapshot)
}

/// Makes it that of a log that goes on under another name with its first leaves; one that knows more of them goes.
pub fn rename(path: &Path, from: &str, to: &str, leaves: u64) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let mut snapshot = match decode(path) {
        Ok(snapshot) => snapshot,
        // It would not have been believed before either.
        Err(_) => return std::fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display())),
    };
    if snapshot.origin == to {
        return Ok(());
    }
    if snapshot.origin != from || snapshot.size > leaves {
        return std::fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display()));
    }
    to.clone_into(&mut snapshot.origin);
    write(path, &frame_of(&snapshot))
}

fn frame_of(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = frame::begin(snapshot.encoded_len());
    bytes.extend_from_slice(&snapshot.encode_to_vec());
    frame::finish(&mut bytes);
    bytes
}

/// What a file holds, whoever's it is.
fn decode(path: &Path) -> Result<Snapshot, String> {
    let found = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if found.len() > FILE_MAX {
        return Err(format!("it has {} bytes", found.len()));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let scan = frame::scan(&bytes);
    let whole = match scan.frames.as_slice() {
        [(at, length)] if at + length == bytes.len() => bytes.get(*at..).unwrap_or_default(),
        _ => return Err("its checksum is wrong".to_owned()),
    };
    Snapshot::decode(whole).map_err(|e| e.to_string())
}

/// Writes a file's content, durably.
pub fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    if content.len() as u64 > FILE_MAX {
        return Err(format!("{}: {} bytes are more than is read back", path.display(), content.len()));
    }
    frame::replace(path, content).map_err(|e| format!("{}: {e}", path.display()))
}

/// The state that a file holds, if the log agrees with it; `Err` says why it is not believed.
pub fn read(path: &Path, store: &Store) -> Result<Option<State>, String> {
    if std::fs::metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let snapshot = decode(path)?;
    // Where the log itself says all, it is read whole rather than trusting that no certificate was on record.
    let usable = snapshot.version == VERSION || (snapshot.version == WITHOUT_CERTIFICATES && store.pruned().is_some());
    if !usable || snapshot.origin != store.origin() {
        return Err(format!("it is of version {} and log {:?}", snapshot.version, snapshot.origin));
    }
    if snapshot.size > store.size() {
        return Err(format!("it knows {} leaves, the log holds {}", snapshot.size, store.size()));
    }
    let last = snapshot.size.checked_sub(1).ok_or("it knows no leaf")?;
    let found = store.read(last, 1, usize::MAX).map_err(|e| e.to_string())?;
    if found.first().is_none_or(|(_, record)| record.digest().as_slice() != snapshot.last) {
        return Err(format!("leaf {last} is another one"));
    }
    State::restore(&snapshot, store).map(Some)
}
