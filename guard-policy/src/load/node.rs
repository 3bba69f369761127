//! Programs: names, flags and subcommands, checked and made searchable.

use std::collections::HashMap;

use crate::placed::Placed;

use super::{At, known_category};
use crate::error::PolicyError;
use crate::glob::Glob;
use crate::model::{Case, Flag, Group, LIMITS, Node, Policy, Value};
use crate::raw::{ArgKind, RawCase, RawNode};

pub(super) fn load(at: At<'_>, raw: &[RawNode], policy: &mut Policy) -> Result<(), PolicyError> {
    for program in raw {
        if policy.nodes.len() >= LIMITS.programs {
            return Err(at.whole(format!("more than {} programs", LIMITS.programs), "leave programs out"));
        }
        let node = build(at, program, policy, &[], 0)?;
        let index = policy.nodes.len();
        for name in &program.names {
            // A later file replaces what an earlier one knows of a program.
            if name.value.contains(['*', '?', '{']) {
                let globs = Glob::compile(&name.value).map_err(|why| at.error(name, why, "write a plain name"))?;
                policy.by_pattern.splice(0..0, globs.into_iter().map(|g| (g, index)));
            } else {
                policy.by_name.insert(name.value.clone().into_bytes(), index);
            }
        }
        policy.nodes.push(node);
    }
    Ok(())
}

fn build(at: At<'_>, raw: &RawNode, policy: &Policy, help_above: &[String], depth: usize) -> Result<Node, PolicyError> {
    let Some(first) = raw.names.first() else {
        return Err(at.whole("a program without names".to_owned(), "give `names: [...]`"));
    };
    if depth > LIMITS.subcommand_depth {
        return Err(at.error(first, "subcommands nested too deep", "at most 4 levels"));
    }
    let mut table = Table { at, flags: Vec::new(), by_flag: HashMap::new() };
    if let Some(flags) = &raw.flags {
        table.add(flags, None)?;
    }
    let mut groups = Vec::new();
    for group in &raw.more {
        table.add(&group.flags, Some(groups.len()))?;
        groups.push(Group { act: known_category(at, &group.act, policy)?, on_args: group.on_args });
    }
    let help = table.help(raw.help.as_ref(), help_above)?;
    let open = raw.open_flags.map(|values| (table.open(), values));
    let cases = raw.cases.iter().map(|case| table.case(case, policy)).collect::<Result<Vec<_>, _>>()?;
    let first_unless = table.names(raw.first_unless.as_ref())?;
    let (subcommands, patterns, children) = subcommands(at, raw, policy, &help, depth)?;
    let nouns = globs(at, &raw.nouns)?;
    let args = raw.args.clone().unwrap_or_else(|| vec![ArgKind::Path]);
    let inner = [ArgKind::Command, ArgKind::Assignments, ArgKind::ShellWords];
    Ok(Node {
        name: first.value.clone(),
        act: raw.act.as_ref().map(|act| known_category(at, act, policy)).transpose()?,
        stops: raw
            .stops
            .unwrap_or(!children.is_empty() || args.iter().any(|a| inner.contains(a)) || raw.runs.is_some()),
        args,
        last: raw.last,
        first_unless,
        style: raw.style,
        appends: raw.appends,
        dynamic: raw.dynamic,
        names_all: raw.names_all,
        apart: raw.apart,
        globals_anywhere: raw.globals_anywhere,
        runs: raw.runs,
        flags: table.flags,
        by_flag: table.by_flag,
        groups,
        cases,
        subcommands,
        patterns,
        nouns,
        help,
        open,
        children,
    })
}

/// Flags for help that mean the same below a program's subcommands.
const HELP_BELOW: &[&str] = &["--help", "-help", "-h"];

type Subcommands = (HashMap<String, usize>, Vec<(Glob, usize)>, Vec<Node>);

fn subcommands(
    at: At<'_>,
    raw: &RawNode,
    policy: &Policy,
    help: &[String],
    depth: usize,
) -> Result<Subcommands, PolicyError> {
    let mut by_name = HashMap::new();
    let mut patterns = Vec::new();
    let mut children = Vec::new();
    for child in &raw.subcommands {
        for name in &child.names {
            if name.value.contains(['*', '?', '{']) {
                patterns.extend(globs(at, std::slice::from_ref(name))?.into_iter().map(|g| (g, children.len())));
            } else if by_name.insert(name.value.clone(), children.len()).is_some() {
                return Err(at.error(name, format!("subcommand `{}` twice", name.value), "join the two entries"));
            }
        }
        children.push(build(at, child, policy, help, depth + 1)?);
    }
    Ok((by_name, patterns, children))
}

fn globs(at: At<'_>, names: &[Placed<String>]) -> Result<Vec<Glob>, PolicyError> {
    let mut out = Vec::new();
    for name in names {
        out.extend(Glob::compile(&name.value).map_err(|why| at.error(name, why, "see docs/policy.md, patterns"))?);
    }
    Ok(out)
}

/// Flags while they are read.
struct Table<'a> {
    at: At<'a>,
    flags: Vec<Flag>,
    by_flag: HashMap<Vec<u8>, usize>,
}

// === impl Table ===

impl Table<'_> {
    /// Reads `-a -b,--bee= --color[=] -o,--output=path`.
    fn add(&mut self, text: &Placed<String>, group: Option<usize>) -> Result<(), PolicyError> {
        for word in text.value.split_whitespace() {
            let (names, value) = split(word).map_err(|why| self.at.error(text, why, "see docs/policy.md, flags"))?;
            let Some(first) = names.first() else { continue };
            let index = self.flags.len();
            for name in &names {
                if self.by_flag.insert(name.as_bytes().to_vec(), index).is_some() {
                    return Err(self.at.error(text, format!("flag `{name}` twice"), "keep one"));
                }
            }
            self.flags.push(Flag { name: (*first).to_owned(), value, group });
        }
        Ok(())
    }

    /// Flags that print help: those given here, and those from above that mean nothing else here.
    fn help(&mut self, text: Option<&Placed<String>>, above: &[String]) -> Result<Vec<String>, PolicyError> {
        if let Some(text) = text {
            self.add(text, None)?;
        }
        let mut names = self.names(text)?;
        // What asks for the version above may mean anything below (`docker run -v`).
        for name in above.iter().filter(|n| HELP_BELOW.contains(&n.as_str())) {
            if !names.contains(name) && !self.by_flag.contains_key(name.as_bytes()) {
                self.by_flag.insert(name.as_bytes().to_vec(), self.flags.len());
                self.flags.push(Flag { name: name.clone(), value: Value::None, group: None });
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// The flag that stands for every long flag that is not described.
    fn open(&mut self) -> usize {
        self.flags.push(Flag { name: "--*".to_owned(), value: Value::Optional(ArgKind::Param), group: None });
        self.flags.len() - 1
    }

    /// Resolves spellings of flags to their first spelling.
    fn names(&self, text: Option<&Placed<String>>) -> Result<Vec<String>, PolicyError> {
        let Some(text) = text else { return Ok(Vec::new()) };
        let resolve = |word: &str| {
            let flag = self.by_flag.get(word.as_bytes()).and_then(|i| self.flags.get(*i));
            let missing =
                || self.at.error(text, format!("no flag `{word}` here"), "declare it under `flags` or `more`");
            flag.map(|f| f.name.clone()).ok_or_else(missing)
        };
        text.value.split_whitespace().map(resolve).collect()
    }

    fn case(&self, raw: &RawCase, policy: &Policy) -> Result<Case, PolicyError> {
        if raw.any_flag.is_none() && raw.max_args.is_none() {
            return Err(self.at.error(&raw.act, "a case without a condition", "give `any_flag` or `max_args`"));
        }
        Ok(Case {
            any_flag: self.names(raw.any_flag.as_ref())?,
            max_args: raw.max_args.map(usize::from),
            act: known_category(self.at, &raw.act, policy)?,
            args: raw.args.clone(),
        })
    }
}

fn split(word: &str) -> Result<(Vec<&str>, Value), String> {
    let (names, value) = if let Some((names, kind)) = word.split_once("[=") {
        let kind = kind.strip_suffix(']').ok_or_else(|| format!("`{word}`: `[=` needs a `]`"))?;
        (names, Value::Optional(value_kind(kind)?))
    } else if let Some((names, kind)) = word.split_once('=') {
        (names, Value::Required(value_kind(kind)?))
    } else {
        (word, Value::None)
    };
    let names: Vec<&str> = names.split(',').collect();
    if names.iter().any(|n| n.is_empty() || *n == "-" || *n == "--") {
        return Err(format!("`{word}` is not a flag"));
    }
    Ok((names, value))
}

fn value_kind(text: &str) -> Result<ArgKind, String> {
    Ok(match text {
        "" | "text" => ArgKind::Text,
        "path" => ArgKind::Path,
        "source" => ArgKind::Source,
        "dest" => ArgKind::Dest,
        "host" => ArgKind::Host,
        "until" => ArgKind::Until,
        "shell" => ArgKind::Shell,
        "sed" => ArgKind::Sed,
        "awk" => ArgKind::Awk,
        "code" => ArgKind::Code,
        "param" => ArgKind::Param,
        "cluster" => ArgKind::Cluster,
        "namespace" => ArgKind::Namespace,
        "account" => ArgKind::Account,
        "database" => ArgKind::Database,
        other => return Err(format!("`{other}` is no kind of value")),
    })
}
