//! `guardctl journal`: a host's journal, offline.
//!
//! It must not change it. Fails: exit code 1 when the journal is damaged; what is wrong is named with file and byte.

use std::path::Path;

use guard_log::journal::offline::{Examined, Flaw, examine};
use guard_log::record::Record;
use guard_proto::v1::LogEntry;
use serde_json::{Value, json};

use crate::args::JournalCommand;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record::Entry;
use crate::stream;
use crate::table::Tone;
use crate::text::escape_str;

/// Runs `journal …`.
pub fn run(command: &JournalCommand, out: &Out) -> Result<()> {
    match command {
        JournalCommand::Verify { dir } => verify(dir, out),
        JournalCommand::Dump { dir, from, limit } => dump(dir, *from, *limit, out),
    }
}

fn look(dir: &Path, each: &mut dyn FnMut(&Record) -> bool) -> Result<Examined> {
    examine(dir, each).map_err(|e| CliError::new(Exit::Config, e))
}

fn verify(dir: &Path, out: &Out) -> Result<()> {
    let found = look(dir, &mut |_| true)?;
    if out.is_json() {
        out.json(&json(&found))?;
    } else {
        out.print(&text(&found, out))?;
    }
    if found.is_whole() {
        return Ok(());
    }
    let damage = found.flaws.iter().filter(|flaw| flaw.is_damage()).count();
    Err(CliError::new(Exit::No, format_args!("the journal is damaged: {damage} findings"))
        .hint("keep the folder as it is: it is evidence; what the collector has is in the log"))
}

fn dump(dir: &Path, from: u64, limit: u64, out: &Out) -> Result<()> {
    let (mut left, mut failed) = (limit, None);
    let found = look(dir, &mut |record| {
        if left == 0 || failed.is_some() {
            return false;
        }
        if record.header().seq >= from {
            left -= 1;
            failed = shown(record, out).err();
        }
        true
    })?;
    match failed {
        Some(error) => Err(error),
        None if found.is_whole() => Ok(()),
        None => Err(CliError::new(Exit::No, "the journal is damaged; see `guardctl journal verify`")),
    }
}

/// A journal has no leaves: the number stands in their place.
fn shown(record: &Record, out: &Out) -> Result<()> {
    let entry = LogEntry { leaf: record.header().seq, record: record.bytes().clone().into() };
    let entry = Entry::parse(entry)?;
    if !out.is_json() {
        return stream::print_entry(&entry, out);
    }
    let mut value = entry.json();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("leaf");
    }
    out.json(&value)
}

fn json(found: &Examined) -> Value {
    json!({"ok": found.is_whole(), "host": found.host.map(|h| h.to_string()), "epoch": found.epoch.map(|e| e.to_string()),
        "first_seq": found.first_seq, "next_seq": found.next_seq, "acked_next_seq": found.acked_next_seq,
        "records": found.records, "segments": found.segments, "findings": found.flaws.iter().map(flaw).collect::<Vec<_>>()})
}

fn flaw(flaw: &Flaw) -> Value {
    json!({"what": flaw.what, "damage": flaw.is_damage(), "file": flaw.file, "offset": flaw.offset, "detail": flaw.detail})
}

fn text(found: &Examined, out: &Out) -> String {
    let verdict = if found.is_whole() { out.paint(Tone::Good, "OK") } else { out.paint(Tone::Bad, "DAMAGED") };
    let id = |id: Option<String>| id.unwrap_or_else(|| "unknown".into());
    let mut text = format!(
        "journal {verdict}: {} records in {} segments, {} to {}; noted as acknowledged: below {}\nhost {}, epoch {}\n",
        found.records,
        found.segments,
        found.first_seq.unwrap_or(found.next_seq),
        found.next_seq,
        found.acked_next_seq,
        id(found.host.map(|h| h.to_string())),
        id(found.epoch.map(|e| e.to_string())),
    );
    for flaw in &found.flaws {
        let (word, tone) = if flaw.is_damage() { ("error", Tone::Bad) } else { ("note", Tone::Warn) };
        text.push_str(&format!(
            "{} {}: {} at byte {}: {}\n",
            out.paint(tone, word),
            flaw.what,
            escape_str(&flaw.file),
            flaw.offset,
            escape_str(&flaw.detail)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn what_is_no_journal_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let command = JournalCommand::Verify { dir: dir.path().to_owned() };
        let error = run(&command, &Out::new(Format::Json)).unwrap_err();
        assert_eq!(error.kind, Exit::Config);
        assert!(error.message.contains("no journal is there"), "{}", error.message);
    }
}
