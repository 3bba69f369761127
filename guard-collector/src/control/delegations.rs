//! Delegations, as reviewers ask for them.
//!
//! It must not take one that its maker did not sign, or that names more than is theirs: hosts would not, and whoever shall decide would
//! learn it too late. Fails: what is refused names the reason; nothing is given before its record is durable.

use guard_log::record::SessionId;
use guard_policy::roles;
use guard_policy::roles::NoDelegation;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Delegation, DelegationState, ReviewDelegated, UndelegateRequest};
use tonic::Status;

use super::Control;
use crate::delegations::{EACH_MAX, statement};
use crate::identity::Caller;
use crate::own::now_ns;
use crate::reviews::REASON_MAX;

fn refused(why: &NoDelegation) -> Status {
    match why {
        NoDelegation::NotAllowed => Status::failed_precondition(why.to_string()),
        NoDelegation::Form(_) | NoDelegation::TooLong(_) | NoDelegation::ToSelf(_) | NoDelegation::Time { .. } => {
            Status::invalid_argument(why.to_string())
        }
        NoDelegation::Unsigned(_)
        | NoDelegation::NoKey(_)
        | NoDelegation::Outside { .. }
        | NoDelegation::NotTheirs(..) => Status::permission_denied(why.to_string()),
    }
}

impl Control {
    /// Records a delegation of the caller's. Gives its leaf.
    pub(super) async fn begin_delegation(&self, caller: &Caller, d: Delegation) -> Result<u64, Status> {
        if d.from != caller.name {
            let why = format!(
                "{} cannot delegate what is {}'s: a delegation is made by whoever has the right",
                caller.name, d.from
            );
            return Err(Status::permission_denied(why));
        }
        self.access.refresh(false);
        let roles = self.access.roles().filter(|roles| roles.signs()).ok_or_else(|| {
            Status::failed_precondition(
                "delegations need a role file that names reviewers' keys: decisions are not signed here",
            )
        })?;
        let stated = statement(&d);
        roles.may_delegate(&stated).map_err(|why| refused(&why))?;
        let key = roles.delegated(&stated, &d.signature, now_ns()).map_err(|why| refused(&why))?;
        let (leaf, durable) = self.ledger.say_if(|state| {
            let standing = &state.reviews.delegations;
            if standing.get(&d.id).is_some() {
                return Err(Status::failed_precondition(format!("delegation {} is there already", d.id)));
            }
            if standing.count_of(&d.from, now_ns()) >= EACH_MAX {
                return Err(Status::resource_exhausted(format!(
                    "{} has {EACH_MAX} delegations that have not ended: `guardctl review undelegate` ends one",
                    d.from
                )));
            }
            let record =
                ReviewDelegated { delegation: Some(d.clone()), key_id: key.to_vec(), ..ReviewDelegated::default() };
            Ok((SessionId::NONE, Body::ReviewDelegated(record)))
        })?;
        durable.wait().await?;
        tracing::info!(id = d.id, from = d.from, to = d.to, leaf, "a right to review is delegated");
        Ok(leaf)
    }

    /// Ends one before its time. Gives the leaf of the record.
    pub(super) async fn end_delegation(&self, caller: &Caller, wanted: UndelegateRequest) -> Result<u64, Status> {
        if wanted.reason.len() > REASON_MAX {
            return Err(Status::invalid_argument(format!("reason: at most {REASON_MAX} bytes")));
        }
        self.access.refresh(false);
        let administers = self.access.check(caller, roles::Right::Administer).is_ok() && self.access.roles().is_some();
        let id = wanted.id;
        let (leaf, durable) = self.ledger.say_if(|state| {
            let found = state.reviews.delegations.get(&id).filter(|d| d.until_unix_ns > now_ns());
            let Some(d) = found else {
                return Err(Status::not_found(format!("no delegation {id:?} that has not ended")));
            };
            // Who has it may give it back.
            if ![&d.from, &d.to].contains(&&caller.name) && !administers {
                let why = format!("delegation {id} is by {} to {}: they end it, or an administrator", d.from, d.to);
                return Err(Status::permission_denied(why));
            }
            let record = ReviewDelegated {
                delegation: Some(d.clone()),
                ended_by: caller.name.clone(),
                reason: wanted.reason.clone(),
                ..ReviewDelegated::default()
            };
            Ok((SessionId::NONE, Body::ReviewDelegated(record)))
        })?;
        durable.wait().await?;
        tracing::info!(id, by = %caller.name, leaf, "a delegation ends");
        Ok(leaf)
    }

    /// Those that have not ended and that the caller may know of.
    pub(super) fn standing_delegations(&self, caller: &Caller) -> Vec<DelegationState> {
        let all = self.access.check(caller, roles::Right::Query).is_ok();
        let own =
            |d: &DelegationState| d.delegation.as_ref().is_some_and(|d| d.from == caller.name || d.to == caller.name);
        let state = self.ledger.state();
        state.reviews.delegations.standing(now_ns()).filter(|d| all || own(d)).collect()
    }

    /// Delegations to the caller.
    pub(super) fn delegations_to(&self, caller: &Caller) -> Vec<Delegation> {
        self.ledger.state().reviews.delegations.to(&caller.name)
    }
}
