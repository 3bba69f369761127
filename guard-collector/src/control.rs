//! `ControlService`: what people and services ask.
//!
//! It must not answer anybody without a role, must not show a record that is not durable, and takes decisions from the
//! ledger, never from the index. Fails: an answer that the index cannot give in time says so; a log that takes no records
//! refuses decisions with `UNAVAILABLE`, reading goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use guard_log::record::{HostId, SessionId};
use guard_log::store::StoreError;
use guard_policy::roles;
use guard_proto::v1::control_service_server::ControlService;
use guard_proto::v1::*;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::access::Access;
use crate::alerts::Alerts;
use crate::blobs::Blobs;
use crate::bundles::Bundles;
use crate::hub::Hub;
use crate::identity::{Caller, Right};
use crate::index::{Filter, Index, IndexError, SessionFilter};
use crate::issuing::Issuing;
use crate::ledger::Ledger;
use crate::own::now_ns;
use crate::proofs;
use crate::publish::Published;
use crate::retention::Policy;
use crate::reviews::decision_of;
use crate::standing::Standing;
use crate::witness::Witnesses;

mod blobs;
mod certificates;
mod delegations;
mod reviews;
mod rights;
mod stream;

/// Sessions and requests in one answer, unless fewer are asked for.
const LIST_DEFAULT: u32 = 100;
const LIST_MAX: u32 = 500;
/// Records in one answer of `Query`.
const QUERY_DEFAULT: u32 = 100;
const QUERY_MAX: u32 = 10_000;
/// Records of a session in one answer; the rest by `Query`.
const SESSION_RECORDS: u32 = 5_000;
/// Bytes of records or requests in one message, below what clients accept.
const MESSAGE_BYTES: usize = 4 << 20;
const TEXT_MAX: usize = 256;
const PATH_MAX: usize = 256;
/// Longest path of a program that can be asked for: Linux's own limit.
const PROGRAM_MAX: usize = 4096;

type Entries = Pin<Box<dyn Stream<Item = Result<LogEntry, Status>> + Send>>;

/// The service.
#[derive(Clone)]
pub struct Control {
    /// The way into the log.
    pub ledger: Arc<Ledger>,
    /// Who listens.
    pub hub: Arc<Hub>,
    /// What answers questions.
    pub index: Arc<Index>,
    /// What records keep outside the log.
    pub blobs: Blobs,
    /// When the checkpoint was published.
    pub published: Arc<Published>,
    /// Who cosigns the log.
    pub witnesses: Option<Arc<Witnesses>>,
    /// Who is told of what somebody has to look at.
    pub alerts: Arc<Alerts>,
    /// What roles give callers.
    pub access: Arc<Access>,
    /// The newest policy bundle.
    pub bundles: Arc<Bundles>,
    /// Issues certificates, if this collector does.
    pub issuing: Option<Arc<Issuing>>,
    /// Whether a caller's certificate still counts.
    pub standing: Standing,
    /// How long an approval may be used.
    pub approval: Duration,
    /// How long entries stay; for ever if none.
    pub retention: Option<Policy>,
    /// Becomes true when the collector stops.
    pub stopping: watch::Receiver<bool>,
}

impl From<IndexError> for Status {
    fn from(error: IndexError) -> Self {
        match error {
            IndexError::Behind(..) => Status::deadline_exceeded(error.to_string()),
            IndexError::Store(_) => Status::unavailable(error.to_string()),
            IndexError::Dropped { .. } => Status::failed_precondition(error.to_string()),
            IndexError::Damaged { .. } | IndexError::Sqlite(_) | IndexError::Io(..) | IndexError::Thread(_) => {
                tracing::error!(%error, "the index failed; `guard-collector reindex` makes it anew");
                Status::internal(error.to_string())
            }
        }
    }
}

fn limit(asked: u32, default: u32, max: u32) -> u32 {
    if asked == 0 { default } else { asked.min(max) }
}

fn short(fields: &[(&str, &str)]) -> Result<(), Status> {
    match fields.iter().find(|(_, value)| value.len() > TEXT_MAX) {
        Some((name, _)) => Err(Status::invalid_argument(format!("{name}: at most {TEXT_MAX} bytes are accepted"))),
        None => Ok(()),
    }
}

fn unreadable(error: StoreError) -> Status {
    match error {
        StoreError::Path(_) => Status::invalid_argument(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

/// Runs what blocks away from the async threads.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(f).await.map_err(|e| Status::internal(e.to_string()))?
}

impl Control {
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Index) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, Status> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(question(&index)?)).await
    }

    fn nodes(&self) -> Vec<NodeState> {
        let hosts: Vec<_> = self.ledger.state().admit.hosts().collect();
        let mut names: std::collections::BTreeSet<String> = self.hub.nodes().into_iter().collect();
        names.extend(hosts.iter().map(|h| h.node.clone()));
        names
            .into_iter()
            .map(|node| {
                let (connected, report) = self.hub.node(&node);
                let host = hosts.iter().find(|h| h.node == node);
                let (report, seen_unix_ns) = report.map_or((None, 0), |(r, seen)| (Some(r), seen));
                NodeState {
                    report,
                    seen_unix_ns,
                    connected,
                    next_seq: host.map_or(0, |h| h.next_seq),
                    findings: host.map_or(0, |h| h.findings),
                    node,
                }
            })
            .collect()
    }

    fn kept(&self) -> Retention {
        let pruned = self.ledger.store().pruned();
        Retention {
            policy: self.retention.map(|policy| policy.to_string()).unwrap_or_default(),
            first_leaf: pruned.as_ref().map_or(0, |pruned| pruned.first),
            record_leaf: pruned.as_ref().map_or(0, |pruned| pruned.leaf),
        }
    }

    /// Why an answer is not whole, if a record that was asked for was pruned.
    async fn pruned_of(&self, filter: &Filter) -> Result<Option<Status>, Status> {
        let Some(pruned) = self.ledger.store().pruned() else { return Ok(None) };
        let first = Filter { limit: 1, ..filter.clone() };
        let (found, _) = self.ask(move |index| index.query(&first)).await?;
        let gone = found.first().is_some_and(|leaf| *leaf < pruned.first);
        Ok(gone.then(|| Status::out_of_range(format!("not all that was asked for is there any more: {pruned}"))))
    }

    /// Reads records by leaf, up to a number of bytes; true if some were left out. Those that were pruned are
    /// passed over.
    async fn entries(&self, mut leaves: Vec<u64>) -> Result<(Vec<LogEntry>, bool), Status> {
        leaves.retain(|leaf| *leaf >= self.ledger.store().first());
        let store = self.ledger.store().clone();
        blocking(move || {
            let (mut entries, mut bytes) = (Vec::with_capacity(leaves.len()), 0);
            for run in stream::runs(&leaves) {
                for entry in stream::read_run(&store, run)? {
                    bytes += entry.record.len();
                    if bytes > MESSAGE_BYTES {
                        return Ok((entries, true));
                    }
                    entries.push(entry);
                }
            }
            Ok((entries, false))
        })
        .await
    }
}

#[tonic::async_trait]
impl ControlService for Control {
    type QueryStream = Entries;
    type TailStream = Entries;

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIReply>, Status> {
        Caller::of(&request, Right::Read)?;
        Ok(Response::new(self.access.who(&*Standing::of(&request)?)))
    }

    async fn can_i(&self, request: Request<CanIRequest>) -> Result<Response<CanIReply>, Status> {
        let caller = Caller::of(&request, Right::Read)?;
        let r = request.into_inner();
        short(&[("right", &r.right), ("category", &r.category), ("agent", &r.agent), ("person", &r.person)])?;
        Ok(Response::new(self.access.can_i(&caller, &r)?))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Caller::of(&request, Right::Read)?;
        let (open_sessions, _) = self.ask(Index::open_sessions).await?;
        let store = self.ledger.store();
        let log_size = store.size();
        let (roles_digest, roles_error) = self.access.state();
        let pending = self.ledger.state().reviews.pending(log_size, now_ns()).len();
        Ok(Response::new(StatusReply {
            collector_version: env!("CARGO_PKG_VERSION").to_owned(),
            origin: store.origin().to_owned(),
            log_vkey: store.vkey(),
            log_size,
            checkpoint_size: store.published().0,
            checkpoint_unix_ns: self.published.at_ns(),
            nodes: self.nodes(),
            pending_reviews: u32::try_from(pending).unwrap_or(u32::MAX),
            open_sessions,
            witnesses: self.witnesses.as_ref().map(|witnesses| witnesses.status()),
            retention: Some(self.kept()),
            roles_digest,
            roles_error,
            publish_error: self.published.error(),
            signing_vkeys: store.signing_vkeys(),
            webhooks: self.alerts.status(log_size),
        }))
    }

    async fn list_sessions(&self, r: Request<ListSessionsRequest>) -> Result<Response<ListSessionsReply>, Status> {
        self.reader(&r)?;
        let r = r.into_inner();
        let texts =
            [("agent", &r.agent), ("initiator", &r.initiator), ("parent", &r.parent), ("page_token", &r.page_token)];
        short(&texts.map(|(name, text)| (name, text.as_str())))?;
        let below = match r.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| Status::invalid_argument("page_token: not one of an answer"))?),
        };
        let filter = SessionFilter {
            open_only: r.open_only,
            agent: r.agent,
            initiator: r.initiator,
            parent: r.parent,
            below,
            limit: limit(r.limit, LIST_DEFAULT, LIST_MAX),
        };
        self.index.wait_for(r.at_least).await?;
        let (page, log_size) = self.ask(move |index| index.sessions(&filter)).await?;
        let next_page_token = page.next.map(|leaf| leaf.to_string()).unwrap_or_default();
        Ok(Response::new(ListSessionsReply { sessions: page.sessions, next_page_token, log_size }))
    }

    async fn get_session(&self, r: Request<GetSessionRequest>) -> Result<Response<GetSessionReply>, Status> {
        self.reader(&r)?;
        let r = r.into_inner();
        let id: SessionId =
            r.session_id.parse().map_err(|_| Status::invalid_argument("session_id: a ULID is accepted"))?;
        self.index.wait_for(r.at_least).await?;
        let (found, log_size) = self.ask(move |index| index.session(&id.to_string(), SESSION_RECORDS + 1)).await?;
        let Some((summary, mut leaves)) = found else {
            return Err(Status::not_found(format!("no session {id} in the first {log_size} records of the log")));
        };
        let more = leaves.len() > SESSION_RECORDS as usize;
        leaves.truncate(SESSION_RECORDS as usize);
        let (pruned, pruned_by) = match self.ledger.store().pruned() {
            Some(pruned) => (leaves.iter().filter(|leaf| **leaf < pruned.first).count() as u64, pruned.to_string()),
            None => (0, String::new()),
        };
        let (entries, cut) = self.entries(leaves).await?;
        let (summary, truncated) = (Some(summary), more || cut);
        Ok(Response::new(GetSessionReply { summary, entries, log_size, truncated, pruned, pruned_by }))
    }

    async fn list_reviews(&self, r: Request<ListReviewsRequest>) -> Result<Response<ListReviewsReply>, Status> {
        let caller = self.review_reader(&r)?;
        let r = r.into_inner();
        short(&[("session_id", &r.session_id)])?;
        let limit = limit(r.limit, LIST_DEFAULT, LIST_MAX);
        let (reviews, log_size) = match r.all {
            true => self.all_reviews(&caller, r.session_id, limit).await?,
            false => self.pending_reviews(&caller, &r.session_id, limit),
        };
        Ok(Response::new(ListReviewsReply { reviews, log_size }))
    }

    async fn get_review(&self, r: Request<GetReviewRequest>) -> Result<Response<Review>, Status> {
        let caller = Caller::of(&r, Right::Read)?;
        let id = r.into_inner().request_id;
        short(&[("request_id", &id)])?;
        let mut review = self.review(&id).await?;
        self.may_see(&caller, &review)?;
        review.acting_for = self.acting_for(&caller, &review);
        Ok(Response::new(review))
    }

    async fn decide(&self, r: Request<DecideRequest>) -> Result<Response<DecideReply>, Status> {
        let caller = Caller::of(&r, Right::Decide)?;
        let wanted = r.into_inner();
        short(&[("request_id", &wanted.request_id), ("delegation_id", &wanted.delegation_id)])?;
        let expires = self.approval_until();
        let (ledger, asked) = (Arc::clone(&self.ledger), wanted.clone());
        let (name, access) = (caller.name.clone(), Arc::clone(&self.access));
        let decided = blocking(move || {
            // A role that was taken away between showing and deciding counts no more.
            access.refresh(false);
            ledger.decide(&asked, &caller, expires, |open, by| access.may_decide(&caller, open, &asked, by))
        })
        .await;
        let (leaf, body, durable) = match decided {
            Err(status) if status.code() == tonic::Code::NotFound => {
                return Err(self.why_not_open(&wanted, status).await);
            }
            other => other?,
        };
        durable.wait().await?;
        tracing::info!(request = %wanted.request_id, reviewer = %name, approve = body.approve, scope = %body.scope, leaf, "decided");
        if let Some(host) = HostId::from_slice(&body.host) {
            let bound = self.ledger.state().admit.node_of(host).unwrap_or_default().to_owned();
            self.hub.send(host, &bound, &decision_of(leaf, &body));
        }
        let review = self.review(&wanted.request_id).await.ok();
        Ok(Response::new(DecideReply { leaf, review }))
    }

    async fn revoke(&self, r: Request<RevokeRequest>) -> Result<Response<RevokeReply>, Status> {
        let caller = Caller::of(&r, Right::Decide)?;
        let wanted = r.into_inner();
        short(&[("request_id", &wanted.request_id)])?;
        Ok(Response::new(RevokeReply { leaf: self.revoke_approval(&caller, wanted).await? }))
    }

    async fn review_stats(&self, r: Request<ReviewStatsRequest>) -> Result<Response<ReviewStatsReply>, Status> {
        self.reader(&r)?;
        let since_unix_ns = r.into_inner().since_unix_ns;
        let (reviewers, log_size) = self.ask(move |index| index.review_stats(since_unix_ns)).await?;
        Ok(Response::new(ReviewStatsReply { reviewers, log_size, since_unix_ns }))
    }

    async fn query(&self, r: Request<QueryRequest>) -> Result<Response<Entries>, Status> {
        let (caller, certificate) = (self.reader(&r)?, Standing::of(&r)?);
        let r = r.into_inner();
        let (at_least, filter) = (r.at_least, filter(r)?);
        self.index.wait_for(at_least).await?;
        let gone = self.pruned_of(&filter).await?;
        let mut filter = filter;
        // What was pruned takes no room on a page.
        filter.after = filter.after.max(self.ledger.store().first().checked_sub(1));
        let (leaves, size) = self.ask(move |index| index.query(&filter)).await?;
        let entries = stream::of_leaves(self.ledger.store().clone(), leaves, gone, self.over(certificate));
        let mut response = Response::new(self.while_reader(caller, entries));
        response.metadata_mut().insert(guard_proto::LOG_SIZE, size.into());
        Ok(response)
    }

    async fn tail(&self, r: Request<TailRequest>) -> Result<Response<Entries>, Status> {
        let (caller, certificate) = (self.reader(&r)?, Standing::of(&r)?);
        let r = r.into_inner();
        let session = match r.session_id.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| Status::invalid_argument("session_id: a ULID is accepted"))?),
        };
        let store = self.ledger.store().clone();
        let from = if r.from_now { store.size() } else { r.from_leaf };
        let entries = stream::tail(store, from, session, self.over(certificate));
        Ok(Response::new(self.while_reader(caller, entries)))
    }

    async fn read_log(&self, r: Request<ReadLogRequest>) -> Result<Response<ReadLogReply>, Status> {
        self.reader(&r)?;
        let path = r.into_inner().path;
        if path.len() > PATH_MAX {
            return Err(Status::invalid_argument(format!("path: at most {PATH_MAX} bytes are accepted")));
        }
        let store = self.ledger.store().clone();
        let wanted = path.clone();
        let pruned = store.pruned();
        let found = blocking(move || store.resource(&wanted).map_err(unreadable)).await?;
        let content = found.ok_or_else(|| {
            let why = pruned.map(|pruned| format!("; {pruned}")).unwrap_or_default();
            Status::not_found(format!("no resource {path:?} in the log{why}"))
        })?;
        Ok(Response::new(ReadLogReply { content }))
    }

    async fn prove(&self, r: Request<ProveRequest>) -> Result<Response<ProveReply>, Status> {
        self.reader(&r)?;
        let (store, leaf) = (self.ledger.store().clone(), r.into_inner().leaf);
        let (receipt, record) = blocking(move || proofs::receipt(&store, leaf)).await?;
        Ok(Response::new(ProveReply { receipt: receipt.to_string(), record }))
    }

    async fn publish_policy(&self, r: Request<PublishPolicyRequest>) -> Result<Response<PublishPolicyReply>, Status> {
        let caller = Caller::of(&r, Right::Erase)?;
        self.access.check(&caller, roles::Right::Administer)?;
        let bundle = r.into_inner().bundle.unwrap_or_default();
        let (leaf, digest) = self.bundles.publish(&self.ledger, &caller.name, bundle).await?;
        Ok(Response::new(PublishPolicyReply { leaf, digest }))
    }

    async fn get_policy(&self, r: Request<GetPolicyRequest>) -> Result<Response<PolicyBundle>, Status> {
        self.reader(&r)?;
        let newest = self.bundles.newest();
        let newest = newest.ok_or_else(|| Status::not_found("no policy bundle was published at this collector"))?;
        Ok(Response::new(newest.bytes().clone()))
    }

    async fn get_blob(&self, r: Request<GetBlobRequest>) -> Result<Response<GetBlobReply>, Status> {
        self.reader(&r)?;
        Ok(Response::new(GetBlobReply { content: self.blob(r.into_inner()).await? }))
    }

    async fn erase_blob(&self, r: Request<EraseBlobRequest>) -> Result<Response<EraseBlobReply>, Status> {
        let caller = Caller::of(&r, Right::Erase)?;
        self.access.check(&caller, roles::Right::Administer)?;
        Ok(Response::new(EraseBlobReply { leaf: self.erase_blob(&caller, r.into_inner()).await? }))
    }

    async fn create_join_token(
        &self,
        r: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenReply>, Status> {
        let caller = self.administrator(&r)?;
        Ok(Response::new(self.join_token(&caller, r.into_inner()).await?))
    }

    async fn revoke_certificate(
        &self,
        r: Request<RevokeCertificateRequest>,
    ) -> Result<Response<RevokeCertificateReply>, Status> {
        let caller = self.administrator(&r)?;
        Ok(Response::new(self.revoke(&caller, r.into_inner()).await?))
    }

    async fn list_certificates(
        &self,
        r: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesReply>, Status> {
        self.administrator(&r)?;
        Ok(Response::new(self.certificates(&r.into_inner())?))
    }

    async fn delegate(&self, r: Request<DelegateRequest>) -> Result<Response<DelegateReply>, Status> {
        let caller = Caller::of(&r, Right::Decide)?;
        let delegation = r.into_inner().delegation.unwrap_or_default();
        Ok(Response::new(DelegateReply { leaf: self.begin_delegation(&caller, delegation).await? }))
    }

    async fn undelegate(&self, r: Request<UndelegateRequest>) -> Result<Response<UndelegateReply>, Status> {
        let caller = Caller::of(&r, Right::Decide)?;
        let wanted = r.into_inner();
        short(&[("id", &wanted.id)])?;
        Ok(Response::new(UndelegateReply { leaf: self.end_delegation(&caller, wanted).await? }))
    }

    async fn list_delegations(
        &self,
        r: Request<ListDelegationsRequest>,
    ) -> Result<Response<ListDelegationsReply>, Status> {
        let caller = Caller::of(&r, Right::Read)?;
        Ok(Response::new(ListDelegationsReply { delegations: self.standing_delegations(&caller) }))
    }
}

fn filter(r: QueryRequest) -> Result<Filter, Status> {
    short(&[
        ("session_id", &r.session_id),
        ("agent", &r.agent),
        ("instance", &r.instance),
        ("initiator", &r.initiator),
        ("disposition", &r.disposition),
        ("category", &r.category),
        ("reviewer", &r.reviewer),
    ])?;
    if r.program.len() > PROGRAM_MAX {
        return Err(Status::invalid_argument(format!("program: at most {PROGRAM_MAX} bytes are accepted")));
    }
    let host = match r.host.as_slice() {
        [] => None,
        bytes => {
            Some(HostId::from_slice(bytes).ok_or_else(|| Status::invalid_argument("host: 16 bytes are accepted"))?)
        }
    };
    Ok(Filter {
        session: r.session_id,
        agent: r.agent,
        instance: r.instance,
        initiator: r.initiator,
        program: r.program,
        host,
        disposition: r.disposition,
        category: r.category,
        reviewer: r.reviewer,
        since: r.since_unix_ns,
        until: r.until_unix_ns,
        after: r.has_after_leaf.then_some(r.after_leaf),
        limit: limit(r.limit, QUERY_DEFAULT, QUERY_MAX),
    })
}
