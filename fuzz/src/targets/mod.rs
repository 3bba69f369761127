//! What reads bytes of others, each with seeds from real encodings and with what has to hold whatever the bytes are.
//!
//! A target may not panic; where a form has one spelling, what was read has to be written the same. It must not reach anything
//! outside a temporary folder.

mod seeds;
mod stored;
mod texts;

/// One of them.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Real encodings to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads the bytes.
    pub run: fn(&[u8]),
}

/// All of them.
pub const ALL: &[Target] = &[
    Target { name: "frames", seeds: seeds::frames, run: texts::frames },
    Target { name: "records", seeds: seeds::records, run: texts::records },
    Target { name: "notes", seeds: seeds::notes, run: texts::notes },
    Target { name: "keys", seeds: seeds::keys, run: texts::keys },
    Target { name: "checkpoints", seeds: seeds::notes, run: texts::checkpoints },
    Target { name: "receipts", seeds: seeds::receipts, run: texts::receipts },
    Target { name: "growths", seeds: seeds::growths, run: texts::growths },
    Target { name: "witnesses", seeds: seeds::policies, run: texts::policies },
    Target { name: "tiles", seeds: seeds::tiles, run: texts::tiles },
    Target { name: "pruned", seeds: seeds::pruned, run: texts::pruned },
    Target { name: "journal", seeds: seeds::journal, run: stored::journal },
    Target { name: "segments", seeds: seeds::segments, run: stored::segments },
    Target { name: "public", seeds: seeds::public, run: stored::public },
];
