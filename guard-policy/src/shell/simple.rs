//! Simple commands of shell text: words, assignments, redirections, here-documents.

use brush_parser::ast::{
    Assignment, AssignmentName, AssignmentValue, CommandPrefixOrSuffixItem, IoFileRedirectKind, IoFileRedirectTarget,
    IoRedirect, SimpleCommand,
};

use super::Walk;
use crate::act::{Act, Target};
use crate::invocation::{Known, Word};
use crate::judge::base_name;
use crate::kind;
use crate::raw::Runs;

/// Places to which a shell may write without writing a file.
const STREAMS: &[&[u8]] = &[b"/dev/null", b"/dev/stdout", b"/dev/stderr", b"/dev/stdin", b"/dev/tty", b"/dev/zero"];
/// Words in which a shell or interpreter is looked for behind wrappers.
const WRAPPED_WORDS: usize = 8;

/// The words and surroundings of one simple command.
#[derive(Default)]
struct Simple {
    words: Vec<Vec<Word>>,
    heredoc: Option<String>,
}

// === impl Walk ===

impl Walk<'_, '_> {
    pub(super) fn simple(&mut self, command: &SimpleCommand, fed: bool) {
        let before = self.judge.fetched;
        let mut simple = Simple::default();
        let mut assignments = Vec::new();
        for item in command.prefix.iter().flat_map(|p| &p.0) {
            self.item(item, &mut simple, Some(&mut assignments));
        }
        if let Some(name) = &command.word_or_name {
            let values = self.word(&name.value);
            simple.words.push(values);
        }
        for item in command.suffix.iter().flat_map(|s| &s.0) {
            self.item(item, &mut simple, None);
        }
        for assignment in assignments {
            self.assignment(assignment, &simple);
        }
        let fed = fed || self.judge.fetched > before;
        for words in choices(&simple.words) {
            self.run(&words, simple.heredoc.as_deref(), fed);
        }
    }

    fn item<'c>(
        &mut self,
        item: &'c CommandPrefixOrSuffixItem,
        simple: &mut Simple,
        assignments: Option<&mut Vec<&'c Assignment>>,
    ) {
        match (item, assignments) {
            (CommandPrefixOrSuffixItem::IoRedirect(redirect), _) => {
                simple.heredoc = self.redirect(redirect).or(simple.heredoc.take());
            }
            (CommandPrefixOrSuffixItem::AssignmentWord(assignment, _), Some(list)) => list.push(assignment),
            (CommandPrefixOrSuffixItem::Word(word) | CommandPrefixOrSuffixItem::AssignmentWord(_, word), _) => {
                let values = self.word(&word.value);
                simple.words.push(values);
            }
            (CommandPrefixOrSuffixItem::ProcessSubstitution(_, subshell), _) => {
                self.subshell(&subshell.list, false);
                simple.words.push(vec![Word::fixed(b"/dev/fd/63")]);
            }
        }
    }

    fn assignment(&mut self, assignment: &Assignment, simple: &Simple) {
        let (AssignmentName::VariableName(name) | AssignmentName::ArrayElementName(name, _)) = &assignment.name;
        let values = match &assignment.value {
            AssignmentValue::Scalar(word) => {
                let all = self.word(&word.value);
                let fixed = all.iter().all(Word::is_fixed) && !assignment.append;
                fixed.then(|| all.into_iter().map(|w| w.text).collect::<Vec<_>>())
            }
            AssignmentValue::Array(items) => {
                items.iter().for_each(|(_, word)| drop(self.word(&word.value)));
                None
            }
        };
        let program = simple.words.first().and_then(|w| w.first()).map(Word::lossy).unwrap_or_default();
        self.variable(name, values.as_ref().and_then(|v| v.first()).map(Vec::as_slice), &program);
        // A variable set for one command does not stay; to think that it may costs nothing.
        self.assign(name, if simple.words.is_empty() { values } else { None });
    }

    /// Judges a redirection; gives the text of a here-document.
    pub(super) fn redirect(&mut self, redirect: &IoRedirect) -> Option<String> {
        match redirect {
            IoRedirect::File(_, kind, target) => self.file_redirect(kind, target),
            IoRedirect::OutputAndError(word, _) => {
                let word = self.single(&word.value);
                self.touch("fs.write", &word);
            }
            IoRedirect::HereString(_, word) => {
                let word = self.single(&word.value);
                return Some(word.lossy());
            }
            IoRedirect::HereDocument(_, doc) => {
                let text = &doc.doc.value;
                if doc.requires_expansion && (text.contains("$(") || text.contains('`')) {
                    // Substitutions in it run before the command does.
                    self.word(&format!("\"{}\"", text.replace('"', "\\\"")));
                }
                return Some(text.clone());
            }
        }
        None
    }

    fn file_redirect(&mut self, kind: &IoFileRedirectKind, target: &IoFileRedirectTarget) {
        match target {
            IoFileRedirectTarget::Filename(word) => {
                let word = self.single(&word.value);
                match kind {
                    IoFileRedirectKind::Read | IoFileRedirectKind::DuplicateInput => self.touch("fs.read", &word),
                    IoFileRedirectKind::Write
                    | IoFileRedirectKind::Append
                    | IoFileRedirectKind::ReadAndWrite
                    | IoFileRedirectKind::Clobber
                    | IoFileRedirectKind::DuplicateOutput => self.touch("fs.write", &word),
                }
            }
            IoFileRedirectTarget::Fd(_) => {}
            IoFileRedirectTarget::ProcessSubstitution(_, subshell) => self.subshell(&subshell.list, false),
            IoFileRedirectTarget::Duplicate(word) => {
                let word = self.single(&word.value);
                let number = word.is_fixed() && word.text.iter().all(|b| b.is_ascii_digit() || *b == b'-');
                if !number {
                    self.touch("fs.write", &word);
                }
            }
        }
    }

    /// The shell itself opens a file.
    fn touch(&mut self, category: &str, word: &Word) {
        let path = self.judge.places.absolute(&word.text);
        if word.is_fixed() && (STREAMS.contains(&path.as_slice()) || path.starts_with(b"/dev/fd/")) {
            return;
        }
        if !word.is_fixed() || word.text.iter().any(|b| matches!(b, b'*' | b'?' | b'[')) {
            let text = "the shell opens a file that is only known when it runs";
            self.judge.review_as(category, "builtin.dynamic", text, &word.lossy(), &kind::exact(&word.lossy()));
        }
        let mut act = Act::of_word(category, &format!("redirection {}", word.lossy()));
        act.paths.push(Target { path, known: word.known });
        self.judge.act(&act, None, &[]);
    }

    /// Judges one simple command with one choice of its words.
    fn run(&mut self, words: &[Word], heredoc: Option<&str>, fed: bool) {
        let Some(first) = words.first() else { return };
        let name = first.lossy();
        let takes = self.takes_text(words);
        if fed && (takes || matches!(name.as_str(), "eval" | "source" | ".")) {
            self.judge.act(&Act::new("code.remote", &name), None, words);
        }
        if let (true, Some(doc)) = (takes, heredoc) {
            self.separate(doc.as_bytes(), Known::Fixed);
        }
        let known_function = first.is_fixed() && self.functions.contains(&name);
        if !known_function && !self.builtin(words, &name) {
            self.judge.by_word(words, self.depth + 1);
        }
    }

    /// Whether the command is a shell or interpreter, which runs what it is fed.
    fn takes_text(&self, words: &[Word]) -> bool {
        words.iter().take(WRAPPED_WORDS).any(|word| {
            let node = self.judge.policy.program(base_name(&word.text));
            node.is_some_and(|n| matches!(n.runs, Some(Runs::Shell | Runs::Interpreter)))
        })
    }

    /// A variable that changes what the command (empty: whatever runs next) or the shell does.
    pub(super) fn variable(&mut self, name: &str, value: Option<&[u8]>, program: &str) {
        let program = (!program.is_empty()).then(|| base_name(program.as_bytes()));
        let shell_own = super::SHELL_VARIABLES.contains(&name);
        if shell_own || self.judge.variable(name.as_bytes(), value, program).is_some() {
            let text = "the variable changes what the shell or its programs do";
            self.judge.review("code.run", "builtin.environment", text, name);
        }
    }
}

/// Every choice of words; more than one word with several values is too much and counts as unknown.
fn choices(words: &[Vec<Word>]) -> Vec<Vec<Word>> {
    let open = words.iter().filter(|w| w.len() > 1).count();
    let count = if open == 1 { words.iter().map(Vec::len).max().unwrap_or(1) } else { 1 };
    let pick = |index: usize| {
        let one = |values: &Vec<Word>| {
            let word = values.get(index).or(values.first()).cloned()?;
            let known = if open > 1 && values.len() > 1 { Known::Dynamic } else { word.known };
            Some(Word { known, ..word })
        };
        words.iter().filter_map(one).collect()
    };
    (0..count).map(pick).collect()
}
