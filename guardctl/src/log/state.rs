//! The state file: for each collector the log's key and the last verified checkpoint, so that history cannot be rewritten
//! behind the caller.
//!
//! It must never go back to a smaller log by itself. Fails: a state file that cannot be read or written is a `config` error,
//! never a reason to start afresh.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::{CliError, Exit, Result};

/// What is remembered of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Verifier key.
    pub vkey: String,
    /// Signed checkpoint as it was served, verified whole.
    pub checkpoint: String,
}

/// The file.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    logs: BTreeMap<String, Known>,
}

impl State {
    /// Reads the file; a missing one is empty.
    pub fn open(path: PathBuf) -> Result<State> {
        let logs = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| broken(&path, &e.to_string()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(broken(&path, &e.to_string())),
        };
        Ok(State { path, logs })
    }

    /// What is known of the log of this collector.
    pub fn get(&self, collector: &str) -> Option<&Known> {
        self.logs.get(collector)
    }

    /// Every log that is known.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.logs.values()
    }

    /// Remembers, durably: the new file replaces the old one whole.
    pub fn remember(&mut self, collector: &str, known: Known) -> Result<()> {
        self.logs.insert(collector.to_owned(), known);
        let text = serde_json::to_vec_pretty(&self.logs).map_err(|e| broken(&self.path, &e.to_string()))?;
        replace(&self.path, &text).map_err(|e| broken(&self.path, &e.to_string()))
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

fn broken(path: &Path, what: &str) -> CliError {
    CliError::new(Exit::Config, format_args!("state file {}: {what}", path.display()))
        .hint("it keeps the last verified checkpoint; look at it before removing it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("deep/state.json");
        let known = Known { vkey: "v".into(), checkpoint: "c\n1\n".into() };
        State::open(path.clone()).expect("empty").remember("https://a", known.clone()).expect("written");
        let state = State::open(path).expect("reads");
        assert_eq!(state.get("https://a"), Some(&known));
        assert_eq!(state.get("https://b"), None);
    }

    #[test]
    fn a_broken_file_is_not_an_empty_one() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("state.json");
        fs::write(&path, "{").expect("written");
        assert_eq!(State::open(path).expect_err("broken").kind, Exit::Config);
    }
}
