//! The few cgroup v2 files that sessions need.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Id and depth of a cgroup folder, as the kernel programs see them.
pub fn identity(dir: &Path) -> io::Result<(u64, u32)> {
    let mount = mount_of(dir)?;
    let below = dir.strip_prefix(&mount).map_err(io::Error::other)?;
    let level = u32::try_from(below.components().count()).map_err(io::Error::other)?;
    Ok((std::fs::metadata(dir)?.ino(), level))
}

/// The cgroup v2 mount that a folder lies on.
fn mount_of(dir: &Path) -> io::Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    text.lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 ")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|point| dir.starts_with(point))
        .max_by_key(|point| point.components().count())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "{} does not lie on a cgroup v2 mount (mount -t cgroup2 cgroup2 /sys/fs/cgroup)",
                    dir.display()
                ),
            )
        })
}

/// Turns a controller on for the folders directly below `dir`; if need be, in the folder above first.
pub fn enable(dir: &Path, controller: &str) -> io::Result<()> {
    let has = |dir: &Path, file: &str| {
        std::fs::read_to_string(dir.join(file)).is_ok_and(|text| text.split_whitespace().any(|c| c == controller))
    };
    let on = |dir: &Path| {
        let file = dir.join("cgroup.subtree_control");
        std::fs::write(&file, format!("+{controller}"))
            .map_err(|e| io::Error::new(e.kind(), format!("writing +{controller} to {}: {e}", file.display())))
    };
    if has(dir, "cgroup.subtree_control") {
        return Ok(());
    }
    if !has(dir, "cgroup.controllers") {
        let above = dir.parent().ok_or(io::ErrorKind::NotFound)?;
        on(above)?;
    }
    on(dir)
}

/// A session's cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// Its folder.
    pub dir: PathBuf,
    /// Its id.
    pub id: u64,
}

impl Cgroup {
    /// Makes a new one.
    pub fn create(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir(&dir)?;
        let id = std::fs::metadata(&dir)?.ino();
        Ok(Self { dir, id })
    }

    /// One that exists.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        let id = std::fs::metadata(&dir)?.ino();
        Ok(Self { dir, id })
    }

    /// Limits the tasks in it and below.
    pub fn limit_tasks(&self, most: u64) -> io::Result<()> {
        std::fs::write(self.dir.join("pids.max"), most.to_string())
    }

    /// Processes in it (not in cgroups below).
    pub fn processes(&self) -> usize {
        std::fs::read_to_string(self.dir.join("cgroup.procs")).map_or(0, |text| text.lines().count())
    }

    /// Their numbers.
    pub fn pids(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Whether any process lives in it or below.
    pub fn populated(&self) -> bool {
        std::fs::read_to_string(self.dir.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Makes every process in it and below stand still. Killing ends them none the less.
    pub fn freeze(&self) -> io::Result<()> {
        std::fs::write(self.dir.join("cgroup.freeze"), "1")
    }

    /// Whether it was told to stand still.
    pub fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.dir.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Kills every process in it and below, and waits until they are gone.
    pub fn kill(&self, patience: Duration) -> io::Result<()> {
        std::fs::write(self.dir.join("cgroup.kill"), "1")?;
        let end = Instant::now() + patience;
        while self.populated() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Removes it with what lies below.
    pub fn remove(&self) -> io::Result<()> {
        remove_below(&self.dir)
    }
}

fn remove_below(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    std::fs::remove_dir(dir)
}
