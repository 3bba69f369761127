//! Debian packages of any suite without touching the system: a private apt state per suite, whose source line names the
//! machine's own mirror and whose signatures are checked with Debian's archive keyring.
//!
//! Fails: on a machine without apt or without a Debian mirror it says so; `GUARD_DEBIAN_MIRROR` names one by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::host;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One or several suites seen through a private apt state.
pub struct Suites {
    dir: PathBuf,
}

impl Suites {
    /// Opens the private state for these suites and refreshes its lists when they are older than a day.
    pub fn open(suites: &[&str]) -> Result<Self> {
        host::need("apt-get", "this step fetches Debian packages and needs apt (Debian or a container of it)")?;
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: apt-get install debian-archive-keyring");
        }
        let dir = host::cache()?.join("apt").join(suites.join("+"));
        for sub in ["lists/partial", "cache/archives/partial", "empty"] {
            std::fs::create_dir_all(dir.join(sub))?;
        }
        let mirror = mirror()?;
        let sources: String =
            suites.iter().map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")).collect();
        std::fs::write(dir.join("sources.list"), sources)?;
        let this = Self { dir };
        let stamp = this.dir.join("updated");
        let fresh = std::fs::metadata(&stamp)
            .and_then(|m| m.modified())
            .is_ok_and(|t| t.elapsed().is_ok_and(|age| age.as_secs() < 86_400));
        if !fresh {
            host::say(&format!("package lists of {}", suites.join(", ")));
            host::run_quiet(this.apt("apt-get").args(["-qq", "update"]))?;
            std::fs::write(&stamp, "")?;
        }
        Ok(this)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            "APT::Sandbox::User=root".into(),
            "APT::Install-Recommends=false".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Names of packages that match an apt regular expression.
    pub fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let text = host::output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(text.lines().filter_map(|line| line.split(" - ").next()).map(|name| name.trim().to_owned()).collect())
    }

    /// Versions of a package, newest first as apt prints them.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = host::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(text.lines().filter_map(|line| line.split('|').nth(1)).map(|v| v.trim().to_owned()).collect())
    }

    /// What a package depends on by itself.
    pub fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = host::output(self.apt("apt-cache").args(["depends", "--important", package]))?;
        Ok(text.lines().filter_map(|l| l.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// Downloads one package (`name` or `name=version`) and unpacks it into `into`.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        self.unpack_all(&[package], into)
    }

    /// The same with several packages, and no others.
    pub fn unpack_all(&self, packages: &[&str], into: &Path) -> Result<()> {
        let dir = tempfile::tempdir()?;
        host::run_quiet(self.apt("apt-get").args(["-qq", "download"]).args(packages).current_dir(dir.path()))?;
        for file in std::fs::read_dir(dir.path())? {
            unpack_deb(&file?.path(), into)?;
        }
        Ok(())
    }

    /// Downloads packages with everything they depend on, as if nothing were installed, and unpacks them.
    pub fn unpack_closure(&self, packages: &[&str], into: &Path) -> Result<()> {
        let archives = self.dir.join("cache/archives");
        for old in std::fs::read_dir(&archives)?.flatten() {
            if old.path().extension().is_some_and(|e| e == "deb") {
                std::fs::remove_file(old.path())?;
            }
        }
        let status = self.dir.join("empty/status");
        std::fs::write(&status, "")?;
        host::run_quiet(
            self.apt("apt-get")
                .args(["-qq", "-y", "--download-only", "-o"])
                .arg(format!("Dir::State::status={}", status.display()))
                .arg("install")
                .args(packages),
        )?;
        for file in std::fs::read_dir(&archives)?.flatten() {
            if file.path().extension().is_some_and(|e| e == "deb") {
                unpack_deb(&file.path(), into)?;
            }
        }
        Ok(())
    }

    /// Installs packages on this machine, from `release` where that has them.
    pub fn install(&self, release: &str, packages: &[&str]) -> Result<()> {
        if !host::is_root() {
            bail!("not root: install {} yourself (apt-get install -t {release} …)", packages.join(" "));
        }
        host::say(&format!("installing {}", packages.join(" ")));
        host::run_quiet(self.apt("apt-get").args(["-qq", "-y", "install", "-t", release]).args(packages))
    }
}

/// As `dpkg-deb -x`, but a folder that is a link (`bin` → `usr/bin`) stays one, as when dpkg installs.
fn unpack_deb(file: &Path, into: &Path) -> Result<()> {
    let mut reading = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(file).stdout(Stdio::piped()).spawn()?;
    let stream = reading.stdout.take().context("no output")?;
    let unpacked = host::cmd("tar", ["-x", "-p", "--keep-directory-symlink", "-C"]).arg(into).stdin(stream).status()?;
    if !(unpacked.success() && reading.wait()?.success()) {
        bail!("unpacking {} into {} failed", file.display(), into.display());
    }
    Ok(())
}

/// The Debian mirror that this machine's apt is configured with.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("GUARD_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let text = host::output(&mut host::cmd(
        "apt-get",
        ["indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(SUITE) $(COMPONENT)", "Created-By: Packages"],
    ))?;
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, line))
        })
        .find(|(_, origin, line)| *origin == "Debian" && !line.contains("security"))
        .map(|(uri, _, _)| uri.to_owned())
        .context("apt on this machine knows no Debian mirror (`apt-get update` first?); set GUARD_DEBIAN_MIRROR")
}

/// The suite of this machine, such as `bookworm`.
pub fn host_suite() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let field = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim_matches('"').to_owned());
    if field("ID=").as_deref() != Some("debian") {
        bail!("this step needs Debian (the guest's C library must match the host's); /etc/os-release says otherwise");
    }
    field("VERSION_CODENAME=").context("/etc/os-release has no VERSION_CODENAME")
}
