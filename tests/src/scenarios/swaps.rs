//! Files that change while a person is being asked: what was shown is what runs, or nothing does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{ALICE, Session, Start};
use crate::wait::{seconds, until};
use crate::{bypass, ctl};

/// How long the person thinks.
const THINKS: Duration = Duration::from_secs(10);

/// What each attack may come to, and then the exec that it attacks: possibilities separated by ` | `.
const WAYS: [(&str, &str, &str); 12] = [
    ("nothing", "done", "ran 42"),
    ("two_mb", "done", "ran 42"),
    ("write", "errno 1", "ran 42"),
    ("write_truncated", "errno 1", "ran 42"),
    ("truncate", "errno 1", "ran 42"),
    // On an overlay the file shows the link's change time late: denied, as a change.
    ("link", "errno 1", "ran 42 | errno 1"),
    ("rename", "done", "ran 42 | errno 1"),
    ("unlink", "done", "ran 42 | errno 1"),
    ("times", "done | errno 1", "ran 42 | errno 1"),
    ("outside_writer", "done", "errno 1 | errno 26"),
    ("early_descriptor", "done", "errno 1 | errno 26"),
    ("early_mapping", "done", "errno 1 | errno 26"),
];

fn waiting(session: &str) -> Result<Vec<Value>> {
    let list = ctl::json("bob", &["review", "list", "--session", session])?;
    let all = list["reviews"].as_array().cloned().unwrap_or_default();
    Ok(all.into_iter().filter(|r| r["state"] == "pending").collect())
}

/// Every way at once: the requests wait together while the attacks go on, then all are approved.
pub fn bypass_file_changed_in_review() -> Result<()> {
    guest::restart_daemon("[hold]\nmax_seconds = 90\nreview_deadline_seconds = 180")?;
    bypass::install()?;
    let dir = guest::fresh_dir("swaps")?;
    let (ran, evil) = (bypass::program("ran"), bypass::program("evil"));
    let start = Start { cwd: &dir, ..ALICE };
    let session = Session::start(&start, &[&bypass::program("swaps"), &ran, &evil])?;
    // Two of them have a writer and are refused without a request.
    let held = WAYS.len() - 2;
    until("all execs are held", seconds(70), || {
        Ok(Some(()).filter(|()| waiting(&session.id).is_ok_and(|w| w.len() >= held)))
    })?;
    let asked = Instant::now();
    std::fs::write(format!("{dir}/go"), "")?;
    let file = format!("{dir}/write");
    let other = Session::start(&start, &[&bypass::program("swaps"), &ran, &evil, "other", &file])?.wait(seconds(40))?;
    // Opened after it was hashed, and open still when it is approved.
    let writer = std::fs::File::options().append(true).open(format!("{dir}/outside_writer"))?;
    std::thread::sleep(THINKS.saturating_sub(asked.elapsed()));
    // The last attack must not come after the exec that it is about.
    for (way, ..) in WAYS {
        session.line(&format!("{way} swap "), seconds(60))?;
    }
    for request in waiting(&session.id)? {
        ctl::approve(&request, &[])?;
    }
    let ended = session.wait(seconds(90))?;
    drop(writer);
    let said = |way: &str, what: &str| {
        let start = format!("{way} {what} ");
        ended.out.lines().find_map(|line| line.strip_prefix(&start)).context(format!("no `{start}`: {ended}"))
    };
    for (way, swap, exec) in WAYS {
        let (swapped, ran) = (said(way, "swap")?, said(way, "exec")?);
        ensure(
            swap.split(" | ").any(|s| s == swapped),
            format!("{way}: the attack gave `{swapped}` instead of `{swap}`"),
        )?;
        ensure(exec.split(" | ").any(|e| e == ran), format!("{way}: the exec gave `{ran}` instead of `{exec}`"))?;
    }
    ensure(other.out.contains("errno 1") && !other.out.contains("done"), format!("a second session wrote: {other}"))?;
    let records = ctl::records(&ended.id)?;
    let writer =
        records.iter().any(|r| r["body"]["reason"].as_str().is_some_and(|why| why.contains("file_has_writer")));
    ensure(writer, "no record says that a file had a writer")?;
    let frozen = ctl::of_kind(&records, "guard_refusal").iter().any(|r| r["body"]["what"] == "frozen_file");
    ensure(frozen, "no record says that a frozen file was to be written")
}
