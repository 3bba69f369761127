//! A successor: the tree of a log goes on under another name and key, from a copy that was put back.
//!
//! The admin key, which is kept off the machine, signs a statement: which log goes on as which, from which leaf on, from which of
//! its checkpoints, and the newest head that anybody is known to have seen of what is lost. The statement is the body of the
//! successor's first record. It must not be taken for more: what lay between the copy and the newest head has to come again
//! from the hosts. Fails: a statement that is not exactly in its form names the line.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::body;
use crate::checkpoint::Checkpoint;
use crate::fields::{Value, each};
use crate::note::{NoteError, Verifier, open_lines};
use crate::record::Record;
use crate::tree::Hash;

/// First line: no head of a log begins like this, so that no signature of one can be taken for the other.
const FORM: &str = "guard.v1/log-succession";

/// What the admin key signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Key of the successor.
    pub new: Verifier,
    /// Its first leaf of its own: as many were taken over.
    pub begins: u64,
    /// Root over those.
    pub root: Hash,
    /// Key of the log before.
    pub old: Verifier,
    /// Its checkpoint that was put back: size and root.
    pub kept: (u64, Hash),
    /// The newest head of it that anybody is known to have seen.
    pub seen: (u64, Hash),
}

impl Statement {
    /// The text that is signed.
    pub fn text(&self) -> String {
        let Self { new, begins, root, old, kept, seen } = self;
        let (root, kept_root, seen_root) = (STANDARD.encode(root), STANDARD.encode(kept.1), STANDARD.encode(seen.1));
        let (new, old) = (new.vkey(), old.vkey());
        format!(
            "{FORM}\nlog {new}\nbegins {begins}\nroot {root}\nsucceeds {old}\nkept-size {}\nkept-root {kept_root}\n\
             seen-size {}\nseen-root {seen_root}\n",
            kept.0, seen.0
        )
    }

    /// Reads it; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut lines = Lines { rest: text.split('\n'), at: 1 };
        if lines.rest.next() != Some(FORM) {
            return Err(format!("line 1 is not `{FORM}`"));
        }
        let statement = Self {
            new: lines.key("log")?,
            begins: lines.number("begins")?,
            root: lines.hash("root")?,
            old: lines.key("succeeds")?,
            kept: (lines.number("kept-size")?, lines.hash("kept-root")?),
            seen: (lines.number("seen-size")?, lines.hash("seen-root")?),
        };
        // One spelling only: what is read is what was signed.
        if statement.text() != text {
            return Err("it is not in its only form".to_owned());
        }
        if statement.new.name() == statement.old.name() {
            return Err("a successor needs a name of its own".to_owned());
        }
        if statement.kept.0 > statement.begins {
            return Err("it begins before the checkpoint that it keeps".to_owned());
        }
        Ok(statement)
    }
}

struct Lines<'a> {
    rest: std::str::Split<'a, char>,
    at: usize,
}

impl<'a> Lines<'a> {
    fn value(&mut self, name: &str) -> Result<&'a str, String> {
        self.at += 1;
        let value = self.rest.next().and_then(|line| line.strip_prefix(name)).and_then(|rest| rest.strip_prefix(' '));
        value.ok_or_else(|| format!("line {} is not `{name}` and a value", self.at))
    }

    fn key(&mut self, name: &str) -> Result<Verifier, String> {
        Verifier::parse(self.value(name)?).map_err(|e| format!("line {}: {e}", self.at))
    }

    fn number(&mut self, name: &str) -> Result<u64, String> {
        self.value(name)?.parse().map_err(|_| format!("line {} is not a number", self.at))
    }

    fn hash(&mut self, name: &str) -> Result<Hash, String> {
        let bytes = STANDARD.decode(self.value(name)?).ok();
        let hash = bytes.and_then(|bytes| bytes.try_into().ok());
        hash.ok_or_else(|| format!("line {} is not the base64 of 32 bytes", self.at))
    }
}

/// A statement as a record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Succession {
    /// What was signed.
    pub statement: Statement,
    /// The signed statement.
    pub note: String,
    /// The kept checkpoint, as the old log signed it.
    pub kept: Vec<u8>,
}

impl fmt::Display for Succession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Statement { new, begins, old, kept, seen, .. } = &self.statement;
        write!(
            f,
            "the log {} succeeds {} from leaf {begins} on: its checkpoint of size {} was put back, the newest that is known \
             of is of size {}",
            new.name(),
            old.name(),
            kept.0,
            seen.0
        )
    }
}

impl Succession {
    /// What a record says, whoever signed the statement.
    pub(super) fn of(record: &Record) -> Result<Self, String> {
        let (mut note, mut kept) = (Vec::new(), Vec::new());
        let body = body(record).ok_or("it holds no succession")?;
        each(&body, |number, value| match (number, value) {
            (1, Value::Bytes(bytes)) => note = bytes.to_vec(),
            (2, Value::Bytes(bytes)) => kept = bytes.to_vec(),
            _ => {}
        })
        .ok_or("it cannot be read")?;
        Self::read(String::from_utf8(note).map_err(|_| "its statement is not text")?, kept)
    }

    /// From a signed statement and the checkpoint that it keeps.
    pub fn read(note: String, kept: Vec<u8>) -> Result<Self, String> {
        let statement = Statement::parse(open_lines(&note).map_err(|e| e.to_string())?.0)?;
        Ok(Self { statement, note, kept })
    }

    /// Whether it can be the record of this leaf, and keeps a checkpoint that the old log signed.
    pub fn check(&self, leaf: u64) -> Result<(), String> {
        let Statement { begins, old, kept, .. } = &self.statement;
        if leaf != *begins {
            return Err(format!("it says that the successor begins at leaf {begins}"));
        }
        let head = Checkpoint::open(&self.kept, old).map_err(|e| format!("the checkpoint that it keeps: {e}"))?;
        match (head.size, head.root) == *kept {
            true => Ok(()),
            false => Err("the checkpoint that it keeps is another than its statement says".to_owned()),
        }
    }

    /// Whether this key signed the statement.
    pub fn signed_by(&self, admin: &Verifier) -> Result<(), NoteError> {
        admin.open(&self.note).map(drop)
    }
}
