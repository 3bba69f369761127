//! `guardctl status`: the measured mode of each node, and the collector.
//!
//! It must not show a configured mode: only what a node measured, with its age. Fails: see `client` and `local`.

use guard_proto::v1::{
    KernelSupport, LocalStatus, LocalStatusRequest, NodeReport, NodeState, Retention, StatusReply, StatusRequest,
    WebhookState, WitnessStatus, local_reply, local_request,
};
use serde_json::{Value, json};

use crate::args::StatusArgs;
use crate::client;
use crate::config::Config;
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::local;
use crate::output::Out;
use crate::table::{Cell, Table, Tone, grow, left, right};
use crate::text::escape_str;
use crate::time;

/// `guardctl status`.
pub async fn run(args: &StatusArgs, config: &Config, out: &Out) -> Result<()> {
    let now = time::now_ns();
    if args.local {
        let request = local_request::Request::Status(LocalStatusRequest {});
        let local_reply::Reply::Status(status) = local::call(&config.socket_path(), request)? else {
            return Err(CliError::new(Exit::Internal, "the daemon answered something else"));
        };
        return if out.is_json() {
            out.json(&local_json(&status, now))
        } else {
            out.print(&local_text(&status, now, out.width(), out.color()))
        };
    }
    let mut client = client::connect(config).await?;
    let status = client.status(StatusRequest {}).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        out.json(&status_json(&status, now))
    } else {
        out.print(&status_text(&status, now, out.width(), out.color()))
    }
}

fn age(then_ns: i64, now_ns: i64) -> Option<u64> {
    (then_ns != 0).then(|| u64::try_from(now_ns.saturating_sub(then_ns)).unwrap_or(0))
}

fn age_text(then_ns: i64, now_ns: i64) -> String {
    age(then_ns, now_ns).map_or_else(|| "never".to_owned(), |a| format!("{} ago", duration::show(a)))
}

fn mode_tone(mode: &str, connected: bool) -> Tone {
    match mode {
        "enforcing" if connected => Tone::Good,
        "inert" | "lifted" => Tone::Bad,
        _ => Tone::Warn,
    }
}

/// What a collector could invent.
const UNSIGNED: &str = "decisions are not signed: the role file names no reviewer's key";

fn status_text(s: &StatusReply, now: i64, width: usize, color: bool) -> String {
    let mut out = format!(
        "collector {}  log {} of {} records published {}\norigin    {}\nvkey      {}\nsessions  {} open, {} requests \
         wait for review\n\n",
        escape_str(&s.collector_version),
        s.checkpoint_size,
        s.log_size,
        age_text(s.checkpoint_unix_ns, now),
        escape_str(&s.origin),
        escape_str(&s.log_vkey),
        s.open_sessions,
        s.pending_reviews,
    );
    if let [_, next] = s.signing_vkeys.as_slice() {
        out.truncate(out.len() - 1);
        out.push_str(&format!("          being followed by {}, which signs too\n\n", escape_str(next)));
    }
    if !s.publish_error.is_empty() {
        out.truncate(out.len() - 1);
        out.push_str(&format!("          NOT PUBLISHED: {}\n\n", escape_str(&s.publish_error)));
    }
    if let Some(witnesses) = &s.witnesses {
        out.truncate(out.len() - 1);
        out.push_str(&witnesses_text(witnesses, now, width, color));
        out.push('\n');
    }
    if let Some(kept) = s.retention.as_ref().filter(|kept| kept.first_leaf > 0 || !kept.policy.is_empty()) {
        out.truncate(out.len() - 1);
        out.push_str(&format!("entries   {}\n\n", retention_text(kept)));
    }
    if !s.webhooks.is_empty() {
        out.truncate(out.len() - 1);
        out.push_str(&webhooks_text(&s.webhooks, now, width, color));
        out.push('\n');
    }
    if !s.roles_digest.is_empty() {
        out.truncate(out.len() - 1);
        out.push_str(&format!("roles     {}\n\n", escape_str(&s.roles_digest)));
    }
    if !s.roles_error.is_empty() {
        out.truncate(out.len() - 1);
        out.push_str(&format!("          REFUSED, the ones before stay: {}\n\n", escape_str(&s.roles_error)));
    }
    if s.nodes.is_empty() {
        out.push_str("no node has reported\n");
        return out;
    }
    let mut table = Table::new(&[
        left("NODE", 20),
        left("MODE", 10),
        right("MEASURED", 12),
        right("SESS", 4),
        right("HELD", 4),
        right("BACKLOG", 7),
        right("FINDINGS", 8),
    ]);
    for node in &s.nodes {
        node_row(&mut table, node, now);
    }
    out.push_str(&table.render(width, color));
    out
}

fn retention_text(kept: &Retention) -> String {
    let from = match kept.first_leaf {
        0 => "none pruned yet".to_owned(),
        first => format!("from leaf {first} on, pruned by record {}", kept.record_leaf),
    };
    match kept.policy.as_str() {
        "" => format!("{from}; no policy now"),
        policy => format!("{from}\n          {}", escape_str(policy)),
    }
}

fn witnesses_text(w: &WitnessStatus, now: i64, width: usize, color: bool) -> String {
    let mut table = Table::new(&[left("", 9), grow("")]);
    let quorum = match w.cosigned_size {
        0 => "no checkpoint has a quorum yet".to_owned(),
        size => format!("a quorum cosigned {size} records {}", age_text(w.cosigned_unix_ns, now)),
    };
    let now_without = match (w.quorum, w.without_quorum.as_str()) {
        (true, _) => "",
        (false, "hold") => "; NONE NOW: acknowledgements are held",
        (false, _) => "; NONE NOW: the log goes on without",
    };
    let tone = if w.quorum { Tone::Good } else { Tone::Bad };
    table.row([Cell::toned("witnesses", Tone::Plain), Cell::toned(format!("{quorum}{now_without}"), tone)]);
    for state in &w.states {
        let size = if state.size == 0 { "nothing".to_owned() } else { format!("{} records", state.size) };
        let text = format!("{} cosigned {size}, {}", escape_str(&state.name), age_text(state.cosigned_unix_ns, now));
        let (text, tone) = match (state.error.as_str(), state.url.as_str()) {
            ("", "") => (format!("{text}; is not asked, it has no address"), Tone::Dim),
            ("", _) => (text, Tone::Dim),
            (error, _) => (format!("{text}; {}", escape_str(error)), Tone::Warn),
        };
        table.row(["".into(), Cell::toned(text, tone)]);
    }
    table.render(width, color)
}

fn webhooks_text(webhooks: &[WebhookState], now: i64, width: usize, color: bool) -> String {
    let mut table = Table::new(&[left("", 9), grow("")]);
    for (i, w) in webhooks.iter().enumerate() {
        let behind = match (w.lag, w.waiting) {
            (0, false) => "told of everything".to_owned(),
            (lag, waiting) => format!("{}{lag} leaves behind", if waiting { "a message waits, " } else { "" }),
        };
        let last = match w.sent {
            0 => "none taken since the start".to_owned(),
            sent => format!("{sent} taken, the last {}", age_text(w.sent_unix_ns, now)),
        };
        let mut text = format!("{} at {}: {behind}; {last}", escape_str(&w.name), escape_str(&w.url));
        let tone = match (w.disabled, w.error.as_str()) {
            (true, _) => Tone::Bad,
            (false, "") => Tone::Plain,
            (false, _) => Tone::Warn,
        };
        if w.disabled {
            text.push_str("; DISABLED until a HUP or a restart");
        }
        if !w.error.is_empty() {
            let since = age_text(w.failing_since_unix_ns, now);
            text.push_str(&format!("; failing {} times, first {since}: {}", w.failures, escape_str(&w.error)));
        }
        table.row([Cell::toned(if i == 0 { "webhooks" } else { "" }, Tone::Plain), Cell::toned(text, tone)]);
    }
    table.render(width, color)
}

fn webhook_json(w: &WebhookState) -> Value {
    json!({"name": w.name, "url": w.url, "next_leaf": w.next_leaf, "lag": w.lag, "waiting": w.waiting, "sent": w.sent,
        "last_sent": time::rfc3339(w.sent_unix_ns), "error": Some(&w.error).filter(|e| !e.is_empty()),
        "failures": w.failures, "failing_since": time::rfc3339(w.failing_since_unix_ns), "disabled": w.disabled})
}

fn node_row(table: &mut Table, node: &NodeState, now: i64) {
    let report = node.report.clone().unwrap_or_default();
    let mode = if report.mode.is_empty() { "unknown" } else { &report.mode };
    table.row([
        escape_str(&node.node).into(),
        Cell::toned(escape_str(mode), mode_tone(mode, node.connected)),
        age_text(report.measured_unix_ns, now).into(),
        report.sessions.to_string().into(),
        report.held.to_string().into(),
        report.journal_backlog.to_string().into(),
        Cell::toned(node.findings.to_string(), if node.findings > 0 { Tone::Bad } else { Tone::Plain }),
    ]);
    let link = if node.connected { "connected" } else { "NOT connected" };
    let mut versions = format!("guard-agent {}, kernel {}", escape_str(&report.version), escape_str(&report.kernel));
    if report.takes_bundles {
        versions.push_str(&format!(", policy bundle {}", report.bundle_serial));
    }
    let host = format!("host {} {}", escape_str(&report.host_name), hex::encode(&report.host));
    let seen = age_text(node.seen_unix_ns, now);
    let tone = if node.connected { Tone::Dim } else { Tone::Warn };
    table.below(Cell::toned(format!("{link}, heard {seen}; {versions}; {host}"), tone));
    for (label, text) in [
        ("mode", &report.mode_detail),
        ("policy refused", &report.policy_error),
        ("certificate", &certificate_trouble(&report)),
    ] {
        if !text.is_empty() {
            table.below(Cell::toned(format!("{label}: {}", escape_str(text)), Tone::Warn));
        }
    }
    for text in observed(&report) {
        table.below(Cell::toned(text, Tone::Warn));
    }
    if report.decisions == "not_signed" {
        table.below(Cell::toned(UNSIGNED, Tone::Warn));
    }
    for warning in report.support.unwrap_or_default().warnings {
        table.below(Cell::toned(format!("limit: {}", escape_str(&warning)), Tone::Warn));
    }
}

/// Agents whose verdicts are not enforced.
fn observed(r: &NodeReport) -> impl Iterator<Item = String> {
    r.observed.iter().map(|o| {
        let until = time::date_time(o.until_unix_ns);
        format!("OBSERVED: agent {} until {until}: its verdicts are recorded, not enforced", escape_str(&o.agent))
    })
}

/// Why a node's certificate is not renewed, and when it ends.
fn certificate_trouble(r: &NodeReport) -> String {
    match r.certificate_error.as_str() {
        "" => String::new(),
        error => format!("ends {}, NOT RENEWED: {error}", time::date_time(r.certificate_not_after_unix_ns)),
    }
}

fn status_json(s: &StatusReply, now: i64) -> Value {
    let nodes = s.nodes.iter().map(|n| {
        json!({"node": n.node, "connected": n.connected, "seen": time::rfc3339(n.seen_unix_ns),
            "admitted_next_seq": n.next_seq, "findings": n.findings,
            "report": n.report.as_ref().map(|r| report_json(r, now))})
    });
    json!({
        "collector_version": s.collector_version, "origin": s.origin, "log_vkey": s.log_vkey, "log_size": s.log_size,
        "checkpoint_size": s.checkpoint_size, "checkpoint_time": time::rfc3339(s.checkpoint_unix_ns),
        "pending_reviews": s.pending_reviews, "open_sessions": s.open_sessions, "nodes": nodes.collect::<Vec<_>>(),
        "witnesses": s.witnesses.as_ref().map(witnesses_json),
        "publish_error": Some(&s.publish_error).filter(|e| !e.is_empty()), "signing_vkeys": s.signing_vkeys,
        "roles_digest": Some(&s.roles_digest).filter(|d| !d.is_empty()),
        "roles_error": Some(&s.roles_error).filter(|e| !e.is_empty()),
        "webhooks": s.webhooks.iter().map(webhook_json).collect::<Vec<_>>(),
        "retention": s.retention.as_ref().map(|kept| json!({"policy": Some(&kept.policy).filter(|p| !p.is_empty()),
            "first_leaf": kept.first_leaf, "record_leaf": Some(kept.record_leaf).filter(|_| kept.first_leaf > 0)})),
    })
}

fn witnesses_json(w: &WitnessStatus) -> Value {
    let time = |ns: i64| (ns != 0).then(|| time::rfc3339(ns));
    let states = w.states.iter().map(|s| {
        json!({"name": s.name, "url": Some(&s.url).filter(|u| !u.is_empty()), "size": s.size,
            "cosigned": time(s.cosigned_unix_ns), "error": Some(&s.error).filter(|e| !e.is_empty())})
    });
    json!({"quorum": w.quorum, "without_quorum": w.without_quorum, "cosigned_size": w.cosigned_size,
        "cosigned": time(w.cosigned_unix_ns), "witnesses": states.collect::<Vec<_>>()})
}

fn report_json(r: &NodeReport, now: i64) -> Value {
    // Sorted, so that two calls can be compared.
    let counters: std::collections::BTreeMap<_, _> = r.counters.iter().collect();
    json!({
        "host": hex::encode(&r.host), "host_name": r.host_name, "version": r.version, "kernel": r.kernel, "mode": r.mode,
        "mode_detail": r.mode_detail, "measured": time::rfc3339(r.measured_unix_ns),
        "age_ns": age(r.measured_unix_ns, now), "sessions": r.sessions, "held": r.held,
        "journal_next_seq": r.journal_next_seq, "journal_backlog": r.journal_backlog, "counters": counters,
        "roles_digest": Some(&r.roles_digest).filter(|d| !d.is_empty()),
        "roles_serial": (r.roles_serial > 0).then_some(r.roles_serial),
        "roles_age_seconds": (r.roles_serial > 0 && r.roles_age_seconds >= 0).then_some(r.roles_age_seconds),
        "roles_max_age_seconds": (r.roles_max_age_seconds > 0).then_some(r.roles_max_age_seconds),
        "decisions": Some(&r.decisions).filter(|d| !d.is_empty()), "policy_digest": r.policy_digest, "bundle": r.takes_bundles.then_some(r.bundle_serial), "observed": r.observed.iter().map(|o| json!({"agent": o.agent, "until": time::rfc3339(o.until_unix_ns)})).collect::<Vec<_>>(),
        "policy_error": Some(&r.policy_error).filter(|e| !e.is_empty()),
        "support": r.support.as_ref().map(support_json),
        "certificate_not_after": time::rfc3339(r.certificate_not_after_unix_ns),
        "certificate_error": Some(&r.certificate_error).filter(|e| !e.is_empty()),
    })
}

fn support_json(s: &KernelSupport) -> Value {
    json!({
        "programs": s.programs, "missing": s.missing, "fanotify_max_groups": s.fanotify_max_groups,
        "fanotify_max_marks": s.fanotify_max_marks, "descriptors": s.descriptors, "warnings": s.warnings,
    })
}

fn local_text(s: &LocalStatus, now: i64, width: usize, color: bool) -> String {
    let r = s.report.clone().unwrap_or_default();
    let mut table = Table::new(&[left("", 10), grow("")]);
    let mut row = |key: &str, value: Cell| table.row([Cell::toned(key, Tone::Dim), value]);
    row("mode", Cell::toned(escape_str(&r.mode), mode_tone(&r.mode, true)));
    if !r.mode_detail.is_empty() {
        row("", escape_str(&r.mode_detail).into());
    }
    row("measured", age_text(r.measured_unix_ns, now).into());
    row("host", format!("{} ({})", escape_str(&r.host_name), hex::encode(&r.host)).into());
    row("version", format!("guard-agent {}, kernel {}", escape_str(&r.version), escape_str(&r.kernel)).into());
    row("sessions", format!("{} open, {} execs held", r.sessions, r.held).into());
    row("journal", format!("{} records, {} not yet in the log", r.journal_next_seq, r.journal_backlog).into());
    if let Some(support) = &r.support {
        row("programs", programs(support).into());
        row("limits", limits(support).into());
        for warning in &support.warnings {
            row("", Cell::toned(escape_str(warning), Tone::Warn));
        }
    }
    let bundle = match (r.takes_bundles, r.bundle_serial) {
        (false, _) => String::new(),
        (true, 0) => ", no bundle yet".to_owned(),
        (true, serial) => format!(", bundle {serial}"),
    };
    row("policy", format!("{}{bundle}", escape_str(&r.policy_digest)).into());
    for text in observed(&r) {
        row("", Cell::toned(text, Tone::Warn));
    }
    row("roles", roles(&r.roles_digest));
    if let Some((text, tone)) = roles_age(&r) {
        row("", Cell::toned(text, tone));
    }
    if !r.policy_error.is_empty() {
        row("", Cell::toned(format!("refused: {}", escape_str(&r.policy_error)), Tone::Bad));
    }
    if r.certificate_not_after_unix_ns != 0 {
        let (text, tone) = match certificate_trouble(&r).as_str() {
            "" => (format!("ends {}", time::date_time(r.certificate_not_after_unix_ns)), Tone::Plain),
            trouble => (escape_str(trouble), Tone::Bad),
        };
        row("cert", Cell::toned(text, tone));
    }
    match r.decisions.as_str() {
        "" => {}
        "signed" => row("decisions", Cell::toned("only a reviewer's own signature approves", Tone::Good)),
        _ => row("decisions", Cell::toned(UNSIGNED, Tone::Warn)),
    }
    if s.collector_connected {
        row("collector", Cell::toned("connected", Tone::Good));
    } else {
        row("collector", Cell::toned(format!("not connected: {}", escape_str(&s.collector_error)), Tone::Bad));
    }
    let lost: Vec<_> = {
        let sorted: std::collections::BTreeMap<_, _> = r.counters.iter().filter(|(_, n)| **n > 0).collect();
        sorted.into_iter().map(|(name, n)| format!("{} {n}", escape_str(name))).collect()
    };
    if !lost.is_empty() {
        row("counters", lost.join(", ").into());
    }
    table.render(width, color)
}

/// Whether the roles are signed, and how long ago the collector confirmed them. Nothing where that does not matter.
fn roles_age(r: &NodeReport) -> Option<(String, Tone)> {
    let limit = (r.roles_max_age_seconds > 0).then_some(r.roles_max_age_seconds);
    if r.roles_serial == 0 {
        let text = "not of a signed bundle: no session starts (roles.max_age_seconds)";
        return limit.map(|_| (text.to_owned(), Tone::Bad));
    }
    let shown = |seconds: u64| duration::show(seconds.saturating_mul(1_000_000_000));
    let age = u64::try_from(r.roles_age_seconds).ok();
    let confirmed = age.map_or_else(|| "not confirmed yet".to_owned(), |age| format!("confirmed {} ago", shown(age)));
    let over = limit.is_some_and(|limit| age.is_none_or(|age| age > limit));
    let rest = match (limit, over) {
        (None, _) => String::new(),
        (Some(limit), false) => format!(", at most {}", shown(limit)),
        (Some(limit), true) => format!(", more than {}: no session starts or is renewed", shown(limit)),
    };
    Some((format!("signed, bundle {}, {confirmed}{rest}", r.roles_serial), if over { Tone::Bad } else { Tone::Plain }))
}

fn roles(digest: &str) -> Cell {
    match digest {
        "" => Cell::toned("none in force: sessions may request every category", Tone::Warn),
        digest => escape_str(digest).into(),
    }
}

fn programs(s: &KernelSupport) -> String {
    match s.missing.as_slice() {
        [] => format!("{} attached, no hook is missing", s.programs),
        missing => format!("{} attached; this kernel has no hook for {}", s.programs, escape_str(&missing.join(", "))),
    }
}

fn limits(s: &KernelSupport) -> String {
    format!("{} fanotify groups, {} marks, {} descriptors", s.fanotify_max_groups, s.fanotify_max_marks, s.descriptors)
}

fn local_json(s: &LocalStatus, now: i64) -> Value {
    json!({"report": s.report.as_ref().map(|r| report_json(r, now)), "collector_connected": s.collector_connected,
        "collector_error": Some(&s.collector_error).filter(|e| !e.is_empty())})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn status_fits_eighty_columns() {
        let (status, now) = testing::status();
        let text = status_text(&status, now, 80, false);
        assert!(text.lines().filter(|l| !l.starts_with("vkey")).all(|l| l.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn status_has_a_stable_json_form() {
        let (status, now) = testing::status();
        insta::assert_snapshot!(testing::pretty(&status_json(&status, now)));
    }

    #[test]
    fn the_local_daemon_fits_eighty_columns() {
        let (status, now) = testing::status();
        let local = LocalStatus {
            report: status.nodes.into_iter().next().and_then(|n| n.report),
            collector_connected: false,
            collector_error: "connection refused".into(),
        };
        insta::assert_snapshot!(local_text(&local, now, 80, false));
    }

    #[test]
    fn an_enforcing_node_that_is_gone_is_not_green() {
        assert_eq!(mode_tone("enforcing", true), Tone::Good);
        assert_eq!(mode_tone("enforcing", false), Tone::Warn);
        assert_eq!(mode_tone("inert", true), Tone::Bad);
    }
}
