//! The end of a session's life: people are told before, and what runs then is killed, frozen or left, as configured.
//!
//! That no exec runs any more does not depend on this: the kernel sees to it. What has expired stays so; a frozen session ends by
//! being killed, never by going on. Fails closed: what cannot be frozen is killed.

use std::sync::Arc;
use std::time::Duration;

use guard_proto::v1::SessionExpired;
use guard_proto::v1::record_body::Body;
use serde::Deserialize;

use crate::kernel::time;
use crate::life::Due;
use crate::node::Node;
use crate::renewal::words;
use crate::session::Session;

/// What becomes of the processes of a session whose life is over.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OnExpiry {
    /// They are killed.
    #[default]
    Kill,
    /// They stand still until the session is ended by hand.
    Freeze,
    /// They run on until they end by themselves or the session is ended by hand, and can start nothing.
    Deny,
}

impl OnExpiry {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Deny => "deny",
        }
    }
}

/// Does what is due. Called by the clock: must not wait for anything.
pub fn tick(node: &Arc<Node>, session: &Arc<Session>, now: u64) {
    let grace = Duration::from_secs(node.config.session.expiry_grace_seconds);
    while let Some(due) = session.life.due(now, grace) {
        if session.is_ending() {
            return;
        }
        match due {
            Due::Soon(left) => session.say("expiring", soon(session, left), ""),
            Due::Expired => expired(node, session, grace),
            Due::Over => over(node, session),
        }
    }
}

fn soon(session: &Session, left_ns: u64) -> String {
    let left = words(Duration::from_nanos(left_ns).as_secs().max(1));
    format!("the session expires in {left}; renew it with: guardctl session renew {}", session.id)
}

fn expired(node: &Node, session: &Session, grace: Duration) {
    let on_expiry = node.config.session.on_expiry;
    let late = time::boot_ns().saturating_sub(session.life.until().boot_ns) > 1_000_000_000;
    let detail = if late { "seen later: no daemon ran, or it was busy" } else { "" };
    record(node, session, "expired", detail);
    let then = match on_expiry {
        OnExpiry::Kill if grace.is_zero() => return,
        OnExpiry::Kill => format!("it ends in {}", words(grace.as_secs())),
        OnExpiry::Freeze => format!("its processes are frozen in {}", words(grace.as_secs())),
        OnExpiry::Deny => "what runs may go on".to_owned(),
    };
    session.say("expired", format!("the session has expired: nothing more starts; {then}"), "");
}

fn over(node: &Node, session: &Session) {
    match node.config.session.on_expiry {
        OnExpiry::Kill => session.request_end(node, "expired", String::new()),
        OnExpiry::Deny => {}
        // Of an earlier daemon.
        OnExpiry::Freeze if session.cgroup.is_frozen() => {}
        OnExpiry::Freeze => match session.cgroup.freeze() {
            Ok(()) => {
                record(node, session, "frozen", "");
                let text = format!("its processes are frozen; guardctl session end {} kills them", session.id);
                session.say("frozen", text, "");
            }
            Err(error) => session.request_end(node, "expired", format!("it could not be frozen: {error};")),
        },
    }
}

fn record(node: &Node, session: &Session, what: &str, detail: &str) {
    let body = SessionExpired {
        identity: Some(session.chain.clone()),
        what: what.into(),
        on_expiry: node.config.session.on_expiry.word().into(),
        grace_ns: node.config.session.expiry_grace_seconds.saturating_mul(1_000_000_000),
        detail: detail.into(),
    };
    node.note(session.id, Body::SessionExpired(body));
}
