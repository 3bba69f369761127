//! How often a person would be asked in recorded agent sessions, three ways side by side.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Command, Record};
use crate::kind::{Granted, Kind};
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
    /// As before, and the reviewer grants the kinds of each line that is shown for the rest of the session, up to its risk; where
    /// no kind is offered, the exact command.
    pub session_scope: f64,
    /// The same per 100 of the lines that were recorded whole: one that lacks its end often cannot be read as commands.
    pub session_scope_whole: f64,
    /// As `session_scope`, and lines that only write below the workspace ask nobody, as if every such write could be undone. No version
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

/// What a simulated reviewer has granted one session.
#[derive(Default)]
struct Reviewer {
    kinds: Granted,
    /// Exact commands, where no kind is offered.
    exact: BTreeSet<String>,
}

// === impl Reviewer ===

impl Reviewer {
    fn covers(&self, verdict: &Verdict, text: &str) -> bool {
        self.exact.contains(text) || self.kinds.covers(verdict)
    }

    /// Grants what is offered; gives what was missing of it.
    fn grant(&mut self, verdict: &Verdict, text: &str) -> Vec<Kind> {
        match verdict.kinds() {
            Some(kinds) => self.kinds.grant(&kinds, verdict.standing_risk()),
            None => {
                self.exact.insert(text.to_owned());
                Vec::new()
            }
        }
    }

    /// Asks for the line, or where that is covered for what it starts: what a grant of a kind covers is judged again when it
    /// starts. Gives whether anybody was asked, and about which kinds for the first time.
    fn ask(&mut self, line: &Judged<'_>) -> (bool, Vec<Kind>) {
        if !self.covers(line.verdict, &line.record.shell) {
            // What the line shown starts inherits.
            return (true, self.grant(line.verdict, &line.record.shell));
        }
        let mut asked = (false, Vec::new());
        for (text, verdict) in line.inner.iter().filter(|(_, verdict)| verdict.tier == Tier::Review) {
            if !self.covers(verdict, text) {
                asked.0 = true;
                asked.1.extend(self.grant(verdict, text));
            }
        }
        asked
    }
}

/// A line and what it starts.
struct Judged<'a> {
    record: &'a Record,
    verdict: &'a Verdict,
    inner: Vec<(String, Verdict)>,
}

/// Judges every record of a trace, in order.
pub(super) fn measure(policy: &Policy, records: &[&Record], verdicts: &[&Verdict]) -> Prompts {
    let (mut execs, mut roots, mut scoped, mut denied, mut writes) = (0, 0, 0, 0, 0);
    let (mut undoable, mut with_undo, mut whole) = (0, 0, 0);
    let mut granted: BTreeMap<&str, Reviewer> = BTreeMap::new();
    let mut beside: BTreeMap<&str, Reviewer> = BTreeMap::new();
    let mut causes: BTreeMap<Kind, usize> = BTreeMap::new();
    for (record, verdict) in records.iter().zip(verdicts) {
        match verdict.tier {
            Tier::Allow => writes += usize::from(verdict.categories().any(|c| c == "fs.write")),
            Tier::Deny => denied += 1,
            Tier::Review => {
                let line = Judged { record, verdict, inner: inner(policy, record) };
                roots += 1;
                execs += 1 + line.inner.iter().filter(|(_, said)| said.tier == Tier::Review).count();
                // Of a line for a shell not all files are told: redirections are no targets.
                if record.argv.is_some() && only_writes_below(verdict, &record.place.workspace) {
                    undoable += 1;
                } else {
                    with_undo += usize::from(beside.entry(&record.session).or_default().ask(&line).0);
                }
                let (asked, missing) = granted.entry(&record.session).or_default().ask(&line);
                scoped += usize::from(asked);
                whole += usize::from(asked && !record.truncated);
                if asked && missing.is_empty() {
                    *causes.entry(unnamed(verdict)).or_default() += 1;
                }
                for kind in missing {
                    *causes.entry(kind).or_default() += 1;
                }
            }
        }
    }
    let share = |count: usize, of: usize| if of == 0 { 0.0 } else { 100.0 * count as f64 / of as f64 };
    let per_100 = |count: usize| share(count, records.len());
    Prompts {
        commands: records.len(),
        tier1: per_100(execs),
        by_root: per_100(roots),
        session_scope: per_100(scoped),
        session_scope_whole: share(whole, records.iter().filter(|record| !record.truncated).count()),
        with_undo: per_100(with_undo),
        undoable_per_100: per_100(undoable),
        denied_per_100: per_100(denied),
        writes_allowed_per_100: per_100(writes),
        causes: top(causes),
    }
}

/// Programs of the line, as they are judged when they start.
fn inner(policy: &Policy, record: &Record) -> Vec<(String, Verdict)> {
    let one = record.argv.as_slice();
    let all = if record.execs.is_empty() { one } else { &record.execs };
    all.iter()
        .map(|argv| (format!("{argv:?}"), Command::exec(policy, argv).at(&record.place).found().judge(policy)))
        .collect()
}

/// The first reason for which no grant of a kind is offered.
fn unnamed(verdict: &Verdict) -> Kind {
    let asked = verdict.reasons.iter().filter(|r| r.tier == Tier::Review);
    let reason = asked.min_by_key(|r| !r.scope.is_empty());
    let (rule_id, category) = reason.map(|r| (r.rule_id.clone(), r.category.clone())).unwrap_or_default();
    Kind { rule_id, category, scope: "(no kind is offered)".to_owned() }
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

fn top(causes: BTreeMap<Kind, usize>) -> Vec<Cause> {
    let cause =
        |(kind, count): (Kind, usize)| Cause { rule: kind.rule_id, category: kind.category, scope: kind.scope, count };
    let mut all: Vec<Cause> = causes.into_iter().map(cause).collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.scope.cmp(&b.scope)));
    all.truncate(CAUSES_MAX);
    all
}
