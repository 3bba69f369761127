//! Sigma rules beside the policy: a match adds risk and a reason, and from a set level on a person decides.
//!
//! It must never make anything run that policy would not, and a rule that cannot be used is named in the log, not dropped in
//! silence. Fails: files that cannot be read, or of which no rule can be used, leave everything as it was.

use std::path::{Path, PathBuf};

use guard_policy::{Reason, RiskPart, Tier, Verdict};
use guard_sigma::{Command, Hit, Level, Rules, Source};
use sha2::{Digest, Sha256};

use crate::config::SigmaConfig;
use crate::facts::Facts;
use crate::session::Session;

const FILE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 4096;
/// Folders inside each other.
const DEPTH_MAX: usize = 8;
/// Begins the id of a reason that a rule gave.
const PREFIX: &str = "sigma:";

/// Rules in force.
#[derive(Debug)]
pub struct Detections {
    rules: Rules,
    digest: String,
    review_from: Option<Level>,
}

/// Reads and compiles what is configured; `None` if nothing is.
pub fn load(config: &SigmaConfig) -> Result<Option<Detections>, String> {
    if config.paths.is_empty() {
        return match config.review_from {
            None => Ok(None),
            Some(_) => Err("sigma: review_from without paths: name the rules' files under `paths`".to_owned()),
        };
    }
    let mut files = Vec::new();
    for path in &config.paths {
        gather(path, 0, &mut files)?;
    }
    files.sort();
    files.dedup();
    let mut texts = Vec::with_capacity(files.len());
    let mut hasher = Sha256::new();
    for path in files {
        let failed = |e: String| format!("sigma {}: {e}", path.display());
        let bytes = crate::files::read_bounded(&path, FILE_MAX).map_err(|e| failed(e.to_string()))?;
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
        texts.push((path.display().to_string(), String::from_utf8(bytes).map_err(|e| failed(e.to_string()))?));
    }
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let rules = Rules::load(&sources);
    for aside in rules.set_aside() {
        tracing::warn!(file = aside.file, rule = aside.title, why = aside.why, "a Sigma rule is not used");
    }
    if rules.count() == 0 {
        let first = rules.set_aside().first().map(|aside| format!("; {}: {}", aside.file, aside.why));
        return Err(format!("sigma: no rule can be used in {} files{}", sources.len(), first.unwrap_or_default()));
    }
    let digest = hex::encode(hasher.finalize());
    Ok(Some(Detections { rules, digest, review_from: config.review_from }))
}

fn gather(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("sigma {}: {e}", path.display());
    if files.len() >= FILES_MAX || depth > DEPTH_MAX {
        return Err(format!("sigma {}: more than {FILES_MAX} files or {DEPTH_MAX} folders deep", path.display()));
    }
    if depth == 0 && !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let (entry, kind) = entry.and_then(|e| e.file_type().map(|kind| (e, kind))).map_err(failed)?;
        let found = entry.path();
        if kind.is_dir() {
            gather(&found, depth + 1, files)?;
        } else if found.extension().is_some_and(|e| e == "yml" || e == "yaml") {
            files.push(found);
        }
    }
    Ok(())
}

impl Detections {
    /// How many rules are in use.
    pub fn count(&self) -> u32 {
        u32::try_from(self.rules.count()).unwrap_or(u32::MAX)
    }

    /// How many rules are not.
    pub fn set_aside(&self) -> u32 {
        u32::try_from(self.rules.set_aside().len()).unwrap_or(u32::MAX)
    }

    /// What is in use and what is not, for people.
    pub fn describe(&self) -> String {
        let mut text = format!("{} rules, {} not used", self.count(), self.set_aside());
        for aside in self.rules.set_aside() {
            let title = if aside.title.is_empty() { String::new() } else { format!(" \"{}\"", aside.title) };
            text += &format!("\n       {}{title}: {}", aside.file, aside.why);
        }
        text
    }

    /// SHA-256 over the files, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What the rules say of an exec, added to what policy says. The entry process was named by its initiator.
    pub fn add(&self, session: &Session, facts: &Facts, entry: bool, said: &mut Verdict) {
        let image = facts.files.first().map(|file| file.path.as_slice()).unwrap_or_default();
        let user = match facts.task.uid {
            0 => "root".to_owned(),
            uid if uid == session.identity.initiator_uid => session.identity.initiator.clone(),
            uid => uid.to_string(),
        };
        let command = Command::new(image, &facts.argv, &facts.cwd, &user);
        let parent = facts.ancestry.first().map(|(process, _)| process.exe.as_slice()).unwrap_or_default();
        let hits = self.rules.of(&command.started_by(parent));
        for hit in &hits {
            // The record says it; a session could fill the log with matches.
            tracing::debug!(session = %session.id, rule = hit.rule, title = hit.title, level = hit.level.as_str(), "a Sigma rule matched");
        }
        add(&hits, self.review_from, entry, said);
    }
}

/// Points of the gravest match only: rules that describe the same thing would count it twice.
fn add(hits: &[Hit], review_from: Option<Level>, entry: bool, said: &mut Verdict) {
    let Some(gravest) = hits.first() else { return };
    let points = gravest.level.points();
    said.risk = said.risk.saturating_add(points).min(100);
    said.risk_parts.push(RiskPart { kind: "sigma", points, why: gravest.title.clone() });
    let lifts = said.tier == Tier::Allow && !entry && review_from.is_some_and(|from| gravest.level >= from);
    if lifts {
        said.tier = Tier::Review;
    }
    let reasons = hits.iter().map(|hit| Reason {
        rule_id: format!("{PREFIX}{}", hit.rule),
        text: format!("Sigma, {}: {}", hit.level.as_str(), hit.title),
        evidence: String::new(),
        tier: if lifts { Tier::Review } else { Tier::Allow },
        category: said.category.clone(),
        scope: String::new(),
    });
    let at = if lifts { 0 } else { said.reasons.len() };
    let added: Vec<Reason> = reasons.collect();
    said.reasons.splice(at..at, added);
}

#[cfg(test)]
mod tests {
    use guard_policy::{Policy, Stdin};

    use super::*;

    const RULE: &str = "title: Reads the hosts\nid: 11111111-2222-4333-8444-555555555555\nlevel: high\n\
        logsource: {category: process_creation, product: linux}\n\
        detection: {a: {CommandLine|contains: /etc/hosts}, condition: a}\n";

    fn allowed() -> Verdict {
        let argv = [b"cat".to_vec(), b"/etc/hosts".to_vec()];
        let file = guard_policy::FileRef {
            path: b"/usr/bin/cat",
            role: guard_policy::Role::Program,
            session_writable: false,
            foreign: false,
        };
        Policy::load(&[]).unwrap().decide(&guard_policy::Facts {
            argv: &argv,
            files: &[file],
            cwd: b"/home/a",
            home: b"/home/a",
            workspace: b"/home/a",
            uid: 1000,
            env: &[],
            stdin: Stdin::Null,
            entry: false,
        })
    }

    fn hits(level: Level) -> Vec<Hit> {
        vec![
            Hit { rule: "r".into(), title: "t".into(), level },
            Hit { rule: "s".into(), title: "u".into(), level: Level::Low },
        ]
    }

    #[test]
    fn a_match_adds_risk_and_reasons_and_lifts_from_its_level_on() {
        let before = allowed();
        assert_eq!(before.tier, Tier::Allow);
        for (from, entry, tier) in [
            (None, false, Tier::Allow),
            (Some(Level::Critical), false, Tier::Allow),
            (Some(Level::High), false, Tier::Review),
            (Some(Level::Low), false, Tier::Review),
            (Some(Level::Low), true, Tier::Allow),
        ] {
            let mut said = before.clone();
            add(&hits(Level::High), from, entry, &mut said);
            assert_eq!((said.tier, said.risk), (tier, before.risk + 20), "{from:?}");
            assert_eq!(said.reasons.iter().filter(|r| r.rule_id.starts_with(PREFIX)).count(), 2);
            assert_eq!(said.reasons[0].rule_id == "sigma:r", tier == Tier::Review);
        }
        let mut denied = Verdict { tier: Tier::Deny, risk: 95, ..before };
        add(&hits(Level::Critical), Some(Level::Low), false, &mut denied);
        assert_eq!((denied.tier, denied.risk), (Tier::Deny, 100));
    }

    #[test]
    fn folders_are_read_and_what_has_no_usable_rule_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let config = |path: &Path| SigmaConfig { paths: vec![path.to_owned()], review_from: None };
        std::fs::create_dir(folder.path().join("deep")).unwrap();
        std::fs::write(folder.path().join("deep/a.yml"), RULE).unwrap();
        std::fs::write(folder.path().join("b.yaml"), "title: nothing\n").unwrap();
        std::fs::write(folder.path().join("notes.txt"), "{").unwrap();
        let loaded = load(&config(folder.path())).unwrap().unwrap();
        assert_eq!((loaded.count(), loaded.set_aside()), (1, 1));
        let digest = loaded.digest().to_owned();
        std::fs::write(folder.path().join("deep/a.yml"), RULE.replace("high", "low")).unwrap();
        assert_ne!(load(&config(folder.path())).unwrap().unwrap().digest(), digest);
        let why = load(&config(&folder.path().join("b.yaml"))).unwrap_err();
        assert!(why.contains("no rule can be used in 1 files") && why.contains("b.yaml"), "{why}");
        assert!(load(&config(&folder.path().join("none"))).is_err());
        assert!(load(&SigmaConfig::default()).unwrap().is_none());
        assert!(load(&SigmaConfig { paths: vec![], review_from: Some(Level::Low) }).is_err());
    }
}
