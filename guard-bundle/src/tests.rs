use super::*;

fn key() -> KeyFile {
    KeyFile::generate("guard-admin/test").expect("key")
}

fn files() -> Vec<(String, String)> {
    vec![("policy/team.yaml".into(), "rules: []\n".into()), (ROLES.into(), "roles: {}\n".into())]
}

fn stages() -> Vec<(String, Stage)> {
    vec![("*".into(), Stage::Enforce), ("coder".into(), Stage::Shadow)]
}

#[test]
fn what_was_signed_is_what_is_read() {
    let key = key();
    let made = Bundle::sign(7, 1_790_000_000, stages(), files(), &key).expect("signed");
    let read = Bundle::open(made.bytes().clone(), &key.verifier()).expect("read");
    assert_eq!((read.manifest().serial(), read.manifest().made_unix()), (7, 1_790_000_000));
    assert_eq!(read.manifest().stage_of("coder", 0), Stage::Shadow);
    assert_eq!(read.manifest().stage_of("other", 0), Stage::Enforce);
    assert!(!read.manifest().is_whole());
    assert_eq!(read.policy().collect::<Vec<_>>(), [("policy/team.yaml", "rules: []\n")]);
    assert_eq!(read.roles(), Some("roles: {}\n"));
    assert_eq!(read.digest(), made.digest());
}

/// Each is one change of a good bundle, and what is said of it.
#[test]
fn nothing_of_a_changed_bundle_is_read() {
    let (key, other) = (key(), key());
    let good = Bundle::sign(7, 1, stages(), files(), &key).expect("signed").bytes().clone();
    let said = |bytes: PolicyBundle| Bundle::open(bytes, &key.verifier()).expect_err("refused").to_string();
    let with = |change: fn(&mut PolicyBundle)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        said(bytes)
    };
    assert!(with(|b| b.note = b.note.replace("serial 7", "serial 8")).contains("signature"));
    assert!(with(|b| b.files[0].content.push(b'\n')).contains("policy/team.yaml: it is not the one that was signed"));
    assert!(with(|b| b.files.swap(0, 1)).contains("another one stands in its place"));
    assert!(with(|b| drop(b.files.pop())).contains("roles.yaml: it is missing"));
    assert!(with(|b| b.files.push(b.files[0].clone())).contains("the manifest does not name it"));
    assert!(with(|b| b.note.clear()).contains("manifest"));
    let foreign = Bundle::sign(7, 1, stages(), files(), &other).expect("signed").bytes().clone();
    assert!(!said(foreign).is_empty(), "a key of the same name that is another one");
}

/// Texts that the admin key signed by mistake, or for another purpose.
#[test]
fn only_the_one_form_is_read() {
    let head = "guard policy bundle v1\nserial 7\nmade 1\n";
    let file = format!("file policy/a 1 {}\n", hex::encode(Sha256::digest(b"a")));
    let cases = [
        ("guard log succession v1\n".to_owned(), "`guard policy bundle v1…` is expected"),
        ("guard policy bundle v12\n".to_owned(), "follow the version"),
        ("guard policy bundle v1\nserial 0\nmade 1\n".to_owned(), "no number from 1 on"),
        ("guard policy bundle v1\nserial 07\nmade 1\n".to_owned(), "no number from 1 on"),
        (format!("{head}stage * enforce\n"), "no file of policy"),
        (format!("{head}{file}"), "no `stage *`"),
        (format!("{head}{file}stage * enforce\n"), "one spelling"),
        (format!("{head}stage * enforce\nstage * shadow\n{file}"), "two stages"),
        (format!("{head}stage * perhaps\n{file}"), "accepted are observe"),
        (format!("{head}stage * enforce 9\n{file}"), "accepted are observe"),
        (format!("{head}stage * enforce\nstage a observe\n{file}"), "accepted are observe"),
        (format!("{head}stage * enforce\nstage a observe 09\n{file}"), "accepted are observe"),
        (format!("{head}stage * observe 9\n{file}"), "must be named"),
        (format!("{head}stage * enforce\nstage a observe 1\n{file}"), "the end must be"),
        (format!("{head}stage * enforce\nstage a observe 2592002\n{file}"), "the end must be"),
        (format!("{head}stage a\u{301} enforce\n{file}"), "accepted are `*`"),
        (format!("{head}stage * enforce\n{file}{file}"), "named twice"),
        (format!("{head}stage * enforce\n{}", file.replace("policy/a", "policy/../a")), "accepted are roles.yaml"),
        (format!("{head}stage * enforce\n{}", file.replace(" 1 ", " 99999999 ")), "bytes"),
        (format!("{head}stage * enforce\n{file}more\n"), "neither"),
    ];
    for (text, expected) in cases {
        let error = Manifest::parse(&text).expect_err("refused").to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(Manifest::parse(&format!("{head}stage * enforce\n{file}")).is_ok());
}

#[test]
fn an_agent_is_observed_by_name_alone_and_not_for_ever() {
    let end = 1_790_000_000 + OBSERVE_SECONDS_MAX;
    let stages = vec![("*".into(), Stage::Shadow), ("coder".into(), Stage::Observe { until_unix: end })];
    let made = Bundle::sign(7, 1_790_000_000, stages, files(), &key()).expect("signed");
    let manifest = made.manifest();
    assert_eq!(manifest.stage_of("coder", end - 1), Stage::Observe { until_unix: end });
    assert_eq!(manifest.stage_of("coder", end), Stage::Enforce);
    assert_eq!(manifest.stage_of("coder2", 0), Stage::Shadow);
    assert_eq!(manifest.observed(end - 1).collect::<Vec<_>>(), [("coder", end)]);
    assert_eq!(manifest.observed(end).count(), 0);
    assert!(!manifest.is_whole(), "it is not the one that counts for every agent");
}
