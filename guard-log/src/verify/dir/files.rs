//! Every file of the folder: whether it belongs there, is a plain file, and may still be written.
//!
//! It must not go into folders that it does not know: they are named. Fails: a folder that cannot be listed is said
//! not to have been looked at.

use std::ffi::OsString;

use super::super::Source;
use super::super::folder::{Entry, Folder, Names, What};
use super::super::report::Findings;
use super::parts::Facts;
use super::tolerant::Tolerant;
use super::{Form, LogDir, blobs, lock, segments};
use crate::checkpoint::Checkpoint;
use crate::tiles::{CHANGES, CHECKPOINT, COSIGNED, Level, PRUNED, RESOURCE_MAX, Tile, decode_entries, decode_hashes};

/// Any of the write bits.
const WRITE: u32 = 0o222;
/// What the collector keeps beside its log to start faster, as of now and as of the last pruning, and holds to the log.
const SNAPSHOTS: [&str; 2] = ["admission", "admission.pruned"];

/// Looks at everything but the blobs.
pub(super) fn walk(
    dir: &LogDir,
    source: &Tolerant<'_>,
    head: Option<&Checkpoint>,
    facts: &mut Facts,
    findings: &mut Findings,
) {
    let mut walk = Walk { form: dir.form, source, head, facts };
    let top = |name: &str, what: What| match what {
        What::Folder => [segments::FOLDER, blobs::FOLDER].contains(&name),
        What::File => [lock::NAME, "lock.held"].contains(&name),
        What::Link | What::Other => false,
    };
    match dir.form {
        Form::Exported => walk.tree(&dir.tree, "", findings, &top),
        Form::Store => {
            each(&dir.root, "", findings, &mut |name, entry, _| {
                (name == "log" && entry.what == What::Folder)
                    || (SNAPSHOTS.contains(&name) && entry.what == What::File)
                    || top(name, entry.what)
            });
            walk.tree(&dir.tree, "", findings, &|_, _| false);
        }
    }
    if let Ok(Some(folder)) = dir.root.within(segments::FOLDER) {
        each(&folder, segments::FOLDER, findings, &mut |name, entry, _| {
            entry.what == What::File && (name == "lock" || segments::first_leaf(name).is_some())
        });
    }
}

/// Calls for each entry of a folder.
fn each(
    folder: &Folder,
    path: &str,
    findings: &mut Findings,
    call: &mut dyn FnMut(&str, &Entry, &mut Findings) -> bool,
) {
    let shown = if path.is_empty() { "." } else { path };
    let Names { names, more } = match folder.names() {
        Ok(names) => names,
        Err(error) => return findings.unchecked("unread_folder", shown, error),
    };
    if more {
        findings.unchecked("unread_folder", shown, "it holds more files than are looked at");
    }
    for name in names {
        known(folder, &name, path, findings, call);
    }
}

/// Asks `call` about one entry; what it does not know is named.
pub(super) fn known(
    folder: &Folder,
    name: &OsString,
    path: &str,
    findings: &mut Findings,
    call: &mut dyn FnMut(&str, &Entry, &mut Findings) -> bool,
) {
    let where_ = if path.is_empty() { name.display().to_string() } else { format!("{path}/{}", name.display()) };
    let entry = match folder.look(name) {
        Ok(entry) => entry,
        Err(error) => return findings.unchecked("unread_folder", where_, error),
    };
    if name.to_str().is_some_and(|name| call(name, &entry, findings)) {
        return;
    }
    match entry.what {
        What::Link => {
            findings.error("not_a_file", where_, "it is a symbolic link; none belongs there, none is followed")
        }
        What::Other => findings.error("not_a_file", where_, "it is neither file nor folder"),
        What::File if blobs::is_leftover(name) || name.to_str().is_some_and(|name| name.ends_with(".tmp")) => {
            findings.information("leftover", where_, "a crash left it half written, under a name that nothing reads");
        }
        What::File => findings.error("stray_file", where_, "it does not belong to a log"),
        What::Folder => findings.error("stray_file", where_, "a folder that does not belong to a log; not looked into"),
    }
}

struct Walk<'a> {
    form: Form,
    source: &'a Tolerant<'a>,
    head: Option<&'a Checkpoint>,
    facts: &'a mut Facts,
}

impl Walk<'_> {
    /// A folder of the public tree; `path` is its name there.
    fn tree(&mut self, folder: &Folder, path: &str, findings: &mut Findings, also: &dyn Fn(&str, What) -> bool) {
        let shown = self.shown(path);
        each(folder, &shown, findings, &mut |name, entry, findings| {
            let inner = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            match entry.what {
                What::File if [CHECKPOINT, COSIGNED, PRUNED, CHANGES].contains(&inner.as_str()) => true,
                What::File => match inner.parse::<Tile>() {
                    Ok(tile) => {
                        self.tile(&tile, entry, findings);
                        true
                    }
                    Err(_) => also(&inner, entry.what),
                },
                What::Folder if holds_tiles(&inner) => {
                    match folder.within(name) {
                        Ok(Some(below)) => self.tree(&below, &inner, findings, &|_, _| false),
                        Ok(None) => {}
                        Err(error) => findings.unchecked("unread_folder", self.shown(&inner), error),
                    }
                    true
                }
                What::Folder => also(&inner, entry.what),
                What::Link | What::Other => false,
            }
        });
    }

    /// A name in the tree, from the folder that was copied.
    fn shown(&self, path: &str) -> String {
        match (self.form, path) {
            (Form::Exported, path) => path.to_owned(),
            (Form::Store, "") => "log".to_owned(),
            (Form::Store, path) => format!("log/{path}"),
        }
    }

    fn tile(&mut self, tile: &Tile, entry: &Entry, findings: &mut Findings) {
        let shown = self.shown(&tile.to_string());
        if entry.bytes > RESOURCE_MAX {
            let detail = format!("it has {} bytes, and at most {RESOURCE_MAX} are right", entry.bytes);
            findings.error("too_large", &shown, detail);
        }
        if tile.is_full() && self.form == Form::Store {
            self.facts.full_tiles += 1;
            if entry.mode & WRITE != 0 {
                let detail = format!(
                    "mode {:04o}: the collector takes all write bits from a full tile, which never changes; it was \
                     written by another, or copied without modes",
                    entry.mode
                );
                findings.error("writable", &shown, detail);
            }
        }
        let Some(head) = self.head else { return };
        match Tile::at(tile.level, tile.index, head.size) {
            Some(now) if tile.width < now.width => self.superseded(tile, &now, &shown, findings),
            Some(now) if tile.width == now.width => self.facts.tiles += u64::from(tile.level != Level::Entries),
            Some(_) | None => {
                let detail = format!(
                    "it holds more than the {} entries of the checkpoint: an older checkpoint was put back, or a crash \
                     cut a publication short",
                    head.size
                );
                findings.error("beyond_checkpoint", shown, detail);
            }
        }
    }

    /// A partial tile of an earlier size: the beginning of the one that superseded it.
    fn superseded(&self, tile: &Tile, now: &Tile, shown: &str, findings: &mut Findings) {
        let bytes = |tile: &Tile| self.source.fetch(&tile.to_string()).ok().flatten();
        let (Some(old), Some(new)) = (bytes(tile), bytes(now)) else { return };
        if !new.starts_with(&old) || !is_whole(tile, &old) {
            findings.error("wrong_partial", shown, format!("it is not the beginning of {now}, which superseded it"));
        }
    }
}

/// Whether bytes are as many as a tile's width says.
fn is_whole(tile: &Tile, bytes: &[u8]) -> bool {
    match tile.level {
        Level::Hashes(_) => decode_hashes(bytes, tile.width).is_ok(),
        Level::Entries => decode_entries(bytes, tile.width).is_ok(),
    }
}

/// Whether a folder of the tree is one that tiles can lie in, or below.
fn holds_tiles(path: &str) -> bool {
    let names = |name: &str| format!("{path}/{name}").parse::<Tile>().is_ok();
    path == "tile" || names("000") || names("1")
}
