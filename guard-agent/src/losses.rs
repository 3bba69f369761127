//! What was lost, turned into gap records that name the session: events that the ring had no room for, map insertions that
//! failed, records that the journal had no room for.
//!
//! The kernel's counters outlive the daemon: what was lost while there was none is recorded by the next, so the totals that
//! have their record are kept in a file. It must not decide. Fails: what cannot be recorded is counted again.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use guard_common::{Counter, NOBODY, Share};
use guard_log::record::SessionId;

use crate::node::Node;
use crate::session::Session;

/// Totals that have their record.
pub struct Losses {
    recorded: Mutex<HashMap<String, u64>>,
    file: PathBuf,
}

impl Losses {
    /// Reads what an earlier daemon of this boot has recorded.
    pub fn read(state_dir: &std::path::Path, boot_id: &str) -> Self {
        let file = state_dir.join("lost");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let mut lines = text.lines();
        let same_boot = lines.next() == Some(boot_id);
        let recorded = lines
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(name, total)| Some((name.to_owned(), total.parse().ok()?)))
            .filter(|_| same_boot)
            .collect();
        Self { recorded: Mutex::new(recorded), file }
    }

    /// Records what was lost since the last time. To be called every second or so: each loss costs a record.
    pub fn check(&self, node: &Node) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        for (key, share) in node.kernel.shares.all() {
            let id = match node.session(key) {
                Some(session) => session.id,
                None if key == NOBODY => SessionId::NONE,
                // About to begin, or its end will come by here.
                None => continue,
            };
            changed |= note_share(node, &mut recorded, key, id, &share);
        }
        changed |= note(node, &mut recorded, SessionId::NONE, "map_full".into(), node.kernel.counter(Counter::MapFull));
        let unseen = node.kernel.attempts_unseen();
        changed |= note(node, &mut recorded, SessionId::NONE, "attempts_unseen_at_most".into(), unseen);
        for (session, lost) in node.take_lost_records() {
            if node.note_gap(session, "journal", "records that found no room", lost, lost).is_none() {
                node.give_back_lost_records(session, lost);
            }
        }
        if changed {
            self.write(node, &recorded);
        }
    }

    /// At a session's end, when all its events are read: records what it has lost, and closes its account.
    pub fn close(&self, node: &Node, session: &Session) {
        self.close_account(node, session.key, session.id);
    }

    /// Closes the accounts of sessions that are not open, once the ring is read. For a daemon's start.
    pub fn close_former(&self, node: &Node, ids: &HashMap<u64, SessionId>) {
        for key in node.kernel.shares.all().into_keys().filter(|key| *key != NOBODY) {
            if node.session(key).is_none() {
                self.close_account(node, key, ids.get(&key).copied().unwrap_or(SessionId::NONE));
            }
        }
    }

    fn close_account(&self, node: &Node, key: u64, id: SessionId) {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = node.kernel.shares.of(key).is_some_and(|share| note_share(node, &mut recorded, key, id, &share));
        node.kernel.shares.close(key);
        let before = recorded.len();
        let own = format!("{key:016x}/");
        recorded.retain(|name, _| !name.starts_with(&own));
        if changed || recorded.len() < before {
            self.write(node, &recorded);
        }
    }

    fn write(&self, node: &Node, recorded: &HashMap<String, u64>) {
        let mut text = format!("{}\n", node.boot_id);
        for (name, total) in recorded {
            text.push_str(&format!("{name} {total}\n"));
        }
        let written: io::Result<()> = guard_log::frame::replace(&self.file, text.as_bytes());
        if let Err(error) = written {
            tracing::error!(file = %self.file.display(), %error, "keeping the counts of lost events");
        }
    }
}

fn note_share(node: &Node, recorded: &mut HashMap<String, u64>, key: u64, id: SessionId, share: &Share) -> bool {
    let mut changed = false;
    for (name, total) in [
        ("ring_full_attempts", share.lost_attempts),
        ("ring_full_outcomes", share.lost_outcomes),
        ("ring_full_acts", share.lost_acts),
    ] {
        changed |= note(node, recorded, id, format!("{key:016x}/{name}"), total);
    }
    changed
}

/// Records the growth of one counter. True if there was any.
fn note(node: &Node, recorded: &mut HashMap<String, u64>, id: SessionId, name: String, total: u64) -> bool {
    let before = recorded.get(&name).copied().unwrap_or(0);
    // Maps that were made anew count from 0.
    let lost = total.saturating_sub(if total < before { 0 } else { before });
    let counter = name.rsplit('/').next().unwrap_or(&name);
    if lost == 0 || node.note_gap(id, "kernel", counter, lost, total).is_none() {
        return false;
    }
    recorded.insert(name, total);
    true
}
