//! The bytes that kernel programs and daemon share: map names, map keys and values, ring-buffer events.
//!
//! Mechanism only. It must not hold policy, must not allocate and must not depend on anything: it is compiled for the
//! kernel's virtual machine and for user space, and both sides must see the same layout. Every struct is `#[repr(C)]`,
//! of fixed width, without `bool` and without implicit padding; [`layout`] asserts the sizes at compile time.
//!
//! Fails: nothing here can fail at run time; a layout that drifts fails the build.
#![no_std]

pub mod path;

/// Version of every layout in this crate. The daemon refuses pinned maps that were made for another version.
pub const ABI_VERSION: u32 = 6;

/// Folder below the BPF file system in which links and maps are pinned.
pub const PIN_DIR: &str = "/sys/fs/bpf/guard";

/// Names of the maps, as the kernel programs define them and the daemon finds them.
pub mod maps {
    /// `Hash<u64 session, Session>`: sessions that may exec, by session key. No entry means: deny.
    pub const SESSIONS: &str = "SESSIONS";
    /// `Hash<u64 cgroup id, u64 session>`: the cgroup directly below Guard's cgroup → session key.
    pub const CGROUPS: &str = "CGROUPS";
    /// `Hash<u32 tgid, Mark>`: governed processes; inherited at fork.
    pub const MARKS: &str = "MARKS";
    /// `Hash<u32 tid, Attempt>`: exec attempts under way, written at syscall entry.
    pub const ATTEMPTS: &str = "ATTEMPTS";
    /// `Hash<u32 tid, GrantSet>`: one-shot permissions, written by the daemon.
    pub const GRANTS: &str = "GRANTS";
    /// `Hash<u64 task pointer, Pending>`: what the new image must look like, between check and commit.
    pub const PENDING: &str = "PENDING";
    /// `Hash<FileKey, u64>`: files that governed tasks may not open for writing now → boot-time ns of expiry.
    pub const FROZEN: &str = "FROZEN";
    /// `Hash<u32 tid, FileStamp>`: answers to the daemon's file probe (see [`crate::PROBE_FCNTL_CMD`]).
    pub const PROBES: &str = "PROBES";
    /// `PerCpuArray<u64>`: counters, indexed by [`crate::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// `RingBuf`: events of every kind, each starting with [`crate::EventHeader`].
    pub const EVENTS: &str = "EVENTS";
    /// `Hash<u64 session, Share>`: what each session has put into the ring; [`crate::NOBODY`] stands for sessions without
    /// an entry.
    pub const SHARES: &str = "SHARES";
    /// `Hash<u64 session, u64>`: of those bytes, what the daemon has read. Written by the daemon alone.
    pub const TAKEN: &str = "TAKEN";
    /// `Hash<SocketFile, u32>`: socket files that a profile names; the value is not read.
    pub const UNIX_FILES: &str = "UNIX_FILES";
    /// `Hash<SocketName, u32>`: names under which such sockets may be bound, and abstract names.
    pub const UNIX_NAMES: &str = "UNIX_NAMES";
    /// `LpmTrie<profile, address; PortRules>`: what happens to connections, by profile and address.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// `LruHash<Talk, u64>`: messages that were reported lately → boot-time ns.
    pub const TALKS: &str = "TALKS";
    /// `Hash<path::PathKey, path::PathRule>`: protected names and folders, and what leads to them.
    pub const PATHS: &str = "PATHS";
    /// `Hash<FileKey, path::PathRule>`: protected files that have more names than the protected one.
    pub const INODES: &str = "INODES";
    /// `Hash<path::Reader, u32>`: programs that may read what others may not.
    pub const READERS: &str = "READERS";
    /// `Hash<u64 session, path::DeleteBudget>`: how much the commands of a session may delete.
    pub const BUDGETS: &str = "BUDGETS";
    /// `LruHash<path::Deleter, path::Deleted>`: what they have deleted.
    pub const DELETES: &str = "DELETES";
    /// `LruHash<path::Created, u64 session>`: files that sessions have made themselves.
    pub const CREATED: &str = "CREATED";
    /// `Array<Runtime>`: one entry, what the daemon may change at run time.
    pub const RUNTIME: &str = "RUNTIME";
}

/// Entries of [`maps::MARKS`] and [`maps::ATTEMPTS`]: one per process, one per thread that is in an exec. The daemon limits
/// the tasks of all sessions together to as many.
pub const MARKS_MAX: u32 = 65_536;
/// Entries of [`maps::GRANTS`] and [`maps::PENDING`]: one per exec that is granted and has not started.
pub const GRANTS_MAX: u32 = 8192;
/// Entries of [`maps::FROZEN`].
pub const FROZEN_MAX: u32 = 16_384;

/// Most files that one exec can have checked: script, nested scripts, interpreter.
pub const GRANT_FILES: usize = 6;
/// Bytes of the path that an event carries; a longer path is cut and flagged.
pub const EVENT_PATH: usize = 256;
/// Bytes of each untrusted argument that an event for a failed exec carries, NUL included.
pub const EVENT_ARG_SLOT: usize = 64;
/// Bytes of all of them.
pub const EVENT_ARGS: usize = EVENT_ARG_SLOT * EVENT_ARG_COUNT;
/// Most argument strings that an event for a failed exec carries.
pub const EVENT_ARG_COUNT: usize = 16;
/// Bytes of the kernel's task name.
pub const COMM: usize = 16;
/// `fcntl` command with which the daemon (and only its process) asks the kernel program for a file's [`FileStamp`].
/// The hook fires before the kernel refuses the unknown command with `EINVAL`. A third argument other than 0 freezes the
/// file until that boot-time ns first.
pub const PROBE_FCNTL_CMD: u32 = 0x4755_4152;

/// A file as the kernel names it: `s_dev` and `i_ino` of the opened inode.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// Kernel device number, `major << 20 | minor`.
    pub dev: u64,
    /// Inode number, all 64 bits.
    pub ino: u64,
}

/// What is known of a file's content without reading it; equal stamps and no writer mean unchanged content.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// Which file.
    pub key: FileKey,
    /// Size in bytes.
    pub size: u64,
    /// Seconds of the inode change time.
    pub ctime_s: u64,
    /// Nanoseconds of the inode change time.
    pub ctime_ns: u32,
    /// Inode generation.
    pub generation: u32,
    /// Address of the inode, only to tell two files apart that share [`FileKey`] (btrfs subvolumes). Never printed.
    pub inode_addr: u64,
    /// Writers that have the file open (negative: writing is denied just now, as for a running program).
    pub writers: i32,
    /// Links to the file; 0 means deleted or never linked (memfd).
    pub nlink: u32,
}

/// A session as the kernel needs to know it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// End, in nanoseconds of `CLOCK_BOOTTIME`; from then on every exec is denied, with or without a daemon.
    pub expires_boot_ns: u64,
    /// Id of the session's cgroup.
    pub cgroup: u64,
    /// Capabilities (bit n = capability n) that no task of the session may use.
    pub caps_denied: u64,
    /// [`session_flags`].
    pub flags: u32,
    /// User that the session runs as.
    pub uid: u32,
    /// Number of the profile in the maps of sockets and addresses.
    pub profile: u32,
    /// Zero.
    pub reserved: u32,
    /// The daemon's socket inside the session, the only one of the daemon that it may connect to; zero: there is none.
    pub socket: FileKey,
}

/// What one session has put into the ring, and what found no room. Kernel programs add to it, nobody else writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Bytes of the ring used so far, heads included.
    pub put: u64,
    /// Events lost: exec attempts that failed or were refused without having been granted.
    pub lost_attempts: u64,
    /// Events lost: what became of granted execs.
    pub lost_outcomes: u64,
    /// Events lost: acts other than execs.
    pub lost_acts: u64,
}

/// Session key under which [`maps::SHARES`] counts sessions that have no entry of their own.
pub const NOBODY: u64 = 0;

/// Bytes of the ring that an event of this size takes: a head of 8, and whole words.
pub const fn ring_bytes(event: usize) -> u64 {
    (event as u64 + 8 + 7) & !7
}

/// Session key of the start-up canary; sessions of people never have it.
pub const CANARY_SESSION: u64 = 1;

/// Bits of [`Session::flags`].
pub mod session_flags {
    /// Events only, nothing is denied or killed (observe mode).
    pub const OBSERVE: u32 = 1;
    /// Tracing is allowed: promise P3 is observed only.
    pub const ALLOW_PTRACE: u32 = 2;
    /// The session is the start-up canary.
    pub const CANARY: u32 = 4;
    /// Executable memory that no file backs is refused.
    pub const DENY_ANON_EXEC: u32 = 8;
    /// Executable memory that no file backs is recorded.
    pub const RECORD_ANON_EXEC: u32 = 16;
    /// Executable mappings of files that the session can write, of deleted files and of memfds are refused.
    pub const DENY_WRITABLE_EXEC: u32 = 32;
    /// Such mappings are recorded.
    pub const RECORD_WRITABLE_EXEC: u32 = 64;
    /// Mount and user namespaces may be made, and mounts in them: the daemon marks them.
    pub const ADOPT_NAMESPACES: u32 = 128;
    /// Unix sockets outside the session may be connected to (recorded).
    pub const ALLOW_UNIX: u32 = 256;
    /// Sockets of other families than Unix, internet and netlink, and raw sockets, may be made (recorded).
    pub const ALLOW_OTHER_FAMILIES: u32 = 512;
    /// `io_uring` may be set up.
    pub const ALLOW_IO_URING: u32 = 1024;
}

/// A socket file that a profile names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketFile {
    /// [`Session::profile`].
    pub profile: u32,
    /// Zero.
    pub reserved: u32,
    /// Device of the file, as [`FileKey::dev`].
    pub dev: u64,
    /// Inode of the file.
    pub ino: u64,
}

/// A name that a profile allows: of a socket file as its listener has bound it, NUL included, or abstract, with the NUL
/// at its start.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketName {
    /// [`Session::profile`].
    pub profile: u32,
    /// Bytes of `name` in use.
    pub length: u32,
    /// `sun_path`; zero beyond its length.
    pub name: [u8; SOCKET_NAME],
}

/// Bytes of `sun_path`.
pub const SOCKET_NAME: usize = 108;

/// An address as the rules are looked up: the profile's number (big endian), then 16 bytes, IPv4 as `::ffff:a.b.c.d`.
pub const ADDRESS_KEY: usize = 4 + 16;
/// Bits of the profile's number at the start of every prefix.
pub const ADDRESS_PROFILE_BITS: u32 = 32;
/// Number under which stands what holds for every session; no profile has it.
pub const EVERY_SESSION: u32 = 0;
/// Most ranges of ports that differ for one address.
pub const PORT_RANGES: usize = 16;

/// What happens to connections to a range of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRule {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
    /// [`verdict`].
    pub verdict: u16,
    /// Number of the configured rule; 0 for the profile's default.
    pub rule: u16,
}

/// Values of [`PortRule::verdict`].
pub mod verdict {
    /// It goes on, unrecorded.
    pub const ALLOW: u16 = 1;
    /// It goes on and is recorded.
    pub const RECORD: u16 = 2;
    /// It is refused and recorded.
    pub const DENY: u16 = 3;
}

/// All ranges for one address prefix, in ascending order; ports in none of them are not spoken about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRules {
    /// Ranges in use.
    pub count: u32,
    /// Zero.
    pub reserved: u32,
    /// Ranges.
    pub ranges: [PortRule; PORT_RANGES],
}

/// A message that one process sends to one place: reported once in a while.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Talk {
    /// The image that sends.
    pub exec: u64,
    /// Its process.
    pub tgid: u32,
    /// [`GuardEvent::detail`].
    pub detail: u32,
    /// Address, or device and inode of a socket file.
    pub place: [u64; 2],
    /// Port, or zero.
    pub port: u64,
}

/// [`GuardEvent::detail`] of [`reason::NETWORK`] and [`reason::UNIX_SOCKET`]: address family in bits 0 to 7, operation in
/// bits 8 to 15, number of the rule in bits 16 to 31.
pub mod socket_detail {
    /// A connection.
    pub const CONNECT: u32 = 1 << 8;
    /// A message to an address.
    pub const SEND: u32 = 2 << 8;
    /// A new socket; `number` is its protocol, with the type from bit 32 on.
    pub const CREATE: u32 = 3 << 8;

    /// The address family.
    pub const fn family(detail: u32) -> u32 {
        detail & 0xff
    }

    /// One of the operations above.
    pub const fn operation(detail: u32) -> u32 {
        detail & 0xff00
    }

    /// The rule.
    pub const fn rule(detail: u32) -> u16 {
        (detail >> 16) as u16
    }
}

/// [`PortRule::rule`] of the collector's address, which no session may reach.
pub const COLLECTOR_RULE: u16 = u16::MAX;

/// Mark of a governed process, inherited at fork.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Session key.
    pub session: u64,
    /// Id of the root exec under which this process runs; 0 for none.
    pub root: u64,
    /// Id of the exec whose image this process runs; 0 before the first.
    pub exec: u64,
    /// Boot-time ns of the fork; 0 once the process runs an image of its own.
    pub forked_boot_ns: u64,
    /// The file that this process runs (of a script: its interpreter); zero before the first exec.
    pub image: FileKey,
}

/// [`Mark::image`] of an entry process that still runs Guard's own code, between its fork and its exec: it drops rights,
/// sets limits and makes its mounts private, which the session itself may not.
pub const SETTING_UP: FileKey = FileKey { dev: u64::MAX, ino: u64::MAX };

/// An exec attempt under way, from syscall entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Unique number of this attempt on this boot, never 0; the id of the exec.
    pub exec: u64,
    /// Session key.
    pub session: u64,
    /// Boot-time ns of the syscall entry.
    pub entered_boot_ns: u64,
    /// User address of the path string.
    pub path_ptr: u64,
    /// User address of the argument vector.
    pub argv_ptr: u64,
    /// User address of the environment vector.
    pub envp_ptr: u64,
    /// Process id (thread group), in the initial namespace.
    pub tgid: u32,
    /// Thread id, in the initial namespace.
    pub tid: u32,
    /// Directory descriptor of `execveat`, `AT_FDCWD` for `execve`.
    pub dirfd: i32,
    /// Flags of `execveat`.
    pub at_flags: i32,
    /// [`attempt_state`].
    pub state: u32,
    /// Syscall number.
    pub syscall: u32,
    /// Copy of the mark's root at entry.
    pub root: u64,
    /// Copy of the mark's exec at entry (the parent image).
    pub parent_exec: u64,
    /// Effective user at entry.
    pub uid: u32,
    /// Effective group at entry.
    pub gid: u32,
    /// Parent process at entry, in the initial namespace.
    pub parent: u32,
    /// Zero.
    pub reserved: u32,
    /// Task name at entry.
    pub comm: [u8; COMM],
}

/// Values of [`Attempt::state`], a growing set of bits.
pub mod attempt_state {
    /// The check hook ran and found a live grant.
    pub const GRANTED: u32 = 1;
    /// The check hook ran and denied.
    pub const DENIED: u32 = 2;
    /// The new image was committed.
    pub const COMMITTED: u32 = 4;
    /// The new image was killed.
    pub const KILLED: u32 = 8;
}

/// The kernel's one-shot permission for one exec.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantSet {
    /// The attempt this grant is for ([`Attempt::exec`]); another attempt of the same thread does not match.
    pub exec: u64,
    /// Session key.
    pub session: u64,
    /// Boot-time ns after which the grant is dead.
    pub expires_boot_ns: u64,
    /// Keyed hash over the final argument and environment bytes, as [`Pending::hash`].
    pub hash: u64,
    /// Length in bytes of those, NULs included.
    pub len: u64,
    /// Root that the new image belongs to; goes into the mark at commit.
    pub root: u64,
    /// Argument strings of the final image (script rewriting done).
    pub argc: u32,
    /// Environment strings of the final image.
    pub envc: u32,
    /// Entries of `files` in use.
    pub file_count: u32,
    /// Bit `i` is set once `files[i]` has been checked: each entry serves once.
    pub used: u32,
    /// The files that will be checked, in order: script, nested scripts, interpreter; or the one program.
    pub files: [FileStamp; GRANT_FILES],
}

/// What the new image must look like; made from the grant at the check, verified after commit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// The exec.
    pub exec: u64,
    /// Session key.
    pub session: u64,
    /// SipHash-1-3 under the load-time key over `argv strings || envp strings` (each NUL-terminated), padded with
    /// zeros to whole chunks of 256 bytes, with the length as last word.
    pub hash: u64,
    /// Length of those bytes.
    pub len: u64,
    /// Root for the mark.
    pub root: u64,
    /// Expected argument count.
    pub argc: u32,
    /// Expected environment count.
    pub envc: u32,
    /// Thread id at syscall entry; `de_thread` may change the task's own before commit.
    pub tid: u32,
    /// Zero.
    pub reserved: u32,
}

/// What the daemon may change while the programs run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// Process id of the daemon whose file probes are answered; 0 for none.
    pub daemon_tgid: u32,
    /// 1 while `emergency-stop` has lifted enforcement: nothing is denied, held or killed.
    pub lifted: u32,
    /// Boot-time ns of the daemon's last heartbeat (information only: no grant means deny in any case).
    pub heartbeat_boot_ns: u64,
}

/// Kinds of [`EventHeader::kind`].
pub mod event_kind {
    /// [`super::ExecEvent`]: the check or the verification refused; `reason` says why.
    pub const REFUSED: u32 = 1;
    /// [`super::ExecEvent`]: the new image was killed before its first instruction.
    pub const KILLED: u32 = 2;
    /// [`super::ExecEvent`]: the new image runs.
    pub const STARTED: u32 = 3;
    /// [`super::FailedEvent`]: the syscall returned an error.
    pub const FAILED: u32 = 4;
    /// [`super::ExitEvent`]: a governed process ended.
    pub const EXIT: u32 = 5;
    /// [`super::ForkEvent`]: a governed process forked (processes, not threads).
    pub const FORK: u32 = 6;
    /// [`super::GuardEvent`]: a guard hook refused something that is not an exec.
    pub const GUARD: u32 = 7;
}

/// Reasons carried by refusals.
pub mod reason {
    /// No grant for this thread and attempt.
    pub const NO_GRANT: u32 = 1;
    /// The session is unknown.
    pub const NO_SESSION: u32 = 2;
    /// The session has expired.
    pub const SESSION_EXPIRED: u32 = 3;
    /// The grant was past its time.
    pub const GRANT_EXPIRED: u32 = 4;
    /// The file is none of the granted ones, or not the next one.
    pub const WRONG_FILE: u32 = 5;
    /// The file's size, change time or generation differs.
    pub const FILE_CHANGED: u32 = 6;
    /// Somebody has the file open for writing.
    pub const FILE_HAS_WRITER: u32 = 7;
    /// The syscall entry was not seen (foreign ABI).
    pub const NO_ENTRY: u32 = 8;
    /// The event did not fit into the ring: no record, no exec.
    pub const NO_RING: u32 = 9;
    /// A map was full.
    pub const MAP_FULL: u32 = 10;
    /// Argument or environment bytes of the new image differ from the granted ones.
    pub const ARGS_DIFFER: u32 = 11;
    /// Argument bytes of the new image could not be read.
    pub const ARGS_UNREADABLE: u32 = 12;
    /// Argument or environment count differs.
    pub const COUNT_DIFFERS: u32 = 13;
    /// The image was committed without a check having passed.
    pub const NOT_CHECKED: u32 = 14;
    /// A governed task tried to trace or be traced.
    pub const PTRACE: u32 = 20;
    /// A governed task tried to write to a frozen file.
    pub const FROZEN_FILE: u32 = 21;
    /// A governed task tried to change cgroup files.
    pub const CGROUP_WRITE: u32 = 22;
    /// A signal to a task outside the session.
    pub const SIGNAL: u32 = 23;
    /// The `bpf` system call, or the BPF file system.
    pub const BPF: u32 = 24;
    /// A capability that the session may not use.
    pub const CAPABILITY: u32 = 25;
    /// A new user namespace.
    pub const USER_NAMESPACE: u32 = 26;
    /// A mount, an unmount, a moved mount or a changed root.
    pub const MOUNT: u32 = 27;
    /// A connection or message to a Unix socket outside the session.
    pub const UNIX_SOCKET: u32 = 28;
    /// A connection or message to an internet address.
    pub const NETWORK: u32 = 29;
    /// Input pushed into a terminal (`TIOCSTI`, `TIOCLINUX`).
    pub const TERMINAL_INPUT: u32 = 30;
    /// A kernel module or another kernel image.
    pub const KERNEL_LOAD: u32 = 31;
    /// `userfaultfd`.
    pub const USERFAULTFD: u32 = 32;
    /// `io_uring`.
    pub const IO_URING: u32 = 33;
    /// Settings of the kernel: sysctl, sysfs and the like.
    pub const KERNEL_SETTING: u32 = 34;
    /// A device that holds memory or disks.
    pub const RAW_DEVICE: u32 = 35;
    /// A protected path was to be changed.
    pub const PROTECTED_PATH: u32 = 36;
    /// A credential file was to be read by a program that may not.
    pub const CREDENTIAL_FILE: u32 = 37;
    /// More deletions than the budget allows.
    pub const DELETE_BUDGET: u32 = 38;
    /// Far more deletions than the budget allows: the tree of the command is killed.
    pub const DELETE_FLOOD: u32 = 39;
    /// Executable memory that no file backs.
    pub const ANON_EXEC: u32 = 40;
    /// An executable mapping of a file that the session can write, of a deleted file or a memfd.
    pub const WRITABLE_EXEC: u32 = 41;
    /// A name on the way to a script that is about to be read was to be changed.
    pub const SCRIPT_NAME: u32 = 42;
    /// A new mount namespace was made and entered (profile `adopt`).
    pub const MOUNT_NAMESPACE: u32 = 43;
    /// Writing to the memory of a process through `/proc`.
    pub const PROC_MEM: u32 = 44;
    /// Limits, priority or settings of a task outside the session.
    pub const TASK_SETTING: u32 = 50;
}

/// Head of every event.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventHeader {
    /// [`event_kind`].
    pub kind: u32,
    /// Whole size of the event in bytes.
    pub size: u32,
    /// Boot-time ns.
    pub boot_ns: u64,
    /// Session key.
    pub session: u64,
    /// Process id.
    pub tgid: u32,
    /// Thread id.
    pub tid: u32,
}

/// [`event_kind::REFUSED`], [`event_kind::KILLED`], [`event_kind::STARTED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecEvent {
    /// Head.
    pub header: EventHeader,
    /// The attempt; 0 if its entry was not seen.
    pub exec: u64,
    /// Copy of the attempt's root (of the grant's for STARTED).
    pub root: u64,
    /// The file concerned.
    pub file: FileKey,
    /// [`reason`]; 0 for STARTED.
    pub reason: u32,
    /// uid of the task.
    pub uid: u32,
    /// Task name before the exec.
    pub comm: [u8; COMM],
    /// `bprm->filename` or the user's path: NUL-terminated, cut at the end; information only.
    pub path: [u8; EVENT_PATH],
}

/// [`event_kind::FAILED`]: the exec syscall of a governed task returned an error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedEvent {
    /// Head.
    pub header: EventHeader,
    /// The attempt.
    pub exec: u64,
    /// Copy of the attempt's root.
    pub root: u64,
    /// Copy of the attempt's parent image.
    pub parent_exec: u64,
    /// Boot-time ns of the syscall entry.
    pub entered_boot_ns: u64,
    /// Positive errno; 0 if the syscall returned without one and without a new image, as `AT_EXECVE_CHECK` does.
    pub errno: u32,
    /// [`attempt_state`] as left by the other hooks; 0 means: failed before the hold or while held.
    pub state: u32,
    /// uid of the task.
    pub uid: u32,
    /// Zero.
    pub reserved0: u32,
    /// Slots of `args` in use; [`UNREADABLE`] if they could not be read.
    pub args_count: u32,
    /// 1 if arguments were left out or cut.
    pub args_cut: u32,
    /// Bytes of `path` in use without NUL; [`UNREADABLE`] if it could not be read.
    pub path_len: u32,
    /// Zero.
    pub reserved: u32,
    /// Task name.
    pub comm: [u8; COMM],
    /// Path argument as user memory holds it at exit: untrusted.
    pub path: [u8; EVENT_PATH],
    /// Arguments as user memory holds them at exit, each in a slot of [`EVENT_ARG_SLOT`] bytes, NUL-terminated: untrusted.
    pub args: [u8; EVENT_ARGS],
}

/// Marks a length whose bytes could not be read.
pub const UNREADABLE: u32 = u32::MAX;

/// [`event_kind::EXIT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitEvent {
    /// Head.
    pub header: EventHeader,
    /// The image that ran; 0 if the process never exec'd.
    pub exec: u64,
    /// Root it belonged to.
    pub root: u64,
    /// Exit status in `wait` form (code << 8 | signal).
    pub status: u32,
    /// Zero.
    pub reserved: u32,
}

/// Boot-time ns at which the syscall of an exec was entered, to within a microsecond: its number is made of it.
#[must_use]
pub const fn entered_boot_ns(exec: u64) -> u64 {
    exec & !(1 << 63) & !0x3ff
}

/// [`event_kind::FORK`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkEvent {
    /// Head; `tgid` is the parent.
    pub header: EventHeader,
    /// Child process id.
    pub child: u32,
    /// Zero.
    pub reserved: u32,
}

/// [`event_kind::GUARD`]: something else than an exec was refused, or let through and recorded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardEvent {
    /// Head.
    pub header: EventHeader,
    /// The exec whose image the process runs; 0 for none.
    pub exec: u64,
    /// Root that it belongs to; 0 for none.
    pub root: u64,
    /// File, directory or socket concerned, else zero.
    pub file: FileKey,
    /// Meaning by reason: capability, signal number, port, rule, count.
    pub number: u64,
    /// [`reason`].
    pub reason: u32,
    /// [`guard_outcome`].
    pub outcome: u32,
    /// Other process concerned (ptrace, signals), else 0.
    pub other_tgid: u32,
    /// uid of the task.
    pub uid: u32,
    /// Bytes of `text` in use.
    pub text_len: u32,
    /// Meaning by reason: address family, operation ([`operation`]).
    pub detail: u32,
    /// Task name.
    pub comm: [u8; COMM],
    /// Meaning by reason: a name, a socket's name, the bytes of an address.
    pub text: [u8; EVENT_TEXT],
}

/// Bytes of [`GuardEvent::text`].
pub const EVENT_TEXT: usize = 128;

/// Values of [`GuardEvent::outcome`].
pub mod guard_outcome {
    /// Refused with `EPERM` or `EACCES`.
    pub const REFUSED: u32 = 1;
    /// Let through and recorded.
    pub const OBSERVED: u32 = 2;
    /// The task was killed.
    pub const KILLED: u32 = 3;
}

/// What was to be done to a file, in [`GuardEvent::detail`].
pub mod operation {
    /// Open for writing.
    pub const WRITE: u32 = 1;
    /// Unlink.
    pub const UNLINK: u32 = 2;
    /// Remove a directory.
    pub const RMDIR: u32 = 3;
    /// Rename, or be renamed over.
    pub const RENAME: u32 = 4;
    /// Create a file, node or directory.
    pub const CREATE: u32 = 5;
    /// Make a hard or symbolic link.
    pub const LINK: u32 = 6;
    /// Change size, mode, owner or times.
    pub const SETATTR: u32 = 7;
    /// Change or remove an extended attribute.
    pub const XATTR: u32 = 8;
    /// Open for reading.
    pub const READ: u32 = 9;
}

/// What was to be done with mounts, in [`GuardEvent::detail`].
pub mod mount_operation {
    /// `mount`: a new one, a bind, a change of propagation.
    pub const MOUNT: u32 = 1;
    /// `move_mount`.
    pub const MOVE: u32 = 2;
    /// `umount`.
    pub const UMOUNT: u32 = 3;
    /// `pivot_root`.
    pub const PIVOT: u32 = 4;
    /// A change of flags or options.
    pub const REMOUNT: u32 = 5;
    /// A new mount that is not yet anywhere (`fsmount`, and every `mount` of a file system).
    pub const NEW: u32 = 6;
}

/// Index into [`maps::COUNTERS`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Exec attempts of governed tasks at syscall entry.
    Attempts = 0,
    /// Checks that found a live grant.
    Granted = 1,
    /// Checks that refused.
    Refused = 2,
    /// Images killed after commit.
    Killed = 3,
    /// Images that started.
    Started = 4,
    /// Exec syscalls of governed tasks that returned an error.
    Failed = 5,
    /// Events that found no room in the ring.
    RingFull = 6,
    /// Map insertions that failed.
    MapFull = 7,
    /// Guard refusals other than execs.
    GuardRefused = 8,
    /// Governed forks.
    Forks = 9,
    /// Governed process exits.
    Exits = 10,
    /// Acts other than execs that were let through and recorded.
    GuardObserved = 11,
    /// Execs denied because their session had its share of the ring.
    RingDenied = 12,
}

/// Number of counters.
pub const COUNTERS: u32 = 13;

/// Sizes that both sides rely on.
mod layout {
    use super::*;
    const fn check<T>(size: usize) {
        assert!(core::mem::size_of::<T>() == size);
    }
    const _: () = check::<FileKey>(16);
    const _: () = check::<FileStamp>(56);
    const _: () = check::<Session>(56);
    const _: () = check::<Share>(32);
    const _: () = check::<SocketFile>(24);
    const _: () = check::<SocketName>(8 + SOCKET_NAME);
    const _: () = check::<PortRules>(8 + 8 * PORT_RANGES);
    const _: () = check::<Talk>(40);
    const _: () = check::<Mark>(48);
    const _: () = check::<Attempt>(120);
    const _: () = check::<GrantSet>(64 + 56 * GRANT_FILES);
    const _: () = check::<Pending>(56);
    const _: () = check::<Runtime>(16);
    const _: () = check::<EventHeader>(32);
    const _: () = check::<ExecEvent>(32 + 40 + COMM + EVENT_PATH);
    const _: () = check::<FailedEvent>(32 + 64 + COMM + EVENT_PATH + EVENT_ARGS);
    const _: () = check::<ExitEvent>(56);
    const _: () = check::<ForkEvent>(40);
    const _: () = check::<GuardEvent>(32 + 40 + 24 + COMM + EVENT_TEXT);
}
