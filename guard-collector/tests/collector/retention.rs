//! Old entries go, and what is asked for them afterwards is answered in words; the collector is killed on the way.

use std::path::Path;
use std::time::{Duration, SystemTime};

use guard_log::record::SessionId;
use guard_log::verify::Severity;
use guard_proto::v1::*;
use tonic::Code;

use crate::host::Host;
use crate::world::{World, command};

/// Makes every file of a folder look as if it had been written long ago.
fn age(folder: &Path) {
    let old = SystemTime::now() - Duration::from_secs(3 * 86_400);
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            age(&path);
        } else {
            std::fs::File::open(&path).and_then(|file| file.set_modified(old)).expect("set");
        }
    }
}

/// A session's start, 1,500 long records, and one that begins a further segment; everything three days old.
async fn old(world: &mut World) -> Host {
    world.edit_config("segment_bytes = 67108864", "segment_bytes = 1048576");
    world.edit_config("keep_segments_hours = 168", "keep_segments_hours = 1");
    world.edit_config("[index]", "[retention]\nentries_days = 2\nminimum_records = 100\n\n[index]");
    world.start();
    let mut host = Host::new();
    host.start_session();
    host.append(SessionId::NONE, record_body::Body::Gap(Gap { source: "ring".into(), ..Gap::default() }));
    let node = world.node("node-box").await;
    for _ in 0..30 {
        for _ in 0..50 {
            let stop = NodeStop { reason: "x".repeat(2000), sessions_closed: 0 };
            host.append(SessionId::NONE, record_body::Body::NodeStop(stop));
        }
        host.ship(&node).await;
    }
    world.stop();
    for folder in ["c/data/wal", "c/data/log/tile/entries"] {
        age(&world.path(folder));
    }
    host
}

/// Waits for the first round.
async fn first_leaf(world: &World) -> Retention {
    let mut admin = world.control("admin").await;
    for _ in 0..400 {
        let kept = admin.status(StatusRequest {}).await.expect("status").into_inner().retention.expect("told");
        if kept.first_leaf > 0 {
            return kept;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nothing was pruned")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_pruned_is_answered_in_words_and_the_rest_as_before() {
    let mut world = World::stopped();
    let host = old(&mut world).await;
    world.start();
    let kept = first_leaf(&world).await;
    assert_eq!(kept.policy, "retention: entries_days = 2, minimum_records = 100");
    let mut vera = world.control("vera").await;
    let log_size = vera.status(StatusRequest {}).await.expect("status").into_inner().log_size;

    let all = QueryRequest { limit: 10_000, at_least: log_size, ..QueryRequest::default() };
    let mut stream = vera.query(all).await.expect("query").into_inner();
    let mut leaves = vec![];
    let ended = loop {
        match stream.message().await {
            Ok(Some(entry)) => leaves.push(entry.leaf),
            Ok(None) => panic!("not all is there"),
            Err(status) => break status,
        }
    };
    assert_eq!(leaves, (kept.first_leaf..log_size).collect::<Vec<u64>>());
    let words = format!("were pruned by record {}", kept.record_leaf);
    assert!(ended.code() == Code::OutOfRange && ended.message().contains(&words), "{ended}");

    let request = GetSessionRequest { session_id: host.session.to_string(), at_least: log_size };
    let session = vera.get_session(request).await.expect("session").into_inner();
    assert_eq!((session.entries.len(), session.pruned), (0, 1));
    assert!(session.summary.is_some() && session.pruned_by.contains(&words));

    let mut tail = vera.tail(TailRequest { from_leaf: 3, ..TailRequest::default() }).await.expect("tail").into_inner();
    assert_eq!(tail.message().await.expect_err("gone").code(), Code::OutOfRange);
    let gone = vera.read_log(ReadLogRequest { path: "tile/entries/000".into() }).await.expect_err("gone");
    assert!(gone.code() == Code::NotFound && gone.message().contains(&words), "{gone}");
    vera.read_log(ReadLogRequest { path: "tile/0/000".into() }).await.expect("hashes stay");

    let report = world.audit();
    assert!(report.findings.iter().all(|f| f.severity == Severity::Information), "{:#?}", report.findings);
    world.stop();
    let made = command(&["reindex", "--config", world.config().to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(said.contains(&format!("from leaf {} on", kept.first_leaf)), "{said}");
    world.start();
    assert_eq!(first_leaf(&world).await.first_leaf, kept.first_leaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_before_a_webhook_was_told_of_it_is_recorded_first() {
    let mut world = World::stopped();
    let secret = world.path("c/secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("written");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("set");
    // Nobody listens there, and the first record of the host is an event.
    let table = "[[webhook]]\nname = \"siem\"\nurl = \"http://127.0.0.1:1/\"\nsecret_file = \"secret\"\n\n[review]";
    world.edit_config("[review]", table);
    old(&mut world).await;
    world.start();
    let kept = first_leaf(&world).await;
    let mut vera = world.control("vera").await;
    let mut tail = vera.tail(TailRequest { from_leaf: kept.first_leaf, ..TailRequest::default() }).await;
    let stream = tail.as_mut().expect("tail").get_mut();
    let finding = loop {
        let entry = stream.message().await.expect("entry").expect("one");
        assert!(entry.leaf < kept.record_leaf, "nothing was said before leaf {}", entry.leaf);
        let record = guard_log::record::Record::parse(entry.record).expect("a record");
        if let Some(record_body::Body::WebhookFinding(finding)) = guard_collector::body::parse(&record) {
            break finding;
        }
    };
    assert_eq!((finding.what.as_str(), finding.webhook.as_str()), ("untold", "siem"));
    assert!(finding.next_leaf < kept.first_leaf && finding.detail.contains("retention"), "{finding:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_prunes_the_next_start_completes_it() {
    let mut world = World::stopped();
    let mut host = old(&mut world).await;
    for milliseconds in [0, 3, 8, 15, 30, 60] {
        world.start();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        world.kill();
        let report = world.audit();
        assert!(report.findings.iter().all(|f| f.severity == Severity::Information), "{:#?}", report.findings);
    }
    world.start();
    let kept = first_leaf(&world).await;
    assert!(kept.first_leaf >= 256 && kept.first_leaf <= kept.record_leaf);
    let bundle = |index: u64| world.path(&format!("c/data/log/tile/entries/{index:03}"));
    for _ in 0..200 {
        if !bundle(kept.first_leaf / 256 - 1).exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!((0..kept.first_leaf / 256).all(|index| !bundle(index).exists()));
    assert!(bundle(kept.first_leaf / 256).exists());
    // The host goes on where it was.
    host.fill(10);
    host.ship(&world.node("node-box").await).await;
}
