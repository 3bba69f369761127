//! The measured mode: three tiny execs in a scratch session show whether this kernel really enforces.
//!
//! Un-granted must fail with `EPERM`, granted must run, granted with other arguments must be killed. Loading an LSM
//! program succeeds even where `bpf` is not an active LSM, so nothing but this measurement counts.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guard_common::{FileStamp, GRANT_FILES, GrantSet, Mark, Session, session_flags};

use super::cgroup::Cgroup;
use super::hash;
use super::load::{Kernel, KernelError};
use super::time;
use crate::launcher::{Exit, Launcher, StartSpec};

/// Session key of the canary.
pub const SESSION: u64 = guard_common::CANARY_SESSION;
/// Exit code of a canary that ran.
pub const RAN: u8 = 42;
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Un-granted exec ended in `EPERM`.
    pub denied: bool,
    /// Granted exec ran.
    pub ran: bool,
    /// Granted exec with other arguments was killed.
    pub killed: bool,
    /// What was seen where it is not as it should be.
    pub detail: String,
}

impl Measured {
    /// Whether the kernel enforces.
    pub fn enforcing(&self) -> bool {
        self.denied && self.ran && self.killed
    }
}

enum Trial {
    Ungranted,
    Granted,
    WrongArguments,
}

/// As [`measure`], for a start. Programs of another version's layout, which know neither session nor grant and deny, may
/// take a moment to be gone after their pins: the kernel frees a link behind the caller's back.
pub fn measure_at_start(kernel: &Kernel, launcher: &Launcher, guard_cgroup: &Path) -> Result<Measured, KernelError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let measured = measure(kernel, launcher, guard_cgroup)?;
        if measured.enforcing() || !kernel.has_replaced_layouts() || Instant::now() > end {
            return Ok(measured);
        }
        tracing::info!(measured.detail, "programs of another version are still there; measuring again");
        std::thread::sleep(PAUSE);
    }
}

/// Runs the three trials.
pub fn measure(kernel: &Kernel, launcher: &Launcher, guard_cgroup: &Path) -> Result<Measured, KernelError> {
    let dir = guard_cgroup.join("canary");
    let _ = std::fs::remove_dir(&dir);
    let cgroup =
        Cgroup::create(dir).map_err(|source| KernelError::Io { what: "making the canary's cgroup".into(), source })?;
    let session = Session {
        expires_boot_ns: time::boot_ns() + 60_000_000_000,
        cgroup: cgroup.id,
        caps_denied: 0,
        flags: session_flags::CANARY,
        uid: 0,
        ..Session::default()
    };
    kernel.open_session(SESSION, &session)?;
    kernel.bind_cgroup(cgroup.id, SESSION)?;
    let mut measured = Measured::default();
    for trial in [Trial::Ungranted, Trial::Granted, Trial::WrongArguments] {
        let outcome = run(kernel, launcher, &cgroup, &trial)?;
        note(&mut measured, &trial, &outcome);
    }
    let _ = kernel.close_session(SESSION);
    let _ = kernel.unbind_cgroup(cgroup.id);
    let _ = cgroup.kill(PATIENCE);
    let _ = cgroup.remove();
    Ok(measured)
}

fn note(measured: &mut Measured, trial: &Trial, exit: &Exit) {
    let (name, as_expected) = match trial {
        Trial::Ungranted => ("un-granted", exit.exec_errno == Some(libc::EPERM)),
        Trial::Granted => ("granted", exit.status == i32::from(RAN) << 8 && exit.exec_errno.is_none()),
        Trial::WrongArguments => ("wrong arguments", exit.status & 0x7f == libc::SIGKILL),
    };
    match trial {
        Trial::Ungranted => measured.denied = as_expected,
        Trial::Granted => measured.ran = as_expected,
        Trial::WrongArguments => measured.killed = as_expected,
    }
    if !as_expected {
        let text = format!("{name}: wait status {:#x}, errno {:?}; ", exit.status, exit.exec_errno);
        measured.detail.push_str(&text);
    }
}

fn run(kernel: &Kernel, launcher: &Launcher, cgroup: &Cgroup, trial: &Trial) -> Result<Exit, KernelError> {
    let failed = |source| KernelError::Io { what: "running the canary".into(), source };
    let exe: PathBuf = std::fs::read_link("/proc/self/exe").map_err(failed)?;
    let argv = vec![b"guard-agent".to_vec(), b"canary-child".to_vec()];
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let spec = StartSpec {
        path: Some(std::os::unix::ffi::OsStringExt::into_vec(exe.clone().into_os_string())),
        argv: argv.clone(),
        cwd: b"/".to_vec(),
        cgroup: cgroup.dir.clone(),
        ..StartSpec::default()
    };
    let waiting = launcher.start(&spec, [null.as_fd(), null.as_fd(), null.as_fd()], &[]).map_err(failed)?;
    let pid = waiting.pid();
    kernel.mark(pid, &Mark { session: SESSION, ..Mark::default() })?;
    if !matches!(trial, Trial::Ungranted) {
        let file = std::fs::File::open(&exe).map_err(failed)?;
        let mut args = hash::image_args(kernel.hash_key(), &argv, &[]);
        if matches!(trial, Trial::WrongArguments) {
            args.hash ^= 1;
        }
        // Where the programs are loaded but not run, the probe has no answer either.
        if let Ok(stamp) = kernel.probe_file(file.as_fd()) {
            kernel.grant(pid, &grant(stamp, args))?;
        }
    }
    waiting.go().map_err(failed)?;
    launcher.wait(pid, PATIENCE).map_err(failed)
}

fn grant(stamp: FileStamp, args: hash::ImageArgs) -> GrantSet {
    let mut files = [FileStamp::default(); GRANT_FILES];
    if let Some(first) = files.first_mut() {
        *first = stamp;
    }
    GrantSet {
        exec: 0,
        session: SESSION,
        expires_boot_ns: time::boot_ns() + 30_000_000_000,
        hash: args.hash,
        len: args.len,
        root: 0,
        argc: args.argc,
        envc: args.envc,
        file_count: 1,
        used: 0,
        files,
    }
}
