//! Hostile input: whatever bytes are handed over, judging ends soon, never panics, and never allows what it did not read.
//!
//! A small fuzz driver with the examples of all program files as its corpus: cargo-fuzz needs a nightly compiler. Longer runs:
//! `GUARD_FUZZ_ROUNDS=1000000 cargo test --release -p guard-policy --test hostile`.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::{Duration, Instant};

use guard_policy::{Facts, FileRef, Policy, Role, Source, Stdin, Tier, Verdict};

/// Rounds of the driver without `GUARD_FUZZ_ROUNDS`.
const ROUNDS: usize = 20_000;
/// Longest that one judgement may take, in a build without optimisation on a machine that does other work too.
const LONGEST: Duration = Duration::from_secs(2);

fn developer() -> Policy {
    Policy::load(&[Source { name: "t", text: "version: 1\nextends: [developer, sre, ci, data]\n" }])
        .unwrap_or_else(|e| panic!("{e}"))
}

fn judge(policy: &Policy, argv: &[Vec<u8>], env: &[Vec<u8>]) -> Verdict {
    let name = argv.first().cloned().unwrap_or_default();
    let path = [b"/usr/bin/".as_slice(), &name].concat();
    let files = [FileRef { path: &path, role: Role::Program, session_writable: false, foreign: false }];
    let (cwd, home) = (b"/home/dev/work".as_slice(), b"/home/dev".as_slice());
    let started = Instant::now();
    let facts =
        Facts { argv, files: &files, cwd, home, workspace: cwd, uid: 1000, env, stdin: Stdin::Pipe, entry: false };
    let verdict = policy.decide(&facts);
    assert!(
        started.elapsed() < LONGEST,
        "{:?} for {:?}",
        started.elapsed(),
        argv.iter().map(|w| String::from_utf8_lossy(w)).collect::<Vec<_>>()
    );
    assert!(verdict.risk <= 100 && verdict.reasons.len() <= 34 && verdict.targets.len() <= 64);
    verdict
}

fn examples() -> Vec<(Tier, Vec<Vec<u8>>)> {
    Policy::built_in().flat_map(|source| Policy::examples(source).unwrap()).collect()
}

/// Xorshift: the same mutations in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }
}

const PIECES: &[&[u8]] = &[
    b"-",
    b"--",
    b"=",
    b"$(",
    b")",
    b"`",
    b"\"",
    b"'",
    b"{",
    b"}",
    b";",
    b"\n",
    b"\xff",
    b"*",
    b"?",
    b"[",
    b"../",
    b"/etc/shadow",
    b"{}",
    b"+",
    b"--help",
    b"-c",
    b"$X",
    b"|",
    b">",
    b"<<E",
    b"@",
    b"file://",
    b"%n",
    b"\0x",
    b"~",
    b":::",
    b"((",
    b"rm -rf ",
    b"&&",
];

fn mutate(argv: &mut Vec<Vec<u8>>, random: &mut Random, others: &[(Tier, Vec<Vec<u8>>)]) {
    for _ in 0..=random.below(4) {
        let at = random.below(argv.len());
        let piece = PIECES[random.below(PIECES.len())];
        match random.below(7) {
            0 => argv.insert(at, piece.to_vec()),
            1 if argv.len() > 1 => drop(argv.remove(at)),
            2 => {
                let word = argv[at].clone();
                argv.push(word);
            }
            3 => {
                let end = argv[at].len();
                let place = random.below(end + 1);
                argv[at].splice(place..place, piece.iter().copied());
            }
            4 => {
                let other = &others[random.below(others.len())].1;
                argv.extend(other.iter().cloned());
            }
            5 => {
                let place = random.below(argv[at].len());
                if let Some(byte) = argv[at].get_mut(place) {
                    *byte = (random.below(255) + 1) as u8;
                }
            }
            _ => {
                let word = argv[at].repeat(random.below(64) + 1);
                argv[at] = word;
            }
        }
    }
}

#[test]
fn mutated_commands_are_judged_soon_and_without_panic() {
    let rounds = std::env::var("GUARD_FUZZ_ROUNDS").ok().and_then(|v| v.parse().ok()).unwrap_or(ROUNDS);
    let (policy, corpus) = (developer(), examples());
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..rounds {
        let mut argv = corpus[random.below(corpus.len())].1.clone();
        let program = argv[0].clone();
        mutate(&mut argv, &mut random, &corpus);
        if random.below(4) > 0 && !argv.is_empty() {
            argv[0] = program;
        }
        let env = [PIECES[random.below(PIECES.len())].to_vec(), b"GIT_PAGER=x".to_vec()];
        judge(&policy, &argv, &env);
        let text: Vec<u8> = argv.join(b" ".as_slice());
        judge(&policy, &[b"sh".to_vec(), b"-c".to_vec(), text], &[]);
    }
}

/// Programs of the examples that take any text whatever, or hand a word that they do not know on to what they start.
const ANY_TEXT: &[&str] = &["echo", "printf", "bash", "test"];

#[test]
fn an_unknown_flag_is_never_allowed() {
    let policy = developer();
    let mut allowed = Vec::new();
    for (_, argv) in examples().into_iter().filter(|(tier, _)| *tier == Tier::Allow) {
        if ANY_TEXT.iter().any(|name| argv[0] == name.as_bytes()) {
            continue;
        }
        for flag in ["--Zzz-unknown", "-\u{1}", "--Zzz=x"] {
            let with = [&argv[..1], &[flag.as_bytes().to_vec()], &argv[1..]].concat();
            let verdict = judge(&policy, &with, &[]);
            if verdict.tier == Tier::Allow {
                allowed.push(format!("{:?}", with.iter().map(|w| String::from_utf8_lossy(w)).collect::<Vec<_>>()));
            }
        }
    }
    assert!(allowed.is_empty(), "allowed:\n{}", allowed.join("\n"));
}

#[test]
fn an_unknown_variable_value_or_command_in_a_known_place_is_never_allowed() {
    let policy = developer();
    for (_, argv) in examples().into_iter().filter(|(tier, _)| *tier == Tier::Allow) {
        let shell: Vec<String> =
            argv.iter().map(|w| format!("'{}'", String::from_utf8_lossy(w).replace('\'', "'\\''"))).collect();
        let line = shell.join(" ");
        for wrapped in [
            format!("{line} > out"),
            format!("LD_PRELOAD=x {line}"),
            format!("{line}; ./x"),
            format!("$X {line}"),
            format!("{line} | sh"),
            format!("PATH=. {line}"),
        ] {
            let text = wrapped.clone().into_bytes();
            assert_ne!(judge(&policy, &[b"sh".to_vec(), b"-c".to_vec(), text], &[]).tier, Tier::Allow, "{wrapped}");
        }
    }
}

#[test]
fn what_is_too_long_to_be_read_is_for_a_person() {
    let policy = developer();
    for program in ["cat", "git", "aws", "find", "sed", "xargs", "docker", "echo", "env", "tar", "kubectl"] {
        let mut argv = vec![program.as_bytes().to_vec()];
        argv.extend((0..100_000).map(|i| format!("a{i}").into_bytes()));
        assert_eq!(judge(&policy, &argv, &[]).tier, Tier::Review, "{program}");
        let long = vec![program.as_bytes().to_vec(), vec![b'a'; 2 << 20]];
        assert_eq!(judge(&policy, &long, &[]).tier, Tier::Review, "{program}");
        let env: Vec<Vec<u8>> = (0..100_000).map(|i| format!("LD_{i}=x").into_bytes()).collect();
        judge(&policy, &argv[..2], &env);
    }
    for program in ["env", "nice", "timeout", "xargs", "nohup", "parallel", "watch"] {
        let argv: Vec<Vec<u8>> = (0..4_000).map(|_| program.as_bytes().to_vec()).collect();
        assert_ne!(judge(&policy, &argv, &[]).tier, Tier::Allow, "{program}");
    }
}
