//! `guardctl session`: list, the five answers, renewing and ending one; and what a session may ask about itself.
//!
//! It must not answer what the version cannot know: those answers read `not covered by this version`. Fails: see `client` and
//! `local`.

use guard_proto::v1::{
    EndSession, GetSessionReply, GetSessionRequest, ListSessionsRequest, LogEntry, QueryRequest, RenewSession,
    SessionSummary, local_reply, local_request,
};
use serde_json::{Value, json};
use tonic::Code;

use crate::args::{SessionCommand, SessionEndArgs, SessionListArgs, SessionRenewArgs, SessionShowArgs};
use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::local;
use crate::output::Out;
use crate::record::{Entry, text_value};
use crate::table::{Cell, Table, Tone, left, right};
use crate::text::{command_line, escape_str};
use crate::time;

mod answers;
mod history;
mod inside;

pub use answers::{Answers, NOT_COVERED};
pub use history::History;

/// Records asked for at a time when a session's answer was cut.
const PAGE: u32 = 1_000;

/// Runs a subcommand.
pub async fn run(command: &SessionCommand, config: &Config, out: &Out) -> Result<u8> {
    match command {
        SessionCommand::List(args) => list(args, config, out).await?,
        SessionCommand::Show(args) => show(args, config, out).await?,
        SessionCommand::Renew(args) => renew(args, config, out)?,
        SessionCommand::End(args) => end(args, config, out)?,
        SessionCommand::Status => inside::status(out)?,
        SessionCommand::Messages(args) => inside::messages(args, out)?,
        SessionCommand::Child(args) => return inside::child(args, out).await,
    }
    Ok(Exit::Ok as u8)
}

async fn list(args: &SessionListArgs, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    let mut sessions = Vec::new();
    let mut request = ListSessionsRequest {
        open_only: args.open,
        agent: args.agent.clone(),
        initiator: args.initiator.clone(),
        parent: args.parent.clone(),
        limit: args.limit,
        ..Default::default()
    };
    let log_size = loop {
        let reply = client.list_sessions(request.clone()).await.map_err(client::refused)?.into_inner();
        sessions.extend(reply.sessions);
        let missing = args.limit.saturating_sub(u32::try_from(sessions.len()).unwrap_or(u32::MAX));
        if reply.next_page_token.is_empty() || missing == 0 {
            break reply.log_size;
        }
        request.page_token = reply.next_page_token;
        request.limit = missing;
    };
    if out.is_json() {
        let sessions: Vec<Value> = sessions.iter().map(summary_json).collect();
        return out.json(&json!({ "sessions": sessions, "log_size": log_size }));
    }
    out.print(&list_table(&sessions).map_or_else(
        || format!("no {}sessions\n", if args.open { "open " } else { "" }),
        |t| t.render(out.width(), out.color()),
    ))
}

fn list_table(sessions: &[SessionSummary]) -> Option<Table> {
    let mut table = Table::new(&[
        left("SESSION", 26),
        left("STARTED", 19),
        left("STATE", 10),
        right("EXECS", 6),
        right("DENIED", 6),
        right("WAIT", 4),
    ]);
    for s in sessions {
        let (state, tone) = state(s);
        table.row([
            escape_str(&s.session_id).into(),
            time::date_time(s.started_unix_ns).into(),
            Cell::toned(state, tone),
            s.execs.to_string().into(),
            s.denied.to_string().into(),
            s.pending.to_string().into(),
        ]);
        let host = if s.host_name.is_empty() { hex::encode(&s.host) } else { escape_str(&s.host_name) };
        table.below(format!(
            "{} for {} on {host}: {}",
            escape_str(&s.agent),
            escape_str(&s.initiator),
            command_line(&s.argv)
        ));
    }
    (!table.is_empty()).then_some(table)
}

/// The state of a session in one word: open, or why it ended.
fn state(s: &SessionSummary) -> (String, Tone) {
    match s.end_reason.as_str() {
        _ if s.ended_unix_ns == 0 => ("open".to_owned(), Tone::Good),
        "" => ("ended".to_owned(), Tone::Plain),
        "exited" => ("exited".to_owned(), Tone::Plain),
        reason => (escape_str(reason), Tone::Warn),
    }
}

/// The documented JSON form of a summary.
fn summary_json(s: &SessionSummary) -> Value {
    json!({
        "session": s.session_id, "agent": s.agent, "instance": s.instance, "initiator": s.initiator,
        "parent": Some(&s.parent_session_id).filter(|p| !p.is_empty()),
        "host": hex::encode(&s.host), "host_name": s.host_name, "started": time::rfc3339(s.started_unix_ns),
        "ended": time::rfc3339(s.ended_unix_ns), "expires": time::rfc3339(s.expires_unix_ns),
        "open": s.ended_unix_ns == 0, "end_reason": Some(&s.end_reason).filter(|r| !r.is_empty()),
        "purpose": s.purpose, "argv": s.argv.iter().map(|a| text_value(a)).collect::<Vec<_>>(),
        "counts": { "execs": s.execs, "allowed": s.allowed, "inherited": s.inherited, "approved": s.approved,
            "denied": s.denied, "timed_out": s.timed_out, "expired": s.expired, "killed": s.killed,
            "failed": s.failed, "pending": s.pending },
    })
}

async fn show(args: &SessionShowArgs, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    let request = GetSessionRequest { session_id: args.id.clone(), at_least: args.at_least };
    let mut reply = client.get_session(request).await.map_err(client::refused)?.into_inner();
    if reply.truncated {
        fetch_rest(&mut client, &args.id, &mut reply).await?;
    }
    let entries = std::mem::take(&mut reply.entries).into_iter().map(Entry::parse).collect::<Result<Vec<_>>>()?;
    let summary = reply.summary.unwrap_or_default();
    let answers = Answers::new(summary, History::new(&entries), reply.log_size);
    if out.is_json() {
        let mut json = answers.json();
        if let Some(object) = json.as_object_mut() {
            object.insert("pruned".to_owned(), reply.pruned.into());
        }
        return out.json(&json);
    }
    out.print(&answers.render(out.width(), out.color()))?;
    match reply.pruned {
        0 => Ok(()),
        pruned => out.print(&format!("{pruned} records of it are not there: {}\n", escape_str(&reply.pruned_by))),
    }
}

/// A long session does not fit into one message: reads on by leaf index.
async fn fetch_rest(client: &mut Client, id: &str, reply: &mut GetSessionReply) -> Result<()> {
    loop {
        let after = reply.entries.last().map(|e| e.leaf);
        let page = query_page(client, id, after).await?;
        if page.is_empty() {
            return Ok(());
        }
        reply.entries.extend(page);
    }
}

async fn query_page(client: &mut Client, id: &str, after: Option<u64>) -> Result<Vec<LogEntry>> {
    let request = QueryRequest {
        session_id: id.to_owned(),
        after_leaf: after.unwrap_or_default(),
        has_after_leaf: after.is_some(),
        limit: PAGE,
        ..Default::default()
    };
    let mut stream = client.query(request).await.map_err(client::refused)?.into_inner();
    let mut page = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(entry)) => page.push(entry),
            Ok(None) => return Ok(page),
            // The answer has said already that some were pruned.
            Err(status) if status.code() == Code::OutOfRange => return Ok(page),
            Err(status) => return Err(client::refused(status)),
        }
    }
}

fn renew(args: &SessionRenewArgs, config: &Config, out: &Out) -> Result<()> {
    let request = RenewSession { session_id: args.id.clone(), ttl_seconds: args.ttl.map_or(0, |t| t.as_secs()) };
    match local::call(&config.socket_path(), local_request::Request::RenewSession(request))? {
        local_reply::Reply::Renewed(renewed) if out.is_json() => {
            out.json(&json!({"session": args.id, "expires": time::rfc3339(renewed.expires_unix_ns)}))
        }
        local_reply::Reply::Renewed(renewed) => out.print(&format!("{}\n", escape_str(&renewed.text))),
        _ => Err(CliError::new(Exit::Internal, "the daemon answered something else")),
    }
}

fn end(args: &SessionEndArgs, config: &Config, out: &Out) -> Result<()> {
    let request = EndSession { session_id: args.id.clone(), reason: args.reason.clone() };
    match local::call(&config.socket_path(), local_request::Request::EndSession(request))? {
        local_reply::Reply::Done(done) if out.is_json() => out.json(&json!({"session": args.id, "text": done.text})),
        local_reply::Reply::Done(done) => out.print(&format!("{}\n", escape_str(&done.text))),
        _ => Err(CliError::new(Exit::Internal, "the daemon answered something else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn sessions_fit_eighty_columns() {
        let table = list_table(&testing::summaries()).expect("rows").render(80, false);
        assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
        insta::assert_snapshot!(table);
    }

    #[test]
    fn summaries_have_a_stable_json_form() {
        insta::assert_snapshot!(testing::pretty(&testing::summaries().iter().map(summary_json).collect::<Vec<_>>()));
    }
}
