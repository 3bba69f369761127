//! Medians, percentiles, means and ratios with their intervals. Pure.

use serde_json::{Value, json};

/// Student's t for 95 %, by degrees of freedom from 1; beyond the last one it hardly changes.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// The value below which this share of the values lies; not a number for none.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * percent / 100.0).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The middle.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// Arithmetic mean with a 95 % interval.
pub fn mean(values: &[f64]) -> Value {
    let (mean, half) = interval(values);
    json!({"mean": mean, "low": mean - half, "high": mean + half})
}

/// Geometric mean of ratios, interval from the logarithms.
pub fn ratio(pairs: &[(f64, f64)]) -> Value {
    let logs: Vec<f64> = pairs.iter().map(|(a, b)| (a / b).ln()).collect();
    let (mean, half) = interval(&logs);
    json!({"mean": mean.exp(), "low": (mean - half).exp(), "high": (mean + half).exp()})
}

/// Ratio of a high percentile of all rounds together, since one round has too few values for it. The interval holds 95 %
/// of the ratios that drawing as many rounds anew, with repeats, gives.
pub fn tail_ratio(above: &[Vec<f64>], below: &[Vec<f64>], percent: f64) -> Value {
    const DRAWS: usize = 400;
    let of = |rounds: &[usize]| {
        let all =
            |from: &[Vec<f64>]| -> Vec<f64> { rounds.iter().filter_map(|r| from.get(*r)).flatten().copied().collect() };
        percentile(&all(above), percent) / percentile(&all(below), percent)
    };
    let rounds: Vec<usize> = (0..above.len().min(below.len())).collect();
    let mut state = 1_u64;
    let mut drawn: Vec<f64> =
        (0..DRAWS).map(|_| of(&rounds.iter().map(|_| draw(&mut state, rounds.len())).collect::<Vec<_>>())).collect();
    drawn.sort_by(f64::total_cmp);
    json!({"mean": of(&rounds), "low": percentile(&drawn, 2.5), "high": percentile(&drawn, 97.5)})
}

/// A number below `below`, the same ones in every run (xorshift).
fn draw(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below.max(1) as u64) as usize
}

fn interval(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let t = T.get(values.len().saturating_sub(2)).or(T.last()).copied().unwrap_or(f64::NAN);
    (mean, t * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rounds_give_one_and_a_narrow_interval() {
        let same = ratio(&[(100.0, 100.0); 30]);
        assert_eq!((same["mean"].as_f64(), same["low"].as_f64()), (Some(1.0), Some(1.0)));
    }

    #[test]
    fn few_rounds_have_a_wide_interval() {
        let half = |values: &[f64]| interval(values).1;
        assert!((half(&[1.0, 3.0]) - 12.706).abs() < 1e-9);
        assert!(half(&[1.0, 3.0]) > 5.0 * half(&[1.0, 3.0, 1.0, 3.0]));
    }

    #[test]
    fn the_interval_holds_the_mean() {
        let found = ratio(&[(110.0, 100.0), (105.0, 100.0), (120.0, 100.0), (100.0, 100.0)]);
        assert!(found["low"].as_f64() < found["mean"].as_f64() && found["mean"].as_f64() < found["high"].as_f64());
    }

    #[test]
    fn a_tail_ratio_lies_in_its_interval() {
        let rounds = |scale: f64| {
            (0..30).map(|r| (0..40).map(|n| scale * f64::from(100 + (r * 7 + n) % 50)).collect()).collect()
        };
        let (above, below): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (rounds(2.0), rounds(1.0));
        let found = tail_ratio(&above, &below, 99.0);
        assert_eq!(found["mean"].as_f64(), Some(2.0));
        assert!(found["low"].as_f64() <= Some(2.0) && found["high"].as_f64() >= Some(2.0));
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&values, 99.0), median(&values)), (99.0, 51.0));
        assert!(percentile(&[], 50.0).is_nan());
    }
}
