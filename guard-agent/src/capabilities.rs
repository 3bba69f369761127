//! Capabilities by name: in profiles, and in records of those that a session was refused.
//!
//! Fails: an unknown name refuses the configuration; an unknown number is shown as a number.

use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// Names by number, without `CAP_` (`capabilities(7)`).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// What root needs to own, change and serve files, and to become somebody else.
const DEFAULT: [&str; 8] =
    ["chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "net_bind_service"];

/// A set of capabilities: bit n is capability n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Default for Capabilities {
    fn default() -> Self {
        Self(DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit))
    }
}

impl Capabilities {
    /// Whether one is among them.
    pub fn has(self, name: &str) -> bool {
        bit(name).is_some_and(|bit| self.0 & bit != 0)
    }
}

fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

/// Name of a capability, for people.
pub fn name(number: u64) -> String {
    let known = usize::try_from(number).ok().and_then(|n| NAMES.get(n));
    known.map_or_else(|| format!("capability {number}"), |name| (*name).to_owned())
}

impl<'de> Deserialize<'de> for Capabilities {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let add = |set: u64, name: &String| match bit(name) {
            Some(bit) => Ok(set | bit),
            None => Err(D::Error::custom(format!(
                "unknown capability `{name}`: names are those of capabilities(7) in small letters without CAP_, such as {}",
                DEFAULT.join(", ")
            ))),
        };
        names.iter().try_fold(0, add).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers() {
        assert_eq!(
            (bit("chown"), bit("sys_admin"), bit("checkpoint_restore")),
            (Some(1), Some(1 << 21), Some(1 << 40))
        );
        assert_eq!((name(2), name(99)), ("dac_read_search".to_owned(), "capability 99".to_owned()));
    }

    #[test]
    fn every_default_has_a_name() {
        assert_eq!(Capabilities::default().0.count_ones() as usize, DEFAULT.len());
    }
}
