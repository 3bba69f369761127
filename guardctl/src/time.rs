//! Points in time for people and for JSON. Everything is UTC: a log is read by people in several places.
//!
//! It must not guess: 0 and times outside the calendar give nothing. Fails: an unparsable time is a text that names the form.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

/// RFC 3339 with milliseconds, UTC; `None` for 0 (the contract's "not set").
pub fn rfc3339(unix_ns: i64) -> Option<String> {
    at(unix_ns).map(|t| t.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

/// Date and time to the second, or `-`.
pub fn date_time(unix_ns: i64) -> String {
    at(unix_ns).map_or_else(|| "-".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M:%S").to_string())
}

/// Time of day to the second, or `-`.
pub fn clock(unix_ns: i64) -> String {
    at(unix_ns).map_or_else(|| "-".to_owned(), |t| t.strftime("%H:%M:%S").to_string())
}

/// Now, in nanoseconds since 1970.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

/// Reads `2026-01-31`, `2026-01-31T12:00:00Z`, `2026-01-31 12:00`, or `15m` meaning so long before `now_ns`.
pub fn parse(text: &str, now_ns: i64) -> Result<i64, String> {
    if let Ok(ago) = crate::duration::parse(text) {
        return Ok(now_ns.saturating_sub(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)));
    }
    let utc = |d: DateTime| TimeZone::UTC.to_timestamp(d).ok();
    let stamp = text
        .parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<DateTime>().ok().and_then(utc))
        .or_else(|| text.parse::<Date>().ok().and_then(|d| utc(d.to_datetime(jiff::civil::Time::midnight()))))
        .ok_or("not a time: write 2026-01-31T12:00:00Z (UTC), 2026-01-31, or 15m for so long ago")?;
    i64::try_from(stamp.as_nanosecond()).map_err(|_| "outside the range of the log's clock".to_owned())
}

fn at(unix_ns: i64) -> Option<Timestamp> {
    if unix_ns == 0 { None } else { Timestamp::from_nanosecond(i128::from(unix_ns)).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_769_860_800_123_000_000;

    #[test]
    fn shows_utc() {
        assert_eq!(rfc3339(NOON).as_deref(), Some("2026-01-31T12:00:00.123Z"));
        assert_eq!(date_time(NOON), "2026-01-31 12:00:00");
        assert_eq!(clock(0), "-");
        assert_eq!(rfc3339(0), None);
    }

    #[test]
    fn reads_what_it_shows_and_ages() {
        assert_eq!(parse("2026-01-31T12:00:00.123Z", 0), Ok(NOON));
        assert_eq!(parse("2026-01-31 12:00:00", 0), Ok(NOON - 123_000_000));
        assert_eq!(parse("2026-01-31", 0), Ok(NOON - 123_000_000 - 12 * 3_600_000_000_000));
        assert_eq!(parse("1m", 60_000_000_001), Ok(1));
        assert!(parse("yesterday", 0).is_err());
    }
}
