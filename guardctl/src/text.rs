//! Text that others control, made safe to show: control, bidirectional and invisible characters become escapes, argument
//! vectors are quoted as a shell would need them, and nothing is cut.
//!
//! It must not lose information: two different inputs never give the same output. Fails: never.

use std::fmt::Write as _;

/// Renders bytes for a table: printable characters stay, everything else and the backslash itself is escaped.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    escape_into(&mut out, bytes, "\\\\", "'");
    out
}

/// Renders a string for a table, see [`escape`].
pub fn escape_str(text: &str) -> String {
    escape(text.as_bytes())
}

/// Quotes one argument so that a POSIX shell (bash for `$'…'`) reads exactly these bytes again.
pub fn quote(arg: &[u8]) -> String {
    if !arg.is_empty() && arg.iter().all(|b| is_bare(*b)) && !arg.starts_with(b"~") {
        return String::from_utf8_lossy(arg).into_owned();
    }
    let plain = std::str::from_utf8(arg).is_ok_and(|s| !s.chars().any(is_hidden));
    if plain {
        let text = String::from_utf8_lossy(arg);
        if !text.contains('\'') {
            return format!("'{text}'");
        }
        return format!("'{}'", text.replace('\'', "'\\''"));
    }
    let mut out = String::from("$'");
    escape_into(&mut out, arg, "\\\\", "\\'");
    out.push('\'');
    out
}

/// Quotes a whole argument vector, complete, separated by single spaces.
pub fn command_line(argv: &[Vec<u8>]) -> String {
    argv.iter().map(|arg| quote(arg)).collect::<Vec<_>>().join(" ")
}

/// True for characters that a terminal would act on, that reorder text, or that cannot be seen.
pub fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
        // Spaces that are not the space: they make two different arguments look like one.
        || (c.is_whitespace() && c != ' ')
}

fn is_bare(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"@%+=:,./-_~^".contains(&b)
}

fn escape_into(out: &mut String, bytes: &[u8], backslash: &str, apostrophe: &str) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str(backslash),
                '\'' => out.push_str(apostrophe),
                c if is_hidden(c) => escape_char(out, c),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
}

fn escape_char(out: &mut String, c: char) {
    let _ = match c {
        '\n' => out.write_str("\\n"),
        '\t' => out.write_str("\\t"),
        '\r' => out.write_str("\\r"),
        c if c.is_ascii() => write!(out, "\\x{:02x}", u32::from(c)),
        c if u32::from(c) <= 0xffff => write!(out, "\\u{:04x}", u32::from(c)),
        c => write!(out, "\\U{:08x}", u32::from(c)),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn control_and_bidi_characters_are_escaped() {
        assert_eq!(escape(b"a\x1b[31mred\x07"), "a\\x1b[31mred\\x07");
        assert_eq!(escape("safe\u{202e}gpj.exe".as_bytes()), "safe\\u202egpj.exe");
        assert_eq!(escape("a\u{2066}b\u{200b}c\u{feff}".as_bytes()), "a\\u2066b\\u200bc\\ufeff");
        assert_eq!(escape("tag\u{e0041}".as_bytes()), "tag\\U000e0041");
        assert_eq!(escape("\u{9b}31m".as_bytes()), "\\u009b31m");
        assert_eq!(escape(b"line\nline\r\ttab"), "line\\nline\\r\\ttab");
    }

    #[test]
    fn a_real_backslash_differs_from_an_escape() {
        assert_eq!(escape(b"\\x1b"), "\\\\x1b");
        assert_ne!(escape(b"\\x1b"), escape(b"\x1b"));
    }

    #[test]
    fn invalid_utf8_is_shown_byte_by_byte() {
        assert_eq!(escape(b"caf\xe9"), "caf\\xe9");
        assert_eq!(quote(b"caf\xe9"), "$'caf\\xe9'");
    }

    #[test]
    fn arguments_are_quoted_like_a_shell() {
        let argv: Vec<Vec<u8>> = [&b"git"[..], b"commit", b"-m", b"it's done", b"", b"a b", b"$HOME", b"x;y", b"~root"]
            .iter()
            .map(|a| a.to_vec())
            .collect();
        assert_eq!(command_line(&argv), r"git commit -m 'it'\''s done' '' 'a b' '$HOME' 'x;y' '~root'");
        assert_eq!(quote(b"a\nb'c\\"), r"$'a\nb\'c\\'");
    }

    #[test]
    fn odd_spaces_are_visible() {
        assert_eq!(quote("rm\u{a0}-rf".as_bytes()), "$'rm\\u00a0-rf'");
    }

    proptest! {
        #[test]
        fn nothing_hidden_survives(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(!escape(&bytes).chars().any(is_hidden));
            prop_assert!(!quote(&bytes).chars().any(is_hidden));
        }

        #[test]
        fn a_shell_reads_the_same_bytes_again(bytes in proptest::collection::vec(1u8..=255, 0..40)) {
            let script = format!("printf %s {}", quote(&bytes));
            let out = std::process::Command::new("bash").arg("-c").arg(script).env("LC_ALL", "C.UTF-8").output();
            prop_assert_eq!(out.map(|o| o.stdout).ok(), Some(bytes));
        }
    }
}
