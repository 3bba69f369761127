//! The issuer over HTTPS: what it says of itself, its keys, and the exchange of a code for an ID token.
//!
//! Its addresses come from its own document (OpenID Connect Discovery), which must name exactly the configured issuer; each is held to
//! the same rules as the configured one. Answers are bounded in size and time, redirects are not followed. What it says is kept for
//! ten minutes, keys are asked for again when a token names one that is not there, a failure is kept for a moment, so that many
//! who ask do not become many questions. It must not log codes, secrets or tokens. Fails: a text that says what came instead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::config::OidcConfig;
use super::jws::{Doubt, Keys, Token, shown};
use crate::alerts::where_to::{self, Checked};
use crate::exit::in_words;

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(4);
/// Longest answer that is read.
const ANSWER_MAX: usize = 512 << 10;
/// What was read of the issuer is read again after so long.
const KEPT: Duration = Duration::from_secs(600);
/// Keys are not asked for again sooner, whatever tokens say.
const KEYS_AGAIN: Duration = Duration::from_secs(5);
/// A failure is the answer to all who ask in this time.
const FAILED: Duration = Duration::from_secs(2);

/// What went wrong with a login.
#[derive(Debug, PartialEq, Eq)]
pub enum Problem {
    /// The issuer does not answer, or not as it should: later it may.
    Away(String),
    /// It says no, or what it gave is not good.
    Refused(String),
}

/// Where the issuer is asked what.
#[derive(Debug)]
pub struct Places {
    /// Where people log in.
    pub authorization: Url,
    token: Url,
    keys: Url,
    /// The secret is sent in the body, not as HTTP basic authentication.
    secret_in_body: bool,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    authorization_endpoint: String,
    token_endpoint: String,
    jwks_uri: String,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Tokens {
    id_token: Option<String>,
}

/// Something with the moment at which it was read.
struct Read<T>(Instant, Arc<T>);

#[derive(Default)]
struct Known {
    places: Option<Read<Places>>,
    keys: Option<Read<Keys>>,
    failed: Option<(Instant, String)>,
}

/// The issuer.
pub struct Issuer {
    config: OidcConfig,
    client: Client,
    known: Mutex<Known>,
}

fn fresh<T>(read: Option<&Read<T>>, at_most: Duration) -> Option<Arc<T>> {
    read.filter(|Read(at, _)| at.elapsed() < at_most).map(|Read(_, what)| Arc::clone(what))
}

/// A form's content.
fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:").ok();
    if let Some(url) = &mut url {
        url.query_pairs_mut().extend_pairs(fields);
    }
    url.as_ref().and_then(Url::query).unwrap_or_default().to_owned()
}

// === impl Known ===

impl Known {
    /// The failure that was met a moment ago, if so.
    fn lately(&self) -> Result<(), Problem> {
        match &self.failed {
            Some((at, why)) if at.elapsed() < FAILED => Err(Problem::Away(why.clone())),
            _ => Ok(()),
        }
    }

    /// Keeps a failure.
    fn note<T>(&mut self, done: Result<T, String>) -> Result<T, Problem> {
        self.failed = done.as_ref().err().map(|why| (Instant::now(), why.clone()));
        done.map_err(Problem::Away)
    }
}

// === impl Issuer ===

impl Issuer {
    /// With the authorities as they are in their file now; asks nobody anything.
    pub fn new(config: OidcConfig) -> Result<Self, String> {
        let mut client = Client::builder()
            .redirect(Redirects::none())
            .no_proxy()
            .https_only(config.issuer.scheme() == "https")
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .dns_resolver(Arc::new(Checked(config.reach)))
            .user_agent(concat!("guard-collector/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = config.authorities()? {
            let found = Certificate::from_pem_bundle(&pem).map_err(|e| format!("oidc.ca_file: {}", in_words(&e)))?;
            if found.is_empty() {
                return Err("oidc.ca_file: it holds no certificate".to_owned());
            }
            client = client.tls_certs_only(found);
        }
        config.client_secret()?;
        let client = client.build().map_err(|e| format!("oidc: {}", in_words(&e)))?;
        Ok(Self { config, client, known: Mutex::default() })
    }

    /// The configuration.
    pub fn config(&self) -> &OidcConfig {
        &self.config
    }

    /// Where it is asked what.
    pub async fn places(&self) -> Result<Arc<Places>, Problem> {
        let mut known = self.known.lock().await;
        self.places_of(&mut known).await
    }

    async fn places_of(&self, known: &mut Known) -> Result<Arc<Places>, Problem> {
        if let Some(places) = fresh(known.places.as_ref(), KEPT) {
            return Ok(places);
        }
        known.lately()?;
        let places = Arc::new(known.note(self.discover().await)?);
        known.places = Some(Read(Instant::now(), Arc::clone(&places)));
        Ok(places)
    }

    async fn discover(&self) -> Result<Places, String> {
        let url = format!("{}/.well-known/openid-configuration", self.config.issuer_text.trim_end_matches('/'));
        let document: Document = self.json(self.client.get(url), "its configuration").await?;
        if document.issuer != self.config.issuer_text {
            let said = shown(&document.issuer);
            return Err(format!("the issuer {} calls itself {said:?}; oidc.issuer has to be the same", self.shown()));
        }
        if document.code_challenge_methods_supported.is_some_and(|methods| !methods.iter().any(|m| m == "S256")) {
            return Err(format!("the issuer {} does not support PKCE (S256)", self.shown()));
        }
        let place = |what: &str, text: &str| {
            let wrong = |why: &str| format!("the issuer {}: its {what}: {why}", self.shown());
            let (url, reach) = where_to::parse(text).map_err(|e| wrong(&e))?;
            if reach != self.config.reach {
                return Err(wrong("it leads to another kind of place than the issuer itself"));
            }
            Ok(url)
        };
        // Where nothing is said, it is HTTP basic authentication.
        let methods = document.token_endpoint_auth_methods_supported;
        Ok(Places {
            authorization: place("authorization_endpoint", &document.authorization_endpoint)?,
            token: place("token_endpoint", &document.token_endpoint)?,
            keys: place("jwks_uri", &document.jwks_uri)?,
            secret_in_body: methods.is_some_and(|all| !all.iter().any(|m| m == "client_secret_basic")),
        })
    }

    /// The keys; with `again` they are asked for anew, if that was not just done.
    async fn keys(&self, again: bool) -> Result<Arc<Keys>, Problem> {
        let mut known = self.known.lock().await;
        let at_most = if again { KEYS_AGAIN } else { KEPT };
        if let Some(keys) = fresh(known.keys.as_ref(), at_most) {
            return Ok(keys);
        }
        let places = self.places_of(&mut known).await?;
        known.lately()?;
        let asked = self.answer(self.client.get(places.keys.clone()), "its keys").await;
        let read = asked.and_then(|(_, bytes)| {
            Keys::parse(&bytes).map_err(|why| format!("the issuer {}: its keys: {why}", self.shown()))
        });
        let keys = Arc::new(known.note(read)?);
        known.keys = Some(Read(Instant::now(), Arc::clone(&keys)));
        Ok(keys)
    }

    /// The ID token for a code. Its signature is not verified yet.
    pub async fn exchange(&self, code: &str, verifier: &str, redirect: &str) -> Result<Zeroizing<String>, Problem> {
        let places = self.places().await?;
        let id = self.config.client_id.as_str();
        let secret = self.config.client_secret().map_err(Problem::Away)?;
        let mut fields = vec![("grant_type", "authorization_code"), ("code", code), ("redirect_uri", redirect)];
        fields.push(("code_verifier", verifier));
        let mut request = self.client.post(places.token.clone());
        match secret.as_deref() {
            Some(secret) if !places.secret_in_body => request = request.header(AUTHORIZATION, basic(id, secret)?),
            Some(secret) => fields.extend([("client_id", id), ("client_secret", secret)]),
            None => fields.push(("client_id", id)),
        }
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form(&fields));
        let (status, bytes) = self.answer(request, "its token endpoint").await.map_err(Problem::Away)?;
        if !status.is_success() {
            return Err(self.refusal(status, &bytes));
        }
        let odd = || Problem::Refused(format!("the issuer {} gave no ID token for the code", self.shown()));
        let tokens: Tokens = serde_json::from_slice(&bytes).map_err(|_| odd())?;
        tokens.id_token.map(Zeroizing::new).ok_or_else(odd)
    }

    fn refusal(&self, status: StatusCode, bytes: &[u8]) -> Problem {
        let said: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let word = |name: &str| said.get(name).and_then(Value::as_str).map(shown).unwrap_or_default();
        let text = format!("{} {}", word("error"), word("error_description"));
        let text = format!("the issuer {} answers {}: {}", self.shown(), status.as_u16(), text.trim());
        let later = status.is_server_error() || status.is_redirection() || status == StatusCode::TOO_MANY_REQUESTS;
        if later { Problem::Away(text) } else { Problem::Refused(text) }
    }

    /// What a token says, if the issuer has signed it.
    pub async fn verified(&self, token: &str) -> Result<Value, Problem> {
        let wrong = |why: String| Problem::Refused(format!("the issuer's ID token: {why}"));
        let token = Token::parse(token).map_err(wrong)?;
        match token.verified(&*self.keys(false).await?) {
            Err(Doubt::UnknownKey(_)) => {}
            Err(Doubt::Wrong(why)) => return Err(wrong(why)),
            Ok(claims) => return Ok(claims),
        }
        token.verified(&*self.keys(true).await?).map_err(|doubt| match doubt {
            Doubt::UnknownKey(why) | Doubt::Wrong(why) => wrong(why),
        })
    }

    fn shown(&self) -> String {
        where_to::shown(&self.config.issuer)
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, request: RequestBuilder, what: &str) -> Result<T, String> {
        let (status, bytes) = self.answer(request, what).await?;
        let at = format!("the issuer {}: {what}", self.shown());
        if !status.is_success() {
            return Err(format!("{at}: it answers {}", status.as_u16()));
        }
        serde_json::from_slice(&bytes).map_err(|e| format!("{at}: not what was expected (column {})", e.column()))
    }

    async fn answer(&self, request: RequestBuilder, what: &str) -> Result<(StatusCode, Zeroizing<Vec<u8>>), String> {
        let at = format!("the issuer {}: {what}", self.shown());
        let away = |e: reqwest::Error| format!("{at}: no answer: {}", in_words(&e.without_url()));
        let mut answer = request.send().await.map_err(away)?;
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(piece) = answer.chunk().await.map_err(away)? {
            if bytes.len().saturating_add(piece.len()) > ANSWER_MAX {
                return Err(format!("{at}: its answer is longer than {ANSWER_MAX} bytes"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((answer.status(), bytes))
    }
}

/// HTTP basic authentication; both parts are form-encoded first (RFC 6749, 2.3.1).
fn basic(id: &str, secret: &str) -> Result<HeaderValue, Problem> {
    let encoded = |text: &str| form(&[("", text)]).trim_start_matches('=').to_owned();
    let both = Zeroizing::new(format!("{}:{}", encoded(id), encoded(secret)));
    let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(both.as_bytes())))
        .map_err(|e| Problem::Away(format!("oidc.client_secret_file: {e}")))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_and_secrets_are_encoded_once() {
        assert_eq!(form(&[("code", "a b&c=+/é"), ("x", "")]), "code=a+b%26c%3D%2B%2F%C3%A9&x=");
        let value = basic("guard", "=p:w").expect("a header");
        assert_eq!(value.to_str().expect("text"), format!("Basic {}", BASE64_STANDARD.encode("guard:%3Dp%3Aw")));
    }
}
