//! `guardctl tail` and `guardctl query`: records as lines, one JSON object each or one row each.
//!
//! It must not reorder: records come in log order. Fails: see `client`; a followed stream that ends is `unavailable`.

use guard_proto::v1::{LogEntry, QueryRequest, StatusRequest, TailRequest};
use tonic::Code;

use crate::args::{QueryArgs, TailArgs};
use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record::{Entry, Line};
use crate::table::{Tone, wrap};
use crate::time;

/// Records that `tail` shows without `-f` and `--from`.
const NEWEST: u64 = 20;
/// Records asked for in one query.
const PAGE: u32 = 1_000;
/// Width of the columns before the text: leaf, time, session, event.
const INDENT: usize = 36;

/// `guardctl tail`.
pub async fn tail(args: &TailArgs, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    if !args.follow {
        let from = match args.from {
            Some(leaf) => leaf,
            None => {
                let status = client.status(StatusRequest {}).await.map_err(client::refused)?.into_inner();
                status.log_size.saturating_sub(NEWEST)
            }
        };
        let filter = QueryRequest { session_id: args.session.clone(), ..after(from.checked_sub(1)) };
        return query_all(&mut client, filter, u32::MAX, out).await;
    }
    let request = TailRequest {
        from_leaf: args.from.unwrap_or_default(),
        from_now: args.from.is_none(),
        session_id: args.session.clone(),
    };
    let mut stream = client.tail(request).await.map_err(client::refused)?.into_inner();
    while let Some(entry) = stream.message().await.map_err(client::refused)? {
        print(entry, out)?;
    }
    Err(CliError::new(Exit::Unavailable, "the collector ended the stream").hint("run the command again with --from"))
}

/// `guardctl query`.
pub async fn query(args: &QueryArgs, config: &Config, out: &Out) -> Result<()> {
    let now = time::now_ns();
    let at = |name: &str, text: &Option<String>| match text {
        None => Ok(0),
        Some(text) => {
            time::parse(text, now).map_err(|e| CliError::new(Exit::Usage, format_args!("--{name} {text:?}: {e}")))
        }
    };
    let filter = QueryRequest {
        session_id: args.session.clone(),
        agent: args.agent.clone(),
        instance: args.instance.clone(),
        program: args.program.clone(),
        initiator: args.initiator.clone(),
        host: args.host.as_ref().map(|h| h.0.clone()).unwrap_or_default(),
        disposition: args.disposition.clone().unwrap_or_default(),
        category: args.category.clone(),
        reviewer: args.reviewer.clone(),
        since_unix_ns: at("since", &args.since)?,
        until_unix_ns: at("until", &args.until)?,
        at_least: args.at_least,
        ..after(args.after)
    };
    let mut client = client::connect(config).await?;
    query_all(&mut client, filter, args.limit, out).await
}

fn after(leaf: Option<u64>) -> QueryRequest {
    QueryRequest { after_leaf: leaf.unwrap_or_default(), has_after_leaf: leaf.is_some(), ..Default::default() }
}

async fn query_all(client: &mut Client, filter: QueryRequest, limit: u32, out: &Out) -> Result<()> {
    each(client, filter, limit, &mut |entry| print(entry, out)).await
}

/// Asks page after page, so that no answer depends on how much the collector gives at once.
pub async fn each(
    client: &mut Client,
    mut filter: QueryRequest,
    limit: u32,
    take: &mut dyn FnMut(LogEntry) -> Result<()>,
) -> Result<()> {
    let (mut left, mut gone) = (limit, None);
    while left > 0 {
        filter.limit = left.min(PAGE);
        let mut stream = client.query(filter.clone()).await.map_err(client::refused)?.into_inner();
        let mut got = 0u32;
        loop {
            let entry = match stream.message().await {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                // Some of it was pruned: what is kept is shown first.
                Err(status) if status.code() == Code::OutOfRange => {
                    gone = Some(client::refused(status));
                    break;
                }
                Err(status) => return Err(client::refused(status)),
            };
            filter.after_leaf = entry.leaf;
            filter.has_after_leaf = true;
            got += 1;
            take(entry)?;
        }
        if got == 0 {
            break;
        }
        left = left.saturating_sub(got);
    }
    gone.map_or(Ok(()), Err)
}

fn print(entry: LogEntry, out: &Out) -> Result<()> {
    let entry = Entry::parse(entry)?;
    if out.is_json() { out.json(&entry.json()) } else { print_entry(&entry, out) }
}

/// Writes one record as one row.
pub fn print_entry(entry: &Entry, out: &Out) -> Result<()> {
    out.print(&row(entry, out.width(), |t, s| out.paint(t, s)))
}

/// One record as one row; continuation lines are indented, the text is never cut.
fn row(entry: &Entry, width: usize, paint: impl Fn(Tone, &str) -> String) -> String {
    let line = Line::new(entry);
    // The last characters of an id are its random part: they tell two sessions of the same second apart.
    let session: String = entry.session.chars().skip(entry.session.chars().count().saturating_sub(6)).collect();
    let mut out = format!(
        "{:>6}  {:8}  {:6}  {}{} ",
        entry.leaf,
        time::clock(entry.wall_ns),
        session,
        paint(line.tone, &line.event),
        " ".repeat(9usize.saturating_sub(line.event.chars().count())),
    );
    for (i, part) in wrap(&line.text, width.saturating_sub(INDENT).max(24)).iter().enumerate() {
        if i > 0 {
            out.push_str(&" ".repeat(INDENT));
        } else {
            out.push(' ');
        }
        out.push_str(part);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn rows_fit_eighty_columns() {
        let text: String = testing::all_kinds().iter().map(|e| row(e, 80, |_, s| s.to_owned())).collect();
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn records_have_a_stable_json_form() {
        insta::assert_snapshot!(testing::pretty(&testing::all_kinds().iter().map(Entry::json).collect::<Vec<_>>()));
    }
}
