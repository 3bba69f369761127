//! Part 2, files: names and files that a session may not change or read, and how much it may delete.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::guest::{self, ensure};
use crate::session::{ALICE, Ended, ROOT, Session, Start};
use crate::wait::{output, seconds, until_true};
use crate::{attacks, ctl, session};

const HOME: &str = "/home/alice";

/// A file of alice's.
fn put(path: &str, text: &str) -> Result<()> {
    let path = Path::new(path);
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        fs::create_dir_all(folder)?;
        std::os::unix::fs::chown(folder, Some(1000), Some(1000))?;
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(std::os::unix::fs::chown(path, Some(1000), Some(1000))?)
}

/// Takes away what the scenarios leave in alice's home.
fn clean() -> Result<()> {
    for name in [".bashrc", ".gitconfig", "diary", "ordinary", "fresh"] {
        let _ = fs::remove_file(format!("{HOME}/{name}"));
    }
    for name in [".ssh", ".config", "work", "dot", "evil", "away"] {
        let _ = fs::remove_dir_all(format!("{HOME}/{name}"));
    }
    Ok(())
}

/// Runs the attack program with some ways; none may be done, and each must say EPERM.
fn refused(ended: &Ended, ways: &[&str]) -> Result<()> {
    for way in ways {
        let result = ended.out.lines().find_map(|l| l.strip_prefix(way)?.strip_prefix(' ')).unwrap_or("nothing");
        ensure(result == "errno 1", format!("{way}: `{result}` instead of EPERM\n{}", ended.out))?;
    }
    Ok(())
}

fn done(ended: &Ended, ways: &[&str]) -> Result<()> {
    for way in ways {
        ensure(ended.out.contains(&format!("{way} done")), format!("{way} must work\n{}", ended.out))?;
    }
    Ok(())
}

fn attack(start: &session::Start<'_>, ways: &[&str]) -> Result<Ended> {
    let program = attacks::path("paths.py");
    let mut argv = vec!["python3", &program, HOME];
    argv.extend(ways);
    session::run(start, &argv)
}

/// The refusals of a session, by what was acted on and how.
fn refusals(id: &str) -> Result<Vec<(String, String, String)>> {
    let records = ctl::records(id)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let refusals = ctl::of_kind(&records, "guard_refusal");
    Ok(refusals
        .into_iter()
        .map(|r| (text(&r["body"]["target"]), text(&r["body"]["operation"]), text(&r["body"]["rule"])))
        .collect())
}

fn recorded(id: &str, wanted: &[(&str, &str, &str)]) -> Result<()> {
    let found = refusals(id)?;
    for (target, operation, rule) in wanted {
        let there = found.iter().any(|f| f.0 == *target && f.1 == *operation && f.2 == *rule);
        ensure(there, format!("no record of {operation} on {target} by rule {rule}: {found:?}"))?;
    }
    Ok(())
}

pub fn p2_start_files_are_not_changed() -> Result<()> {
    clean()?;
    guest::fresh_dir("work")?;
    put("/home/alice/.bashrc", "# alice's")?;
    put("/home/alice/.ssh/id_test", "key")?;
    put("/home/alice/.ssh/id_test.pub", "public")?;
    put("/home/alice/dot/gitconfig", "")?;
    std::os::unix::fs::symlink("dot/gitconfig", format!("{HOME}/.gitconfig"))?;
    fs::hard_link(format!("{HOME}/.bashrc"), format!("{HOME}/work/old"))?;
    let ways = [
        "redirect",
        "redirect_fresh",
        "copy_over",
        "rename_over",
        "rename_fresh",
        "rename_away",
        "exchange",
        "unlink",
        "hard_link",
        "old_hard_link",
        "symlink_fresh",
        "symlink_folder",
        "by_link",
        "link_target",
        "move_in",
        "mkdir_chain",
        "rename_ancestor",
        "mkfifo",
        "truncate",
        "chmod",
        "utime",
        "setxattr",
        "tmpfile",
        "by_descriptor",
        "by_folder",
        "by_proc_root",
        "authorized_keys",
        "read_key",
        "link_key",
    ];
    let works = ["may_read", "may_read_public", "may_write", "may_configure"];
    let ended = attack(&ALICE, &[&ways[..], &works[..]].concat())?;
    refused(&ended, &ways)?;
    done(&ended, &works)?;
    ensure(fs::read_to_string(format!("{HOME}/.bashrc"))? == "# alice's", "~/.bashrc was changed")?;
    recorded(
        &ended.id,
        &[
            ("/home/alice/.bashrc", "write", "start-files"),
            ("/home/alice/.bashrc", "rename", "start-files"),
            ("/home/alice/.zshenv", "create", "start-files"),
            ("/home/alice/.config/autostart", "create", "start-files"),
            ("/home/alice/.ssh/…/authorized_keys", "create", "start-files"),
            ("/home/alice/.ssh/id_test", "read", "ssh-keys"),
        ],
    )?;
    clean()
}

pub fn p2_root_does_not_change_what_the_system_runs() -> Result<()> {
    fs::create_dir_all("/etc/systemd/system")?;
    fs::create_dir_all("/etc/cron.d")?;
    let ways = [
        "guard_key",
        "guard_config",
        "guard_journal",
        "guard_pins",
        "guard_program",
        "cron",
        "crontab",
        "at_job",
        "unit",
        "passwd",
    ];
    let ended = attack(&ROOT, &ways)?;
    refused(&ended, &ways)?;
    let key = "/var/lib/guard/collector/clients/node-guest/key.pem";
    recorded(&ended.id, &[(key, "read", "guard-keys"), ("/etc/cron.d/…/evil", "create", "system-files")])
}

pub fn p2_credentials_are_read_by_named_programs_only() -> Result<()> {
    clean()?;
    put("/home/alice/diary", "dear diary")?;
    let rule = "[[protect]]\nname = \"diary\"\npaths = [\"~/diary\"]\ndeny = [\"read\"]\nreaders = [\"/usr/bin/cat\"]\n\
                [[protect]]\nname = \"user-programs\"\noff = \"a test\"\n";
    guest::restart_daemon(&format!("{rule}{}", guest::USUAL))?;
    let ended = attack(&ALICE, &["read_diary"])?;
    refused(&ended, &["read_diary"])?;
    recorded(&ended.id, &[("/home/alice/diary", "read", "diary")])?;
    let ended = session::run(&ALICE, &["python3", &attacks::path("try.py"), "/usr/bin/cat", "/home/alice/diary"])?;
    ensure(ended.out.contains("dear diary"), &ended)?;
    clean()
}

/// A folder with files that no session has made.
fn files(dir: &str, count: usize) -> Result<()> {
    for index in 0..count {
        put(&format!("{dir}/file-{index}"), "precious")?;
    }
    Ok(())
}

fn left(dir: &str) -> Result<usize> {
    Ok(fs::read_dir(dir)?.count())
}

fn budget(kill: u32) -> String {
    budget_of(kill) + guest::USUAL
}

fn budget_of(kill: u32) -> String {
    format!("[profile.default]\ndelete_budget = {{ files = 20, seconds = 600, kill = {kill} }}\n")
}

/// Where a session may use `io_uring`, credentials that it registered earlier do not hide what it deletes.
fn through_io_uring() -> Result<()> {
    let dir = guest::fresh_dir("precious")?;
    files(&dir, 40)?;
    let ended = session::run(&ALICE, &["python3", &attacks::path("uring_deletes.py"), &dir])?;
    ensure(ended.out.contains("removed 20 refused 20 else []"), &ended)?;
    ensure(left(&dir)? == 20, format!("{} of 40 files are left after a budget of 20", left(&dir)?))
}

pub fn p2_deletions_beyond_the_budget_need_a_person() -> Result<()> {
    guest::restart_daemon(&budget(500))?;
    let dir = guest::fresh_dir("precious")?;
    files(&dir, 50)?;
    let session = Session::attack(&ALICE, "deletes.py", &["patient", &dir])?;
    session.line("refused", seconds(20))?;
    ensure(left(&dir)? == 30, format!("{} of 50 files are left after a budget of 20", left(&dir)?))?;
    let request = ctl::pending(&session.id)?;
    let reason = request["verdict"]["reasons"][0].to_string();
    ensure(reason.contains("deleted 20 files") && reason.contains("python3"), &request)?;
    ensure(request["verdict"]["category"] == "fs.delete", &request)?;
    ctl::approve(&request, &[])?;
    session.line("removed all", seconds(20))?;
    let ended = session.wait(seconds(20))?;
    let records = ctl::records(&ended.id)?;
    let refusals = ctl::of_kind(&records, "guard_refusal");
    let budget = refusals.iter().find(|r| r["body"]["what"] == "delete_budget").context("no record of the refusals")?;
    ensure(budget["body"]["number"] == 20 && budget["body"]["operation"] == "unlink", budget)?;
    // What a session has made itself is its own, and an overlay's layers are not counted twice.
    let ended = session::run(&ALICE, &["python3", &attacks::path("deletes.py"), "own", &dir])?;
    ensure(ended.out.contains("removed 60"), &ended)?;
    overlay(&dir)
}

/// Fifteen files of an overlay are fifteen, not thirty.
fn overlay(dir: &str) -> Result<()> {
    files(&format!("{dir}/lower"), 15)?;
    let ended = below_an_overlay(dir, &ALICE, &["python3", &attacks::path("deletes.py"), "all"])?;
    ensure(ended.out.contains("removed 15 refused 0"), &ended)
}

/// Runs a program with an overlay over `dir/lower` as its last argument.
fn below_an_overlay(dir: &str, start: &Start<'_>, argv: &[&str]) -> Result<Ended> {
    for name in ["upper", "work", "merged"] {
        put(&format!("{dir}/{name}/x"), "")?;
        fs::remove_file(format!("{dir}/{name}/x"))?;
    }
    let options = format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work");
    let merged = format!("{dir}/merged");
    let mount = ["-t", "overlay", "overlay", "-o", &options, &merged];
    let out = output(Command::new("mount").args(mount), seconds(10))?;
    if !out.status.success() {
        bail!("mounting an overlay: {}", String::from_utf8_lossy(&out.stderr));
    }
    let ended = session::run(start, &[argv, &[&merged]].concat());
    output(Command::new("umount").arg(&merged), seconds(10))?;
    ended
}

/// An overlay copies up what is changed first with the credentials of its mount: that is the kernel's act, not the session's.
/// What the session asks for itself stays refused, on an overlay too.
pub fn p2_overlays_copy_up_and_lend_nothing() -> Result<()> {
    for (start, owner) in [(&ALICE, 1000), (&ROOT, 0)] {
        let dir = guest::fresh_dir("layers")?;
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000))?;
        for name in ["one", "two", "three"] {
            put(&format!("{dir}/lower/deep/{name}"), "text")?;
            std::os::unix::fs::chown(format!("{dir}/lower/deep/{name}"), Some(owner), Some(owner))?;
        }
        std::os::unix::fs::chown(format!("{dir}/lower/deep"), Some(owner), Some(owner))?;
        let ended = below_an_overlay(&dir, start, &["python3", &attacks::path("layers.py")])?;
        for act in ["mkdir", "append", "chmod", "rename"] {
            ensure(ended.out.contains(&format!("{act} done")), &ended)?;
        }
        ensure(ended.out.contains("trusted errno 1"), &ended)?;
    }
    Ok(())
}

pub fn p2_deletions_far_beyond_the_budget_kill_the_tree() -> Result<()> {
    guest::restart_daemon(&format!("{}allow_io_uring = true\n{}", budget_of(60), guest::USUAL))?;
    through_io_uring()?;
    let dir = guest::fresh_dir("precious")?;
    files(&dir, 70)?;
    let session = Session::attack(&ALICE, "deletes.py", &["stubborn", &dir])?;
    let beside: i32 = session.line("beside", seconds(20))?.parse()?;
    let ended = session.wait(seconds(40))?;
    ensure(ended.code == 137, &ended)?;
    ensure(left(&dir)? == 50, format!("{} of 70 files are left after a budget of 20", left(&dir)?))?;
    until_true("the other process of the tree is gone", seconds(10), || Ok(!guest::alive(beside)?))?;
    let records = ctl::records(&ended.id)?;
    let killed = records.iter().find(|r| r["body"]["killed"] == true).context("no record of the kill")?;
    ensure(killed["body"]["what"] == "delete_flood", killed)
}
