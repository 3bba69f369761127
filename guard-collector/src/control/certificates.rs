//! Join tokens and certificates, as an administrator asks for them.
//!
//! It must not be reached without the right to administer. Fails: what is refused names what is accepted; a log that takes no
//! records revokes nothing and says so.

use std::sync::Arc;
use std::time::Duration;

use guard_proto::v1::{
    CertificateState, CreateJoinTokenReply, CreateJoinTokenRequest, ListCertificatesReply, ListCertificatesRequest,
    RevokeCertificateReply, RevokeCertificateRequest,
};
use tonic::Status;

use super::{Control, blocking, short};
use crate::exit::{CollectorError, Exit};
use crate::identity::Caller;
use crate::node::NOT_ISSUING;
use crate::{issuing, pki, tokens};

/// Most certificates of one answer.
const LIST_MAX: usize = 10_000;

fn refused(error: CollectorError) -> Status {
    match error.kind {
        Exit::Usage => Status::invalid_argument(error.message),
        _ => Status::unavailable(error.message),
    }
}

impl Control {
    /// Makes a join token.
    pub(super) async fn join_token(
        &self,
        caller: &Caller,
        r: CreateJoinTokenRequest,
    ) -> Result<CreateJoinTokenReply, Status> {
        let issuing = self.issuing.clone().ok_or_else(|| Status::failed_precondition(NOT_ISSUING))?;
        let ttl = if r.ttl_seconds == 0 { tokens::TTL } else { Duration::from_secs(r.ttl_seconds) };
        let by = caller.name.clone();
        let made = blocking(move || {
            let ca = issuing.authority().pem();
            issuing.tokens().make(&r.name, &by, ttl, ca).map_err(refused)
        });
        let (token, expires) = made.await?;
        Ok(CreateJoinTokenReply { token, expires_unix_ns: expires.saturating_mul(1_000_000_000) })
    }

    /// Revokes.
    pub(super) async fn revoke(
        &self,
        caller: &Caller,
        r: RevokeCertificateRequest,
    ) -> Result<RevokeCertificateReply, Status> {
        let (ledger, by) = (Arc::clone(&self.ledger), caller.name.clone());
        let (leaf, text) = blocking(move || issuing::revoke(&ledger, &r.target, &by, &r.reason)).await?;
        Ok(RevokeCertificateReply { leaf, text })
    }

    /// Certificates on record that have not ended.
    pub(super) fn certificates(&self, r: &ListCertificatesRequest) -> Result<ListCertificatesReply, Status> {
        short(&[("name", &r.name)])?;
        let live = self.ledger.state().certificates.live(&r.name, pki::now());
        let certificates = live.into_iter().take(LIST_MAX).map(|(serial, issued, revoked)| CertificateState {
            name: issued.name,
            role: issued.role,
            serial,
            not_after_unix: issued.not_after,
            leaf: issued.leaf,
            revoked,
        });
        Ok(ListCertificatesReply { certificates: certificates.collect() })
    }
}
