//! Here-documents that nothing but the end of the text ends: a shell warns, and runs the command with all of the rest.
//!
//! It must not make other text readable: what is added is one line with the delimiter, and where that ends no document it is a
//! program that nobody knows. Fails: gives nothing.

/// Longest delimiter that is looked for.
const DELIMITER_MAX: usize = 64;

/// The text with the line that ends its here-document.
pub(super) fn closed(source: &str) -> Option<String> {
    let delimiter = open_delimiter(source)?;
    let begun = if source.ends_with('\n') { "" } else { "\n" };
    Some(format!("{source}{begun}{delimiter}\n"))
}

/// The delimiter of the first document that no line ends. What stands in quotes is not told apart: too many are found, not too few.
fn open_delimiter(source: &str) -> Option<&str> {
    let mut rest = source;
    while let Some(at) = rest.find("<<") {
        let after = rest.get(at + 2..)?;
        if let Some(here_string) = after.strip_prefix('<') {
            rest = here_string;
            continue;
        }
        rest = after;
        let word = after.strip_prefix('-').unwrap_or(after).trim_start_matches([' ', '\t']);
        let word = word.strip_prefix(['\'', '"', '\\']).unwrap_or(word);
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = word.find(|c| !plain(c)).unwrap_or(word.len());
        if let Some(delimiter) = word.get(..end).filter(|d| (1..=DELIMITER_MAX).contains(&d.len()))
            && !after.lines().skip(1).any(|line| line.trim_start_matches('\t') == delimiter)
        {
            return Some(delimiter);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::closed;

    #[test]
    fn the_first_document_that_is_not_ended_is_closed() {
        assert_eq!(closed("cat <<'EOF' > f\na\nb").as_deref(), Some("cat <<'EOF' > f\na\nb\nEOF\n"));
        assert_eq!(
            closed("cat <<A\nx\nA\ncat <<-B\n1 << 2\n").as_deref(),
            Some("cat <<A\nx\nA\ncat <<-B\n1 << 2\nB\n")
        );
        for none in ["cat <<A\nx\nA\n", "cat <<< x", "echo 'a", "cat <<", "cat << '"] {
            assert_eq!(closed(none), None, "{none}");
        }
    }
}
