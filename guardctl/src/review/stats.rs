//! `guardctl review stats`: figures of each reviewer, to find rubber-stamping.
//!
//! It must not judge. Fails: see `client`.

use guard_proto::v1::{ReviewStatsRequest, ReviewerStats};
use serde_json::{Value, json};

use crate::args::StatsArgs;
use crate::client::{self, Client};
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::table::{Table, grow, right};
use crate::text::escape_str;
use crate::time;

/// Runs the command.
pub async fn run(client: &mut Client, args: &StatsArgs, out: &Out) -> Result<()> {
    let since_unix_ns = time::parse(&args.since, time::now_ns()).map_err(|why| CliError::new(Exit::Usage, why))?;
    let reply = client.review_stats(ReviewStatsRequest { since_unix_ns }).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        let reviewers: Vec<Value> = reply.reviewers.iter().map(row_json).collect();
        let since = time::rfc3339(reply.since_unix_ns);
        return out.json(&json!({"since": since, "log_size": reply.log_size, "reviewers": reviewers}));
    }
    out.print(&format!("since {} UTC\n", time::date_time(reply.since_unix_ns)))?;
    if reply.reviewers.is_empty() {
        return out.print("nobody has decided anything\n");
    }
    out.table(&table(&reply.reviewers))
}

fn rate(s: &ReviewerStats) -> f64 {
    if s.decisions == 0 { 0.0 } else { f64::from(s.approved) / f64::from(s.decisions) }
}

fn table(reviewers: &[ReviewerStats]) -> Table {
    let mut table = Table::new(&[
        right("DECISIONS", 9),
        right("APPROVED", 8),
        right("MEDIAN", 7),
        right("P90", 7),
        right("YES < 3 s", 9),
        grow("REVIEWER"),
    ]);
    for s in reviewers {
        table.row([
            s.decisions.to_string().into(),
            format!("{:.0} %", rate(s) * 100.0).into(),
            duration::show(s.median_ns).into(),
            duration::show(s.p90_ns).into(),
            s.within_3s.to_string().into(),
            format!("{}, last {}", escape_str(&s.reviewer), time::date_time(s.last_unix_ns)).into(),
        ]);
    }
    table
}

fn row_json(s: &ReviewerStats) -> Value {
    json!({"reviewer": s.reviewer, "decisions": s.decisions, "approved": s.approved, "approve_rate": rate(s),
        "median_ns": s.median_ns, "p90_ns": s.p90_ns, "approved_within_3s": s.within_3s,
        "last": time::rfc3339(s.last_unix_ns)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_fit_eighty_columns_and_have_a_stable_json_form() {
        let bob = ReviewerStats {
            reviewer: "bob".into(),
            decisions: 120,
            approved: 119,
            median_ns: 1_400_000_000,
            p90_ns: 62_000_000_000,
            within_3s: 100,
            last_unix_ns: 1_769_860_800_000_000_000,
        };
        let text = table(std::slice::from_ref(&bob)).render(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(text.contains("99 %") && text.contains("bob"), "{text}");
        let json = row_json(&bob);
        assert_eq!((&json["decisions"], &json["approved_within_3s"]), (&120.into(), &100.into()));
    }
}
