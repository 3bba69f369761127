//! `guardctl policy shadow`: what a bundle in the stage `observe` or `shadow` would have denied, or asked a person about, from
//! what hosts recorded.
//!
//! It must not judge anything itself: these are the hosts' own verdicts over the whole facts. Fails: exit code 1 when no
//! record was judged in one of those stages.

use std::collections::{BTreeMap, BTreeSet};

use guard_proto::v1::Tier;
use serde_json::{Value, json};

use super::recorded::{Judged, Recorded, RecordedArgs};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record::{command, tier_word};
use crate::text::escape_str;

/// Without --since, --until or --session.
const SINCE: &str = "7d";
/// Commands shown of each kind.
const EXAMPLES: usize = 3;

/// Execs of one kind: what the bundle says, what held, which rule, which program.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    /// Denials first.
    would: std::cmp::Reverse<i32>,
    was: i32,
    stage: &'static str,
    rule: String,
    program: String,
}

#[derive(Debug, Default)]
struct Seen<'a> {
    count: usize,
    agents: BTreeSet<&'a str>,
    sessions: BTreeSet<&'a str>,
    /// Leaf and command.
    examples: Vec<(u64, String)>,
}

/// What would have been otherwise.
#[derive(Debug, Default)]
struct Report<'a> {
    /// Execs by serial number and stage.
    bundles: BTreeMap<(u64, &'static str), usize>,
    same: usize,
    kinds: BTreeMap<Kind, Seen<'a>>,
}

impl<'a> Report<'a> {
    fn of(recorded: &'a Recorded) -> Self {
        let mut report = Self::default();
        for exec in recorded.execs().flatten() {
            report.add(&exec);
        }
        report
    }

    fn add(&mut self, exec: &Judged<'a>) {
        let allow = i32::from(Tier::Allow);
        let (serial, stage, was, would, rule) = match (&exec.verdict.shadow, exec.observed_by) {
            (_, serial) if serial > 0 => {
                let rule = exec.verdict.reasons.first().map(|r| r.rule_id.as_str()).unwrap_or_default();
                let was = if exec.not_enforced { allow } else { exec.verdict.tier };
                (serial, "observe", was, exec.verdict.tier, rule)
            }
            (Some(shadow), _) => (shadow.serial, "shadow", exec.verdict.tier, shadow.tier, shadow.rule_id.as_str()),
            (None, _) => return,
        };
        *self.bundles.entry((serial, stage)).or_default() += 1;
        if was == would {
            self.same += 1;
            return;
        }
        let path = exec.facts.files.first().map(|f| f.path.as_slice()).unwrap_or_default();
        let program = String::from_utf8_lossy(path.rsplit(|b| *b == b'/').next().unwrap_or_default()).into_owned();
        let kind = Kind { would: std::cmp::Reverse(would), was, stage, rule: rule.to_owned(), program };
        let seen = self.kinds.entry(kind).or_default();
        seen.count += 1;
        seen.agents.insert(exec.agent);
        seen.sessions.insert(exec.session);
        if seen.examples.len() < EXAMPLES {
            seen.examples.push((exec.leaf, command(exec.facts)));
        }
    }

    /// The strictest first, and of those the most frequent.
    fn ordered(&self) -> Vec<(&Kind, &Seen<'a>)> {
        let mut all: Vec<_> = self.kinds.iter().collect();
        all.sort_by_key(|(kind, seen)| (kind.would, std::cmp::Reverse(seen.count)));
        all
    }

    /// How many would have had this tier, and had not.
    fn would(&self, tier: Tier) -> usize {
        self.kinds.iter().filter(|(kind, _)| kind.would.0 == i32::from(tier)).map(|(_, seen)| seen.count).sum()
    }

    fn json(&self) -> Value {
        let bundles =
            self.bundles.iter().map(|((serial, stage), n)| json!({"serial": serial, "stage": stage, "execs": n}));
        let changes = self.ordered().into_iter().map(|(kind, seen)| {
            let examples = seen.examples.iter().map(|(leaf, text)| json!({"leaf": leaf, "command": text}));
            json!({"stage": kind.stage, "tier": tier_word(kind.was), "shadow_tier": tier_word(kind.would.0),
                "rule": kind.rule, "program": kind.program, "count": seen.count, "agents": seen.agents,
                "sessions": seen.sessions.len(), "examples": examples.collect::<Vec<_>>()})
        });
        json!({"bundles": bundles.collect::<Vec<_>>(), "same": self.same,
            "would_deny": self.would(Tier::Deny), "would_review": self.would(Tier::Review),
            "would_allow": self.would(Tier::Allow), "changes": changes.collect::<Vec<_>>()})
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for ((serial, stage), count) in &self.bundles {
            text.push_str(&format!("{count} execs judged by bundle {serial} in the stage {stage}\n"));
        }
        text.push_str(&format!(
            "would have been denied: {}   asked a person: {}   run unasked: {}   the same: {}\n",
            self.would(Tier::Deny),
            self.would(Tier::Review),
            self.would(Tier::Allow),
            self.same
        ));
        let mut last = None;
        for (kind, seen) in self.ordered() {
            if last.replace(kind.would.0) != Some(kind.would.0) {
                text.push_str(&format!("\n{}\n", tier_word(kind.would.0).to_uppercase()));
            }
            let was = match kind.stage {
                "observe" => "ran".to_owned(),
                _ => format!("was {}", tier_word(kind.was)),
            };
            let agents: Vec<String> = seen.agents.iter().map(|agent| escape_str(agent)).collect();
            text.push_str(&format!(
                "{:>6}  {} by {}, {was}; {} in {} sessions\n",
                seen.count,
                escape_str(&kind.program),
                escape_str(&kind.rule),
                agents.join(", "),
                seen.sessions.len()
            ));
            for (leaf, command) in &seen.examples {
                text.push_str(&format!("        leaf {leaf}: {command}\n"));
            }
        }
        text
    }
}

/// `guardctl policy shadow`.
pub async fn run(args: &RecordedArgs, config: &Config, out: &Out) -> Result<()> {
    let mut args = args.clone();
    if args.since.is_none() && args.until.is_none() && args.session.is_empty() {
        args.since = Some(SINCE.to_owned());
    }
    let recorded = Recorded::read(&args, config).await?;
    let report = Report::of(&recorded);
    if report.bundles.is_empty() {
        return Err(CliError::new(Exit::No, "no recorded exec was judged in the stage observe or shadow").hint(
            "publish a bundle with `guardctl policy sign --stage AGENT=shadow`; look at --since (without it: 7d) and --agent",
        ));
    }
    if out.is_json() { out.json(&report.json()) } else { out.print(&report.text()) }
}

#[cfg(test)]
mod tests {
    use guard_proto::v1::record_body::Body;
    use guard_proto::v1::{Exec, Identity, Reason, Shadow, Verdict};

    use super::*;
    use crate::record::Entry;
    use crate::testing::ran;

    fn verdict(tier: Tier, rule: &str) -> Verdict {
        let reasons = vec![Reason { rule_id: rule.into(), ..Reason::default() }];
        Verdict { tier: tier.into(), reasons, ..Verdict::default() }
    }

    fn exec(argv: &[&str], verdict: Verdict) -> Exec {
        let identity = Identity { agent: "coder".into(), ..Identity::default() };
        Exec { identity: Some(identity), facts: Some(ran(argv)), verdict: Some(verdict), ..Exec::default() }
    }

    fn observed(argv: &[&str], tier: Tier, not_enforced: bool) -> Exec {
        Exec { observed_by: 8, not_enforced, ..exec(argv, verdict(tier, "own.rule")) }
    }

    fn shadowed(argv: &[&str], tier: Tier, shadow: Tier) -> Exec {
        let shadow = Shadow { tier: shadow.into(), rule_id: "own.other".into(), serial: 7, ..Shadow::default() };
        exec(argv, Verdict { shadow: Some(shadow), ..verdict(tier, "own.rule") })
    }

    #[test]
    fn what_would_have_been_denied_comes_first_and_what_was_denied_is_the_same() {
        let execs = [
            exec(&["ls"], verdict(Tier::Deny, "no stage at all")),
            shadowed(&["ls"], Tier::Allow, Tier::Allow),
            shadowed(&["git", "push"], Tier::Deny, Tier::Review),
            shadowed(&["rm", "a"], Tier::Allow, Tier::Deny),
            observed(&["ls"], Tier::Allow, false),
            observed(&["rm", "b"], Tier::Deny, true),
            observed(&["rm", "c"], Tier::Deny, true),
            observed(&["cat", "/etc/shadow"], Tier::Deny, false),
            observed(&["make"], Tier::Review, true),
        ];
        let mut recorded = Recorded::default();
        for (leaf, exec) in (0..).zip(execs) {
            recorded.take(Entry::for_test(leaf, 1, "s", 5, Some(Body::Exec(exec))), &|_| true).unwrap();
        }
        let report = Report::of(&recorded);
        assert_eq!((report.would(Tier::Deny), report.would(Tier::Review), report.would(Tier::Allow)), (3, 2, 0));
        assert_eq!(report.same, 3);
        insta::assert_snapshot!(report.text());
        insta::assert_snapshot!(crate::testing::pretty(&report.json()));
    }
}
