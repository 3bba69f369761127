//! C2SP `tlog-cosignature` with Ed25519 (algorithm byte 0x04): a witness's dated statement that it saw a log only grow.
//!
//! It must not judge how many are enough: [`crate::policy`] does, nor the time, which is the witness's. Fails: a line that
//! names a witness and is not its is an error; lines of others are not looked at.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::note::{self, NoteError, SignatureLine};

/// Algorithm byte of its keys.
const COSIGNATURE: u8 = 4;
/// Bytes of the time before the signature.
const TIME: usize = 8;

/// Checks a witness's cosignatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigner {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

impl Cosigner {
    /// Reads `name+id+base64(0x04 || 32 bytes)`.
    pub fn parse(vkey: &str) -> Result<Self, NoteError> {
        let (name, id, key) = note::parse_verifier(vkey, COSIGNATURE)?;
        Ok(Self { name, id, key })
    }

    /// Name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of the key; two names with the same bytes are one witness.
    pub fn key_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// When the witness signed this text, in seconds since the epoch; `None` if the line is not its.
    pub fn check(&self, text: &str, line: &SignatureLine<'_>) -> Result<Option<u64>, NoteError> {
        if line.name != self.name || line.id != self.id {
            return Ok(None);
        }
        let wrong = || NoteError::Signature { name: self.name.clone(), id: hex::encode(self.id) };
        let (time, signature) = line.signature.split_first_chunk::<TIME>().ok_or_else(wrong)?;
        let time = u64::from_be_bytes(*time);
        let signature = Signature::from_slice(signature).map_err(|_| wrong())?;
        if time > i64::MAX as u64 {
            return Err(wrong());
        }
        let message = format!("cosignature/v1\ntime {time}\n{text}");
        self.key.verify_strict(message.as_bytes(), &signature).map(|()| Some(time)).map_err(|_| wrong())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;
    use crate::note::{key_id, open_lines};
    use crate::signer::KeyFile;

    /// A witness, for tests.
    pub(crate) struct Witness {
        pub(crate) name: String,
        pub(crate) key: SigningKey,
    }

    impl Witness {
        pub(crate) fn new(name: &str, seed: u8) -> Self {
            Self { name: name.to_owned(), key: SigningKey::from_bytes(&[seed; 32]) }
        }

        fn id(&self) -> [u8; 4] {
            key_id(&self.name, COSIGNATURE, self.key.verifying_key().as_bytes())
        }

        pub(crate) fn vkey(&self) -> String {
            let data = [&[COSIGNATURE], self.key.verifying_key().as_bytes().as_slice()].concat();
            format!("{}+{}+{}", self.name, hex::encode(self.id()), STANDARD.encode(data))
        }

        pub(crate) fn cosign(&self, text: &str, time: u64) -> String {
            let signature = self.key.sign(format!("cosignature/v1\ntime {time}\n{text}").as_bytes());
            let data = [self.id().as_slice(), &time.to_be_bytes(), &signature.to_bytes()].concat();
            format!("\u{2014} {} {}\n", self.name, STANDARD.encode(data))
        }
    }

    const TEXT: &str = "guard.test/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";

    fn times(cosigner: &Cosigner, note: &str) -> Vec<Result<Option<u64>, NoteError>> {
        let (text, lines) = open_lines(note).unwrap();
        lines.iter().map(|line| cosigner.check(text, line)).collect()
    }

    #[test]
    fn a_cosignature_is_taken_with_its_time_and_only_from_its_key() {
        let log = KeyFile::generate("guard.test/log").unwrap();
        let (one, other) = (Witness::new("witness.test/one", 1), Witness::new("witness.test/one", 2));
        let note = log.note(TEXT).unwrap() + &one.cosign(TEXT, 1_700_000_000);
        let cosigner = Cosigner::parse(&one.vkey()).unwrap();
        assert_eq!(times(&cosigner, &note), [Ok(None), Ok(Some(1_700_000_000))]);
        assert_eq!(times(&Cosigner::parse(&other.vkey()).unwrap(), &note), [Ok(None), Ok(None)]);
        // The log's own key still opens it.
        assert!(log.verifier().open(&note).is_ok());
    }

    #[test]
    fn a_cosignature_over_another_text_or_time_is_wrong() {
        let log = KeyFile::generate("guard.test/log").unwrap();
        let witness = Witness::new("w", 1);
        let cosigner = Cosigner::parse(&witness.vkey()).unwrap();
        let elsewhere = TEXT.replace("\n0\n", "\n1\n");
        for line in [witness.cosign(&elsewhere, 5), witness.cosign(TEXT, u64::MAX), moved(&witness.cosign(TEXT, 5))] {
            let note = log.note(TEXT).unwrap() + &line;
            assert!(matches!(times(&cosigner, &note)[1], Err(NoteError::Signature { .. })), "{line}");
        }
    }

    /// The same signature, dated one second later.
    fn moved(line: &str) -> String {
        let (head, data) = line.trim_end().rsplit_once(' ').unwrap();
        let mut data = STANDARD.decode(data).unwrap();
        data[11] += 1;
        format!("{head} {}\n", STANDARD.encode(data))
    }

    /// A witness's key and a cosignature of the tests of `transparency-dev/formats` (`note/note_cosigv1_test.go`, Apache-2.0).
    #[test]
    fn a_key_and_a_time_of_another_implementation_are_read_alike() {
        let vkey = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2";
        assert_eq!(Cosigner::parse(vkey).unwrap().name(), "remora.n621.de");
        assert!(Cosigner::parse(&vkey.replace("da77ade7", "da77ade8")).is_err());
        let data =
            "ZGhGuQAAAABm/qTPeyKXD+R2rzyQsxPiP8mXum7qq/iF0u4vanlqJyocWODBt97w9uL+8qT7S5gxEHWWOworDcFiEBYJXORmnFBOBA==";
        let note = format!("text\n\n\u{2014} witness {data}\n");
        let (_, lines) = open_lines(&note).unwrap();
        assert_eq!(lines[0].signature.first_chunk().map(|time| u64::from_be_bytes(*time)), Some(1_727_964_367));
    }

    #[test]
    fn keys_of_another_kind_are_refused() {
        let log = KeyFile::generate("guard.test/log").unwrap().vkey();
        assert!(Cosigner::parse(&log).unwrap_err().to_string().contains("algorithm"));
        let witness = Witness::new("w", 1).vkey();
        assert!(crate::note::Verifier::parse(&witness).unwrap_err().to_string().contains("algorithm"));
    }
}
