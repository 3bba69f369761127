//! The five answers about a session: what ran, how each was decided, who started it with which rights, which anomalies
//! fired, how to recover.
//!
//! It must say [`NOT_COVERED`] where this version has no answer, never "none". Fails: never.

use std::fmt::Write as _;

use guard_policy::roles;
use guard_proto::v1::{Identity, SessionSummary};
use serde_json::{Value, json};

use super::history::{Command, History};
use super::{state, summary_json};
use crate::duration;
use crate::record::{disposition_tone, text_value};
use crate::table::{Cell, Table, Tone, grow, left, right, wrap};
use crate::text::{command_line, escape, escape_str};
use crate::time;

/// The answer that this version cannot give.
pub const NOT_COVERED: &str = "not covered by this version";

/// Dispositions in the order in which they are shown.
const ORDER: [&str; 9] =
    ["allowed", "inherited", "approved", "timed_out", "denied", "expired", "killed", "failed", "pending"];

/// A session with its history.
#[derive(Debug)]
pub struct Answers {
    summary: SessionSummary,
    history: History,
    log_size: u64,
}

impl Answers {
    /// Answers from the collector's summary and the session's records.
    pub fn new(summary: SessionSummary, history: History, log_size: u64) -> Answers {
        Answers { summary, history, log_size }
    }

    /// The documented JSON form.
    pub fn json(&self) -> Value {
        let commands: Vec<Value> = self.history.commands.iter().enumerate().map(|(i, c)| command_json(i, c)).collect();
        let counts: serde_json::Map<String, Value> =
            ORDER.iter().map(|w| ((*w).to_owned(), self.history.count(w).into())).collect();
        let mut session = summary_json(&self.summary);
        if let Some(session) = session.as_object_mut() {
            session.insert("children".to_owned(), json!(self.summary.children));
        }
        json!({
            "session": session,
            "log_size": self.log_size,
            "answers": {
                "ran": commands,
                "decided": { "execs": self.history.commands.len(), "counts": counts, "not_enforced": self.not_enforced() },
                "who": self.who_json(),
                "anomalies": self.anomalies_json(),
                "recovery": { "covered": false, "answer": NOT_COVERED },
            },
        })
    }

    fn who_json(&self) -> Value {
        let i = self.history.identity.clone().unwrap_or_default();
        let start = self.history.start.as_ref();
        json!({
            "initiator": self.summary.initiator, "initiator_uid": i.initiator_uid,
            "started_by": Some(&i.started_by).filter(|s| !s.is_empty()),
            "parent": some(&self.summary.parent_session_id), "max_risk": i.max_risk, "agent": self.summary.agent,
            "instance": self.summary.instance, "host": hex::encode(&self.summary.host),
            "host_name": self.summary.host_name, "rights": rights(&i).map(|_| &i.categories),
            "rights_digest": hex::encode(&i.rights_digest), "policy_digest": start.map(|s| &s.policy_digest),
            "kernel_mode": start.map(|s| &s.kernel_mode), "cwd": start.map(|s| text_value(&s.cwd)),
            "ticket": start.and_then(|s| some(&s.ticket)), "job": start.and_then(|s| some(&s.job)),
            "credentials": start.map(|s| &s.credentials),
            "observed_by": start.and_then(|s| (s.observed_by > 0).then_some(s.observed_by)),
        })
    }

    /// Commands that ran although their verdicts would have held or denied them.
    fn not_enforced(&self) -> usize {
        self.history.commands.iter().filter(|c| c.not_enforced).count()
    }

    fn anomalies_json(&self) -> Value {
        let fired = self.history.anomalies.iter().map(|(i, a)| json!({"command": i + 1, "anomaly": a}));
        json!({ "covered": self.history.covered > 0, "answer": self.anomalies_answer(),
            "fired": (self.history.covered > 0).then(|| fired.collect::<Vec<_>>()) })
    }

    /// One line: what is covered, or how many fired.
    fn anomalies_answer(&self) -> String {
        let History { covered, verdicts, anomalies, .. } = &self.history;
        match (covered, anomalies.len()) {
            (0, _) => NOT_COVERED.to_owned(),
            (c, n) if c < verdicts => format!("{n} fired; {} of {verdicts} verdicts {NOT_COVERED}", verdicts - c),
            (_, 0) => "none fired".to_owned(),
            (_, n) => format!("{n} fired"),
        }
    }

    /// The five answers as text for a terminal.
    pub fn render(&self, width: usize, color: bool) -> String {
        let mut out = String::new();
        let paint = |tone: Tone, text: &str| if color { tone.paint(text) } else { text.to_owned() };
        let (state, tone) = state(&self.summary);
        let id = escape_str(&self.summary.session_id);
        let _ = writeln!(out, "session {id}  {}  (log size {})\n", paint(tone, &state), self.log_size);

        let _ = writeln!(out, "1. What ran, in which order (UTC, {})", time::date_time(self.summary.started_unix_ns));
        out.push_str(&self.commands_table().render(width, color));

        let _ = writeln!(out, "\n2. What was allowed, inherited, approved, timed out, denied");
        for line in wrap(&self.counts(), width.saturating_sub(2)) {
            let _ = writeln!(out, "  {line}");
        }

        let _ = writeln!(out, "\n3. Who started it, with which rights");
        out.push_str(&self.who_table().render(width, color));

        let _ = writeln!(out, "\n4. Which anomalies fired\n  {}", self.anomalies_answer());
        for (index, anomaly) in &self.history.anomalies {
            let _ = writeln!(out, "  command {}: {}", index + 1, escape_str(anomaly));
        }
        let _ = writeln!(out, "\n5. How to recover, and who does it\n  {NOT_COVERED}");
        out
    }

    fn commands_table(&self) -> Table {
        let mut table = Table::new(&[
            right("#", 6),
            left("TIME", 8),
            left("TIER", 6),
            left("RESULT", 9),
            right("EXIT", 4),
            right("TOOK", 6),
            grow("RULE, REVIEWER"),
        ]);
        for (i, c) in self.history.commands.iter().enumerate() {
            table.row([
                (i + 1).to_string().into(),
                time::clock(c.time_ns).into(),
                if c.tier.is_empty() { "-" } else { c.tier }.into(),
                Cell::toned(c.disposition, if c.not_enforced { Tone::Warn } else { disposition_tone(c.disposition) }),
                c.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()).into(),
                c.duration_ns.map_or_else(|| "-".to_owned(), duration::show).into(),
                Cell::toned(why(c), Tone::Dim),
            ]);
            table.below(c.text.clone());
        }
        table
    }

    fn counts(&self) -> String {
        let mut text = format!("{} execs: ", self.history.commands.len());
        // The five that the question names are always there; the rest where they happened.
        let shown = ORDER.iter().enumerate().filter(|(i, w)| *i < 5 || self.history.count(w) > 0);
        let parts: Vec<String> =
            shown.map(|(_, w)| format!("{} {}", self.history.count(w), w.replace('_', " "))).collect();
        text.push_str(&parts.join(", "));
        if self.not_enforced() > 0 {
            let _ = write!(text, "; {} RAN AGAINST THEIR VERDICT, which was only recorded", self.not_enforced());
        }
        if self.history.refusals > 0 {
            let _ = write!(text, "; {} attempts at Guard itself refused", self.history.refusals);
        }
        text
    }

    /// What is said where the list is missing: only a session's first record has it, and that may be pruned or lost.
    fn no_rights(&self, i: &Identity) -> String {
        match &self.history.start {
            Some(_) => NOT_COVERED.to_owned(),
            None => format!("in its first record, which is not here (digest {})", hex::encode(&i.rights_digest)),
        }
    }

    fn who_table(&self) -> Table {
        let s = &self.summary;
        let i = self.history.identity.clone().unwrap_or_default();
        let mut table = Table::new(&[left("", 12), grow("")]);
        let mut row = |key: &str, value: String| table.row([format!("  {key}").into(), value.into()]);
        row("initiator", format!("{} (uid {})", escape_str(&s.initiator), i.initiator_uid));
        if !i.started_by.is_empty() {
            row("started by", escape_str(&i.started_by));
        }
        if !s.parent_session_id.is_empty() {
            row("child of", escape_str(&s.parent_session_id));
        }
        for child in &s.children {
            row("child", escape_str(child));
        }
        row("agent", escape_str(&s.agent));
        row("instance", escape_str(&s.instance));
        let risk = i.max_risk.map(|risk| format!(", up to a risk of {risk}")).unwrap_or_default();
        row("rights", format!("{}{risk}", rights(&i).unwrap_or_else(|| self.no_rights(&i))));
        row("host", format!("{} ({})", escape_str(&s.host_name), hex::encode(&s.host)));
        row("command", command_line(&s.argv));
        if let Some(start) = &self.history.start {
            row("folder", escape(&start.cwd));
            row("kernel", format!("{} when it started", escape_str(&start.kernel_mode)));
            row("policy", escape_str(&start.policy_digest));
            if start.observed_by > 0 {
                row("OBSERVED", format!("by bundle {}: verdicts are recorded, not enforced", start.observed_by));
            }
            for (key, said) in
                [("ticket", &start.ticket), ("job", &start.job)].iter().filter(|(_, said)| !said.is_empty())
            {
                row(key, format!("\"{}\" (said by the starter, not checked)", escape_str(said)));
            }
            if !start.credentials.is_empty() {
                row("credentials", escape_str(&start.credentials.join(", ")));
            }
        }
        row("lasted", lifetime(s));
        if !s.purpose.is_empty() {
            row("purpose", format!("\"{}\" (said by the starter, not checked)", escape_str(&s.purpose)));
        }
        table
    }
}

/// The categories that the session may request, as its first record lists them.
fn rights(i: &Identity) -> Option<String> {
    (!i.categories.is_empty()).then(|| escape_str(&i.categories.join(", ")))
}

fn lifetime(s: &SessionSummary) -> String {
    let (from, until) = (time::date_time(s.started_unix_ns), time::date_time(s.expires_unix_ns));
    match s.ended_unix_ns {
        0 => format!("{from} until at most {until}"),
        end => format!("{from} to {}, expiry {until}", time::date_time(end)),
    }
}

/// Category, rules, reviewer and what else was said, in one cell.
fn why(c: &Command) -> String {
    let mut parts = Vec::new();
    if !c.category.is_empty() {
        parts.push(escape_str(&c.category));
    }
    if !c.reasons.is_empty() {
        parts.push(c.reasons.iter().map(|r| escape_str(&r.rule_id)).collect::<Vec<_>>().join(" "));
    }
    if c.entry {
        parts.push("entry".to_owned());
    }
    if !c.reviewer.is_empty() {
        parts.push(format!("by {}", escape_str(&c.reviewer)));
    }
    if !c.key_ids.is_empty() {
        let ids: Vec<String> = c.key_ids.iter().map(|id| roles::short(id)).collect();
        parts.push(format!("signed with {}", ids.join(", ")));
    }
    if c.waited_ns > 0 {
        parts.push(format!("waited {}", duration::show(c.waited_ns)));
    }
    if c.errno != 0 {
        parts.push(errno_name(c.errno));
    }
    if c.probes > 1 {
        parts.push(format!("{} probes", c.probes));
    }
    if !c.detail.is_empty() {
        parts.push(escape_str(&c.detail));
    }
    parts.join("; ")
}

fn errno_name(errno: u32) -> String {
    match errno {
        1 => "EPERM".to_owned(),
        2 => "ENOENT".to_owned(),
        8 => "ENOEXEC".to_owned(),
        13 => "EACCES".to_owned(),
        26 => "ETXTBSY".to_owned(),
        n => format!("errno {n}"),
    }
}

fn command_json(index: usize, c: &Command) -> Value {
    let reasons = c.reasons.iter().map(|r| json!({"rule": r.rule_id, "text": r.text, "evidence": r.evidence}));
    json!({
        "n": index + 1, "leaf": c.leaf, "exec": c.exec_id, "time": time::rfc3339(c.time_ns),
        "argv": c.argv.iter().map(|a| text_value(a)).collect::<Vec<_>>(), "command": c.text, "entry": c.entry,
        "tier": some(c.tier), "category": some(&c.category), "risk": c.risk, "reasons": reasons.collect::<Vec<_>>(),
        "disposition": some(c.disposition), "reviewer": some(&c.reviewer), "request": some(&c.request),
        "detail": some(&c.detail), "waited_ns": (c.waited_ns > 0).then_some(c.waited_ns), "exit_code": c.exit_code,
        "errno": (c.errno != 0).then_some(c.errno), "duration_ns": c.duration_ns,
        "probes": (c.probes > 0).then_some(c.probes), "not_enforced": c.not_enforced,
        "key_ids": c.key_ids.iter().map(hex::encode).collect::<Vec<_>>(),
    })
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn answers() -> Answers {
        let entries = testing::session_entries();
        Answers::new(testing::summaries().remove(0), History::new(&entries), 40)
    }

    #[test]
    fn five_answers_fit_eighty_columns() {
        let text = answers().render(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn five_answers_have_a_stable_json_form() {
        insta::assert_snapshot!(testing::pretty(&answers().json()));
    }

    #[test]
    fn uncovered_layers_say_exactly_so() {
        let text = answers().render(80, false);
        let after = |title: &str| text.lines().skip_while(|l| !l.starts_with(title)).nth(1).map(str::trim);
        assert_eq!(after("4."), Some("not covered by this version"));
        assert_eq!(after("5."), Some("not covered by this version"));
        assert_eq!(answers().json()["answers"]["anomalies"]["fired"], Value::Null);
    }

    /// Later records name the rights by their digest only: that is not the same as having none.
    #[test]
    fn without_the_first_record_rights_are_not_said_to_be_missing() {
        let entries: Vec<_> = testing::session_entries()
            .into_iter()
            .filter(|e| !matches!(e.body, Some(guard_proto::v1::record_body::Body::SessionStart(_))))
            .collect();
        let text = Answers::new(testing::summaries().remove(0), History::new(&entries), 40).render(120, false);
        assert!(text.contains("rights     in its first record, which is not here"), "{text}");
    }

    #[test]
    fn covered_anomalies_are_listed_and_none_is_said_only_then() {
        let mut covered = answers();
        covered.history.covered = covered.history.verdicts;
        assert_eq!(covered.anomalies_answer(), "none fired");
        covered.history.anomalies.push((1, "volume".into()));
        assert!(covered.render(80, false).contains("command 2: volume"));
    }

    #[test]
    fn every_command_is_counted_once() {
        let answers = answers();
        let sum: usize = ORDER.iter().map(|w| answers.history.count(w)).sum();
        assert_eq!(sum, answers.history.commands.len());
    }
}
