//! A host: a chain of records, and a ship stream that says what the collector answers.

use guard_collector::body::kind_of;
use guard_collector::own::now_ns;
use guard_log::record::{Epoch, Header, HostId, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::world::NodeClient;

pub struct Host {
    pub id: HostId,
    pub epoch: Epoch,
    pub records: Vec<Record>,
    pub session: SessionId,
}

impl Host {
    pub fn new() -> Host {
        let session = SessionId(u128::from(ulid::Ulid::generate()).to_be_bytes());
        let (id, epoch) = (HostId::random().expect("random"), Epoch::random().expect("random"));
        Host { id, epoch, records: vec![], session }
    }

    pub fn append(&mut self, session: SessionId, body: Body) -> Record {
        self.append_at(session, body, now_ns())
    }

    pub fn append_at(&mut self, session: SessionId, body: Body, wall_unix_ns: i64) -> Record {
        let header = Header {
            version: 1,
            kind: kind_of(&body),
            host: self.id,
            epoch: self.epoch,
            seq: self.records.len() as u64,
            prev: self.records.last().map(Record::digest).unwrap_or_default(),
            boot_ns: 1,
            wall_unix_ns,
            session,
        };
        let body = RecordBody { body: Some(body) }.encode_to_vec();
        let record = Record::seal(&header, &body).expect("sealed");
        self.records.push(record.clone());
        record
    }

    /// A record without a session.
    pub fn fill(&mut self, count: usize) {
        for n in 0..count {
            let gap = Gap { source: format!("ring {n}"), ..Gap::default() };
            self.append(SessionId::NONE, Body::Gap(gap));
        }
    }

    pub fn identity(&self) -> Identity {
        Identity {
            session_id: self.session.to_string(),
            agent: "coder".into(),
            instance: "spiffe://guard/agent/coder/1".into(),
            initiator: "alice".into(),
            ..Identity::default()
        }
    }

    pub fn start_session(&mut self) {
        let start = SessionStart {
            identity: Some(self.identity()),
            expires_unix_ns: now_ns() + 60_000_000_000,
            purpose: "test".into(),
            argv: vec![b"bash".to_vec()],
            ..SessionStart::default()
        };
        self.append(self.session, Body::SessionStart(start));
    }

    pub fn end_session(&mut self) {
        let end = SessionEnd { identity: Some(self.identity()), reason: "exited".into(), ..SessionEnd::default() };
        self.append(self.session, Body::SessionEnd(end));
    }

    fn facts(exec_id: u64, argv: &[&str]) -> Option<ExecFacts> {
        let path = format!("/usr/bin/{}", argv[0]).into_bytes();
        let argv = argv.iter().map(|a| a.as_bytes().to_vec()).collect();
        let files = vec![FileFact { path, role: "program".into(), ..FileFact::default() }];
        Some(ExecFacts { exec_id, argv, files, ..ExecFacts::default() })
    }

    pub fn exec(&mut self, exec_id: u64, argv: &[&str], disposition: Disposition) {
        self.exec_of_risk(exec_id, argv, disposition, 0);
    }

    pub fn exec_of_risk(&mut self, exec_id: u64, argv: &[&str], disposition: Disposition, risk: u32) {
        let verdict = Some(Verdict { category: "vcs.read".into(), risk, ..Verdict::default() });
        let exec = Exec {
            identity: Some(self.identity()),
            facts: Self::facts(exec_id, argv),
            verdict,
            disposition: disposition.into(),
            ..Exec::default()
        };
        self.append(self.session, Body::Exec(exec));
    }

    pub fn request(&mut self, id: &str, exec_id: u64, argv: &[&str], seconds: i64) -> Vec<u8> {
        let verdict = Verdict { category: "vcs.write".into(), ..Verdict::default() };
        self.request_with(id, (exec_id, argv), seconds, verdict)
    }

    /// A request of this category and risk.
    pub fn request_of(&mut self, id: &str, argv: &[&str], (category, risk): (&str, u32)) -> Vec<u8> {
        self.request_of_parts(id, argv, (category, risk), &[])
    }

    /// One whose command has several parts.
    pub fn request_of_parts(
        &mut self,
        id: &str,
        argv: &[&str],
        (category, risk): (&str, u32),
        all: &[&str],
    ) -> Vec<u8> {
        let categories = all.iter().map(|c| (*c).to_owned()).collect();
        let verdict = Verdict { category: category.into(), risk, categories, ..Verdict::default() };
        self.request_with(id, (9, argv), 60, verdict)
    }

    /// One for which kinds of acts are offered, up to a risk.
    pub fn request_of_kinds(&mut self, id: &str, (category, risk): (&str, u32), max_risk: u32) {
        let verdict = Verdict { category: category.into(), risk, ..Verdict::default() };
        let mut request = self.asks(id, (9, &["git", "commit"]), 60, verdict);
        request.kinds = vec![Kind { category: category.into(), scope: "git".into(), ..Kind::default() }];
        request.kinds_max_risk = max_risk;
        self.append(self.session, Body::ExecRequest(request));
    }

    fn request_with(&mut self, id: &str, (exec, argv): (u64, &[&str]), seconds: i64, verdict: Verdict) -> Vec<u8> {
        let request = self.asks(id, (exec, argv), seconds, verdict);
        let digest = request.digest.clone();
        self.append(self.session, Body::ExecRequest(request));
        digest
    }

    fn asks(&self, id: &str, (exec, argv): (u64, &[&str]), seconds: i64, verdict: Verdict) -> ExecRequest {
        ExecRequest {
            identity: Some(self.identity()),
            facts: Self::facts(exec, argv),
            verdict: Some(verdict),
            request_id: id.into(),
            deadline_unix_ns: now_ns() + seconds * 1_000_000_000,
            digest: Sha256::digest(format!("{id} {argv:?}")).to_vec(),
            ..ExecRequest::default()
        }
    }

    pub fn decision(&mut self, id: &str, exec_id: u64, disposition: Disposition, retry_of: u64) {
        let decision = ExecDecision {
            identity: Some(self.identity()),
            request_id: id.into(),
            exec_id,
            disposition: disposition.into(),
            retry_of,
            ..ExecDecision::default()
        };
        self.append(self.session, Body::ExecDecision(decision));
    }

    /// A refused act, by a rule if it has one.
    pub fn refusal(&mut self, what: &str, rule: &str) {
        let act = GuardAct {
            identity: Some(self.identity()),
            what: what.into(),
            rule: rule.into(),
            program: "/usr/bin/python3".into(),
            count: 1,
            ..GuardAct::default()
        };
        self.append(self.session, Body::GuardRefusal(act));
    }

    pub fn outcome(&mut self, exec_id: u64, disposition: Disposition) {
        let outcome = ExecOutcome { exec_id, disposition: disposition.into(), ..ExecOutcome::default() };
        self.append(self.session, Body::ExecOutcome(outcome));
    }

    pub fn hello(&self) -> ShipHello {
        ShipHello {
            host: self.id.0.to_vec(),
            host_name: "box".into(),
            epoch: self.epoch.0.to_vec(),
            next_seq: self.records.len() as u64,
            ..ShipHello::default()
        }
    }

    /// Ships everything that the collector lacks, at least the last record, waits until all of it is acknowledged.
    pub async fn ship(&self, client: &NodeClient) -> ShipAck {
        let (mut ship, welcome) = Ship::open(client, self.hello()).await.expect("welcome");
        let from = usize::try_from(welcome.next_seq).expect("number");
        for batch in self.records[from.min(self.records.len() - 1)..].chunks(1000) {
            ship.send(batch).await;
        }
        ship.acked(self.records.len() as u64).await.expect("acknowledged")
    }
}

/// An open stream.
pub struct Ship {
    out: mpsc::Sender<ShipRequest>,
    pub replies: Streaming<ShipReply>,
}

impl Ship {
    pub async fn open(client: &NodeClient, hello: ShipHello) -> Result<(Ship, ShipWelcome), Status> {
        let (out, requests) = mpsc::channel(8);
        let message = Some(ship_request::Message::Hello(hello));
        out.send(ShipRequest { message }).await.expect("queued");
        let mut replies = client.clone().ship(ReceiverStream::new(requests)).await?.into_inner();
        match replies.message().await? {
            Some(ShipReply { message: Some(ship_reply::Message::Welcome(welcome)) }) => {
                Ok((Ship { out, replies }, welcome))
            }
            other => panic!("no welcome: {other:?}"),
        }
    }

    pub async fn send(&mut self, records: &[Record]) {
        self.send_with(records, Vec::new()).await;
    }

    pub async fn send_with(&mut self, records: &[Record], blobs: Vec<Vec<u8>>) {
        let records = records.iter().map(|r| r.bytes().clone()).collect();
        let message = Some(ship_request::Message::Batch(ShipBatch { records, blobs }));
        // A stream that has ended says why when its replies are read.
        let _ = self.out.send(ShipRequest { message }).await;
    }

    pub async fn ack(&mut self) -> Result<ShipAck, Status> {
        match self.replies.message().await? {
            Some(ShipReply { message: Some(ship_reply::Message::Ack(ack)) }) => Ok(ack),
            other => panic!("no acknowledgement: {other:?}"),
        }
    }

    /// Waits until everything below is acknowledged.
    pub async fn acked(&mut self, next_seq: u64) -> Result<ShipAck, Status> {
        loop {
            let ack = self.ack().await?;
            if ack.next_seq >= next_seq {
                return Ok(ack);
            }
        }
    }
}
