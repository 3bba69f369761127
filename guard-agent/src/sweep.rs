//! Forgets execs and images of sessions whose end was not seen, because the event about it found no room.
//!
//! What the kernel no longer knows, and no event that is still to be read can speak of, is over. It must not decide. Fails:
//! what is not forgotten now is looked at again.

use std::sync::Arc;

use guard_proto::v1::ExecOutcome;
use guard_proto::v1::record_body::Body;

use crate::node::Node;
use crate::outcome::PROGRESS;
use crate::session::Session;

/// Looks through all sessions. To be called every second or so.
pub fn sweep(node: &Arc<Node>) {
    let read_until = PROGRESS.read_until();
    for session in node.sessions() {
        let gone = |exec, tid| node.kernel.attempt(tid).is_none_or(|a| a.exec != exec);
        for attempt in session.forget_attempts(read_until, gone) {
            thaw(node, attempt.frozen);
        }
        let gone = |exec, tgid| node.kernel.mark_of(tgid).is_none_or(|m| m.exec != exec);
        for (exec, image) in session.forget_images(read_until, gone) {
            thaw(node, image.frozen);
            ended_unseen(node, &session, exec);
        }
    }
}

fn thaw(node: &Node, files: Vec<crate::files::Kept>) {
    for key in files {
        node.freezes.thaw(&node.kernel, key);
    }
}

fn ended_unseen(node: &Node, session: &Session, exec: u64) {
    let body = ExecOutcome {
        identity: Some(session.chain.clone()),
        exec_id: exec,
        started: true,
        reason: "its end was not seen".into(),
        ..ExecOutcome::default()
    };
    node.keep(session.id, Body::ExecOutcome(body));
}
