//! Embeds the kernel object that `cargo xtask build` has made. Without it the crate still builds, with an empty object:
//! the agent then says so and refuses to run.
use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    // OUT_DIR is <target>/<profile>/build/<crate>/out.
    let target = out.ancestors().nth(4).map(Path::to_path_buf).unwrap_or_default();
    let object = target.join("guard-ebpf/guard.bpf.o");
    println!("cargo:rerun-if-changed={}", object.display());
    let bytes = std::fs::read(&object).unwrap_or_default();
    if let Err(error) = std::fs::write(out.join("guard.bpf.o"), bytes) {
        println!("cargo:warning=embedding the kernel object: {error}");
    }
}
