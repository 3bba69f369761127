//! `guardctl policy`: loads, tests, checks, explains, compares and proposes policy files, without a daemon.
//!
//! It must not change anything, and what it says of a command is what the daemon would say of the same facts. Fails: 1 when
//! an example does not hold or a rule is odd, 78 when a file is no policy, with the place.

mod bundle;
mod diff;
mod recorded;
mod replay;
mod shadow;
mod suggest;

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use guard_policy::corpus::{Corpus, Report};
use guard_policy::{Facts, FileRef, Policy, Role, Source, Stdin, Tier, Verdict};
use serde_json::{Value, json};

use crate::args::{PolicyArgs, PolicyCommand};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::table::Tone;
use crate::text::escape_str;
pub use bundle::{BundleArgs, SignArgs};
pub use diff::DiffArgs;
pub use recorded::RecordedArgs;
pub use suggest::SuggestArgs;

/// Home of the user that commands are judged for.
const HOME: &str = "/home/user";

/// `guardctl policy`.
pub async fn run(command: &PolicyCommand, config: &Config, out: &Out) -> Result<()> {
    match command {
        PolicyCommand::Test { files } => test(files, out),
        PolicyCommand::Lint { files } => lint(files, out),
        PolicyCommand::Explain { of, cwd, env, command } => {
            let argv: Vec<Vec<u8>> = command.iter().map(|w| w.as_bytes().to_vec()).collect();
            explain(&load(of)?, &argv, cwd, env, out)
        }
        PolicyCommand::Try { of, corpus } => attempt(&load(of)?, corpus, out),
        PolicyCommand::Diff(args) => diff::run(args, config, out).await,
        PolicyCommand::Suggest(args) => suggest::run(args, config, out).await,
        PolicyCommand::Sign(args) => bundle::sign(args, out),
        PolicyCommand::Bundle(args) => bundle::show(args, config, out).await,
        PolicyCommand::Publish { file } => bundle::publish(file, config, out).await,
        PolicyCommand::Shadow(args) => shadow::run(args, config, out).await,
        PolicyCommand::Schema => out.print(&format!("{:#}\n", guard_policy::schema())),
    }
}

struct Texts(Vec<(String, String)>);

impl Texts {
    fn read(files: &[PathBuf]) -> Result<Self> {
        let one = |path: &PathBuf| {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|e| CliError::new(Exit::Config, format_args!("{name}: {e}")).hint("name a policy file"))?;
            Ok((name, text))
        };
        files.iter().map(one).collect::<Result<_>>().map(Self)
    }

    fn of(policy: &PolicyArgs) -> Result<Self> {
        match &policy.profile {
            Some(name) => Ok(Self(vec![("--profile".to_owned(), format!("version: 1\nextends: {name}\n"))])),
            None => Self::read(&policy.files),
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.0.iter().map(|(name, text)| Source { name, text }).collect()
    }
}

fn refused(error: &guard_policy::PolicyError) -> CliError {
    CliError::new(Exit::Config, error)
}

fn load(of: &PolicyArgs) -> Result<Policy> {
    Policy::load(&Texts::of(of)?.sources()).map_err(|e| refused(&e))
}

fn test(files: &[PathBuf], out: &Out) -> Result<()> {
    let texts = Texts::read(files)?;
    let sources = texts.sources();
    // Rules carry `match` and `not_match`, which loading checks.
    let policy = Policy::load(&sources).map_err(|e| refused(&e))?;
    let (mut count, mut unmet) = (0, Vec::new());
    for source in &sources {
        let (more, wrong) = policy.test(source).map_err(|e| refused(&e))?;
        count += more;
        unmet.extend(wrong);
    }
    if out.is_json() {
        let wrong = unmet.iter().map(|u| {
            json!({"place": u.place, "command": u.command, "expected": u.expected.as_str(),
                   "verdict": u.verdict.as_ref().map(verdict_json)})
        });
        out.json(&json!({"rules": policy.rule_count(), "examples": count, "unmet": wrong.collect::<Vec<_>>()}))?;
    } else {
        for one in &unmet {
            let said = one.verdict.as_ref().map_or("no command", |v| v.tier.as_str());
            let why =
                one.verdict.as_ref().and_then(|v| v.reasons.first()).map(|r| r.rule_id.as_str()).unwrap_or_default();
            let line = format!("{}: `{}` is {said} ({why}), not {}\n", one.place, one.command, one.expected);
            out.print(&escape_lines(&line))?;
        }
        out.print(&format!("{} rules in force, {count} examples, {} do not hold\n", policy.rule_count(), unmet.len()))?;
    }
    if unmet.is_empty() { Ok(()) } else { Err(CliError::new(Exit::No, "examples that do not hold")) }
}

fn lint(files: &[PathBuf], out: &Out) -> Result<()> {
    let policy = Policy::load(&Texts::read(files)?.sources()).map_err(|e| refused(&e))?;
    let found = policy.lint();
    if out.is_json() {
        let all: Vec<Value> = found.iter().map(|l| json!({"rule": l.rule, "kind": l.kind, "text": l.text})).collect();
        out.json(&json!({"rules": policy.rule_count(), "findings": all}))?;
    } else {
        for one in &found {
            out.print(&escape_lines(&format!("{}: {}: {}\n", one.rule, one.kind, one.text)))?;
        }
        out.print(&format!("{} rules, {} findings\n", policy.rule_count(), found.len()))?;
    }
    if found.is_empty() { Ok(()) } else { Err(CliError::new(Exit::No, "rules that are odd")) }
}

fn explain(policy: &Policy, argv: &[Vec<u8>], cwd: &str, env: &[String], out: &Out) -> Result<()> {
    let first = argv.first().cloned().unwrap_or_default();
    let path = if first.contains(&b'/') { first.clone() } else { [b"/usr/bin/".as_slice(), &first].concat() };
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let env: Vec<Vec<u8>> = env.iter().map(|entry| entry.clone().into_bytes()).collect();
    let writable = !path.starts_with(b"/") || path.starts_with(b"/home/") || path.starts_with(b"/tmp/");
    let files = [FileRef { path: &path, role: Role::Program, session_writable: writable, foreign: false }];
    let verdict = policy.decide(&Facts {
        argv,
        files: &files,
        cwd: cwd.as_bytes(),
        home: HOME.as_bytes(),
        workspace: cwd.as_bytes(),
        uid: 1000,
        env: &env,
        stdin: Stdin::Null,
        entry: false,
    });
    let read = policy.read(&name, argv);
    if out.is_json() {
        let read = read.map(|r| {
            json!({"program": r.program, "subcommand": r.subcommand, "flags": r.flags, "operands": r.operands, "unknown": r.unknown})
        });
        return out.json(&json!({"verdict": verdict_json(&verdict), "read": read}));
    }
    let mut text = format!("{}  {}  risk {}\n", paint(out, verdict.tier), verdict.category, verdict.risk);
    match read {
        Some(read) => {
            text += &format!("program     {} {}\n", read.program, escape_str(&read.subcommand));
            for (flag, value) in &read.flags {
                text += &format!("  flag      {flag} {}\n", escape_str(value.as_deref().unwrap_or_default()));
            }
            for operand in &read.operands {
                text += &format!("  operand   {}\n", escape_str(operand));
            }
            for word in &read.unknown {
                text += &format!("  unknown   {}\n", escape_str(word));
            }
        }
        None => text += "program     not described by this policy\n",
    }
    for target in &verdict.targets {
        text += &format!("target      {}\n", escape_str(target));
    }
    for part in &verdict.risk_parts {
        text += &format!("risk        {:3} {}: {}\n", part.points, part.kind, escape_str(&part.why));
    }
    for reason in verdict.reasons.iter().filter(|r| r.rule_id != "builtin.risk") {
        let on = if reason.evidence.is_empty() { String::new() } else { format!(": {}", escape_str(&reason.evidence)) };
        text += &format!("{}  {} ({}){on}\n", paint(out, reason.tier), reason.rule_id, reason.category);
        text += &format!("            {}\n", escape_str(&reason.text));
    }
    out.print(&text)
}

fn paint(out: &Out, tier: Tier) -> String {
    let tone = match tier {
        Tier::Allow => Tone::Good,
        Tier::Review => Tone::Warn,
        Tier::Deny => Tone::Bad,
    };
    out.paint(tone, &format!("{:10}", tier.as_str()))
}

fn verdict_json(verdict: &Verdict) -> Value {
    let reasons: Vec<Value> = verdict
        .reasons
        .iter()
        .map(|r| {
            json!({"rule": r.rule_id, "tier": r.tier.as_str(), "category": r.category, "text": r.text, "evidence": r.evidence})
        })
        .collect();
    let parts: Vec<Value> =
        verdict.risk_parts.iter().map(|p| json!({"kind": p.kind, "points": p.points, "why": p.why})).collect();
    json!({"tier": verdict.tier.as_str(), "category": verdict.category, "risk": verdict.risk, "risk_parts": parts,
           "reasons": reasons, "targets": verdict.targets, "env_notable": verdict.env_notable})
}

fn attempt(policy: &Policy, place: &Path, out: &Out) -> Result<()> {
    let report = Report::of(policy, &read_corpus(place)?);
    if out.is_json() {
        return out.json(&report);
    }
    for odd in &report.odd {
        out.print(&escape_lines(&format!("left out {}: {}\n", odd.place, odd.why)))?;
    }
    out.print("  lines   allow  review    deny   wrong  file, source\n")?;
    for row in &report.rows {
        let apart = if row.scored { "" } else { " (not scored)" };
        let line = format!(
            "{:7} {:7} {:7} {:7} {:7}  {}{apart}, {}\n",
            row.lines, row.allow, row.review, row.deny, row.wrong, row.file, row.source
        );
        out.print(&escape_lines(&line))?;
    }
    Ok(())
}

fn read_corpus(place: &Path) -> Result<Corpus> {
    let list = |e: std::fs::ReadDir| e.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let entries = place.is_dir().then(|| std::fs::read_dir(place).map(list)).transpose();
    let entries = entries.map_err(|e| CliError::new(Exit::Usage, format_args!("{}: {e}", place.display())))?;
    Corpus::gather(place, entries, |path| std::fs::read(path)).map_err(|why| {
        CliError::new(Exit::Usage, why).hint("give JSON lines with `shell` or `argv`, or a folder of .jsonl files")
    })
}

/// Escapes a line, its own line feed aside.
fn escape_lines(line: &str) -> String {
    format!("{}\n", escape_str(line.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use guard_policy::Policy;

    fn shipped() -> Vec<PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut found = vec![root.join("deploy/policy.example.yaml"), root.join("guard-policy/src/default.yaml")];
        for folder in ["guard-policy/programs", "guard-policy/profiles"] {
            found.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|e| e.unwrap().path()));
        }
        found
    }

    #[test]
    fn the_shipped_schema_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policy.schema.json");
        let wanted = format!("{:#}\n", guard_policy::schema());
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == wanted, "write it again: `guardctl policy schema > deploy/policy.schema.json`");
    }

    #[test]
    fn shipped_policies_fit_the_schema_and_others_do_not() {
        let schema = jsonschema::validator_for(&guard_policy::schema()).unwrap();
        let parse = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap();
        let files = shipped();
        assert!(files.len() > 20);
        for path in files {
            let value = parse(&std::fs::read_to_string(&path).unwrap());
            let wrong: Vec<String> = schema.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path)).collect();
            assert!(wrong.is_empty(), "{}: {}", path.display(), wrong.join("\n"));
        }
        for bad in [
            "version: 1\nrulez: []\n",
            "version: 1\nrules: [{id: a}]\n",
            "rules: []\n",
            "version: 1\nextends: nothing\n",
        ] {
            assert!(!schema.is_valid(&parse(bad)), "{bad}");
        }
    }

    #[test]
    fn a_corpus_without_commands_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(super::read_corpus(folder.path()).is_err());
        let file = folder.path().join("one.jsonl");
        std::fs::write(&file, "no JSON\n").unwrap();
        assert!(super::read_corpus(&file).is_err());
        std::fs::write(&file, "{\"shell\": \"ls\"}\n").unwrap();
        assert!(super::read_corpus(&file).is_ok());
    }

    #[test]
    fn the_example_policy_has_nothing_odd() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policy.example.yaml");
        let texts = super::Texts::read(&[path]).unwrap();
        let policy = Policy::load(&texts.sources()).unwrap();
        assert_eq!(policy.lint(), []);
    }
}
