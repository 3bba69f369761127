//! Durations as people write and read them: `15m`, `1h30m`, `90s`.
//!
//! It must not guess a unit: a bare number is refused. Fails: a [`DurationError`] that names the accepted form.

use std::fmt;
use std::time::Duration;

/// Longest duration that is accepted, in seconds: 30 days.
pub const MAX_SECONDS: u64 = 30 * 86_400;

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// No number, an unknown unit, or units out of order.
    Form,
    /// A number without a unit.
    NoUnit,
    /// Zero.
    Zero,
    /// Longer than [`MAX_SECONDS`].
    TooLong,
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DurationError::Form => "not a duration: write it as 90s, 15m, 1h30m or 2d",
            DurationError::NoUnit => "a unit is missing: write 90s, 15m, 1h30m or 2d",
            DurationError::Zero => "must be more than zero",
            DurationError::TooLong => "must be at most 30d",
        })
    }
}

impl std::error::Error for DurationError {}

/// Parses `[Nd][Nh][Nm][Ns]`, at least one part, largest unit first.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut last_unit = u64::MAX;
    let mut seconds = 0u64;
    if rest.is_empty() {
        return Err(DurationError::Form);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(DurationError::NoUnit)?;
        let (number, tail) = rest.split_at_checked(digits).ok_or(DurationError::Form)?;
        let mut chars = tail.chars();
        let unit = match chars.next() {
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(DurationError::Form),
        };
        if unit >= last_unit || number.is_empty() {
            return Err(DurationError::Form);
        }
        last_unit = unit;
        // At most twelve digits can be in range; more would only overflow.
        let number: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or(DurationError::TooLong)?;
        rest = chars.as_str();
    }
    match seconds {
        0 => Err(DurationError::Zero),
        s if s > MAX_SECONDS => Err(DurationError::TooLong),
        s => Ok(Duration::from_secs(s)),
    }
}

/// Renders nanoseconds in at most seven characters: `850us`, `12ms`, `1.2s`, `2m05s`, `3h02m`, `2d03h`.
pub fn show(ns: u64) -> String {
    let (us, ms, s) = (ns / 1_000, ns / 1_000_000, ns / 1_000_000_000);
    if us < 1_000 {
        format!("{us}us")
    } else if ms < 1_000 {
        format!("{ms}ms")
    } else if s < 60 {
        format!("{s}.{}s", ms % 1_000 / 100)
    } else if s < 3_600 {
        format!("{}m{:02}s", s / 60, s % 60)
    } else if s < 86_400 {
        format!("{}h{:02}m", s / 3_600, s % 3_600 / 60)
    } else {
        format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("30d"), Ok(Duration::from_secs(MAX_SECONDS)));
    }

    #[test]
    fn refuses_what_is_ambiguous() {
        assert_eq!(parse("15"), Err(DurationError::NoUnit));
        assert_eq!(parse(""), Err(DurationError::Form));
        assert_eq!(parse("m"), Err(DurationError::Form));
        assert_eq!(parse("5m1h"), Err(DurationError::Form));
        assert_eq!(parse("5m5m"), Err(DurationError::Form));
        assert_eq!(parse("-5m"), Err(DurationError::Form));
        assert_eq!(parse("1.5h"), Err(DurationError::Form));
        assert_eq!(parse("0s"), Err(DurationError::Zero));
        assert_eq!(parse("31d"), Err(DurationError::TooLong));
        assert_eq!(parse("99999999999999999999s"), Err(DurationError::TooLong));
    }

    #[test]
    fn shows_short_and_long() {
        let shown: Vec<_> =
            [0, 850_000, 12_000_000, 1_250_000_000, 125_000_000_000, 10_920_000_000_000, 183_600_000_000_000]
                .map(show)
                .into_iter()
                .collect();
        assert_eq!(shown, ["0us", "850us", "12ms", "1.2s", "2m05s", "3h02m", "2d03h"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}") {
            let _ = parse(&text);
        }
    }
}
