//! A text cut into the words of its simple commands, by blanks and separators alone.
//!
//! Good enough to find a program and its flags, not to judge: `crate::shell` does that. A word in quotes is its inside.

use std::ops::Range;

/// Words of one text that are looked at.
const WORDS_MAX: usize = 4096;

/// Whether a shell takes the byte as part of a plain word.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.~+/=:@%^*!?,#-".contains(&byte)
}

/// The commands of a text that has blanks; none of another.
pub(super) fn commands(text: &[u8]) -> Vec<Vec<Range<usize>>> {
    if !text.iter().any(u8::is_ascii_whitespace) {
        return Vec::new();
    }
    let mut commands = vec![Vec::new()];
    let (mut at, mut words) = (0, 0);
    while let Some(byte) = text.get(at).copied() {
        if byte == b'\n' || b";|&()`{}".contains(&byte) {
            commands.push(Vec::new());
            at += 1;
        } else if byte.is_ascii_whitespace() {
            at += 1;
        } else {
            let word = word(text, at);
            at = word.1;
            words += 1;
            if let Some(command) = commands.last_mut() {
                command.push(word.0);
            }
        }
        if words >= WORDS_MAX {
            break;
        }
    }
    commands.retain(|command| !command.is_empty());
    commands
}

/// The word that begins here, without quotes around it, and where what follows it begins.
fn word(text: &[u8], start: usize) -> (Range<usize>, usize) {
    let ends = |from: usize, end: &dyn Fn(u8) -> bool| {
        text.iter().skip(from).position(|b| end(*b)).map_or(text.len(), |n| from + n)
    };
    match text.get(start) {
        Some(quote @ (b'"' | b'\'')) => {
            let end = ends(start + 1, &|b| b == *quote);
            (start + 1..end, (end + 1).min(text.len()))
        }
        _ => {
            let end = ends(start, &|b| b.is_ascii_whitespace() || b";|&()`".contains(&b)).max(start + 1);
            (start..end, end)
        }
    }
}
