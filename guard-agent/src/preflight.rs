//! What this kernel supports and whether its limits suffice for the configured sessions: for `check` and `status`.
//!
//! It reads and compares; only [`raise_descriptor_limit`] changes anything. Fails: a limit that cannot be read counts as 0
//! and is shown as not sufficient.

use guard_proto::v1::KernelSupport;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::kernel::btf::Btf;
use crate::kernel::programs::{Hook, PROGRAMS, has_hook};

const GROUPS: &str = "/proc/sys/fs/fanotify/max_user_groups";
const OPEN: &str = "/proc/sys/fs/nr_open";
const MARKS: &str = "/proc/sys/fs/fanotify/max_user_marks";
/// Descriptors that the daemon needs beside its sessions: pins, journal, sockets, probes.
const DESCRIPTORS: u64 = 256;
/// Descriptors of one session beside its held execs: group, event descriptors, connection, namespaces; the socket inside it
/// with its connections.
const PER_SESSION: u64 = 16 + 48;
/// fanotify groups of root that are not Guard's, such as a virus scanner's.
const OTHER_GROUPS: u64 = 16;

/// A limit of the host.
pub struct Limit {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub have: u64,
    /// What the configured number of sessions needs; 0 for nothing.
    pub need: u64,
    /// How to raise it.
    pub advice: &'static str,
}

impl Limit {
    /// One line, and whether it suffices.
    pub fn verdict(&self) -> Result<String, String> {
        if self.have >= self.need {
            return Ok(format!("{}, {} needed", self.have, self.need));
        }
        Err(format!("{} is {}, {} needed: {}", self.name, self.have, self.need, self.advice))
    }
}

/// The limits that bite.
pub fn limits(config: &Config) -> [Limit; 3] {
    let sessions = config.session.max_sessions as u64;
    [
        Limit {
            name: "fs.fanotify.max_user_groups",
            have: number(GROUPS),
            need: sessions.saturating_add(OTHER_GROUPS),
            advice: "sysctl -w fs.fanotify.max_user_groups=N, or lower session.max_sessions",
        },
        Limit {
            // The daemon's own groups are made without this limit.
            name: "fs.fanotify.max_user_marks",
            have: number(MARKS),
            need: 0,
            advice: "",
        },
        Limit {
            name: "open descriptors",
            have: reachable(),
            need: descriptors(config),
            advice: "sysctl -w fs.nr_open=N and LimitNOFILE=N, or lower session.max_sessions or session.max_held",
        },
    ]
}

fn descriptors(config: &Config) -> u64 {
    let (sessions, held) = (config.session.max_sessions as u64, config.session.max_held as u64);
    sessions.saturating_mul(held.saturating_add(PER_SESSION)).saturating_add(DESCRIPTORS)
}

/// Descriptors that the daemon can come to: as root it raises its own limit.
fn reachable() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if rustix::process::geteuid().is_root() { hard.max(number(OPEN)) } else { hard }
}

fn number(path: &str) -> u64 {
    std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Programs whose hook this kernel does not have: those that `run` needs, and those that it does without.
pub fn absent_hooks(types: &Btf) -> (Vec<String>, Vec<String>) {
    let (mut needed, mut optional) = (Vec::new(), Vec::new());
    for (program, hook) in PROGRAMS {
        match hook {
            Hook::Lsm(hook) if !has_hook(types, hook) => needed.push(format!("{hook} ({program})")),
            Hook::LsmIfThere(hook) if !has_hook(types, hook) => optional.push(format!("{hook} ({program})")),
            _ => {}
        }
    }
    (needed, optional)
}

/// Takes what descriptors the daemon may have, at least as many as the configured sessions need.
pub fn raise_descriptor_limit(config: &Config) {
    let maximum = getrlimit(Resource::Nofile).maximum.map(|hard| hard.max(descriptors(config)));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "raising the limit of open descriptors");
    }
}

/// As reports carry it.
pub fn support(config: &Config, attached: usize, missing: &[String]) -> KernelSupport {
    let limits = limits(config);
    let have = |index: usize| limits.get(index).map_or(0, |limit| limit.have);
    KernelSupport {
        programs: u32::try_from(attached).unwrap_or(u32::MAX),
        missing: missing.to_vec(),
        fanotify_max_groups: have(0),
        fanotify_max_marks: have(1),
        descriptors: have(2),
        warnings: limits.iter().filter_map(|limit| limit.verdict().err()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_does_not_suffice_says_what_to_do() {
        let limit = Limit { name: "x", have: 3, need: 4, advice: "raise it" };
        assert_eq!(limit.verdict().unwrap_err(), "x is 3, 4 needed: raise it");
        assert!(Limit { need: 3, ..limit }.verdict().is_ok());
    }
}
