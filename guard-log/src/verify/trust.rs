//! Which keys a head may be signed with for someone who trusts one of them, and what the log says of its name and key.
//!
//! It must not believe a change whose record is not in the audited tree at its leaf. Fails: a file that does not hold is a
//! finding, and then only the key itself counts.

use super::report::Findings;
use super::{Source, SourceError};
use crate::changes::{Change, ChangeError, Changes, TrustError};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::note::Verifier;
use crate::record::Record;
use crate::tiles::CHANGES;
use crate::tree::Hash;

/// What a key leads to in a source.
#[derive(Default)]
pub(super) struct Trust {
    changes: Changes,
    /// The key that was given.
    key: Option<Verifier>,
    admin: Option<Verifier>,
    /// Records that must be in the tree: leaf and hash.
    expected: Vec<(u64, Hash)>,
}

impl Trust {
    /// Reads the source's file.
    pub(super) fn of<'a>(
        source: &dyn Source,
        key: impl Into<Option<&'a Verifier>>,
        admin: Option<&Verifier>,
        findings: &mut Findings,
    ) -> Result<Self, SourceError> {
        let changes = match Changes::fetch(source) {
            Ok(changes) => changes,
            Err(ChangeError::Source(error)) => return Err(error),
            Err(error) => {
                findings.error("wrong_changes", CHANGES, error);
                Changes::default()
            }
        };
        let expected = changes.steps().iter().map(|step| (step.leaf, step.hash)).collect();
        Ok(Self { changes, key: key.into().cloned(), admin: admin.cloned(), expected })
    }

    /// Opens the head with the key or one that it leads to.
    pub(super) fn open(&self, note: &[u8]) -> Result<Checkpoint, TrustError> {
        match &self.key {
            Some(_) => self.signer(note).map(|(head, _)| head),
            None => Ok(Checkpoint::open_unsigned(note)?),
        }
    }

    /// The same, with the key that signed it; none did if none was given.
    pub(super) fn signer(&self, note: &[u8]) -> Result<(Checkpoint, Verifier), TrustError> {
        let none = CheckpointError::Line("no key is known to check it with");
        let key = self.key.as_ref().ok_or(none)?;
        self.changes.trusted(key, self.admin.as_ref()).open(note)
    }

    /// An earlier head that was of a log which this one succeeds, as one of this log: as far as it was taken over.
    pub(super) fn previous(
        &self,
        previous: Option<Checkpoint>,
        head: &Checkpoint,
        findings: &mut Findings,
    ) -> Option<Checkpoint> {
        let before = previous?;
        let steps = self.changes.steps().iter();
        let successions = steps.filter_map(|step| match &step.change {
            Change::Succession(succession) => Some(&succession.statement),
            Change::Rotation(_) => None,
        });
        let mut after = successions.skip_while(|statement| statement.old.name() != before.origin).peekable();
        if before.origin == head.origin || after.peek().is_none() {
            return Some(before);
        }
        let taken_over = after.map(|statement| statement.begins).min().unwrap_or(0);
        if before.size <= taken_over {
            return Some(Checkpoint { origin: head.origin.clone(), ..before });
        }
        let detail = format!(
            "of the log {} {} entries were verified earlier; the successor took over {taken_over}",
            before.origin, before.size
        );
        findings.information("successor", CHANGES, detail);
        None
    }

    /// Opens an earlier head of the same log: any key before counts too, if the one that was given is among them.
    pub(super) fn open_earlier(&self, note: &[u8]) -> Result<Checkpoint, TrustError> {
        match &self.key {
            Some(key) if self.changes.keys().any(|known| known == key) => {
                Ok(Checkpoint::open_any(note, &self.changes.keys().cloned().collect::<Vec<_>>())?)
            }
            _ => self.open(note),
        }
    }

    /// Takes the hash of a leaf of the tree.
    pub(super) fn leaf(&mut self, leaf: u64, hash: Option<&Hash>, findings: &mut Findings) {
        let Some(at) = self.expected.iter().position(|(expected, _)| *expected == leaf) else { return };
        let (_, expected) = self.expected.swap_remove(at);
        if hash != Some(&expected) {
            findings.error("wrong_changes", CHANGES, format!("leaf {leaf} is not the record that it proves"));
        }
    }

    /// All leaves were taken.
    pub(super) fn finish(&mut self, findings: &mut Findings) {
        for (leaf, _) in std::mem::take(&mut self.expected) {
            findings.error("wrong_changes", CHANGES, format!("leaf {leaf}, which it names, is not in the log"));
        }
    }

    /// Says what a record says; `root` is that of all leaves before it, if they are known.
    pub(super) fn record(&self, leaf: u64, record: &Record, root: Option<Hash>, findings: &mut Findings) {
        let where_ = format!("leaf {leaf}");
        match Change::of(record) {
            None => {}
            Some(Err(error)) => findings.error("wrong_changes", where_, error),
            Some(Ok(Change::Rotation(rotation))) => {
                let detail = format!("from {} to {}", rotation.old.vkey(), rotation.new.vkey());
                findings.information("key_rotated", where_, detail);
            }
            Some(Ok(Change::Succession(succession))) => {
                if let Err(error) = succession.check(leaf) {
                    return findings.error("wrong_succession", where_, error);
                }
                if root.is_some_and(|root| root != succession.statement.root) {
                    let detail = "the leaves before it are not those that its statement took over";
                    return findings.error("wrong_succession", where_, detail);
                }
                match self.admin.as_ref().map(|admin| succession.signed_by(admin)) {
                    Some(Ok(())) => {
                        findings.information("successor", where_, format!("{succession}; the admin key signed it"))
                    }
                    Some(Err(error)) => findings.error("wrong_succession", where_, error),
                    None => {
                        let detail = format!("{succession}; by whose signature is not judged without an admin key");
                        findings.information("successor", where_, detail);
                    }
                }
            }
        }
    }
}
