//! How often a person would be asked in recorded agent sessions, three ways side by side.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::world::WORKSPACE;
use super::{Command, Record};
use crate::model::Policy;
use crate::verdict::{TARGETS_MAX, Tier, Verdict};

/// Most causes that are listed.
const CAUSES_MAX: usize = 40;

/// Prompts per 100 commands of agents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Prompts {
    /// Lines judged.
    pub commands: usize,
    /// Tier 1 alone: each exec that is reviewed is asked for, the shell as well as what it starts.
    pub tier1: f64,
    /// Once-only approvals, one for each root: the line is asked for once, what it starts inherits.
    pub by_root: f64,
    /// As before, and the reviewer grants the narrowest session scope that is offered (see `scopes`).
    pub session_scope: f64,
    /// As before, and lines that only write below the workspace ask nobody, as if every such write could be undone. No version
    /// can do that yet: this is what it would be worth.
    pub with_undo: f64,
    /// Such lines, per 100 commands.
    pub undoable_per_100: f64,
    /// Denied lines, which ask nobody.
    pub denied_per_100: f64,
    /// Writes that ran without asking, per 100 commands.
    pub writes_allowed_per_100: f64,
    /// What caused prompts that no earlier grant covered, most frequent first.
    pub causes: Vec<Cause>,
}

/// One cause of prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// Rule or built-in check.
    pub rule: String,
    /// Category of the act.
    pub category: String,
    /// Program and subcommand, or what else the grant would name.
    pub scope: String,
    /// Prompts.
    pub count: usize,
}

type Key = (String, String, String);

/// Judges every record of a trace, in order.
pub(super) fn measure(policy: &Policy, records: &[&Record], verdicts: &[&Verdict]) -> Prompts {
    let (mut execs, mut roots, mut scoped, mut denied, mut writes) = (0, 0, 0, 0, 0);
    let (mut undoable, mut with_undo) = (0, 0);
    let mut granted: BTreeMap<&str, BTreeSet<Key>> = BTreeMap::new();
    let mut beside = granted.clone();
    let mut causes: BTreeMap<Key, usize> = BTreeMap::new();
    for (record, verdict) in records.iter().zip(verdicts) {
        match verdict.tier {
            Tier::Allow => writes += usize::from(verdict.categories().any(|c| c == "fs.write")),
            Tier::Deny => denied += 1,
            Tier::Review => {
                roots += 1;
                execs += 1 + inner(policy, record);
                let keys = scopes(verdict);
                // Of a line for a shell not all files are told: redirections are no targets.
                if record.argv.is_some() && only_writes_below(verdict, WORKSPACE) {
                    undoable += 1;
                } else {
                    let mine = beside.entry(&record.session).or_default();
                    let before = mine.len();
                    mine.extend(keys.iter().cloned());
                    with_undo += usize::from(mine.len() > before);
                }
                let mine = granted.entry(&record.session).or_default();
                let missing: Vec<Key> = keys.into_iter().filter(|k| !mine.contains(k)).collect();
                scoped += usize::from(!missing.is_empty());
                for key in missing {
                    *causes.entry(key.clone()).or_default() += 1;
                    mine.insert(key);
                }
            }
        }
    }
    let per_100 = |count: usize| if records.is_empty() { 0.0 } else { 100.0 * count as f64 / records.len() as f64 };
    Prompts {
        commands: records.len(),
        tier1: per_100(execs),
        by_root: per_100(roots),
        session_scope: per_100(scoped),
        with_undo: per_100(with_undo),
        undoable_per_100: per_100(undoable),
        denied_per_100: per_100(denied),
        writes_allowed_per_100: per_100(writes),
        causes: top(causes),
    }
}

/// Programs of the line that would be asked for when they start.
fn inner(policy: &Policy, record: &Record) -> usize {
    let one = record.argv.as_slice();
    let all = if record.execs.is_empty() { one } else { &record.execs };
    all.iter().filter(|argv| Command::exec(policy, argv).judge(policy).tier == Tier::Review).count()
}

/// What a grant for the session would have to name, at its narrowest: rule, category, and program with subcommand,
/// folder of a file, or the very text where there is nothing else.
fn scopes(verdict: &Verdict) -> BTreeSet<Key> {
    let asked = verdict.reasons.iter().filter(|r| r.tier == Tier::Review);
    asked.map(|r| (r.rule_id.clone(), r.category.clone(), r.scope.clone())).collect()
}

/// Nothing else is asked about than writes of files that are known now, all below the folder. What lies in `.git` decides what
/// git starts: putting the file back does not take back what ran.
fn only_writes_below(verdict: &Verdict, folder: &[u8]) -> bool {
    let folder = String::from_utf8_lossy(folder);
    let below = |target: &String| {
        target
            .strip_prefix(folder.as_ref())
            .is_some_and(|rest| rest.starts_with('/') && !rest.split('/').any(|s| s == ".git"))
    };
    let mut asked = verdict.reasons.iter().filter(|r| r.tier == Tier::Review);
    verdict.tier == Tier::Review
        && asked.all(|r| r.rule_id == "builtin.no-rule" && r.category == "fs.write")
        && (1..TARGETS_MAX).contains(&verdict.targets.len())
        && verdict.targets.iter().all(below)
}

fn top(causes: BTreeMap<Key, usize>) -> Vec<Cause> {
    let mut all: Vec<Cause> =
        causes.into_iter().map(|((rule, category, scope), count)| Cause { rule, category, scope, count }).collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.scope.cmp(&b.scope)));
    all.truncate(CAUSES_MAX);
    all
}
