//! Months, pages over them, files that are behind or gone.

use guard_log::record::{Epoch, Header, HostId, Kind, SessionId};
use guard_log::signer::KeyFile;
use guard_log::store::StoreOptions;
use guard_proto::v1::{
    Exec, ExecFacts, FileFact, Identity, RecordBody, SessionRenewed, SessionStart, Verdict, record_body::Body,
};
use prost::Message;

use super::*;

const DAY: i64 = 86_400_000_000_000;
/// 2026-01-10.
const JANUARY: i64 = 20_463 * DAY;
const MONTHS: [i64; 3] = [JANUARY, JANUARY + 31 * DAY, JANUARY + 59 * DAY];
const SESSION: SessionId = SessionId([5; 16]);

struct Place {
    dir: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let options = StoreOptions {
            dir: dir.path().join("data"),
            lock: dir.path().join("lock/head"),
            segment_bytes: 1 << 20,
            require_real_disk: false,
        };
        let signer = KeyFile::generate("guard.test/index").expect("key");
        Store::create(&options, &signer).expect("created");
        let (store, _) = Store::open(options, signer).expect("opened");
        Self { dir, store }
    }

    fn main(&self) -> PathBuf {
        self.dir.path().join("index/index.sqlite")
    }

    fn index(&self) -> Index {
        let index = Index::open(&self.main(), self.store.clone(), false).expect("opened");
        while index.step().expect("step") {}
        index
    }

    fn append(&self, records: Vec<Record>) {
        self.store.append(records).expect("queued").wait().expect("durable");
    }

    /// Every month gets `count` execs; every tenth is by `/bin/rare`.
    fn fill(&self, count: u64) {
        for (month, wall) in MONTHS.into_iter().enumerate() {
            let first = month as u64 * count;
            for part in (first..first + count).collect::<Vec<_>>().chunks(1000) {
                self.append(part.iter().map(|seq| exec(*seq, wall)).collect());
            }
        }
    }
}

fn exec(seq: u64, wall_unix_ns: i64) -> Record {
    let path = if seq.is_multiple_of(10) { "/bin/rare" } else { "/bin/often" };
    let file = FileFact { path: path.into(), role: "program".into(), ..FileFact::default() };
    let identity = Identity { agent: "coder".into(), instance: "spiffe://x/1".into(), ..Identity::default() };
    let body = Body::Exec(Exec {
        identity: Some(identity),
        facts: Some(ExecFacts { exec_id: seq, files: vec![file], ..ExecFacts::default() }),
        verdict: Some(Verdict { category: format!("part.{}", seq / 5000), ..Verdict::default() }),
        disposition: 1,
        ..Exec::default()
    });
    sealed(seq, wall_unix_ns, body)
}

fn sealed(seq: u64, wall_unix_ns: i64, body: Body) -> Record {
    let header = Header {
        version: 1,
        kind: Kind(guard_proto::kind_number(&body)),
        host: HostId([1; 16]),
        epoch: Epoch([2; 16]),
        seq,
        prev: [0; 32],
        boot_ns: 0,
        wall_unix_ns,
        session: SESSION,
    };
    Record::seal(&header, &RecordBody { body: Some(body) }.encode_to_vec()).expect("sealed")
}

#[test]
fn child_sessions_are_found_by_their_parent_and_on_its_host_alone() {
    let place = Place::new();
    let start = |seq: u64, host: u8, id: u8, parent: String| {
        let identity = Identity { parent_session_id: parent, ..Identity::default() };
        let body = Body::SessionStart(SessionStart { identity: Some(identity), ..SessionStart::default() });
        let header = Header {
            version: 1,
            kind: Kind(guard_proto::kind_number(&body)),
            host: HostId([host; 16]),
            epoch: Epoch([2; 16]),
            seq,
            prev: [0; 32],
            boot_ns: 0,
            wall_unix_ns: JANUARY,
            session: SessionId([id; 16]),
        };
        Record::seal(&header, &RecordBody { body: Some(body) }.encode_to_vec()).expect("sealed")
    };
    let name = |id: u8| SessionId([id; 16]).to_string();
    place.append(vec![
        start(0, 1, 20, String::new()),
        start(1, 1, 21, name(20)),
        start(2, 1, 22, name(20)),
        start(3, 1, 23, String::new()),
        start(0, 9, 24, name(20)),
    ]);
    let index = place.index();
    let found = |id: u8| index.session(&name(id), 10).expect("answer").0.expect("session").0;
    assert_eq!(found(20).children, [name(21), name(22)]);
    assert_eq!((found(21).parent_session_id, found(21).children), (name(20), vec![]));
    let listed = |parent: u8| {
        let filter = SessionFilter { parent: name(parent), limit: 10, ..SessionFilter::default() };
        index.sessions(&filter).expect("answer").0.sessions.into_iter().map(|s| s.session_id).collect::<Vec<_>>()
    };
    assert_eq!(listed(20), [name(24), name(22), name(21)]);
    assert!(listed(23).is_empty());
}

#[test]
fn a_session_ends_when_its_last_renewal_that_is_in_force_says() {
    let place = Place::new();
    let renewed = |what: &str, old, new| {
        let (what, old_expires_unix_ns, new_expires_unix_ns) = (what.to_owned(), old, new);
        Body::SessionRenewed(SessionRenewed {
            what,
            old_expires_unix_ns,
            new_expires_unix_ns,
            ..SessionRenewed::default()
        })
    };
    let start = Body::SessionStart(SessionStart { expires_unix_ns: 900, ..SessionStart::default() });
    let ends = |bodies: Vec<Body>| {
        let first = place.store.size();
        place.append(bodies.into_iter().zip(first..).map(|(body, seq)| sealed(seq, JANUARY, body)).collect());
        let (session, _) = place.index().session(&SESSION.to_string(), 10).expect("answer");
        session.expect("session").0.expires_unix_ns
    };
    assert_eq!(ends(vec![start]), 900);
    assert_eq!(ends(vec![renewed("renewed", 900, 1800)]), 1800);
    // Recorded, and then it could not be put into force.
    assert_eq!(ends(vec![renewed("renewed", 1800, 3600), renewed("not_in_force", 1800, 3600)]), 1800);
}

fn all(index: &Index, filter: Filter) -> Vec<u64> {
    let (mut found, mut after) = (vec![], None);
    loop {
        let (leaves, size) = index.query(&Filter { after, limit: 700, ..filter.clone() }).expect("answer");
        assert_eq!(size, index.covered());
        let Some(last) = leaves.last() else { return found };
        after = Some(*last);
        found.extend(leaves);
    }
}

fn of(program: &str) -> Filter {
    Filter { program: program.into(), ..Filter::default() }
}

#[test]
fn a_question_goes_through_all_months_page_by_page() {
    let place = Place::new();
    place.fill(7000);
    let index = place.index();
    for month in ["01", "02", "03"] {
        assert!(place.dir.path().join(format!("index/index-2026-{month}.sqlite")).is_file());
    }
    let rare: Vec<u64> = (0..21_000).filter(|leaf| leaf % 10 == 0).collect();
    assert_eq!(all(&index, of("/bin/rare")), rare);
    assert_eq!(all(&index, Filter { session: SESSION.to_string(), ..Filter::default() }).len(), 21_000);
    assert_eq!(all(&index, Filter { instance: "spiffe://x/1".into(), ..of("/bin/rare") }), rare);
    assert_eq!(
        all(&index, Filter { category: "part.1".into(), ..Filter::default() }),
        (5000..10_000).collect::<Vec<_>>()
    );
    let within = Filter { since: MONTHS[1], until: MONTHS[2], host: Some(HostId([1; 16])), ..Filter::default() };
    assert_eq!(all(&index, within), (7000..14_000).collect::<Vec<_>>());
    for nothing in [
        of("/bin/none"),
        Filter { agent: "coder".into(), initiator: "coder".into(), ..Filter::default() },
        Filter { disposition: "denied".into(), ..Filter::default() },
        Filter { since: MONTHS[2] + 1, ..Filter::default() },
        Filter { session: SessionId([9; 16]).to_string(), ..Filter::default() },
    ] {
        assert_eq!(all(&index, nothing), Vec::<u64>::new());
    }
    let (session, _) = index.session(&SESSION.to_string(), 30_000).expect("answer");
    let (summary, leaves) = session.expect("session");
    assert_eq!((summary.execs, summary.allowed, leaves.len()), (21_000, 21_000, 21_000));
}

#[test]
fn a_month_that_was_removed_is_named_and_the_others_answer() {
    let place = Place::new();
    place.fill(100);
    drop(place.index());
    std::fs::remove_file(place.dir.path().join("index/index-2026-01.sqlite")).expect("removed");
    let index = place.index();
    let refused = index.query(&of("/bin/rare").limited(5)).expect_err("refused").to_string();
    assert!(refused.contains("index-2026-01.sqlite") && refused.contains("leaf 0"), "{refused}");
    let (later, _) = index.query(&Filter { after: Some(99), ..of("/bin/rare").limited(3) }).expect("answer");
    assert_eq!(later, [100, 110, 120]);
    drop(index);
    let anew = Index::open(&place.main(), place.store.clone(), true).expect("opened");
    while anew.step().expect("step") {}
    assert_eq!(all(&anew, of("/bin/rare")).len(), 30);
}

impl Filter {
    fn limited(self, limit: u32) -> Self {
        Self { limit, ..self }
    }
}

/// The month's file is committed first: a crash may leave it ahead, and never behind.
#[test]
fn a_month_ahead_of_the_main_file_is_put_right_and_one_behind_is_made_anew() {
    let place = Place::new();
    place.fill(50);
    drop(place.index());
    let main = Connection::open(place.main()).expect("opened");
    let digest = exec(119, MONTHS[2]).digest();
    // As if the last step's second commit had been lost.
    main.execute("UPDATE meta SET size = 120, last = ?1", [digest.as_slice()]).expect("updated");
    main.execute("DELETE FROM execs WHERE leaf >= 120", []).expect("deleted");
    drop(main);
    let index = place.index();
    assert_eq!((index.covered(), all(&index, of("/bin/rare")).len()), (150, 15));
    drop(index);
    let part = Connection::open(place.dir.path().join("index/index-2026-03.sqlite")).expect("opened");
    part.execute("DELETE FROM records WHERE leaf > 140", []).expect("deleted");
    drop(part);
    let index = place.index();
    assert_eq!((index.covered(), all(&index, of("/bin/rare")).len()), (150, 15));
    let (session, _) = index.session(&SESSION.to_string(), 1).expect("answer");
    assert_eq!(session.expect("session").0.execs, 150);
}

#[test]
fn a_clock_that_is_ahead_begins_no_month_that_has_not_come() {
    let place = Place::new();
    place.append(vec![exec(0, MONTHS[0]), exec(1, MONTHS[0] + 36_500 * DAY), exec(2, MONTHS[1])]);
    let index = place.index();
    assert_eq!(all(&index, of("/bin/often")), [1, 2]);
    let listed = parts(&Connection::open(place.main()).expect("opened")).expect("parts");
    assert_eq!(listed.iter().map(|p| p.first).collect::<Vec<_>>(), [0, 1]);
    assert!(listed.iter().all(|p| p.month <= month_of(now_ns())));
}

/// Leaves 14,000 to 20,999 of March: two full blocks and the rows after them.
#[test]
fn a_full_block_ahead_of_the_main_file_is_taken_apart_again() {
    let place = Place::new();
    place.fill(7000);
    let whole = {
        let index = place.index();
        (all(&index, of("/bin/rare")), all(&index, Filter { since: MONTHS[2], ..Filter::default() }))
    };
    for size in [14_000, 16_383, 16_384, 16_385, 17_000, 20_480, 20_999] {
        let main = Connection::open(place.main()).expect("opened");
        let digest = exec(size - 1, MONTHS[if size > 14_000 { 2 } else { 1 }]).digest();
        main.execute("UPDATE meta SET size = ?1, last = ?2", (sql(size), digest.as_slice())).expect("updated");
        main.execute("DELETE FROM execs WHERE leaf >= ?1", [sql(size)]).expect("deleted");
        drop(main);
        let index = Index::open(&place.main(), place.store.clone(), false).expect("opened");
        assert_eq!(index.covered(), size, "taken on, not made anew");
        assert_eq!(all(&index, of("/bin/rare")).len(), whole.0.iter().filter(|leaf| **leaf < size).count());
        while index.step().expect("step") {}
        assert_eq!(all(&index, of("/bin/rare")), whole.0);
        assert_eq!(all(&index, Filter { since: MONTHS[2], ..Filter::default() }), whole.1);
    }
}

/// The month's file is committed, the main file refuses: the same records come again, once.
#[test]
fn a_step_that_failed_is_done_again_once() {
    let place = Place::new();
    place.fill(1400);
    let index = place.index();
    let main = Connection::open(place.main()).expect("opened");
    main.execute_batch("CREATE TRIGGER no BEFORE UPDATE ON meta BEGIN SELECT RAISE(ABORT, 'no'); END").expect("made");
    place.append((4200..4700).map(|seq| exec(seq, MONTHS[2])).collect());
    for _ in 0..2 {
        index.step().expect_err("refused");
        assert_eq!((index.covered(), all(&index, of("/bin/rare")).len()), (4200, 420));
    }
    main.execute_batch("DROP TRIGGER no").expect("dropped");
    while index.step().expect("step") {}
    assert_eq!((index.covered(), all(&index, of("/bin/rare")).len()), (4700, 470));
    drop(index);
    assert_eq!(place.index().covered(), 4700);
}

#[test]
fn a_damaged_block_is_named_and_the_index_made_anew() {
    let place = Place::new();
    place.fill(7000);
    drop(place.index());
    let path = place.dir.path().join("index/index-2026-03.sqlite");
    let part = Connection::open(&path).expect("opened");
    part.execute("UPDATE blocks SET packed = substr(packed, 1, 1000)", []).expect("updated");
    drop(part);
    let index = place.index();
    let after = Filter { after: Some(14_000), ..of("/bin/rare").limited(5) };
    let refused = index.query(&after).expect_err("refused").to_string();
    assert!(refused.contains("index-2026-03.sqlite") && refused.contains("guard-collector reindex"), "{refused}");
    drop(index);
    let anew = Index::open(&place.main(), place.store.clone(), true).expect("opened");
    while anew.step().expect("step") {}
    assert_eq!(all(&anew, of("/bin/rare")).len(), 2100);
}
