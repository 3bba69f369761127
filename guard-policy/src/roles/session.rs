//! What a session may request: what the initiator's roles and the agent's roles both allow.
//!
//! It must not widen: only categories that each side allows are in the result. Fails closed: a side without a role, or two
//! sides without a common category, give no session.

use super::{Right, Roles, Subject};

/// The rights of one session, for its first record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionRights {
    /// Categories that the initiator's roles allow, sorted.
    pub initiator: Vec<String>,
    /// Categories that the agent's roles allow, sorted.
    pub agent: Vec<String>,
    /// What both allow, sorted.
    pub effective: Vec<String>,
}

/// Why a session may not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSession {
    /// One side has no role at all.
    #[error("{0} has no role on this host, and without a role nothing may be requested")]
    NoRole(String),
    /// Nothing could run.
    #[error("{initiator} and agent {agent} may request no category in common: {initiator} has {}, agent {agent} has {}", .roles.0, .roles.1)]
    NothingInCommon {
        /// Who asks.
        initiator: String,
        /// The agent.
        agent: String,
        /// Both sides' roles, in words.
        roles: (String, String),
    },
}

fn named(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("`{n}`")).collect();
    if names.len() == 1 { format!("the role {}", quoted.join("")) } else { format!("the roles {}", quoted.join(", ")) }
}

impl Roles {
    /// What a session of this agent for this initiator may request, of the categories that the policy knows.
    ///
    /// # Errors
    ///
    /// A side has no role, or the two allow nothing in common.
    pub fn session(&self, initiator: &str, agent: &str, known: &[String]) -> Result<SessionRights, NoSession> {
        let (person, program) = (Subject::Principal(initiator), Subject::Agent(agent));
        for subject in [person, program] {
            if self.names_of(subject).is_empty() {
                return Err(NoSession::NoRole(subject.to_string()));
            }
        }
        let may = |subject| {
            let allowed = |c: &&String| self.check(subject, Right::Request(c)).is_ok();
            known.iter().filter(allowed).cloned().collect::<Vec<_>>()
        };
        let (of_initiator, of_agent) = (may(person), may(program));
        let effective: Vec<String> = of_initiator.iter().filter(|c| of_agent.contains(c)).cloned().collect();
        if effective.is_empty() {
            return Err(NoSession::NothingInCommon {
                initiator: initiator.to_owned(),
                agent: agent.to_owned(),
                roles: (named(self.names_of(person)), named(self.names_of(program))),
            });
        }
        Ok(SessionRights { initiator: of_initiator, agent: of_agent, effective })
    }
}
