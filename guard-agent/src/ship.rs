//! The connection to the collector: ships the journal in order, resumes where the collector says, takes decisions,
//! reports the measured state.
//!
//! It must not change a record's bytes and must not treat anything as delivered before the collector acknowledged it.
//! Fails: it reconnects for ever; the journal keeps what is not acknowledged.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use guard_log::record::{Record, SessionId};
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{DecisionsRequest, ShipBatch, ShipHello, ShipRequest, ship_reply, ship_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::config::CollectorConfig;
use crate::kernel::time;
use crate::node::Node;
use crate::seen::Disbelieved;
use crate::status;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_millis(50);
/// Batches that may be on their way without an acknowledgement.
const WINDOW: usize = 4;
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

/// Runs the three conversations until one of them ends, and says why.
async fn converse(node: &Arc<Node>, client: NodeServiceClient<Channel>) -> String {
    tokio::select! {
        error = ship(node, client.clone()) => format!("shipping: {error}"),
        error = decisions(node, client.clone()) => format!("decisions: {error}"),
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

async fn report(node: &Arc<Node>, mut client: NodeServiceClient<Channel>) -> String {
    loop {
        if let Err(status) = client.report(status::report(node)).await {
            return status.message().to_owned();
        }
        tokio::time::sleep(REPORT_EVERY).await;
    }
}

async fn ship(node: &Arc<Node>, mut client: NodeServiceClient<Channel>) -> String {
    let state = node.journal.state();
    let hello = ShipHello {
        host: node.host.0.to_vec(),
        host_name: node.config.node.name.clone(),
        epoch: state.epoch.0.to_vec(),
        first_seq: state.first_seq,
        next_seq: state.next_seq,
        acked_seq: state.acked_next_seq,
        any_acked: state.acked_next_seq > 0,
        checkpoint_size: node.seen.size(),
    };
    let (sender, receiver) = mpsc::channel(WINDOW);
    let first = ShipRequest { message: Some(ship_request::Message::Hello(hello)) };
    if sender.send(first).await.is_err() {
        return "the stream closed before it began".into();
    }
    let mut replies = match client.ship(ReceiverStream::new(receiver)).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    let welcome = match replies.message().await {
        Ok(Some(reply)) => reply.message,
        Ok(None) => return "the collector ended the stream".into(),
        Err(status) => return status.message().to_owned(),
    };
    let Some(ship_reply::Message::Welcome(welcome)) = welcome else {
        return "the collector did not say where to begin".into();
    };
    let believed = node.seen.introduce(&welcome.log_vkey);
    if let Err(why) = believed.and_then(|()| node.seen.believe(&welcome.checkpoint, &welcome.consistency)) {
        return disbelieve(node, why);
    }
    if welcome.next_seq < state.acked_next_seq {
        lacks(node, welcome.next_seq, state.acked_next_seq);
    }
    node.link.up();
    tracing::info!(from = welcome.next_seq, "shipping");
    let records = (welcome.max_batch_records as usize).clamp(1, 1024);
    let bytes = usize::try_from(welcome.max_batch_bytes).unwrap_or(usize::MAX).clamp(128 << 10, GRPC_MESSAGE_MAX / 2);
    tokio::select! {
        error = send(node, &sender, welcome.next_seq, records, bytes) => error,
        error = acknowledge(node, &mut replies) => error,
    }
}

async fn send(node: &Node, sender: &mpsc::Sender<ShipRequest>, from: u64, records: usize, bytes: usize) -> String {
    let mut next = from;
    loop {
        let state = node.journal.state();
        // What the collector lacks and the journal no longer holds is a gap that the collector records.
        next = next.max(state.first_seq);
        let batch = match node.journal.read(next, records, bytes) {
            Ok(batch) => batch,
            Err(error) => return error.to_string(),
        };
        let (batch, blobs) = with_blobs(node, batch);
        let Some(last) = batch.last().map(|r| r.header().seq) else {
            tokio::time::sleep(IDLE).await;
            continue;
        };
        let few = batch.len() < records / 2;
        let batch = ShipBatch { records: batch.iter().map(|r| r.bytes().clone()).collect(), blobs };
        if sender.send(ShipRequest { message: Some(ship_request::Message::Batch(batch)) }).await.is_err() {
            // The other half knows why.
            std::future::pending::<()>().await;
        }
        next = last + 1;
        if few {
            // What comes meanwhile goes in one message, and costs the collector one sync.
            tokio::time::sleep(IDLE).await;
        }
    }
}

/// Records that the log is not believed. Nothing more is sent to it, and nothing counts as delivered.
fn disbelieve(node: &Node, why: Disbelieved) -> String {
    if let Some(record) = why.record {
        tracing::error!(what = record.what, detail = record.detail, "the collector's log is not believed");
        node.note(SessionId::NONE, Body::CheckpointRefused(record));
    }
    why.text
}

/// The log lacks what it acknowledged. What the journal still has is sent again; that it was lost is on record.
fn lacks(node: &Node, next_seq: u64, acked: u64) {
    if let Some(record) = node.seen.lacks(next_seq, acked) {
        tracing::error!(detail = record.detail, "the collector lost records that it had acknowledged");
        node.note(SessionId::NONE, Body::CheckpointRefused(record));
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

async fn acknowledge(node: &Node, replies: &mut tonic::Streaming<guard_proto::v1::ShipReply>) -> String {
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                let Some(ship_reply::Message::Ack(ack)) = reply.message else { continue };
                if !ack.checkpoint.is_empty()
                    && let Err(why) = node.seen.believe(&ack.checkpoint, &ack.consistency)
                {
                    return disbelieve(node, why);
                }
                match node.journal.acknowledge(ack.next_seq) {
                    Ok(()) => node.blobs.acknowledged(ack.next_seq),
                    Err(error) => tracing::error!(%error, "noting an acknowledgement"),
                }
            }
            Ok(None) => return "the collector ended the stream".into(),
            Err(status) => return status.message().to_owned(),
        }
    }
}
