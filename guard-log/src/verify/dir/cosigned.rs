//! The checkpoint that witnesses cosigned last: one that this log signed, and that it continues.
//!
//! It must not judge whose cosignatures it bears: that takes a policy. Fails: what is wrong with it is a finding.

use std::io;

use super::super::report::Findings;
use super::super::trust::Trust;
use super::super::walk::Walk;
use super::head::why;
use crate::checkpoint::Checkpoint;
use crate::tiles::COSIGNED;

/// Reads it, if there is one; without a key its signature is not checked, as that of the checkpoint.
pub(super) fn read(note: io::Result<Option<Vec<u8>>>, trust: &Trust, findings: &mut Findings) -> Option<Checkpoint> {
    let note = note.inspect_err(|error| findings.unchecked("unread_cosigned", COSIGNED, error)).ok()??;
    let head = Checkpoint::open_unsigned(&note);
    let head = head.inspect_err(|error| findings.error("malformed_cosigned", COSIGNED, why(error))).ok()?;
    if let Err(error) = trust.open_earlier(&note) {
        findings.error("cosigned_not_signed", COSIGNED, why(&error));
        return None;
    }
    Some(head)
}

/// Whether the log continues it; the walk was asked for the root at its size.
pub(super) fn judge(cosigned: &Checkpoint, head: &Checkpoint, walk: &mut Walk<'_>) -> bool {
    let root = walk.root_asked();
    let findings = &mut walk.findings;
    if cosigned.size > head.size {
        let detail = format!(
            "it was cosigned at {} entries, the checkpoint has {}: this is an older copy, or entries were taken back",
            cosigned.size, head.size
        );
        findings.error("cosigned_ahead", COSIGNED, detail);
        return false;
    }
    match root {
        Some(root) if root == cosigned.root && cosigned.origin == head.origin => return true,
        Some(_) => {
            let detail = format!("the first {} entries are not those that witnesses cosigned", cosigned.size);
            findings.error("cosigned_differs", COSIGNED, detail);
        }
        None => {
            let detail =
                format!("entries below {} are missing: whether they were cosigned is not known", cosigned.size);
            findings.unchecked("unknown_cosigned", COSIGNED, detail);
        }
    }
    false
}
