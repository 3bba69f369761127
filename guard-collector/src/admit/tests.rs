use guard_log::record::SessionId;

use super::*;

const HOST: HostId = HostId([1; 16]);
const EPOCH: Epoch = Epoch([2; 16]);

fn record(seq: u64, prev: [u8; 32], wall: i64, body: &[u8]) -> Record {
    let (kind, session) = (Kind::GAP, SessionId::NONE);
    let header =
        Header { version: 1, kind, host: HOST, epoch: EPOCH, seq, prev, boot_ns: 1, wall_unix_ns: wall, session };
    Record::seal(&header, body).expect("sealed")
}

fn chain(from: u64, count: u64, mut prev: [u8; 32], body: &[u8]) -> Vec<Record> {
    (from..from + count)
        .map(|seq| {
            let made = record(seq, prev, 1_000, body);
            prev = made.digest();
            made
        })
        .collect()
}

fn arrivals(records: &[Record]) -> Vec<Arrival> {
    records.iter().cloned().map(Arrival::from).collect()
}

/// A log of what was planned: findings become records of the collector.
#[derive(Default)]
struct Log {
    admit: Admit,
    leaf: u64,
    whats: Vec<String>,
}

impl Log {
    fn append(&mut self, items: Vec<Item>) -> usize {
        let mut records = 0;
        for item in items {
            match item {
                Item::Record(record) => {
                    records += 1;
                    self.admit.fold(self.leaf, &record);
                }
                Item::Finding(finding) => {
                    self.whats.push(finding.what.clone());
                    self.admit.fold_finding(&finding);
                }
            }
            self.leaf += 1;
        }
        records
    }

    /// How many records were appended; `None` for a fork.
    fn take(&mut self, records: &[Record]) -> Option<usize> {
        match self.admit.plan("n", (HOST, EPOCH), &arrivals(records), None).expect("no refusal") {
            Plan::Append(items) => Some(self.append(items)),
            Plan::Fork(items, _) => {
                self.append(items);
                None
            }
            Plan::Older { .. } => panic!("not that old"),
        }
    }
}

#[test]
fn repeats_are_dropped_and_nothing_is_said() {
    let mut log = Log::default();
    let records = chain(0, 5, [0; 32], b"");
    assert_eq!(log.take(&records[..3]), Some(3));
    assert_eq!(log.take(&records[..3]), Some(0));
    assert_eq!(log.take(&records[1..]), Some(2));
    assert_eq!(log.whats, ["bound"]);
    assert_eq!(log.admit.next(HOST, EPOCH).0, 5);
}

#[test]
fn gaps_breaks_and_clock_steps_are_admitted_with_a_finding() {
    let mut log = Log::default();
    log.take(&chain(0, 2, [0; 32], b""));
    let after_gap = chain(5, 1, [9; 32], b"");
    assert_eq!(log.take(&after_gap), Some(1));
    assert_eq!(log.take(&chain(6, 1, [8; 32], b"")), Some(1));
    let last = chain(6, 1, [8; 32], b"")[0].digest();
    assert_eq!(log.take(&[record(7, last, 1_000 - CLOCK_TOLERANCE_NS - 1, b"")]), Some(1));
    assert_eq!(log.whats, ["bound", "gap", "chain_break", "clock_regress"]);
    assert_eq!(log.take(&chain(3, 1, [0; 32], b"")), Some(0), "a late one is not logged");
    assert_eq!(log.whats.last().map(String::as_str), Some("repeat"));
    assert_eq!(log.admit.next(HOST, EPOCH).0, 8);
}

#[test]
fn a_fork_is_refused_and_said_once() {
    let mut log = Log::default();
    log.take(&chain(0, 4, [0; 32], b"a"));
    let other = chain(0, 6, [0; 32], b"b");
    assert_eq!((log.take(&other), log.take(&other)), (None, None));
    assert_eq!(log.whats, ["bound", "fork"]);
    assert_eq!(log.admit.next(HOST, EPOCH).0, 4);
}

#[test]
fn a_new_epoch_and_the_way_back_are_said() {
    let mut log = Log::default();
    let old = chain(0, 2, [0; 32], b"");
    log.take(&old);
    let other = Epoch([7; 16]);
    let header = Header { epoch: other, ..record(0, [0; 32], 1_000, b"").header() };
    let new = Record::seal(&header, b"").expect("sealed");
    match log.admit.plan("n", (HOST, other), &arrivals(&[new]), None).expect("planned") {
        Plan::Append(items) => log.append(items),
        plan => panic!("{plan:?}"),
    };
    assert_eq!(log.whats, ["bound", "new_epoch"]);
    assert_eq!(log.take(&chain(2, 1, old[1].digest(), b"")), Some(1));
    assert_eq!(log.whats, ["bound", "new_epoch", "new_epoch"]);
}

#[test]
fn very_old_numbers_are_looked_up_in_the_log() {
    let mut log = Log::default();
    let records = chain(0, 3 * RECENT as u64, [0; 32], b"");
    log.take(&records);
    let from = match log.admit.plan("n", (HOST, EPOCH), &arrivals(&records[1500..1501]), None) {
        Ok(Plan::Older { from, to }) => {
            assert_eq!(to, log.leaf);
            from
        }
        plan => panic!("{plan:?}"),
    };
    // Leaf 0 is the finding `bound`.
    assert_eq!(from, 1 + PLACE_EVERY);
    let older: OlderDigests = records.iter().map(|r| (r.header().seq, r.digest())).collect();
    let plan =
        |records: &[Record]| log.admit.plan("n", (HOST, EPOCH), &arrivals(records), Some(&older)).expect("planned");
    assert_eq!(plan(&records[1500..1501]), Plan::Append(vec![]));
    assert!(matches!(plan(&chain(1500, 1, [3; 32], b"x")), Plan::Fork(items, 1500) if items.len() == 1));
}

#[test]
fn nobody_speaks_for_another_host() {
    let mut log = Log::default();
    let records = chain(0, 1, [0; 32], b"");
    log.take(&records);
    let plan = |node, host| log.admit.plan(node, (host, EPOCH), &arrivals(&records), None).expect_err("refused");
    assert_eq!(plan("other", HOST), Refusal::OtherNode { host: HOST });
    assert_eq!(plan("n", HostId([5; 16])), Refusal::OtherHost { node: "n".into(), bound: HOST });
    assert!(matches!(plan("new", HostId([6; 16])), Refusal::Foreign { .. }));
}

#[test]
fn the_collectors_kinds_cannot_be_forged() {
    use guard_proto::v1::{RecordBody, ReviewDecision};
    use prost::Message;
    let forged = RecordBody { body: Some(Body::ReviewDecision(ReviewDecision::default())) }.encode_to_vec();
    let hidden = record(0, [0; 32], 0, &forged);
    let header = Header { kind: Kind::REVIEW_DECISION, ..hidden.header() };
    let open = Record::seal(&header, b"").expect("sealed");
    for record in [hidden, open] {
        let refusal = Admit::default().plan("n", (HOST, EPOCH), &arrivals(&[record]), None).expect_err("refused");
        assert!(matches!(refusal, Refusal::Foreign { .. }));
    }
}

#[test]
fn a_collectors_body_among_others_or_of_a_newer_version_is_forged_too() {
    use guard_proto::v1::{Gap, RecordBody};
    use prost::Message;
    let gap = RecordBody { body: Some(Body::Gap(Gap::default())) }.encode_to_vec();
    // Field 34 with an empty message before, field 63 after.
    for body in [[&[0x92, 0x02, 0x00], gap.as_slice()].concat(), [gap.as_slice(), &[0xfa, 0x03, 0x00]].concat()] {
        let refusal = Admit::default().plan("n", (HOST, EPOCH), &arrivals(&[record(0, [0; 32], 0, &body)]), None);
        assert!(matches!(refusal, Err(Refusal::Foreign { .. })), "{body:?}");
    }
    // Unknown fields of hosts are kept.
    let newer = [gap.as_slice(), &[0x82, 0x04, 0x00]].concat();
    assert!(Admit::default().plan("n", (HOST, EPOCH), &arrivals(&[record(0, [0; 32], 0, &newer)]), None).is_ok());
}

#[test]
fn places_stay_few_and_lead_to_every_number() {
    let mut mark = Mark::default();
    let header = record(0, [0; 32], 0, b"").header();
    let count = 3 * PLACE_EVERY * PLACES_MAX as u64;
    for seq in (0..count).step_by(512) {
        mark.fold(seq + 7, &Header { seq, ..header }, [0; 32]);
    }
    assert!(mark.places.len() <= PLACES_MAX && mark.places.len() >= PLACES_MAX / 2);
    for seq in [0, 1, 999, count / 2, count - 1] {
        let place = mark.place(seq);
        assert!(place <= seq + 7 && place + 4 * PLACE_EVERY > seq, "{seq}: {place}");
    }
}
