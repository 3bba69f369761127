//! The checkpoint of a copied folder: signed by the key, or not.
//!
//! It must not take a checkpoint for signed whose signature was not checked. Fails: no head, and a finding that says
//! why.

use std::io;

use super::super::VerifyError;
use super::super::report::Findings;
use super::super::trust::Trust;
use crate::checkpoint::Checkpoint;
use crate::tiles::CHECKPOINT;

/// The head that the log says it has; what it is worth is in the findings.
pub(super) fn judge(
    note: io::Result<Option<Vec<u8>>>,
    has_key: bool,
    trust: &Trust,
    findings: &mut Findings,
) -> Option<Checkpoint> {
    let note = match note {
        Ok(Some(note)) => note,
        Ok(None) => {
            findings.error("missing_checkpoint", CHECKPOINT, VerifyError::NoCheckpoint);
            return None;
        }
        Err(error) => {
            findings.unchecked("unread_checkpoint", CHECKPOINT, error);
            return None;
        }
    };
    let head = match Checkpoint::open_unsigned(&note) {
        Ok(head) => head,
        Err(error) => {
            findings.error("malformed_checkpoint", CHECKPOINT, why(&error));
            return None;
        }
    };
    match trust.open(&note) {
        Ok(_) if has_key => {}
        Err(error) if has_key => {
            let detail = format!("{}; what follows is held to it all the same", why(&error));
            findings.error("not_signed", CHECKPOINT, detail);
        }
        _ => findings.unchecked("no_key", CHECKPOINT, "signature not checked: no key given"),
    }
    Some(head)
}

/// The error without the word that says where.
pub(super) fn why(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    text.strip_prefix("checkpoint: ").unwrap_or(&text).to_owned()
}
