//! What one receiver has been told and has still to be told: a place in the log, one message on its way, and what is being folded.
//!
//! The log is the queue. Each leaf that is an event is in exactly one message: the first of its kind at once, those like it within a
//! minute together in one message at the end of that minute. A message, with its id, is made once and kept before it is sent first,
//! so that it is the same after a crash. It must not decide by a host's clock. Fails: a file that cannot be read is an error that
//! names it; a place past the end of the log is brought back to it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::frame;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::event::Event;
use super::text::ascii_json;

/// Events of one session that are told one by one within that; more of them are counted together, whatever they are.
const PER_SESSION: usize = 32;
/// Folds of one receiver; the oldest ends early where there would be more.
const FOLDS_MAX: usize = 1024;
/// Nodes that are known not to enforce.
const MODES_MAX: usize = 1024;
/// Longest file: `FOLDS_MAX` of the longest events, and some.
const FILE_MAX: u64 = 64 << 20;

/// A message as it is sent, each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The same for the same leaf, on every attempt.
    pub id: String,
    /// First leaf that it tells of.
    pub leaf: u64,
    /// The exact bytes.
    pub body: String,
}

/// Events like one that was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fold {
    same: String,
    session: Option<String>,
    since_ns: i64,
    /// What came since.
    more: Option<More>,
    /// Of the first: arguments or target.
    differs: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct More {
    count: u64,
    first_leaf: u64,
    last_leaf: u64,
    first_ns: i64,
    last_ns: i64,
    /// Not all have the same arguments or target.
    differ: bool,
    /// They are of different kinds: what a session did past the number that is told one by one.
    various: bool,
    kind: String,
    data: Map<String, Value>,
}

/// What one receiver has been told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    version: u32,
    /// The log that leaves are of.
    origin: String,
    /// First leaf that was not looked at.
    pub next: u64,
    /// The message on its way.
    pub outbox: Option<Message>,
    folds: Vec<Fold>,
    /// Hosts that measured that they do not enforce, with the mode.
    modes: BTreeMap<String, String>,
    #[serde(skip)]
    path: PathBuf,
    /// Events that are alike are folded for so long after the first, by the collector's clock when it reads them.
    #[serde(skip)]
    window_ns: i64,
}

/// Where a leaf stands, as a message says it.
pub struct Place<'a> {
    /// Leaf of the event.
    pub leaf: u64,
    /// SHA-256 of the record, for whoever holds a copy.
    pub record_sha256: [u8; 32],
    /// Id of the host.
    pub host: String,
    /// Name of the host's node.
    pub node: &'a str,
}

impl Queue {
    /// Goes on where the file says, or begins at the end of a log of `size` leaves; says so in words if that is not as it was left.
    pub fn open(
        path: PathBuf,
        window: Duration,
        (origin, size): (&str, u64),
    ) -> Result<(Self, Option<String>), String> {
        let window_ns = i64::try_from(window.as_nanos()).unwrap_or(i64::MAX);
        let at = |e: &dyn std::fmt::Display| {
            format!("{}: {e}; without the file, alerts begin with what comes next", path.display())
        };
        let text = match frame::read_text(&path, FILE_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (folds, modes, origin) = (Vec::new(), BTreeMap::new(), origin.to_owned());
                let mut new = Self { version: 1, origin, next: size, outbox: None, folds, modes, path, window_ns };
                new.keep().map_err(|e| format!("{}: {e}", new.path.display()))?;
                return Ok((new, Some(format!("it is new; alerts begin with leaf {size}"))));
            }
            other => other.map_err(|e| at(&e))?,
        };
        let mut found: Self = serde_json::from_str(&text).map_err(|e| at(&e))?;
        if found.version != 1 {
            return Err(at(&format_args!("version {} is not one that this collector reads", found.version)));
        }
        let (next, before) = (found.next, std::mem::replace(&mut found.origin, origin.to_owned()));
        (found.path, found.window_ns) = (path, window_ns);
        found.next = next.min(size);
        let odd = match (before == origin, next > size) {
            (true, false) => None,
            (true, true) => Some(format!("it was at leaf {next}, the log ends at {size}: an older copy of the log?")),
            (false, _) => {
                Some(format!("the log is now {origin}, it was {before}; alerts go on at leaf {}", found.next))
            }
        };
        Ok((found, odd))
    }

    /// Writes the file.
    pub fn keep(&mut self) -> io::Result<()> {
        frame::replace(&self.path, &serde_json::to_vec(self).map_err(io::Error::other)?)
    }

    /// Whether the mode of a node is news: it does not enforce, or does again.
    pub fn is_news(&mut self, host: &str, mode: &str) -> bool {
        if mode == "enforcing" {
            return self.modes.remove(host).is_some();
        }
        if self.modes.len() >= MODES_MAX {
            self.modes.pop_first();
        }
        self.modes.insert(host.to_owned(), mode.to_owned()).is_none_or(|before| before != mode)
    }

    /// Takes the event of a leaf: it becomes the message on its way, or one of those that are folded.
    pub fn take(&mut self, event: Event, place: &Place<'_>, now_ns: i64) -> Result<(), String> {
        let (same, differs) = (hex::encode(event.same), hex::encode(event.differs));
        let session = event.session.map(|session| session.to_string());
        if self.fold_into(&same, &differs, &event, place) {
            return Ok(());
        }
        let of_session = self.folds.iter().filter(|fold| session.is_some() && fold.session == session).count();
        if of_session >= PER_SESSION {
            let rest = session.clone().unwrap_or_default();
            if !self.fold_into(&rest, &differs, &event, place) {
                self.open_fold(Fold {
                    same: rest.clone(),
                    session,
                    since_ns: now_ns,
                    more: None,
                    differs: differs.clone(),
                })?;
                self.fold_into(&rest, &differs, &event, place);
            }
            return Ok(());
        }
        self.outbox =
            Some(self.message(place.leaf, event.kind.word(), event.wall_ns, told(&event, place, &self.origin))?);
        self.open_fold(Fold { same, session, since_ns: now_ns, more: None, differs })
    }

    fn open_fold(&mut self, fold: Fold) -> Result<(), String> {
        // A fold that ends early is a message, for which there may be no room now: only those without more can go at once.
        while self.folds.len() >= FOLDS_MAX {
            let Some(idle) = self.folds.iter().position(|fold| fold.more.is_none()) else { break };
            self.folds.remove(idle);
        }
        self.folds.push(fold);
        Ok(())
    }

    /// Counts an event with those like it; false if there are none.
    fn fold_into(&mut self, same: &str, differs: &str, event: &Event, place: &Place<'_>) -> bool {
        let origin = self.origin.clone();
        let Some(fold) = self.folds.iter_mut().find(|fold| fold.same == same) else { return false };
        let various = fold.session.as_deref() == Some(same);
        let differ = fold.differs != differs;
        match &mut fold.more {
            Some(more) => {
                more.count += 1;
                more.last_leaf = place.leaf;
                more.last_ns = event.wall_ns;
                more.differ |= differ;
            }
            None => {
                fold.more = Some(More {
                    count: 1,
                    first_leaf: place.leaf,
                    last_leaf: place.leaf,
                    first_ns: event.wall_ns,
                    last_ns: event.wall_ns,
                    differ,
                    various,
                    kind: event.kind.word().to_owned(),
                    data: told(event, place, &origin),
                });
            }
        }
        true
    }

    /// Makes the message of a fold whose time is over, if there is one; those that folded nothing end.
    pub fn fold_due(&mut self, now_ns: i64) -> Result<bool, String> {
        // A clock that went back must not keep them for ever.
        let window = self.window_ns;
        let over = |fold: &Fold| !(0..window).contains(&now_ns.saturating_sub(fold.since_ns));
        self.folds.retain(|fold| fold.more.is_some() || !over(fold));
        let full = self.folds.len() >= FOLDS_MAX;
        let due = |fold: &&mut Fold| fold.more.is_some() && (full || over(fold));
        let Some(fold) = self.folds.iter_mut().find(due) else { return Ok(false) };
        // The next minute begins: what goes on without end is one message a minute.
        fold.since_ns = now_ns;
        let Some(more) = fold.more.take() else { return Ok(false) };
        let mut data = more.data;
        data.insert(
            "repeated".to_owned(),
            json!({"count": more.count, "first_leaf": more.first_leaf, "last_leaf": more.last_leaf,
                "first": time(more.first_ns), "last": time(more.last_ns), "differ": more.differ || more.various,
                "various": more.various}),
        );
        self.outbox = Some(self.message(more.first_leaf, &more.kind, more.last_ns, data)?);
        Ok(true)
    }

    /// Whether something is being folded.
    #[cfg(test)]
    fn folds(&self) -> bool {
        self.folds.iter().any(|fold| fold.more.is_some())
    }

    fn message(&self, leaf: u64, kind: &str, wall_ns: i64, data: Map<String, Value>) -> Result<Message, String> {
        let body = ascii_json(&json!({"type": kind, "timestamp": time(wall_ns), "data": data}))?;
        Ok(Message { id: id(&self.origin, leaf), leaf, body })
    }
}

/// What a message tells of an event.
fn told(event: &Event, place: &Place<'_>, origin: &str) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert(
        "log".to_owned(),
        json!({"origin": origin, "leaf": place.leaf, "record_sha256": hex::encode(place.record_sha256)}),
    );
    data.insert("host".to_owned(), json!({"id": place.host, "node": place.node}));
    data.extend(event.data.clone());
    data
}

/// The id of the message that tells of a leaf first.
pub fn id(origin: &str, leaf: u64) -> String {
    let digest = Sha256::digest(origin);
    format!("msg_{}_{leaf}", hex::encode(digest.get(..8).unwrap_or_default()))
}

/// RFC 3339 with milliseconds.
pub fn time(unix_ns: i64) -> Option<String> {
    let at = jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).ok()?;
    Some(at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

/// The file of a receiver.
pub fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.json"))
}

#[cfg(test)]
mod tests;
