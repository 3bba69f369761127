//! `guardctl review`: what waits for a person, and the person's answer.
//!
//! It must not send a decision for anything but what it showed: the digest comes from the request that was fetched and
//! printed. Text of the agent is marked as such. Fails: see `client`; a changed or closed request is `no`.

use std::collections::HashSet;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use guard_proto::v1::{DecideRequest, GetReviewRequest, ListReviewsRequest, Review};
use rustix::termios::isatty;
use serde_json::{Value, json};

use crate::args::{ApproveArgs, DenyArgs, ReviewCommand, ReviewListArgs, Scope};
use crate::client::{self, Client};
use crate::config::Config;
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::output::{Out, note};
use crate::record::{command, disposition_tone, facts_json, verdict_json};
use crate::table::{Cell, Table, Tone, grow, left, right};
use crate::text::escape_str;
use crate::time;

mod screen;
mod show;

/// How often `--watch` asks.
const WATCH: Duration = Duration::from_millis(500);
/// Execs that an approval with `--scope root` covers when no number is given.
const ROOT_EXECS: u32 = 20;

/// Runs a subcommand; without one the full screen, where there is a terminal for it.
pub async fn run(command: Option<&ReviewCommand>, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    let Some(command) = command else {
        return match screen::fits(out) {
            true => screen::run(client, config, out).await,
            false => list(&mut client, &ReviewListArgs::default(), out).await,
        };
    };
    match command {
        ReviewCommand::List(args) if args.watch => watch(&mut client, args, out).await,
        ReviewCommand::List(args) => list(&mut client, args, out).await,
        ReviewCommand::Show { id } => {
            let review = get(&mut client, id).await?;
            print(&review, out)
        }
        ReviewCommand::Approve(args) => approve(&mut client, args, out).await,
        ReviewCommand::Deny(args) => deny(&mut client, args, out).await,
    }
}

async fn get(client: &mut Client, id: &str) -> Result<Review> {
    let request = GetReviewRequest { request_id: id.to_owned() };
    Ok(client.get_review(request).await.map_err(client::refused)?.into_inner())
}

fn print(review: &Review, out: &Out) -> Result<()> {
    if out.is_json() {
        return out.json(&review_json(review, time::now_ns()));
    }
    out.print(&show::render(review, time::now_ns(), out.width(), out.color()))
}

async fn fetch(client: &mut Client, args: &ReviewListArgs) -> Result<Vec<Review>> {
    let request = ListReviewsRequest { all: args.all, session_id: args.session.clone(), limit: args.limit };
    Ok(client.list_reviews(request).await.map_err(client::refused)?.into_inner().reviews)
}

async fn list(client: &mut Client, args: &ReviewListArgs, out: &Out) -> Result<()> {
    let reviews = fetch(client, args).await?;
    let now = time::now_ns();
    if out.is_json() {
        let reviews: Vec<Value> = reviews.iter().map(|r| review_json(r, now)).collect();
        return out.json(&json!({ "reviews": reviews }));
    }
    if reviews.is_empty() {
        return out.print("nothing waits for review\n");
    }
    out.table(&list_table(&reviews, now))
}

/// Prints each request once, as it appears; JSON lines or rows. Never ends by itself.
async fn watch(client: &mut Client, args: &ReviewListArgs, out: &Out) -> Result<()> {
    let mut seen = HashSet::new();
    loop {
        let reviews = fetch(client, args).await?;
        let current: HashSet<String> = reviews.iter().map(id).collect();
        for review in reviews.iter().filter(|r| !seen.contains(&id(r))) {
            let now = time::now_ns();
            if out.is_json() {
                out.json(&review_json(review, now))?;
            } else {
                out.table(&list_table(std::slice::from_ref(review), now))?;
            }
        }
        // What is no longer listed cannot come back; forgetting it keeps this bounded.
        seen = current;
        tokio::time::sleep(WATCH).await;
    }
}

fn id(review: &Review) -> String {
    review.request.as_ref().map(|r| r.request_id.clone()).unwrap_or_default()
}

fn list_table(reviews: &[Review], now_ns: i64) -> Table {
    let mut table = Table::new(&[
        left("REQUEST", 26),
        left("STATE", 9),
        right("LEFT", 6),
        right("RISK", 4),
        grow("CATEGORY, AGENT, INITIATOR"),
    ]);
    for review in reviews {
        let request = review.request.clone().unwrap_or_default();
        let (identity, verdict) = (request.identity.unwrap_or_default(), request.verdict.unwrap_or_default());
        table.row([
            escape_str(&request.request_id).into(),
            Cell::toned(escape_str(&review.state), disposition_tone(&review.state)),
            time_left(review, now_ns).map_or_else(|| "-".to_owned(), duration::show).into(),
            verdict.risk.to_string().into(),
            format!(
                "{} {} for {}",
                escape_str(&verdict.category),
                escape_str(&identity.agent),
                escape_str(&identity.initiator)
            )
            .into(),
        ]);
        table.below(request.facts.as_ref().map(command).unwrap_or_default());
    }
    table
}

/// Nanoseconds until the deadline of a pending request; `None` when it is decided.
fn time_left(review: &Review, now_ns: i64) -> Option<u64> {
    let deadline = review.request.as_ref()?.deadline_unix_ns;
    (review.state == "pending").then(|| u64::try_from(deadline.saturating_sub(now_ns)).unwrap_or(0))
}

async fn approve(client: &mut Client, args: &ApproveArgs, out: &Out) -> Result<()> {
    if args.scope == Scope::Once && (!args.categories.is_empty() || args.max_execs.is_some()) {
        return Err(CliError::new(Exit::Usage, "--category and --max-execs belong to --scope root"));
    }
    let review = get(client, &args.id).await?;
    let request = review.request.clone().unwrap_or_default();
    let shown = show::render(&review, time::now_ns(), out.width(), out.color());
    if out.is_json() {
        note(shown.trim_end())
    } else {
        out.print(&shown)?
    }
    check_digest(args.digest.as_deref(), &request.digest)?;
    if isatty(io::stdin()) && !args.yes && !confirmed()? {
        return Err(CliError::new(Exit::No, "not approved"));
    }
    let own = request.verdict.as_ref().map(|v| v.category.clone()).unwrap_or_default();
    let root = args.scope == Scope::Root;
    let categories = if root && args.categories.is_empty() { vec![own] } else { args.categories.clone() };
    let decide = DecideRequest {
        request_id: args.id.clone(),
        digest: request.digest,
        approve: true,
        reason: args.reason.clone(),
        scope: if root { "root" } else { "once" }.to_owned(),
        categories,
        max_execs: if root { args.max_execs.unwrap_or(ROOT_EXECS) } else { 1 },
    };
    decided(client, decide, out).await
}

async fn deny(client: &mut Client, args: &DenyArgs, out: &Out) -> Result<()> {
    let request = get(client, &args.id).await?.request.unwrap_or_default();
    let decide = DecideRequest {
        request_id: args.id.clone(),
        digest: request.digest,
        approve: false,
        reason: args.reason.clone(),
        scope: "once".to_owned(),
        ..Default::default()
    };
    decided(client, decide, out).await
}

async fn decided(client: &mut Client, decide: DecideRequest, out: &Out) -> Result<()> {
    let sent = decide.clone();
    let reply = client.decide(decide).await.map_err(client::refused)?.into_inner();
    let word = if sent.approve { "approved" } else { "denied" };
    if out.is_json() {
        return out.json(&json!({"request": sent.request_id, "decision": word, "leaf": reply.leaf,
            "digest": hex::encode(&sent.digest), "scope": sent.scope, "categories": sent.categories,
            "max_execs": sent.max_execs}));
    }
    let scope = match sent.scope.as_str() {
        "root" => format!(", with up to {} execs of {}", sent.max_execs, escape_str(&sent.categories.join(", "))),
        _ => String::new(),
    };
    let tone = if sent.approve { Tone::Good } else { Tone::Bad };
    out.print(&format!("{} {}{scope}; in the log at leaf {}\n", out.paint(tone, word), sent.request_id, reply.leaf))
}

fn check_digest(wanted: Option<&str>, actual: &[u8]) -> Result<()> {
    let actual = hex::encode(actual);
    match wanted {
        Some(wanted) if !wanted.eq_ignore_ascii_case(&actual) => {
            Err(CliError::new(Exit::No, format_args!("the request's digest is {actual}, not the one given"))
                .hint("look at it again with `guardctl review show`"))
        }
        _ => Ok(()),
    }
}

fn confirmed() -> Result<bool> {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(b"approve exactly this? [y/N] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// The documented JSON form.
fn review_json(review: &Review, now_ns: i64) -> Value {
    let request = review.request.clone().unwrap_or_default();
    let identity = request.identity.clone().unwrap_or_default();
    json!({
        "request": request.request_id, "state": review.state, "digest": hex::encode(&request.digest),
        "opened": time::rfc3339(review.opened_unix_ns), "deadline": time::rfc3339(request.deadline_unix_ns),
        "left_ns": time_left(review, now_ns), "hold_max_ns": request.hold_max_ns, "leaf": review.leaf,
        "host": hex::encode(&review.host), "host_name": review.host_name,
        "session": identity.session_id, "agent": identity.agent, "instance": identity.instance,
        "initiator": identity.initiator, "categories": identity.categories,
        "facts": request.facts.as_ref().map(facts_json), "command": request.facts.as_ref().map(command),
        "verdict": request.verdict.as_ref().map(verdict_json),
        "reviewer": Some(&review.reviewer).filter(|r| !r.is_empty()),
        "reason": Some(&review.reason).filter(|r| !r.is_empty()),
        "before": review.before.iter().map(command).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn waiting_requests_fit_eighty_columns() {
        let (review, now) = testing::review();
        let table = list_table(&[review], now).render(80, false);
        assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
        insta::assert_snapshot!(table);
    }

    #[test]
    fn requests_have_a_stable_json_form() {
        let (review, now) = testing::review();
        insta::assert_snapshot!(testing::pretty(&review_json(&review, now)));
    }

    #[test]
    fn another_digest_is_refused() {
        assert!(check_digest(Some("ab01"), &[0xab, 1]).is_ok());
        assert!(check_digest(Some("AB01"), &[0xab, 1]).is_ok());
        assert_eq!(check_digest(Some("ab02"), &[0xab, 1]).expect_err("differs").kind, Exit::No);
    }
}
