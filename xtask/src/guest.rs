//! What a guest consists of: initramfs, root image from distribution packages, and the payload of one boot.
//!
//! The root image is made once and cached; boots never write to it. It must not hold anything of Guard's: that is the
//! payload, so that a new build never needs a new root. Fails: with the step that failed.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::{apt, host, kernels};

/// Programs of the guest, as real agent sessions use them.
const PACKAGES: [&str; 40] = [
    "base-files",
    "base-passwd",
    "bash",
    "bsdutils",
    "bubblewrap",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "e2fsprogs",
    "file",
    "findutils",
    "gawk",
    "git",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "jq",
    "kmod",
    "less",
    "libc-bin",
    "login",
    "make",
    "mount",
    "nftables",
    "nodejs",
    "passwd",
    "patch",
    "perl-base",
    "procps",
    "python3",
    "sed",
    "strace",
    "sudo",
    "systemd",
    "tar",
    "tmux",
    "tree",
    "util-linux",
];

/// What `cargo xtask bench` measures beside Guard; only its guest has them.
pub const PEERS: [&str; 2] = ["auditd", "fapolicyd"];

/// Runs in the initramfs: modules, root disk, hand-over.
const INIT: &str = include_str!("../../deploy/vm/initramfs-init.sh");

/// Makes the initramfs for a kernel: busybox, its modules and the first script.
pub fn initramfs(kernel: &kernels::Kernel, into: &Path) -> Result<()> {
    let mut archive = Archive::new(std::io::BufWriter::new(std::fs::File::create(into)?));
    for dir in ["bin", "dev", "proc", "sys", "newroot", "modules"] {
        archive.dir(dir)?;
    }
    archive.file("bin/busybox", 0o755, &std::fs::read(busybox()?)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    for entry in std::fs::read_dir(&kernel.modules)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), 0o644, &std::fs::read(entry.path())?)?;
    }
    archive.finish()?;
    Ok(())
}

fn busybox() -> Result<PathBuf> {
    let dir = host::cache()?.join("busybox");
    host::fill_dir(&dir, |dir| apt::Suites::open(&[&apt::host_suite()?])?.unpack("busybox-static", dir))?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|p| dir.join(p))
        .find(|p| p.exists())
        .context("the package busybox-static holds no busybox")
}

/// The cached root image: an ext4 file system made from distribution packages.
pub fn root_image(more: &[&str]) -> Result<PathBuf> {
    let suite = apt::host_suite()?;
    let packages: Vec<&str> = PACKAGES.iter().chain(more).copied().collect();
    let mut hash = Sha256::new();
    hash.update(packages.join(" "));
    hash.update("usr merged");
    hash.update(include_str!("guest.rs"));
    let id = hex::encode(hash.finalize());
    let image = host::cache()?.join(format!("root-{suite}-{}.ext4", id.get(..12).unwrap_or(&id)));
    if image.exists() {
        return Ok(image);
    }
    if !host::is_root() {
        bail!("the guest's root image is made from packages with their owners and modes: run this once as root");
    }
    host::say("guest root from distribution packages (a minute)");
    let dir = tempfile::tempdir_in(host::cache()?)?;
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root)?;
    merge_usr(&root)?;
    apt::Suites::open(&[&suite])?.unpack_closure(&packages, &root)?;
    finish_root(&root)?;
    make_image(&root, &image)?;
    Ok(image)
}

/// `/bin` and friends are links before anything is unpacked, as in an installed system.
fn merge_usr(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(root.join("usr").join(name))?;
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    Ok(())
}

/// What the packages' own install scripts would have done.
fn finish_root(root: &Path) -> Result<()> {
    for dir in
        ["proc", "sys", "dev", "run", "tmp", "mnt/payload", "mnt/copy", "var/lib/guard", "etc/guard", "home", "root"]
    {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for (link, to) in [("usr/bin/awk", "gawk"), ("usr/bin/which", "which.debianutils"), ("etc/mtab", "/proc/mounts")] {
        let link = root.join(link);
        if !link.exists() {
            let _ = symlink(to, link);
        }
    }
    let people = [("alice", 1000), ("bob", 1001), ("agent", 1002)];
    let mut passwd =
        String::from("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n");
    let mut group = String::from("root:x:0:\ntty:x:5:\nsudo:x:27:\nguard:x:900:alice,bob\nnogroup:x:65534:\n");
    for (name, id) in people {
        passwd += &format!("{name}:x:{id}:{id}:{name}:/home/{name}:/bin/bash\n");
        group += &format!("{name}:x:{id}:\n");
        let home = root.join("home").join(name);
        std::fs::create_dir_all(&home)?;
        std::os::unix::fs::chown(&home, Some(id), Some(id))?;
    }
    std::fs::write(root.join("etc/passwd"), passwd)?;
    std::fs::write(root.join("etc/group"), group)?;
    let shadow = root.join("etc/shadow");
    let locked = ["root", "alice", "bob", "agent"].map(|name| format!("{name}:*:19000:0:99999:7:::\n"));
    std::fs::write(&shadow, locked.concat())?;
    for service in ["auth", "account", "session", "password"] {
        let file = root.join(format!("etc/pam.d/common-{service}"));
        std::fs::write(file, format!("{service} required pam_unix.so\n"))?;
    }
    std::fs::set_permissions(&shadow, PermissionsExt::from_mode(0o640))?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost guest\n::1 localhost\n")?;
    std::fs::write(root.join("etc/hostname"), "guest\n")?;
    std::fs::write(root.join("etc/nsswitch.conf"), "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")?;
    std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    host::run_quiet(host::cmd("ldconfig", ["-r"]).arg(root))
}

/// Makes an ext4 image that holds a folder, with room to spare.
pub fn make_image(dir: &Path, image: &Path) -> Result<()> {
    host::need("mke2fs", "apt-get install e2fsprogs")?;
    let used = host::output(host::cmd("du", ["-sxm"]).arg(dir))?;
    let used: u64 = used.split_whitespace().next().and_then(|n| n.parse().ok()).context("du printed no number")?;
    let making = image.with_extension("making");
    let _ = std::fs::remove_file(&making);
    host::run_quiet(
        host::cmd("mke2fs", ["-q", "-F", "-t", "ext4", "-m", "0", "-d"])
            .arg(dir)
            .arg(&making)
            .arg(format!("{}M", used * 5 / 4 + 96)),
    )?;
    std::fs::rename(&making, image)?;
    Ok(())
}

/// Makes an empty ext4 image.
pub fn empty_image(image: &Path, mib: u64) -> Result<()> {
    let _ = std::fs::remove_file(image);
    host::run_quiet(host::cmd("mke2fs", ["-q", "-F", "-t", "ext4", "-m", "0"]).arg(image).arg(format!("{mib}M")))
}
