//! What is kept of a session's credentials until all of them are revoked: names of leases, never a secret.
//!
//! One file a session, for root alone, written before the secret that it is about is asked for or handed over. Fails: a file
//! that cannot be read is an error that names it and stays as it is.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use guard_log::record::SessionId;
use guard_proto::v1::{CredentialAct, Identity};
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest file that is read.
const FILE_MAX: u64 = 256 << 10;
/// Most files that are read.
const FILES_MAX: usize = 4096;
/// Longest pause between two tries, in nanoseconds.
const PAUSE_MAX_NS: u64 = 60_000_000_000;

/// The kind of the login under which all of a session's credentials are made.
pub const LOGIN: &str = "login";

/// One credential at the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Name in the configuration; empty for the login.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Path at the provider.
    pub path: String,
    /// Names it there: lease id, accessor or serial number. Empty: nothing to renew or revoke.
    pub handle: String,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Longest time to ask for.
    pub max_ttl_seconds: u64,
    /// When it ends by itself, in wall time; 0: never.
    pub ends_unix_ns: i64,
    /// The same, in boot time.
    #[serde(skip)]
    pub ends_boot_ns: u64,
    /// When it is to be renewed, in boot time.
    #[serde(skip)]
    pub renew_boot_ns: u64,
    /// Tries that failed, one after the other.
    #[serde(skip)]
    pub attempts: u32,
    /// When the next one may come, in boot time.
    #[serde(skip)]
    pub next_boot_ns: u64,
}

impl Lease {
    /// Lives for so long from now on; is renewed when a third of that is left.
    pub fn lives(&mut self, ttl_ns: u64, now: u64, wall: i64) {
        (self.attempts, self.next_boot_ns) = (0, 0);
        if ttl_ns == 0 {
            (self.ends_boot_ns, self.ends_unix_ns) = (u64::MAX, 0);
            return;
        }
        self.ends_boot_ns = now.saturating_add(ttl_ns);
        self.ends_unix_ns = wall.saturating_add(i64::try_from(ttl_ns).unwrap_or(i64::MAX));
        self.renew_boot_ns = now.saturating_add(ttl_ns / 3 * 2);
    }

    /// A try failed. Says whether it is one that an alert tells of: the first, the second, the fourth, …
    pub fn failed(&mut self, now: u64) -> bool {
        self.attempts = self.attempts.saturating_add(1);
        let pause = 1_000_000_000_u64.saturating_mul(1 << self.attempts.min(10));
        self.next_boot_ns = now.saturating_add(pause.min(PAUSE_MAX_NS));
        self.attempts.is_power_of_two()
    }

    /// Whether it is time to renew it, for a session that ends then.
    pub fn is_due(&self, now: u64, session_ends: u64) -> bool {
        self.renewable && self.ends_boot_ns < session_ends && now >= self.renew_boot_ns && now >= self.next_boot_ns
    }

    /// Whether it has ended by itself.
    pub fn is_over(&self, now: u64) -> bool {
        now >= self.ends_boot_ns
    }

    /// As records carry it.
    pub fn act(&self, chain: &Identity, detail: String) -> CredentialAct {
        let digest = |handle: &String| Sha256::digest(handle.as_bytes()).to_vec();
        CredentialAct {
            identity: Some(chain.clone()),
            name: self.name.clone(),
            kind: self.kind.clone(),
            lease_sha256: Some(&self.handle).filter(|h| !h.is_empty()).map(digest).unwrap_or_default(),
            attempts: self.attempts,
            detail,
            ..CredentialAct::default()
        }
    }
}

/// The credentials of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// Id of the session.
    pub session_id: String,
    /// Who acts for whom, encoded, in hexadecimal digits.
    pub identity: String,
    /// The session's start is recorded: what becomes of these is recorded as its.
    pub recorded: bool,
    /// In the order in which they were made; the login is the first.
    pub leases: Vec<Lease>,
    /// Being made just now.
    #[serde(skip)]
    pub starting: bool,
}

impl Held {
    /// Of a session that is to start.
    pub fn new(id: SessionId, chain: &Identity) -> Self {
        let identity = hex::encode(chain.encode_to_vec());
        Self { session_id: id.to_string(), identity, starting: true, ..Self::default() }
    }

    /// Who acts for whom.
    pub fn chain(&self) -> Identity {
        let bytes = hex::decode(&self.identity).unwrap_or_default();
        Identity::decode(bytes.as_slice()).unwrap_or_default()
    }

    /// The session that records are about.
    pub fn session(&self) -> SessionId {
        Some(&self.session_id).filter(|_| self.recorded).and_then(|id| id.parse().ok()).unwrap_or(SessionId::NONE)
    }

    /// Writes it, durably.
    pub fn keep(&self, dir: &Path) -> io::Result<()> {
        let path = path(dir, &self.session_id);
        let fresh = path.with_extension("tmp");
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        io::Write::write_all(&mut &file, &serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        std::fs::File::open(dir)?.sync_all()
    }

    /// Forgets it.
    pub fn forget(&self, dir: &Path) -> io::Result<()> {
        std::fs::remove_file(path(dir, &self.session_id))
    }
}

fn path(dir: &Path, session_id: &str) -> PathBuf {
    dir.join(format!("{session_id}.json"))
}

/// Makes the folder.
pub fn folder(state_dir: &Path) -> io::Result<PathBuf> {
    let dir = state_dir.join("credentials");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    Ok(dir)
}

/// What earlier daemons have left. What ends when is looked up in wall time; what can be renewed is renewed soon.
pub fn read(dir: &Path, now: u64, wall: i64) -> Vec<Held> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let files = entries.filter(|p| p.extension().is_some_and(|e| e == "json")).take(FILES_MAX);
    let mut found = Vec::new();
    for file in files {
        match read_one(&file) {
            Ok(mut held) => {
                for lease in &mut held.leases {
                    let left = u64::try_from(lease.ends_unix_ns.saturating_sub(wall)).unwrap_or(0);
                    lease.ends_boot_ns = if lease.ends_unix_ns == 0 { u64::MAX } else { now.saturating_add(left) };
                }
                found.push(held);
            }
            Err(why) => {
                tracing::error!(file = %file.display(), why, "credentials of a session cannot be read, nor revoked; the file stays");
            }
        }
    }
    found
}

fn read_one(file: &Path) -> Result<Held, String> {
    let bytes = crate::files::read_bounded(file, FILE_MAX).map_err(|e| e.to_string())?;
    let held: Held = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let id: SessionId = held.session_id.parse().map_err(|_| "it names no session".to_owned())?;
    let named = file.file_stem().is_some_and(|stem| stem.to_string_lossy() == id.to_string());
    if named { Ok(held) } else { Err(format!("it is about session {id}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn lease(ttl: u64) -> Lease {
        let mut lease = Lease { handle: "database/creds/ro/abc".into(), renewable: true, ..Lease::default() };
        lease.lives(ttl * S, 0, 0);
        lease
    }

    #[test]
    fn renewed_when_a_third_is_left_and_only_if_the_session_lives_longer() {
        let lease = lease(90);
        assert!(!lease.is_due(59 * S, 900 * S) && lease.is_due(60 * S, 900 * S));
        assert!(!lease.is_due(80 * S, 90 * S), "it lives as long as the session");
        assert!(!lease.is_over(90 * S - 1) && lease.is_over(90 * S));
        let mut endless = lease.clone();
        endless.lives(0, 0, 0);
        assert!(!endless.is_due(u64::MAX - 1, u64::MAX) && !endless.is_over(u64::MAX - 1));
    }

    #[test]
    fn tries_come_less_and_less_often_and_so_do_alerts() {
        let mut lease = lease(90);
        let alerts: Vec<u32> = (1..=40_u32).filter(|_| lease.failed(0)).collect();
        assert_eq!(alerts, [1, 2, 4, 8, 16, 32]);
        assert_eq!(lease.next_boot_ns, PAUSE_MAX_NS);
        lease.lives(90 * S, 0, 0);
        assert_eq!((lease.attempts, lease.next_boot_ns), (0, 0));
        lease.failed(0);
        assert_eq!(lease.next_boot_ns, 2 * S);
    }

    #[test]
    fn the_next_daemon_finds_what_is_to_be_revoked_and_nobody_else_may_look() {
        let state = tempfile::tempdir().unwrap();
        let dir = folder(state.path()).unwrap();
        let id = SessionId([7; 16]);
        let mut held = Held::new(id, &Identity { initiator: "alice".into(), ..Identity::default() });
        held.leases.push(lease(90));
        held.keep(&dir).unwrap();
        let mode = |path: &Path| {
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
        };
        assert_eq!((mode(&dir), mode(&path(&dir, &id.to_string()))), (0o700, 0o600));
        let found = read(&dir, 1000 * S, 30 * S as i64);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].chain().initiator, "alice");
        assert_eq!(found[0].leases[0].ends_boot_ns, 1060 * S);
        assert!(found[0].session().is_none() && !found[0].starting);
        std::fs::copy(path(&dir, &id.to_string()), dir.join("other.json")).unwrap();
        assert_eq!(read(&dir, 0, 0).len(), 1);
        held.forget(&dir).unwrap();
        assert!(read(&dir, 0, 0).is_empty());
    }

    #[test]
    fn records_hold_a_digest_of_the_lease_and_no_more() {
        let act = lease(90).act(&Identity::default(), String::new());
        assert_eq!(act.lease_sha256, Sha256::digest(b"database/creds/ro/abc").to_vec());
        assert!(!format!("{act:?}").contains("creds/ro"));
    }
}
