//! An outsider's audit of a whole log, from its public resources alone.
//!
//! Signature, every entry up to the signed root, every tile, growth since an earlier checkpoint, every host's chain.
//! It must not trust anything but the verifier key and the earlier checkpoint; memory is bounded. Fails: only when a
//! resource cannot be fetched or the checkpoint is not signed; whatever is wrong with the log is a finding that names what and
//! where.

mod admitted;
mod chains;
#[cfg(test)]
mod corpus;
mod dir;
mod folder;
mod report;
mod source;
#[cfg(test)]
mod tests;
mod tiles;
mod trust;
mod walk;

use thiserror::Error;

pub use dir::{Blobs, DirOptions, DirReport, Form, LogDir, Part, PartReport, Said, State};
pub use folder::Folder;
pub use report::{AuditReport, Finding, HostReport, Severity};
pub use source::{Source, SourceError};

use crate::changes::TrustError;
use crate::checkpoint::Checkpoint;
use crate::note::Verifier;
use crate::record::Record;
use crate::tiles::CHECKPOINT;
use report::Findings;
pub(crate) use tiles::fetch as fetch_tile;
use trust::Trust;
use walk::Walk;

/// Why no audit came about.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// A resource could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No checkpoint.
    #[error("the source has no checkpoint: it is no log, or not one in tlog-tiles form")]
    NoCheckpoint,
    /// The checkpoint is not one, or not signed by the key or one that it leads to.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// What is demanded besides the log being right in itself.
#[derive(Clone, Debug, Default)]
pub struct AuditOptions {
    /// An earlier verified checkpoint that the log must continue.
    pub previous: Option<Checkpoint>,
    /// The admin key, which has to have signed a succession.
    pub admin: Option<Verifier>,
}

/// Audits a log. `progress` is told entries done and in all.
pub fn audit(
    source: &dyn Source,
    verifier: &Verifier,
    options: &AuditOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<AuditReport, VerifyError> {
    let note = source.fetch(CHECKPOINT)?.ok_or(VerifyError::NoCheckpoint)?;
    let mut findings = Findings::default();
    let trust = Trust::of(source, verifier, options.admin.as_ref(), &mut findings)?;
    let (checkpoint, signed_by) = trust.signer(&note)?;
    let previous = trust.previous(options.previous.clone(), &checkpoint, &mut findings);
    let mut each = |_: u64, _: &Record| {};
    let mut walk = Walk::open(source, &checkpoint, previous.as_ref(), findings, &mut each)?;
    walk.trust = trust;
    walk.published(progress)?;
    let entries = walk.entries;
    let (hosts, findings) = walk.finish();
    Ok(AuditReport { checkpoint, note, signed_by, entries, hosts, findings: findings.finish() })
}
