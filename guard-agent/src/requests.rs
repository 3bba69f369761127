//! Open requests for review, kept on disk from before their record until after their decision's: a daemon that dies leaves
//! none open for ever.
//!
//! It must not decide anything: what an earlier daemon left open is closed as denied. Fails: a request that cannot be kept is
//! not asked; a file that cannot be read is reported by name and stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_log::frame;
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, ExecDecision, Identity, RecordBody};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::node::Node;

const FILE_MAX: u64 = 1 << 20;
/// Most files that are read.
const FILES_MAX: usize = 100_000;
/// Said to whoever asked.
const WHY: &str = "the daemon restarted; run the same command again";

/// One request, as much of it as its end needs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Its id, which is also the file's name.
    pub request: String,
    /// Its session.
    pub session: String,
    /// `Identity`, encoded, in hexadecimal digits.
    pub identity: String,
    /// The exec that it is about.
    pub exec: u64,
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("requests")
}

/// Keeps one, durably.
pub fn opened(state_dir: &Path, open: &Open) -> io::Result<()> {
    std::fs::create_dir_all(folder(state_dir))?;
    frame::replace(&folder(state_dir).join(&open.request), &serde_json::to_vec(open)?)
}

/// Its decision is about to be recorded under this sequence number or a later one.
pub fn closing(state_dir: &Path, request: &str, seq: u64) {
    let dir = folder(state_dir);
    if let Err(error) = std::fs::rename(dir.join(request), dir.join(format!("{request}-{seq}"))) {
        tracing::error!(request, %error, "noting that a request is decided");
    }
}

/// Its decision is recorded.
pub fn closed(state_dir: &Path, request: &str, seq: u64) {
    let _ = std::fs::remove_file(folder(state_dir).join(format!("{request}-{seq}")));
}

/// It was never recorded.
pub fn forget(state_dir: &Path, request: &str) {
    let _ = std::fs::remove_file(folder(state_dir).join(request));
}

/// Closes, with a record each, what an earlier daemon left open.
pub fn close_former(node: &Arc<Node>) -> Result<(), String> {
    let state_dir = &node.config.node.state_dir;
    let Ok(entries) = std::fs::read_dir(folder(state_dir)) else { return Ok(()) };
    for path in entries.flatten().map(|e| e.path()).take(FILES_MAX) {
        let Some((request, seq)) = name(&path) else { continue };
        if seq.is_some_and(|seq| is_decided(node, &request, seq)) {
            let _ = std::fs::remove_file(&path);
            continue;
        }
        match read_one(&path) {
            Ok((open, session, identity)) => {
                let ticket = node.append(session, end_record(&open, identity)).map_err(|e| e.to_string())?;
                ticket.wait().map_err(|e| e.to_string())?;
                tracing::warn!(request, "a request of an earlier daemon is closed");
                let _ = std::fs::remove_file(&path);
            }
            Err(why) => tracing::error!(file = %path.display(), why, "a request cannot be read; it stays open"),
        }
    }
    Ok(())
}

/// Request, and the number from which on its decision's record lies. Nothing for what was being written.
fn name(path: &Path) -> Option<(String, Option<u64>)> {
    let name = path.file_name()?.to_str().filter(|n| !n.ends_with(".tmp"))?;
    Some(match name.split_once('-') {
        Some((request, seq)) => (request.to_owned(), Some(seq.parse().ok()?)),
        None => (name.to_owned(), None),
    })
}

fn read_one(path: &Path) -> Result<(Open, SessionId, Identity), String> {
    let bytes = crate::files::read_bounded(path, FILE_MAX).map_err(|e| e.to_string())?;
    let open: Open = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let session = open.session.parse().map_err(|_| "its session is no id".to_owned())?;
    let identity = hex::decode(&open.identity).map_err(|e| e.to_string())?;
    let identity = Identity::decode(identity.as_slice()).map_err(|e| e.to_string())?;
    Ok((open, session, identity))
}

fn end_record(open: &Open, identity: Identity) -> Body {
    Body::ExecDecision(ExecDecision {
        identity: Some(identity),
        request_id: open.request.clone(),
        exec_id: open.exec,
        disposition: Disposition::Denied.into(),
        reason: WHY.into(),
        ..ExecDecision::default()
    })
}

/// Whether the journal holds a decision from this number on. What it no longer holds was shipped, and so was durable.
fn is_decided(node: &Node, request: &str, seq: u64) -> bool {
    const RECORDS: usize = 256;
    const BYTES: usize = 4 << 20;
    let state = node.journal.state();
    if state.first_seq > seq {
        return true;
    }
    let mut next = seq;
    while next < state.next_seq {
        let batch = node.journal.read(next, RECORDS, BYTES).unwrap_or_default();
        let Some(last) = batch.last().map(|r| r.header().seq) else { return false };
        let decides = |body: &[u8]| matches!(RecordBody::decode(body), Ok(RecordBody { body: Some(Body::ExecDecision(d)) }) if d.request_id == request);
        if batch.iter().any(|record| decides(record.body())) {
            return true;
        }
        next = last + 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_until_its_decision_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let id = |low| ulid::Ulid::from_parts(1, low).to_string();
        let open = Open {
            request: id(1),
            session: id(2),
            identity: hex::encode(Identity { agent: "coder".into(), ..Identity::default() }.encode_to_vec()),
            exec: 1 << 63,
        };
        opened(dir.path(), &open).unwrap();
        let path = folder(dir.path()).join(&open.request);
        let (read, _, identity) = read_one(&path).unwrap();
        assert_eq!((&read, identity.agent.as_str()), (&open, "coder"));
        assert_eq!(name(&path), Some((open.request.clone(), None)));
        closing(dir.path(), &open.request, 7);
        assert!(!path.exists());
        let path = folder(dir.path()).join(format!("{}-7", open.request));
        assert_eq!(name(&path), Some((open.request.clone(), Some(7))));
        assert!(read_one(&path).is_ok());
        closed(dir.path(), &open.request, 7);
        assert!(!path.exists());
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, b"{\"request\":\"x\"}").unwrap();
        assert!(read_one(&path).is_err());
        assert!(name(Path::new("/r/x.tmp")).is_none() && name(Path::new("/r/x-y")).is_none());
    }
}
