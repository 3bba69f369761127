//! What the verifier may count for each kernel program: a program that grows past its limit costs every exec of the host,
//! or is refused by the next kernel.
//!
//! `guard-agent programs` prints the counts beside the limits; the guest scenario `verifier_budget` fails above one.
//! Fails: what cannot be read of a loaded program is an error that names it.

use std::os::fd::AsFd;
use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use serde_json::{Value, json};

/// Limit of a program that has no line below.
const LIMIT: u32 = 20_000;
/// Programs that loop over files, arguments or folders.
const LIMITS: &[(&str, u32)] = &[("guard_verify", 80_000), ("guard_verify_at_once", 80_000), ("guard_inode", 60_000)];

/// One loaded program.
pub struct Loaded {
    /// Its name, whole (the kernel keeps 15 characters).
    pub name: String,
    /// Instructions that the verifier counted.
    pub instructions: u32,
    /// Most that are accepted.
    pub limit: u32,
    /// Nanoseconds and runs since it was loaded; both 0 unless `kernel.bpf_stats_enabled` was set.
    pub run: (u64, u64),
}

impl Loaded {
    /// As `--output json` prints it.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name, "instructions": self.instructions, "limit": self.limit,
            "run_time_ns": self.run.0, "run_count": self.run.1,
        })
    }
}

/// Most instructions of a program.
pub fn limit(name: &str) -> u32 {
    LIMITS.iter().find(|(known, _)| *known == name).map_or(LIMIT, |(_, limit)| *limit)
}

/// The programs whose links are pinned below a folder, whoever loaded them.
pub fn loaded(pin_dir: &Path) -> Result<Vec<Loaded>, String> {
    let folder = pin_dir.join(format!("abi{}", guard_common::ABI_VERSION));
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}; does the daemon run?", folder.display()))?;
    let mut all = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_prefix("link_") {
            all.push(one(name, &entry.path()).map_err(|e| format!("program {name}: {e}"))?);
        }
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn one(name: &str, pin: &Path) -> Result<Loaded, String> {
    let link = FdLink::from(PinnedLink::from_pin(pin).map_err(|e| e.to_string())?);
    let id = link.info().map_err(|e| e.to_string())?.program_id();
    let program = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .ok_or("the kernel does not list it")?;
    let fd = program.fd().map_err(|e| e.to_string())?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd_number(&fd))).map_err(|e| e.to_string())?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0);
    let instructions = program.verified_instruction_count().ok_or("the kernel does not say what was verified")?;
    let run = (field("run_time_ns:"), field("run_cnt:"));
    Ok(Loaded { name: name.to_owned(), instructions, limit: limit(name), run })
}

fn fd_number(fd: &impl AsFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd())
}
