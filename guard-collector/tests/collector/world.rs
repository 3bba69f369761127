//! A collector in a folder of its own: started, stopped, killed, started again; and clients with certificates.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guard_log::record::Record;
use guard_log::verify::{AuditOptions, AuditReport, Source, SourceError, audit};
use guard_proto::GRPC_MESSAGE_MAX;
use guard_proto::v1::control_service_client::ControlServiceClient;
use guard_proto::v1::node_service_client::NodeServiceClient;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub const BINARY: &str = env!("CARGO_BIN_EXE_guard-collector");

pub type ControlClient = ControlServiceClient<Channel>;
pub type NodeClient = NodeServiceClient<Channel>;

/// Runs a command of the binary.
pub fn command(args: &[&str]) -> std::process::Output {
    Command::new(BINARY).args(args).output().expect("runs")
}

pub struct World {
    folder: TempDir,
    server: Option<Child>,
    address: String,
    enrol_address: String,
    said: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// A new collector, serving on a free port.
    pub fn new() -> World {
        let mut world = World::stopped();
        world.start();
        world
    }

    pub fn stopped() -> World {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let (address, enrol_address) = (String::new(), String::new());
        let world = World { folder, server: None, address, enrol_address, said: Arc::default() };
        let dir = world.path("c");
        let made = command(&["init", "--dir", dir.to_str().expect("UTF-8"), "--name", "box"]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        world.edit_config("127.0.0.1:7443", "127.0.0.1:0");
        for (name, role) in [("bob", "reviewer"), ("alice", "reviewer"), ("vera", "viewer"), ("box2", "node")] {
            world.client(name, role);
        }
        // Tests count leaves: what these commands ask to put on record stays out of their logs.
        std::fs::remove_dir_all(world.path("c/enrol")).expect("removed");
        world
    }

    /// A new collector where hosts can enrol, for certificates of so many seconds.
    pub fn enrolling(node_seconds: u64) -> World {
        let mut world = World::stopped();
        world.edit_config("# enrol_listen = \"127.0.0.1:7444\"", "enrol_listen = \"127.0.0.1:0\"");
        world.edit_config("node_seconds = 86400", &format!("node_seconds = {node_seconds}"));
        world.start();
        world
    }

    /// Where hosts enrol.
    pub fn enrol_address(&self) -> &str {
        &self.enrol_address
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("c/collector.toml")
    }

    pub fn edit_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).expect("read");
        assert!(text.contains(from));
        std::fs::write(self.config(), text.replace(from, to)).expect("written");
    }

    pub fn client(&self, name: &str, role: &str) {
        let (dir, out) = (self.path("c"), self.path("c/clients").join(name));
        let (dir, out) = (dir.to_str().expect("UTF-8"), out.to_str().expect("UTF-8"));
        let made = command(&["client", "--dir", dir, "--name", name, "--role", role, "--out", out]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    pub fn start(&mut self) {
        // Where a limit on file size stands for a full disk, writes shall fail and not end the process.
        let mut child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve --config \"$1\"", BINARY])
            .arg(self.config())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let mut said = String::new();
        self.address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it did not start: {said}")).expect("text");
            if let Some((_, at)) = line.split_once("can enrol at=") {
                self.enrol_address = at.to_owned();
            }
            if let Some(address) = line.split("address=").nth(1) {
                break address.split(' ').next().expect("address").to_owned();
            }
            said.push_str(&line);
        };
        // A full pipe would stop the collector.
        self.said = Arc::default();
        let said = Arc::clone(&self.said);
        std::thread::spawn(move || {
            let keep = |line| said.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            lines.map_while(Result::ok).for_each(keep);
        });
        self.server = Some(child);
    }

    /// What it said in its last run since it listens.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it still runs; one that has ended by itself is then gone.
    pub fn runs(&mut self) -> bool {
        self.server.as_mut().is_some_and(|child| child.try_wait().expect("waited").is_none())
    }

    /// Starts it and kills it so long afterwards, wherever it is by then.
    pub fn start_and_kill(&self, after: Duration) {
        let mut serve = Command::new(BINARY);
        serve.args(["serve", "--config"]).arg(self.config()).stderr(Stdio::null());
        let mut child = serve.spawn().expect("starts");
        std::thread::sleep(after);
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    pub fn pid(&self) -> u32 {
        self.server.as_ref().expect("serves").id()
    }

    pub fn kill(&mut self) {
        let mut child = self.server.take().expect("serves");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// SIGTERM; must end well. It waits for connections to end, so that tests run on two threads: one answers while this one waits.
    pub fn stop(&mut self) {
        let mut child = self.server.take().expect("serves");
        let pid = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        assert!(child.wait().expect("ends").success());
    }

    pub async fn channel(&self, certificates: &Path) -> Result<Channel, tonic::transport::Error> {
        let read = |name: &str| std::fs::read(certificates.join(name)).expect("certificate");
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(std::fs::read(self.path("c/ca/ca.pem")).expect("CA")))
            .identity(Identity::from_pem(read("cert.pem"), read("key.pem")))
            .domain_name("localhost");
        self.endpoint(tls).connect().await
    }

    pub fn endpoint(&self, tls: ClientTlsConfig) -> Endpoint {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).expect("address");
        endpoint.tls_config(tls).expect("TLS").timeout(Duration::from_secs(20))
    }

    pub async fn control(&self, name: &str) -> ControlClient {
        let channel = self.channel(&self.path("c/clients").join(name)).await.expect("connects");
        ControlServiceClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_MAX)
    }

    pub async fn node(&self, name: &str) -> NodeClient {
        NodeServiceClient::new(self.channel(&self.path("c/clients").join(name)).await.expect("connects"))
    }

    /// Every record of the log, in order.
    pub async fn records(&self) -> Vec<Record> {
        let mut client = self.control("admin").await;
        let at_least = client.status(StatusRequest {}).await.expect("status").into_inner().log_size;
        let mut records: Vec<Record> = vec![];
        loop {
            let after_leaf = records.len().saturating_sub(1) as u64;
            let has_after_leaf = !records.is_empty();
            let query = QueryRequest { limit: 10_000, at_least, after_leaf, has_after_leaf, ..QueryRequest::default() };
            let mut stream = client.query(query).await.expect("query").into_inner();
            let before = records.len();
            while let Some(entry) = stream.message().await.expect("entry") {
                assert_eq!(entry.leaf, records.len() as u64);
                records.push(Record::parse(entry.record).expect("a record"));
            }
            if records.len() == before {
                break;
            }
        }
        assert_eq!(records.len() as u64, at_least);
        records
    }

    /// What admission said, in order, with the numbers expected and got.
    pub async fn findings(&self) -> Vec<(String, u64, u64)> {
        let records = self.records().await;
        let findings = records.iter().filter_map(|r| match guard_collector::body::parse(r) {
            Some(Body::AdmitFinding(f)) => Some((f.what, f.expected_seq, f.got_seq)),
            _ => None,
        });
        findings.collect()
    }

    /// Audits the public tree as an outsider would, from the folder.
    pub fn audit(&self) -> AuditReport {
        let vkey = std::fs::read_to_string(self.path("c/log.vkey")).expect("vkey");
        let verifier = guard_log::note::Verifier::parse(vkey.trim()).expect("vkey");
        let tree = Tree(self.path("c/data/log"));
        audit(&tree, &verifier, &AuditOptions { previous: None, ..AuditOptions::default() }, &mut |_, _| {})
            .expect("verifies")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

struct Tree(PathBuf);

impl Source for Tree {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        match std::fs::read(self.0.join(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(SourceError::new(path, e)),
        }
    }
}
