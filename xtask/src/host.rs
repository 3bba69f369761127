//! The machine that xtask runs on: paths, child processes, what is installed.
//!
//! Fails: every failed child is reported with its command line; a missing program with the way to get it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's root.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where build results go, as cargo itself decides.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Folder for everything that is downloaded or made once per machine.
pub fn cache() -> Result<PathBuf> {
    let dir = match std::env::var_os("GUARD_CACHE") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = std::env::var_os("HOME").context("HOME is not set: set it, or GUARD_CACHE to a folder")?;
            Path::new(&home).join(".cache/guard")
        }
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("creating the cache folder {}", dir.display()))?;
    Ok(dir)
}

/// Prints one progress line.
pub fn say(what: &str) {
    eprintln!("xtask: {what}");
}

fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a child to its end with its output shown; an error names its command line.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a child whose output matters only when it fails.
pub fn run_quiet(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

/// Runs a child and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("starting `{}`", line(command)))?;
    if !out.status.success() {
        bail!(
            "`{}` failed: {}\n{}{}",
            line(command),
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Whether a program is on the PATH.
pub fn has(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Refuses with a clear message when a program is missing.
pub fn need(program: &str, how: &str) -> Result<()> {
    if has(program) { Ok(()) } else { bail!("`{program}` is not installed: {how}") }
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments, touches no memory and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Takes back what a caller such as `nohup` or a shell's `&` had this process ignore: children would inherit it, and tests of
/// terminals and signals mean nothing then.
pub fn default_signals() {
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU]
    {
        // SAFETY: constants only; no handler is installed, so none can be called.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// A command with arguments, shorter to read.
pub fn cmd<I, S>(program: &str, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Makes a folder appear whole or not at all: filled under another name, then renamed.
pub fn fill_dir(dir: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let parent = dir.parent().context("a folder without parent")?;
    std::fs::create_dir_all(parent)?;
    let temporary = tempfile::Builder::new().prefix(".making-").tempdir_in(parent)?;
    fill(temporary.path())?;
    let kept = temporary.keep();
    match std::fs::rename(&kept, dir) {
        Ok(()) => Ok(()),
        // Another process was faster: its result is as good.
        Err(_) if dir.exists() => Ok(std::fs::remove_dir_all(&kept)?),
        Err(error) => Err(error).with_context(|| format!("renaming to {}", dir.display())),
    }
}
