//! Renewal of a session: who may, until when, and the order in which a later end is recorded and comes into force.
//!
//! Order: what is kept names the later end as one that may come; the record is durable; the kernel gets it; what is kept names it
//! as the end. A daemon that dies in between leaves the end that the kernel has, which is one of the two (see `adopt`), and
//! the next one records which. It must not move an end that has come. Fails: with the reason, and the end that was.

use std::time::Duration;

use guard_proto::v1::record_body::Body;
use guard_proto::v1::{Identity, LocalError, LocalRenewed, SessionRenewed, local_reply::Reply};

use crate::config::SessionConfig;
use crate::control::error;
use crate::kept::{self, Former};
use crate::kernel::time;
use crate::life::Until;
use crate::node::Node;
use crate::session::Session;
use crate::{fresh, record, roles};

/// Who asks: the authenticated peer.
pub struct By {
    /// User id.
    pub uid: u32,
    /// Name.
    pub name: String,
}

/// Gives a session a later end.
pub fn renew(node: &Node, session: &Session, by: &By, asked_seconds: u64) -> Result<LocalRenewed, LocalError> {
    let _keeping = session.life.keeping();
    if session.is_ending() {
        return Err(error("not_found", format!("session {} is ending", session.id), ""));
    }
    if node.is_stopping() {
        return Err(error("unavailable", "the daemon is stopping", ""));
    }
    still_entitled(node, &session.identity, &session.identity.categories)?;
    let (old, now) = (session.life.until(), time::boot_ns());
    let boot_ns = later_end(&node.config.session, session.started_boot_ns, old.boot_ns, now, asked_seconds)?;
    before_parents_end(node, session, boot_ns)?;
    // Wall time may have been set since: people are shown what it says now.
    let wall = i64::try_from(boot_ns.saturating_sub(now)).unwrap_or(i64::MAX);
    let new = Until { boot_ns, unix_ns: time::wall_unix_ns().saturating_add(wall) };
    let keep = |to: Option<Until>| kept::remember(&node.config.node.state_dir, &node.boot_id, session, to);
    let internal = |what: &str, e: String| error("internal", format!("{what}: {e}"), "the session's end is unchanged");
    keep(Some(new)).map_err(|e| internal("keeping the session's state", e.to_string()))?;
    let body = record(session, "renewed", Some(by), [old, new], String::new());
    let recorded = node.append(session.id, body).and_then(|ticket| ticket.wait());
    let done = recorded.map_err(|e| format!("recording the renewal: {e}")).and_then(|_| {
        session.life.renew(time::boot_ns(), new, || match node.kernel.extend_session(session.key, boot_ns) {
            Ok(true) => Ok(()),
            Ok(false) => Err("it ended meanwhile".into()),
            Err(e) => Err(e.to_string()),
        })
    });
    if let Err(why) = done {
        node.note(session.id, record(session, "not_in_force", Some(by), [old, new], why.clone()));
        if let Err(error) = keep(None) {
            tracing::error!(session = %session.id, %error, "keeping a session's state");
        }
        return Err(internal("the session is not renewed", why));
    }
    // The end is in force. Should this fail, the next daemon finds in the kernel which of the two it is.
    if let Err(error) = keep(None) {
        tracing::error!(session = %session.id, %error, "keeping a session's later end");
    }
    tracing::info!(session = %session.id, by = by.name, "session renewed");
    let left = Duration::from_nanos(boot_ns.saturating_sub(time::boot_ns())).as_secs();
    let text = format!("session {} lives for another {}, as {} asked", session.id, words(left), by.name);
    let renewed = LocalRenewed { session_id: session.identity.session_id.clone(), expires_unix_ns: new.unix_ns, text };
    session.reply(Reply::Renewed(renewed.clone()));
    Ok(renewed)
}

/// Roles and policy are those of the session's start; but whoever has lost some of them since gets no more time for them, and no
/// child session with them.
pub fn still_entitled(node: &Node, who: &Identity, categories: &[String]) -> Result<(), LocalError> {
    let in_force = node.policies.of(&who.agent).counts;
    fresh::allows(node, &in_force, &who.agent)?;
    let rights = roles::rights(&in_force, &node.config, [&who.initiator, &who.agent, &who.started_by])
        .map_err(|why| error("denied", why, roles::HINT))?;
    match categories.iter().find(|c| !rights.categories.contains(c)) {
        None => Ok(()),
        Some(lost) => Err(error(
            "denied",
            format!("the session may request {lost}, which roles and policy in force no longer give it"),
            "start a new session",
        )),
    }
}

/// A child session ends with its parent at the latest. That one's end only moves further away.
fn before_parents_end(node: &Node, session: &Session, boot_ns: u64) -> Result<(), LocalError> {
    if !session.is_child() {
        return Ok(());
    }
    let parent = node.session_by_id(&session.identity.parent_session_id);
    match parent.filter(|parent| !parent.is_ending()).map(|parent| parent.life.until().boot_ns) {
        Some(end) if boot_ns <= end => Ok(()),
        Some(_) => Err(error(
            "denied",
            format!(
                "session {} is a child of {}, which ends before that",
                session.id, session.identity.parent_session_id
            ),
            "renew that one first, or ask for a shorter --ttl",
        )),
        None => Err(error("not_found", "the session that it is a child of is ending", "")),
    }
}

/// The end in boot time: so long from now, later than before, within the longest life of a session.
fn later_end(
    config: &SessionConfig,
    started_boot_ns: u64,
    old_boot_ns: u64,
    now: u64,
    asked_seconds: u64,
) -> Result<u64, LocalError> {
    const SECOND: u64 = 1_000_000_000;
    if now >= old_boot_ns {
        return Err(error(
            "expired",
            "the session has expired: what has expired is not renewed",
            "start a new session",
        ));
    }
    if asked_seconds > config.max_ttl_seconds {
        let text = format!("{asked_seconds} s are longer than the {} s allowed here", config.max_ttl_seconds);
        return Err(error("usage", text, "ask for a shorter --ttl"));
    }
    let last = started_boot_ns.saturating_add(config.max_life_seconds().saturating_mul(SECOND));
    let seconds = if asked_seconds == 0 { config.default_ttl_seconds } else { asked_seconds };
    let mut end = now.saturating_add(seconds.saturating_mul(SECOND));
    if end > last && asked_seconds == 0 {
        end = last;
    }
    let left = last.saturating_sub(now) / SECOND;
    let limit = format!("a session lives for at most {} s (session.max_life_seconds)", config.max_life_seconds());
    if end > last {
        return Err(error("denied", format!("{limit}; this one has {left} s left"), "ask for a shorter --ttl"));
    }
    if end <= old_boot_ns {
        let has = (old_boot_ns - now) / SECOND;
        return Err(error("usage", format!("it lives for another {has} s as it is; {limit}"), "nothing was changed"));
    }
    Ok(end)
}

fn record(session: &Session, what: &str, by: Option<&By>, [old, new]: [Until; 2], detail: String) -> Body {
    body(record::chain(&session.identity), what, by, [old, new], detail)
}

fn body(chain: guard_proto::v1::Identity, what: &str, by: Option<&By>, [old, new]: [Until; 2], detail: String) -> Body {
    Body::SessionRenewed(SessionRenewed {
        identity: Some(chain),
        what: what.into(),
        by: by.map(|by| by.name.clone()).unwrap_or_default(),
        by_uid: by.map(|by| by.uid).unwrap_or_default(),
        old_expires_boot_ns: old.boot_ns,
        new_expires_boot_ns: new.boot_ns,
        old_expires_unix_ns: old.unix_ns,
        new_expires_unix_ns: new.unix_ns,
        detail,
    })
}

/// The end that a session of an earlier daemon has: the kernel's, if what is kept names it. Nothing if that is another one.
pub fn settled(state: &kept::State, kernel_boot_ns: u64) -> Option<Until> {
    let kept = Until { boot_ns: state.expires_boot_ns, unix_ns: state.expires_unix_ns };
    [Some(kept), state.renewal].into_iter().flatten().find(|until| until.boot_ns == kernel_boot_ns)
}

/// What is recorded of a renewal that an earlier daemon had begun and that is not in force.
pub fn left_behind(former: &Former, state: &kept::State, in_force: Until) -> Option<Body> {
    let wanted = state.renewal.filter(|wanted| *wanted != in_force)?;
    let why = "the daemon ended before the later end was in force".into();
    Some(body(record::chain(&former.identity), "not_in_force", None, [in_force, wanted], why))
}

/// A number of seconds for people.
pub fn words(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s} s"),
        (m, 0) => format!("{m} min"),
        (m, s) if m < 10 => format!("{m} min {s} s"),
        (m, _) => format!("{m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn end(started: u64, old: u64, now: u64, asked: u64) -> Result<u64, LocalError> {
        let config = SessionConfig { max_ttl_seconds: 3600, max_life_seconds: Some(7200), ..SessionConfig::default() };
        later_end(&config, started * S, old * S, now * S, asked).map(|end| end / S)
    }

    #[test]
    fn a_later_end_is_counted_from_now_and_never_beyond_the_longest_life() {
        assert_eq!(end(100, 1000, 500, 0).unwrap(), 1400);
        assert_eq!(end(100, 1000, 500, 3600).unwrap(), 4100);
        // Without a wish as much as there is, with one that or nothing.
        assert_eq!(end(100, 7000, 6900, 0).unwrap(), 7300);
        let refused = end(100, 7000, 6900, 900).unwrap_err();
        assert_eq!(refused.code, "denied");
        assert!(refused.message.contains("7200 s") && refused.message.contains("400 s left"), "{}", refused.message);
        assert_eq!(end(100, 7300, 7299, 0).unwrap_err().code, "usage");
    }

    #[test]
    fn never_after_the_end_never_shorter_never_longer_than_allowed_at_once() {
        assert_eq!(end(0, 1000, 1000, 60).unwrap_err().code, "expired");
        assert_eq!(end(0, 1000, 500, 60).unwrap_err().code, "usage");
        assert_eq!(end(0, 1000, 500, 3601).unwrap_err().code, "usage");
        // What overflows is refused, not wrapped.
        assert_eq!(end(0, 1000, 500, u64::MAX).unwrap_err().code, "usage");
    }

    #[test]
    fn without_a_setting_the_longest_life_is_the_longest_ttl() {
        let config = SessionConfig { max_ttl_seconds: 3600, ..SessionConfig::default() };
        assert_eq!(later_end(&config, 0, 3600 * S, 3500 * S, 0).unwrap_err().code, "usage");
        assert_eq!(later_end(&config, 0, 900 * S, 600 * S, 3600).unwrap_err().code, "denied");
        assert_eq!(later_end(&config, 0, 900 * S, 600 * S, 0).unwrap(), 1500 * S);
    }

    /// A daemon died somewhere in a renewal from 10 to 20: the kernel says which of the two it is, and any third one is none.
    #[test]
    fn wherever_a_renewal_is_cut_short_one_of_the_two_ends_is_left() {
        let until = |boot_ns| Until { boot_ns, unix_ns: 0 };
        let kept = |end, renewal: Option<u64>| kept::State {
            expires_boot_ns: end,
            renewal: renewal.map(until),
            ..kept::State::default()
        };
        // Before the kernel had it, and after; then with the file written anew.
        for (state, kernel) in
            [(kept(10, Some(20)), 10), (kept(10, Some(20)), 20), (kept(20, None), 20), (kept(10, None), 10)]
        {
            assert_eq!(settled(&state, kernel), Some(until(kernel)));
        }
        for (state, kernel) in [(kept(10, Some(20)), 30), (kept(10, None), 20), (kept(20, None), 10)] {
            assert_eq!(settled(&state, kernel), None, "the kernel says {kernel}");
        }
    }

    #[test]
    fn a_renewal_that_is_not_in_force_is_said_to_be_none() {
        let (old, new) = (Until { boot_ns: 10, unix_ns: 1 }, Until { boot_ns: 20, unix_ns: 2 });
        let state =
            kept::State { expires_boot_ns: 10, expires_unix_ns: 1, renewal: Some(new), ..kept::State::default() };
        let former = |state: &kept::State| Former {
            key: 2,
            id: guard_log::record::SessionId([1; 16]),
            identity: guard_proto::v1::Identity::default(),
            head: kept::Head {
                format: kept::FORMAT,
                abi: 0,
                boot_id: String::new(),
                key: 2,
                session_id: String::new(),
                identity: String::new(),
            },
            state: Ok(Box::new(state.clone())),
        };
        match left_behind(&former(&state), &state, old) {
            Some(Body::SessionRenewed(said)) => {
                assert_eq!(
                    (said.what.as_str(), said.old_expires_boot_ns, said.new_expires_boot_ns),
                    ("not_in_force", 10, 20)
                );
            }
            other => panic!("{other:?}"),
        }
        assert!(left_behind(&former(&state), &state, new).is_none());
        let whole = kept::State { renewal: None, ..state };
        assert!(left_behind(&former(&whole), &whole, old).is_none());
    }

    #[test]
    fn times_are_said_in_words() {
        assert_eq!([words(45), words(120), words(95), words(901)], ["45 s", "2 min", "1 min 35 s", "15 min"]);
    }
}
