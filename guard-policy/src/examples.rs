//! The examples that rules carry: each is judged when the file is loaded, and must hold.

use serde_saphyr::Location;

use crate::placed::Placed;

use crate::facts::{Facts, FileRef, Role, Stdin};
use crate::model::Policy;
use crate::raw::{RawExamples, RawRule};
use crate::verdict::{Tier, Verdict};

/// Checks a rule's examples. `Err` says which does not hold.
pub(crate) fn check(policy: &Policy, raw: &RawRule) -> Result<(), (Location, String)> {
    let id = raw.id.value.as_str();
    for (examples, wanted) in [(&raw.matching, true), (&raw.not_match, false)] {
        for example in examples {
            let verdict = judge(policy, example)?;
            let fired = verdict.reasons.iter().any(|r| r.rule_id == id);
            if fired != wanted {
                let verb = if wanted { "does not match" } else { "matches" };
                return Err((example.referenced, format!("rule `{id}` {verb} its example `{}`", example.value)));
            }
        }
    }
    Ok(())
}

/// The tier that a command shall get, and its words.
pub type Example = (Tier, Vec<Vec<u8>>);

/// One command that does not get the tier that its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// File and line.
    pub place: String,
    /// The command.
    pub command: String,
    /// The tier that the file says.
    pub expected: Tier,
    /// What policy says; `None`: the example is no command.
    pub verdict: Option<Verdict>,
}

/// Judges the examples of a file. Gives how many there are, and those that do not hold.
pub(crate) fn test(policy: &Policy, file: &str, raw: &RawExamples) -> (usize, Vec<Unmet>) {
    let mut count = 0;
    let mut unmet = Vec::new();
    for (examples, expected) in [(&raw.allow, Tier::Allow), (&raw.review, Tier::Review), (&raw.deny, Tier::Deny)] {
        for example in examples {
            count += 1;
            let verdict = judge(policy, example).ok();
            if verdict.as_ref().map(|v| v.tier) != Some(expected) {
                let place = format!("{file}:{}", example.referenced.line());
                unmet.push(Unmet { place, command: example.value.clone(), expected, verdict });
            }
        }
    }
    (count, unmet)
}

/// The examples of a file as argument vectors.
pub(crate) fn all(raw: &RawExamples) -> Vec<Example> {
    let of = |examples: &[Placed<String>], tier| {
        examples.iter().filter_map(|e| split(&e.value)).map(|argv| (tier, argv)).collect::<Vec<_>>()
    };
    [of(&raw.allow, Tier::Allow), of(&raw.review, Tier::Review), of(&raw.deny, Tier::Deny)].concat()
}

fn judge(policy: &Policy, example: &Placed<String>) -> Result<Verdict, (Location, String)> {
    let bad = || (example.referenced, format!("`{}` is no example command", example.value));
    let argv = split(&example.value).ok_or_else(bad)?;
    let name = argv.first().ok_or_else(bad)?.clone();
    let path = [b"/usr/bin/", name.as_slice()].concat();
    let files = [FileRef { path: &path, role: Role::Program, session_writable: false, foreign: false }];
    Ok(policy.decide(&Facts {
        argv: &argv,
        files: &files,
        cwd: b"/home/dev/work",
        home: b"/home/dev",
        workspace: b"/home/dev/work",
        uid: 1000,
        env: &[],
        stdin: Stdin::Null,
        entry: false,
    }))
}

/// Splits at blanks, outside quotes. No escapes: examples are written by people who can choose the other quote.
fn split(text: &str) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote: Option<u8> = None;
    for byte in text.bytes() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b' ') => words.extend(word.take()),
            (Some(_) | None, _) => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    (quote.is_none() && !words.is_empty()).then_some(words)
}
