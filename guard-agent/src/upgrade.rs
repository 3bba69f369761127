//! `guard-agent upgrade`: the running supervisor goes on as the program that now lies at its path; sessions stay.
//!
//! To be called as the new version, which first checks configuration and host: what could not start does not take over.
//! Fails: before the running daemon is asked for anything where possible; afterwards it says what to look at.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::exit::{Code, Failure, failed};
use crate::kernel::spawn;
use crate::{check, lock, supervisor};

/// Time for the new daemon to load its programs and measure them.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks, waits until the new daemon answers, and says so.
pub fn run(path: &Path) -> Result<String, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Err(Failure { code: Code::Denied, text: "upgrade needs root".into() });
    }
    let config = Config::read(path).map_err(failed(Code::Config))?;
    let report = check::run(path)?;
    if !report.good {
        return Err(Failure { code: Code::Config, text: format!("nothing was changed:\n{}", report.text) });
    }
    let absent = || Failure {
        code: Code::Unavailable,
        text: format!("no guard-agent runs with state folder {}", config.node.state_dir.display()),
    };
    let supervisor = lock::holder(&config.node.state_dir).ok_or_else(absent)?;
    let socket =
        || std::fs::metadata(&config.control.socket).map(|m| (m.dev(), m.ino(), m.ctime(), m.ctime_nsec())).ok();
    let before = socket();
    spawn::signal(supervisor, supervisor::UPGRADE_SIGNAL).map_err(failed(Code::Unavailable))?;
    let end = Instant::now() + PATIENCE;
    while socket().is_none_or(|now| Some(now) == before) || !answers(&config) {
        if lock::holder(&config.node.state_dir).is_none() && socket().is_none() && !spawn::exists(supervisor) {
            return Err(Failure { code: Code::Unavailable, text: gone().into() });
        }
        if Instant::now() > end {
            return Err(Failure { code: Code::Unavailable, text: gone().into() });
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(format!("guard-agent {} has taken over (process {supervisor})", env!("CARGO_PKG_VERSION")))
}

fn gone() -> &'static str {
    "the next version does not answer; sessions are denied every exec until a daemon runs: see the unit's log"
}

fn answers(config: &Config) -> bool {
    std::os::unix::net::UnixStream::connect(&config.control.socket).is_ok()
}
