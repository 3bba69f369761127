//! A loaded policy: programs, rules and sets in the form that judging uses. Immutable; nothing here fails.

use std::collections::HashMap;

use crate::glob::Glob;
use crate::paths::PathSet;
use crate::raw::{ArgKind, Grant, Open, Runs, Style};
use crate::verdict::Tier;

/// Bounds on what is loaded and on what is judged. Beyond them loading refuses and judging asks a person.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) source_bytes: usize,
    pub(crate) sources: usize,
    pub(crate) extends_depth: usize,
    pub(crate) rules: usize,
    pub(crate) programs: usize,
    pub(crate) pattern_bytes: usize,
    pub(crate) pattern_alternatives: usize,
    pub(crate) subcommand_depth: usize,
    /// Words of one command that are judged.
    pub(crate) words: usize,
    /// Bytes of one command that are judged.
    pub(crate) command_bytes: usize,
    /// Simple commands judged in one exec, over all nesting.
    pub(crate) parts: usize,
    /// Wrappers and shells inside each other.
    pub(crate) depth: usize,
    /// Bytes of shell text that are parsed.
    pub(crate) shell_bytes: usize,
    /// Open brackets and compound commands inside each other in shell text.
    pub(crate) shell_nesting: usize,
    /// Longest path that is matched; the kernel's own limit.
    pub(crate) path_bytes: usize,
}

pub(crate) const LIMITS: Limits = Limits {
    source_bytes: 1 << 20,
    sources: 64,
    extends_depth: 8,
    rules: 4_000,
    programs: 4_000,
    pattern_bytes: 256,
    pattern_alternatives: 64,
    subcommand_depth: 4,
    words: 4_096,
    command_bytes: 128 << 10,
    parts: 256,
    depth: 8,
    shell_bytes: 16 << 10,
    shell_nesting: 12,
    path_bytes: 4_096,
};

/// A loaded policy. Immutable.
#[derive(Debug)]
pub struct Policy {
    pub(crate) digest: String,
    pub(crate) categories: HashMap<String, Category>,
    pub(crate) trusted_dirs: Vec<Vec<u8>>,
    pub(crate) path_sets: HashMap<String, PathSet>,
    pub(crate) environment: Vec<Environment>,
    pub(crate) recorded: Vec<Glob>,
    pub(crate) nodes: Vec<Node>,
    /// Program name to index in `nodes`.
    pub(crate) by_name: HashMap<Vec<u8>, usize>,
    /// Names with a pattern, such as `python3.*`.
    pub(crate) by_pattern: Vec<(Glob, usize)>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) targets: Vec<Critical>,
}

/// Targets that raise the risk.
#[derive(Debug)]
pub(crate) struct Critical {
    pub(crate) names: Vec<Glob>,
    pub(crate) risk: u8,
    pub(crate) about: String,
}

#[derive(Debug)]
pub(crate) struct Category {
    pub(crate) risk: u8,
    pub(crate) about: String,
    pub(crate) lasting: bool,
    pub(crate) grant: Grant,
}

#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) names: Vec<Glob>,
    /// Empty: every program.
    pub(crate) programs: Vec<String>,
    pub(crate) harmless: Vec<Harmless>,
}

/// Values of a variable that change nothing.
#[derive(Debug)]
pub(crate) struct Harmless {
    /// The pattern continues the home of the session's user.
    pub(crate) home: bool,
    /// None: the empty text.
    pub(crate) globs: Vec<Glob>,
}

/// What is known of a program or of one of its subcommands.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) act: Option<String>,
    pub(crate) args: Vec<ArgKind>,
    pub(crate) last: Option<ArgKind>,
    pub(crate) first_unless: Vec<String>,
    pub(crate) style: Style,
    /// Options end at the first operand.
    pub(crate) stops: bool,
    /// The inner command gets more arguments than are seen (xargs).
    pub(crate) appends: bool,
    /// The program takes its own flags after a subcommand too.
    pub(crate) globals_anywhere: bool,
    /// No argument whatever makes the program do anything else (echo).
    pub(crate) names_all: bool,
    pub(crate) apart: bool,
    pub(crate) dynamic: bool,
    pub(crate) runs: Option<Runs>,
    pub(crate) flags: Vec<Flag>,
    pub(crate) by_flag: HashMap<Vec<u8>, usize>,
    pub(crate) groups: Vec<Group>,
    pub(crate) cases: Vec<Case>,
    pub(crate) subcommands: HashMap<String, usize>,
    /// Subcommands by pattern, looked at where no name fits.
    pub(crate) patterns: Vec<(Glob, usize)>,
    pub(crate) nouns: Vec<Glob>,
    /// First spellings of the flags that only print help or version.
    pub(crate) help: Vec<String>,
    /// Index of the flag that stands for all long flags that are not described.
    pub(crate) open: Option<(usize, Open)>,
    pub(crate) children: Vec<Node>,
}

#[derive(Debug)]
pub(crate) struct Flag {
    /// The first spelling; rules name flags by any spelling and are resolved to this one.
    pub(crate) name: String,
    pub(crate) value: Value,
    pub(crate) group: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    None,
    Required(ArgKind),
    Optional(ArgKind),
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) act: String,
    pub(crate) on_args: bool,
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) any_flag: Vec<String>,
    pub(crate) max_args: Option<usize>,
    pub(crate) act: String,
    pub(crate) args: Option<Vec<ArgKind>>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) id: String,
    pub(crate) tier: Tier,
    pub(crate) reason: String,
    pub(crate) category: Option<String>,
    pub(crate) risk: Option<u8>,
    /// Its denial holds also where verdicts are only observed.
    pub(crate) always: bool,
    pub(crate) when: When,
    /// Examples of what it matches.
    pub(crate) examples: usize,
}

#[derive(Debug, Default)]
pub(crate) struct When {
    pub(crate) act: Vec<Glob>,
    pub(crate) program: Vec<String>,
    /// Names of the program's file.
    pub(crate) named: Vec<String>,
    pub(crate) subcommand: Vec<String>,
    /// The subcommand as it was typed.
    pub(crate) called: Vec<String>,
    pub(crate) any_flag: Vec<String>,
    pub(crate) no_flag: Vec<String>,
    /// No flag but these.
    pub(crate) only_flags: Option<Vec<String>>,
    /// No operand but these.
    pub(crate) only_args: Option<Vec<Glob>>,
    pub(crate) any_arg: Vec<Glob>,
    pub(crate) any_path_in: Vec<String>,
    pub(crate) any_path_outside: Vec<String>,
    pub(crate) all_paths_in: Vec<String>,
    pub(crate) any_target: Vec<Glob>,
    /// A target is found by another command.
    pub(crate) late: bool,
    /// A target is only known when the command runs.
    pub(crate) dynamic: bool,
    /// A target is a pattern of names.
    pub(crate) wildcard: bool,
}

// === impl Policy ===

impl Policy {
    /// Hex SHA-256 over names and texts of the sources.
    #[must_use]
    pub fn digest(&self) -> String {
        self.digest.clone()
    }

    /// How many rules are in force.
    #[must_use]
    pub fn rule_count(&self) -> u32 {
        u32::try_from(self.rules.len()).unwrap_or(u32::MAX)
    }

    /// Ids of every category that the policy names, sorted.
    #[must_use]
    pub fn categories(&self) -> Vec<String> {
        let mut names: Vec<String> = self.categories.keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether records keep the value of this variable.
    #[must_use]
    pub fn records_variable(&self, name: &[u8]) -> bool {
        self.recorded.iter().any(|glob| glob.matches(name))
    }

    /// What is known of a program by the file name of its resolved path.
    pub(crate) fn program(&self, name: &[u8]) -> Option<&Node> {
        let index = self.by_name.get(name).copied();
        let index = index.or_else(|| self.by_pattern.iter().find(|(g, _)| g.matches(name)).map(|(_, i)| *i));
        index.and_then(|i| self.nodes.get(i))
    }

    /// Whether `path` lies directly in a directory of programs that only the system's packages write.
    pub(crate) fn in_trusted_dir(&self, path: &[u8]) -> bool {
        let Some(at) = path.iter().rposition(|b| *b == b'/') else { return false };
        let dir = path.get(..at).unwrap_or_default();
        self.trusted_dirs.iter().any(|d| d == dir)
    }

    pub(crate) fn category_risk(&self, category: &str) -> u8 {
        self.categories.get(category).map_or(50, |c| c.risk)
    }

    pub(crate) fn category_about(&self, category: &str) -> &str {
        self.categories.get(category).map_or("is not known", |c| c.about.as_str())
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn child(&self, name: &str) -> Option<&Node> {
        let by_pattern = || self.patterns.iter().find(|(glob, _)| glob.matches(name.as_bytes())).map(|(_, i)| *i);
        self.subcommands.get(name).copied().or_else(by_pattern).and_then(|i| self.children.get(i))
    }
}
