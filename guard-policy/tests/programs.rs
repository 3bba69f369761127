//! Program knowledge: the examples in each file hold under the `developer` profile, and the files are whole.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use guard_policy::{Policy, Source};

fn developer() -> Policy {
    let text = "version: 1\nextends: developer\n";
    Policy::load(&[Source { name: "test", text }]).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn examples_of_every_program_file_hold() {
    let policy = developer();
    let mut wrong = Vec::new();
    let mut bare = Vec::new();
    for source in Policy::built_in() {
        let (count, unmet) = policy.test(source).unwrap_or_else(|e| panic!("{e}"));
        if count < 3 && source.name.contains("programs/") {
            bare.push(source.name);
        }
        for one in unmet {
            let said = one.verdict.map(|v| format!("{}: {:?}", v.tier, v.reasons.first())).unwrap_or_default();
            wrong.push(format!("{} `{}` shall be {}, is {said}", one.place, one.command, one.expected));
        }
    }
    assert!(wrong.is_empty(), "{} do not hold:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(bare, [""; 0], "files without examples");
}

#[test]
fn every_file_of_the_folders_is_built_in() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let built_in: Vec<&str> = Policy::built_in().map(|s| s.name).collect();
    for folder in ["programs", "profiles"] {
        for entry in std::fs::read_dir(root.join(folder)).expect("a folder") {
            let file = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            let name = format!("built-in {folder}/{}", file.trim_end_matches(".yaml"));
            assert!(built_in.contains(&name.as_str()), "{name} is not in src/builtin.rs");
        }
    }
}
