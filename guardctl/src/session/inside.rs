//! `guardctl session status`, `messages` and `child`: what a process inside a session may ask of that session's own socket.
//!
//! It must not need a configuration or a certificate: the daemon knows the session by the process. Fails: see `local`; outside a
//! session there is no such socket.

use std::path::PathBuf;

use guard_proto::v1::{
    Messages, MessagesRequest, OwnStatus, OwnStatusRequest, PendingRequest, SessionMessage, local_reply, local_request,
};
use serde_json::{Value, json};

use crate::args::{SessionChildArgs, SessionMessagesArgs};
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::table::{Table, Tone, grow, left};
use crate::text::escape_str;
use crate::{local, run, time};

/// The session's socket: where the daemon says, or where it always is.
fn socket() -> Result<PathBuf> {
    let named = std::env::var_os("GUARD_SESSION_SOCKET").filter(|path| !path.is_empty());
    let path = named.map_or_else(|| PathBuf::from(guard_proto::SESSION_SOCKET), PathBuf::from);
    match path.exists() {
        true => Ok(path),
        false => Err(CliError::new(Exit::Unavailable, format_args!("there is no {}", path.display()))
            .hint("this is for processes inside a governed session (`guardctl run`)")),
    }
}

fn other() -> CliError {
    CliError::new(Exit::Internal, "the daemon answered something else")
}

/// How the session stands.
pub fn status(out: &Out) -> Result<()> {
    match local::call(&socket()?, local_request::Request::OwnStatus(OwnStatusRequest {}))? {
        local_reply::Reply::OwnStatus(status) if out.is_json() => out.json(&status_json(&status)),
        local_reply::Reply::OwnStatus(status) => out.table(&status_table(&status)),
        _ => Err(other()),
    }
}

/// The documented JSON form.
fn status_json(s: &OwnStatus) -> Value {
    let pending = |p: &PendingRequest| {
        json!({"request": p.request_id, "command": p.command, "category": p.category, "left_ns": p.left_ns,
            "held": p.held})
    };
    json!({
        "session": s.session_id, "instance": s.instance, "agent": s.agent, "initiator": s.initiator,
        "parent": some(&s.parent_session_id), "expires": time::rfc3339(s.expires_unix_ns), "left_ns": s.left_ns,
        "state": state(s), "rights": { "categories": s.categories, "limited": s.limited, "max_risk": s.max_risk },
        "profile": s.profile, "execs": s.execs, "denied": s.denied,
        "pending": s.pending.iter().map(pending).collect::<Vec<_>>(),
        "children": s.children, "children_left": s.children_left, "next_message": s.next_message,
    })
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn state(s: &OwnStatus) -> &str {
    some(&s.state).unwrap_or("open")
}

fn status_table(s: &OwnStatus) -> Table {
    let mut table = Table::new(&[left("", 10), grow("")]);
    let mut row = |key: &str, value: String| table.row([key.into(), value.into()]);
    row("session", escape_str(&s.session_id));
    if let Some(parent) = some(&s.parent_session_id) {
        row("child of", escape_str(parent));
    }
    row("state", format!("{}, {} left", escape_str(state(s)), duration::show(s.left_ns)));
    row("agent", format!("{} for {}", escape_str(&s.agent), escape_str(&s.initiator)));
    row("rights", rights(s));
    row("execs", format!("{}, {} denied", s.execs, s.denied));
    for p in &s.pending {
        let left = duration::show(p.left_ns);
        row("waits", format!("{} ({left} left): {}", escape_str(&p.request_id), escape_str(&p.command)));
    }
    for child in &s.children {
        row("child", escape_str(child));
    }
    row("messages", format!("{} so far", s.next_message.saturating_sub(1)));
    table
}

fn rights(s: &OwnStatus) -> String {
    let risk = s.max_risk.map(|risk| format!(", up to a risk of {risk}")).unwrap_or_default();
    match s.limited {
        true => format!("{}{risk}", escape_str(&s.categories.join(", "))),
        false => format!("every category{risk}"),
    }
}

/// What the session was told.
pub fn messages(args: &SessionMessagesArgs, out: &Out) -> Result<()> {
    let request = MessagesRequest { from: args.from, follow: args.follow };
    let stream = local::ask(&socket()?, local_request::Request::Messages(request))?;
    loop {
        let found = match local::receive(&stream)? {
            local_reply::Reply::Messages(found) => found,
            local_reply::Reply::Error(error) => return Err(local::refused(error)),
            _ => return Err(other()),
        };
        match (out.is_json(), args.follow) {
            (true, false) => out.json(&messages_json(&found))?,
            (true, true) => follow_json(&found).iter().try_for_each(|line| out.json(line))?,
            (false, _) => out.print(&lines(&found, out))?,
        }
        if !args.follow {
            return Ok(());
        }
    }
}

fn message_json(m: &SessionMessage) -> Value {
    json!({"number": m.number, "time": time::rfc3339(m.unix_ns), "kind": m.kind, "text": m.text,
        "request": some(&m.request_id), "pid": Some(m.pid).filter(|pid| *pid != 0), "rules": m.rules})
}

/// The documented JSON form of what is kept.
fn messages_json(found: &Messages) -> Value {
    json!({"messages": found.messages.iter().map(message_json).collect::<Vec<_>>(), "next": found.next,
        "missed": found.missed, "epoch": found.epoch})
}

/// One object a line: what is missing, then each message.
fn follow_json(found: &Messages) -> Vec<Value> {
    let missed = (found.missed > 0).then(|| json!({"missed": found.missed}));
    missed.into_iter().chain(found.messages.iter().map(message_json)).collect()
}

fn lines(found: &Messages, out: &Out) -> String {
    let mut text = String::new();
    if found.missed > 0 {
        text.push_str(&format!("{} older messages are not kept any more\n", found.missed));
    }
    for m in &found.messages {
        let request = some(&m.request_id).map(|id| format!(" (request {})", escape_str(id))).unwrap_or_default();
        let said = out.paint(Tone::Plain, &escape_str(&m.text));
        text.push_str(&format!("{} {} {said}{request}\n", m.number, time::clock(m.unix_ns)));
    }
    text
}

/// Runs a command in a child session.
pub async fn child(args: &SessionChildArgs, out: &Out) -> Result<u8> {
    run::child(args, socket()?, out.is_json()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;
    use crate::testing;

    fn own() -> OwnStatus {
        OwnStatus {
            session_id: "01KG9F6Q00ABCDEFGHJKMNPQRS".into(),
            instance: "spiffe://node-1/agent/coder/01KG9F6Q00ABCDEFGHJKMNPQRS".into(),
            agent: "coder".into(),
            initiator: "alice".into(),
            parent_session_id: "01KG9F6Q00ABCDEFGHJKMNPQR0".into(),
            expires_unix_ns: 1_769_860_800_000_000_000,
            left_ns: 125_000_000_000,
            categories: vec!["fs.read".into(), "vcs.read".into()],
            limited: true,
            max_risk: Some(30),
            execs: 12,
            denied: 1,
            pending: vec![PendingRequest {
                request_id: "01KG9F6Q00ABCDEFGHJKMNPQRT".into(),
                command: "git push \u{1b}[2J".into(),
                category: "vcs.remote".into(),
                left_ns: 60_000_000_000,
                held: true,
            }],
            children: vec![],
            children_left: 0,
            profile: "default".into(),
            next_message: 3,
            ..OwnStatus::default()
        }
    }

    fn told() -> Messages {
        Messages {
            messages: vec![SessionMessage {
                kind: "denied".into(),
                text: "denied: rm -rf / \u{1b}[2J: the session may not request fs.delete [roles.category]".into(),
                number: 2,
                unix_ns: 1_769_860_800_000_000_000,
                pid: 4711,
                rules: vec!["roles.category".into()],
                ..SessionMessage::default()
            }],
            next: 3,
            missed: 1,
            epoch: 7,
        }
    }

    #[test]
    fn status_fits_eighty_columns_and_cannot_leave_its_line() {
        let table = status_table(&own()).render(80, false);
        assert!(table.lines().all(|l| l.chars().count() <= 80) && !table.contains('\u{1b}'), "{table}");
        insta::assert_snapshot!(table);
    }

    #[test]
    fn status_and_messages_have_a_stable_json_form() {
        insta::assert_snapshot!(testing::pretty(&json!([
            status_json(&own()),
            messages_json(&told()),
            follow_json(&told())
        ])));
    }

    #[test]
    fn messages_are_escaped() {
        let text = lines(&told(), &Out::new(Format::Table));
        assert!(text.starts_with("1 older messages") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(text.lines().count(), 2);
    }
}
