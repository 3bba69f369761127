//! Sessions that a daemon left open when it died: kept on disk from before their start until after their end, so that
//! the next daemon can close and record them.
//!
//! Fails: a state file that cannot be read is reported and kept as it is; its cgroup is closed all the same.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::frame;
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, SessionEnd};
use prost::Message;

use crate::kernel::cgroup::Cgroup;
use crate::session::Session;

/// One of them.
pub struct Leftover {
    /// The kernel's number.
    pub key: u64,
    /// Its id.
    pub id: SessionId,
    /// Who and for whom.
    pub identity: Identity,
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("sessions")
}

fn path(state_dir: &Path, key: u64) -> PathBuf {
    folder(state_dir).join(format!("{key:016x}"))
}

/// Keeps a session, durably.
pub fn remember(state_dir: &Path, session: &Session) -> io::Result<()> {
    std::fs::create_dir_all(folder(state_dir))?;
    frame::replace(&path(state_dir, session.key), &session.identity.encode_to_vec())
}

/// Forgets it after its end is recorded.
pub fn forget(state_dir: &Path, key: u64) -> io::Result<()> {
    std::fs::remove_file(path(state_dir, key))
}

/// Reads what is kept.
pub fn read(state_dir: &Path) -> Vec<Leftover> {
    let Ok(entries) = std::fs::read_dir(folder(state_dir)) else { return Vec::new() };
    entries.flatten().filter_map(|entry| read_one(&entry.path())).collect()
}

fn read_one(path: &Path) -> Option<Leftover> {
    let key = u64::from_str_radix(path.file_name()?.to_str()?, 16).ok()?;
    let identity = std::fs::read(path).ok().and_then(|bytes| Identity::decode(bytes.as_slice()).ok());
    match identity.as_ref().map(|i| i.session_id.parse()) {
        Some(Ok(id)) => Some(Leftover { key, id, identity: identity.unwrap_or_default() }),
        _ => {
            tracing::error!(file = %path.display(), "state of a former session cannot be read; it is kept");
            None
        }
    }
}

/// Kills everything in the cgroups of former sessions. Returns whether all are empty.
pub fn kill_all(guard_cgroup: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(guard_cgroup) else { return true };
    let mut empty = true;
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        let Ok(cgroup) = Cgroup::open(entry.path()) else { continue };
        let _ = cgroup.kill(Duration::from_secs(5));
        if cgroup.populated() {
            tracing::error!(cgroup = %cgroup.dir.display(), "processes of a former session cannot be killed");
            empty = false;
        } else if let Err(error) = cgroup.remove() {
            tracing::error!(cgroup = %cgroup.dir.display(), %error, "removing the cgroup of a former session");
        }
    }
    empty
}

/// The record of its end.
pub fn end_record(leftover: &Leftover) -> Body {
    Body::SessionEnd(SessionEnd {
        identity: Some(leftover.identity.clone()),
        reason: "daemon_restarted".into(),
        detail: "the daemon ended without closing this session; the next one killed what was left of it".into(),
        ..SessionEnd::default()
    })
}
