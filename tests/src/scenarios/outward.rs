//! Privileged ways out of a session: signals, capabilities, namespaces, mounts, kernel settings, devices. As an ordinary
//! user and as root, each attempt with its refusal and its record, and beside them what must go on working.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Ended, ROOT, Session, Start};
use crate::wait::{output, seconds, until, until_true};

/// Attempts, and what a record must call each. Empty: ordinary permissions refuse before any guard is asked.
const USER: [(&str, &str); 23] = [
    ("kill", "signal"),
    ("kill_group", "signal"),
    ("pidfd_send_signal", "signal"),
    ("tgkill", "signal"),
    ("sigqueue", "signal"),
    ("setown", "signal"),
    ("setown_group", "signal"),
    ("setown_ex", "signal"),
    ("fiosetown", "signal"),
    ("rlimit", "task_setting"),
    ("nice", "task_setting"),
    ("affinity", "task_setting"),
    ("ioprio", "task_setting"),
    ("migrate_pages", "task_setting"),
    ("oom_score", "task_setting"),
    ("kill_daemon", ""),
    ("bpf", "bpf"),
    ("userfaultfd", "userfaultfd"),
    ("io_uring", "io_uring"),
    ("tiocsti", "terminal_input"),
    ("tioclinux", "terminal_input"),
    ("user_namespace", "user_namespace"),
    ("mount", "mount"),
];

/// More, for root.
const ROOT_ONLY: [(&str, &str); 22] = [
    ("mount_namespace", "capability"),
    ("setns", "capability"),
    ("umount", "capability"),
    ("pivot_root", "capability"),
    ("fsopen", "capability"),
    ("chroot", "capability"),
    ("core_pattern", "kernel_setting"),
    ("modprobe", "kernel_setting"),
    ("sysrq", "kernel_setting"),
    ("uevent_helper", "kernel_setting"),
    ("tracing", "kernel_setting"),
    ("bpf_pins", "bpf"),
    ("bpf_folder", "bpf"),
    ("disk", "raw_device"),
    ("memory", "raw_device"),
    ("module", "capability"),
    ("kexec", "capability"),
    ("by_handle", "capability"),
    ("mknod", "capability"),
    ("hostname", "capability"),
    ("clock", "capability"),
    ("kernel_log", "capability"),
];

/// Capabilities and settings that records of a root session must name.
const NAMED: [&str; 13] = [
    "sys_admin",
    "sys_chroot",
    "sys_module",
    "sys_boot",
    "sys_time",
    "dac_read_search",
    "mknod",
    "syslog",
    "core_pattern",
    "modprobe",
    "sysrq-trigger",
    "tracing_on",
    "vda",
];

const WORKS: [&str; 8] = [
    "signal_0 None",
    "own_child -15",
    "own_zombie 0",
    "own_settings ok",
    "git ran 0",
    "make ran 0",
    "node ran 0",
    "python3 ran 0",
];

/// A process of a user outside every session, the leader of its own group.
fn bystander(user: &str) -> Result<Child> {
    let mut command = session::as_user(user, "/");
    Ok(command.args(["sleep", "300"]).process_group(0).stdin(Stdio::null()).spawn()?)
}

fn refused(ended: &Ended, attempts: &[(&str, &str)], records: &[Value]) -> Result<()> {
    let acts = ctl::of_kind(records, "guard_refusal");
    let what: BTreeSet<&str> = acts.iter().filter_map(|r| r["body"]["what"].as_str()).collect();
    for (name, kind) in attempts {
        let found = ended.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        let result = found.with_context(|| format!("no result of {name}: {ended}"))?;
        ensure(result == "errno 1" || result == "errno 13", format!("{name}: `{result}` instead of a refusal"))?;
        ensure(kind.is_empty() || what.contains(kind), format!("{name}: no record says `{kind}`, only {what:?}"))?;
    }
    let whole = acts.iter().all(|r| r["body"]["program"] != "" && r["body"]["pid"] != 0);
    ensure(whole, "a refusal does not say which program it was")
}

fn works(ended: &Ended, names: &[&str]) -> Result<()> {
    for name in names {
        ensure(ended.out.lines().any(|l| l == format!("works {name}")), format!("`{name}` failed: {ended}"))?;
    }
    Ok(())
}

fn ways_out(who: &str, start: &Start<'_>) -> Result<(Ended, Vec<Value>)> {
    let mut neighbour = bystander(start.user)?;
    let (daemon, pid) = (guest::daemon()?, neighbour.id().to_string());
    let args = [who, &pid, &daemon.to_string()];
    let session = Session::attack(start, "outward.py", &args)?;
    let ended = session.wait(seconds(80));
    let survived = neighbour.try_wait()?.is_none();
    let _ = neighbour.kill();
    let _ = neighbour.wait();
    let ended = ended?;
    ensure(survived, format!("the neighbour was killed: {ended}"))?;
    ensure(guest::alive(daemon)?, "the daemon was killed")?;
    let records = ctl::records(&ended.id)?;
    refused(&ended, &USER, &records)?;
    works(&ended, &WORKS)?;
    Ok((ended, records))
}

pub fn p2_privileged_ways_out_as_user() -> Result<()> {
    ways_out("user", &ALICE).map(|_| ())
}

pub fn p2_privileged_ways_out_as_root() -> Result<()> {
    let settings =
        ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let before = settings.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let (ended, records) = ways_out("root", &ROOT)?;
    refused(&ended, &ROOT_ONLY, &records)?;
    works(&ended, &["as_root ok"])?;
    let after = settings.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    ensure(before == after, format!("settings were changed: {before:?} {after:?}"))?;
    let acts = ctl::of_kind(&records, "guard_refusal");
    let targets: BTreeSet<&str> = acts.iter().filter_map(|r| r["body"]["target"].as_str()).collect();
    for name in NAMED {
        ensure(targets.contains(name), format!("no record names {name}, only {targets:?}"))?;
    }
    guest::enforcing()
}

/// A session of `namespaces.py`, whose bubblewrap a person has allowed.
fn sandboxed(args: &[&str]) -> Result<Session> {
    std::fs::copy("/usr/bin/bwrap", "/usr/local/bin/boxed")?;
    let session = Session::attack(&Start { stdin: true, ..ALICE }, "namespaces.py", args)?;
    ctl::approve(&ctl::pending(&session.id)?, &[])?;
    Ok(session)
}

pub fn p2_namespaces_denied() -> Result<()> {
    let ended = sandboxed(&["bare"])?.wait(seconds(40))?;
    ensure(ended.out.lines().any(|l| l.starts_with("bare ") && l != "bare 0"), &ended)?;
    let told = ended.events.iter().any(|e| e.to_string().contains("namespaces = \\\"deny\\\""));
    ensure(told, format!("the person was not told why: {ended}"))?;
    let records = ctl::records(&ended.id)?;
    let named = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "user_namespace");
    ensure(named, "no record of the refused namespace")
}

pub fn p2_namespaces_adopted() -> Result<()> {
    guest::restart_daemon(&format!(
        "{}\n[profile.default]\nnamespaces = \"adopt\"\nmemory_exec = \"deny\"",
        guest::USUAL
    ))?;
    sandbox_is_judged()?;
    renamed_program_is_asked_for()?;
    let ended = Session::attack(&ALICE, "namespaces.py", &["unshared"])?.wait(seconds(40))?;
    let result = ended.out.lines().find_map(|l| l.strip_prefix("unshared ")).context("no result")?;
    ensure(result.ends_with("then ran 0"), &ended)?;
    let records = ctl::records(&ended.id)?;
    ensure(!ctl::execs_of(&records, "/usr/bin/cat").is_empty(), "the exec in a namespace made by hand has no record")?;
    let ended = Session::attack(&ALICE, "namespaces.py", &["mem"])?.wait(seconds(40))?;
    ensure(ended.out.contains("mem errno 1"), &ended)?;
    let records = ctl::records(&ended.id)?;
    let named = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "proc_mem");
    ensure(named, "no record of the refused write to its own memory")
}

/// A program in bubblewrap's mounts is held, judged and recorded like any other.
fn sandbox_is_judged() -> Result<()> {
    let mut session = sandboxed(&["sandbox", "--", "/usr/bin/cat", "/etc/hostname"])?;
    adopted(&session)?;
    go(&mut session)?;
    let ended = session.wait(seconds(40))?;
    ensure(ended.out.contains("guest") && ended.out.contains("sandbox 0"), &ended)?;
    let records = ctl::records(&ended.id)?;
    let cat = ctl::execs_of(&records, "/usr/bin/cat");
    let body = cat.first().map(|r| &r["body"]).context("the program in the sandbox has no record")?;
    ensure(body["disposition"] == "allowed" && body["verdict"]["tier"] == "allow", body)
}

/// A sandbox can give any file any name: a name that the host gives to another file is no name that policy trusts.
fn renamed_program_is_asked_for() -> Result<()> {
    let made = "/tmp/made-in-a-sandbox";
    let _ = std::fs::remove_dir(made);
    let bind = ["--bind", "/tmp", "/tmp", "--ro-bind", "/usr/bin/mkdir", "/usr/bin/cat"];
    let mut session = sandboxed(&[&["sandbox"], &bind[..], &["--", "/usr/bin/cat", made]].concat())?;
    adopted(&session)?;
    go(&mut session)?;
    let request = ctl::pending(&session.id).context("mkdir under the name of cat was not asked for")?;
    let id = request["request"].as_str().context("a request without id")?;
    ctl::json("bob", &["review", "deny", id, "--reason", "a test"])?;
    let ended = session.wait(seconds(40))?;
    ensure(!std::path::Path::new(made).exists() && !ended.out.contains("sandbox 0"), &ended)
}

fn adopted(session: &Session) -> Result<()> {
    until_true("the sandbox's mounts are marked", seconds(20), || {
        let records = ctl::records(&session.id)?;
        Ok(ctl::of_kind(&records, "guard_observation").iter().any(|r| r["body"]["what"] == "mount_namespace"))
    })
}

fn go(session: &mut Session) -> Result<()> {
    Ok(session.stdin().context("no stdin")?.write_all(b"go\n")?)
}

fn mount(args: &[&str]) -> Result<()> {
    let out = output(Command::new("mount").args(args), seconds(20))?;
    ensure(out.status.success(), format!("mount {args:?}: {}", String::from_utf8_lossy(&out.stderr)))
}

pub fn p2_host_mounts_made_later_are_judged() -> Result<()> {
    let dir = "/mnt/copy-late";
    let program = format!("{dir}/late/cat");
    std::fs::create_dir_all(format!("{dir}/late"))?;
    mount(&["--bind", dir, dir])?;
    mount(&["--make-shared", dir])?;
    let result = late(dir, &program);
    let _ = output(Command::new("umount").args(["-R", dir]), seconds(20));
    result
}

fn late(dir: &str, program: &str) -> Result<()> {
    let mut session =
        Session::attack(&Start { stdin: true, ..ALICE }, "namespaces.py", &["late", program, "/etc/hostname"])?;
    session.line("ready", seconds(20))?;
    mount(&["-t", "tmpfs", "tmpfs", &format!("{dir}/late")])?;
    std::fs::copy("/usr/bin/cat", program)?;
    go(&mut session)?;
    let id = session.id.clone();
    // Whatever policy says of it, a person can let it run; without a mark nobody would be asked.
    let ended = ctl::approving(&id, || session.wait(seconds(50)))?;
    ensure(ended.out.contains("then ran 0") && ended.out.contains("guest"), &ended)?;
    let records = ctl::records(&ended.id)?;
    ensure(!ctl::execs_of(&records, program).is_empty(), "the program on the late mount has no record")
}

pub fn p8_kernel_support_is_shown() -> Result<()> {
    let support = until("the daemon's report", seconds(20), || {
        let status = ctl::json("root", &["status", "--local"])?;
        Ok(Some(status["report"]["support"].clone()).filter(Value::is_object))
    })?;
    ensure(support["programs"].as_u64().is_some_and(|n| n > 20), &support)?;
    // The hook came with 6.8 (and stable updates of older kernels): either it is attached or it is named.
    let types = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let has = types.windows(26).any(|w| w == b"bpf_lsm_file_ioctl_compat\0");
    let named = support["missing"].as_array().is_some_and(|m| m.iter().any(|n| n == "guard_ioctl_compat"));
    ensure(named != has, format!("the kernel has the hook: {has}; missing: {}", support["missing"]))?;
    let groups = std::fs::read_to_string("/proc/sys/fs/fanotify/max_user_groups")?;
    let told = support["fanotify_max_groups"].to_string();
    ensure(told == groups.trim(), &support)?;
    std::fs::write("/proc/sys/fs/fanotify/max_user_groups", "20")?;
    let out = output(Command::new("guard-agent").args(["check", "--config", guest::CONFIG]), seconds(20));
    std::fs::write("/proc/sys/fs/fanotify/max_user_groups", groups.trim())?;
    let text = String::from_utf8_lossy(&out?.stdout).into_owned();
    ensure(text.contains("FAIL fs.fanotify.max_user_groups") && text.contains("sysctl -w"), text)
}
