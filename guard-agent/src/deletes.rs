//! Delete budgets: the question to a person when a command has used its own up, and the end of one that goes on regardless.
//!
//! The kernel programs count and refuse; here a refusal becomes a request for review, and a kill becomes the end of the
//! command's whole tree. Fails: without an answer the budget stays what it is.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use guard_common::path::DeleteBudget;
use guard_common::{GuardEvent, guard_outcome, reason};
use guard_proto::v1::{ExecFacts, Reason, Verdict};
use serde::Deserialize;

use crate::facts::{Facts, ForRecord};
use crate::kernel::spawn;
use crate::node::Node;
use crate::outcome::until_nul;
use crate::session::Session;

/// Category of the requests.
pub const CATEGORY: &str = "fs.delete";
/// Files that an approval allows beyond the budget when the reviewer names no number.
const RAISE_DEFAULT: u32 = 10_000;
/// Files that a command may delete of which a person has said beforehand that it may.
const RAISE_APPROVED: u32 = 1_000_000;
/// Commands of one session whose facts are kept, and how long their arguments may be together.
const COMMANDS_MAX: usize = 64;
const COMMAND_BYTES_MAX: usize = 64 << 10;
/// Rounds in which the tree of a killed command is looked through: what forks meanwhile is found in the next.
const KILL_ROUNDS: usize = 8;

/// A profile's budget.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Files that one command may delete in the window; 0: any number.
    pub files: u32,
    /// Length of the window.
    pub seconds: u32,
    /// Attempts in one window after which the command's tree is killed; 0: never.
    pub kill: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { files: 200, seconds: 60, kill: 2000 }
    }
}

impl Budget {
    /// As the kernel programs know it.
    pub fn kernel(&self) -> DeleteBudget {
        DeleteBudget { window_ns: u64::from(self.seconds) * 1_000_000_000, files: self.files, kill: self.kill }
    }
}

/// What a session's commands have come to.
#[derive(Default)]
pub struct Deletes(Mutex<State>);

#[derive(Default)]
struct State {
    /// Roots of which a person has been asked.
    asked: HashSet<u64>,
    /// Facts of commands, by exec.
    commands: Vec<(u64, Arc<Facts>)>,
    /// Approvals whose command had ended: digest of the identical exec, files.
    rights: Vec<([u8; 32], u32)>,
}

impl Deletes {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the facts of a command, should it have to be shown to a person.
    pub fn note(&self, exec: u64, facts: &Arc<Facts>) {
        let bytes: usize = facts.argv.iter().chain(&facts.env).map(|s| s.len() + 1).sum();
        if bytes > COMMAND_BYTES_MAX {
            return;
        }
        self.with(|state| {
            if state.commands.len() >= COMMANDS_MAX {
                state.commands.remove(0);
            }
            state.commands.push((exec, Arc::clone(facts)));
        });
    }

    fn command(&self, exec: u64) -> Option<Arc<Facts>> {
        self.with(|state| state.commands.iter().rev().find(|(known, _)| *known == exec).map(|(_, f)| Arc::clone(f)))
    }
}

/// A command starts: an approval that came after its like had ended is used.
pub fn started(node: &Node, session: &Session, root: u64, facts: &Arc<Facts>) {
    session.deletes.note(facts.attempt.exec, facts);
    let files = session.deletes.with(|state| {
        if state.rights.is_empty() {
            return None;
        }
        let digest = facts.digest(&session.identity.session_id);
        let place = state.rights.iter().position(|(known, _)| *known == digest)?;
        Some(state.rights.swap_remove(place).1)
    });
    if let Some(files) = files {
        raise(node, session, root, files);
    }
}

/// A person has let a command run that is there to delete.
pub fn approved_exec(node: &Node, session: &Session, root: u64, category: &str) {
    if category.starts_with(CATEGORY) {
        raise(node, session, root, RAISE_APPROVED);
    }
}

fn raise(node: &Node, session: &Session, root: u64, files: u32) {
    if let Err(error) = node.kernel.raise_deletes(session.key, root, files) {
        tracing::error!(%error, "a delete budget could not be raised; it stays");
    }
}

/// The kernel has refused a deletion, or killed for it.
pub fn event(node: &Arc<Node>, session: &Arc<Session>, event: &GuardEvent) {
    match (event.reason, event.outcome) {
        (reason::DELETE_BUDGET, guard_outcome::REFUSED) => ask(node, session, event),
        (reason::DELETE_FLOOD, guard_outcome::KILLED) => kill_tree(node, session, event.root),
        _ => {}
    }
}

fn ask(node: &Arc<Node>, session: &Arc<Session>, event: &GuardEvent) {
    if !session.deletes.with(|state| state.asked.insert(event.root)) {
        return;
    }
    let shown = if event.root == 0 { event.exec } else { event.root };
    let command = session.deletes.command(shown);
    let facts = match &command {
        Some(facts) => facts.to_proto(
            node,
            &session.identity.agent,
            ForRecord { entry: event.root == 0, root: event.root, ..ForRecord::default() },
        ),
        None => ExecFacts {
            exec_id: shown,
            boot_id: node.boot_id.clone(),
            pid: event.header.tgid,
            tid: event.header.tid,
            uid: event.uid,
            root_exec_id: event.root,
            argv: vec![until_nul(&event.comm)],
            argv_count: 1,
            ..ExecFacts::default()
        },
    };
    let (_, profile) = node.config.profile(&session.identity.agent);
    let program = session.program_of(event.exec);
    let program =
        if program.is_empty() { String::from_utf8_lossy(&until_nul(&event.comm)).into_owned() } else { program };
    let text = format!(
        "deleted {} files within {} s: {program} (pid {}); further deletions are refused until somebody allows them",
        event.number, profile.delete_budget.seconds, event.header.tgid
    );
    let verdict = Verdict {
        tier: guard_proto::v1::Tier::Review.into(),
        category: CATEGORY.into(),
        risk: 70,
        reasons: vec![Reason {
            rule_id: "builtin.delete-budget".into(),
            text,
            evidence: format!("next: {}", String::from_utf8_lossy(&until_nul(&event.text))),
        }],
        policy_digest: node.policies.of(&session.identity.agent).counts.digest.clone(),
        ..Verdict::default()
    };
    let digest = command.map(|facts| facts.digest(&session.identity.session_id));
    node.approvals.ask_deletes(node, session, facts, verdict, event.root, digest);
}

/// An approval: the command may go on, or, if it has ended, the identical one.
pub fn approved(node: &Node, session: &Session, root: u64, exec: Option<[u8; 32]>, files: Option<u32>) {
    let files = files.filter(|n| *n > 0).unwrap_or(RAISE_DEFAULT);
    let alive = members(node, session, root).next().is_some();
    // Once raised it may ask again when that is used up too.
    session.deletes.with(|state| state.asked.remove(&root));
    match exec {
        Some(digest) if !alive => session.deletes.with(|state| state.rights.push((digest, files))),
        _ => raise(node, session, root, files),
    }
}

/// Processes of a session that run under a root.
fn members<'a>(node: &'a Node, session: &'a Session, root: u64) -> impl Iterator<Item = u32> + 'a {
    let belongs =
        move |pid: &u32| node.kernel.mark_of(*pid).is_some_and(|m| m.session == session.key && m.root == root);
    processes(&session.cgroup.dir).into_iter().filter(belongs)
}

/// In a cgroup and below.
fn processes(dir: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = std::fs::read_to_string(dir.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|l| l.parse().ok()).collect())
        .unwrap_or_default();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// Ends everything that runs under a root. Numbers are used again, so each mark is looked at just before; the session's own
/// processes are the only ones that can be hit.
fn kill_tree(node: &Node, session: &Session, root: u64) {
    for _ in 0..KILL_ROUNDS {
        let pids: Vec<u32> = members(node, session, root).collect();
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            let _ = spawn::signal(pid.cast_signed(), libc::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    session.say("denied", "killed: far more deletions than the budget allows".into(), "");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_written_in_seconds() {
        let budget: Budget = toml::from_str("files = 5\nseconds = 2").unwrap();
        assert_eq!(budget.kernel(), DeleteBudget { window_ns: 2_000_000_000, files: 5, kill: 2000 });
        assert!(toml::from_str::<Budget>("minutes = 1").is_err());
    }
}
