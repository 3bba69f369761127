//! How a command line is read, for people who want to see what was judged.

use crate::invocation::{Invocation, Word};
use crate::model::Policy;

/// A command line as program knowledge reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Name under which policy describes the program.
    pub program: String,
    /// `remote add`; empty without.
    pub subcommand: String,
    /// The same as it was typed.
    pub called: String,
    /// Flags in their first spelling, with their values.
    pub flags: Vec<(String, Option<String>)>,
    /// What is neither flag nor value.
    pub operands: Vec<String>,
    /// Words that nobody described.
    pub unknown: Vec<String>,
}

impl Policy {
    /// Reads a command line by what is known of the program named `name`. `None`: nothing is known.
    #[must_use]
    pub fn read(&self, name: &[u8], argv: &[Vec<u8>]) -> Option<Reading> {
        let node = self.program(name)?;
        let words: Vec<Word> = argv.iter().take(crate::model::LIMITS.words).map(|w| Word::fixed(w)).collect();
        let read = Invocation::read(node, name, &words);
        Some(Reading {
            program: node.name.clone(),
            subcommand: read.subcommand.clone(),
            called: read.called.clone(),
            flags: read.used.iter().map(|u| (u.flag.name.clone(), u.value.as_ref().map(Word::lossy))).collect(),
            operands: read.operands.iter().map(Word::lossy).collect(),
            unknown: read.unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Policy;

    #[test]
    fn bundled_flags_values_and_subcommands_are_told_apart() {
        let policy = Policy::load(&[]).unwrap();
        let argv: Vec<Vec<u8>> =
            ["git", "-C", "x", "log", "-p", "-n5", "--nope", "HEAD"].map(|w| w.as_bytes().to_vec()).to_vec();
        let read = policy.read(b"git", &argv).unwrap();
        assert_eq!((read.program.as_str(), read.subcommand.as_str()), ("git", "log"));
        let flags: Vec<String> =
            read.flags.iter().map(|(f, v)| format!("{f} {}", v.as_deref().unwrap_or("-"))).collect();
        assert_eq!(flags, ["-C x", "-p -", "-n 5"]);
        assert_eq!((read.operands, read.unknown), (vec!["HEAD".to_owned()], vec!["--nope".to_owned()]));
        assert!(policy.read(b"nobodys-program", &argv).is_none());
    }
}
