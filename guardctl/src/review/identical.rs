//! Requests of one session for the identical command, which people see and may decide together.
//!
//! It must not take the collector's word for two being alike: what is decided together is compared field by field. Fails: see
//! `client`; what differs is left out.

use std::collections::HashMap;

use guard_proto::v1::{ExecRequest, Identity, ListReviewsRequest, Review};

use super::decide::get;
use crate::client::{self, Client};
use crate::exit::Result;

/// Most that are decided together.
const TOGETHER_MAX: u32 = 500;

/// Each pending request with those that are identical to it, which come later; all others by themselves.
pub fn grouped(reviews: &[Review]) -> Vec<(&Review, Vec<&Review>)> {
    let mut groups: Vec<(&Review, Vec<&Review>)> = vec![];
    let mut places: HashMap<(&[u8], &str, u32), usize> = HashMap::new();
    for review in reviews {
        let key = review.request.as_ref().filter(|r| review.state == "pending" && !r.digest.is_empty());
        let key = key.map(|r| {
            let session = r.identity.as_ref().map_or("", |i| i.session_id.as_str());
            // What somebody has approved already is shown by itself.
            (r.digest.as_slice(), session, u32::try_from(review.given.len()).unwrap_or(u32::MAX))
        });
        let place = key.and_then(|key| places.get(&key).copied()).and_then(|place| groups.get_mut(place));
        match (place, key) {
            (Some((_, like)), _) => like.push(review),
            (None, key) => {
                if let Some(key) = key {
                    places.insert(key, groups.len());
                }
                groups.push((review, vec![]));
            }
        }
    }
    groups
}

/// Other requests that wait for the identical command in the same session, each fetched whole.
pub async fn others(client: &mut Client, review: &Review) -> Result<Vec<Review>> {
    let Some(request) = &review.request else { return Ok(vec![]) };
    let session_id = request.identity.as_ref().map(|i| i.session_id.clone()).unwrap_or_default();
    let list = ListReviewsRequest { all: false, session_id, limit: TOGETHER_MAX };
    let waiting = client.list_reviews(list).await.map_err(client::refused)?.into_inner().reviews;
    let mut found = vec![];
    for other in waiting {
        let Some(id) = other.request.as_ref().map(|r| &r.request_id).filter(|id| **id != request.request_id) else {
            continue;
        };
        if other.request.as_ref().is_some_and(|r| r.digest == request.digest) {
            let whole = get(client, id).await?;
            if whole.request.as_ref().is_some_and(|r| alike(r, request)) {
                found.push(whole);
            }
        }
    }
    Ok(found)
}

/// Whether two requests are for the same act, as their records say it.
fn alike(one: &ExecRequest, other: &ExecRequest) -> bool {
    let (Some(a), Some(b)) = (&one.facts, &other.facts) else { return false };
    // How old the host's roles are is another matter each time.
    let identity = |r: &ExecRequest| Identity { roles_age_seconds: 0, ..r.identity.clone().unwrap_or_default() };
    let verdict = |r: &ExecRequest| r.verdict.clone().unwrap_or_default();
    one.digest == other.digest
        && identity(one) == identity(other)
        && (&a.argv, &a.argv_sha256, a.argv_omitted) == (&b.argv, &b.argv_sha256, b.argv_omitted)
        && (&a.cwd, &a.path_arg, &a.env_sha256, a.uid) == (&b.cwd, &b.path_arg, &b.env_sha256, b.uid)
        && a.files == b.files
        && (verdict(one).categories, verdict(one).risk) == (verdict(other).categories, verdict(other).risk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn identical_requests_are_one_row_and_others_are_not() {
        let (review, _) = testing::review();
        let other_id = |id: &str| {
            let mut other = review.clone();
            other.request.as_mut().expect("request").request_id = id.into();
            other
        };
        let mut decided = other_id("C");
        decided.state = "denied".into();
        let mut approved_once = other_id("D");
        approved_once.given.push(Default::default());
        let reviews = [review.clone(), other_id("B"), decided, approved_once];
        let groups = grouped(&reviews);
        let sizes: Vec<usize> = groups.iter().map(|(_, like)| like.len()).collect();
        assert_eq!(sizes, [1, 0, 0]);
    }

    #[test]
    fn a_collector_cannot_have_another_command_decided_along() {
        let request = testing::review().0.request.expect("request");
        assert!(alike(&request, &request.clone()));
        let mut other = request.clone();
        other.facts.as_mut().expect("facts").argv.push(b"--force".to_vec());
        assert!(!alike(&request, &other));
        let mut folder = request.clone();
        folder.facts.as_mut().expect("facts").cwd = b"/etc".to_vec();
        assert!(!alike(&request, &folder));
    }
}
