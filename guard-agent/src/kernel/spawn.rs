//! Starts the entry process of a session: straight into its cgroup, in a mount namespace of its own.
//!
//! Only for the launcher, a process with one thread. The child does nothing but what stands here until its exec. Before its
//! go it ends with the launcher; afterwards it outlives launcher and daemon.
//! Fails: the child reports the failed step and errno through a pipe and exits with 126.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Everything that the child needs, made before the fork.
pub struct Plan<'a> {
    /// Candidate paths of the program, in order.
    pub paths: Vec<CString>,
    /// Arguments.
    pub argv: Vec<CString>,
    /// Environment.
    pub env: Vec<CString>,
    /// Working folder.
    pub cwd: CString,
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Soft and hard limits by resource number; none are left as they are.
    pub limits: Vec<(u64, u64)>,
    /// The three descriptors are a terminal that becomes the controlling one.
    pub tty: bool,
    /// Make a private mount namespace.
    pub namespace: bool,
    /// Mounts, and where they are put in that namespace.
    pub mounts: Vec<(BorrowedFd<'a>, CString)>,
    /// Forbid gaining privileges by exec.
    pub no_new_privs: bool,
}

/// A child that waits for its go.
pub struct Child {
    /// Process id.
    pub pid: i32,
    /// Write one byte to let it go on; close it to end it.
    pub go: OwnedFd,
    /// Gives the failed step and errno, or its end at exec.
    pub report: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks the child into the cgroup. It waits before its exec.
pub fn start(plan: &Plan<'_>, cgroup: BorrowedFd<'_>, stdio: [BorrowedFd<'_>; 3]) -> io::Result<Child> {
    let (go_read, go_write) = pipe()?;
    let (report_read, report_write) = pipe()?;
    let mut args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: u64::try_from(cgroup.as_raw_fd()).unwrap_or(0),
        ..CloneArgs::default()
    };
    if plan.namespace {
        args.flags |= libc::CLONE_NEWNS as u64;
    }
    // SAFETY: without CLONE_VM this is a fork; this process has one thread, so the child may go on in Rust code.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        0 => {
            drop((go_write, report_read));
            let (step, error) = child(plan, &go_read, stdio);
            let mut bytes = error.to_ne_bytes().to_vec();
            bytes.extend_from_slice(step.as_bytes());
            let _ = rustix::io::write(&report_write, &bytes);
            // SAFETY: ends the child at once, without running the parent's exit handlers.
            unsafe { libc::_exit(126) }
        }
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Child { pid: i32::try_from(pid).unwrap_or(-1), go: go_write, report: report_read }),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Returns only on failure: the step and errno.
fn child(plan: &Plan<'_>, go: &OwnedFd, stdio: [BorrowedFd<'_>; 3]) -> (&'static str, i32) {
    match prepare(plan, go, stdio) {
        Err((step, error)) => (step, error.raw_os_error().unwrap_or(0)),
        Ok(()) => ("exec", exec(plan)),
    }
}

type Step = Result<(), (&'static str, io::Error)>;

fn check(step: &'static str, result: libc::c_int) -> Step {
    if result < 0 { Err((step, io::Error::last_os_error())) } else { Ok(()) }
}

fn prepare(plan: &Plan<'_>, go: &OwnedFd, stdio: [BorrowedFd<'_>; 3]) -> Step {
    // SAFETY: system calls on this process only, with constants, checked descriptors and NUL-terminated strings that
    // the plan owns.
    unsafe {
        let mut byte = [0_u8; 1];
        match rustix::io::read(go, &mut byte) {
            Ok(1) => {}
            _ => return Err(("wait for the daemon", io::ErrorKind::BrokenPipe.into())),
        }
        // From here on this process carries a mark that says that it is being set up (`SETTING_UP`).
        if plan.namespace {
            let flags = libc::MS_REC | libc::MS_SLAVE;
            let none = std::ptr::null();
            check("make mounts private", libc::mount(none, c"/".as_ptr(), none, flags, none.cast()))?;
            for (mount, place) in &plan.mounts {
                let flags = rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(mount, c"", rustix::fs::CWD, place, flags)
                    .map_err(|e| ("mount for the session", e.into()))?;
            }
        }
        for (from, to) in stdio.iter().zip(0..) {
            check("stdio", libc::dup2(from.as_raw_fd(), to))?;
        }
        check("new session", libc::setsid())?;
        if plan.tty {
            check("controlling terminal", libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        check("signal mask", libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))?;
        // What protects the daemon from the kernel's memory killer is not for what it starts.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        for (resource, (soft, hard)) in (0_u32..).zip(&plan.limits) {
            let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
            check("limits", libc::setrlimit64(resource, &raw const limit))?;
        }
        check("groups", libc::setgroups(plan.groups.len(), plan.groups.as_ptr()))?;
        check("group", libc::setresgid(plan.gid, plan.gid, plan.gid))?;
        check("user", libc::setresuid(plan.uid, plan.uid, plan.uid))?;
        libc::umask(plan.umask & 0o777);
        check("working folder", libc::chdir(plan.cwd.as_ptr()))?;
        if plan.no_new_privs {
            check("no new privileges", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        }
        // Everything but the three descriptors closes at exec; the report pipe with it.
        let cloexec = libc::CLOSE_RANGE_CLOEXEC;
        check("descriptors", libc::close_range(3, libc::c_uint::MAX, cloexec.cast_signed()))
    }
}

fn exec(plan: &Plan<'_>) -> i32 {
    let argv = pointers(&plan.argv);
    let env = pointers(&plan.env);
    let mut worst = libc::ENOENT;
    for path in &plan.paths {
        // SAFETY: NUL-terminated strings and NULL-terminated vectors that outlive the call.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) | None => {}
            Some(other) => {
                worst = other;
                if other != libc::EACCES {
                    break;
                }
            }
        }
    }
    worst
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Forks this process, which must have one thread. Returns 0 in the child.
pub fn fork() -> io::Result<i32> {
    // SAFETY: the callers have one thread, so the child may go on in Rust code.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Asks the kernel to kill this process when its parent dies.
pub fn die_with_parent() {
    // SAFETY: constants only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Makes this process the parent of whatever its descendants leave behind.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: constants only.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Collects one ended child, if there is one: pid and wait status.
pub fn reap() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Sends a signal to a process.
pub fn signal(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a process of this number exists.
pub fn exists(pid: i32) -> bool {
    signal(pid, 0).is_ok()
}

/// Blocks a signal for this thread and gives a descriptor that becomes readable when it is pending.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the descriptor is fresh and checked.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}
