//! Dispositions as numbers, for rows that hold numbers only.
//!
//! It must never give a number another meaning: the schema's version changes then. Fails: a word of a newer version is
//! `unknown`.

/// Word of a request that nobody has answered.
pub const PENDING: i64 = 10;
const WORDS: [&str; 11] = [
    "",
    "allowed",
    "inherited",
    "approved",
    "denied",
    "timed_out",
    "expired",
    "killed",
    "failed",
    "unknown",
    "pending",
];

/// Number of a raw disposition; 0 when it is not set.
pub fn of_raw(raw: i32) -> i64 {
    of_word(crate::body::word(raw)).unwrap_or(0)
}

/// Number of a word.
pub fn of_word(word: &str) -> Option<i64> {
    WORDS.iter().position(|w| *w == word).and_then(|n| i64::try_from(n).ok())
}

/// Word of a number.
pub fn word(number: i64) -> &'static str {
    usize::try_from(number).ok().and_then(|n| WORDS.get(n)).copied().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_comes_back() {
        for word_wanted in WORDS {
            assert_eq!(of_word(word_wanted).map(word), Some(word_wanted));
        }
        assert_eq!((of_raw(4), of_raw(-1), of_raw(99), of_raw(0)), (4, 9, 9, 0));
        assert_eq!((of_word("pending"), of_word("other"), word(77)), (Some(PENDING), None, "unknown"));
    }
}
