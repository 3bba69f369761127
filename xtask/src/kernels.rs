//! Debian kernels for the guests: resolved at run time in each series, unpacked and cached with the modules they need.
//!
//! Mirrors drop old versions, so no exact version is named anywhere. Fails: a series that no suite carries is an error
//! that names the suites that were asked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{apt, host};

/// Modules that the guest loads if they are not built in, with their dependencies.
const MODULES: [&str; 9] =
    ["virtio_pci", "virtio_blk", "virtio_console", "ext4", "overlay", "virtio_rng", "btrfs", "fuse", "binfmt_misc"];

/// One kernel series that the tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Series {
    /// How people name it.
    pub name: &'static str,
    suites: &'static [&'static str],
    pattern: &'static str,
}

/// Every series that `cargo xtask test` covers.
pub const SERIES: [Series; 3] = [
    Series {
        name: "6.1",
        suites: &["bookworm", "bookworm-updates"],
        pattern: r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$",
    },
    Series {
        name: "6.12",
        suites: &["bookworm-backports", "trixie"],
        pattern: r"^linux-image-6\.12\.[0-9.]+\+deb[0-9.]+-cloud-amd64$",
    },
    Series {
        name: "7",
        suites: &["trixie-backports", "forky", "sid"],
        pattern: r"^linux-binary-7\.[0-9.]+\+deb[0-9.]+-cloud-amd64$",
    },
];

/// Finds a series by what a person typed: `6.12`, `7`, `7.2`.
pub fn series(name: &str) -> Result<Series> {
    SERIES
        .into_iter()
        .find(|s| s.name == name || (s.name == "7" && name.starts_with("7.")))
        .with_context(|| format!("unknown kernel `{name}`: use 6.1, 6.12 or 7"))
}

/// An unpacked kernel.
pub struct Kernel {
    /// The bootable image.
    pub image: PathBuf,
    /// Folder with `*.ko` and `order`, the load order.
    pub modules: PathBuf,
}

/// Fetches the newest kernel of a series, or takes the cached one.
pub fn get(series: Series) -> Result<Kernel> {
    // With other modules it is another folder.
    let modules = hex::encode(Sha256::digest(MODULES.join(" ")));
    let name = format!("{}-{}", series.name, modules.get(..8).unwrap_or_default());
    let dir = host::cache()?.join("kernels").join(name);
    host::fill_dir(&dir, |dir| fetch(series, dir))?;
    Ok(Kernel { image: dir.join("vmlinuz"), modules: dir.join("modules") })
}

fn fetch(series: Series, dir: &Path) -> Result<()> {
    for suite in series.suites {
        let suites = apt::Suites::open(&[suite])?;
        let mut names = suites.names(series.pattern)?;
        names.sort_by_key(|name| numbers(name));
        // Newest first, older ones when a mirror lists what it no longer has.
        for name in names.iter().rev().take(3) {
            host::say(&format!("kernel {} from {suite}", name));
            let unpacked = tempfile::tempdir()?;
            let mut got = suites.unpack(name, unpacked.path());
            if let Some(modules) = name.strip_prefix("linux-binary-").map(|v| format!("linux-modules-{v}")) {
                got = got.and_then(|()| suites.unpack(&modules, unpacked.path()));
            }
            match got {
                Ok(()) => return arrange(unpacked.path(), dir),
                Err(error) => host::say(&format!("{name}: {error:#}")),
            }
        }
    }
    bail!("no kernel of series {} in the suites {}", series.name, series.suites.join(", "))
}

/// The numbers in a package name, to order versions.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn arrange(unpacked: &Path, dir: &Path) -> Result<()> {
    let files = walk(unpacked)?;
    let image = files
        .iter()
        .find(|f| f.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")))
        .context("the kernel package holds no vmlinuz")?;
    std::fs::copy(image, dir.join("vmlinuz"))?;
    let by_name: HashMap<String, &PathBuf> = files.iter().filter_map(|f| Some((module_name(f)?, f))).collect();
    let modules = dir.join("modules");
    std::fs::create_dir_all(&modules)?;
    let mut order = Vec::new();
    for name in MODULES {
        add_module(name, &by_name, &modules, &mut order)?;
    }
    std::fs::write(modules.join("order"), order.join("\n") + "\n")?;
    Ok(())
}

fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let stem =
        name.strip_suffix(".ko.xz").or_else(|| name.strip_suffix(".ko.zst")).or_else(|| name.strip_suffix(".ko"))?;
    Some(stem.replace('-', "_"))
}

/// Adds a module after what it depends on. One that is not in the package is built in.
fn add_module(name: &str, files: &HashMap<String, &PathBuf>, into: &Path, order: &mut Vec<String>) -> Result<()> {
    let Some(file) = files.get(name) else { return Ok(()) };
    if order.iter().any(|done| done == name) {
        return Ok(());
    }
    let bytes = decompress(file)?;
    for needed in depends(&bytes) {
        add_module(&needed.replace('-', "_"), files, into, order)?;
    }
    std::fs::write(into.join(format!("{name}.ko")), bytes)?;
    order.push(name.to_owned());
    Ok(())
}

fn decompress(file: &Path) -> Result<Vec<u8>> {
    let program = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return Ok(std::fs::read(file)?),
    };
    host::need(program, &format!("apt-get install {program}"))?;
    let out = host::cmd(program, ["-dc"]).arg(file).output()?;
    if !out.status.success() {
        bail!("{program} -dc {} failed", file.display());
    }
    Ok(out.stdout)
}

/// The `depends=` entry of a module's `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|w| w == key) else { return Vec::new() };
    let rest = module.get(at + key.len()..).unwrap_or_default();
    let text = rest.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_sort_last() {
        let mut names = ["linux-image-6.12.107+deb12-cloud", "linux-image-6.12.95+deb12-cloud"];
        names.sort_by_key(|n| numbers(n));
        assert_eq!(names.last(), Some(&"linux-image-6.12.107+deb12-cloud"));
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        assert_eq!(depends(b"x\0license=GPL\0depends=virtio,virtio-ring\0y"), ["virtio", "virtio-ring"]);
        assert!(depends(b"\0depends=\0").is_empty());
    }
}
