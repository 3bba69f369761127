//! Roles on this host: the role file, the rights of a session at its start, and what they refuse later.
//!
//! It must not look at the file again once a session has started: its rights are those of its first record, whatever daemon
//! judges. Fails closed: a file that cannot be read is an error, a session without rights does not start, a category that
//! the snapshot does not hold is denied and never reviewed.

use guard_policy::roles::{Known, Role, Roles, Subject};
use guard_policy::{Policy, Source};
use guard_proto::v1::{Identity, Reason, RoleRights, RoleSnapshot, Tier, Verdict};

use crate::config::Config;
use crate::policies::InForce;
use crate::session::Session;

const FILE_MAX: u64 = 1 << 20;
/// In every refusal that roles give.
pub const HINT: &str =
    "roles are bound in the file that `[roles] file` in the daemon's configuration names (docs/roles.md)";
/// The rule that refuses.
const RULE: &str = "roles.category";
/// The rules that refuse in a child session.
const CHILD: &str = "session.child.category";
const CHILD_RISK: &str = "session.child.risk";

/// What a session may request, and why.
#[derive(Debug, Default)]
pub struct Rights {
    /// Categories.
    pub categories: Vec<String>,
    /// What roles say; none are in force without it.
    pub snapshot: Option<RoleSnapshot>,
}

/// Reads and checks the role file, if one is configured.
pub fn load(config: &Config, policy: &Policy) -> Result<Option<Roles>, String> {
    let Some(path) = &config.roles.file else { return Ok(None) };
    let name = path.display().to_string();
    let bytes = crate::files::read_bounded(path, FILE_MAX).map_err(|e| format!("roles {name}: {e}"))?;
    let text = String::from_utf8(bytes).map_err(|e| format!("roles {name}: {e}"))?;
    parse(&name, &text, policy).map(Some)
}

/// Checks a role file.
pub fn parse(name: &str, text: &str, policy: &Policy) -> Result<Roles, String> {
    Roles::load(&Source { name, text }, Known::Only(&policy.categories())).map_err(|e| format!("roles {e}"))
}

/// What is in force, in words, for `check`.
pub fn describe(config: &Config, roles: Option<&Roles>) -> String {
    let Some(roles) = roles else {
        return "none are in force: every session may request every category (set [roles] file)".to_owned();
    };
    let (defined, bound) = roles.counts();
    let unused = match config.session.may_start_for_others.is_empty() {
        true => "",
        false => "; session.may_start_for_others is not looked at, start_for_others of roles is",
    };
    format!("{defined} roles for {bound} names, digest {}{unused}", roles.digest())
}

/// What a session of this initiator and agent may request.
pub fn rights(in_force: &InForce, config: &Config, [initiator, agent, starter]: [&str; 3]) -> Result<Rights, String> {
    let known = in_force.policy.categories();
    let Some(roles) = &in_force.roles else { return Ok(Rights { categories: known, snapshot: None }) };
    let found = roles.session(initiator, agent, &known).map_err(|e| e.to_string())?;
    let (person, program, other) = (Subject::Principal(initiator), Subject::Agent(agent), Subject::Principal(starter));
    let starter_roles = if starter.is_empty() { Vec::new() } else { roles.names_of(other).to_vec() };
    let mut full: Vec<RoleRights> = [person, program]
        .into_iter()
        .chain((!starter.is_empty()).then_some(other))
        .flat_map(|subject| roles.of(subject).map(|(name, role)| spelled(name, role)))
        .collect();
    full.sort_by(|a, b| a.name.cmp(&b.name));
    full.dedup();
    let snapshot = RoleSnapshot {
        digest: roles.digest().to_owned(),
        source: config.roles.file.as_ref().map(|f| f.display().to_string()).unwrap_or_default(),
        initiator_roles: roles.names_of(person).to_vec(),
        agent_roles: roles.names_of(program).to_vec(),
        starter_roles,
        initiator_categories: found.initiator,
        agent_categories: found.agent,
        roles: full,
    };
    Ok(Rights { categories: found.effective, snapshot: Some(snapshot) })
}

fn spelled(name: &str, role: &Role) -> RoleRights {
    RoleRights {
        name: name.to_owned(),
        request: role.request.written().to_vec(),
        review: role.review.written().to_vec(),
        review_max_risk: u32::from(role.review_max_risk),
        review_escalated: role.review_escalated,
        query: role.query,
        undo: role.undo.written().to_vec(),
        administer: role.administer,
        start_for_others: role.start_for_others.clone(),
    }
}

/// Denies what the session's roles do not allow, or what a child session was not given, whatever policy says of it. Gives whether
/// it did.
pub fn limit(session: &Session, verdict: &mut Verdict) -> bool {
    if session.is_child() {
        limit_child(&session.identity, verdict)
    } else {
        session.roles.as_ref().is_some_and(|snapshot| limit_to(&session.identity, snapshot, verdict))
    }
}

/// A child's categories are some of its parent's, and so of what roles allow.
fn limit_child(identity: &Identity, verdict: &mut Verdict) -> bool {
    let parent = &identity.parent_session_id;
    let lacking = |c: &&String| !identity.categories.contains(c);
    let said = |rule: &str, text: String, evidence: String| Reason { rule_id: rule.to_owned(), text, evidence };
    let mut reasons: Vec<Reason> = parts(verdict)
        .iter()
        .filter(lacking)
        .map(|c| {
            said(CHILD, format!("the child session may not request {c}: session {parent} did not give it"), c.clone())
        })
        .collect();
    if let Some(most) = identity.max_risk.filter(|most| verdict.risk > *most) {
        let text =
            format!("a risk of {} is above the {most} that session {parent} gave the child session", verdict.risk);
        reasons.push(said(CHILD_RISK, text, verdict.risk.to_string()));
    }
    refuse(verdict, reasons)
}

/// A verdict that names no parts is judged by the category that decided: naming none gives nothing.
fn parts(verdict: &Verdict) -> &[String] {
    if verdict.categories.is_empty() { std::slice::from_ref(&verdict.category) } else { &verdict.categories }
}

fn refuse(verdict: &mut Verdict, reasons: Vec<Reason>) -> bool {
    if reasons.is_empty() {
        return false;
    }
    verdict.set_tier(Tier::Deny);
    verdict.reasons.splice(0..0, reasons);
    true
}

fn limit_to(identity: &Identity, snapshot: &RoleSnapshot, verdict: &mut Verdict) -> bool {
    let lacking = |c: &&String| !identity.categories.contains(c);
    let reasons: Vec<Reason> = parts(verdict).iter().filter(lacking).map(|c| reason(identity, snapshot, c)).collect();
    refuse(verdict, reasons)
}

fn reason(identity: &Identity, snapshot: &RoleSnapshot, category: &str) -> Reason {
    let side = |who: String, roles: &[String], has: &[String]| {
        let names: Vec<String> = roles.iter().map(|r| format!("`{r}`")).collect();
        let lacks = !has.iter().any(|c| c == category);
        lacks.then(|| {
            format!("{} of {who} {} not allow it", roles_word(&names), if names.len() == 1 { "does" } else { "do" })
        })
    };
    let sides = [
        side(identity.initiator.clone(), &snapshot.initiator_roles, &snapshot.initiator_categories),
        side(format!("agent {}", identity.agent), &snapshot.agent_roles, &snapshot.agent_categories),
    ];
    let why: Vec<String> = sides.into_iter().flatten().collect();
    let text = format!("the session may not request {category}: {}", why.join(", and "));
    Reason { rule_id: RULE.to_owned(), text, evidence: category.to_owned() }
}

fn roles_word(names: &[String]) -> String {
    if names.len() == 1 { format!("the role {}", names.join("")) } else { format!("the roles {}", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version: 1\nroles:\n  dev: {request: [vcs.*, fs.read]}\n  tool: {request: [vcs.read, net.fetch]}\n\
                        people: {alice: [dev]}\nagents: {coder: [tool]}\n";

    fn in_force() -> InForce {
        let policy = Policy::load(&[]).unwrap();
        let known = policy.categories();
        let roles = Roles::load(&Source { name: "roles.yaml", text: FILE }, Known::Only(&known)).unwrap();
        InForce { digest: policy.digest(), policy, roles: Some(roles), signed_roles: false, sigma: None, bundle: None }
    }

    fn config() -> Config {
        let text = "[node]\nname='n'\n[collector]\naddress='https://c:1'\nca='/a'\ncert='/b'\nkey='/c'\n";
        toml::from_str(text).unwrap()
    }

    fn session() -> (Identity, RoleSnapshot) {
        let rights = rights(&in_force(), &config(), ["alice", "coder", ""]).unwrap();
        let identity = Identity {
            initiator: "alice".into(),
            agent: "coder".into(),
            categories: rights.categories,
            ..Identity::default()
        };
        (identity, rights.snapshot.unwrap())
    }

    fn verdict(tier: Tier, categories: &[&str]) -> Verdict {
        let mut verdict =
            Verdict { categories: categories.iter().map(|c| (*c).to_owned()).collect(), ..Verdict::default() };
        verdict.set_tier(tier);
        verdict
    }

    #[test]
    fn the_first_record_holds_both_sides_and_each_role_in_full() {
        let (identity, snapshot) = session();
        assert_eq!(identity.categories, ["vcs.read"]);
        assert_eq!((snapshot.initiator_roles, snapshot.agent_roles), (vec!["dev".to_owned()], vec!["tool".to_owned()]));
        assert!(snapshot.initiator_categories.contains(&"vcs.remote".to_owned()));
        assert_eq!(snapshot.roles.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["dev", "tool"]);
        assert_eq!(snapshot.roles[0].request, ["vcs.*", "fs.read"]);
        assert_eq!(snapshot.digest.len(), 64);
    }

    #[test]
    fn one_part_outside_denies_the_whole_and_says_which_side_lacks_it() {
        let (identity, snapshot) = session();
        let judged = |tier, categories: &[&str]| {
            let mut verdict = verdict(tier, categories);
            limit_to(&identity, &snapshot, &mut verdict);
            (verdict.tier(), verdict.reasons.into_iter().map(|r| r.text).collect::<Vec<_>>())
        };
        assert_eq!(judged(Tier::Allow, &["vcs.read"]), (Tier::Allow, vec![]));
        assert_eq!(judged(Tier::Review, &["vcs.read"]), (Tier::Review, vec![]));
        let (tier, why) = judged(Tier::Allow, &["fs.read", "vcs.read"]);
        assert_eq!(tier, Tier::Deny);
        let agents = "the session may not request fs.read: the role `tool` of agent coder does not allow it";
        assert_eq!(why, [agents]);
        let (tier, why) = judged(Tier::Review, &["db.run", "net.fetch"]);
        assert_eq!(tier, Tier::Deny);
        assert!(why[0].contains("`dev` of alice does not allow it, and the role `tool` of agent coder"), "{}", why[0]);
        assert_eq!(why[1], "the session may not request net.fetch: the role `dev` of alice does not allow it");
    }

    #[test]
    fn without_a_role_there_is_no_session_and_without_a_file_no_limit() {
        let refused = rights(&in_force(), &config(), ["mallory", "coder", ""]).unwrap_err();
        assert!(refused.starts_with("mallory has no role on this host"), "{refused}");
        let refused = rights(&in_force(), &config(), ["alice", "other", ""]).unwrap_err();
        assert!(refused.starts_with("agent other has no role on this host"), "{refused}");
        let open = InForce { roles: None, ..in_force() };
        let rights = rights(&open, &config(), ["mallory", "any", ""]).unwrap();
        assert_eq!(rights.categories, open.policy.categories());
        assert!(rights.snapshot.is_none());
        assert!(describe(&config(), None).starts_with("none are in force"));
    }

    #[test]
    fn a_child_session_is_bound_by_what_it_was_given_whatever_policy_says() {
        let identity = Identity {
            categories: vec!["vcs.read".into(), "fs.read".into()],
            parent_session_id: "01P".into(),
            max_risk: Some(30),
            ..Identity::default()
        };
        let judged = |tier, categories: &[&str], risk| {
            let mut verdict = Verdict { risk, ..verdict(tier, categories) };
            limit_child(&identity, &mut verdict);
            (verdict.tier(), verdict.reasons.into_iter().map(|r| r.rule_id).collect::<Vec<_>>())
        };
        assert_eq!(judged(Tier::Allow, &["vcs.read"], 30), (Tier::Allow, vec![]));
        assert_eq!(judged(Tier::Review, &["fs.read", "vcs.read"], 0), (Tier::Review, vec![]));
        assert_eq!(judged(Tier::Allow, &["vcs.read"], 31), (Tier::Deny, vec![CHILD_RISK.to_owned()]));
        assert_eq!(judged(Tier::Allow, &["vcs.read", "net.fetch"], 0), (Tier::Deny, vec![CHILD.to_owned()]));
        assert_eq!(judged(Tier::Review, &[], 0), (Tier::Deny, vec![CHILD.to_owned()]));
    }

    #[test]
    fn a_verdict_that_names_no_parts_is_bound_by_the_category_that_decided() {
        let (identity, snapshot) = session();
        for (category, tier) in [("vcs.read", Tier::Allow), ("net.fetch", Tier::Deny), ("", Tier::Deny)] {
            let mut said = Verdict { category: category.into(), ..verdict(Tier::Allow, &[]) };
            limit_to(&identity, &snapshot, &mut said);
            assert_eq!(said.tier(), tier, "{category:?}");
        }
    }
}
