//! Reads a command line by what is known of its program: flags with their values, subcommand, operands.
//!
//! Total: whatever does not fit is kept in `unknown`, and an unknown word is never allowed. Abbreviated long flags are
//! resolved, so that rules catch them, and kept as unknown too, because the program may know more flags than we do.

use crate::glob::Glob;
use crate::model::{Flag, Node, Value};
use crate::raw::{ArgKind, Open, Style};

/// One word of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) text: Vec<u8>,
    pub(crate) known: Known,
}

/// How much is known of a word. Ordered: the least known part of a word decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Known {
    /// The bytes are those that the program will get, or a file name pattern that a shell expands.
    Fixed,
    /// File names that another command finds (`find -exec`, `xargs`); that exec is judged with its real arguments.
    Late,
    /// An expansion stands in it.
    Dynamic,
}

/// One flag as used.
#[derive(Debug, Clone)]
pub(crate) struct Used<'p> {
    pub(crate) flag: &'p Flag,
    pub(crate) node: &'p Node,
    pub(crate) value: Option<Word>,
}

/// A command inside a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inner {
    Command(Vec<Word>),
    Shell(Word),
}

/// A command line, read.
#[derive(Debug, Clone)]
pub(crate) struct Invocation<'p> {
    pub(crate) program: &'p Node,
    /// The name of the program's file: descriptions hold for several names.
    pub(crate) named: String,
    /// The program, or the subcommand that was named.
    pub(crate) node: &'p Node,
    /// `remote add`; empty without.
    pub(crate) subcommand: String,
    /// The same as it was typed: descriptions name several that do alike by the first.
    pub(crate) called: String,
    pub(crate) used: Vec<Used<'p>>,
    pub(crate) operands: Vec<Word>,
    pub(crate) unknown: Vec<String>,
    pub(crate) inner: Vec<Inner>,
}

struct Reader<'p, 'w> {
    words: std::slice::Iter<'w, Word>,
    ended: bool,
    out: Invocation<'p>,
}

// === impl Word ===

impl Word {
    pub(crate) fn fixed(text: &[u8]) -> Self {
        Self { text: text.to_vec(), known: Known::Fixed }
    }

    /// Known now, and one of these.
    pub(crate) fn is_one_of(&self, globs: &[Glob]) -> bool {
        self.is_fixed() && globs.iter().any(|g| g.matches(&self.text))
    }

    fn part(&self, from: usize) -> Self {
        Self { text: self.text.get(from..).unwrap_or_default().to_vec(), known: self.known }
    }

    pub(crate) fn is_fixed(&self) -> bool {
        self.known == Known::Fixed
    }

    pub(crate) fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

// === impl Invocation ===

impl<'p> Invocation<'p> {
    /// Program and subcommand as they were called.
    pub(crate) fn shown(&self) -> String {
        if self.called.is_empty() { self.named.clone() } else { format!("{} {}", self.named, self.called) }
    }

    /// Reads `words`, the first of which is `argv[0]`, of the program `name`.
    pub(crate) fn read(program: &'p Node, name: &[u8], words: &[Word]) -> Self {
        let out = Self {
            program,
            named: String::from_utf8_lossy(name).into_owned(),
            node: program,
            subcommand: String::new(),
            called: String::new(),
            used: Vec::new(),
            operands: Vec::new(),
            unknown: Vec::new(),
            inner: Vec::new(),
        };
        let mut reader = Reader { words: words.get(1..).unwrap_or_default().iter(), ended: false, out };
        reader.run();
        reader.out
    }

    pub(crate) fn uses(&self, name: &str) -> bool {
        self.used.iter().any(|u| u.flag.name == name)
    }

    pub(crate) fn uses_only(&self, names: &[String]) -> bool {
        self.used.iter().all(|u| names.contains(&u.flag.name))
    }
}

// === impl Reader ===

impl<'p> Reader<'p, '_> {
    fn run(&mut self) {
        let mut first = true;
        while let Some(word) = self.words.next() {
            let bundle = first && self.out.node.style == Style::Bundle && !word.text.starts_with(b"-");
            first = false;
            if self.ended || self.out.node.style == Style::Plain {
                self.out.operands.push(word.clone());
            } else if bundle {
                let dashed = Word { text: [b"-", word.text.as_slice()].concat(), known: word.known };
                self.short(&dashed);
            } else if word.text == b"--" && self.out.node.style != Style::Word {
                self.ended = true;
            } else if word.text.starts_with(b"--") && self.out.node.style != Style::Word {
                self.long(word);
            } else if word.text.len() > 1 && word.text.starts_with(b"-") {
                self.dashed(word);
            } else if !self.plain_flag(word) {
                self.operand(word);
            }
        }
    }

    fn operand(&mut self, word: &Word) {
        let node = self.out.node;
        let child = std::str::from_utf8(&word.text).ok().filter(|_| word.is_fixed()).and_then(|name| node.child(name));
        if let (Some(child), true) = (child, self.out.operands.is_empty()) {
            self.out.node = child;
            // Of a pattern the word itself says more.
            let known = node.subcommands.contains_key(word.lossy().as_str());
            self.subcommand(&if known { child.name.clone() } else { word.lossy() }, word);
            return;
        }
        let noun = self.out.operands.is_empty() && word.is_fixed() && node.nouns.iter().any(|g| g.matches(&word.text));
        if noun {
            self.subcommand(&word.lossy(), word);
            return;
        }
        if !node.children.is_empty() && node.act.is_none() && self.out.operands.is_empty() {
            self.out.unknown.push(word.lossy());
        }
        self.out.operands.push(word.clone());
        self.ended = node.stops;
    }

    fn subcommand(&mut self, name: &str, word: &Word) {
        for (text, more) in [(&mut self.out.subcommand, name), (&mut self.out.called, &word.lossy())] {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(more);
        }
    }

    /// A long flag that nobody described, where the program takes such as parameters: it has whatever values follow.
    fn parameter(&mut self, name: &[u8], attached: Option<Word>) -> bool {
        let node = self.out.node;
        let Some((index, values)) = node.open else { return false };
        let Some(flag) = node.flags.get(index) else { return false };
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        if !name.get(2..).is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_lowercase) && rest.iter().all(plain))
        {
            return false;
        }
        let alone = attached.is_none();
        self.take(node, flag, attached);
        let most = if values == Open::Many { usize::MAX } else { 1 };
        let mut count = 0;
        while alone && count < most && self.words.as_slice().first().is_some_and(|next| !next.text.starts_with(b"-")) {
            count += 1;
            let value = self.words.next().cloned();
            self.take(node, flag, value);
        }
        true
    }

    /// Looks a flag up in the subcommand first, then in the program where that takes its flags anywhere.
    fn find(&self, name: &[u8]) -> Option<(&'p Node, &'p Flag)> {
        let node = self.out.node;
        let program = self.out.program;
        let of = |n: &'p Node| n.by_flag.get(name).and_then(|i| n.flags.get(*i)).map(|f| (n, f));
        of(node).or_else(|| if program.globals_anywhere { of(program) } else { None })
    }

    fn long(&mut self, word: &Word) {
        let at = word.text.iter().position(|b| *b == b'=');
        let name = word.text.get(..at.unwrap_or(word.text.len())).unwrap_or_default();
        let attached = at.map(|at| word.part(at + 1));
        if self.find(name).is_none() && self.parameter(name, attached.clone()) {
            return;
        }
        let Some((node, flag)) = self.find(name).or_else(|| self.abbreviated(name, word)) else {
            self.out.unknown.push(word.lossy());
            return;
        };
        match (flag.value, attached) {
            (Value::None, Some(_)) => self.out.unknown.push(word.lossy()),
            (Value::None, None) | (Value::Optional(_), None) => self.take(node, flag, None),
            (Value::Required(_) | Value::Optional(_), Some(value)) => self.take(node, flag, Some(value)),
            (Value::Required(kind), None) => self.following(node, flag, kind),
        }
    }

    /// A unique prefix of a long flag. It counts for rules, and as unknown.
    fn abbreviated(&mut self, name: &[u8], word: &Word) -> Option<(&'p Node, &'p Flag)> {
        let node = self.out.node;
        let mut fits =
            node.by_flag.iter().filter(|(full, _)| name.len() > 2 && full.starts_with(name)).map(|(_, i)| *i);
        let index = fits.next()?;
        if fits.any(|other| other != index) {
            return None;
        }
        self.out.unknown.push(word.lossy());
        node.flags.get(index).map(|flag| (node, flag))
    }

    fn dashed(&mut self, word: &Word) {
        if let Some((node, flag)) = self.find(&word.text) {
            match flag.value {
                Value::None | Value::Optional(_) => self.take(node, flag, None),
                Value::Required(kind) => self.following(node, flag, kind),
            }
        } else if self.out.node.style == Style::Word {
            let at = word.text.iter().position(|b| *b == b'=');
            let found = at.and_then(|at| word.text.get(..at).and_then(|name| self.find(name)).map(|f| (at, f)));
            match found {
                Some((at, (node, flag))) if flag.value != Value::None => self.take(node, flag, Some(word.part(at + 1))),
                Some(_) | None => self.out.unknown.push(word.lossy()),
            }
        } else {
            self.short(word);
        }
    }

    /// `-abc`, `-ovalue`, `-20`.
    fn short(&mut self, word: &Word) {
        let mut at = 1;
        while let Some(byte) = word.text.get(at).copied() {
            if byte.is_ascii_digit() && self.find(&[b'-', byte]).is_none() && self.numeric(word, &mut at) {
                continue;
            }
            let Some((node, flag)) = self.find(&[b'-', byte]) else {
                self.out.unknown.push(word.lossy());
                return;
            };
            at += 1;
            let rest = (at < word.text.len()).then(|| word.part(at));
            match flag.value {
                Value::None => self.take(node, flag, None),
                Value::Optional(_) => return self.take(node, flag, rest),
                Value::Required(kind) if rest.is_none() => return self.following(node, flag, kind),
                Value::Required(_) => return self.take(node, flag, rest),
            }
        }
    }

    fn numeric(&mut self, word: &Word, at: &mut usize) -> bool {
        let Some((node, flag)) = self.find(b"-#") else { return false };
        while word.text.get(*at).is_some_and(u8::is_ascii_digit) {
            *at += 1;
        }
        self.take(node, flag, None);
        true
    }

    /// `(`, `!` and `of=value`.
    fn plain_flag(&mut self, word: &Word) -> bool {
        if self.out.node.style != Style::Word {
            return false;
        }
        let at = word.text.iter().position(|b| *b == b'=');
        let name = word.text.get(..at.unwrap_or(word.text.len())).unwrap_or_default();
        let Some((node, flag)) = self.find(name) else { return false };
        match (flag.value, at) {
            (Value::None, None) => self.take(node, flag, None),
            (Value::Required(_) | Value::Optional(_), Some(at)) => self.take(node, flag, Some(word.part(at + 1))),
            (Value::None, Some(_)) | (Value::Required(_) | Value::Optional(_), None) => return false,
        }
        true
    }

    /// Takes the value from the words that follow.
    fn following(&mut self, node: &'p Node, flag: &'p Flag, kind: ArgKind) {
        if kind == ArgKind::Until {
            let mut inner = Vec::new();
            while let Some(word) = self.words.next() {
                if word.text == b";" || (word.text == b"+" && inner.last().is_some_and(|w: &Word| !w.is_fixed())) {
                    break;
                }
                inner.push(self.found(word));
            }
            self.out.inner.push(Inner::Command(inner));
            return self.take(node, flag, None);
        }
        let value = self.words.next().cloned();
        if value.is_none() {
            self.out.unknown.push(format!("{} without its value", flag.name));
        }
        self.take(node, flag, value);
    }

    /// What `{}` stands for lies below the place where the search begins.
    fn found(&self, word: &Word) -> Word {
        let Some(at) = word.text.windows(2).position(|pair| pair == b"{}") else { return word.clone() };
        let from = self.out.operands.first().map_or(b".".as_slice(), |w| w.text.as_slice());
        let (before, after) = word.text.split_at(at);
        let text = [before, from, b"/", after].concat();
        Word { text, known: word.known.max(Known::Late) }
    }

    fn take(&mut self, node: &'p Node, flag: &'p Flag, value: Option<Word>) {
        self.out.used.push(Used { flag, node, value });
    }
}
