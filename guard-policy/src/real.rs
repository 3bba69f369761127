//! Program knowledge against the programs themselves, as far as this machine has them.
//!
//! It must not run what policy does not take for harmless. A value that a program does not take hides the word that follows from every
//! rule; a flag called harmless that writes or starts something is a hole. Fails: with each difference.

use std::path::PathBuf;

mod help;
mod trace;

use crate::{Policy, Source};

/// Categories of what only looks at this machine.
const LOOKS: &[&str] = &["fs.read", "fs.list", "host.read", "info", "vcs.read"];

fn developer() -> Policy {
    let text = "version: 1\nextends: developer\n";
    Policy::load(&[Source { name: "test", text }]).unwrap_or_else(|e| panic!("{e}"))
}

/// The program in the system's own folders.
fn installed(name: &str) -> Option<PathBuf> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return None;
    }
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    folders.iter().map(|folder| PathBuf::from(folder).join(name)).find(|path| path.is_file())
}
