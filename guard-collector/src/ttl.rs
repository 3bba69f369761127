//! Lifetimes on the command line: `90d`, `1h`, `30m`, `45s`.
//!
//! It must not guess a unit. Fails: a text that names the form.

use std::time::Duration;

/// Reads one, from a second to ten years.
pub fn parse(text: &str) -> Result<Duration, String> {
    const MAX: u64 = 3650 * 86_400;
    let wrong = || format!("{text:?} is no lifetime: accepted are for example 45s, 30m, 1h, 90d, up to 3650d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    seconds.filter(|s| (1..=MAX).contains(s)).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit() {
        assert_eq!(parse("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse("90d"), Ok(Duration::from_secs(90 * 86_400)));
        for wrong in ["", "h", "1", "1 h", "0s", "-1h", "4000d", "99999999999999999999d", "1w", "1ü"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
