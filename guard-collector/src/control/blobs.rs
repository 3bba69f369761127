//! Reading and erasing blobs.
//!
//! It must not erase before the record of that is durable.

use guard_log::record::SessionId;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{BlobErased, EraseBlobRequest, GetBlobRequest};
use tonic::Status;

use super::{Control, blocking, short};
use crate::blobs::{BlobError, BlobId};
use crate::identity::Caller;

impl From<BlobError> for Status {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Refused(..) => Status::invalid_argument(error.to_string()),
            BlobError::Io(..) => {
                tracing::error!(%error, "a blob cannot be kept or read");
                Status::unavailable(error.to_string())
            }
        }
    }
}

fn id(bytes: &[u8]) -> Result<BlobId, Status> {
    bytes.try_into().map_err(|_| Status::invalid_argument("sha256: 32 bytes are accepted"))
}

impl Control {
    async fn read_blob(&self, id: BlobId) -> Result<Vec<u8>, Status> {
        let blobs = self.blobs.clone();
        let found = blocking(move || Ok(blobs.get(&id)?)).await?;
        found.ok_or_else(|| Status::not_found(format!("no blob {}: it was erased, or never came", hex::encode(id))))
    }

    pub(super) async fn blob(&self, asked: GetBlobRequest) -> Result<Vec<u8>, Status> {
        self.read_blob(id(&asked.sha256)?).await
    }

    /// The leaf of the record that says so.
    pub(super) async fn erase_blob(&self, caller: &Caller, asked: EraseBlobRequest) -> Result<u64, Status> {
        let id = id(&asked.sha256)?;
        short(&[("reason", &asked.reason)])?;
        if asked.reason.is_empty() {
            return Err(Status::invalid_argument("reason: say why; it is recorded"));
        }
        let bytes = self.read_blob(id).await?.len() as u64;
        let erased = BlobErased { sha256: id.to_vec(), by: caller.name.clone(), reason: asked.reason, bytes };
        let ledger = self.ledger.clone();
        let (leaf, durable) = blocking(move || Ok(ledger.say(SessionId::NONE, Body::BlobErased(erased))?)).await?;
        durable.wait().await?;
        let blobs = self.blobs.clone();
        blocking(move || Ok(blobs.erase(&id)?)).await?;
        tracing::info!(blob = hex::encode(id), by = %caller.name, leaf, "a blob was erased");
        Ok(leaf)
    }
}
