//! One request, whole: everything a person needs to decide, from kernel facts, nothing cut, nothing unescaped.
//!
//! It must mark what the agent or its starter said as such. Fails: never.

use guard_policy::roles;
use guard_proto::v1::{ExecFacts, ExecRequest, Identity, Review, Verdict};

use super::{escalation, time_left};
use crate::duration;
use crate::record::{command, disposition_tone, tier_word};
use crate::session::NOT_COVERED;
use crate::table::{Cell, Table, Tone, grow, left};
use crate::text::{escape, escape_str, quote};
use crate::time;

/// Renders the request.
pub fn render(review: &Review, now_ns: i64, width: usize, color: bool) -> String {
    sheet(review, now_ns).render(width, color)
}

/// The same in lines, each in pieces of one tone.
pub fn lines(review: &Review, now_ns: i64, width: usize) -> Vec<Vec<Cell>> {
    sheet(review, now_ns).lines(width)
}

fn sheet(review: &Review, now_ns: i64) -> Table {
    let request = review.request.clone().unwrap_or_default();
    let mut sheet = Sheet(Table::new(&[left("", 10), grow("")]));
    head(&mut sheet, review, &request, now_ns);
    facts(&mut sheet, &request.facts.clone().unwrap_or_default());
    verdict(&mut sheet, &request.verdict.clone().unwrap_or_default());
    kinds(&mut sheet, &request);
    chain(&mut sheet, review, &request.identity.clone().unwrap_or_default());
    for (i, before) in review.before.iter().enumerate() {
        sheet.row(if i == 0 { "before *" } else { "" }, command(before));
    }
    if review.before.is_empty() {
        sheet.row("before", "nothing in this session".to_owned());
    }
    sheet.row("digest", hex::encode(&request.digest));
    sheet.toned("*", "the agent's own words: untrusted".to_owned(), Tone::Dim);
    sheet.0
}

struct Sheet(Table);

impl Sheet {
    fn row(&mut self, key: &str, value: String) {
        self.toned(key, value, Tone::Plain);
    }

    fn toned(&mut self, key: &str, value: String, tone: Tone) {
        self.0.row([Cell::toned(key, Tone::Dim), Cell::toned(value, tone)]);
    }
}

fn head(sheet: &mut Sheet, review: &Review, request: &ExecRequest, now_ns: i64) {
    sheet.row("request", escape_str(&request.request_id));
    let mut state = escape_str(&review.state);
    if let Some(left) = time_left(review, now_ns) {
        state.push_str(&format!(", {} left", duration::show(left)));
    }
    if !review.reviewer.is_empty() {
        state.push_str(&format!(" by {}", escape_str(&review.reviewer)));
    }
    if !review.reason.is_empty() {
        state.push_str(&format!(": {}", escape_str(&review.reason)));
    }
    sheet.toned("state", state, disposition_tone(&review.state));
    if review.needed > 1 || !review.given.is_empty() {
        sheet.row("approvals", format!("{} of {}", review.given.len(), review.needed.max(1)));
    }
    for given in &review.given {
        let key = match given.key_id.as_slice() {
            [] => "not signed".to_owned(),
            id => format!("signed with key {}", roles::short(id)),
        };
        let whose = match given.on_behalf_of.as_str() {
            "" => String::new(),
            name => format!(" for {}", escape_str(name)),
        };
        sheet.row(
            "",
            format!("{}{whose}, {}, {key}, leaf {}", escape_str(&given.reviewer), escape_str(&given.scope), given.leaf),
        );
    }
    if let Some(text) = escalation(review, now_ns) {
        sheet.toned("escalation", text, Tone::Warn);
    }
    if let Some(d) = &review.acting_for {
        let (from, until) = (escape_str(&d.from), time::date_time(d.until_unix_ns));
        sheet.toned(
            "you act",
            format!("for {from}, by the delegation {} until {until} UTC", escape_str(&d.id)),
            Tone::Warn,
        );
    }
    for refused in &review.refused {
        sheet.toned("not taken", escape_str(refused), Tone::Bad);
    }
    sheet.row("opened", format!("{} UTC", time::date_time(review.opened_unix_ns)));
}

fn facts(sheet: &mut Sheet, facts: &ExecFacts) {
    sheet.toned("command *", command(facts), Tone::Warn);
    sheet.row("folder *", quote(&facts.cwd));
    for file in &facts.files {
        let size = file.size;
        sheet.row(
            &escape_str(&file.role),
            format!("{} ({size} bytes)\n{}", quote(&file.path), hex::encode(&file.sha256)),
        );
    }
    let chain: Vec<String> =
        facts.ancestry.iter().map(|p| format!("{} (pid {}, uid {})", escape(&p.exe), p.pid, p.uid)).collect();
    if facts.ancestry.is_empty() {
        sheet.row("parents", "none: the session's entry process".to_owned());
    } else {
        sheet.row("parents", chain.join("\n"));
    }
    sheet.row("user", format!("uid {}, gid {}, pid {}", facts.uid, facts.gid, facts.pid));
    let names: Vec<String> = facts.env_notable.iter().map(|n| escape(n)).collect();
    let notable = if names.is_empty() { "nothing of note".to_owned() } else { format!("sets {}", names.join(", ")) };
    let values = facts.env_values.iter().map(|v| format!("\n{}={}", escape(&v.name), quote(&v.value)));
    sheet.row("env *", format!("{notable} ({} variables){}", facts.envc, values.collect::<String>()));
}

fn verdict(sheet: &mut Sheet, verdict: &Verdict) {
    let tier = format!("{}, {}, risk {} of 100", tier_word(verdict.tier), escape_str(&verdict.category), verdict.risk);
    sheet.toned("verdict", tier, Tone::Warn);
    // Of a script or a line of shell: what its parts are, of which the strictest decided.
    if verdict.categories.len() > 1 {
        sheet.row("parts", escape_str(&verdict.categories.join(", ")));
    }
    for (i, reason) in verdict.reasons.iter().enumerate() {
        let evidence =
            if reason.evidence.is_empty() { String::new() } else { format!(": {}", escape_str(&reason.evidence)) };
        let text = format!("[{}] {}{evidence}", escape_str(&reason.rule_id), escape_str(&reason.text));
        sheet.row(if i == 0 { "rules" } else { "" }, text);
    }
    if !verdict.targets.is_empty() {
        sheet.row("targets *", verdict.targets.iter().map(|t| escape_str(t)).collect::<Vec<_>>().join("\n"));
    }
    let anomalies = match (verdict.anomalies_covered, verdict.anomalies.is_empty()) {
        (false, _) => NOT_COVERED.to_owned(),
        (true, true) => "none fired".to_owned(),
        (true, false) => escape_str(&verdict.anomalies.join(", ")),
    };
    sheet.row("anomalies", anomalies);
    sheet.row("undo", NOT_COVERED.to_owned());
}

/// What an approval with scope kind would cover.
fn kinds(sheet: &mut Sheet, request: &ExecRequest) {
    if request.kinds.is_empty() {
        return sheet.row("kinds", "none: --scope kind is not offered".to_owned());
    }
    for (i, kind) in request.kinds.iter().enumerate() {
        let by = match kind.rule_id.as_str() {
            "builtin.no-rule" | "kind.own-code" => String::new(),
            rule => format!(" [{}]", escape_str(rule)),
        };
        let text = format!("{}: {}{by}", escape_str(&kind.category), escape_str(&kind.scope));
        sheet.row(if i == 0 { "kinds *" } else { "" }, text);
    }
    sheet.row("", format!("with --scope kind, up to risk {} for the rest of the session", request.kinds_max_risk));
}

fn chain(sheet: &mut Sheet, review: &Review, i: &Identity) {
    let host = if review.host_name.is_empty() { hex::encode(&review.host) } else { escape_str(&review.host_name) };
    sheet.row("agent", format!("{} on {host}", escape_str(&i.agent)));
    sheet.row("instance", escape_str(&i.instance));
    sheet.row("session", escape_str(&i.session_id));
    let by =
        if i.started_by.is_empty() { String::new() } else { format!(", started by {}", escape_str(&i.started_by)) };
    sheet.row("initiator", format!("{} (uid {}){by}", escape_str(&i.initiator), i.initiator_uid));
    let rights = if i.categories.is_empty() { NOT_COVERED.to_owned() } else { escape_str(&i.categories.join(", ")) };
    sheet.row("rights", rights);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_request_is_shown_whole_in_eighty_columns() {
        let (review, now) = testing::review();
        let text = render(&review, now, 80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn forged_text_cannot_leave_its_line() {
        let (mut review, now) = testing::review();
        if let Some(facts) = review.request.as_mut().and_then(|r| r.facts.as_mut()) {
            facts.argv =
                vec![b"rm".to_vec(), b"x\nverdict    allow\x1b[2K\x1b[1A".to_vec(), "\u{202e}fr-".as_bytes().to_vec()];
        }
        let text = render(&review, now, 80, false);
        assert!(!text.chars().any(|c| c != '\n' && crate::text::is_hidden(c)), "{text}");
        assert_eq!(text.lines().filter(|l| l.starts_with("verdict")).count(), 1, "{text}");
    }
}
