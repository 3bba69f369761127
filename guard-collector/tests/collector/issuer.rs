//! An OpenID Connect issuer of the tests' own, whose keys the tests hold: it gives whatever token it is told to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use guard_collector::pki::now;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

pub const CLIENT: &str = "guard";

/// A key of an issuer.
#[derive(Clone)]
pub struct IssuerKey {
    pub id: String,
    pair: Arc<EcdsaKeyPair>,
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

impl IssuerKey {
    pub fn new(id: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        Self { id: id.to_owned(), pair: Arc::new(pair) }
    }

    pub fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    fn json(&self) -> Value {
        let public = self.public();
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.id, "x": encoded(&public[1..33]),
            "y": encoded(&public[33..])})
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&json!({"alg": "ES256", "kid": self.id}), claims)
    }

    /// The same under another header.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).expect("signed");
        format!("{signed}.{}", encoded(signature))
    }
}

/// What HMAC with a public key as its secret makes of it.
pub fn hmac_signed(key: &IssuerKey, claims: &Value) -> String {
    let signed =
        format!("{}.{}", encoded(json!({"alg": "HS256", "kid": key.id}).to_string()), encoded(claims.to_string()));
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.public()).expect("a key");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", encoded(mac.finalize().into_bytes()))
}

pub fn unsigned(claims: &Value) -> String {
    format!("{}.{}.", encoded(json!({"alg": "none"}).to_string()), encoded(claims.to_string()))
}

#[derive(Default)]
pub struct Manner {
    pub keys: Vec<IssuerKey>,
    /// Instead of these keys.
    pub key_set: Option<String>,
    /// The ID token of the next exchanges.
    pub token: String,
    /// Instead of an ID token: status and body.
    pub answer: Option<(u16, String)>,
    /// Connections are closed without an answer.
    pub away: bool,
    /// What it calls itself, if not by its address.
    pub calls_itself: Option<String>,
    /// How often each path was asked for.
    pub asked: BTreeMap<String, u32>,
    /// The last exchange, as it came.
    pub form: String,
}

#[derive(Clone)]
pub struct Issuer {
    pub url: String,
    manner: Arc<Mutex<Manner>>,
}

impl Issuer {
    pub fn new(key: &IssuerKey) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let url = format!("http://127.0.0.1:{}", listener.local_addr().expect("address").port());
        let manner = Manner { keys: vec![key.clone()], ..Manner::default() };
        let issuer = Self { url, manner: Arc::new(Mutex::new(manner)) };
        let own = issuer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || own.serve(stream));
            }
        });
        issuer
    }

    pub fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().expect("lock")
    }

    /// Claims of a good token for a login with this nonce.
    pub fn claims(&self, nonce: &str) -> Value {
        json!({"iss": self.url, "aud": CLIENT, "sub": "subject-7", "nonce": nonce, "iat": now(), "exp": now() + 300,
            "preferred_username": "carol", "groups": ["guard-reviewers"]})
    }

    fn serve(&self, stream: TcpStream) {
        let mut lines = BufReader::new(stream);
        let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
        while lines.read_line(&mut line).is_ok_and(|n| n > 2) {
            if first.is_empty() {
                first.clone_from(&line);
            }
            if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                length = n.trim().parse().expect("a number");
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if lines.read_exact(&mut body).is_err() {
            return;
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let Some((status, answer)) = self.answer(&path, String::from_utf8_lossy(&body).into_owned()) else { return };
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
        let stream = lines.get_mut();
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes()));
    }

    fn answer(&self, path: &str, body: String) -> Option<(u16, String)> {
        let mut manner = self.manner();
        *manner.asked.entry(path.to_owned()).or_default() += 1;
        if manner.away {
            return None;
        }
        let url = &self.url;
        Some(match path {
            "/.well-known/openid-configuration" => {
                let issuer = manner.calls_itself.as_ref().unwrap_or(url);
                (
                    200,
                    json!({"issuer": issuer, "authorization_endpoint": format!("{url}/login?theme=dark"),
                    "token_endpoint": format!("{url}/token"), "jwks_uri": format!("{url}/keys")})
                    .to_string(),
                )
            }
            "/keys" => {
                let keys: Vec<Value> = manner.keys.iter().map(IssuerKey::json).collect();
                (200, manner.key_set.clone().unwrap_or_else(|| json!({"keys": keys}).to_string()))
            }
            "/token" => {
                manner.form = body;
                let token = json!({"access_token": "x", "token_type": "Bearer", "id_token": manner.token}).to_string();
                manner.answer.clone().unwrap_or((200, token))
            }
            _ => (404, String::new()),
        })
    }
}
