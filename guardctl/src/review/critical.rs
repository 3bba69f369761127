//! Requests of critical risk: what whoever approves one has to type, so that a habit approves nothing.
//!
//! The word comes from the request, so that it is known to those alone who read it; for several requests at once it is followed by
//! their number. It must not be the same for every request. Fails: a text that does not confirm is `no`, and nothing is sent.

use guard_proto::v1::Review;

use crate::exit::{CliError, Exit, Result};
use crate::text::escape;

/// From this risk on an approval takes a pause and a typed word.
pub const CRITICAL_RISK: u32 = 80;
/// How long a request of critical risk has to have been shown before a person can approve it.
pub const PAUSE_NS: i64 = 10_000_000_000;
/// Characters at the end of a request's id that confirm too: there is not always a program whose name can be typed.
const LAST: usize = 6;

/// The id of a review's request.
pub fn id(review: &Review) -> &str {
    review.request.as_ref().map_or("", |r| r.request_id.as_str())
}

/// Its risk; what is not known is the highest.
pub fn risk(review: &Review) -> u32 {
    review.request.as_ref().and_then(|r| r.verdict.as_ref()).map_or(100, |v| v.risk)
}

/// Whether it is critical.
pub fn is_critical(review: &Review) -> bool {
    risk(review) >= CRITICAL_RISK
}

/// The words that confirm: the program's name if it can be typed, or the last characters of the request's id.
pub fn words(review: &Review) -> Vec<String> {
    let facts = review.request.as_ref().and_then(|r| r.facts.as_ref());
    let program = facts.and_then(|f| f.files.iter().find(|f| f.role == "program"));
    let name = program.and_then(|f| f.path.rsplit(|b| *b == b'/').next()).unwrap_or_default();
    let typable = !name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b'\\');
    let name = typable.then(|| escape(name));
    let id: Vec<char> = id(review).chars().collect();
    let last: String = id.iter().skip(id.len().saturating_sub(LAST)).collect();
    name.into_iter().chain(Some(last).filter(|last| !last.is_empty())).collect()
}

/// What has to be typed for `count` requests at once, in words.
pub fn asked(review: &Review, count: usize) -> String {
    let number = if count > 1 { format!(" {count}") } else { String::new() };
    let words: Vec<String> = words(review).iter().map(|word| format!("`{word}{number}`")).collect();
    words.join(" or ")
}

/// Whether a text confirms the approval of `count` requests at once.
pub fn confirms(review: &Review, count: usize, typed: &str) -> bool {
    let typed = typed.trim();
    let word = match count {
        0 | 1 => Some(typed),
        count => {
            typed.rsplit_once(' ').filter(|(_, number)| *number == count.to_string()).map(|(word, _)| word.trim_end())
        }
    };
    word.is_some_and(|word| words(review).iter().any(|known| known == word))
}

/// Refuses what does not confirm.
pub fn check(review: &Review, count: usize, typed: &str) -> Result<()> {
    if confirms(review, count, typed) {
        return Ok(());
    }
    let what = format!("not approved: `{}` does not confirm it", crate::text::escape_str(typed.trim()));
    Err(CliError::new(Exit::No, what).hint(format_args!("type {}", asked(review, count))))
}

/// What is said where nothing was typed and nobody can be asked.
pub fn unconfirmed(review: &Review, count: usize) -> CliError {
    let risk = risk(review);
    CliError::new(Exit::Usage, format_args!("risk {risk} is critical ({CRITICAL_RISK} or more): nothing was approved"))
        .hint(format_args!("without a terminal it takes --confirm with {}", asked(review, count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn what_confirms_comes_from_the_request() {
        let review = testing::review().0;
        assert_eq!(words(&review), ["rm", "MNPQRS"]);
        for good in ["rm", " rm\n", "MNPQRS"] {
            assert!(confirms(&review, 1, good), "{good}");
        }
        for bad in ["", "y", "yes", "approve", "RM", "rm 1", "rm 2", "mnpqrs"] {
            assert!(!confirms(&review, 1, bad), "{bad}");
        }
        let none = Review::default();
        assert!(words(&none).is_empty() && !confirms(&none, 1, ""));
    }

    #[test]
    fn several_at_once_are_confirmed_by_their_number_too() {
        let review = testing::review().0;
        assert_eq!(asked(&review, 3), "`rm 3` or `MNPQRS 3`");
        assert!(confirms(&review, 3, "rm 3") && confirms(&review, 3, "MNPQRS  3"));
        for bad in ["rm", "rm 2", "3", " 3", "rm 3 3", "rm 03"] {
            assert!(!confirms(&review, 3, bad), "{bad}");
        }
    }
}
