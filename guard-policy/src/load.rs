//! From policy text to a [`Policy`], all or nothing. Every refusal names file, line, column and the cure.
//!
//! Refused: unknown keys, versions, categories, sets, programs and flags; duplicate ids; rules that can never match;
//! examples that do not hold; anything beyond the limits.

mod node;
mod rule;

use std::collections::{HashMap, HashSet};

use serde_saphyr::Location;

use crate::placed::Placed;
use sha2::{Digest, Sha256};

use crate::error::PolicyError;
use crate::examples::{Example, Unmet};
use crate::glob::Glob;
use crate::model::{Category, Critical, Environment, Harmless, LIMITS, Policy};
use crate::paths::{PathPattern, PathSet};
use crate::raw::{RawEnvironment, RawPathSet, RawPolicy};
use crate::{Source, builtin, examples};

/// What is in force without any file.
const DEFAULT_NAME: &str = "no files";
const DEFAULT_TEXT: &str = "version: 1\nextends: default\n";

/// Names the file of an error.
#[derive(Clone, Copy)]
struct At<'a> {
    file: &'a str,
}

struct Parsed<'a> {
    at: At<'a>,
    raw: RawPolicy,
}

impl Policy {
    /// Loads a policy from its sources, all or nothing. An empty slice is the built-in default.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with file, line, column and what to do.
    pub fn load(sources: &[Source<'_>]) -> Result<Self, PolicyError> {
        if sources.len() > LIMITS.sources {
            let at = At { file: "policy" };
            return Err(at.whole(format!("{} files", sources.len()), "join files: at most 64 are read"));
        }
        let default = [Source { name: DEFAULT_NAME, text: DEFAULT_TEXT }];
        let own = if sources.is_empty() { default.as_slice() } else { sources };
        let mut parsed = Vec::new();
        let mut seen = HashSet::new();
        let mut digest = Sha256::new();
        for source in own {
            let file = parse(source)?;
            file.bases(&mut parsed, &mut seen, &mut digest, 0)?;
            absorb(&mut digest, source);
            parsed.push(file);
        }
        build(&parsed, hex::encode(digest.finalize()))
    }
}

impl Policy {
    /// Judges the `examples` of `source` by this policy: how many there are, and those that do not hold.
    ///
    /// # Errors
    ///
    /// The text is no policy.
    pub fn test(&self, source: &Source<'_>) -> Result<(usize, Vec<Unmet>), PolicyError> {
        let file = parse(source)?;
        Ok(examples::test(self, source.name, &file.raw.examples))
    }

    /// The commands that a source gives as examples of a tier.
    ///
    /// # Errors
    ///
    /// The text is no policy.
    pub fn examples(source: &Source<'_>) -> Result<Vec<Example>, PolicyError> {
        let file = parse(source)?;
        Ok(examples::all(&file.raw.examples))
    }

    /// The built-in files: the default's rules, what programs do, and profiles.
    pub fn built_in() -> impl Iterator<Item = &'static Source<'static>> {
        builtin::all()
    }
}

/// Lengths first, so that no two sets of sources give the same bytes.
fn absorb(digest: &mut Sha256, source: &Source<'_>) {
    for part in [source.name, source.text] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
}

fn parse<'a>(source: &Source<'a>) -> Result<Parsed<'a>, PolicyError> {
    let at = At { file: source.name };
    if source.text.len() > LIMITS.source_bytes {
        return Err(at.whole(format!("{} bytes of policy", source.text.len()), "split the file: at most 1 MiB is read"));
    }
    let raw: RawPolicy = serde_saphyr::from_str(source.text).map_err(|error| {
        let (line, column) = error.location().map_or((0, 0), |l| (l.line(), l.column()));
        // The library's first line holds the reason; a drawing of the source follows it.
        let text = error.without_snippet().to_string();
        let reason = text.lines().next().unwrap_or("not a policy").to_owned();
        let hint = "see docs/policy.md for the form".to_owned();
        PolicyError { file: source.name.to_owned(), line, column, reason, hint }
    })?;
    if raw.version.value != 1 {
        let reason = format!("version {} of the policy language", raw.version.value);
        return Err(at.error(&raw.version, reason, "this program reads `version: 1`"));
    }
    Ok(Parsed { at, raw })
}

fn build(files: &[Parsed<'_>], digest: String) -> Result<Policy, PolicyError> {
    let mut policy = Policy {
        digest,
        categories: HashMap::new(),
        trusted_dirs: Vec::new(),
        path_sets: HashMap::new(),
        environment: Vec::new(),
        recorded: Vec::new(),
        nodes: Vec::new(),
        by_name: HashMap::new(),
        by_pattern: Vec::new(),
        rules: Vec::new(),
        targets: Vec::new(),
    };
    for file in files {
        file.declare(&mut policy)?;
    }
    for file in files {
        node::load(file.at, &file.raw.programs, &mut policy)?;
    }
    let without = without(files)?;
    for file in files {
        rule::load(file.at, &file.raw.rules, &without, &mut policy)?;
    }
    for file in files {
        for raw in file.raw.rules.iter().filter(|r| !without.contains(r.id.value.as_str())) {
            examples::check(&policy, raw)
                .map_err(|(span, reason)| file.at.located(span, reason, "correct the rule or its example"))?;
        }
    }
    Ok(policy)
}

fn without<'a>(files: &'a [Parsed<'_>]) -> Result<HashSet<&'a str>, PolicyError> {
    let known: HashSet<&str> = files.iter().flat_map(|f| &f.raw.rules).map(|r| r.id.value.as_str()).collect();
    let mut out = HashSet::new();
    for file in files {
        for id in &file.raw.without {
            if !known.contains(id.value.as_str()) {
                return Err(file.at.error(
                    id,
                    format!("no rule has the id `{}`", id.value),
                    "remove it from `without`",
                ));
            }
            out.insert(id.value.as_str());
        }
    }
    Ok(out)
}

// === impl Parsed ===

impl Parsed<'_> {
    /// Adds the built-in files that this one extends, those that they extend first, each once.
    fn bases(
        &self,
        out: &mut Vec<Parsed<'_>>,
        seen: &mut HashSet<&'static str>,
        digest: &mut Sha256,
        depth: usize,
    ) -> Result<(), PolicyError> {
        let Some(names) = &self.raw.extends else { return Ok(()) };
        for name in &names.value.0 {
            let Some(parts) = builtin::find(name).filter(|_| depth <= LIMITS.extends_depth) else {
                let reason = format!("nothing named `{name}` to extend");
                let hint = format!("write one of: {}", builtin::NAMES.join(", "));
                return Err(self.at.error(names, reason, &hint));
            };
            for part in parts {
                if seen.insert(part.name) {
                    let file = parse(part)?;
                    file.bases(out, seen, digest, depth + 1)?;
                    absorb(digest, part);
                    out.push(file);
                }
            }
        }
        Ok(())
    }

    fn declare(&self, policy: &mut Policy) -> Result<(), PolicyError> {
        for (name, raw) in &self.raw.categories {
            if raw.risk.value > 100 {
                return Err(self.at.error(&raw.risk, format!("risk {}", raw.risk.value), "risk is 0 to 100"));
            }
            let category =
                Category { risk: raw.risk.value, about: raw.about.clone(), lasting: raw.lasting, grant: raw.grant };
            policy.categories.insert(name.clone(), category);
        }
        for dir in &self.raw.trusted_dirs {
            if !dir.value.starts_with('/') || dir.value.ends_with('/') || dir.value.contains("..") {
                return Err(self.at.error(dir, format!("`{}` as a directory", dir.value), "write it as /usr/bin"));
            }
            policy.trusted_dirs.push(dir.value.as_bytes().to_vec());
        }
        for (name, raw) in &self.raw.path_sets {
            self.declare_set(name, raw, policy)?;
        }
        for raw in &self.raw.targets {
            if raw.risk.value > 100 {
                return Err(self.at.error(&raw.risk, format!("risk {}", raw.risk.value), "risk is 0 to 100"));
            }
            let mut names = Vec::new();
            for name in &raw.names {
                let globs = Glob::compile(&name.value);
                names.extend(globs.map_err(|why| self.at.error(name, why, "see docs/policy.md, targets"))?);
            }
            policy.targets.push(Critical { names, risk: raw.risk.value, about: raw.about.clone() });
        }
        for raw in &self.raw.environment {
            let environment = self.environment(raw)?;
            policy.environment.push(environment);
        }
        for name in &self.raw.record_environment {
            let globs = Glob::compile(&name.value);
            let wrong = |why| self.at.error(name, why, "see docs/policy.md, record_environment");
            policy.recorded.extend(globs.map_err(wrong)?);
        }
        Ok(())
    }

    fn declare_set(&self, name: &str, raw: &RawPathSet, policy: &mut Policy) -> Result<(), PolicyError> {
        let patterns = self.patterns(&raw.patterns)?;
        let except = self.patterns(&raw.except)?;
        // A later file adds to a set of the same name.
        let set = policy
            .path_sets
            .entry(name.to_owned())
            .or_insert_with(|| PathSet { patterns: Vec::new(), except: Vec::new() });
        set.patterns.extend(patterns);
        set.except.extend(except);
        Ok(())
    }

    fn patterns(&self, raw: &[Placed<String>]) -> Result<Vec<PathPattern>, PolicyError> {
        raw.iter()
            .map(|p| {
                PathPattern::compile(&p.value).map_err(|why| self.at.error(p, why, "see docs/policy.md, path sets"))
            })
            .collect()
    }

    fn environment(&self, raw: &RawEnvironment) -> Result<Environment, PolicyError> {
        let mut names = Vec::new();
        for name in &raw.names {
            names.extend(
                Glob::compile(&name.value)
                    .map_err(|why| self.at.error(name, why, "see docs/policy.md, environment"))?,
            );
        }
        let mut harmless = Vec::new();
        for value in &raw.harmless {
            let home = value.value.strip_prefix('~');
            let text = home.unwrap_or(&value.value);
            let globs = if text.is_empty() { Ok(Vec::new()) } else { Glob::compile(text) };
            let globs = globs.map_err(|why| self.at.error(value, why, "see docs/policy.md, environment"))?;
            harmless.push(Harmless { home: home.is_some(), globs });
        }
        Ok(Environment { names, programs: raw.programs.clone(), harmless })
    }
}

// === impl At ===

impl At<'_> {
    fn error<T>(&self, spanned: &Placed<T>, reason: impl Into<String>, hint: &str) -> PolicyError {
        self.located(spanned.referenced, reason.into(), hint)
    }

    fn located(&self, at: Location, reason: String, hint: &str) -> PolicyError {
        let (line, column) = (at.line(), at.column());
        PolicyError { file: self.file.to_owned(), line, column, reason, hint: hint.to_owned() }
    }

    fn whole(&self, reason: String, hint: &str) -> PolicyError {
        PolicyError { file: self.file.to_owned(), line: 0, column: 0, reason, hint: hint.to_owned() }
    }
}

/// Refuses a category that no file declares.
fn known_category(at: At<'_>, name: &Placed<String>, policy: &Policy) -> Result<String, PolicyError> {
    if policy.categories.contains_key(&name.value) {
        return Ok(name.value.clone());
    }
    Err(at.error(name, format!("no category `{}`", name.value), "declare it under `categories`"))
}
