//! The form of a role file as serde reads it. Unknown keys are refused here; meaning is checked in `load`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::placed::Placed;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoles {
    pub(super) version: Placed<u32>,
    #[serde(default)]
    pub(super) roles: BTreeMap<String, Placed<RawRole>>,
    #[serde(default)]
    pub(super) people: Bindings,
    #[serde(default)]
    pub(super) services: Bindings,
    #[serde(default)]
    pub(super) agents: Bindings,
    #[serde(default)]
    pub(super) keys: BTreeMap<String, Placed<Vec<Placed<RawKey>>>>,
    #[serde(default)]
    pub(super) approvals: RawApprovals,
}

pub(super) type Bindings = BTreeMap<String, Placed<Vec<Placed<String>>>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRole {
    pub(super) request: Vec<Placed<String>>,
    pub(super) review: Option<RawReview>,
    pub(super) query: bool,
    pub(super) undo: Vec<Placed<String>>,
    pub(super) administer: bool,
    pub(super) start_for_others: Vec<Placed<String>>,
}

/// Both keys are needed: a right to review without a bound is written as `max_risk: 100`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReview {
    pub(super) categories: Vec<Placed<String>>,
    pub(super) max_risk: Placed<u8>,
    #[serde(default)]
    pub(super) only_escalated: bool,
}

/// A reviewer's key, and the last day on which it counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    pub(super) key: Placed<String>,
    pub(super) until: Option<Placed<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawApprovals {
    pub(super) needed: Vec<Placed<RawNeeded>>,
    pub(super) escalate: Vec<Placed<RawEscalate>>,
    pub(super) delegate: Option<RawDelegate>,
}

/// Whom to ask too, and when.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEscalate {
    pub(super) to: Vec<Placed<String>>,
    pub(super) after_percent: Option<Placed<u8>>,
    pub(super) before_deadline_seconds: Option<Placed<u32>>,
    #[serde(default)]
    pub(super) categories: Vec<Placed<String>>,
    pub(super) risk_from: Option<Placed<u8>>,
}

/// How long a reviewer may let somebody else decide.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDelegate {
    pub(super) max_hours: Placed<u32>,
}

/// How many reviewers must approve what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNeeded {
    #[serde(default)]
    pub(super) categories: Vec<Placed<String>>,
    pub(super) risk_from: Option<Placed<u8>>,
    pub(super) reviewers: Placed<u32>,
}
