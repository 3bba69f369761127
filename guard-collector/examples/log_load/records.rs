//! What a host would ship: chained records of execs in sessions, each of [`RECORD`] bytes.
//!
//! Four sessions of a host are open at a time; each has a start, [`SESSION`] execs and an end.

use guard_collector::body::kind_of;
use guard_collector::own::now_ns;
use guard_log::record::{Epoch, HEADER_LEN, Header, HostId, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use prost::Message;
use sha2::{Digest, Sha256};

/// Bytes of every record.
pub const RECORD: usize = 1024;
/// Execs of a session.
pub const SESSION: u64 = 250;
const OPEN: usize = 4;
const PROGRAMS: [(&str, &str); 8] = [
    ("/usr/bin/git", "vcs.read"),
    ("/usr/bin/cat", "fs.read"),
    ("/usr/bin/make", "build.run"),
    ("/usr/bin/gcc", "build.run"),
    ("/usr/bin/rm", "fs.delete"),
    ("/usr/bin/python3", "code.run"),
    ("/usr/bin/curl", "net.fetch"),
    ("/usr/bin/ls", "fs.read"),
];

#[derive(Clone)]
struct Session {
    id: SessionId,
    done: u64,
}

/// One host's journal, made as it is read.
pub struct Journal {
    pub host: HostId,
    pub epoch: Epoch,
    next: u64,
    prev: [u8; 32],
    open: Vec<Session>,
}

impl Journal {
    /// The host's id follows from its name, so that a certificate can be used again.
    pub fn new(name: &str) -> Self {
        let host = HostId::from_slice(&Sha256::digest(name)[..16]).expect("16 bytes");
        let epoch = Epoch::random().expect("random");
        let open = vec![Session { id: SessionId::NONE, done: SESSION + 1 }; OPEN];
        Self { host, epoch, next: 0, prev: [0; 32], open }
    }

    fn identity(&self, id: SessionId) -> Option<Identity> {
        let agents = ["coder", "tester", "planner", "operator"];
        let agent = agents[id.0[15] as usize % 4];
        Some(Identity {
            session_id: id.to_string(),
            agent: agent.into(),
            instance: format!("spiffe://guard/agent/{agent}/{}", id.0[14] % 16),
            initiator: format!("user{}", id.0[13] % 16),
            initiator_uid: 1000,
            categories: ["fs.read", "vcs.read", "build.run"].map(str::to_owned).to_vec(),
            rights_digest: vec![7; 32],
            ..Identity::default()
        })
    }

    fn body(&mut self, slot: usize) -> (SessionId, Body) {
        let session = &mut self.open[slot];
        session.done += 1;
        if session.done > SESSION + 1 {
            let id = SessionId(u128::from(ulid::Ulid::generate()).to_be_bytes());
            *session = Session { id, done: 0 };
            let (argv, policy_digest) = (vec![b"agent".to_vec()], "ab".repeat(32));
            let expires_unix_ns = now_ns() + 3_600_000_000_000;
            let identity = self.identity(id);
            return (
                id,
                Body::SessionStart(SessionStart {
                    identity,
                    argv,
                    policy_digest,
                    expires_unix_ns,
                    ..SessionStart::default()
                }),
            );
        }
        let (id, done) = (session.id, session.done);
        if done > SESSION {
            return (
                id,
                Body::SessionEnd(SessionEnd {
                    identity: self.identity(id),
                    reason: "exited".into(),
                    ..SessionEnd::default()
                }),
            );
        }
        (id, Body::Exec(self.exec(id)))
    }

    fn exec(&self, id: SessionId) -> Exec {
        let (path, category) = PROGRAMS[(self.next % 8) as usize];
        let argv = [path, "--option", "argument"].map(|a| a.as_bytes().to_vec()).to_vec();
        let file = FileFact {
            path: path.into(),
            ino: self.next,
            sha256: vec![3; 32],
            role: "program".into(),
            ..FileFact::default()
        };
        let facts = ExecFacts {
            exec_id: self.next + 1,
            boot_id: "b5e1a8c2-0000-4000-8000-000000000001".into(),
            argv_count: 3,
            argv,
            argv_sha256: vec![5; 32],
            cwd: b"/home/user/project".to_vec(),
            files: vec![file],
            ancestry: vec![ProcessRef { pid: 100, comm: b"bash".to_vec(), exec_id: 1, ..ProcessRef::default() }; 3],
            env_sha256: vec![6; 32],
            ..ExecFacts::default()
        };
        let reason = Reason { rule_id: "base.read".into(), text: "reads files".into(), evidence: path.into() };
        let verdict = Verdict {
            tier: Tier::Allow.into(),
            category: category.into(),
            risk: 10,
            reasons: vec![reason],
            policy_digest: "ab".repeat(32),
            ..Verdict::default()
        };
        Exec {
            identity: self.identity(id),
            facts: Some(facts),
            verdict: Some(verdict),
            disposition: if self.next.is_multiple_of(64) { Disposition::Denied } else { Disposition::Allowed }.into(),
            timing: Some(Timing { hold_to_read: 50_000, facts: 40_000, digest: 10_000, policy: 20_000 }),
            ..Exec::default()
        }
    }
}

/// Makes a body as long as the record has to be: an argument, a purpose or a reason grows.
fn padded(body: &mut Body) -> Vec<u8> {
    let wanted = RECORD - HEADER_LEN;
    let mut pad = wanted.saturating_sub(RecordBody { body: Some(body.clone()) }.encoded_len() + 16);
    loop {
        let text = "x".repeat(pad);
        match body {
            Body::Exec(b) => b.facts.as_mut().expect("facts").path_arg = text.into_bytes(),
            Body::SessionStart(b) => b.purpose = text,
            Body::SessionEnd(b) => b.detail = text,
            _ => unreachable!("made here"),
        }
        let bytes = RecordBody { body: Some(body.clone()) }.encode_to_vec();
        if bytes.len() >= wanted {
            return bytes;
        }
        pad += wanted - bytes.len();
    }
}

impl Iterator for Journal {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let (session, mut body) = self.body((self.next % OPEN as u64) as usize);
        let header = Header {
            version: 1,
            kind: kind_of(&body),
            host: self.host,
            epoch: self.epoch,
            seq: self.next,
            prev: self.prev,
            boot_ns: self.next,
            wall_unix_ns: now_ns(),
            session,
        };
        let record = Record::seal(&header, &padded(&mut body)).expect("sealed");
        (self.next, self.prev) = (self.next + 1, record.digest());
        Some(record)
    }
}
