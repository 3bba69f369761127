//! Whatever crashes when: each leaf is in exactly one message, and a message is the same each time.

use std::collections::BTreeMap;

use guard_log::record::SessionId;
use proptest::prelude::*;

use super::*;
use crate::alerts::event::Kind;

const SECOND: i64 = 1_000_000_000;

fn event(session: u8, what: u8, argument: u8) -> Event {
    Event {
        kind: Kind::ExecDenied,
        risk: Some(50),
        same: Sha256::digest([session, what]).into(),
        differs: Sha256::digest([argument]).into(),
        session: (session > 0).then_some(SessionId([session; 16])),
        wall_ns: 1_769_860_800 * SECOND,
        data: Map::from_iter([("exec".to_owned(), json!({"argv": [what, argument]}))]),
        mode: None,
    }
}

fn place(leaf: u64) -> Place<'static> {
    Place { leaf, record_sha256: [7; 32], host: "01".repeat(16), node: "box" }
}

fn at(dir: &tempfile::TempDir, origin: &str, size: u64) -> Result<(Queue, Option<String>), String> {
    Queue::open(path(dir.path(), "siem"), Duration::from_secs(60), (origin, size))
}

fn open(dir: &tempfile::TempDir) -> Queue {
    at(dir, "guard.test/log", 0).expect("opened").0
}

fn take(queue: &mut Queue, leaf: u64, event: Event, now: i64) -> Option<Value> {
    queue.take(event, &place(leaf), now).expect("taken");
    queue.outbox.take().map(|message| serde_json::from_str(&message.body).expect("JSON"))
}

fn due(queue: &mut Queue, now: i64) -> Option<Value> {
    let made = queue.fold_due(now).expect("made");
    let message = queue.outbox.take();
    assert_eq!(made, message.is_some());
    message.map(|message| serde_json::from_str(&message.body).expect("JSON"))
}

#[test]
fn the_first_is_told_at_once_and_those_like_it_once_a_minute() {
    let dir = tempfile::tempdir().expect("folder");
    let mut queue = open(&dir);
    let first = take(&mut queue, 3, event(1, 1, 1), 0).expect("told");
    assert_eq!((&first["type"], &first["data"]["log"]["leaf"]), (&"exec.denied".into(), &3.into()));
    assert_eq!(first["data"]["repeated"], Value::Null);
    for leaf in 4..1000 {
        assert_eq!(take(&mut queue, leaf, event(1, 1, u8::from(leaf == 500) + 1), SECOND), None);
    }
    assert!(take(&mut queue, 1000, event(1, 2, 1), SECOND).is_some(), "another command is another first");
    assert!(take(&mut queue, 1001, event(2, 1, 1), SECOND).is_some(), "and so is another session's");
    assert_eq!(due(&mut queue, 59 * SECOND), None);
    let more = due(&mut queue, 60 * SECOND).expect("told");
    let repeated = &more["data"]["repeated"];
    assert_eq!(
        (&repeated["count"], &repeated["first_leaf"], &repeated["last_leaf"]),
        (&996.into(), &4.into(), &999.into())
    );
    assert_eq!((&repeated["differ"], &repeated["various"]), (&true.into(), &false.into()));
    assert_eq!(due(&mut queue, 60 * SECOND), None);
    // It goes on: counted until the next minute is over, then told; then nothing comes, and the next is a first again.
    assert_eq!(take(&mut queue, 1002, event(1, 1, 1), 100 * SECOND), None);
    assert_eq!(due(&mut queue, 120 * SECOND).expect("told")["data"]["repeated"]["count"], 1);
    assert_eq!(due(&mut queue, 181 * SECOND), None);
    assert!(take(&mut queue, 1003, event(1, 1, 1), 182 * SECOND).is_some());
}

#[test]
fn a_session_that_does_ever_different_things_is_told_of_so_many_and_counted() {
    let dir = tempfile::tempdir().expect("folder");
    let mut queue = open(&dir);
    let told = (0..200).filter(|n| take(&mut queue, u64::from(*n), event(1, *n, 0), 0).is_some()).count();
    assert_eq!(told, PER_SESSION);
    assert!(take(&mut queue, 200, event(2, 0, 0), 0).is_some(), "others are told as ever");
    let more = due(&mut queue, 61 * SECOND).expect("told");
    let repeated = &more["data"]["repeated"];
    assert_eq!(
        (&repeated["count"], &repeated["various"], &repeated["first_leaf"]),
        (&168.into(), &true.into(), &32.into())
    );
}

#[test]
fn more_folds_than_there_is_room_for_end_early() {
    let dir = tempfile::tempdir().expect("folder");
    let mut queue = open(&dir);
    let mut leaves = 0;
    let mut told = 0;
    for round in 0..2_u64 {
        for n in 0..2 * FOLDS_MAX as u64 {
            let mut event = event(0, 0, 0);
            event.same = Sha256::digest(n.to_be_bytes()).into();
            leaves += 1;
            told += u64::from(take(&mut queue, round * 10_000 + n, event, 0).is_some());
            while let Some(more) = due(&mut queue, 1) {
                told += more["data"]["repeated"]["count"].as_u64().expect("a count");
            }
        }
        assert!(queue.folds.len() <= FOLDS_MAX, "{}", queue.folds.len());
    }
    while let Some(more) = due(&mut queue, 100 * SECOND) {
        told += more["data"]["repeated"]["count"].as_u64().expect("a count");
    }
    assert_eq!(told, leaves);
}

#[test]
fn a_clock_that_goes_back_ends_folds_and_keeps_none() {
    let dir = tempfile::tempdir().expect("folder");
    let mut queue = open(&dir);
    take(&mut queue, 0, event(1, 1, 1), 5000 * SECOND).expect("told");
    assert_eq!(take(&mut queue, 1, event(1, 1, 1), 5000 * SECOND), None);
    assert!(due(&mut queue, 10 * SECOND).is_some());
}

#[test]
fn a_new_receiver_begins_at_the_end_and_one_of_a_longer_log_too() {
    let dir = tempfile::tempdir().expect("folder");
    let (mut queue, said) = at(&dir, "guard.test/log", 40).expect("opened");
    assert_eq!((queue.next, said.as_deref()), (40, Some("it is new; alerts begin with leaf 40")));
    queue.next = 90;
    queue.keep().expect("kept");
    let (queue, said) = at(&dir, "guard.test/log", 50).expect("opened");
    assert!(queue.next == 50 && said.expect("said").contains("an older copy"));
    let (_, said) = at(&dir, "guard.test/next", 100).expect("opened");
    assert!(said.expect("said").contains("guard.test/next"));
    std::fs::write(path(dir.path(), "siem"), "{").expect("written");
    let error = at(&dir, "guard.test/log", 50).expect_err("refused");
    assert!(error.contains("siem.json") && error.contains("without the file"), "{error}");
}

#[test]
fn a_mode_is_news_once_and_when_it_is_over() {
    let dir = tempfile::tempdir().expect("folder");
    let mut queue = open(&dir);
    let news: Vec<bool> =
        ["enforcing", "inert", "inert", "observing", "enforcing", "enforcing"].map(|m| queue.is_news("h", m)).into();
    assert_eq!(news, [false, true, false, true, true, false]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The loop of a receiver with a disk, killed before or after it sends, at any step.
    #[test]
    fn killed_anywhere_each_leaf_is_in_one_message_and_that_is_the_same_each_time(
        events in proptest::collection::vec((0_u8..3, 0_u8..4, 0_u8..2, 0_i64..30), 1..60),
        kills in proptest::collection::vec(0_u8..4, 400),
    ) {
        let dir = tempfile::tempdir().expect("folder");
        let mut queue = open(&dir);
        let (mut sent, mut now, mut kills) = (BTreeMap::<String, String>::new(), 0, kills.into_iter());
        let count = events.len() as u64;
        loop {
            let kill = kills.next().unwrap_or(1);
            if kill == 0 {
                queue = at(&dir, "guard.test/log", count).expect("opened").0;
                continue;
            }
            if let Some(message) = queue.outbox.clone() {
                let before = sent.insert(message.id.clone(), message.body.clone());
                prop_assert!(before.is_none_or(|body| body == message.body), "another message of one id");
                if kill == 2 {
                    // It has it, and nobody knows.
                    queue = at(&dir, "guard.test/log", count).expect("opened").0;
                    continue;
                }
                queue.outbox = None;
            } else if queue.fold_due(now).expect("made") {
                queue.keep().expect("kept");
            } else if let Some((session, what, argument, wait)) =
                usize::try_from(queue.next).ok().and_then(|n| events.get(n))
            {
                now += wait * SECOND;
                let leaf = queue.next;
                queue.take(event(*session, *what, *argument), &place(leaf), now).expect("taken");
                queue.next += 1;
                if queue.outbox.is_some() || kill == 3 {
                    queue.keep().expect("kept");
                }
            } else if queue.folds() {
                now += 61 * SECOND;
            } else {
                break;
            }
        }
        let told: u64 = sent.values().map(|body| {
            let body: Value = serde_json::from_str(body).expect("JSON");
            body["data"]["repeated"]["count"].as_u64().unwrap_or(1)
        }).sum();
        prop_assert_eq!(told, count);
    }
}
