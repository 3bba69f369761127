//! What the rows find in the guest: trusted programs and scripts, a policy that allows them, processes outside the session.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Row;
use crate::guest::{self, ensure};
use crate::session::as_user;
use crate::wait::{output, seconds, until_true};

/// Where the compiled programs are in the guest.
const BUILT: &str = "/mnt/payload/bypass";
/// Where they are installed, owned by root; policy trusts what is there.
pub const DIR: &str = "/usr/local/lib/guard-bypass";
const POLICY: &str = "/etc/guard/bypass.yaml";
const SOCKET: &str = "/tmp/guard-bypass.sock";
/// A file system that a process outside answers for.
const FOREIGN: &str = "/srv/foreign";
const SWAP: &str = "/var/lib/guard/swap";
/// Short holds: what goes to a person is refused soon.
const HOLDS: &str = "[hold]\nmax_seconds = 1\nreview_deadline_seconds = 1\ncollector_grace_seconds = 1";

/// Sends a descriptor of the payload, opened outside, to whoever connects.
const SENDER: &str = "
import os, socket, sys
place = socket.socket(socket.AF_UNIX)
place.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
place.listen()
fd = os.open(sys.argv[2], os.O_RDONLY)
while True:
    peer, _ = place.accept()
    socket.send_fds(peer, [b'x'], [fd])
    peer.close()
";

/// Scripts that root installed.
const SCRIPTS: [(&str, &str); 15] = [
    ("script", "#!/bin/sh\nexit 42\n"),
    ("script_opts", "#!/bin/sh -e\nfalse\nexit 3\n"),
    ("script_device", "#!/dev/null\n"),
    ("script_folder", "#!/usr\n"),
    ("script_relative", "#!ran\n"),
    ("script_self", "#!/proc/self/exe\n"),
    ("script_no_end", "#!/bin/sh"),
    ("script_unknown", "exit 42\n"),
    ("nest1", "#!/bin/sh\nexit 42\n"),
    ("nest2", "#!/usr/local/lib/guard-bypass/nest1\n"),
    ("nest3", "#!/usr/local/lib/guard-bypass/nest2\n"),
    ("nest4", "#!/usr/local/lib/guard-bypass/nest3\n"),
    ("nest5", "#!/usr/local/lib/guard-bypass/nest4\n"),
    ("nest6", "#!/usr/local/lib/guard-bypass/nest5\n"),
    ("mapped", "GUARDTEST\n"),
];

/// The path of an installed program.
pub fn program(name: &str) -> String {
    format!("{DIR}/{name}")
}

/// Everything that rows need; gone when dropped.
pub struct World {
    /// Tries of each race, if not those of the table.
    pub tries: Option<u32>,
    outside: Vec<(&'static str, Child)>,
    sender: Child,
    server: Child,
}

impl World {
    /// Installs, configures, starts.
    pub fn make() -> Result<Self> {
        install()?;
        swap().context("swap space")?;
        map_format().context("binfmt_misc")?;
        let server = foreign().context("a FUSE file system")?;
        guest::restart_with_policy(POLICY, HOLDS)?;
        let _ = std::fs::remove_file(SOCKET);
        let outside = ["alice", "root"]
            .into_iter()
            .map(|user| Ok((user, as_user(user, "/").args(["sleep", "3600"]).stdin(Stdio::null()).spawn()?)))
            .collect::<Result<_>>()?;
        let sender =
            Command::new("python3").args(["-c", SENDER, SOCKET, &program("ran")]).stdin(Stdio::null()).spawn()?;
        until_true("the sender listens", seconds(20), || Ok(Path::new(SOCKET).exists()))?;
        Ok(Self { tries: None, outside, sender, server })
    }

    /// Writes the table of the rows of one user.
    pub fn table(&self, user: &str, rows: &[&Row]) -> Result<String> {
        let outside = self.outside.iter().find(|(u, _)| *u == user).context("a user without a process outside")?;
        let outside = outside.1.id().to_string();
        let overlay = std::fs::read_to_string("/proc/cmdline")?.contains("guard.overlay");
        let mut text = String::new();
        for row in rows.iter().filter(|row| row.users.has(user)) {
            text.push_str(row.name);
            for word in row.run {
                text.push(' ');
                match (*word, word.strip_prefix("TRIES=")) {
                    ("OUTSIDE", _) => text.push_str(&outside),
                    ("SOCKET", _) => text.push_str(SOCKET),
                    // A race does not depend on the root; the many tries are made once for each kernel.
                    (_, Some(tries)) => {
                        let usual = tries.parse::<u32>()? / if overlay { 5 } else { 1 };
                        text += &self.tries.unwrap_or(usual).to_string();
                    }
                    (word, _) => text.push_str(word),
                }
            }
            text.push('\n');
        }
        let path = format!("/etc/guard/bypass-{user}.table");
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
        std::fs::set_permissions("/etc/guard", PermissionsExt::from_mode(0o755))?;
        Ok(path)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.outside.iter_mut().map(|(_, c)| c).chain([&mut self.sender, &mut self.server]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("umount").args(["-l", FOREIGN]).status();
        let _ = Command::new("swapoff").arg(SWAP).status();
        let _ = std::fs::remove_file(SWAP);
        let _ = std::fs::write("/proc/sys/fs/binfmt_misc/guardtest", "-1");
    }
}

/// Puts programs, scripts and the policy that allows them where sessions find them.
pub fn install() -> Result<()> {
    let _ = std::fs::remove_dir_all(DIR);
    std::fs::create_dir_all(DIR)?;
    for entry in std::fs::read_dir(BUILT).context("no compiled programs")?.flatten() {
        std::fs::copy(entry.path(), Path::new(DIR).join(entry.file_name()))?;
    }
    for (name, text) in SCRIPTS {
        std::fs::write(program(name), text)?;
    }
    std::fs::copy("/lib64/ld-linux-x86-64.so.2", program("not-a-loader"))?;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(DIR)?.flatten() {
        std::fs::set_permissions(entry.path(), PermissionsExt::from_mode(0o755))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    let policy = format!(
        "version: 1\nextends: default\ntrusted_dirs: [{DIR}, {FOREIGN}]\nprograms:\n  - {{names: [{}], act: info, args: [text], \
         dynamic: true, style: word}}\n",
        names.join(", ")
    );
    Ok(std::fs::write(POLICY, policy)?)
}

fn quiet(program: &str, args: &[&str]) -> Result<()> {
    let out = output(Command::new(program).args(args), seconds(60))?;
    ensure(
        out.status.success(),
        format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim()),
    )
}

/// Starts the server of a FUSE file system; sessions that start later have it in their mounts.
fn foreign() -> Result<Child> {
    std::fs::create_dir_all(FOREIGN)?;
    let server = Command::new(program("fuse_server"))
        .args([FOREIGN, &program("ran")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    until_true("it is mounted", seconds(20), || Ok(Path::new(FOREIGN).join("ran").exists()))?;
    Ok(server)
}

/// For argument pages that are really swapped out.
fn swap() -> Result<()> {
    if std::fs::read_to_string("/proc/swaps")?.contains(SWAP) {
        return Ok(());
    }
    quiet("fallocate", &["-l", "64M", SWAP])?;
    std::fs::set_permissions(SWAP, PermissionsExt::from_mode(0o600))?;
    quiet("mkswap", &[SWAP])?;
    quiet("swapon", &[SWAP])
}

/// A file format that the kernel maps to the payload.
fn map_format() -> Result<()> {
    const AT: &str = "/proc/sys/fs/binfmt_misc";
    if !Path::new(AT).join("register").exists() {
        quiet("mount", &["-t", "binfmt_misc", "binfmt_misc", AT])?;
    }
    if !Path::new(AT).join("guardtest").exists() {
        std::fs::write(Path::new(AT).join("register"), format!(":guardtest:M::GUARDTEST::{}:", program("ran")))?;
    }
    Ok(())
}
