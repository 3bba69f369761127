//! Bodies of records, encoded once.
//!
//! It must not decide anything. A body's kind is the number of its variant in `guard.v1.RecordBody`.

use guard_log::journal::Entry;
use guard_log::record::{Kind, SessionId};
use guard_proto::v1::RecordBody;
use guard_proto::v1::record_body::Body;
use prost::Message;

use crate::kernel::time;

/// Bytes of the argument vector that one record carries; the digest and the counts cover all of it.
pub const ARGV_BYTES: usize = 40 << 10;

/// A record about a session, or about the node when there is none.
pub fn entry(session: SessionId, body: Body) -> Entry {
    let kind = kind(&body);
    Entry {
        kind,
        session,
        boot_ns: time::boot_ns(),
        wall_unix_ns: time::wall_unix_ns(),
        body: RecordBody { body: Some(body) }.encode_to_vec(),
    }
}

fn kind(body: &Body) -> Kind {
    match body {
        Body::NodeStart(_) => Kind::NODE_START,
        Body::NodeStop(_) => Kind::NODE_STOP,
        Body::SessionStart(_) => Kind::SESSION_START,
        Body::SessionEnd(_) => Kind::SESSION_END,
        Body::Exec(_) => Kind::EXEC,
        Body::ExecRequest(_) => Kind::EXEC_REQUEST,
        Body::ExecDecision(_) => Kind::EXEC_DECISION,
        Body::ExecOutcome(_) => Kind::EXEC_OUTCOME,
        Body::ExecUnjudged(_) => Kind::EXEC_UNJUDGED,
        Body::GuardRefusal(_) => Kind::GUARD_REFUSAL,
        Body::Gap(_) => Kind::GAP,
        Body::Canary(_) => Kind::CANARY,
        Body::EmergencyStop(_) => Kind::EMERGENCY_STOP,
        Body::JournalRepair(_) => Kind::JOURNAL_REPAIR,
        Body::PolicyLoaded(_) => Kind::POLICY_LOADED,
        Body::CollectorStart(_) => Kind::COLLECTOR_START,
        Body::AdmitFinding(_) => Kind::ADMIT_FINDING,
        Body::ReviewDecision(_) => Kind::REVIEW_DECISION,
    }
}

/// As much of an argument vector as a record carries, and how many strings it leaves out.
pub fn bounded_argv(argv: &[Vec<u8>]) -> (Vec<Vec<u8>>, u32) {
    let mut bytes = 0;
    let kept: Vec<_> = argv
        .iter()
        .take_while(|text| {
            bytes += text.len() + 4;
            bytes <= ARGV_BYTES
        })
        .cloned()
        .collect();
    let omitted = argv.len() - kept.len();
    (kept, u32::try_from(omitted).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use guard_log::record::{HEADER_LEN, RECORD_MAX};

    use super::*;

    #[test]
    fn long_vectors_are_counted_and_fit() {
        let argv = vec![vec![b'x'; 1000]; 100];
        let (kept, omitted) = bounded_argv(&argv);
        assert_eq!(kept.len() + omitted as usize, 100);
        assert!(omitted > 0 && ARGV_BYTES + HEADER_LEN < RECORD_MAX);
        assert_eq!(bounded_argv(&[vec![0; RECORD_MAX]]), (vec![], 1));
    }
}
