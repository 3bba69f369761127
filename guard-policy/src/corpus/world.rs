//! The host that measured commands are judged on: whose home, which folder, and where distributions put programs.

use crate::facts::{Facts, FileRef, Role, Stdin};
use crate::model::Policy;
use crate::paths::is_below;
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
    at: Place,
}

/// Where a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Folder in which its session began.
    pub workspace: Vec<u8>,
    /// Folder in which the command runs.
    pub cwd: Vec<u8>,
}

impl Default for Place {
    fn default() -> Self {
        Self { workspace: WORKSPACE.to_vec(), cwd: WORKSPACE.to_vec() }
    }
}

impl Place {
    /// Of the user whose folder it is; else of the one that commands are measured as.
    fn home(&self) -> &[u8] {
        let name = self.workspace.strip_prefix(b"/home/").and_then(|rest| rest.split(|b| *b == b'/').next());
        name.filter(|name| !name.is_empty()).and_then(|name| self.workspace.get(..6 + name.len())).unwrap_or(HOME)
    }

    fn absolute(&self, path: &str) -> Vec<u8> {
        crate::paths::Places { cwd: self.cwd.clone(), home: HOME, workspace: WORKSPACE }.absolute(path.as_bytes())
    }
}

// === impl Command ===

impl Command {
    /// A shell that gets `text` as its command.
    #[must_use]
    pub fn shell(text: &str) -> Self {
        let argv = [b"bash".as_slice(), b"-c", text.as_bytes()].map(<[u8]>::to_vec).to_vec();
        Self { argv, path: Some(b"/usr/bin/bash".to_vec()), at: Place::default() }
    }

    /// The same in another place.
    #[must_use]
    pub fn at(mut self, place: &Place) -> Self {
        if let Some(named) =
            self.argv.first().and_then(|word| std::str::from_utf8(word).ok()).filter(|w| w.contains('/'))
        {
            self.path = Some(place.absolute(named));
        }
        self.at = place.clone();
        self
    }

    /// A program with its arguments; a bare name is looked up in the table.
    #[must_use]
    pub fn exec(policy: &Policy, argv: &[String]) -> Self {
        let first = argv.first().map(String::as_str).unwrap_or_default();
        let at = Place::default();
        let path = if first.contains('/') { Some(at.absolute(first)) } else { resolve(policy, first) };
        Self { argv: argv.iter().map(|word| word.clone().into_bytes()).collect(), path, at }
    }

    /// As it would be if a program that policy does not know lay where distributions put programs.
    #[must_use]
    pub(super) fn found(mut self) -> Self {
        let name = self.argv.first().filter(|_| self.path.is_none());
        self.path = name.map(|name| [b"/usr/bin/", name.as_slice()].concat()).or(self.path);
        self
    }

    /// What policy says of it.
    #[must_use]
    pub fn judge(&self, policy: &Policy) -> Verdict {
        let file = self.path.as_deref().map(|path| FileRef {
            path,
            role: Role::Program,
            session_writable: [HOME, self.at.home(), &self.at.workspace, b"/tmp"].iter().any(|own| is_below(path, own)),
            foreign: false,
        });
        policy.decide(&Facts {
            argv: &self.argv,
            files: file.as_slice(),
            cwd: &self.at.cwd,
            home: self.at.home(),
            workspace: &self.at.workspace,
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
