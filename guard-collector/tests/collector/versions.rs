//! Records of other versions: stored ones of earlier daemons, and invented ones of later daemons. All are kept, byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use guard_collector::body;
use guard_log::record::{Epoch, HostId, Record, SessionId};
use guard_proto::v1::record_body::Body;

use crate::host::Host;
use crate::world::World;

/// One host's first records, one a line, as its daemon wrote them on that day in a guest: two sessions, one of which tried to
/// delete a folder. They are never made anew; a version that changes the form of records adds a file.
const STORED: [(&str, &str); 1] = [("2026-11-29", include_str!("../stored/2026-11-29.base64"))];

fn stored(text: &str) -> Host {
    let records: Vec<Record> = text
        .lines()
        .map(|line| Record::parse(Bytes::from(STANDARD.decode(line).expect("base64"))).expect("a record"))
        .collect();
    let header = records.first().expect("records").header();
    Host { id: header.host, epoch: header.epoch, records, session: SessionId::NONE }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_earlier_daemons_wrote_are_admitted_and_understood() {
    for (day, text) in STORED {
        let (world, host) = (World::new(), stored(text));
        host.ship(&world.node("node-box").await).await;
        let logged: Vec<Record> = world.records().await.into_iter().filter(|r| r.header().host == host.id).collect();
        assert_eq!(logged, host.records, "{day}");
        let whats: Vec<String> = world.findings().await.into_iter().map(|f| f.0).collect();
        assert_eq!(whats, ["bound"], "{day}");
        let bodies: Vec<Body> =
            logged.iter().map(|r| body::parse(r).unwrap_or_else(|| panic!("{day}: {r:?}"))).collect();
        let starts: Vec<_> =
            bodies.iter().filter_map(|b| if let Body::SessionStart(s) = b { Some(s) } else { None }).collect();
        assert_eq!(starts.len(), 2, "{day}");
        let who = starts[0].identity.as_ref().expect("identity");
        assert_eq!(
            (who.agent.as_str(), who.initiator.as_str(), starts[0].purpose.as_str()),
            ("coder", "alice", "stored records")
        );
        let denied = bodies.iter().any(|b| match b {
            Body::Exec(exec) => {
                body::word(exec.disposition) == "denied" && exec.facts.as_ref().is_some_and(|f| !f.argv.is_empty())
            }
            _ => false,
        });
        assert!(denied, "{day}: the denied exec is not understood");
        assert!(world.audit().is_ok(), "{day}");
    }
}

/// Version and kind, what the head grew by, the body.
type Form<'a> = ((u8, u16), &'a [u8], &'a [u8]);

/// The fixed head of a record, as `guard_log::record` lays it out.
fn invented(host: &Host, seq: u64, prev: [u8; 32], (version, kind): (u8, u16), grown: &[u8], body: &[u8]) -> Record {
    let header = guard_log::record::Header {
        version: 1,
        kind: guard_log::record::Kind(kind),
        host: host.id,
        epoch: host.epoch,
        seq,
        prev,
        boot_ns: 1,
        wall_unix_ns: guard_collector::own::now_ns(),
        session: SessionId::NONE,
    };
    let mut bytes = Record::seal(&header, body).expect("sealed").bytes().to_vec();
    bytes[2] = version;
    let length = u16::from_le_bytes([bytes[4], bytes[5]]);
    bytes.splice(usize::from(length)..usize::from(length), grown.iter().copied());
    bytes[4..6].copy_from_slice(&(length + grown.len() as u16).to_le_bytes());
    Record::parse(bytes).expect("a record")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_later_daemons_are_kept_byte_for_byte() {
    let world = World::new();
    let mut host =
        Host { id: HostId::random().expect("random"), epoch: Epoch::random().expect("random"), ..Host::new() };
    // An exec with a field, and a disposition, that nobody knows yet; a kind that nobody knows; a head that grew.
    let exec = [&[0x2a, 0x05, 0x20, 0x63, 0x9a, 0x3f, 0x00][..], &[0xfa, 0x3f, 0x03, b'n', b'e', b'w']].concat();
    let forms: [Form<'_>; 4] = [
        ((1, 5), &[], &exec),
        ((1, 700), &[], b"\xff\x00 no protobuf"),
        ((9, 700), &[7; 40], b""),
        ((2, 5), b"grown head", &exec),
    ];
    for (seq, (what, grown, body)) in (0..).zip(forms) {
        let prev = host.records.last().map(Record::digest).unwrap_or_default();
        let record = invented(&host, seq, prev, what, grown, body);
        host.records.push(record);
    }
    host.ship(&world.node("node-box").await).await;
    let logged: Vec<Record> = world.records().await.into_iter().filter(|r| r.header().host == host.id).collect();
    assert_eq!(logged, host.records);
    let whats: Vec<String> = world.findings().await.into_iter().map(|f| f.0).collect();
    assert_eq!(whats, ["bound"]);
    let Some(Body::Exec(exec)) = body::parse(&logged[0]) else { panic!("not an exec: {:?}", logged[0]) };
    assert_eq!(body::word(exec.disposition), "unknown");
    assert_eq!(body::parse(&logged[1]), None);
    assert!(world.audit().is_ok(), "{:?}", world.audit().findings);
}
