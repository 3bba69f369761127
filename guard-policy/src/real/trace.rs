//! What tier 1 lets run, run under `strace`: it starts no other program, changes no file and connects nowhere.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{LOOKS, developer, installed};
use crate::facts::{Facts, FileRef, Role, Stdin};
use crate::model::{Node, Value};
use crate::raw::ArgKind;
use crate::{Policy, Tier};

const CALLS: &str = "trace=execve,open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,rmdir,link,linkat,symlink,\
    symlinkat,truncate,ftruncate,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utimensat,mknod,mknodat,connect,kill,setxattr,\
    mount,umount2,settimeofday,clock_settime,sethostname";
/// Programs that go on until somebody stops them; `man` starts formatters and pagers, each an exec of its own; `zgrep` is a
/// script that keeps patterns in a file for a moment.
const LEFT_OUT: &[&str] = &["top", "htop", "dmesg", "journalctl", "vmstat", "lsof", "man", "zgrep"];
/// Without `-n` it asks for the names of the addresses that it shows.
const ASKS_FOR_NAMES: &str = "netstat";
/// Flags with which a program waits for more.
const WAITS: &[&str] = &["-f", "-F", "-w", "--follow", "--retry", "-s"];

fn judge(policy: &Policy, path: &Path, argv: &[Vec<u8>]) -> crate::Verdict {
    let name = [b"/usr/bin/", path.file_name().map(|n| n.as_encoded_bytes()).unwrap_or_default()].concat();
    let files = [FileRef { path: &name, role: Role::Program, session_writable: false, foreign: false }];
    policy.decide(&Facts {
        argv,
        files: &files,
        cwd: b"/home/dev/work",
        home: b"/home/dev",
        workspace: b"/home/dev/work",
        uid: 1000,
        env: &[],
        stdin: Stdin::Null,
        entry: false,
    })
}

/// One line of the trace that should not be there.
fn is_bad(line: &str, execs: &mut u32, script: bool, names: bool) -> bool {
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    if line.contains(" = -1 ") || line.contains("resumed>") || line.starts_with("+++") || line.starts_with("---") {
        return false;
    }
    let harmless = ["\"/dev/null\"", "\"/dev/tty\"", "\"/dev/pts/"].iter().any(|name| line.contains(name));
    match line.split('(').next().unwrap_or_default() {
        // What a script starts is an exec of its own, and judged.
        "execve" => {
            *execs += 1;
            *execs > 1 && !script
        }
        "open" | "openat" => {
            !harmless && ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| line.contains(flag))
        }
        "connect" if names => !line.contains("htons(53)") && !line.contains("AF_UNIX"),
        "connect" => !line.contains("/nscd/") && !line.contains("/run/systemd/userdb"),
        "kill" => !line.contains(", 0)"),
        "" => false,
        _ => true,
    }
}

/// Runs it in a folder of its own, as nobody where that is possible. Gives what should not have been seen.
fn run(path: &Path, args: &[Vec<u8>], root: bool) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().expect("folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("mode");
    let before = "x 1\ny 2\n";
    for name in ["a", "b"] {
        fs::write(dir.path().join(name), before).expect("written");
    }
    let out = tempfile::NamedTempFile::new().expect("file");
    let mut command = Command::new("timeout");
    command.args(["-k", "1", "1", "strace", "-f", "-qq", "-e", CALLS, "-o"]).arg(out.path());
    if root {
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).expect("owner");
        command.args(["-u", "nobody"]);
    }
    command.arg(path).args(args.iter().map(|arg| std::ffi::OsStr::from_bytes(arg)));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").env("HOME", dir.path()).current_dir(dir.path());
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("timeout");
    let script = fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"#!"));
    let text = String::from_utf8_lossy(&fs::read(out.path()).unwrap_or_default()).into_owned();
    let mut execs = 0;
    let names = path.ends_with(ASKS_FOR_NAMES);
    let mut bad: Vec<String> =
        text.lines().filter(|line| is_bad(line, &mut execs, script, names)).map(str::to_owned).collect();
    assert!(execs > 0, "{}: nothing was traced ({status})", path.display());
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .expect("folder")
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names != ["a", "b"]
        || ["a", "b"].iter().any(|n| fs::read(dir.path().join(n)).is_ok_and(|t| t != before.as_bytes()))
    {
        bad.push(format!("the folder holds {names:?}, or a file was changed"));
    }
    bad.truncate(2);
    bad
}

/// Every flag of a program that is declared to do no more than the program itself, with its operands.
fn commands(name: &str, node: &Node) -> Vec<Vec<Vec<u8>>> {
    let mut operands: Vec<&[u8]> = Vec::new();
    for kind in node.args.iter().take(2) {
        match kind {
            ArgKind::Path | ArgKind::Source => operands.push(b"a"),
            ArgKind::Text => operands.push(b"x"),
            ArgKind::Sed => operands.push(b"p"),
            ArgKind::Awk => operands.push(b"{print}"),
            _ => {}
        }
    }
    let with = |words: Vec<Vec<u8>>| {
        let all = std::iter::once(name.as_bytes().to_vec()).chain(words);
        all.chain(operands.iter().map(|o| o.to_vec())).collect::<Vec<_>>()
    };
    let mut all = vec![with(Vec::new())];
    let spellings: BTreeMap<&Vec<u8>, usize> = node.by_flag.iter().map(|(name, index)| (name, *index)).collect();
    for (spelled, index) in spellings {
        let flag = &node.flags[index];
        let text = String::from_utf8_lossy(spelled);
        if flag.group.is_some() || text.ends_with('#') || WAITS.contains(&text.as_ref()) || !text.starts_with('-') {
            continue;
        }
        // The long spelling does what the short one does.
        if text.starts_with("--") && node.by_flag.iter().any(|(other, i)| *i == index && other.len() == 2) {
            continue;
        }
        let value = matches!(flag.value, Value::Required(_)).then(|| b"1".to_vec());
        all.push(with(std::iter::once(spelled.clone()).chain(value).collect()));
    }
    all
}

#[test]
fn what_only_looks_writes_nothing_and_starts_nothing() {
    if installed("strace").is_none() {
        assert!(std::env::var_os("CI").is_none(), "strace is not installed");
        println!("SKIP: strace is not installed");
        return;
    }
    let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let policy = developer();
    let names: BTreeMap<String, usize> =
        policy.by_name.iter().map(|(name, index)| (String::from_utf8_lossy(name).into_owned(), *index)).collect();
    let mut all = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for (name, index) in names {
        let node = &policy.nodes[index];
        let looks = node.act.as_deref().is_some_and(|act| LOOKS.contains(&act) && act != "info");
        if !looks || node.runs.is_some() || !node.children.is_empty() || LEFT_OUT.contains(&name.as_str()) {
            continue;
        }
        // Of several names with one description, one.
        let Some(path) = installed(&name).filter(|_| seen.insert(index)) else { continue };
        for argv in commands(&name, node) {
            let verdict = judge(&policy, &path, &argv);
            if verdict.tier == Tier::Allow && verdict.categories().all(|c| LOOKS.contains(&c)) {
                all.push((path.clone(), argv));
            }
        }
    }
    let ran = all.len();
    let half = |commands: &[(PathBuf, Vec<Vec<u8>>)]| {
        let mut wrong = Vec::new();
        for (path, argv) in commands {
            for line in run(path, argv.get(1..).unwrap_or_default(), root) {
                let shown: Vec<_> = argv.iter().map(|w| String::from_utf8_lossy(w)).collect();
                wrong.push(format!("{}: {line}", shown.join(" ")));
            }
        }
        wrong
    };
    let (left, right) = all.split_at(ran / 2);
    let wrong = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(right));
        let mut wrong = half(left);
        wrong.extend(other.join().expect("a thread of this test"));
        wrong
    });
    assert!(wrong.is_empty(), "{} of {ran}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran >= 300, "{ran} commands were run: a Debian without extras has more");
}
