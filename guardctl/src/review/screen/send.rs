//! The one place from which the screen's decisions go.
//!
//! It must not decide about anything but the review that it is given. Fails: see `client`.

use guard_proto::v1::{DecideRequest, Review};

use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::Result;

/// What the person chose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Approve, else deny.
    pub approve: bool,
    /// Why.
    pub reason: String,
    /// `once` or `root`.
    pub scope: String,
    /// With scope root: what descendants may be.
    pub categories: Vec<String>,
    /// How many execs it covers.
    pub max_execs: u32,
}

/// Sends the decision for a request as it was shown; the leaf of its record.
pub async fn send(client: &mut Client, _: &Config, review: &Review, choice: Choice) -> Result<u64> {
    let request = review.request.clone().unwrap_or_default();
    let decide = DecideRequest {
        request_id: request.request_id,
        digest: request.digest,
        approve: choice.approve,
        reason: choice.reason,
        scope: choice.scope,
        categories: choice.categories,
        max_execs: choice.max_execs,
    };
    Ok(client.decide(decide).await.map_err(client::refused)?.into_inner().leaf)
}
