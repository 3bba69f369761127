//! What `/proc` says of a task. For people and for ancestry; never the sole ground of a decision.
//!
//! Fails: a task that is gone gives an error or nothing, never another task's data that is taken for its own: callers use
//! it on held tasks, which cannot go away and be replaced.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Ancestors listed at most.
pub const ANCESTRY_MAX: usize = 16;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Thread group id.
    pub tgid: u32,
    /// Parent process.
    pub parent: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Task name.
    pub comm: Vec<u8>,
    /// Path of the running image, for people.
    pub exe: Vec<u8>,
}

/// Reads one process (or thread) by id.
pub fn process(pid: u32) -> io::Result<Process> {
    let status = std::fs::read(format!("/proc/{pid}/status"))?;
    let field = |name: &[u8], index: usize| -> u32 {
        status
            .split(|b| *b == b'\n')
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| String::from_utf8_lossy(rest).split_whitespace().nth(index)?.parse().ok())
            .unwrap_or(0)
    };
    let comm = status
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Name:\t"))
        .map(<[u8]>::to_vec)
        .unwrap_or_default();
    Ok(Process {
        tgid: field(b"Tgid:", 0),
        parent: field(b"PPid:", 0),
        uid: field(b"Uid:", 1),
        gid: field(b"Gid:", 1),
        comm,
        exe: link(pid, "exe").unwrap_or_default(),
    })
}

/// What keeps a process from more than its user may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Filters of system calls.
    pub filters: u32,
    /// No new privileges by exec.
    pub no_new_privs: bool,
}

/// Reads that of one process.
pub fn confinement(pid: u32) -> io::Result<Confinement> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
    let missing = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/status says nothing of seccomp"));
    Ok(Confinement {
        filters: field("Seccomp_filters:").ok_or_else(missing)?,
        no_new_privs: field("NoNewPrivs:").ok_or_else(missing)? != 0,
    })
}

/// When a process started, in clock ticks since boot. Number and start together name one process of this boot.
pub fn start_time(pid: u32) -> io::Result<u64> {
    const FIELDS_AFTER_NAME: usize = 19;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(FIELDS_AFTER_NAME)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

/// Whether the process of a handle has ended, with all its threads; its parent need not have noticed.
pub fn has_ended(handle: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Number of a process's mount namespace.
pub fn mount_namespace(pid: u32) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(format!("/proc/{pid}/ns/mnt"))?))
}

/// A link below `/proc/PID`, as bytes.
pub fn link(pid: u32, name: &str) -> io::Result<Vec<u8>> {
    Ok(std::fs::read_link(format!("/proc/{pid}/{name}"))?.into_os_string().into_vec())
}

/// What a descriptor of a process refers to, such as `/dev/pts/0` or `pipe:[123]`.
pub fn descriptor(pid: u32, fd: u32) -> Option<Vec<u8>> {
    link(pid, &format!("fd/{fd}")).ok()
}

/// Undoes the kernel's octal escapes for blanks, tabs, line ends and backslashes.
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (first, code) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Soft and hard limits of a process, in the order of the kernel's resource numbers.
pub fn limits(pid: u32) -> io::Result<Vec<(u64, u64)>> {
    // RLIMIT_CPU to RLIMIT_RTTIME: the kernel has had these since 2.6.25 and no more.
    const RESOURCES: u32 = 16;
    (0..RESOURCES)
        .map(|resource| {
            let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the limit outlives the call; nothing is set.
            let done = unsafe { libc::prlimit64(pid.cast_signed(), resource, std::ptr::null(), &raw mut limit) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok((limit.rlim_cur, limit.rlim_max)) }
        })
        .collect()
}

/// Name and primary group, home and shell of a user, and all groups.
#[derive(Clone, Debug)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home folder.
    pub home: Vec<u8>,
    /// Login shell.
    pub shell: Vec<u8>,
    /// Every group.
    pub groups: Vec<u32>,
}

/// Looks a user up by id through the system's name services.
pub fn user_by_id(uid: u32) -> Option<User> {
    lookup(|entry, buffer, result| {
        // SAFETY: all pointers are valid for the call, the buffer has the length that is passed.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr().cast(), buffer.len(), result) }
    })
}

/// Looks a user up by name.
pub fn user_by_name(name: &str) -> Option<User> {
    let name = CString::new(name).ok()?;
    lookup(|entry, buffer, result| {
        // SAFETY: as above; the name is NUL-terminated and outlives the call.
        unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer.as_mut_ptr().cast(), buffer.len(), result) }
    })
}

/// Id of a group by name.
pub fn group_by_name(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string("/etc/group").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn lookup(call: impl Fn(*mut libc::passwd, &mut [u8], *mut *mut libc::passwd) -> i32) -> Option<User> {
    let mut buffer = vec![0_u8; 16 << 10];
    // SAFETY: passwd is plain pointers and integers, for which zero is a value.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut result = std::ptr::null_mut();
    if call(&raw mut entry, &mut buffer, &raw mut result) != 0 || result.is_null() {
        return None;
    }
    let text = |pointer: *const libc::c_char| -> Vec<u8> {
        if pointer.is_null() {
            return Vec::new();
        }
        // SAFETY: the call has filled the entry with NUL-terminated strings inside `buffer`, which is still alive.
        unsafe { std::ffi::CStr::from_ptr(pointer) }.to_bytes().to_vec()
    };
    let name = String::from_utf8(text(entry.pw_name)).ok()?;
    let groups = groups(&name, entry.pw_gid);
    Some(User {
        name,
        uid: entry.pw_uid,
        gid: entry.pw_gid,
        home: text(entry.pw_dir),
        shell: text(entry.pw_shell),
        groups,
    })
}

fn groups(name: &str, gid: u32) -> Vec<u32> {
    let Ok(name) = CString::new(name) else { return vec![gid] };
    let mut list = vec![0_u32; 256];
    let mut count = 256_i32;
    // SAFETY: the list has room for `count` entries, the name is NUL-terminated.
    let done = unsafe { libc::getgrouplist(name.as_ptr(), gid, list.as_mut_ptr(), &raw mut count) };
    if done < 0 {
        return vec![gid];
    }
    list.truncate(usize::try_from(count).unwrap_or(0));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_itself() {
        let me = process(std::process::id()).unwrap();
        assert_eq!(me.tgid, std::process::id());
        assert!(!me.exe.is_empty());
    }

    #[test]
    fn a_process_is_named_by_number_and_start() {
        let mut child = std::process::Command::new("/bin/sleep").arg("10").spawn().unwrap();
        let (own, other) = (start_time(std::process::id()).unwrap(), start_time(child.id()).unwrap());
        assert!(own > 0 && own <= other);
        assert_eq!(mount_namespace(child.id()).unwrap(), mount_namespace(std::process::id()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(start_time(child.id()).is_err());
    }

    #[test]
    fn no_new_privileges_are_seen() {
        let own = confinement(std::process::id()).unwrap();
        let mut child = std::process::Command::new("setpriv");
        let mut child = child.args(["--no-new-privs", "sleep", "10"]).spawn().unwrap();
        let seen = || confinement(child.id()).unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !seen().no_new_privs && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(seen(), Confinement { no_new_privs: true, ..own });
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn limits_are_all_there() {
        let limits = limits(std::process::id()).unwrap();
        assert_eq!(limits.len(), 16);
        assert!(limits.iter().all(|(soft, hard)| soft <= hard));
    }

    #[test]
    fn unescapes_mount_points() {
        assert_eq!(unescape(br"/a\040b\134c\0"), br"/a b\c\0");
    }
}
