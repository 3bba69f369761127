//! The file that spares reading the log: the same state as from the log, and never believed against it.

use guard_log::record::{Header, Kind};
use guard_proto::v1::{ExecRequest, RecordBody};
use prost::Message;

use super::*;
use crate::testing::Place;

const HOST: HostId = HostId([1; 16]);
const EPOCH: Epoch = Epoch([2; 16]);

fn fresh() -> Place {
    Place::new(1 << 20)
}

/// What is derived, as bytes.
fn state(ledger: &Ledger) -> Vec<u8> {
    snapshot::encode(&ledger.state(), "compared")
}

fn chain(from: u64, count: u64, prev: [u8; 32], body: &[u8], kind: Kind) -> Vec<Record> {
    let mut prev = prev;
    let seal = |seq| {
        let (session, wall_unix_ns) = (SessionId::NONE, 1_000);
        let header =
            Header { version: 1, kind, host: HOST, epoch: EPOCH, seq, prev, boot_ns: 1, wall_unix_ns, session };
        let record = Record::seal(&header, body).expect("sealed");
        prev = record.digest();
        record
    };
    (from..from + count).map(seal).collect()
}

fn admit(ledger: &Ledger, records: &[Record]) -> Option<u64> {
    let mut fork = None;
    for part in records.chunks(500) {
        fork = ledger.admit("n", (HOST, EPOCH), part.to_vec()).expect("admitted").fork;
    }
    let size = ledger.state().size;
    assert!(ledger.store().size() >= size || ledger.store().wait_past(size - 1, SAVE_WAIT));
    fork
}

/// 3,000 records, of which 1,000 came after the file was written; one request is open.
fn filled(place: &Place) -> (Ledger, Vec<Record>) {
    let ledger = place.ledger();
    let first = chain(0, 2_000, [0; 32], b"", Kind::GAP);
    admit(&ledger, &first);
    let request = ExecRequest { request_id: "one".into(), digest: vec![7; 32], ..ExecRequest::default() };
    let body = RecordBody { body: Some(Body::ExecRequest(request)) }.encode_to_vec();
    let asked = chain(2_000, 1, first[1_999].digest(), &body, Kind::EXEC_REQUEST);
    admit(&ledger, &asked);
    ledger.save(1).expect("written");
    let rest = chain(2_001, 999, asked[0].digest(), b"", Kind::GAP);
    admit(&ledger, &rest);
    ledger.store().publish().expect("published");
    (ledger, [first, asked, rest].concat())
}

#[test]
fn a_start_from_the_file_knows_what_the_log_says_without_reading_what_came_before() {
    let place = fresh();
    let (ledger, records) = filled(&place);
    let lived = state(&ledger);
    drop(ledger);
    let ledger = place.ledger();
    assert_eq!(state(&ledger), lived);
    assert!(ledger.state().reviews.get("one").is_some());
    // What was logged before the file is known to be there, and a fork of it is found.
    assert_eq!(admit(&ledger, &records), None);
    assert_eq!(ledger.state().admit.next(HOST, EPOCH).0, 3_000);
    assert_eq!(admit(&ledger, &chain(700, 1, [9; 32], b"other", Kind::GAP)), Some(700));
    drop(ledger);
    // That it is the file: without the first bundle the log cannot be read from the beginning.
    std::fs::remove_file(place.file("log/tile/entries/000")).expect("removed");
    drop(place.ledger());
    std::fs::remove_file(place.file("admission")).expect("removed");
    assert!(Ledger::open(place.store(), place.file("admission")).is_err());
}

#[test]
fn a_file_that_does_not_fit_the_log_is_not_believed() {
    let place = fresh();
    let (ledger, _) = filled(&place);
    let lived = state(&ledger);
    drop(ledger);
    let good = std::fs::read(place.file("admission")).expect("read");
    let written = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = Snapshot::decode(&good[guard_log::frame::HEAD..]).expect("decoded");
        // A lie that would show.
        snapshot.hosts[0].findings = 77;
        change(&mut snapshot);
        let mut bytes = vec![];
        guard_log::frame::put(&mut bytes, &snapshot.encode_to_vec());
        bytes
    };
    let believed = written(&|_| {});
    for (bytes, fits) in [
        (believed.clone(), true),
        (written(&|s| s.last[0] ^= 1), false),
        (written(&|s| s.size += 1), false),
        (written(&|s| s.size = 1_000_000), false),
        (written(&|s| s.size = 0), false),
        (written(&|s| s.own = None), false),
        (written(&|s| s.hosts[0].host.clear()), false),
        (believed[..believed.len() - 1].to_vec(), false),
        ([believed.as_slice(), b"x"].concat(), false),
        (vec![], false),
    ] {
        std::fs::write(place.file("admission"), bytes).expect("written");
        let ledger = place.ledger();
        assert_eq!(state(&ledger) == lived, !fits);
    }
}
