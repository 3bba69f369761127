//! Floods of one session: nothing of another is lost or stands still, everything of the own is counted.

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{ALICE, Ended, Session};
use crate::wait::{seconds, until_true};
use crate::{attacks, ctl};

/// Execs of the session that does nothing bad, during each flood.
const CALM: &str = "12";
/// Longest time for one of them while another session floods, in ms. Two emulated processors, a debug build.
const SLOWEST_MS: u64 = 5_000;

/// What one flood came to.
struct Flood {
    made: u64,
    out: String,
    records: Vec<Value>,
}

/// One session floods while another does a few ordinary execs, all of which must run and be recorded.
fn flood(args: &[&str]) -> Result<Flood> {
    let wild = Session::attack(&ALICE, "flood.py", args)?;
    wild.line("flooding", seconds(30))?;
    let calm = Session::attack(&ALICE, "flood.py", &["calm", CALM])?.wait(seconds(60))?;
    let wild = wild.wait(seconds(60))?;
    unharmed(&calm).with_context(|| format!("beside a flood of {args:?}"))?;
    ensure(!wild.out.contains("strange"), &wild)?;
    let number = |start: &str| wild.out.lines().find_map(|l| l.strip_prefix(start)?.trim().parse().ok());
    let made = number("made ").with_context(|| wild.to_string())?;
    let records = ctl::records(&wild.id)?;
    eprintln!("{args:?}: {made} made, {} records, {} MiB resident", records.len(), resident_mib()?);
    Ok(Flood { made, out: wild.out, records })
}

fn unharmed(calm: &Ended) -> Result<()> {
    let lines: Vec<Vec<&str>> = calm.out.lines().map(|l| l.split(' ').collect()).collect();
    let ran = lines.iter().filter(|l| l.get(1) == Some(&"0")).count();
    let slowest = lines.iter().filter_map(|l| l.get(2)?.parse::<u64>().ok()).max().unwrap_or(u64::MAX);
    ensure(ran.to_string() == CALM, format!("{ran} of {CALM} execs ran: {calm}"))?;
    ensure(slowest <= SLOWEST_MS, format!("one exec took {slowest} ms"))?;
    eprintln!("calm: slowest {slowest} ms");
    let records = ctl::records(&calm.id)?;
    let recorded = ctl::execs_of(&records, "/usr/bin/cat").len();
    ensure(recorded.to_string() == CALM, format!("{recorded} of {CALM} execs are recorded"))?;
    ensure(ctl::of_kind(&records, "gap").is_empty(), "events of the calm session were lost")
}

fn sum(records: &[Value], kind: &str, count: impl Fn(&Value) -> Option<u64>) -> u64 {
    ctl::of_kind(records, kind).iter().filter_map(|r| count(&r["body"])).sum()
}

/// Lost and counted, by the end of the counter's name.
fn lost(records: &[Value], counter: &str) -> u64 {
    sum(records, "gap", |b| b["counter"].as_str()?.ends_with(counter).then(|| b["lost"].as_u64())?)
}

/// Execs that have a record, are counted in one, or are counted as lost.
fn accounted(records: &[Value]) -> u64 {
    // Not the session's own program, nor the search for it, of which a path may be unreadable.
    let entry = ctl::of_kind(records, "exec")
        .iter()
        .map(|r| &r["body"]["facts"])
        .find(|f| f["entry"] == true)
        .and_then(|facts| facts["exec"].as_u64());
    let own = |b: &Value| {
        b["path"].as_str().is_some_and(|p| p.ends_with("/python3"))
            || b["exec"].as_u64().is_some_and(|e| Some(e) < entry)
    };
    ctl::of_kind(records, "exec").iter().filter(|r| r["body"]["facts"]["entry"] != true).count() as u64
        + sum(records, "exec_unjudged", |b| if own(b) { None } else { b["probes"].as_u64() })
        + lost(records, "attempts")
        + lost(records, "room")
}

/// Every exec that a flood made is in its session's records. Where the kernel may be preempted, it skips programs, and counts
/// that; the host's record of it comes within a second.
fn all_accounted(made: u64, records: &[Value], leaf: u64) -> Result<()> {
    let found = accounted(records);
    if found == made {
        return Ok(());
    }
    let mut unseen = 0;
    let told = until_true("the skipped programs are recorded", seconds(5), || {
        unseen = lost(&ctl::records_from(leaf)?, "attempts_unseen_at_most");
        Ok(found + unseen >= made)
    });
    let lost = lost(records, "attempts");
    let text = format!("{made} execs were made, {found} are accounted for, {lost} of them lost, {unseen} unseen");
    ensure(told.is_ok() && found <= made, format!("{text}; other: {}", others(records)))
}

/// Records that count, but of nothing that a flood of names makes.
fn others(records: &[Value]) -> String {
    let odd = |r: &&Value| match r["kind"].as_str() {
        Some("exec") => r["body"]["facts"]["entry"] != true,
        Some("exec_unjudged") => !r["body"]["path"].as_str().is_some_and(|p| p.starts_with("/nowhere/")),
        Some("gap") => true,
        _ => false,
    };
    records.iter().filter(odd).map(|r| r["body"].to_string()).collect::<Vec<_>>().join("\n")
}

/// Resident memory of the daemon in MiB.
fn resident_mib() -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", guest::daemon()?))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? / 1024)
}

/// Failing, allowed and denied execs as fast as four workers can: each is recorded or counted, memory does not grow.
pub fn flood_of_execs_harms_no_other_session() -> Result<()> {
    for mode in ["names", "allowed", "denied"] {
        let leaf = ctl::log_size()?;
        let flood = flood(&[mode, "4", "4"])?;
        ensure(flood.made > 10, format!("{mode}: only {} were made", flood.made))?;
        all_accounted(flood.made, &flood.records, leaf).context(mode)?;
    }
    let before = resident_mib()?;
    let again = flood(&["names", "4", "4"])?;
    let records = again.records.len() as u64;
    ensure(records < again.made / 2, format!("{records} records of {} execs that never started", again.made))?;
    let after = resident_mib()?;
    ensure(after <= 150, format!("{after} MiB resident after the floods"))?;
    ensure(after <= before + 16, format!("{before} MiB grew to {after} in a second flood"))?;
    ctl::verify().map(|_| ())
}

/// While the daemon reads no events, one session fills its share of the ring and no more: what it loses is counted to the
/// last, and another session loses nothing.
pub fn flood_of_events_leaves_room_for_others() -> Result<()> {
    let leaf = ctl::log_size()?;
    let slow = Session::attack(&ALICE, "flood.py", &["slow", "150"])?;
    slow.line("flooding", seconds(30))?;
    let wild = Session::attack(&ALICE, "flood.py", &["names", "7", "4"])?;
    wild.line("flooding", seconds(30))?;
    let daemon = guest::daemon()?;
    guest::signal(daemon, Signal::STOP)?;
    std::thread::sleep(seconds(3));
    guest::signal(daemon, Signal::CONT)?;
    let (slow, wild) = (slow.wait(seconds(60))?, wild.wait(seconds(60))?);
    let records = ctl::records(&wild.id)?;
    ensure(lost(&records, "attempts") > 0, "the flood did not fill its share: nothing was tried")?;
    let made = wild.out.lines().find_map(|l| l.strip_prefix("made ")?.trim().parse().ok()).unwrap_or(0);
    all_accounted(made, &records, leaf)?;
    let records = ctl::records(&slow.id)?;
    ensure(ctl::of_kind(&records, "gap").is_empty(), "another session lost events")?;
    all_accounted(150, &records, leaf).context("another session")
}

/// Refused acts: counted to the last.
pub fn flood_of_acts_is_counted() -> Result<()> {
    let flood = flood(&["acts", "4", "4"])?;
    let refused = sum(&flood.records, "guard_refusal", |b| (b["what"] == "ptrace").then(|| b["count"].as_u64())?);
    let lost = lost(&flood.records, "acts");
    ensure(
        refused + lost == flood.made,
        format!("{} were made, {refused} refusals recorded, {lost} lost", flood.made),
    )?;
    ensure(flood.records.len() < 1000, format!("{} records of identical acts", flood.records.len()))?;
    ensure(flood.out.contains("made"), &flood.out)
}

/// A fork bomb ends at the session's own limit; another session has all its processes and execs.
pub fn flood_of_forks_ends_at_the_limit() -> Result<()> {
    guest::restart_daemon(&format!("{}\n[profile.default]\nmax_processes = 60", guest::USUAL))?;
    let flood = flood(&["forks"])?;
    let line = flood.out.lines().find(|l| l.starts_with("forks ")).context("no limit was met")?;
    // The session's own program is one of them.
    ensure(line == "forks 59 errno 11", format!("with room for 60 tasks: {line}"))?;
    ensure(ctl::of_kind(&flood.records, "gap").is_empty(), "a fork bomb fills maps")
}

/// With the collector away, one session cannot take the journal from the others; what is denied is counted for it.
pub fn flood_of_records_leaves_room_for_others() -> Result<()> {
    guest::configure(guest::USUAL)?;
    let usual = std::fs::read_to_string(guest::CONFIG)?;
    guest::stop_daemon()?;
    let small = "/var/lib/guard/journal-shared\"\nmax_mib = 4";
    std::fs::write(guest::CONFIG, usual.replace("/var/lib/guard/journal\"", small))?;
    let _ = std::fs::remove_dir_all("/var/lib/guard/journal-shared");
    guest::start_daemon()?;
    guest::kill_collector()?;
    let (script, large) = (attacks::path("try.py"), "x".repeat(20_000));
    let wild = ["python3", &script, "--times", "60", "/usr/bin/true", &large];
    let wild = Session::start(&ALICE, &wild)?.wait(seconds(60))?;
    let refused = wild.out.lines().filter(|l| *l == "errno 1").count();
    ensure(refused > 5, format!("only {refused} of 60 large execs were refused"))?;
    let calm = Session::attack(&ALICE, "flood.py", &["calm", CALM])?.wait(seconds(60))?;
    let ran = calm.out.lines().filter(|l| l.starts_with("calm 0 ")).count();
    ensure(ran.to_string() == CALM, format!("{ran} of {CALM} execs of another session ran: {calm}"))?;
    guest::start_collector()?;
    guest::enforcing()?;
    let records = ctl::records(&wild.id)?;
    let (recorded, lost) = (ctl::execs_of(&records, "/usr/bin/true").len(), lost(&records, "room"));
    ensure(recorded + refused == 60, format!("{recorded} recorded and {refused} refused of 60"))?;
    ensure(lost >= refused as u64, format!("{lost} counted as lost, {refused} execs were refused"))?;
    let named = ctl::of_kind(&records, "gap").iter().all(|r| r["body"]["session"] == wild.id.as_str());
    ensure(named, "a gap does not name its session")?;
    let calm = ctl::execs_of(&ctl::records(&calm.id)?, "/usr/bin/cat").len();
    ensure(calm.to_string() == CALM, format!("{calm} of {CALM} execs of the other session are recorded"))?;
    ctl::verify().map(|_| ())
}
