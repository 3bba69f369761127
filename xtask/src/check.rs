//! The checks that need no test run: format, lints, dependency rules.

use anyhow::Result;

use crate::{build, features, host, rooms};

/// Runs all of them, or all but the lints: where the compiler itself lints, nothing has to be compiled for them alone.
pub fn all(lints: bool) -> Result<()> {
    host::say("check: format");
    host::run(build::cargo().args(["fmt", "--all", "--check"]))?;
    host::say("check: dependency rules");
    rooms::check()?;
    features::check()?;
    if host::has("cargo-deny") {
        // Licences, versions and sources as deny.toml says; the rules of our own crates are checked above in any case.
        host::run(build::cargo().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))?;
    }
    if !lints {
        return Ok(());
    }
    host::say("check: clippy");
    host::run(build::cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}
