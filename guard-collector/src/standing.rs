//! Whether a caller's certificate still counts: asked before every call of both services, and for as long as a stream is open.
//!
//! TLS has verified the certificate when the connection began; what became of it since is known here alone: the log may have
//! revoked it, and it may have ended. It must not give rights: those are `identity`'s and `access`'. Fails closed: a call without
//! a certificate that can be read is refused.

use std::sync::Arc;
use std::time::Duration;

use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::identity::Certificate;
use crate::ledger::Ledger;
use crate::pki;

/// Longest wait in one piece: the wall clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(30);

/// Asks the log.
#[derive(Clone)]
pub struct Standing(Arc<Ledger>);

impl Standing {
    /// By this log.
    pub fn new(ledger: Arc<Ledger>) -> Self {
        Self(ledger)
    }

    /// Refuses a certificate that was revoked or has ended.
    pub fn check(&self, certificate: &Certificate) -> Result<(), Status> {
        let Certificate { caller, serial, not_after, .. } = certificate;
        if let Some(revocation) = self.0.state().certificates.revoked(&caller.name, serial) {
            return Err(Status::unauthenticated(format!(
                "the certificate of {} (serial {serial}) is revoked, by record {} of the log; an admin can issue another \
                 one, a node then enrols again",
                caller.name, revocation.leaf
            )));
        }
        if *not_after <= pki::now() {
            return Err(Status::unauthenticated(format!(
                "the certificate of {} (serial {serial}) has ended; a node enrols again with a join token, people run \
                 `guardctl login` or get another one from an admin",
                caller.name
            )));
        }
        Ok(())
    }

    /// Waits until the certificate no longer counts, and says why.
    pub async fn ended(&self, certificate: &Certificate) -> Status {
        let mut revocations = self.0.revocations();
        loop {
            if let Err(status) = self.check(certificate) {
                tracing::warn!(name = %certificate.caller.name, serial = %certificate.serial, "a stream is cut: {}", status.message());
                return status;
            }
            let left = certificate.not_after.saturating_sub(pki::now());
            let left = Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(LOOK);
            tokio::select! {
                // The ledger outlives every stream.
                _ = revocations.changed() => {}
                () = tokio::time::sleep(left.max(Duration::from_millis(100))) => {}
            }
        }
    }

    /// The certificate of a request that came past [`Interceptor::call`].
    pub fn of<T>(request: &Request<T>) -> Result<Arc<Certificate>, Status> {
        let found = request.extensions().get::<Arc<Certificate>>().cloned();
        found.ok_or_else(|| Status::internal("a call came in without a look at its certificate"))
    }
}

impl Interceptor for Standing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let certificate = Certificate::of(&request)?;
        if let Err(status) = self.check(&certificate) {
            tracing::warn!(name = %certificate.caller.name, serial = %certificate.serial, "refused: {}", status.message());
            return Err(status);
        }
        request.extensions_mut().insert(Arc::new(certificate));
        Ok(request)
    }
}
