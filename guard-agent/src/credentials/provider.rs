//! The calls to OpenBao or Vault that credentials need, over TLS with one named authority.
//!
//! Answers are bounded in size and time, redirects are not followed, no proxy is asked. It must not log or keep a secret: what it
//! reads is overwritten when it is dropped, as far as that is in its hands (the HTTP client and the JSON reader have buffers of
//! their own, which live for the call). Fails: the provider is away, or says no and why.

use std::io::Read;
use std::time::Duration;

use reqwest::blocking::{Client, RequestBuilder};
use reqwest::header::HeaderValue;
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::config::CredentialsConfig;
use super::fields::{Fields, Text};

const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const ANSWER_MAX: usize = 256 << 10;
/// Longest secret id and longest certificate file.
const FILE_MAX: u64 = 64 << 10;
/// Characters of the provider's words that are passed on.
const SHOWN: usize = 200;

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderError {
    /// It does not answer, or answers something else than it should: later it may.
    Away(String),
    /// It says no.
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        text: String,
    },
    /// Something here is missing or wrong.
    Here(String),
}

impl std::fmt::Display for ProviderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Away(text) | Self::Here(text) => f.write_str(text),
            Self::Refused { status, text } => write!(f, "the provider refuses it ({status}): {text}"),
        }
    }
}

impl ProviderError {
    /// Whether the lease or token that was to be ended is none any more.
    fn means_gone(&self) -> bool {
        let Self::Refused { status, text } = self else { return false };
        let said = ["invalid accessor", "lease not found", "invalid lease", "certificate has already been revoked"];
        *status == 404 || said.iter().any(|words| text.to_lowercase().contains(words))
    }
}

type Result<T> = std::result::Result<T, ProviderError>;

/// A login: whatever is made with its token ends with it.
pub struct Login {
    /// The token.
    pub token: Text,
    /// Names the token, and cannot be used in its place.
    pub accessor: String,
    /// How long it lives unless it is renewed.
    pub ttl: Duration,
}

/// What the provider made.
pub struct Made {
    /// Names it for renewal and revocation; empty where there is nothing to renew.
    pub lease: String,
    /// How long it lives unless it is renewed; zero: it has no end.
    pub ttl: Duration,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// The secret itself.
    pub fields: Fields,
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    data: Option<T>,
    auth: Option<Auth>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Text,
    accessor: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
}

#[derive(Deserialize)]
struct Stored {
    data: Option<Fields>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

/// The provider.
pub struct Provider {
    client: Client,
    config: CredentialsConfig,
}

impl Provider {
    /// Reads the authority's certificate; asks nobody anything.
    pub fn new(config: &CredentialsConfig) -> Result<Self> {
        let wrong =
            |e: &dyn std::fmt::Display| ProviderError::Here(format!("credentials.ca {}: {e}", config.ca.display()));
        let pem = crate::files::read_bounded(&config.ca, FILE_MAX).map_err(|e| wrong(&e))?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(&e))?;
        if authorities.is_empty() {
            return Err(wrong(&"no certificate in it"));
        }
        let client = Client::builder()
            .tls_certs_only(authorities)
            .https_only(true)
            .redirect(Redirects::none())
            .no_proxy()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .user_agent(concat!("guard-agent/", env!("CARGO_PKG_VERSION")));
        let client = client.build().map_err(|e| ProviderError::Here(in_words(&e)))?;
        Ok(Self { client, config: config.clone() })
    }

    /// Logs in with the daemon's AppRole. The secret id is read anew, so that it can be replaced at any time.
    pub fn login(&self) -> Result<Login> {
        let file = &self.config.secret_id_file;
        let wrong = |e: &dyn std::fmt::Display| ProviderError::Here(format!("secret_id_file {}: {e}", file.display()));
        let bytes = Zeroizing::new(crate::files::read_bounded(file, FILE_MAX).map_err(|e| wrong(&e))?);
        let secret_id = std::str::from_utf8(&bytes).map_err(|e| wrong(&e))?.trim();
        let body = AppRole { role_id: &self.config.role_id, secret_id };
        let path = format!("auth/{}/login", self.config.auth_mount);
        let answer: Answer<Fields> = self.post(None, &path, &body)?;
        let auth = answer.auth.ok_or_else(|| odd(&path, "no token in its answer"))?;
        Ok(Login {
            token: auth.client_token,
            accessor: accessor(&path, auth.accessor)?,
            ttl: Duration::from_secs(auth.lease_duration),
        })
    }

    /// Reads a stored value.
    pub fn stored(&self, token: &Text, path: &str) -> Result<Made> {
        let answer: Answer<Stored> = self.ask(token_of(self.client.get(self.url(path)), token)?, path)?;
        let fields =
            answer.data.and_then(|d| d.data).ok_or_else(|| odd(path, "no value; is it a KV version 2 path?"))?;
        Ok(Made { lease: String::new(), ttl: Duration::ZERO, renewable: false, fields })
    }

    /// Has a database user made.
    pub fn database(&self, token: &Text, path: &str) -> Result<Made> {
        let answer: Answer<Fields> = self.ask(token_of(self.client.get(self.url(path)), token)?, path)?;
        let fields = answer.data.ok_or_else(|| odd(path, "no credentials in its answer"))?;
        if answer.lease_id.is_empty() {
            return Err(odd(path, "no lease: what has none cannot be revoked"));
        }
        let ttl = Duration::from_secs(answer.lease_duration);
        Ok(Made { lease: answer.lease_id, ttl, renewable: answer.renewable, fields })
    }

    /// Has a certificate made. Its lease is the serial number.
    pub fn certificate(&self, token: &Text, path: &str, body: &impl Serialize, ttl: Duration) -> Result<Made> {
        let answer: Answer<Fields> = self.post(Some(token), path, body)?;
        let fields = answer.data.ok_or_else(|| odd(path, "no certificate in its answer"))?;
        let lease = fields.get("serial_number").map(|s| s.as_str().to_owned());
        let lease = lease.ok_or_else(|| odd(path, "no serial number in its answer"))?;
        Ok(Made { lease, ttl, renewable: false, fields })
    }

    /// Has a token made. Its lease is the accessor.
    pub fn token(&self, token: &Text, path: &str, body: &impl Serialize) -> Result<Made> {
        let answer: Answer<Fields> = self.post(Some(token), path, body)?;
        let auth = answer.auth.ok_or_else(|| odd(path, "no token in its answer"))?;
        let ttl = Duration::from_secs(auth.lease_duration);
        let fields = Fields(vec![("token".to_owned(), auth.client_token)]);
        Ok(Made { lease: accessor(path, auth.accessor)?, ttl, renewable: auth.renewable, fields })
    }

    /// Lets a lease live for so long from now on, as far as the provider does. Gives how long.
    pub fn renew_lease(&self, token: &Text, lease: &str, ttl: Duration) -> Result<Duration> {
        let body = json!({"lease_id": lease, "increment": ttl.as_secs()});
        let answer: Answer<Fields> = self.post(Some(token), "sys/leases/renew", &body)?;
        Ok(Duration::from_secs(answer.lease_duration))
    }

    /// As [`Self::renew_lease`], for a token.
    pub fn renew_accessor(&self, token: &Text, accessor: &str, ttl: Duration) -> Result<Duration> {
        let body = json!({"accessor": accessor, "increment": ttl.as_secs()});
        let answer: Answer<Fields> = self.post(Some(token), "auth/token/renew-accessor", &body)?;
        Ok(Duration::from_secs(answer.auth.map_or(answer.lease_duration, |auth| auth.lease_duration)))
    }

    /// Ends a lease, and answers when what it was for is gone. One that is none any more has ended.
    pub fn revoke_lease(&self, token: &Text, lease: &str) -> Result<()> {
        self.end(token, "sys/leases/revoke", &json!({"lease_id": lease, "sync": true}))
    }

    /// Ends a token with all that was made with it.
    pub fn revoke_accessor(&self, token: &Text, accessor: &str) -> Result<()> {
        self.end(token, "auth/token/revoke-accessor", &json!({"accessor": accessor}))
    }

    /// Revokes a certificate.
    pub fn revoke_certificate(&self, token: &Text, path: &str, serial: &str) -> Result<()> {
        let mount = path.split("/issue/").next().unwrap_or_default();
        self.end(token, &format!("{mount}/revoke"), &json!({"serial_number": serial}))
    }

    fn end(&self, token: &Text, path: &str, body: &impl Serialize) -> Result<()> {
        match self.answer(token_of(self.client.post(self.url(path)).json(body), token)?, path) {
            Err(error) if error.means_gone() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn post<T: DeserializeOwned>(&self, token: Option<&Text>, path: &str, body: &impl Serialize) -> Result<Answer<T>> {
        let request = self.client.post(self.url(path)).json(body);
        match token {
            Some(token) => self.ask(token_of(request, token)?, path),
            None => self.ask(request, path),
        }
    }

    fn ask<T: DeserializeOwned>(&self, request: RequestBuilder, path: &str) -> Result<Answer<T>> {
        let bytes = self.answer(request, path)?;
        // The reader's own words might show a part of what it read.
        serde_json::from_slice(&bytes)
            .map_err(|e| odd(path, &format!("its answer cannot be read (column {})", e.column())))
    }

    fn answer(&self, request: RequestBuilder, path: &str) -> Result<Zeroizing<Vec<u8>>> {
        let away = |e: &dyn std::error::Error| {
            ProviderError::Away(format!("the provider {} does not answer: {}", self.config.address, in_words(e)))
        };
        let answer = request.send().map_err(|e| away(&e))?;
        let status = answer.status();
        // As large as it can become at once: growing would leave copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(ANSWER_MAX + 64));
        answer.take(ANSWER_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| away(&e))?;
        if bytes.len() > ANSWER_MAX {
            return Err(odd(path, &format!("its answer is longer than {ANSWER_MAX} bytes")));
        }
        if status.is_success() {
            return Ok(bytes);
        }
        let errors = serde_json::from_slice::<Errors>(&bytes).map(|e| e.errors.join("; ")).unwrap_or_default();
        let text = format!("{path}: {}", shown(&errors));
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS || status.is_redirection() {
            return Err(ProviderError::Away(format!("the provider {} says {status}: {text}", self.config.address)));
        }
        Err(ProviderError::Refused { status: status.as_u16(), text })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/v1/{path}", self.config.address.trim_end_matches('/'))
    }
}

fn token_of(request: RequestBuilder, token: &Text) -> Result<RequestBuilder> {
    let mut value = HeaderValue::from_str(token.as_str())
        .map_err(|_| ProviderError::Away("the provider's token has odd characters".into()))?;
    value.set_sensitive(true);
    Ok(request.header("X-Vault-Token", value))
}

/// An accessor names the token in files: it must be no token, nor anything else.
fn accessor(path: &str, text: String) -> Result<String> {
    let good =
        !text.is_empty() && text.len() <= 200 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if good { Ok(text) } else { Err(odd(path, "no accessor in its answer: what cannot be named cannot be revoked")) }
}

fn odd(path: &str, why: &str) -> ProviderError {
    ProviderError::Away(format!("{path}: {why}"))
}

fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect()
}

/// An error with its causes, without the address.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    shown(&words.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_counts_as_ended_and_nothing_else() {
        let refused = |status, text: &str| ProviderError::Refused { status, text: text.into() }.means_gone();
        assert!(refused(400, "auth/token/revoke-accessor: 1 error occurred: invalid accessor"));
        assert!(refused(404, ""));
        assert!(!refused(403, "permission denied") && !refused(400, "failed to revoke entry"));
        assert!(!ProviderError::Away("invalid accessor".into()).means_gone());
    }

    #[test]
    fn answers_are_read_into_types() {
        let text = r#"{"lease_id":"database/creds/ro/x","lease_duration":60,"renewable":true,
            "data":{"username":"u","password":"p\n","port":5432,"chain":["a"],"none":null},"auth":null}"#;
        let answer: Answer<Fields> = serde_json::from_str(text).unwrap();
        let fields = answer.data.unwrap();
        let names: Vec<_> = fields.0.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(names, [("username", "u"), ("password", "p\n"), ("port", "5432")]);
        assert!(serde_json::from_str::<Answer<Fields>>("{\"data\": 3}").is_err());
        assert!(accessor("p", "hmac/..".into()).is_err() && accessor("p", String::new()).is_err());
    }
}
