//! `guardctl policy shadow`: what a bundle in the stage `shadow` would have changed, from what hosts recorded.
//!
//! It must not judge anything itself: these are the hosts' own verdicts over the whole facts. Fails: exit code 1 when no
//! record carries a shadow verdict.

use std::collections::BTreeMap;

use serde_json::json;

use super::recorded::{Recorded, RecordedArgs};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record::tier_word;
use crate::text::{command_line, escape_str};

/// Changes of one kind: tiers, rule; how many, and an example with its leaf.
type Changes = BTreeMap<(&'static str, &'static str, String), (u32, u64, String)>;

/// `guardctl policy shadow`.
pub async fn run(args: &RecordedArgs, config: &Config, out: &Out) -> Result<()> {
    let recorded = Recorded::read(args, config).await?;
    let (mut same, mut changes, mut serials) = (0_u32, Changes::new(), BTreeMap::<u64, u32>::new());
    for exec in recorded.execs().flatten() {
        let Some(shadow) = &exec.verdict.shadow else { continue };
        *serials.entry(shadow.serial).or_default() += 1;
        if shadow.tier == exec.verdict.tier {
            same += 1;
            continue;
        }
        let kind = (tier_word(exec.verdict.tier), tier_word(shadow.tier), shadow.rule_id.clone());
        let command = || (0, exec.leaf, command_line(&exec.facts.argv));
        changes.entry(kind).or_insert_with(command).0 += 1;
    }
    if serials.is_empty() {
        return Err(CliError::new(Exit::No, "no recorded exec carries a shadow verdict")
            .hint("publish a bundle with `guardctl policy sign --stage AGENT=shadow`; look at --since and --agent"));
    }
    let mut kinds: Vec<_> = changes.into_iter().collect();
    kinds.sort_by_key(|(_, (count, ..))| std::cmp::Reverse(*count));
    if out.is_json() {
        let changes = kinds.iter().map(|((from, to, rule), (count, leaf, command))| {
            json!({"tier": from, "shadow_tier": to, "rule": rule, "count": count, "leaf": leaf, "command": command})
        });
        let bundles = serials.iter().map(|(serial, execs)| json!({"serial": serial, "execs": execs}));
        return out.json(&json!({"bundles": bundles.collect::<Vec<_>>(), "same": same,
            "changes": changes.collect::<Vec<_>>()}));
    }
    let all: u32 = serials.values().sum();
    let names: Vec<String> = serials.keys().map(u64::to_string).collect();
    let mut text = format!("{all} execs judged by bundle {} in shadow: {same} the same\n", names.join(", "));
    for ((from, to, rule), (count, leaf, command)) in kinds {
        text.push_str(&format!("{count:>6}  {from} -> {to}  by {}, as leaf {leaf}: {command}\n", escape_str(&rule)));
    }
    out.print(&text)
}
