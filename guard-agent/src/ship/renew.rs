//! Renewing this node's certificate while its streams run.
//!
//! At two thirds of the lifetime a new key is made and a certificate for it asked for, over the connection that the old one
//! opened; when it is in place the connection is made anew, and the streams go on from what was acknowledged. It must not give
//! up. Fails: it tries again, less and less often; under a quarter of the lifetime that is a record, once for each certificate.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{CertificateEnding, RenewRequest};
use tonic::transport::Channel;

use crate::certificate::{self, Facts, Files};

/// Longest answer.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait in one piece: the wall clock may be set meanwhile.
const LOOK: i64 = 30;
/// Waits after a failure: a part of the lifetime, doubled up to a larger part.
const PAUSE_PART: i64 = 500;
const PAUSE_MAX_PART: i64 = 20;

/// How renewing goes, over all connections.
#[derive(Default)]
pub struct Renewal(Mutex<State>);

#[derive(Default)]
struct State {
    not_after: i64,
    error: String,
    next_try: i64,
    pause: i64,
    /// Serial of the certificate whose end was recorded.
    told: String,
}

impl Renewal {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate in use.
    pub fn uses(&self, facts: &Facts) {
        self.state().not_after = facts.not_after;
    }

    /// End of the certificate in use, in seconds since 1970, and why it was not renewed.
    pub fn report(&self) -> (i64, String) {
        let state = self.state();
        (state.not_after, state.error.clone())
    }

    fn succeeded(&self, facts: &Facts) {
        let mut state = self.state();
        *state = State { not_after: facts.not_after, told: std::mem::take(&mut state.told), ..State::default() };
    }

    fn failed(&self, facts: &Facts, error: String) {
        let now = certificate::now();
        let (least, most) = ((facts.lifetime() / PAUSE_PART).max(1), (facts.lifetime() / PAUSE_MAX_PART).max(1));
        let mut state = self.state();
        state.pause = (state.pause * 2).clamp(least, most);
        state.next_try = now.saturating_add(state.pause);
        tracing::warn!(error, ends = facts.end, again_in_seconds = state.pause, "the certificate was not renewed");
        state.error = error;
    }

    /// What has to be recorded of a certificate that ends and is not renewed.
    pub fn ending(&self, facts: &Facts, error: &str) -> Option<Body> {
        let mut state = self.state();
        if certificate::now() < facts.tell_at() || state.told == facts.serial {
            return None;
        }
        state.told.clone_from(&facts.serial);
        let error = if state.error.is_empty() { error } else { state.error.as_str() };
        tracing::error!(error, ends = facts.end, "the certificate ends soon and is not renewed");
        let (serial, not_after_unix) = (facts.serial.clone(), facts.not_after);
        Some(Body::CertificateEnding(CertificateEnding { serial, not_after_unix, error: error.to_owned() }))
    }

    /// How long until the next try.
    fn wait(&self, facts: &Facts) -> i64 {
        let at = facts.renew_at().max(self.state().next_try);
        at.saturating_sub(certificate::now()).max(0)
    }
}

/// Returns when another certificate is in place.
pub async fn renewed(
    files: &Files,
    renewal: &Renewal,
    facts: &Facts,
    mut client: NodeServiceClient<Channel>,
    note: impl Fn(Body),
) {
    loop {
        let wait = renewal.wait(facts);
        if wait > 0 {
            tokio::time::sleep(Duration::from_secs(u64::try_from(wait.min(LOOK)).unwrap_or(1))).await;
            continue;
        }
        match attempt(files, &mut client).await {
            Ok(fresh) => {
                tracing::info!(serial = fresh.serial, ends = fresh.end, "the certificate is renewed");
                return renewal.succeeded(&fresh);
            }
            Err(error) => {
                renewal.failed(facts, error);
                if let Some(body) = renewal.ending(facts, "") {
                    note(body);
                }
            }
        }
    }
}

async fn attempt(files: &Files, client: &mut NodeServiceClient<Channel>) -> Result<Facts, String> {
    let _alone = files.lock(false)?;
    let csr = files.request(false)?;
    let answer = tokio::time::timeout(TIMEOUT, client.renew(RenewRequest { csr })).await;
    let answer = answer.map_err(|_| format!("the collector did not answer in {} s", TIMEOUT.as_secs()))?;
    let certificate = answer.map_err(|status| status.message().to_owned())?.into_inner().certificate;
    files.install(&certificate)
}
