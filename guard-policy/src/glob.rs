//! Glob patterns over bytes: `*` within one path segment, `**` over segments, `?` one byte, `{a,b}` alternatives.
//!
//! Only policy authors write patterns; texts come from governed processes. Matching is a two-row table: time is
//! pattern × text, memory is text, whatever the input.

use crate::model::LIMITS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    Any,
    Star,
    DoubleStar,
}

/// One compiled pattern without alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob {
    tokens: Vec<Token>,
    prefix: Vec<u8>,
    suffix: Vec<u8>,
    /// The pattern is `**literal**`: a search for the literal is all.
    inside: Option<Vec<u8>>,
}

// === impl Glob ===

impl Glob {
    /// Compiles `pattern`, expanding its alternatives. `Err` says why not.
    pub(crate) fn compile(pattern: &str) -> Result<Vec<Self>, String> {
        if pattern.is_empty() || pattern.len() > LIMITS.pattern_bytes {
            return Err(format!("a pattern has 1 to {} bytes", LIMITS.pattern_bytes));
        }
        let mut expanded = vec![pattern.to_owned()];
        while let Some(at) = expanded.iter().position(|p| p.contains('{')) {
            let text = expanded.swap_remove(at);
            expanded.extend(expand_one(&text)?);
            if expanded.len() > LIMITS.pattern_alternatives {
                return Err(format!("a pattern has at most {} alternatives", LIMITS.pattern_alternatives));
            }
        }
        Ok(expanded.iter().map(|p| Self::tokens(p.as_bytes())).collect())
    }

    fn tokens(pattern: &[u8]) -> Self {
        let mut tokens = Vec::with_capacity(pattern.len());
        let mut rest = pattern;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = tail;
            tokens.push(match byte {
                b'*' if tail.first() == Some(&b'*') => {
                    rest = tail.get(1..).unwrap_or_default();
                    Token::DoubleStar
                }
                b'*' => Token::Star,
                b'?' => Token::Any,
                other => Token::Byte(other),
            });
        }
        let literal = |t: &Token| match *t {
            Token::Byte(b) => Some(b),
            Token::Any | Token::Star | Token::DoubleStar => None,
        };
        let prefix = tokens.iter().map_while(literal).collect();
        let mut suffix: Vec<u8> = tokens.iter().rev().map_while(literal).collect();
        suffix.reverse();
        let inside = match tokens.as_slice() {
            [Token::DoubleStar, middle @ .., Token::DoubleStar] if !middle.is_empty() => {
                middle.iter().map(literal).collect()
            }
            _ => None,
        };
        Self { tokens, prefix, suffix, inside }
    }

    /// Whether the whole of `text` matches.
    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        if let Some(literal) = &self.inside {
            return text.windows(literal.len()).any(|window| window == literal.as_slice());
        }
        if !text.starts_with(&self.prefix) || !text.ends_with(&self.suffix) {
            return false;
        }
        if self.prefix.len() == self.tokens.len() {
            return text.len() == self.prefix.len();
        }
        let mut row = vec![false; text.len() + 1];
        if let Some(first) = row.first_mut() {
            *first = true;
        }
        for token in &self.tokens {
            row = Self::step(*token, &row, text);
            if !row.iter().any(|reached| *reached) {
                return false;
            }
        }
        row.last().copied().unwrap_or(false)
    }

    /// Advances the set of reached positions by one token.
    fn step(token: Token, row: &[bool], text: &[u8]) -> Vec<bool> {
        let mut next = vec![false; row.len()];
        let mut carry = false;
        for (index, slot) in next.iter_mut().enumerate() {
            let before = index.checked_sub(1).and_then(|i| row.get(i)).copied().unwrap_or(false);
            let byte = index.checked_sub(1).and_then(|i| text.get(i)).copied();
            let here = row.get(index).copied().unwrap_or(false);
            *slot = match token {
                Token::Byte(b) => before && byte == Some(b),
                Token::Any => before && byte != Some(b'/'),
                Token::Star => here || (carry && byte != Some(b'/')),
                Token::DoubleStar => here || carry,
            };
            carry = *slot;
        }
        next
    }
}

fn expand_one(text: &str) -> Result<Vec<String>, String> {
    let bad = || "`{` needs a `}` after it, and braces do not nest".to_owned();
    let (head, rest) = text.split_once('{').ok_or_else(bad)?;
    let (body, tail) = rest.split_once('}').ok_or_else(bad)?;
    if body.contains('{') {
        return Err(bad());
    }
    Ok(body.split(',').map(|choice| format!("{head}{choice}{tail}")).collect())
}

#[cfg(test)]
mod tests {
    use super::Glob;

    fn hit(pattern: &str, text: &str) -> bool {
        Glob::compile(pattern).unwrap().iter().any(|g| g.matches(text.as_bytes()))
    }

    #[test]
    fn stars_respect_segments() {
        assert!(hit("/a/*.pem", "/a/x.pem"));
        assert!(!hit("/a/*.pem", "/a/b/x.pem"));
        assert!(hit("/a/**", "/a/b/c"));
        assert!(hit("**ab**", "xaby") && hit("**ab**", "ab") && !hit("**ab**", "a/b") && hit("**a*b**", "xa.by"));
        assert!(hit("ab", "ab") && !hit("ab", "abab"));
        assert!(hit("**/.env", "/srv/app/.env"));
        assert!(!hit("**/.env", "/srv/app/x.env"));
        assert!(hit("/x/{a,b}/?", "/x/b/1"));
        assert!(!hit("/x/{a,b}/?", "/x/c/1"));
        assert!(Glob::compile("a{b").is_err());
    }

    #[test]
    fn hostile_texts_cost_no_more_than_pattern_times_text() {
        let text = "a".repeat(50_000);
        let started = std::time::Instant::now();
        assert!(!hit("**a**a**a**a**a**a**b", &text));
        assert!(started.elapsed().as_millis() < 2_000);
    }
}
