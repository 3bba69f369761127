//! `guard-collector serve` and `reindex`: puts the parts together, says when it is ready, stops cleanly.
//!
//! It must not listen before the log has been read and the start recorded. Fails: before listening with an exit code;
//! afterwards the process goes on for readers whatever happens to the disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use guard_log::store::Store;
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::control_service_server::ControlServiceServer;
use guard_proto::v1::node_service_server::NodeServiceServer;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::access::{self, Access};
use crate::alerts::{self, Alerts};
use crate::blobs::Blobs;
use crate::bundles::Bundles;
use crate::config::Config;
use crate::control::Control;
use crate::exit::{CollectorError, Exit, Result};
use crate::hub::Hub;
use crate::index::Index;
use crate::issuing::Issuing;
use crate::keys::{self, open_store};
use crate::ledger::Ledger;
use crate::node::{Nodes, stopped};
use crate::oidc::Logins;
use crate::publish::{self, Published};
use crate::quota::Quotas;
use crate::retention::{self, Retention};
use crate::standing::Standing;
use crate::ticks::Ticks;
use crate::tls::{self, ServerCertificate};
use crate::witness::{self, Witnesses};
use crate::{enrol, escalate, orders};

/// A bundle of 256 of the longest records, and what surrounds it.
const REPLY_MAX: usize = 17 << 20;
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 256;
/// What a host may send before it is taken up: a batch and the next, so that nobody waits for a round trip.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Longest HTTP/2 frame that hosts may send.
const FRAME_MAX: u32 = 256 << 10;
/// Calls that are still running get so long to end.
const DRAIN: Duration = Duration::from_secs(5);
const INDEX_RETRY: Duration = Duration::from_secs(1);
/// What spares reading the whole log at a start, beside it.
pub const SNAPSHOT: &str = "admission";
/// It is written after so many records, looked at so often: what a start has to read at most, about.
const SNAPSHOT_RECORDS: u64 = 100_000;
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

fn internal(error: impl std::fmt::Display) -> CollectorError {
    CollectorError::new(Exit::Internal, error)
}

/// Makes the index anew: what it covers, in words.
pub fn reindex(config: &Config) -> Result<String> {
    let (store, _) = open_store(config)?;
    let index = Index::open(&config.index, store.clone(), true).map_err(internal)?;
    while index.step().map_err(internal)? {}
    store.close();
    let count = index.covered().saturating_sub(store.first());
    Ok(match store.pruned() {
        Some(pruned) => format!("{count} records indexed, from leaf {} on: {pruned}", pruned.first),
        None => format!("{count} records indexed"),
    })
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|e| CollectorError::io(Exit::Unavailable, format_args!("cannot listen on {address}"), &e))
}

/// Where nodes and people come, and where hosts enrol.
struct Doors {
    listener: TcpListener,
    enrol: Option<TcpListener>,
    certificate: Arc<ServerCertificate>,
    mutual: Arc<ServerConfig>,
}

impl Doors {
    async fn open(config: &Config) -> Result<Self> {
        let listener = bind(config.listen).await?;
        let enrol = match config.certificates.as_ref().and_then(|c| c.enrol_listen) {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let certificate = ServerCertificate::read(config)?;
        let mutual = tls::mutual(&certificate)?;
        Ok(Self { listener, enrol, certificate, mutual })
    }
}

/// Serves until a signal asks to stop.
pub async fn serve(config: Config) -> Result<()> {
    let doors = Doors::open(&config).await?;
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_concurrent_streams(STREAMS_MAX);
    let (config, ledger, recovered) = tokio::task::spawn_blocking(move || {
        let (store, recovered) = open_store(&config)?;
        let ledger = Ledger::open(store, config.store.dir.join(SNAPSHOT)).map_err(internal)?;
        keys::settle(&ledger)?;
        Ok::<_, CollectorError>((config, ledger, recovered))
    })
    .await
    .map_err(internal)??;
    let started = ledger.start(recovered).map_err(|e| CollectorError::new(Exit::Unavailable, e))?;
    started.wait().await.map_err(|e| CollectorError::new(Exit::Unavailable, e))?;
    let store = ledger.store().clone();
    let index = Index::open(&config.index, store.clone(), false).map_err(internal)?;
    let (stop, stopping) = watch::channel(false);
    let blobs = Blobs::of(&config.store.dir);
    let published = Arc::new(Published::of(&config.store.dir.join("log/checkpoint")));
    let (ledger, index, quotas) = (Arc::new(ledger), Arc::new(index), Arc::new(Quotas::new(config.quota)));
    let witnesses = witnesses(&config, &store)?;
    let access = Access::open(config.roles.clone())
        .map_err(|e| CollectorError::new(Exit::Config, format_args!("roles: {e}")))?;
    let access = Arc::new(access);
    let alerts = alerts(&config, &ledger, &index).await?;
    let bundles = Bundles::open(&config.store.dir, &config.folder).map_err(|e| CollectorError::new(Exit::Config, e))?;
    let bundles = Arc::new(bundles);
    let issuing = config.certificates.as_ref().map(|c| Issuing::open(&config, c, ledger.clone()).map(Arc::new));
    let issuing = issuing.transpose()?;
    let parts = Parts {
        ledger,
        hub: Arc::default(),
        index,
        published,
        blobs,
        quotas,
        witnesses,
        access,
        alerts,
        bundles,
        issuing,
        stopping,
    };
    if let Some(certificates) = &config.certificates {
        // What was revoked while no collector ran must not be served first.
        orders::look(&certificates.dir, &parts.ledger).await;
    }
    let telling = tokio::spawn(parts.alerts.clone().run(parts.stopping.clone()));
    let reloading = tokio::spawn(access::run(parts.access.clone(), parts.stopping.clone()));
    let escalating = tokio::spawn(escalate::run(parts.ledger.clone(), parts.access.clone(), parts.stopping.clone()));
    let indexing = parts.index_thread()?;
    let publishing = tokio::spawn(publish::run(
        parts.published.clone(),
        parts.ledger.clone(),
        config.publish,
        parts.stopping.clone(),
    ));
    let asking = parts.ask_witnesses(&config);
    let pruning = tokio::spawn(retention::run(parts.retention(&config), parts.stopping.clone()));
    let saving = tokio::spawn(save(parts.ledger.clone(), config.keep_segments, parts.stopping.clone()));
    let router = server.add_service(parts.nodes()).add_service(parts.control(&config));
    let address = doors.listener.local_addr().map_err(internal)?;
    let issuing = parts.issue(&config, &doors.certificate, doors.enrol)?;
    let incoming = tls::incoming(doors.listener, doors.mutual, parts.stopping.clone());
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped(parts.stopping.clone())));
    // Whoever reads that it serves may stop it at once, and shall find it listening to that too.
    let asked = Asked::listen()?;
    tracing::info!(%address, size = store.size(), origin = store.origin(), "collector serves");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    asked.received().await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.send_replace(true);
    drain(serving).await;
    let _ = publishing.await;
    let _ = pruning.await;
    let _ = saving.await;
    let _ = reloading.await;
    let _ = escalating.await;
    let _ = telling.await;
    for task in asking.into_iter().chain(issuing) {
        let _ = task.await;
    }
    tokio::task::spawn_blocking(move || finish(&parts, &store, indexing)).await.map_err(internal)?
}

fn witnesses(config: &Config, store: &Store) -> Result<Option<Arc<Witnesses>>> {
    let open = |config| Witnesses::open(config, store).map(Arc::new);
    let opened = config.witness.as_ref().map(open).transpose();
    opened.map_err(|e| CollectorError::new(Exit::Config, format_args!("witness.policy: {e}")))
}

/// Reads secrets and places.
async fn alerts(config: &Config, ledger: &Arc<Ledger>, index: &Arc<Index>) -> Result<Arc<Alerts>> {
    let (webhooks, folder) = (config.webhooks.clone(), config.folder.join(alerts::FOLDER));
    let (ledger, index) = (ledger.clone(), index.clone());
    let opened = tokio::task::spawn_blocking(move || Alerts::open(&webhooks, folder, &ledger, &index));
    opened.await.map_err(internal)?.map(Arc::new).map_err(|e| CollectorError::new(Exit::Config, e))
}

/// What the services share.
struct Parts {
    ledger: Arc<Ledger>,
    hub: Arc<Hub>,
    index: Arc<Index>,
    published: Arc<Published>,
    blobs: Blobs,
    quotas: Arc<Quotas>,
    witnesses: Option<Arc<Witnesses>>,
    access: Arc<Access>,
    alerts: Arc<Alerts>,
    bundles: Arc<Bundles>,
    issuing: Option<Arc<Issuing>>,
    stopping: watch::Receiver<bool>,
}

impl Parts {
    /// No call of either service goes past it.
    fn standing(&self) -> Standing {
        Standing::new(self.ledger.clone())
    }

    /// What enrols hosts, renews the server's certificate, and does what commands on this machine ask for.
    fn issue(
        &self,
        config: &Config,
        certificate: &Arc<ServerCertificate>,
        listener: Option<TcpListener>,
    ) -> Result<Vec<JoinHandle<()>>> {
        let mut tasks = vec![];
        if let Some(certificates) = &config.certificates {
            let orders = orders::run(certificates.dir.clone(), self.ledger.clone(), self.stopping.clone());
            tasks.push(tokio::spawn(orders));
        }
        let Some(issuing) = &self.issuing else { return Ok(tasks) };
        let keep = tls::keep(certificate.clone(), issuing.clone(), self.ledger.clone(), self.stopping.clone());
        tasks.push(tokio::spawn(keep));
        if let Some(listener) = listener {
            let at = listener.local_addr().map_err(internal)?;
            tracing::info!(%at, "hosts with a join token can enrol");
            let tls = tls::open(certificate)?;
            let logins = config.oidc.clone().map(|oidc| Logins::open(oidc, issuing.clone()).map(Arc::new));
            let logins = logins.transpose().map_err(|e| CollectorError::new(Exit::Config, e))?;
            let desk = enrol::Desk { issuing: issuing.clone(), logins };
            tasks.push(tokio::spawn(enrol::run(listener, tls, desk, self.stopping.clone())));
        }
        Ok(tasks)
    }

    fn nodes(&self) -> InterceptedService<NodeServiceServer<Nodes>, Standing> {
        let (ledger, hub) = (self.ledger.clone(), self.hub.clone());
        let (blobs, quotas, stopping) = (self.blobs.clone(), self.quotas.clone(), self.stopping.clone());
        let (witnesses, issuing, standing) = (self.witnesses.clone(), self.issuing.clone(), self.standing());
        let bundles = self.bundles.clone();
        let nodes = Nodes { ledger, hub, blobs, quotas, witnesses, bundles, issuing, standing, stopping };
        let service = NodeServiceServer::new(nodes).max_decoding_message_size(GRPC_MESSAGE_MAX);
        InterceptedService::new(service, self.standing())
    }

    fn control(&self, config: &Config) -> InterceptedService<ControlServiceServer<Control>, Standing> {
        let service = ControlServiceServer::new(Control {
            ledger: self.ledger.clone(),
            hub: self.hub.clone(),
            index: self.index.clone(),
            blobs: self.blobs.clone(),
            published: self.published.clone(),
            witnesses: self.witnesses.clone(),
            access: self.access.clone(),
            alerts: self.alerts.clone(),
            bundles: self.bundles.clone(),
            issuing: self.issuing.clone(),
            standing: self.standing(),
            approval: config.approval,
            retention: config.retention,
            stopping: self.stopping.clone(),
        })
        .max_encoding_message_size(REPLY_MAX);
        InterceptedService::new(service, self.standing())
    }

    fn ask_witnesses(&self, config: &Config) -> Option<JoinHandle<()>> {
        let (witnesses, every) = (self.witnesses.clone()?, config.witness.as_ref()?.every);
        Some(tokio::spawn(witness::run(witnesses, self.ledger.clone(), every, self.stopping.clone())))
    }

    fn retention(&self, config: &Config) -> Arc<Retention> {
        let (policy, keep_segments) = (config.retention, config.keep_segments);
        let (ledger, index, published) = (self.ledger.clone(), self.index.clone(), self.published.clone());
        let (blobs, alerts) = (self.blobs.clone(), self.alerts.clone());
        Arc::new(Retention { policy, keep_segments, ledger, index, published, blobs, alerts })
    }

    fn index_thread(&self) -> Result<std::thread::JoinHandle<()>> {
        let (index, stopping) = (self.index.clone(), self.stopping.clone());
        let path = index.path().display().to_string();
        let run = move || {
            while let Err(error) = index.run(&stopping) {
                tracing::error!(
                    %error, path, "the index does not follow the log; trying again. If its files are damaged, stop the \
                     collector and run `guard-collector reindex`: the log is not concerned"
                );
                std::thread::sleep(INDEX_RETRY);
            }
        };
        std::thread::Builder::new().name("index".to_owned()).spawn(run).map_err(internal)
    }
}

/// The signals that stop it.
struct Asked {
    term: Signal,
    int: Signal,
}

// === impl Asked ===

impl Asked {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(internal);
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn received(mut self) {
        tokio::select! {
            _ = self.term.recv() => tracing::info!("stopping: SIGTERM"),
            _ = self.int.recv() => tracing::info!("stopping: SIGINT"),
        }
    }
}

/// Writes the snapshot of admission, and removes write-ahead segments that are old.
async fn save(ledger: Arc<Ledger>, keep: Duration, stopping: watch::Receiver<bool>) {
    let mut ticks = Ticks::new(SNAPSHOT_EVERY, stopping);
    while ticks.next().await {
        let ledger = ledger.clone();
        let both = move || {
            said(ledger.save(SNAPSHOT_RECORDS));
            match ledger.store().prune_segments(keep) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "old write-ahead segments were removed"),
                Err(error) => tracing::warn!(%error, "old write-ahead segments were not removed"),
            }
        };
        // A panic in there has been said by the runtime.
        let _ = tokio::task::spawn_blocking(both).await;
    }
}

/// The next start takes longer, nothing else.
fn said(result: std::result::Result<(), String>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the snapshot of admission was not written");
    }
}

async fn drain(serving: JoinHandle<std::result::Result<(), tonic::transport::Error>>) {
    let abort = serving.abort_handle();
    match tokio::time::timeout(DRAIN, serving).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(%error, "serving ended"),
        Ok(Err(error)) => tracing::warn!(%error, "serving ended"),
        Err(_) => {
            tracing::warn!("calls were still running; they are cut");
            abort.abort();
        }
    }
}

fn finish(parts: &Parts, store: &Store, indexing: std::thread::JoinHandle<()>) -> Result<()> {
    if indexing.join().is_err() {
        tracing::error!("the index thread panicked");
    }
    let result = parts.published.publish(store).map_err(internal);
    store.close();
    said(parts.ledger.save(1));
    tracing::info!(size = store.size(), published = store.published().0, "collector stopped");
    result
}
