//! How alike two streams are, and which one lags.
//!
//! [`synchrony`] shifts one stream against the other, takes Pearson's correlation of what overlaps, and gives the shift
//! at which it is strongest. Its answer has the fields that clients of `GET /synchrony` know: `r` in [-1, 1], `lag_ms`,
//! `window_ms`, `confidence` in [0, 1].
//!
//! `confidence` is the probability that two streams which have nothing to do with each other would nowhere have been as
//! alike: from Fisher's z with the effective number of samples after Bartlett (a slow movement is alike to every other
//! slow one for a while), corrected for every shift that was tried (Bonferroni).
//!
//! Work is bounded: at most [`MAX_SAMPLES`] samples, [`MAX_LAG`] samples to either side.

/// The most samples per stream: a session's ring of 20 s at 100 Hz.
pub const MAX_SAMPLES: usize = 2000;
/// The farthest shift to either side in samples.
pub const MAX_LAG: usize = 200;
/// The fewest samples that must overlap at every shift.
pub const MIN_OVERLAP: usize = 16;

/// What two streams have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synchrony {
    /// Pearson's correlation at the best shift, -1 to 1.
    pub r: f64,
    /// How much later the second stream does what the first one does; negative when it is earlier.
    pub lag_ms: i32,
    /// How much of each stream was looked at.
    pub window_ms: u32,
    /// That this is no accident, 0 to 1.
    pub confidence: f64,
}

/// Why nothing can be said; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SynchronyError {
    /// The rate is not a frequency.
    #[error("the sampling rate is 1 to 100000 Hz, not {0}")]
    Rate(f64),
    /// The streams do not have the same length.
    #[error("both streams need the same number of samples; they have {0} and {1}")]
    Lengths(usize, usize),
    /// Too few samples for the shift, or too many.
    #[error(
        "with shifts of up to {lag} samples each stream needs {least} to 2000 samples; there are {found}"
    )]
    Samples {
        /// The farthest shift.
        lag: usize,
        /// The fewest samples for it.
        least: usize,
        /// As many as there are.
        found: usize,
    },
    /// A shift that is too far.
    #[error("streams are shifted by at most 200 samples, not by {0}")]
    Lag(usize),
    /// A value is not a finite number.
    #[error("a sample is not a finite number")]
    NotFinite,
    /// A stream does not change.
    #[error("a stream that does not change is like nothing: nothing can be said")]
    Constant,
}

/// How alike `first` and `second` are, shifted by at most `max_lag` samples to either side.
///
/// # Errors
/// [`SynchronyError`] says why nothing can be said.
pub fn synchrony(
    first: &[f64],
    second: &[f64],
    rate_hz: f64,
    max_lag: usize,
) -> Result<Synchrony, SynchronyError> {
    let n = first.len();
    if !(1.0..=100_000.0).contains(&rate_hz) {
        return Err(SynchronyError::Rate(rate_hz));
    }
    if n != second.len() {
        return Err(SynchronyError::Lengths(n, second.len()));
    }
    if max_lag > MAX_LAG {
        return Err(SynchronyError::Lag(max_lag));
    }
    let least = max_lag + MIN_OVERLAP;
    if n < least || n > MAX_SAMPLES {
        return Err(SynchronyError::Samples { lag: max_lag, least, found: n });
    }
    if first.iter().chain(second).any(|v| !v.is_finite()) {
        return Err(SynchronyError::NotFinite);
    }
    // Scaled first: squares of what is finite must be finite.
    let (first, second) = (centred(first)?, centred(second)?);
    let mut best: Option<(f64, usize, bool)> = None;
    // Nearest shifts first, so that of two that are equally good the nearer one is told.
    for shift in 0..=max_lag {
        for later in [true, false] {
            if shift == 0 && !later {
                continue;
            }
            let (a, b) = if later {
                (&first[..n - shift], &second[shift..])
            } else {
                (&first[shift..], &second[..n - shift])
            };
            if let Some(r) = pearson(a, b)
                && best.is_none_or(|(most, ..)| r.abs() > most.abs() + 1e-12)
            {
                best = Some((r, shift, later));
            }
        }
    }
    let (r, shift, later) = best.ok_or(SynchronyError::Constant)?;
    let millis = |samples: usize| {
        #[allow(clippy::cast_precision_loss, reason = "at most 2000")]
        let ms = libm::round(samples as f64 * 1000.0 / rate_hz);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2,000,000")]
        let ms = ms as u32;
        ms
    };
    let lag = millis(shift).cast_signed();
    Ok(Synchrony {
        r,
        lag_ms: if later { lag } else { -lag },
        window_ms: millis(n),
        confidence: confidence(r, effective(&first, &second, n - shift), 2 * max_lag + 1),
    })
}

/// The lengths of three-axis vectors, such as an accelerometer's: alike for two sensors however they are turned.
pub fn magnitudes(samples: &[f32], channels: usize) -> impl Iterator<Item = f64> + '_ {
    samples.chunks_exact(channels.max(3)).map(|sample| {
        let [x, y, z] = [0, 1, 2].map(|i| f64::from(sample[i]));
        libm::sqrt(x * x + y * y + z * z)
    })
}

/// Less its mean and divided by its largest value.
fn centred(x: &[f64]) -> Result<Vec<f64>, SynchronyError> {
    let largest = x.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    if largest == 0.0 {
        return Err(SynchronyError::Constant);
    }
    #[allow(clippy::cast_precision_loss, reason = "at most 2000")]
    let mean = x.iter().map(|v| v / largest).sum::<f64>() / x.len() as f64;
    let centred: Vec<f64> = x.iter().map(|v| v / largest - mean).collect();
    // What is left of a constant is rounding.
    if centred.iter().all(|v| v.abs() < 1e-12) { Err(SynchronyError::Constant) } else { Ok(centred) }
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "at most 2000")]
    let n = a.len() as f64;
    let (ma, mb) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - ma, y - mb);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    // A part that does not change; what is left is rounding.
    let silent = 1e-20 * n;
    (aa > silent && bb > silent).then(|| (ab / libm::sqrt(aa * bb)).clamp(-1.0, 1.0))
}

/// Samples that are worth as much as so many independent ones (Bartlett 1946).
fn effective(a: &[f64], b: &[f64], overlap: usize) -> f64 {
    let alike = |x: &[f64], k: usize| {
        let whole: f64 = x.iter().map(|v| v * v).sum();
        x.iter().zip(&x[k..]).map(|(p, q)| p * q).sum::<f64>() / whole
    };
    #[allow(clippy::cast_precision_loss, reason = "at most 2000")]
    let n = overlap as f64;
    // Farther apart there is more noise than memory.
    let sum: f64 = (1..=overlap / 4).map(|k| alike(a, k) * alike(b, k)).sum();
    (n / (1.0 + 2.0 * sum).max(1.0)).max(0.0)
}

fn confidence(r: f64, samples: f64, tries: usize) -> f64 {
    if samples <= 3.0 {
        return 0.0;
    }
    let z = libm::atanh(r.abs().min(1.0 - 1e-15)) * libm::sqrt(samples - 3.0);
    #[allow(clippy::cast_precision_loss, reason = "at most 401")]
    let chance = libm::erfc(z / std::f64::consts::SQRT_2) * tries as f64;
    (1.0 - chance).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    fn noise(n: usize, seed: u128) -> Vec<f64> {
        let mut random = Pcg64::new(seed, 5);
        (0..n).map(|_| f64::from(random.next_u32()) / f64::from(u32::MAX) - 0.5).collect()
    }

    /// Slow movement: noise, smoothed over ten samples.
    fn slow(n: usize, seed: u128) -> Vec<f64> {
        let raw = noise(n + 10, seed);
        (0..n).map(|i| raw[i..i + 10].iter().sum()).collect()
    }

    #[test]
    fn the_lag_is_found_to_either_side() {
        let movement = slow(700, 1);
        for lag in [0usize, 1, 7, 40] {
            let (early, late) = (&movement[lag..lag + 500], &movement[..500]);
            let ms = i32::try_from(10 * lag).unwrap();
            let s = synchrony(early, late, 100.0, 50).unwrap();
            assert_eq!((s.lag_ms, s.window_ms), (ms, 5000), "the second lags by {lag}");
            assert!(s.r > 0.999_999 && s.confidence > 0.999, "{s:?}");
            assert_eq!(synchrony(late, early, 100.0, 50).unwrap().lag_ms, -ms);
            let opposite: Vec<f64> = late.iter().map(|v| 3.0 - 1e3 * v).collect();
            let s = synchrony(early, &opposite, 100.0, 50).unwrap();
            assert_eq!((s.lag_ms, s.r < -0.999_999), (ms, true), "{s:?}");
        }
    }

    #[test]
    fn r_is_that_of_pearson() {
        // By hand: covariance 6, variances 10 and 6 (times n).
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        let y = [2.0, 4.0, 5.0, 4.0, 5.0];
        assert!((pearson(&x, &y).unwrap() - 6.0 / libm::sqrt(60.0)).abs() < 1e-12);
    }

    #[test]
    fn what_has_nothing_in_common_is_not_believed() {
        let (mut believed, mut real) = (0, 0);
        for seed in 0..40 {
            let a = slow(500, 2 * seed);
            let b = slow(500, 2 * seed + 1);
            let s = synchrony(&a, &b, 100.0, 50).unwrap();
            assert!(
                (-1.0..=1.0).contains(&s.r) && (0.0..=1.0).contains(&s.confidence) && s.lag_ms.abs() <= 500
            );
            believed += u32::from(s.confidence > 0.95);
            let shared: Vec<f64> = a[..450].iter().zip(&b).map(|(x, y)| x + y).collect();
            real += u32::from(synchrony(&a[20..470], &shared, 100.0, 50).unwrap().confidence > 0.95);
        }
        assert!(believed <= 4, "{believed} of 40 unrelated pairs");
        assert!(real >= 38, "{real} of 40 pairs that share half");
    }

    #[test]
    fn nothing_is_said_about_what_cannot_be_judged() {
        let x = noise(100, 1);
        let flat = vec![0.1; 100];
        assert_eq!(synchrony(&x, &flat, 100.0, 10), Err(SynchronyError::Constant));
        assert_eq!(synchrony(&[0.0; 100], &x, 100.0, 10), Err(SynchronyError::Constant));
        assert_eq!(synchrony(&x, &x[1..], 100.0, 10), Err(SynchronyError::Lengths(100, 99)));
        assert_eq!(synchrony(&x, &x, 0.0, 10), Err(SynchronyError::Rate(0.0)));
        assert!(matches!(synchrony(&x, &x, f64::NAN, 10), Err(SynchronyError::Rate(_))));
        assert_eq!(synchrony(&x, &x, 100.0, 201), Err(SynchronyError::Lag(201)));
        let few = SynchronyError::Samples { lag: 90, least: 106, found: 100 };
        assert_eq!(synchrony(&x, &x, 100.0, 90), Err(few));
        let long = noise(2001, 1);
        assert!(matches!(synchrony(&long, &long, 100.0, 1), Err(SynchronyError::Samples { .. })));
        let mut bad = x.clone();
        bad[5] = f64::NAN;
        assert_eq!(synchrony(&bad, &x, 100.0, 10), Err(SynchronyError::NotFinite));
    }

    #[test]
    fn the_largest_and_smallest_numbers_are_judged_as_any_others() {
        let x = noise(200, 3);
        for factor in [1e300, 1e-300] {
            let scaled: Vec<f64> = x.iter().map(|v| v * factor).collect();
            let s = synchrony(&x, &scaled, 100.0, 10).unwrap();
            assert!(s.r > 0.999_999 && s.lag_ms == 0, "{s:?}");
        }
        let mut step = vec![0.0; 200];
        step[199] = 1.0;
        assert!(synchrony(&step, &x, 100.0, 10).is_ok(), "one that only changes at its end");
    }

    #[test]
    fn the_length_of_a_vector_does_not_depend_on_how_the_sensor_is_turned() {
        let samples = [3.0, 4.0, 0.0, 9.0, 0.0, -5.0, 12.0, 9.0];
        assert_eq!(magnitudes(&samples, 4).collect::<Vec<_>>(), [5.0, 13.0]);
        assert_eq!(magnitudes(&samples, 0).count(), 2);
    }
}
