//! C2SP checkpoints: a log's origin, size and root as the text of a signed note.
//!
//! It must not judge whether a checkpoint is newer or consistent. Fails: a text that is not exactly a checkpoint is an error
//! that names the line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::note::{NoteError, Verifier, open_lines};
use crate::signer::{self, Signer, Signers};
use crate::tree::{self, Hash};

/// Why bytes are not a checkpoint that is wanted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CheckpointError {
    /// The note around it.
    #[error("checkpoint: {0}")]
    Note(#[from] NoteError),
    /// Not text.
    #[error("checkpoint: it is not UTF-8")]
    Utf8,
    /// A line is not as it has to be.
    #[error("checkpoint: {0}")]
    Line(&'static str),
    /// It is another log's.
    #[error("checkpoint: its origin is {got:?}, expected {want:?}")]
    Origin {
        /// As found.
        got: String,
        /// As demanded.
        want: String,
    },
}

/// Head of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, and of the key that signs it.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

impl Checkpoint {
    /// Of a log without leaves.
    pub fn empty(origin: &str) -> Self {
        Self { origin: origin.to_owned(), size: 0, root: tree::empty_root() }
    }

    /// The three lines.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Reads the lines; further ones are the extensions that the format allows, and are not kept.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let line = CheckpointError::Line;
        let body = text.strip_suffix('\n').ok_or(line("it does not end with a line feed"))?;
        let mut lines = body.split('\n');
        let origin = lines.next().filter(|l| !l.is_empty()).ok_or(line("line 1, the origin, is empty"))?;
        let size_text = lines.next().ok_or(line("line 2, the size, is missing"))?;
        let size: u64 = size_text.parse().map_err(|_| line("line 2 is not a size"))?;
        if size.to_string() != size_text || size > i64::MAX as u64 {
            return Err(line("line 2 is not a size in its shortest form"));
        }
        let root = lines.next().ok_or(line("line 3, the root, is missing"))?;
        let root = STANDARD.decode(root).map_err(|_| line("line 3, the root, is not base64"))?;
        let root = root.try_into().map_err(|_| line("line 3, the root, is not 32 bytes"))?;
        if lines.any(str::is_empty) {
            return Err(line("an extension line is empty"));
        }
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// Reads a signed note; the key's name has to be the origin.
    pub fn open(note: &[u8], verifier: &Verifier) -> Result<Self, CheckpointError> {
        let note = std::str::from_utf8(note).map_err(|_| CheckpointError::Utf8)?;
        let checkpoint = Self::parse(&verifier.open(note)?)?;
        if checkpoint.origin != verifier.name() {
            return Err(CheckpointError::Origin { got: checkpoint.origin, want: verifier.name().to_owned() });
        }
        checkpoint.of_a_tree()
    }

    /// Reads a note that one of these keys signed; of several errors the last key's is told.
    pub fn open_any(note: &[u8], verifiers: &[Verifier]) -> Result<Self, CheckpointError> {
        let mut result = Err(CheckpointError::Line("no key is known to check it with"));
        for verifier in verifiers {
            result = Self::open(note, verifier);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Reads a signed note without checking who signed it: what it says is nobody's word.
    pub fn open_unsigned(note: &[u8]) -> Result<Self, CheckpointError> {
        let note = std::str::from_utf8(note).map_err(|_| CheckpointError::Utf8)?;
        let (text, _) = open_lines(note)?;
        Self::parse(text)?.of_a_tree()
    }

    fn of_a_tree(self) -> Result<Self, CheckpointError> {
        if self.size == 0 && self.root != tree::empty_root() {
            return Err(CheckpointError::Line("line 3 is not the root of an empty log"));
        }
        Ok(self)
    }

    /// The note that this key signed.
    pub fn sign(&self, signer: &dyn Signer) -> Result<String, CheckpointError> {
        self.of_log(signer.name())?;
        Ok(signer::note(&self.text(), std::iter::once(signer))?)
    }

    /// The note that all keys of the log signed.
    pub fn sign_all(&self, signers: &Signers) -> Result<String, CheckpointError> {
        self.of_log(signers.name())?;
        Ok(signers.note(&self.text())?)
    }

    fn of_log(&self, name: &str) -> Result<(), CheckpointError> {
        match self.origin == name {
            true => Ok(()),
            false => Err(CheckpointError::Origin { got: self.origin.clone(), want: name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::KeyFile;

    #[test]
    fn comes_back_signed_and_only_from_its_own_key() {
        let signer = KeyFile::generate("guard.test/log").unwrap();
        let head = Checkpoint { origin: "guard.test/log".into(), size: 7, root: [9; 32] };
        let note = head.sign(&signer).unwrap();
        assert_eq!(Checkpoint::open(note.as_bytes(), &signer.verifier()).unwrap(), head);
        let other = KeyFile::generate("other.test/log").unwrap();
        assert!(Checkpoint::open(note.as_bytes(), &other.verifier()).is_err());
        assert!(matches!(head.sign(&other), Err(CheckpointError::Origin { .. })));
        let lent = other.note(&head.text()).unwrap();
        assert!(matches!(Checkpoint::open(lent.as_bytes(), &other.verifier()), Err(CheckpointError::Origin { .. })));
        let changed = note.replace("\n7\n", "\n8\n");
        assert!(matches!(Checkpoint::open(changed.as_bytes(), &signer.verifier()), Err(CheckpointError::Note(_))));
    }

    #[test]
    fn only_the_exact_form_is_taken() {
        let root = STANDARD.encode([0; 32]);
        assert!(Checkpoint::parse(&format!("o\n1\n{root}\nextension\n")).is_ok());
        for text in [
            String::new(),
            format!("o\n1\n{root}"),
            format!("\n1\n{root}\n"),
            format!("o\n01\n{root}\n"),
            format!("o\n+1\n{root}\n"),
            format!("o\n-1\n{root}\n"),
            format!("o\n18446744073709551615\n{root}\n"),
            format!("o\n1\n{}\n", STANDARD.encode([0; 31])),
            format!("o\n1\n{root}\n\nx\n"),
            "o\n1\n".to_owned(),
        ] {
            assert!(Checkpoint::parse(&text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_empty_log_has_the_empty_root() {
        let signer = KeyFile::generate("o").unwrap();
        let wrong = Checkpoint { origin: "o".into(), size: 0, root: [0; 32] }.sign(&signer).unwrap();
        assert!(Checkpoint::open(wrong.as_bytes(), &signer.verifier()).is_err());
        let right = Checkpoint::empty("o").sign(&signer).unwrap();
        assert!(Checkpoint::open(right.as_bytes(), &signer.verifier()).is_ok());
    }
}
