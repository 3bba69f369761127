//! Secrets of webhooks and the signature of a message, as the Standard Webhooks specification has them.
//!
//! A secret file holds one `whsec_…` on each line, the newest first; every one of them signs, so that a receiver can be given the
//! next secret before the last one goes. It must not show a secret, nor take one from a file that others can read. Fails: an error
//! that names file, line and what is accepted.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

const PREFIX: &str = "whsec_";
/// Bytes of a secret, as the specification has it.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets that sign at the same time.
const SECRETS_MAX: usize = 4;
const FILE_MAX: u64 = 4096;
/// Bits of a mode that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// What signs the messages to one receiver.
#[derive(Clone)]
pub struct Secrets(Vec<Zeroizing<Vec<u8>>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

impl Secrets {
    /// Reads a file, which must be its owner's alone.
    pub fn read(path: &Path) -> Result<Self, String> {
        let at = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
        let file = File::open(path).map_err(|e| at(&e))?;
        let found = file.metadata().map_err(|e| at(&e))?;
        if !found.is_file() {
            return Err(at(&"it is not a regular file"));
        }
        let mode = found.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(at(&format_args!(
                "its mode is {mode:04o}, so others than its owner may read the secret: `chmod 600` it, and make a new secret \
                 if somebody has"
            )));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(|e| at(&e))?;
        if text.len() as u64 > FILE_MAX {
            return Err(at(&format_args!("longer than {FILE_MAX} bytes")));
        }
        Self::parse(&text).map_err(|e| at(&e))
    }

    /// One secret a line; empty lines and those that begin with `#` count for nothing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut secrets = Vec::new();
        for (number, line) in text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {number}: {why}; accepted is whsec_ and 24 to 64 bytes in base64");
            let encoded = line.strip_prefix(PREFIX).ok_or_else(|| wrong("it does not start with whsec_"))?;
            let secret = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| wrong("it is not base64"))?);
            if !SECRET_BYTES.contains(&secret.len()) {
                return Err(wrong(&format!("it has {} bytes", secret.len())));
            }
            secrets.push(secret);
        }
        match secrets.len() {
            0 => Err("it holds no secret; accepted is a line of whsec_ and 24 to 64 bytes in base64".to_owned()),
            1..=SECRETS_MAX => Ok(Self(secrets)),
            n => Err(format!("it holds {n} secrets; at most {SECRETS_MAX} are accepted")),
        }
    }

    /// The header `webhook-signature` of a message: one signature for each secret.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> Result<String, String> {
        let one = |secret: &Zeroizing<Vec<u8>>| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|e| e.to_string())?;
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
        };
        Ok(self.0.iter().map(one).collect::<Result<Vec<_>, String>>()?.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// From the specification's own example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    #[test]
    fn a_message_is_signed_as_the_specification_shows_it() {
        let secrets = Secrets::parse(SECRET).expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        let signed = secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).expect("signed");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_of_the_file_signs() {
        let other = format!("# the last one\n{PREFIX}{}\n", STANDARD.encode([7; 32]));
        let (both, old) = (Secrets::parse(&format!("{SECRET}\n\n{other}")), Secrets::parse(&other));
        let signed = both.expect("two").sign("msg_1", 1, b"{}").expect("signed");
        let alone = old.expect("one").sign("msg_1", 1, b"{}").expect("signed");
        assert_eq!(signed.split(' ').count(), 2);
        assert_eq!(signed.split(' ').nth(1), Some(alone.as_str()));
    }

    #[test]
    fn what_is_no_secret_is_refused_by_line_and_never_shown() {
        let short = format!("{PREFIX}{}", STANDARD.encode([7; 23]));
        for (text, line) in [("secret", 1), (short.as_str(), 1), ("\n# x\nwhsec_%%", 3)] {
            let error = Secrets::parse(text).expect_err("refused");
            assert!(error.starts_with(&format!("line {line}: ")) && error.contains("24 to 64 bytes"), "{error}");
        }
        assert!(Secrets::parse("# nothing\n").is_err());
        assert!(Secrets::parse(&format!("{SECRET}\n").repeat(5)).is_err());
        assert_eq!(format!("{:?}", Secrets::parse(SECRET).expect("one")), "Secrets(1)");
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("secret");
        fs::write(&path, SECRET).expect("written");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            let error = Secrets::read(&path).expect_err("refused");
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        Secrets::read(&path).expect("read");
    }
}
