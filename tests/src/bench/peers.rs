//! Others that stand in the way of every exec, each set up as its manual says and running for its round only.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::NOOP;
use super::timed::{self, Looping};
use crate::wait::{seconds, until_true};

/// Who could take part.
pub const NAMES: [&str; 5] = ["fapolicyd", "auditd", "sudo_intercept", "sudo_log_subcmds", "strace"];

/// Starts a peer, measures so many execs, stops it.
type Round = fn(usize) -> Result<Vec<f64>>;

/// One peer that is installed here.
pub struct Peer {
    /// Its name.
    pub name: &'static str,
    run: Round,
}

impl Peer {
    /// Starts it, measures, stops it.
    pub fn round(&self, execs: usize) -> Result<Vec<f64>> {
        (self.run)(execs).context(self.name)
    }
}

/// Those that are there.
pub fn all() -> Result<Vec<Peer>> {
    let known: [(&'static str, &str, Round); 5] = [
        ("fapolicyd", "/usr/sbin/fapolicyd", fapolicyd),
        ("auditd", "/usr/sbin/auditd", auditd),
        ("sudo_intercept", "/usr/bin/sudo", |execs| sudo("intercept", execs)),
        ("sudo_log_subcmds", "/usr/bin/sudo", |execs| sudo("log_subcmds", execs)),
        ("strace", "/usr/bin/strace", strace),
    ];
    let there = known.into_iter().filter(|(_, program, _)| Path::new(program).exists());
    Ok(there.map(|(name, _, run)| Peer { name, run }).collect())
}

fn strace(execs: usize) -> Result<Vec<f64>> {
    let mut command = crate::session::as_user("alice", "/home/alice");
    command.args(["strace", "-f", "-qq", "-e", "trace=execve", "-o", "/dev/null"]);
    command.args(["guard-guest-tests", "bench-loop", NOOP]);
    Looping::start(command)?.round(execs)
}

fn sudo(setting: &str, execs: usize) -> Result<Vec<f64>> {
    let place = "/etc/sudoers.d/bench";
    std::fs::create_dir_all("/etc/sudoers.d")?;
    std::fs::write(place, format!("Defaults {setting}\nDefaults logfile=/var/log/sudo-bench.log\nDefaults !syslog\n"))?;
    std::fs::set_permissions(place, std::os::unix::fs::PermissionsExt::from_mode(0o440))?;
    // The guest's packages were unpacked, not installed: nobody has put PAM's common parts together.
    std::fs::write(
        "/etc/pam.d/sudo",
        "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n",
    )?;
    let mut command = Command::new("sudo");
    command.args(["-n", "-u", "alice", "/usr/local/bin/guard-guest-tests", "bench-loop", NOOP]);
    let measured = Looping::start(command).and_then(|looping| looping.round(execs));
    std::fs::remove_file(place)?;
    measured
}

fn auditd(execs: usize) -> Result<Vec<f64>> {
    std::fs::create_dir_all("/var/log/audit")?;
    let daemon = Daemon::start(Command::new("/usr/sbin/auditd").args(["-f", "-s", "enable"]))?;
    let mut last = String::new();
    until_true("auditd listens", seconds(20), || {
        let said = Command::new("auditctl").arg("-s").output()?;
        last = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        Ok(last.lines().any(|l| l == format!("pid {}", daemon.0.id())))
    })
    .with_context(|| last.clone())?;
    auditctl(&["-a", "always,exit", "-F", "arch=b64", "-S", "execve,execveat", "-k", "exec"])?;
    let measured = Looping::start(timed::bare())?.round(execs);
    auditctl(&["-D"])?;
    auditctl(&["-e", "0"])?;
    measured
}

fn auditctl(args: &[&str]) -> Result<()> {
    let out = Command::new("auditctl").args(args).output().context("auditctl")?;
    if !out.status.success() {
        bail!("auditctl {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

fn fapolicyd(execs: usize) -> Result<Vec<f64>> {
    for dir in ["/etc/fapolicyd", "/var/lib/fapolicyd", "/var/log", "/run/fapolicyd"] {
        std::fs::create_dir_all(dir)?;
    }
    // Its defaults, but for a user and a package database that the guest does not have, and one rule.
    let settings = "permissive = 0\nnice_val = 14\nq_size = 800\nuid = root\ngid = root\ndo_stat_report = 1\n\
                    detailed_report = 0\ndb_max_size = 50\nsubj_cache_size = 1549\nobj_cache_size = 8191\n\
                    watch_fs = ext2,ext3,ext4,tmpfs,xfs,vfat,iso9660,btrfs\ntrust = file\nintegrity = none\n\
                    syslog_format = rule,dec,perm,auid,pid,exe,:,path,ftype\nrpm_sha256_only = 0\nallow_filesystem_mark = 0\n";
    std::fs::write("/etc/fapolicyd/fapolicyd.conf", settings)?;
    for rules in ["/etc/fapolicyd/fapolicyd.rules", "/etc/fapolicyd/compiled.rules"] {
        std::fs::write(rules, "allow perm=any all : all\n")?;
    }
    std::fs::write("/etc/fapolicyd/fapolicyd.trust", "")?;
    let daemon = Daemon::start(Command::new("/usr/sbin/fapolicyd").args(["--debug-deny", "--no-details"]))?;
    until_true("fapolicyd listens", seconds(60), || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", daemon.0.id()))?;
        Ok(fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|l| l.ends_with("anon_inode:[fanotify]"))))
    })?;
    timed::settle();
    Looping::start(timed::bare())?.round(execs)
}

/// A daemon that ends with its round.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| format!("{command:?}"))?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}
