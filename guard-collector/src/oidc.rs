//! People and services log in by OpenID Connect and get a short-lived certificate: authorization code with PKCE.
//!
//! The collector makes the address at which a person logs in and exchanges the code that comes back, so that no token of the issuer
//! leaves it. The ID token's nonce is the digest of the key in the signing request: a login is good for that key and no other. It
//! must not issue anything before the token is verified in every part and the certificate on record. Bounded: the size of each
//! field, questions to the issuer at a time. Fails closed: an issuer that is away means no login; certificates that there are
//! go on until they end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use guard_proto::v1::login_reply::Reply;
use guard_proto::v1::login_request::Request;
use guard_proto::v1::{EnrolRefused, LoggedIn, LoginBegin, LoginBegun, LoginFinish, LoginReply, LoginRequest};
use tokio::sync::Semaphore;

use crate::issuing::{Issuing, refused};
use crate::pki::{self, Csr};
use claims::{AGE_MAX, Expected, SKEW};
use config::OidcConfig;
use issuer::{Issuer, Problem};

pub mod claims;
pub mod config;
pub mod issuer;
pub mod jws;

/// Logins that ask the issuer at a time; more wait.
const AT_ONCE: usize = 8;
/// Longest code.
const CODE_MAX: usize = 4096;
/// Longest `state`.
const STATE_MAX: usize = 128;
/// Keys that are remembered as used; no more log in until the oldest are forgotten.
const USED_MAX: usize = 10_000;
/// Where the issuer sends the browser: an address of the person's own machine.
const REDIRECT: &str = "http://127.0.0.1:";

/// Lets people log in.
pub struct Logins {
    issuer: Issuer,
    issuing: Arc<Issuing>,
    room: Semaphore,
    /// Nonces of tokens for which a certificate was issued, with when a token could not be shown again anyhow.
    used: Mutex<HashMap<String, i64>>,
}

type Result<T> = std::result::Result<T, EnrolRefused>;

fn malformed(what: &str) -> EnrolRefused {
    refused("malformed", format!("{what}: this is no login of `guardctl login`"))
}

/// Unreserved characters of an address alone.
fn plain(text: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
}

fn redirect(text: &str) -> Result<()> {
    let port = text.strip_prefix(REDIRECT).and_then(|rest| rest.strip_suffix("/callback"));
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(port) if port > 0 => Ok(()),
        _ => Err(malformed("redirect_uri")),
    }
}

/// What the ID token has to name.
fn nonce(csr: &Csr) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(csr.public_key())
}

fn problem(problem: Problem) -> EnrolRefused {
    match problem {
        Problem::Away(why) => refused("unavailable", format!("nobody can log in now: {why}; try again")),
        Problem::Refused(why) => refused("refused", why),
    }
}

/// What a collector without `[oidc]` answers.
pub fn off() -> EnrolRefused {
    refused(
        "off",
        "this collector has no [oidc] in its configuration, so nobody logs in here: an admin makes certificates with \
         `guard-collector client`",
    )
}

impl Logins {
    /// Asks nobody anything yet.
    pub fn open(config: OidcConfig, issuing: Arc<Issuing>) -> std::result::Result<Self, String> {
        let issuer = Issuer::new(config)?;
        Ok(Self { issuer, issuing, room: Semaphore::new(AT_ONCE), used: Mutex::default() })
    }

    /// The answer to one message.
    pub async fn answer(&self, request: LoginRequest) -> LoginReply {
        let Ok(_permit) = self.room.acquire().await else { return reply(Err(off())) };
        reply(match request.request {
            Some(Request::Begin(begin)) => self.begin(begin).await.map(Reply::Begun),
            Some(Request::Finish(finish)) => self.finish(finish).await.map(Reply::Done),
            None => Err(malformed("an empty message")),
        })
    }

    async fn begin(&self, begin: LoginBegin) -> Result<LoginBegun> {
        let csr = Csr::parse(&begin.csr).map_err(|e| refused("malformed", e))?;
        redirect(&begin.redirect_uri)?;
        if !plain(&begin.state, 16, STATE_MAX) {
            return Err(malformed("state"));
        }
        if !plain(&begin.code_challenge, 43, 43) {
            return Err(malformed("code_challenge"));
        }
        let config = self.issuer.config();
        let mut url = self.issuer.places().await.map_err(problem)?.authorization.clone();
        let scope = std::iter::once("openid").chain(config.scopes.iter().map(String::as_str)).collect::<Vec<_>>();
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("client_id", &config.client_id),
            ("redirect_uri", &begin.redirect_uri),
            ("scope", &scope.join(" ")),
            ("state", &begin.state),
            ("nonce", &nonce(&csr)),
            ("code_challenge", &begin.code_challenge),
            ("code_challenge_method", "S256"),
        ]);
        Ok(LoginBegun { url: url.into(), issuer: config.issuer_text.clone() })
    }

    async fn finish(&self, finish: LoginFinish) -> Result<LoggedIn> {
        let csr = Csr::parse(&finish.csr).map_err(|e| refused("malformed", e))?;
        redirect(&finish.redirect_uri)?;
        let graphic = finish.code.bytes().all(|b| b.is_ascii_graphic());
        if finish.code.is_empty() || finish.code.len() > CODE_MAX || !graphic {
            return Err(malformed("code"));
        }
        if !plain(&finish.code_verifier, 43, 128) {
            return Err(malformed("code_verifier"));
        }
        let exchanged = self.issuer.exchange(&finish.code, &finish.code_verifier, &finish.redirect_uri).await;
        let token = exchanged.map_err(problem)?;
        let claims = self.issuer.verified(&token).await.map_err(problem)?;
        let (config, nonce, now) = (self.issuer.config(), nonce(&csr), pki::now());
        let person = Expected { config, nonce: &nonce, now }
            .person(&claims)
            .map_err(|why| refused("refused", format!("the issuer's ID token: {why}")))?;
        self.once(nonce, now)?;
        let left = Duration::from_secs(u64::try_from(person.expires.saturating_sub(now)).unwrap_or(0));
        let ttl = if config.within_token { config.ttl.min(left) } else { config.ttl };
        let (issuing, issuer) = (Arc::clone(&self.issuing), config.issuer_text.clone());
        let issued = tokio::task::spawn_blocking(move || issuing.login(&csr, &person, &issuer, ttl)).await;
        issued.map_err(|e| refused("unavailable", e.to_string()))?
    }

    /// A token counts once. The nonce is that of a key, and `guardctl login` makes a new one each time.
    fn once(&self, nonce: String, now: i64) -> Result<()> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|_, until| *until > now);
        if used.len() >= USED_MAX {
            return Err(refused("unavailable", "too many logins at a time; try again in a few minutes"));
        }
        if used.insert(nonce, now.saturating_add(AGE_MAX + 2 * SKEW)).is_some() {
            return Err(refused("used", "this login was used already: run `guardctl login` again"));
        }
        Ok(())
    }
}

/// With a line in the log where it is a refusal.
pub fn reply(answer: Result<Reply>) -> LoginReply {
    let reply = answer.unwrap_or_else(|refused| {
        tracing::warn!(code = refused.code, "a login is refused: {}", refused.message);
        Reply::Refused(refused)
    });
    LoginReply { reply: Some(reply) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_sent_to_the_persons_own_machine_alone() {
        redirect("http://127.0.0.1:40123/callback").expect("accepted");
        for bad in [
            "http://127.0.0.1:0/callback",
            "http://127.0.0.1:99999/callback",
            "http://127.0.0.1:1@evil.example/callback",
            "http://127.0.0.1.evil.example:1/callback",
            "https://127.0.0.1:1/callback",
            "http://127.0.0.1:1/callback?x=1",
            "http://127.0.0.1:1/other",
            "",
        ] {
            assert_eq!(redirect(bad).expect_err(bad).code, "malformed");
        }
    }
}
