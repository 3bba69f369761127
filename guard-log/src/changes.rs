//! What became of a log's name and key, so that whoever trusts an old key can come to the newest one without asking anybody.
//!
//! Two things can happen. A *rotation*: a second key of the same name signs beside the first; the record that says so lies under
//! a checkpoint that the first key signed. A *succession* ([`succession`]): the tree goes on under another name, because a copy
//! of the log was put back; it takes the signature of the admin key. The public file `changes` holds a receipt of each such
//! record, in order. It must not lead from a key that did not sign for the next one. Fails: a file in which one step does not
//! follow from the one before is refused whole, with the step that is wrong.

pub mod succession;
#[cfg(test)]
mod tests;

use std::fmt;

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::fields::{Value, each};
use crate::note::{NoteError, Verifier};
use crate::proof::{Receipt, ReceiptError};
use crate::record::{Kind, Record};
use crate::tiles::CHANGES;
use crate::tree::{Hash, leaf_hash};
use crate::verify::{Source, SourceError};
use succession::Succession;

/// Most changes of one log; each is a decision of its operator.
pub const CHANGES_MAX: usize = 64;
/// Longest receipt of one.
pub const CHANGE_MAX: usize = 64 << 10;
/// Longest file.
pub const FILE_MAX: u64 = (CHANGES_MAX * CHANGE_MAX) as u64;
/// First line of a receipt.
const RECEIPT: &str = "c2sp.org/tlog-proof@v1\n";
/// Longest key in text.
const VKEY_MAX: usize = 512;

/// Why a file does not lead from one key to the next.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// It could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file as a whole.
    #[error("changes of the log's key: {0}")]
    File(&'static str),
    /// A receipt does not hold.
    #[error("changes of the log's key: {0}")]
    Receipt(#[from] ReceiptError),
    /// What a record says.
    #[error("changes of the log's key: record {leaf}: {why}")]
    Record {
        /// Its leaf.
        leaf: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A log that was succeeded, and nobody to say whether it may be.
    #[error(
        "record {leaf} says that this log succeeds {old}: that takes the signature of an admin key, and none is named"
    )]
    NoAdmin {
        /// Its leaf.
        leaf: u64,
        /// Name of the log before.
        old: String,
    },
    /// The succession is not one that the admin key signed.
    #[error("record {leaf} says that this log succeeds another, and the admin key did not sign that: {cause}")]
    Admin {
        /// Its leaf.
        leaf: u64,
        /// What the signature lacks.
        cause: NoteError,
    },
}

/// What a record says of the log's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A second key of the same name signs too.
    Rotation(Box<Rotation>),
    /// The tree goes on under another name.
    Succession(Box<Succession>),
}

/// One key follows another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key until then.
    pub old: Verifier,
    /// The key that follows it.
    pub new: Verifier,
}

impl Change {
    /// What a record says; `None` if it is of another kind, or says that a rotation ended, which changes nothing any more.
    pub fn of(record: &Record) -> Option<Result<Self, String>> {
        match record.header().kind {
            Kind::KEY_ROTATED => rotation(record).transpose(),
            Kind::LOG_SUCCEEDED => Some(Succession::of(record).map(|found| Self::Succession(Box::new(found)))),
            _ => None,
        }
    }

    /// The key that it leads from.
    pub fn old(&self) -> &Verifier {
        match self {
            Self::Rotation(rotation) => &rotation.old,
            Self::Succession(succession) => &succession.statement.old,
        }
    }

    /// The key that it leads to.
    pub fn new_key(&self) -> &Verifier {
        match self {
            Self::Rotation(rotation) => &rotation.new,
            Self::Succession(succession) => &succession.statement.new,
        }
    }
}

/// The fields of the one body in a record.
fn body(record: &Record) -> Option<Vec<u8>> {
    let (number, mut body) = (u64::from(record.header().kind.0), None);
    each(record.body(), |field, value| {
        if let (true, Value::Bytes(bytes)) = (field == number, value) {
            body = Some(bytes.to_vec());
        }
    })?;
    body
}

fn rotation(record: &Record) -> Result<Option<Change>, String> {
    let text =
        |bytes: &[u8]| String::from_utf8_lossy(bytes.get(..bytes.len().min(VKEY_MAX)).unwrap_or_default()).into_owned();
    let (mut what, mut old, mut new) = (String::new(), String::new(), String::new());
    let body = body(record).ok_or("it holds no rotation")?;
    each(&body, |number, value| match (number, value) {
        (1, Value::Bytes(bytes)) => what = text(bytes),
        (2, Value::Bytes(bytes)) => old = text(bytes),
        (3, Value::Bytes(bytes)) => new = text(bytes),
        _ => {}
    })
    .ok_or("it cannot be read")?;
    if what != "begun" {
        return Ok(None);
    }
    let key = |vkey: &str| Verifier::parse(vkey).map_err(|e| e.to_string());
    let (old, new) = (key(&old)?, key(&new)?);
    if old.name() != new.name() || old == new {
        return Err("its keys are not two of one name".to_owned());
    }
    Ok(Some(Change::Rotation(Box::new(Rotation { old, new }))))
}

/// One change, with the proof that the log holds its record.
#[derive(Clone, Debug)]
pub struct Step {
    /// Leaf of the record.
    pub leaf: u64,
    /// Hash of the record.
    pub hash: Hash,
    /// What it says.
    pub change: Change,
    /// The head that the receipt leads to, signed as the change demands.
    pub head: Checkpoint,
    /// As it lies in the file.
    pub receipt: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, change, .. } = self;
        match change {
            Change::Rotation(rotation) => {
                let (old, new) = (rotation.old.vkey(), rotation.new.vkey());
                write!(f, "record {leaf} rotates the log's key from {old} to {new}")
            }
            Change::Succession(succession) => write!(f, "record {leaf}: {succession}"),
        }
    }
}

impl Step {
    /// Reads a receipt, and checks all that needs no other key than those it names: that of a rotation is signed by the old key,
    /// that of a succession by the successor's, which proves that whoever made it holds that key.
    pub fn parse(text: &str) -> Result<Self, ChangeError> {
        if text.len() > CHANGE_MAX {
            return Err(ChangeError::File("a receipt is longer than 64 KiB"));
        }
        let receipt = Receipt::parse(text)?;
        let entry = receipt.extra.clone().ok_or(ChangeError::File("a receipt has no record as extra data"))?;
        let wrong = |why: String| ChangeError::Record { leaf: receipt.index, why };
        let record = Record::parse(entry.clone()).map_err(|e| wrong(e.to_string()))?;
        let change = Change::of(&record).ok_or_else(|| wrong("it changes no key".to_owned()))?.map_err(wrong)?;
        let signer = match &change {
            Change::Rotation(rotation) => &rotation.old,
            Change::Succession(succession) => {
                succession.check(receipt.index).map_err(wrong)?;
                &succession.statement.new
            }
        };
        let head = receipt.verify(&entry, signer)?;
        if let Change::Rotation(rotation) = &change {
            // Whoever rotates to a key holds it: nobody is led to a key that will never sign.
            Checkpoint::open(receipt.note.as_bytes(), &rotation.new).map_err(ReceiptError::Checkpoint)?;
        }
        Ok(Self { leaf: receipt.index, hash: leaf_hash(&entry), change, head, receipt: text.to_owned() })
    }

    /// Whether a receipt, right or wrong, is for a record that claims a succession.
    pub fn claims_succession(receipt: &[u8]) -> bool {
        let receipt = std::str::from_utf8(receipt).ok().and_then(|text| Receipt::parse(text).ok());
        let record = receipt.and_then(|receipt| receipt.extra).and_then(|entry| Record::parse(entry).ok());
        record.is_some_and(|record| record.header().kind == Kind::LOG_SUCCEEDED)
    }

    /// Whether the admin key allows it; a rotation needs none.
    pub fn allowed(&self, admin: Option<&Verifier>) -> Result<(), ChangeError> {
        let Change::Succession(succession) = &self.change else { return Ok(()) };
        let old = || succession.statement.old.name().to_owned();
        let admin = admin.ok_or_else(|| ChangeError::NoAdmin { leaf: self.leaf, old: old() })?;
        succession.signed_by(admin).map_err(|cause| ChangeError::Admin { leaf: self.leaf, cause })
    }
}

/// All changes of a log, in order.
#[derive(Clone, Debug, Default)]
pub struct Changes(Vec<Step>);

impl Changes {
    /// Reads the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChangeError> {
        if bytes.len() as u64 > FILE_MAX {
            return Err(ChangeError::File("it is longer than any log's"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ChangeError::File("it is not text"))?;
        let mut changes = Self::default();
        let mut rest = text;
        while !rest.is_empty() {
            let end =
                rest.get(1..).and_then(|after| after.find(&format!("\n{RECEIPT}"))).map_or(rest.len(), |at| at + 2);
            let (one, later) = rest.split_at(end);
            changes.push(Step::parse(one)?)?;
            rest = later;
        }
        Ok(changes)
    }

    /// Adds one that follows from the last.
    pub fn push(&mut self, step: Step) -> Result<(), ChangeError> {
        let wrong = |why: &str| Err(ChangeError::Record { leaf: step.leaf, why: why.to_owned() });
        if self.0.len() >= CHANGES_MAX {
            return Err(ChangeError::File("more than 64 changes"));
        }
        if let Some(last) = self.0.last() {
            if last.change.new_key() != step.change.old() {
                return wrong("it does not lead on from the key that the change before it leads to");
            }
            if last.leaf >= step.leaf {
                return wrong("it lies before the change that it should follow");
            }
        }
        self.0.push(step);
        Ok(())
    }

    /// Of a source; none if it has no such file.
    pub fn fetch(source: &dyn Source) -> Result<Self, ChangeError> {
        source.fetch(CHANGES)?.map_or_else(|| Ok(Self::default()), |bytes| Self::parse(&bytes))
    }

    /// Every change.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Every key in order, from the first one on.
    pub fn keys(&self) -> impl Iterator<Item = &Verifier> {
        self.0.first().map(|step| step.change.old()).into_iter().chain(self.0.iter().map(|step| step.change.new_key()))
    }

    /// The changes that lead on from a key; all others are of no concern to who trusts it.
    pub fn after(&self, key: &Verifier) -> &[Step] {
        let from = self.0.iter().position(|step| step.change.old() == key).unwrap_or(self.0.len());
        self.0.get(from..).unwrap_or_default()
    }

    /// The file.
    pub fn text(&self) -> String {
        self.0.iter().map(|step| step.receipt.as_str()).collect()
    }

    /// The keys that a head of this log may be signed with for someone who trusts `key` and, if named, `admin`: that one and
    /// those that it leads to; and what leads to them. Ends before a succession that the admin did not sign; then the reason
    /// comes with it.
    pub fn trusted(&self, key: &Verifier, admin: Option<&Verifier>) -> Trusted<'_> {
        let mut trusted = Trusted { keys: vec![key.clone()], followed: &[], stopped: None };
        let steps = self.after(key);
        for (count, step) in (1..).zip(steps) {
            if let Err(error) = step.allowed(admin) {
                trusted.stopped = Some(error);
                break;
            }
            trusted.keys.push(step.change.new_key().clone());
            trusted.followed = steps.get(..count).unwrap_or_default();
        }
        trusted
    }
}

/// What a trusted key leads to.
#[derive(Debug)]
pub struct Trusted<'a> {
    /// The key itself and those that follow it.
    pub keys: Vec<Verifier>,
    /// The changes on the way.
    pub followed: &'a [Step],
    /// Why it does not lead further.
    pub stopped: Option<ChangeError>,
}

impl Trusted<'_> {
    /// Opens a head, and says which of the keys signed it, the newest if several did. That of a key that is not reached is told
    /// with the reason why not.
    pub fn open(&self, note: &[u8]) -> Result<(Checkpoint, Verifier), TrustError> {
        let mut first = None;
        for key in self.keys.iter().rev() {
            match Checkpoint::open(note, key) {
                Ok(head) => return Ok((head, key.clone())),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        match (&self.stopped, first) {
            (Some(stopped), _) => Err(TrustError::Stopped(stopped.to_string())),
            (None, Some(error)) => Err(error.into()),
            (None, None) => Err(CheckpointError::Line("no key is known to check it with").into()),
        }
    }
}

/// The key that signed a source's head, for someone who trusts `key` and, if named, `admin`.
pub fn signer_of(
    source: &dyn Source,
    key: &Verifier,
    admin: Option<&Verifier>,
    note: &[u8],
) -> Result<(Checkpoint, Verifier), TrustError> {
    // Most often nothing changed, and then nothing else need be right.
    if let Ok(head) = Checkpoint::open(note, key) {
        return Ok((head, key.clone()));
    }
    let changes = Changes::fetch(source).map_err(|error| TrustError::Stopped(error.to_string()))?;
    changes.trusted(key, admin).open(note)
}

/// Why a head is not believed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TrustError {
    /// No key that is trusted signed it.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The key that signed it is behind a change that is not trusted.
    #[error("{0}")]
    Stopped(String),
}
