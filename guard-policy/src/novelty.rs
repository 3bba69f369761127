//! What an agent does for the first time adds to the risk: a program that it has not run, a target that it has not named.
//!
//! What was there before is remembered by whoever asks; here is only what can be new, and what newness adds. It must not touch
//! the tier. Fails towards more risk: what was forgotten is new again.

use crate::risk::{self, REACH_FROM, RiskPart};
use crate::verdict::Verdict;

/// Points for each kind of newness, once.
const POINTS: u8 = 5;
/// Names that a reason shows.
const SHOWN: usize = 3;

/// Something that can be new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The file that would run.
    Program(String),
    /// A host, cluster, account or database; of paths outside the workspace, the folder.
    Target(String),
}

// === impl Subject ===

impl Subject {
    /// One spelling for each, of which no two are the same text.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Program(name) => format!("program {name}"),
            Self::Target(name) => format!("target {name}"),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Program(name) | Self::Target(name) => name,
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// What can be new about this exec. Bounded, as the verdict's targets are.
    #[must_use]
    pub fn subjects(&self, program: &[u8], workspace: &[u8]) -> Vec<Subject> {
        let mut all = vec![Subject::Program(crate::verdict::shorten(&String::from_utf8_lossy(program)))];
        let workspace = String::from_utf8_lossy(workspace).into_owned();
        for target in &self.targets {
            // Files of the workspace come and go: that one is new says nothing.
            if is_below(target, &workspace) {
                continue;
            }
            let named = match (target.starts_with('/'), target.split_once("://")) {
                (true, _) => target.rsplit_once('/').map(|(folder, _)| folder).filter(|f| !f.is_empty()).unwrap_or("/"),
                (false, Some((_, rest))) => rest.split('/').next().unwrap_or(rest),
                (false, None) => target,
            };
            let subject = Subject::Target(named.to_owned());
            if !all.contains(&subject) {
                all.push(subject);
            }
        }
        all
    }

    /// Adds for what is new to `whom`. Gives the points that the risk has grown by.
    pub fn add_novelty(&mut self, new: &[Subject], whom: &str) -> u8 {
        if self.risk < REACH_FROM || new.is_empty() {
            return 0;
        }
        let programs = new.iter().any(|s| matches!(s, Subject::Program(_)));
        let targets = new.iter().any(|s| matches!(s, Subject::Target(_)));
        let points = POINTS * (u8::from(programs) + u8::from(targets));
        let mut names: Vec<&str> = new.iter().take(SHOWN).map(Subject::name).collect();
        if new.len() > SHOWN {
            names.push("…");
        }
        let why = format!("first time that {whom} runs or names {}", names.join(", "));
        self.risk_parts.push(RiskPart { kind: "novelty", points, why: crate::verdict::shorten(&why) });
        let before = self.risk;
        self.risk = self.risk.saturating_add(points).min(100);
        self.reasons.retain(|reason| reason.rule_id != risk::REASON);
        self.reasons.push(risk::reason(&self.risk_parts, self.risk));
        self.risk - before
    }
}

fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    !folder.is_empty() && path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
