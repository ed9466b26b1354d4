//! What many measured times come to.

use crate::units::{Number, Time};
use serde::{Deserialize, Serialize};

/// The time below or at which `percent` of the samples lie: the smallest of them that is not exceeded by more (nearest rank). `sorted`
/// is sorted and not empty.
#[must_use]
pub fn nearest_rank(sorted: &[u64], percent: u8) -> u64 {
    let rank = (sorted.len() * usize::from(percent)).div_ceil(100).max(1);
    sorted[rank.min(sorted.len()) - 1]
}

/// Latency of one stretch of inferences. Percentiles are of the nearest rank: every one is a time that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Summary {
    /// How many were measured.
    pub samples: u64,
    #[serde(rename = "min_ms")]
    pub min: Time,
    #[serde(rename = "mean_ms")]
    pub mean: Time,
    #[serde(rename = "p50_ms")]
    pub p50: Time,
    #[serde(rename = "p90_ms")]
    pub p90: Time,
    #[serde(rename = "p95_ms")]
    pub p95: Time,
    #[serde(rename = "p99_ms")]
    pub p99: Time,
    #[serde(rename = "max_ms")]
    pub max: Time,
}

impl Summary {
    /// `None` of no samples. Sorts them.
    #[must_use]
    pub fn of(nanos: &mut [u64]) -> Option<Self> {
        nanos.sort_unstable();
        let (first, last) = (nanos.first()?, nanos.last()?);
        let at = |percent| Time::from_nanos(nearest_rank(nanos, percent));
        Some(Self {
            samples: nanos.len() as u64,
            min: Time::from_nanos(*first),
            mean: mean(nanos),
            p50: at(50),
            p90: at(90),
            p95: at(95),
            p99: at(99),
            max: Time::from_nanos(*last),
        })
    }
}

/// The mean in whole nanoseconds; 0 of none.
#[must_use]
pub fn mean(nanos: &[u64]) -> Time {
    let sum: u128 = nanos.iter().map(|&n| u128::from(n)).sum();
    let mean = sum.checked_div(nanos.len() as u128).unwrap_or_default();
    Time::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
}

/// How far apart the means of repeated runs are: (largest - smallest) / their mean, in percent.
#[must_use]
#[allow(clippy::cast_precision_loss)] // percent
pub fn spread_percent(means: &[Time]) -> Number {
    let nanos: Vec<u64> = means.iter().map(|t| t.nanos()).collect();
    let (Some(min), Some(max)) = (nanos.iter().min(), nanos.iter().max()) else { return Number::default() };
    let centre = mean(&nanos).nanos();
    if centre == 0 {
        return Number::default();
    }
    Number::new((max - min) as f64 / centre as f64 * 100.0).unwrap_or_default()
}

/// When repeated runs agree.
pub const STABLE_PERCENT: f64 = 5.0;

/// Whether the last `repeats` of these runs agree: their means lie less than 5 % apart. One run alone agrees with nothing.
#[must_use]
pub fn agree(means: &[Time], repeats: usize) -> bool {
    let repeats = repeats.max(2);
    means.len() >= repeats && spread_percent(&means[means.len() - repeats..]).value() < STABLE_PERCENT
}

/// Samples in bounded memory: when they are too many, every other one is dropped, and from then on only every second one is kept.
#[derive(Debug)]
pub struct Thinned {
    kept: Vec<u64>,
    most: usize,
    stride: u64,
    seen: u64,
}

impl Thinned {
    /// At most so many.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { kept: Vec::new(), most: most.max(2), stride: 1, seen: 0 }
    }

    /// One more.
    pub fn push(&mut self, nanos: u64) {
        if self.seen.is_multiple_of(self.stride) {
            if self.kept.len() == self.most {
                let mut odd = false;
                self.kept.retain(|_| {
                    odd = !odd;
                    odd
                });
                self.stride *= 2;
            }
            if self.seen.is_multiple_of(self.stride) {
                self.kept.push(nanos);
            }
        }
        self.seen += 1;
    }

    /// How many there were.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Those that were kept, in their order.
    #[must_use]
    pub fn kept(&self) -> &[u64] {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        for (percent, value) in [(1, 1), (50, 50), (90, 90), (95, 95), (99, 99), (100, 100)] {
            assert_eq!(nearest_rank(&hundred, percent), value);
        }
        // The example of the definition: 5 values.
        let five = [15, 20, 35, 40, 50];
        for (percent, value) in [(5, 15), (30, 20), (40, 20), (50, 35), (100, 50)] {
            assert_eq!(nearest_rank(&five, percent), value);
        }
        assert_eq!(nearest_rank(&[7], 99), 7);
    }

    #[test]
    fn a_summary_counts_every_sample() {
        let mut samples: Vec<u64> = (1..=200).rev().map(|i| i * 1000).collect();
        let s = Summary::of(&mut samples).unwrap();
        assert_eq!((s.samples, s.min.nanos(), s.max.nanos()), (200, 1000, 200_000));
        assert_eq!((s.p50.nanos(), s.p99.nanos(), s.mean.nanos()), (100_000, 198_000, 100_500));
        assert_eq!(Summary::of(&mut []), None);
    }

    #[test]
    fn runs_agree_below_five_percent() {
        let t = |nanos: &[u64]| nanos.iter().map(|&n| Time::from_nanos(n)).collect::<Vec<_>>();
        assert!(agree(&t(&[1000, 1020, 1049]), 3));
        assert!(!agree(&t(&[1000, 1000, 1060]), 3));
        // (1025 - 975) / 1000 is 5 %, and that is not below it.
        assert!(!agree(&t(&[975, 1000, 1025]), 3));
        assert!(agree(&t(&[5000, 1000, 1001, 1002]), 3), "the last three count");
        assert!(!agree(&t(&[1000, 1000]), 3), "too few");
        assert!(!agree(&t(&[1000]), 1), "one agrees with nothing");
    }

    #[test]
    fn thinned_samples_stay_bounded_and_spread_over_all() {
        let mut thinned = Thinned::new(100);
        (0..100_000).for_each(|i| thinned.push(i));
        assert_eq!(thinned.seen(), 100_000);
        assert!((50..=100).contains(&thinned.kept().len()));
        let strides: Vec<u64> = thinned.kept().windows(2).map(|w| w[1] - w[0]).collect();
        assert!(strides.iter().all(|s| *s == strides[0]), "{strides:?}");
    }
}
