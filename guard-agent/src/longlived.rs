//! Keys without an end that a session would find: in the variables that it is handed, and in well-known files of its user's home.
//!
//! It reads no file that the user could not read, keeps and shows none of what it reads, and never waits for a pipe or a device. Fails:
//! towards saying nothing; what does not look like such a key is none.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guard_policy::secrets;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::kernel::proc::User;

/// Bytes of a file that are looked at.
const FILE_MAX: u64 = 256 << 10;
/// Files of `~/.ssh` that are looked at.
const KEYS_MAX: usize = 200;
/// What is put on record.
const FOUND_MAX: usize = 100;

/// What is done about them.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnLongLived {
    /// They are put on record.
    #[default]
    Record,
    /// The same, and the session does not get the variables. Files stay as they are.
    Strip,
    /// The session does not start.
    Refuse,
}

impl OnLongLived {
    /// As records name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Strip => "strip",
            Self::Refuse => "refuse",
        }
    }
}

/// What was found: names only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Names of variables.
    pub variables: Vec<String>,
    /// Files, with what is in them.
    pub files: Vec<String>,
}

impl Found {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.files.is_empty()
    }
}

/// Looks at the variables that the session is to be handed, and into the home folder.
pub fn look(env: &[Vec<u8>], user: &User) -> Found {
    let variables =
        env.iter().filter(|entry| is_key(entry)).filter_map(|entry| name_of(entry)).take(FOUND_MAX).collect();
    let home = PathBuf::from(std::ffi::OsStr::from_bytes(&user.home));
    Found { variables, files: files(&home, user.uid) }
}

/// Takes variables out.
pub fn strip(env: &mut Vec<Vec<u8>>, found: &Found) {
    env.retain(|entry| name_of(entry).is_none_or(|name| !found.variables.contains(&name)));
}

fn name_of(entry: &[u8]) -> Option<String> {
    let end = entry.iter().position(|b| *b == b'=')?;
    Some(String::from_utf8_lossy(entry.get(..end)?).into_owned())
}

/// A variable whose value is a secret by its name or by its shape. What AWS calls a session's key has an end.
fn is_key(entry: &[u8]) -> bool {
    !entry.starts_with(b"AWS_SESSION_TOKEN=") && !secrets::mask("", &[entry.to_vec()]).secrets.is_empty()
}

type Test = fn(&str) -> bool;

/// Files by place, what they hold, and how that is known.
const PLACES: &[(&str, &str, Test)] = &[
    (".aws/credentials", "access key", |text| {
        has_line(text, |l| value(l, "aws_access_key_id").is_some_and(|v| v.starts_with("AKIA")))
    }),
    (".kube/config", "token, password or client key", |text| {
        has_line(text, |l| {
            ["token:", "password:", "client-key-data:"]
                .iter()
                .any(|key| l.trim_start_matches("- ").starts_with(key) && l.len() > key.len())
        })
    }),
    (".netrc", "password", |text| text.split_whitespace().any(|word| word == "password")),
    (".pgpass", "password", |text| has_line(text, |l| !l.starts_with('#') && l.split(':').count() >= 5)),
    (".config/gcloud/application_default_credentials.json", "refresh token or private key", |text| {
        text.contains("\"refresh_token\"") || text.contains("\"private_key\"")
    }),
    (".config/gcloud/credentials.db", "login", |text| !text.is_empty()),
    (".docker/config.json", "registry login", |text| has_json(text, &["\"auth\":", "\"identitytoken\":"])),
    (".vault-token", "token", |text| !text.trim().is_empty()),
];

fn has_line(text: &str, test: impl Fn(&str) -> bool) -> bool {
    text.lines().map(str::trim).any(|line| !line.is_empty() && test(line))
}

fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    Some(line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim())
}

/// Whether one of these keys has a text that is not empty.
fn has_json(text: &str, keys: &[&str]) -> bool {
    let full = |rest: &str| rest.trim_start().strip_prefix('"').is_some_and(|rest| !rest.starts_with('"'));
    keys.iter().any(|key| text.split(key).skip(1).any(full))
}

/// A private key that no passphrase protects.
fn is_open_key(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("-----BEGIN ") else { return false };
    let Some((kind, body)) = rest.split_once("PRIVATE KEY-----") else { return false };
    match kind.trim() {
        "ENCRYPTED" => false,
        // The form of OpenSSH names its cipher in the first bytes; these are the name's length and `none`, in base64.
        "OPENSSH" => body.trim_start().starts_with("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU"),
        _ => !body.contains("ENCRYPTED"),
    }
}

fn files(home: &Path, uid: u32) -> Vec<String> {
    let known = PLACES.iter().filter(|(place, _, test)| read(&home.join(place), uid).is_some_and(|text| test(&text)));
    let mut found: Vec<String> = known.map(|(place, what, _)| format!("~/{place}: {what}")).collect();
    for entry in std::fs::read_dir(home.join(".ssh")).into_iter().flatten().flatten().take(KEYS_MAX) {
        if read(&entry.path(), uid).is_some_and(|text| is_open_key(&text)) {
            found.push(format!(
                "~/.ssh/{}: private key without passphrase",
                entry.file_name().to_string_lossy().escape_debug()
            ));
        }
    }
    found.sort();
    found.truncate(FOUND_MAX);
    found
}

/// A plain file of the user's own, or one that everybody may read. What it is, is known before it is opened.
fn read(path: &Path, uid: u32) -> Option<String> {
    let place = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let meta = File::from(place.try_clone().ok()?).metadata().ok()?;
    let readable = meta.uid() == uid || meta.permissions().mode() & 0o004 != 0;
    if !meta.is_file() || !readable {
        return None;
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).ok()?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(entries: &[&str]) -> Vec<Vec<u8>> {
        entries.iter().map(|e| e.as_bytes().to_vec()).collect()
    }

    fn user(home: &Path) -> User {
        User {
            name: "me".into(),
            uid: rustix::process::getuid().as_raw(),
            gid: 0,
            home: home.as_os_str().as_bytes().to_vec(),
            shell: Vec::new(),
            groups: Vec::new(),
        }
    }

    #[test]
    fn variables_are_known_by_name_or_shape_and_taken_out() {
        let home = tempfile::tempdir().unwrap();
        let mut env =
            env(&["PATH=/bin", "GITHUB_TOKEN=abcdefgh12345678", "CI=true", "X=AKIAABCDEFGHIJKLMNOP", "LC_ALL=C"]);
        let found = look(&env, &user(home.path()));
        assert_eq!(found.variables, ["GITHUB_TOKEN", "X"]);
        strip(&mut env, &found);
        assert_eq!(env.len(), 3);
        assert!(look(&env, &user(home.path())).is_empty());
    }

    #[test]
    fn files_are_known_by_what_is_in_them() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let files = || files(home.path(), rustix::process::getuid().as_raw());
        write(".aws/credentials", "[default]\naws_access_key_id = ASIAXXXXXXXXXXXXXXXX\n");
        write(".docker/config.json", "{\"auths\": {\"r\": {\"auth\": \"\"}}}");
        write(".pgpass", "# host:port:db:user:password\n");
        write(".kube/config", "users:\n- name: x\n  user:\n    exec: {}\n");
        write(
            ".ssh/id_a",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAG\n-----END",
        );
        write(".ssh/id_b", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n");
        write(".ssh/id_c.pub", "ssh-ed25519 AAAA");
        assert_eq!(files(), Vec::<String>::new());
        write(".aws/credentials", "[default]\naws_access_key_id = AKIAXXXXXXXXXXXXXXXX\n");
        write(".docker/config.json", "{\"auths\": {\"r\": {\"auth\": \"dTpw\"}}}");
        write(".pgpass", "db:5432:*:me:hunter2\n");
        write(".kube/config", "users:\n- name: x\n  user:\n    token: eyJ\n");
        write(".ssh/id_a", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n-----END");
        write(".ssh/id_b", "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n");
        let found = files();
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(!found.join(" ").contains("hunter2"));
    }

    #[test]
    fn nothing_is_waited_for_and_nothing_of_others_is_read() {
        let home = tempfile::tempdir().unwrap();
        let pipe = home.path().join(".netrc");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(read(&pipe, rustix::process::getuid().as_raw()), None);
        let own = home.path().join("own");
        std::fs::write(&own, "password").unwrap();
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&own, u32::MAX - 1), None);
    }
}
