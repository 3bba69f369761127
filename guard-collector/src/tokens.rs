//! Join tokens: made for one name, used once, gone after a while.
//!
//! A token is `guard-join:1:NAME:ID:SECRET:CA`: an id to find it by, a random secret of 192 bits, and the SHA-256 of the CA's
//! certificate, by which a host knows the collector before it has the CA. Kept is one file for each, with the secret's digest
//! alone. It must not keep or log a secret. Fails: an error that names the file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::frame;
use guard_proto::JOIN_TOKEN;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x509_parser::pem::parse_x509_pem;

use crate::exit::{CollectorError, Exit, Result};
use crate::identity::Role;
use crate::own::now_ns;
use crate::pki;

/// Bytes of a token's id.
pub const ID_BYTES: usize = 8;
/// Bytes of its secret.
pub const SECRET_BYTES: usize = 24;
/// How long a token may be used, unless another time is asked for.
pub const TTL: Duration = Duration::from_secs(3600);
/// Longest time.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 86_400);
/// An ended token is told from an unknown one for so long.
const KEPT: i64 = 86_400;
/// Tokens there may be at a time.
const COUNT_MAX: usize = 10_000;
const FILE_MAX: u64 = 64 << 10;

/// What is kept of one.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// The node that it is for.
    pub name: String,
    /// SHA-256 of the secret, in hexadecimal digits.
    pub digest: String,
    /// Who made it.
    pub by: String,
    /// When, in nanoseconds since 1970.
    pub made: i64,
    /// Its end, in seconds.
    pub expires: i64,
    /// What it was used for.
    pub used: Option<Used>,
}

/// The certificate that was issued for a token.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Used {
    /// SHA-256 of the key, in hexadecimal digits.
    pub public_key: String,
    /// Its serial.
    pub serial: String,
    /// From when it is valid.
    pub not_before: i64,
    /// Its end.
    pub not_after: i64,
    /// The certificate itself: the same key gets it again, should the answer have been lost.
    pub certificate: String,
}

/// The folder of tokens.
#[derive(Clone, Debug)]
pub struct Tokens(PathBuf);

/// SHA-256 of the bytes that a CA's PEM file holds.
pub fn fingerprint(ca_pem: &str) -> Result<[u8; 32]> {
    let (_, pem) = parse_x509_pem(ca_pem.as_bytes())
        .map_err(|e| CollectorError::new(Exit::Config, format_args!("the CA's certificate is unreadable: {e}")))?;
    Ok(Sha256::digest(&pem.contents).into())
}

/// Makes a folder for the owner of the one above it, who is also the collector's user.
pub fn folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |e| CollectorError::io(Exit::Unavailable, format_args!("cannot make {}", path.display()), &e);
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(()) => give(path).map_err(failed),
    }
}

/// Gives a file that root made to the owner of its folder.
fn give(path: &Path) -> std::io::Result<()> {
    if rustix::process::geteuid().is_root()
        && let Some(above) = path.parent()
    {
        let owner = fs::metadata(above)?;
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

/// Writes a file that must not be there, whole, durably, for the collector's user alone.
pub fn write_new(path: &Path, text: &str) -> Result<()> {
    let failed = |e| CollectorError::io(Exit::Unavailable, format_args!("cannot write {}", path.display()), &e);
    let mut half = path.as_os_str().to_owned();
    half.push(".half");
    let half = PathBuf::from(half);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(text.as_bytes())?;
        give(&half)?;
        file.sync_all()?;
        fs::hard_link(&half, path)?;
        fs::remove_file(&half)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(failed)
}

/// Who runs this command, for the record: the kernel's word, and `sudo`'s for whom.
pub fn whoever() -> String {
    let uid = rustix::process::getuid().as_raw();
    match std::env::var("SUDO_USER") {
        Ok(user) if !user.is_empty() && user.len() <= 64 && user.chars().all(|c| c.is_ascii_graphic()) => {
            format!("{user} (sudo, uid {uid})")
        }
        _ => format!("uid {uid}"),
    }
}

impl Tokens {
    /// Below the folder of `[certificates]`.
    pub fn of(dir: &Path) -> Self {
        Self(dir.join("tokens"))
    }

    fn path(&self, id: &[u8; ID_BYTES]) -> PathBuf {
        self.0.join(format!("{}.toml", hex::encode(id)))
    }

    /// Makes one: the text for the host, and its end in seconds since 1970.
    pub fn make(&self, name: &str, by: &str, ttl: Duration, ca_pem: &str) -> Result<(String, i64)> {
        let node = pki::caller(name, Role::Node)?;
        if ttl > TTL_MAX || ttl.is_zero() {
            return Err(CollectorError::new(Exit::Usage, "a join token may be used for 30 days at most"));
        }
        if let Some(above) = self.0.parent() {
            folder(above)?;
        }
        folder(&self.0)?;
        self.sweep(pki::now());
        let count = fs::read_dir(&self.0).map_or(0, Iterator::count);
        if count >= COUNT_MAX {
            let what = format_args!("{} tokens are kept in {}, which is the limit", count, self.0.display());
            return Err(CollectorError::new(Exit::Unavailable, what));
        }
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        pki::random(&mut id)?;
        pki::random(&mut secret)?;
        let made = now_ns();
        let expires = pki::now().saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX));
        let digest = hex::encode(Sha256::digest(secret));
        let kept = Kept { name: node.name.clone(), digest, by: by.to_owned(), made, expires, used: None };
        let ca = hex::encode(fingerprint(ca_pem)?);
        write_new(&self.path(&id), &text(&kept)?)?;
        Ok((format!("{JOIN_TOKEN}{}:{}:{}:{ca}", node.name, hex::encode(id), hex::encode(secret)), expires))
    }

    /// Reads one; `None` if there is none.
    pub fn read(&self, id: &[u8; ID_BYTES]) -> std::result::Result<Option<Kept>, String> {
        let path = self.path(id);
        match frame::read_text(&path, FILE_MAX) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|e| format!("{}: {e}", path.display())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    /// Notes, durably, what one was used for.
    pub fn note(&self, id: &[u8; ID_BYTES], kept: &Kept) -> std::result::Result<(), String> {
        let path = self.path(id);
        let text = text(kept).map_err(|e| e.to_string())?;
        frame::replace(&path, text.as_bytes()).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Forgets those that ended a day ago. One that cannot be read stays, and is of no use.
    pub fn sweep(&self, now: i64) {
        for path in fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let kept = frame::read_text(&path, FILE_MAX).ok().and_then(|text| toml::from_str::<Kept>(&text).ok());
            if kept.is_some_and(|kept| kept.expires.saturating_add(KEPT) < now) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn text(kept: &Kept) -> Result<String> {
    toml::to_string(kept).map_err(|e| CollectorError::new(Exit::Internal, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_nowhere_on_the_disk() {
        let dir = tempfile::tempdir().expect("folder");
        let (authority, _) = pki::Authority::create("t").expect("CA");
        let tokens = Tokens::of(dir.path());
        let (token, _) = tokens.make("box7", "uid 0", TTL, authority.pem()).expect("made");
        let parts: Vec<&str> = token.split(':').collect();
        let [_, _, name, id, secret, ca] = parts[..] else { panic!("{token}") };
        assert_eq!((name, id.len(), secret.len(), ca.len()), ("box7", 16, 48, 64));
        let id: [u8; ID_BYTES] = hex::decode(id).expect("hex").try_into().expect("8 bytes");
        let text = fs::read_to_string(tokens.path(&id)).expect("kept");
        assert!(!text.contains(secret), "{text}");
        let kept = tokens.read(&id).expect("read").expect("there");
        assert_eq!(kept.digest, hex::encode(Sha256::digest(hex::decode(secret).expect("hex"))));
        tokens.sweep(kept.expires + KEPT);
        assert!(tokens.read(&id).expect("read").is_some());
        tokens.sweep(kept.expires + KEPT + 1);
        assert!(tokens.read(&id).expect("read").is_none());
        assert!(tokens.make("a:b", "uid 0", TTL, authority.pem()).is_err());
    }
}
