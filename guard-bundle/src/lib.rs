//! Policy bundles: the policy and role files that hosts shall have, with a serial number and a stage for each agent, signed by
//! the admin key, which lies neither on a host nor at the collector.
//!
//! What is signed is the manifest, a C2SP note that names each file by length and SHA-256:
//!
//! ```text
//! guard policy bundle v1
//! serial 7
//! made 1790000000
//! stage * enforce
//! stage coder shadow
//! stage writer observe 1791000000
//! file policy/team.yaml 1234 9f86d0…
//! file roles.yaml 99 2c26b4…
//! ```
//!
//! It must not say what the files mean, and does no I/O. Fails closed: what is not signed, is too large, is of another form or
//! does not fit its manifest is an error that says what; nothing of such a bundle can be read.

mod manifest;
#[cfg(test)]
mod tests;

use guard_log::note::{NoteError, Verifier};
use guard_log::signer::KeyFile;
use guard_proto::v1::{BundleFile, PolicyBundle};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use manifest::{Manifest, OBSERVE_SECONDS_MAX, Stage};
use manifest::{Named, check_name};

/// Files in a bundle.
pub const FILES_MAX: usize = 64;
/// Bytes of all of them.
pub const BYTES_MAX: usize = 2 << 20;
/// Name of the role file in a bundle.
pub const ROLES: &str = "roles.yaml";
/// In front of the names of policy files.
pub const POLICY: &str = "policy/";

/// Why a bundle is not one.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BundleError {
    /// The admin key did not sign it.
    #[error("the bundle's manifest: {0}")]
    Note(#[from] NoteError),
    /// The manifest is of another form.
    #[error("the bundle's manifest, line {line}: {why}")]
    Manifest {
        /// From 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// A file is not the one that the manifest names.
    #[error("the bundle's file {name}: {why}")]
    File {
        /// Which.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// A bundle whose signature and files were checked.
#[derive(Clone, Debug)]
pub struct Bundle {
    manifest: Manifest,
    texts: Vec<(String, String)>,
    digest: String,
    bytes: PolicyBundle,
}

impl Bundle {
    /// Signs one. Files are given by name and text.
    pub fn sign(
        serial: u64,
        made_unix: u64,
        stages: Vec<(String, Stage)>,
        files: Vec<(String, String)>,
        key: &KeyFile,
    ) -> Result<Self, BundleError> {
        let named = |(name, text): &(String, String)| Named {
            name: name.clone(),
            length: text.len(),
            sha256: Sha256::digest(text.as_bytes()).into(),
        };
        let manifest = Manifest::new(serial, made_unix, stages, files.iter().map(named).collect())?;
        let note = key.note(&manifest.to_string())?;
        let files = files.into_iter().map(|(name, text)| BundleFile { name, content: text.into_bytes() }).collect();
        Self::open(PolicyBundle { note, files }, &key.verifier())
    }

    /// Checks signature, form and files.
    pub fn open(bytes: PolicyBundle, admin: &Verifier) -> Result<Self, BundleError> {
        let text = admin.open(&bytes.note)?;
        let manifest = Manifest::parse(&text)?;
        let mut texts = Vec::new();
        let mut files = bytes.files.iter();
        for named in manifest.files() {
            let wrong = |why| BundleError::File { name: named.name.clone(), why };
            let file = files.next().ok_or(wrong("it is missing"))?;
            if file.name != named.name {
                return Err(wrong("another one stands in its place"));
            }
            if file.content.len() != named.length || Sha256::digest(&file.content).as_slice() != named.sha256 {
                return Err(wrong("it is not the one that was signed"));
            }
            let text = String::from_utf8(file.content.clone()).map_err(|_| wrong("it is not UTF-8"))?;
            texts.push((file.name.clone(), text));
        }
        if let Some(file) = files.next() {
            let name = check_name(&file.name).map_or_else(|_| "…".to_owned(), str::to_owned);
            return Err(BundleError::File { name, why: "the manifest does not name it" });
        }
        let digest = hex::encode(Sha256::digest(text.as_bytes()));
        Ok(Self { manifest, texts, digest, bytes })
    }

    /// Number, time, stages and names.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the signed text, which names all files by theirs.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Policy files by name and text, in their order.
    pub fn policy(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts
            .iter()
            .filter(|(name, _)| name.starts_with(POLICY))
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The role file.
    pub fn roles(&self) -> Option<&str> {
        self.texts.iter().find(|(name, _)| name == ROLES).map(|(_, text)| text.as_str())
    }

    /// As it is sent and kept.
    pub fn bytes(&self) -> &PolicyBundle {
        &self.bytes
    }
}
