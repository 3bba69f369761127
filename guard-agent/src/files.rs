//! Files of an exec: identity, digest, who could write them, and the freeze that keeps governed tasks from writing them.
//!
//! It must not judge. Fails: a file that cannot be identified or read whole is an error; the exec is then denied.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_common::path::PathKey;
use guard_common::{FileKey, FileStamp};
pub use guard_log::frame::read_bounded;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest, Sha256};

use crate::elf;
use crate::kernel::load::Kernel;
use crate::kernel::time;
use crate::script::{self, Shebang};

/// Files above this size are not read whole; they are denied.
const FILE_MAX: u64 = 2 << 30;
/// Digests remembered.
const CACHE_MAX: usize = 4096;
/// A file changed so lately that its change time may not yet tell a next change apart is not remembered.
const SETTLED_S: u64 = 2;
/// From freezing a file until its image is seen to have started, and then some.
const WRITABLE_NS: u64 = 10_000_000_000;
/// A freeze ends by itself after this time, should its end be missed.
const FREEZE_NS: u64 = 400_000_000_000;

/// What a file's content says; it cannot change without the stamp.
#[derive(Clone, Debug)]
pub struct Content {
    /// SHA-256.
    pub sha256: [u8; 32],
    /// Its `#!` line, if it is a script.
    pub shebang: Option<Shebang>,
    /// It is a dynamic loader.
    pub loader: bool,
}

impl Content {
    fn read(file: BorrowedFd<'_>, size: u64) -> io::Result<Self> {
        let sha256 = read_digest(file, size)?;
        let head = head(file, script::HEAD)?;
        Ok(Self { sha256, shebang: script::parse(&head), loader: elf::is_loader(file, &head)? })
    }
}

/// Contents by stamp, in two generations: what is asked for again outlives a flood of files that are run once.
#[derive(Default)]
pub struct Contents(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<FileStamp, Content>,
    old: HashMap<FileStamp, Content>,
}

impl Generations {
    fn get(&mut self, key: &FileStamp) -> Option<Content> {
        if let Some(known) = self.young.get(key) {
            return Some(known.clone());
        }
        let content = self.old.remove(key)?;
        self.insert(*key, content.clone());
        Some(content)
    }

    fn insert(&mut self, key: FileStamp, content: Content) {
        if self.young.len() >= CACHE_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, content);
    }
}

impl Contents {
    /// Content of a file whose stamp is known, from its descriptor.
    pub fn of(&self, file: BorrowedFd<'_>, stamp: &FileStamp) -> io::Result<Content> {
        // Writers and links may change without the content doing so.
        let key = FileStamp { writers: 0, nlink: 0, ..*stamp };
        if let Some(known) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known);
        }
        let content = Content::read(file, stamp.size)?;
        let now = u64::try_from(time::wall_unix_ns() / 1_000_000_000).unwrap_or(0);
        if now >= stamp.ctime_s.saturating_add(SETTLED_S) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, content.clone());
        }
        Ok(content)
    }
}

fn read_digest(file: BorrowedFd<'_>, size: u64) -> io::Result<[u8; 32]> {
    if size > FILE_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes; at most {FILE_MAX} are read")));
    }
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 18];
    let mut at = 0;
    loop {
        let count = rustix::io::pread(file, &mut buffer, at)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        at += count as u64;
    }
    if at != size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{at} bytes read of {size}")));
    }
    Ok(hasher.finalize().into())
}

/// What governed tasks must leave as it is while an exec is judged, and while a script is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kept {
    /// The content of a file.
    File(FileKey),
    /// What a name leads to.
    Name(PathKey),
}

/// Freezes that are in force, counted: several execs may run the same file.
#[derive(Default)]
pub struct Freezes {
    counts: Mutex<HashMap<Kept, u32>>,
    /// Boot-time ns until which a file that its session could write is likely to be frozen.
    writable_until: AtomicU64,
}

impl Freezes {
    /// Keeps governed tasks from opening the file for writing, and gives its state after that. The counts are locked all
    /// the while: nobody may thaw it in between.
    pub fn freeze(&self, kernel: &Kernel, file: BorrowedFd<'_>) -> io::Result<FileStamp> {
        let mut counts = self.counts();
        let stamp = kernel.freeze_open(file, time::boot_ns() + FREEZE_NS).map_err(io::Error::other)?;
        *counts.entry(Kept::File(stamp.key)).or_default() += 1;
        Ok(stamp)
    }

    /// A file that its session could write was frozen just now.
    pub fn note_writable(&self) {
        self.writable_until.store(time::boot_ns() + WRITABLE_NS, Ordering::Relaxed);
    }

    /// Whether something is frozen that a session may want to change as soon as the exec is over: a name, or a file of
    /// its own. Others cannot tell when a freeze ends.
    pub fn somebody_may_wait(&self) -> bool {
        time::boot_ns() < self.writable_until.load(Ordering::Relaxed)
            || self.counts().keys().any(|kept| matches!(kept, Kept::Name(_)))
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Kept, u32>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what is in force already, or keeps a name from being turned to something else.
    pub fn keep(&self, kernel: &Kernel, what: Kept) -> io::Result<()> {
        let mut counts = self.counts();
        let until = time::boot_ns() + FREEZE_NS;
        match what {
            Kept::File(key) => kernel.freeze(key, until),
            Kept::Name(key) => kernel.keep_name(key, until),
        }
        .map_err(io::Error::other)?;
        *counts.entry(what).or_default() += 1;
        Ok(())
    }

    /// Lets all that are in force go on for as long again.
    pub fn renew(&self, kernel: &Kernel) {
        let counts = self.counts();
        let until = time::boot_ns() + FREEZE_NS;
        for what in counts.keys() {
            let renewed = match what {
                Kept::File(key) => kernel.freeze(*key, until),
                Kept::Name(key) => kernel.keep_name(*key, until),
            };
            if let Err(error) = renewed {
                tracing::error!(%error, "a file or name that must stay as it is may be changed soon");
            }
        }
    }

    /// Ends one freeze.
    pub fn thaw(&self, kernel: &Kernel, what: Kept) {
        let mut counts = self.counts();
        if let Some(count) = counts.get_mut(&what) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&what);
                match what {
                    Kept::File(key) => kernel.unfreeze(key),
                    Kept::Name(key) => kernel.free_name(key),
                }
            }
        }
    }
}

/// Path of an open file from the root of its mount namespace. For people, and for looking at the folders above.
pub fn path_of(file: BorrowedFd<'_>) -> Vec<u8> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).map(|p| p.into_os_string().into_vec()).unwrap_or_default()
}

/// What `fstat` says, in the form of a stamp. For observe mode only: it cannot see writers.
pub fn stat_stamp(file: BorrowedFd<'_>) -> io::Result<FileStamp> {
    let meta = File::from(file.try_clone_to_owned()?).metadata()?;
    Ok(FileStamp {
        key: FileKey { dev: meta.dev(), ino: meta.ino() },
        size: meta.len(),
        ctime_s: u64::try_from(meta.ctime()).unwrap_or(0),
        ctime_ns: u32::try_from(meta.ctime_nsec()).unwrap_or(0),
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        ..FileStamp::default()
    })
}

/// File systems that the kernel itself keeps, on this machine's memory or disks: what was read once is read again until
/// somebody writes to the file, and the kernel sees who does. Magic numbers of `statfs`.
const OWN_FILE_SYSTEMS: [u64; 14] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // zfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs, rootfs
    0x794c_7630, // overlay; of what lies below it says nothing
    0x7371_7368, // squashfs
    0xe0f5_e1e2, // erofs
    0x28cd_3d45, // cramfs
    0x9660,      // iso9660
    0x4d44,      // vfat
];

/// Whether a file lies on a file system that another program or machine answers for, or on one that is not known.
pub fn is_foreign(file: BorrowedFd<'_>) -> io::Result<bool> {
    let magic = u64::try_from(rustix::fs::fstatfs(file)?.f_type).unwrap_or(0) & 0xffff_ffff;
    Ok(!OWN_FILE_SYSTEMS.contains(&magic))
}

/// First bytes of a file.
pub fn head(file: BorrowedFd<'_>, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0_u8; bytes];
    let mut filled = 0;
    while filled < bytes {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        match rustix::io::pread(file, rest, filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Opens the file that a task means by an absolute path, in the task's own root and without a chance to leave it.
pub fn open_as(pid: u32, path: &[u8]) -> io::Result<OwnedFd> {
    if path.first() != Some(&b'/') {
        let text = "an interpreter must be named by an absolute path";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let root = File::open(format!("/proc/{pid}/root"))?;
    // Looked at before it is opened: opening a device is an act.
    let place = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    if kind != rustix::fs::FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok(rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether an absolute path leads where it says for a task: no symbolic link on the way, as far as the way exists. What another task
/// makes of it afterwards is not seen.
pub fn is_straight(pid: u32, path: &[u8]) -> bool {
    let Ok(root) = File::open(format!("/proc/{pid}/root")) else { return false };
    let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut way = Path::new(std::ffi::OsStr::from_bytes(path));
    loop {
        match rustix::fs::openat2(&root, way, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags) {
            Ok(_) => return true,
            Err(rustix::io::Errno::NOENT) => match way.parent() {
                Some(parent) => way = parent,
                None => return false,
            },
            Err(_) => return false,
        }
    }
}

/// Whether the host means the same file by this name.
pub fn is_hosts(kernel: &Kernel, path: &[u8], stamp: &FileStamp) -> bool {
    let Ok(file) = open_as(std::process::id(), path) else { return false };
    kernel.probe_file(file.as_fd()).is_ok_and(|host| host.key == stamp.key && host.inode_addr == stamp.inode_addr)
}

/// Waits until what is being done to the entries of the folders on a way is done: the kernel asks its security modules, and
/// makes, renames or removes the entry, under one lock of the folder, which reading the folder takes too (`iterate_dir`
/// and `do_renameat2`, 6.1 to 7.2).
pub fn wait_for_changes(pid: u32, way: &Way) -> io::Result<()> {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let folders: BTreeSet<&Path> = way.names.iter().filter_map(|(path, _)| path.parent()).collect();
    let mut entries = [std::mem::MaybeUninit::<u8>::uninit(); 1 << 10];
    for folder in folders {
        let inside = root.join(folder.strip_prefix("/").unwrap_or(folder));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(inside, flags, Mode::empty())?;
        rustix::fs::RawDir::new(&folder, &mut entries).next().transpose()?;
    }
    Ok(())
}

/// Whose rights a session has.
#[derive(Clone, Debug)]
pub struct Rights {
    /// User.
    pub uid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

impl Rights {
    /// Whether the session could write the file or put another in its place. Root could do so everywhere; for root only
    /// what others may write counts, and docs/coverage.md says so.
    pub fn can_replace(&self, pid: u32, file: BorrowedFd<'_>, path: &[u8]) -> bool {
        let Ok(meta) = file.try_clone_to_owned().map(File::from).and_then(|f| f.metadata()) else { return true };
        if self.can_write(&meta) || rustix::fs::fgetxattr(file, c"system.posix_acl_access", &mut [0_u8; 1024]).is_ok() {
            return true;
        }
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let inside = Path::new(std::ffi::OsStr::from_bytes(path));
        let Ok(inside) = inside.strip_prefix("/") else { return true };
        inside.ancestors().skip(1).any(|folder| {
            let Ok(meta) = std::fs::symlink_metadata(root.join(folder)) else { return true };
            // A sticky folder lets only the owner replace an entry; the file itself was looked at above.
            self.can_write(&meta) && !(meta.mode() & 0o1000 != 0 && folder != inside.parent().unwrap_or(folder))
        })
    }

    /// Whether the session could make a path mean another file, by writing to one of the folders on the way.
    /// An interpreter opens its script again by this path.
    pub fn can_redirect(&self, way: &Way) -> bool {
        way.names.iter().any(|(_, meta)| meta.is_dir() && self.can_write(meta))
    }

    fn can_write(&self, meta: &std::fs::Metadata) -> bool {
        let mode = meta.mode();
        (self.uid != 0 && meta.uid() == self.uid)
            || (mode & 0o020 != 0 && meta.gid() != 0 && self.groups.contains(&meta.gid()))
            || mode & 0o002 != 0
    }
}

/// The names that a path leads through, links followed, in a task's own root.
pub struct Way {
    /// Each folder, link and at last the file, as paths without links, with what lies there.
    pub names: Vec<(PathBuf, std::fs::Metadata)>,
}

impl Way {
    /// Follows a path. Nothing if it leads through descriptors or other things that are no names in a file system, or to
    /// nowhere.
    pub fn of(pid: u32, cwd: &[u8], path: &[u8]) -> Option<Self> {
        const STEPS_MAX: usize = 256;
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let whole = Path::new(std::ffi::OsStr::from_bytes(cwd)).join(std::ffi::OsStr::from_bytes(path));
        let mut left: Vec<PathBuf> = vec![whole];
        let mut at = PathBuf::from("/");
        let mut names = Vec::new();
        let mut steps = 0;
        while let Some(part) = left.pop() {
            for (place, component) in part.components().enumerate() {
                steps += 1;
                match component {
                    std::path::Component::Normal(name) => at.push(name),
                    std::path::Component::ParentDir => drop(at.pop()),
                    std::path::Component::RootDir => at = PathBuf::from("/"),
                    _ => continue,
                }
                let inside = at.strip_prefix("/").unwrap_or(Path::new(""));
                if steps > STEPS_MAX || inside.starts_with("proc") || inside.starts_with("dev") {
                    return None;
                }
                let meta = std::fs::symlink_metadata(root.join(inside)).ok()?;
                let link = meta.is_symlink();
                names.push((at.clone(), meta));
                if link {
                    let target = std::fs::read_link(root.join(inside)).ok()?;
                    at.pop();
                    let rest: PathBuf = part.components().skip(place + 1).collect();
                    left.extend([rest, target]);
                    break;
                }
            }
        }
        Some(Self { names })
    }

    /// Where the path ends, without links.
    pub fn end(&self) -> Option<&Path> {
        self.names.last().map(|(path, _)| path.as_path())
    }
}

/// What a descriptor of a task is connected to.
pub fn stdin_of(tid: u32) -> guard_policy::Stdin {
    use guard_policy::Stdin;
    let Some(link) = crate::kernel::proc::descriptor(tid, 0) else { return Stdin::Other };
    match link.as_slice() {
        b"/dev/null" => Stdin::Null,
        l if l.starts_with(b"/dev/pts/") || l.starts_with(b"/dev/tty") || l == b"/dev/console" => Stdin::Terminal,
        l if l.starts_with(b"pipe:") => Stdin::Pipe,
        l if l.starts_with(b"/") => Stdin::File,
        _ => Stdin::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_of_the_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![7_u8; 300_000]).unwrap();
        let file = File::open(&path).unwrap();
        let expected: [u8; 32] = Sha256::digest(vec![7_u8; 300_000]).into();
        assert_eq!(read_digest(file.as_fd(), 300_000).unwrap(), expected);
        assert!(read_digest(file.as_fd(), 299_999).is_err());
        assert_eq!(head(file.as_fd(), 10).unwrap(), vec![7; 10]);
        assert_eq!(path_of(file.as_fd()), path.as_os_str().as_bytes());
    }

    #[test]
    fn a_flood_of_files_does_not_drive_out_what_is_used() {
        let mut digests = Generations::default();
        let file = |ino| FileStamp { key: FileKey { dev: 1, ino }, ..FileStamp::default() };
        let content = |byte| Content { sha256: [byte; 32], shebang: None, loader: false };
        digests.insert(file(0), content(7));
        for ino in 1..20_000 {
            digests.insert(file(ino), content(0));
            assert_eq!(digests.get(&file(0)).unwrap().sha256, [7; 32]);
        }
        assert!(digests.young.len() + digests.old.len() <= CACHE_MAX);
        assert!(digests.get(&file(1)).is_none());
    }

    #[test]
    fn what_others_may_write_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let nobody = Rights { uid: 65_534, groups: vec![65_534] };
        let pid = std::process::id();
        let judge =
            |path: &Path| nobody.can_replace(pid, File::open(path).unwrap().as_fd(), path.as_os_str().as_bytes());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert!(!judge(&path));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o757)).unwrap();
        assert!(judge(&path));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        assert!(judge(&path));
    }

    #[test]
    fn a_script_behind_a_link_of_the_session_can_be_redirected() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap().as_bytes().to_vec();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::create_dir(dir.path().join("own")).unwrap();
        std::fs::set_permissions(dir.path().join("own"), PermissionsExt::from_mode(0o777)).unwrap();
        symlink("/usr/bin/ldd", dir.path().join("own/link")).unwrap();
        symlink("/usr/bin/ldd", dir.path().join("fixed")).unwrap();
        let nobody = Rights { uid: 65_534, groups: vec![65_534] };
        // The test's folder lies in a sticky /tmp, which others can write to.
        let way = |cwd: &[u8], path: &str| Way::of(std::process::id(), cwd, path.as_bytes());
        let redirect = |path: &str| way(&root, path).is_none_or(|way| nobody.can_redirect(&way));
        assert!(redirect("own/link"));
        assert!(redirect("/dev/fd/3") && redirect("/proc/self/fd/3") && redirect("own/absent"));
        assert!(!nobody.can_redirect(&way(b"/", "usr/bin/../bin/env").unwrap()));
        assert!(!nobody.can_redirect(&way(b"/", "/bin/sh").unwrap()));
        let end = way(&root, "own/link").unwrap();
        assert_eq!(end.end(), Some(Path::new("/usr/bin/ldd")));
        assert!(end.names.iter().any(|(path, _)| path.ends_with("own/link")));
    }

    #[test]
    fn interpreters_stay_in_the_tasks_root() {
        assert!(open_as(std::process::id(), b"bin/sh").is_err());
        assert!(open_as(std::process::id(), b"/dev/null").is_err());
        assert!(open_as(std::process::id(), b"/bin/sh").is_ok());
    }
}
