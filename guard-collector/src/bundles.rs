//! The newest policy bundle: taken from an administrator, kept beside the log, handed to hosts.
//!
//! It must not make or change one: what counts is the admin key's signature, which hosts check too, so that a collector in the
//! wrong hands can withhold a policy but not loosen one. The record of a publication is durable before any host sees the bundle.
//! Fails: a bundle that is not signed, or not newer than the one before, is refused by name; a damaged file stops the start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_bundle::{Bundle, Manifest};
use guard_log::frame;
use guard_log::note::Verifier;
use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{PolicyBundle, PolicyPublished};
use prost::Message;
use tokio::sync::{Mutex, mpsc, watch};
use tonic::Status;

use crate::ledger::Ledger;
use crate::node::{stop_status, stopped};

/// In the folder of the store.
const FILE: &str = "policy.bundle";
/// Longest file: the files of a bundle, and its manifest.
const FILE_MAX: u64 = 4 << 20;
/// In the folder of the configuration: what `init` wrote.
const ADMIN_VKEY: &str = "admin.vkey";
const VKEY_MAX: u64 = 4096;

/// The newest bundle, and who waits for the next.
pub struct Bundles {
    path: PathBuf,
    admin: Option<Verifier>,
    /// One publication at a time.
    publishing: Mutex<()>,
    newest: watch::Sender<Option<Arc<Bundle>>>,
}

impl Bundles {
    /// Reads what was published last. `folder` is that of the configuration.
    pub fn open(store: &Path, folder: &Path) -> Result<Self, String> {
        let key = folder.join(ADMIN_VKEY);
        let admin = match frame::read_text(&key, VKEY_MAX) {
            Ok(text) => Some(Verifier::parse(text.trim()).map_err(|e| format!("{}: {e}", key.display()))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{}: {error}", key.display())),
        };
        let path = store.join(FILE);
        let newest = match frame::read_bounded(&path, FILE_MAX) {
            Ok(bytes) => Some(Arc::new(read(&bytes, admin.as_ref()).map_err(|e| {
                format!("{}: {e}: put the file back, or take it away and publish the policy again", path.display())
            })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Ok(Self { path, admin, publishing: Mutex::default(), newest: watch::Sender::new(newest) })
    }

    /// The newest.
    pub fn newest(&self) -> Option<Arc<Bundle>> {
        self.newest.borrow().clone()
    }

    /// Records one, keeps it and hands it on. Gives the record's leaf.
    pub async fn publish(&self, ledger: &Arc<Ledger>, by: &str, bytes: PolicyBundle) -> Result<(u64, String), Status> {
        let Some(admin) = &self.admin else {
            return Err(Status::failed_precondition(format!(
                "this collector knows no admin key: put {ADMIN_VKEY}, which `guard-collector init` wrote, beside its \
                 configuration and start it again"
            )));
        };
        let bundle = Bundle::open(bytes, admin).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let _one = self.publishing.lock().await;
        if let Some(before) = self.newest() {
            let (old, new) = (before.manifest().serial(), bundle.manifest().serial());
            if new <= old {
                return Err(Status::failed_precondition(format!(
                    "serial {new}: hosts have bundle {old} already; sign it again with a higher serial"
                )));
            }
        }
        let (recording, record) = (ledger.clone(), published(&bundle, by, admin));
        let said = tokio::task::spawn_blocking(move || recording.say(SessionId::NONE, Body::PolicyPublished(record)));
        let (leaf, durable) = said.await.map_err(|e| Status::internal(e.to_string()))??;
        durable.wait().await?;
        let (path, encoded) = (self.path.clone(), bundle.bytes().encode_to_vec());
        let kept = tokio::task::spawn_blocking(move || frame::replace(&path, &encoded));
        kept.await.map_err(|e| Status::internal(e.to_string()))?.map_err(|e| {
            tracing::error!(error = %e, "a published policy cannot be kept");
            Status::unavailable(format!("the bundle cannot be kept: {e}; no host has it; publish it again"))
        })?;
        let digest = bundle.digest().to_owned();
        tracing::info!(serial = bundle.manifest().serial(), digest, by, leaf, "a policy bundle was published");
        self.newest.send_replace(Some(Arc::new(bundle)));
        Ok((leaf, digest))
    }

    /// Sends the newest and each that follows, as far as they are newer than what the host has.
    pub async fn feed(
        &self,
        mut have: u64,
        out: &mpsc::Sender<Result<PolicyBundle, Status>>,
        stopping: watch::Receiver<bool>,
    ) {
        let mut newest = self.newest.subscribe();
        loop {
            let bundle = newest.borrow_and_update().clone();
            if let Some(bundle) = bundle.filter(|bundle| bundle.manifest().serial() > have) {
                have = bundle.manifest().serial();
                if out.send(Ok(bundle.bytes().clone())).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = out.closed() => return,
                () = stopped(stopping.clone()) => {
                    let _ = out.send(Err(stop_status())).await;
                    return;
                }
            }
        }
    }
}

fn read(bytes: &[u8], admin: Option<&Verifier>) -> Result<Bundle, String> {
    let admin = admin.ok_or_else(|| format!("there is no {ADMIN_VKEY} to check it with"))?;
    let bytes = PolicyBundle::decode(bytes).map_err(|e| e.to_string())?;
    Bundle::open(bytes, admin).map_err(|e| e.to_string())
}

fn published(bundle: &Bundle, by: &str, admin: &Verifier) -> PolicyPublished {
    let manifest: &Manifest = bundle.manifest();
    let nanoseconds = manifest.made_unix().saturating_mul(1_000_000_000);
    PolicyPublished {
        serial: manifest.serial(),
        digest: bundle.digest().to_owned(),
        by: by.to_owned(),
        stages: manifest.stages().iter().map(|(agent, stage)| format!("{agent} {stage}")).collect(),
        files: bundle.bytes().files.iter().map(|file| file.name.clone()).collect(),
        admin_key: admin.vkey(),
        made_unix_ns: i64::try_from(nanoseconds).unwrap_or(i64::MAX),
    }
}
