//! People log in by OpenID Connect: with tokens that are good, and with all that are not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use guard_collector::pki::now;
use guard_proto::v1::login_reply::Reply;
use guard_proto::v1::login_request::Request;
use guard_proto::v1::*;
use prost::Message;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::enrolment::{enrol, issued};
use crate::issuer::{CLIENT, Issuer, IssuerKey, hmac_signed, unsigned};
use crate::world::{ControlClient, World};

const REDIRECT: &str = "http://127.0.0.1:40123/callback";
const VERIFIER: &str = "a-verifier-of-at-least-forty-three-characters";

/// A collector where people log in whom this issuer knows.
fn world(issuer: &Issuer, more: &str) -> World {
    let mut world = World::stopped();
    world.edit_config("# enrol_listen = \"127.0.0.1:7444\"", "enrol_listen = \"127.0.0.1:0\"");
    let table = format!(
        "\n[oidc]\nissuer = \"{}\"\nclient_id = \"{CLIENT}\"\n{more}\n[[oidc.allow]]\nrole = \"reviewer\"\nclaim = \
         \"groups\"\nvalues = [\"guard-reviewers\"]\n\n[index]\n",
        issuer.url
    );
    world.edit_config("\n[index]\n", &table);
    world.start();
    world
}

/// One message, as `guardctl login` sends it.
async fn ask(world: &World, request: Option<Request>) -> Reply {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(world.path("c/ca/ca.pem")).expect("CA");
    roots.add(ca).expect("added");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut tls = tls.expect("versions").with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![guard_proto::LOGIN_ALPN.to_vec()];
    let stream = tokio::net::TcpStream::connect(world.enrol_address()).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("TLS");
    let message = LoginRequest { request }.encode_to_vec();
    stream.write_u32(message.len() as u32).await.expect("sent");
    stream.write_all(&message).await.expect("sent");
    let mut reply = vec![0; stream.read_u32().await.expect("an answer") as usize];
    stream.read_exact(&mut reply).await.expect("all of it");
    LoginReply::decode(reply.as_slice()).expect("a reply").reply.expect("one")
}

/// Somebody with a key who wants to log in.
struct Person {
    key: KeyPair,
}

impl Person {
    fn new() -> Self {
        Self { key: KeyPair::generate().expect("key") }
    }

    fn csr(&self) -> Vec<u8> {
        CertificateParams::default().serialize_request(&self.key).expect("request").der().to_vec()
    }

    fn nonce(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(self.key.subject_public_key_info()))
    }

    async fn begin(&self, world: &World) -> Reply {
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let (redirect_uri, state) = (REDIRECT.to_owned(), "state-of-this-login".to_owned());
        ask(world, Some(Request::Begin(LoginBegin { csr: self.csr(), redirect_uri, state, code_challenge: challenge })))
            .await
    }

    async fn finish(&self, world: &World) -> Reply {
        let finish = LoginFinish {
            csr: self.csr(),
            redirect_uri: REDIRECT.into(),
            code: "the code+1".replace(' ', "-"),
            code_verifier: VERIFIER.into(),
        };
        ask(world, Some(Request::Finish(finish))).await
    }

    async fn done(&self, world: &World) -> LoggedIn {
        match self.finish(world).await {
            Reply::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self, world: &World) -> EnrolRefused {
        refused(self.finish(world).await)
    }

    /// Calls as whoever the certificate says.
    async fn control(&self, world: &World, certificate: &str) -> ControlClient {
        let dir = world.path("c/clients/logged-in");
        std::fs::create_dir_all(&dir).expect("folder");
        std::fs::write(dir.join("cert.pem"), certificate).expect("written");
        std::fs::write(dir.join("key.pem"), self.key.serialize_pem()).expect("written");
        world.control("logged-in").await
    }
}

fn refused(reply: Reply) -> EnrolRefused {
    match reply {
        Reply::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_brings_a_certificate_that_is_recorded_and_revoked_like_others() {
    let key = IssuerKey::new("k1");
    let issuer = Issuer::new(&key);
    let world = world(&issuer, "scopes = [\"profile\", \"groups\"]");
    let carol = Person::new();
    let Reply::Begun(begun) = carol.begin(&world).await else { panic!() };
    assert_eq!(begun.issuer, issuer.url);
    let nonce = carol.nonce();
    let challenge = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
    let expected = format!(
        "{}/login?theme=dark&response_type=code&client_id=guard&redirect_uri=http%3A%2F%2F127.0.0.1%3A40123%2Fcallback&\
         scope=openid+profile+groups&state=state-of-this-login&nonce={nonce}&code_challenge={challenge}&\
         code_challenge_method=S256",
        issuer.url
    );
    assert_eq!(begun.url, expected);
    issuer.manner().token = key.sign(&issuer.claims(&nonce));
    let done = carol.done(&world).await;
    let form = issuer.manner().form.clone();
    assert_eq!(
        form,
        format!(
            "grant_type=authorization_code&code=the-code%2B1&redirect_uri=http%3A%2F%2F127.0.0.1%3A40123%2Fcallback&\
             code_verifier={VERIFIER}&client_id=guard"
        )
    );
    assert_eq!((done.name.as_str(), done.role.as_str()), ("carol", "reviewer"));
    assert!((done.not_after_unix - now() - 43_200).abs() < 30, "twelve hours");
    let mut client = carol.control(&world, &done.certificate).await;
    let who = client.who_am_i(WhoAmIRequest {}).await.expect("known").into_inner();
    assert_eq!((who.name.as_str(), who.roles.as_slice()), ("carol", ["reviewer".to_owned()].as_slice()));
    assert_eq!(who.not_after_unix, done.not_after_unix);
    let records = issued(&world).await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((record.how.as_str(), &record.by, record.subject.as_str()), ("login", &issuer.url, "subject-7"));
    assert_eq!((&record.serial, record.not_after_unix), (&who.serial, done.not_after_unix));
    // What the role does not reach stays closed.
    let made = client.create_join_token(CreateJoinTokenRequest { name: "x".into(), ttl_seconds: 60 }).await;
    assert_eq!(made.expect_err("refused").code(), Code::PermissionDenied);
    let mut admin = world.control("admin").await;
    let listed = admin.list_certificates(ListCertificatesRequest { name: "carol".into() }).await.expect("listed");
    assert_eq!(listed.into_inner().certificates.len(), 1);
    admin
        .revoke_certificate(RevokeCertificateRequest { target: "carol".into(), reason: "left".into() })
        .await
        .expect("revoked");
    let gone = client.who_am_i(WhoAmIRequest {}).await.expect_err("refused");
    assert!(gone.message().contains("is revoked, by record"), "{gone:?}");
    // What was issued before that is worth nothing, what is issued from now on is the issuer's affair.
    let later = Person::new();
    let mut claims = issuer.claims(&later.nonce());
    claims["iat"] = json!(now() - 5);
    issuer.manner().token = key.sign(&claims);
    assert_eq!(later.refused(&world).await.code, "revoked");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let later = Person::new();
    issuer.manner().token = key.sign(&issuer.claims(&later.nonce()));
    let done = later.done(&world).await;
    later.control(&world, &done.certificate).await.who_am_i(WhoAmIRequest {}).await.expect("again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_not_good_bring_nothing() {
    let (key, other) = (IssuerKey::new("k1"), IssuerKey::new("k1"));
    let issuer = Issuer::new(&key);
    let world = world(&issuer, "");
    enrol(&world, "box7").await;
    type Made = Box<dyn Fn(&mut Value) -> String>;
    let with = |name: &'static str, value: Value| -> Made {
        let key = key.clone();
        Box::new(move |claims| {
            claims[name] = value.clone();
            key.sign(claims)
        })
    };
    let by = |make: fn(&IssuerKey, &Value) -> String| -> Made {
        let key = key.clone();
        Box::new(move |claims| make(&key, claims))
    };
    let minutes = |shift: i64| -> Made {
        let key = key.clone();
        Box::new(move |claims| {
            (claims["iat"], claims["exp"]) = (json!(now() + shift), json!(now() + shift + 3600));
            key.sign(claims)
        })
    };
    let same_id = other.clone();
    let wrong: Vec<(&str, Made, &str)> = vec![
        ("expired", with("exp", json!(now() - 61)), "it expired"),
        ("for another client", with("aud", json!("another")), "another client"),
        ("of another issuer", with("iss", json!("http://127.0.0.1:1")), "its issuer is"),
        ("for another key", with("nonce", json!(Person::new().nonce())), "another login"),
        ("without a nonce", with("nonce", Value::Null), "`nonce`"),
        ("not signed", by(|_, claims| unsigned(claims)), "\"none\""),
        ("signed by HMAC with the public key", by(hmac_signed), "\"HS256\""),
        ("by an unknown key", by(|key, claims| key.sign_as(&json!({"alg": "ES256", "kid": "k9"}), claims)), "\"k9\""),
        ("by another key of the same name", Box::new(move |claims| same_id.sign(claims)), "signature"),
        (
            "said to be of another algorithm",
            by(|key, claims| key.sign_as(&json!({"alg": "RS256", "kid": "k1"}), claims)),
            "RS256",
        ),
        ("from a clock ten minutes ahead", minutes(600), "in the future"),
        ("from a clock ten minutes behind", minutes(-600), "s ago, at most"),
        ("of somebody who is in no group", with("groups", json!(["staff"])), "may not log in here"),
        ("of the name of a host", with("preferred_username", json!("box7")), "is the name of a node here"),
        ("of no name", with("preferred_username", json!("../admin")), "letters, digits"),
        ("very long", with("padding", json!("x".repeat(40_000))), "at most"),
        ("longer than any answer", with("padding", json!("x".repeat(1 << 20))), "longer than"),
        ("no token", Box::new(|_| "a.b.c".to_owned()), "no signed token"),
    ];
    for (what, make, words) in wrong {
        let person = Person::new();
        let mut claims = issuer.claims(&person.nonce());
        issuer.manner().token = make(&mut claims);
        let said = person.refused(&world).await;
        assert!(said.message.contains(words), "{what}: {said:?}");
    }
    let answers = [
        ((400, r#"{"error":"invalid_grant","error_description":"code used"}"#), "invalid_grant code used", "refused"),
        ((200, "{}"), "no ID token", "refused"),
        ((503, ""), "answers 503", "unavailable"),
        ((302, ""), "answers 302", "unavailable"),
    ];
    for ((status, body), words, code) in answers {
        issuer.manner().answer = Some((status, body.to_owned()));
        let said = Person::new().refused(&world).await;
        assert!(said.message.contains(words) && said.code == code, "{status}: {said:?}");
    }
    issuer.manner().answer = None;
    let records = issued(&world).await;
    assert!(records.iter().all(|record| record.how == "enrolled"), "{records:?}");
    // And one that is good, by the same way.
    let person = Person::new();
    issuer.manner().token = key.sign(&issuer.claims(&person.nonce()));
    person.done(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_counts_once_and_for_one_key() {
    let key = IssuerKey::new("k1");
    let issuer = Issuer::new(&key);
    let world = world(&issuer, "within_token = true");
    let (carol, eve) = (Person::new(), Person::new());
    issuer.manner().token = key.sign(&issuer.claims(&carol.nonce()));
    let done = carol.done(&world).await;
    assert!((done.not_after_unix - now() - 300).abs() < 30, "it ends with the token");
    assert_eq!(carol.refused(&world).await.code, "used");
    assert!(eve.refused(&world).await.message.contains("another login"));
    assert_eq!(issued(&world).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_the_issuer_change_and_strange_sets_are_bounded() {
    let (old, new) = (IssuerKey::new("k1"), IssuerKey::new("k2"));
    let issuer = Issuer::new(&old);
    let world = world(&issuer, "");
    let asked = || issuer.manner().asked.get("/keys").copied().unwrap_or(0);
    let log_in = async |key: &IssuerKey| {
        let person = Person::new();
        issuer.manner().token = key.sign(&issuer.claims(&person.nonce()));
        person.finish(&world).await
    };
    assert!(matches!(log_in(&old).await, Reply::Done(_)) && matches!(log_in(&old).await, Reply::Done(_)));
    assert_eq!(asked(), 1, "kept");
    issuer.manner().keys = vec![new.clone()];
    // Whoever shows tokens with invented keys does not make the collector ask each time.
    let strange = IssuerKey::new("k9");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert!(refused(log_in(&strange).await).message.contains("\"k9\""));
    }
    assert!(matches!(log_in(&new).await, Reply::Done(_)), "the new key");
    assert!(refused(log_in(&old).await).message.contains("\"k1\""), "the old one is gone");
    assert!(asked() <= 4, "{}", asked());
    let many: Vec<Value> =
        (0..2000).map(|n| json!({"kty": "RSA", "kid": format!("m{n}"), "n": "AQAB", "e": "AQAB"})).collect();
    issuer.manner().key_set = Some(json!({"keys": many}).to_string());
    tokio::time::sleep(Duration::from_millis(5100)).await;
    let said = refused(log_in(&strange).await);
    assert!(said.message.contains("2000 keys; at most") && said.code == "unavailable", "{said:?}");
    issuer.manner().key_set = Some(format!("{{\"keys\":[\"{}\"]}}", "x".repeat(1 << 20)));
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(refused(log_in(&strange).await).message.contains("longer than"));
    issuer.manner().key_set = None;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(matches!(log_in(&new).await, Reply::Done(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_issuer_nobody_logs_in_and_all_else_goes_on() {
    let key = IssuerKey::new("k1");
    let issuer = Issuer::new(&key);
    issuer.manner().away = true;
    let world = world(&issuer, "");
    let person = Person::new();
    for _ in 0..3 {
        let said = refused(person.begin(&world).await);
        assert!(said.code == "unavailable" && said.message.contains("nobody can log in now"), "{said:?}");
        assert!(said.message.contains(&issuer.url) && said.message.contains("its configuration"), "{said:?}");
    }
    let asked = issuer.manner().asked.values().sum::<u32>();
    assert!(asked <= 2, "asked {asked} times");
    world.control("bob").await.who_am_i(WhoAmIRequest {}).await.expect("goes on");
    enrol(&world, "box7").await;
    issuer.manner().away = false;
    issuer.manner().calls_itself = Some("http://127.0.0.1:1".to_owned());
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(refused(person.begin(&world).await).message.contains("calls itself"));
    issuer.manner().calls_itself = None;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(matches!(person.begin(&world).await, Reply::Begun(_)));
    // It goes away in between.
    issuer.manner().token = key.sign(&issuer.claims(&person.nonce()));
    issuer.manner().away = true;
    assert_eq!(person.refused(&world).await.code, "unavailable");
    issuer.manner().away = false;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    person.done(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_login_is_refused_before_the_issuer_is_asked() {
    let key = IssuerKey::new("k1");
    let issuer = Issuer::new(&key);
    let world = world(&issuer, "");
    let csr = Person::new().csr();
    let begin = |change: fn(&mut LoginBegin)| {
        let mut begin = LoginBegin {
            csr: csr.clone(),
            redirect_uri: REDIRECT.into(),
            state: "state-of-this-login".into(),
            code_challenge: "c".repeat(43),
        };
        change(&mut begin);
        Request::Begin(begin)
    };
    let finish = |change: fn(&mut LoginFinish)| {
        let mut finish = LoginFinish {
            csr: csr.clone(),
            redirect_uri: REDIRECT.into(),
            code: "c".into(),
            code_verifier: VERIFIER.into(),
        };
        change(&mut finish);
        Request::Finish(finish)
    };
    let bad = [
        None,
        Some(begin(|b| b.csr.clear())),
        Some(begin(|b| *b.csr.last_mut().expect("bytes") ^= 1)),
        Some(begin(|b| b.redirect_uri = "https://evil.example/callback".into())),
        Some(begin(|b| b.state = "short".into())),
        Some(begin(|b| b.state = "x&client_id=other".into())),
        Some(begin(|b| b.code_challenge = "plain".into())),
        Some(finish(|f| f.code.clear())),
        Some(finish(|f| f.code = "c".repeat(4097))),
        Some(finish(|f| f.code_verifier = "short".into())),
        Some(finish(|f| f.redirect_uri = "http://127.0.0.1:1/other".into())),
    ];
    for request in bad {
        assert_eq!(refused(ask(&world, request).await).code, "malformed");
    }
    assert!(issuer.manner().asked.is_empty());
    let plain = World::enrolling(3600);
    let said = refused(Person::new().begin(&plain).await);
    assert!(said.code == "off" && said.message.contains("[oidc]"), "{said:?}");
}
