//! Profiles: what the processes of a session may do beside exec. The kernel programs keep them; this is their form in the
//! configuration, and how they become bits of the kernel's session entry.
//!
//! Chosen by the agent's name in the configuration, never by whoever starts a session. It must not touch the kernel.
//! Fails: an unknown name or value refuses the whole configuration.

use std::collections::BTreeMap;

use guard_common::session_flags as flags;
use serde::Deserialize;

use crate::capabilities::Capabilities;
use crate::deletes::Budget;
use crate::network::{self, NamedSocket, Network, Strict};

/// What happens to an act that may be legitimate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Treat {
    /// It goes on, unrecorded.
    Allow,
    /// It goes on and is recorded.
    Record,
    /// It is refused and recorded.
    Deny,
}

/// What happens to namespaces and mounts made inside.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Namespaces {
    /// Refused.
    Deny,
    /// Their mounts are marked by the daemon; execs before that are refused.
    Adopt,
}

/// One profile.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// Tracing inside the session. Allowed means that P3 is only observed.
    pub allow_debuggers: bool,
    /// Executable memory that no file backs, as just-in-time compilers make it.
    pub memory_exec: Treat,
    /// Executable mappings of files that the session can write, of deleted files and memfds, as native extensions in a workspace.
    pub writable_exec: Treat,
    /// User and mount namespaces.
    pub namespaces: Namespaces,
    /// `io_uring`.
    pub allow_io_uring: bool,
    /// Capabilities that sessions keep which run as root. All others are refused, whoever the session runs as.
    pub capabilities: Capabilities,
    /// Processes and threads at the same time.
    pub max_processes: u64,
    /// Unix sockets outside the session that it may connect to.
    pub unix_sockets: Vec<NamedSocket>,
    /// All others outside.
    pub other_unix_sockets: Strict,
    /// Internet addresses.
    pub network: Network,
    /// How many files one command may delete.
    pub delete_budget: Budget,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            allow_debuggers: false,
            memory_exec: Treat::Allow,
            writable_exec: Treat::Record,
            namespaces: Namespaces::Deny,
            allow_io_uring: false,
            capabilities: Capabilities::default(),
            max_processes: 1000,
            unix_sockets: network::default_sockets(),
            other_unix_sockets: Strict::Deny,
            network: Network::default(),
            delete_budget: Budget::default(),
        }
    }
}

impl Profile {
    /// Bits of the kernel's session entry.
    pub fn flags(&self) -> u32 {
        let mut bits = 0;
        let mut set = |on: bool, bit: u32| {
            if on {
                bits |= bit;
            }
        };
        set(self.allow_debuggers, flags::ALLOW_PTRACE);
        set(self.memory_exec == Treat::Deny, flags::DENY_ANON_EXEC);
        set(self.memory_exec == Treat::Record, flags::RECORD_ANON_EXEC);
        set(self.writable_exec == Treat::Deny, flags::DENY_WRITABLE_EXEC);
        set(self.writable_exec == Treat::Record, flags::RECORD_WRITABLE_EXEC);
        set(self.namespaces == Namespaces::Adopt, flags::ADOPT_NAMESPACES);
        set(self.allow_io_uring, flags::ALLOW_IO_URING);
        set(self.other_unix_sockets == Strict::Record, flags::ALLOW_UNIX);
        set(self.network.other_sockets == Strict::Record, flags::ALLOW_OTHER_FAMILIES);
        bits
    }

    /// Capabilities that no task of a session may use.
    pub fn caps_denied(&self) -> u64 {
        !self.capabilities.0
    }
}

/// All profiles, and which agent has which.
///
/// By name. `default` is for agents that `session.profiles` does not name; without an entry it is the built-in one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(transparent)]
pub struct Profiles(BTreeMap<String, Profile>);

/// Name of the profile for agents that have no other.
pub const DEFAULT: &str = "default";

impl Profiles {
    /// Those that are configured.
    pub fn all(&self) -> impl Iterator<Item = &Profile> {
        self.0.values()
    }

    /// Every profile, the built-in one where `default` is not configured.
    pub fn by_name(&self) -> BTreeMap<String, Profile> {
        let mut all = self.0.clone();
        all.entry(DEFAULT.into()).or_default();
        all
    }

    /// Only this one.
    #[cfg(test)]
    pub fn one(name: &str, profile: Profile) -> Self {
        Self(BTreeMap::from([(name.to_owned(), profile)]))
    }

    /// A profile by name; the built-in one where `default` is not configured.
    pub fn get(&self, name: &str) -> Option<Profile> {
        match self.0.get(name) {
            Some(profile) => Some(profile.clone()),
            None if name == DEFAULT => Some(Profile::default()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_allows_what_runtimes_need_and_records_the_rest() {
        let bits = Profile::default().flags();
        assert_eq!(bits, flags::RECORD_WRITABLE_EXEC);
    }

    #[test]
    fn the_capabilities_that_open_the_host_are_masked_unless_named() {
        let denied = Profile::default().caps_denied();
        // chown and setuid stay; dac_read_search, sys_module, sys_ptrace, sys_admin, bpf and what is not invented yet do not.
        assert_eq!([0, 7].map(|n| denied >> n & 1), [0, 0]);
        assert_eq!([2, 16, 19, 21, 39, 63].map(|n| denied >> n & 1), [1; 6]);
        let profile: Profile = toml::from_str("capabilities = ['sys_admin', 'chown']").unwrap();
        assert_eq!(profile.caps_denied(), !(1 << 21 | 1));
        assert!(toml::from_str::<Profile>("capabilities = ['all']").is_err());
    }

    #[test]
    fn a_strict_profile_refuses() {
        let profile: Profile = toml::from_str("memory_exec = 'deny'\nwritable_exec = 'deny'").unwrap();
        assert_eq!(profile.flags(), flags::DENY_ANON_EXEC | flags::DENY_WRITABLE_EXEC);
        assert!(toml::from_str::<Profile>("memory = 'deny'").is_err());
    }
}
