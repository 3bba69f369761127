//! What each agent ran and named on this host, so that the first time counts (`guard_policy::novelty`).
//!
//! Kept are salted digests, never the names; bounded for each agent and in all, the ones seen longest ago are forgotten first. An
//! agent's memory is its own: another agent cannot push anything out of it but the whole of the one used longest ago. It must not
//! decide. Fails towards more risk: what cannot be read or was forgotten is new.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard_log::frame;
use guard_policy::Subject;
use sha2::{Digest as _, Sha256};

/// In the state folder.
const FILE: &str = "novelty";
const HEADER: &str = "guard novelty v1";
/// Agents that are remembered.
const AGENTS_MAX: usize = 64;
/// Things of one agent.
const KNOWN_MAX: usize = 1024;
/// Longest file that is read: that many lines, and room.
const FILE_MAX: u64 = 4 << 20;

/// Digest of one thing.
pub type Mark = [u8; 16];

/// What was there before.
pub struct Novelty {
    path: PathBuf,
    salt: [u8; 32],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    agents: HashMap<String, Known>,
    /// Grows with everything that is seen.
    clock: u64,
    changed: bool,
}

#[derive(Default)]
struct Known {
    seen: HashMap<Mark, u64>,
    last: u64,
}

impl Novelty {
    /// Reads what is kept. What cannot be read is said and forgotten.
    pub fn open(state_dir: &Path, salt: [u8; 32]) -> Self {
        let path = state_dir.join(FILE);
        let state = match read(&path) {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(%error, file = %path.display(), "what agents did before is forgotten; it counts as new");
                State::default()
            }
        };
        Self { path, salt, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, subject: &Subject) -> Mark {
        let digest: [u8; 32] = Sha256::new_with_prefix(self.salt).chain_update(subject.text()).finalize().into();
        digest.first_chunk().copied().unwrap_or_default()
    }

    /// Of these, what the agent has not run or named before; and what to remember should it run.
    pub fn look(&self, agent: &str, subjects: Vec<Subject>) -> (Vec<Subject>, Vec<Mark>) {
        let marks: Vec<Mark> = subjects.iter().map(|subject| self.mark(subject)).collect();
        let state = self.lock();
        let known = state.agents.get(agent);
        let is_new = |mark: &Mark| known.is_none_or(|known| !known.seen.contains_key(mark));
        let new =
            subjects.into_iter().zip(&marks).filter(|(_, mark)| is_new(mark)).map(|(subject, _)| subject).collect();
        (new, marks)
    }

    /// It was let run.
    pub fn learn(&self, agent: &str, marks: &[Mark]) {
        let mut state = self.lock();
        state.learn(agent, marks);
    }

    /// Writes what has changed.
    pub fn keep(&self) {
        let text = {
            let mut state = self.lock();
            if !std::mem::take(&mut state.changed) {
                return;
            }
            state.text()
        };
        if let Err(error) = frame::replace(&self.path, text.as_bytes()) {
            tracing::warn!(%error, file = %self.path.display(), "what agents did cannot be kept; after a restart it counts as new");
            self.lock().changed = true;
        }
    }
}

impl State {
    fn learn(&mut self, agent: &str, marks: &[Mark]) {
        if !self.agents.contains_key(agent) && self.agents.len() >= AGENTS_MAX {
            let oldest = self.agents.iter().min_by_key(|(_, known)| known.last).map(|(name, _)| name.clone());
            oldest.map(|name| self.agents.remove(&name));
        }
        let known = self.agents.entry(agent.to_owned()).or_default();
        for mark in marks {
            self.clock += 1;
            known.last = self.clock;
            self.changed |= known.seen.insert(*mark, self.clock).is_none();
        }
        if known.seen.len() > KNOWN_MAX {
            // A quarter at a time, so that this is rare.
            let mut ages: Vec<u64> = known.seen.values().copied().collect();
            ages.sort_unstable();
            let from = ages.get(KNOWN_MAX / 4).copied().unwrap_or_default();
            known.seen.retain(|_, age| *age >= from);
        }
    }

    /// The agent used longest ago first, and of its things the one seen longest ago.
    fn text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        let mut agents: Vec<_> = self.agents.iter().collect();
        agents.sort_by_key(|(_, known)| known.last);
        for (name, known) in agents {
            text.push_str(&format!("agent {name}\n"));
            let mut seen: Vec<_> = known.seen.iter().collect();
            seen.sort_by_key(|(_, age)| **age);
            seen.iter().for_each(|(mark, _)| text.push_str(&format!("{}\n", hex::encode(mark))));
        }
        text
    }
}

fn read(path: &Path) -> io::Result<State> {
    match frame::read_text(path, FILE_MAX) {
        Ok(text) => parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is of another form")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::default()),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Option<State> {
    let mut state = State::default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return None;
    }
    let mut agent = None;
    for line in lines {
        if let Some(name) = line.strip_prefix("agent ") {
            agent = Some(name);
            continue;
        }
        let mut mark = Mark::default();
        hex::decode_to_slice(line, &mut mark).ok()?;
        state.learn(agent?, &[mark]);
    }
    state.changed = false;
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(name: &str) -> Subject {
        Subject::Program(name.to_owned())
    }

    fn is_new(novelty: &Novelty, agent: &str, name: &str) -> bool {
        !novelty.look(agent, vec![program(name)]).0.is_empty()
    }

    fn did(novelty: &Novelty, agent: &str, name: &str) {
        let (_, marks) = novelty.look(agent, vec![program(name)]);
        novelty.learn(agent, &marks);
    }

    #[test]
    fn the_first_time_is_new_for_each_agent_and_a_look_teaches_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let novelty = Novelty::open(dir.path(), [7; 32]);
        assert!(is_new(&novelty, "coder", "curl") && is_new(&novelty, "coder", "curl"));
        did(&novelty, "coder", "curl");
        assert!(!is_new(&novelty, "coder", "curl"));
        assert!(is_new(&novelty, "other", "curl"));
        assert!(!novelty.look("coder", vec![Subject::Target("curl".into())]).0.is_empty(), "a target is no program");
    }

    #[test]
    fn it_outlives_the_daemon_and_holds_no_names() {
        let dir = tempfile::tempdir().unwrap();
        let novelty = Novelty::open(dir.path(), [7; 32]);
        did(&novelty, "coder", "curl");
        novelty.keep();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("agent coder") && !text.contains("curl"), "{text}");
        assert!(!is_new(&Novelty::open(dir.path(), [7; 32]), "coder", "curl"));
        assert!(is_new(&Novelty::open(dir.path(), [8; 32]), "coder", "curl"), "digests are the host's own");
        // Damaged, of another form, or too long: all is new.
        for bad in
            ["guard novelty v2\n".to_owned(), text.replace("agent ", ""), format!("{text}zz\n"), "\n".repeat(5 << 20)]
        {
            std::fs::write(dir.path().join(FILE), bad).unwrap();
            assert!(is_new(&Novelty::open(dir.path(), [7; 32]), "coder", "curl"));
        }
    }

    #[test]
    fn it_is_bounded_and_what_was_seen_last_stays() {
        let dir = tempfile::tempdir().unwrap();
        let novelty = Novelty::open(dir.path(), [7; 32]);
        did(&novelty, "coder", "usual");
        for n in 0..3 * KNOWN_MAX {
            did(&novelty, "noisy", &n.to_string());
            did(&novelty, "noisy", "again");
        }
        assert!(!is_new(&novelty, "noisy", "again") && is_new(&novelty, "noisy", "0"));
        assert!(!is_new(&novelty, "coder", "usual"), "another agent pushes nothing out");
        for n in 0..2 * AGENTS_MAX {
            did(&novelty, &format!("a{n}"), "x");
        }
        let state = novelty.lock();
        assert!(state.agents.len() <= AGENTS_MAX && state.agents.values().all(|known| known.seen.len() <= KNOWN_MAX));
        let text = state.text();
        assert!((text.len() as u64) < FILE_MAX && parse(&text).unwrap().text() == text);
    }
}
