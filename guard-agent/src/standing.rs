//! What approvals still allow a session to do: the identical exec once or for the rest of the session, or acts of the kinds that
//! were approved.
//!
//! It must not allow anything but the exec with the very digest that was approved, or one of which every reason to ask is of a kind
//! that was granted up to its risk. Fails closed: what has expired, was used up or revoked is gone; a daemon that restarts keeps none.

use std::collections::BTreeSet;

use guard_policy::{Granted, Kind};

use crate::ballot::{Agreed, KIND};
use crate::session::{RootApproval, Session};

/// Most that are kept; beyond that an approval counts for the exec that is held, and no further.
const RIGHTS_MAX: usize = 4096;

/// An approval that waits for the identical exec.
#[derive(Clone, Debug)]
pub struct Right {
    /// The request.
    pub request_id: String,
    /// Who approved it.
    pub reviewer: String,
    /// For descendants, if the scope says so.
    pub root: Option<RootApproval>,
    /// It holds for the rest of the session, not for one exec.
    pub for_session: bool,
    /// Kinds of acts that it covers too; none unless that was approved.
    pub kinds: Granted,
    /// Digest of the exec.
    pub digest: Vec<u8>,
    /// The session's id.
    pub session: String,
    /// Execs that are left.
    pub left: u32,
    /// Until when (boot time).
    pub until_boot_ns: u64,
}

/// What a person would be asked about, all of it, and its risk.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Never empty.
    pub kinds: BTreeSet<Kind>,
    /// Paths by which they are told.
    pub places: Vec<Vec<u8>>,
    /// Without what newness adds.
    pub risk: u8,
}

/// All rights on this host.
#[derive(Debug, Default)]
pub struct Rights(Vec<Right>);

// === impl Right ===

impl Right {
    /// Opens the root's approval for the exec that uses this right.
    pub fn open_root(&self, session: &Session, root: u64) {
        if let Some(approval) = &self.root
            && root != 0
        {
            session.approve_root(root, approval.clone());
        }
    }

    /// Whether reviewers agreed on the exact command for the session.
    pub fn is_for_session(agreed: &Agreed) -> bool {
        matches!(agreed.scope.as_str(), "session" | KIND)
    }
}

// === impl Rights ===

impl Rights {
    /// Keeps one, if it has anything left.
    pub fn add(&mut self, right: Right, now_boot_ns: u64) {
        self.0.retain(|r| r.until_boot_ns > now_boot_ns);
        if right.left > 0 && self.0.len() < RIGHTS_MAX {
            self.0.push(right);
        }
    }

    /// Uses one exec of a right, if there is one for this digest.
    pub fn take(&mut self, session: &str, digest: &[u8], now_boot_ns: u64) -> Option<Right> {
        self.0.retain(|r| r.until_boot_ns > now_boot_ns);
        let place = self.0.iter().position(|r| r.digest == digest && r.session == session)?;
        let right = self.0.get_mut(place)?;
        right.left = right.left.saturating_sub(1);
        let used = right.clone();
        if right.left == 0 {
            self.0.swap_remove(place);
        }
        Some(used)
    }

    /// Uses one exec of each right that it takes to cover every kind; nothing if one of them is not covered.
    pub fn take_kinds(&mut self, session: &str, asked: &Asked, now_boot_ns: u64) -> Option<Vec<Right>> {
        self.0.retain(|r| r.until_boot_ns > now_boot_ns);
        let covers = |kind: &Kind| self.0.iter().position(|r| r.session == session && r.kinds.has(kind, asked.risk));
        let places: Option<BTreeSet<usize>> = asked.kinds.iter().map(covers).collect();
        let mut used = Vec::new();
        for place in places.filter(|places| !places.is_empty())? {
            let right = self.0.get_mut(place)?;
            right.left = right.left.saturating_sub(1);
            used.push(right.clone());
        }
        self.0.retain(|r| r.left > 0);
        Some(used)
    }

    /// Ends those of a request: its session, and how many execs they would still have allowed.
    pub fn revoke(&mut self, request_id: &str) -> Option<(String, u32)> {
        let session = self.0.iter().find(|r| r.request_id == request_id)?.session.clone();
        let left = self.0.extract_if(.., |r| r.request_id == request_id).map(|r| r.left).sum();
        Some((session, left))
    }

    /// The session is over.
    pub fn session_ended(&mut self, session: &str) {
        self.0.retain(|r| r.session != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(request: &str, left: u32, until: u64) -> Right {
        Right {
            request_id: request.into(),
            reviewer: "bob".into(),
            root: None,
            for_session: left > 1,
            kinds: Granted::default(),
            digest: vec![1; 32],
            session: "s".into(),
            left,
            until_boot_ns: until,
        }
    }

    #[test]
    fn a_right_is_used_as_often_as_it_says_by_the_identical_exec_alone() {
        let mut rights = Rights::default();
        rights.add(right("r", 2, 100), 0);
        assert!(rights.take("s", &[2; 32], 1).is_none() && rights.take("other", &[1; 32], 1).is_none());
        assert_eq!(rights.take("s", &[1; 32], 1).map(|r| r.left), Some(1));
        assert_eq!(rights.take("s", &[1; 32], 1).map(|r| r.left), Some(0));
        assert!(rights.take("s", &[1; 32], 1).is_none());
    }

    fn asked(scopes: &[&str], risk: u8) -> Asked {
        let kind = |scope: &&str| Kind { rule_id: "r".into(), category: "c".into(), scope: (*scope).into() };
        Asked { kinds: scopes.iter().map(kind).collect(), places: Vec::new(), risk }
    }

    fn of_kinds(request: &str, left: u32, scopes: &[&str], risk: u8) -> Right {
        let mut right = right(request, left, 100);
        right.kinds.grant(&asked(scopes, risk).kinds, risk);
        right
    }

    #[test]
    fn kinds_are_covered_all_or_not_at_all() {
        let mut rights = Rights::default();
        rights.add(of_kinds("one", 2, &["a"], 30), 0);
        rights.add(of_kinds("two", 5, &["b"], 30), 0);
        assert!(rights.take_kinds("s", &asked(&["a", "c"], 30), 1).is_none(), "c was not granted");
        assert!(rights.take_kinds("s", &asked(&["a"], 40), 1).is_none(), "riskier than approved");
        assert!(rights.take_kinds("other", &asked(&["a"], 30), 1).is_none());
        assert!(rights.take_kinds("s", &asked(&[], 0), 1).is_none());
        let used = rights.take_kinds("s", &asked(&["a", "b"], 30), 1).expect("covered");
        let left: Vec<(&str, u32)> = used.iter().map(|r| (r.request_id.as_str(), r.left)).collect();
        assert_eq!(left, [("one", 1), ("two", 4)]);
        assert!(rights.take_kinds("s", &asked(&["a"], 39), 1).is_some());
        assert!(rights.take_kinds("s", &asked(&["a"], 30), 1).is_none(), "used up");
        assert_eq!(rights.revoke("two"), Some(("s".into(), 4)));
        assert!(rights.take_kinds("s", &asked(&["b"], 30), 1).is_none(), "revoked");
        rights.add(of_kinds("three", 5, &["b"], 30), 1);
        assert!(rights.take_kinds("s", &asked(&["b"], 30), 100).is_none(), "expired");
    }

    #[test]
    fn it_ends_by_time_with_its_session_and_when_it_is_revoked() {
        let mut rights = Rights::default();
        rights.add(right("r", 5, 100), 0);
        assert!(rights.take("s", &[1; 32], 100).is_none());
        rights.add(right("r", 5, 100), 0);
        rights.session_ended("s");
        assert!(rights.take("s", &[1; 32], 1).is_none());
        rights.add(right("r", 5, 100), 0);
        rights.add(right("q", 1, 100), 0);
        assert_eq!(rights.revoke("r"), Some(("s".into(), 5)));
        assert_eq!(rights.revoke("r"), None);
        assert_eq!(rights.take("s", &[1; 32], 1).map(|r| r.request_id), Some("q".into()));
    }
}
