//! What the role file gives a caller, inside what the certificate's role allows.
//!
//! It must not widen: [`Caller::of`] has asked the certificate first. Fails closed: with a role file, a name without a role may
//! nothing; a file that cannot be read or is wrong changes nothing of what is in force, and `Status` says so.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use guard_policy::Source;
use guard_policy::roles::{Known, Right, Role, Roles, Subject};
use guard_proto::v1::{DecideRequest, ExecRequest, RoleRights};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::Status;

use crate::identity::Caller;
use crate::own::now_ns;
use crate::reviews::Open;
use crate::ticks::Ticks;

mod answer;
mod deciding;

pub use deciding::Asked;

const FILE_MAX: u64 = 1 << 20;
/// How often the file is looked at for a change.
const LOOK: Duration = Duration::from_secs(1);

/// What tells that a file has changed.
type Stamp = Option<(SystemTime, u64)>;

/// The role file in force, if there is one.
pub struct Access {
    path: Option<PathBuf>,
    state: Mutex<State>,
    reading: Mutex<()>,
}

struct State {
    roles: Option<Arc<Roles>>,
    stamp: Stamp,
    error: String,
}

fn stamp(path: &Path) -> Stamp {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.modified().ok()?, meta.len()))
}

fn read(path: &Path) -> Result<Arc<Roles>, String> {
    let name = path.display().to_string();
    let at = |e: &dyn std::fmt::Display| format!("{name}: {e}");
    let mut text = String::new();
    let file = File::open(path).map_err(|e| at(&e))?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(|e| at(&e))?;
    if text.len() as u64 > FILE_MAX {
        return Err(at(&"more than 1 MiB"));
    }
    // Which categories there are is said by the hosts' policies, which the collector does not have.
    let roles = Roles::load(&Source { name: &name, text: &text }, Known::Any).map_err(|e| e.to_string())?;
    Ok(Arc::new(roles))
}

/// A role's rights as they are shown.
fn spelled(name: &str, role: &Role) -> RoleRights {
    RoleRights {
        name: name.to_owned(),
        request: role.request.written().to_vec(),
        review: role.review.written().to_vec(),
        review_max_risk: u32::from(role.review_max_risk),
        review_escalated: role.review_escalated,
        query: role.query,
        undo: role.undo.written().to_vec(),
        administer: role.administer,
        start_for_others: role.start_for_others.clone(),
    }
}

/// Categories of all parts of a request. Older hosts name only the one that decided.
fn categories(request: &ExecRequest) -> Vec<(&str, u32)> {
    let Some(verdict) = &request.verdict else { return vec![("unknown", 100)] };
    let all = verdict.categories.iter().chain(std::iter::once(&verdict.category));
    let mut found: Vec<_> = all.filter(|c| !c.is_empty()).map(|c| (c.as_str(), verdict.risk)).collect();
    if found.is_empty() {
        found.push(("unknown", verdict.risk));
    }
    found
}

fn needed(roles: &Roles, request: &ExecRequest) -> u32 {
    let parts = categories(request);
    roles.reviewers_needed(parts.iter().map(|(category, _)| *category), parts.first().map_or(100, |(_, risk)| *risk))
}

/// Id of the caller's key that signed the decision. Where the file names keys, an approval needs that; a signature that
/// does not hold is refused in any case.
fn signed_by(roles: &Roles, caller: &Caller, open: &Open, wanted: &DecideRequest) -> Result<Vec<u8>, Status> {
    if !roles.signs() || (!wanted.approve && wanted.signature.is_empty()) {
        return Ok(vec![]);
    }
    let statement = open.statement(wanted, &caller.name);
    roles.signed(&statement, &wanted.signature, now_ns()).map(Vec::from).map_err(|why| {
        tracing::warn!(caller = %caller.name, request = %wanted.request_id, "a decision is refused: {why}");
        Status::permission_denied(why.to_string())
    })
}

// === impl Access ===

impl Access {
    /// Reads the file, if there is one.
    pub fn open(path: Option<PathBuf>) -> Result<Self, String> {
        let stamp = path.as_deref().and_then(stamp);
        let roles = path.as_deref().map(read).transpose()?;
        let state = Mutex::new(State { roles, stamp, error: String::new() });
        Ok(Self { path, state, reading: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The roles in force.
    pub fn roles(&self) -> Option<Arc<Roles>> {
        self.lock().roles.clone()
    }

    /// Digest of the file in force, and why a newer one was refused; empty where there is none.
    pub fn state(&self) -> (String, String) {
        let state = self.lock();
        (state.roles.as_ref().map(|r| r.digest().to_owned()).unwrap_or_default(), state.error.clone())
    }

    /// Takes the file again if it has changed, or in any case. Whole or not at all.
    pub fn refresh(&self, always: bool) {
        let Some(path) = &self.path else { return };
        // One at a time, so that an older file never replaces a newer one; calls go on meanwhile.
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(path);
        if !always && now == self.lock().stamp {
            return;
        }
        let fresh = read(path);
        let mut state = self.lock();
        state.stamp = now;
        match fresh {
            Ok(roles) => {
                tracing::info!(digest = roles.digest(), "roles reloaded");
                (state.roles, state.error) = (Some(roles), String::new());
            }
            Err(error) => {
                tracing::error!(error, "the new role file is refused; the roles in force stay");
                state.error = error;
            }
        }
    }

    /// Refuses a caller whose roles do not give the right. Without a role file the certificate has said all.
    pub fn check(&self, caller: &Caller, right: Right<'_>) -> Result<(), Status> {
        let Some(roles) = self.roles() else { return Ok(()) };
        match roles.check(Subject::Principal(&caller.name), right) {
            Ok(_) => Ok(()),
            Err(missing) => {
                tracing::info!(caller = %caller.name, right = %right, "refused: {missing}");
                Err(Status::permission_denied(missing.to_string()))
            }
        }
    }

    /// How many different reviewers must approve a request.
    pub fn needed(&self, request: &ExecRequest) -> u32 {
        self.roles().map_or(1, |roles| needed(&roles, request))
    }

    /// The caller's roles in full.
    pub fn bound(&self, name: &str) -> Vec<RoleRights> {
        let Some(roles) = self.roles() else { return vec![] };
        roles.of(Subject::Principal(name)).map(|(name, role)| spelled(name, role)).collect()
    }
}

/// Looks for changes until the collector stops; a HUP takes the file in any case.
pub async fn run(access: Arc<Access>, stopping: watch::Receiver<bool>) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return tracing::error!(%error, "roles are not reloaded: no signal can be listened to"),
    };
    let mut ticks = Ticks::new(LOOK, stopping);
    loop {
        let always = tokio::select! {
            more = ticks.next() => match more {
                true => false,
                false => return,
            },
            _ = hangup.recv() => true,
        };
        let access = access.clone();
        // A panic in there has been said by the runtime.
        let _ = tokio::task::spawn_blocking(move || access.refresh(always)).await;
    }
}
