//! The connection to the collector: ships the journal ([`stream`]), takes decisions, reports the measured state, renews the
//! certificate ([`renew`]).
//!
//! It must not give up. Fails: it reconnects for ever; the journal keeps what is not acknowledged.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use guard_log::record::{Record, SessionId};
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecisionsRequest, PoliciesRequest};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::certificate::{self, Facts};
use crate::config::CollectorConfig;
use crate::kernel::time;
use crate::node::Node;
use crate::{policies, status};

mod renew;
mod stream;

use renew::Renewal;
use stream::{Outlet, Shipper};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the blobs of one batch; a single one may be longer.
const BLOB_BYTES: usize = 8 << 20;
const KEY_MAX: u64 = 64 << 10;
/// What somebody has to do for a node whose certificate counts no more.
const ENROL_AGAIN: &str =
    "enrol again: `guard-collector node token NAME` at the collector, then `guard-agent enroll --again` here";

/// Whether the collector can be reached, and how the certificate for it stands.
pub struct Link(Mutex<LinkState>, Renewal);

struct LinkState {
    down_since: Option<u64>,
    error: String,
}

impl Default for Link {
    fn default() -> Self {
        let state = LinkState { down_since: Some(time::boot_ns()), error: "not yet connected".into() };
        Self(Mutex::new(state), Renewal::default())
    }
}

impl Link {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) {
        let mut state = self.state();
        state.down_since = None;
        state.error.clear();
    }

    fn down(&self, error: String) {
        let mut state = self.state();
        state.down_since.get_or_insert_with(time::boot_ns);
        state.error = error;
    }

    /// Since when (boot time) it cannot be reached; nothing while it can.
    pub fn down_since(&self) -> Option<u64> {
        self.state().down_since
    }

    /// End of the certificate in use, in seconds since 1970 (0: none yet), and why it was not renewed.
    pub fn certificate(&self) -> (i64, String) {
        self.1.report()
    }

    /// Why not.
    pub fn error(&self) -> String {
        self.state().error.clone()
    }
}

/// Starts the thread that keeps the connection.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = Arc::clone(node);
    thread::Builder::new().name("ship".into()).spawn(move || runtime.block_on(keep(&node)))?;
    Ok(())
}

async fn keep(node: &Arc<Node>) {
    let mut pause = RETRY_MIN;
    loop {
        let error = match connect(node).await {
            Ok((client, facts)) => {
                let since = time::boot_ns();
                let end = converse(node, client, &facts).await;
                if time::boot_ns().saturating_sub(since) > 5_000_000_000 {
                    pause = RETRY_MIN;
                }
                match end {
                    End::Renewed => continue,
                    End::Failed(error) => error,
                }
            }
            Err(error) => error,
        };
        tell_of_its_end(node, &error);
        if node.link.down_since().is_none() {
            tracing::warn!(error, "the collector is unreachable");
        }
        node.link.down(error);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// A certificate that ends and is not renewed is recorded, also while nothing can be reached.
fn tell_of_its_end(node: &Node, error: &str) {
    if let Ok(pair) = node.config.collector.files().read()
        && let Some(body) = node.link.1.ending(&pair.facts, error)
    {
        node.note(SessionId::NONE, body);
    }
}

/// Checks that certificate and key can be used, without connecting.
pub fn endpoint(config: &CollectorConfig) -> Result<(Endpoint, Facts), String> {
    let ca = crate::files::read_bounded(&config.ca, KEY_MAX).map_err(|e| {
        format!("collector.ca: {}: {e}; a host without it enrols: guard-agent enroll", config.ca.display())
    })?;
    let pair = config.files().read().map_err(|e| {
        format!("collector.cert and collector.key: {e}; a host without them enrols: guard-agent enroll")
    })?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .identity(Identity::from_pem(pair.cert, pair.key));
    let endpoint = Endpoint::from_shared(config.address.clone())
        .map_err(|e| format!("collector.address {}: {e}", config.address))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tls_config(tls)
        .map_err(|e| format!("collector certificates: {}", chain(&e)))?;
    Ok((endpoint, pair.facts))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

async fn connect(node: &Node) -> Result<(NodeServiceClient<Channel>, Facts), String> {
    let (endpoint, facts) = endpoint(&node.config.collector)?;
    node.link.1.uses(&facts);
    if facts.not_after <= certificate::now() {
        return Err(format!("this node's certificate ended at {}: {ENROL_AGAIN}", facts.end));
    }
    let channel = endpoint.connect().await.map_err(|e| chain(&e))?;
    let client = NodeServiceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_MAX);
    Ok((client, facts))
}

/// Why the conversations ended.
enum End {
    /// There is another certificate: the connection is made anew with it.
    Renewed,
    Failed(String),
}

/// Runs the conversations until one of them ends, and says why.
async fn converse(node: &Arc<Node>, client: NodeServiceClient<Channel>, facts: &Facts) -> End {
    let shipper = shipper(node);
    tokio::select! {
        error = stream::ship(&shipper, client.clone()) => End::Failed(format!("shipping: {error}")),
        error = decisions(node, client.clone()) => End::Failed(format!("decisions: {error}")),
        error = policies(node, client.clone()) => End::Failed(format!("policies: {error}")),
        error = report(node, client.clone()) => End::Failed(format!("reporting: {error}")),
        () = renew(node, client, facts) => End::Renewed,
    }
}

async fn renew(node: &Arc<Node>, client: NodeServiceClient<Channel>, facts: &Facts) {
    let note = |body| {
        node.note(SessionId::NONE, body);
    };
    renew::renewed(&node.config.collector.files(), &node.link.1, facts, client, note).await;
}

async fn decisions(node: &Arc<Node>, mut client: NodeServiceClient<Channel>) -> String {
    let request = DecisionsRequest { host: node.host.0.to_vec() };
    let mut stream = match client.decisions(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        match stream.message().await {
            Ok(Some(decision)) => node.approvals.decide(node, &decision),
            Ok(None) => return "the collector ended the stream".into(),
            Err(status) => return status.message().to_owned(),
        }
    }
}

/// Takes signed bundles, where the host shall. An older collector has none: that is no reason to leave it.
async fn policies(node: &Arc<Node>, mut client: NodeServiceClient<Channel>) -> String {
    if !node.config.policy.from_collector {
        return std::future::pending().await;
    }
    let request = PoliciesRequest { host: node.host.0.to_vec(), serial: node.policies.serial() };
    let mut stream = match client.policies(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if status.code() == tonic::Code::Unimplemented => {
            tracing::warn!("policy.from_collector is set, but this collector hands on no policy");
            return std::future::pending().await;
        }
        Err(status) => return status.message().to_owned(),
    };
    loop {
        let bundle = match stream.message().await {
            Ok(Some(bundle)) => bundle,
            Ok(None) => return "the collector ended the stream".into(),
            Err(status) => return status.message().to_owned(),
        };
        let node = Arc::clone(node);
        // Loading takes its time, and waits for the disk.
        if let Err(error) = tokio::task::spawn_blocking(move || policies::arrived(&node, bundle)).await {
            return format!("taking a policy bundle: {error}");
        }
    }
}

async fn report(node: &Arc<Node>, mut client: NodeServiceClient<Channel>) -> String {
    loop {
        match client.report(status::report(node)).await {
            Ok(reply) => confirm(node, reply.into_inner().bundle_serial).await,
            Err(status) => return status.message().to_owned(),
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

/// Notes that the host has the collector's newest bundle, if it does. An older collector does not say.
async fn confirm(node: &Arc<Node>, newest: Option<u64>) {
    let serial = node.policies.serial();
    if newest != Some(serial) || serial == 0 {
        return;
    }
    let node = Arc::clone(node);
    // Keeping it waits for the disk.
    let _ = tokio::task::spawn_blocking(move || node.fresh.confirmed(serial)).await;
}

fn shipper(node: &Node) -> Shipper<'_> {
    let (host, host_name) = (node.host, node.config.node.name.as_str());
    Shipper { host, host_name, journal: &node.journal, seen: &node.seen, outlet: node }
}

impl Outlet for Node {
    fn note(&self, body: Body) {
        Node::note(self, SessionId::NONE, body);
    }

    fn with_blobs(&self, batch: Vec<Record>) -> (Vec<Record>, Vec<Vec<u8>>) {
        with_blobs(self, batch)
    }

    fn acknowledged(&self, next_seq: u64, first_seq: u64) {
        self.blobs.acknowledged(next_seq);
        // Records go with their segment; of their blobs nothing stays where nothing shall be kept for a successor of the log.
        let keeps = self.config.journal.keep_hours > 0;
        self.blobs.gone_below(if keeps { first_seq } else { next_seq });
    }

    fn up(&self) {
        self.link.up();
    }
}

/// The records as far as their blobs fit into one message.
fn with_blobs(node: &Node, mut batch: Vec<Record>) -> (Vec<Record>, Vec<Vec<u8>>) {
    let (mut blobs, mut bytes, mut records) = (Vec::new(), 0, 0);
    for record in &batch {
        let more = node.blobs.of(record).unwrap_or_else(|error| {
            tracing::error!(%error, "a record is shipped without its blob");
            node.note_gap(record.header().session, "blobs", &error.to_string(), 1, 1);
            None
        });
        bytes += more.as_ref().map_or(0, Vec::len);
        if bytes > BLOB_BYTES && records > 0 {
            break;
        }
        blobs.extend(more);
        records += 1;
    }
    batch.truncate(records);
    (batch, blobs)
}
