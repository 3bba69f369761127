//! How often Sigma rules match recorded commands, and how long one takes: `sigma_measure RULES.yml… -- COMMANDS.jsonl…`, where each line
//! of the latter has an `argv`, and perhaps a `label`.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::collections::BTreeMap;
use std::time::Instant;

use guard_sigma::{Command, Level, Rules, Source};
use serde_json::Value;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let middle = args.iter().position(|arg| arg == "--").ok_or("usage: sigma_measure RULES.yml… -- COMMANDS.jsonl…")?;
    let (rules, files) = args.split_at(middle);
    let texts: Vec<String> = rules.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?;
    let sources: Vec<Source<'_>> = rules.iter().zip(&texts).map(|(name, text)| Source { name, text }).collect();
    let rules = Rules::load(&sources);
    println!("{} rules, {} set aside", rules.count(), rules.set_aside().len());
    let (mut seen, mut times) = (BTreeMap::<String, [usize; 4]>::new(), vec![]);
    for file in files.iter().skip(1) {
        for line in std::fs::read_to_string(file)?.lines() {
            let record: Value = serde_json::from_str(line)?;
            let words = record.get("argv").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
            let argv: Vec<Vec<u8>> = words.map(|word| word.as_bytes().to_vec()).collect();
            let Some(first) = argv.first() else { continue };
            let image = if first.contains(&b'/') { first.clone() } else { [b"/usr/bin/".as_slice(), first].concat() };
            let begin = Instant::now();
            let hits = rules.of(&Command::new(&image, &argv, b"/home/user/work", "user").started_by(b"/usr/bin/bash"));
            times.push(begin.elapsed());
            let label = record.get("label").and_then(Value::as_str).unwrap_or("?").to_owned();
            let row = seen.entry(label).or_default();
            let from = |level: Level| hits.first().is_some_and(|hit| hit.level >= level);
            let counts = [true, from(Level::Low), from(Level::Medium), from(Level::High)];
            row.iter_mut().zip(counts).for_each(|(count, more)| *count += usize::from(more));
        }
    }
    println!("label: commands, of them matched from low, medium, high on");
    for (label, [all, low, medium, high]) in seen {
        println!("{label}: {all}, {low}, {medium}, {high}");
    }
    times.sort();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    println!("one command: p50 {:?}, p99 {:?}", at(50), at(99));
    Ok(())
}
