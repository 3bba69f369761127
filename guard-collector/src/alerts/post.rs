//! One message to one receiver: `POST` over HTTPS, signed anew on each attempt.
//!
//! It must not follow redirects, use a proxy of the environment, or read more than a little of an answer. Fails: what came instead,
//! in words, without the address.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Certificate, Client, Response, StatusCode};

use super::config::Webhook;
use super::queue::Message;
use super::secret::Secrets;
use super::where_to::{Checked, Reach};
use crate::exit::in_words;
use crate::own::now_ns;

const CONNECT: Duration = Duration::from_secs(5);
/// The whole attempt, as the specification advises.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest answer that is read.
const ANSWER_MAX: usize = 4096;
/// Bytes of an answer that an error shows.
const SHOWN: usize = 200;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// 2xx: it has it. The status, and how long it took.
    Taken(u16, Duration),
    /// 410: it wants no more.
    Gone,
    /// Not now.
    Failed(String),
}

/// Sends to one receiver.
pub struct Poster {
    client: Client,
    webhook: Webhook,
    secrets: Secrets,
}

impl Poster {
    /// With secrets and authorities as they are in their files now.
    pub fn new(webhook: &Webhook) -> Result<Self, String> {
        let secrets = webhook.secrets()?;
        let at = |e: &dyn std::fmt::Display| format!("webhook {:?}: {e}", webhook.name);
        let mut client = Client::builder()
            .redirect(Redirects::none())
            .no_proxy()
            .https_only(webhook.reach == Reach::Others)
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .dns_resolver(Arc::new(Checked(webhook.reach)))
            .user_agent(concat!("guard-collector/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = webhook.authorities()? {
            let found =
                Certificate::from_pem_bundle(&pem).map_err(|e| at(&format_args!("ca_file: {}", in_words(&e))))?;
            if found.is_empty() {
                return Err(at(&"ca_file: it holds no certificate"));
            }
            client = client.tls_certs_only(found);
        }
        Ok(Self { client: client.build().map_err(|e| at(&in_words(&e)))?, webhook: webhook.clone(), secrets })
    }

    /// Sends.
    pub async fn send(&self, message: &Message) -> Answer {
        self.once(message).await.unwrap_or_else(Answer::Failed)
    }

    async fn once(&self, message: &Message) -> Result<Answer, String> {
        let started = Instant::now();
        let timestamp = now_ns() / 1_000_000_000;
        let signed = self.secrets.sign(&message.id, timestamp, message.body.as_bytes())?;
        // A header that is marked so is in no debug output.
        let mut signature = HeaderValue::try_from(signed).map_err(|e| e.to_string())?;
        signature.set_sensitive(true);
        let request = self
            .client
            .post(self.webhook.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(message.body.clone());
        // The rest of the address may be a secret.
        let answer = request.send().await.map_err(|e| in_words(&e.without_url()))?;
        let status = answer.status();
        match status {
            status if status.is_success() => Ok(Answer::Taken(status.as_u16(), started.elapsed())),
            StatusCode::GONE => Ok(Answer::Gone),
            status if status.is_redirection() => {
                let to = answer.headers().get(LOCATION).is_some();
                Err(format!("it answers {status}{}", if to { "; redirects are not followed" } else { "" }))
            }
            status => {
                let text = read(answer).await;
                Err(format!("it answers {status}: {}", text.trim()).trim_end_matches([' ', ':']).to_owned())
            }
        }
    }
}

/// The beginning of an answer, for people.
async fn read(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(piece)) = answer.chunk().await {
        bytes.extend_from_slice(&piece);
        if bytes.len() > ANSWER_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).chars().take(SHOWN).collect::<String>();
    text.replace(|c: char| c.is_control(), " ")
}
