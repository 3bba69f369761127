//! The checks that need no test run: format, lints, dependency rules.

use anyhow::Result;

use crate::{build, host};

/// Runs all of them.
pub fn all() -> Result<()> {
    host::say("format");
    host::run(build::cargo().args(["fmt", "--all", "--check"]))?;
    host::say("clippy");
    host::run(build::cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    if host::has("cargo-deny") {
        host::say("dependency rules");
        host::run(build::cargo().args(["deny", "--offline", "check", "bans", "sources"]))?;
    } else {
        host::say("dependency rules: not checked, cargo-deny is not installed (cargo install cargo-deny)");
    }
    Ok(())
}
