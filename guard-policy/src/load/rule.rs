//! Rules: every name in them must be known, so that no rule is silently without effect.

use std::collections::HashSet;

use crate::placed::Placed;

use super::{At, known_category};
use crate::error::PolicyError;
use crate::glob::Glob;
use crate::model::{LIMITS, Node, Policy, Rule, When};
use crate::raw::{RawRule, RawWhen};
use crate::verdict::Tier;

pub(super) fn load(
    at: At<'_>,
    raw: &[RawRule],
    without: &HashSet<&str>,
    policy: &mut Policy,
) -> Result<(), PolicyError> {
    for rule in raw {
        if policy.rules.iter().any(|r| r.id == rule.id.value) {
            return Err(at.error(&rule.id, format!("rule id `{}` twice", rule.id.value), "give each rule its own id"));
        }
        if policy.rules.len() >= LIMITS.rules {
            return Err(at.error(&rule.id, format!("more than {} rules", LIMITS.rules), "leave rules out"));
        }
        if rule.id.value.is_empty() || rule.id.value.starts_with("builtin.") {
            return Err(at.error(&rule.id, format!("`{}` as a rule id", rule.id.value), "`builtin.` is reserved"));
        }
        if !without.contains(rule.id.value.as_str()) {
            let built = build(at, rule, policy)?;
            policy.rules.push(built);
        }
    }
    Ok(())
}

fn build(at: At<'_>, raw: &RawRule, policy: &Policy) -> Result<Rule, PolicyError> {
    let when = when(at, raw, policy)?;
    if let Some(risk) = raw.risk.as_ref().filter(|r| r.value > 100) {
        return Err(at.error(risk, format!("risk {}", risk.value), "risk is 0 to 100"));
    }
    if raw.tier == Tier::Allow && raw.when.act.is_empty() {
        return Err(at.error(&raw.id, "an allow rule for every act", "name the acts that it allows: `act: [...]`"));
    }
    if raw.always && raw.tier != Tier::Deny {
        let reason = format!("`always` in a rule of the tier {}", raw.tier);
        return Err(at.error(&raw.id, reason, "only what denies can hold where verdicts are observed"));
    }
    Ok(Rule {
        id: raw.id.value.clone(),
        tier: raw.tier,
        reason: raw.reason.clone(),
        category: raw.category.as_ref().map(|c| known_category(at, c, policy)).transpose()?,
        risk: raw.risk.as_ref().map(|r| r.value),
        always: raw.always,
        when,
        examples: raw.matching.len(),
    })
}

fn when(at: At<'_>, rule: &RawRule, policy: &Policy) -> Result<When, PolicyError> {
    let raw = &rule.when;
    if is_empty(raw) {
        return Err(at.error(&rule.id, "a rule without conditions", "say under `when` what it matches"));
    }
    let nodes = programs(at, raw, policy)?;
    names(at, &raw.named, &nodes, policy)?;
    subcommands(at, &raw.subcommand, &nodes)?;
    subcommands(at, &raw.called, &nodes)?;
    for set in raw.any_path_in.iter().chain(&raw.any_path_outside).chain(&raw.all_paths_in) {
        if !policy.path_sets.contains_key(&set.value) {
            return Err(at.error(set, format!("no path set `{}`", set.value), "declare it under `path_sets`"));
        }
    }
    Ok(When {
        act: acts(at, raw, policy)?,
        program: nodes.iter().map(|n| n.name.clone()).collect(),
        named: values(&raw.named),
        subcommand: values(&raw.subcommand),
        called: values(&raw.called),
        any_flag: flags(at, raw.any_flag.as_ref(), &nodes)?,
        no_flag: flags(at, raw.no_flag.as_ref(), &nodes)?,
        only_flags: raw.only_flags.as_ref().map(|text| flags(at, Some(text), &nodes)).transpose()?,
        only_args: raw.only_args.as_ref().map(|list| globs(at, list)).transpose()?,
        any_arg: globs(at, &raw.any_arg)?,
        any_path_in: values(&raw.any_path_in),
        any_path_outside: values(&raw.any_path_outside),
        all_paths_in: values(&raw.all_paths_in),
        any_target: globs(at, &raw.any_target)?,
        late: raw.late,
        dynamic: raw.dynamic,
        wildcard: raw.wildcard,
    })
}

fn is_empty(raw: &RawWhen) -> bool {
    raw.act.is_empty()
        && raw.program.is_empty()
        && raw.any_arg.is_empty()
        && raw.any_path_in.is_empty()
        && raw.any_path_outside.is_empty()
        && raw.any_target.is_empty()
}

fn programs<'p>(at: At<'_>, raw: &RawWhen, policy: &'p Policy) -> Result<Vec<&'p Node>, PolicyError> {
    let find = |name: &Placed<String>| {
        let missing = || at.error(name, format!("no program `{}`", name.value), "describe it under `programs`");
        policy.program(name.value.as_bytes()).ok_or_else(missing)
    };
    raw.program.iter().map(find).collect()
}

/// Names that mean one of the rule's programs; any other would match nothing.
fn names(at: At<'_>, named: &[Placed<String>], nodes: &[&Node], policy: &Policy) -> Result<(), PolicyError> {
    for name in named {
        let node = policy.program(name.value.as_bytes());
        if !node.is_some_and(|node| nodes.iter().any(|known| std::ptr::eq(*known, node))) {
            let reason = format!("no program of this rule is named `{}`", name.value);
            return Err(at.error(name, reason, "name the program under `program`, and its files' names under `named`"));
        }
    }
    Ok(())
}

fn subcommands(at: At<'_>, paths: &[Placed<String>], nodes: &[&Node]) -> Result<(), PolicyError> {
    for path in paths {
        let known = |node: &&&Node| {
            let mut here = Some(**node);
            for word in path.value.split(' ') {
                here = here.and_then(|n| n.child(word));
            }
            here.is_some()
        };
        if nodes.iter().find(known).is_none() {
            let reason = format!("no program of this rule has the subcommand `{}`", path.value);
            return Err(at.error(path, reason, "name the program under `program` and its subcommand under `programs`"));
        }
    }
    Ok(())
}

/// Resolves flags against the rule's programs and their subcommands, to every first spelling that they have.
fn flags(at: At<'_>, text: Option<&Placed<String>>, nodes: &[&Node]) -> Result<Vec<String>, PolicyError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for word in text.value.split_whitespace() {
        let before = out.len();
        nodes.iter().for_each(|node| spellings(node, word, &mut out));
        if out.len() == before {
            let reason = format!("no program of this rule has the flag `{word}`");
            return Err(at.error(text, reason, "name the program under `program` and its flag under `programs`"));
        }
    }
    Ok(out)
}

fn spellings(node: &Node, word: &str, out: &mut Vec<String>) {
    if let Some(flag) = node.by_flag.get(word.as_bytes()).and_then(|i| node.flags.get(*i)) {
        out.push(flag.name.clone());
    }
    node.children.iter().for_each(|child| spellings(child, word, out));
}

fn acts(at: At<'_>, raw: &RawWhen, policy: &Policy) -> Result<Vec<Glob>, PolicyError> {
    let mut out = Vec::new();
    for act in &raw.act {
        let globs = Glob::compile(&act.value).map_err(|why| at.error(act, why, "name a category"))?;
        if !policy.categories.keys().any(|c| globs.iter().any(|g| g.matches(c.as_bytes()))) {
            return Err(at.error(act, format!("no category `{}`", act.value), "declare it under `categories`"));
        }
        out.extend(globs);
    }
    Ok(out)
}

fn globs(at: At<'_>, raw: &[Placed<String>]) -> Result<Vec<Glob>, PolicyError> {
    let mut out = Vec::new();
    for pattern in raw {
        out.extend(
            Glob::compile(&pattern.value).map_err(|why| at.error(pattern, why, "see docs/policy.md, patterns"))?,
        );
    }
    Ok(out)
}

fn values(raw: &[Placed<String>]) -> Vec<String> {
    raw.iter().map(|s| s.value.clone()).collect()
}
