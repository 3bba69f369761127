//! Programs in Go that hold a log of Guard's to what others say of the format: Tessera's `fsck`, and `xtask/outsider`.
//!
//! Compiler and libraries are Debian's packages, unpacked into the cache, never installed; of what Tessera's package depends on
//! (258 packages) only what `fsck` imports. Nothing is fetched by Go itself. Fails: where Debian's packages have changed, with
//! the import that is missing, which names the package to add.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::SUITE;
use crate::{apt, host};

/// Where Debian's packages put the sources of Go libraries.
const SOURCES: &str = "usr/share/gocode";
const FSCK: &str = "github.com/transparency-dev/tessera/cmd/fsck";
/// The libraries that `fsck` and `outsider` import, directly or not; each is `golang-NAME-dev`.
const LIBRARIES: [&str; 27] = [
    "github-aymanbagabas-go-osc52-v2",
    "github-cespare-xxhash-v2",
    "github-charmbracelet-bubbletea",
    "github-charmbracelet-colorprofile",
    "github-charmbracelet-lipgloss",
    "github-charmbracelet-x",
    "github-clipperhouse-uax29",
    "github-dustin-go-humanize",
    "github-go-logr-logr",
    "github-go-logr-stdr",
    "github-lucasb-eyer-go-colorful",
    "github-mattn-go-isatty",
    "github-mattn-go-runewidth",
    "github-muesli-ansi",
    "github-muesli-cancelreader",
    "github-muesli-termenv",
    "github-rivo-uniseg",
    "github-robinus2-golang-moving-average",
    "github-transparency-dev-formats",
    "github-transparency-dev-merkle",
    "github-transparency-dev-tessera",
    "github-xo-terminfo",
    "golang-x-mod",
    "golang-x-sync",
    "golang-x-sys",
    "golang-x-time",
    "opentelemetry-otel",
];
/// The one whose name does not follow from its import.
const KLOG: &str = "golang-k8s-klog-dev";

/// The programs, built.
pub struct Programs {
    /// Tessera's.
    pub fsck: PathBuf,
    /// Ours, over `x/mod`.
    pub outsider: PathBuf,
}

impl Programs {
    /// Builds what is not built yet.
    pub fn get() -> Result<Self> {
        let root = host::cache()?.join("interop/go");
        host::fill_dir(&root, unpack)?;
        if !root.join("fsck").exists() {
            build(&root, FSCK, "fsck")?;
        }
        // Ours may have changed since.
        let source = host::root().join("xtask/outsider/main.go");
        build(&root, &source.display().to_string(), "outsider")?;
        Ok(Self { fsck: root.join("fsck"), outsider: root.join("outsider") })
    }
}

fn unpack(into: &Path) -> Result<()> {
    let suites = apt::Suites::open(&[SUITE])?;
    let compiler = suites.depends("golang-go")?.into_iter().find(|name| name.ends_with("-go"));
    let compiler = compiler.context("golang-go depends on no compiler")?;
    let standard = format!("{}-src", compiler.trim_end_matches("-go"));
    let mut names = vec![compiler, standard, KLOG.to_owned()];
    names.extend(LIBRARIES.iter().map(|name| format!("golang-{name}-dev")));
    host::say(&format!("Go and {} libraries of {SUITE}", LIBRARIES.len() + 1));
    suites.unpack_all(&names.iter().map(String::as_str).collect::<Vec<_>>(), into)
}

fn build(root: &Path, package: &str, program: &str) -> Result<()> {
    let compilers = std::fs::read_dir(root.join("usr/lib"))?.flatten().map(|entry| entry.path());
    let compiler =
        compilers.into_iter().find(|path| path.join("bin/go").is_file()).context("no compiler was unpacked")?;
    let mut go = Command::new(compiler.join("bin/go"));
    go.args(["build", "-o"]).arg(root.join(program)).arg(package).current_dir(root);
    go.env_clear().env("PATH", "/usr/bin:/bin").env("GOROOT", &compiler).env("GOPATH", root.join(SOURCES));
    go.env("GOCACHE", root.join("built")).env("HOME", root);
    go.env("GO111MODULE", "off").env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    host::run_quiet(&mut go).with_context(|| format!("building {program} with Debian's packages of {SUITE}"))
}
