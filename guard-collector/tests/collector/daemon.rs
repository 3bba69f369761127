//! A daemon without its kernel side: the real journal, the real memory of the log and the real shipping, of guard-agent.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use guard_collector::body::{kind_of, parse};
use guard_collector::own::now_ns;
use guard_log::journal::{Entry, Journal, JournalOptions};
use guard_log::note::Verifier;
use guard_log::record::{HostId, Record, SessionId};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::seen::Seen;
use crate::stream::{self, Outlet, Shipper};
use crate::world::World;

/// Longest time for anything.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Daemon {
    pub dir: tempfile::TempDir,
    pub host: HostId,
    /// Its certificate.
    node: &'static str,
    pub journal: Journal,
    pub seen: Seen,
    pub admin: Option<Verifier>,
    pub pinned: Option<Verifier>,
    noted: Mutex<Vec<Body>>,
    /// What its records name, by digest.
    blobs: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
}

/// Digest of the blob that a record names, if it names one.
pub fn blob_of(record: &Record) -> Option<Vec<u8>> {
    match parse(record)? {
        Body::Exec(exec) => exec.facts.map(|facts| facts.blob_sha256).filter(|digest| !digest.is_empty()),
        _ => None,
    }
}

impl Outlet for Daemon {
    fn note(&self, body: Body) {
        self.append(body.clone());
        self.noted.lock().expect("noted").push(body);
    }

    fn with_blobs(&self, batch: Vec<Record>) -> (Vec<Record>, Vec<Vec<u8>>) {
        let kept = self.blobs.lock().expect("blobs");
        let blobs = batch.iter().filter_map(blob_of).filter_map(|digest| kept.get(&digest).cloned()).collect();
        (batch, blobs)
    }

    fn acknowledged(&self, _: u64, _: u64) {}

    fn up(&self) {}
}

impl Daemon {
    /// One that keeps what was acknowledged, with small segments.
    pub fn new(node: &'static str, pinned: Option<Verifier>, admin: Option<Verifier>) -> Daemon {
        let dir = tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let host = HostId::random().expect("random");
        let options = JournalOptions {
            dir: dir.path().join("journal"),
            segment_bytes: 4000,
            max_bytes: 1 << 20,
            reserve_bytes: 1000,
            session_percent: 100,
            keep: Duration::from_secs(3600),
            require_real_disk: false,
        };
        let (journal, _) = Journal::open(options, host).expect("journal");
        let seen = Seen::open(dir.path(), pinned.as_ref(), admin.as_ref()).expect("seen");
        Daemon { dir, host, node, journal, seen, admin, pinned, noted: Mutex::default(), blobs: Mutex::default() }
    }

    /// Forgets all but what is on the disk of what it has seen.
    pub fn restart(&mut self) {
        self.seen.keep_now();
        self.seen = Seen::open(self.dir.path(), self.pinned.as_ref(), self.admin.as_ref()).expect("seen");
    }

    pub fn append(&self, body: Body) {
        let (kind, body) = (kind_of(&body), RecordBody { body: Some(body) }.encode_to_vec());
        let entry = Entry { kind, session: SessionId::NONE, boot_ns: 1, wall_unix_ns: now_ns(), body };
        self.journal.append(entry).expect("taken").wait().expect("durable");
    }

    pub fn fill(&self, count: usize) {
        for n in 0..count {
            self.append(Body::Gap(Gap { source: format!("ring {n}"), ..Gap::default() }));
        }
    }

    /// An exec whose arguments are in a blob; gives its digest.
    pub fn fill_with_blob(&self) -> Vec<u8> {
        let blob = Blob { salt: vec![7; 32], argv: vec![b"x".repeat(70_000)], secrets: vec![] }.encode_to_vec();
        let digest = Sha256::digest(&blob).to_vec();
        self.blobs.lock().expect("blobs").insert(digest.clone(), blob);
        let facts = ExecFacts { blob_sha256: digest.clone(), ..ExecFacts::default() };
        self.append(Body::Exec(Exec { facts: Some(facts), ..Exec::default() }));
        digest
    }

    pub async fn client(&self, world: &World) -> crate::world::NodeClient {
        world.node(self.node).await
    }

    /// Ships until all is acknowledged, or the stream ends with that.
    pub async fn ship(&self, world: &World) -> Result<(), String> {
        let shipper =
            Shipper { host: self.host, host_name: self.node, journal: &self.journal, seen: &self.seen, outlet: self };
        let all = async {
            // What a welcome adds is acknowledged too.
            let mut quiet = 0;
            while quiet < 5 {
                let state = self.journal.state();
                quiet = if state.acked_next_seq == state.next_seq { quiet + 1 } else { 0 };
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let done = async {
            tokio::select! {
                end = stream::ship(&shipper, self.client(world).await) => Err(end),
                () = all => Ok(()),
            }
        };
        tokio::time::timeout(PATIENCE, done).await.expect("in time")
    }

    /// Ships something, so that a welcome has come and been answered.
    pub async fn ship_more(&self, world: &World, count: usize) -> Result<(), String> {
        self.fill(count);
        self.ship(world).await
    }

    /// Every record that its journal holds.
    pub fn records(&self) -> Vec<Record> {
        let (mut next, mut records) = (self.journal.state().first_seq, vec![]);
        loop {
            let some = self.journal.read(next, 1000, 1 << 20).expect("read");
            let Some(last) = some.last() else { return records };
            next = last.header().seq + 1;
            records.extend(some);
        }
    }

    /// What it refused, as words.
    pub fn refused(&self) -> Vec<String> {
        let of = |body: &Body| match body {
            Body::CheckpointRefused(refused) => Some(refused.what.clone()),
            _ => None,
        };
        self.noted.lock().expect("noted").iter().filter_map(of).collect()
    }

    /// What it followed.
    pub fn followed(&self) -> Vec<LogFollowed> {
        let of = |body: &Body| match body {
            Body::LogFollowed(followed) => Some(followed.clone()),
            _ => None,
        };
        self.noted.lock().expect("noted").iter().filter_map(of).collect()
    }

    /// As [`Self::assert_logged_once`], of a collector that does not run.
    pub async fn assert_logged_once_after(&self, world: &mut World) {
        world.start();
        self.assert_logged_once(world).await;
        world.stop();
    }

    /// Each of its records once, in order, with the very bytes; and nothing that the collector found about it but that it came.
    pub async fn assert_logged_once(&self, world: &World) {
        let logged = world.records().await;
        let of_host: Vec<Record> = logged.iter().filter(|r| r.header().host == self.host).cloned().collect();
        let ours = self.records();
        assert_eq!(ours.first().map(|r| r.header().seq), Some(0), "the journal kept all");
        assert_eq!(of_host.len(), ours.len());
        assert_eq!(of_host, ours);
        let findings: Vec<String> = logged
            .iter()
            .filter_map(|record| match parse(record) {
                Some(Body::AdmitFinding(finding)) if finding.host == self.host.0 => Some(finding.what),
                _ => None,
            })
            .collect();
        assert_eq!(findings, ["bound"]);
    }
}
