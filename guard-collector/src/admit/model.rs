//! Admission against a model that keeps nothing but what was logged: whatever hosts send, in whatever order, over restarts.

use std::collections::BTreeMap;

use guard_log::record::SessionId;
use proptest::prelude::*;

use super::*;

const HOST: HostId = HostId([1; 16]);
const EPOCHS: u8 = 3;
/// Numbers that a journal of the test has.
const NUMBERS: u64 = 40;

fn epoch(number: u8) -> Epoch {
    Epoch([number + 2; 16])
}

/// A journal's records; those of another variant are what a forked journal would hold.
fn journal(number: u8, variant: u8) -> Vec<Arrival> {
    let mut prev = [0; 32];
    let one = |seq| {
        let (kind, session, epoch) = (Kind::GAP, SessionId::NONE, epoch(number));
        let header =
            Header { version: 1, kind, host: HOST, epoch, seq, prev, boot_ns: 1, wall_unix_ns: 1_000, session };
        let record = Record::seal(&header, &[variant]).expect("sealed");
        prev = record.digest();
        record.into()
    };
    (0..NUMBERS).map(one).collect()
}

#[derive(Clone, Debug)]
enum Step {
    /// Numbers of one journal, each of the journal's own record or of another.
    Batch(u8, Vec<(u64, bool)>),
    /// Folded anew from the log.
    Restart,
    /// From what was kept for the next start, and the log from there on.
    FromSnapshot,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let numbers = prop_oneof![
        // As a host sends: one after the other, from anywhere.
        4 => (0..NUMBERS, 1..10_u64).prop_map(|(from, count)| (from..(from + count).min(NUMBERS)).map(|n| (n, false)).collect()),
        // Anything at all.
        2 => proptest::collection::vec((0..NUMBERS, proptest::bool::weighted(0.1)), 1..10),
    ];
    let step = prop_oneof![
        8 => (0..EPOCHS, numbers).prop_map(|(epoch, numbers): (u8, Vec<(u64, bool)>)| Step::Batch(epoch, numbers)),
        1 => Just(Step::Restart),
        1 => Just(Step::FromSnapshot),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What is durable.
#[derive(Clone)]
enum Leaf {
    Record(Arrival),
    Finding(AdmitFinding),
}

#[derive(Default)]
struct Log {
    admit: Admit,
    leaves: Vec<Leaf>,
    /// What was kept for the next start, and of how many leaves.
    kept: (Vec<snapshot::Host>, usize),
}

impl Log {
    fn fold(admit: &mut Admit, at: usize, leaf: &Leaf) {
        match leaf {
            Leaf::Record(arrival) => admit.fold(at as u64, arrival),
            Leaf::Finding(finding) => admit.fold_finding(finding),
        }
    }

    fn restart(&mut self, from_snapshot: bool) {
        let from = if from_snapshot { self.kept.1 } else { 0 };
        self.admit = Admit::restore(if from_snapshot { &self.kept.0 } else { &[] }).expect("its own");
        for (at, leaf) in self.leaves.iter().enumerate().skip(from) {
            Self::fold(&mut self.admit, at, leaf);
        }
    }

    /// The number at which the journal forked, if it did.
    fn take(&mut self, of: Epoch, batch: &[Arrival]) -> Option<u64> {
        let mut older = None;
        let (items, fork) = loop {
            match self.admit.plan("n", (HOST, of), batch, older.as_ref()).expect("not refused") {
                Plan::Append(items) => break (items, None),
                Plan::Fork(items, seq) => break (items, Some(seq)),
                Plan::Older { from, to } => {
                    assert!(older.is_none(), "what was asked for was there");
                    let read = self.leaves.get(from as usize..to as usize).expect("in the log");
                    let of_epoch = read.iter().filter_map(|leaf| match leaf {
                        Leaf::Record(a) if a.header.epoch == of => Some((a.header.seq, a.digest)),
                        Leaf::Record(_) | Leaf::Finding(_) => None,
                    });
                    older = Some(of_epoch.collect::<OlderDigests>());
                }
            }
        };
        for item in items {
            let leaf = match item {
                Item::Record(arrival) => Leaf::Record(arrival),
                Item::Finding(finding) => Leaf::Finding(finding),
            };
            Self::fold(&mut self.admit, self.leaves.len(), &leaf);
            self.leaves.push(leaf);
        }
        fork
    }

    fn records(&self, of: Epoch) -> Vec<(u64, [u8; 32])> {
        let record = |leaf: &Leaf| match leaf {
            Leaf::Record(a) if a.header.epoch == of => Some((a.header.seq, a.digest)),
            Leaf::Record(_) | Leaf::Finding(_) => None,
        };
        self.leaves.iter().filter_map(record).collect()
    }

    fn findings(&self, what: &str) -> Vec<(Vec<u8>, u64, u64)> {
        let finding = |leaf: &Leaf| match leaf {
            Leaf::Finding(f) if f.what == what => Some((f.epoch.clone(), f.expected_seq, f.got_seq)),
            Leaf::Finding(_) | Leaf::Record(_) => None,
        };
        self.leaves.iter().filter_map(finding).collect()
    }
}

/// All that admission has to do, without a thought for how.
#[derive(Default)]
struct Model {
    logged: BTreeMap<Epoch, BTreeMap<u64, [u8; 32]>>,
    gaps: Vec<(Vec<u8>, u64, u64)>,
    late: Vec<(Vec<u8>, u64, u64)>,
}

impl Model {
    fn take(&mut self, of: Epoch, batch: &[Arrival]) -> Option<u64> {
        let logged = self.logged.entry(of).or_default();
        for arrival in batch {
            let seq = arrival.header.seq;
            let next = logged.last_key_value().map_or(0, |(last, _)| last + 1);
            match logged.get(&seq) {
                Some(digest) if *digest == arrival.digest => {}
                Some(_) => return Some(seq),
                None if seq < next => self.late.push((of.0.to_vec(), next, seq)),
                None => {
                    if seq > next {
                        self.gaps.push((of.0.to_vec(), next, seq));
                    }
                    logged.insert(seq, arrival.digest);
                }
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn each_number_is_logged_once_and_in_order_whatever_comes(steps in steps()) {
        let journals: Vec<_> = (0..EPOCHS).map(|n| [journal(n, 0), journal(n, 1)]).collect();
        let (mut log, mut model) = (Log::default(), Model::default());
        for step in steps {
            match step {
                Step::Restart => log.restart(false),
                Step::FromSnapshot => {
                    log.restart(true);
                    log.kept = (log.admit.keep(), log.leaves.len());
                }
                Step::Batch(number, numbers) => {
                    let pick = |(seq, other): &(u64, bool)| journals[usize::from(number)][usize::from(*other)][*seq as usize].clone();
                    let batch: Vec<Arrival> = numbers.iter().map(pick).collect();
                    let forked = log.take(epoch(number), &batch);
                    prop_assert_eq!(forked, model.take(epoch(number), &batch));
                }
            }
            for number in 0..EPOCHS {
                let of = epoch(number);
                let expected: Vec<_> = model.logged.get(&of).into_iter().flatten().map(|(s, d)| (*s, *d)).collect();
                prop_assert_eq!(log.records(of), expected);
                let next = model.logged.get(&of).and_then(|l| l.last_key_value()).map_or(0, |(last, _)| last + 1);
                prop_assert_eq!(log.admit.next(HOST, of).0, next);
            }
        }
        prop_assert_eq!(log.findings("gap"), model.gaps);
        prop_assert_eq!(log.findings("repeat"), model.late);
    }
}
