//! P3: what was judged is what runs.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{ALICE, Session, Start};
use crate::wait::seconds;
use crate::{attacks, ctl, session};

/// Execs of one attack; without the check after commit a few of a hundred succeed.
const SWAPS: &str = "60";

pub fn p3_argv_swap() -> Result<()> {
    let ended = Session::attack(&ALICE, "argv_swap.py", &[SWAPS])?.wait(seconds(120))?;
    let records = ctl::records(&ended.id)?;
    let judged: HashMap<i64, &Value> = ctl::execs_of(&records, "echo")
        .into_iter()
        .filter_map(|r| Some((r["body"]["facts"]["pid"].as_i64()?, &r["body"]["facts"]["argv"][1])))
        .collect();
    let (mut ran, mut killed) = (0, 0);
    for line in ended.out.lines() {
        let mut words = line.split(' ');
        let (Some(pid), Some(status), Some(printed)) = (words.next(), words.next(), words.next()) else { continue };
        let pid: i64 = pid.parse()?;
        if printed == "-" {
            killed += u32::from(status == "9");
            continue;
        }
        ran += 1;
        let judged = judged.get(&pid).with_context(|| format!("`echo {printed}` ran without a record"))?;
        ensure(**judged == printed, format!("judged `echo {judged}`, but `echo {printed}` ran"))?;
    }
    ensure(ran > 0, "no exec ran: the attack shows nothing")?;
    ensure(killed > 0, format!("{ran} ran and none was killed: the attack never hit the moment"))?;
    let told = ctl::of_kind(&records, "exec_outcome").iter().filter(|r| r["body"]["disposition"] == "killed").count();
    ensure(told >= killed as usize, format!("{killed} killed, {told} recorded as killed"))
}

/// Two programs of alice's: the first prints its argument, the second makes a file of that name.
struct Swap {
    dir: String,
    good: String,
    evil: String,
}

impl Swap {
    fn programs() -> Result<Self> {
        let this = Self::new()?;
        guest::copy_for_alice("/usr/bin/echo", &this.good)?;
        guest::copy_for_alice("/usr/bin/touch", &this.evil)?;
        Ok(this)
    }

    fn scripts() -> Result<Self> {
        let this = Self::new()?;
        for (path, text) in [(&this.good, "#!/bin/sh\necho \"$1\"\n"), (&this.evil, "#!/bin/sh\n: > \"$1\"\n")] {
            std::fs::write(path, text)?;
            std::os::unix::fs::chown(path, Some(1000), Some(1000))?;
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        Ok(this)
    }

    fn new() -> Result<Self> {
        let dir = guest::fresh_dir("swap")?;
        Ok(Self { good: format!("{dir}/program"), evil: format!("{dir}/evil"), dir })
    }

    /// Runs the attack while the exec is held, approves, and gives what the attack printed. The evil program never ran.
    fn attack(&self, how: &str, outside: impl FnOnce() -> Result<()>) -> Result<(String, Vec<Value>)> {
        let start = Start { cwd: &self.dir, ..ALICE };
        let session = Session::attack(&start, "held_swap.py", &[how, &self.good, &self.evil, "word"])?;
        let request = ctl::pending(&session.id)?;
        if how != "wait" {
            session.line("swap ", seconds(20))?;
        }
        outside()?;
        // A request whose file has changed may be gone already; then there is nothing to approve.
        let _ = ctl::approve(&request, &[]);
        let ended = session.wait(seconds(40))?;
        ensure(
            !Path::new(&format!("{}/word", self.dir)).exists(),
            "the other program ran under the first one's approval",
        )?;
        Ok((ended.out, ctl::records(&ended.id)?))
    }
}

fn nothing() -> Result<()> {
    Ok(())
}

pub fn p3_file_swap_by_rename() -> Result<()> {
    let swap = Swap::programs()?;
    let (out, _) = swap.attack("rename", nothing)?;
    ensure(out.contains("swap done"), format!("the attack did not happen: {out}"))?;
    // The judged file runs, or nothing does.
    ensure(out.contains("word") || out.contains("exec errno 1"), &out)
}

fn refused_write(swap: &Swap) -> Result<()> {
    let before = std::fs::read(&swap.good)?;
    let (out, records) = swap.attack("write", nothing)?;
    ensure(out.contains("swap errno"), format!("a frozen file was opened for writing: {out}"))?;
    ensure(std::fs::read(&swap.good)? == before, "the frozen file has changed")?;
    let refusal = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "frozen_file");
    ensure(refusal, "the refused write is not recorded")?;
    ensure(out.contains("word") && out.contains("exec ran 0"), format!("the judged program did not run: {out}"))
}

fn changed_outside(swap: &Swap) -> Result<()> {
    let evil = std::fs::read(&swap.evil)?;
    let (out, _) = swap.attack("wait", || Ok(std::fs::write(&swap.good, &evil)?))?;
    ensure(out.contains("exec errno"), format!("a file that changed while held was executed: {out}"))
}

pub fn p3_file_swap_by_write() -> Result<()> {
    refused_write(&Swap::programs()?)
}

pub fn p3_file_swap_from_outside() -> Result<()> {
    changed_outside(&Swap::programs()?)
}

pub fn p3_script_swap_by_write() -> Result<()> {
    refused_write(&Swap::scripts()?)
}

pub fn p3_script_swap_from_outside() -> Result<()> {
    changed_outside(&Swap::scripts()?)
}

pub fn p3_ptrace() -> Result<()> {
    let ended = session::run(&ALICE, &["python3", &attacks::path("ptrace.py")])?;
    for name in ["traceme", "attach", "seize", "mem"] {
        let result = ended.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).context("no result")?;
        ensure(result == "errno 1" || result == "errno 13", format!("{name}: `{result}` instead of a refusal"))?;
    }
    let records = ctl::records(&ended.id)?;
    let refusal = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "ptrace");
    ensure(refusal, "no refusal is recorded")?;
    // From outside the session too, as the same user.
    let session = Session::start(&ALICE, &["sleep", "30"])?;
    let sleeper = crate::wait::until("sleep runs", seconds(20), || {
        let out = std::process::Command::new("pgrep").args(["-n", "-x", "sleep"]).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().parse::<i32>().ok())
    })?;
    let trace = "import ctypes,sys; l=ctypes.CDLL(None,use_errno=True); \
                 print(l.ptrace(16,int(sys.argv[1]),None,None), ctypes.get_errno())";
    let mut outside = session::as_user("root", "/");
    let out = outside.args(["python3", "-c", trace, &sleeper.to_string()]).output()?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    drop(session);
    ensure(text == "-1 1", format!("a tracer from outside: `{text}` instead of EPERM"))
}
