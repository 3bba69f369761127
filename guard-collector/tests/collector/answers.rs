//! Sessions, queries, the live tail, the public log; and the same answers from an index made anew.

use std::time::Duration;

use guard_proto::v1::*;
use prost::Message;
use tonic::Code;

use crate::host::Host;
use crate::world::{ControlClient, World, command};

const ONE: &str = "01KG9F6R00ABCDEFGHJKMNPQR1";
const TWO: &str = "01KG9F6R00ABCDEFGHJKMNPQR2";

/// A session with one exec of each end.
fn work(host: &mut Host) {
    host.start_session();
    host.exec(1, &["bash"], Disposition::Allowed);
    host.exec(2, &["git", "status"], Disposition::Allowed);
    host.exec(3, &["make"], Disposition::Inherited);
    host.exec(4, &["rm", "-rf", "/"], Disposition::Denied);
    host.exec(5, &["swapped"], Disposition::Allowed);
    host.outcome(5, Disposition::Killed);
    host.outcome(2, Disposition::Unspecified);
    host.request(ONE, 6, &["git", "commit"], 60);
    host.decision(ONE, 6, Disposition::Approved, 0);
    // The identical exec, tried again.
    host.decision(ONE, 7, Disposition::Approved, 6);
    host.request(TWO, 8, &["git", "push"], 60);
    let unjudged = ExecUnjudged {
        identity: Some(host.identity()),
        exec_id: 9,
        disposition: Disposition::Failed.into(),
        probes: 4,
        ..ExecUnjudged::default()
    };
    host.append(host.session, record_body::Body::ExecUnjudged(unjudged));
}

async fn session(client: &mut ControlClient, host: &Host, at_least: u64) -> GetSessionReply {
    let request = GetSessionRequest { session_id: host.session.to_string(), at_least };
    client.get_session(request).await.expect("session").into_inner()
}

async fn query(client: &mut ControlClient, request: QueryRequest) -> Vec<u64> {
    let mut stream = client.query(request).await.expect("query").into_inner();
    let mut leaves = vec![];
    while let Some(entry) = stream.message().await.expect("entry") {
        leaves.push(entry.leaf);
    }
    leaves
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_counts_each_exec_once_by_how_it_ended() {
    let world = World::new();
    let mut host = Host::new();
    work(&mut host);
    let size = host.ship(&world.node("node-box").await).await.log_size;
    let mut vera = world.control("vera").await;
    let reply = session(&mut vera, &host, size).await;
    let s = reply.summary.expect("summary");
    assert_eq!((s.execs, s.allowed, s.inherited, s.approved), (9, 2, 1, 2));
    assert_eq!((s.denied, s.killed, s.failed, s.pending), (1, 1, 1, 1));
    assert_eq!((s.agent.as_str(), s.initiator.as_str(), s.host_name.as_str()), ("coder", "alice", "box"));
    assert_eq!((s.argv, s.purpose.as_str(), s.ended_unix_ns), (vec![b"bash".to_vec()], "test", 0));
    let sent: Vec<Vec<u8>> = host.records.iter().map(|r| r.bytes().to_vec()).collect();
    let got: Vec<Vec<u8>> = reply.entries.into_iter().map(|e| e.record).collect();
    assert_eq!((got, reply.truncated, reply.log_size), (sent, false, size));
    host.end_session();
    let size = host.ship(&world.node("node-box").await).await.log_size;
    let ended = session(&mut vera, &host, size).await.summary.expect("summary");
    assert!(ended.ended_unix_ns > 0);
    assert_eq!(ended.end_reason, "exited");
    let open = ListSessionsRequest { open_only: true, at_least: size, ..Default::default() };
    assert!(vera.list_sessions(open).await.expect("list").into_inner().sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_come_in_pages_newest_first() {
    let world = World::new();
    let mut host = Host::new();
    let mut ids = vec![];
    for _ in 0..5 {
        host.session = Host::new().session;
        host.start_session();
        ids.insert(0, host.session.to_string());
    }
    let at_least = host.ship(&world.node("node-box").await).await.log_size;
    let mut vera = world.control("vera").await;
    let (mut got, mut page_token) = (vec![], String::new());
    loop {
        let request = ListSessionsRequest { limit: 2, at_least, page_token, ..Default::default() };
        let reply = vera.list_sessions(request).await.expect("list").into_inner();
        assert!(reply.log_size >= at_least && reply.sessions.len() <= 2);
        got.extend(reply.sessions.into_iter().map(|s| s.session_id));
        page_token = reply.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(got, ids);
    let nobody = ListSessionsRequest { initiator: "bob".into(), ..Default::default() };
    assert!(vera.list_sessions(nobody).await.expect("list").into_inner().sessions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_find_exactly_what_was_asked() {
    let world = World::new();
    let mut host = Host::new();
    work(&mut host);
    let at_least = host.ship(&world.node("node-box").await).await.log_size;
    let mut vera = world.control("vera").await;
    let base = QueryRequest { at_least, ..QueryRequest::default() };
    let whole = query(&mut vera, QueryRequest { session_id: host.session.to_string(), ..base.clone() }).await;
    assert_eq!(whole.len(), host.records.len());
    // Leaves: the start of the collector, the binding, then the host's records.
    let at = |i: u64| i + 2;
    let denied = QueryRequest { disposition: "denied".into(), ..base.clone() };
    assert_eq!(query(&mut vera, denied).await, [at(4)]);
    let written = QueryRequest { category: "vcs.write".into(), agent: "coder".into(), ..base.clone() };
    assert_eq!(query(&mut vera, written.clone()).await, [at(8), at(11)]);
    let after = QueryRequest { after_leaf: at(8), has_after_leaf: true, ..written.clone() };
    assert_eq!(query(&mut vera, after).await, [at(11)]);
    assert_eq!(query(&mut vera, QueryRequest { limit: 1, ..written }).await, [at(8)]);
    let instance = QueryRequest { instance: "spiffe://guard/agent/coder/1".into(), ..base.clone() };
    // All but the outcomes, which name nobody: the session speaks for them.
    assert_eq!(query(&mut vera, instance).await.len(), host.records.len());
    let program = QueryRequest { program: "/usr/bin/git".into(), ..base.clone() };
    assert_eq!(query(&mut vera, program).await, [at(2), at(8), at(11)]);
    let covers = vera.query(base.clone()).await.expect("query").metadata().get(guard_proto::LOG_SIZE).cloned();
    let covers: u64 = covers.expect("said").to_str().expect("text").parse().expect("number");
    assert!(covers >= at_least);
    let elsewhere = QueryRequest { host: vec![7; 16], ..base.clone() };
    assert!(query(&mut vera, elsewhere).await.is_empty());
    let future = QueryRequest { since_unix_ns: i64::MAX, ..base };
    assert!(query(&mut vera, future).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tail_follows_what_becomes_durable() {
    let world = World::new();
    let (mut host, node) = (Host::new(), world.node("node-box").await);
    let mut vera = world.control("vera").await;
    let mut tail = vera.tail(TailRequest::default()).await.expect("tail").into_inner();
    host.fill(3);
    host.ship(&node).await;
    for leaf in 0..5 {
        assert_eq!(tail.message().await.expect("entry").expect("goes on").leaf, leaf);
    }
    let now = TailRequest { from_now: true, session_id: host.session.to_string(), ..TailRequest::default() };
    let mut only = vera.tail(now).await.expect("tail").into_inner();
    host.fill(600);
    host.start_session();
    host.ship(&node).await;
    assert_eq!(only.message().await.expect("entry").expect("goes on").record, host.records[603].bytes().to_vec());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_there_in_time_says_so() {
    let world = World::new();
    let mut vera = world.control("vera").await;
    let missing = GetSessionRequest { session_id: Host::new().session.to_string(), at_least: 0 };
    assert_eq!(vera.get_session(missing).await.expect_err("none").code(), Code::NotFound);
    let odd = GetSessionRequest { session_id: "x".into(), at_least: 0 };
    assert_eq!(vera.get_session(odd).await.expect_err("odd").code(), Code::InvalidArgument);
    let early = ListSessionsRequest { at_least: 1_000_000, ..Default::default() };
    assert_eq!(vera.list_sessions(early).await.expect_err("early").code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_public_log_is_readable_and_nothing_else() {
    let world = World::new();
    let (mut host, mut vera) = (Host::new(), world.control("vera").await);
    host.fill(5);
    let size = host.ship(&world.node("node-box").await).await.log_size;
    let until = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let status = vera.status(StatusRequest {}).await.expect("status").into_inner();
        assert_eq!(status.log_size, size);
        if status.checkpoint_size == size {
            assert!(status.checkpoint_unix_ns > 0);
            break;
        }
        assert!(std::time::Instant::now() < until, "not published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut read =
        async |path: &str| vera.read_log(ReadLogRequest { path: path.into() }).await.map(|r| r.into_inner().content);
    let checkpoint = read("checkpoint").await.expect("checkpoint");
    assert!(String::from_utf8(checkpoint).expect("text").starts_with("guard-log/box/"));
    assert!(read(&format!("tile/entries/000.p/{size}")).await.is_ok());
    assert_eq!(read("tile/0/x999/000").await.expect_err("none").code(), Code::NotFound);
    for path in ["../../keys/log.skey", "tile/../../wal", "/etc/passwd", "checkpoint/..", ""] {
        assert_eq!(read(path).await.expect_err(path).code(), Code::InvalidArgument, "{path}");
    }
}

/// Everything that the index answers, as bytes.
async fn everything(world: &World, host: &Host) -> Vec<Vec<u8>> {
    let mut vera = world.control("vera").await;
    let at_least = vera.status(StatusRequest {}).await.expect("status").into_inner().log_size;
    let mut sessions =
        vera.list_sessions(ListSessionsRequest { at_least, ..Default::default() }).await.expect("list").into_inner();
    sessions.log_size = 0;
    let mut session = session(&mut vera, host, at_least).await;
    session.log_size = 0;
    let all = ListReviewsRequest { all: true, ..Default::default() };
    let mut reviews = vera.list_reviews(all).await.expect("list").into_inner();
    reviews.log_size = 0;
    let mut review = vera.get_review(GetReviewRequest { request_id: TWO.into() }).await.expect("review").into_inner();
    // Said as of the question.
    review.approval_until_unix_ns = 0;
    let mut found =
        vec![sessions.encode_to_vec(), session.encode_to_vec(), reviews.encode_to_vec(), review.encode_to_vec()];
    for request in [
        QueryRequest { disposition: "approved".into(), ..Default::default() },
        QueryRequest { initiator: "alice".into(), limit: 1000, ..Default::default() },
        QueryRequest { reviewer: "bob".into(), ..Default::default() },
    ] {
        found.push(query(&mut vera, request).await.into_iter().flat_map(u64::to_le_bytes).collect());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_made_anew_gives_the_same_answers() {
    let mut world = World::new();
    let mut host = Host::new();
    work(&mut host);
    let node = world.node("node-box").await;
    host.ship(&node).await;
    let digest = world
        .control("bob")
        .await
        .get_review(GetReviewRequest { request_id: TWO.into() })
        .await
        .expect("review")
        .into_inner()
        .request
        .expect("request")
        .digest;
    let deny = DecideRequest { request_id: TWO.into(), digest, reason: "no".into(), ..Default::default() };
    world.control("bob").await.decide(deny).await.expect("denied");
    drop(node);
    let live = everything(&world, &host).await;
    world.stop();
    let made = command(&["reindex", "--config", world.config().to_str().expect("UTF-8")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(String::from_utf8_lossy(&made.stdout), format!("{} records indexed\n", host.records.len() + 3));
    world.start();
    assert_eq!(everything(&world, &host).await, live, "made anew by the command");
    world.kill();
    std::fs::remove_dir_all(world.path("c/index")).expect("removed");
    world.start();
    assert_eq!(everything(&world, &host).await, live, "made anew at start");
    world.kill();
    std::fs::write(world.path("c/index/index.sqlite"), b"not a database, but long enough to be looked at as one")
        .expect("spoiled");
    let _ = std::fs::remove_file(world.path("c/index/index.sqlite-wal"));
    world.start();
    assert_eq!(everything(&world, &host).await, live, "made anew instead of a damaged file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_ahead_of_the_log_is_not_believed() {
    let (mut world, mut other) = (World::new(), World::new());
    let (mut host, mut more) = (Host::new(), Host::new());
    work(&mut host);
    work(&mut more);
    more.fill(50);
    host.ship(&world.node("node-box").await).await;
    more.ship(&other.node("node-box").await).await;
    let right = everything(&world, &host).await;
    everything(&other, &more).await;
    world.stop();
    other.stop();
    // A file that holds everything, and none of the old one's write-ahead records beside it.
    let whole = rusqlite::Connection::open(other.path("c/index/index.sqlite")).expect("opens");
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    whole.query_row(checkpoint, [], |row| row.get::<_, i64>(0)).expect("checkpoint");
    drop(whole);
    std::fs::remove_dir_all(world.path("c/index")).expect("removed");
    std::fs::create_dir(world.path("c/index")).expect("made");
    std::fs::copy(other.path("c/index/index.sqlite"), world.path("c/index/index.sqlite")).expect("copied");
    // The same origin, so that only size and digest tell.
    let origin = |w: &World| {
        let vkey = std::fs::read_to_string(w.path("c/log.vkey")).expect("vkey");
        vkey.split('+').next().expect("name").to_owned()
    };
    let file = rusqlite::Connection::open(world.path("c/index/index.sqlite")).expect("opens");
    file.execute("UPDATE meta SET origin = ?1", [origin(&world)]).expect("updated");
    let size: i64 = file.query_row("SELECT size FROM meta", [], |row| row.get(0)).expect("size");
    assert!(size > i64::try_from(host.records.len()).expect("number") + 3, "ahead of the log: {size}");
    drop(file);
    world.start();
    assert_eq!(everything(&world, &host).await, right);
}
