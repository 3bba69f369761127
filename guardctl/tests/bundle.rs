//! `guardctl policy sign` and `policy bundle`, offline, through the binary.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use guard_log::signer::KeyFile;

const POLICY: &str = "version: 1\nextends: default\nrules:\n  - id: own.no-cat\n    tier: deny\n    \
    reason: nothing is shown here\n    when: {program: [cat]}\n    match: [\"cat README.md\"]\n";

fn guardctl(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_guardctl")).args(args).current_dir(dir).output().expect("guardctl")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_bundle_is_signed_shown_and_unpacked_without_a_collector() {
    let dir = tempfile::tempdir().expect("folder");
    let key = KeyFile::generate("guard-admin/test").expect("key");
    let path = dir.path().join("admin.skey");
    fs::write(&path, key.skey().as_bytes()).expect("written");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    fs::write(dir.path().join("team.yaml"), POLICY).expect("written");
    let sign = |file: &str, more: &[&str]| {
        let args = ["policy", "sign", file, "--admin-key", "admin.skey", "--serial", "3", "--to", "team.bundle"];
        guardctl(dir.path(), &[&args, more].concat())
    };

    // What does not load is not signed, and neither is a stage that nobody knows.
    fs::write(dir.path().join("bad.yaml"), POLICY.replace("deny", "perhaps")).expect("written");
    let refused = sign("bad.yaml", &[]);
    assert_eq!(refused.status.code(), Some(78), "{}", said(&refused));
    // Nobody is observed for ever, nor for want of a name.
    for stage in ["coder=perhaps", "coder=observe", "coder=observe:99d", "*=observe:7d", "coder=shadow:7d"] {
        assert_eq!(sign("team.yaml", &["--stage", stage]).status.code(), Some(64), "{stage}");
    }
    assert!(!dir.path().join("team.bundle").exists());

    let signed = sign("team.yaml", &["--stage", "coder=shadow", "--stage", "writer=observe:14d"]);
    assert!(signed.status.success(), "{}", said(&signed));
    assert!(said(&signed).contains("WHAT AGENT writer DOES IS ONLY RECORDED until 2"), "{}", said(&signed));
    assert!(!sign("team.yaml", &[]).status.success(), "another bundle is not written over");
    let vkey = key.vkey();
    let show = |more: &[&str], vkey: &str| {
        guardctl(dir.path(), &[&["policy", "bundle", "team.bundle", "--admin-vkey", vkey], more].concat())
    };
    let shown = said(&show(&["--to", "out"], &vkey));
    for expected in
        ["bundle 3", "stage  * enforce", "stage  coder shadow", "stage  writer observe until 2", "policy/team.yaml"]
    {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("out/team.yaml")).expect("unpacked"), POLICY);

    // Another key of the same name, and one changed byte.
    let other = KeyFile::generate("guard-admin/test").expect("key");
    assert_eq!(show(&[], &other.vkey()).status.code(), Some(1));
    let mut bytes = fs::read(dir.path().join("team.bundle")).expect("read");
    let last = bytes.last_mut().expect("not empty");
    *last ^= 1;
    fs::write(dir.path().join("team.bundle"), bytes).expect("written");
    let refused = show(&[], &vkey);
    assert!(
        refused.status.code() == Some(1) && said(&refused).contains("not the one that was signed"),
        "{}",
        said(&refused)
    );
}
