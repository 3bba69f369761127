//! Builds the kernel programs and the binaries that embed them.
//!
//! Gets bpf-linker and the sources that `-Z build-std` needs: from rustup where it can fetch, else from Debian's package
//! of exactly the compiler's version. Fails: with the missing thing and the way to get it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, bypass, host};

/// Last of the line that uses the compiler's own LLVM.
const BPF_LINKER: &str = "0.10.4";
const BPF_TARGET: &str = "bpfel-unknown-none";
/// Suites that have carried `rust-src` packages of recent compilers.
const RUST_SRC_SUITES: [&str; 3] = ["trixie-backports", "forky", "sid"];

/// What makes cargo lint while it compiles.
const LINTING: [&str; 2] = ["RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"];

/// The binaries that are shipped.
pub const BINARIES: [&str; 3] = ["guard-agent", "guard-collector", "guardctl"];

/// Kernel object first, then the binaries, then what the guest tests run.
pub fn all() -> Result<()> {
    binaries(&[])
}

/// The same with the compiler's full effort, for figures.
pub fn release() -> Result<()> {
    binaries(&["--release"])
}

fn binaries(options: &[&str]) -> Result<()> {
    kernel_object()?;
    bypass::build()?;
    host::say("building the binaries");
    let mut cargo = linting_cargo();
    host::run(cargo.args(selection()).arg("--quiet").args(options))
}

/// The build of the binaries. Whatever else is built with it selects the same packages: cargo unites features over them.
pub fn selection() -> Vec<&'static str> {
    let packages = BINARIES.into_iter().chain(["guard-tests"]).flat_map(|name| ["--package", name]);
    ["build"].into_iter().chain(packages).collect()
}

/// A cargo that is not disturbed by being run from within `cargo run`.
pub fn cargo() -> Command {
    let mut command = linting_cargo();
    for name in LINTING {
        command.env_remove(name);
    }
    command
}

/// The same for this workspace's own crates, which `.ci/run` has linted by the compiler that compiles them. What the kernel's
/// verifier counts and what a fuzzer sees comes from the compiler alone.
pub fn linting_cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(host::root());
    for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "RUSTC_BOOTSTRAP"] {
        command.env_remove(name);
    }
    command
}

/// Where the object goes; `guard-agent/build.rs` embeds it from there.
pub fn object_path() -> PathBuf {
    host::target().join("guard-ebpf/guard.bpf.o")
}

fn kernel_object() -> Result<()> {
    let linker = bpf_linker()?;
    rust_src()?;
    host::say("building the kernel programs");
    let target_dir = host::target().join("guard-ebpf");
    let mut cargo = cargo();
    cargo
        .current_dir(host::root().join("guard-ebpf"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", format!("-C debuginfo=2 -C link-arg=--btf -C linker={}", linker.display()))
        .args(["build", "--quiet", "--release", "--target", BPF_TARGET, "-Z", "build-std=core"])
        .arg("--target-dir")
        .arg(&target_dir);
    host::run(&mut cargo)?;
    let built = target_dir.join(BPF_TARGET).join("release/guard-ebpf");
    let bytes = std::fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    // Rewritten only when it changed, so that guard-agent is not rebuilt for nothing.
    if std::fs::read(object_path()).ok().as_deref() != Some(&bytes) {
        std::fs::write(object_path(), bytes)?;
    }
    Ok(())
}

fn bpf_linker() -> Result<PathBuf> {
    let home = host::cache()?.join(format!("bpf-linker-{BPF_LINKER}"));
    let binary = home.join("bin/bpf-linker");
    if !binary.exists() {
        host::say("installing bpf-linker (a minute)");
        host::run(
            cargo()
                .args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER, "--root"])
                .arg(&home),
        )?;
    }
    Ok(binary)
}

/// Makes sure that the sources of `core` lie where `-Z build-std` looks for them.
fn rust_src() -> Result<()> {
    let sysroot = host::output(&mut host::cmd("rustc", ["--print", "sysroot"]))?;
    let place = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    if place.join("library/core/src/lib.rs").exists() {
        return Ok(());
    }
    if host::has("rustup") && host::run_quiet(&mut host::cmd("rustup", ["component", "add", "rust-src"])).is_ok() {
        return Ok(());
    }
    let version = rustc_version()?;
    let unpacked = host::cache()?.join(format!("rust-src-{version}"));
    host::fill_dir(&unpacked, |dir| rust_src_package(&version, dir))?;
    let source = unpacked.join(format!("usr/src/rustc-{version}"));
    let parent = place.parent().context("sysroot without parent")?;
    std::fs::create_dir_all(parent)?;
    let _ = std::fs::remove_file(&place);
    std::os::unix::fs::symlink(&source, &place)
        .with_context(|| format!("linking {} (not writable? run `rustup component add rust-src`)", place.display()))
}

fn rust_src_package(version: &str, into: &Path) -> Result<()> {
    for suite in RUST_SRC_SUITES {
        let suites = apt::Suites::open(&[suite])?;
        for package in ["rust-src", "rust-web-src"] {
            let found = suites.versions(package).unwrap_or_default();
            if let Some(exact) = found.iter().find(|v| v.starts_with(&format!("{version}+"))) {
                host::say(&format!("sources of core: {package} {exact} from {suite}"));
                return suites.unpack(&format!("{package}={exact}"), into);
            }
        }
    }
    bail!(
        "no source of Rust {version} for build-std: `rustup component add rust-src` failed and no suite of {} has \
         rust-src {version}; install the rust-src component of your toolchain, or use a toolchain that has it",
        RUST_SRC_SUITES.join(", ")
    )
}

fn rustc_version() -> Result<String> {
    let text = host::output(&mut host::cmd("rustc", ["--version"]))?;
    text.split(' ').nth(1).map(str::to_owned).with_context(|| format!("not a rustc version: {text}"))
}
