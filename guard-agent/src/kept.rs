//! What is kept of a session on disk, from before its entry process runs until its end is recorded: all that the next daemon
//! needs to go on with it.
//!
//! It must not decide what becomes of a session (see `adopt`). Beside the state, which never changes, lies a notebook: files
//! and names that must stay as they are while an image runs, and counts. It is for the daemon's death only, not for a power cut, which no
//! session survives. Fails: a file that cannot be read is an error that names it; it stays as it is, and its session ends.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_common::FileKey;
use guard_common::path::PathKey;
use guard_log::frame;
use guard_log::record::SessionId;
use guard_proto::v1::{Identity, RoleSnapshot};
use prost::Message;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::files::Kept;
use crate::kernel::proc;
use crate::life::Until;
use crate::session::Session;

/// Version of the file's form. Fields of [`Head`] are the same in every version.
pub const FORMAT: u32 = 1;
/// Longest file that is read.
const STATE_MAX: u64 = 1 << 20;
/// Longest notebook before it is written anew with what still counts; more than this is refused.
const NOTES_MAX: u64 = 1 << 20;
/// Most sessions that are read.
const SESSIONS_MAX: usize = 2000;
/// Bytes of a notebook's first line: two counts of twenty digits.
const COUNTS: usize = 42;

/// A process, named by its number and its start, so that a number that is used again names nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Number in the initial namespace.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// A process that lives now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start: proc::start_time(pid)? })
    }

    /// A handle of it, which cannot come to mean another one.
    pub fn handle(self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid.cast_signed())?, PidfdFlags::empty()).ok()?;
        proc::start_time(self.pid).is_ok_and(|start| start == self.start).then_some(handle)
    }

    /// Whether it still lives.
    pub fn lives(self) -> bool {
        self.handle().is_some_and(|handle| !proc::has_ended(&handle))
    }
}

/// Who a session answers to: the guardctl that started it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its user.
    pub uid: u32,
    /// Its process.
    pub process: ProcessId,
}

/// What every version of the file says, enough to record a session's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// [`FORMAT`] of the daemon that wrote it.
    pub format: u32,
    /// Layout version of the kernel maps that the session is in.
    pub abi: u32,
    /// The kernel's id of the boot.
    pub boot_id: String,
    /// The kernel's number.
    pub key: u64,
    /// Id in every record.
    pub session_id: String,
    /// `Identity`, encoded, in hexadecimal digits.
    pub identity: String,
}

/// Everything else.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// User that it runs as.
    pub uid: u32,
    /// All its groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: Vec<u8>,
    /// Where it started.
    pub workspace: Vec<u8>,
    /// Name of its profile.
    pub profile: String,
    /// Folder of its cgroup.
    pub cgroup: PathBuf,
    /// Its id.
    pub cgroup_id: u64,
    /// The entry process.
    pub entry: ProcessId,
    /// Number of its mount namespace.
    pub mount_namespace: u64,
    /// End, boot time.
    pub expires_boot_ns: u64,
    /// End, wall time.
    pub expires_unix_ns: i64,
    /// A later end that was being recorded: this or the one above is in force, the kernel knows which. An earlier version
    /// does not know this key and ends the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<Until>,
    /// Start, boot time.
    pub started_boot_ns: u64,
    /// It has a terminal.
    pub tty: bool,
    /// Who it answers to.
    pub owner: Owner,
    /// `RoleSnapshot`, encoded, in hexadecimal digits, if roles limit the session. An earlier version does not know this
    /// key and ends the session, which it could not limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<String>,
    /// It began in the stage `observe`. Without this key it did not: its verdicts are enforced. An earlier version does not
    /// know this key and ends the session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub began_observed: bool,
}

impl State {
    /// What roles gave the session.
    pub fn roles(&self) -> Result<Option<RoleSnapshot>, String> {
        let decode = |text: &String| {
            let bytes = hex::decode(text).map_err(|e| format!("roles: {e}"))?;
            RoleSnapshot::decode(bytes.as_slice()).map_err(|e| format!("roles: {e}"))
        };
        self.roles.as_ref().map(decode).transpose()
    }
}

#[derive(Serialize, Deserialize)]
struct Whole {
    head: Head,
    state: serde_json::Value,
}

/// A session of an earlier daemon.
#[derive(Clone, Debug)]
pub struct Former {
    /// The kernel's number.
    pub key: u64,
    /// Its id.
    pub id: SessionId,
    /// Who and for whom.
    pub identity: Identity,
    /// What it was made with.
    pub head: Head,
    /// The rest, or why it cannot be used.
    pub state: Result<Box<State>, String>,
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("sessions")
}

fn path(state_dir: &Path, key: u64) -> PathBuf {
    folder(state_dir).join(format!("{key:016x}"))
}

fn notes_path(state_dir: &Path, key: u64) -> PathBuf {
    folder(state_dir).join(format!("{key:016x}.notes"))
}

/// Keeps a session, durably, with a later end that may come into force.
pub fn remember(state_dir: &Path, boot_id: &str, session: &Session, renewal: Option<Until>) -> io::Result<()> {
    let until = session.life.until();
    std::fs::create_dir_all(folder(state_dir))?;
    let head = Head {
        format: FORMAT,
        abi: guard_common::ABI_VERSION,
        boot_id: boot_id.to_owned(),
        key: session.key,
        session_id: session.id.to_string(),
        identity: hex::encode(session.identity.encode_to_vec()),
    };
    let state = State {
        uid: session.rights.uid,
        groups: session.rights.groups.clone(),
        home: session.home.clone(),
        workspace: session.workspace.clone(),
        profile: session.profile.clone(),
        cgroup: session.cgroup.dir.clone(),
        cgroup_id: session.cgroup.id,
        entry: session.entry,
        mount_namespace: session.mount_namespace,
        expires_boot_ns: until.boot_ns,
        expires_unix_ns: until.unix_ns,
        renewal,
        started_boot_ns: session.started_boot_ns,
        tty: session.tty,
        owner: session.owner,
        roles: session.roles.as_ref().map(|roles| hex::encode(roles.encode_to_vec())),
        began_observed: session.began_observed,
    };
    let whole = Whole { head, state: serde_json::to_value(state)? };
    frame::replace(&path(state_dir, session.key), &serde_json::to_vec_pretty(&whole)?)
}

/// Forgets it after its end is recorded.
pub fn forget(state_dir: &Path, key: u64) -> io::Result<()> {
    let _ = std::fs::remove_file(notes_path(state_dir, key));
    std::fs::remove_file(path(state_dir, key))
}

/// Reads what is kept. What cannot be read is reported.
pub fn read(state_dir: &Path) -> Vec<Former> {
    let Ok(entries) = std::fs::read_dir(folder(state_dir)) else { return Vec::new() };
    let named = |path: &Path| path.file_name()?.to_str().and_then(|n| u64::from_str_radix(n, 16).ok());
    let mut found = Vec::new();
    for path in entries.flatten().map(|e| e.path()).filter(|p| named(p).is_some()).take(SESSIONS_MAX) {
        match read_one(&path) {
            Ok(former) => found.push(former),
            Err(why) => {
                tracing::error!(file = %path.display(), why, "state of a session cannot be read; it is kept, its session ends");
            }
        }
    }
    found
}

fn read_one(path: &Path) -> Result<Former, String> {
    let bytes = crate::files::read_bounded(path, STATE_MAX).map_err(|e| e.to_string())?;
    let former = parse(&bytes).map_err(|why| format!("{}: {why}", path.display()))?;
    let named = path.file_name().is_some_and(|name| name.to_string_lossy() == format!("{:016x}", former.key));
    if named { Ok(former) } else { Err(format!("{}: it is about session key {:016x}", path.display(), former.key)) }
}

fn parse(bytes: &[u8]) -> Result<Former, String> {
    let whole: Whole = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let head = whole.head;
    let identity = hex::decode(&head.identity).map_err(|e| format!("identity: {e}"))?;
    let identity = Identity::decode(identity.as_slice()).map_err(|e| format!("identity: {e}"))?;
    let id = head.session_id.parse().map_err(|_| format!("`{}` is no session id", head.session_id.escape_debug()))?;
    let state = if head.format == FORMAT {
        serde_json::from_value(whole.state).map(Box::new).map_err(|e| format!("its state cannot be read: {e}"))
    } else {
        Err(format!("its state was written in form {}, this version reads form {FORMAT}", head.format))
    };
    Ok(Former { key: head.key, id, identity, head, state })
}

// === the notebook ===

/// What changes while a session runs.
#[derive(Default)]
pub struct Notes {
    place: PathBuf,
    open: Mutex<Open>,
}

/// Execs and, of those, denied ones.
type Counts = (u32, u32);
type KeptByExec = HashMap<u64, Vec<Kept>>;

#[derive(Default)]
struct Open {
    file: Option<File>,
    end: u64,
    counts: Counts,
    kept: KeptByExec,
}

impl Notes {
    /// A new one.
    pub fn create(state_dir: &Path, key: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder(state_dir))?;
        let notes = Self { place: notes_path(state_dir, key), open: Mutex::default() };
        notes.rewrite(&mut notes.lock())?;
        Ok(notes)
    }

    /// An earlier daemon's: notes on images for which `runs` says yes are kept.
    pub fn take_over(state_dir: &Path, key: u64, runs: impl Fn(u64) -> bool) -> io::Result<Self> {
        let place = notes_path(state_dir, key);
        let text = String::from_utf8(crate::files::read_bounded(&place, NOTES_MAX)?).map_err(io::Error::other)?;
        let (counts, mut kept) = parse_notes(&text)?;
        kept.retain(|exec, _| runs(*exec));
        let notes = Self { place, open: Mutex::new(Open { counts, kept, ..Open::default() }) };
        notes.rewrite(&mut notes.lock())?;
        Ok(notes)
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all of it to a new file, which takes the old one's place.
    fn rewrite(&self, open: &mut Open) -> io::Result<()> {
        let mut text = counts_line(open.counts);
        for (exec, kept) in &open.kept {
            text.push_str(&kept_line(*exec, kept));
        }
        if text.len() as u64 > NOTES_MAX {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many running scripts in one session"));
        }
        let fresh = self.place.with_extension("notes_new");
        let file = File::create(&fresh)?;
        file.write_all_at(text.as_bytes(), 0)?;
        std::fs::rename(&fresh, &self.place)?;
        (open.end, open.file) = (text.len() as u64, Some(file));
        Ok(())
    }

    /// Notes, before the grant, what stays as it is while an image runs.
    pub fn keeps(&self, exec: u64, kept: Vec<Kept>) -> io::Result<()> {
        let mut open = self.lock();
        let line = kept_line(exec, &kept);
        open.kept.insert(exec, kept);
        if open.end + line.len() as u64 > NOTES_MAX {
            let written = self.rewrite(&mut open);
            if written.is_err() {
                open.kept.remove(&exec);
            }
            return written;
        }
        if let Some(file) = &open.file {
            file.write_all_at(line.as_bytes(), open.end)?;
        }
        open.end += line.len() as u64;
        Ok(())
    }

    /// The image has ended: the note counts no more.
    pub fn ended(&self, exec: u64) {
        self.lock().kept.remove(&exec);
    }

    /// What is kept for an image.
    pub fn kept(&self, exec: u64) -> Vec<Kept> {
        self.lock().kept.get(&exec).cloned().unwrap_or_default()
    }

    /// All that is kept for images.
    pub fn all_kept(&self) -> Vec<Kept> {
        self.lock().kept.values().flatten().copied().collect()
    }

    /// Keeps the counts, if they have changed: execs and, of those, denied ones.
    pub fn count(&self, counts: Counts) -> io::Result<()> {
        let mut open = self.lock();
        if open.counts == counts {
            return Ok(());
        }
        open.counts = counts;
        match &open.file {
            Some(file) => file.write_all_at(counts_line(counts).as_bytes(), 0),
            None => Ok(()),
        }
    }

    /// The counts as they were kept last.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }
}

fn counts_line(counts: Counts) -> String {
    format!("{:020} {:020}\n", counts.0, counts.1)
}

fn kept_line(exec: u64, kept: &[Kept]) -> String {
    let mut line = format!("{exec:x}");
    for what in kept {
        line.push_str(&match what {
            Kept::File(file) => format!(" f:{:x}:{:x}", file.dev, file.ino),
            Kept::Name(name) => format!(" n:{:x}:{:x}", name.dev, name.hash),
        });
    }
    line.push('\n');
    line
}

/// Counts, and what is kept by exec. A last line that is not whole is the one that was being written: its exec had no grant
/// yet. Any other one that cannot be read is damage.
fn parse_notes(text: &str) -> io::Result<(Counts, KeptByExec)> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the notes are damaged");
    let counts = text.get(..COUNTS).ok_or_else(damaged)?;
    let (execs, denied) = counts.strip_suffix('\n').and_then(|l| l.split_once(' ')).ok_or_else(damaged)?;
    let counts = (execs.parse().map_err(|_| damaged())?, denied.parse().map_err(|_| damaged())?);
    let lines = text.get(COUNTS..).unwrap_or_default().split_inclusive('\n').filter(|l| l.ends_with('\n'));
    let kept: Option<_> = lines.map(parse_kept).collect();
    Ok((counts, kept.ok_or_else(damaged)?))
}

fn parse_kept(line: &str) -> Option<(u64, Vec<Kept>)> {
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut words = line.split_whitespace();
    let exec = number(words.next()?)?;
    let kept: Option<Vec<Kept>> = words
        .map(|word| {
            let mut parts = word.split(':');
            let (kind, dev, what) = (parts.next()?, number(parts.next()?)?, number(parts.next()?)?);
            match (kind, parts.next()) {
                ("f", None) => Some(Kept::File(FileKey { dev, ino: what })),
                ("n", None) => Some(Kept::Name(PathKey { dev, hash: what })),
                _ => None,
            }
        })
        .collect();
    Some((exec, kept?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(format: u32) -> Vec<u8> {
        let state = State {
            uid: 1000,
            groups: vec![1000],
            home: b"/home/\xff".to_vec(),
            workspace: b"/w".to_vec(),
            profile: "default".into(),
            cgroup: "/sys/fs/cgroup/guard/s-1".into(),
            cgroup_id: 7,
            entry: ProcessId { pid: 4, start: 5 },
            mount_namespace: 9,
            expires_boot_ns: u64::MAX,
            expires_unix_ns: 1,
            renewal: None,
            started_boot_ns: 2,
            tty: true,
            owner: Owner { uid: 1000, process: ProcessId { pid: 8, start: 9 } },
            roles: Some(hex::encode(RoleSnapshot { digest: "d".into(), ..RoleSnapshot::default() }.encode_to_vec())),
            began_observed: true,
        };
        let head = Head {
            format,
            abi: 2,
            boot_id: "b".into(),
            key: u64::MAX - 1,
            session_id: ulid::Ulid::from_parts(1, 2).to_string(),
            identity: hex::encode(Identity { agent: "coder".into(), ..Identity::default() }.encode_to_vec()),
        };
        serde_json::to_vec(&Whole { head, state: serde_json::to_value(state).unwrap() }).unwrap()
    }

    #[test]
    fn what_is_kept_comes_back_whole() {
        let former = parse(&whole(FORMAT)).unwrap();
        let state = former.state.unwrap();
        assert_eq!((former.key, former.identity.agent.as_str()), (u64::MAX - 1, "coder"));
        assert_eq!(state.roles().unwrap().unwrap().digest, "d");
        assert_eq!((state.home.as_slice(), state.expires_boot_ns), (b"/home/\xff".as_slice(), u64::MAX));
    }

    #[test]
    fn a_process_that_nobody_has_waited_for_does_not_live() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(process.lives() && !ProcessId { start: process.start + 1, ..process }.lives());
        child.kill().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while process.lives() {
            assert!(std::time::Instant::now() < end, "its end is not seen before it is waited for");
        }
        child.wait().unwrap();
        assert!(!process.lives());
    }

    #[test]
    fn another_form_still_says_whose_it_was() {
        let former = parse(&whole(FORMAT + 1)).unwrap();
        assert!(former.state.unwrap_err().contains("form 2"));
        assert_eq!(former.identity.agent, "coder");
    }

    #[test]
    fn damage_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder(dir.path())).unwrap();
        let bytes = whole(FORMAT);
        let file = path(dir.path(), 1);
        for end in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&file, &bytes[..end]).unwrap();
            assert!(read_one(&file).unwrap_err().contains("0000000000000001"), "cut at {end}");
            assert!(read(dir.path()).is_empty());
        }
        std::fs::write(&file, &bytes).unwrap();
        assert!(read_one(&file).unwrap_err().contains("about session key"));
        std::fs::write(&file, vec![b' '; (STATE_MAX + 1) as usize]).unwrap();
        assert!(read_one(&file).is_err());
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_read_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse_notes(&String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn notes_outlive_the_daemon_and_forget_what_ended() {
        let dir = tempfile::tempdir().unwrap();
        let file = |ino| Kept::File(FileKey { dev: 1, ino });
        let script = vec![file(1), file(2), Kept::Name(PathKey { dev: 1, hash: u64::MAX })];
        let notes = Notes::create(dir.path(), 1).unwrap();
        notes.keeps(10, script.clone()).unwrap();
        notes.keeps(11, vec![file(3)]).unwrap();
        notes.count((5, 2)).unwrap();
        let next = Notes::take_over(dir.path(), 1, |exec| exec == 10).unwrap();
        assert_eq!((next.counts(), next.kept(10), next.kept(11)), ((5, 2), script.clone(), vec![]));
        let third = Notes::take_over(dir.path(), 1, |_| true).unwrap();
        assert_eq!((third.counts(), third.kept(10)), ((5, 2), script));
        assert!(Notes::take_over(dir.path(), 2, |_| true).is_err());
    }

    #[test]
    fn notes_stay_short_a_torn_line_counts_for_nothing_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::create(dir.path(), 1).unwrap();
        let files = |ino| vec![Kept::File(FileKey { dev: u64::MAX, ino }); 2];
        for exec in 0..30_000 {
            notes.keeps(exec, files(exec)).unwrap();
            notes.ended(exec);
        }
        assert!(std::fs::metadata(notes_path(dir.path(), 1)).unwrap().len() <= NOTES_MAX);
        let text = format!("{}a f:1:1\nb f:1:", counts_line((1, 0)));
        assert_eq!(parse_notes(&text).unwrap().1.into_keys().collect::<Vec<_>>(), [10]);
        for text in ["", "x", "1 2\n", &format!("{}a f:1\nb f:1:1\n", counts_line((1, 0)))] {
            assert!(parse_notes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_session_with_too_many_running_scripts_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::create(dir.path(), 1).unwrap();
        let files = vec![Kept::File(FileKey { dev: u64::MAX, ino: u64::MAX }); 512];
        let refused = (0..200).find_map(|exec| notes.keeps(exec, files.clone()).err());
        assert!(refused.is_some_and(|e| e.to_string().contains("running scripts")));
        assert!(Notes::take_over(dir.path(), 1, |_| true).is_ok());
    }
}
