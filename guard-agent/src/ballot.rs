//! One request's decisions as they come from the collector: which count, and when they are enough.
//!
//! The collector is not believed: where the host's role file names reviewers' keys, only a decision that one of them signed over
//! exactly this request approves anything, and different reviewers are counted here. It must not look at the collector's word
//! for any of that. Fails closed: what does not hold is refused with the reason, and a denial needs no signature.

use guard_policy::decision::Statement;
use guard_policy::roles::{Right, Roles, Subject};
use guard_proto::v1::{Decision, ExecRequest};
use sha2::{Digest, Sha256};

/// Refused decisions of one request that get a record each; a collector may send any number.
const REFUSED_MAX: usize = 8;
/// How far apart the clocks of host and reviewer may be.
const SKEW_NS: i64 = 600_000_000_000;
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
    /// Wall time of the request.
    pub opened_unix_ns: i64,
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
    /// Ids of the keys that signed; none where decisions are not signed.
    pub key_ids: Vec<Vec<u8>>,
    /// Leaves of their decisions.
    pub leaves: Vec<u64>,
    /// Why, as the last of them said it.
    pub reason: String,
    /// How far it reaches: once, session or root.
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
    /// The request is denied.
    Denied,
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
            opened_unix_ns,
        }
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
            return Taken::Denied;
        }
        if self.counted.iter().any(|c| c.decision.reviewer == decision.reviewer) {
            return Taken::Ignored;
        }
        let key = match self.check(decision, trust, now_unix_ns) {
            Ok(key) => key,
            Err(why) => return self.refuse(decision, why),
        };
        self.drop_lapsed(trust, now_unix_ns);
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
        trust.roles.map_or(1, |roles| roles.reviewers_needed(categories, self.question.risk))
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
        check_bounds(decision)?;
        if !trust.signs() {
            return Ok(None);
        }
        let roles = trust.roles.ok_or("reviews.signed is \"required\", and no role file names a reviewer's key")?;
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
        };
        let key = roles.signed(&statement, &decision.signature, now_unix_ns).map_err(|e| e.to_string())?;
        if decision.record_sha256 != self.question.record {
            return Err(format!(
                "{} was shown another request than the one that this host recorded",
                decision.reviewer
            ));
        }
        self.check_reviewer(decision, roles)?;
        self.check_times(decision, now_unix_ns)?;
        Ok(Some(key))
    }

    fn check_reviewer(&self, decision: &Decision, roles: &Roles) -> Result<(), String> {
        let reviewer = decision.reviewer.as_str();
        if self.question.owners.iter().any(|owner| owner == reviewer) {
            return Err(format!("{reviewer} started the session; somebody else must decide its requests"));
        }
        for category in self.question.categories.iter().chain(&decision.categories) {
            let right = Right::Review(category, self.question.risk);
            roles.check(Subject::Principal(reviewer), right).map_err(|missing| missing.to_string())?;
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

fn bounds(decision: &Decision) -> (&str, &[String], u32) {
    (&decision.scope, &decision.categories, decision.max_execs)
}

fn check_bounds(decision: &Decision) -> Result<(), String> {
    let (scope, categories, execs) = bounds(decision);
    let fits = match scope {
        "once" => categories.is_empty() && execs <= 1,
        "session" => categories.is_empty() && (1..=EXECS_MAX).contains(&execs),
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
    fn a_denial_needs_no_signature() {
        let deny = Decision { approve: false, ..unsigned("anybody") };
        assert_eq!(take(&roles(), &deny), Taken::Denied);
        assert_eq!(take(&roles(), &signed(deny, "mallory")), Taken::Denied);
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
