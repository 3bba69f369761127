//! One stream of records to the collector: in order, from where it says, until one side ends it.
//!
//! It must not change a record's bytes, must not treat anything as delivered before the collector acknowledged it, and must not
//! ship to a log that is not believed. It knows the daemon by [`Outlet`] alone, so that tests drive it against a real collector
//! without a kernel side. Fails: it says why, and the caller comes again; the journal keeps what is not acknowledged.

use std::time::Duration;

use guard_log::journal::Journal;
use guard_log::record::{HostId, Record};
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{ShipBatch, ShipHello, ShipReply, ShipRequest, ship_reply, ship_request};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::seen::{Disbelieved, Seen};

const IDLE: Duration = Duration::from_millis(50);
/// Batches that may be on their way without an acknowledgement.
const WINDOW: usize = 4;

/// What the daemon does for a stream.
pub trait Outlet: Sync {
    /// Records something about the log itself.
    fn note(&self, body: Body);
    /// The records as far as their blobs fit into one message, and those.
    fn with_blobs(&self, batch: Vec<Record>) -> (Vec<Record>, Vec<Vec<u8>>);
    /// The collector has every record below `next_seq`, the journal none below `first_seq` any more.
    fn acknowledged(&self, next_seq: u64, first_seq: u64);
    /// The collector is there and believed.
    fn up(&self);
}

/// What is shipped, and what is known of where it goes.
pub struct Shipper<'a> {
    /// This host.
    pub host: HostId,
    /// Its name, for people.
    pub host_name: &'a str,
    /// The records.
    pub journal: &'a Journal,
    /// The log as this host knows it.
    pub seen: &'a Seen,
    /// The daemon.
    pub outlet: &'a dyn Outlet,
}

/// Ships until the stream ends, and says why it did.
pub async fn ship(shipper: &Shipper<'_>, mut client: NodeServiceClient<Channel>) -> String {
    let state = shipper.journal.state();
    let hello = ShipHello {
        host: shipper.host.0.to_vec(),
        host_name: shipper.host_name.to_owned(),
        epoch: state.epoch.0.to_vec(),
        first_seq: state.first_seq,
        next_seq: state.next_seq,
        acked_seq: state.acked_next_seq,
        any_acked: state.acked_next_seq > 0,
        checkpoint_size: shipper.seen.size(),
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
    let followed = match shipper.seen.welcome(&welcome) {
        Ok(followed) => followed,
        Err(why) => return disbelieve(shipper, why),
    };
    for record in followed.records {
        tracing::warn!(
            what = record.what,
            old = record.old_vkey,
            new = record.new_vkey,
            leaf = record.leaf,
            detail = record.detail,
            "the host follows the log"
        );
        shipper.outlet.note(Body::LogFollowed(record));
    }
    if welcome.next_seq < state.acked_next_seq {
        // What a successor lacks was lost on the record.
        if !followed.succeeded {
            lacks(shipper, welcome.next_seq, state.acked_next_seq);
        }
        if let Err(error) = shipper.journal.unacknowledge(welcome.next_seq) {
            return error.to_string();
        }
    }
    shipper.outlet.up();
    tracing::info!(from = welcome.next_seq, "shipping");
    let records = (welcome.max_batch_records as usize).clamp(1, 1024);
    let bytes = usize::try_from(welcome.max_batch_bytes).unwrap_or(usize::MAX).clamp(128 << 10, GRPC_MESSAGE_MAX / 2);
    tokio::select! {
        error = send(shipper, &sender, welcome.next_seq, records, bytes) => error,
        error = acknowledge(shipper, &mut replies) => error,
    }
}

async fn send(
    shipper: &Shipper<'_>,
    sender: &mpsc::Sender<ShipRequest>,
    from: u64,
    records: usize,
    bytes: usize,
) -> String {
    let mut next = from;
    loop {
        // What the collector lacks and the journal no longer holds is a gap that the collector records.
        next = next.max(shipper.journal.state().first_seq);
        let batch = match shipper.journal.read(next, records, bytes) {
            Ok(batch) => batch,
            Err(error) => return error.to_string(),
        };
        let (batch, blobs) = shipper.outlet.with_blobs(batch);
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
fn disbelieve(shipper: &Shipper<'_>, why: Disbelieved) -> String {
    if let Some(record) = why.record {
        tracing::error!(what = record.what, detail = record.detail, "the collector's log is not believed");
        shipper.outlet.note(Body::CheckpointRefused(record));
    }
    why.text
}

/// The log lacks what it acknowledged. What the journal still has is sent again; that it was lost is on record.
fn lacks(shipper: &Shipper<'_>, next_seq: u64, acked: u64) {
    if let Some(record) = shipper.seen.lacks(next_seq, acked) {
        tracing::error!(detail = record.detail, "the collector lost records that it had acknowledged");
        shipper.outlet.note(Body::CheckpointRefused(record));
    }
}

async fn acknowledge(shipper: &Shipper<'_>, replies: &mut tonic::Streaming<ShipReply>) -> String {
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                let Some(ship_reply::Message::Ack(ack)) = reply.message else { continue };
                if !ack.checkpoint.is_empty()
                    && let Err(why) = shipper.seen.believe(&ack.checkpoint, &ack.consistency)
                {
                    return disbelieve(shipper, why);
                }
                match shipper.journal.acknowledge(ack.next_seq) {
                    Ok(()) => shipper.outlet.acknowledged(ack.next_seq, shipper.journal.state().first_seq),
                    Err(error) => tracing::error!(%error, "noting an acknowledgement"),
                }
            }
            Ok(None) => return "the collector ended the stream".into(),
            Err(status) => return status.message().to_owned(),
        }
    }
}
