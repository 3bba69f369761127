//! `guardctl policy diff`: recorded execs judged by two policies, and what changes; what would newly run comes first.
//!
//! It must not call equal what it could not judge: records that cannot be replayed are counted, with the reason. Fails: exit
//! code 1 when something changes, could not be replayed, or nothing was there, 78 when a file is no policy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use guard_policy::{Policy, Tier};
use guard_proto::v1;
use serde_json::{Value, json};

use super::recorded::{Judged, Recorded, RecordedArgs};
use super::replay::{Beside, Replay};
use super::{Texts, refused};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record;
use crate::text::{escape, escape_str};

/// Examples kept of each change.
const EXAMPLES: usize = 3;
/// Marks a built-in policy instead of a file.
const PROFILE: &str = "profile:";

/// Arguments of `policy diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The policy now: FILE, FILE,FILE in the daemon's order, or profile:NAME
    #[arg(value_name = "OLD", required_unless_present = "recorded", requires = "new")]
    pub old: Option<String>,
    /// The policy that may come
    #[arg(value_name = "NEW")]
    pub new: Option<String>,
    /// Compare this policy with the recorded verdicts instead
    #[arg(long, value_name = "NEW", conflicts_with = "old")]
    pub recorded: Option<String>,
    /// Which recorded execs
    #[command(flatten)]
    pub of: RecordedArgs,
}

/// `guardctl policy diff`.
pub async fn run(args: &DiffArgs, config: &Config, out: &Out) -> Result<()> {
    let new = args.recorded.as_deref().or(args.new.as_deref()).unwrap_or_default();
    let (old, new) = (args.old.as_deref().map(load).transpose()?, load(new)?);
    let recorded = Recorded::read(&args.of, config).await?;
    let diff = Diff::of(old.as_ref(), &new, &recorded, args.of.home.as_deref());
    if out.is_json() {
        out.json(&diff.json())?;
    } else {
        out.print(&diff.text())?;
    }
    diff.answer()
}

fn load(named: &str) -> Result<Policy> {
    if let Some(name) = named.strip_prefix(PROFILE) {
        let text = format!("version: 1\nextends: {name}\n");
        return Policy::load(&[guard_policy::Source { name: named, text: &text }]).map_err(|e| refused(&e));
    }
    let files: Vec<PathBuf> = named.split(',').map(PathBuf::from).collect();
    Policy::load(&Texts::read(&files)?.sources()).map_err(|e| refused(&e))
}

/// What is compared of a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    tier: Tier,
    risk: u32,
    rule: String,
}

/// Execs that change alike. Ordered by what matters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    weight: u8,
    from: Tier,
    to: Tier,
    program: Vec<u8>,
    old_rule: String,
    new_rule: String,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    count: usize,
    /// Lowest and highest risk, before and after.
    risk: [u32; 4],
    /// Leaf, command, and facts that were missing.
    examples: Vec<(u64, String, Vec<&'static str>)>,
}

/// The comparison.
#[derive(Debug, Default)]
struct Diff {
    records: usize,
    same: usize,
    changes: BTreeMap<Change, Seen>,
    not_replayed: BTreeMap<&'static str, usize>,
    missing: BTreeMap<&'static str, usize>,
    /// Records of the old policy itself, and how many of them it now judges otherwise than was recorded.
    of_old: usize,
    disagree: usize,
}

impl Diff {
    fn of(old: Option<&Policy>, new: &Policy, recorded: &Recorded, home: Option<&str>) -> Diff {
        let mut diff = Diff::default();
        let digest = old.map(Policy::digest);
        for exec in recorded.execs() {
            diff.records += 1;
            let done = match &exec {
                Ok(exec) => diff.add(old, digest.as_deref(), new, exec, home),
                Err(_) => Err("the record holds no facts or no verdict"),
            };
            if let Err(why) = done {
                *diff.not_replayed.entry(why).or_default() += 1;
            }
        }
        diff
    }

    fn add(
        &mut self,
        old: Option<&Policy>,
        digest: Option<&str>,
        new: &Policy,
        exec: &Judged<'_>,
        home: Option<&str>,
    ) -> Result<(), &'static str> {
        let replay = Replay::of(exec.facts, exec.verdict, Beside { workspace: exec.workspace, home })?;
        let then = of_record(exec.verdict);
        let before = match old {
            Some(old) => of_verdict(&replay.judge(old)),
            None => then.clone().ok_or("the record holds no tier")?,
        };
        if digest == Some(exec.verdict.policy_digest.as_str()) {
            self.of_old += 1;
            self.disagree += usize::from(then.is_none_or(|t| t.tier != before.tier));
        }
        for what in &replay.missing {
            *self.missing.entry(what).or_default() += 1;
        }
        let after = of_verdict(&replay.judge(new));
        if (before.tier, before.risk) == (after.tier, after.risk) {
            self.same += 1;
        } else {
            self.change(exec, before, after, replay.missing);
        }
        Ok(())
    }

    fn change(&mut self, exec: &Judged<'_>, before: Said, after: Said, missing: Vec<&'static str>) {
        let program = exec.facts.files.first().map(|f| f.path.clone());
        let change = Change {
            weight: weight(before.tier, after.tier),
            from: before.tier,
            to: after.tier,
            program: program.unwrap_or_default(),
            old_rule: before.rule,
            new_rule: after.rule,
        };
        let seen = self
            .changes
            .entry(change)
            .or_insert_with(|| Seen { risk: [before.risk, before.risk, after.risk, after.risk], ..Seen::default() });
        let [low, high, new_low, new_high] = seen.risk;
        seen.risk = [low.min(before.risk), high.max(before.risk), new_low.min(after.risk), new_high.max(after.risk)];
        seen.count += 1;
        if seen.examples.len() < EXAMPLES {
            seen.examples.push((exec.leaf, record::command(exec.facts), missing));
        }
    }

    /// Counts by kind of change, and the changes of each kind with the most frequent first.
    fn ordered(&self) -> Vec<(&Change, &Seen)> {
        let mut all: Vec<_> = self.changes.iter().collect();
        all.sort_by_key(|(change, seen)| (change.weight, std::cmp::Reverse(seen.count)));
        all
    }

    fn totals(&self) -> BTreeMap<(u8, Tier, Tier), usize> {
        let mut totals = BTreeMap::new();
        for (change, seen) in &self.changes {
            *totals.entry((change.weight, change.from, change.to)).or_default() += seen.count;
        }
        totals
    }

    fn changed(&self) -> usize {
        self.changes.values().map(|seen| seen.count).sum()
    }

    fn unreplayed(&self) -> usize {
        self.not_replayed.values().sum()
    }

    fn answer(&self) -> Result<()> {
        if self.records == 0 {
            return Err(CliError::new(Exit::No, "no recorded exec was found, so nothing was compared")
                .hint("look at --since, --until, --session and --agent"));
        }
        match (self.changed(), self.unreplayed()) {
            (0, 0) => Ok(()),
            (0, n) => {
                Err(CliError::new(Exit::No, format_args!("nothing changes, but {n} records could not be replayed")))
            }
            (n, _) => Err(CliError::new(
                Exit::No,
                format_args!("{n} of {} recorded execs are judged otherwise", self.records),
            )),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (change, seen) in self.ordered() {
            text += &format!("{:6}  {}  {}\n", seen.count, kind(change.from, change.to), escape(&change.program));
            text += &format!("        rule {} -> {}", escape_str(&change.old_rule), escape_str(&change.new_rule));
            let [low, high, new_low, new_high] = seen.risk;
            text += &format!(", risk {} -> {}\n", range(low, high), range(new_low, new_high));
            for (leaf, command, missing) in &seen.examples {
                // The command is quoted and escaped already.
                text += &format!("        leaf {leaf}: {command}\n");
                for what in missing {
                    text += &format!("          not recorded: {what}\n");
                }
            }
        }
        for ((_, from, to), count) in self.totals() {
            text += &format!("{count:6}  {}\n", kind(from, to));
        }
        text += &format!("{:6}  the same, of {} recorded execs\n", self.same, self.records);
        for (why, count) in &self.not_replayed {
            text += &format!("{count:6}  not replayed: {why}\n");
        }
        for (what, count) in &self.missing {
            text += &format!("{count:6}  replayed without: {what}\n");
        }
        if self.of_old > 0 {
            let (of, wrong) = (self.of_old, self.disagree);
            text += &format!("{of:6}  were judged by OLD itself; replayed, {wrong} of them get another tier\n");
        }
        text
    }

    fn json(&self) -> Value {
        let change = |(change, seen): (&Change, &Seen)| {
            let examples = seen
                .examples
                .iter()
                .map(|(leaf, command, missing)| json!({"leaf": leaf, "command": command, "missing": missing}));
            let [low, high, new_low, new_high] = seen.risk;
            json!({"from": change.from.as_str(), "to": change.to.as_str(), "program": record::text_value(&change.program),
                "old_rule": change.old_rule, "new_rule": change.new_rule, "count": seen.count,
                "old_risk": [low, high], "new_risk": [new_low, new_high], "examples": examples.collect::<Vec<_>>()})
        };
        let totals = self.totals().into_iter();
        let totals = totals.map(|((_, from, to), n)| json!({"from": from.as_str(), "to": to.as_str(), "count": n}));
        json!({"records": self.records, "same": self.same, "changed": self.changed(),
            "totals": totals.collect::<Vec<_>>(),
            "changes": self.ordered().into_iter().map(change).collect::<Vec<_>>(),
            "not_replayed": self.not_replayed, "missing": self.missing,
            "judged_by_old": self.of_old, "disagree": self.disagree})
    }
}

/// What would newly run first, then what would newly be asked for instead of denied, then what would no longer run.
fn weight(from: Tier, to: Tier) -> u8 {
    match (from, to) {
        (Tier::Deny, Tier::Allow) => 0,
        (Tier::Review, Tier::Allow) => 1,
        (Tier::Deny, Tier::Review) => 2,
        (Tier::Allow, Tier::Deny) => 3,
        (Tier::Review, Tier::Deny) => 4,
        (Tier::Allow, Tier::Review) => 5,
        (Tier::Allow, Tier::Allow) | (Tier::Review, Tier::Review) | (Tier::Deny, Tier::Deny) => 6,
    }
}

fn kind(from: Tier, to: Tier) -> String {
    if from == to { format!("{from}, other risk") } else { format!("{from} -> {to}") }
}

fn range(low: u32, high: u32) -> String {
    if low == high { low.to_string() } else { format!("{low}-{high}") }
}

fn of_verdict(verdict: &guard_policy::Verdict) -> Said {
    let rule = verdict.reasons.first().map(|r| r.rule_id.clone()).unwrap_or_default();
    Said { tier: verdict.tier, risk: u32::from(verdict.risk), rule }
}

fn of_record(verdict: &v1::Verdict) -> Option<Said> {
    let tier = match verdict.tier() {
        v1::Tier::Unspecified => return None,
        v1::Tier::Allow => Tier::Allow,
        v1::Tier::Review => Tier::Review,
        v1::Tier::Deny => Tier::Deny,
    };
    let rule = verdict.reasons.first().map(|r| r.rule_id.clone()).unwrap_or_default();
    // What was new then is not known of a replay.
    Some(Said { tier, risk: verdict.risk.saturating_sub(verdict.novelty), rule })
}

#[cfg(test)]
mod tests;
