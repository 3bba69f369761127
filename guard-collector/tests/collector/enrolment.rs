//! Hosts enrol with a join token, once, and renew their certificates while they ship.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use guard_collector::body::parse;
use guard_collector::pki::{Authority, now};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use tonic::Code;

use crate::certificate::Files;
use crate::daemon::Daemon;
use crate::join;
use crate::renew::{self, Renewal};
use crate::stream::{self, Shipper};
use crate::world::{World, command};

/// What `node token` prints.
pub fn token(world: &World, name: &str, ttl: &str) -> String {
    let config = world.config();
    let made = command(&["node", "token", name, "--ttl", ttl, "--config", config.to_str().expect("UTF-8")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("UTF-8").trim().to_owned()
}

/// Where a host of that name keeps what it has.
pub fn files(world: &World, name: &str) -> Files {
    let dir = world.path("c/clients").join(name);
    std::fs::create_dir_all(&dir).expect("folder");
    Files { cert: dir.join("cert.pem"), key: dir.join("key.pem") }
}

pub async fn ask(world: &World, token: &str, csr: Vec<u8>) -> Result<Enrolled, String> {
    join::enrol(world.enrol_address(), &token.parse()?, csr).await
}

/// Enrols a host as `guard-agent enroll` does.
pub async fn enrol(world: &World, name: &str) -> Files {
    let files = files(world, name);
    let csr = files.request(true).expect("request");
    let enrolled = ask(world, &token(world, name, "1h"), csr).await.expect("enrolled");
    files.install(&enrolled.certificate).expect("put in place");
    files
}

/// Records of certificates, in order.
pub async fn issued(world: &World) -> Vec<CertificateIssued> {
    let of = |r: &guard_log::record::Record| match parse(r) {
        Some(Body::CertificateIssued(issued)) => Some(issued),
        _ => None,
    };
    world.records().await.iter().filter_map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_enrols_one_host_once() {
    let mut world = World::enrolling(3600);
    let (token, files) = (token(&world, "box7", "1h"), files(&world, "box7"));
    let csr = files.request(true).expect("request");
    let enrolled = ask(&world, &token, csr.clone()).await.expect("enrolled");
    let facts = files.install(&enrolled.certificate).expect("put in place");
    let read = |name: &str| std::fs::read_to_string(world.path(name)).expect("there");
    assert_eq!(enrolled.ca, read("c/ca/ca.pem"));
    assert_eq!(
        (enrolled.log_vkey.as_str(), enrolled.admin_vkey.as_str()),
        (read("c/log.vkey").trim(), read("c/admin.vkey").trim())
    );
    let daemon = Daemon::new("box7", None, None);
    daemon.ship_more(&world, 5).await.expect("ships");
    daemon.assert_logged_once(&world).await;
    // Should the answer be lost, the same key gets the same one, and nobody else anything.
    assert_eq!(ask(&world, &token, csr.clone()).await.expect("again").certificate, enrolled.certificate);
    let other = self::files(&world, "other").request(false).expect("request");
    for _ in 0..2 {
        let refused = ask(&world, &token, other.clone()).await.expect_err("used");
        assert!(refused.contains("used already, by another key") && refused.contains("node token box7"), "{refused}");
        // Nor after the collector has started anew.
        world.stop();
        world.start();
    }
    let on_record = issued(&world).await;
    let [record] = on_record.as_slice() else { panic!("{on_record:?}") };
    assert_eq!((record.name.as_str(), record.role.as_str(), record.how.as_str()), ("box7", "node", "enrolled"));
    assert_eq!((record.serial.as_str(), record.not_after_unix), (facts.serial.as_str(), facts.not_after));
    assert!(record.by.contains("uid ") && token.contains(&record.token), "{record:?}");
    let lifetime = record.not_after_unix - record.not_before_unix;
    assert_eq!(lifetime, 3600 + 600, "valid from ten minutes before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_not_good_say_what_to_do() {
    let world = World::enrolling(3600);
    let csr = files(&world, "x").request(false).expect("request");
    let good = token(&world, "box7", "1h");
    let parts: Vec<String> = good.split(':').map(str::to_owned).collect();
    let with = |place: usize, part: &str| {
        let mut parts = parts.clone();
        part.clone_into(&mut parts[place]);
        parts.join(":")
    };
    let (strange, _) = Authority::create("strange").expect("CA");
    let strange = guard_collector::tokens::fingerprint(strange.pem()).expect("digest");
    let short = token(&world, "box8", "1s");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let wrong = [
        (with(2, "box8"), "the token is for another node"),
        (with(3, &"0".repeat(16)), "does not know this token"),
        (with(4, &"0".repeat(48)), "does not know this token"),
        (with(5, &hex::encode(strange)), "Nothing was sent"),
        (short, "the token for box8 has expired"),
        ("guard-join:1:box7".to_owned(), "no whole join token"),
    ];
    for (token, says) in wrong {
        let refused = ask(&world, &token, csr.clone()).await.expect_err("refused");
        assert!(refused.contains(says), "{refused}");
    }
    // What is no signing request, or signed by another key.
    for bad in [vec![], b"x".to_vec(), {
        let mut bad = csr.clone();
        *bad.last_mut().expect("bytes") ^= 1;
        bad
    }] {
        let refused = ask(&world, &good, bad).await.expect_err("refused");
        assert!(refused.contains("signing request"), "{refused}");
    }
    assert!(issued(&world).await.is_empty());
    ask(&world, &good, csr.clone()).await.expect("it is good still");
    // Somebody tries secrets: after ten the token is void.
    let guessed = token(&world, "box9", "1h");
    let parts: Vec<&str> = guessed.split(':').collect();
    let wrong = guessed.replace(parts[4], &"0".repeat(48));
    for _ in 0..5 {
        let (a, b) = tokio::join!(ask(&world, &wrong, csr.clone()), ask(&world, &wrong, csr.clone()));
        assert!(a.is_err() && b.is_err());
    }
    assert!(ask(&world, &guessed, csr).await.expect_err("void").contains("does not know this token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_else_is_served_where_hosts_enrol() {
    let world = World::enrolling(3600);
    let connect = || {
        let stream = TcpStream::connect(world.enrol_address()).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("set");
        stream
    };
    // Ends with a TLS alert at most.
    let mut garbage = connect();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
    let mut answer = vec![];
    let _ = garbage.read_to_end(&mut answer);
    assert!(answer.len() < 16, "{answer:?}");
    // A client of the other listener finds no protocol in common.
    let ca = std::fs::read(world.path("c/ca/ca.pem")).expect("CA");
    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(ca))
        .domain_name("localhost");
    let uri = format!("https://{}", world.enrol_address());
    let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("address").tls_config(tls).expect("TLS");
    assert!(endpoint.connect().await.is_err());
    // A length beyond the limit, or a message cut off, gets no answer; who says nothing is cut; one address has four places.
    let begun = Instant::now();
    let mut idle: Vec<TcpStream> = (0..4).map(|_| connect()).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(connect().read(&mut [0; 8]).ok(), Some(0), "a fifth is closed at once");
    for stream in &mut idle {
        let ended = stream.read(&mut [0; 8]);
        assert!(!matches!(ended, Ok(n) if n > 0) && begun.elapsed() < Duration::from_secs(14), "{ended:?}");
    }
    assert!(begun.elapsed() >= Duration::from_secs(9));
    tokio::time::sleep(Duration::from_millis(300)).await;
    enrol(&world, "box7").await;
    assert_eq!(issued(&world).await.len(), 1);
}

/// As the daemon does, without its kernel side.
struct Renewing<'a> {
    world: &'a World,
    daemon: &'a Daemon,
    files: Files,
    renewal: Renewal,
    noted: Mutex<Vec<Body>>,
}

impl Renewing<'_> {
    /// Ships and renews until the stream ends; nothing if the certificate was renewed.
    async fn converse(&self) -> Option<String> {
        let facts = self.files.read().expect("a pair").facts;
        let daemon = self.daemon;
        let shipper = Shipper {
            host: daemon.host,
            host_name: "box7",
            journal: &daemon.journal,
            seen: &daemon.seen,
            outlet: daemon,
        };
        let client = daemon.client(self.world).await;
        let note = |body| self.noted.lock().expect("noted").push(body);
        tokio::select! {
            end = stream::ship(&shipper, client.clone()) => Some(end),
            () = renew::renewed(&self.files, &self.renewal, &facts, client, note) => None,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_while_records_are_shipped_each_once() {
    let world = World::enrolling(12);
    let files = enrol(&world, "box7").await;
    let daemon = Daemon::new("box7", None, None);
    let renewing =
        Renewing { world: &world, daemon: &daemon, files, renewal: Renewal::default(), noted: Mutex::default() };
    let renewals = Cell::new(0);
    let ship = async {
        loop {
            let end = renewing.converse().await;
            assert_eq!(end, None);
            renewals.set(renewals.get() + 1);
        }
    };
    let fill = async {
        let end = Instant::now() + Duration::from_secs(80);
        // And some more with the last one.
        while renewals.get() < 2 || !daemon.records().len().is_multiple_of(100) {
            assert!(Instant::now() < end);
            daemon.fill(1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = fill => {}
        () = ship => {}
    }
    daemon.ship(&world).await.expect("the rest");
    assert!(daemon.records().len() > 300);
    daemon.assert_logged_once(&world).await;
    let on_record = issued(&world).await;
    assert_eq!(on_record.len(), renewals.get() + 1);
    for pair in on_record.windows(2) {
        let [old, new] = pair else { panic!() };
        assert_eq!((new.how.as_str(), &new.replaces), ("renewed", &old.serial));
        assert_ne!(new.public_key, old.public_key);
    }
    assert!(renewing.noted.lock().expect("noted").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_renewed_is_told_of_and_then_counts_no_more() {
    let mut world = World::enrolling(10);
    let files = enrol(&world, "box7").await;
    let ended = files.read().expect("a pair").facts.not_after;
    world.stop();
    let text = std::fs::read_to_string(world.config()).expect("read");
    let without =
        format!("{}[log]{}", text.split("[certificates]").next().expect("a"), text.split("[log]").nth(1).expect("b"));
    std::fs::write(world.config(), without).expect("written");
    world.start();
    let daemon = Daemon::new("box7", None, None);
    daemon.fill(3);
    let renewing =
        Renewing { world: &world, daemon: &daemon, files, renewal: Renewal::default(), noted: Mutex::default() };
    let why = renewing.converse().await.expect("the stream is cut");
    assert!(why.contains("has ended") && why.contains("enrols again"), "{why}");
    assert!((now() - ended).abs() <= 3);
    let (not_after, error) = renewing.renewal.report();
    assert!(error.contains("issues no certificates"), "{error}");
    assert_eq!(not_after, 0, "this test does not say which it uses");
    let noted = renewing.noted.lock().expect("noted").clone();
    let [Body::CertificateEnding(told)] = noted.as_slice() else { panic!("{noted:?}") };
    assert!(told.not_after_unix == ended && told.error.contains("issues no certificates"), "{told:?}");
    // In TLS the last second still counts.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // No new connection gets past the handshake, and the peer is told why: by the alert, which its connection reads. A call that comes
    // after that learns only that the connection is closed.
    let mut told = Vec::new();
    while told.len() < 20 && !told.iter().any(|said: &String| said.contains("xpired")) {
        let channel = world.channel(&world.path("c/clients/box7")).await;
        told.push(match channel {
            Err(error) => format!("{error:?}"),
            Ok(channel) => {
                let mut client = node_service_client::NodeServiceClient::new(channel);
                let status = client.report(NodeReport::default()).await.expect_err("refused");
                format!("{status:?}")
            }
        });
    }
    assert!(told.last().is_some_and(|said| said.contains("xpired")), "{told:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let said = world.said().join("\n");
    assert!(said.contains("a TLS handshake failed") && said.contains("xpired"), "{said}");
    daemon.assert_logged_once(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_certificate_is_renewed_while_it_serves() {
    let mut world = World::stopped();
    world.edit_config("# enrol_listen = \"127.0.0.1:7444\"", "enrol_listen = \"127.0.0.1:0\"");
    let authority = Authority::read(&world.path("c/ca/ca.pem"), &world.path("c/ca/key.pem")).expect("CA");
    let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    // Of 720 s 120 are left.
    let short = authority.server(&hosts, Duration::from_secs(120)).expect("issued");
    std::fs::write(world.path("c/server/cert.pem"), &short.cert).expect("written");
    std::fs::write(world.path("c/server/key.pem"), &short.key).expect("written");
    world.start();
    let end = Instant::now() + Duration::from_secs(10);
    let fresh = loop {
        let cert = std::fs::read_to_string(world.path("c/server/cert.pem")).expect("read");
        if cert != short.cert {
            break cert;
        }
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(std::fs::read_to_string(world.path("c/server/key.pem")).expect("read"), short.key);
    let renewed = issued(&world).await;
    assert_eq!(renewed.iter().map(|r| (r.role.as_str(), r.how.as_str())).collect::<Vec<_>>(), [("server", "renewed")]);
    // The very connections of now show it, and hosts whose clocks are ten minutes late or early take it.
    enrol(&world, "box7").await;
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(authority.pem())).expect("CA");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build().expect("verifier");
    for skew in [-590, 0, 590] {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now() + skew).expect("time")));
        for name in ["localhost", "127.0.0.1", "::1"] {
            use rustls::client::danger::ServerCertVerifier;
            let name = name.try_into().expect("name");
            verifier.verify_server_cert(&der(&fresh), &[], &name, &[], at).expect("good");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_daemon_does_not_fill_the_log_with_certificates() {
    let world = World::enrolling(3600);
    let files = enrol(&world, "box7").await;
    let mut client = world.node("box7").await;
    let mut given = 0;
    let refused = loop {
        let csr = files.request(false).expect("request");
        match client.renew(RenewRequest { csr }).await {
            Ok(_) => given += 1,
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), given), (Code::ResourceExhausted, 63));
    // Nor does it get a certificate for the key that it has.
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(&files.key).expect("key")).expect("key");
    let csr = rcgen::CertificateParams::new(vec![]).expect("params").serialize_request(&key).expect("request");
    let refused = client.renew(RenewRequest { csr: csr.der().to_vec() }).await.expect_err("refused");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let people = world.node("bob").await.renew(RenewRequest::default()).await.expect_err("refused");
    assert_eq!(people.code(), Code::PermissionDenied);
}
