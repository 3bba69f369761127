//! How old the host's signed roles are: how long ago the collector last confirmed that the host has the newest bundle.
//!
//! Within one boot a clock counts that nobody sets, over a restart of the machine the wall clock. It must not make roles younger than
//! they are: a wall clock that was set back, a file that cannot be read, an older bundle than the one confirmed give no age at all. Fails
//! closed: without an age within the limit no session starts or is renewed; sessions that run go on, with the age in their records.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_log::frame;
use guard_proto::v1::LocalError;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::control::error;
use crate::kernel::time;
use crate::node::Node;
use crate::policies::InForce;
use crate::renewal::words;

/// In the state folder.
const FILE: &str = "roles.confirmed";
const FILE_MAX: u64 = 4096;
/// How often it is written: what is lost with a daemon makes the roles so much older.
const KEEP_NS: u64 = 30_000_000_000;
/// What a wall clock may have been ahead when it was noted.
const SLACK_NS: i64 = 2_000_000_000;
/// With every refusal.
const HINT: &str =
    "roles.max_age_seconds bounds how old signed roles may be (docs/roles.md); see `guardctl status --local`";

/// When the collector confirmed which bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Confirmed {
    serial: u64,
    unix_ns: i64,
    boot_id: String,
    boot_ns: u64,
}

/// Two clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    unix_ns: i64,
    boot_ns: u64,
}

#[derive(Default)]
struct State {
    confirmed: Option<Confirmed>,
    kept_boot_ns: Option<u64>,
}

/// The age of this host's signed roles.
pub struct Fresh {
    path: PathBuf,
    boot_id: String,
    max_seconds: Option<u64>,
    state: Mutex<State>,
}

fn now() -> Now {
    Now { unix_ns: time::wall_unix_ns(), boot_ns: time::boot_ns() }
}

// === impl Confirmed ===

impl Confirmed {
    /// How long ago, for a host that has the bundle of this serial number.
    fn age_ns(&self, serial: u64, boot_id: &str, now: Now) -> Option<u64> {
        if serial < self.serial {
            return None;
        }
        if self.boot_id == boot_id {
            return Some(now.boot_ns.saturating_sub(self.boot_ns));
        }
        let age = now.unix_ns.saturating_sub(self.unix_ns);
        if age < -SLACK_NS { None } else { Some(u64::try_from(age).unwrap_or(0)) }
    }
}

// === impl Fresh ===

impl Fresh {
    /// Reads what an earlier daemon kept.
    pub fn read(config: &Config, boot_id: &str) -> Self {
        let path = config.node.state_dir.join(FILE);
        let confirmed = kept(&path).unwrap_or_else(|error| {
            tracing::warn!(error, "the signed roles count as never confirmed until the collector does it again");
            None
        });
        let state = Mutex::new(State { confirmed, kept_boot_ns: None });
        Self { path, boot_id: boot_id.to_owned(), max_seconds: config.roles.max_age_seconds, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The collector says that the bundle of this number is its newest, and the host has it.
    pub fn confirmed(&self, serial: u64) {
        self.confirmed_at(serial, now());
    }

    fn confirmed_at(&self, serial: u64, now: Now) {
        let confirmed = Confirmed { serial, unix_ns: now.unix_ns, boot_id: self.boot_id.clone(), boot_ns: now.boot_ns };
        let due = {
            let mut state = self.state();
            let other = state.confirmed.as_ref().is_none_or(|before| before.serial != serial);
            let due = other || state.kept_boot_ns.is_none_or(|at| now.boot_ns.saturating_sub(at) >= KEEP_NS);
            state.confirmed = Some(confirmed.clone());
            if due {
                state.kept_boot_ns = Some(now.boot_ns);
            }
            due
        };
        if due && let Err(error) = keep(&self.path, &confirmed) {
            tracing::error!(%error, "when the signed roles were confirmed is not kept");
        }
    }

    /// Seconds since the roles were confirmed, for a host that has the bundle of this number; nothing if that is not known.
    pub fn age_seconds(&self, serial: u64) -> Option<u64> {
        self.age_at(serial, now())
    }

    fn age_at(&self, serial: u64, now: Now) -> Option<u64> {
        let state = self.state();
        state.confirmed.as_ref()?.age_ns(serial, &self.boot_id, now).map(|ns| ns / 1_000_000_000)
    }

    /// As [`allows`], for roles of the bundle `serial` on a host whose newest bundle is `newest`. `link` says what is wrong with the
    /// connection to the collector.
    fn allows_at(&self, (serial, newest): (u64, u64), agent: &str, link: &str, now: Now) -> Result<(), String> {
        let Some(max) = self.max_seconds else { return Ok(()) };
        if serial == 0 {
            return Err(format!(
                "the roles for agent {agent} are not of a signed bundle, and roles.max_age_seconds is set: publish a bundle with \
                 a role file that is in the stage enforce for it"
            ));
        }
        let why = if link.is_empty() { "it has a newer one that this host did not take" } else { link };
        match self.age_at(newest, now) {
            Some(age) if age <= max => Ok(()),
            Some(age) => Err(format!(
                "the collector last confirmed the signed roles {} ago, and {} is the limit: {why}",
                words(age),
                words(max)
            )),
            None => Err(format!("the collector has not confirmed the signed roles (bundle {serial}) yet: {why}")),
        }
    }
}

/// Whether a session of the agent may start or be renewed, as far as the age of its roles goes.
pub fn allows(node: &Node, in_force: &InForce, agent: &str) -> Result<(), LocalError> {
    let serials = (in_force.roles_serial(), node.policies.serial());
    node.fresh.allows_at(serials, agent, &node.link.error(), now()).map_err(|why| error("denied", why, HINT))
}

fn kept(path: &Path) -> Result<Option<Confirmed>, String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    match frame::read_bounded(path, FILE_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| told(&e)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(told(&error)),
    }
}

fn keep(path: &Path, confirmed: &Confirmed) -> std::io::Result<()> {
    frame::replace(path, &serde_json::to_vec(confirmed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const NOON: i64 = 1_769_860_800_000_000_000;

    fn fresh(dir: &Path, boot_id: &str) -> Fresh {
        let text = format!(
            "[node]\nname='n'\nstate_dir='{}'\n[collector]\naddress='https://c:1'\nca='/a'\ncert='/b'\nkey='/c'\n\
             [policy]\nfrom_collector=true\n[roles]\nmax_age_seconds=60\n",
            dir.display()
        );
        Fresh::read(&toml::from_str(&text).unwrap(), boot_id)
    }

    /// So many seconds after noon, by both clocks; the machine was started a thousand seconds before.
    fn at(seconds: u64) -> Now {
        Now { unix_ns: NOON + i64::try_from(seconds * S).unwrap(), boot_ns: (1000 + seconds) * S }
    }

    #[test]
    fn without_the_collector_nothing_starts_once_the_roles_are_too_old() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = fresh(dir.path(), "one");
        let allows = |serial, link, seconds| fresh.allows_at((serial, serial), "coder", link, at(seconds));
        assert!(
            allows(7, "connection refused", 0)
                .unwrap_err()
                .contains("not confirmed the signed roles (bundle 7) yet: conn")
        );
        fresh.confirmed_at(7, at(0));
        assert!(allows(7, "connection refused", 60).is_ok());
        let refused = allows(7, "connection refused", 61).unwrap_err();
        assert_eq!(
            refused,
            "the collector last confirmed the signed roles 1 min 1 s ago, and 1 min is the limit: connection refused"
        );
        assert!(allows(7, "", 61).unwrap_err().contains("has a newer one that this host did not take"));
        assert!(allows(0, "", 1).unwrap_err().contains("roles for agent coder are not of a signed bundle"));
        fresh.confirmed_at(7, at(100));
        assert!(allows(7, "", 101).is_ok());
        let free = Fresh { max_seconds: None, ..fresh };
        assert!(free.allows_at((0, 0), "coder", "down", at(9999)).is_ok(), "without the setting there is no limit");
    }

    #[test]
    fn the_age_outlives_daemon_and_machine_and_is_never_less_than_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fresh(dir.path(), "one").confirmed_at(7, at(0));
        let same = fresh(dir.path(), "one");
        // The wall clock was set within the boot: it says nothing.
        assert_eq!(same.age_at(7, Now { unix_ns: NOON - 9_000_000_000_000, ..at(40) }), Some(40));
        assert_eq!(same.age_at(6, at(40)), None, "an older bundle than was confirmed was put back");
        let later = fresh(dir.path(), "two");
        assert_eq!(later.age_at(7, Now { boot_ns: 5 * S, ..at(500) }), Some(500));
        let back = Now { unix_ns: NOON - 60_000_000_000, boot_ns: 5 * S };
        assert_eq!(later.age_at(7, back), None, "a clock before the confirmation says nothing");
        assert!(later.allows_at((7, 7), "coder", "", back).is_err());
        std::fs::write(dir.path().join(FILE), b"{}").unwrap();
        assert_eq!(fresh(dir.path(), "one").age_at(7, at(1)), None);
    }

    #[test]
    fn it_is_written_seldom_and_at_once_for_another_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let fresh = fresh(dir.path(), "one");
        let written = || kept(&dir.path().join(FILE)).unwrap().unwrap();
        fresh.confirmed_at(7, at(0));
        fresh.confirmed_at(7, at(29));
        assert_eq!((written().serial, written().boot_ns), (7, 1000 * S));
        fresh.confirmed_at(8, at(29));
        assert_eq!((written().serial, written().boot_ns), (8, 1029 * S));
        fresh.confirmed_at(8, at(59));
        assert_eq!(written().boot_ns, 1059 * S);
    }
}
