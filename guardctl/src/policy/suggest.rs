//! `guardctl policy suggest`: allow rules that what people approved asks for, as a policy file to be read and then used.
//!
//! A rule is proposed only where nothing but a missing rule asked for a person, and names program, subcommand, flags and arguments as
//! they were seen. Each is then judged against all recorded execs: what it would have allowed besides is said, and what would
//! let run what a person denied is not proposed. It must not learn from what an approval of another exec covered, and must
//! leave out nothing silently. Fails: exit code 1 when nothing can be proposed, 78 when a file is no policy.

mod rule;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use guard_policy::{Policy, Source, Tier, Verdict};
use serde_json::{Value, json};

use super::recorded::{Judged, Outcome, Recorded, RecordedArgs};
use super::replay::{Beside, Replay};
use super::{Texts, refused};
use crate::args::PolicyArgs;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record;
use rule::{NAME, Shape};

/// The reason of an exec that only lacks a rule.
const NO_RULE: &str = "builtin.no-rule";
/// The reason that only says what the risk is made of.
const RISK: &str = "builtin.risk";
/// Commands shown with each rule.
const EXAMPLES: usize = 3;

/// Arguments of `policy suggest`.
#[derive(Debug, Args)]
pub struct SuggestArgs {
    /// The policy that rules are proposed for
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Propose a rule from so many approvals on
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub min: u32,
    /// Leave out what has a higher risk
    #[arg(long, value_name = "0-100", default_value_t = 50, value_parser = clap::value_parser!(u8).range(..=100))]
    pub max_risk: u8,
    /// Which recorded execs
    #[command(flatten)]
    pub of: RecordedArgs,
}

/// `guardctl policy suggest`.
pub async fn run(args: &SuggestArgs, config: &Config, out: &Out) -> Result<()> {
    let texts = Texts::of(&args.policy)?;
    let recorded = Recorded::read(&args.of, config).await?;
    let suggested = Suggested::of(&texts, &recorded, args)?;
    if out.is_json() {
        out.json(&suggested.json())?;
    } else {
        out.print(&suggested.text())?;
    }
    match (recorded.entries.is_empty(), suggested.rules.is_empty()) {
        (true, _) => Err(CliError::new(Exit::No, "no recorded exec was found, so nothing can be proposed")
            .hint("look at --since, --until, --session and --agent")),
        (false, true) => Err(CliError::new(Exit::No, "no rule can be proposed from these records")),
        (false, false) => Ok(()),
    }
}

/// A rule that is proposed.
#[derive(Clone, Debug, Default)]
struct Rule {
    id: String,
    acts: BTreeSet<String>,
    flags: BTreeSet<String>,
    /// Requests that a person approved, and who.
    approved: u32,
    reviewers: BTreeSet<String>,
    /// File names of the program: a description may hold for several.
    names: BTreeSet<String>,
    /// First and last of them, wall time in ns.
    when: [i64; 2],
    examples: Vec<(u64, String)>,
    /// Execs that it would have allowed besides: how many, and some of them.
    besides: u32,
    others: Vec<(u64, String)>,
    /// Execs that a person denied and that it would allow.
    against: Vec<(u64, String)>,
}

/// What is proposed, and what is not and why.
#[derive(Debug, Default)]
struct Suggested {
    records: usize,
    approved: u32,
    rules: Vec<(Shape, Rule)>,
    left: BTreeMap<String, u32>,
    /// Recorded execs that cannot be judged again: what rules would have allowed besides says nothing of them.
    unjudged: u32,
}

impl Suggested {
    fn of(texts: &Texts, recorded: &Recorded, args: &SuggestArgs) -> Result<Self> {
        let policy = Policy::load(&texts.sources()).map_err(|e| refused(&e))?;
        let home = args.of.home.as_deref();
        let mut suggested = Suggested { records: recorded.entries.len(), ..Suggested::default() };
        let mut rules: BTreeMap<Shape, Rule> = BTreeMap::new();
        for exec in recorded.execs() {
            let Ok(exec) = exec else {
                suggested.unjudged += 1;
                continue;
            };
            let Outcome::Approved(reviewer) = exec.outcome else { continue };
            suggested.approved += 1;
            match candidate(&policy, &exec, home, args.max_risk) {
                Ok((shape, acts, flags)) => {
                    let rule =
                        rules.entry(shape).or_insert_with(|| Rule { when: [exec.wall_ns; 2], ..Rule::default() });
                    rule.add(&exec, reviewer, acts, flags);
                }
                Err(why) => suggested.leave(why, 1),
            }
        }
        for (shape, rule) in rules {
            if rule.approved < args.min {
                let why = format!("approved fewer than {} times (--min)", args.min);
                suggested.leave(why, rule.approved);
            } else {
                suggested.rules.push((shape, rule));
            }
        }
        suggested.name();
        suggested.weigh(texts, recorded, home)?;
        Ok(suggested)
    }

    fn leave(&mut self, why: String, approvals: u32) {
        *self.left.entry(why).or_default() += approvals;
    }

    /// The most frequent first; ids that tell what the rule is about, each once.
    fn name(&mut self) {
        self.rules.sort_by_key(|(_, rule)| std::cmp::Reverse(rule.approved));
        let mut taken = BTreeSet::new();
        for (shape, rule) in &mut self.rules {
            let (base, mut count) = (shape.id(), 1);
            rule.id.clone_from(&base);
            while !taken.insert(rule.id.clone()) {
                count += 1;
                rule.id = format!("{base}-{count}");
            }
        }
    }

    /// Judges every recorded exec with all rules in force. A rule that would let run what a person denied, or that does not
    /// even allow what it was made from, is taken out again.
    fn weigh(&mut self, texts: &Texts, recorded: &Recorded, home: Option<&str>) -> Result<()> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let policy = with(texts, &self.file(true))?;
        let mut works = BTreeSet::new();
        for exec in recorded.execs().filter_map(Result::ok) {
            let beside = Beside { workspace: exec.workspace, home };
            let Ok(replay) = Replay::of(exec.facts, exec.verdict, beside) else {
                self.unjudged += 1;
                continue;
            };
            let verdict = replay.judge(&policy);
            for (_, rule) in self.rules.iter_mut().filter(|(_, rule)| allows(&verdict, &rule.id)) {
                let shown = (exec.leaf, record::command(exec.facts));
                match exec.outcome {
                    Outcome::Approved(_) => drop(works.insert(rule.id.clone())),
                    Outcome::Denied(_) => rule.against.push(shown),
                    Outcome::Covered => {}
                    Outcome::Other => {
                        rule.besides += 1;
                        if rule.others.len() < EXAMPLES {
                            rule.others.push(shown);
                        }
                    }
                }
            }
        }
        let (kept, out): (Vec<_>, Vec<_>) = std::mem::take(&mut self.rules)
            .into_iter()
            .partition(|(_, r)| r.against.is_empty() && works.contains(&r.id));
        self.rules = kept;
        for (_, rule) in out {
            let why = match rule.against.first() {
                Some((leaf, command)) => format!("a rule would also allow what was denied: leaf {leaf}: {command}"),
                None => "the command is inside another one: a rule for it alone changes nothing".to_owned(),
            };
            self.leave(why, rule.approved);
        }
        // What is printed has to load, whatever was taken out.
        with(texts, &self.file(true)).map(drop)
    }

    /// The policy file.
    fn file(&self, bare: bool) -> String {
        rule::file(&self.rules, bare)
    }

    fn text(&self) -> String {
        let mut text = self.file(false);
        text +=
            &format!("# {} recorded execs and requests; {} were approved by a person\n", self.records, self.approved);
        for (why, count) in &self.left {
            text += &format!("# {count} of them lead to no rule: {why}\n");
        }
        if self.unjudged > 0 {
            let count = self.unjudged;
            text +=
                &format!("# {count} records do not hold what it takes to judge them again; no count above has them\n");
        }
        text
    }

    fn json(&self) -> Value {
        let shown = |list: &[(u64, String)]| {
            list.iter().map(|(leaf, command)| json!({"leaf": leaf, "command": command})).collect::<Vec<_>>()
        };
        let rules = self.rules.iter().map(|(shape, rule)| {
            json!({"id": rule.id, "program": shape.program, "subcommand": shape.subcommand, "acts": rule.acts,
                "flags": rule.flags, "approved": rule.approved, "reviewers": rule.reviewers, "examples": shown(&rule.examples),
                "would_also_allow": rule.besides, "others": shown(&rule.others)})
        });
        json!({"records": self.records, "approved": self.approved, "rules": rules.collect::<Vec<_>>(),
            "left_out": self.left, "not_judged": self.unjudged, "policy": if self.rules.is_empty() { String::new() } else { self.file(true) }})
    }
}

impl Rule {
    fn add(&mut self, exec: &Judged<'_>, reviewer: &str, acts: BTreeSet<String>, flags: BTreeSet<String>) {
        self.approved += 1;
        self.reviewers.insert(reviewer.to_owned());
        self.names
            .extend(exec.facts.files.first().map(|file| String::from_utf8_lossy(name_of(&file.path)).into_owned()));
        self.acts.extend(acts);
        self.flags.extend(flags);
        self.when = [self.when[0].min(exec.wall_ns), self.when[1].max(exec.wall_ns)];
        if self.examples.len() < EXAMPLES {
            self.examples.push((exec.leaf, record::command(exec.facts)));
        }
    }
}

/// The policy with one more file.
fn with(texts: &Texts, file: &str) -> Result<Policy> {
    let mut sources = texts.sources();
    if sources.is_empty() {
        // Without a file the built-in policy is in force; a file alone would replace it.
        sources.push(Source { name: "default", text: "version: 1\nextends: default\n" });
    }
    sources.push(Source { name: NAME, text: file });
    Policy::load(&sources).map_err(|e| refused(&e))
}

fn allows(verdict: &Verdict, rule: &str) -> bool {
    verdict.tier == Tier::Allow && verdict.reasons.iter().any(|r| r.rule_id == rule)
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

type Candidate = (Shape, BTreeSet<String>, BTreeSet<String>);

/// What a rule for this approved exec would name; or why there can be none.
fn candidate(policy: &Policy, exec: &Judged<'_>, home: Option<&str>, max_risk: u8) -> Result<Candidate, String> {
    let beside = Beside { workspace: exec.workspace, home };
    let replay = Replay::of(exec.facts, exec.verdict, beside).map_err(str::to_owned)?;
    let verdict = replay.judge(policy);
    match verdict.tier {
        Tier::Allow => return Err("this policy allows it already".to_owned()),
        Tier::Deny => return Err("this policy denies it".to_owned()),
        Tier::Review => {}
    }
    let asked: Vec<_> = verdict.reasons.iter().filter(|r| r.tier == Tier::Review && r.rule_id != RISK).collect();
    if let Some(other) = asked.iter().find(|r| r.rule_id != NO_RULE) {
        return Err(format!("{} asks for a person whatever else is allowed: {}", other.rule_id, other.text));
    }
    if verdict.risk > max_risk {
        return Err(format!("its risk is above {max_risk} (--max-risk)"));
    }
    if verdict.risk_parts.iter().any(|p| p.kind == "lasting") {
        return Err("it cannot be taken back".to_owned());
    }
    let (Some(file), Some(workspace)) = (exec.facts.files.first(), exec.workspace) else {
        return Err("the record does not say where the session worked".to_owned());
    };
    let read = policy.read(name_of(&file.path), &exec.facts.argv).ok_or("this policy does not describe the program")?;
    let shape = Shape::of(&read, &verdict, &exec.facts.cwd, workspace)?;
    let acts = asked.iter().map(|r| r.category.clone()).collect();
    Ok((shape, acts, read.flags.into_iter().map(|(flag, _)| flag).collect()))
}
