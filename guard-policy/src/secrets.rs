//! Secrets in arguments: which bytes of an argument vector must not be written down or shown.
//!
//! They are found by program (`secrets.yaml`), by the name in front of them, and by their own shape. It must not be asked
//! for what policy judges: that is always the whole text. A mask must not become a hiding place for what a reviewer
//! has to see: inside a text it covers only characters that a shell takes as part of one plain word, a path or a reference is no
//! secret because of its name, and a call is never masked. Fails: towards showing; what is not known as a secret stays.

use std::ops::Range;
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

mod programs;
mod words;

use programs::Known;

/// What is put in the place of a secret.
pub const MASK: &[u8] = b"***";
/// A shorter value is no secret because of the name before it.
const NAMED_MIN: usize = 3;

/// A secret, by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Which argument.
    pub arg: usize,
    /// Its bytes there.
    pub at: Range<usize>,
    /// How it was known: `program`, `name`, `address`, `header`, `shape`.
    pub why: &'static str,
}

/// An argument vector without its secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masked {
    /// The arguments, with [`MASK`] in the place of each secret.
    pub argv: Vec<Vec<u8>>,
    /// What was masked, in order; places are those in the whole arguments.
    pub secrets: Vec<Secret>,
}

/// A pattern whose first group that matched is the secret.
struct Pattern {
    why: &'static str,
    regex: Regex,
}

/// Characters of a value within a text: none that a shell gives a meaning, no quote, no blank.
const PLAIN: &str = r"[A-Za-z0-9_.~+/=:@%^*!?,#-]";

/// Name of something that is kept secret, at the end of a longer name.
const NAMES: &str = r"(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|auth[_-]?key|credentials?|[_-]pwd|[_-]pass)";

static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let shapes = r"\b(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|A(?:KIA|SIA)[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{30,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{20,}|hv[sbr]\.[A-Za-z0-9_-]{20,}|dop_v1_[a-f0-9]{60,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{6,}|[rs]k_live_[A-Za-z0-9]{16,}|ya29\.[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{20,}|AGE-SECRET-KEY-1[A-Z0-9]{50,})";
    let list = [
        ("shape", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----([A-Za-z0-9+/=\s\\]+)".to_owned()),
        ("shape", shapes.to_owned()),
        ("address", r#"(?i)\b[a-z][a-z0-9+.-]*://[^\s/@:'"]*:([^\s/@'"`$;|&<>()]+)@"#.to_owned()),
        (
            "header",
            format!(
                r#"(?i)\b(?:proxy-)?authorization['"]?\s*[:=]\s*['"]?(?:(?:bearer|basic|token|digest|apikey|negotiate)\s+)?({PLAIN}{{6,}})"#
            ),
        ),
        ("header", format!(r"(?i)\bbearer\s+({PLAIN}{{8,}})")),
        ("header", r#"(?i)\b(?:set-)?cookie:\s*([^\s'"`$|&<>()][^'"`$|&<>()]*)"#.to_owned()),
        ("header", format!(r"(?i)\b(?:x-[a-z-]*(?:key|token|auth|secret)|private-token|api-?key):\s*({PLAIN}{{3,}})")),
        ("name", format!(r#"(?i)[a-z0-9_.-]*{NAMES}(?:\\?["'])?\s*[=:]\s*(?:\\?["'])?({PLAIN}+)"#)),
    ];
    list.into_iter()
        .filter_map(|(why, text)| {
            let regex = RegexBuilder::new(&text).unicode(false).size_limit(4 << 20).build().ok()?;
            Some(Pattern { why, regex })
        })
        .collect()
});

/// Finds secrets. `program` is the name of the file that runs, for when `argv[0]` says something else.
#[must_use]
pub fn mask(program: &str, argv: &[Vec<u8>]) -> Masked {
    let mut found = Vec::new();
    let words: Vec<(usize, Range<usize>)> = argv.iter().enumerate().map(|(arg, text)| (arg, 0..text.len())).collect();
    by_program(Some(program), argv, &words, false, &mut found);
    for (arg, text) in argv.iter().enumerate() {
        by_pattern(arg, text, &mut found);
        for command in words::commands(text) {
            let words: Vec<_> = command.into_iter().map(|at| (arg, at)).collect();
            by_program(None, argv, &words, true, &mut found);
        }
    }
    by_flag_name(argv, &mut found);
    let secrets = joined(found);
    let argv =
        argv.iter().enumerate().map(|(arg, text)| covered(text, secrets.iter().filter(|s| s.arg == arg))).collect();
    Masked { argv, secrets }
}

/// Masks what looks like a secret in a text for people.
#[must_use]
pub fn mask_text(text: &str) -> String {
    let mut found = Vec::new();
    by_pattern(0, text.as_bytes(), &mut found);
    let bytes = covered(text.as_bytes(), joined(found).iter());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Masks in a text about an exec what was masked in its arguments, wherever it stands.
#[must_use]
pub fn mask_repeated(text: &str, argv: &[Vec<u8>], secrets: &[Secret]) -> String {
    /// A shorter one would tear holes into unrelated words.
    const REPEATED_MIN: usize = 4;
    let mut text = mask_text(text);
    for secret in secrets {
        let bytes = argv.get(secret.arg).and_then(|a| a.get(secret.at.clone())).unwrap_or_default();
        if let Ok(value) = std::str::from_utf8(bytes)
            && value.len() >= REPEATED_MIN
            && text.contains(value)
        {
            text = text.replace(value, "***");
        }
    }
    text
}

fn by_pattern(arg: usize, text: &[u8], found: &mut Vec<Secret>) {
    for pattern in PATTERNS.iter() {
        for groups in pattern.regex.captures_iter(text) {
            let Some(value) = groups.get(1) else { continue };
            if pattern.why == "name" && !is_value(text, &value.range()) {
                continue;
            }
            found.push(Secret { arg, at: value.range(), why: pattern.why });
        }
    }
}

/// Whether what follows a name is its value: not a reference, a path, a call, a comparison or a plain word of code.
fn is_value(text: &[u8], at: &Range<usize>) -> bool {
    let value = text.get(at.clone()).unwrap_or_default();
    let call = matches!(text.get(at.end), Some(b'(' | b'[' | b'{'));
    value.len() >= NAMED_MIN && !call && !is_elsewhere(value) && !CONSTANTS.contains(&value)
}

/// Words that stand after names without being secrets.
const CONSTANTS: [&[u8]; 10] =
    [b"true", b"false", b"null", b"None", b"nil", b"yes", b"required", b"string", b"undefined", b"***"];

/// A path, a reference to a variable or file, an option: what is secret lies elsewhere.
fn is_elsewhere(value: &[u8]) -> bool {
    matches!(value.first(), None | Some(b'/' | b'$' | b'-' | b'@' | b'=' | b'~'))
        || value.starts_with(b"./")
        || value.starts_with(b"../")
}

/// `--password VALUE` and such of any program; `--password=VALUE` is found by its name.
fn by_flag_name(argv: &[Vec<u8>], found: &mut Vec<Secret>) {
    static FLAG: LazyLock<Option<Regex>> = LazyLock::new(|| {
        RegexBuilder::new(&format!(r"(?i)^--?(?:[a-z0-9_-]*[_-])?{NAMES}$")).unicode(false).build().ok()
    });
    let Some(flag) = FLAG.as_ref() else { return };
    for (arg, pair) in argv.windows(2).enumerate() {
        let [name, value] = pair else { continue };
        if flag.is_match(name) && value.len() >= NAMED_MIN && !is_elsewhere(value) {
            found.push(Secret { arg: arg + 1, at: 0..value.len(), why: "name" });
        }
    }
}

fn by_program(
    program: Option<&str>,
    argv: &[Vec<u8>],
    words: &[(usize, Range<usize>)],
    in_text: bool,
    found: &mut Vec<Secret>,
) {
    let word = |at: &(usize, Range<usize>)| argv.get(at.0).and_then(|a| a.get(at.1.clone())).unwrap_or_default();
    let text: Vec<&[u8]> = words.iter().map(word).collect();
    let Some((start, known)) = Known::of(program, &text) else { return };
    for (place, at) in known.secrets(text.get(start..).unwrap_or_default()) {
        let Some((arg, whole)) = words.get(start + place) else { continue };
        let at = whole.start + at.start..whole.start + at.end;
        let value = argv.get(*arg).and_then(|a| a.get(at.clone())).unwrap_or_default();
        // Inside a text what a shell would act on stays to be seen.
        if !value.is_empty() && (!in_text || value.iter().all(|b| words::is_plain(*b))) {
            found.push(Secret { arg: *arg, at, why: "program" });
        }
    }
}

/// In order, without overlaps.
fn joined(mut found: Vec<Secret>) -> Vec<Secret> {
    found.sort_by_key(|s| (s.arg, s.at.start, s.at.end));
    let mut secrets: Vec<Secret> = Vec::new();
    for next in found {
        match secrets.last_mut().filter(|last| last.arg == next.arg && next.at.start <= last.at.end) {
            Some(last) => last.at.end = last.at.end.max(next.at.end),
            None => secrets.push(next),
        }
    }
    secrets
}

fn covered<'a>(text: &[u8], secrets: impl Iterator<Item = &'a Secret>) -> Vec<u8> {
    let mut shown = Vec::with_capacity(text.len());
    let mut from = 0;
    for secret in secrets {
        shown.extend_from_slice(text.get(from..secret.at.start).unwrap_or_default());
        shown.extend_from_slice(MASK);
        from = secret.at.end;
    }
    shown.extend_from_slice(text.get(from..).unwrap_or_default());
    shown
}

#[cfg(test)]
mod tests;
