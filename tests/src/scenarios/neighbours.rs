//! P6: processes outside governed sessions are never held and never wait for user space.

use anyhow::Result;
use rustix::process::Signal;

use crate::ctl;
use crate::guest::{self, ensure};
use crate::neighbour::Neighbour;
use crate::session::{ALICE, Session};
use crate::wait::seconds;

pub fn p6_neighbours() -> Result<()> {
    let dir = guest::fresh_dir("held")?;
    let made = format!("{dir}/made");
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", &made])?;
    ctl::pending(&session.id)?;
    let held = Neighbour::start();
    std::thread::sleep(seconds(2));
    held.unharmed()?;
    // The same programs that the session uses, while nobody answers anything.
    let daemon = guest::daemon()?;
    guest::signal(daemon, Signal::STOP)?;
    let stopped = Neighbour::start();
    std::thread::sleep(seconds(3));
    guest::signal(daemon, Signal::CONT)?;
    stopped.unharmed()?;
    ensure(!std::path::Path::new(&made).exists(), "the held program ran")?;
    drop(session);
    guest::enforcing()
}

/// Prints what the verifier counted for each program; none may be above its limit.
pub fn verifier_budget() -> Result<()> {
    let said = std::process::Command::new("guard-agent").arg("programs").output()?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    print!("{text}");
    let errors = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure(said.status.success() && text.contains("guard_verify"), format!("{text}{errors}"))
}
