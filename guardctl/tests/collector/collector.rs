//! A control service with fixed answers, and certificates made for the test.

use std::fs;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use guard_proto::v1::control_service_server::{ControlService, ControlServiceServer};
use guard_proto::v1::*;
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
        let decided = Arc::new(Mutex::new(None));
        let service = Service { decided: Arc::clone(&decided), folder: folder.path().to_owned() };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let port = listener.local_addr().expect("address").port();
        let config = format!(
            "collector = \"https://localhost:{port}\"\nca = \"ca.pem\"\ncert = \"cert.pem\"\nkey = \"key.pem\"\nstate = \"state.json\"\n"
        );
        fs::write(folder.path().join("guardctl.toml"), config).expect("written");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || serve(listener, tls, service, stopped));
        Collector { folder, decided, stop, thread }
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
    folder: PathBuf,
}

type Entries = Pin<Box<dyn Stream<Item = Result<LogEntry, Status>> + Send>>;

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
    Review { request: Some(request), state: "pending".into(), ..Review::default() }
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

    async fn list_reviews(&self, _: Request<ListReviewsRequest>) -> Result<Response<ListReviewsReply>, Status> {
        Ok(Response::new(ListReviewsReply { reviews: vec![review()], log_size: 9 }))
    }

    async fn get_review(&self, r: Request<GetReviewRequest>) -> Result<Response<Review>, Status> {
        match r.get_ref().request_id.as_str() {
            REQUEST => Ok(Response::new(review())),
            id => Err(Status::not_found(format!("no request `{id}`"))),
        }
    }

    async fn decide(&self, r: Request<DecideRequest>) -> Result<Response<DecideReply>, Status> {
        *self.decided.lock().expect("lock") = Some(r.into_inner());
        Ok(Response::new(DecideReply { leaf: 77, review: None }))
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
