//! What is known of a held exec: complete arguments and environment, files with identity and digest, folder, ancestry.
//!
//! From the kernel and from the held task's memory, never from what the agent says about itself. It must not judge.
//! Fails: whatever cannot be read, identified or followed is an error that names it; the exec is then denied.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use guard_common::{Attempt, FileStamp, GRANT_FILES};
use guard_policy::secrets::{self, Masked};
use guard_policy::{FileRef, Role, Stdin};
use guard_proto::v1::{ExecFacts, FileFact, ProcessRef};
use sha2::{Digest, Sha256};

use crate::blobs;
use crate::files::{self, Content, Kept, Rights, Way};
use crate::fixed::Fixed;
use crate::kernel::hash::{self, ImageArgs};
use crate::kernel::memory::{Memory, PATH_MAX};
use crate::kernel::{proc, time};
use crate::node::Node;
use crate::processes::Processes;
use crate::protect::Mounts;
use crate::record;
use crate::script::{self, Shebang};

/// Why an exec could not be understood.
#[derive(Debug)]
pub struct Misunderstood {
    /// What was being looked at.
    pub what: &'static str,
    /// The cause.
    pub cause: io::Error,
}

impl std::fmt::Display for Misunderstood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

fn wrong<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Misunderstood {
    move |cause| Misunderstood { what, cause: cause.into() }
}

/// One file of an exec.
pub struct JudgedFile {
    /// For people.
    pub path: Vec<u8>,
    /// Identity and state, as the kernel will compare them.
    pub stamp: FileStamp,
    /// Digest of the content.
    pub sha256: [u8; 32],
    /// What the file is to the exec.
    pub role: Role,
    /// The session could write or replace it.
    pub writable: bool,
    /// It is not on a file system of this machine's own kernel: [`files::is_foreign`].
    pub foreign: bool,
    /// A dynamic loader, by what it is.
    loader: bool,
}

/// Everything known.
pub struct Facts {
    /// The attempt.
    pub attempt: Attempt,
    /// As passed.
    pub argv: Vec<Vec<u8>>,
    /// As passed.
    pub env: Vec<Vec<u8>>,
    /// The file that execve named, then interpreters.
    pub files: Vec<JudgedFile>,
    /// What the kernel must find in the new image.
    pub image: ImageArgs,
    /// Working folder.
    pub cwd: Vec<u8>,
    /// Standard input.
    pub stdin: Stdin,
    /// The path as passed.
    pub path_arg: Vec<u8>,
    /// The task.
    pub task: proc::Process,
    /// Parents, nearest first, each with the exec whose image it runs.
    pub ancestry: Vec<(proc::Process, u64)>,
    /// Boot-time ns at which the daemon read the event.
    pub read_boot_ns: u64,
    /// Boot-time ns at which memory was read.
    pub memory_boot_ns: u64,
    /// Boot-time ns at which digests were known.
    pub digest_boot_ns: u64,
    /// The arguments as they may be kept and shown.
    pub shown: Masked,
    /// What digests of environment and request begin with: known to this host alone.
    pub salt: [u8; 32],
}

/// Where facts are gathered for.
pub struct Place<'a> {
    /// Rights of the session.
    pub rights: &'a Rights,
    /// The session's entry process.
    pub entry_pid: u32,
    /// Processes of the session that are known.
    pub processes: &'a Processes,
    /// Files that the session was just found unable to change.
    pub fixed: &'a Fixed,
    /// The session's salt.
    pub salt: [u8; 32],
    /// The session could mount any file anywhere: a name counts only where the host means the same file by it.
    pub makes_mounts: bool,
    /// Called when the task's memory has been read: the watchdog has nothing to wait for any more.
    pub memory_read: &'a dyn Fn(),
}

/// Gathers all. The files are frozen when this returns, also when it fails: `frozen` lists them.
pub fn gather(
    node: &Node,
    place: &Place<'_>,
    attempt: &Attempt,
    file: BorrowedFd<'_>,
    frozen: &mut Vec<Kept>,
) -> Result<Facts, Misunderstood> {
    let read_boot_ns = time::boot_ns();
    let memory = Memory::of(attempt.tid);
    let path_arg = memory.string(attempt.path_ptr, PATH_MAX).map_err(wrong("reading the path"))?;
    let argv = memory.strings(attempt.argv_ptr).map_err(wrong("reading the arguments"))?;
    let env = memory.strings(attempt.envp_ptr).map_err(wrong("reading the environment"))?;
    (place.memory_read)();
    let memory_boot_ns = time::boot_ns();
    let (mut judged, chain) = follow(node, place, attempt, file, frozen)?;
    let script_path = script::script_path(attempt.dirfd, &path_arg);
    let cwd = proc::link(attempt.tid, "cwd").map_err(wrong("reading the working folder"))?;
    keep_names(node, place, attempt.tid, (&cwd, &script_path), &chain, &mut judged, frozen)?;
    let image_argv = script::rewrite(&argv, &script_path, &chain);
    let image = hash::image_args(node.kernel.hash_key(), &image_argv, &env);
    let task = place.processes.caller(attempt);
    let program = judged.first().map(|file| file.path.as_slice()).unwrap_or_default();
    let program = program.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let shown = secrets::mask(&String::from_utf8_lossy(program), &argv);
    Ok(Facts {
        attempt: *attempt,
        cwd,
        stdin: files::stdin_of(attempt.tid),
        ancestry: place.processes.ancestry(|pid| node.kernel.mark_of(pid), &task, place.entry_pid),
        argv,
        env,
        files: judged,
        image,
        path_arg,
        task,
        read_boot_ns,
        memory_boot_ns,
        digest_boot_ns: time::boot_ns(),
        shown,
        salt: place.salt,
    })
}

/// The chain of files that the kernel will check: scripts, then the interpreter that is none.
fn follow(
    node: &Node,
    place: &Place<'_>,
    attempt: &Attempt,
    first: BorrowedFd<'_>,
    frozen: &mut Vec<Kept>,
) -> Result<(Vec<JudgedFile>, Vec<Shebang>), Misunderstood> {
    let mut judged = Vec::new();
    let mut chain = Vec::new();
    let mut opened: Option<OwnedFd> = None;
    loop {
        let file = opened.as_ref().map_or(first, |f| f.as_fd());
        let (next, line) = judge_file(node, place, attempt.tid, file, frozen)?;
        judged.push(next);
        let Some(line) = line else { break };
        if chain.len() >= script::DEPTH || judged.len() >= GRANT_FILES {
            let cause = io::Error::from_raw_os_error(libc::ELOOP);
            return Err(Misunderstood { what: "following script interpreters", cause });
        }
        let next = files::open_as(attempt.tid, &line.interpreter).map_err(wrong("opening the script's interpreter"))?;
        opened = Some(next);
        chain.push(line);
    }
    let scripts = chain.len();
    for (place, file) in judged.iter_mut().enumerate() {
        file.role = match (scripts, place) {
            _ if file.loader => Role::Loader,
            (0, _) => Role::Program,
            (_, place) if place < scripts => Role::Script,
            _ => Role::Interpreter,
        };
    }
    Ok((judged, chain))
}

/// Names on the way to one script.
const NAMES_MAX: usize = 60;

/// An interpreter opens its script again by name. Every name on the way that the session could turn to something else
/// is kept as it is until the script's process ends; then the name must still lead to the judged file. A script that is
/// reached through descriptors has no such names: it counts as the session's own.
fn keep_names(
    node: &Node,
    place: &Place<'_>,
    tid: u32,
    (cwd, name): (&[u8], &[u8]),
    chain: &[Shebang],
    judged: &mut [JudgedFile],
    frozen: &mut Vec<Kept>,
) -> Result<(), Misunderstood> {
    let names = std::iter::once(name).chain(chain.iter().map(|line| line.interpreter.as_slice()));
    for (file, name) in judged.iter_mut().zip(names).filter(|(file, _)| file.role == Role::Script) {
        let Some(way) = Way::of(tid, cwd, name) else {
            file.writable = true;
            continue;
        };
        if !place.rights.can_redirect(&way) {
            continue;
        }
        if node.observes() {
            file.writable = true;
            continue;
        }
        let mounts = Mounts::of(place.entry_pid).map_err(wrong("reading the session's mounts"))?;
        let places: std::collections::BTreeSet<_> = way.names.iter().map(|(path, _)| path).collect();
        if places.len() > NAMES_MAX {
            let cause =
                io::Error::other(format!("{} names lead to it; at most {NAMES_MAX} are followed", places.len()));
            return Err(Misunderstood { what: "keeping the script's name", cause });
        }
        for path in places {
            // Every mount of the namespace is in the table: only the root of a file system has no name to turn.
            let Some(key) = mounts.place(path) else { continue };
            let kept = Kept::Name(key);
            node.freezes.keep(&node.kernel, kept).map_err(wrong("keeping the script's name"))?;
            frozen.push(kept);
        }
        // A turn that was let through just before is under way until its folder is free.
        files::wait_for_changes(tid, &way).map_err(wrong("waiting for changes of the script's name"))?;
        still_leads_to(node, tid, cwd, name, &way, &file.stamp)?;
    }
    Ok(())
}

/// Whether the name, now that it cannot be turned, leads along the same way to the judged file.
fn still_leads_to(
    node: &Node,
    tid: u32,
    cwd: &[u8],
    name: &[u8],
    way: &Way,
    stamp: &FileStamp,
) -> Result<(), Misunderstood> {
    let turned = |why: &str| Misunderstood { what: "script_name_turned", cause: io::Error::other(why.to_owned()) };
    let again = Way::of(tid, cwd, name).ok_or_else(|| turned("its name leads nowhere any more"))?;
    if again.names.iter().map(|n| &n.0).ne(way.names.iter().map(|n| &n.0)) {
        return Err(turned("its name was turned while it was judged"));
    }
    let end = again.end().unwrap_or(std::path::Path::new("/"));
    let file = files::open_as(tid, end.as_os_str().as_bytes()).map_err(wrong("opening the script by its name"))?;
    let found = probe(node, file.as_fd())?;
    if (found.key, found.inode_addr) != (stamp.key, stamp.inode_addr) {
        return Err(turned("its name leads to another file than the one that was judged"));
    }
    Ok(())
}

fn judge_file(
    node: &Node,
    place: &Place<'_>,
    tid: u32,
    file: BorrowedFd<'_>,
    frozen: &mut Vec<Kept>,
) -> Result<(JudgedFile, Option<Shebang>), Misunderstood> {
    // Having been asked for its change time, a kernel since 6.13 gives the next change a time of its own.
    rustix::fs::fstat(file).map_err(wrong("asking for the file's times"))?;
    let stamp = freeze(node, file, frozen)?;
    if stamp.writers > 0 {
        let cause = io::Error::new(io::ErrorKind::ExecutableFileBusy, "somebody has it open for writing");
        return Err(Misunderstood { what: "file_has_writer", cause });
    }
    let Content { sha256, shebang, loader } = node.contents.of(file, &stamp).map_err(wrong("reading the program"))?;
    let path = files::path_of(file);
    let (writable, foreign) = whose(node, place, tid, file, &path, &stamp)?;
    if writable {
        node.freezes.note_writable();
    }
    Ok((JudgedFile { path, stamp, sha256, role: Role::Program, writable, foreign, loader }, shebang))
}

/// Whether the session could change the file, and whether it is foreign.
fn whose(
    node: &Node,
    place: &Place<'_>,
    tid: u32,
    file: BorrowedFd<'_>,
    path: &[u8],
    stamp: &FileStamp,
) -> Result<(bool, bool), Misunderstood> {
    let now = time::boot_ns();
    // In a session that makes mounts a path is not always the same file's.
    if !place.makes_mounts && place.fixed.contains(stamp, path, now) {
        return Ok((false, false));
    }
    let writable = match place.makes_mounts {
        false => place.rights.can_replace(tid, file, path),
        true => !files::is_hosts(&node.kernel, path, stamp) || place.rights.can_replace(std::process::id(), file, path),
    };
    let foreign = files::is_foreign(file).map_err(wrong("asking for the file system"))?;
    if !writable && !foreign && !place.makes_mounts {
        place.fixed.insert(stamp, path, now);
    }
    Ok((writable, foreign))
}

/// Identity as the kernel programs see it; in observe mode, where they may not run, what `fstat` says.
fn probe(node: &Node, file: BorrowedFd<'_>) -> Result<FileStamp, Misunderstood> {
    match node.kernel.probe_file(file) {
        Err(_) if node.observes() => files::stat_stamp(file).map_err(wrong("identifying the file")),
        probed => probed.map_err(|e| io::Error::other(e.to_string())).map_err(wrong("identifying the file")),
    }
}

/// Freezes the file, and gives its identity as the kernel programs see it from then on; in observe mode, where they may
/// not run, what `fstat` says.
fn freeze(node: &Node, file: BorrowedFd<'_>, frozen: &mut Vec<Kept>) -> Result<FileStamp, Misunderstood> {
    match node.freezes.freeze(&node.kernel, file) {
        Ok(stamp) => {
            frozen.push(Kept::File(stamp.key));
            Ok(stamp)
        }
        Err(_) if node.observes() => files::stat_stamp(file).map_err(wrong("identifying the file")),
        Err(error) => Err(wrong("freezing and identifying the file")(error)),
    }
}

impl Facts {
    /// Whether this is the session's entry process starting its program.
    pub fn is_entry(&self, entry_pid: u32) -> bool {
        self.attempt.tgid == entry_pid && self.attempt.parent_exec == 0
    }

    /// The files, as policy wants them.
    pub fn file_refs(&self) -> Vec<FileRef<'_>> {
        self.files
            .iter()
            .map(|f| FileRef { path: &f.path, role: f.role, session_writable: f.writable, foreign: f.foreign })
            .collect()
    }

    /// What an approval is bound to: everything that makes an exec the identical one when it is tried again.
    pub fn digest(&self, session: &str) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        add(b"guard exec request v2");
        // Without it a secret among the arguments could be guessed from the digest, which a record holds.
        add(&self.salt);
        add(session.as_bytes());
        add(&self.task.uid.to_le_bytes());
        add(&self.cwd);
        add(&self.path_arg);
        add(&digest_of(&[], &self.argv));
        add(&digest_of(&[], &self.env));
        for file in &self.files {
            add(&file.stamp.key.dev.to_le_bytes());
            add(&file.stamp.key.ino.to_le_bytes());
            add(&file.sha256);
        }
        hasher.finalize().into()
    }

    /// As a record carries them. The values of which variables are kept is said by the policy of the session's `agent`.
    pub fn to_proto(&self, node: &Node, agent: &str, judged: ForRecord<'_>) -> ExecFacts {
        let (argv, argv_omitted) = record::bounded_argv(&self.shown.argv);
        ExecFacts {
            exec_id: self.attempt.exec,
            boot_id: node.boot_id.clone(),
            pid: self.attempt.tgid,
            tid: self.attempt.tid,
            uid: self.task.uid,
            gid: self.task.gid,
            argv,
            argv_count: u32::try_from(self.argv.len()).unwrap_or(u32::MAX),
            argv_bytes: self.shown.argv.iter().map(|a| a.len() as u64 + 1).sum(),
            argv_sha256: digest_of(&[], &self.shown.argv).to_vec(),
            argv_omitted,
            cwd: self.cwd.clone(),
            files: self.files.iter().map(file_fact).collect(),
            ancestry: self.ancestry.iter().map(process_ref).collect(),
            parent_exec_id: self.attempt.parent_exec,
            root_exec_id: judged.root,
            entry: judged.entry,
            envc: u32::try_from(self.env.len()).unwrap_or(u32::MAX),
            env_sha256: digest_of(&self.salt, &self.env).to_vec(),
            env_notable: judged.env_notable.iter().map(|n| n.clone().into_bytes()).collect(),
            entered_boot_ns: self.attempt.entered_boot_ns,
            path_arg: self.path_arg.clone(),
            tty: String::new(),
            blob_sha256: judged.blob.to_vec(),
            masked: blobs::masked(&self.shown),
            env_values: blobs::env_values(&node.policies.of(agent).counts.policy, &self.env),
        }
    }
}

/// What was made of facts, as far as their record says it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForRecord<'a> {
    /// It is the session's entry process.
    pub entry: bool,
    /// The exec for which a person is asked.
    pub root: u64,
    /// Notable environment variables, by name.
    pub env_notable: &'a [String],
    /// Digest of the blob with what the record cannot hold; empty if there is none.
    pub blob: &'a [u8],
}

fn digest_of(salt: &[u8], strings: &[Vec<u8>]) -> [u8; 32] {
    let mut hasher = Sha256::new_with_prefix(salt);
    for text in strings {
        hasher.update(text);
        hasher.update([0]);
    }
    hasher.finalize().into()
}

fn file_fact(file: &JudgedFile) -> FileFact {
    let role = match file.role {
        Role::Program => "program",
        Role::Script => "script",
        Role::Interpreter => "interpreter",
        Role::Loader => "loader",
    };
    FileFact {
        path: file.path.clone(),
        dev: file.stamp.key.dev,
        ino: file.stamp.key.ino,
        size: file.stamp.size,
        sha256: file.sha256.to_vec(),
        role: role.into(),
    }
}

fn process_ref((process, exec): &(proc::Process, u64)) -> ProcessRef {
    ProcessRef {
        pid: process.tgid,
        uid: process.uid,
        comm: process.comm.clone(),
        exec_id: *exec,
        exe: process.exe.clone(),
    }
}
