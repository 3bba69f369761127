//! `guardctl whoami` and `guardctl can-i`: who the caller is for the collector, and what that allows.
//!
//! It must not decide: the answer is the collector's. Fails: see `client`; a right that is not there is exit code 1.

use guard_proto::v1::{CanIReply, CanIRequest, RoleRights, WhoAmIReply, WhoAmIRequest};
use serde_json::{Value, json};

use crate::args::{CanIArgs, RightArg};
use crate::client;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::table::{Cell, Table, Tone, grow, left};
use crate::text::escape_str;
use crate::time;

/// `guardctl whoami`.
pub async fn whoami(config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    let who = client.who_am_i(WhoAmIRequest {}).await.map_err(client::refused)?.into_inner();
    if out.is_json() { out.json(&who_json(&who)) } else { out.print(&who_text(&who, out.width(), out.color())) }
}

/// `guardctl can-i`: exit code 0 for yes, 1 for no.
pub async fn can_i(args: &CanIArgs, config: &Config, out: &Out) -> Result<u8> {
    let request = request(args)?;
    let mut client = client::connect(config).await?;
    let answer = client.can_i(request.clone()).await.map_err(client::refused)?.into_inner();
    if out.is_json() {
        out.json(&answer_json(&request, &answer))?;
    } else {
        out.print(&answer_text(&answer))?;
    }
    Ok(if answer.allowed { Exit::Ok as u8 } else { Exit::No as u8 })
}

fn request(args: &CanIArgs) -> Result<CanIRequest> {
    let usage = |text: &str, hint: &str| Err(CliError::new(Exit::Usage, text).hint(hint));
    let about = |right| args.right == right;
    if args.risk.is_some() && !about(RightArg::Review) {
        return usage("--risk belongs to review", "guardctl can-i review vcs.write --risk 60");
    }
    if args.agent.is_some() && !about(RightArg::Request) {
        return usage("--agent belongs to request", "guardctl can-i request vcs.write --agent coder");
    }
    if args.category.is_some() && (about(RightArg::Query) || about(RightArg::Administer)) {
        return usage("query and administer have no category", "guardctl can-i query");
    }
    let right = match args.right {
        RightArg::Request => "request",
        RightArg::Review => "review",
        RightArg::Query => "query",
        RightArg::Undo => "undo",
        RightArg::Administer => "administer",
    };
    Ok(CanIRequest {
        right: right.to_owned(),
        category: args.category.clone().unwrap_or_default(),
        risk: args.risk.unwrap_or(0),
        agent: args.agent.clone().unwrap_or_default(),
        person: args.person.clone().unwrap_or_default(),
    })
}

fn answer_text(answer: &CanIReply) -> String {
    format!("{}: {}\n", if answer.allowed { "yes" } else { "no" }, escape_str(&answer.reason))
}

fn answer_json(asked: &CanIRequest, answer: &CanIReply) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "allowed": answer.allowed, "reason": answer.reason, "right": asked.right, "category": some(&asked.category),
        "risk": (asked.right == "review").then_some(asked.risk), "agent": some(&asked.agent), "for": some(&asked.person),
    })
}

fn who_text(who: &WhoAmIReply, width: usize, color: bool) -> String {
    let roles = if who.roles.is_empty() { "no roles".to_owned() } else { escape_str(&who.roles.join(", ")) };
    let mut out = format!("{}: {roles}\n", escape_str(&who.name));
    if who.not_after_unix > 0 {
        let end = who.not_after_unix.saturating_mul(1_000_000_000);
        out.push_str(&format!("certificate {} until {} UTC\n", escape_str(&who.serial), time::date_time(end)));
    }
    if !who.roles_in_force {
        out.push_str("the collector has no role file: the certificate alone says what is allowed\n");
        return out;
    }
    if who.bound.is_empty() {
        out.push_str("the role file binds no role to this name: nothing but status and whoami is allowed\n");
        return out;
    }
    let mut table = Table::new(&[left("ROLE", 24), left("RIGHT", 10), grow("FOR")]);
    for role in &who.bound {
        role_rows(&mut table, role);
    }
    out.push('\n');
    out.push_str(&table.render(width, color));
    out
}

fn role_rows(table: &mut Table, role: &RoleRights) {
    let listed = |patterns: &[String]| (!patterns.is_empty()).then(|| escape_str(&patterns.join(", ")));
    let once = if role.review_escalated { ", once escalated" } else { "" };
    let review = listed(&role.review).map(|patterns| format!("{patterns} up to risk {}{once}", role.review_max_risk));
    let plain = |has: bool| has.then(String::new);
    let rights = [
        ("request", listed(&role.request)),
        ("review", review),
        ("query", plain(role.query)),
        ("undo", listed(&role.undo)),
        ("administer", plain(role.administer)),
        ("start for", listed(&role.start_for_others)),
    ];
    let mut name = escape_str(&role.name);
    for (right, what) in rights {
        if let Some(what) = what {
            table.row([std::mem::take(&mut name).into(), right.into(), what.into()]);
        }
    }
    if !name.is_empty() {
        table.row([name.into(), Cell::toned("nothing", Tone::Warn), "".into()]);
    }
}

fn who_json(who: &WhoAmIReply) -> Value {
    let bound = who.bound.iter().map(role_json);
    json!({
        "name": who.name, "roles": who.roles, "roles_in_force": who.roles_in_force,
        "bound": bound.collect::<Vec<_>>(), "roles_digest": Some(&who.roles_digest).filter(|d| !d.is_empty()),
        "serial": Some(&who.serial).filter(|s| !s.is_empty()),
        "not_after": (who.not_after_unix > 0).then(|| time::rfc3339(who.not_after_unix.saturating_mul(1_000_000_000))),
    })
}

/// One role in full.
pub fn role_json(r: &RoleRights) -> Value {
    let review =
        || json!({"categories": r.review, "max_risk": r.review_max_risk, "only_escalated": r.review_escalated});
    json!({"name": r.name, "request": r.request, "review": (!r.review.is_empty()).then(review), "query": r.query,
        "undo": r.undo, "administer": r.administer, "start_for_others": r.start_for_others})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bob() -> WhoAmIReply {
        let reviewer = RoleRights {
            name: "reviewer".into(),
            review: vec!["vcs.*".into(), "fs.write".into()],
            review_max_risk: 60,
            query: true,
            ..RoleRights::default()
        };
        let lead = RoleRights {
            name: "team-lead".into(),
            request: vec!["vcs.*".into(), "fs.*".into(), "build.run".into(), "pkg.read".into(), "shell".into()],
            undo: vec!["fs.*".into()],
            administer: true,
            start_for_others: vec!["alice".into()],
            ..RoleRights::default()
        };
        WhoAmIReply {
            name: "bob".into(),
            roles: vec!["reviewer".into()],
            roles_in_force: true,
            bound: vec![reviewer, lead, RoleRights { name: "empty".into(), ..RoleRights::default() }],
            not_after_unix: 1_769_860_800,
            serial: "4a01".into(),
            roles_digest: "0123abcd".into(),
        }
    }

    #[test]
    fn rights_fit_eighty_columns() {
        let text = who_text(&bob(), 80, false);
        assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
        let holds = |part: &str| assert!(text.contains(part), "no {part:?} in {text}");
        holds("bob: reviewer\n");
        holds("vcs.*, fs.write up to risk 60");
        ["request", "query", "undo", "administer", "start for", "team-lead", "nothing"].iter().for_each(|p| holds(p));
    }

    #[test]
    fn rights_have_a_stable_json_form() {
        let json = who_json(&bob());
        assert_eq!((&json["name"], &json["roles"][0]), (&"bob".into(), &"reviewer".into()));
        assert_eq!(
            json["bound"][0]["review"],
            json!({"categories": ["vcs.*", "fs.write"], "max_risk": 60, "only_escalated": false})
        );
        assert_eq!(json["bound"][1]["review"], Value::Null);
        assert_eq!(json["bound"][1]["start_for_others"], json!(["alice"]));
        assert_eq!((&json["roles_in_force"], &json["roles_digest"]), (&true.into(), &"0123abcd".into()));
    }

    #[test]
    fn a_name_without_roles_is_told_so() {
        let none = WhoAmIReply { bound: vec![], ..bob() };
        assert!(
            who_text(&none, 80, false)
                .ends_with("binds no role to this name: nothing but status and whoami is allowed\n")
        );
        let open = WhoAmIReply { roles_in_force: false, ..none };
        assert!(who_text(&open, 80, false).contains("no role file"));
    }

    #[test]
    fn options_that_belong_to_another_right_are_refused() {
        let args = |right, category: Option<&str>, risk, agent: Option<&str>| CanIArgs {
            right,
            category: category.map(str::to_owned),
            risk,
            agent: agent.map(str::to_owned),
            person: None,
        };
        let kind = |args: CanIArgs| request(&args).map_err(|e| e.kind);
        assert_eq!(kind(args(RightArg::Query, Some("vcs.read"), None, None)), Err(Exit::Usage));
        assert_eq!(kind(args(RightArg::Undo, None, Some(3), None)), Err(Exit::Usage));
        assert_eq!(kind(args(RightArg::Review, None, None, Some("coder"))), Err(Exit::Usage));
        let asked = kind(args(RightArg::Review, Some("vcs.write"), Some(60), None)).expect("fits");
        assert_eq!((asked.right.as_str(), asked.category.as_str(), asked.risk), ("review", "vcs.write", 60));
        let no = CanIReply { allowed: false, reason: "bob may not query: it has no role".into() };
        assert_eq!(answer_text(&no), "no: bob may not query: it has no role\n");
    }
}
