//! Reviews: a person lets an exec run, or does not, or does not answer.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::ctl;
use crate::guest::{self, ensure};
use crate::session::{ALICE, Session, Start};
use crate::wait::{seconds, until};

fn fresh(name: &str) -> Result<String> {
    Ok(format!("{}/made", guest::fresh_dir(name)?))
}

pub fn review_approved_runs() -> Result<()> {
    let made = fresh("review")?;
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", &made])?;
    let request = ctl::pending(&session.id)?;
    ensure(!Path::new(&made).exists(), "it ran before anybody was asked")?;
    ensure(request["facts"]["argv"][1] == made.as_str(), &request)?;
    ctl::approve(&request, &[])?;
    let ended = session.wait(seconds(30))?;
    ensure(ended.out.trim() == "ran 0" && Path::new(&made).exists(), &ended)?;
    let records = ctl::records(&ended.id)?;
    let decisions = ctl::of_kind(&records, "review_decision");
    ensure(decisions.len() == 1, format!("{} decisions of the collector in the log", decisions.len()))
}

pub fn review_denied_does_not_run() -> Result<()> {
    let made = fresh("review")?;
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", &made])?;
    let request = ctl::pending(&session.id)?;
    let id = request["request"].as_str().context("no id")?;
    ctl::json("bob", &["review", "deny", id, "--reason", "not today"])?;
    let ended = session.wait(seconds(30))?;
    ensure(ended.out.trim() == "errno 1" && !Path::new(&made).exists(), &ended)?;
    ensure(ended.events.iter().any(|e| e.to_string().contains("not today")), "the agent is not told why")?;
    let again = ctl::approve(&request, &[]);
    ensure(again.is_err(), "a denied request was approved afterwards")
}

pub fn review_timeout_denies() -> Result<()> {
    guest::restart_daemon("[hold]\nmax_seconds = 20\nreview_deadline_seconds = 3")?;
    let made = fresh("review")?;
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/mkdir", &made])?;
    let request = ctl::pending(&session.id)?;
    let ended = session.wait(seconds(30))?;
    ensure(ended.out.trim() == "errno 1" && !Path::new(&made).exists(), &ended)?;
    ensure(ctl::approve(&request, &[]).is_err(), "approved after the deadline")?;
    let records = ctl::records(&ended.id)?;
    let decision = ctl::of_kind(&records, "exec_decision");
    let body = decision.first().map(|r| &r["body"]).context("no decision")?;
    ensure(body["disposition"] == "timed_out" && body["reviewer"].is_null(), body)
}

pub fn review_root_covers_descendants() -> Result<()> {
    let dir = guest::fresh_dir("review")?;
    let script = format!("mkdir {dir}/a; mkdir {dir}/b");
    let session = Session::attack(&ALICE, "try.py", &["/usr/bin/sh", "-c", &script])?;
    let request = ctl::pending(&session.id)?;
    ctl::approve(&request, &["--scope", "root", "--category", "fs.write", "--category", "shell"])?;
    let ended = session.wait(seconds(30))?;
    ensure(ended.out.trim() == "ran 0", &ended)?;
    ensure(Path::new(&format!("{dir}/b")).exists(), "the descendants did not run")?;
    let records = ctl::records(&ended.id)?;
    let made = ctl::execs_of(&records, "mkdir");
    ensure(made.len() == 2, format!("{} records of two mkdirs", made.len()))?;
    for record in made {
        ensure(record["body"]["disposition"] == "inherited", record)?;
    }
    Ok(())
}

/// Denies the one request that waits, whose arguments must name this.
fn deny(session: &str, name: &str) -> Result<()> {
    let request = until("a request that nobody has answered", seconds(20), || {
        let list = ctl::json("bob", &["review", "list", "--session", session])?;
        let mut open = list["reviews"].as_array().into_iter().flatten().filter(|r| r["state"] == "pending");
        Ok(open.next_back().filter(|r| r["facts"]["argv"].to_string().contains(name)).cloned())
    })?;
    let id = request["request"].as_str().context("no id")?;
    ctl::json("bob", &["review", "deny", id, "--reason", "not this"]).map(|_| ())
}

/// An approval of kinds covers other acts of them in this session, and nothing else; revoked, it covers nothing.
pub fn review_kinds_cover_like_acts() -> Result<()> {
    let dir = guest::fresh_dir("review")?;
    let lines = [
        format!("mkdir {dir}/a"),
        format!("touch {dir}/b"),
        "mkdir /srv/elsewhere".to_owned(),
        format!("touch {dir}/link/x"),
        format!("rm {dir}/b"),
        format!("mkdir {dir}/c"),
    ];
    std::os::unix::fs::symlink("/srv", format!("{dir}/link"))?;
    // The last waits until the grant is revoked.
    let [first, more @ .., last] = &lines;
    let more: String = more.iter().map(|line| format!("{line}; echo $?; ")).collect();
    let script = format!("{first}; echo $?; {more}read go; {last}; echo $?");
    let start = Start { cwd: &dir, stdin: true, ..ALICE };
    let mut session = Session::start(&start, &["/usr/bin/sh", "-c", &script])?;
    let request = ctl::pending(&session.id)?;
    ensure(request["kinds"][0]["category"] == "fs.write", &request["kinds"])?;
    let id = request["request"].as_str().context("no id")?.to_owned();
    ctl::approve(&request, &["--scope", "kind"])?;
    deny(&session.id, "/srv/elsewhere")?;
    deny(&session.id, "link/x")?;
    deny(&session.id, "rm")?;
    ctl::json("bob", &["review", "revoke", &id])?;
    writeln!(session.stdin().context("no standard input")?, "go")?;
    deny(&session.id, &format!("{dir}/c"))?;
    let ended = session.wait(seconds(30))?;
    ensure(Path::new(&format!("{dir}/b")).exists() && !Path::new(&format!("{dir}/c")).exists(), &ended)?;
    let records = ctl::records(&ended.id)?;
    let touch = ctl::execs_of(&records, "touch");
    let body = touch.first().map(|r| &r["body"]).context("no record of touch")?;
    let covered = body["disposition"] == "approved" && body["request"] == id.as_str() && body["reviewer"] == "bob";
    // The first; the other went through a link, and was asked about.
    ensure(covered, body)
}

pub fn review_after_hold_max_is_a_one_use_right() -> Result<()> {
    guest::restart_daemon("[hold]\nmax_seconds = 2\nreview_deadline_seconds = 60")?;
    let made = fresh("review")?;
    // mkdir -p succeeds again and again, so that only Guard decides.
    let args = ["--times", "3", "--pause", "6", "/usr/bin/mkdir", "-p", made.as_str()];
    let session = Session::attack(&ALICE, "try.py", &args)?;
    let request = ctl::pending(&session.id)?;
    session.line("errno 1", seconds(15)).context("the hold is not bounded by hold_max")?;
    let id = request["request"].as_str().context("no id")?.to_owned();
    ensure(session.events().iter().any(|e| e.to_string().contains(&id)), "the agent is not told the request's id")?;
    ctl::approve(&request, &[])?;
    let ended = session.wait(seconds(60))?;
    let results: Vec<&str> = ended.out.lines().collect();
    ensure(results == ["errno 1", "ran 0", "errno 1"], format!("a right for one use gave {results:?}: {ended}"))?;
    ensure(Path::new(&made).exists(), "it did not run")?;
    let records = ctl::records(&ended.id)?;
    let used = ctl::of_kind(&records, "exec_decision").iter().any(|r| r["body"]["disposition"] == "approved");
    ensure(used, "no record of the approval")
}

/// Node waits for its child's exec, Python holds a lock over it: both must go on, with pauses no longer than a hold.
pub fn runtimes_live_through_a_minute_of_review() -> Result<()> {
    const HOLD: u64 = 3;
    guest::restart_daemon(&format!("[hold]\nmax_seconds = {HOLD}\nreview_deadline_seconds = 120"))?;
    let dir = guest::fresh_dir("review")?;
    let mut runtimes = Vec::new();
    for program in ["heartbeat.js", "heartbeat.py"] {
        let made = format!("{dir}/{program}");
        let session = Session::attack(&ALICE, program, &["/usr/bin/mkdir", "-p", &made])?;
        let request = ctl::pending(&session.id)?;
        runtimes.push((program, session, request, made));
    }
    std::thread::sleep(seconds(60));
    for (_, _, request, _) in &runtimes {
        ctl::approve(request, &[])?;
    }
    for (program, session, _, made) in runtimes {
        let ended = session.wait(seconds(60))?;
        ensure(ended.out.contains("refused") && ended.out.contains("ran 0"), format!("{program}: {ended}"))?;
        ensure(Path::new(&made).exists(), format!("{program}: it did not run"))?;
        let beats: Vec<u64> =
            ended.out.lines().filter_map(|l| l.strip_prefix("beat ")).filter_map(|ms| ms.parse().ok()).collect();
        ensure(beats.len() > 35, format!("{program}: {} beats in a minute", beats.len()))?;
        let worst = beats.into_iter().max().unwrap_or(0);
        ensure(worst < (HOLD + 3) * 1000, format!("{program} stood still for {worst} ms"))?;
    }
    Ok(())
}
