//! Protected paths: which names and files governed tasks may not change, which only named programs may read, and how the
//! kernel programs learn of them.
//!
//! Rules come from the configuration and from a built-in list (`defaults`). `resolve` turns paths into places in file
//! systems; here they are kept in step with the kernel's maps, every few seconds, since links, homes and programs change. A
//! name that does not exist yet needs no such step. Fails: rules that cannot be understood refuse the configuration; places
//! that the kernel does not take refuse the start, later they are an error in the log and what is known stays in force.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};

use guard_common::path::PathKey;
use guard_common::{GuardEvent, reason};
use serde::Deserialize;

use crate::config::Config;
use crate::kernel::load::{Kernel, KernelError};
use crate::node::Node;

mod defaults;
mod resolve;

pub use resolve::Mounts;
use resolve::Places;

/// Names of rules and paths are no longer than this.
const TEXT_MAX: usize = 1024;
/// Rules, and paths of one rule.
const COUNT_MAX: usize = 256;
/// Homes that are looked after, beside those of open sessions.
const HOMES_MAX: usize = 512;
const PAUSE: Duration = Duration::from_secs(3);

/// What is denied.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Changing, removing, renaming, making.
    Write,
    /// Opening for reading, but for the rule's readers. What may not be read may not be changed either: it could be
    /// renamed to where it may.
    Read,
}

/// One `[[protect]]` table.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ProtectConfig {
    /// Its name, in records.
    pub name: String,
    /// Absolute, or below `~/`; `/**` at the end for everything below; one `*` in the last name.
    #[serde(default)]
    pub paths: Vec<String>,
    /// What is denied.
    #[serde(default)]
    pub deny: Vec<Access>,
    /// Programs that may read all the same.
    #[serde(default)]
    pub readers: Vec<PathBuf>,
    /// Why the built-in rule of this name is switched off.
    pub off: Option<String>,
}

/// A path as it is written in a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// Below each home, else absolute.
    home: bool,
    names: Vec<String>,
    /// With everything below.
    tree: bool,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    name: String,
    number: u64,
    patterns: Vec<Pattern>,
    read: bool,
    readers: Vec<PathBuf>,
}

impl Rule {
    fn new<P: AsRef<str>>(name: &str, paths: &[P], read: bool, readers: &[PathBuf]) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(format!("`{}`: a name has 1 to 64 letters, digits, `.`, `_`, `-`", name.escape_debug()));
        }
        if paths.is_empty() || paths.len() > COUNT_MAX || readers.len() > COUNT_MAX {
            return Err(format!("{name}: 1 to {COUNT_MAX} paths and at most {COUNT_MAX} readers"));
        }
        if let Some(reader) = readers.iter().find(|r| !r.is_absolute()) {
            return Err(format!("{name}: reader {} must be an absolute path", reader.display()));
        }
        if !read && !readers.is_empty() {
            return Err(format!("{name}: readers need deny = [\"read\"]"));
        }
        let patterns = paths.iter().map(|p| pattern(p.as_ref()).map_err(|e| format!("{name}: {e}")));
        Ok(Self {
            name: name.to_owned(),
            number: number(name),
            patterns: patterns.collect::<Result<_, _>>()?,
            read,
            readers: readers.to_vec(),
        })
    }
}

/// The kernel knows a rule by this: the same after a restart.
fn number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        | 1
}

fn pattern(text: &str) -> Result<Pattern, String> {
    let wrong = |what: &str| Err(format!("path `{}`: {what}", text.escape_debug()));
    if text.len() > TEXT_MAX {
        return wrong("too long");
    }
    let (path, tree) = match text.strip_suffix("/**") {
        Some(path) => (path, true),
        None => (text, false),
    };
    let (home, rest) = match (path.strip_prefix("~/"), path.strip_prefix('/')) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        // `/**` is all of the root's file system.
        (None, None) if tree && path.is_empty() => (false, ""),
        _ => return wrong("must start with `/` or `~/`"),
    };
    let names: Vec<String> = rest.split('/').filter(|n| !n.is_empty()).map(str::to_owned).collect();
    let (last, before) = match names.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None if tree => ("", [].as_slice()),
        None => return wrong("names nothing; with `/**` at the end it means everything below"),
    };
    if names.iter().any(|n| n == "." || n == ".." || n.contains('\0')) {
        return wrong("`.` and `..` are not followed");
    }
    if before.iter().any(|n| n.contains('*')) || last.matches('*').count() > 1 || (tree && last.contains('*')) {
        return wrong("one `*` may stand in the last name, `/**` at the end");
    }
    Ok(Pattern { home, names, tree })
}

/// All rules in force: the configured ones first, then what is built in and not switched off.
pub fn rules(config: &Config) -> Result<Vec<Rule>, String> {
    let built_in = defaults::rules(config)?;
    let mut off = HashSet::new();
    let mut rules: Vec<Rule> = Vec::new();
    if config.protect.len() > COUNT_MAX {
        return Err(format!("more than {COUNT_MAX} rules"));
    }
    for table in &config.protect {
        if let Some(why) = &table.off {
            if why.trim().is_empty() || !table.paths.is_empty() || !table.deny.is_empty() || !table.readers.is_empty() {
                return Err(format!(
                    "{}: `off` says why a built-in rule is switched off, and stands alone",
                    table.name
                ));
            }
            if built_in.iter().all(|r| r.name != table.name) {
                let names: Vec<&str> = built_in.iter().map(|r| r.name.as_str()).collect();
                return Err(format!("{}: no built-in rule has this name; there are {}", table.name, names.join(", ")));
            }
            off.insert(table.name.clone());
            continue;
        }
        if table.deny.is_empty() {
            return Err(format!("{}: deny = [\"write\"] or [\"write\", \"read\"] is needed", table.name));
        }
        let read = table.deny.contains(&Access::Read);
        let rule = Rule::new(&table.name, &table.paths, read, &table.readers)?;
        if rules.iter().chain(&built_in).any(|r| r.name == rule.name) {
            return Err(format!("{}: there is a rule of this name already", rule.name));
        }
        rules.push(rule);
    }
    rules.extend(built_in.into_iter().filter(|r| !off.contains(&r.name)));
    Ok(rules)
}

/// What is protected now.
pub struct Protected {
    rules: Vec<Rule>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    homes: BTreeSet<Vec<u8>>,
    places: Places,
    /// Also of places that were left since: events may still name them.
    known: HashMap<PathKey, (String, Vec<u8>)>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Protected {
    /// From a configuration that has been checked.
    pub fn new(config: &Config) -> Result<Self, String> {
        for table in config.protect.iter().filter(|t| t.off.is_some()) {
            let why = table.off.as_deref().unwrap_or_default();
            tracing::warn!(rule = table.name, why, "a built-in protection is switched off");
        }
        Ok(Self { rules: rules(config)?, state: Mutex::default() })
    }

    /// Looks where everything is now, and tells the kernel what has changed.
    pub fn refresh(&self, kernel: &Kernel) -> Result<(), KernelError> {
        let mut state = lock(&self.state);
        let mut homes = state.homes.clone();
        homes.extend(resolve::homes(Path::new("/etc/passwd")).into_iter().take(HOMES_MAX));
        let places = Places::of(&self.rules, &homes)
            .map_err(|source| KernelError::Io { what: "looking where protected paths are".into(), source })?;
        if places.same(&state.places) {
            return Ok(());
        }
        kernel.protect(&places.paths, &places.inodes, &places.readers)?;
        if state.known.len() > 1 << 17 {
            state.known.clear();
        }
        for (key, told) in &places.told {
            state.known.entry(spoken(key)).or_insert_with(|| told.clone());
        }
        state.places = places;
        Ok(())
    }

    /// A session starts: from now on this home is looked after too, and everything is where it is now.
    pub fn session_starts(&self, kernel: &Kernel, home: &[u8]) -> Result<(), KernelError> {
        self.sessions_go_on(kernel, std::iter::once(home))
    }

    /// The same for sessions of an earlier daemon. To be called before anything else is told to the kernel: what this home
    /// was protected by must not be left in between.
    pub fn sessions_go_on<'a>(
        &self,
        kernel: &Kernel,
        homes: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), KernelError> {
        let homes = homes.filter(|home| home.first() == Some(&b'/') && *home != b"/").map(<[u8]>::to_vec);
        lock(&self.state).homes.extend(homes);
        self.refresh(kernel)
    }

    /// Which rule spoke, and of which path, where an event is about protected ones.
    pub fn explain(&self, event: &GuardEvent) -> Option<(String, Vec<u8>)> {
        if !matches!(event.reason, reason::PROTECTED_PATH | reason::CREDENTIAL_FILE) {
            return None;
        }
        let state = lock(&self.state);
        match event.number {
            0 => state.places.named_files.get(&event.file).cloned(),
            hash => state.known.get(&spoken(&PathKey { dev: event.file.dev, hash })).cloned(),
        }
    }
}

/// How the kernel programs name a place in an event: without the hash's lowest byte.
fn spoken(key: &PathKey) -> PathKey {
    PathKey { hash: key.hash & !0xff, ..*key }
}

/// Keeps the kernel's maps in step.
pub fn spawn(node: &Arc<Node>) -> io::Result<()> {
    let node = Arc::clone(node);
    thread::Builder::new().name("protect".into()).spawn(move || {
        while !node.is_stopping() {
            thread::sleep(PAUSE);
            if let Err(error) = node.protected.refresh(&node.kernel) {
                tracing::error!(%error, "protected paths; what was known before stays in force");
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Vec<Rule>, String> {
        let least = "[node]\nname='n'\n[collector]\naddress='https://c:1'\nca='/a'\ncert='/b'\nkey='/c'\n";
        rules(&toml::from_str(&format!("{least}{text}")).unwrap())
    }

    #[test]
    fn built_in_rules_are_well_formed_and_switched_off_by_name_with_a_reason() {
        let all = config("").unwrap();
        assert!(all.iter().any(|r| r.name == "guard-keys" && r.read));
        let fewer = config("[[protect]]\nname='user-programs'\noff='pip installs there'\n").unwrap();
        assert_eq!(fewer.len() + 1, all.len());
        assert!(config("[[protect]]\nname='user-programs'\noff=' '\n").is_err());
        assert!(config("[[protect]]\nname='no-such'\noff='x'\n").unwrap_err().contains("ssh-keys"));
        let numbers: HashSet<u64> = all.iter().map(|r| r.number).collect();
        assert_eq!(numbers.len(), all.len());
    }

    #[test]
    fn own_rules_come_first_and_need_sense() {
        let own = "[[protect]]\nname='mine'\npaths=['~/x/**','/srv/*.key']\ndeny=['read']\nreaders=['/usr/bin/x']\n";
        assert_eq!(config(own).unwrap()[0].name, "mine");
        for bad in [
            "[[protect]]\nname='mine'\npaths=['x']\ndeny=['write']\n",
            "[[protect]]\nname='mine'\npaths=['/a/../b']\ndeny=['write']\n",
            "[[protect]]\nname='mine'\npaths=['/a*/b']\ndeny=['write']\n",
            "[[protect]]\nname='mine'\npaths=['/a']\n",
            "[[protect]]\nname='ssh-keys'\npaths=['/a']\ndeny=['write']\n",
            "[[protect]]\nname='mine'\npaths=['/a']\ndeny=['write']\nreaders=['/usr/bin/x']\n",
            "[[protect]]\nname='mine'\npaths=['/a']\ndeny=['read']\nreaders=['x']\n",
        ] {
            assert!(config(bad).is_err(), "{bad}");
        }
    }
}
