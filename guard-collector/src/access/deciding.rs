//! Who may decide a request: by their own roles, once it is escalated by those that wait for that, or by a delegation.
//!
//! It must not decide. Fails closed: what neither gives is refused with the right that is missing; a delegation that does not hold by
//! the role file in force is as none.

use std::borrow::Cow;

use guard_policy::roles::{Missing, Right, Roles, Subject};
use guard_proto::v1::{DecideRequest, Delegation, ExecRequest};
use tonic::Status;

use super::{Access, categories, needed, signed_by};
use crate::delegations::statement;
use crate::identity::Caller;
use crate::own::now_ns;
use crate::reviews::{Open, Permit};

/// What somebody asks to see or decide.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The request.
    pub request: &'a ExecRequest,
    /// Another group is asked too.
    pub escalated: bool,
    /// Delegations to the caller, as far as they are known.
    pub delegations: &'a [Delegation],
}

fn right(category: &str, risk: u32, escalated: bool) -> Right<'_> {
    if escalated { Right::ReviewEscalated(category, risk) } else { Right::Review(category, risk) }
}

fn own(roles: &Roles, name: &str, asked: Asked<'_>) -> Result<(), Missing> {
    categories(asked.request).into_iter().try_for_each(|(category, risk)| {
        roles.check(Subject::Principal(name), right(category, risk, asked.escalated)).map(drop)
    })
}

/// Whether a delegation holds now and covers all of a request.
fn reaches(roles: &Roles, d: &Delegation, asked: Asked<'_>) -> Result<(), String> {
    let stated = statement(d);
    roles.delegated(&stated, &d.signature, now_ns()).map_err(|why| why.to_string())?;
    categories(asked.request).into_iter().try_for_each(|(category, risk)| {
        roles.covered(&stated, right(category, risk, asked.escalated)).map_err(|why| why.to_string())
    })
}

/// The request with the highest risk that an approval lets through: a grant of kinds reaches beyond its own.
fn reached<'a>(open: &'a Open, wanted: &DecideRequest) -> Cow<'a, ExecRequest> {
    let mut request = Cow::Borrowed(&open.request);
    if wanted.approve && wanted.scope == "kind" {
        let max_risk = open.request.kinds_max_risk;
        if let Some(verdict) = &mut request.to_mut().verdict {
            verdict.risk = verdict.risk.max(max_risk);
        }
    }
    request
}

/// Whether a session is somebody's.
fn owns(request: &ExecRequest, name: &str) -> bool {
    request.identity.as_ref().is_some_and(|i| i.initiator == name || i.started_by == name)
}

impl Access {
    /// Who may query sees every request; others see those that they may decide.
    pub fn sees(&self, caller: &Caller, asked: Option<Asked<'_>>) -> bool {
        let Some(roles) = self.roles() else { return true };
        roles.check(Subject::Principal(&caller.name), Right::Query).is_ok()
            || asked.is_some_and(|asked| own(&roles, &caller.name, asked).is_ok() || self.by(caller, asked).is_some())
    }

    /// Whether the caller may decide any request at all, for whomever.
    pub fn reviews_anything(&self, caller: &Caller, delegations: &[Delegation]) -> Result<(), Status> {
        if !delegations.is_empty() {
            return Ok(());
        }
        self.check(caller, Right::ReviewEscalated("", 0))
    }

    /// Whether the caller may decide a request.
    pub fn may_review(&self, caller: &Caller, asked: Asked<'_>) -> Result<(), Status> {
        let Some(roles) = self.roles() else { return Ok(()) };
        let Err(missing) = own(&roles, &caller.name, asked) else { return Ok(()) };
        if self.by(caller, asked).is_some() {
            return Ok(());
        }
        tracing::info!(caller = %caller.name, "refused: {missing}");
        Err(Status::permission_denied(missing.to_string()))
    }

    /// The delegation by which the caller may decide what their own roles do not cover.
    pub fn by(&self, caller: &Caller, asked: Asked<'_>) -> Option<Delegation> {
        let roles = self.roles()?;
        if own(&roles, &caller.name, asked).is_ok() {
            return None;
        }
        let fits =
            |d: &&Delegation| d.to == caller.name && !owns(asked.request, &d.from) && reaches(&roles, d, asked).is_ok();
        asked.delegations.iter().find(fits).cloned()
    }

    /// Whether the caller's roles, or the delegation that the decision names, cover a request and what an approval of it would let
    /// through; whether the caller signed it; and how many must approve it.
    pub fn may_decide(
        &self,
        caller: &Caller,
        open: &Open,
        wanted: &DecideRequest,
        delegation: Option<&Delegation>,
    ) -> Result<Permit, Status> {
        let refuse = |why: String| {
            tracing::info!(caller = %caller.name, request = %wanted.request_id, "refused: {why}");
            Status::permission_denied(why)
        };
        let Some(roles) = self.roles() else {
            return match delegation {
                None => Ok(Permit { needed: 1, ..Permit::default() }),
                Some(_) => Err(refuse("a delegation counts only where a role file names reviewers' keys".to_owned())),
            };
        };
        let let_through = reached(open, wanted);
        let (request, escalated) = (let_through.as_ref(), open.escalated.is_some());
        let asked = Asked { request, escalated, delegations: &[] };
        match delegation {
            None => own(&roles, &caller.name, asked).map_err(|missing| refuse(missing.to_string()))?,
            Some(d) => reaches(&roles, d, asked).map_err(refuse)?,
        }
        let risk = request.verdict.as_ref().map_or(100, |v| v.risk);
        for category in wanted.categories.iter().filter(|_| wanted.approve) {
            let right = right(category, risk, escalated);
            match delegation {
                None => roles
                    .check(Subject::Principal(&caller.name), right)
                    .map(drop)
                    .map_err(|missing| refuse(missing.to_string()))?,
                Some(d) => roles.covered(&statement(d), right).map_err(|why| refuse(why.to_string()))?,
            }
        }
        let key_id = signed_by(&roles, caller, open, wanted)?;
        Ok(Permit { needed: needed(&roles, request), key_id })
    }

    /// When a request that nobody decides is escalated, and to which roles.
    pub fn escalation(&self, open: &Open) -> Option<(i64, Vec<String>)> {
        let roles = self.roles()?;
        let parts = categories(&open.request);
        let risk = parts.first().map_or(100, |(_, risk)| *risk);
        let times = (open.opened, open.request.deadline_unix_ns);
        let found = roles.escalation(parts.iter().map(|(category, _)| *category), risk, times)?;
        Some((found.at_unix_ns, found.to.to_vec()))
    }
}
