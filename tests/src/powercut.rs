//! The guest's part of `p1_record_before_run`: says which execs the log holds, then runs governed programs until the host
//! cuts the power.
//!
//! Each program's only act is to write its own unique argument to a port that the host reads. What the host has seen must
//! be in the log after the next boot.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::ctl;
use crate::session::{ALICE, Session};
use crate::wait::seconds;

/// On the data disk, which outlives the power cut.
const STATE: &str = "/var/lib/guard/powercut";
const PORT: &str = "/dev/virtio-ports/guard.marker";
const ECHO: &str = "/usr/bin/echo";
/// Programs that run at the same time.
const AT_ONCE: usize = 3;
/// Boots between two verifications of the whole log.
const VERIFY_EVERY: u64 = 5;

/// One boot: report, then run until the end.
pub fn round() -> Result<bool> {
    let (leaf, boots) = state();
    let size = ctl::shipped()?;
    for record in ctl::records_from(leaf)? {
        report(&record);
    }
    if boots.is_multiple_of(VERIFY_EVERY) {
        println!("verified {}", ctl::verify()?["size"]);
    }
    keep(size, boots + 1)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let token = boot.get(..8).context("no boot id")?;
    let session = Session::start(&ALICE, &["guard-guest-tests", "markers", token])?;
    println!("running {token}");
    session.wait(seconds(300))?;
    Ok(false)
}

fn report(record: &Value) {
    let kind = record["kind"].as_str().unwrap_or_default();
    let argv = &record["body"]["facts"]["argv"];
    if kind == "exec" && argv[0] == ECHO {
        println!("recorded {}", argv[1].as_str().unwrap_or_default());
    }
    let what = record["body"]["what"].as_str().unwrap_or_default();
    // A torn tail is what a power cut leaves; the first connection binds the host to its certificate.
    let expected = matches!((kind, what), ("journal_repair", "torn_tail") | ("admit_finding", "bound"));
    if matches!(kind, "admit_finding" | "gap" | "journal_repair") && !expected {
        println!("finding {record}");
    }
}

fn state() -> (u64, u64) {
    let text = std::fs::read_to_string(STATE).unwrap_or_default();
    let mut words = text.split_whitespace().filter_map(|w| w.parse().ok());
    (words.next().unwrap_or(0), words.next().unwrap_or(0))
}

fn keep(leaf: u64, boots: u64) -> Result<()> {
    let new = format!("{STATE}.new");
    let mut file = File::create(&new)?;
    write!(file, "{leaf} {boots}")?;
    file.sync_all()?;
    Ok(std::fs::rename(new, STATE)?)
}

/// The governed session: starts programs that write their own argument, for ever.
pub fn markers(token: &str) -> Result<()> {
    let port = File::options().write(true).open(PORT).with_context(|| format!("opening {PORT}"))?;
    std::thread::scope(|scope| {
        for thread in 0..AT_ONCE {
            let port = &port;
            scope.spawn(move || {
                for number in 0_u64.. {
                    let Ok(out) = port.try_clone() else { return };
                    let marker = format!("{token}-{thread}-{number}");
                    let _ = Command::new(ECHO).arg(marker).stdin(Stdio::null()).stdout(out).status();
                }
            });
        }
    });
    Ok(())
}
