//! A control service with fixed answers, and certificates made for the test.

use std::fs;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use guard_log::record::{Epoch, Header, HostId, Kind, Record, SessionId};
use guard_policy::decision::{DelegationStatement, Statement};
use guard_proto::v1::control_service_server::{ControlService, ControlServiceServer};
use guard_proto::v1::*;
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// The one request that waits.
pub const REQUEST: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";

/// The log that is served, in the collector's folder, and the file with its key.
pub const PUBLIC: &str = "log/data/log";
pub const VKEY: &str = "vkey";

/// A running collector.
pub struct Collector {
    folder: TempDir,
    decided: Arc<Mutex<Option<DecideRequest>>>,
    delegated: Arc<Mutex<Option<Delegation>>>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Collector {
    /// Makes certificates, listens on a free port, writes a configuration.
    pub fn start() -> Collector {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut ca = CertificateParams::new(vec![]).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("key")).expect("CA");
        let issue = |names: &[&str]| {
            let key = KeyPair::generate().expect("key");
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            let certificate = CertificateParams::new(names).expect("parameters").signed_by(&key, &ca).expect("signed");
            (certificate.pem(), key.serialize_pem())
        };
        let (server, client) = (issue(&["localhost"]), issue(&[]));
        for (name, text) in
            [("ca.pem", &ca.pem()), ("cert.pem", &client.0), ("key.pem", &client.1), ("key-copy.pem", &client.1)]
        {
            fs::write(folder.path().join(name), text).expect("written");
        }
        let tls = ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(server.0, server.1))
            .client_ca_root(Certificate::from_pem(ca.pem()));
        let (decided, delegated) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(None)));
        let service = Service {
            decided: Arc::clone(&decided),
            delegated: Arc::clone(&delegated),
            folder: folder.path().to_owned(),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("address").port();
        let config = format!(
            "collector = \"https://localhost:{port}\"\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\nstate = \"state.json\"\n"
        );
        fs::write(folder.path().join("guardctl.toml"), config).expect("written");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || serve(listener, tls, service, stopped));
        Collector { folder, decided, delegated, stop, thread }
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.file("guardctl.toml")
    }

    /// A file beside it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The decision that was sent.
    pub fn decided(&self) -> DecideRequest {
        self.decided.lock().expect("lock").clone().expect("a decision was sent")
    }

    /// The delegation that was made; a request that is fetched from now on is acted on by it.
    pub fn delegated(&self) -> Delegation {
        self.delegated.lock().expect("lock").clone().expect("a delegation was made")
    }

    /// Whether none was.
    pub fn nothing_decided(&self) -> bool {
        self.decided.lock().expect("lock").is_none()
    }

    /// Stops listening.
    pub fn stop(self) -> TempDir {
        let _ = self.stop.send(());
        self.thread.join().expect("ends");
        self.folder
    }
}

fn serve(listener: std::net::TcpListener, tls: ServerTlsConfig, service: Service, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        listener.set_nonblocking(true).expect("set");
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let server = Server::builder().tls_config(tls).expect("TLS").add_service(ControlServiceServer::new(service));
        tokio::select! {
            ended = server.serve_with_incoming(TcpListenerStream::new(listener)) => ended.expect("serves"),
            _ = stopped => {}
        }
    });
}

struct Service {
    decided: Arc<Mutex<Option<DecideRequest>>>,
    delegated: Arc<Mutex<Option<Delegation>>>,
    folder: PathBuf,
}

type Entries = Pin<Box<dyn Stream<Item = Result<LogEntry, Status>> + Send>>;

/// One of critical risk, and how it is called again.
pub const CRITICAL: [&str; 2] = ["01KG9F6V00ABCDEFGHJKMNPQRS", "01KG9F6W00ABCDEFGHJKMNPQRT"];

fn critical(id: &str) -> Review {
    let mut review = review();
    let request = review.request.as_mut().expect("a request");
    request.request_id = id.into();
    request.identity = Some(Identity { session_id: "S".into(), ..Identity::default() });
    request.verdict.as_mut().expect("a verdict").risk = 80;
    let file = FileFact { path: b"/usr/bin/git".to_vec(), role: "program".into(), ..FileFact::default() };
    request.facts.as_mut().expect("facts").files = vec![file];
    review.record = record(request);
    review
}

fn review() -> Review {
    let facts = ExecFacts {
        argv: ["git", "commit", "-m", "it's done"].map(|a| a.as_bytes().to_vec()).to_vec(),
        ..ExecFacts::default()
    };
    let verdict = Verdict { category: "vcs.write".into(), tier: Tier::Review.into(), ..Verdict::default() };
    let request = ExecRequest {
        request_id: REQUEST.into(),
        facts: Some(facts),
        verdict: Some(verdict),
        digest: vec![0xcd; 32],
        ..ExecRequest::default()
    };
    let record = record(&request);
    let approval_until_unix_ns = i64::MAX;
    Review { request: Some(request), state: "pending".into(), record, approval_until_unix_ns, ..Review::default() }
}

/// As a host logged it.
fn record(request: &ExecRequest) -> Vec<u8> {
    let header = Header {
        version: 1,
        kind: Kind::EXEC_REQUEST,
        host: HostId([1; 16]),
        epoch: Epoch([2; 16]),
        seq: 0,
        prev: [0; 32],
        boot_ns: 0,
        wall_unix_ns: 0,
        session: SessionId::NONE,
    };
    let body = RecordBody { body: Some(record_body::Body::ExecRequest(request.clone())) }.encode_to_vec();
    Record::seal(&header, &body).expect("sealed").bytes().to_vec()
}

/// What a reviewer signs of a decision about the request.
pub fn statement<'a>(decision: &'a DecideRequest, reviewer: &'a str) -> Statement<'a> {
    Statement {
        request_id: REQUEST,
        digest: &[0xcd; 32],
        record_sha256: &decision.record_sha256,
        approve: decision.approve,
        scope: &decision.scope,
        categories: &decision.categories,
        max_execs: decision.max_execs,
        expires_unix_ns: decision.expires_unix_ns,
        reason: &decision.reason,
        reviewer,
        decided_unix_ns: decision.decided_unix_ns,
        delegation_id: &decision.delegation_id,
    }
}

/// What the maker of a delegation signs.
pub fn delegation(d: &Delegation) -> DelegationStatement<'_> {
    DelegationStatement {
        id: &d.id,
        from: &d.from,
        to: &d.to,
        categories: &d.categories,
        max_risk: d.max_risk,
        made_unix_ns: d.made_unix_ns,
        until_unix_ns: d.until_unix_ns,
        reason: &d.reason,
    }
}

#[tonic::async_trait]
impl ControlService for Service {
    type QueryStream = Entries;
    type TailStream = Entries;

    async fn who_am_i(&self, _: Request<WhoAmIRequest>) -> Result<Response<WhoAmIReply>, Status> {
        let roles = vec!["reviewer".into(), "viewer".into()];
        Ok(Response::new(WhoAmIReply { name: "bob".into(), roles, ..WhoAmIReply::default() }))
    }

    async fn can_i(&self, request: Request<CanIRequest>) -> Result<Response<CanIReply>, Status> {
        let asked = request.into_inner();
        let reason = format!("bob and {}", asked.right);
        Ok(Response::new(CanIReply { allowed: asked.right == "review", reason }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let report = NodeReport { mode: "enforcing".into(), ..NodeReport::default() };
        let node = NodeState { node: "devbox".into(), connected: true, report: Some(report), ..NodeState::default() };
        let log_vkey = fs::read_to_string(self.folder.join(VKEY)).unwrap_or_default();
        Ok(Response::new(StatusReply { nodes: vec![node], log_vkey, ..StatusReply::default() }))
    }

    /// Gives two at a time.
    async fn list_sessions(&self, r: Request<ListSessionsRequest>) -> Result<Response<ListSessionsReply>, Status> {
        let first: u32 = r.get_ref().page_token.parse().unwrap_or(0);
        let count = r.get_ref().limit.min(2);
        let session = |n| SessionSummary { session_id: format!("S{n}"), ..SessionSummary::default() };
        let sessions = (first..first + count).map(session).collect();
        let next_page_token = (first + count).to_string();
        Ok(Response::new(ListSessionsReply { sessions, next_page_token, log_size: 9 }))
    }

    async fn get_session(&self, _: Request<GetSessionRequest>) -> Result<Response<GetSessionReply>, Status> {
        Err(Status::not_found("no such session"))
    }

    async fn list_reviews(&self, r: Request<ListReviewsRequest>) -> Result<Response<ListReviewsReply>, Status> {
        let reviews = match r.get_ref().session_id.as_str() {
            "S" => CRITICAL.map(critical).to_vec(),
            _ => vec![review()],
        };
        Ok(Response::new(ListReviewsReply { reviews, log_size: 9 }))
    }

    async fn get_review(&self, r: Request<GetReviewRequest>) -> Result<Response<Review>, Status> {
        match r.get_ref().request_id.as_str() {
            REQUEST => {
                let acting_for = self.delegated.lock().expect("lock").clone();
                Ok(Response::new(Review { acting_for, ..review() }))
            }
            id if CRITICAL.contains(&id) => Ok(Response::new(critical(id))),
            id => Err(Status::not_found(format!("no request `{id}`"))),
        }
    }

    async fn decide(&self, r: Request<DecideRequest>) -> Result<Response<DecideReply>, Status> {
        *self.decided.lock().expect("lock") = Some(r.into_inner());
        Ok(Response::new(DecideReply { leaf: 77, review: None }))
    }

    async fn revoke(&self, r: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        match r.get_ref().request_id.as_str() {
            REQUEST => Ok(Response::new(RevokeReply { leaf: 78 })),
            id => Err(Status::not_found(format!("no request `{id}`"))),
        }
    }

    async fn review_stats(&self, r: Request<ReviewStatsRequest>) -> Result<Response<ReviewStatsReply>, Status> {
        let since_unix_ns = r.get_ref().since_unix_ns;
        let bob = ReviewerStats { reviewer: "bob".into(), decisions: 4, approved: 3, ..ReviewerStats::default() };
        Ok(Response::new(ReviewStatsReply { reviewers: vec![bob], log_size: 9, since_unix_ns }))
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<Entries>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn tail(&self, _: Request<TailRequest>) -> Result<Response<Entries>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    /// Serves the log that a test made; where there is none the caller has no right.
    async fn read_log(&self, r: Request<ReadLogRequest>) -> Result<Response<ReadLogReply>, Status> {
        let public = self.folder.join(PUBLIC);
        if !public.is_dir() {
            return Err(Status::permission_denied("needs the role viewer"));
        }
        match fs::read(public.join(&r.get_ref().path)) {
            Ok(content) => Ok(Response::new(ReadLogReply { content })),
            Err(_) => Err(Status::not_found("no such resource")),
        }
    }

    async fn prove(&self, _: Request<ProveRequest>) -> Result<Response<ProveReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn publish_policy(&self, _: Request<PublishPolicyRequest>) -> Result<Response<PublishPolicyReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn get_policy(&self, _: Request<GetPolicyRequest>) -> Result<Response<PolicyBundle>, Status> {
        Err(Status::not_found("no policy bundle was published at this collector"))
    }

    async fn get_blob(&self, _: Request<GetBlobRequest>) -> Result<Response<GetBlobReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn erase_blob(&self, _: Request<EraseBlobRequest>) -> Result<Response<EraseBlobReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn delegate(&self, r: Request<DelegateRequest>) -> Result<Response<DelegateReply>, Status> {
        *self.delegated.lock().expect("lock") = r.into_inner().delegation;
        Ok(Response::new(DelegateReply { leaf: 79 }))
    }

    async fn undelegate(&self, r: Request<UndelegateRequest>) -> Result<Response<UndelegateReply>, Status> {
        match &*self.delegated.lock().expect("lock") {
            Some(d) if d.id == r.get_ref().id => Ok(Response::new(UndelegateReply { leaf: 80 })),
            _ => Err(Status::not_found("no such delegation")),
        }
    }

    async fn list_delegations(
        &self,
        _: Request<ListDelegationsRequest>,
    ) -> Result<Response<ListDelegationsReply>, Status> {
        let delegated = self.delegated.lock().expect("lock").clone();
        let state = |d| DelegationState { delegation: Some(d), leaf: 79 };
        Ok(Response::new(ListDelegationsReply { delegations: delegated.map(state).into_iter().collect() }))
    }

    async fn create_join_token(
        &self,
        _: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn revoke_certificate(
        &self,
        _: Request<RevokeCertificateRequest>,
    ) -> Result<Response<RevokeCertificateReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn list_certificates(
        &self,
        _: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}
