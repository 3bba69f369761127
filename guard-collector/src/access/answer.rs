//! `WhoAmI` and `CanI`: what a name may, and why.
//!
//! It must not act, and must not tell about others to whom may not administer. Where the caller is asked about, the
//! certificate's role bounds the answer as it bounds the calls; of others only the role file is known here.

use guard_policy::roles::{Right, Roles, Subject};
use guard_proto::v1::{CanIReply, CanIRequest, WhoAmIReply};
use tonic::Status;

use super::Access;
use crate::identity::{self, Caller, Certificate};

const NO_ROLES: &str = "the collector has no role file";
const RIGHTS: &str = "request, review, query, undo and administer";

impl Access {
    /// Who the caller is, and with which rights.
    pub fn who(&self, certificate: &Certificate) -> WhoAmIReply {
        let caller = &certificate.caller;
        WhoAmIReply {
            name: caller.name.clone(),
            roles: vec![caller.role.to_string()],
            roles_in_force: self.roles().is_some(),
            bound: self.bound(&caller.name),
            roles_digest: self.state().0,
            not_after_unix: certificate.not_after,
            serial: certificate.serial.clone(),
        }
    }

    /// Whether somebody may something.
    pub fn can_i(&self, caller: &Caller, asked: &CanIRequest) -> Result<CanIReply, Status> {
        let own = asked.person.is_empty() || asked.person == caller.name;
        if !own {
            bounded(caller, identity::Right::Erase)
                .map_err(|why| Status::permission_denied(format!("asking about others: {why}")))?;
            self.check(caller, Right::Administer)
                .map_err(|why| Status::permission_denied(format!("asking about others: {}", why.message())))?;
        }
        let (right, needs) = right(asked)?;
        let said = |allowed, reason: String| Ok(CanIReply { allowed, reason });
        if own && let Some(Err(why)) = needs.map(|needs| bounded(caller, needs)) {
            return said(false, why);
        }
        let person = if own { &caller.name } else { &asked.person };
        match self.roles() {
            None => said(true, format!("{NO_ROLES}; the certificate alone bounds this right")),
            Some(roles) => {
                let (allowed, reason) = judged(&roles, person, right, &asked.agent);
                said(allowed, reason)
            }
        }
    }
}

/// What is asked for, and what the certificate must allow for it.
fn right(asked: &CanIRequest) -> Result<(Right<'_>, Option<identity::Right>), Status> {
    let category = asked.category.as_str();
    Ok(match asked.right.as_str() {
        "request" => (Right::Request(category), None),
        "review" => (Right::Review(category, asked.risk), Some(identity::Right::Decide)),
        "query" => (Right::Query, Some(identity::Right::Read)),
        "undo" => (Right::Undo(category), Some(identity::Right::Decide)),
        "administer" => (Right::Administer, Some(identity::Right::Erase)),
        other => return Err(Status::invalid_argument(format!("right {other:?}: accepted are {RIGHTS}"))),
    })
}

fn bounded(caller: &Caller, needs: identity::Right) -> Result<(), String> {
    if caller.role.may(needs) {
        return Ok(());
    }
    Err(format!("{} has a certificate of the role {}, which does not reach so far", caller.name, caller.role))
}

fn judged(roles: &Roles, person: &str, right: Right<'_>, agent: &str) -> (bool, String) {
    let mut subjects = vec![Subject::Principal(person)];
    if matches!(right, Right::Request(_)) && !agent.is_empty() {
        subjects.push(Subject::Agent(agent));
    }
    let mut given = vec![];
    for subject in &subjects {
        match roles.check(*subject, right) {
            Ok(role) => given.push(format!("{subject} may {right} by the role `{role}`")),
            Err(missing) => return (false, missing.to_string()),
        }
    }
    let rest = match (right, agent) {
        (Right::Request(_), "") => "; the agent's role must too (--agent)",
        _ => "",
    };
    (true, format!("{}{rest}", given.join(" and ")))
}
