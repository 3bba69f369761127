//! Commands that the shell itself performs. No exec follows them, so they are judged here and nowhere else.

use super::Walk;
use crate::act::{Act, Target};
use crate::invocation::{Known, Word};
use crate::kind;

/// Builtins that change nothing outside the shell, whatever their arguments.
const PLAIN: &[&str] = &[
    ":", "true", "false", "exit", "return", "break", "continue", "shift", "wait", "jobs", "times", "umask", "dirs",
    "getopts", "type", "unset", "disown", "fg", "bg", "logout", "ulimit", "caller", "popd",
];
/// Builtins that set variables named by their arguments.
const SETTERS: &[&str] = &["export", "declare", "typeset", "local", "readonly", "read", "mapfile", "readarray", "let"];

// === impl Walk ===

impl Walk<'_, '_> {
    /// Judges a builtin. `false`: `name` is none.
    pub(super) fn builtin(&mut self, words: &[Word], name: &str) -> bool {
        let rest = words.get(1..).unwrap_or_default();
        match name {
            "cd" | "pushd" => self.change_directory(rest),
            "eval" => self.eval(rest),
            "source" | "." => self.source(rest),
            "exec" | "command" | "builtin" => self.prefix(name, rest),
            "trap" => {
                if let Some(text) = rest.first().filter(|w| !w.text.starts_with(b"-")) {
                    self.separate(&text.text, text.known);
                }
            }
            "hash" | "shopt" | "set" => self.settings(name, rest),
            "history" | "fc" => {
                if rest.iter().any(|w| matches!(w.text.get(..2), Some(b"-w" | b"-a" | b"-r" | b"-n" | b"-e" | b"-s"))) {
                    let text = "reads or writes a file, or runs commands again";
                    self.judge.review("shell", "builtin.shell-flag", text, name);
                }
                if rest.iter().any(|w| w.text.starts_with(b"-c") || w.text.starts_with(b"-d")) {
                    self.judge.act(&Act::new("log.clear", name), None, words);
                }
            }
            _ if PLAIN.contains(&name) => {}
            _ if SETTERS.contains(&name) => self.setter(name, rest),
            _ => return false,
        }
        true
    }

    fn change_directory(&mut self, rest: &[Word]) {
        let target = rest.iter().find(|w| !w.text.starts_with(b"-"));
        self.judge.places.cwd = match target {
            None => self.judge.places.home.to_vec(),
            Some(word) => self.judge.places.absolute(&word.text),
        };
    }

    fn eval(&mut self, rest: &[Word]) {
        let text = rest.iter().map(|w| w.text.as_slice()).collect::<Vec<_>>().join(b" ".as_slice());
        let known = rest.iter().map(|w| w.known).max().unwrap_or(Known::Fixed);
        let why = "eval runs text as commands";
        let shown = String::from_utf8_lossy(&text).into_owned();
        let scope = if known == Known::Fixed { kind::exact(&shown) } else { String::new() };
        self.judge.review_as("shell", "builtin.eval", why, &shown, &scope);
        self.separate(&text, known);
    }

    fn source(&mut self, rest: &[Word]) {
        let Some(file) = rest.first() else { return };
        let path = self.judge.places.absolute(&file.text);
        let scope = if file.is_fixed() { kind::of_file(&path, &self.judge.places) } else { String::new() };
        self.judge.findings.place(&path);
        let why = "the shell runs commands from a file";
        self.judge.review_as("shell", "builtin.source", why, &file.lossy(), &scope);
        let mut act = Act::of_word("fs.read", &file.lossy());
        act.paths.push(Target { path: self.judge.places.absolute(&file.text), known: file.known });
        self.judge.act(&act, None, &[]);
    }

    /// `exec`, `command` and `builtin` run the command after them.
    fn prefix(&mut self, name: &str, rest: &[Word]) {
        let flag = rest.first().filter(|w| w.text.starts_with(b"-"));
        match flag {
            Some(word) if name == "command" && matches!(word.text.as_slice(), b"-v" | b"-V") => return,
            Some(word) => {
                let text = "the flag changes how the command is started";
                self.judge.review("shell", "builtin.shell-flag", text, &word.lossy());
            }
            None => {}
        }
        let inner: Vec<Word> = rest.iter().skip_while(|w| w.text.starts_with(b"-")).cloned().collect();
        // A chain of prefixes counts as depth: its length is the governed process's choice.
        if let Some(first) = inner.first().filter(|_| self.depth < crate::model::LIMITS.depth) {
            self.depth += 1;
            if !self.builtin(&inner, &first.lossy()) {
                self.judge.by_word(&inner, self.depth + 1);
            }
            self.depth -= 1;
        } else if !inner.is_empty() {
            self.judge.review("shell", "builtin.too-deep", "too many prefixes before a command", name);
        }
    }

    /// What a later command name means or how the shell reads on; without arguments `set` prints every variable.
    fn settings(&mut self, name: &str, rest: &[Word]) {
        let plain = match name {
            "set" => !rest.is_empty(),
            "hash" => rest.iter().all(|w| w.text == b"-r"),
            // Queries only.
            _ => rest.iter().all(|w| w.text == b"-q" || w.text == b"-p") || rest.iter().any(|w| w.text == b"-q"),
        };
        let known = ["nullglob", "globstar", "dotglob", "extglob", "failglob", "nocaseglob", "nocasematch", "pipefail"];
        let globs = name == "shopt" && rest.iter().skip(1).all(|w| known.iter().any(|k| k.as_bytes() == w.text));
        if !plain && !globs {
            let text = "changes how the shell goes on, or prints its variables";
            self.judge.review("shell", "builtin.shell-flag", text, name);
        }
    }

    fn setter(&mut self, name: &str, rest: &[Word]) {
        let callback = matches!(name, "mapfile" | "readarray") && rest.iter().any(|w| w.text.starts_with(b"-C"));
        let prints = !matches!(name, "read" | "mapfile" | "readarray" | "let")
            && !rest.iter().any(|w| !w.text.starts_with(b"-"));
        if callback || prints {
            let text = if callback { "runs a command for each line" } else { "prints the shell's variables" };
            self.judge.review("shell", "builtin.shell-flag", text, name);
        }
        for word in rest.iter().filter(|w| !w.text.starts_with(b"-")) {
            let text = word.lossy();
            let (variable, value) = match text.split_once('=') {
                Some((variable, value)) => (variable.trim_end_matches('+'), Some(value.as_bytes())),
                None => (text.as_str(), None),
            };
            let learned = value.filter(|_| word.is_fixed() && name != "let").map(|v| vec![v.to_vec()]);
            // `export NAME` of what is already set changes no value.
            if value.is_some() || matches!(name, "read" | "mapfile" | "readarray" | "let") {
                self.variable(variable, learned.as_ref().and(value), "");
                self.assign(variable, learned);
            }
        }
    }
}
