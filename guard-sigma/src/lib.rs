//! Sigma detection rules of the category `process_creation` for Linux, matched against one exec.
//!
//! Rules only add: a match is a reason with points of risk, never a permission. A rule that needs what is not known of an exec, or
//! is about something else, is set aside and named with the reason ([`Rules::set_aside`]); it must not be half a rule. It knows
//! files only as texts. Fails: not at all; a text that is no rule is set aside like any other.

#![forbid(unsafe_code)]

mod command;
mod level;

pub use command::Command;
pub use level::Level;

use rsigma_eval::{Engine, FieldSource, RuleFieldSet};
use rsigma_parser::{SigmaCollection, SigmaRule, parse_sigma_yaml};

/// Longest text of one file, in bytes.
const FILE_MAX: usize = 1 << 20;
/// Most rules.
const RULES_MAX: usize = 4096;
/// Most matches told of one exec, the gravest first.
const HITS_MAX: usize = 8;
/// Longest title that is kept, in characters.
const TITLE_MAX: usize = 160;

/// One file, read by the caller.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name in messages.
    pub name: &'a str,
    /// What it holds.
    pub text: &'a str,
}

/// A rule that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The file.
    pub file: String,
    /// The rule's title, or nothing where there is no rule.
    pub title: String,
    /// Why.
    pub why: String,
}

/// A rule that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The rule's id, or its title where it has none.
    pub rule: String,
    /// Its title.
    pub title: String,
    /// How grave.
    pub level: Level,
}

/// Rules, ready to match. Shared between threads.
pub struct Rules {
    engine: Engine,
    count: usize,
    set_aside: Vec<SetAside>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("count", &self.count).field("set_aside", &self.set_aside.len()).finish()
    }
}

impl Rules {
    /// Takes every rule that can be used.
    pub fn load(sources: &[Source<'_>]) -> Self {
        let mut rules = Self { engine: Engine::new(), count: 0, set_aside: vec![] };
        rules.engine.set_include_event(false);
        for source in sources {
            rules.file(source);
        }
        rules
    }

    /// How many are in use.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Those that are not, and why.
    pub fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    /// Which rules match, the gravest first, each once.
    pub fn of(&self, command: &Command<'_>) -> Vec<Hit> {
        let mut hits: Vec<Hit> = self.engine.evaluate(command).into_iter().map(|result| hit(result.header)).collect();
        hits.sort_by(|a, b| (b.level, &a.rule).cmp(&(a.level, &b.rule)));
        hits.dedup_by(|a, b| a.rule == b.rule);
        hits.truncate(HITS_MAX);
        hits
    }

    fn file(&mut self, source: &Source<'_>) {
        let mut aside = |title: &str, why: String| {
            self.set_aside.push(SetAside { file: source.name.to_owned(), title: short(title), why });
        };
        if source.text.len() > FILE_MAX {
            return aside("", format!("longer than {FILE_MAX} bytes"));
        }
        let found = match parse_sigma_yaml(source.text) {
            Ok(found) => found,
            Err(error) => return aside("", format!("no Sigma rule: {}", short(&error.to_string()))),
        };
        for error in &found.errors {
            aside("", format!("no Sigma rule: {}", short(error)));
        }
        if !found.correlations.is_empty() {
            aside("", "correlations over several events are not matched".to_owned());
        }
        if !found.filters.is_empty() {
            aside("", "filters for other files' rules are not applied".to_owned());
        }
        for rule in &found.rules {
            let why = match usable(rule) {
                Ok(()) if self.count >= RULES_MAX => Some(format!("more than {RULES_MAX} rules")),
                Ok(()) => self.engine.add_rule(rule).err().map(|error| short(&error.to_string())),
                Err(why) => Some(why),
            };
            match why {
                None => self.count += 1,
                Some(why) => aside(&rule.title, why),
            }
        }
    }
}

fn hit(header: rsigma_eval::RuleHeader) -> Hit {
    let title = short(&header.rule_title);
    Hit { rule: header.rule_id.map_or_else(|| title.clone(), |id| short(&id)), title, level: Level::of(header.level) }
}

/// Control characters would reach terminals.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TITLE_MAX).collect()
}

/// Whether a rule is about what this crate sees, and sees all that it is about.
fn usable(rule: &SigmaRule) -> Result<(), String> {
    let source = &rule.logsource;
    if source.category.as_deref() != Some("process_creation") {
        let about = source.category.as_deref().or(source.service.as_deref()).unwrap_or("another source");
        return Err(format!("about {}, not process_creation", short(about)));
    }
    if let Some(product) = source.product.as_deref().filter(|product| *product != "linux") {
        return Err(format!("for {}, not linux", short(product)));
    }
    let one = SigmaCollection { rules: vec![rule.clone()], ..SigmaCollection::new() };
    let fields = RuleFieldSet::collect(&one, &[], false);
    let needed = fields.iter().filter(|(_, origin)| origin.sources.contains(&FieldSource::Detection));
    let lacking: Vec<&str> = needed.map(|(name, _)| name).filter(|name| !command::FIELDS.contains(name)).collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(format!("needs {}, which is not known of an exec", lacking.join(", ")))
    }
}

#[cfg(test)]
mod tests;
