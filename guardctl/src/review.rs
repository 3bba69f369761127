//! `guardctl review`: what waits for a person, and the person's answer.
//!
//! It must not send a decision for anything but what it showed: the digest comes from the request that was fetched and
//! printed. Text of the agent is marked as such. Fails: see `client`; a changed or closed request is `no`.

use std::collections::HashSet;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use guard_policy::roles;
use guard_proto::v1::{GivenDecision, ListReviewsRequest, Review, RevokeRequest};
use rustix::termios::{QueueSelector, isatty, tcflush};
use serde_json::{Value, json};

use crate::args::{ApproveArgs, DenyArgs, ReviewCommand, ReviewListArgs, RevokeArgs, Scope};
use crate::client::{self, Client};
use crate::config::Config;
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::output::{Out, note};
use crate::record::{command, disposition_tone, facts_json, kinds_json, verdict_json};
use crate::table::{Cell, Table, Tone, grow, left, right};
use crate::text::escape_str;
use crate::time;

mod critical;
pub mod decide;
mod delegate;
mod identical;
mod screen;
mod show;
mod stats;
mod verify;

use decide::{Choice, Sent, get};

/// How often `--watch` asks.
const WATCH: Duration = Duration::from_millis(500);
/// Execs that an approval with `--scope root` or `session` covers when no number is given.
const EXECS: u32 = 20;
/// Execs of its kinds that an approval covers that names no number.
pub const KIND_EXECS: u32 = 200;

/// Runs a subcommand; without one the full screen, where there is a terminal for it.
pub async fn run(command: Option<&ReviewCommand>, config: &Config, out: &Out) -> Result<()> {
    if let Some(ReviewCommand::Verify(args)) = command {
        return verify::run(args, config, out).await;
    }
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
        ReviewCommand::Approve(args) => approve(&mut client, config, args, out).await,
        ReviewCommand::Deny(args) => deny(&mut client, config, args, out).await,
        ReviewCommand::Delegate(args) => delegate::begin(&mut client, config, args, out).await,
        ReviewCommand::Delegations => delegate::list(&mut client, out).await,
        ReviewCommand::Undelegate(args) => delegate::end(&mut client, args, out).await,
        ReviewCommand::Verify(args) => verify::run(args, config, out).await,
        ReviewCommand::Stats(args) => stats::run(&mut client, args, out).await,
        ReviewCommand::Revoke(args) => revoke(&mut client, args, out).await,
    }
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
    for (review, like) in identical::grouped(reviews) {
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
        if !like.is_empty() {
            let ids: Vec<String> = like.iter().map(|r| escape_str(&id(r))).collect();
            table.below(Cell::toned(format!("and {} identical: {}", ids.len(), ids.join(", ")), Tone::Warn));
        }
        if let Some(text) = escalation(review, now_ns) {
            table.below(Cell::toned(text, Tone::Warn));
        }
        if let Some(progress) = progress(review) {
            table.below(Cell::toned(progress, Tone::Warn));
        }
    }
    table
}

/// Whom else a request was escalated to, or when it will be. Nothing where that is not so.
fn escalation(review: &Review, now_ns: i64) -> Option<String> {
    if review.escalated_unix_ns != 0 {
        let to = escape_str(&review.escalated_to.join(", "));
        return Some(format!("escalated to {to} at {} UTC", time::clock(review.escalated_unix_ns)));
    }
    let left = u64::try_from(review.escalates_unix_ns.saturating_sub(now_ns)).ok().filter(|left| *left > 0)?;
    (review.escalates_unix_ns != 0).then(|| format!("escalates in {}", duration::show(left)))
}

/// How many have approved a request that needs several; what its host did not take.
fn progress(review: &Review) -> Option<String> {
    if review.state != "pending" || (review.needed < 2 && review.given.is_empty() && review.refused.is_empty()) {
        return None;
    }
    let mut text = format!("{} of {} approvals", review.given.len(), review.needed.max(1));
    if !review.given.is_empty() {
        let by: Vec<String> = review.given.iter().map(|g| escape_str(&g.reviewer)).collect();
        text.push_str(&format!(", by {}", by.join(", ")));
    }
    if !review.refused.is_empty() {
        text.push_str(&format!("; its host did not take {}", review.refused.len()));
    }
    Some(text)
}

/// Nanoseconds until the deadline of a pending request; `None` when it is decided.
fn time_left(review: &Review, now_ns: i64) -> Option<u64> {
    let deadline = review.request.as_ref()?.deadline_unix_ns;
    (review.state == "pending").then(|| u64::try_from(deadline.saturating_sub(now_ns)).unwrap_or(0))
}

async fn approve(client: &mut Client, config: &Config, args: &ApproveArgs, out: &Out) -> Result<()> {
    let root = args.scope == Scope::Root;
    if !root && !args.categories.is_empty() {
        return Err(CliError::new(Exit::Usage, "--category belongs to --scope root"));
    }
    if args.scope == Scope::Once && args.max_execs.is_some() {
        return Err(CliError::new(Exit::Usage, "--max-execs belongs to --scope root, session and kind"));
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
    if args.scope == Scope::Kind && request.kinds.is_empty() {
        return Err(CliError::new(Exit::Usage, "--scope kind is not offered for this request")
            .hint("it names no kind of act that can be told apart, or its risk is critical: use --scope session for the exact command"));
    }
    let all = together(client, &review, args.identical).await?;
    confirm(&review, all.len(), args)?;
    let own = request.verdict.as_ref().map(|v| v.category.clone()).unwrap_or_default();
    let categories = if root && args.categories.is_empty() { vec![own] } else { args.categories.clone() };
    let (scope, max_execs) = match args.scope {
        Scope::Once => ("once", 1),
        Scope::Session => ("session", args.max_execs.unwrap_or(EXECS)),
        Scope::Kind => ("kind", args.max_execs.unwrap_or(KIND_EXECS)),
        Scope::Root => ("root", args.max_execs.unwrap_or(EXECS)),
    };
    let choice = Choice { approve: true, reason: args.reason.clone(), scope: scope.to_owned(), categories, max_execs };
    answer(client, config, &all, choice, out).await
}

/// The request, and those that are identical, if that is wanted.
async fn together(client: &mut Client, review: &Review, identical: bool) -> Result<Vec<Review>> {
    let mut all = vec![review.clone()];
    if identical {
        all.extend(identical::others(client, review).await?);
    }
    Ok(all)
}

/// Asks whether `count` requests like this one shall be approved. Critical risk takes a word that only reading gives, also where
/// nobody can be asked.
fn confirm(review: &Review, count: usize, args: &ApproveArgs) -> Result<()> {
    let asks = isatty(io::stdin());
    if count > 1 {
        note(&format!("with {} identical requests of the session", count - 1));
    }
    if !critical::is_critical(review) {
        return match asks && !args.yes && !confirmed()? {
            true => Err(CliError::new(Exit::No, "not approved")),
            false => Ok(()),
        };
    }
    match &args.confirm {
        Some(text) => critical::check(review, count, text),
        None if asks => critical::check(review, count, &typed(review, count)?),
        None => Err(critical::unconfirmed(review, count)),
    }
}

/// Decides requests, each by a decision of its own.
async fn answer(client: &mut Client, config: &Config, all: &[Review], choice: Choice, out: &Out) -> Result<()> {
    for review in all {
        let sent = decide::send(client, config, review, choice.clone()).await?;
        decided(&sent, out)?;
    }
    Ok(())
}

async fn deny(client: &mut Client, config: &Config, args: &DenyArgs, out: &Out) -> Result<()> {
    let review = get(client, &args.id).await?;
    let choice = Choice { reason: args.reason.clone(), scope: "once".to_owned(), ..Choice::default() };
    let all = together(client, &review, args.identical).await?;
    answer(client, config, &all, choice, out).await
}

async fn revoke(client: &mut Client, args: &RevokeArgs, out: &Out) -> Result<()> {
    let request = RevokeRequest { request_id: args.id.clone(), reason: args.reason.clone() };
    let leaf = client.revoke(request).await.map_err(client::refused)?.into_inner().leaf;
    if out.is_json() {
        return out.json(&json!({"request": args.id, "decision": "revoked", "leaf": leaf}));
    }
    let word = out.paint(Tone::Bad, "revoked");
    out.print(&format!("{word} {}; in the log at leaf {leaf}\n", escape_str(&args.id)))
}

fn decided(sent: &Sent, out: &Out) -> Result<()> {
    let decision = &sent.decision;
    let word = if decision.approve { "approved" } else { "denied" };
    let after = sent.review.clone().unwrap_or_default();
    // More have to approve before anything runs.
    let more = decision.approve && after.state == "pending" && after.needed > 1;
    if out.is_json() {
        return out.json(&json!({"request": decision.request_id, "decision": word, "leaf": sent.leaf,
            "digest": hex::encode(&decision.digest), "scope": decision.scope, "categories": decision.categories,
            "max_execs": decision.max_execs, "key_id": sent.key_id.map(hex::encode),
            "approvals": after.given.len(), "needed": after.needed,
            "on_behalf_of": sent.on_behalf_of}));
    }
    let scope = match decision.scope.as_str() {
        "root" => {
            format!(", with up to {} execs of {}", decision.max_execs, escape_str(&decision.categories.join(", ")))
        }
        "session" => format!(", this exact command up to {} times in this session", decision.max_execs),
        "kind" => format!(", acts of its kinds up to {} times in this session", decision.max_execs),
        _ => String::new(),
    };
    let on_behalf = sent.on_behalf_of.as_ref().map(|name| format!(", for {}", escape_str(name))).unwrap_or_default();
    let signed = match &sent.key_id {
        Some(id) => format!("; signed with key {}", roles::short(id)),
        None => String::new(),
    };
    let tone = if decision.approve { Tone::Good } else { Tone::Bad };
    let word = out.paint(tone, word);
    out.print(&format!(
        "{word} {}{on_behalf}{scope}{signed}; in the log at leaf {}\n",
        decision.request_id, sent.leaf
    ))?;
    if more {
        out.print(&format!("{} of {}: it takes other reviewers too\n", after.given.len(), after.needed))?;
    }
    Ok(())
}

fn given_json(given: &GivenDecision) -> Value {
    json!({"reviewer": given.reviewer, "leaf": given.leaf, "scope": given.scope, "categories": given.categories,
        "max_execs": given.max_execs, "on_behalf_of": Some(&given.on_behalf_of).filter(|name| !name.is_empty()),
        "key_id": Some(hex::encode(&given.key_id)).filter(|id| !id.is_empty())})
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
    Ok(matches!(prompt("approve exactly this? [y/N] ")?.trim(), "y" | "Y" | "yes"))
}

/// What a person types for a request of critical risk, after a pause: what was typed before it is thrown away.
fn typed(review: &Review, count: usize) -> Result<String> {
    let (risk, pause) = (critical::risk(review), Duration::from_nanos(critical::PAUSE_NS.unsigned_abs()));
    note(&format!("risk {risk} is critical: look at it for {} s", pause.as_secs()));
    std::thread::sleep(pause);
    tcflush(io::stdin(), QueueSelector::IFlush)
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot read the terminal: {e}")))?;
    prompt(&format!("to approve exactly this, type {}: ", critical::asked(review, count)))
}

fn prompt(text: &str) -> Result<String> {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| CliError::new(Exit::Internal, format_args!("cannot read the answer: {e}")))?;
    Ok(answer)
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
        "before": review.before.iter().map(command).collect::<Vec<_>>(), "needed": review.needed.max(1),
        "given": review.given.iter().map(given_json).collect::<Vec<_>>(), "refused": review.refused,
        "escalated": time::rfc3339(review.escalated_unix_ns), "escalated_to": review.escalated_to,
        "escalates": time::rfc3339(review.escalates_unix_ns),
        "acting_for": review.acting_for.as_ref().map(|d| &d.from),
        "kinds": kinds_json(&request), "kinds_max_risk": request.kinds_max_risk,
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
    fn who_is_asked_too_is_said_and_when() {
        let (mut review, now) = testing::review();
        assert_eq!(escalation(&review, now), None);
        review.escalates_unix_ns = now + 90_000_000_000;
        assert_eq!(escalation(&review, now).as_deref(), Some("escalates in 1m30s"));
        review.escalates_unix_ns = 0;
        (review.escalated_unix_ns, review.escalated_to) = (now, vec!["lead".into()]);
        let text = list_table(&[review], now).render(80, false);
        assert!(text.contains("escalated to lead at 12:00:48 UTC"), "{text}");
    }

    #[test]
    fn several_approvals_are_counted_for_people() {
        let (mut review, now) = testing::review();
        assert_eq!(progress(&review), None);
        review.needed = 2;
        assert_eq!(progress(&review).as_deref(), Some("0 of 2 approvals"));
        review.given = vec![GivenDecision { reviewer: "bob".into(), ..GivenDecision::default() }];
        review.refused = vec!["carol: not signed".into()];
        let text = list_table(&[review], now).render(80, false);
        assert!(text.contains("1 of 2 approvals, by bob; its host did not take 1"), "{text}");
    }

    #[test]
    fn another_digest_is_refused() {
        assert!(check_digest(Some("ab01"), &[0xab, 1]).is_ok());
        assert!(check_digest(Some("AB01"), &[0xab, 1]).is_ok());
        assert_eq!(check_digest(Some("ab02"), &[0xab, 1]).expect_err("differs").kind, Exit::No);
    }
}
