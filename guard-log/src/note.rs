//! C2SP signed notes with Ed25519 (algorithm byte 0x01): their text, their lines, the keys that check them.
//!
//! It must not know what the text means, nor hold a secret: [`crate::signer`] does. Fails: an unusable key or note is an error
//! that says which part is wrong; signatures of other keys are ignored, as the format asks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::signer::SignError;

/// Longest note that is looked at.
pub const NOTE_MAX: usize = 1 << 20;
/// Most signatures that are looked at.
const SIGNATURES_MAX: usize = 100;
/// Longest key name.
const NAME_MAX: usize = 255;
pub(crate) const ED25519: u8 = 1;

/// Why a key or a note is not usable.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NoteError {
    /// No name for a key.
    #[error("a key name of 1 to {NAME_MAX} characters without space and `+` is needed, got {0:?}")]
    Name(String),
    /// A key text that cannot be read. The text is not repeated: it may be a secret.
    #[error("not a {what} key: {why}")]
    Key {
        /// Verifier or signer.
        what: &'static str,
        /// The part that is wrong.
        why: &'static str,
    },
    /// The system gives no random bytes.
    #[error("no random bytes for a key: {0}")]
    Random(String),
    /// The key did not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// Text that a note cannot hold.
    #[error("not a note text: {0}")]
    Text(&'static str),
    /// Not a note.
    #[error("not a signed note: {0}")]
    Note(&'static str),
    /// No signature of the key wanted.
    #[error("the note is not signed by {name} (key id {id})")]
    Unsigned {
        /// Name of the key.
        name: String,
        /// Its id, hexadecimal.
        id: String,
    },
    /// A signature that names the key and is not its.
    #[error("the signature by {name} (key id {id}) is wrong: the note was changed after signing")]
    Signature {
        /// Name of the key.
        name: String,
        /// Its id, hexadecimal.
        id: String,
    },
}

pub(crate) fn check_name(name: &str) -> Result<(), NoteError> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX;
    if fits && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
        return Ok(());
    }
    Err(NoteError::Name(name.chars().take(NAME_MAX).collect()))
}

pub(crate) fn key_id(name: &str, algorithm: u8, public: &[u8; 32]) -> [u8; 4] {
    let digest = Sha256::new().chain_update(name).chain_update([b'\n', algorithm]).chain_update(public).finalize();
    let mut id = [0; 4];
    id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    id
}

pub(crate) type KeyParts<'a> = (&'a str, [u8; 4], Zeroizing<[u8; 32]>);

/// Splits `name+id+base64(algorithm || 32 bytes)`.
pub(crate) fn parse_key<'a>(text: &'a str, wanted: u8, what: &'static str) -> Result<KeyParts<'a>, NoteError> {
    let wrong = |why| NoteError::Key { what, why };
    let (name, rest) = text.split_once('+').ok_or(wrong("no `+` after the name"))?;
    let (id_text, data) = rest.split_once('+').ok_or(wrong("no `+` after the key id"))?;
    check_name(name)?;
    let mut id = [0; 4];
    hex::decode_to_slice(id_text, &mut id).map_err(|_| wrong("the key id is not 8 hexadecimal digits"))?;
    let data = Zeroizing::new(STANDARD.decode(data).map_err(|_| wrong("the last part is not base64"))?);
    let (algorithm, key) = data.split_first().ok_or(wrong("the last part is empty"))?;
    if *algorithm != wanted {
        return Err(wrong("the algorithm is not Ed25519 of this use (0x01 for logs, 0x04 for witnesses)"));
    }
    let key: [u8; 32] = key.try_into().map_err(|_| wrong("an Ed25519 key has 32 bytes"))?;
    Ok((name, id, Zeroizing::new(key)))
}

pub(crate) fn check_text(text: &str) -> Result<(), &'static str> {
    if !text.ends_with('\n') {
        return Err("it does not end with a line feed");
    }
    if text.contains(|c: char| c.is_ascii_control() && c != '\n') {
        return Err("it has control characters");
    }
    if text.len() > NOTE_MAX {
        return Err("it is longer than 1 MiB");
    }
    Ok(())
}

/// Checks notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    id: [u8; 4],
    key: VerifyingKey,
}

impl Verifier {
    /// Of a key of this name.
    pub(crate) fn of(name: &str, key: VerifyingKey) -> Self {
        Self { id: key_id(name, ED25519, key.as_bytes()), name: name.to_owned(), key }
    }

    /// Reads `name+id+base64`.
    pub fn parse(vkey: &str) -> Result<Self, NoteError> {
        let (name, id, key) = parse_verifier(vkey, ED25519)?;
        Ok(Self { name, id, key })
    }

    /// Its id in notes.
    pub(crate) fn id(&self) -> [u8; 4] {
        self.id
    }

    /// Bytes of the key; two names with the same bytes are one log.
    pub fn key_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Name of the key.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its line under a text that it signed.
    pub(crate) fn line(&self, signature: &[u8; 64]) -> String {
        let data = [self.id.as_slice(), signature].concat();
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(data))
    }

    /// Whether these bytes bear its signature.
    pub(crate) fn checks(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.key.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }

    /// The key as text.
    pub fn vkey(&self) -> String {
        let mut data = vec![ED25519];
        data.extend_from_slice(self.key.as_bytes());
        format!("{}+{}+{}", self.name, hex::encode(self.id), STANDARD.encode(data))
    }

    /// The text of a note that this key signed.
    pub fn open(&self, note: &str) -> Result<String, NoteError> {
        let (text, lines) = open_lines(note)?;
        let mut signed = false;
        for line in &lines {
            signed |= self.check(text, line)?;
        }
        if signed {
            Ok(text.to_owned())
        } else {
            Err(NoteError::Unsigned { name: self.name.clone(), id: hex::encode(self.id) })
        }
    }

    /// Whether the line is this key's signature; an error if it claims to be and is not.
    fn check(&self, text: &str, line: &SignatureLine<'_>) -> Result<bool, NoteError> {
        if line.name != self.name || line.id != self.id {
            return Ok(false);
        }
        let wrong = || NoteError::Signature { name: self.name.clone(), id: hex::encode(self.id) };
        let signature = Signature::from_slice(&line.signature).map_err(|_| wrong())?;
        self.key.verify_strict(text.as_bytes(), &signature).map(|()| true).map_err(|_| wrong())
    }
}

/// A public key in text: name, id and key, of the algorithm wanted.
pub(crate) fn parse_verifier(vkey: &str, algorithm: u8) -> Result<(String, [u8; 4], VerifyingKey), NoteError> {
    let wrong = |why| NoteError::Key { what: "verifier", why };
    let (name, id, public) = parse_key(vkey.trim_end(), algorithm, "verifier")?;
    if key_id(name, algorithm, &public) != id {
        return Err(wrong("the key id does not belong to name and key"));
    }
    let key = VerifyingKey::from_bytes(&public).map_err(|_| wrong("its bytes are no point of the curve"))?;
    Ok((name.to_owned(), id, key))
}

/// One signature of a note, by whomever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureLine<'a> {
    /// Name of the key.
    pub name: &'a str,
    /// Id of the key.
    pub id: [u8; 4],
    /// What follows the id; its form is the algorithm's.
    pub signature: Vec<u8>,
}

impl<'a> SignatureLine<'a> {
    fn parse(line: &'a str) -> Result<Self, NoteError> {
        let rest =
            line.strip_prefix("\u{2014} ").ok_or(NoteError::Note("a signature line does not start with a dash"))?;
        let (name, data) =
            rest.split_once(' ').ok_or(NoteError::Note("a signature line has no name or no signature"))?;
        let data = STANDARD.decode(data).map_err(|_| NoteError::Note("a signature is not base64"))?;
        let (id, signature) = data.split_first_chunk::<4>().ok_or(NoteError::Note("a signature has no key id"))?;
        Ok(Self { name, id: *id, signature: signature.to_vec() })
    }
}

/// The text of a note and its signatures, none of them checked.
pub fn open_lines(note: &str) -> Result<(&str, Vec<SignatureLine<'_>>), NoteError> {
    if note.len() > NOTE_MAX {
        return Err(NoteError::Note("it is longer than 1 MiB"));
    }
    let end = note.rfind("\n\n").ok_or(NoteError::Note("no empty line before the signatures"))? + 1;
    let (text, signatures) = note.split_at(end);
    check_text(text).map_err(NoteError::Note)?;
    let lines = signatures.strip_prefix('\n').and_then(|s| s.strip_suffix('\n'));
    let lines = lines.filter(|l| !l.is_empty()).ok_or(NoteError::Note("no signature line"))?;
    if lines.split('\n').count() > SIGNATURES_MAX {
        return Err(NoteError::Note("more than 100 signatures"));
    }
    Ok((text, lines.split('\n').map(SignatureLine::parse).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::signer::KeyFile;

    /// The example of the reference implementation of signed notes.
    const SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
    const VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const TEXT: &str =
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
    const NOTE: &str = "If you think cryptography is the answer to your problem,\n\
        then you don't know what your problem is.\n\n\
        \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    #[test]
    fn the_reference_example_is_made_and_opened() {
        let signer = KeyFile::from_skey(SKEY).unwrap();
        assert_eq!((signer.vkey().as_str(), signer.skey().as_str()), (VKEY, SKEY));
        assert_eq!(signer.note(TEXT).unwrap(), NOTE);
        assert_eq!(Verifier::parse(VKEY).unwrap().open(NOTE).unwrap(), TEXT);
    }

    #[test]
    fn keys_and_notes_come_back() {
        let signer = KeyFile::generate("guard.test/log").unwrap();
        let again = KeyFile::from_skey(&signer.skey()).unwrap();
        let verifier = Verifier::parse(&signer.vkey()).unwrap();
        assert_eq!((verifier.vkey(), verifier.name()), (again.vkey(), "guard.test/log"));
        assert_eq!(verifier.open(&again.note("a\n\nb\n").unwrap()).unwrap(), "a\n\nb\n");
        assert!(!format!("{signer:?}").contains(&signer.skey().as_str()[40..]));
    }

    #[test]
    fn signatures_of_others_beside_the_own_do_not_matter() {
        let (one, other) = (KeyFile::generate("one").unwrap(), KeyFile::generate("other").unwrap());
        let both = format!("{}{}", one.note(TEXT).unwrap(), other.note(TEXT).unwrap().rsplit_once("\n\n").unwrap().1);
        assert_eq!(one.verifier().open(&both).unwrap(), TEXT);
        assert_eq!(other.verifier().open(&both).unwrap(), TEXT);
        let stranger = KeyFile::generate("one").unwrap().verifier().open(&both);
        assert!(matches!(stranger, Err(NoteError::Unsigned { .. })));
    }

    #[test]
    fn what_is_no_key_is_refused_with_the_reason() {
        for (key, why) in [
            ("", "no `+` after the name"),
            ("a+00", "no `+` after the key id"),
            ("a+0+AA==", "8 hexadecimal"),
            ("a+00000000+?", "base64"),
            ("a+00000000+Ag==", "algorithm is not Ed25519"),
            ("a+00000000+AQ==", "32 bytes"),
            (&VKEY.replace("c74f20a3", "c74f20a4"), "does not belong"),
            (&VKEY.replace("Peter", "Pieter"), "does not belong"),
        ] {
            assert!(Verifier::parse(key).unwrap_err().to_string().contains(why), "{key}");
        }
        for name in ["", "a b", "a+b", "a\nb", "\u{2003}"] {
            assert!(KeyFile::generate(name).is_err(), "{name:?}");
        }
        assert!(KeyFile::from_skey(VKEY).is_err());
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let verifier = Verifier::parse(VKEY).unwrap();
        let long = format!("{}{NOTE}", "x".repeat(NOTE_MAX));
        let many = format!("{NOTE}{}", "\u{2014} x AAAAAAAA\n".repeat(SIGNATURES_MAX));
        for note in
            ["", TEXT, NOTE.trim_end(), &NOTE.replace("\u{2014} ", "- "), &NOTE.replace(",\n", ",\r\n"), &long, &many]
        {
            assert!(verifier.open(note).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(place in 0..NOTE.len(), bit in 0..8) {
            let mut bytes = NOTE.as_bytes().to_vec();
            bytes[place] ^= 1_u8 << bit;
            if let Ok(note) = String::from_utf8(bytes) {
                prop_assert!(Verifier::parse(VKEY).unwrap().open(&note).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(text in ".{0,200}") {
            let _ = (Verifier::parse(&text).is_ok(), KeyFile::from_skey(&text).is_ok());
            let _ = Verifier::parse(VKEY).unwrap().open(&format!("{text}\n\n\u{2014} {text}\n")).is_ok();
        }
    }
}
