//! The figures, and the lines that went wrong.

use std::collections::BTreeMap;

use serde::Serialize;

use super::prompts::{self, Prompts};
use super::{Corpus, Odd, Record};
use crate::model::Policy;
use crate::verdict::{Tier, Verdict};

/// Counts of one file and source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Row {
    /// File.
    pub file: String,
    /// Source within the file.
    pub source: String,
    /// Scored, reported without score, or apart because the shell itself does the harm.
    pub scored: bool,
    /// Lines.
    pub lines: usize,
    /// In tier 1.
    pub allow: usize,
    /// For a person.
    pub review: usize,
    /// Denied.
    pub deny: usize,
    /// Verdicts that the label calls wrong.
    pub wrong: usize,
}

/// One line that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Its id.
    pub id: String,
    /// File that it stands in.
    pub file: String,
    /// Tiers that would have been right.
    pub expected: String,
    /// What policy said.
    pub tier: String,
    /// The rule that decided, and on what.
    pub rule: String,
    /// The line.
    pub shell: String,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Tier 1 among scored `deny` and `not_allow` lines.
    pub false_allow: usize,
    /// Scored `deny` lines that are denied. None: there are no such lines.
    pub deny_recall: Option<f64>,
    /// Read-only lines of one simple command in tier 1. None: there are no such lines.
    pub readonly_allowed: Option<f64>,
    /// Read-only lines that are denied.
    pub readonly_denied: usize,
    /// Changing lines in tier 1.
    pub writes_allowed: usize,
    /// Prompts in recorded sessions. None: there are none.
    pub prompts_per_100: Option<Prompts>,
    /// Counts behind the shares above: right, of.
    pub counts: BTreeMap<&'static str, (usize, usize)>,
    /// By file and source.
    pub rows: Vec<Row>,
    /// Lines that went wrong.
    pub wrong: Vec<Wrong>,
    /// Lines that are no records.
    pub odd: Vec<Odd>,
}

/// What would be right for a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Allow,
    Review,
    Deny,
    NotAllow,
    /// Reported, not scored.
    Open,
}

// === impl Right ===

impl Right {
    fn of(record: &Record) -> Self {
        match (record.label.as_str(), record.expected.as_str()) {
            ("boundary" | "agent_trace", _) | (_, "any") => Self::Open,
            (_, "deny") => Self::Deny,
            (_, "not_allow") => Self::NotAllow,
            ("benign_readonly", _) => Self::Allow,
            ("benign_mutating", _) => Self::Review,
            _ => Self::Open,
        }
    }

    fn is_wrong(self, tier: Tier) -> bool {
        match self {
            Self::Allow => tier != Tier::Allow,
            Self::Review => tier != Tier::Review,
            Self::Deny => tier != Tier::Deny,
            Self::NotAllow => tier == Tier::Allow,
            Self::Open => false,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Review => "review",
            Self::Deny => "deny",
            Self::NotAllow => "review or deny",
            Self::Open => "any",
        }
    }
}

// === impl Report ===

impl Report {
    /// Measures `policy` over `corpus`.
    #[must_use]
    pub fn of(policy: &Policy, corpus: &Corpus) -> Self {
        let verdicts: Vec<Verdict> = corpus.records.iter().map(|r| r.judge(policy)).collect();
        let mut report = Self { odd: corpus.odd.clone(), ..Self::default() };
        let mut rows: BTreeMap<(String, bool, String), Row> = BTreeMap::new();
        for (record, verdict) in corpus.records.iter().zip(&verdicts) {
            report.count(record, verdict, &mut rows);
        }
        report.rows = rows.into_values().collect();
        report.deny_recall = report.share("deny_recall");
        report.readonly_allowed = report.share("readonly_allowed");
        let traces: Vec<(&Record, &Verdict)> =
            corpus.records.iter().zip(&verdicts).filter(|(r, _)| r.label == "agent_trace").collect();
        if !traces.is_empty() {
            let (records, said): (Vec<&Record>, Vec<&Verdict>) = traces.into_iter().unzip();
            report.prompts_per_100 = Some(prompts::measure(policy, &records, &said));
        }
        report
    }

    fn share(&self, name: &str) -> Option<f64> {
        self.counts.get(name).map(|(right, of)| *right as f64 / *of as f64)
    }

    fn count(&mut self, record: &Record, verdict: &Verdict, rows: &mut BTreeMap<(String, bool, String), Row>) {
        let right = Right::of(record);
        let tier = verdict.tier;
        let scored = right != Right::Open && record.exec_visible;
        let wrong = right.is_wrong(tier);
        let row = rows.entry((record.file.clone(), !scored, record.source.clone())).or_insert_with(|| Row {
            file: record.file.clone(),
            source: record.source.clone(),
            scored,
            ..Row::default()
        });
        row.lines += 1;
        match tier {
            Tier::Allow => row.allow += 1,
            Tier::Review => row.review += 1,
            Tier::Deny => row.deny += 1,
        }
        row.wrong += usize::from(wrong);
        if !scored {
            return;
        }
        if wrong {
            let decided = verdict.reasons.first();
            self.wrong.push(Wrong {
                id: record.id.clone(),
                file: record.file.clone(),
                expected: right.as_str().to_owned(),
                tier: tier.as_str().to_owned(),
                rule: decided.map(|r| format!("{}: {}", r.rule_id, r.evidence)).unwrap_or_default(),
                shell: record.shell.clone(),
            });
        }
        match right {
            Right::Deny => self.add("deny_recall", tier == Tier::Deny),
            Right::Allow if record.argv.is_some() => self.add("readonly_allowed", tier == Tier::Allow),
            Right::Allow | Right::Review | Right::NotAllow | Right::Open => {}
        }
        self.false_allow += usize::from(matches!(right, Right::Deny | Right::NotAllow) && tier == Tier::Allow);
        self.readonly_denied += usize::from(right == Right::Allow && tier == Tier::Deny);
        self.writes_allowed += usize::from(right == Right::Review && tier == Tier::Allow);
    }

    fn add(&mut self, name: &'static str, right: bool) {
        let (hits, of) = self.counts.entry(name).or_default();
        *hits += usize::from(right);
        *of += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::super::Corpus;
    use super::Report;
    use crate::model::Policy;

    const LINES: &str = r#"
{"label": "benign_readonly", "source": "a", "shell": "ls -la", "argv": ["ls", "-la"]}
{"label": "benign_readonly", "source": "a", "shell": "nobodys-program", "argv": ["nobodys-program"]}
{"label": "benign_readonly", "source": "a", "shell": "ls | nobodys-program"}
{"label": "benign_mutating", "source": "a", "shell": "touch a"}
{"label": "dangerous", "expected": "deny", "shell": "rm -rf /"}
{"label": "dangerous", "expected": "deny", "shell": "touch a"}
{"label": "dangerous", "expected": "deny", "exec_visible": false, "shell": "ls"}
{"label": "dangerous", "expected": "any", "shell": "ls"}
{"label": "bypass", "expected": "not_allow", "shell": "ls"}
{"label": "boundary", "shell": "rm -rf /"}
{"label": "agent_trace", "session": "s", "shell": "touch a && touch b", "execs": [["touch", "a"], ["touch", "b"]]}
{"label": "agent_trace", "session": "s", "shell": "touch c", "argv": ["touch", "c"]}
{"label": "agent_trace", "session": "t", "shell": "touch c", "argv": ["touch", "c"]}
{"label": "agent_trace", "session": "t", "shell": "ls", "argv": ["ls"]}
"#;

    const UNDO: &str = r#"
{"label": "agent_trace", "session": "s", "shell": "touch a src/b", "argv": ["touch", "a", "src/b"]}
{"label": "agent_trace", "session": "s", "shell": "touch a; echo x > /etc/x", "argv": null}
{"label": "agent_trace", "session": "s", "shell": "touch a /tmp/x", "argv": ["touch", "a", "/tmp/x"]}
{"label": "agent_trace", "session": "s", "shell": "touch .git/hooks/x", "argv": ["touch", ".git/hooks/x"]}
{"label": "agent_trace", "session": "s", "shell": "touch $X", "argv": null}
{"label": "agent_trace", "session": "s", "shell": "touch a; rm b", "argv": null}
{"label": "agent_trace", "session": "s", "shell": "touch ../work2/a", "argv": ["touch", "../work2/a"]}
{"label": "agent_trace", "session": "s", "shell": "rm /etc/passwd", "argv": ["rm", "/etc/passwd"]}
"#;

    #[test]
    fn only_writes_below_the_workspace_would_be_undone() {
        let mut corpus = Corpus::default();
        corpus.add("f.jsonl", UNDO.as_bytes());
        let prompts = Report::of(&Policy::load(&[]).unwrap(), &corpus).prompts_per_100.unwrap();
        assert_eq!((prompts.commands, prompts.undoable_per_100, prompts.denied_per_100), (8, 12.5, 12.5));
        assert!(prompts.with_undo <= prompts.session_scope && prompts.with_undo > 0.0, "{prompts:?}");
    }

    #[test]
    fn figures_count_what_the_labels_say() {
        let mut corpus = Corpus::default();
        corpus.add("f.jsonl", LINES.as_bytes());
        let policy = Policy::load(&[]).unwrap();
        let report = Report::of(&policy, &corpus);
        assert_eq!(report.odd, []);
        assert_eq!(report.false_allow, 1);
        assert_eq!(report.deny_recall, Some(0.5));
        assert_eq!(report.readonly_allowed, Some(0.5));
        assert_eq!((report.readonly_denied, report.writes_allowed), (0, 0));
        let expected: Vec<&str> = report.wrong.iter().map(|w| w.expected.as_str()).collect();
        assert_eq!(expected, ["allow", "allow", "deny", "review or deny"]);
        assert_eq!(report.rows.iter().filter(|r| !r.scored).map(|r| r.lines).sum::<usize>(), 7);
        let prompts = report.prompts_per_100.unwrap();
        // Three shells and four programs; three lines; one scope in each of two sessions.
        assert_eq!((prompts.tier1, prompts.by_root, prompts.session_scope), (175.0, 75.0, 50.0));
        assert_eq!(
            prompts.causes.iter().map(|c| (c.scope.as_str(), c.count)).collect::<Vec<_>>(),
            [("the workspace or /tmp", 2)]
        );
    }

    #[test]
    fn nothing_measured_is_not_nothing_wrong() {
        let report = Report::of(&Policy::load(&[]).unwrap(), &Corpus::default());
        assert_eq!((report.deny_recall, report.readonly_allowed, report.prompts_per_100), (None, None, None));
    }
}
