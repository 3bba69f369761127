//! The kernel skips a program on a processor where another task was preempted in it. By chance that is rare; here the programs
//! at the entry of execve and execveat are made to do nothing, in a copy of the daemon, and all else has to hold.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::guest::{self, ensure};
use crate::session::{self, ALICE, Start};
use crate::wait::{output, seconds};
use crate::{attacks, ctl};

const INSTALLED: &str = "/usr/local/bin/guard-agent";
const ENTRIES: [&str; 2] = ["fentry/__x64_sys_execve", "fentry/__x64_sys_execveat"];

/// An exec whose entry nobody saw is noted when its file is opened: a session starts, what is allowed runs and is recorded
/// with its number, and what no mark can hold is refused as ever.
pub fn p2_an_exec_whose_entry_was_not_seen() -> Result<()> {
    let program = Path::new("/run/skipping/guard-agent");
    std::fs::create_dir_all("/run/skipping")?;
    let mut bytes = std::fs::read(INSTALLED)?;
    for section in ENTRIES {
        does_nothing(&mut bytes, section)?;
    }
    std::fs::write(program, bytes)?;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
    guest::stop_daemon()?;
    guest::configure(guest::USUAL)?;
    guest::start_daemon_of(program)?;
    let loaded = output(Command::new(program).arg("programs"), seconds(20))?;
    let loaded = String::from_utf8_lossy(&loaded.stdout).into_owned();
    let length = |line: &str| line.split_whitespace().nth(1)?.parse::<u32>().ok();
    let entries: Vec<_> = loaded.lines().filter(|l| l.starts_with("guard_enter_")).map(length).collect();
    ensure(entries.len() == 2 && entries.iter().all(|n| n.is_some_and(|n| n < 10)), format!("not emptied: {loaded}"))?;
    let ended = session::run(&ALICE, &["python3", &attacks::path("try.py"), "/usr/bin/cat", "/etc/hostname"])?;
    ensure(ended.code == 0 && ended.out.contains("ran 0"), &ended)?;
    let records = ctl::records(&ended.id)?;
    let cat = ctl::execs_of(&records, "/usr/bin/cat");
    let body = &cat.first().context("no record of cat")?["body"];
    ensure(body["disposition"] == "allowed" && body["facts"]["exec"].as_u64() > Some(0), body)?;
    let dir = guest::fresh_dir("unmarked")?;
    let refused = session::run(&Start { cwd: &dir, ..ALICE }, &["python3", &attacks::path("unmarked.py")])?;
    for name in ["memfd", "memfd_by_path", "deleted"] {
        let result = refused.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')).context("no result")?;
        ensure(result == "errno 1" || result == "errno 13", format!("{name}: `{result}` instead of a refusal"))?;
    }
    guest::stop_daemon()
}

/// Makes a kernel program inside the daemon's file return 0 at once. Nothing before it in the section may be patched by the
/// loader, and the rest of it must stay reachable: the verifier refuses code that no jump leads to, and drops a branch that it
/// knows is not taken.
fn does_nothing(file: &mut [u8], section: &str) -> Result<()> {
    const ELF_OF_BPF: [u8; 4] = [1, 0, 247, 0]; // relocatable, EM_BPF
    let object = (0..file.len().saturating_sub(64))
        .step_by(8)
        .find(|at| file[*at..].starts_with(b"\x7fELF") && file[at + 16..].starts_with(&ELF_OF_BPF))
        .context("no kernel programs in the file")?;
    let (start, length) = self::section(&file[object..], section).with_context(|| format!("no section {section}"))?;
    let code = &mut file[object + start..object + start + length];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let exit = code.chunks(8).rposition(|instruction| instruction == EXIT).context("no exit")?;
    let distance = i16::try_from(exit.saturating_sub(2))?.to_le_bytes();
    code[..8].copy_from_slice(&[0xb7, 0, 0, 0, 0, 0, 0, 0]); // r0 = 0
    code[8..16].copy_from_slice(&[0x15, 0, distance[0], distance[1], 0, 0, 0, 0]); // if r0 == 0 goto exit
    Ok(())
}

/// Where a section of an ELF file is, and how long.
fn section(elf: &[u8], name: &str) -> Option<(usize, usize)> {
    let number = |at: usize, bytes: usize| {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(elf.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    let (table, size, count, names) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    let header = |index: usize| table + index * size;
    let strings = number(header(names) + 24, 8)?;
    (0..count).map(header).find_map(|at| {
        let text = elf.get(strings + number(at, 4)?..)?;
        let is_it = text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0);
        is_it.then(|| Some((number(at + 24, 8)?, number(at + 32, 8)?)))?
    })
}
