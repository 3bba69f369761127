//! Scenarios in a guest: one boot for each kernel series, and what comes of each scenario read from the guest's output.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::Tally;
use crate::vm::{Spec, Vm};
use crate::{host, kernels};

/// The binary that is put into the guest.
const PROGRAM: &str = "guard-guest-tests";
/// In front of the names of the rows of `tests/bypass`.
const BYPASS: &str = "bypass_";
/// Longest time of one boot with every scenario.
const DEADLINE: Duration = Duration::from_secs(3000);

/// Names of the scenarios that contain the filter, as the test binary lists them.
pub fn matching(filter: &str) -> Result<Vec<String>> {
    let binary = host::target().join("debug").join(PROGRAM);
    let list = host::output(Command::new(binary).arg("list"))?;
    Ok(list.lines().filter(|name| name.contains(filter)).map(str::to_owned).collect())
}

/// Beginnings of the names of scenarios that are about user space alone, or whose hooks another scenario already proves on each
/// kernel: they need not run on every one.
const ONCE: [&str; 45] = [
    "bad_policy_",
    "bypass_file_changed_in_review",
    "exit_codes_",
    "flood_of_",
    "long_arguments_",
    "long_argv_",
    "mappings_are_",
    "p1_no_room_",
    "p2_an_exec_whose_",
    "p2_arguments_that_",
    "p2_clean_stop_",
    "p2_credentials_",
    "p2_daemon_stopped",
    "p2_deletions_",
    "p2_entry_ended_",
    "p2_expiry_without_",
    "p2_host_mounts_",
    "p2_mount_made_",
    "p2_namespaces_adopted",
    "p2_namespaces_denied",
    "p2_only_its_",
    "p2_other_layout_",
    "p2_requests_",
    "p2_root_does_",
    "p2_second_daemon_",
    "p2_session_outlives_",
    "p2_supervisor_killed_",
    "p2_upgrade_",
    "p3_file_swap_by_rename",
    "p3_script_name_turned",
    "p3_script_swap_from_",
    "p4_certificate_",
    "p4_collector_",
    "p5_",
    "p6_daemon_and_",
    "p6_neighbours",
    "p7_",
    "p8_status_",
    "policy_",
    "review_",
    "runtimes_",
    "secrets_",
    "session_renewed_",
    "sigma_",
    "terminal_",
];

/// Guests of one run, should emulation fail.
const BOOTS_MAX: u32 = 3;

/// Runs the named scenarios on one series; those about execs once more on a root like a container's. Without `whole` those
/// that would be the same on any kernel are left to another series, without `overlay` the second root.
pub fn run(series: kernels::Series, names: &[String], whole: bool, overlay: bool) -> Tally {
    let mut tally = Tally::default();
    let here = |name: &&String| whole || !ONCE.iter().any(|start| name.starts_with(start));
    let chosen: Vec<String> = names.iter().filter(here).cloned().collect();
    in_guest(series, &chosen, false, &mut tally);
    if overlay {
        let rows: Vec<String> = names.iter().filter(|name| name.starts_with(BYPASS)).cloned().collect();
        in_guest(series, &rows, true, &mut tally);
    }
    tally
}

fn in_guest(series: kernels::Series, names: &[String], overlay: bool, tally: &mut Tally) {
    if names.is_empty() {
        return;
    }
    let place = format!("kernel {}{}", series.name, if overlay { ", overlay root" } else { "" });
    host::say(&format!("test: {place}: {} scenarios in one guest", names.len()));
    let mut open: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut boots = 0;
    let ended = loop {
        let left: Vec<String> = names.iter().filter(|name| open.contains(name.as_str())).cloned().collect();
        let mut silent = true;
        let ended = boot(series, &left, overlay, |line| {
            silent = false;
            println!("  [{}] {line}", series.name);
            let (name, done) = match judged(line) {
                Some(judged) => judged,
                None => return,
            };
            if open.remove(name) {
                tally.add(&format!("{place}: {name}"), done);
            }
        });
        boots += 1;
        let Some(fault) = emulator_fault(&vm_name(series, overlay), silent) else { break ended };
        if ended.is_ok() || boots == BOOTS_MAX {
            break ended;
        }
        host::say(&format!("test: {place}: {fault}; the rest in a new guest"));
    };
    let why = ended.err().map_or_else(|| "the guest never said".to_owned(), |e| format!("{e:#}"));
    for (number, name) in open.into_iter().enumerate() {
        let why = if number == 0 { why.as_str() } else { "not reached" };
        tally.add(&format!("{place}: {name}"), Err(anyhow!("{why}")));
    }
}

fn vm_name(series: kernels::Series, overlay: bool) -> String {
    format!("test-{}{}", series.name, if overlay { "-overlay" } else { "" })
}

/// What fault of emulation a guest died of, as its console says, or says not. A `silent` one has run no scenario.
fn emulator_fault(vm: &str, silent: bool) -> Option<&'static str> {
    let console = std::fs::read(host::target().join("vm").join(vm).join("console.log")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    if ran_a_stale_breakpoint(&console) {
        return Some("the emulator ran a breakpoint that was no longer there");
    }
    // Nothing of Guard has run when `init.sh` says its first words: a guest that is gone without them never was one (seen
    // once, on 6.1).
    (silent && console.is_empty()).then_some("the guest was gone before its kernel said a word")
}

/// The kernel puts a breakpoint in the place of an instruction that it is about to change, as at each attaching of a program,
/// and takes it away when all processors have been told. QEMU without KVM, with a thread for each processor, may run it from
/// its cache later (seen in `bpf_lsm_file_fcntl`, once in some fifty boots). A kernel that dies of anything else has failed.
fn ran_a_stale_breakpoint(console: &str) -> bool {
    let place = console.lines().find_map(|line| line.split_once("RIP: 0010:")).map(|(_, place)| place);
    console.contains("int3: 0000 [#1]") && place.is_some_and(|place| place.starts_with("bpf_lsm_"))
}

/// `ok NAME …` and `FAILED NAME: why`.
fn judged(line: &str) -> Option<(&str, Result<()>)> {
    if let Some(rest) = line.strip_prefix("ok ") {
        return Some((rest.split(' ').next()?, Ok(())));
    }
    let (name, why) = line.strip_prefix("FAILED ")?.split_once(": ")?;
    Some((name, Err(anyhow!("{why}"))))
}

fn boot(series: kernels::Series, names: &[String], overlay: bool, mut line: impl FnMut(&str)) -> Result<()> {
    let command = format!("{PROGRAM} run {}", names.join(" "));
    let name = vm_name(series, overlay);
    let spec = Spec { deadline: DEADLINE, overlay, ..Spec::new(&name, series, &command) };
    let mut vm = Vm::boot(&spec, Stdio::piped())?;
    let stdout = vm.take_stdout().context("no output")?;
    let waiting = std::thread::spawn(move || vm.wait());
    for text in BufReader::new(stdout).lines() {
        line(text?.trim_end());
    }
    let ended = waiting.join().map_err(|_| anyhow!("the thread that waits for the guest panicked"))??;
    match ended.code {
        0 | 1 => Ok(()),
        code => {
            bail!("the guest's tests ended with {code}; console in {}", host::target().join("vm").join(name).display())
        }
    }
}

/// On a kernel whose active LSMs lack `bpf`, enforce mode must refuse to start and say what to change.
pub fn without_lsm(series: kernels::Series) -> Result<()> {
    let text = "bash /mnt/payload/guard-up.sh > /dev/console 2>&1; timeout 60 guard-agent run --config \
                /etc/guard/agent.toml 2>&1; echo \"code $?\"; ls /run/guard/control.sock 2>&1";
    let spec = Spec {
        guard: false,
        lsm: Some("lockdown,capability,yama"),
        deadline: Duration::from_secs(240),
        ..Spec::new("test-no-lsm", series, text)
    };
    let ended = Vm::boot(&spec, Stdio::piped())?.wait()?;
    let said = ended.stdout.to_lowercase();
    if !(said.contains("code 69") || said.contains("code 78")) {
        bail!("it did not refuse to start: {}", ended.stdout);
    }
    if !(said.contains("lsm") && said.contains("bpf")) {
        bail!("it does not say what to change: {}", ended.stdout);
    }
    if !said.contains("no such file") {
        bail!("a control socket is there: {}", ended.stdout);
    }
    Ok(())
}

/// The shipped units under a real systemd, installed as the manual says.
pub fn under_systemd(series: kernels::Series) -> Result<()> {
    let deploy = host::root().join("deploy");
    let copy = [deploy.join("systemd"), deploy.join("agent.toml")];
    let spec = Spec {
        guard: false,
        systemd: true,
        copy: &copy,
        deadline: Duration::from_secs(480),
        ..Spec::new("test-systemd", series, "guard-guest-tests units 2>&1")
    };
    let ended = Vm::boot(&spec, Stdio::piped())?.wait()?;
    if ended.code == 0 { Ok(()) } else { bail!("{}", ended.stdout.trim()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_breakpoint_of_live_patching_is_a_fault_of_emulation() {
        let dies =
            |what: &str, place: &str| format!("[ 201.55] {what} 0000 [#1] SMP\n[ 201.56] RIP: 0010:{place}+0x5/0x10\n");
        assert!(ran_a_stale_breakpoint(&dies("Oops: int3:", "bpf_lsm_file_fcntl")));
        assert!(!ran_a_stale_breakpoint(&dies("Oops: int3:", "do_sys_open")));
        assert!(!ran_a_stale_breakpoint(&dies("Oops: general protection fault:", "bpf_lsm_file_fcntl")));
    }

    #[test]
    fn reads_what_the_guest_prints() {
        let (name, done) = judged("ok p2_x 3.4 s").unwrap();
        assert_eq!((name, done.is_ok()), ("p2_x", true));
        let (name, done) = judged("FAILED p2_x: because: of this").unwrap();
        assert_eq!((name, done.unwrap_err().to_string().as_str()), ("p2_x", "because: of this"));
        assert!(judged("  | log").is_none());
    }
}
