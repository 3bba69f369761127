//! From facts to a disposition: what policy says, what an approval covers, and the record of it.
//!
//! It must not read anything of the task: facts are complete. `deny` is never approved or inherited away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guard_policy::{Kind, Tier, secrets};
use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Disposition, Exec, Reason, SessionMessage, Shadow, Timing, Verdict};

use crate::deletes;
use crate::facts::{Facts, ForRecord};
use crate::files;
use crate::hold::{self, Opening};
use crate::kernel::fanotify::Held;
use crate::kernel::time;
use crate::node::Node;
use crate::novelty::Mark;
use crate::policies::{InForce, Judges};
use crate::roles;
use crate::session::{RootApproval, Session, Stage};
use crate::standing::{Asked, Right};

/// What policy made of an exec.
pub struct Judged {
    /// The verdict for the record.
    pub verdict: Verdict,
    /// Notable environment variables, by name.
    pub env_notable: Vec<String>,
    /// The exec for which a person would be asked.
    pub root: u64,
    /// The session's entry process.
    pub entry: bool,
    /// How long things took.
    pub timing: Timing,
    /// Digest of the blob with what the record cannot hold; empty if there is none.
    pub blob: Vec<u8>,
    /// A request for review names that blob too.
    pub requested: bool,
    /// What its agent is known by, should it run.
    pub marks: Vec<Mark>,
    /// Serial number of the bundle by whose stage `observe` the verdict is not enforced; 0: it is.
    pub observed_by: u64,
    /// It is denied by what holds in that stage too: roles, what cannot be kept, rules that say `always`.
    pub always: bool,
    /// The kinds of acts for which a person would be asked; `None`: no grant of kinds covers it.
    pub asked: Option<Asked>,
}

impl Judged {
    /// As far as the record of the facts says it.
    pub fn for_record(&self) -> ForRecord<'_> {
        ForRecord { entry: self.entry, root: self.root, env_notable: &self.env_notable, blob: &self.blob }
    }

    /// The risk without what newness adds: that passes.
    pub fn standing_risk(&self) -> u32 {
        self.verdict.risk.saturating_sub(self.verdict.novelty)
    }

    /// Whether it runs whatever the verdict. That its agent is observed now is not enough: the session must have begun so.
    fn is_observed(&self) -> bool {
        self.observed_by != 0 && !self.always
    }

    /// The blob that nothing but the record of this exec names: without that record it would wait for ever.
    pub fn own_blob(&self) -> Vec<u8> {
        if self.requested { Vec::new() } else { self.blob.clone() }
    }
}

/// Judges one exec and sees it through to its record, grant or refusal, or to a person.
pub fn judge(node: &Arc<Node>, session: &Arc<Session>, facts: Arc<Facts>, held: Held) {
    let mut judged = consult(node, session, &facts);
    keep_blob(node, session, &facts, &mut judged);
    let tier = judged.verdict.tier();
    if judged.entry || judged.root == facts.attempt.exec {
        deletes::started(node, session, judged.root, &facts);
    }
    if node.observes() {
        return admit(node, session, &facts, held, &judged, &Cover::Observed(tier));
    }
    match tier {
        guard_proto::v1::Tier::Allow => admit(node, session, &facts, held, &judged, &Cover::Tier),
        _ if judged.is_observed() => admit(node, session, &facts, held, &judged, &Cover::Stage(tier)),
        guard_proto::v1::Tier::Review => match cover(node, session, &facts, &judged) {
            Some(cover) => admit(node, session, &facts, held, &judged, &cover),
            None => node.approvals.ask(node, session, facts, judged, held),
        },
        _ => deny(node, session, &facts, held, &judged, "", ""),
    }
}

/// Makes durable what the record cannot hold. Without it there is no whole record, so the exec is denied.
fn keep_blob(node: &Node, session: &Session, facts: &Facts, judged: &mut Judged) {
    match node.blobs.keep(session.id, &facts.argv, &facts.shown) {
        Ok(blob) => judged.blob = blob.map(Vec::from).unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "the arguments of an exec cannot be kept");
            judged.verdict.set_tier(guard_proto::v1::Tier::Deny);
            judged.always = true;
            let text = format!("its arguments cannot be kept: {error}");
            judged
                .verdict
                .reasons
                .insert(0, Reason { rule_id: "builtin.not-kept".into(), text, evidence: String::new() });
        }
    }
}

fn consult(node: &Node, session: &Session, facts: &Facts) -> Judged {
    let Judges { counts: in_force, beside, observed } = node.policies.of(&session.identity.agent);
    // The command of a child session was named by an agent, not by the initiator: it is an exec like any other.
    let entry = facts.is_entry(session.entry_pid) && !session.is_child();
    let refs = facts.file_refs();
    let asked = guard_policy::Facts {
        argv: &facts.argv,
        files: &refs,
        cwd: &facts.cwd,
        home: &session.home,
        workspace: &session.workspace,
        uid: facts.task.uid,
        env: &facts.env,
        stdin: facts.stdin,
        entry,
    };
    let mut said = in_force.policy.decide(&asked);
    let shadow = beside.map(|candidate| in_shadow(&candidate, candidate.policy.decide(&asked), &said));
    let program = facts.files.first().map(|file| file.path.as_slice()).unwrap_or_default();
    let (new, marks) = node.novelty.look(&session.identity.agent, said.subjects(program, &session.workspace));
    let novelty = said.add_novelty(&new, &format!("agent {}", session.identity.agent));
    if let Some(detections) = &in_force.sigma {
        detections.add(session, facts, entry, &mut said);
    }
    // The entry process passes nothing on: what it starts are roots. A shell that takes commands is one of its own.
    let own = entry || facts.attempt.root == 0 || said.takes_commands;
    let root = match (entry, own) {
        (true, _) => 0,
        (_, true) => facts.attempt.exec,
        _ => facts.attempt.root,
    };
    let tier = tier_of(said.tier);
    let masked = |text: String| secrets::mask_repeated(&text, &facts.argv, &facts.shown.secrets);
    let reason =
        |r: guard_policy::Reason| Reason { rule_id: r.rule_id, text: masked(r.text), evidence: masked(r.evidence) };
    let asked = said.kinds().filter(|kinds| writable(kinds, facts)).map(|kinds| Asked {
        kinds,
        places: said.places.clone(),
        risk: said.standing_risk(),
    });
    let mut judged = Judged {
        verdict: Verdict {
            tier: tier.into(),
            category: said.category,
            categories: said.categories,
            risk: u32::from(said.risk),
            reasons: said.reasons.into_iter().map(reason).collect(),
            policy_digest: in_force.digest.clone(),
            targets: said.targets.into_iter().map(masked).collect(),
            anomalies: Vec::new(),
            anomalies_covered: false,
            novelty: u32::from(novelty),
            shadow: shadow.map(|shadow| Shadow { text: masked(shadow.text), ..shadow }),
        },
        env_notable: said.env_notable,
        root,
        entry,
        timing: timing(facts),
        blob: Vec::new(),
        requested: false,
        marks,
        observed_by: if observed && session.began_observed { in_force.serial() } else { 0 },
        always: said.always,
        asked,
    };
    judged.always |= roles::limit(session, &mut judged.verdict);
    judged
}

/// Whether the kinds can stand in a record: a digest of text that holds a secret would tell whoever guesses it.
fn writable(kinds: &BTreeSet<Kind>, facts: &Facts) -> bool {
    facts.shown.secrets.is_empty() || !kinds.iter().any(Kind::is_digested)
}

fn tier_of(tier: Tier) -> guard_proto::v1::Tier {
    match tier {
        Tier::Allow => guard_proto::v1::Tier::Allow,
        Tier::Review => guard_proto::v1::Tier::Review,
        Tier::Deny => guard_proto::v1::Tier::Deny,
    }
}

/// What a bundle that is not in force for the agent says; why, where it differs.
fn in_shadow(candidate: &InForce, said: guard_policy::Verdict, counts: &guard_policy::Verdict) -> Shadow {
    let reason = said.reasons.into_iter().next().filter(|_| said.tier != counts.tier);
    let (rule_id, text) = reason.map(|reason| (reason.rule_id, reason.text)).unwrap_or_default();
    Shadow {
        tier: tier_of(said.tier).into(),
        rule_id,
        text,
        risk: u32::from(said.risk),
        policy_digest: candidate.digest.clone(),
        serial: candidate.serial(),
    }
}

fn timing(facts: &Facts) -> Timing {
    Timing {
        hold_to_read: facts.read_boot_ns.saturating_sub(facts.attempt.entered_boot_ns),
        facts: facts.memory_boot_ns.saturating_sub(facts.read_boot_ns),
        digest: facts.digest_boot_ns.saturating_sub(facts.memory_boot_ns),
        policy: time::boot_ns().saturating_sub(facts.digest_boot_ns),
    }
}

/// Why an exec may run.
pub enum Cover {
    /// Its tier needs no person.
    Tier,
    /// Observe mode; the tier is what it would have been.
    Observed(guard_proto::v1::Tier),
    /// The stage `observe` of its agent; the tier is what it would have been.
    Stage(guard_proto::v1::Tier),
    /// A root's approval, which covers its descendants.
    Root(u64, RootApproval),
    /// A right to the identical exec.
    Right(Right),
    /// Rights to acts of the kinds that it is made of.
    Kinds(Vec<Right>),
}

fn cover(node: &Node, session: &Session, facts: &Facts, judged: &Judged) -> Option<Cover> {
    if let Some(right) =
        node.approvals.use_right(&session.identity.session_id, &facts.digest(&session.identity.session_id))
    {
        return Some(Cover::Right(right));
    }
    let root = facts.attempt.root;
    let inherited = (root != 0 && judged.root == root)
        .then(|| session.inherit(root, (&judged.verdict.category, judged.standing_risk()), newest_writable(facts)))
        .flatten();
    if let Some(approval) = inherited {
        return Some(Cover::Root(root, approval));
    }
    // Kinds are told by the text of paths. A link would lead the command elsewhere.
    let straight = |asked: &&Asked| asked.places.iter().all(|path| files::is_straight(facts.attempt.tid, path));
    let asked = judged.asked.as_ref().filter(straight)?;
    node.approvals.use_kinds(&session.identity.session_id, asked).map(Cover::Kinds)
}

/// When the session last changed one of the files, in wall ns: what it wrote after the request was shown is not covered.
fn newest_writable(facts: &Facts) -> i64 {
    let changed = |f: &crate::facts::JudgedFile| {
        let seconds = i64::try_from(f.stamp.ctime_s).unwrap_or(i64::MAX);
        seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(f.stamp.ctime_ns))
    };
    facts.files.iter().filter(|f| f.writable).map(changed).max().unwrap_or(i64::MIN)
}

fn exec_record(node: &Node, session: &Session, facts: &Facts, judged: &Judged, disposition: Disposition) -> Exec {
    Exec {
        identity: Some(session.chain.clone()),
        facts: Some(facts.to_proto(node, &session.identity.agent, judged.for_record())),
        verdict: Some(judged.verdict.clone()),
        disposition: disposition.into(),
        timing: Some(judged.timing),
        observed_by: judged.observed_by,
        ..Exec::default()
    }
}

/// Records an exec that may run, then grants it.
pub fn admit(node: &Arc<Node>, session: &Arc<Session>, facts: &Facts, held: Held, judged: &Judged, cover: &Cover) {
    node.novelty.learn(&session.identity.agent, &judged.marks);
    let mut record = exec_record(node, session, facts, judged, Disposition::Allowed);
    match cover {
        Cover::Tier => {}
        Cover::Observed(guard_proto::v1::Tier::Allow) => {}
        Cover::Observed(tier) => {
            record.detail = format!("observe mode: policy says {}", tier_name(*tier));
            record.not_enforced = true;
        }
        Cover::Stage(tier) => {
            let serial = judged.observed_by;
            record.detail = format!("stage observe of bundle {serial}: policy says {}", tier_name(*tier));
            record.not_enforced = true;
        }
        Cover::Root(root, approval) => {
            record.set_disposition(Disposition::Inherited);
            deletes::approved_exec(node, session, *root, &judged.verdict.category);
            record.inherited_from = *root;
            record.request_id.clone_from(&approval.request_id);
            record.reviewer.clone_from(&approval.reviewer);
        }
        Cover::Right(right) => {
            record.set_disposition(Disposition::Approved);
            record.request_id.clone_from(&right.request_id);
            record.reviewer.clone_from(&right.reviewer);
            record.detail = match right.for_session {
                true => format!("this exact command is approved for the session, {} more times", right.left),
                false => "the identical exec, tried again after its request was approved".into(),
            };
            right.open_root(session, judged.root);
            deletes::approved_exec(node, session, judged.root, &judged.verdict.category);
        }
        // Nobody saw this command: its budget of deletions stays as it is, and what it starts is judged by itself.
        Cover::Kinds(rights) => {
            record.set_disposition(Disposition::Approved);
            if let Some((first, more)) = rights.split_first() {
                record.request_id.clone_from(&first.request_id);
                record.reviewer.clone_from(&first.reviewer);
                let others: String =
                    more.iter().map(|r| format!("; and by request {} ({})", r.request_id, r.reviewer)).collect();
                record.detail =
                    format!("acts of this kind are approved for the session, {} more times{others}", first.left);
            }
        }
    }
    let opening = Opening::of(facts, judged.root);
    let (of, open, blob) = (Arc::clone(node), Arc::clone(session), judged.own_blob());
    node.append_then(session.id, Body::Exec(record), move |recorded| {
        if recorded.is_err() {
            of.blobs.discard(&blob);
        }
        hold::release(&of, &open, &held, &opening, recorded);
    });
}

fn tier_name(tier: guard_proto::v1::Tier) -> &'static str {
    match tier {
        guard_proto::v1::Tier::Allow => "allow",
        guard_proto::v1::Tier::Review => "review",
        _ => "deny",
    }
}

/// Records a refusal, then refuses.
pub fn deny(
    node: &Arc<Node>,
    session: &Arc<Session>,
    facts: &Facts,
    held: Held,
    judged: &Judged,
    detail: &str,
    request_id: &str,
) {
    session.denied.fetch_add(1, Ordering::Relaxed);
    session.set_stage(facts.attempt.exec, Stage::Denied);
    let mut record = exec_record(node, session, facts, judged, Disposition::Denied);
    record.detail = detail.into();
    record.request_id = request_id.into();
    let why = match (detail, judged.verdict.reasons.first()) {
        ("", Some(reason)) => format!("{} [{}]", reason.text, reason.rule_id),
        (detail, _) => detail.into(),
    };
    session.tell(SessionMessage {
        kind: "denied".into(),
        text: format!("denied: {}: {why}", command(facts)),
        request_id: request_id.into(),
        pid: facts.attempt.tgid,
        rules: judged.verdict.reasons.iter().map(|reason| reason.rule_id.clone()).collect(),
        ..SessionMessage::default()
    });
    let (of, waiting, blob) = (Arc::clone(node), Arc::clone(session), judged.own_blob());
    node.keep_then(session.id, Body::Exec(record), move |kept| {
        if !kept {
            of.blobs.discard(&blob);
        }
        hold::answer(&waiting, &held, false);
    });
}

/// A command for people, short.
pub fn command(facts: &Facts) -> String {
    const SHOWN: usize = 200;
    let text: Vec<String> = facts.shown.argv.iter().map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    let text = text.join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
