//! Judges one exec: every part of the command by every rule, and the strictest wins. Total and bounded; whatever is
//! too long, too deep or not understood is for a person.

use crate::act::{Act, Acts, Doer, Target, UNKNOWN};
use crate::facts::{Facts, Role, Stdin};
use crate::glob::Glob;
use crate::invocation::{Inner, Invocation, Known, Word};
use crate::model::{Environment, Harmless, LIMITS, Node, Policy, Rule};
use crate::paths::Places;
use crate::raw::Runs;
use crate::risk::{self, Part};
use crate::verdict::{Findings, Tier, Verdict};
use crate::{kind, shell, wrappers};

/// Risk where nothing better is known.
const RISK_UNKNOWN: u8 = 50;

/// How sure we are of what program a command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A file of a trusted directory that the session cannot write.
    Trusted,
    /// A file from elsewhere, or one that the session can write.
    Untrusted,
}

/// One judgement while it runs.
pub(crate) struct Judge<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) places: Places<'a>,
    pub(crate) stdin: Stdin,
    pub(crate) env: &'a [Vec<u8>],
    pub(crate) findings: Findings,
    /// Acts so far that bring bytes from the network.
    pub(crate) fetched: usize,
    /// Parts that may still be judged.
    pub(crate) parts_left: usize,
    /// The session's user is root.
    pub(crate) root: bool,
}

impl Policy {
    /// Judges one exec. Never panics; time and memory are bounded whatever the facts.
    #[must_use]
    pub fn decide(&self, facts: &Facts<'_>) -> Verdict {
        let mut judge = Judge {
            policy: self,
            places: Places::of(facts),
            stdin: facts.stdin,
            env: facts.env,
            findings: Findings::default(),
            fetched: 0,
            parts_left: LIMITS.parts,
            root: facts.uid == 0,
        };
        let notable = judge.exec(facts);
        judge.findings.finish(facts.entry, notable)
    }
}

// === impl Judge ===

impl Judge<'_> {
    /// The exec itself: its files first, then its command line. Returns the notable variables.
    fn exec(&mut self, facts: &Facts<'_>) -> Vec<String> {
        let words = self.words(facts.argv);
        let Some(file) = facts.files.first() else {
            self.review(UNKNOWN, "builtin.unknown-file", "the file that would run is not known", "");
            self.unknown_program(&words);
            return self.environment("");
        };
        for other in facts.files.iter().filter(|f| f.role == Role::Loader) {
            let path = String::from_utf8_lossy(other.path);
            let text = "a dynamic loader started as a program runs files that are not checked";
            self.findings.always = true;
            self.findings.add(Tier::Deny, UNKNOWN, 80, "builtin.loader", text, &path);
        }
        for other in facts.files.iter().filter(|f| f.session_writable) {
            let path = String::from_utf8_lossy(other.path);
            let text = "the session can change this file";
            self.review_as(UNKNOWN, "builtin.session-writable", text, &path, &kind::of_file(other.path, &self.places));
        }
        for other in facts.files.iter().filter(|f| f.foreign) {
            let path = String::from_utf8_lossy(other.path);
            let text = "the file system can give other content than was judged";
            self.review(UNKNOWN, "builtin.foreign-file-system", text, &path);
        }
        let trusted = self.policy.in_trusted_dir(file.path) && !file.session_writable && !file.foreign;
        let identity = if trusted { Identity::Trusted } else { Identity::Untrusted };
        let name = base_name(file.path);
        self.program(name, identity, file.path, &words, 0);
        self.environment(self.policy.program(name).map_or("", |n| n.name.as_str()))
    }

    fn words(&mut self, argv: &[Vec<u8>]) -> Vec<Word> {
        let mut bytes = 0;
        let mut out = Vec::new();
        for word in argv.iter().take(LIMITS.words) {
            bytes += word.len() + 1;
            if bytes > LIMITS.command_bytes {
                break;
            }
            out.push(Word::fixed(word));
        }
        if out.len() < argv.len() {
            let evidence = format!("{} arguments", argv.len());
            self.review(UNKNOWN, "builtin.too-long", "the command is too long to be judged in full", &evidence);
        }
        out
    }

    /// Judges a command of which the program is known by file name. `words[0]` is `argv[0]`.
    pub(crate) fn program(&mut self, name: &[u8], identity: Identity, path: &[u8], words: &[Word], depth: usize) {
        if depth > LIMITS.depth || self.parts_left == 0 {
            let text = "too many commands inside each other to be judged";
            return self.review(UNKNOWN, "builtin.too-deep", text, &String::from_utf8_lossy(name));
        }
        self.parts_left -= 1;
        let shown = String::from_utf8_lossy(path);
        if identity == Identity::Untrusted {
            let text = "the program is not from a trusted directory, or the session can write it";
            self.review_as("code.run", "builtin.untrusted-program", text, &shown, &kind::of_file(path, &self.places));
        }
        let policy = self.policy;
        let Some(node) = policy.program(name) else {
            let text = "no rule knows this program";
            let own = identity == Identity::Untrusted && kind::is_own(path, &self.places);
            let scope = if own {
                kind::of_file(path, &self.places)
            } else {
                self.undescribed(&String::from_utf8_lossy(name), words)
            };
            self.review_as(UNKNOWN, "builtin.unknown-program", text, &shown, &scope);
            return self.unknown_program(words);
        };
        match node.runs {
            Some(Runs::Multicall) => wrappers::multicall(self, name, identity, words, depth),
            Some(Runs::Shell) => wrappers::shell(self, node, name, words, depth),
            Some(Runs::Interpreter) | None => self.command(node, name, words, depth),
        }
    }

    /// Judges a command of a program that policy describes.
    pub(crate) fn command(&mut self, node: &Node, name: &[u8], words: &[Word], depth: usize) {
        let invocation = Invocation::read(node, name, words);
        for word in &invocation.unknown {
            let text = "no rule knows this flag or subcommand of the program";
            let category = self.base_category(&invocation);
            let scope = match category.as_str() {
                UNKNOWN => self.undescribed(&invocation.named, words),
                known => kind::of_part(&invocation, known, word),
            };
            self.review_as(&category, "builtin.unknown-flag", text, word, &scope);
        }
        if node.runs == Some(Runs::Interpreter) {
            self.interpreter(&invocation);
        }
        let acts = Acts::of(&invocation, &self.places);
        for word in &acts.surplus {
            let text = "the program takes no such argument";
            let category = self.base_category(&invocation);
            let scope = kind::of_part(&invocation, &category, word);
            self.review_as(&category, "builtin.surplus", text, word, &scope);
        }
        for (text, why) in &acts.opaque {
            self.findings.part(Part::Unseen, why);
            let scope = kind::of_part(&invocation, "code.run", text);
            self.review_as("code.run", "builtin.opaque", why, text, &scope);
        }
        let values = invocation.used.iter().filter_map(|u| u.value.as_ref());
        for word in invocation.operands.iter().chain(values).filter(|w| w.known == Known::Dynamic) {
            if !invocation.node.dynamic {
                self.dynamic(&invocation, word);
            }
        }
        for act in &acts.acts {
            self.act(act, Some(&invocation), words);
        }
        for inner in &acts.inner {
            self.inner(inner, depth + 1);
        }
    }

    fn dynamic(&mut self, invocation: &Invocation<'_>, word: &Word) {
        let text = "the argument is only known when the command runs";
        let category = self.base_category(invocation);
        let scope = kind::of_part(invocation, &category, &word.lossy());
        self.review_as(&category, "builtin.dynamic", text, &word.lossy(), &scope);
    }

    fn base_category(&self, invocation: &Invocation<'_>) -> String {
        invocation.node.act.clone().unwrap_or_else(|| UNKNOWN.to_owned())
    }

    /// No script named: the interpreter takes its commands from standard input.
    fn interpreter(&mut self, invocation: &Invocation<'_>) {
        let asks = invocation.operands.is_empty()
            && invocation.used.iter().all(|u| u.node.cases.is_empty() || !ends(u.node, &u.flag.name));
        let dash = invocation.operands.first().is_some_and(|w| w.text == b"-");
        if asks || dash {
            self.takes_commands();
        }
    }

    pub(crate) fn takes_commands(&mut self) {
        if self.stdin != Stdin::Null {
            self.findings.takes_commands = true;
        }
    }

    /// A command inside a command.
    pub(crate) fn inner(&mut self, inner: &Inner, depth: usize) {
        match inner {
            Inner::Command(words) => self.by_word(words, depth),
            Inner::Shell(text) => shell::judge(self, text, depth),
        }
    }

    /// Judges a command by its first word, as a shell would look it up.
    pub(crate) fn by_word(&mut self, words: &[Word], depth: usize) {
        let Some(first) = words.first() else { return };
        if !first.is_fixed() {
            let text = "the program is only known when the command runs";
            self.review("shell", "builtin.dynamic-program", text, &first.lossy());
            return self.unknown_program(words);
        }
        if first.text.contains(&b'/') {
            let path = self.places.absolute(&first.text);
            let trusted = self.policy.in_trusted_dir(&path);
            let identity = if trusted { Identity::Trusted } else { Identity::Untrusted };
            self.program(base_name(&path).to_vec().as_slice(), identity, &path, words, depth);
        } else {
            self.program(&first.text, Identity::Trusted, &first.text, words, depth);
        }
    }

    /// The kind of a use that nobody described: the program, and all places that its words may name.
    fn undescribed(&mut self, program: &str, words: &[Word]) -> String {
        if !words.iter().all(Word::is_fixed) {
            return String::new();
        }
        let acts = Acts::of_unknown(words, &self.places);
        let does = Doer::Program(program.to_owned(), String::new());
        let act = acts.acts.into_iter().next().map(|act| Act { does, ..act });
        act.map(|act| self.kind(&act, words)).unwrap_or_default()
    }

    /// The kind of an act, and the places by which it is told.
    fn kind(&mut self, act: &Act, words: &[Word]) -> String {
        act.paths.iter().filter(|t| t.known == Known::Fixed).for_each(|t| self.findings.place(&t.path));
        if act.paths.is_empty() {
            self.findings.place(&self.places.cwd);
        }
        act.kind(self.policy, &self.places, words)
    }

    fn unknown_program(&mut self, words: &[Word]) {
        let acts = Acts::of_unknown(words, &self.places);
        for act in &acts.acts {
            self.act(act, None, words);
        }
    }

    /// Judges one act by every rule. No rule means review.
    pub(crate) fn act(&mut self, act: &Act, invocation: Option<&Invocation<'_>>, words: &[Word]) {
        if invocation.is_some() {
            for target in &act.paths {
                self.findings.target(&String::from_utf8_lossy(&target.path));
            }
        }
        act.hosts.iter().chain(&act.named).for_each(|target| self.findings.target(target));
        risk::of_act(self, act, invocation);
        self.fetched += usize::from(act.category == "net.fetch");
        let policy = self.policy;
        let mut ruled = false;
        for rule in &policy.rules {
            let Some(evidence) = self.rule(rule, act, invocation, words) else { continue };
            ruled = true;
            self.findings.always |= rule.always;
            let category = rule.category.as_deref().unwrap_or(&act.category);
            let risk = rule.risk.unwrap_or_else(|| policy.category_risk(category));
            let scope = if rule.tier == Tier::Review { self.kind(act, words) } else { String::new() };
            self.findings.add_kind(rule.tier, category, risk, &rule.id, &rule.reason, &evidence, &scope);
        }
        if !ruled && act.category != UNKNOWN {
            let text = format!("no rule allows {}: it {}", act.category, policy.category_about(&act.category));
            let risk = policy.category_risk(&act.category);
            let scope = self.kind(act, words);
            self.findings.add_kind(Tier::Review, &act.category, risk, "builtin.no-rule", &text, &act.evidence, &scope);
        }
        if act.category == UNKNOWN && invocation.is_some() {
            let name = invocation.map(|i| i.named.clone()).unwrap_or_default();
            let (text, scope) = ("no rule knows this use of the program", self.undescribed(&name, words));
            self.review_as(UNKNOWN, "builtin.unknown-use", text, &act.evidence, &scope);
        }
    }

    /// Whether `rule` holds; `Some` with what it matched.
    fn rule(&self, rule: &Rule, act: &Act, invocation: Option<&Invocation<'_>>, words: &[Word]) -> Option<String> {
        let when = &rule.when;
        if !when.act.is_empty() && !when.act.iter().any(|g| g.matches(act.category.as_bytes())) {
            return None;
        }
        if !when.program.is_empty() && !invocation.is_some_and(|i| when.program.contains(&i.program.name)) {
            return None;
        }
        if !when.named.is_empty() && !invocation.is_some_and(|i| when.named.contains(&i.named)) {
            return None;
        }
        if !when.subcommand.is_empty() && !invocation.is_some_and(|i| when.subcommand.contains(&i.subcommand)) {
            return None;
        }
        if !when.called.is_empty() && !invocation.is_some_and(|i| when.called.contains(&i.called)) {
            return None;
        }
        if when.late && !act.paths.iter().any(|t| t.known == Known::Late) {
            return None;
        }
        if !when.any_target.is_empty() && !act.reaches(&when.any_target) {
            return None;
        }
        if when.dynamic && !act.paths.iter().any(|t| t.known == Known::Dynamic) {
            return None;
        }
        let pattern = |t: &Target| t.path.iter().any(|b| matches!(b, b'*' | b'?' | b'['));
        if when.wildcard && !act.paths.iter().any(pattern) {
            return None;
        }
        let uses = |flags: &[String]| invocation.is_some_and(|i| flags.iter().any(|f| i.uses(f)));
        if (!when.any_flag.is_empty() && !uses(&when.any_flag)) || uses(&when.no_flag) {
            return None;
        }
        // Without a description of the program nobody knows which words are flags.
        let only = |flags: &[String]| invocation.is_some_and(|i| i.unknown.is_empty() && i.uses_only(flags));
        if when.only_flags.as_deref().is_some_and(|flags| !only(flags)) {
            return None;
        }
        let args = |globs: &[Glob]| invocation.is_some_and(|i| i.operands.iter().all(|w| w.is_one_of(globs)));
        if when.only_args.as_deref().is_some_and(|globs| !args(globs)) {
            return None;
        }
        let mut evidence = act.evidence.clone();
        if !when.any_arg.is_empty() {
            let arg = |w: &&Word| when.any_arg.iter().any(|g| g.matches(&w.text));
            evidence = words.get(1..)?.iter().find(arg)?.lossy();
        }
        if !when.any_path_in.is_empty() {
            let hit = act.paths.iter().find(|t| self.in_sets(&t.path, &when.any_path_in))?;
            evidence = String::from_utf8_lossy(&hit.path).into_owned();
        }
        if !when.any_path_outside.is_empty() {
            let outside = |t: &&Target| t.known == Known::Fixed && !self.in_sets(&t.path, &when.any_path_outside);
            evidence = String::from_utf8_lossy(&act.paths.iter().find(outside)?.path).into_owned();
        }
        let inside = |t: &Target| t.known == Known::Fixed && self.in_sets(&t.path, &when.all_paths_in);
        if !when.all_paths_in.is_empty() && (act.paths.is_empty() || !act.paths.iter().all(inside)) {
            return None;
        }
        Some(evidence)
    }

    fn in_sets(&self, path: &[u8], sets: &[String]) -> bool {
        path.len() <= LIMITS.path_bytes
            && sets.iter().filter_map(|s| self.policy.path_sets.get(s)).any(|set| set.contains(path, &self.places))
    }

    /// Finds variables that change what the program does; each lifts `allow` to `review`.
    fn environment(&mut self, program: &str) -> Vec<String> {
        let mut notable = Vec::new();
        for entry in self.env.iter().take(LIMITS.words) {
            let at = entry.iter().position(|b| *b == b'=').unwrap_or(entry.len());
            let (name, value) = entry.split_at(at);
            let Some(_) = self.variable(name, value.get(1..), None) else { continue };
            let shown = crate::verdict::shorten(&String::from_utf8_lossy(name));
            if let Some(text) = self.variable(name, value.get(1..), Some(program.as_bytes())) {
                self.findings.part(Part::Environment, "a variable changes what it does");
                self.review("code.run", "builtin.environment", text, &shown);
            }
            if notable.len() < 64 {
                notable.push(shown);
            }
        }
        notable
    }

    /// Why a variable matters; to `program`, if given. `None`: it does not.
    pub(crate) fn variable(&self, name: &[u8], value: Option<&[u8]>, program: Option<&[u8]>) -> Option<&'static str> {
        let name = name.get(..LIMITS.pattern_bytes).unwrap_or(name);
        let known = |e: &&Environment| e.names.iter().any(|g| g.matches(name));
        let found = self.policy.environment.iter().find(known)?;
        let home = self.places.home.strip_suffix(b"/").unwrap_or(self.places.home);
        let changes_nothing = |value: &[u8], harmless: &Harmless| {
            let text = if harmless.home { value.strip_prefix(home) } else { Some(value) };
            text.is_some_and(|t| {
                if harmless.globs.is_empty() { t.is_empty() } else { harmless.globs.iter().any(|g| g.matches(t)) }
            })
        };
        let harmless =
            value.is_some_and(|v| v.len() <= LIMITS.path_bytes && found.harmless.iter().any(|h| changes_nothing(v, h)));
        let reaches = |p: &[u8]| found.programs.is_empty() || found.programs.iter().any(|n| n.as_bytes() == p);
        (!harmless && program.is_none_or(reaches)).then_some("the variable changes what the program does")
    }

    pub(crate) fn review(&mut self, category: &str, rule_id: &str, text: &str, evidence: &str) {
        self.review_as(category, rule_id, text, evidence, "");
    }

    /// The same, of a kind that a grant can name by `scope`.
    pub(crate) fn review_as(&mut self, category: &str, rule_id: &str, text: &str, evidence: &str, scope: &str) {
        self.findings.add_kind(Tier::Review, category, RISK_UNKNOWN, rule_id, text, evidence, scope);
    }
}

/// Whether a flag gives the interpreter its program text or makes it do something else.
fn ends(node: &Node, flag: &str) -> bool {
    node.cases.iter().any(|case| case.any_flag.iter().any(|f| f == flag))
}

pub(crate) fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}
