//! The form of a proposed rule, and the file that holds all of them.
//!
//! It must not name more than was seen: flags that were used, arguments as they stood, or paths inside the workspace where all
//! of them were. Fails: with the reason why arguments have no such form.

use std::fmt::Write as _;

use guard_policy::{Reading, Verdict};

use super::Rule;
use crate::text::escape_str;
use crate::time;

/// Name of the file in messages.
pub const NAME: &str = "suggested.yaml";
/// The set of paths that the file declares.
const INSIDE: &str = "suggested_workspace";

/// Execs that one rule is made from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// The program as policy describes it.
    pub program: String,
    /// Its subcommand as it was typed, or nothing.
    pub subcommand: String,
    arguments: Arguments,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Arguments {
    /// These, in any number; none.
    Exactly(Vec<String>),
    /// Paths inside the workspace.
    Workspace,
}

impl Shape {
    /// Of one exec.
    pub fn of(read: &Reading, verdict: &Verdict, cwd: &[u8], workspace: &[u8]) -> Result<Self, String> {
        let shape = |arguments| Self { program: read.program.clone(), subcommand: read.called.clone(), arguments };
        let targets: Vec<&str> = verdict.targets.iter().map(String::as_str).collect();
        // A rule cannot name what a flag's value has to be, but that all paths have to be inside.
        if let Some((flag, _)) = read.flags.iter().find(|(_, value)| value.is_some()) {
            return Err(format!("the flag {flag} has a value, and no rule can say which it may have"));
        }
        let paths = read.operands.iter().filter(|word| targets.contains(&absolute(word, cwd).as_str())).count();
        let workspace = String::from_utf8_lossy(workspace).trim_end_matches('/').to_owned();
        let inside = |path: &&str| {
            path.strip_prefix(workspace.as_str()).is_some_and(|rest| rest.starts_with('/')) && !path.contains("/../")
        };
        if paths > 0 && paths == read.operands.len() {
            let outside = targets.iter().find(|path| !inside(path));
            return match outside {
                None => Ok(shape(Arguments::Workspace)),
                Some(_) => Err("it reaches outside the workspace".to_owned()),
            };
        }
        if paths > 0 {
            return Err("its arguments are paths and other words".to_owned());
        }
        if read.operands.iter().any(|word| word.is_empty() || word.contains(['*', '?', '{', '}', '\u{fffd}'])) {
            return Err("an argument has no form that a pattern can name".to_owned());
        }
        let mut words = read.operands.clone();
        words.sort();
        words.dedup();
        Ok(shape(Arguments::Exactly(words)))
    }

    /// An id that tells what it is about.
    pub fn id(&self) -> String {
        let words = match &self.arguments {
            Arguments::Exactly(words) => words.as_slice(),
            Arguments::Workspace => &[],
        };
        let parts = [&self.program, &self.subcommand].into_iter().chain(words.iter().take(2));
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let parts: Vec<String> = parts
            .map(|part| part.chars().take(24).map(plain).collect::<String>().trim_matches('-').to_owned())
            .filter(|part| !part.is_empty())
            .collect();
        format!("suggested.{}", parts.join("-"))
    }
}

/// As the program sees it, without looking at the disk.
fn absolute(word: &str, cwd: &[u8]) -> String {
    let joined =
        if word.starts_with('/') { word.to_owned() } else { format!("{}/{word}", String::from_utf8_lossy(cwd)) };
    let mut parts: Vec<&str> = vec![];
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The policy file; `bare` without what people read.
pub fn file(rules: &[(Shape, Rule)], bare: bool) -> String {
    let mut text = String::new();
    if !bare {
        text += "# Proposed from what people approved. Read each rule, take out what should go on to a person, and name the\n\
                 # file after the others in `[policy] files`. Names of flags are those of the program's description.\n";
    }
    text += "version: 1\n";
    if rules.is_empty() {
        text += "rules: []\n";
        return text;
    }
    if rules.iter().any(|(shape, _)| shape.arguments == Arguments::Workspace) {
        let _ = writeln!(text, "path_sets:\n  {INSIDE}: {{patterns: [\"{{workspace}}/**\"]}}");
    }
    text += "rules:\n";
    for (shape, rule) in rules {
        if !bare {
            comment(&mut text, rule);
        }
        one(&mut text, shape, rule);
    }
    text
}

fn one(text: &mut String, shape: &Shape, rule: &Rule) {
    let _ = writeln!(text, "  - id: {}", quoted(&rule.id));
    text.push_str("    tier: allow\n    reason: approved by people again and again\n    when:\n");
    let _ = writeln!(text, "      act: {}", list(&rule.acts));
    let _ = writeln!(text, "      program: {}", list([&shape.program]));
    if !rule.names.is_empty() {
        let _ = writeln!(text, "      named: {}", list(&rule.names));
    }
    if !shape.subcommand.is_empty() {
        let _ = writeln!(text, "      called: {}", list([&shape.subcommand]));
    }
    let flags: Vec<&str> = rule.flags.iter().map(String::as_str).collect();
    let _ = writeln!(text, "      only_flags: {}", quoted(&flags.join(" ")));
    let _ = match &shape.arguments {
        Arguments::Exactly(words) => writeln!(text, "      only_args: {}", list(words)),
        Arguments::Workspace => writeln!(text, "      all_paths_in: [{INSIDE}]"),
    };
}

fn comment(text: &mut String, rule: &Rule) {
    let by: Vec<String> = rule.reviewers.iter().map(|name| escape_str(name)).collect();
    let [first, last] = rule.when.map(time::date_time);
    let _ = writeln!(text, "  # approved {} times by {}, {first} to {last}", rule.approved, by.join(", "));
    for (leaf, command) in &rule.examples {
        let _ = writeln!(text, "  #   leaf {leaf}: {command}");
    }
    if rule.acts.iter().any(|act| act.starts_with("fs.")) {
        text.push_str("  # it changes files, and nothing takes that back\n");
    }
    if rule.besides > 0 {
        let _ = writeln!(text, "  # would also have allowed {} that nobody decided", rule.besides);
        for (leaf, command) in &rule.others {
            let _ = writeln!(text, "  #   leaf {leaf}: {command}");
        }
    }
}

/// A text that YAML reads as it stands, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let all: Vec<String> = texts.into_iter().map(|text| quoted(text.as_ref())).collect();
    format!("[{}]", all.join(", "))
}
