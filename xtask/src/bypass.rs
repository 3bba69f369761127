//! The bypass programs of the guest tests: small C programs, one for each technique, compiled by the machine's `cc`.
//!
//! `NAME.c` becomes a static program `NAME`, `NAME.so.c` a shared library, `NAME.m32.c` a 32-bit program without a library.
//! Static, so that the guest's own libraries play no part. Fails: with the compiler's command line.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::host;

const HEADER: &str = "bypass.h";

/// Where the compiled programs lie.
pub fn dir() -> PathBuf {
    host::target().join("bypass")
}

fn sources() -> PathBuf {
    host::root().join("tests/bypass")
}

/// Compiles what has changed.
pub fn build() -> Result<()> {
    host::need("cc", "apt-get install gcc libc6-dev")?;
    std::fs::create_dir_all(dir())?;
    let header = changed(&sources().join(HEADER))?;
    let mut wanted = Vec::new();
    for entry in std::fs::read_dir(sources())? {
        let source = entry?.path();
        let Some(name) = source.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".c")) else {
            continue;
        };
        let name = name.strip_suffix(".m32").unwrap_or(name);
        let program = dir().join(name);
        let newest = changed(&source)?.max(header);
        if !changed(&program).is_ok_and(|built| built > newest) {
            compile(&source, &program)?;
        }
        wanted.push(program);
    }
    // What has no source any more would still be put into guests.
    for entry in std::fs::read_dir(dir())? {
        let path = entry?.path();
        if !wanted.contains(&path) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn changed(path: &Path) -> Result<SystemTime> {
    let when = path.metadata().and_then(|m| m.modified());
    when.with_context(|| format!("{}", path.display()))
}

fn compile(source: &Path, program: &Path) -> Result<()> {
    let mut cc = host::cmd("cc", ["-std=gnu11", "-O1", "-s", "-Wall", "-Wextra", "-Werror"]);
    let name = source.to_string_lossy();
    if name.ends_with(".so.c") {
        cc.args(["-shared", "-fPIC"]);
    } else if name.ends_with(".m32.c") {
        cc.args(["-m32", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-fno-stack-protector"]);
    } else {
        cc.args(["-static", "-pthread"]);
    }
    host::run(cc.arg("-o").arg(program).arg(source))
}
