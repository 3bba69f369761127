//! What a reviewer signs, and the keys that sign and check it.
//!
//! The statement is one byte string with its version in front: each field with its length, so that no two statements are the
//! same bytes. It must not read a clock or a file. Fails: text that is no key is refused with the cure; a signature that does
//! not hold is `false`, never an error that could be passed over.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Stands in front of every statement. A signature over anything else is none over a decision.
const DOMAIN: &[u8] = b"guard review decision v1\n";
/// The same of a decision for somebody else: so that nobody takes one for the other.
const DOMAIN_FOR: &[u8] = b"guard review decision for another v1\n";
const DOMAIN_DELEGATION: &[u8] = b"guard review delegation v1\n";
const PUBLIC: &str = "ed25519:";
const SECRET: &str = "ed25519-secret:";

/// A decision as its reviewer signs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The request.
    pub request_id: &'a str,
    /// Its digest: session, user, folder, argument and environment bytes, files with their content.
    pub digest: &'a [u8],
    /// SHA-256 of the request's record body, from which the reviewer was shown it.
    pub record_sha256: &'a [u8],
    /// Approved, or denied.
    pub approve: bool,
    /// How far an approval reaches.
    pub scope: &'a str,
    /// Categories that it covers for descendants.
    pub categories: &'a [String],
    /// Execs that it covers.
    pub max_execs: u32,
    /// Until when it may be used, in ns since 1970.
    pub expires_unix_ns: i64,
    /// Why.
    pub reason: &'a str,
    /// Who decides.
    pub reviewer: &'a str,
    /// When, by the reviewer's clock.
    pub decided_unix_ns: i64,
    /// The delegation by which the reviewer decides for somebody else; empty: by the reviewer's own right.
    pub delegation_id: &'a str,
}

/// What a reviewer signs who lets somebody else decide for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DelegationStatement<'a> {
    /// Its name, a ULID.
    pub id: &'a str,
    /// Whose right it is.
    pub from: &'a str,
    /// Who decides.
    pub to: &'a str,
    /// Patterns of categories.
    pub categories: &'a [String],
    /// Up to this risk.
    pub max_risk: u32,
    /// When it was made, by the clock of whoever made it.
    pub made_unix_ns: i64,
    /// Its end.
    pub until_unix_ns: i64,
    /// Why.
    pub reason: &'a str,
}

/// Checks a reviewer's signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct ReviewKey(VerifyingKey);

/// Signs for a reviewer. Wiped when dropped, never printed.
pub struct ReviewSigner(SigningKey);

// === impl Statement ===

impl Statement<'_> {
    /// The bytes that are signed.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = if self.delegation_id.is_empty() { DOMAIN } else { DOMAIN_FOR }.to_vec();
        let mut add = |part: &[u8]| put(&mut bytes, part);
        add(self.request_id.as_bytes());
        add(self.digest);
        add(self.record_sha256);
        add(if self.approve { b"approve" } else { b"deny" });
        add(self.scope.as_bytes());
        add(&(self.categories.len() as u64).to_le_bytes());
        self.categories.iter().for_each(|category| add(category.as_bytes()));
        add(&self.max_execs.to_le_bytes());
        add(&self.expires_unix_ns.to_le_bytes());
        add(&Sha256::digest(self.reason.as_bytes()));
        add(self.reviewer.as_bytes());
        add(&self.decided_unix_ns.to_le_bytes());
        if !self.delegation_id.is_empty() {
            add(self.delegation_id.as_bytes());
        }
        bytes
    }
}

/// A field with its length.
fn put(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
    bytes.extend_from_slice(part);
}

// === impl DelegationStatement ===

impl DelegationStatement<'_> {
    /// The bytes that are signed.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = DOMAIN_DELEGATION.to_vec();
        let mut add = |part: &[u8]| put(&mut bytes, part);
        add(self.id.as_bytes());
        add(self.from.as_bytes());
        add(self.to.as_bytes());
        add(&(self.categories.len() as u64).to_le_bytes());
        self.categories.iter().for_each(|category| add(category.as_bytes()));
        add(&self.max_risk.to_le_bytes());
        add(&self.made_unix_ns.to_le_bytes());
        add(&self.until_unix_ns.to_le_bytes());
        add(&Sha256::digest(self.reason.as_bytes()));
        bytes
    }
}

// === impl ReviewKey ===

impl ReviewKey {
    /// Reads `ed25519:BASE64`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, and where a key comes from.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{why}; `guardctl key show` prints the line of a reviewer's key");
        let encoded = text.strip_prefix(PUBLIC).ok_or_else(|| wrong("a key begins with `ed25519:`"))?;
        let bytes: [u8; 32] = STANDARD
            .decode(encoded)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| wrong("after `ed25519:` stand 32 bytes in base64"))?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong("these bytes are no Ed25519 key"))?;
        // Signatures of such a key hold for many messages.
        if key.is_weak() {
            return Err(wrong("this Ed25519 key is a weak one"));
        }
        Ok(Self(key))
    }

    /// The key as it stands in a role file.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{PUBLIC}{}", STANDARD.encode(self.0.as_bytes()))
    }

    /// SHA-256 of the key: its name in records.
    #[must_use]
    pub fn id(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// Whether this key signed the statement.
    #[must_use]
    pub fn signed(&self, statement: &Statement<'_>, signature: &[u8]) -> bool {
        self.holds(&statement.bytes(), signature)
    }

    /// Whether this key signed the delegation.
    #[must_use]
    pub fn delegated(&self, statement: &DelegationStatement<'_>, signature: &[u8]) -> bool {
        self.holds(&statement.bytes(), signature)
    }

    fn holds(&self, bytes: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        self.0.verify_strict(bytes, &signature).is_ok()
    }
}

impl fmt::Debug for ReviewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

// === impl ReviewSigner ===

impl ReviewSigner {
    /// From 32 random bytes.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads what [`Self::secret`] wrote.
    ///
    /// # Errors
    ///
    /// The text is no secret key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let encoded = text.trim_end().strip_prefix(SECRET).ok_or("it does not begin with `ed25519-secret:`")?;
        let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|e| format!("after `ed25519-secret:`: {e}"))?);
        let seed: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| "a secret key has 32 bytes".to_owned())?;
        Ok(Self::from_seed(seed))
    }

    /// The secret as a file holds it.
    #[must_use]
    pub fn secret(&self) -> Zeroizing<String> {
        let encoded = Zeroizing::new(STANDARD.encode(self.0.as_bytes()));
        Zeroizing::new(format!("{SECRET}{}\n", *encoded))
    }

    /// What checks its signatures.
    #[must_use]
    pub fn public(&self) -> ReviewKey {
        ReviewKey(self.0.verifying_key())
    }

    /// Signs a decision.
    #[must_use]
    pub fn sign(&self, statement: &Statement<'_>) -> [u8; 64] {
        self.0.sign(&statement.bytes()).to_bytes()
    }

    /// Signs a delegation.
    #[must_use]
    pub fn delegate(&self, statement: &DelegationStatement<'_>) -> [u8; 64] {
        self.0.sign(&statement.bytes()).to_bytes()
    }
}

impl fmt::Debug for ReviewSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReviewSigner").field(&self.public()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

    fn statement<'a>(categories: &'a [String]) -> Statement<'a> {
        Statement {
            request_id: REQUEST,
            digest: &[1; 32],
            record_sha256: &[2; 32],
            approve: true,
            scope: "root",
            categories,
            max_execs: 7,
            expires_unix_ns: 99,
            reason: "looks right",
            reviewer: "bob",
            decided_unix_ns: 42,
            delegation_id: "",
        }
    }

    fn delegation<'a>(categories: &'a [String]) -> DelegationStatement<'a> {
        DelegationStatement {
            id: REQUEST,
            from: "carol",
            to: "bob",
            categories,
            max_risk: 60,
            made_unix_ns: 42,
            until_unix_ns: 99,
            reason: "on leave",
        }
    }

    #[test]
    fn every_field_of_a_delegation_is_signed_and_it_is_no_decision() {
        let signer = ReviewSigner::from_seed(&[5; 32]);
        let (one, none) = (["vcs.write".to_owned()], []);
        let signed = delegation(&one);
        let (signature, key) = (signer.delegate(&signed), signer.public());
        assert!(key.delegated(&signed, &signature));
        let others = [
            DelegationStatement { id: "01KG9F6R00ABCDEFGHJKMNPQRT", ..signed },
            DelegationStatement { from: "dave", ..signed },
            DelegationStatement { to: "mallory", ..signed },
            DelegationStatement { categories: &none, ..signed },
            DelegationStatement { max_risk: 61, ..signed },
            DelegationStatement { made_unix_ns: 43, ..signed },
            DelegationStatement { until_unix_ns: 100, ..signed },
            DelegationStatement { reason: "", ..signed },
        ];
        for other in others {
            assert!(!key.delegated(&other, &signature), "{other:?}");
        }
        let digest = hex::encode(Sha256::digest(signed.bytes()));
        assert_eq!(digest, "08aaf6ad1f7f499478f921c92843f9d556b25fb8121549ed737e6039e75c171e");
        // By own right and for somebody else are two statements.
        let own = statement(&one);
        let for_another = Statement { delegation_id: REQUEST, ..own };
        assert!(!key.signed(&for_another, &signer.sign(&own)) && !key.signed(&own, &signer.sign(&for_another)));
        assert!(key.signed(&for_another, &signer.sign(&for_another)));
    }

    #[test]
    fn the_bytes_are_what_every_version_must_sign() {
        let categories = ["vcs.write".to_owned()];
        let digest = hex::encode(Sha256::digest(statement(&categories).bytes()));
        assert_eq!(digest, "7f87c25e84cf2f1a1b9f7268e222679285a200a7dae9da99ba7114dcbafd2180");
    }

    #[test]
    fn every_field_is_signed() {
        let signer = ReviewSigner::from_seed(&[5; 32]);
        let (one, none) = (["vcs.write".to_owned()], []);
        let signed = statement(&one);
        let signature = signer.sign(&signed);
        let key = signer.public();
        assert!(key.signed(&signed, &signature));
        let others = [
            Statement { request_id: "01KG9F6R00ABCDEFGHJKMNPQRT", ..signed },
            Statement { digest: &[9; 32], ..signed },
            Statement { record_sha256: &[9; 32], ..signed },
            Statement { approve: false, ..signed },
            Statement { scope: "session", ..signed },
            Statement { categories: &none, ..signed },
            Statement { max_execs: 8, ..signed },
            Statement { expires_unix_ns: 100, ..signed },
            Statement { reason: "looks righ", ..signed },
            Statement { reviewer: "carol", ..signed },
            Statement { decided_unix_ns: 43, ..signed },
            Statement { delegation_id: REQUEST, ..signed },
        ];
        for other in others {
            assert!(!key.signed(&other, &signature), "{other:?}");
        }
        assert!(!key.signed(&signed, &[]) && !key.signed(&signed, &[0; 64]) && !key.signed(&signed, &signature[1..]));
        assert!(!ReviewSigner::from_seed(&[6; 32]).public().signed(&signed, &signature));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let split = ["a".to_owned(), "b".to_owned()];
        let whole = ["ab".to_owned()];
        assert_ne!(statement(&split).bytes(), statement(&whole).bytes());
        let here = Statement { scope: "once", reviewer: "x", ..statement(&[]) };
        let there = Statement { scope: "on", reviewer: "cex", ..statement(&[]) };
        assert_ne!(here.bytes(), there.bytes());
    }

    #[test]
    fn keys_come_back_from_their_text_and_others_are_refused() {
        let signer = ReviewSigner::from_seed(&[5; 32]);
        let again = ReviewSigner::parse(&signer.secret()).unwrap();
        assert_eq!(again.public(), signer.public());
        assert_eq!(ReviewKey::parse(&signer.public().text()).unwrap().id(), signer.public().id());
        let weak = format!(
            "ed25519:{}",
            STANDARD.encode({
                let mut point = [0; 32];
                point[0] = 1;
                point
            })
        );
        for (text, why) in [
            ("", "begins with"),
            ("ed25519:AAAA", "32 bytes"),
            (weak.as_str(), "weak"),
            ("ed25519-secret:AAAA", "begins with"),
        ] {
            assert!(ReviewKey::parse(text).unwrap_err().contains(why), "{text}");
        }
        assert!(ReviewSigner::parse("ed25519-secret:AAAA").is_err() && ReviewSigner::parse("x").is_err());
        assert!(!format!("{signer:?}").contains(signer.secret().trim_end()));
    }
}
