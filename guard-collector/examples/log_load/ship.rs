//! Several hosts that ship as the daemon does: batches in order, as many as the connection takes, acknowledgements read
//! beside them.
//!
//! The timed window ends when every record is acknowledged, the index covers it and the public checkpoint holds it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guard_log::note::Verifier;
use guard_log::proof::Receipt;
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::control_service_client::ControlServiceClient;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::*;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::records::{Journal, RECORD};
use crate::{Failure, cpu_of, status_kib};

/// As the daemon's.
const WINDOW: usize = 4;
const BATCH: usize = 1024;
/// More records than these are made while they are shipped.
const HELD: u64 = 2_000_000;
/// With a given rate a batch leaves so often, as a daemon's thread that looks for new records.
const PACE: Duration = Duration::from_millis(10);

#[derive(clap::Args)]
pub struct Args {
    /// Address of the collector.
    #[arg(long)]
    address: String,
    /// Folders with a node's certificate, one for each host.
    #[arg(long = "node", required = true)]
    nodes: Vec<PathBuf>,
    /// Folder with a reader's certificate.
    #[arg(long)]
    reader: PathBuf,
    /// Process id of the collector, for its memory and processor time.
    #[arg(long)]
    pid: String,
    /// Records of all hosts together.
    #[arg(long)]
    records: u64,
    /// Records per second of all hosts together; as fast as it goes without.
    #[arg(long)]
    rate: Option<u64>,
}

#[derive(clap::Args)]
pub struct AskArgs {
    #[arg(long)]
    address: String,
    #[arg(long)]
    reader: PathBuf,
    /// How often.
    #[arg(long, default_value_t = 200)]
    times: u64,
}

fn endpoint(address: &str, folder: &Path) -> Result<Endpoint, Failure> {
    let read = |name: &str| std::fs::read(folder.join(name));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")?))
        .identity(Identity::from_pem(read("cert.pem")?, read("key.pem")?))
        .domain_name("localhost");
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?)
}

async fn reader(address: &str, folder: &Path) -> Result<ControlServiceClient<Channel>, Failure> {
    let channel = endpoint(address, folder)?.connect().await?;
    Ok(ControlServiceClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_MAX))
}

type Batches = Box<dyn Iterator<Item = (u64, ShipRequest)> + Send>;

struct Host {
    client: NodeServiceClient<Channel>,
    hello: ShipHello,
    batches: Batches,
    last: u64,
    pace: Option<Duration>,
}

/// One host's batches, each with the number after its last record.
fn batches(journal: Journal, count: u64, batch: usize) -> Batches {
    let mut records = journal.take(usize::try_from(count).unwrap_or(usize::MAX));
    let made = std::iter::from_fn(move || {
        let records: Vec<_> = records.by_ref().take(batch).collect();
        let next = records.last()?.header().seq + 1;
        let records = records.iter().map(|r| r.bytes().clone()).collect();
        Some((
            next,
            ShipRequest { message: Some(ship_request::Message::Batch(ShipBatch { records, blobs: Vec::new() })) },
        ))
    });
    if count > HELD { Box::new(made) } else { Box::new(made.collect::<Vec<_>>().into_iter()) }
}

async fn host(args: &Args, folder: &Path) -> Result<Host, Failure> {
    let client = NodeServiceClient::new(endpoint(&args.address, folder)?.connect().await?)
        .max_encoding_message_size(GRPC_MESSAGE_MAX);
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let journal = Journal::new(&name);
    let hello = ShipHello {
        host: journal.host.0.to_vec(),
        host_name: name,
        epoch: journal.epoch.0.to_vec(),
        ..ShipHello::default()
    };
    let count = args.records / args.nodes.len() as u64;
    let per_batch = args.rate.map(|r| r as f64 / args.nodes.len() as f64 * PACE.as_secs_f64());
    let batch = per_batch.map_or(BATCH, |n| (n as usize).clamp(1, BATCH));
    Ok(Host { client, hello, batches: batches(journal, count, batch), last: count, pace: args.rate.map(|_| PACE) })
}

/// Ships all of a host; returns how long each batch waited for its acknowledgement.
async fn ship(mut host: Host) -> Result<Vec<Duration>, Failure> {
    let (out, requests) = mpsc::channel(WINDOW);
    out.send(ShipRequest { message: Some(ship_request::Message::Hello(host.hello)) }).await?;
    let mut replies = host.client.ship(ReceiverStream::new(requests)).await?.into_inner();
    replies.message().await?.ok_or("no welcome")?;
    let (sent, mut waits) = mpsc::unbounded_channel();
    let sender = tokio::spawn(async move {
        let mut ticks = host.pace.map(tokio::time::interval);
        for (next, request) in host.batches {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            // From here the record waits, be it for the connection.
            let _ = sent.send((next, Instant::now()));
            if out.send(request).await.is_err() {
                // The reader of replies says why.
                return;
            }
        }
    });
    let (mut open, mut latencies) = (VecDeque::new(), vec![]);
    while let Some(reply) = replies.message().await? {
        let Some(ship_reply::Message::Ack(ack)) = reply.message else { return Err("no acknowledgement".into()) };
        while let Ok(one) = waits.try_recv() {
            open.push_back(one);
        }
        while let Some((_, since)) = open.front().filter(|(next, _)| *next <= ack.next_seq) {
            latencies.push(since.elapsed());
            open.pop_front();
        }
        if ack.next_seq >= host.last {
            break;
        }
    }
    sender.await?;
    Ok(latencies)
}

async fn covered(control: &mut ControlServiceClient<Channel>, at_least: u64) -> Result<u64, Failure> {
    let asked = ListSessionsRequest { limit: 1, at_least, ..ListSessionsRequest::default() };
    Ok(control.list_sessions(asked).await?.into_inner().log_size)
}

/// Waits until index and checkpoint hold everything; how far the index is then.
async fn caught_up(control: &mut ControlServiceClient<Channel>, size: u64) -> Result<u64, Failure> {
    let index = loop {
        match covered(control, size).await {
            Ok(covered) => break covered,
            // Every wait of the collector is bounded.
            Err(error) if error.to_string().contains("were asked for") => {}
            Err(error) => return Err(error),
        }
    };
    while control.status(StatusRequest {}).await?.into_inner().checkpoint_size < size {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(index)
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Ships and waits.
pub fn run(args: &Args) -> Result<Value, Failure> {
    runtime()?.block_on(async {
        let mut control = reader(&args.address, &args.reader).await?;
        let mut hosts = vec![];
        for folder in &args.nodes {
            hosts.push(host(args, folder).await?);
        }
        let records: u64 = hosts.iter().map(|h| h.last).sum();
        let before = (cpu_of("self")?, cpu_of(&args.pid)?, Instant::now());
        let tasks: Vec<_> = hosts.into_iter().map(|h| tokio::spawn(ship(h))).collect();
        let mut latencies = vec![];
        for task in tasks {
            latencies.extend(task.await??);
        }
        let acked = before.2.elapsed();
        let size = control.status(StatusRequest {}).await?.into_inner().log_size;
        let lag_at_ack = size - covered(&mut control, 0).await?.min(size);
        let index = caught_up(&mut control, size).await?;
        let all = before.2.elapsed();
        let cpu = |pid: &str, before: Duration| cpu_of(pid).map(|now| (now - before).as_secs_f64());
        latencies.sort();
        Ok(json!({
            "records": records,
            "record_bytes": RECORD,
            "log_size": size,
            "seconds": all.as_secs_f64(),
            "acked_seconds": acked.as_secs_f64(),
            "records_per_s": records as f64 / all.as_secs_f64(),
            "acked_per_s": records as f64 / acked.as_secs_f64(),
            "index_lag_at_last_ack": lag_at_ack,
            "index_lag_at_end": size - index.min(size),
            "ack_p50_ms": percentile(&latencies, 50),
            "ack_p99_ms": percentile(&latencies, 99),
            "client_cpu_s": cpu("self", before.0)?,
            "collector_cpu_s": cpu(&args.pid, before.1)?,
            "collector_rss_mib": status_kib(&args.pid, "VmRSS:")? / 1024,
            "collector_peak_mib": status_kib(&args.pid, "VmHWM:")? / 1024,
        }))
    })
}

/// Times questions: the index's answer about a session, and a record's receipt until it is verified.
pub fn ask(args: &AskArgs) -> Result<Value, Failure> {
    runtime()?.block_on(async {
        let mut control = reader(&args.address, &args.reader).await?;
        let status = control.status(StatusRequest {}).await?.into_inner();
        let (size, key) = (status.checkpoint_size, Verifier::parse(&status.log_vkey)?);
        let listed = ListSessionsRequest { limit: 500, ..ListSessionsRequest::default() };
        let mut sessions = control.list_sessions(listed).await?.into_inner().sessions;
        // The oldest ones too: their records lie far from each other's in the file.
        let old = QueryRequest { limit: 500, ..QueryRequest::default() };
        let mut stream = control.query(old).await?.into_inner();
        while let Some(entry) = stream.message().await? {
            let session = guard_log::record::Record::parse(entry.record)?.header().session;
            if !session.is_none() {
                sessions.push(SessionSummary { session_id: session.to_string(), ..SessionSummary::default() });
            }
        }
        let (mut queries, mut whole, mut proofs) = (vec![], vec![], vec![]);
        for n in 0..args.times {
            let session_id = sessions[n as usize * 7919 % sessions.len()].session_id.clone();
            let start = Instant::now();
            let asked = QueryRequest { session_id: session_id.clone(), limit: 1, ..QueryRequest::default() };
            let mut stream = control.query(asked).await?.into_inner();
            stream.message().await?.ok_or("a session without records")?;
            queries.push(start.elapsed());
            let start = Instant::now();
            control.get_session(GetSessionRequest { session_id, at_least: 0 }).await?;
            whole.push(start.elapsed());
            proofs.push(proof(&mut control, n * 7919 * 104_729 % size, &key).await?);
        }
        let p = |all: &mut Vec<Duration>| {
            all.sort();
            json!({ "p50_ms": percentile(all, 50), "p99_ms": percentile(all, 99) })
        };
        Ok(json!({
            "log_size": size,
            "session_query": p(&mut queries),
            "session_with_records": p(&mut whole),
            "proof": p(&mut proofs),
        }))
    })
}

/// Has a record proved, and verifies the receipt.
async fn proof(control: &mut ControlServiceClient<Channel>, leaf: u64, key: &Verifier) -> Result<Duration, Failure> {
    let start = Instant::now();
    let proved = control.prove(ProveRequest { leaf }).await?.into_inner();
    Receipt::parse(&proved.receipt)?.verify(&proved.record, key)?;
    Ok(start.elapsed())
}
