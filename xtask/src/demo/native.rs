//! The demo on this host's own kernel, in a mount namespace of its own, so that the host keeps its files and users.
//!
//! It must not start unless the kernel can enforce. Fails: says each thing that is missing, exit 69.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::host;

/// Exit code when the kernel or the machine cannot do it.
pub const UNAVAILABLE: u8 = 69;

/// Programs that the demo runs, and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 8] = [
    ("git", "git"),
    ("jq", "jq"),
    ("nft", "nftables"),
    ("python3", "python3"),
    ("setpriv", "util-linux"),
    ("strip", "binutils"),
    ("sudo", "sudo"),
    ("unshare", "util-linux"),
];

/// Whether this host can; says on stderr what is missing.
pub fn possible() -> Result<bool> {
    let mut missing = Vec::new();
    if !host::is_root() {
        missing.push("run it as root".to_owned());
    }
    match std::fs::read_to_string("/sys/kernel/security/lsm") {
        Ok(lsm) if lsm.trim().split(',').any(|name| name == "bpf") => {}
        Ok(lsm) => {
            let lsm = lsm.trim();
            missing.push(format!("the kernel's active LSMs are `{lsm}`: boot with lsm={lsm},bpf"));
        }
        Err(error) => missing.push(format!(
            "cannot read /sys/kernel/security/lsm ({error}): mount -t securityfs securityfs /sys/kernel/security"
        )),
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push("the kernel has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        missing.push("no cgroup v2 at /sys/fs/cgroup (boot with systemd.unified_cgroup_hierarchy=1)".to_owned());
    }
    for (program, package) in PROGRAMS {
        if !host::has(program) {
            missing.push(format!("`{program}` is not installed: apt-get install {package}"));
        }
    }
    for line in &missing {
        host::say(&format!("demo: this host cannot run it natively: {line}"));
    }
    Ok(missing.is_empty())
}

/// The script that sets the namespace up and runs the demo in it.
pub fn command(copy: &[PathBuf], mode: &str) -> Command {
    let script = host::root().join("deploy/demo/native.sh");
    let mut command = super::script("unshare", &["--mount", "--propagation", "private", "bash"]);
    command.arg(script).arg(host::root()).arg(host::target()).arg(mode).args(copy);
    command
}
