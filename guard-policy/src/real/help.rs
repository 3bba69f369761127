//! Flags as declared, and as the program's own help lists them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::{LOOKS, developer, installed};
use crate::model::{Node, Value};

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
    /// Only attached to it.
    Maybe,
}

/// Programs beside those that only look, of which the help is GNU's or like it.
const MORE: &[&str] = &[
    "cp",
    "mv",
    "ln",
    "rm",
    "rmdir",
    "touch",
    "mkdir",
    "mkfifo",
    "mktemp",
    "truncate",
    "tee",
    "chmod",
    "chown",
    "chgrp",
    "chcon",
    "tar",
    "gzip",
    "gunzip",
    "xz",
    "split",
    "shred",
    "nice",
    "ionice",
    "stdbuf",
    "timeout",
    "xargs",
    "taskset",
    "nohup",
    "setsid",
    "env",
    "wget",
    "curl",
    "rsync",
    "find",
    "dpkg",
    "dpkg-query",
    "date",
    "journalctl",
    "systemctl",
    "crontab",
];

/// Where the help is not what the program does, or two programs of the name take different things; and why.
const KNOWN: &[(&str, &str, &str)] = &[
    ("yq", "", "two programs have this name"),
    ("diff", "", "-u and -c take their number attached, as -U 3; the help lists both in one line"),
    ("sort", "", "its help shows the long flag's value for all of `check`"),
    ("less", "", "its help puts every value in brackets"),
    ("shasum", "", "its help shows no value"),
    ("top", "", "its help shows no values"),
    ("xxd", "-s", "its help shows the parts of the value that may be left out"),
    ("curl", "--proxy", "its help shows the parts of the value that may be left out"),
    ("dpkg-query", "", "what follows these commands are operands: there they are judged"),
    ("dpkg", "", "what follows these commands are operands: there they are judged"),
    ("ls", "-p", "its help says `-p, --indicator-style=slash`"),
    ("dir", "-p", "its help says `-p, --indicator-style=slash`"),
    ("vdir", "-p", "its help says `-p, --indicator-style=slash`"),
    ("ps", "", "its help groups flags by what they select"),
    ("kill", "", "a shell builtin in most uses; its list is words"),
    ("curl", "--help", "the category is an operand"),
    ("curl", "-h", "the category is an operand"),
    ("lsof", "", "its help shows values by example"),
    ("zgrep", "", "a script whose help is grep's own, folded"),
    ("xzgrep", "", "a script whose help is grep's own, folded"),
];

fn help(path: &std::path::Path, args: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command
        .arg("5")
        .arg(path)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("COLUMNS", "400");
    let output = command.stdin(Stdio::null()).current_dir("/").output().expect("timeout of coreutils");
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n")
}

/// Reads lines such as `  -s, --size=SIZE   text`.
fn listed(text: &str) -> BTreeMap<String, Option<Takes>> {
    let mut found: BTreeMap<String, Option<Takes>> = BTreeMap::new();
    for line in
        text.lines().filter(|line| line.trim_start().starts_with('-') && line.len() - line.trim_start().len() <= 12)
    {
        for (name, takes) in of_line(line.trim_start()) {
            // Listed twice and differently: nothing is known.
            found.entry(name).and_modify(|known| *known = known.filter(|k| Some(*k) == takes)).or_insert(takes);
        }
    }
    found
}

fn of_line(line: &str) -> Vec<(String, Option<Takes>)> {
    let mut line = line.replace("[no-]", "");
    while line.contains(",  ") {
        line = line.replace(",  ", ", ");
    }
    // `-f   --format=X` and `-f --format=X`.
    if let Some((short, rest)) = line.split_once(' ').filter(|(short, _)| short.len() == 2)
        && rest.trim_start().starts_with("--")
    {
        line = format!("{short}, {}", rest.trim_start());
    }
    let head = line.split("  ").next().unwrap_or_default().split('\t').next().unwrap_or_default();
    let parts: Vec<(String, Option<Takes>)> =
        head.split(", ").flat_map(|part| part.split(" or ")).filter_map(of_part).collect();
    let any_value = parts.iter().any(|(_, takes)| *takes == Some(Takes::Value));
    let any_maybe = parts.iter().any(|(_, takes)| *takes == Some(Takes::Maybe));
    let given = |(name, takes): (String, Option<Takes>)| match takes {
        // GNU: what is mandatory for the long flag is for the short one too.
        Some(Takes::Nothing) if any_value => (name, Some(Takes::Value)),
        Some(Takes::Nothing) if any_maybe && !name.starts_with("--") => (name, None),
        Some(Takes::Nothing) if any_maybe => (name, Some(Takes::Maybe)),
        takes => (name, takes),
    };
    parts.into_iter().map(given).collect()
}

fn of_part(part: &str) -> Option<(String, Option<Takes>)> {
    let part = part.trim();
    let body = part.strip_prefix('-')?;
    let long = body.starts_with('-');
    let body = body.trim_start_matches('-');
    let plain = |c: char| c.is_ascii_alphanumeric() || (long && "-_".contains(c));
    let end = if long {
        body.find(|c: char| !plain(c)).unwrap_or(body.len())
    } else {
        body.chars().next().map_or(0, char::len_utf8)
    };
    let (name, rest) = body.split_at(end);
    if name.is_empty() || !name.chars().all(plain) {
        return None;
    }
    let takes = match rest.chars().next() {
        None => Some(Takes::Nothing),
        Some('[') => Some(Takes::Maybe),
        Some('=' | '<') => Some(Takes::Value),
        Some(' ') => match rest.trim_start().chars().next() {
            Some('[') => Some(Takes::Maybe),
            Some('<' | '{') => Some(Takes::Value),
            Some(c) if c.is_ascii_uppercase() && !rest.trim().contains(' ') => Some(Takes::Value),
            _ => None,
        },
        // A short flag with more letters, such as `-vv`.
        Some(_) => return None,
    };
    Some((format!("{}{name}", if long { "--" } else { "-" }), takes))
}

/// What would be read otherwise than the program reads it.
fn differs(name: &str, declared: Value, real: Takes) -> bool {
    match (declared, real) {
        (Value::None, Takes::Nothing) | (Value::Required(_), Takes::Value) | (Value::Optional(_), Takes::Maybe) => {
            false
        }
        // A value attached to a long flag that takes none is an error of the program, or unknown to us.
        (Value::Optional(_), Takes::Nothing) | (Value::None, Takes::Maybe) => !name.starts_with("--"),
        (Value::None, Takes::Value)
        | (Value::Required(_), Takes::Nothing | Takes::Maybe)
        | (Value::Optional(_), Takes::Value) => true,
    }
}

fn compare(what: &str, program: &str, node: &Node, text: &str, wrong: &mut Vec<String>) -> bool {
    let real = listed(text);
    for (spelled, index) in &node.by_flag {
        let name = String::from_utf8_lossy(spelled);
        let (Some(flag), Some(Some(takes))) = (node.flags.get(*index), real.get(name.as_ref())) else { continue };
        let known = KNOWN.iter().any(|(p, f, _)| *p == program && (f.is_empty() || *f == name));
        if differs(&name, flag.value, *takes) && !known {
            wrong.push(format!("{what} {name}: declared {:?}, the program takes {takes:?}", flag.value));
        }
    }
    !real.is_empty()
}

#[test]
fn flags_take_what_the_program_says_that_they_take() {
    let policy = developer();
    let mut wrong = Vec::new();
    let mut compared = 0;
    let names: std::collections::BTreeMap<String, usize> =
        policy.by_name.iter().map(|(name, index)| (String::from_utf8_lossy(name).into_owned(), *index)).collect();
    for (name, index) in names {
        let node = &policy.nodes[index];
        let looks = node.act.as_deref().is_some_and(|act| LOOKS.contains(&act));
        let Some(path) = installed(&name).filter(|_| looks || MORE.contains(&name.as_str())) else { continue };
        let args: &[&str] = if name == "curl" { &["--help", "all"] } else { &["--help"] };
        compared += usize::from(compare(&name, &name, node, &help(&path, args), &mut wrong));
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {compared} programs:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared >= 60, "{compared} programs were compared: a Debian without extras has more");
}

/// Where the help does not show that a value is optional, or may be a word of its own: then it is text, as the operands of these are.
const GIT_KNOWN: &[&str] = &[
    "-M",
    "-C",
    "-B",
    "--abbrev",
    "--no-abbrev",
    "--diff-filter",
    "--merged",
    "--no-merged",
    "--contains",
    "--no-contains",
];

#[test]
fn subcommands_of_git_take_what_git_says() {
    let own = std::path::PathBuf::from("/usr/local/bin/git");
    let git = installed("git").or_else(|| own.is_file().then_some(own)).expect("git is installed");
    let policy = developer();
    let node = policy.program(b"git").expect("described");
    let mut wrong = Vec::new();
    let mut compared = 0;
    for (name, index) in &node.subcommands {
        let child = &node.children[*index];
        if child.act.as_deref() != Some("vcs.read") || !name.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
            continue;
        }
        let mut here = Vec::new();
        compared += usize::from(compare(&format!("git {name}"), "git", child, &help(&git, &[name, "-h"]), &mut here));
        here.retain(|line| !GIT_KNOWN.iter().any(|flag| line.starts_with(&format!("git {name} {flag}:"))));
        wrong.extend(here);
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{} of {compared} subcommands:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared >= 10, "{compared} subcommands were compared");
}

#[test]
fn help_texts_are_read() {
    let text = "  -s, --size=SIZE    text\n  -c[N]  text\n  -a, --all\n  --color[=WHEN]  x\n  -p DIR, --tmpdir[=DIR]  x\n \
                -t        --totals  x\n  -i, --in-place[=X]\n -n <number>  x\n";
    let said = listed(text);
    let takes = |name: &str| said.get(name).copied().unwrap_or_default();
    for (names, expected) in [
        (&["-s", "--size", "-p", "-n"][..], Takes::Value),
        (&["-c", "--color", "--tmpdir", "--in-place"], Takes::Maybe),
        (&["-a", "--all", "-t", "--totals"], Takes::Nothing),
    ] {
        for name in names {
            assert_eq!(takes(name), Some(expected), "{name}");
        }
    }
    assert_eq!(said.get("-i"), Some(&None), "whether the short one takes it is not said");
}
