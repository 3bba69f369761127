//! The connection to the collector: ships the journal ([`stream`]), takes decisions, reports the measured state.
//!
//! It must not give up. Fails: it reconnects for ever; the journal keeps what is not acknowledged.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use guard_log::record::{Record, SessionId};
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecisionsRequest, PoliciesRequest};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::config::CollectorConfig;
use crate::kernel::time;
use crate::node::Node;
use crate::{policies, status};

mod stream;

use stream::{Outlet, Shipper};

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Bytes of the blobs of one batch; a single one may be longer.
const BLOB_BYTES: usize = 8 << 20;
const KEY_MAX: u64 = 64 << 10;

/// Whether the collector can be reached.
pub struct Link(Mutex<LinkState>);

struct LinkState {
    down_since: Option<u64>,
    error: String,
}

impl Default for Link {
    fn default() -> Self {
        Self(Mutex::new(LinkState { down_since: Some(time::boot_ns()), error: "not yet connected".into() }))
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
        let error = match connect(&node.config.collector).await {
            Ok(client) => {
                let since = time::boot_ns();
                let error = converse(node, client).await;
                if time::boot_ns().saturating_sub(since) > 5_000_000_000 {
                    pause = RETRY_MIN;
                }
                error
            }
            Err(error) => error,
        };
        if node.link.down_since().is_none() {
            tracing::warn!(error, "the collector is unreachable");
        }
        node.link.down(error);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Checks that certificate and key can be used, without connecting.
pub fn endpoint(config: &CollectorConfig) -> Result<Endpoint, String> {
    let read = |path: &Path| {
        crate::files::read_bounded(path, KEY_MAX).map_err(|e| format!("collector: {}: {e}", path.display()))
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(&config.ca)?))
        .identity(Identity::from_pem(read(&config.cert)?, read(&config.key)?));
    Endpoint::from_shared(config.address.clone())
        .map_err(|e| format!("collector.address {}: {e}", config.address))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .tls_config(tls)
        .map_err(|e| format!("collector certificates: {}", chain(&e)))
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

async fn connect(config: &CollectorConfig) -> Result<NodeServiceClient<Channel>, String> {
    let channel = endpoint(config)?.connect().await.map_err(|e| chain(&e))?;
    Ok(NodeServiceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_MAX))
}

/// Runs the conversations until one of them ends, and says why.
async fn converse(node: &Arc<Node>, client: NodeServiceClient<Channel>) -> String {
    let shipper = shipper(node);
    tokio::select! {
        error = stream::ship(&shipper, client.clone()) => format!("shipping: {error}"),
        error = decisions(node, client.clone()) => format!("decisions: {error}"),
        error = policies(node, client.clone()) => format!("policies: {error}"),
        error = report(node, client) => format!("reporting: {error}"),
    }
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
        if let Err(status) = client.report(status::report(node)).await {
            return status.message().to_owned();
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
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
