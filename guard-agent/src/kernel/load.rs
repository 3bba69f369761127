//! Loads the kernel programs, pins them, and gives typed access to their maps.
//!
//! Links and maps are pinned below the BPF file system: enforcement outlives the daemon. New programs are attached before
//! old ones go. Fails: before anything is attached where possible; the error names the program, map or field.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::ProgramError;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, Pod};
use guard_common::path::PathKey;
use guard_common::{
    ABI_VERSION, ADDRESS_KEY, Attempt, Counter, FileKey, FileStamp, GrantSet, Mark, PROBE_FCNTL_CMD, Pending,
    PortRules, Runtime, Session, Share, SocketFile, SocketName, maps,
};
use thiserror::Error;

use super::btf::{Btf, BtfError};
use super::events::EventReader;
use super::paths::PathTables;
use super::programs::{self, PROGRAMS, attach, program_for_kernel};
use super::shares::Shares;
use super::{object, offsets, time};

/// How the programs are loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Folder below the BPF file system.
    pub pin_dir: PathBuf,
    /// Guard's own cgroup v2 folder; sessions lie directly below.
    pub cgroup: PathBuf,
}

/// Why the kernel side failed.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The binary carries no kernel object.
    #[error("this guard-agent was built without the kernel programs: build it with `cargo xtask build`")]
    NoObject,
    /// A kernel field is not known.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// aya's loader failed.
    #[error("loading the kernel programs: {0}")]
    Load(#[from] aya::EbpfError),
    /// The kernel's types cannot be read by the loader.
    #[error("reading the kernel's BTF: {0}")]
    LoaderBtf(#[from] aya::BtfError),
    /// One program failed to load or attach.
    #[error("kernel program {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// The object lacks a program or map.
    #[error("the kernel object has no {0}; it was built from other sources than this binary")]
    Absent(&'static str),
    /// A map operation failed.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// Pinning failed.
    #[error("pinning {what}: {reason}")]
    Pin {
        /// What was to be pinned.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Layout-shared values are plain data.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub(super) T);

pub(super) trait Shared: Copy + 'static {}
impl Shared for Session {}
impl Shared for Mark {}
impl Shared for Attempt {}
impl Shared for GrantSet {}
impl Shared for Pending {}
impl Shared for FileKey {}
impl Shared for FileStamp {}
impl Shared for Runtime {}
impl Shared for Share {}
impl Shared for SocketFile {}
impl Shared for SocketName {}
impl Shared for PortRules {}

// SAFETY: every `Shared` type is `repr(C)` of integers without padding (guard-common asserts the sizes), so any byte
// pattern is a value and no byte is uninitialised.
unsafe impl<T: Shared> Pod for Plain<T> {}

/// Log lines of the kernel programs.
pub type ProgramLog = aya_log::EbpfLogger<&'static dyn log::Log>;

pub(super) type Table<K, V> = Mutex<HashMap<MapData, K, V>>;

/// The loaded programs and their maps.
pub struct Kernel {
    sessions: Table<u64, Plain<Session>>,
    cgroups: Table<u64, u64>,
    marks: Table<u32, Plain<Mark>>,
    attempts: Table<u32, Plain<Attempt>>,
    grants: Table<u32, Plain<GrantSet>>,
    frozen: Table<Plain<FileKey>, u64>,
    probes: Table<u32, Plain<FileStamp>>,
    unix_files: Table<Plain<SocketFile>, u32>,
    unix_names: Table<Plain<SocketName>, u32>,
    addresses: Mutex<LpmTrie<MapData, [u8; ADDRESS_KEY], Plain<PortRules>>>,
    counters: Mutex<PerCpuArray<MapData, u64>>,
    runtime: Mutex<Array<MapData, Plain<Runtime>>>,
    /// Each session's account of the event ring.
    pub shares: Shares,
    pub(super) path_tables: PathTables,
    lifted: AtomicBool,
    events: Mutex<Option<RingBuf<MapData>>>,
    log: Mutex<Option<ProgramLog>>,
    key: [u64; 2],
    instructions: Vec<(String, u32)>,
    missing: Vec<String>,
    adopted: bool,
    found_lifted: AtomicBool,
    replaced: Replaced,
    /// Programs are loaded with its descriptor: it must outlive that.
    _pending: Table<u64, Plain<Pending>>,
    ebpf: Ebpf,
}

impl Kernel {
    /// Loads, attaches and pins everything; takes over what an earlier daemon has pinned. Calls `step` as it gets on.
    pub fn load(options: &LoadOptions, step: &(dyn Fn() + Sync)) -> Result<Self, KernelError> {
        if object::bytes().is_empty() {
            return Err(KernelError::NoObject);
        }
        let pins = pin_folder(&options.pin_dir)?;
        let adopted = pins.join("link_guard_check").exists();
        let btf = Btf::of_running_kernel()?;
        let key = random_key()?;
        let mut ebpf = load_object(&btf, &options.cgroup, key, &pins)?;
        let (grants, pending) = (table(&mut ebpf, maps::GRANTS)?, table(&mut ebpf, maps::PENDING)?);
        if adopted {
            quiesce(&grants, &pending)?;
        }
        let loader_btf = aya::Btf::from_sys_fs()?;
        let begun = Instant::now();
        programs::load(&mut ebpf, &loader_btf, &btf, step)?;
        tracing::debug!(took = ?begun.elapsed(), "the verifier has accepted the programs");
        let mut instructions = Vec::new();
        let mut missing = Vec::new();
        for (name, hook) in PROGRAMS {
            let name = program_for_kernel(name, &btf);
            let (link, verified) = attach(&mut ebpf, name, hook, &btf)?;
            let Some(link) = link else {
                missing.push(name.to_owned());
                continue;
            };
            instructions.push((name.to_owned(), verified));
            pin_link(link, &pins, name)?;
            step();
        }
        let replaced = remove_other_layouts(&options.pin_dir, &pins);
        let log = aya_log::EbpfLogger::init(&mut ebpf).map_err(|error| KernelError::Io {
            what: "reading the log of the kernel programs".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let kernel = Self {
            log: Mutex::new(Some(log)),
            sessions: table(&mut ebpf, maps::SESSIONS)?,
            cgroups: table(&mut ebpf, maps::CGROUPS)?,
            marks: table(&mut ebpf, maps::MARKS)?,
            attempts: table(&mut ebpf, maps::ATTEMPTS)?,
            grants,
            frozen: table(&mut ebpf, maps::FROZEN)?,
            probes: table(&mut ebpf, maps::PROBES)?,
            unix_files: table(&mut ebpf, maps::UNIX_FILES)?,
            unix_names: table(&mut ebpf, maps::UNIX_NAMES)?,
            addresses: Mutex::new(typed(take(&mut ebpf, maps::ADDRESSES)?, maps::ADDRESSES)?),
            counters: Mutex::new(typed(take(&mut ebpf, maps::COUNTERS)?, maps::COUNTERS)?),
            runtime: Mutex::new(typed(take(&mut ebpf, maps::RUNTIME)?, maps::RUNTIME)?),
            path_tables: PathTables {
                paths: table(&mut ebpf, maps::PATHS)?,
                inodes: table(&mut ebpf, maps::INODES)?,
                readers: table(&mut ebpf, maps::READERS)?,
                budgets: table(&mut ebpf, maps::BUDGETS)?,
                deletes: table(&mut ebpf, maps::DELETES)?,
                turn: Mutex::new(()),
            },
            shares: Shares::new(
                typed(take(&mut ebpf, maps::SHARES)?, maps::SHARES)?,
                typed(take(&mut ebpf, maps::TAKEN)?, maps::TAKEN)?,
            )?,
            lifted: AtomicBool::new(false),
            events: Mutex::new(Some(typed(take(&mut ebpf, maps::EVENTS)?, maps::EVENTS)?)),
            key,
            instructions,
            missing,
            adopted,
            found_lifted: AtomicBool::new(false),
            replaced,
            _pending: pending,
            ebpf,
        };
        kernel.start_afresh()?;
        Ok(kernel)
    }

    /// What a former daemon granted is void: its key is gone. What it froze stays so until it is known whose that is.
    fn start_afresh(&self) -> Result<(), KernelError> {
        clear(&self.grants, maps::GRANTS)?;
        clear(&self.probes, maps::PROBES)?;
        self.set_runtime(|runtime| {
            self.found_lifted.store(runtime.lifted == 1, Ordering::Relaxed);
            *runtime = Runtime { daemon_tgid: std::process::id(), lifted: 0, heartbeat_boot_ns: time::boot_ns() };
        })
    }

    /// Whether pins of an earlier daemon were found.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Instructions that the verifier counted, per program.
    pub fn instructions(&self) -> &[(String, u32)] {
        &self.instructions
    }

    /// Exec attempts of governed tasks, at most, of which neither entry nor end was seen: the kernel skips a tracing program
    /// that another task was preempted in. Such an attempt was refused, or failed before its file was opened.
    pub fn attempts_unseen(&self) -> u64 {
        [("guard_enter_execve", "guard_exit_execve"), ("guard_enter_execveat", "guard_exit_execveat")]
            .map(|(entry, end)| self.skipped(entry).min(self.skipped(end)))
            .iter()
            .sum()
    }

    /// How often the kernel has skipped a program; 0 where it does not say.
    fn skipped(&self, program: &str) -> u64 {
        let Some(fd) = self.ebpf.program(program).and_then(|p| p.fd().ok()) else { return 0 };
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd())).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok()).unwrap_or(0)
    }

    /// Programs whose hook this kernel does not have.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Key of the argument hash.
    pub fn hash_key(&self) -> [u64; 2] {
        self.key
    }

    /// Makes a session known.
    pub fn open_session(&self, key: u64, session: &Session) -> Result<(), KernelError> {
        insert(&self.sessions, maps::SESSIONS, key, Plain(*session))
    }

    /// Moves a session's end. False if it is not known any more: one that was ended does not come back.
    pub fn extend_session(&self, key: u64, expires_boot_ns: u64) -> Result<bool, KernelError> {
        /// `BPF_EXIST`: only an entry that is there is changed.
        const EXIST: u64 = 2;
        let Some(known) = self.session(key) else { return Ok(false) };
        let Ok(mut sessions) = self.sessions.lock() else { return Err(KernelError::Absent(maps::SESSIONS)) };
        match sessions.insert(key, Plain(Session { expires_boot_ns, ..known }), EXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(KernelError::Map { map: maps::SESSIONS, source }),
        }
    }

    /// Ends a session: from now on its execs are denied.
    pub fn close_session(&self, key: u64) -> Result<(), KernelError> {
        remove(&self.sessions, maps::SESSIONS, &key)
    }

    /// Ends every session that is not among these, and lets go what is not kept as it is for one of them.
    pub fn keep_only(
        &self,
        sessions: &[u64],
        files: &HashSet<FileKey>,
        names: &HashSet<PathKey>,
    ) -> Result<(), KernelError> {
        for key in keys(&self.sessions).into_iter().filter(|key| !sessions.contains(key)) {
            remove(&self.sessions, maps::SESSIONS, &key)?;
            self.clear_delete_budget(key);
        }
        for cgroup in keys(&self.cgroups) {
            if get(&self.cgroups, &cgroup).is_none_or(|session| !sessions.contains(&session)) {
                remove(&self.cgroups, maps::CGROUPS, &cgroup)?;
            }
        }
        for key in keys(&self.frozen).into_iter().filter(|key| !files.contains(&key.0)) {
            remove(&self.frozen, maps::FROZEN, &key)?;
        }
        for name in self.kept_names().into_iter().filter(|name| !names.contains(name)) {
            self.free_name(name);
        }
        Ok(())
    }

    /// A session as the kernel knows it.
    pub fn session(&self, key: u64) -> Option<Session> {
        get(&self.sessions, &key).map(|s| s.0)
    }

    /// The session that a cgroup is bound to.
    pub fn session_of_cgroup(&self, cgroup: u64) -> Option<u64> {
        get(&self.cgroups, &cgroup)
    }

    /// Every marked process of a session.
    pub fn marks_of(&self, session: u64) -> Vec<(u32, Mark)> {
        let marked = keys(&self.marks).into_iter().filter_map(|tgid| Some((tgid, self.mark_of(tgid)?)));
        marked.filter(|(_, mark)| mark.session == session).collect()
    }

    /// Events of programs with another layout that nobody had read and that cannot be read now.
    pub fn lost_events(&self) -> u64 {
        self.replaced.unread
    }

    /// Whether programs with another layout were there.
    pub fn has_replaced_layouts(&self) -> bool {
        self.replaced.layouts > 0
    }

    /// Whether enforcement was lifted when the programs of an earlier daemon were found.
    pub fn found_lifted(&self) -> bool {
        self.found_lifted.load(Ordering::Relaxed)
    }

    /// Says which session a cgroup below Guard's belongs to.
    pub fn bind_cgroup(&self, cgroup: u64, session: u64) -> Result<(), KernelError> {
        insert(&self.cgroups, maps::CGROUPS, cgroup, session)
    }

    /// Forgets a cgroup.
    pub fn unbind_cgroup(&self, cgroup: u64) -> Result<(), KernelError> {
        remove(&self.cgroups, maps::CGROUPS, &cgroup)
    }

    /// Marks a process as governed.
    pub fn mark(&self, tgid: u32, mark: &Mark) -> Result<(), KernelError> {
        insert(&self.marks, maps::MARKS, tgid, Plain(*mark))
    }

    /// The mark of a process.
    pub fn mark_of(&self, tgid: u32) -> Option<Mark> {
        get(&self.marks, &tgid).map(|m| m.0)
    }

    /// The attempt of a thread that is in an exec syscall.
    pub fn attempt(&self, tid: u32) -> Option<Attempt> {
        get(&self.attempts, &tid).map(|a| a.0)
    }

    /// Opens the way for one exec.
    pub fn grant(&self, tid: u32, grant: &GrantSet) -> Result<(), KernelError> {
        insert(&self.grants, maps::GRANTS, tid, Plain(*grant))
    }

    /// Takes a grant back.
    pub fn revoke(&self, tid: u32) {
        let _ = remove(&self.grants, maps::GRANTS, &tid);
    }

    /// Keeps governed tasks from opening a file for writing until then.
    pub fn freeze(&self, key: FileKey, until_boot_ns: u64) -> Result<(), KernelError> {
        insert(&self.frozen, maps::FROZEN, Plain(key), until_boot_ns)
    }

    /// As [`Self::freeze`], for an open file. Gives its identity and state after that.
    pub fn freeze_open(&self, file: BorrowedFd<'_>, until_boot_ns: u64) -> Result<FileStamp, KernelError> {
        self.ask(file, until_boot_ns)
    }

    /// Ends a freeze.
    pub fn unfreeze(&self, key: FileKey) {
        let _ = remove(&self.frozen, maps::FROZEN, &Plain(key));
    }

    /// Socket files that profiles name: these and no others.
    pub fn set_socket_files(&self, wanted: &BTreeSet<SocketFile>) -> Result<(), KernelError> {
        set_keys(&self.unix_files, maps::UNIX_FILES, wanted)
    }

    /// Names under which they may be bound, and abstract names: these and no others.
    pub fn set_socket_names(&self, wanted: &BTreeSet<SocketName>) -> Result<(), KernelError> {
        set_keys(&self.unix_names, maps::UNIX_NAMES, wanted)
    }

    /// What happens to connections: these entries and no others. At no moment does one that stays lack.
    pub fn set_addresses(&self, wanted: &BTreeMap<(u32, [u8; ADDRESS_KEY]), PortRules>) -> Result<(), KernelError> {
        let map = maps::ADDRESSES;
        let failed = |source| KernelError::Map { map, source };
        let Ok(mut addresses) = self.addresses.lock() else { return Err(KernelError::Absent(map)) };
        for ((bits, data), ports) in wanted {
            addresses.insert(&Key::new(*bits, *data), Plain(*ports), 0).map_err(failed)?;
        }
        let known: Vec<Key<[u8; ADDRESS_KEY]>> = addresses.keys().filter_map(Result::ok).collect();
        for key in known.iter().filter(|key| !wanted.contains_key(&(key.prefix_len(), key.data()))) {
            addresses.remove(key).map_err(failed)?;
        }
        Ok(())
    }

    /// Identity and state of an open file, as the kernel programs will see it.
    pub fn probe_file(&self, file: BorrowedFd<'_>) -> Result<FileStamp, KernelError> {
        self.ask(file, 0)
    }

    fn ask(&self, file: BorrowedFd<'_>, frozen_until: u64) -> Result<FileStamp, KernelError> {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        // SAFETY: fcntl with an unknown command and no pointer: the hook runs, then the kernel answers EINVAL.
        unsafe { libc::fcntl(file.as_raw_fd(), PROBE_FCNTL_CMD.cast_signed(), frozen_until) };
        let stamp = get(&self.probes, &tid).map(|s| s.0);
        let _ = remove(&self.probes, maps::PROBES, &tid);
        stamp.ok_or(KernelError::Io {
            what: "asking the kernel program for a file's identity".into(),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    /// Sum over all processors.
    pub fn counter(&self, counter: Counter) -> u64 {
        let Ok(counters) = self.counters.lock() else { return 0 };
        counters.get(&(counter as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// Tells the kernel that the daemon lives (shown in status; the absence of a grant denies in any case).
    pub fn heartbeat(&self) -> Result<(), KernelError> {
        self.set_runtime(|runtime| runtime.heartbeat_boot_ns = time::boot_ns())
    }

    /// Lifts enforcement, or puts it back.
    pub fn lift(&self, lifted: bool) -> Result<(), KernelError> {
        self.set_runtime(|runtime| runtime.lifted = u32::from(lifted))?;
        self.lifted.store(lifted, Ordering::SeqCst);
        Ok(())
    }

    /// Whether enforcement is lifted. Only this daemon lifts it.
    pub fn lifted(&self) -> bool {
        self.lifted.load(Ordering::SeqCst)
    }

    fn set_runtime(&self, change: impl FnOnce(&mut Runtime)) -> Result<(), KernelError> {
        let failed = |source| KernelError::Map { map: maps::RUNTIME, source };
        let Ok(mut map) = self.runtime.lock() else { return Ok(()) };
        let mut value = map.get(&0, 0).map_err(failed)?.0;
        change(&mut value);
        map.set(0, Plain(value), 0).map_err(failed)
    }

    /// The programs' log lines; there is one reader. They repeat what events say, for times when the ring is full.
    pub fn take_log(&self) -> Option<ProgramLog> {
        self.log.lock().ok()?.take()
    }

    /// The ring's reader; there is one.
    pub fn take_events(&self) -> Option<EventReader> {
        self.events.lock().ok()?.take().map(EventReader::new)
    }
}

/// Waits until no exec is between check and commit: the programs of an earlier daemon hash under another key, and an image
/// that one half of them checked and the other verifies would be killed. Without grants, none can come to it any more.
fn quiesce(grants: &Table<u32, Plain<GrantSet>>, pending: &Table<u64, Plain<Pending>>) -> Result<(), KernelError> {
    const STEP: Duration = Duration::from_millis(10);
    const STEPS: u32 = 100;
    clear(grants, maps::GRANTS)?;
    for _ in 0..STEPS {
        // First a moment for checks that have seen their grant already.
        std::thread::sleep(STEP);
        if keys(pending).is_empty() {
            return Ok(());
        }
    }
    tracing::warn!("execs of an earlier daemon do not come to their end; their images will be killed");
    Ok(())
}

/// What was found of other layouts.
#[derive(Clone, Copy, Debug, Default)]
struct Replaced {
    /// How many there were.
    layouts: usize,
    /// Their events that nobody has read: they cannot be understood, only counted.
    unread: u64,
}

/// Programs of another layout know no session and would deny everything that is governed now.
fn remove_other_layouts(pin_dir: &Path, ours: &Path) -> Replaced {
    let mut replaced = Replaced::default();
    for entry in std::fs::read_dir(pin_dir).into_iter().flatten().flatten().filter(|e| e.path() != ours) {
        let ring = MapData::from_pin(entry.path().join(maps::EVENTS)).ok();
        let mut ring = ring.and_then(|data| RingBuf::try_from(Map::RingBuf(data)).ok());
        replaced.layouts += 1;
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::error!(pins = %entry.path().display(), %error, "removing the programs of another version");
        }
        while ring.as_mut().is_some_and(|ring| ring.next().is_some()) {
            replaced.unread += 1;
        }
    }
    replaced
}

/// Removes every pin, so that enforcement ends when no process holds the links any more.
pub fn unpin_all(pin_dir: &Path) -> Result<(), KernelError> {
    match std::fs::remove_dir_all(pin_dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(KernelError::Io { what: format!("removing {}", pin_dir.display()), source })
        }
        _ => Ok(()),
    }
}

/// Pins lie in a folder per layout version; those of other versions are another daemon's and are removed after load.
fn pin_folder(pin_dir: &Path) -> Result<PathBuf, KernelError> {
    let dir = pin_dir.join(format!("abi{ABI_VERSION}"));
    std::fs::create_dir_all(&dir).map_err(|source| KernelError::Io {
        what: format!("creating {} (is the BPF file system mounted at /sys/fs/bpf?)", dir.display()),
        source,
    })?;
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(pin_dir, closed)
        .map_err(|source| KernelError::Io { what: format!("closing {}", pin_dir.display()), source })?;
    Ok(dir)
}

fn random_key() -> Result<[u64; 2], KernelError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| KernelError::Io {
        what: "drawing the hash key".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    let value = u128::from_le_bytes(bytes);
    Ok([value as u64, (value >> 64) as u64])
}

fn load_object(btf: &Btf, cgroup: &Path, key: [u64; 2], pins: &Path) -> Result<Ebpf, KernelError> {
    let mut values = offsets::all(btf)?;
    let (id, level) = super::cgroup::identity(cgroup)
        .map_err(|source| KernelError::Io { what: format!("reading the cgroup {}", cgroup.display()), source })?;
    values.push(("GUARD_CGROUP_LEVEL", level));
    let [key0, key1] = key;
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins);
    for (global, value) in &values {
        loader.override_global(global, value, true);
    }
    loader.override_global("GUARD_CGROUP", &id, true);
    loader.override_global("HASH_KEY_0", &key0, true);
    loader.override_global("HASH_KEY_1", &key1, true);
    Ok(loader.load(object::bytes())?)
}

/// Pins beside the old one first, then takes its place: at no moment is nothing attached.
fn pin_link(link: FdLink, pins: &Path, name: &str) -> Result<(), KernelError> {
    let failed = |reason: String| KernelError::Pin { what: format!("link of {name}"), reason };
    let place = pins.join(format!("link_{name}"));
    let fresh = pins.join(format!("link_{name}_new"));
    let _ = std::fs::remove_file(&fresh);
    link.pin(&fresh).map_err(|e| failed(e.to_string()))?;
    let _ = std::fs::remove_file(&place);
    std::fs::rename(&fresh, &place).map_err(|e| failed(e.to_string()))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, KernelError> {
    ebpf.take_map(name).ok_or(KernelError::Absent(name))
}

fn typed<M: TryFrom<Map, Error = MapError>>(map: Map, name: &'static str) -> Result<M, KernelError> {
    M::try_from(map).map_err(|source| KernelError::Map { map: name, source })
}

fn table<K: Pod, V: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<Table<K, V>, KernelError> {
    Ok(Mutex::new(typed(take(ebpf, name)?, name)?))
}

pub(super) fn insert<K: Pod, V: Pod>(
    table: &Table<K, V>,
    map: &'static str,
    key: K,
    value: V,
) -> Result<(), KernelError> {
    let Ok(mut table) = table.lock() else { return Err(KernelError::Absent(map)) };
    table.insert(key.borrow(), value.borrow(), 0).map_err(|source| KernelError::Map { map, source })
}

pub(super) fn get<K: Pod, V: Pod>(table: &Table<K, V>, key: &K) -> Option<V> {
    table.lock().ok()?.get(key, 0).ok()
}

pub(super) fn remove<K: Pod, V: Pod>(table: &Table<K, V>, map: &'static str, key: &K) -> Result<(), KernelError> {
    let Ok(mut table) = table.lock() else { return Err(KernelError::Absent(map)) };
    match table.remove(key) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KernelError::Map { map, source }),
    }
}

fn set_keys<K: Shared + Ord>(
    table: &Table<Plain<K>, u32>,
    map: &'static str,
    wanted: &BTreeSet<K>,
) -> Result<(), KernelError> {
    let known: Vec<Plain<K>> = table.lock().map(|t| t.keys().filter_map(Result::ok).collect()).unwrap_or_default();
    for key in known.iter().filter(|key| !wanted.contains(&key.0)) {
        remove(table, map, key)?;
    }
    wanted.iter().try_for_each(|key| insert(table, map, Plain(*key), 1))
}

fn keys<K: Pod, V: Pod>(table: &Table<K, V>) -> Vec<K> {
    table.lock().map(|t| t.keys().filter_map(Result::ok).collect()).unwrap_or_default()
}

fn clear<K: Pod, V: Pod>(table: &Table<K, V>, map: &'static str) -> Result<(), KernelError> {
    let keys = keys(table);
    keys.iter().try_for_each(|key| remove(table, map, key))
}
