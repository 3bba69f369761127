//! Alerts to receivers that take them, that fail, that are slow, that are gone, that send elsewhere; the collector is killed.
//!
//! The receiver speaks HTTPS over real sockets; what it got is verified by another implementation of the specification.

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::host::Host;
use crate::world::{World, command};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEXT_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const PATIENCE: Duration = Duration::from_secs(30);

/// One request, as it came.
#[derive(Clone, Debug)]
struct Got {
    headers: BTreeMap<String, String>,
    body: String,
    answered: u16,
}

impl Got {
    fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn leaf(&self) -> u64 {
        self.json()["data"]["log"]["leaf"].as_u64().expect("a leaf")
    }

    /// Held to the specification by others.
    fn verify(&self, secret: &str) {
        let mut headers = http::HeaderMap::new();
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            headers.insert(name, self.headers[name].parse().expect("a header"));
        }
        let webhook = standardwebhooks::Webhook::new(secret).expect("a secret");
        webhook.verify(self.body.as_bytes(), &headers).expect("signed");
    }
}

#[derive(Default)]
struct Manner {
    /// What it answers, one after the other; then 204.
    answers: VecDeque<u16>,
    delay: Duration,
    location: String,
}

#[derive(Clone)]
struct Receiver {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    manner: Arc<Mutex<Manner>>,
}

impl Receiver {
    /// One with the certificate of the world's own collector, for `localhost`.
    fn new(world: &World) -> Self {
        let read = |name: &str| std::fs::read(world.path("c").join(name)).expect("read");
        let chain = CertificateDer::pem_slice_iter(&read("server/cert.pem")).map(|c| c.expect("PEM")).collect();
        let key = PrivateKeyDer::from_pem_slice(&read("server/key.pem")).expect("PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(chain, key).expect("certificate");
        let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").expect("listens"));
        let port = listener.local_addr().expect("address").port();
        let receiver = Self { port, got: Arc::default(), manner: Arc::default() };
        let own = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (own, config) = (own.clone(), Arc::clone(&config));
                std::thread::spawn(move || own.serve(stream, config));
            }
        });
        receiver
    }

    fn serve(&self, stream: TcpStream, config: Arc<ServerConfig>) {
        let tls = StreamOwned::new(ServerConnection::new(config).expect("TLS"), stream);
        let mut lines = BufReader::new(tls);
        let (mut headers, mut line) = (BTreeMap::new(), String::new());
        while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
            if let Some((name, value)) = line.split_once(':') {
                headers.insert(name.to_lowercase(), value.trim().to_owned());
            }
            line.clear();
        }
        let Some(length) = headers.get("content-length").and_then(|n| n.parse().ok()) else { return };
        let mut body = vec![0; length];
        if lines.read_exact(&mut body).is_err() {
            return;
        }
        let (answered, delay, location) = {
            let mut manner = self.manner.lock().expect("lock");
            (manner.answers.pop_front().unwrap_or(204), manner.delay, manner.location.clone())
        };
        let body = String::from_utf8(body).expect("UTF-8");
        self.got.lock().expect("lock").push(Got { headers, body, answered });
        std::thread::sleep(delay);
        let location = if location.is_empty() { location } else { format!("location: {location}\r\n") };
        let answer = format!("HTTP/1.1 {answered} x\r\n{location}content-length: 2\r\nconnection: close\r\n\r\nno");
        let answer = if answered == 204 { "HTTP/1.1 204 x\r\nconnection: close\r\n\r\n".to_owned() } else { answer };
        let _ = lines.get_mut().write_all(answer.as_bytes()).and_then(|()| lines.get_mut().flush());
        lines.get_mut().conn.send_close_notify();
        let _ = lines.get_mut().flush();
    }

    fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().expect("lock"));
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().expect("lock").clone()
    }

    /// What it took, once it is so.
    async fn until(&self, what: &str, so: impl Fn(&[Got]) -> bool) -> Vec<Got> {
        let start = Instant::now();
        loop {
            let taken: Vec<Got> = self.got().into_iter().filter(|got| got.answered < 300).collect();
            if so(&taken) {
                return taken;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: {:#?}", self.got());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its table in the configuration.
    fn table(&self, world: &World, more: &str) -> String {
        let secrets = world.path("c/siem.secret");
        std::fs::write(&secrets, format!("{SECRET}\n")).expect("written");
        std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).expect("set");
        format!(
            "[[webhook]]\nname = \"siem\"\nurl = \"https://localhost:{}/guard?key=hidden\"\nsecret_file = \
             \"siem.secret\"\nca_file = \"ca/ca.pem\"\nfold_seconds = 1\n{more}\n\n[review]",
            self.port
        )
    }
}

/// A collector that does not run yet, and who is told.
fn prepared(more: &str) -> (World, Receiver) {
    let world = World::stopped();
    let receiver = Receiver::new(&world);
    world.edit_config("[review]", &receiver.table(&world, more));
    (world, receiver)
}

async fn state(world: &World) -> WebhookState {
    let mut admin = world.control("admin").await;
    admin.status(StatusRequest {}).await.expect("status").into_inner().webhooks.remove(0)
}

async fn until_state(world: &World, what: &str, so: impl Fn(&WebhookState) -> bool) -> WebhookState {
    let start = Instant::now();
    loop {
        let state = state(world).await;
        if so(&state) {
            return state;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {state:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn findings(world: &World) -> Vec<(String, String)> {
    let of = |record: &guard_log::record::Record| match guard_collector::body::parse(record) {
        Some(Body::WebhookFinding(f)) => Some((f.what, f.detail)),
        _ => None,
    };
    world.records().await.iter().filter_map(of).collect()
}

/// A record that is an event for itself.
fn gap(host: &mut Host, n: usize) {
    let gap = Gap { source: format!("ring {n}"), counter: "dropped".into(), lost: 3, ..Gap::default() };
    host.append(guard_log::record::SessionId::NONE, Body::Gap(gap));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_exec_is_told_signed_and_a_flood_of_it_is_folded() {
    let (mut world, receiver) = prepared("min_risk = 50");
    world.start();
    let mut host = Host::new();
    host.start_session();
    host.exec(1, &["git", "status"], Disposition::Allowed);
    for n in 0..2001 {
        host.exec_of_risk(2 + n, &["curl", "http://evil\u{202e}\u{1b}[2J"], Disposition::Denied, 50);
    }
    host.exec_of_risk(4000, &["ls"], Disposition::Denied, 49);
    host.request_of("01KG9F6R00ABCDEFGHJKMNPQRS", &["dd", "of=/dev/sda"], ("fs.write", 90));
    host.decision("01KG9F6R00ABCDEFGHJKMNPQRS", 9, Disposition::TimedOut, 0);
    host.refusal("bpf", "");
    host.ship(&world.node("node-box").await).await;
    // The host is new at leaf 1; its session starts at leaf 2.
    let counted =
        |got: &[Got]| got.iter().map(|g| g.json()["data"]["repeated"]["count"].as_u64().unwrap_or(1)).sum::<u64>();
    let taken = receiver.until("all are told", |got| counted(got) >= 2003).await;
    assert_eq!(counted(&taken), 2003);
    assert!(taken.len() <= 8, "{} calls", taken.len());
    taken.iter().for_each(|got| got.verify(SECRET));
    let first = taken[0].json();
    assert_eq!((&first["type"], &first["data"]["log"]["leaf"]), (&"exec.denied".into(), &4.into()));
    assert_eq!(first["data"]["exec"]["argv"][1], "http://evil\u{202e}\u{1b}[2J");
    assert_eq!(first["data"]["session"]["initiator"], "alice");
    assert_eq!(
        (&first["data"]["exec"]["disposition"], &first["data"]["host"]["node"]),
        (&"denied".into(), &"box".into())
    );
    assert!(taken.iter().all(|got| got.body.is_ascii() && !got.body.contains('\u{1b}')));
    let of = |kind: &str, at: &str, is: &str| {
        let all: Vec<Value> = taken.iter().map(Got::json).collect();
        all.into_iter().find(|v| v["type"] == kind && v["data"].pointer(at).is_some_and(|v| v == is)).expect(kind)
    };
    // Of a request that ran out the command is told too.
    let timed_out = of("exec.denied", "/exec/disposition", "timed_out");
    assert_eq!(timed_out["data"]["exec"]["argv"][0], "dd");
    of("guard.attempt", "/act/what", "bpf");
    let state = until_state(&world, "told", |s| s.lag == 0 && !s.waiting).await;
    assert_eq!(
        (state.url.as_str(), state.error.as_str()),
        (format!("https://localhost:{}", receiver.port).as_str(), "")
    );
    assert_eq!(state.sent, taken.len() as u64);
    // The record that a message tells of is the one in the log.
    let records = world.records().await;
    let leaf = usize::try_from(taken[0].leaf()).expect("small");
    assert_eq!(first["data"]["log"]["record_sha256"], hex::encode(records[leaf].digest()));
    if let Some(path) = std::env::var_os("GUARD_ALERT_EXAMPLE") {
        std::fs::write(path, serde_json::to_string_pretty(&timed_out).expect("JSON")).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_failures_and_kills_each_leaf_is_told_in_order_with_one_id() {
    let (mut world, receiver) = prepared("");
    receiver.manner(|m| m.answers = [500, 503, 204, 204, 429, 204, 500].into());
    let mut host = Host::new();
    world.start();
    for n in 0..40 {
        gap(&mut host, n);
        // Two of a kind each time: the second is folded.
        gap(&mut host, n);
    }
    host.ship(&world.node("node-box").await).await;
    for round in 1..=4_u64 {
        receiver.until("some are told", |got| got.len() as u64 >= round * 5).await;
        world.kill();
        world.start();
    }
    let counted = |got: &[Got]| {
        let once: BTreeMap<&str, &Got> = got.iter().map(|g| (g.id(), g)).collect();
        once.values().map(|g| g.json()["data"]["repeated"]["count"].as_u64().unwrap_or(1)).sum::<u64>()
    };
    let taken = receiver.until("all are told", |got| counted(got) >= 80).await;
    assert_eq!(counted(&taken), 80);
    let mut bodies: BTreeMap<String, String> = BTreeMap::new();
    for got in receiver.got() {
        got.verify(SECRET);
        let before = bodies.insert(got.id().to_owned(), got.body.clone());
        assert!(before.is_none_or(|body| body == got.body), "{} is not the same again", got.id());
    }
    let mut firsts: Vec<u64> = vec![];
    for got in taken.iter().filter(|got| got.json()["data"]["repeated"].is_null()) {
        if !firsts.contains(&got.leaf()) {
            firsts.push(got.leaf());
        }
    }
    assert!(firsts.is_sorted(), "{firsts:?}");
    // Where a pause was longer than things are folded, the second is a first of its own.
    assert!((0..40).all(|n| firsts.contains(&(2 + 2 * n))), "{firsts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_gone_is_told_no_more_until_a_hup_and_then_with_the_new_secret() {
    let (mut world, receiver) = prepared("failing_after_seconds = 1");
    receiver.manner(|m| m.answers = [410].into());
    world.start();
    let mut host = Host::new();
    gap(&mut host, 1);
    host.ship(&world.node("node-box").await).await;
    let state = until_state(&world, "it is gone", |s| s.disabled).await;
    assert!(state.error.contains("410") && state.waiting, "{state:?}");
    gap(&mut host, 2);
    host.ship(&world.node("node-box").await).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(receiver.got().len(), 1, "nothing more is sent");
    std::fs::write(world.path("c/siem.secret"), format!("{NEXT_SECRET}\n{SECRET}\n")).expect("written");
    let hup = std::process::Command::new("kill").args(["-HUP", &world.pid().to_string()]).status();
    assert!(hup.expect("kill").success());
    let taken = receiver.until("both are told", |got| got.len() >= 2).await;
    // Whoever has only one of the two secrets can verify.
    for secret in [NEXT_SECRET, SECRET] {
        taken.iter().for_each(|got| got.verify(secret));
    }
    let found = findings(&world).await;
    assert_eq!(found.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ["disabled"], "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_fails_for_long_is_a_record_and_redirects_lead_nowhere() {
    let (mut world, receiver) = prepared("failing_after_seconds = 1");
    let elsewhere = Receiver::new(&world);
    receiver.manner(|m| {
        m.answers = [302, 307, 308].into();
        m.location = format!("https://localhost:{}/stolen", elsewhere.port);
    });
    world.start();
    let mut host = Host::new();
    gap(&mut host, 1);
    host.ship(&world.node("node-box").await).await;
    let state = until_state(&world, "it fails", |s| s.failures > 0).await;
    assert!(state.error.contains("302") && state.error.contains("redirects are not followed"), "{state:?}");
    receiver.until("it is told", |got| got.len() == 1).await;
    assert!(elsewhere.got().is_empty());
    until_state(&world, "it is well", |s| s.error.is_empty() && !s.waiting).await;
    let found = findings(&world).await;
    assert_eq!(found.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ["failing", "back"], "{found:?}");
    assert!(found[0].1.contains("30"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_receiver_slows_nobody_but_itself() {
    let (mut world, receiver) = prepared("");
    receiver.manner(|m| m.delay = Duration::from_secs(60));
    world.start();
    let mut host = Host::new();
    gap(&mut host, 0);
    let node = world.node("node-box").await;
    host.ship(&node).await;
    receiver.until("it has the first", |got| got.len() == 1).await;
    let start = Instant::now();
    for n in 1..=20 {
        (0..100).for_each(|i| gap(&mut host, n * 100 + i));
        host.ship(&node).await;
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(receiver.got().len(), 1, "it still has the first");
    let state = state(&world).await;
    assert!(state.waiting && state.lag >= 2000, "{state:?}");
    // The collector's end does not wait for it either: an attempt may take 20 s.
    drop(node);
    let start = Instant::now();
    world.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_test_message_says_what_came_back() {
    let (world, receiver) = prepared("");
    let config = world.config();
    let run = || command(&["webhook", "test", "--config", config.to_str().expect("UTF-8")]);
    let output = run();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.starts_with("siem https://localhost:"), "{output:?}");
    assert!(said.contains(": took msg_test_") && said.contains("(204, ") && !said.contains("hidden"), "{said}");
    let got = receiver.got().remove(0);
    got.verify(SECRET);
    assert_eq!(got.json()["type"], "guard.test");
    receiver.manner(|m| m.answers = [401].into());
    let output = run();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(said.contains("it answers 401") && said.contains(": no"), "{said}");
    // Another authority than the one that is named.
    world.edit_config("ca_file = \"ca/ca.pem\"\n", "");
    let said = String::from_utf8_lossy(&run().stderr).into_owned();
    assert!(said.contains("certificate") && !said.contains("hidden"), "{said}");
    std::fs::set_permissions(world.path("c/siem.secret"), std::fs::Permissions::from_mode(0o644)).expect("set");
    let output = run();
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("0644"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_decides_wakes_the_second_group() {
    let (mut world, receiver) = prepared("kinds = [\"review.escalated\"]");
    let roles = "version: 1\nroles: {lead: {review: {categories: ['*'], max_risk: 100}, query: true}}\n\
                 people: {bob: [lead], admin: [lead]}\n\
                 approvals: {escalate: [{to: [lead], before_deadline_seconds: 59}]}\n";
    std::fs::write(world.path("c/roles.yaml"), roles).expect("written");
    world.edit_config("# roles = \"roles.yaml\"", "roles = \"roles.yaml\"");
    world.start();
    let mut host = Host::new();
    host.start_session();
    host.request("01KG9F6R00ABCDEFGHJKMNPQRS", 3, &["git", "push", "--force"], 60);
    host.ship(&world.node("node-box").await).await;
    let got = receiver.until("the escalation", |got| !got.is_empty()).await;
    got[0].verify(SECRET);
    let told = got[0].json();
    assert_eq!(told["type"], "review.escalated");
    let review = &told["data"]["review"];
    assert_eq!((&review["request"], &review["to"][0]), (&"01KG9F6R00ABCDEFGHJKMNPQRS".into(), &"lead".into()));
    assert_eq!((&review["argv"][2], &review["session"]["initiator"]), (&"--force".into(), &"alice".into()));
    // Once: also from a collector that was killed.
    world.kill();
    world.start();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let ids: std::collections::BTreeSet<String> = receiver.got().iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(ids.len(), 1);
}
