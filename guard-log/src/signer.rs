//! What signs for a log: a key that is a file, or one that something else keeps and never shows.
//!
//! It must not know what it signs. A secret in memory is wiped when dropped and never printed. Fails: a key that does not sign,
//! or whose signature does not hold, is an error that names the key; a file that others may read is not used.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::note::{ED25519, NoteError, Verifier, check_name, check_text, parse_key};

const SECRET_PREFIX: &str = "PRIVATE+KEY+";
/// Longest file that is taken for a key.
const FILE_MAX: u64 = 1024;
/// Bits of a mode that let others than the owner at a file.
const OTHERS: u32 = 0o077;

/// A key did not sign.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the key {key} does not sign: {why}")]
pub struct SignError {
    /// Its name.
    pub key: String,
    /// The cause.
    pub why: String,
}

/// Why a file is not used as a key.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("{path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// Others may get at it.
    #[error(
        "{path}: its mode is {mode:04o}, so others than its owner may get at the key: `chmod 600` it, and make a new key if somebody has"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds no key.
    #[error("{path}: {cause}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: NoteError,
    },
}

/// A key that signs: in a file, or in a device or a service that keeps it.
pub trait Signer: fmt::Debug + Send + Sync {
    /// Name of the key.
    fn name(&self) -> &str;

    /// What checks its signatures.
    fn verifier(&self) -> Verifier;

    /// The Ed25519 signature of these bytes.
    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError>;
}

/// The keys that sign for one log, all of its name: one, or two while one follows the other.
#[derive(Clone, Debug)]
pub struct Signers {
    first: Arc<dyn Signer>,
    next: Option<Arc<dyn Signer>>,
}

impl<S: Signer + 'static> From<S> for Signers {
    fn from(signer: S) -> Self {
        Self { first: Arc::new(signer), next: None }
    }
}

impl Signers {
    /// With the key that follows, which signs too.
    pub fn with_next(self, next: impl Signer + 'static) -> Result<Self, SignError> {
        let name = self.name().to_owned();
        if next.name() != name {
            let why = format!("it is of another name than the key {name} that it should follow");
            return Err(SignError { key: next.name().to_owned(), why });
        }
        Ok(Self { next: Some(Arc::new(next)), ..self })
    }

    /// Name of all of them.
    pub fn name(&self) -> &str {
        self.first.name()
    }

    /// What checks each of them, the oldest first.
    pub fn verifiers(&self) -> Vec<Verifier> {
        self.all().map(|signer| signer.verifier()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &dyn Signer> {
        std::iter::once(&*self.first).chain(self.next.as_deref())
    }

    /// The note that all of them signed.
    pub fn note(&self, text: &str) -> Result<String, NoteError> {
        note(text, self.all())
    }
}

/// The whole note: text, empty line, a line of each signer. What a signer returns is checked: a note that does not verify is
/// worse than none.
pub fn note<'a>(text: &str, signers: impl Iterator<Item = &'a dyn Signer>) -> Result<String, NoteError> {
    check_text(text).map_err(NoteError::Text)?;
    let mut note = format!("{text}\n");
    for signer in signers {
        let (verifier, signature) = (signer.verifier(), signer.sign(text.as_bytes())?);
        if !verifier.checks(text.as_bytes(), &signature) {
            let why = "what it returned is not its signature".to_owned();
            return Err(SignError { key: signer.name().to_owned(), why }.into());
        }
        note.push_str(&verifier.line(&signature));
    }
    Ok(note)
}

/// A key that lies in a file, readable to its owner alone.
pub struct KeyFile {
    name: String,
    key: SigningKey,
}

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Signer for KeyFile {
    fn name(&self) -> &str {
        &self.name
    }

    fn verifier(&self) -> Verifier {
        Verifier::of(&self.name, self.key.verifying_key())
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        Ok(self.key.sign(message).to_bytes())
    }
}

impl KeyFile {
    /// Makes a new key.
    pub fn generate(name: &str) -> Result<Self, NoteError> {
        check_name(name)?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|e| NoteError::Random(e.to_string()))?;
        Ok(Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) })
    }

    /// Reads a file, which must be its owner's alone.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let failed = |cause| KeyFileError::Io { path: path.to_path_buf(), cause };
        let file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let mode = found.mode() & 0o7777;
        if mode & OTHERS != 0 {
            return Err(KeyFileError::Mode { path: path.to_path_buf(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        Self::from_skey(&text).map_err(|cause| KeyFileError::Key { path: path.to_path_buf(), cause })
    }

    /// Reads `PRIVATE+KEY+name+id+base64`.
    pub fn from_skey(text: &str) -> Result<Self, NoteError> {
        let wrong = |why| NoteError::Key { what: "signer", why };
        let rest = text.trim_end().strip_prefix(SECRET_PREFIX).ok_or(wrong("it does not start with PRIVATE+KEY+"))?;
        let (name, id, seed) = parse_key(rest, ED25519, "signer")?;
        let key = Self { name: name.to_owned(), key: SigningKey::from_bytes(&seed) };
        if key.verifier().id() != id {
            return Err(wrong("the key id does not belong to name and key"));
        }
        Ok(key)
    }

    /// The secret as text.
    pub fn skey(&self) -> Zeroizing<String> {
        let mut data = Zeroizing::new(Vec::with_capacity(33));
        data.push(ED25519);
        data.extend_from_slice(self.key.as_bytes());
        let encoded = Zeroizing::new(STANDARD.encode(&*data));
        Zeroizing::new(format!("{SECRET_PREFIX}{}+{}+{}", self.name, hex::encode(self.verifier().id()), *encoded))
    }

    /// The public key as text.
    pub fn vkey(&self) -> String {
        self.verifier().vkey()
    }

    /// Name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What checks its signatures.
    pub fn verifier(&self) -> Verifier {
        Signer::verifier(self)
    }

    /// The note that it alone signed.
    pub fn note(&self, text: &str) -> Result<String, NoteError> {
        note(text, std::iter::once(self as &dyn Signer))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A key kept elsewhere that may be out of reach, or answer wrongly.
    #[derive(Debug)]
    pub(crate) struct Device {
        pub(crate) key: KeyFile,
        pub(crate) gone: Arc<AtomicBool>,
        pub(crate) lies: bool,
    }

    impl Signer for Device {
        fn name(&self) -> &str {
            self.key.name()
        }

        fn verifier(&self) -> Verifier {
            self.key.verifier()
        }

        fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
            if self.gone.load(Ordering::SeqCst) {
                return Err(SignError { key: self.name().to_owned(), why: "the device does not answer".to_owned() });
            }
            Signer::sign(&self.key, if self.lies { b"another" } else { message })
        }
    }

    #[test]
    fn a_key_file_that_others_may_read_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.skey");
        let key = KeyFile::generate("guard.test/log").unwrap();
        fs::write(&path, format!("{}\n", key.skey().as_str())).unwrap();
        for mode in [0o604, 0o640, 0o660, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = KeyFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"), "{error}");
        }
        for mode in [0o600, 0o400] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(KeyFile::read(&path).unwrap().vkey(), key.vkey());
        }
        fs::write(&path, "nonsense").unwrap();
        assert!(KeyFile::read(&path).unwrap_err().to_string().contains("log.skey"));
        assert!(matches!(KeyFile::read(dir.path()), Err(KeyFileError::Io { .. })));
    }

    #[test]
    fn two_keys_of_one_name_sign_one_note_and_each_opens_it() {
        let (old, new) = (KeyFile::generate("log.test").unwrap(), KeyFile::generate("log.test").unwrap());
        let verifiers = [old.verifier(), new.verifier()];
        let both = Signers::from(old).with_next(new).unwrap();
        let note = both.note("text\n").unwrap();
        assert_eq!(both.verifiers(), verifiers);
        verifiers.iter().for_each(|verifier| assert_eq!(verifier.open(&note).unwrap(), "text\n"));
        let other = KeyFile::generate("other.test").unwrap();
        assert!(both.with_next(other).unwrap_err().to_string().contains("another name"));
    }

    #[test]
    fn a_signer_that_fails_or_lies_makes_no_note() {
        let gone = Arc::new(AtomicBool::new(false));
        let device = |lies| Device { key: KeyFile::generate("log.test").unwrap(), gone: gone.clone(), lies };
        let (good, liar) = (Signers::from(device(false)), Signers::from(device(true)));
        good.note("text\n").unwrap();
        assert!(liar.note("text\n").unwrap_err().to_string().contains("not its signature"));
        gone.store(true, Ordering::SeqCst);
        assert!(good.note("text\n").unwrap_err().to_string().contains("the device does not answer"));
    }
}
