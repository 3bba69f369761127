//! The collector against witnesses that sign, that are away, that have seen something else, that answer nonsense.
//!
//! The witness is one of C2SP `tlog-witness` over real HTTP, as far as these tests need it; `cargo xtask interop` asks one that
//! others wrote.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use guard_log::checkpoint::Checkpoint;
use guard_log::note::Verifier;
use guard_log::policy::Policy;
use guard_log::proof::Growth;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use sha2::{Digest, Sha256};

use crate::host::{Host, Ship};
use crate::world::World;

/// How a witness behaves.
#[derive(Clone, Default)]
struct Manner {
    away: bool,
    nonsense: bool,
    /// The checkpoint that it saw last.
    seen: Option<Checkpoint>,
    asked: u32,
}

#[derive(Clone)]
struct Witness {
    name: String,
    url: String,
    manner: Arc<Mutex<Manner>>,
}

fn key(name: &str) -> SigningKey {
    SigningKey::from_bytes(&Sha256::digest(name).into())
}

fn id(name: &str) -> [u8; 4] {
    let digest = Sha256::new_with_prefix(name)
        .chain_update([b'\n', 4])
        .chain_update(key(name).verifying_key().as_bytes())
        .finalize();
    *digest.first_chunk().expect("bytes")
}

impl Witness {
    fn new(name: &str, log: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let url = format!("http://{}/w", listener.local_addr().expect("address"));
        let witness = Self { name: name.to_owned(), url, manner: Arc::default() };
        let (own, log) = (witness.clone(), Verifier::parse(log).expect("key"));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                own.serve(stream, &log);
            }
        });
        witness
    }

    fn line(&self) -> String {
        let data = [&[4_u8], key(&self.name).verifying_key().as_bytes().as_slice()].concat();
        let vkey = format!("{}+{}+{}", self.name, hex::encode(id(&self.name)), STANDARD.encode(data));
        format!("witness {} {vkey} {}\n", self.name, self.url)
    }

    fn manner(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().expect("lock"));
    }

    fn asked(&self) -> u32 {
        self.manner.lock().expect("lock").asked
    }

    /// One request for each connection.
    fn serve(&self, stream: TcpStream, log: &Verifier) {
        let mut lines = BufReader::new(stream.try_clone().expect("cloned"));
        let (mut length, mut line, mut first) = (0, String::new(), String::new());
        while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
            if let Some(number) = line.to_lowercase().strip_prefix("content-length:") {
                length = number.trim().parse().expect("a length");
            }
            if first.is_empty() {
                first.clone_from(&line);
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if lines.read_exact(&mut body).is_err() || self.manner.lock().expect("lock").away {
            return;
        }
        assert!(first.starts_with("POST /w/add-checkpoint HTTP/1.1"), "{first}");
        let (status, text) = self.answer(std::str::from_utf8(&body).expect("UTF-8"), log);
        let length = text.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = (&stream).write_all((head + &text).as_bytes());
    }

    fn answer(&self, request: &str, log: &Verifier) -> (u16, String) {
        let mut manner = self.manner.lock().expect("lock");
        manner.asked += 1;
        if manner.nonsense {
            return (200, "\u{2014} somebody AAAA\n".to_owned());
        }
        let growth = Growth::parse(request).expect("a proof");
        let before = manner.seen.clone().unwrap_or_else(|| Checkpoint::empty(log.name()));
        if growth.old != before.size {
            return (409, format!("{}\n", before.size));
        }
        let Ok(head) = growth.verify(&before, log) else { return (422, "not consistent\n".to_owned()) };
        let text = head.text();
        let time = 1_700_000_000_u64;
        let signature = key(&self.name).sign(format!("cosignature/v1\ntime {time}\n{text}").as_bytes());
        let data = [id(&self.name).as_slice(), &time.to_be_bytes(), &signature.to_bytes()].concat();
        manner.seen = Some(head);
        (200, format!("\u{2014} {} {}\n", self.name, STANDARD.encode(data)))
    }
}

/// A collector whose log two of three witnesses have to cosign.
fn world(without_quorum: &str) -> (World, Vec<Witness>) {
    let world = World::stopped();
    let vkey = std::fs::read_to_string(world.path("c/log.vkey")).expect("vkey");
    let witnesses: Vec<Witness> = ["w1", "w2", "w3"].map(|name| Witness::new(name, vkey.trim())).into();
    let lines: String = witnesses.iter().map(Witness::line).collect();
    let policy = format!("log {}\n{lines}group two 2 w1 w2 w3\nquorum two\n", vkey.trim());
    std::fs::write(world.path("c/witnesses"), policy).expect("written");
    let table =
        format!("[witness]\npolicy = \"witnesses\"\nask_ms = 100\nwithout_quorum = \"{without_quorum}\"\n[review]");
    world.edit_config("[review]", &table);
    (world, witnesses)
}

async fn status(world: &World) -> WitnessStatus {
    let status = world.control("vera").await.status(StatusRequest {}).await.expect("status").into_inner();
    status.witnesses.expect("witnesses")
}

async fn until(world: &World, what: &str, holds: impl Fn(&WitnessStatus) -> bool) -> WitnessStatus {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let now = status(world).await;
        if holds(&now) {
            return now;
        }
        assert!(Instant::now() < end, "{what}: {now:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn errors(status: &WitnessStatus) -> BTreeMap<&str, &str> {
    status.states.iter().map(|s| (s.name.as_str(), s.error.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_quorum_cosigned_is_public_also_when_one_is_away_or_talks_nonsense() {
    let (mut world, witnesses) = world("go_on");
    witnesses[2].manner(|m| m.nonsense = true);
    world.start();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(700);
    let ack = host.ship(&node).await;
    let now = until(&world, "a quorum", |s| s.quorum && s.cosigned_size >= ack.log_size).await;
    assert_eq!(now.without_quorum, "go_on");
    assert!(errors(&now)["w3"].contains("is its cosignature"), "{now:?}");
    assert_eq!((errors(&now)["w1"], errors(&now)["w2"]), ("", ""));
    let path = "cosigned".to_owned();
    let note = world.control("vera").await.read_log(ReadLogRequest { path }).await.expect("there").into_inner().content;
    let policy = Policy::parse(&std::fs::read(world.path("c/witnesses")).expect("read")).expect("a policy");
    let cosigned = policy.open(&note).expect("a checkpoint");
    assert!(cosigned.quorum && cosigned.checkpoint.size >= ack.log_size, "{cosigned:?}");
    // Started again, without what it knew of them: each says what it has seen, and goes on from there.
    world.stop();
    std::fs::remove_file(world.path("c/data/log/cosigned")).expect("removed");
    let before = witnesses[0].asked();
    world.start();
    let size = world.control("vera").await.status(StatusRequest {}).await.expect("status").into_inner().log_size;
    let now = until(&world, "a quorum again", |s| s.quorum && s.cosigned_size >= size).await;
    assert!(witnesses[0].asked() >= before + 2, "{now:?}");
    assert!(world.audit().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_wait_for_the_quorum_where_the_setting_says_so() {
    let (mut world, witnesses) = world("hold");
    world.start();
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(10);
    let ack = host.ship(&node).await;
    assert!(status(&world).await.cosigned_size > ack.last_leaf);
    // With one of three there is none.
    witnesses[0].manner(|m| m.away = true);
    witnesses[1].manner(|m| m.away = true);
    let (mut ship, _) = Ship::open(&node, host.hello()).await.expect("welcome");
    host.fill(5);
    ship.send(&host.records[10..]).await;
    assert!(tokio::time::timeout(Duration::from_secs(3), ship.ack()).await.is_err(), "acknowledged without a quorum");
    let now = until(&world, "an error", |s| !s.quorum && !errors(s)["w1"].is_empty()).await;
    assert_eq!(now.without_quorum, "hold");
    witnesses[1].manner(|m| m.away = false);
    let ack = ship.ack().await.expect("acknowledged when a quorum is back");
    assert_eq!(ack.next_seq, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_has_seen_more_than_this_log_has_is_on_the_record() {
    let (mut world, witnesses) = world("go_on");
    let origin = std::fs::read_to_string(world.path("c/log.vkey")).expect("vkey");
    let origin = origin.split('+').next().expect("name").to_owned();
    // It has seen a longer log of this name: this one is an older copy.
    let longer = Checkpoint { size: 1_000_000, root: [7; 32], ..Checkpoint::empty(&origin) };
    witnesses[1].manner(|m| m.seen = Some(longer));
    // And this one another history of the same size.
    let other = Checkpoint { size: 1, root: [9; 32], ..Checkpoint::empty(&origin) };
    witnesses[2].manner(|m| m.seen = Some(other));
    world.start();
    until(&world, "both say so", |s| !errors(s)["w2"].is_empty() && !errors(s)["w3"].is_empty()).await;
    let (node, mut host) = (world.node("node-box").await, Host::new());
    host.fill(3);
    host.ship(&node).await;
    let now = until(&world, "both say why", |s| errors(s)["w3"].contains("does not accept")).await;
    assert!(errors(&now)["w2"].contains("1000000 leaves of this log"), "{now:?}");
    assert!(!now.quorum && now.cosigned_size == 0);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let found: Vec<String> = world
            .records()
            .await
            .iter()
            .filter_map(|r| match guard_collector::body::parse(r) {
                Some(Body::WitnessFinding(f)) if f.what == "conflict" => Some(f.witness),
                _ => None,
            })
            .collect();
        if found.len() == 2 {
            assert!(found.contains(&"w2".to_owned()) && found.contains(&"w3".to_owned()), "{found:?}");
            break;
        }
        assert!(Instant::now() < end, "{found:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_does_not_fit_refuses_the_start_by_name() {
    let (world, _) = world("go_on");
    let path = world.path("c/witnesses");
    let right = std::fs::read_to_string(&path).expect("read");
    let own = right.lines().next().expect("a line").to_owned();
    let silent: String = right.lines().map(|l| format!("{}\n", l.split(" http").next().expect("text"))).collect();
    let starts = |text: &str| {
        std::fs::write(&path, text).expect("written");
        let config = world.config();
        let out = crate::world::command(&["serve", "--config", config.to_str().expect("UTF-8")]);
        assert_eq!(out.status.code(), Some(78));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    for (text, why) in [
        (right.replace("quorum two", "quorum three"), "line 6: three is not defined above"),
        (right.replace(&own, "# nothing"), "does not name this log; add `log guard-log/"),
        (silent, "no witness has an address"),
    ] {
        let said = starts(&text);
        assert!(said.contains(why) && said.contains("witness.policy"), "{why:?} is not in {said}");
    }
}
