//! From paths as people write them to places as the kernel programs know them: links followed name by name, mounts
//! undone, and everything that leads there marked as holding.
//!
//! It must not open what it looks at. Bounded in links, names and places; what is beyond is an error, never left out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guard_common::FileKey;
use guard_common::path::{ANY, PLACES_MAX, PathKey, PathRule, ROOT, Reader, bits, hash_of_name, join};

use super::Rule;
use crate::kernel::proc;

/// Links that are followed in one path.
const LINKS_MAX: usize = 40;
/// Names that one `*` may stand for.
const GLOB_MAX: usize = 1000;
/// Other names of protected files, and readers, that the kernel's maps take.
const FILES_MAX: usize = 16_000;
const PASSWD_MAX: u64 = 4 << 20;

/// A mount: where, of which file system, from which of its folders on.
struct Mount {
    point: Vec<u8>,
    root: Vec<u8>,
    dev: u64,
}

/// The mounts of one namespace.
#[derive(Default)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Those that a process sees.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self(mounts(&std::fs::read(format!("/proc/{pid}/mountinfo"))?)))
    }

    /// Where a path without links lies in its file system, by the mount that covers it.
    pub fn place(&self, path: &Path) -> Option<PathKey> {
        let path = path.as_os_str().as_bytes();
        let mount = self.0.iter().filter(|m| below(path, &m.point).is_some()).max_by_key(|m| m.point.len())?;
        let rest = below(path, &mount.point)?;
        let names = mount.root.split(|b| *b == b'/').chain(rest.split(|b| *b == b'/')).filter(|n| !n.is_empty());
        let hash = names.fold(ROOT, |hash, name| join(hash, hash_of_name(name)));
        Some(PathKey { dev: mount.dev, hash })
    }
}

/// Everything that is protected, as the kernel's maps hold it.
#[derive(Default)]
pub struct Places {
    /// By place.
    pub paths: HashMap<PathKey, PathRule>,
    /// By file, where a protected file has more names.
    pub inodes: HashMap<FileKey, PathRule>,
    /// Programs that may read.
    pub readers: HashSet<Reader>,
    /// Rule and path of each place, for people.
    pub told: HashMap<PathKey, (String, Vec<u8>)>,
    /// The same by file.
    pub named_files: HashMap<FileKey, (String, Vec<u8>)>,
    mounts: Mounts,
}

impl Places {
    /// Looks where everything is now.
    pub fn of(rules: &[Rule], homes: &BTreeSet<Vec<u8>>) -> io::Result<Self> {
        let mut places = Self { mounts: Mounts::of(std::process::id())?, ..Self::default() };
        for rule in rules {
            places.add(rule, homes);
        }
        let devices: HashSet<u64> = places.paths.keys().map(|k| k.dev).collect();
        for dev in devices {
            places.paths.insert(PathKey { dev, hash: ANY }, PathRule::default());
        }
        let most = places.inodes.len().max(places.readers.len());
        if places.paths.len() > PLACES_MAX || most > FILES_MAX {
            let text = format!("{} places and {most} files are more than the kernel's maps take", places.paths.len());
            return Err(io::Error::other(text));
        }
        Ok(places)
    }

    /// Whether the kernel would be told nothing new.
    pub fn same(&self, other: &Self) -> bool {
        self.paths == other.paths && self.inodes == other.inodes && self.readers == other.readers
    }

    fn add(&mut self, rule: &Rule, homes: &BTreeSet<Vec<u8>>) {
        let root = BTreeSet::from([b"/".to_vec()]);
        for pattern in &rule.patterns {
            for base in if pattern.home { homes } else { &root } {
                let mut path = PathBuf::from(OsStr::from_bytes(base));
                let Some((last, before)) = pattern.names.split_last() else {
                    self.protect(rule, &path, pattern.tree);
                    continue;
                };
                path.extend(before);
                for name in names(&path, last) {
                    self.protect(rule, &path.join(name), pattern.tree);
                }
            }
        }
        for reader in &rule.readers {
            self.reader(rule, reader);
        }
    }

    /// Follows a path as the kernel would, and marks each name on the way.
    fn protect(&mut self, rule: &Rule, path: &Path, tree: bool) {
        let split = |p: &Path| -> Vec<Vec<u8>> {
            p.as_os_str().as_bytes().split(|b| *b == b'/').filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()
        };
        let mut rest: Vec<Vec<u8>> = split(path);
        rest.reverse();
        let mut at = PathBuf::from("/");
        let mut links = 0;
        if rest.is_empty() {
            self.mark(rule, &at, last_bits(rule, tree));
        }
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let here = at.join(OsStr::from_bytes(&name));
            let last = rest.is_empty();
            let link = std::fs::read_link(&here).ok();
            self.mark(rule, &here, if last { last_bits(rule, tree) } else { bits::HOLDS });
            let Some(target) = link else {
                if last {
                    self.other_names(rule, &here, tree);
                }
                at = here;
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                tracing::warn!(path = %path.display(), rule = rule.name, "too many links; protected up to there");
                return;
            }
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            rest.extend(split(&target).into_iter().rev());
        }
    }

    fn mark(&mut self, rule: &Rule, path: &Path, what: u32) {
        let Some(key) = self.place(path) else { return };
        if key.hash == ROOT && what == bits::HOLDS {
            return;
        }
        let entry = self.paths.entry(key).or_default();
        let only_held = entry.bits & !bits::HOLDS == 0;
        entry.bits |= what;
        if what & bits::EXACT_READ != 0 && entry.exact_rule == 0 {
            entry.exact_rule = rule.number;
        }
        if what & bits::TREE_READ != 0 && entry.tree_rule == 0 {
            entry.tree_rule = rule.number;
        }
        let told = (rule.name.clone(), path.as_os_str().as_bytes().to_vec());
        // Whoever protects the name itself is named rather than who needs it to stay.
        if only_held && what != bits::HOLDS {
            self.told.insert(key, told);
        } else {
            self.told.entry(key).or_insert(told);
        }
    }

    /// A file that has other names could be changed through them.
    fn other_names(&mut self, rule: &Rule, path: &Path, tree: bool) {
        let Ok(found) = std::fs::symlink_metadata(path) else { return };
        if tree || !found.is_file() || found.nlink() < 2 {
            return;
        }
        let Some(key) = self.place(path) else { return };
        let file = FileKey { dev: key.dev, ino: found.ino() };
        let entry = self.inodes.entry(file).or_default();
        entry.bits |= last_bits(rule, false);
        if rule.read && entry.exact_rule == 0 {
            entry.exact_rule = rule.number;
        }
        let told = (rule.name.clone(), path.as_os_str().as_bytes().to_vec());
        self.named_files.entry(file).or_insert(told);
    }

    /// A program that may read, and that must then stay what it is.
    fn reader(&mut self, rule: &Rule, program: &Path) {
        let Ok(real) = std::fs::canonicalize(program) else { return };
        let (Some(key), Ok(found)) = (self.place(&real), std::fs::metadata(&real)) else { return };
        self.readers.insert(Reader { rule: rule.number, program: FileKey { dev: key.dev, ino: found.ino() } });
        let mut fixed = rule.clone();
        fixed.read = false;
        self.protect(&fixed, program, false);
    }

    fn place(&self, path: &Path) -> Option<PathKey> {
        self.mounts.place(path)
    }
}

fn last_bits(rule: &Rule, tree: bool) -> u32 {
    match (tree, rule.read) {
        (false, false) => bits::EXACT_WRITE,
        (false, true) => bits::EXACT_WRITE | bits::EXACT_READ,
        (true, false) => bits::TREE_WRITE,
        (true, true) => bits::TREE_WRITE | bits::TREE_READ,
    }
}

/// What a path has below a mount point.
fn below<'a>(path: &'a [u8], point: &[u8]) -> Option<&'a [u8]> {
    if point == b"/" {
        return Some(path);
    }
    let rest = path.strip_prefix(point)?;
    if rest.is_empty() || rest.first() == Some(&b'/') { Some(rest) } else { None }
}

/// The names that a last name stands for. Public halves of keys are nobody's secret.
fn names(folder: &Path, last: &str) -> Vec<std::ffi::OsString> {
    let Some((before, after)) = last.split_once('*') else { return vec![last.into()] };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .map(|e| e.file_name())
        .filter(|name| {
            let name = name.as_bytes();
            let fits = name.len() >= before.len() + after.len();
            fits && name.starts_with(before.as_bytes()) && name.ends_with(after.as_bytes()) && !name.ends_with(b".pub")
        })
        .take(GLOB_MAX)
        .collect()
}

/// Lines of mountinfo: number, parent, device, root, point, …. Of mounts on one point the last one counts.
fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|b| *b == b' ').skip(2);
            let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
            let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
            let dev = major.parse::<u64>().ok()? << 20 | minor.parse::<u64>().ok()?;
            Some(Mount { point: proc::unescape(point), root: proc::unescape(root), dev })
        })
        .collect()
}

/// Homes of users who have a shell.
pub fn homes(passwd: &Path) -> BTreeSet<Vec<u8>> {
    let text = crate::files::read_bounded(passwd, PASSWD_MAX).unwrap_or_default();
    text.split(|b| *b == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b':').collect();
            let (home, shell) = (*fields.get(5)?, *fields.get(6)?);
            let idle = [&b"nologin"[..], b"false", b"sync", b"halt", b"shutdown"].iter().any(|s| shell.ends_with(s));
            let real = home.first() == Some(&b'/') && home != b"/" && Path::new(OsStr::from_bytes(home)).is_dir();
            (!idle && real).then(|| home.to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(paths: &[&str], read: bool) -> Rule {
        Rule::new("r", paths, read, &[]).unwrap()
    }

    fn key(dev: u64, path: &str) -> PathKey {
        let names = path.split('/').filter(|n| !n.is_empty());
        PathKey { dev, hash: names.fold(ROOT, |h, n| join(h, hash_of_name(n.as_bytes()))) }
    }

    #[test]
    fn a_bind_mount_leads_to_the_same_place() {
        let text = b"1 0 8:1 / / rw - ext4 x rw\n2 1 0:33 /@home /home rw - btrfs x rw\n3 1 8:1 /srv/a\\040b /mnt rw - ext4 x rw\n";
        let places = Places { mounts: Mounts(mounts(text)), ..Places::default() };
        assert_eq!(places.place(Path::new("/home/x")), Some(key(33, "/@home/x")));
        assert_eq!(places.place(Path::new("/homes/x")), Some(key(8 << 20 | 1, "/homes/x")));
        assert_eq!(places.place(Path::new("/mnt/c")), places.place(Path::new("/srv/a b/c")));
    }

    #[test]
    fn links_are_protected_and_what_they_lead_to_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(dir.join("dot/files")).unwrap();
        std::os::unix::fs::symlink("dot/files/rc", dir.join(".rc")).unwrap();
        std::fs::write(dir.join("dot/files/rc"), "").unwrap();
        let path = dir.join(".rc").display().to_string();
        let places = Places::of(&[rule(&[&path], false)], &BTreeSet::new()).unwrap();
        let bits = |p: &str| places.place(&dir.join(p)).and_then(|k| places.paths.get(&k)).map_or(0, |r| r.bits);
        assert_eq!(bits(".rc"), bits::EXACT_WRITE);
        assert_eq!(bits("dot/files/rc"), bits::EXACT_WRITE);
        assert_eq!((bits("dot"), bits("dot/files")), (bits::HOLDS, bits::HOLDS));
    }

    #[test]
    fn globs_names_to_come_and_other_names() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for name in ["id_a", "id_a.pub", "other"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        std::fs::hard_link(dir.join("id_a"), dir.join("copy")).unwrap();
        let (glob, absent) = (format!("{}/id_*", dir.display()), format!("{}/not/there/**", dir.display()));
        let places = Places::of(&[rule(&[&glob, &absent], true)], &BTreeSet::new()).unwrap();
        let bits = |p: &str| places.place(&dir.join(p)).and_then(|k| places.paths.get(&k)).map_or(0, |r| r.bits);
        assert_eq!(bits("id_a"), bits::EXACT_WRITE | bits::EXACT_READ);
        assert_eq!((bits("id_a.pub"), bits("other")), (0, 0));
        assert_eq!((bits("not"), bits("not/there")), (bits::HOLDS, bits::TREE_WRITE | bits::TREE_READ));
        assert_eq!(places.inodes.len(), 1);
    }
}
