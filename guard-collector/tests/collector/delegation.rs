//! A reviewer's right in somebody else's hands: recorded, found by whoever has it, checked again by the host, ended.

use guard_log::record::Kind;
use guard_policy::decision::DelegationStatement;
use guard_proto::v1::record_body::Body;
use guard_proto::v1::*;
use tonic::{Code, Status};

use crate::ballot::Taken;
use crate::signed::{REQUEST, asked, get, listen, next, refused, signed, signer, take, unsigned};
use crate::world::ControlClient;

const DELEGATION: &str = "01KG9F6Q00ABCDEFGHJKMNPQRS";
const HOUR: i64 = 3_600_000_000_000;

/// admin may review; bob has a key and nothing of his own; alice is the initiator.
fn roles() -> String {
    let key = |name: &str| format!("{name}: [{{key: '{}'}}]", signer(name).public().text());
    format!(
        "version: 1\nroles: {{lead: {{review: {{categories: ['vcs.*', fs.write], max_risk: 60}}}}, none: {{request: [info]}}, \
         reader: {{query: true}}}}\npeople: {{admin: [lead], bob: [none], alice: [lead], vera: [reader]}}\n\
         keys: {{{}, {}, {}}}\napprovals: {{delegate: {{max_hours: 24}}}}\n",
        key("admin"),
        key("bob"),
        key("alice")
    )
}

fn statement(d: &Delegation) -> DelegationStatement<'_> {
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

fn by(mut d: Delegation, key: &str) -> Delegation {
    d.signature = signer(key).delegate(&statement(&d)).to_vec();
    d
}

fn delegation(from: &str, to: &str) -> Delegation {
    let now = guard_collector::own::now_ns();
    let d = Delegation {
        id: DELEGATION.into(),
        from: from.into(),
        to: to.into(),
        categories: vec!["vcs.*".into()],
        max_risk: 60,
        made_unix_ns: now,
        until_unix_ns: now + HOUR,
        reason: "on leave".into(),
        ..Delegation::default()
    };
    by(d, from)
}

async fn delegate(client: &mut ControlClient, d: Delegation) -> Result<u64, Status> {
    client.delegate(DelegateRequest { delegation: Some(d) }).await.map(|reply| reply.into_inner().leaf)
}

async fn standing(client: &mut ControlClient) -> Vec<DelegationState> {
    client.list_delegations(ListDelegationsRequest {}).await.expect("list").into_inner().delegations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_delegated_to_sees_and_decides_and_the_host_checks_the_whole_chain() {
    let file = roles();
    let (mut world, host, mut ballot) = asked(Some(&file)).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    assert!(bob.list_reviews(ListReviewsRequest::default()).await.is_err(), "bob has no right of his own");
    let given = delegation("admin", "bob");
    let leaf = delegate(&mut admin, given.clone()).await.expect("delegated");
    let again = delegate(&mut admin, given.clone()).await.expect_err("twice");
    assert!(again.message().contains("is there already"), "{again}");
    // It is known from the log alone.
    world.kill();
    world.start();
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let all = standing(&mut bob).await;
    assert_eq!((all.len(), all[0].leaf, all[0].delegation.as_ref()), (1, leaf, Some(&given)));
    assert_eq!(standing(&mut world.control("alice").await).await, [], "nobody else's business");
    assert_eq!(standing(&mut world.control("vera").await).await.len(), 1, "but for who may query");

    assert_eq!(bob.list_reviews(ListReviewsRequest::default()).await.expect("list").into_inner().reviews.len(), 1);
    let shown = get(&mut bob).await;
    assert_eq!(shown.acting_for.as_ref(), Some(&given));
    assert_eq!(get(&mut admin).await.acting_for, None, "admin needs none");
    let plain = unsigned(&shown);
    let own = refused(&mut bob, signed(plain.clone(), "bob", "bob")).await;
    assert_eq!(own.code(), Code::PermissionDenied, "not by his own right: {own}");
    let wanted = DecideRequest { delegation_id: DELEGATION.into(), ..plain.clone() };
    let slipped = DecideRequest { signature: signed(plain, "bob", "bob").signature, ..wanted.clone() };
    assert!(refused(&mut bob, slipped).await.message().contains("over exactly this decision"));
    let theirs = refused(&mut admin, signed(wanted.clone(), "admin", "admin")).await;
    assert!(theirs.message().contains("admin has no delegation"), "{theirs}");
    let wide =
        DecideRequest { scope: "root".into(), max_execs: 3, categories: vec!["fs.write".into()], ..wanted.clone() };
    let beyond = refused(&mut bob, signed(wide, "bob", "bob")).await;
    assert!(beyond.message().contains("covers vcs.* up to risk 60, not fs.write"), "{beyond}");

    let mut live = listen(&world, &host).await;
    let reply = bob.decide(signed(wanted, "bob", "bob")).await.expect("decided").into_inner();
    let review = reply.review.expect("review");
    assert_eq!((review.given[0].reviewer.as_str(), review.given[0].on_behalf_of.as_str()), ("bob", "admin"));
    let decision = next(&mut live).await;
    // A collector that leaves the delegation out, or puts in another one, gets nowhere.
    let without = Decision { delegation: None, leaf: 1, ..decision.clone() };
    assert!(matches!(take(&mut ballot, &without, &file), Taken::Refused(_)));
    let forged = by(Delegation { max_risk: 100, ..given.clone() }, "bob");
    let other = Decision { delegation: Some(forged), leaf: 2, ..decision.clone() };
    assert!(
        matches!(take(&mut ballot, &other, &file), Taken::Refused(why) if why.contains("role file names for admin"))
    );
    match take(&mut ballot, &decision, &file) {
        Taken::Approved(agreed) => {
            assert_eq!((agreed.names().as_str(), agreed.on_behalf_of[0].as_str()), ("bob", "admin"))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_delegates_what_is_not_theirs_or_in_anothers_name() {
    let (world, _host, _) = asked(Some(&roles())).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    let good = delegation("admin", "bob");
    let wider = |categories: &str, max_risk| {
        by(Delegation { categories: vec![categories.into()], max_risk, ..good.clone() }, "admin")
    };
    for (wrong, why) in [
        (by(good.clone(), "bob"), "not signed by one of the keys"),
        (wider("*", 60), "what admin has not got"),
        (wider("vcs.*", 61), "what admin has not got"),
        (
            by(Delegation { until_unix_ns: good.made_unix_ns + 25 * HOUR, ..good.clone() }, "admin"),
            "longer than 24 hours",
        ),
        (by(Delegation { until_unix_ns: good.made_unix_ns - 1, ..good.clone() }, "admin"), "not after its beginning"),
        (by(Delegation { to: "vera".into(), ..good.clone() }, "admin"), "names no key of vera"),
        (by(Delegation { to: "admin".into(), ..good.clone() }, "admin"), "to themselves"),
        (delegation("alice", "bob"), "admin cannot delegate what is alice's"),
    ] {
        let status = delegate(&mut admin, wrong).await.expect_err(why);
        assert!(status.message().contains(why), "{why}: {status}");
    }
    // Who has it by a delegation alone hands nothing on.
    delegate(&mut admin, good).await.expect("delegated");
    let on = Delegation { id: "01KG9F6Q00ABCDEFGHJKMNPQRT".into(), ..delegation("bob", "alice") };
    let status = delegate(&mut bob, by(on, "bob")).await.expect_err("no re-delegation");
    assert!(status.message().contains("what bob has not got"), "{status}");
    let delegated = world.control("vera").await;
    drop(delegated);
}

/// alice started the session: neither she with somebody's right, nor somebody with hers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_initiator_decides_nothing_through_a_delegate() {
    let file = roles();
    let (world, host, mut ballot) = asked(Some(&file)).await;
    let (mut alice, mut bob) = (world.control("alice").await, world.control("bob").await);
    delegate(&mut alice, delegation("alice", "bob")).await.expect("delegated");
    let shown = bob.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.expect_err("not for alice");
    assert_eq!(shown.code(), Code::PermissionDenied);
    let request = get(&mut world.control("admin").await).await;
    let wanted = DecideRequest { delegation_id: DELEGATION.into(), ..unsigned(&request) };
    let status = refused(&mut bob, signed(wanted.clone(), "bob", "bob")).await;
    assert!(status.message().contains("alice started session"), "{status}");
    // A collector that lets it through.
    let sent = signed(wanted, "bob", "bob");
    let decision = Decision {
        request_id: sent.request_id,
        digest: sent.digest,
        approve: true,
        reviewer: "bob".into(),
        reason: sent.reason,
        scope: sent.scope,
        max_execs: sent.max_execs,
        expires_unix_ns: sent.expires_unix_ns,
        signature: sent.signature,
        decided_unix_ns: sent.decided_unix_ns,
        record_sha256: sent.record_sha256,
        delegation: Some(delegation("alice", "bob")),
        ..Decision::default()
    };
    let taken = take(&mut ballot, &decision, &file);
    assert!(matches!(&taken, Taken::Refused(why) if why.contains("alice started the session")), "{taken:?}");
    drop(host);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegation_that_was_ended_decides_nothing() {
    let (world, _host, _) = asked(Some(&roles())).await;
    let (mut bob, mut admin) = (world.control("bob").await, world.control("admin").await);
    delegate(&mut admin, delegation("admin", "bob")).await.expect("delegated");
    let shown = get(&mut bob).await;
    let end = UndelegateRequest { id: DELEGATION.into(), reason: "back".into() };
    let mut alice = world.control("alice").await;
    let foreign = alice.undelegate(end.clone()).await.expect_err("not hers");
    assert_eq!(foreign.code(), Code::PermissionDenied);
    admin.undelegate(end.clone()).await.expect("ended");
    let wanted = DecideRequest { delegation_id: DELEGATION.into(), ..unsigned(&shown) };
    let status = refused(&mut bob, signed(wanted, "bob", "bob")).await;
    assert!(status.message().contains("bob has no delegation") && status.message().contains("has ended"), "{status}");
    assert_eq!(admin.undelegate(end).await.expect_err("ended already").code(), Code::NotFound);
    assert!(bob.get_review(GetReviewRequest { request_id: REQUEST.into() }).await.is_err(), "nor is anything shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_delegation_are_on_record() {
    let (world, _host, _) = asked(Some(
        &roles()
            .replace("reader: {query: true}", "reader: {query: true}, admins: {query: true}")
            .replace("admin: [lead]", "admin: [lead, admins]"),
    ))
    .await;
    let mut admin = world.control("admin").await;
    delegate(&mut admin, delegation("admin", "bob")).await.expect("delegated");
    admin.undelegate(UndelegateRequest { id: DELEGATION.into(), reason: "back".into() }).await.expect("ended");
    let records = world.records().await;
    let said: Vec<ReviewDelegated> = records
        .iter()
        .filter(|record| record.header().kind == Kind(43))
        .filter_map(|record| match guard_collector::body::parse(record) {
            Some(Body::ReviewDelegated(body)) => Some(body),
            _ => None,
        })
        .collect();
    assert_eq!(said.len(), 2);
    assert_eq!((said[0].key_id.as_slice(), said[0].ended_by.as_str()), (&signer("admin").public().id()[..], ""));
    assert_eq!((said[1].ended_by.as_str(), said[1].reason.as_str()), ("admin", "back"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_signed_decisions_there_is_nothing_to_delegate() {
    let (world, _host, _) = asked(None).await;
    let status = delegate(&mut world.control("bob").await, delegation("bob", "admin")).await.expect_err("no keys");
    assert!(status.code() == Code::FailedPrecondition && status.message().contains("not signed here"), "{status}");
}
