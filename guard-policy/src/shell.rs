//! Shell text, judged by its parts: every simple command, redirection, substitution and builtin.
//!
//! The grammar is `brush-parser`'s. Judging only informs the approval of the shell itself: each program that the
//! shell then starts is an exec of its own and is judged again with its real arguments. So what the shell does by
//! itself (redirections, builtins, variables) must be understood here; what does not parse is for a person.

mod builtins;
mod heredoc;
mod simple;
mod walk;
mod words;

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use brush_parser::ast::Program;
use brush_parser::{Parser, ParserOptions};

use crate::invocation::{Known, Word};
use crate::judge::Judge;
use crate::kind;
use crate::model::LIMITS;
use crate::verdict::Tier;

/// Values that a variable may have; `None`: anything.
type Values = Option<Vec<Vec<u8>>>;

/// Most values of one variable that are followed.
const VALUES_MAX: usize = 16;

/// Variables that change how a shell finds or reads commands. The environment list of a policy adds others.
const SHELL_VARIABLES: &[&str] =
    &["PATH", "IFS", "ENV", "BASH_ENV", "PS4", "PROMPT_COMMAND", "SHELLOPTS", "BASHOPTS", "CDPATH"];

const UNREADABLE: &str = "the shell's text cannot be read as commands";

/// One walk over shell text.
struct Walk<'j, 'a> {
    judge: &'j mut Judge<'a>,
    vars: HashMap<String, Values>,
    functions: HashSet<String>,
    depth: usize,
}

/// Judges shell text.
pub(crate) fn judge(judge: &mut Judge<'_>, text: &Word, depth: usize) {
    if text.known != Known::Fixed {
        judge.review("shell", "builtin.dynamic", "the shell's text is only known when it runs", &text.lossy());
    }
    let Ok(source) = std::str::from_utf8(&text.text) else {
        return judge.review("shell", "builtin.unparsed", "the shell's text is not UTF-8", &text.lossy());
    };
    if depth > LIMITS.depth || judge.parts_left == 0 {
        return judge.review("shell", "builtin.too-deep", "too many shells inside each other to be judged", source);
    }
    judge.parts_left -= 1;
    let program = match parse(source) {
        Ok(program) => program,
        Err(why) => return judge.review_as("shell", "builtin.unparsed", why, source, &kind::exact(source)),
    };
    // The first walk only learns what variables may hold; a loop may use a value that is set further down.
    let kept = std::mem::take(&mut judge.findings);
    let cwd = judge.places.cwd.clone();
    let mut first = Walk { judge, vars: HashMap::new(), functions: HashSet::new(), depth };
    first.program(&program);
    let Walk { vars, functions, .. } = first;
    judge.findings = kept;
    judge.places.cwd.clone_from(&cwd);
    let mut second = Walk { judge, vars, functions, depth };
    second.program(&program);
    judge.places.cwd = cwd;
    // Parts without any act, such as `cd x`, are allowed; whatever else was found is stricter.
    judge.findings.add(
        Tier::Allow,
        "shell",
        1,
        "builtin.shell-parts",
        "every part of the shell's text was judged",
        source,
    );
}

/// Parses `source` within limits that keep the recursive parser's stack and time small.
fn parse(source: &str) -> Result<Program, &'static str> {
    if source.len() > LIMITS.shell_bytes {
        return Err("the shell's text is too long to be judged");
    }
    if nesting(source) > LIMITS.shell_nesting {
        return Err("the shell's text is nested too deep to be judged");
    }
    read(source, true)
}

/// `closes`: a here-document that only the end of the text ends is closed first.
fn read(source: &str, closes: bool) -> Result<Program, &'static str> {
    // The parser is not ours: should it panic, the text counts as not understood.
    let parsed =
        catch_unwind(AssertUnwindSafe(|| Parser::new(source.as_bytes(), &ParserOptions::default()).parse_program()));
    match parsed {
        Ok(Ok(program)) => Ok(program),
        Ok(Err(_)) | Err(_) if closes => {
            heredoc::closed(source).and_then(|text| read(&text, false).ok()).ok_or(UNREADABLE)
        }
        Ok(Err(_)) | Err(_) => Err(UNREADABLE),
    }
}

/// How deep brackets, substitutions and compound commands stand inside each other, at most; too high rather than too
/// low, since quotes are not looked at.
fn nesting(source: &str) -> usize {
    let (mut deepest, mut brackets, mut compounds, mut chain) = (0, 0_usize, 0_usize, 0_usize);
    for piece in source.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let word = piece.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        match word {
            "if" | "for" | "while" | "until" | "case" | "select" | "function" | "coproc" | "time" => compounds += 1,
            "fi" | "done" | "esac" => compounds = compounds.saturating_sub(1),
            _ => {}
        }
        match piece.chars().next_back() {
            Some('(' | '{' | '`' | '[') => brackets += 1,
            Some(')' | '}' | ']') => brackets = brackets.saturating_sub(1),
            Some('!') => chain += 1,
            Some('\n' | ';') => chain = 0,
            _ => {}
        }
        deepest = deepest.max(brackets + compounds + chain);
    }
    deepest
}

// === impl Walk ===

impl Walk<'_, '_> {
    /// Judges text inside this text, such as a command substitution, with the same variables.
    fn nested(&mut self, source: &str) {
        if self.depth >= LIMITS.depth || self.judge.parts_left == 0 {
            return self.judge.review("shell", "builtin.too-deep", "too many shells inside each other", source);
        }
        self.judge.parts_left -= 1;
        match parse(source) {
            Ok(program) => {
                self.depth += 1;
                let cwd = self.judge.places.cwd.clone();
                self.program(&program);
                self.judge.places.cwd = cwd;
                self.depth -= 1;
            }
            Err(why) => self.judge.review("shell", "builtin.unparsed", why, source),
        }
    }

    /// Judges text that a nested shell gets, with variables of its own.
    fn separate(&mut self, text: &[u8], known: Known) {
        judge(self.judge, &Word { text: text.to_vec(), known }, self.depth + 1);
    }
}
