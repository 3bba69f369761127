//! Entries go by the policy and never one that something needs; what is left starts, answers and continues.

use guard_log::record::{Epoch, Header, HostId, Kind, Record};
use guard_log::verify::{AuditOptions, Folder, Severity, audit};
use guard_proto::v1::{Exec, ExecFacts, ExecRequest, RecordBody};
use prost::Message;
use sha2::{Digest, Sha256};

use super::*;
use crate::blobs::BlobId;
use crate::body;
use crate::ledger::LedgerError;
use crate::own::now_ns;
use crate::testing::Place;

const OF: (HostId, Epoch) = (HostId([1; 16]), Epoch([2; 16]));
const POLICY: Policy = Policy { days: 30, minimum: 0 };

/// What runs.
struct Running(Retention);

fn fresh() -> Place {
    Place::new(20_000)
}

/// Whatever is wrong with the log.
fn findings(place: &Place) -> Vec<String> {
    let source = Folder::open(&place.file("log")).expect("folder");
    let report = audit(&source, &place.verifier(), &AuditOptions::default(), &mut |_, _| {}).expect("audited");
    let wrong = report.findings.iter().filter(|f| f.severity != Severity::Information);
    wrong.map(ToString::to_string).collect()
}

impl Running {
    fn of(place: &Place) -> Self {
        let ledger = Arc::new(place.ledger());
        let index = Index::open(&place.dir.path().join("index.sqlite"), ledger.store().clone(), false).expect("index");
        let published = Arc::new(Published::default());
        let (policy, keep_segments, index) = (Some(POLICY), Duration::ZERO, Arc::new(index));
        let blobs = Blobs::of(&place.file(""));
        let alerts = Arc::default();
        let running = Self(Retention { policy, keep_segments, ledger, index, published, blobs, alerts });
        running.0.ledger.start(None).expect("recorded");
        running
    }

    /// Ships so many records and publishes and indexes them.
    fn fill(&self, chain: &mut Chain, count: u64) {
        for _ in 0..count / 50 {
            self.ship(&chain.take(50)).expect("admitted");
            self.durable();
            self.0.published.publish(self.0.ledger.store()).expect("published");
        }
        while self.0.index.step().expect("indexed") {}
    }

    fn durable(&self) {
        let (store, size) = (self.0.ledger.store(), self.0.ledger.state().size);
        assert!(store.size() == size || store.wait_past(size - 1, DURABLE_WAIT));
    }

    fn ship(&self, records: &[Record]) -> Result<u64, LedgerError> {
        self.0.ledger.admit("node", OF, records.to_vec()).map(|admitted| admitted.next_seq)
    }

    fn round(&self) -> Result<u64, String> {
        self.0.round(SystemTime::now() + Duration::from_secs(31 * DAY))
    }

    fn first(&self) -> u64 {
        self.0.ledger.store().first()
    }
}

/// A host's journal.
struct Chain {
    seq: u64,
    prev: [u8; 32],
}

impl Chain {
    fn new() -> Self {
        Self { seq: 0, prev: [0; 32] }
    }

    fn next(&mut self, body: Option<Body>) -> Record {
        let kind = body.as_ref().map_or(Kind::EXEC, body::kind_of);
        let bytes = body.map(|body| RecordBody { body: Some(body) }.encode_to_vec());
        let bytes = bytes.unwrap_or_else(|| vec![b'x'; 60]);
        let (seq, prev, session, wall_unix_ns) = (self.seq, self.prev, SessionId::NONE, now_ns());
        let (host, epoch) = OF;
        let header = Header { version: 1, kind, host, epoch, seq, prev, boot_ns: 1, wall_unix_ns, session };
        let record = Record::seal(&header, &bytes).expect("sealed");
        (self.seq, self.prev) = (seq + 1, record.digest());
        record
    }

    fn take(&mut self, count: usize) -> Vec<Record> {
        (0..count).map(|_| self.next(None)).collect()
    }
}

#[test]
fn old_bundles_go_on_the_record_and_the_next_start_continues() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    running.fill(&mut chain, 1000);
    assert_eq!(running.0.round(SystemTime::now()), Ok(0), "nothing is old");
    let size = running.0.ledger.state().size;
    let removed = running.round().expect("pruned");
    assert!(removed > 0);
    assert_eq!((running.first(), running.0.ledger.state().size), (removed * 256, size + 1));
    let record = running.0.ledger.store().read(size, 1, 1 << 20).expect("read").remove(0).1;
    let Some(Body::EntriesPruned(said)) = body::parse(&record) else { panic!("another record") };
    assert_eq!((said.first_leaf, said.previous_first, said.records), (removed * 256, 0, removed * 256));
    assert_eq!(said.policy, "retention: entries_days = 30, minimum_records = 0");
    assert_eq!(running.round(), Ok(0), "and no second record");
    assert_eq!(findings(&place), Vec::<String>::new());
    let first = running.first();
    drop(running);

    let running = Running::of(&place);
    assert_eq!(running.first(), first);
    running.fill(&mut chain, 1000);
    assert!(running.round().expect("pruned") > 0);
    assert_eq!(findings(&place), Vec::<String>::new());
}

#[test]
fn a_start_without_the_snapshot_uses_the_copy_and_without_both_refuses() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    running.fill(&mut chain, 1000);
    running.round().expect("pruned");
    running.fill(&mut chain, 100);
    drop(running);
    let _ = std::fs::remove_file(place.file("admission"));
    let running = Running::of(&place);
    assert_eq!(running.0.ledger.state().admit.next(OF.0, OF.1).0, 1100);
    drop(running);
    let _ = std::fs::remove_file(place.file("admission"));
    std::fs::remove_file(place.file("admission.pruned")).expect("was there");
    let Err(error) = Ledger::open(place.store(), place.file("admission")) else { panic!("it started") };
    let error = error.to_string();
    assert!(error.contains("were pruned by record") && error.contains("admission.pruned"), "{error}");
}

#[test]
fn an_open_request_the_newest_records_and_what_is_not_indexed_stay() {
    let (place, mut chain) = (fresh(), Chain::new());
    let mut running = Running::of(&place);
    running.fill(&mut chain, 300);
    let deadline_unix_ns = now_ns() + 60_000_000_000;
    let (request_id, digest) = ("R1".to_owned(), vec![3; 32]);
    let request = ExecRequest { request_id, digest, deadline_unix_ns, ..Default::default() };
    let asks = chain.next(Some(Body::ExecRequest(request)));
    running.ship(&[asks]).expect("admitted");
    running.fill(&mut chain, 1000);
    running.round().expect("pruned");
    assert_eq!(running.first(), 256, "the request is a leaf of the second bundle");
    drop(running);
    let _ = std::fs::remove_file(place.file("admission"));
    running = Running::of(&place);
    assert!(running.0.ledger.state().reviews.get("R1").is_some());

    running.0.policy = Some(Policy { minimum: 5000, ..POLICY });
    assert_eq!((running.round(), running.first()), (Ok(0), 256));
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    for _ in 0..20 {
        running.ship(&chain.take(50)).expect("admitted");
        running.0.published.publish(running.0.ledger.store()).expect("published");
    }
    assert_eq!((running.round(), running.first()), (Ok(0), 0), "nothing is indexed");
}

/// A record that names a blob, which came with it.
fn naming(running: &Running, chain: &mut Chain, blob: &[u8]) -> BlobId {
    let id: BlobId = Sha256::digest(blob).into();
    let facts = ExecFacts { blob_sha256: id.to_vec(), ..ExecFacts::default() };
    let record = chain.next(Some(Body::Exec(Exec { facts: Some(facts), ..Exec::default() })));
    running.0.blobs.keep(&[blob.to_vec()], std::slice::from_ref(&record)).expect("kept");
    running.ship(&[record]).expect("admitted");
    running.durable();
    id
}

#[test]
fn blobs_go_with_the_last_record_that_names_them() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    let (old, both) = (naming(&running, &mut chain, b"old"), naming(&running, &mut chain, b"both"));
    running.fill(&mut chain, 1000);
    assert_eq!(naming(&running, &mut chain, b"both"), both);
    let young = naming(&running, &mut chain, b"young");
    // What was cut short while it was written is no blob.
    let unfinished = place.file("blobs").join(hex::encode(old).get(..2).unwrap()).join("x.new");
    std::fs::write(&unfinished, b"x").unwrap();
    while running.0.index.step().expect("indexed") {}
    let kept = |id: &BlobId| running.0.blobs.get(id).expect("read").is_some();
    running.0.round(SystemTime::now()).expect("nothing is old");
    assert!(kept(&old));
    assert!(running.round().expect("pruned") > 0);
    assert_eq!((kept(&old), kept(&both), kept(&young)), (false, true, true));

    // An index that does not know all records yet decides nothing.
    let again = naming(&running, &mut chain, b"again");
    running.round().expect("pruned");
    assert!(kept(&again));
    while running.0.index.step().expect("indexed") {}
    running.round().expect("pruned");
    assert_eq!((kept(&both), kept(&again)), (true, true));
}

#[test]
fn an_index_made_anew_begins_at_the_first_leaf_that_is_there() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    running.fill(&mut chain, 1000);
    running.round().expect("pruned");
    let store = running.0.ledger.store().clone();
    let path = place.dir.path().join("anew/index.sqlite");
    for anew in [true, false] {
        let index = Index::open(&path, store.clone(), anew).expect("opened");
        assert_eq!(index.covered(), if anew { store.first() } else { store.size() });
        while index.step().expect("indexed") {}
        let all = crate::index::Filter { limit: 10_000, ..Default::default() };
        let (leaves, size) = index.query(&all).expect("answered");
        assert_eq!(size, store.size());
        assert_eq!(leaves, (store.first()..store.size()).collect::<Vec<u64>>());
    }
}

#[test]
fn records_that_were_pruned_and_come_again_are_refused_by_name() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    let old = chain.take(50);
    running.ship(&old).expect("admitted");
    running.fill(&mut chain, 8000);
    assert!(running.round().expect("pruned") > 0);
    let error = running.ship(&old).expect_err("refused");
    let status = tonic::Status::from(error);
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("were pruned by record"), "{status}");
}

#[test]
fn a_host_cannot_say_that_entries_were_pruned() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    let record = chain.next(Some(Body::EntriesPruned(EntriesPruned { first_leaf: 256, ..Default::default() })));
    assert!(matches!(running.ship(&[record]), Err(LedgerError::Refused(_))));
}

#[test]
fn a_stop_after_the_record_removes_nothing_and_the_next_round_prunes() {
    let (place, mut chain) = (fresh(), Chain::new());
    let running = Running::of(&place);
    running.fill(&mut chain, 1000);
    let body = EntriesPruned { first_leaf: 256, previous_first: 0, policy: POLICY.to_string(), records: 256 };
    running.0.ledger.say(SessionId::NONE, Body::EntriesPruned(body)).expect("recorded");
    drop(running);
    let running = Running::of(&place);
    assert_eq!(running.first(), 0);
    running.fill(&mut chain, 50);
    assert!(running.round().expect("pruned") > 0);
    assert_eq!(findings(&place), Vec::<String>::new());
}
