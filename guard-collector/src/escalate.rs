//! Requests that nobody decides are shown to another group in time, as the role file says.
//!
//! A request is escalated once: the record is appended under the lock under which it is looked up, and what the log holds is what
//! counts after a restart. Both clocks count, the host's times of the request and how long it has been known here, whichever is due first:
//! a host whose clock is wrong escalates too early rather than never. It must not decide anything, nor move a deadline. Fails: a log that
//! takes no records escalates nothing; the next round tries again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard_log::record::SessionId;
use guard_proto::v1::RequestEscalated;
use guard_proto::v1::record_body::Body;
use tokio::sync::watch;
use tonic::Status;

use crate::access::Access;
use crate::ledger::Ledger;
use crate::own::now_ns;
use crate::reviews::Open;
use crate::ticks::Ticks;

const LOOK: Duration = Duration::from_secs(1);

/// Since when requests are known to this process.
#[derive(Default)]
struct Known(HashMap<String, Instant>);

/// Looks until the collector stops.
pub async fn run(ledger: Arc<Ledger>, access: Arc<Access>, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(LOOK, stopping);
    let mut known = Known::default();
    while ticks.next().await {
        let (ledger, access) = (ledger.clone(), access.clone());
        // A panic in there has been said by the runtime.
        let Ok(after) = tokio::task::spawn_blocking(move || {
            round(&ledger, &access, &mut known);
            known
        })
        .await
        else {
            return;
        };
        known = after;
    }
}

fn round(ledger: &Ledger, access: &Access, known: &mut Known) {
    if !access.roles().is_some_and(|roles| roles.escalates()) {
        return;
    }
    for (id, to) in due(ledger, access, known) {
        let made = ledger.say_if(|state| match state.reviews.get(&id) {
            Some(open) if open.escalated.is_none() && open.state(now_ns()) == "pending" => Ok(record(open, to.clone())),
            _ => Err(Status::not_found("it was decided meanwhile")),
        });
        match made {
            Ok((leaf, _)) => tracing::info!(request = id, to = to.join(", "), leaf, "a request is escalated"),
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => {
                tracing::error!(request = id, error = status.message(), "a request cannot be escalated");
                return;
            }
        }
    }
}

/// Requests whose time has come, with the roles that are asked too.
fn due(ledger: &Ledger, access: &Access, known: &mut Known) -> Vec<(String, Vec<String>)> {
    let (now, wall, size) = (Instant::now(), now_ns(), ledger.store().size());
    let state = ledger.state();
    let pending = state.reviews.pending(size, wall);
    let open: HashMap<&str, &Open> = pending
        .into_iter()
        .filter(|open| open.escalated.is_none())
        .map(|open| (open.request.request_id.as_str(), open))
        .collect();
    known.0.retain(|id, _| open.contains_key(id.as_str()));
    let mut found: Vec<(u64, String, Vec<String>)> = vec![];
    for (id, open) in open {
        let since = *known.0.entry(id.to_owned()).or_insert(now);
        let Some((at, to)) = access.escalation(open) else { continue };
        let wait = Duration::from_nanos(u64::try_from(at.saturating_sub(open.opened)).unwrap_or(0));
        if wall >= at || now.saturating_duration_since(since) >= wait {
            found.push((open.leaf, id.to_owned(), to));
        }
    }
    found.sort_by_key(|(leaf, ..)| *leaf);
    found.into_iter().map(|(_, id, to)| (id, to)).collect()
}

fn record(open: &Open, to: Vec<String>) -> (SessionId, Body) {
    let identity = open.request.identity.as_ref();
    let body = RequestEscalated {
        request_id: open.request.request_id.clone(),
        host: open.host.0.to_vec(),
        session_id: identity.map(|i| i.session_id.clone()).unwrap_or_default(),
        to,
        deadline_unix_ns: open.request.deadline_unix_ns,
    };
    (open.session, Body::RequestEscalated(body))
}
