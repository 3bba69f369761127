//! `NodeService`: takes hosts' records, hands out decisions, keeps reports.
//!
//! It must not acknowledge what is not durable, and must not let a node speak for a host that is not its own. Everything a
//! node sends is bounded here. Fails: `UNAVAILABLE` while the log takes no records (the host keeps its journal and comes
//! again), `RESOURCE_EXHAUSTED` for a node that owes too much of its quota; a journal that forked ends with
//! `FAILED_PRECONDITION` until the host begins a new epoch.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use guard_log::changes::{Change, Step};
use guard_log::record::{Epoch, HostId, Record};
use guard_log::store::Store;
use guard_proto::v1::node_service_server::NodeService;
use guard_proto::v1::{
    Decision, DecisionsRequest, LogChange, NodeReport, NodeReportReply, PoliciesRequest, PolicyBundle, RenewReply,
    RenewRequest, ShipAck, ShipBatch, ShipHello, ShipReply, ShipRequest, ShipWelcome, ship_reply, ship_request,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::blobs::Blobs;
use crate::bundles::Bundles;
use crate::hub::Hub;
use crate::identity::{Caller, Certificate, Right};
use crate::issuing::Issuing;
use crate::ledger::{Admitted, Durable, Ledger, LedgerError};
use crate::own::now_ns;
use crate::proofs;
use crate::quota::Quotas;
use crate::standing::Standing;
use crate::witness::Witnesses;

/// Most records of a batch.
pub const BATCH_RECORDS: usize = 1024;
/// Most bytes of a batch's records.
pub const BATCH_BYTES: usize = 4 << 20;
/// Batches of one stream that wait for the disk; more are not read from the connection.
const IN_FLIGHT: usize = 16;
/// Longest wait for records that another stream of the same host appended.
const DURABLE_WAIT: Duration = Duration::from_secs(20);
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
const NAME_MAX: usize = 255;
const TEXT_MAX: usize = 4096;
const COUNTERS_MAX: usize = 512;

/// Said to who asks for a certificate where none are issued.
pub const NOT_ISSUING: &str = "this collector issues no certificates: its configuration has no table [certificates]";

type Replies<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct Nodes {
    /// The way into the log.
    pub ledger: Arc<Ledger>,
    /// Who listens.
    pub hub: Arc<Hub>,
    /// What records keep outside the log.
    pub blobs: Blobs,
    /// What each node may send.
    pub quotas: Arc<Quotas>,
    /// Who cosigns the log.
    pub witnesses: Option<Arc<Witnesses>>,
    /// The newest policy bundle.
    pub bundles: Arc<Bundles>,
    /// Issues certificates, if this collector does.
    pub issuing: Option<Arc<Issuing>>,
    /// Whether a caller's certificate still counts.
    pub standing: Standing,
    /// Becomes true when the collector stops.
    pub stopping: watch::Receiver<bool>,
}

/// Resolves when the collector stops.
pub async fn stopped(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone: the process ends.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// What a stream ends with when the collector stops.
pub fn stop_status() -> Status {
    Status::unavailable("the collector is stopping")
}

struct InFlight {
    durable: Option<Durable>,
    next_seq: u64,
    leaf_end: u64,
}

/// That the checkpoint of `size` leaves continues the one of `old`; nothing where there is nothing to prove.
fn grown(store: &Store, old: u64, size: u64) -> Result<Vec<Vec<u8>>, Status> {
    if old == 0 || old >= size { Ok(Vec::new()) } else { proofs::consistency(store, old, size) }
}

fn host_id(bytes: &[u8]) -> Result<HostId, Status> {
    HostId::from_slice(bytes).ok_or_else(|| Status::invalid_argument("host: 16 bytes are accepted"))
}

// === impl Nodes ===

impl Nodes {
    fn bound(&self, node: &str, host: HostId) -> Result<(), Status> {
        self.ledger.state().admit.check_binding(node, host).map_err(|e| LedgerError::from(e).into())
    }

    /// The newest checkpoint and the proof that it continues the one of size `before`, which becomes its size. Nothing if it
    /// is that one. A host that has seen more than this log ever published gets no proof: it will see why for itself.
    async fn grown(&self, before: &mut u64) -> Result<Option<(Vec<u8>, Vec<Vec<u8>>)>, Status> {
        let (size, note) = self.ledger.store().published();
        if size == *before && size > 0 {
            return Ok(None);
        }
        let (store, old) = (self.ledger.store().clone(), *before);
        let proof = tokio::task::spawn_blocking(move || grown(&store, old, size));
        let proof = proof.await.map_err(|e| Status::internal(e.to_string()))??;
        *before = size;
        Ok(Some((note.into_bytes(), proof)))
    }

    /// All that became of the log's name and key, with the proofs that the checkpoint of `size` leaves continues the heads they
    /// lead to.
    async fn changes(&self, size: u64) -> Result<Vec<LogChange>, Status> {
        let store = self.ledger.store().clone();
        let steps = store.changes();
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let made = tokio::task::spawn_blocking(move || {
            let one = |step: &Step| {
                let kept = match &step.change {
                    Change::Rotation(_) => Vec::new(),
                    Change::Succession(succession) => grown(&store, succession.statement.kept.0, size)?,
                };
                let consistency = grown(&store, step.head.size, size)?;
                Ok(LogChange { receipt: step.receipt.clone().into_bytes(), consistency, kept })
            };
            steps.iter().map(one).collect()
        });
        made.await.map_err(|e| Status::internal(e.to_string()))?
    }

    /// Waits until the leaves below `end` are durable.
    async fn durable_to(&self, end: u64) -> Result<(), Status> {
        let ledger = Arc::clone(&self.ledger);
        tokio::task::spawn_blocking(move || {
            match ledger.store().size() >= end || ledger.store().wait_past(end - 1, DURABLE_WAIT) {
                true => Ok(()),
                false => {
                    let cause = ledger.failed().unwrap_or("earlier records are not durable yet");
                    Err(LedgerError::Store(cause.to_owned()).into())
                }
            }
        })
        .await
        .map_err(|e| Status::internal(e.to_string()))?
    }

    /// Waits for a quorum of witnesses where acknowledgements wait for it.
    async fn covered(&self, end: u64) {
        if let Some(witnesses) = &self.witnesses {
            witnesses.covers(end).await;
        }
    }

    async fn welcome(
        &self,
        node: &str,
        hello: &ShipHello,
        seen: &mut u64,
    ) -> Result<((HostId, Epoch), ShipReply), Status> {
        let host = host_id(&hello.host)?;
        let epoch = Epoch::from_slice(&hello.epoch)
            .ok_or_else(|| Status::invalid_argument("hello.epoch: 16 bytes are accepted"))?;
        if hello.host_name.len() > NAME_MAX || hello.first_seq > hello.next_seq {
            return Err(Status::invalid_argument("hello: host_name too long, or first_seq above next_seq"));
        }
        self.bound(node, host)?;
        let (next_seq, leaf_end) = self.ledger.state().admit.next(host, epoch);
        // A host may forget what it is told not to send again, so it must be durable.
        self.durable_to(leaf_end).await?;
        self.covered(leaf_end).await;
        if hello.any_acked && hello.acked_seq > next_seq {
            let acked = hello.acked_seq;
            tracing::error!(node, %host, acked, logged = next_seq, "acknowledged records are not in this log: an older copy?");
        }
        tracing::info!(node, %host, %epoch, first = hello.first_seq, next = hello.next_seq, from = next_seq, "node ships");
        let store = self.ledger.store();
        *seen = hello.checkpoint_size;
        let (checkpoint, consistency) = match self.grown(seen).await? {
            Some(grown) => grown,
            None => (store.published().1.into_bytes(), Vec::new()),
        };
        let welcome = ShipWelcome {
            next_seq,
            log_size: store.size(),
            max_batch_records: BATCH_RECORDS as u32,
            max_batch_bytes: BATCH_BYTES as u64,
            checkpoint,
            consistency,
            log_vkey: store.vkey(),
            changes: self.changes(*seen).await?,
        };
        Ok(((host, epoch), ShipReply { message: Some(ship_reply::Message::Welcome(welcome)) }))
    }

    async fn admit(&self, node: &str, of: (HostId, Epoch), batch: ShipBatch) -> Result<Admitted, Status> {
        let mut batch = batch;
        let came = std::mem::take(&mut batch.blobs);
        let records = parse(batch)?;
        let bytes = records.iter().map(|r| r.bytes().len()).chain(came.iter().map(Vec::len)).sum();
        let wait = self.quotas.take(node, records.len(), bytes, Instant::now());
        let wait = wait.map_err(|e| Status::resource_exhausted(e.to_string()))?;
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let blobs = self.blobs.clone();
        let (ledger, node) = (Arc::clone(&self.ledger), node.to_owned());
        let admitted = tokio::task::spawn_blocking(move || {
            blobs.keep(&came, &records)?;
            Ok::<_, Status>(ledger.admit(&node, of, records)?)
        })
        .await
        .map_err(|e| Status::internal(e.to_string()))??;
        Ok(admitted)
    }

    async fn receive(
        &self,
        node: &str,
        mut from: Streaming<ShipRequest>,
        replies: &mpsc::Sender<Result<ShipReply, Status>>,
        in_flight: &mpsc::Sender<InFlight>,
        begun: oneshot::Sender<u64>,
    ) -> Result<(), Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, from.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(ShipRequest { message: Some(ship_request::Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let mut seen = 0;
        let (of, welcome) = self.welcome(node, &hello, &mut seen).await?;
        let _shipping = self.hub.shipping(node);
        if replies.send(Ok(welcome)).await.is_err() || begun.send(seen).is_err() {
            return Ok(());
        }
        while let Some(request) = from.message().await? {
            let Some(ship_request::Message::Batch(batch)) = request.message else {
                return Err(Status::invalid_argument("only batches follow the hello"));
            };
            let admitted = self.admit(node, of, batch).await?;
            let Admitted { durable, next_seq, leaf_end, fork } = admitted;
            if let Some(seq) = fork {
                if let Some(durable) = durable {
                    durable.wait().await?;
                }
                return Err(Status::failed_precondition(format!(
                    "record {seq} is not the one that was logged for host {} in epoch {}: the journal forked; its \
                     records are admitted again in a new epoch",
                    of.0, of.1
                )));
            }
            if in_flight.send(InFlight { durable, next_seq, leaf_end }).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Acknowledges in order, each when it is durable.
    async fn acknowledge(
        &self,
        mut in_flight: mpsc::Receiver<InFlight>,
        replies: mpsc::Sender<Result<ShipReply, Status>>,
        begun: oneshot::Receiver<u64>,
    ) -> Result<(), Status> {
        // Without a welcome there is nothing to acknowledge; the other half says why.
        let Ok(mut seen) = begun.await else { return Ok(()) };
        while let Some(InFlight { durable, next_seq, leaf_end }) = in_flight.recv().await {
            match durable {
                Some(durable) => durable.wait().await?,
                None => self.durable_to(leaf_end).await?,
            }
            self.covered(leaf_end).await;
            let (checkpoint, consistency) = self.grown(&mut seen).await?.unwrap_or_default();
            let ack = ShipAck {
                next_seq,
                last_leaf: leaf_end.saturating_sub(1),
                log_size: self.ledger.store().size(),
                checkpoint,
                consistency,
            };
            if replies.send(Ok(ShipReply { message: Some(ship_reply::Message::Ack(ack)) })).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn run_ship(
        self,
        certificate: Arc<Certificate>,
        from: Streaming<ShipRequest>,
        replies: mpsc::Sender<Result<ShipReply, Status>>,
    ) {
        let node = certificate.caller.name.clone();
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let (begin, begun) = oneshot::channel();
        let both = async {
            let receive = async {
                let result = self.receive(&node, from, &replies, &sender, begin).await;
                drop(sender);
                result
            };
            // The first error ends both: without acknowledgements nothing more is read.
            tokio::try_join!(receive, self.acknowledge(receiver, replies.clone(), begun)).map(|_| ())
        };
        let result = tokio::select! {
            result = both => result,
            status = self.standing.ended(&certificate) => Err(status),
            () = stopped(self.stopping.clone()) => Err(stop_status()),
        };
        if let Err(status) = result {
            tracing::info!(node, code = ?status.code(), error = status.message(), "shipping ended");
            let _ = replies.send(Err(status)).await;
        }
    }

    async fn run_decisions(
        self,
        host: HostId,
        certificate: Arc<Certificate>,
        out: mpsc::Sender<Result<Decision, Status>>,
    ) {
        let node = certificate.caller.name.clone();
        let ended = self.standing.ended(&certificate);
        tokio::pin!(ended);
        let mut live = self.hub.listen(host, &node);
        // Listening began before, so a decision that becomes durable meanwhile comes by both ways and is sent once.
        let open = {
            let state = self.ledger.state();
            match state.admit.node_of(host) {
                Some(bound) if bound == node => state.reviews.decisions(host, self.ledger.store().size()),
                _ => vec![],
            }
        };
        let sent: HashSet<u64> = open.iter().map(|d| d.leaf).collect();
        for decision in open {
            if out.send(Ok(decision)).await.is_err() {
                return;
            }
        }
        loop {
            let end = tokio::select! {
                decision = live.recv() => match decision {
                    Some(decision) if sent.contains(&decision.leaf) => continue,
                    Some(decision) => Ok(decision),
                    None => Err(Status::resource_exhausted("decisions were not taken in time; connect again")),
                },
                status = &mut ended => Err(status),
                () = stopped(self.stopping.clone()) => Err(stop_status()),
                () = out.closed() => return,
            };
            let last = end.is_err();
            if out.send(end).await.is_err() || last {
                return;
            }
        }
    }
}

fn parse(batch: ShipBatch) -> Result<Vec<Record>, Status> {
    let bytes: usize = batch.records.iter().map(Bytes::len).sum();
    if batch.records.is_empty() || batch.records.len() > BATCH_RECORDS || bytes > BATCH_BYTES {
        return Err(Status::invalid_argument(format!(
            "a batch of {} records and {bytes} bytes: accepted are 1 to {BATCH_RECORDS} records of up to {BATCH_BYTES} \
             bytes together",
            batch.records.len()
        )));
    }
    let parse = |(i, bytes): (usize, Bytes)| {
        Record::parse(bytes).map_err(|e| Status::invalid_argument(format!("record {i} of the batch: {e}")))
    };
    batch.records.into_iter().enumerate().map(parse).collect()
}

fn bounded(report: &NodeReport) -> Result<(), Status> {
    let texts = [
        &report.host_name,
        &report.version,
        &report.kernel,
        &report.mode,
        &report.mode_detail,
        &report.policy_digest,
        &report.policy_error,
        &report.certificate_error,
        &report.decisions,
    ];
    let names = report.counters.keys();
    if texts.into_iter().chain(names).any(|t| t.len() > TEXT_MAX) || report.counters.len() > COUNTERS_MAX {
        return Err(Status::invalid_argument(format!(
            "report: texts of up to {TEXT_MAX} bytes and {COUNTERS_MAX} counters are accepted"
        )));
    }
    Ok(())
}

#[tonic::async_trait]
impl NodeService for Nodes {
    type ShipStream = Replies<ShipReply>;
    type DecisionsStream = Replies<Decision>;
    type PoliciesStream = Replies<PolicyBundle>;

    async fn ship(&self, request: Request<Streaming<ShipRequest>>) -> Result<Response<Self::ShipStream>, Status> {
        Caller::of(&request, Right::Node)?;
        let certificate = Standing::of(&request)?;
        let (replies, stream) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(self.clone().run_ship(certificate, request.into_inner(), replies));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn decisions(&self, request: Request<DecisionsRequest>) -> Result<Response<Self::DecisionsStream>, Status> {
        let caller = Caller::of(&request, Right::Node)?;
        let host = host_id(&request.get_ref().host)?;
        self.bound(&caller.name, host)?;
        let (out, stream) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(self.clone().run_decisions(host, Standing::of(&request)?, out));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn policies(&self, request: Request<PoliciesRequest>) -> Result<Response<Self::PoliciesStream>, Status> {
        let caller = Caller::of(&request, Right::Node)?;
        let certificate = Standing::of(&request)?;
        let asked = request.into_inner();
        self.bound(&caller.name, host_id(&asked.host)?)?;
        let (out, stream) = mpsc::channel(1);
        let (bundles, standing, stopping) = (self.bundles.clone(), self.standing.clone(), self.stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = bundles.feed(asked.serial, &out, stopping) => {}
                status = standing.ended(&certificate) => drop(out.send(Err(status)).await),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn report(&self, request: Request<NodeReport>) -> Result<Response<NodeReportReply>, Status> {
        let caller = Caller::of(&request, Right::Node)?;
        let report = request.into_inner();
        self.bound(&caller.name, host_id(&report.host)?)?;
        bounded(&report)?;
        let now = now_ns();
        self.hub.report(&caller.name, report, now);
        let bundle_serial = Some(self.bundles.newest().map_or(0, |bundle| bundle.manifest().serial()));
        Ok(Response::new(NodeReportReply { collector_unix_ns: now, bundle_serial }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        Caller::of(&request, Right::Node)?;
        let certificate = Standing::of(&request)?;
        let issuing = self.issuing.clone().ok_or_else(|| Status::failed_precondition(NOT_ISSUING))?;
        let csr = request.into_inner().csr;
        let renewed = tokio::task::spawn_blocking(move || issuing.renew(&certificate, &csr));
        let certificate = renewed.await.map_err(|e| Status::internal(e.to_string()))??;
        Ok(Response::new(RenewReply { certificate }))
    }
}
