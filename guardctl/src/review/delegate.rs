//! `guardctl review delegate`, `delegations` and `undelegate`: the caller's right to review in somebody else's hands, for a time.
//!
//! A delegation is signed with the caller's own key, as decisions are; hosts believe nothing else. It must not be made without one. Fails:
//! see `client` and `key`; what cannot be meant is `usage`.

use guard_policy::decision::DelegationStatement;
use guard_proto::v1::{
    DelegateRequest, Delegation, DelegationState, ListDelegationsRequest, UndelegateRequest, WhoAmIRequest,
};
use serde_json::{Value, json};

use crate::args::{DelegateArgs, UndelegateArgs};
use crate::client::{self, Client};
use crate::config::Config;
use crate::duration;
use crate::exit::{CliError, Exit, Result};
use crate::key;
use crate::output::Out;
use crate::table::{Table, Tone, grow, left, right};
use crate::text::escape_str;
use crate::time;

/// Makes one and sends it.
pub async fn begin(client: &mut Client, config: &Config, args: &DelegateArgs, out: &Out) -> Result<()> {
    let signer = key::of(config)?.ok_or_else(|| {
        CliError::new(Exit::Config, "a delegation is signed with your own key, and there is none")
            .hint("make one with `guardctl key new` and have its line put into the role file")
    })?;
    let from = client.who_am_i(WhoAmIRequest {}).await.map_err(client::refused)?.into_inner().name;
    let now = time::now_ns();
    let mut delegation = Delegation {
        id: ulid::Ulid::generate().to_string(),
        from,
        to: args.to.clone(),
        categories: args.categories.clone(),
        max_risk: args.max_risk,
        made_unix_ns: now,
        until_unix_ns: until(&args.until, now)?,
        reason: args.reason.clone(),
        signature: Vec::new(),
    };
    delegation.signature = signer.delegate(&statement(&delegation)).to_vec();
    let request = DelegateRequest { delegation: Some(delegation.clone()) };
    let leaf = client.delegate(request).await.map_err(client::refused)?.into_inner().leaf;
    if out.is_json() {
        return out.json(&delegation_json(&delegation, leaf));
    }
    let word = out.paint(Tone::Good, "delegated");
    out.print(&format!(
        "{word} {} to {} up to risk {} until {} UTC; in the log at leaf {leaf}\n`guardctl review undelegate {}` ends it before\n",
        escape_str(&delegation.categories.join(", ")),
        escape_str(&delegation.to),
        delegation.max_risk,
        time::date_time(delegation.until_unix_ns),
        delegation.id
    ))
}

/// Ends one.
pub async fn end(client: &mut Client, args: &UndelegateArgs, out: &Out) -> Result<()> {
    let request = UndelegateRequest { id: args.id.clone(), reason: args.reason.clone() };
    let leaf = client.undelegate(request).await.map_err(client::refused)?.into_inner().leaf;
    if out.is_json() {
        return out.json(&json!({"delegation": args.id, "ended": true, "leaf": leaf}));
    }
    let word = out.paint(Tone::Bad, "ended");
    out.print(&format!("{word} delegation {}; in the log at leaf {leaf}\n", escape_str(&args.id)))
}

/// Shows those that have not ended.
pub async fn list(client: &mut Client, out: &Out) -> Result<()> {
    let reply = client.list_delegations(ListDelegationsRequest {}).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        let all: Vec<Value> = reply.delegations.iter().map(state_json).collect();
        return out.json(&json!({ "delegations": all }));
    }
    if reply.delegations.is_empty() {
        return out.print("nobody decides for anybody else\n");
    }
    out.table(&table(&reply.delegations, time::now_ns()))
}

/// A delegation as its maker signs it.
pub fn statement(d: &Delegation) -> DelegationStatement<'_> {
    DelegationStatement {
        id: &d.id,
        from: &d.from,
        to: &d.to,
        categories: &d.categories,
        max_risk: d.max_risk,
        made_unix_ns: d.made_unix_ns,
        until_unix_ns: d.until_unix_ns,
        reason: &d.reason,
    }
}

/// So long from now, or a time that is to come.
fn until(text: &str, now: i64) -> Result<i64> {
    let wrong = |why: String| CliError::new(Exit::Usage, format_args!("--until: {why}"));
    if let Ok(length) = duration::parse(text) {
        return Ok(now.saturating_add(i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)));
    }
    let at = time::parse(text, now).map_err(|_| {
        wrong("not a time: write 8h or 2d for so long from now, or 2026-01-31T12:00:00Z (UTC)".to_owned())
    })?;
    if at <= now { Err(wrong("it has passed".to_owned())) } else { Ok(at) }
}

fn table(delegations: &[DelegationState], now: i64) -> Table {
    let mut table = Table::new(&[left("DELEGATION", 26), right("LEFT", 6), right("RISK", 5), grow("WHO FOR WHOM")]);
    for state in delegations {
        let d = state.delegation.clone().unwrap_or_default();
        let left = u64::try_from(d.until_unix_ns.saturating_sub(now)).unwrap_or(0);
        table.row([
            escape_str(&d.id).into(),
            duration::show(left).into(),
            format!("<={}", d.max_risk).into(),
            format!("{} for {}", escape_str(&d.to), escape_str(&d.from)).into(),
        ]);
        let reason = if d.reason.is_empty() { String::new() } else { format!(": {}", escape_str(&d.reason)) };
        table.below(format!("{}{reason}", escape_str(&d.categories.join(", "))));
    }
    table
}

fn state_json(state: &DelegationState) -> Value {
    delegation_json(&state.delegation.clone().unwrap_or_default(), state.leaf)
}

fn delegation_json(d: &Delegation, leaf: u64) -> Value {
    let mut json = crate::record::delegation_json(d);
    if let Some(object) = json.as_object_mut() {
        object.insert("leaf".to_owned(), leaf.into());
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_769_860_800_000_000_000;

    #[test]
    fn ends_are_so_long_from_now_or_a_time_to_come() {
        assert_eq!(until("8h", NOON), Ok(NOON + 8 * 3_600_000_000_000));
        assert_eq!(until("2026-02-01", NOON), Ok(NOON + 12 * 3_600_000_000_000));
        for wrong in ["2026-01-31", "yesterday", "", "8"] {
            assert_eq!(until(wrong, NOON).expect_err(wrong).kind, Exit::Usage);
        }
    }

    #[test]
    fn delegations_fit_eighty_columns() {
        let delegation = Delegation {
            id: "01KG9F6R00ABCDEFGHJKMNPQRS".into(),
            from: "carol".into(),
            to: "bob".into(),
            categories: vec!["vcs.*".into(), "fs.write".into()],
            max_risk: 60,
            until_unix_ns: NOON + 3_600_000_000_000,
            reason: "on leave \u{1b}[2J".into(),
            ..Delegation::default()
        };
        let text = table(&[DelegationState { delegation: Some(delegation), leaf: 9 }], NOON).render(80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        assert!(text.contains("bob for carol") && text.contains("vcs.*, fs.write: on leave"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}
