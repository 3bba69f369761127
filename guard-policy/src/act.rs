//! What a command does: one act per category that its program knowledge names, with the paths and hosts it reaches.

use crate::glob::Glob;
use crate::invocation::{Inner, Invocation, Known, Used, Word};
use crate::model::{Case, Value};
use crate::paths::Places;
use crate::raw::ArgKind;

/// Acts that operands and values have of their own, whatever the program does otherwise.
const READ: &str = "fs.read";
const WRITE: &str = "fs.write";
/// The act of what nobody described.
pub(crate) const UNKNOWN: &str = "unknown";

/// A path that an act reaches.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) path: Vec<u8>,
    pub(crate) known: Known,
}

/// One act of a command.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) category: String,
    pub(crate) paths: Vec<Target>,
    pub(crate) hosts: Vec<String>,
    /// Other targets, as `kind:name`.
    pub(crate) named: Vec<String>,
    pub(crate) evidence: String,
    /// What does it, and what exactly, as they were called.
    pub(crate) does: Doer,
}

/// What does an act, as a grant of a kind may name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doer {
    /// A word of the command alone stands for the act.
    Word,
    /// A program that changes nothing but what its arguments name.
    Named(String),
    /// An interpreter, shell or build: the code that it runs decides.
    Code(String, String),
    /// A program, and subcommand and flag.
    Program(String, String),
}

/// Everything that a command does.
#[derive(Debug, Default)]
pub(crate) struct Acts {
    pub(crate) acts: Vec<Act>,
    pub(crate) inner: Vec<Inner>,
    /// Program text that nobody reads, and why that matters.
    pub(crate) opaque: Vec<(String, &'static str)>,
    /// Operands that the program should not have.
    pub(crate) surplus: Vec<String>,
}

struct Builder<'a> {
    places: &'a Places<'a>,
    out: Acts,
}

// === impl Act ===

impl Act {
    pub(crate) fn new(category: &str, evidence: &str) -> Self {
        Self {
            category: category.to_owned(),
            paths: Vec::new(),
            hosts: Vec::new(),
            named: Vec::new(),
            evidence: evidence.to_owned(),
            does: Doer::Program(evidence.to_owned(), String::new()),
        }
    }

    /// One that a word of the command alone stands for.
    pub(crate) fn of_word(category: &str, word: &str) -> Self {
        Self { does: Doer::Word, ..Self::new(category, word) }
    }

    /// Whether one of its targets fits a pattern.
    pub(crate) fn reaches(&self, globs: &[Glob]) -> bool {
        let any = |text: &[u8]| globs.iter().any(|g| g.matches(text));
        self.paths.iter().any(|t| any(&t.path)) || self.hosts.iter().chain(&self.named).any(|n| any(n.as_bytes()))
    }
}

// === impl Acts ===

impl Acts {
    pub(crate) fn of(invocation: &Invocation<'_>, places: &Places<'_>) -> Self {
        let node = invocation.node;
        let helps = |u: &Used<'_>| u.node.help.contains(&u.flag.name);
        let plain = invocation.unknown.is_empty() && invocation.used.iter().all(|u| u.flag.group.is_none());
        if plain && invocation.used.iter().any(helps) {
            let evidence = format!("{} {}", invocation.program.name, invocation.subcommand);
            return Self { acts: vec![Act::new("info", evidence.trim_end())], ..Self::default() };
        }
        let case = node.cases.iter().find(|case| fits(case, invocation));
        let category = case.map(|c| c.act.as_str()).or(node.act.as_deref()).unwrap_or(UNKNOWN);
        let kinds = case.and_then(|c| c.args.as_deref()).unwrap_or(&node.args);
        let mut evidence = invocation.program.name.clone();
        if !invocation.subcommand.is_empty() {
            evidence = format!("{evidence} {}", invocation.subcommand);
        }
        let mut builder = Builder { places, out: Self { inner: invocation.inner.clone(), ..Self::default() } };
        let mut base = Act { does: doer(invocation, category, ""), ..Act::new(category, &evidence) };
        builder.operands(invocation, kinds, &mut base);
        for used in invocation.used.iter().filter(|u| u.flag.group.is_none()) {
            builder.value(used, &mut base);
        }
        builder.groups(invocation, &base);
        builder.out.acts.insert(0, base);
        builder.out
    }

    /// Acts of a program that nobody described: any word may be a path.
    pub(crate) fn of_unknown(words: &[Word], places: &Places<'_>) -> Self {
        let mut act = Act::new(UNKNOWN, &words.first().map(Word::lossy).unwrap_or_default());
        for word in words.get(1..).unwrap_or_default() {
            for candidate in candidates(&word.text) {
                act.paths.push(Target { path: places.absolute(candidate), known: word.known });
            }
        }
        Self { acts: vec![act], ..Self::default() }
    }
}

fn doer(invocation: &Invocation<'_>, category: &str, flag: &str) -> Doer {
    if invocation.node.names_all {
        return Doer::Named(invocation.named.clone());
    }
    if invocation.node.apart {
        return Doer::Program(format!("{} {}", invocation.named, invocation.called), flag.to_owned());
    }
    let more: Vec<&str> = [invocation.called.as_str(), flag].into_iter().filter(|word| !word.is_empty()).collect();
    let (program, more) = (invocation.named.clone(), more.join(" "));
    let code =
        category == "build.run" || (invocation.program.runs.is_some() && ["code.run", "shell"].contains(&category));
    if code { Doer::Code(program, more) } else { Doer::Program(program, more) }
}

fn fits(case: &Case, invocation: &Invocation<'_>) -> bool {
    (case.any_flag.is_empty() || case.any_flag.iter().any(|f| invocation.uses(f)))
        && case
            .max_args
            .is_none_or(|max| invocation.operands.len() <= max && invocation.operands.iter().all(Word::is_fixed))
}

/// The word itself, what follows `=`, `@` or `:` in it, and from its first slash on.
fn candidates(word: &[u8]) -> Vec<&[u8]> {
    let mut out = vec![word];
    for (at, byte) in word.iter().enumerate().take(256) {
        match byte {
            b'=' | b'@' | b':' => out.push(word.get(at + 1..).unwrap_or_default()),
            b'/' if out.len() == 1 => out.push(word.get(at..).unwrap_or_default()),
            _ => {}
        }
        if out.len() >= 6 {
            break;
        }
    }
    out.retain(|candidate| !candidate.is_empty());
    out
}

// === impl Builder ===

impl Builder<'_> {
    fn target(&self, word: &Word) -> Target {
        Target { path: self.places.absolute(&word.text), known: word.known }
    }

    fn operands(&mut self, invocation: &Invocation<'_>, kinds: &[ArgKind], base: &mut Act) {
        let skip_first = invocation.node.first_unless.iter().any(|f| invocation.uses(f));
        let mut kinds = kinds.iter().copied().skip(usize::from(skip_first));
        let mut kind = kinds.next().unwrap_or(ArgKind::Path);
        let count = invocation.operands.len();
        for (index, word) in invocation.operands.iter().enumerate() {
            while kind == ArgKind::Assignments && !is_assignment(word) {
                kind = kinds.next().unwrap_or(ArgKind::Command);
            }
            let rest = invocation.operands.get(index..).unwrap_or_default();
            match kind {
                ArgKind::Command => {
                    let mut inner = rest.to_vec();
                    if invocation.node.appends {
                        inner.push(Word { text: b"(from standard input)".to_vec(), known: Known::Late });
                    }
                    self.out.inner.push(Inner::Command(inner));
                    return;
                }
                ArgKind::ShellWords => {
                    let known = rest.iter().map(|w| w.known).max().unwrap_or(Known::Fixed);
                    let text = rest.iter().map(|w| w.text.as_slice()).collect::<Vec<_>>().join(b" ".as_slice());
                    self.out.inner.push(Inner::Shell(Word { text, known }));
                    // A word that is a whole command line: whether it is run depends on quoting that the program redoes.
                    let whole = |w: &&Word| rest.len() > 1 && w.text.contains(&b' ');
                    self.out.inner.extend(rest.iter().filter(whole).cloned().map(Inner::Shell));
                    return;
                }
                ArgKind::Assignments => self.opaque_assignment(word),
                other => {
                    let last = invocation.node.last.filter(|_| index + 1 == count && count > 1);
                    self.word(last.unwrap_or(other), word, base);
                }
            }
            if kind != ArgKind::Assignments {
                kind = kinds.next().unwrap_or(kind);
            }
        }
    }

    fn opaque_assignment(&mut self, word: &Word) {
        self.out.opaque.push((word.lossy(), "sets a variable for the command"));
    }

    fn value(&mut self, used: &Used<'_>, act: &mut Act) {
        let (Value::Required(kind) | Value::Optional(kind), Some(word)) = (used.flag.value, &used.value) else {
            return;
        };
        self.word(kind, word, act);
    }

    fn word(&mut self, kind: ArgKind, word: &Word, act: &mut Act) {
        match kind {
            ArgKind::Path => {
                act.paths.push(self.target(word));
                // Several tool sets read more arguments from `@FILE`.
                if let Some(file) = word.text.strip_prefix(b"@") {
                    act.paths.push(Target { path: self.places.absolute(file), known: word.known });
                }
            }
            ArgKind::Source => self.own(READ, word),
            ArgKind::Dest => self.own(WRITE, word),
            ArgKind::Cluster => act.named.push(format!("cluster:{}", word.lossy())),
            ArgKind::Namespace => act.named.push(format!("namespace:{}", word.lossy())),
            ArgKind::Account => act.named.push(format!("account:{}", word.lossy())),
            ArgKind::Database => act.named.push(format!("database:{}", word.lossy())),
            ArgKind::Param => self.parameter(word, act),
            ArgKind::Host => {
                act.hosts.push(word.lossy());
                if word.text.starts_with(b"file:") {
                    act.paths.push(self.target(word));
                }
            }
            ArgKind::Shell => self.out.inner.push(Inner::Shell(word.clone())),
            ArgKind::Sed => {
                self.program_text(word, crate::scripts::sed_is_plain(&word.text), "a sed script that may write or run")
            }
            ArgKind::Awk => self.program_text(
                word,
                crate::scripts::awk_is_plain(&word.text),
                "an awk program that may write or run",
            ),
            ArgKind::Code => self.program_text(word, false, "program text"),
            ArgKind::None => self.out.surplus.push(word.lossy()),
            // Handled where the words after them are at hand.
            ArgKind::Text | ArgKind::Until | ArgKind::Command | ArgKind::Assignments | ArgKind::ShellWords => {}
        }
    }

    /// `file://x`, `@x` and URLs are read by the program itself.
    fn parameter(&mut self, word: &Word, act: &mut Act) {
        let file = [b"file://".as_slice(), b"fileb://", b"@"].iter().find_map(|p| word.text.strip_prefix(*p));
        if let Some(file) = file {
            self.own(READ, &Word { text: file.to_vec(), known: word.known });
        } else if word.text.starts_with(b"http://") || word.text.starts_with(b"https://") {
            act.hosts.push(word.lossy());
            self.out.acts.push(Act::of_word("net.fetch", &word.lossy()));
        }
    }

    fn program_text(&mut self, word: &Word, plain: bool, why: &'static str) {
        if !plain || !word.is_fixed() {
            self.out.opaque.push((word.lossy(), why));
        }
    }

    fn own(&mut self, category: &str, word: &Word) {
        let target = self.target(word);
        let mut act = Act::of_word(category, &word.lossy());
        act.paths.push(target);
        self.out.acts.push(act);
    }

    fn groups(&mut self, invocation: &Invocation<'_>, base: &Act) {
        let mut seen: Vec<(*const crate::model::Node, usize)> = Vec::new();
        for used in &invocation.used {
            let Some((index, group)) = used.flag.group.and_then(|i| used.node.groups.get(i).map(|g| (i, g))) else {
                continue;
            };
            let key = (std::ptr::from_ref(used.node), index);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let does = doer(invocation, &group.act, &used.flag.name);
            let evidence = format!("{} {}", base.evidence, used.flag.name);
            let mut act = Act { does, ..Act::new(&group.act, &evidence) };
            let same = |u: &&Used<'_>| u.flag.group == Some(index) && std::ptr::eq(u.node, used.node);
            for other in invocation.used.iter().filter(same) {
                self.value(other, &mut act);
            }
            if group.on_args {
                act.paths.extend(base.paths.iter().cloned());
                if base.paths.is_empty() {
                    // Without operands such a program works on the current directory.
                    act.paths.push(self.target(&Word::fixed(b".")));
                }
            }
            self.out.acts.push(act);
        }
    }
}

fn is_assignment(word: &Word) -> bool {
    let Some(at) = word.text.iter().position(|b| *b == b'=') else { return false };
    let name = word.text.get(..at).unwrap_or_default();
    !name.is_empty() && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}
