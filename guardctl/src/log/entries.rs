//! All entries of a copied or exported log folder, for commands that work on recorded execs offline.
//!
//! It must not hand out entries of a log that does not verify. Fails: exit code 1 when the log is not right, 78 without a key.

use std::path::Path;

use guard_log::tiles::{CHECKPOINT, Level, Tile, decode_entries};
use guard_log::verify::{AuditOptions, Source, audit};
use guard_proto::v1::LogEntry;

use super::state::State;
use super::{key, open_folder, origin};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::record::Entry;

/// Gives every entry of the log in `dir` to `each`, in order, after the log was verified. Pruned bundles are left out.
pub fn of_folder(
    dir: &Path,
    vkey: Option<&str>,
    config: &Config,
    each: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<()> {
    let folder = open_folder(dir)
        .map_err(|e| CliError::new(Exit::Unavailable, format_args!("cannot open {}: {e}", dir.display())))?;
    let unreadable = |e: guard_log::verify::SourceError| CliError::new(Exit::Unavailable, e);
    let note = folder.fetch(CHECKPOINT).map_err(unreadable)?;
    let note = note.ok_or_else(|| CliError::new(Exit::No, format_args!("{}: no checkpoint", dir.display())))?;
    let key = key::of_folder(vkey, config, &State::open(config.state_path()?)?, &origin(&note))?;
    let options = AuditOptions { previous: None, admin: key::admin(None, config)? };
    let report = audit(&folder, &key.verifier, &options, &mut |_, _| {})
        .map_err(|e| CliError::new(Exit::No, format_args!("log verification failed: {e}")))?;
    if !report.is_ok() {
        return Err(
            CliError::new(Exit::No, "log verification failed").hint("`guardctl log verify --dir` names the findings")
        );
    }
    let size = report.checkpoint.size;
    let (mut bundle, mut leaf) = (0, 0);
    while let Some(tile) = Tile::at(Level::Entries, bundle, size) {
        if let Some(bytes) = folder.fetch(&tile.to_string()).map_err(unreadable)? {
            let records = decode_entries(&bytes, tile.width).map_err(|e| CliError::new(Exit::No, e))?;
            for (record, leaf) in records.into_iter().zip(leaf..) {
                each(Entry::parse(LogEntry { leaf, record: record.to_vec() })?)?;
            }
        }
        leaf += u64::from(tile.width);
        bundle += 1;
    }
    Ok(())
}
