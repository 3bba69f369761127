//! The host that measured commands are judged on: whose home, which folder, and where distributions put programs.

use crate::facts::{Facts, FileRef, Role, Stdin};
use crate::model::Policy;
use crate::verdict::Verdict;

const HOME: &[u8] = b"/home/dev";
pub(super) const WORKSPACE: &[u8] = b"/home/dev/work";

/// Where programs of bare names are taken to lie. Programs that policy describes and no row names lie in `/usr/bin`;
/// what policy does not describe has no path here and is reviewed.
const TABLE: &[(&str, &[&str])] = &[
    (
        "/usr/sbin/",
        &[
            "adduser",
            "arp",
            "arptables",
            "badblocks",
            "blkid",
            "chpasswd",
            "chroot",
            "cron",
            "debugfs",
            "deluser",
            "dmidecode",
            "dmsetup",
            "e2fsck",
            "ebtables",
            "ethtool",
            "fdisk",
            "fsck",
            "groupadd",
            "groupdel",
            "groupmod",
            "halt",
            "hwclock",
            "ifconfig",
            "init",
            "insmod",
            "ip6tables",
            "ipset",
            "iptables",
            "iptables-restore",
            "iptables-save",
            "ldconfig",
            "logrotate",
            "losetup",
            "lvremove",
            "mkfs",
            "mkswap",
            "modprobe",
            "nft",
            "parted",
            "poweroff",
            "reboot",
            "rmmod",
            "route",
            "sfdisk",
            "shutdown",
            "swapoff",
            "swapon",
            "sysctl",
            "tcpdump",
            "tune2fs",
            "ufw",
            "useradd",
            "userdel",
            "usermod",
            "visudo",
            "wipefs",
        ],
    ),
    (
        "/usr/local/bin/",
        &[
            "aws",
            "az",
            "cargo",
            "eksctl",
            "gcloud",
            "gh",
            "helm",
            "kubectl",
            "minikube",
            "pulumi",
            "rustup",
            "terraform",
        ],
    ),
];

/// One exec to be judged.
#[derive(Debug, Clone)]
pub struct Command {
    argv: Vec<Vec<u8>>,
    path: Option<Vec<u8>>,
}

// === impl Command ===

impl Command {
    /// A shell that gets `text` as its command.
    #[must_use]
    pub fn shell(text: &str) -> Self {
        let argv = [b"bash".as_slice(), b"-c", text.as_bytes()].map(<[u8]>::to_vec).to_vec();
        Self { argv, path: Some(b"/usr/bin/bash".to_vec()) }
    }

    /// A program with its arguments; a bare name is looked up in the table.
    #[must_use]
    pub fn exec(policy: &Policy, argv: &[String]) -> Self {
        let first = argv.first().map(String::as_str).unwrap_or_default();
        let path = if first.contains('/') { Some(absolute(first)) } else { resolve(policy, first) };
        Self { argv: argv.iter().map(|word| word.clone().into_bytes()).collect(), path }
    }

    /// What policy says of it.
    #[must_use]
    pub fn judge(&self, policy: &Policy) -> Verdict {
        let file = self.path.as_deref().map(|path| FileRef {
            path,
            role: Role::Program,
            session_writable: path.starts_with(HOME) || path.starts_with(b"/tmp/"),
            foreign: false,
        });
        policy.decide(&Facts {
            argv: &self.argv,
            files: file.as_slice(),
            cwd: WORKSPACE,
            home: HOME,
            workspace: WORKSPACE,
            uid: 1000,
            env: &[],
            stdin: Stdin::Null,
            entry: false,
        })
    }
}

fn resolve(policy: &Policy, name: &str) -> Option<Vec<u8>> {
    policy.program(name.as_bytes())?;
    let row = TABLE.iter().find(|(_, names)| names.contains(&name));
    Some([row.map_or("/usr/bin/", |(dir, _)| dir).as_bytes(), name.as_bytes()].concat())
}

fn absolute(path: &str) -> Vec<u8> {
    if path.starts_with('/') { path.as_bytes().to_vec() } else { [WORKSPACE, b"/", path.as_bytes()].concat() }
}
