//! What an audited folder consists of, and what is known of each part.
//!
//! It must not call a part verified of which anything is wrong or was not read. Fails: a kind of finding that no part
//! is known for counts against the files.

use super::super::report::{Findings, Severity};
use super::blobs::Counts;
use super::{DirOptions, Form};
use crate::checkpoint::Checkpoint;

/// A part of a copied log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The signed head: its signature.
    Checkpoint,
    /// That the log continues what witnesses cosigned last; their cosignatures are judged by whoever holds a policy.
    Cosignatures,
    /// That the log continues what was verified earlier.
    History,
    /// Entry bundles.
    Entries,
    /// Tiles of hashes, partial ones and superseded ones too.
    Tiles,
    /// That the entries lead to the checkpoint's root.
    Root,
    /// Each host's numbers and hashes.
    Chains,
    /// Mode bits of full tiles.
    Modes,
    /// The collector's lock file.
    Lock,
    /// Write-ahead segments.
    Segments,
    /// What records keep outside the log.
    Blobs,
    /// That no other file is there.
    Files,
}

/// What is known of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All of it was checked, and it is right.
    Verified,
    /// Something is wrong.
    Wrong,
    /// Nothing wrong was found, and something could not be checked.
    Unchecked,
    /// It is not there and need not be, or was not asked for.
    Absent,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartReport {
    /// Which.
    pub part: Part,
    /// What is known of it.
    pub state: State,
    /// In words.
    pub detail: String,
}

/// All parts, in order.
const PARTS: [Part; 12] = [
    Part::Checkpoint,
    Part::Cosignatures,
    Part::History,
    Part::Entries,
    Part::Tiles,
    Part::Root,
    Part::Chains,
    Part::Modes,
    Part::Lock,
    Part::Segments,
    Part::Blobs,
    Part::Files,
];

impl Part {
    /// Its name, as a stable word.
    pub fn word(self) -> &'static str {
        match self {
            Part::Checkpoint => "checkpoint",
            Part::Cosignatures => "cosignatures",
            Part::History => "history",
            Part::Entries => "entries",
            Part::Tiles => "tiles",
            Part::Root => "root",
            Part::Chains => "chains",
            Part::Modes => "modes",
            Part::Lock => "lock",
            Part::Segments => "segments",
            Part::Blobs => "blobs",
            Part::Files => "files",
        }
    }

    /// The part that a kind of finding is about.
    fn of(what: &str) -> Part {
        match what {
            "missing_checkpoint"
            | "unread_checkpoint"
            | "malformed_checkpoint"
            | "not_signed"
            | "no_key"
            | "wrong_changes"
            | "wrong_succession"
            | "key_rotated"
            | "successor" => Part::Checkpoint,
            "no_quorum"
            | "unread_cosigned"
            | "malformed_cosigned"
            | "cosigned_not_signed"
            | "cosigned_ahead"
            | "cosigned_differs"
            | "unknown_cosigned" => Part::Cosignatures,
            "fork" | "rolled_back" | "other_log" | "unknown_history" => Part::History,
            "changed_entry" | "malformed_entries" | "missing_entries" | "not_a_record" | "unread_entries"
            | "pruned_entries" | "wrong_mark" => Part::Entries,
            "wrong_tile" | "missing_tile" | "disagree" | "wrong_partial" | "unread_tile" => Part::Tiles,
            "root_mismatch" | "unknown_root" => Part::Root,
            "gap"
            | "repeat"
            | "chain_break"
            | "admitted_gap"
            | "admitted_repeat"
            | "admitted_chain_break"
            | "unread_chain"
            | "many_journals" => Part::Chains,
            "writable" => Part::Modes,
            "unread_lock" | "malformed_lock" | "other_lock" | "lock_behind" | "lock_differs" | "lock_ahead" => {
                Part::Lock
            }
            "segment_order" | "segment_differs" | "segment_damaged" | "segments_short" | "torn_tail"
            | "missing_segments" | "unread_segments" => Part::Segments,
            "missing_blob" | "changed_blob" | "stray_blob" | "erased_blob_kept" | "unread_blobs" | "many_blobs" => {
                Part::Blobs
            }
            _ => Part::Files,
        }
    }
}

/// What was counted on the way.
#[derive(Debug)]
pub(super) struct Facts {
    form: Form,
    /// Size of the earlier checkpoint.
    previous: Option<u64>,
    /// Entries up to the checkpoint that are the right ones.
    pub(super) entries: u64,
    /// Entries that are not there because a record of the log says that they were pruned.
    pub(super) pruned: u64,
    /// Tiles of hashes of the checkpoint's size.
    pub(super) tiles: u64,
    pub(super) full_tiles: u64,
    /// The checkpoint that witnesses cosigned last, if the log continues it.
    pub(super) cosigned: Option<Checkpoint>,
    pub(super) lock: bool,
    pub(super) segments: Option<usize>,
    /// No entry past the checkpoint can be in a segment that is not there.
    pub(super) segments_whole: bool,
    pub(super) unpublished: u64,
    pub(super) hosts: usize,
    pub(super) blobs: Counts,
}

impl Facts {
    pub(super) fn new(form: Form, options: &DirOptions<'_>) -> Self {
        let previous = options.previous.as_ref().map(|before| before.size);
        let (segments, segments_whole, blobs, cosigned) = (None, true, Counts::default(), None);
        let (entries, pruned, tiles, full_tiles, lock, unpublished, hosts) = (0, 0, 0, 0, false, 0, 0);
        Self {
            form,
            previous,
            entries,
            pruned,
            tiles,
            full_tiles,
            cosigned,
            lock,
            segments,
            segments_whole,
            unpublished,
            hosts,
            blobs,
        }
    }

    /// Every part, with what the findings leave of it.
    pub(super) fn parts(&self, head: Option<&Checkpoint>, findings: &Findings) -> Vec<PartReport> {
        PARTS.map(|part| self.part(part, head, findings)).into()
    }

    fn part(&self, part: Part, head: Option<&Checkpoint>, findings: &Findings) -> PartReport {
        let count = |severity| {
            let of = findings.counts().filter(|(weighs, what, _)| *weighs == severity && Part::of(what) == part);
            of.map(|(_, _, count)| count).sum::<u64>()
        };
        let (wrong, unchecked) = (count(Severity::Error), count(Severity::Unchecked));
        let (state, detail) = match (wrong, unchecked, head) {
            (1.., _, _) => (State::Wrong, plural(wrong, "finding")),
            (0, 1.., _) => (State::Unchecked, format!("could not be checked: {}", plural(unchecked, "reason"))),
            (0, 0, None) if !matches!(part, Part::Modes | Part::Files) => {
                (State::Unchecked, "not checked: there is no checkpoint to hold it to".to_owned())
            }
            (0, 0, head) => match self.absent(part) {
                Some(detail) => (State::Absent, detail),
                None => (State::Verified, self.verified(part, head)),
            },
        };
        PartReport { part, state, detail }
    }

    /// Why there is nothing to check.
    fn absent(&self, part: Part) -> Option<String> {
        let why = match part {
            Part::Cosignatures if self.cosigned.is_none() => "no cosigned checkpoint in the copy, and no policy given",
            Part::History if self.previous.is_none() => "no earlier checkpoint to hold it against",
            Part::Modes if self.form == Form::Exported => "modes of an exported log say nothing",
            Part::Lock if !self.lock => "not in the copy; it lies outside the log's folder and can be named",
            Part::Segments if self.segments.is_none() => "an exported log has none",
            Part::Blobs if !self.blobs.folder && self.blobs.named == 0 => "no record names one",
            Part::Blobs if !self.blobs.folder => {
                return Some(format!("none in the copy; records name {}", self.blobs.named));
            }
            _ => return None,
        };
        Some(why.to_owned())
    }

    fn tiles(&self) -> String {
        plural(self.tiles, "tile")
    }

    fn verified(&self, part: Part, head: Option<&Checkpoint>) -> String {
        let size = head.map_or(0, |head| head.size);
        match part {
            Part::Checkpoint => format!("{size} entries, signed by {}", head.map_or("nobody", |head| &head.origin)),
            Part::Cosignatures => {
                let size = self.cosigned.as_ref().map_or(0, |cosigned| cosigned.size);
                format!("continues the cosigned checkpoint of size {size}; by whom is not judged without a policy")
            }
            Part::History => format!("continues the log verified earlier at size {}", self.previous.unwrap_or(0)),
            Part::Entries if self.pruned > 0 => {
                format!(
                    "{} of {size} entries are those of the tree; {} were pruned on the record",
                    self.entries, self.pruned
                )
            }
            Part::Entries => format!("{} of {size} entries are those of the tree", self.entries),
            // A changed or missing entry is named; its hash in the signed tree stands for it then.
            Part::Tiles if self.pruned > 0 => {
                format!("{} lead to the root; those over pruned entries were compared with their parents", self.tiles())
            }
            Part::Tiles if self.entries < size => {
                format!("{} lead to the root; those over entries that are not right were not recomputed", self.tiles())
            }
            Part::Tiles => format!("{}, recomputed from the entries", self.tiles()),
            Part::Root if self.pruned > 0 => {
                "entries, and hashes of pruned ones, lead to the root in the checkpoint".to_owned()
            }
            Part::Root if self.entries < size => {
                "the tiles lead to the root in the checkpoint, not all entries do".to_owned()
            }
            Part::Root => "the entries lead to the root in the checkpoint".to_owned(),
            Part::Chains => {
                format!("{}, numbers and hashes without a break", plural(self.hosts as u64, "host journal"))
            }
            Part::Modes => format!("{} read-only", plural(self.full_tiles, "full tile")),
            Part::Lock => "it says what the checkpoint says".to_owned(),
            Part::Segments => {
                let segments = plural(self.segments.unwrap_or(0) as u64, "segment");
                format!("{segments}, {} not published yet", plural(self.unpublished, "entry"))
            }
            Part::Blobs => {
                let Counts { held, named, erased, .. } = self.blobs;
                format!("{held} there, {named} named by records, {erased} erased on the record")
            }
            Part::Files => "nothing but what belongs to a log".to_owned(),
        }
    }
}

/// A count and its noun.
pub(super) fn plural(count: u64, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {what}s"),
    }
}
