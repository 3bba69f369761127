//! Which arguments of known programs are secrets: `secrets.yaml`.
//!
//! A program is known by its name where a command begins, or behind wrappers that start what they are given: never by a word
//! further on, which could make any command's arguments disappear.

use std::ops::Range;
use std::sync::LazyLock;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    wrappers: Vec<Wrapper>,
    programs: Vec<Known>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrapper {
    names: Vec<String>,
    #[serde(default)]
    values: Vec<String>,
}

/// A program some of whose arguments are secrets.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    names: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    words: Vec<Vec<String>>,
    /// Only where one of these words stands before.
    #[serde(default)]
    only: Vec<String>,
}

pub(super) const TEXT: &str = include_str!("../secrets.yaml");

static TABLE: LazyLock<Table> = LazyLock::new(|| serde_saphyr::from_str(TEXT).unwrap_or_default());

fn base(word: &[u8]) -> &[u8] {
    word.rsplit(|b| *b == b'/').next().unwrap_or_default()
}

fn named(names: &[String], word: &[u8]) -> bool {
    names.iter().any(|name| name.as_bytes() == word)
}

fn find(word: &[u8]) -> Option<&'static Known> {
    TABLE.programs.iter().find(|known| named(&known.names, base(word)))
}

impl Known {
    /// The known program that a command starts, and the place of its name.
    pub(super) fn of(program: Option<&str>, words: &[&[u8]]) -> Option<(usize, &'static Known)> {
        if let Some(known) = program.and_then(|p| find(p.as_bytes())) {
            return Some((0, known));
        }
        let mut place = 0;
        loop {
            place = skip_assignments(words, place);
            let word = words.get(place)?;
            if let Some(known) = find(word) {
                return Some((place, known));
            }
            let wrapper = TABLE.wrappers.iter().find(|wrapper| named(&wrapper.names, base(word)))?;
            place = skip_options(wrapper, words, place + 1);
        }
    }

    /// Places of secrets among the words, the first of which is the program's name.
    pub(super) fn secrets(&self, words: &[&[u8]]) -> Vec<(usize, Range<usize>)> {
        if !self.only.is_empty() && !words.iter().skip(1).any(|word| named(&self.only, word)) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (place, word) in words.iter().enumerate().skip(1) {
            for flag in &self.flags {
                found.extend(value(flag, words, place, word));
            }
            for flag in &self.users {
                found.extend(value(flag, words, place, word).and_then(|(place, at)| after_name(words, place, at)));
            }
        }
        for wanted in &self.words {
            found.extend(follows(wanted, words));
        }
        found
    }
}

fn skip_assignments(words: &[&[u8]], mut place: usize) -> usize {
    let assigns = |word: &&[u8]| {
        word.iter()
            .position(|b| *b == b'=')
            .is_some_and(|end| end > 0 && word.iter().take(end).all(|b| b.is_ascii_alphanumeric() || *b == b'_'))
    };
    while words.get(place).is_some_and(assigns) {
        place += 1;
    }
    place
}

/// The first word that is no option of the wrapper's, and no number of its own.
fn skip_options(wrapper: &Wrapper, words: &[&[u8]], mut place: usize) -> usize {
    while let Some(word) = words.get(place) {
        let number = word.first().is_some_and(u8::is_ascii_digit);
        match word.first() {
            Some(b'-') => place += if named(&wrapper.values, word) { 2 } else { 1 },
            Some(_) if number => place += 1,
            _ => break,
        }
    }
    place
}

/// Where a flag's value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    SameWord,
    NextWord,
    Either,
}

fn place_of(flag: &str) -> (&str, Where) {
    match (flag.strip_suffix('='), flag.strip_suffix('+')) {
        (Some(flag), _) => (flag, Where::SameWord),
        (_, Some(flag)) => (flag, Where::NextWord),
        _ => (flag, Where::Either),
    }
}

/// The value of a flag at this place: the rest of its word, or the next one.
fn value(flag: &str, words: &[&[u8]], place: usize, word: &[u8]) -> Option<(usize, Range<usize>)> {
    let (flag, stands) = place_of(flag);
    let next = || words.get(place + 1).filter(|_| stands != Where::SameWord).map(|next| (place + 1, 0..next.len()));
    let long = flag.starts_with("--") || (flag.len() > 2 && flag.starts_with('-'));
    if !long && is_bundle_with(flag, word) {
        return next();
    }
    let rest = word.strip_prefix(flag.as_bytes())?;
    match rest.first() {
        None => next(),
        Some(_) if stands == Where::NextWord => None,
        Some(b'=') if long => Some((place, flag.len() + 1..word.len())),
        Some(_) if long => None,
        Some(_) => Some((place, flag.len()..word.len())),
    }
}

/// Short flags in one word, of which the last is this one: `-sSu`.
fn is_bundle_with(flag: &str, word: &[u8]) -> bool {
    const LONGEST: usize = 8;
    let letters = word.strip_prefix(b"-").unwrap_or_default();
    (2..LONGEST).contains(&letters.len())
        && letters.iter().all(u8::is_ascii_alphabetic)
        && flag.as_bytes().get(1) == letters.last()
        && flag.len() == 2
}

/// Of `name:secret` the secret.
fn after_name(words: &[&[u8]], place: usize, at: Range<usize>) -> Option<(usize, Range<usize>)> {
    let text = words.get(place)?.get(at.clone())?;
    let colon = text.iter().position(|b| *b == b':')?;
    Some((place, at.start + colon + 1..at.end))
}

/// The word after these words.
fn follows(wanted: &[String], words: &[&[u8]]) -> Option<(usize, Range<usize>)> {
    let rest = words.get(1..)?;
    let at = rest
        .windows(wanted.len().max(1))
        .position(|run| run.iter().zip(wanted).all(|(word, wanted)| word.eq_ignore_ascii_case(wanted.as_bytes())))?;
    let place = 1 + at + wanted.len();
    let next = words.get(place).filter(|next| next.first() != Some(&b'-'))?;
    Some((place, 0..next.len()))
}
