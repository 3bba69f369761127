//! One request's decisions as they come from the collector: which count, and when they are enough.
//!
//! The collector is not believed: where the host's role file names reviewers' keys, only a decision that one of them signed over
//! exactly this request approves anything, and different reviewers are counted here. It must not look at the collector's word
//! for any of that. Fails closed: what does not hold is refused with the reason, and a denial needs no signature.

use guard_policy::decision::{DelegationStatement, Statement};
use guard_policy::roles::{Right, Roles, Subject};
use guard_proto::v1::{Decision, Delegation, ExecRequest};
use sha2::{Digest, Sha256};

/// Refused decisions of one request that get a record each; a collector may send any number.
const REFUSED_MAX: usize = 8;
/// How far apart the clocks of host and reviewer may be.
const SKEW_NS: i64 = 600_000_000_000;
/// The scope that covers kinds of acts.
pub const KIND: &str = "kind";
/// Most execs that one approval covers.
pub const EXECS_MAX: u32 = 1000;
const CATEGORIES_MAX: usize = 32;

/// What is asked, as this host recorded it.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The request.
    pub id: String,
    /// Its digest.
    pub digest: Vec<u8>,
    /// SHA-256 of the body of its record: whoever signs was shown this.
    pub record: [u8; 32],
    /// Categories of all its parts.
    pub categories: Vec<String>,
    /// Its risk.
    pub risk: u32,
    /// For whom the session is, and who started it: they do not decide.
    pub owners: [String; 2],
    /// The host can tell which kinds of acts it is made of.
    pub offers_kinds: bool,
    /// Highest risk that a grant of them covers.
    pub kinds_max_risk: u32,
    /// Wall time of the request.
    pub opened_unix_ns: i64,
    /// And of its deadline.
    pub deadline_unix_ns: i64,
}

/// Whom this host believes.
#[derive(Clone, Copy)]
pub struct Trust<'a> {
    /// The role file in force.
    pub roles: Option<&'a Roles>,
    /// Signatures are needed although it may name no key.
    pub required: bool,
}

/// Decisions of one request.
#[derive(Debug, Default)]
pub struct Ballot {
    question: Question,
    counted: Vec<Counted>,
    refused: Vec<u64>,
}

#[derive(Debug)]
struct Counted {
    decision: Decision,
    key: Option<[u8; 32]>,
}

/// What enough reviewers agreed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Who.
    pub reviewers: Vec<String>,
    /// For whom each of them decided by a delegation; empty: by their own right.
    pub on_behalf_of: Vec<String>,
    /// Ids of the keys that signed; none where decisions are not signed.
    pub key_ids: Vec<Vec<u8>>,
    /// Leaves of their decisions.
    pub leaves: Vec<u64>,
    /// Why, as the last of them said it.
    pub reason: String,
    /// How far it reaches: once, session, kind or root.
    pub scope: String,
    /// Categories that it covers for descendants.
    pub categories: Vec<String>,
    /// Execs that it covers.
    pub max_execs: u32,
    /// Until when; 0: not said.
    pub expires_unix_ns: i64,
}

/// What became of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was here before, or is one more of too many that were refused.
    Ignored,
    /// It approves nothing.
    Refused(String),
    /// It counts, but is not enough.
    Counted {
        /// Id of the key that signed it.
        key_id: Vec<u8>,
        /// Reviewers so far.
        have: u32,
        /// Reviewers that it takes.
        needed: u32,
    },
    /// The request is approved.
    Approved(Agreed),
    /// The request is denied: who is said to have done it did, by this key; or nobody signed it, which denies all the same.
    Denied(Option<[u8; 32]>),
}

// === impl Question ===

impl Question {
    /// Of a request and the body of its record.
    pub fn of(request: &ExecRequest, body: &[u8], opened_unix_ns: i64) -> Self {
        let identity = request.identity.clone().unwrap_or_default();
        let verdict = request.verdict.clone().unwrap_or_default();
        let mut categories: Vec<String> = verdict.categories;
        categories.push(verdict.category);
        categories.retain(|c| !c.is_empty());
        if categories.is_empty() {
            categories.push("unknown".to_owned());
        }
        Self {
            id: request.request_id.clone(),
            digest: request.digest.clone(),
            record: Sha256::digest(body).into(),
            categories,
            risk: verdict.risk,
            owners: [identity.initiator, identity.started_by],
            offers_kinds: !request.kinds.is_empty(),
            kinds_max_risk: request.kinds_max_risk,
            opened_unix_ns,
            deadline_unix_ns: request.deadline_unix_ns,
        }
    }

    /// The highest risk that an approval with this scope lets through.
    fn reaches(&self, scope: &str) -> u32 {
        if scope == KIND { self.risk.max(self.kinds_max_risk) } else { self.risk }
    }

    /// Whether another group may be asked about it: when that is, is the collector's to say.
    fn is_escalated(&self, roles: &Roles) -> bool {
        let categories = self.categories.iter().map(String::as_str);
        roles.escalation(categories, self.risk, (self.opened_unix_ns, self.deadline_unix_ns)).is_some()
    }
}

// === impl Trust ===

impl Trust<'_> {
    /// Whether only signatures approve.
    pub fn signs(&self) -> bool {
        self.required || self.roles.is_some_and(Roles::signs)
    }
}

// === impl Ballot ===

impl Ballot {
    /// Nobody has decided yet.
    pub fn new(question: Question) -> Self {
        Self { question, ..Self::default() }
    }

    /// Takes a decision. Whether it is in time is the caller's to say, by a clock that nobody sets.
    pub fn take(&mut self, decision: &Decision, trust: Trust<'_>, now_unix_ns: i64) -> Taken {
        if decision.digest != self.question.digest {
            return self.refuse(decision, "it is for another digest than the request's".to_owned());
        }
        if !decision.approve {
            return Taken::Denied(self.signed_by(decision, trust, now_unix_ns).ok());
        }
        if self.counted.iter().any(|c| c.decision.reviewer == decision.reviewer) {
            return Taken::Ignored;
        }
        let key = match self.check(decision, trust, now_unix_ns) {
            Ok(key) => key,
            Err(why) => return self.refuse(decision, why),
        };
        self.drop_lapsed(trust, now_unix_ns);
        if let Some(name) = self.counted.iter().find_map(|c| shared(&c.decision, decision)) {
            return self
                .refuse(decision, format!("the right of {name} has approved it already: it takes somebody else's"));
        }
        if let Some(first) = self.counted.first()
            && bounds(&first.decision) != bounds(decision)
        {
            let why = format!("its scope or bounds are not those that {} approved", first.decision.reviewer);
            return self.refuse(decision, why);
        }
        self.counted.push(Counted { decision: decision.clone(), key });
        let (have, needed) = (u32::try_from(self.counted.len()).unwrap_or(u32::MAX), self.needed(trust));
        if have < needed {
            return Taken::Counted { key_id: key.map(Vec::from).unwrap_or_default(), have, needed };
        }
        Taken::Approved(self.agreed())
    }

    /// How many different reviewers it takes.
    fn needed(&self, trust: Trust<'_>) -> u32 {
        let categories = self.question.categories.iter().map(String::as_str);
        let scope = self.counted.first().map_or("", |counted| &counted.decision.scope);
        trust.roles.map_or(1, |roles| roles.reviewers_needed(categories, self.question.reaches(scope)))
    }

    /// Who lost role or key since their approval was counted is no longer among those who approve.
    fn drop_lapsed(&mut self, trust: Trust<'_>, now_unix_ns: i64) {
        let counted = std::mem::take(&mut self.counted);
        self.counted = counted.into_iter().filter(|c| self.check(&c.decision, trust, now_unix_ns).is_ok()).collect();
    }

    fn refuse(&mut self, decision: &Decision, why: String) -> Taken {
        if self.refused.len() >= REFUSED_MAX || self.refused.contains(&decision.leaf) {
            return Taken::Ignored;
        }
        self.refused.push(decision.leaf);
        Taken::Refused(why)
    }

    /// Id of the key that signed the approval; none where decisions are not signed. Or why it does not count.
    fn check(&self, decision: &Decision, trust: Trust<'_>, now_unix_ns: i64) -> Result<Option<[u8; 32]>, String> {
        check_bounds(decision, &self.question)?;
        if !trust.signs() {
            let by = decision.delegation.as_ref();
            return by.map_or(Ok(None), |_| Err("a delegation counts only where decisions are signed".to_owned()));
        }
        let key = self.signed_by(decision, trust, now_unix_ns)?;
        let roles = trust.roles.ok_or(NO_KEYS)?;
        self.check_reviewer(decision, roles, now_unix_ns)?;
        self.check_times(decision, now_unix_ns)?;
        Ok(Some(key))
    }

    /// Id of the reviewer's key that signed the decision over this request as this host recorded it.
    fn signed_by(&self, decision: &Decision, trust: Trust<'_>, now_unix_ns: i64) -> Result<[u8; 32], String> {
        let roles = trust.roles.ok_or(NO_KEYS)?;
        let statement = Statement {
            request_id: &self.question.id,
            digest: &self.question.digest,
            record_sha256: &decision.record_sha256,
            approve: decision.approve,
            scope: &decision.scope,
            categories: &decision.categories,
            max_execs: decision.max_execs,
            expires_unix_ns: decision.expires_unix_ns,
            reason: &decision.reason,
            reviewer: &decision.reviewer,
            decided_unix_ns: decision.decided_unix_ns,
            delegation_id: decision.delegation.as_ref().map_or("", |d| &d.id),
        };
        let key = roles.signed(&statement, &decision.signature, now_unix_ns).map_err(|e| e.to_string())?;
        if decision.record_sha256 != self.question.record {
            return Err(format!(
                "{} was shown another request than the one that this host recorded",
                decision.reviewer
            ));
        }
        Ok(key)
    }

    /// Neither who decides nor for whom may have started the session, and the right must be theirs.
    fn check_reviewer(&self, decision: &Decision, roles: &Roles, now_unix_ns: i64) -> Result<(), String> {
        if let Some(owner) = rights_of(decision).find(|name| self.question.owners.iter().any(|owner| owner == name)) {
            return Err(format!("{owner} started the session; somebody else must decide its requests"));
        }
        let delegation = decision.delegation.as_ref().map(statement_of);
        if let (Some(d), Some(sent)) = (&delegation, &decision.delegation) {
            if d.to != decision.reviewer {
                return Err(format!("the delegation by {} is to {}, not to {}", d.from, d.to, decision.reviewer));
            }
            roles.delegated(d, &sent.signature, now_unix_ns).map_err(|why| why.to_string())?;
        }
        let (risk, escalated) = (self.question.reaches(&decision.scope), self.question.is_escalated(roles));
        for category in self.question.categories.iter().chain(&decision.categories) {
            let right = if escalated { Right::ReviewEscalated(category, risk) } else { Right::Review(category, risk) };
            match &delegation {
                Some(d) => roles.covered(d, right).map_err(|why| why.to_string())?,
                None => roles
                    .check(Subject::Principal(&decision.reviewer), right)
                    .map(drop)
                    .map_err(|missing| missing.to_string())?,
            }
        }
        Ok(())
    }

    fn check_times(&self, decision: &Decision, now_unix_ns: i64) -> Result<(), String> {
        let (opened, decided) = (self.question.opened_unix_ns, decision.decided_unix_ns);
        if decided < opened.saturating_sub(SKEW_NS) || decided > now_unix_ns.saturating_add(SKEW_NS) {
            let what = "it was signed before the request was made, or in the future";
            return Err(format!("{what}: the clocks of host and reviewer are more than 10 minutes apart"));
        }
        if decision.expires_unix_ns <= now_unix_ns {
            return Err("the approval has expired by this host's clock".to_owned());
        }
        Ok(())
    }

    fn agreed(&self) -> Agreed {
        let decisions = || self.counted.iter().map(|c| &c.decision);
        let last = decisions().next_back().cloned().unwrap_or_default();
        Agreed {
            reviewers: decisions().map(|d| d.reviewer.clone()).collect(),
            on_behalf_of: decisions()
                .map(|d| d.delegation.as_ref().map(|by| by.from.clone()).unwrap_or_default())
                .collect(),
            key_ids: self.counted.iter().filter_map(|c| c.key.map(Vec::from)).collect(),
            leaves: decisions().map(|d| d.leaf).collect(),
            reason: last.reason,
            scope: last.scope,
            categories: last.categories,
            max_execs: last.max_execs,
            expires_unix_ns: decisions().map(|d| d.expires_unix_ns).min().unwrap_or(0),
        }
    }
}

const NO_KEYS: &str = "reviews.signed is \"required\", and no role file names a reviewer's key";

/// A delegation as its maker signed it.
fn statement_of(d: &Delegation) -> DelegationStatement<'_> {
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

/// Who decides, and for whom: whose right a decision uses up.
fn rights_of(decision: &Decision) -> impl Iterator<Item = &str> {
    std::iter::once(decision.reviewer.as_str()).chain(decision.delegation.as_ref().map(|d| d.from.as_str()))
}

/// Who stands behind both decisions: they are not two different people's.
fn shared(one: &Decision, other: &Decision) -> Option<String> {
    rights_of(one).find(|name| rights_of(other).any(|same| same == *name)).map(str::to_owned)
}

fn bounds(decision: &Decision) -> (&str, &[String], u32) {
    (&decision.scope, &decision.categories, decision.max_execs)
}

fn check_bounds(decision: &Decision, question: &Question) -> Result<(), String> {
    let (scope, categories, execs) = bounds(decision);
    let fits = match scope {
        "once" => categories.is_empty() && execs <= 1,
        "session" => categories.is_empty() && (1..=EXECS_MAX).contains(&execs),
        KIND if !question.offers_kinds => return Err("no grant of kinds is offered for this request".to_owned()),
        KIND => categories.is_empty() && (1..=EXECS_MAX).contains(&execs),
        // Without bounds: its own category, and as many execs as the daemon gives (older collectors).
        "root" => categories.len() <= CATEGORIES_MAX && execs <= EXECS_MAX,
        _ => false,
    };
    if fits { Ok(()) } else { Err(format!("its scope {scope:?} or its bounds are not accepted")) }
}

// === impl Agreed ===

impl Agreed {
    /// Who, in one text.
    pub fn names(&self) -> String {
        self.reviewers.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use guard_policy::Source;
    use guard_policy::decision::ReviewSigner;
    use guard_policy::roles::Known;
    use guard_proto::v1::{Identity, Verdict};

    use super::*;

    const ID: &str = "01KG9F6R00ABCDEFGHJKMNPQRS";
    const NOW: i64 = 1_769_860_800_000_000_000;
    const MINUTE: i64 = 60_000_000_000;

    fn signer(name: &str) -> ReviewSigner {
        let mut seed = [0; 32];
        seed[..name.len()].copy_from_slice(name.as_bytes());
        ReviewSigner::from_seed(&seed)
    }

    fn roles_with(change: impl Fn(String) -> String) -> Roles {
        let key = |name: &str| format!("{name}: [{{key: '{}'}}]", signer(name).public().text());
        let text = format!(
            "version: 1\nroles:\n  vcs: {{review: {{categories: ['vcs.*'], max_risk: 60}}}}\n  all: {{review: {{categories: ['*'], max_risk: 100}}}}\n\
             people: {{alice: [all], bob: [vcs], carol: [all], dave: [all]}}\nkeys: {{{}, {}, {}}}\n",
            key("alice"),
            key("bob"),
            key("carol")
        );
        Roles::load(&Source { name: "roles.yaml", text: &change(text) }, Known::Any).unwrap()
    }

    fn roles() -> Roles {
        roles_with(|text| text)
    }

    fn two() -> Roles {
        roles_with(|text| format!("{text}approvals: {{needed: [{{risk_from: 20, reviewers: 2}}]}}\n"))
    }

    fn request() -> ExecRequest {
        ExecRequest {
            identity: Some(Identity { initiator: "alice".into(), ..Identity::default() }),
            verdict: Some(Verdict { category: "vcs.write".into(), risk: 30, ..Verdict::default() }),
            request_id: ID.into(),
            digest: vec![1; 32],
            ..ExecRequest::default()
        }
    }

    fn ballot() -> Ballot {
        Ballot::new(Question::of(&request(), b"as it was recorded", NOW))
    }

    #[test]
    fn kinds_are_granted_only_where_the_host_offers_them() {
        let decision = |by: &str| signed(Decision { scope: KIND.into(), max_execs: 50, ..unsigned(by) }, by);
        let refused = why(&roles(), &decision("bob"));
        assert!(refused.contains("no grant of kinds is offered"), "{refused}");
        let offers = ExecRequest { kinds: vec![guard_proto::v1::Kind::default()], ..request() };
        let mut ballot = Ballot::new(Question::of(&offers, b"as it was recorded", NOW));
        let roles = roles();
        match ballot.take(&decision("bob"), Trust { roles: Some(&roles), required: false }, NOW) {
            Taken::Approved(agreed) => assert_eq!((agreed.scope.as_str(), agreed.max_execs), (KIND, 50)),
            other => panic!("{other:?}"),
        }
        // The grant reaches beyond the request's own risk, and so must the reviewer's right and the number of reviewers.
        let wide = ExecRequest { kinds_max_risk: 99, ..offers };
        let mut ballot = Ballot::new(Question::of(&wide, b"as it was recorded", NOW));
        let taken = ballot.take(&decision("bob"), Trust { roles: Some(&roles), required: false }, NOW);
        assert!(matches!(&taken, Taken::Refused(why) if why.contains("bob")), "{taken:?}");
    }

    /// What a collector can send without anybody's key.
    fn unsigned(reviewer: &str) -> Decision {
        Decision {
            request_id: ID.into(),
            digest: vec![1; 32],
            approve: true,
            reviewer: reviewer.into(),
            reason: "looks right".into(),
            scope: "once".into(),
            max_execs: 1,
            expires_unix_ns: NOW + 15 * MINUTE,
            leaf: 7,
            decided_unix_ns: NOW,
            record_sha256: Sha256::digest(b"as it was recorded").to_vec(),
            ..Decision::default()
        }
    }

    fn signed(mut decision: Decision, by: &str) -> Decision {
        let statement = Statement {
            request_id: &decision.request_id,
            digest: &decision.digest,
            record_sha256: &decision.record_sha256,
            approve: decision.approve,
            scope: &decision.scope,
            categories: &decision.categories,
            max_execs: decision.max_execs,
            expires_unix_ns: decision.expires_unix_ns,
            reason: &decision.reason,
            reviewer: &decision.reviewer,
            decided_unix_ns: decision.decided_unix_ns,
            delegation_id: decision.delegation.as_ref().map_or("", |d| &d.id),
        };
        let signature = signer(by).sign(&statement).to_vec();
        decision.signature = signature;
        decision
    }

    fn by(reviewer: &str) -> Decision {
        signed(Decision { leaf: reviewer.len() as u64, ..unsigned(reviewer) }, reviewer)
    }

    fn take(roles: &Roles, decision: &Decision) -> Taken {
        ballot().take(decision, Trust { roles: Some(roles), required: false }, NOW)
    }

    fn why(roles: &Roles, decision: &Decision) -> String {
        match take(roles, decision) {
            Taken::Refused(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_reviewer_signed_is_approved() {
        match take(&roles(), &by("bob")) {
            Taken::Approved(agreed) => {
                assert_eq!(agreed.reviewers, ["bob"]);
                assert_eq!(agreed.key_ids, [signer("bob").public().id().to_vec()]);
                assert_eq!((agreed.scope.as_str(), agreed.leaves.as_slice()), ("once", &[3][..]));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_collector_cannot_invent_an_approval() {
        let roles = roles();
        assert!(why(&roles, &unsigned("bob")).contains("is not signed"));
        assert!(why(&roles, &unsigned("dave")).contains("is not signed"), "nor for one who has no key");
        assert!(why(&roles, &signed(unsigned("dave"), "dave")).contains("no key of dave"));
        assert!(why(&roles, &signed(unsigned("bob"), "mallory")).contains("not one of bob's keys"));
        assert!(why(&roles, &signed(unsigned("carol"), "bob")).contains("not one of carol's keys"), "in her name");
        let junk = Decision { signature: vec![1; 7], ..unsigned("bob") };
        assert!(why(&roles, &junk).contains("not one of bob's keys"));
        let none = Trust { roles: None, required: true };
        assert!(matches!(ballot().take(&by("bob"), none, NOW), Taken::Refused(why) if why.contains("no role file")));
    }

    #[test]
    fn a_signature_holds_for_nothing_else() {
        let roles = roles();
        let good = by("bob");
        // A denial that was signed is no approval, and an approval of another request is none of this one.
        let denied = signed(Decision { approve: false, ..unsigned("bob") }, "bob");
        let other = signed(Decision { request_id: "01KG9F6R00ABCDEFGHJKMNPQRT".into(), ..unsigned("bob") }, "bob");
        for changed in [
            Decision { scope: "session".into(), max_execs: 9, ..good.clone() },
            Decision { scope: "root".into(), categories: vec!["vcs.write".into()], max_execs: 9, ..good.clone() },
            Decision { expires_unix_ns: good.expires_unix_ns + 1, ..good.clone() },
            Decision { reason: "other".into(), ..good.clone() },
            Decision { decided_unix_ns: NOW + 1, ..good.clone() },
            Decision { approve: true, ..denied },
            Decision { request_id: ID.into(), ..other },
        ] {
            assert!(why(&roles, &changed).contains("not one of bob's keys"), "{changed:?}");
        }
        assert!(why(&roles, &Decision { digest: vec![2; 32], ..good }).contains("another digest"));
    }

    #[test]
    fn a_reviewer_who_was_shown_something_else_approved_something_else() {
        let shown = Decision { record_sha256: Sha256::digest(b"git status").to_vec(), ..unsigned("bob") };
        assert!(why(&roles(), &signed(shown, "bob")).contains("shown another request"));
    }

    #[test]
    fn role_key_and_separation_are_looked_at_when_the_decision_comes() {
        let lost = roles_with(|text| text.replace("bob: [vcs],", "bob: [],"));
        assert!(why(&lost, &by("bob")).contains("bob may not review vcs.write at risk 30: it has no role"));
        let lower = roles_with(|text| text.replace("max_risk: 60", "max_risk: 20"));
        assert!(why(&lower, &by("bob")).contains("up to risk 20"));
        let no_key = roles_with(|text| text.replace("bob: [{key", "dave: [{key"));
        assert!(why(&no_key, &by("bob")).contains("no key of bob"));
        let expired = roles_with(|text| text.replacen("'}], bob", "', until: 2020-01-01}], bob", 1));
        assert!(why(&expired, &by("alice")).contains("counted until 2020-01-01"));
        assert!(why(&roles(), &by("alice")).contains("started the session"));
        let wide =
            Decision { scope: "root".into(), categories: vec!["fs.delete".into()], max_execs: 3, ..unsigned("bob") };
        assert!(why(&roles(), &signed(wide, "bob")).contains("bob may not review fs.delete"));
    }

    #[test]
    fn the_hosts_own_clock_says_what_has_expired() {
        let (roles, good) = (roles(), by("bob"));
        let at = |now| ballot().take(&good, Trust { roles: Some(&roles), required: false }, now);
        assert!(matches!(at(NOW - 9 * MINUTE), Taken::Approved(_)), "the reviewer's clock is ahead");
        assert!(matches!(at(NOW + 14 * MINUTE), Taken::Approved(_)));
        assert!(matches!(at(NOW + 16 * MINUTE), Taken::Refused(why) if why.contains("expired")));
        assert!(matches!(at(NOW - 11 * MINUTE), Taken::Refused(why) if why.contains("10 minutes")));
        let early = signed(Decision { decided_unix_ns: NOW - 11 * MINUTE, ..unsigned("bob") }, "bob");
        assert!(why(&roles, &early).contains("10 minutes"));
    }

    #[test]
    fn a_denial_needs_no_signature_and_whether_it_has_one_is_told() {
        let deny = Decision { approve: false, ..unsigned("bob") };
        assert_eq!(take(&roles(), &deny), Taken::Denied(None));
        assert_eq!(take(&roles(), &signed(deny.clone(), "mallory")), Taken::Denied(None));
        assert_eq!(take(&roles(), &signed(deny.clone(), "bob")), Taken::Denied(Some(signer("bob").public().id())));
        // Signed for something else than this host recorded: nobody's word over this request.
        let other = Decision { record_sha256: vec![9; 32], ..deny };
        assert_eq!(take(&roles(), &signed(other, "bob")), Taken::Denied(None));
    }

    // === escalation and delegation ===

    const HOUR: i64 = 60 * MINUTE;

    /// erin may delegate to bob and dave, who have keys and no role that covers it.
    fn delegating() -> Roles {
        roles_with(|text| {
            let key = |name: &str| format!("{name}: [{{key: '{}'}}]", signer(name).public().text());
            text.replace("keys: {", &format!("keys: {{{}, {}, ", key("dave"), key("erin")))
                .replace("bob: [vcs], carol: [all], dave: [all]", "bob: [vcs], carol: [all], dave: [none], erin: [vcs]")
                .replace("people:", "  none: {query: true}\npeople:")
                + "approvals: {delegate: {max_hours: 24}, needed: [{risk_from: 50, reviewers: 2}]}\n"
        })
    }

    fn delegation(from: &str, to: &str) -> Delegation {
        delegated(
            Delegation {
                id: "01KG9F6Q00ABCDEFGHJKMNPQRS".into(),
                from: from.into(),
                to: to.into(),
                categories: vec!["vcs.*".into()],
                max_risk: 60,
                made_unix_ns: NOW - HOUR,
                until_unix_ns: NOW + HOUR,
                ..Delegation::default()
            },
            from,
        )
    }

    fn delegated(mut d: Delegation, by: &str) -> Delegation {
        d.signature = signer(by).delegate(&statement_of(&d)).to_vec();
        d
    }

    fn acting(reviewer: &str, d: Delegation) -> Decision {
        signed(Decision { leaf: 70, delegation: Some(d), ..unsigned(reviewer) }, reviewer)
    }

    #[test]
    fn who_was_delegated_to_approves_for_the_other_and_both_are_named() {
        let roles = delegating();
        assert!(why(&roles, &by("dave")).contains("dave may not review vcs.write"), "nothing of his own");
        match take(&roles, &acting("dave", delegation("erin", "dave"))) {
            Taken::Approved(agreed) => {
                assert_eq!(
                    (agreed.names().as_str(), agreed.on_behalf_of.as_slice()),
                    ("dave", &["erin".to_owned()][..])
                );
                assert_eq!(agreed.key_ids, [signer("dave").public().id().to_vec()]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nobody_has_more_by_a_delegation_than_its_maker_signed_and_has() {
        let roles = delegating();
        let good = delegation("erin", "dave");
        let wider = Delegation { max_risk: 100, ..good.clone() };
        let forged = delegated(Delegation { categories: vec!["*".into()], ..good.clone() }, "dave");
        for changed in [wider, forged, Delegation { until_unix_ns: NOW + 2 * HOUR, ..good.clone() }] {
            let why = why(&roles, &acting("dave", changed));
            assert!(why.contains("not signed by one of the keys that the role file names for erin"), "{why}");
        }
        let ended = delegated(Delegation { until_unix_ns: NOW, ..good.clone() }, "erin");
        assert!(why(&roles, &acting("dave", ended)).contains("the delegation by erin ended at"));
        let long = delegated(Delegation { until_unix_ns: NOW + 24 * HOUR, ..good.clone() }, "erin");
        assert!(why(&roles, &acting("dave", long)).contains("longer than 24 hours"));
        let low = delegated(Delegation { max_risk: 29, ..good.clone() }, "erin");
        assert!(why(&roles, &acting("dave", low)).contains("up to risk 29, not vcs.write at risk 30"));
        // Somebody else's delegation, and one that was not signed into the decision.
        assert!(why(&roles, &acting("bob", good.clone())).contains("is to dave, not to bob"));
        let slipped = Decision { delegation: Some(good.clone()), ..by("dave") };
        assert!(why(&roles, &slipped).contains("not one of dave's keys over exactly this decision"));
        let taken_away = Decision { delegation: None, ..acting("dave", good.clone()) };
        assert!(why(&roles, &taken_away).contains("not one of dave's keys over exactly this decision"));
        // dave hands on what he has by a delegation alone.
        assert!(why(&roles, &acting("bob", delegation("dave", "bob"))).contains("what dave has not got"));
        // A root approval reaches no further either.
        let root = Decision {
            scope: "root".into(),
            categories: vec!["fs.delete".into()],
            max_execs: 3,
            delegation: Some(good),
            ..unsigned("dave")
        };
        assert!(why(&roles, &signed(root, "dave")).contains("not fs.delete at risk 30"));
    }

    #[test]
    fn an_initiator_gains_nothing_by_a_delegation() {
        let roles = delegating();
        let for_alice = acting("dave", delegation("alice", "dave"));
        assert!(why(&roles, &for_alice).contains("alice started the session"));
        let as_alice = acting("alice", delegation("erin", "alice"));
        assert!(why(&roles, &as_alice).contains("alice started the session"));
        let own = by("bob");
        assert!(matches!(take(&roles, &own), Taken::Approved(_)));
    }

    #[test]
    fn one_right_counts_once_in_whoevers_hands_it_is() {
        let roles = delegating();
        let trust = Trust { roles: Some(&roles), required: false };
        let risky = ExecRequest {
            verdict: Some(Verdict { category: "vcs.write".into(), risk: 55, ..Verdict::default() }),
            ..request()
        };
        let mut ballot = Ballot::new(Question::of(&risky, b"as it was recorded", NOW));
        assert!(matches!(ballot.take(&by("erin"), trust, NOW), Taken::Counted { have: 1, needed: 2, .. }));
        let again = ballot.take(&acting("dave", delegation("erin", "dave")), trust, NOW);
        assert!(
            matches!(&again, Taken::Refused(why) if why.contains("the right of erin has approved it already")),
            "{again:?}"
        );
        let bob = Decision { leaf: 71, ..by("bob") };
        assert!(matches!(ballot.take(&bob, trust, NOW), Taken::Approved(_)));
    }

    #[test]
    fn the_second_group_decides_where_the_role_file_escalates_and_nowhere_else() {
        let with = |rest: &str| {
            roles_with(|text| text.replace("max_risk: 60}}", "max_risk: 60, only_escalated: true}}") + rest)
        };
        let roles = with("approvals: {escalate: [{to: [vcs], after_percent: 50}]}\n");
        assert!(matches!(take(&roles, &by("bob")), Taken::Approved(_)));
        let elsewhere = with("approvals: {escalate: [{to: [vcs], after_percent: 50, categories: [fs.delete]}]}\n");
        assert!(why(&elsewhere, &by("bob")).contains("only once it was escalated"));
    }

    #[test]
    fn two_different_reviewers_are_counted_here() {
        let roles = two();
        let trust = Trust { roles: Some(&roles), required: false };
        let mut ballot = ballot();
        let counted = Taken::Counted { key_id: signer("bob").public().id().to_vec(), have: 1, needed: 2 };
        assert_eq!(ballot.take(&by("bob"), trust, NOW), counted);
        // The same one again, by another record, is nobody new; and nobody can stand in for carol.
        let again = signed(Decision { leaf: 99, ..unsigned("bob") }, "bob");
        assert_eq!(ballot.take(&again, trust, NOW), Taken::Ignored);
        assert!(matches!(ballot.take(&signed(unsigned("carol"), "bob"), trust, NOW), Taken::Refused(_)));
        let other = Decision { scope: "session".into(), max_execs: 5, leaf: 50, ..unsigned("carol") };
        let why = ballot.take(&signed(other, "carol"), trust, NOW);
        assert!(matches!(&why, Taken::Refused(why) if why.contains("not those that bob approved")), "{why:?}");
        match ballot.take(&by("carol"), trust, NOW) {
            Taken::Approved(agreed) => assert_eq!((agreed.names().as_str(), agreed.key_ids.len()), ("bob, carol", 2)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_lost_the_role_before_the_second_approved_is_not_counted() {
        let (before, mut ballot) = (two(), ballot());
        let trust = Trust { roles: Some(&before), required: false };
        assert!(matches!(ballot.take(&by("bob"), trust, NOW), Taken::Counted { have: 1, .. }));
        let after = roles_with(|text| {
            text.replace("bob: [vcs],", "bob: [],") + "approvals: {needed: [{risk_from: 20, reviewers: 2}]}\n"
        });
        let trust = Trust { roles: Some(&after), required: false };
        assert!(matches!(ballot.take(&by("carol"), trust, NOW), Taken::Counted { have: 1, needed: 2, .. }));
    }

    #[test]
    fn a_collector_that_floods_gets_few_records_and_a_good_decision_still_counts() {
        let roles = roles();
        let trust = Trust { roles: Some(&roles), required: false };
        let mut ballot = ballot();
        let refused = (0..1000)
            .map(|leaf| ballot.take(&Decision { leaf: leaf / 2, ..unsigned("bob") }, trust, NOW))
            .filter(|taken| matches!(taken, Taken::Refused(_)))
            .count();
        assert_eq!(refused, REFUSED_MAX);
        assert!(matches!(ballot.take(&by("bob"), trust, NOW), Taken::Approved(_)));
    }

    #[test]
    fn without_keys_the_collectors_word_counts_as_before() {
        let open = roles_with(|text| text.split("keys:").next().unwrap_or_default().to_owned());
        for roles in [None, Some(&open)] {
            match ballot().take(&unsigned("bob"), Trust { roles, required: false }, NOW) {
                Taken::Approved(agreed) => assert!(agreed.key_ids.is_empty()),
                other => panic!("{other:?}"),
            }
        }
        let odd = Decision { scope: "everything".into(), ..unsigned("bob") };
        assert!(matches!(ballot().take(&odd, Trust { roles: None, required: false }, NOW), Taken::Refused(_)));
    }
}
