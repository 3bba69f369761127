//! Words of shell text: what a program would get for them, as far as that is known.

use brush_parser::ParserOptions;
use brush_parser::word::{self, Parameter, ParameterExpr, TildeExpr, WordPiece, WordPieceWithSource};

use super::{VALUES_MAX, Values, Walk};
use crate::invocation::{Known, Word};

/// A word with every value it may have; all are known equally well.
struct Build {
    values: Vec<Vec<u8>>,
    known: Known,
}

// === impl Walk ===

impl Walk<'_, '_> {
    /// Every value that a word may have, at least one. Substitutions in it are judged.
    pub(super) fn word(&mut self, raw: &str) -> Vec<Word> {
        let Ok(pieces) = word::parse(raw, &ParserOptions::default()) else {
            self.judge.review("shell", "builtin.unparsed", "a word cannot be read", raw);
            return vec![Word { text: raw.as_bytes().to_vec(), known: Known::Dynamic }];
        };
        let mut build = Build { values: vec![Vec::new()], known: Known::Fixed };
        self.pieces(&pieces, false, &mut build);
        let known = build.known;
        build.values.into_iter().map(|text| Word { text, known }).collect()
    }

    /// The one value of a word; unknown if there are more.
    pub(super) fn single(&mut self, raw: &str) -> Word {
        let all = self.word(raw);
        let several = all.len() > 1;
        let first = all.into_iter().next().unwrap_or(Word { text: Vec::new(), known: Known::Dynamic });
        Word { known: if several { Known::Dynamic } else { first.known }, ..first }
    }

    fn pieces(&mut self, pieces: &[WordPieceWithSource], quoted: bool, build: &mut Build) {
        for piece in pieces {
            match &piece.piece {
                WordPiece::Text(text) => {
                    if !quoted && braces(text) {
                        build.known = Known::Dynamic;
                    }
                    build.push(text.as_bytes());
                }
                WordPiece::SingleQuotedText(text) => build.push(text.as_bytes()),
                WordPiece::AnsiCQuotedText(text) => {
                    if text.contains('\\') {
                        build.known = Known::Dynamic;
                    }
                    build.push(text.as_bytes());
                }
                WordPiece::EscapeSequence(text) => build.push(escaped(text, quoted).as_bytes()),
                WordPiece::DoubleQuotedSequence(inner) | WordPiece::GettextDoubleQuotedSequence(inner) => {
                    self.pieces(inner, true, build);
                }
                WordPiece::TildeExpansion(TildeExpr::Home) => build.push(self.judge.places.home),
                WordPiece::TildeExpansion(_) => build.dynamic("~"),
                WordPiece::ParameterExpansion(parameter) => self.parameter(parameter, quoted, build),
                WordPiece::CommandSubstitution(text) => {
                    self.nested(text);
                    build.dynamic("$(…)");
                }
                WordPiece::BackquotedCommandSubstitution(text) => {
                    self.nested(&text.replace("\\`", "`").replace("\\$", "$").replace("\\\\", "\\"));
                    build.dynamic("$(…)");
                }
                WordPiece::ArithmeticExpression(expression) => {
                    self.hidden(&expression.value);
                    build.dynamic("$((…))");
                }
            }
        }
    }

    fn parameter(&mut self, parameter: &ParameterExpr, quoted: bool, build: &mut Build) {
        if let ParameterExpr::Parameter { parameter: Parameter::Named(name), indirect: false } = parameter {
            let usable = self.values(name).filter(|all| quoted || all.iter().all(|v| stays_one_word(v)));
            return match usable {
                Some(values) => build.either(&values, name),
                None => build.dynamic(&format!("${name}")),
            };
        }
        let shown = format!("{parameter:?}");
        self.hidden(&shown);
        if shown.contains("PromptExpand") || shown.contains("indirect: true") {
            let text = "an expansion that runs what a variable holds";
            self.judge.review("shell", "builtin.dynamic", text, "${…}");
        }
        build.dynamic("${…}");
    }

    /// Text in which a substitution may hide that the parser leaves whole.
    pub(super) fn hidden(&mut self, text: &str) {
        if text.contains("$(") || text.contains('`') || text.contains("<(") || text.contains(">(") {
            self.judge.review("shell", "builtin.unparsed", "a command inside an expansion", text);
            for inner in substitutions(text) {
                self.nested(inner);
            }
        }
    }

    /// What a variable may hold: what the text sets, else what the environment says.
    fn values(&self, name: &str) -> Values {
        if let Some(values) = self.vars.get(name) {
            return values.clone();
        }
        let of = |entry: &&Vec<u8>| entry.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'='));
        let found = self.judge.env.iter().find(of).and_then(|entry| entry.get(name.len() + 1..)).map(<[u8]>::to_vec);
        found.or_else(|| (name == "HOME").then(|| self.judge.places.home.to_vec())).map(|value| vec![value])
    }

    /// Notes that a variable may hold `values`, besides what it may hold already.
    pub(super) fn assign(&mut self, name: &str, values: Values) {
        let entry = self.vars.entry(name.to_owned()).or_insert_with(|| Some(Vec::new()));
        match (entry.as_mut(), values) {
            (Some(known), Some(new)) => {
                for value in new {
                    if !known.contains(&value) {
                        known.push(value);
                    }
                }
                if known.len() > VALUES_MAX {
                    *entry = None;
                }
            }
            (Some(_) | None, _) => *entry = None,
        }
    }
}

// === impl Build ===

impl Build {
    fn push(&mut self, text: &[u8]) {
        self.values.iter_mut().for_each(|v| v.extend_from_slice(text));
    }

    fn dynamic(&mut self, shown: &str) {
        self.known = Known::Dynamic;
        self.push(shown.as_bytes());
    }

    fn either(&mut self, values: &[Vec<u8>], name: &str) {
        // Used again and again, a value would grow without end.
        if self.values.iter().chain(values).map(Vec::len).sum::<usize>() > crate::model::LIMITS.shell_bytes {
            return self.dynamic(&format!("${name}"));
        }
        match values {
            [one] => self.push(one),
            // Two open choices in one word would multiply.
            [_, ..] if self.values.len() == 1 => {
                let before = self.values.pop().unwrap_or_default();
                self.values = values.iter().map(|v| [before.as_slice(), v].concat()).collect();
            }
            [] | [_, ..] => self.dynamic(&format!("${name}")),
        }
    }
}

/// The commands of `$(…)` and backquotes in text that the parser leaves whole. What is missed here was said to be for a
/// person already; what is found may be stricter.
fn substitutions(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("$(") {
        rest = rest.get(at + 2..).unwrap_or_default();
        if rest.starts_with('(') {
            continue;
        }
        let mut depth = 1_usize;
        let end = rest.bytes().position(|byte| {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        found.extend(end.and_then(|end| rest.get(..end)));
    }
    found.extend(text.split('`').skip(1).step_by(2));
    found
}

/// Brace expansion makes several words of one.
fn braces(text: &str) -> bool {
    text.split_once('{').is_some_and(|(_, rest)| rest.contains(',') || rest.contains(".."))
}

/// Without quotes, a value is split at blanks and vanishes when empty.
fn stays_one_word(value: &[u8]) -> bool {
    !value.is_empty() && !value.iter().any(|b| matches!(b, b' ' | b'\t' | b'\n'))
}

/// What a backslash leaves. The parser hands over the backslash too.
fn escaped(text: &str, quoted: bool) -> &str {
    let Some(rest) = text.strip_prefix('\\') else { return text };
    if rest == "\n" {
        return "";
    }
    if quoted && !rest.starts_with(['$', '`', '"', '\\']) { text } else { rest }
}
