//! The signed text of a bundle.
//!
//! One spelling for each content: what reads is written again the same. Fails: an error with the line.

use std::fmt;

use crate::{BYTES_MAX, BundleError, FILES_MAX, POLICY, ROLES};

const HEADER: &str = "guard policy bundle v1";
/// Agents that a bundle can name.
const STAGES_MAX: usize = 256;
const NAME_MAX: usize = 128;
/// All agents that are not named.
const EVERY: &str = "*";
/// Longest time that an agent is only observed, from when the bundle was made: thirty days.
pub const OBSERVE_SECONDS_MAX: u64 = 30 * 86_400;
const STAGES: &str = "accepted are observe with an end in seconds since 1970, shadow and enforce";

/// How far a bundle is rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its verdicts are recorded and, until then, not enforced: what it denies runs. Then it is enforced.
    Observe {
        /// Seconds since 1970.
        until_unix: u64,
    },
    /// Its verdicts are recorded beside those that count.
    Shadow,
    /// Its verdicts count.
    Enforce,
}

impl Stage {
    /// As it is written, without an end.
    pub fn word(self) -> &'static str {
        match self {
            Self::Observe { .. } => "observe",
            Self::Shadow => "shadow",
            Self::Enforce => "enforce",
        }
    }

    /// From what is written.
    fn parse(words: &[&str]) -> Option<Self> {
        match words {
            ["observe", until] => number(until).map(|until_unix| Self::Observe { until_unix }),
            ["shadow"] => Some(Self::Shadow),
            ["enforce"] => Some(Self::Enforce),
            _ => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observe { until_unix } => write!(f, "{} {until_unix}", self.word()),
            Self::Shadow | Self::Enforce => f.write_str(self.word()),
        }
    }
}

/// A file as the manifest names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Name in the bundle.
    pub name: String,
    /// Bytes.
    pub length: usize,
    /// SHA-256 of them.
    pub sha256: [u8; 32],
}

/// Number, time, stages and files of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    serial: u64,
    made_unix: u64,
    stages: Vec<(String, Stage)>,
    files: Vec<Named>,
}

impl Manifest {
    pub(crate) fn new(
        serial: u64,
        made_unix: u64,
        stages: Vec<(String, Stage)>,
        files: Vec<Named>,
    ) -> Result<Self, BundleError> {
        let manifest = Self { serial, made_unix, stages, files };
        Self::parse(&manifest.to_string())
    }

    /// Reads the signed text.
    pub(crate) fn parse(text: &str) -> Result<Self, BundleError> {
        let mut manifest = Self { serial: 0, made_unix: 0, stages: Vec::new(), files: Vec::new() };
        let mut lines = (1..).zip(text.lines());
        let mut head = |word: &str| {
            let (line, text) = lines.next().unwrap_or((0, ""));
            let value = text.strip_prefix(word).ok_or_else(|| wrong(line, format!("`{word}…` is expected")))?;
            Ok::<_, BundleError>((line, value))
        };
        if let (line, rest @ [_, ..]) = head(HEADER).map(|(line, rest)| (line, rest.as_bytes()))? {
            return Err(wrong(line, format!("{} bytes follow the version", rest.len())));
        }
        let (line, serial) = head("serial ")?;
        manifest.serial = number(serial).filter(|n| *n > 0).ok_or_else(|| wrong(line, "no number from 1 on"))?;
        let (line, made) = head("made ")?;
        manifest.made_unix = number(made).ok_or_else(|| wrong(line, "no seconds since 1970"))?;
        for (line, text) in lines {
            manifest.add(text).map_err(|why| wrong(line, why))?;
        }
        if !manifest.stages.iter().any(|(agent, _)| agent == EVERY) {
            return Err(wrong(0, "no `stage *`: say what holds for agents that are not named"));
        }
        if manifest.files.iter().all(|file| !file.name.starts_with(POLICY)) {
            return Err(wrong(0, "no file of policy"));
        }
        // Whoever signs sees the one text that there is for this content.
        if manifest.to_string() != text {
            return Err(wrong(0, "it is not in its one spelling: stages come before files"));
        }
        Ok(manifest)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["stage", agent, stage @ ..] => self.add_stage(agent, stage),
            ["file", name, length, sha256] => self.add_file(name, length, sha256),
            _ => Err("neither `stage AGENT STAGE` nor `file NAME LENGTH SHA256`".to_owned()),
        }
    }

    fn add_stage(&mut self, agent: &str, words: &[&str]) -> Result<(), String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
        if agent != EVERY && (agent.is_empty() || agent.len() > NAME_MAX || !agent.chars().all(fits)) {
            return Err(format!("agent {agent:?}: accepted are `*`, letters, digits and . _ - / : @"));
        }
        if self.stages.iter().any(|(known, _)| known == agent) {
            return Err(format!("agent {agent} has two stages"));
        }
        if self.stages.len() >= STAGES_MAX {
            return Err(format!("more than {STAGES_MAX} stages"));
        }
        let stage = Stage::parse(words).ok_or_else(|| format!("stage {:?}: {STAGES}", words.join(" ")))?;
        if let Stage::Observe { until_unix } = stage {
            self.check_observe(agent, until_unix)?;
        }
        self.stages.push((agent.to_owned(), stage));
        Ok(())
    }

    /// Nobody is observed for want of a name, and nobody for ever: a bundle that is withheld ends nothing.
    fn check_observe(&self, agent: &str, until_unix: u64) -> Result<(), String> {
        if agent == EVERY {
            return Err("stage observe for `*`: each agent whose verdicts are not enforced must be named".to_owned());
        }
        let longest = self.made_unix.saturating_add(OBSERVE_SECONDS_MAX);
        if until_unix <= self.made_unix || until_unix > longest {
            return Err(format!(
                "agent {agent} is observed until {until_unix}: the end must be at most {OBSERVE_SECONDS_MAX} seconds \
                 after the bundle was made"
            ));
        }
        Ok(())
    }

    fn add_file(&mut self, name: &str, length: &str, sha256: &str) -> Result<(), String> {
        check_name(name)?;
        if self.files.iter().any(|file| file.name == name) {
            return Err(format!("{name} is named twice"));
        }
        if self.files.len() >= FILES_MAX {
            return Err(format!("more than {FILES_MAX} files"));
        }
        let length = number(length).and_then(|n| usize::try_from(n).ok()).ok_or("a length that is no number")?;
        let all: usize = self.files.iter().map(|file| file.length).sum();
        if length > BYTES_MAX || all + length > BYTES_MAX {
            return Err(format!("the files have more than {BYTES_MAX} bytes"));
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(sha256, &mut digest).map_err(|_| "a SHA-256 that is not 64 hexadecimal digits")?;
        self.files.push(Named { name: name.to_owned(), length, sha256: digest });
        Ok(())
    }

    /// Higher than that of each bundle before.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// When it was made, in seconds since 1970, as its maker says.
    pub fn made_unix(&self) -> u64 {
        self.made_unix
    }

    /// Agents and stages as written, `*` among them.
    pub fn stages(&self) -> &[(String, Stage)] {
        &self.stages
    }

    /// The stage of an agent's sessions. After its end, what was observed is enforced.
    pub fn stage_of(&self, agent: &str, now_unix: u64) -> Stage {
        let find = |name: &str| self.stages.iter().find(|(known, _)| known == name).map(|(_, stage)| *stage);
        match find(agent).or_else(|| find(EVERY)).unwrap_or(Stage::Shadow) {
            Stage::Observe { until_unix } if now_unix >= until_unix => Stage::Enforce,
            stage => stage,
        }
    }

    /// Agents that are only observed, each with its end in seconds since 1970.
    pub fn observed(&self, now_unix: u64) -> impl Iterator<Item = (&str, u64)> {
        self.stages.iter().filter_map(move |(agent, stage)| match stage {
            Stage::Observe { until_unix } if now_unix < *until_unix => Some((agent.as_str(), *until_unix)),
            _ => None,
        })
    }

    /// Whether it counts for every agent.
    pub fn is_whole(&self) -> bool {
        self.stages.iter().all(|(_, stage)| *stage == Stage::Enforce)
    }

    pub(crate) fn files(&self) -> &[Named] {
        &self.files
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\nserial {}\nmade {}", self.serial, self.made_unix)?;
        for (agent, stage) in &self.stages {
            writeln!(f, "stage {agent} {stage}")?;
        }
        for file in &self.files {
            writeln!(f, "file {} {} {}", file.name, file.length, hex::encode(file.sha256))?;
        }
        Ok(())
    }
}

fn wrong(line: usize, why: impl Into<String>) -> BundleError {
    BundleError::Manifest { line, why: why.into() }
}

/// A number in its only spelling.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Names are kept in records and shown: nothing but what is harmless there.
pub(crate) fn check_name(name: &str) -> Result<&str, String> {
    let bare = name.strip_prefix(POLICY).unwrap_or(name);
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let known = name == ROLES || name.starts_with(POLICY);
    if !known || bare.is_empty() || bare.starts_with('.') || bare.len() > NAME_MAX || !bare.chars().all(fits) {
        return Err(format!("file {name:?}: accepted are {ROLES}, and {POLICY} with letters, digits and . _ -"));
    }
    Ok(name)
}
