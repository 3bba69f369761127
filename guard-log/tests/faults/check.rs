//! What was promised is there, byte for byte; nothing is there twice; chains and tree hold; and it goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_log::journal::{Journal, JournalError};
use guard_log::note::Verifier;
use guard_log::record::Record;
use guard_log::store::{Store, StoreError};
use guard_log::verify::{AuditOptions, Source, SourceError, audit};

use crate::driver::{HOST, entry, hex, journal_options, leaves, signer, store_options};

/// What the driver said before it ended.
#[derive(Clone, Debug, Default)]
pub struct Said {
    pub epoch: Option<String>,
    pub journal: BTreeMap<u64, String>,
    pub acknowledged: u64,
    pub created: bool,
    pub leaves: u64,
    pub published: u64,
    pub errors: Vec<String>,
    pub ended: bool,
}

impl Said {
    pub fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut said = Self::default();
        let number = |text: &str| text.parse::<u64>().unwrap();
        for line in lines {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["epoch", epoch] => said.epoch = Some((*epoch).to_owned()),
                ["journal", seq, digest] => drop(said.journal.insert(number(seq), (*digest).to_owned())),
                ["acknowledged", seq] => said.acknowledged = number(seq),
                ["created"] => said.created = true,
                ["leaves", size] => said.leaves = number(size),
                ["published", size] => said.published = number(size),
                ["error", ..] => said.errors.push(line.to_owned()),
                ["end"] => said.ended = true,
                _ => {}
            }
        }
        said
    }
}

/// The lock of a process that has just ended, or of a thread that is ending.
fn patiently<T, E>(mut open: impl FnMut() -> Result<T, E>, in_use: impl Fn(&E) -> bool) -> Result<T, E> {
    for _ in 0..200 {
        match open() {
            Err(error) if in_use(&error) => std::thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
    open()
}

/// Checks the journal in a folder.
pub fn journal(dir: &Path, said: &Said) -> Result<(), String> {
    let open = || Journal::open(journal_options(dir), HOST);
    let (journal, report) = patiently(open, |e| matches!(e, JournalError::InUse(_))).map_err(|e| e.to_string())?;
    let state = journal.state();
    let result = (|| {
        if let Some(repair) = report.repairs.iter().find(|r| r.what != "torn_tail") {
            return Err(format!("no fault here is damage, but: {repair:?}"));
        }
        if said.epoch.as_ref().is_some_and(|epoch| *epoch != state.epoch.to_string()) {
            return Err(format!("epoch {} instead of {:?}", state.epoch, said.epoch));
        }
        let mut records: Vec<Record> = Vec::new();
        while state.first_seq + (records.len() as u64) < state.durable_next_seq {
            let next = state.first_seq + records.len() as u64;
            let more = journal.read(next, 100, 1 << 20).map_err(|e| e.to_string())?;
            if more.is_empty() {
                return Err(format!("record {next} of {} cannot be read", state.durable_next_seq));
            }
            records.extend(more);
        }
        for (place, record) in records.iter().enumerate() {
            let header = record.header();
            let chained = place == 0 || header.prev == records[place - 1].digest();
            if header.seq != state.first_seq + place as u64 || !chained || record.body() != entry(header.seq).body {
                return Err(format!("record {place} is {header:?}"));
            }
        }
        for (seq, digest) in said.journal.iter().filter(|(seq, _)| **seq >= said.acknowledged) {
            let place = seq.checked_sub(state.first_seq).and_then(|place| records.get(place as usize));
            if place.is_none_or(|record| hex(&record.digest()) != *digest) {
                return Err(format!("record {seq} was promised; the journal holds {state:?}"));
            }
        }
        let next = journal.append(entry(state.next_seq)).and_then(|ticket| ticket.wait());
        next.map(|_| ()).map_err(|e| format!("it does not go on: {e}"))
    })();
    journal.close();
    result
}

/// Checks the log in a folder.
pub fn store(dir: &Path, said: &Said) -> Result<(), String> {
    let options = store_options(dir);
    if !said.created {
        // A creation that was cut short is done again, unless only its last word is missing.
        match Store::create(&options, &signer(dir)) {
            Ok(()) | Err(StoreError::Exists(_)) => {}
            Err(error) => return Err(format!("creating it again: {error}")),
        }
    }
    let open = || Store::open(options.clone(), signer(dir));
    let (store, _) = patiently(open, |e| matches!(e, StoreError::InUse(_))).map_err(|e| e.to_string())?;
    let result = (|| {
        let size = store.size();
        if size < said.leaves || store.published().0 < said.published {
            return Err(format!("{size} leaves, {} published; promised: {said:?}", store.published().0));
        }
        let wanted = leaves(size + 1);
        let mut found = Vec::new();
        while (found.len() as u64) < size {
            let more = store.read(found.len() as u64, 100, 1 << 20).map_err(|e| e.to_string())?;
            if more.is_empty() {
                return Err(format!("leaf {} of {size} cannot be read", found.len()));
            }
            found.extend(more.into_iter().map(|(_, record)| record));
        }
        if found[..] != wanted[..size as usize] {
            return Err("other leaves than those that were appended".to_owned());
        }
        let ticket = store.append(vec![wanted[size as usize].clone()]).map_err(|e| e.to_string())?;
        ticket.wait().and_then(|()| store.publish()).map_err(|e| format!("it does not go on: {e}"))?;
        let verifier = Verifier::parse(&store.vkey()).unwrap();
        let tree = Tree(options.dir.join("log"));
        let report =
            audit(&tree, &verifier, &AuditOptions { previous: None, ..AuditOptions::default() }, &mut |_, _| {});
        let report = report.map_err(|e| e.to_string())?;
        if report.is_ok() && report.entries == size + 1 { Ok(()) } else { Err(format!("{:?}", report.findings)) }
    })();
    store.close();
    result
}

struct Tree(PathBuf);

impl Source for Tree {
    fn fetch(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        match std::fs::read(self.0.join(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(SourceError::new(path, e)),
        }
    }
}
