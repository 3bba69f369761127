//! Which calls a caller's roles let through: the checks that several calls share.
//!
//! It must not answer a call. Fails closed: what `access` does not give is `PERMISSION_DENIED`, with the right that is missing.

use std::sync::Arc;

use guard_policy::roles;
use guard_proto::v1::Review;
use tokio_stream::StreamExt;
use tonic::{Request, Status};

use super::reviews::asked;
use super::{Control, Entries};
use crate::identity::{Caller, Certificate, Right};
use crate::node::{stop_status, stopped};

impl Control {
    /// A caller who may read what is recorded.
    pub(super) fn reader<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = Caller::of(request, Right::Read)?;
        self.access.check(&caller, roles::Right::Query)?;
        Ok(caller)
    }

    /// A caller who may read requests, all or some.
    pub(super) fn review_reader<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = Caller::of(request, Right::Read)?;
        if !self.access.sees(&caller, None) {
            self.access.reviews_anything(&caller, &self.delegations_to(&caller))?;
        }
        Ok(caller)
    }

    /// Refuses to show a request to who may neither query nor decide it.
    pub(super) fn may_see(&self, caller: &Caller, review: &Review) -> Result<(), Status> {
        let delegations = self.delegations_to(caller);
        let asked = asked(review, &delegations);
        if self.access.sees(caller, asked) {
            return Ok(());
        }
        match asked {
            Some(asked) => self.access.may_review(caller, asked),
            None => self.access.check(caller, roles::Right::Query),
        }
    }

    /// A caller who may administer.
    pub(super) fn administrator<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = Caller::of(request, Right::Administer)?;
        self.access.check(&caller, roles::Right::Administer)?;
        Ok(caller)
    }

    /// Ends a stream at the first record that its caller may no longer read.
    pub(super) fn while_reader(&self, caller: Caller, entries: Entries) -> Entries {
        let access = Arc::clone(&self.access);
        Box::pin(entries.map(move |entry| access.check(&caller, roles::Right::Query).and(entry)))
    }

    /// Waits for the end of every stream of a caller: the collector stops, or the certificate no longer counts.
    pub(super) fn over(&self, certificate: Arc<Certificate>) -> impl Future<Output = Status> + Send + 'static {
        let (standing, stopping) = (self.standing.clone(), self.stopping.clone());
        async move {
            tokio::select! {
                status = standing.ended(&certificate) => status,
                () = stopped(stopping) => stop_status(),
            }
        }
    }
}
