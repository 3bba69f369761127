//! What reads an agent's commands and an administrator's files: the targets of `guard-policy`.
//!
//! The grammar of shells is another's and may panic; `guard-policy` catches that, so that only what comes through counts.

use std::sync::LazyLock;

use guard_policy::roles::{Known, Roles};
use guard_policy::secrets;
use guard_policy::{Facts, FileRef, Policy, Role, Source, Stdin, Verdict};

use crate::targets::Target;

/// All of them.
pub const ALL: &[Target] = &[
    Target { name: "commands", seeds: command_seeds, run: commands },
    Target { name: "shell", seeds: shell_seeds, run: shell },
    Target { name: "policies", seeds: policy_seeds, run: policies },
    Target { name: "roles", seeds: role_seeds, run: roles },
    Target { name: "secrets", seeds: command_seeds, run: masks },
];

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    Policy::load(&[Source { name: "t", text: "version: 1\nextends: [developer, sre, ci, data]\n" }])
        .unwrap_or_else(|e| panic!("{e}"))
});

/// Arguments with NUL between them.
fn words(data: &[u8]) -> Vec<Vec<u8>> {
    data.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

fn judge(argv: &[Vec<u8>]) -> Verdict {
    let name = argv.first().cloned().unwrap_or_default();
    let path = [b"/usr/bin/".as_slice(), &name].concat();
    let files = [FileRef { path: &path, role: Role::Program, session_writable: false, foreign: false }];
    let (cwd, home) = (b"/home/dev/work".as_slice(), b"/home/dev".as_slice());
    let facts =
        Facts { argv, files: &files, cwd, home, workspace: cwd, uid: 1000, env: &[], stdin: Stdin::Pipe, entry: false };
    let verdict = POLICY.decide(&facts);
    assert!(verdict.risk <= 100 && verdict.reasons.len() <= 34 && verdict.targets.len() <= 64);
    verdict
}

fn commands(data: &[u8]) {
    judge(&words(data));
}

/// What a shell is given is never freer than the freest of what it starts alone: an empty text is what it is.
fn shell(data: &[u8]) {
    if !data.contains(&0) {
        judge(&[b"bash".to_vec(), b"-c".to_vec(), data.to_vec()]);
    }
}

fn policies(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(policy) = Policy::load(&[Source { name: "t", text }]) {
        // Another text is another policy.
        let again = Policy::load(&[Source { name: "t", text }]).unwrap_or_else(|e| panic!("the second time: {e}"));
        assert_eq!(policy.digest(), again.digest());
        let _ = policy.lint();
    }
}

fn roles(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Roles::load(&Source { name: "t", text }, Known::Any);
}

/// What is masked is gone from where it stood, and everything else is as it was.
fn masks(data: &[u8]) {
    let argv = words(data);
    let masked = secrets::mask("program", &argv);
    assert_eq!(masked.argv.len(), argv.len());
    for secret in &masked.secrets {
        assert!(argv.get(secret.arg).is_some_and(|arg| arg.get(secret.at.clone()).is_some()), "{secret:?}");
    }
    for (place, (before, after)) in argv.iter().zip(&masked.argv).enumerate() {
        assert!(before == after || masked.secrets.iter().any(|secret| secret.arg == place));
    }
}

fn examples() -> impl Iterator<Item = Vec<Vec<u8>>> {
    let of = |source| Policy::examples(source).unwrap_or_else(|e| panic!("{e}"));
    Policy::built_in().flat_map(of).map(|(_, argv)| argv)
}

fn command_seeds() -> Vec<Vec<u8>> {
    examples().map(|argv| argv.join(&0)).collect()
}

fn shell_seeds() -> Vec<Vec<u8>> {
    let all = [
        "for f in *.c; do cc -c \"$f\" && rm -f \"${f%.c}.o\"; done",
        "a=$(cat x) b=`y` c <<< $a > /tmp/o 2>&1 | tee z &",
    ];
    let all = all.iter().map(|text| text.as_bytes().to_vec());
    all.chain(examples().map(|argv| argv.join(&b' '))).collect()
}

fn policy_seeds() -> Vec<Vec<u8>> {
    let example = include_bytes!("../../deploy/policy.example.yaml").to_vec();
    Policy::built_in().map(|source| source.text.as_bytes().to_vec()).chain([example]).collect()
}

fn role_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("roles.yaml").to_vec()]
}
