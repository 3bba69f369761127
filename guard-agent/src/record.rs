//! Bodies of records, encoded once.
//!
//! It must not decide anything. A body's kind is the number of its variant in `guard.v1.RecordBody`.

use guard_log::journal::Entry;
use guard_log::record::{HEADER_LEN, Kind, RECORD_MAX, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, Reason, RecordBody};
use prost::Message;

use crate::config::Config;
use crate::kernel::time;

/// Bytes of the argument vector that one record carries; the digest and the counts cover all of it.
pub const ARGV_BYTES: usize = 40 << 10;

/// Bytes of one journal segment: small enough that a full journal has whole ones to give back once they are shipped.
pub fn segment_bytes(config: &Config) -> u64 {
    const SEGMENT: u64 = 8 << 20;
    SEGMENT.min((config.journal.max_mib << 20) / 4)
}

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

/// Who acts for whom, as records carry it that are about what a session does: its rights are named by their digest, the
/// list stands in the session's first record and in each request that a reviewer is shown. It would be half of a record.
pub fn chain(identity: &Identity) -> Identity {
    let Identity { session_id, agent, instance, initiator, initiator_uid, .. } = identity;
    Identity {
        session_id: session_id.clone(),
        agent: agent.clone(),
        instance: instance.clone(),
        initiator: initiator.clone(),
        initiator_uid: *initiator_uid,
        categories: Vec::new(),
        rights_digest: identity.rights_digest.clone(),
        started_by: identity.started_by.clone(),
        roles_digest: identity.roles_digest.clone(),
        roles_serial: identity.roles_serial,
        roles_age_seconds: identity.roles_age_seconds,
        parent_session_id: identity.parent_session_id.clone(),
        max_risk: identity.max_risk,
    }
}

/// The body with the age of the host's signed roles in its identity, where the session has its rights from such.
pub fn aged(mut body: Body, age_seconds: Option<u64>) -> Body {
    if let Some(identity) = identity(&mut body).filter(|identity| identity.roles_serial > 0) {
        identity.roles_age_seconds = age_seconds.map_or(u32::MAX, |age| u32::try_from(age).unwrap_or(u32::MAX));
    }
    body
}

/// The identity in a body that this host writes.
fn identity(body: &mut Body) -> Option<&mut Identity> {
    match body {
        Body::SessionStart(b) => b.identity.as_mut(),
        Body::SessionEnd(b) => b.identity.as_mut(),
        Body::Exec(b) => b.identity.as_mut(),
        Body::ExecRequest(b) => b.identity.as_mut(),
        Body::ExecDecision(b) => b.identity.as_mut(),
        Body::ExecOutcome(b) => b.identity.as_mut(),
        Body::ExecUnjudged(b) => b.identity.as_mut(),
        Body::GuardRefusal(b) | Body::GuardObservation(b) => b.identity.as_mut(),
        Body::DecisionFinding(b) => b.identity.as_mut(),
        Body::SessionRenewed(b) => b.identity.as_mut(),
        Body::SessionExpired(b) => b.identity.as_mut(),
        Body::CredentialIssued(b)
        | Body::CredentialRenewed(b)
        | Body::CredentialRevoked(b)
        | Body::CredentialExpired(b)
        | Body::CredentialAlert(b) => b.identity.as_mut(),
        Body::LongLivedFound(b) => b.identity.as_mut(),
        // Of the node, or of the collector.
        _ => None,
    }
}

fn kind(body: &Body) -> Kind {
    Kind(guard_proto::kind_number(body))
}

/// A record that fits into the log, cut down where it would not.
pub fn fitting(session: SessionId, body: Body) -> Entry {
    let whole = entry(session, body);
    if whole.body.len() + HEADER_LEN <= RECORD_MAX {
        return whole;
    }
    match RecordBody::decode(whole.body.as_slice()).map(|record| record.body) {
        Ok(Some(body)) => entry(session, shrink(body)),
        _ => whole,
    }
}

/// The same record without what can make it too long: arguments (counted, and covered by their digest), long paths,
/// ancestors' images, targets.
fn shrink(mut body: Body) -> Body {
    const PATH: usize = 512;
    let (facts, verdict) = match &mut body {
        Body::Exec(exec) => (&mut exec.facts, &mut exec.verdict),
        Body::ExecRequest(request) => (&mut request.facts, &mut request.verdict),
        _ => return body,
    };
    if let Some(facts) = facts {
        facts.argv.clear();
        facts.argv_omitted = facts.argv_count;
        facts.cwd.truncate(PATH);
        facts.path_arg.truncate(PATH);
        facts.files.iter_mut().for_each(|file| file.path.truncate(PATH));
        facts.ancestry.iter_mut().for_each(|process| process.exe.clear());
    }
    if let Some(verdict) = verdict {
        verdict.targets.truncate(4);
        verdict.reasons.truncate(8);
        let reason = |id: &str| Reason {
            rule_id: id.into(),
            text: "too long for one record: arguments, long paths and ancestors' images are left out".into(),
            evidence: String::new(),
        };
        verdict.reasons.push(reason("builtin.record-cut"));
    }
    body
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
    use super::*;

    #[test]
    fn the_longest_facts_fit_once_they_are_cut() {
        use guard_proto::v1::{Exec, ExecFacts, FileFact, ProcessRef, Verdict};
        let long = vec![b'p'; 4096];
        let exec = Exec {
            facts: Some(ExecFacts {
                argv: vec![vec![b'a'; 1000]; 40],
                argv_count: 40,
                cwd: long.clone(),
                path_arg: long.clone(),
                files: vec![FileFact { path: long.clone(), ..FileFact::default() }; 6],
                ancestry: vec![ProcessRef { exe: long, ..ProcessRef::default() }; 16],
                ..ExecFacts::default()
            }),
            verdict: Some(Verdict { targets: vec!["t".repeat(1024); 64], ..Verdict::default() }),
            ..Exec::default()
        };
        assert!(entry(SessionId::NONE, Body::Exec(exec.clone())).body.len() > RECORD_MAX);
        let cut = fitting(SessionId::NONE, Body::Exec(exec));
        assert!(cut.body.len() + HEADER_LEN < RECORD_MAX / 2);
    }

    #[test]
    fn the_age_of_signed_roles_is_in_every_record_about_a_session_that_has_its_rights_from_them() {
        use guard_proto::v1::{ExecOutcome, Gap};
        let outcome = |roles_serial| {
            Body::ExecOutcome(ExecOutcome {
                identity: Some(Identity { roles_serial, ..Identity::default() }),
                ..ExecOutcome::default()
            })
        };
        let age = |body, age| identity(&mut aged(body, age)).map(|i| i.roles_age_seconds);
        assert_eq!(age(outcome(7), Some(12)), Some(12));
        assert_eq!(age(outcome(7), None), Some(u32::MAX), "not known is as old as can be");
        assert_eq!(age(outcome(0), Some(12)), Some(0), "the host's own file has no age");
        assert_eq!(age(Body::Gap(Gap::default()), Some(12)), None);
    }

    #[test]
    fn long_vectors_are_counted_and_fit() {
        let argv = vec![vec![b'x'; 1000]; 100];
        let (kept, omitted) = bounded_argv(&argv);
        assert_eq!(kept.len() + omitted as usize, 100);
        assert!(omitted > 0 && ARGV_BYTES + HEADER_LEN < RECORD_MAX);
        assert_eq!(bounded_argv(&[vec![0; RECORD_MAX]]), (vec![], 1));
    }
}
