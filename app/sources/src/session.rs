//! The newest samples of a nine-axis sensor that somebody sends over HTTP, with the times they were taken at.
//!
//! A [`Session`] keeps the newest [`CAPACITY`] samples. Of these, what is looked at is the newest stretch without a gap: a
//! [`window`](Session::window) for a model lies in it, and so does what [`together`] compares of two sessions.
//!
//! Times are the sender's, in seconds or in milliseconds: no inertial sensor is read less than once a second or more than a
//! thousand times, so a step of one or more is milliseconds.

use crate::synchrony::{MAX_LAG, MAX_SAMPLES, Synchrony, SynchronyError, magnitudes, synchrony};
use std::collections::VecDeque;

/// Samples that are kept: 20 s at 100 Hz.
pub const CAPACITY: usize = MAX_SAMPLES;
/// Values of a sample: acceleration, rotation, magnetic field, of three axes each.
pub const AXES: usize = 9;
/// A step of more than so many usual ones is a gap.
const GAP: f64 = 2.5;
/// Steps that the usual one is the median of.
const STEPS: usize = 101;
/// How far a sensor's rate may be from a model's, as a share of it.
const RATE_OFF: f64 = 0.2;
/// The farthest shift of one sensor against another that is looked for, in seconds.
const LAG: f64 = 2.0;
/// The shortest time that two sensors are compared over, in seconds.
const SHORTEST: f64 = 1.0;

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// When, on the sender's clock.
    pub t: f64,
    /// Raw units, in the order ax ay az gx gy gz mx my mz.
    pub values: [f32; AXES],
}

/// What became of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// New ones.
    pub taken: usize,
    /// Those that are no later than one that was there.
    pub late: usize,
}

/// Why nothing can be said.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// A value is not a finite number.
    #[error("sample {0} has a value that is no finite number")]
    NotFinite(usize),
    /// A window is not whole.
    #[error("{have} of {need} samples without a gap have come")]
    TooFew {
        /// In the newest stretch.
        have: usize,
        /// Of a window.
        need: usize,
    },
    /// The sensor is read at another rate than the model knows.
    #[error("the samples come {found:.1} times a second, the model needs {wanted} a second")]
    Rate {
        /// By its own times.
        found: f64,
        /// By the model's manifest.
        wanted: f64,
    },
    /// The two have too little time in common.
    #[error(
        "both sessions have {0:.1} s in common by their times t; 1 s without a gap is needed, on one clock"
    )]
    Apart(f64),
    /// They cannot be compared.
    #[error(transparent)]
    Synchrony(#[from] SynchronyError),
}

/// One sender's newest samples.
#[derive(Clone, Debug, Default)]
pub struct Session {
    samples: VecDeque<Sample>,
    total: u64,
}

impl Session {
    /// Takes samples, in the order of their times. One that is no later than the newest is left out; a first one that is older
    /// than everything here begins anew, for its sender did.
    ///
    /// # Errors
    /// [`SessionError::NotFinite`]; then none was taken.
    pub fn push(&mut self, samples: &[Sample]) -> Result<Taken, SessionError> {
        let broken = |s: &Sample| !s.t.is_finite() || s.values.iter().any(|v| !v.is_finite());
        if let Some(place) = samples.iter().position(broken) {
            return Err(SessionError::NotFinite(place));
        }
        if let (Some(first), Some(oldest)) = (samples.first(), self.samples.front())
            && first.t < oldest.t
        {
            self.samples.clear();
        }
        let mut told = Taken::default();
        for sample in samples {
            if self.samples.back().is_some_and(|newest| sample.t <= newest.t) {
                told.late += 1;
                continue;
            }
            if self.samples.len() == CAPACITY {
                self.samples.pop_front();
            }
            self.samples.push_back(*sample);
            told.taken += 1;
        }
        self.total += told.taken as u64;
        Ok(told)
    }

    /// Samples that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Samples that were ever taken.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The newest `need` samples, oldest first, where none is missing among them and they come at this rate.
    ///
    /// # Errors
    /// [`SessionError::TooFew`], [`SessionError::Rate`].
    pub fn window(
        &self,
        need: usize,
        rate_hz: Option<f64>,
    ) -> Result<impl Iterator<Item = &[f32; AXES]>, SessionError> {
        let stretch = self.stretch();
        let have = stretch.as_ref().map_or(self.samples.len(), |s| s.samples);
        if have < need {
            return Err(SessionError::TooFew { have, need });
        }
        if let (Some(wanted), Some(stretch)) = (rate_hz, stretch) {
            let found = 1.0 / stretch.step;
            if (found / wanted - 1.0).abs() > RATE_OFF {
                return Err(SessionError::Rate { found, wanted });
            }
        }
        Ok(self.samples.range(self.samples.len() - need..).map(|s| &s.values))
    }

    /// The newest samples without a gap among them; `None` with fewer than two.
    fn stretch(&self) -> Option<Stretch> {
        let newest = self.samples.range(self.samples.len().saturating_sub(STEPS + 1)..);
        let mut steps: Vec<f64> = newest.clone().zip(newest.skip(1)).map(|(a, b)| b.t - a.t).collect();
        steps.sort_by(f64::total_cmp);
        let usual = *steps.get(steps.len() / 2)?;
        let older = self.samples.iter().rev().skip(1);
        let whole = self.samples.iter().rev().zip(older).take_while(|(b, a)| b.t - a.t <= GAP * usual);
        let unit = if usual >= 1.0 { 1e-3 } else { 1.0 };
        Some(Stretch { samples: whole.count() + 1, step: usual * unit, unit })
    }
}

/// The newest samples without a gap.
struct Stretch {
    samples: usize,
    /// The usual time from one to the next, in seconds.
    step: f64,
    /// Seconds of one of the sender's units of time.
    unit: f64,
}

impl Stretch {
    /// Times in seconds and lengths of the acceleration.
    fn line(&self, session: &Session) -> Vec<(f64, f64)> {
        let samples = session.samples.range(session.samples.len() - self.samples..);
        let length = |s: &Sample| magnitudes(&s.values, AXES).next().unwrap_or(0.0);
        samples.map(|s| (s.t * self.unit, length(s))).collect()
    }
}

/// How alike two sensors are moved, by the length of their acceleration, however each of them is turned; and which one lags.
/// Their times must be of one clock. Looked at is what both have without a gap, at the slower one's rate, with shifts of up to
/// two seconds and a quarter of it.
///
/// # Errors
/// [`SessionError::Apart`], [`SessionError::Synchrony`].
pub fn together(first: &Session, second: &Session) -> Result<Synchrony, SessionError> {
    let (Some(a), Some(b)) = (first.stretch(), second.stretch()) else {
        return Err(SessionError::Apart(0.0));
    };
    let step = a.step.max(b.step);
    let (a, b) = (a.line(first), b.line(second));
    let end = a[a.len() - 1].0.min(b[b.len() - 1].0);
    let begin = a[0].0.max(b[0].0);
    let common = (end - begin).max(0.0);
    if common < SHORTEST {
        return Err(SessionError::Apart(common));
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and bounded")]
    let whole = |x: f64, most: usize| if x >= most as f64 { most } else { x as usize };
    let n = whole(common / step, MAX_SAMPLES - 1) + 1;
    let lag = whole(LAG / step, MAX_LAG).min(n / 4);
    #[allow(clippy::cast_precision_loss, reason = "at most 2000")]
    let at = |i: usize| end - (n - 1 - i) as f64 * step;
    let grid = |line: &[(f64, f64)]| -> Vec<f64> { (0..n).map(|i| between(line, at(i))).collect() };
    Ok(synchrony(&grid(&a), &grid(&b), 1.0 / step, lag)?)
}

/// The value of a line at this time, which lies on it but for rounding.
fn between(line: &[(f64, f64)], at: f64) -> f64 {
    let after = line.partition_point(|(t, _)| *t < at).clamp(1, line.len() - 1);
    let ((t0, v0), (t1, v1)) = (line[after - 1], line[after]);
    let share = ((at - t0) / (t1 - t0)).clamp(0.0, 1.0);
    v0 + (v1 - v0) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tenth of a g up and down, by a sum of waves that is nowhere like itself for some seconds.
    fn moved(t: f64) -> f64 {
        9.81 + libm::sin(7.0 * t) + 0.7 * libm::sin(17.3 * t + 1.0) + 0.4 * libm::sin(3.1 * t)
    }

    fn samples(from: usize, n: usize, hz: f64, lag: f64) -> Vec<Sample> {
        #[allow(clippy::cast_precision_loss)]
        let t = |i: usize| i as f64 / hz;
        #[allow(clippy::cast_possible_truncation)]
        let sample = |i: usize| Sample {
            t: t(i),
            values: [0.0, 0.0, moved(t(i) - lag) as f32, 0.0, 0.0, 0.0, 20.0, 0.0, 40.0],
        };
        (from..from + n).map(sample).collect()
    }

    fn session(samples: &[Sample]) -> Session {
        let mut session = Session::default();
        session.push(samples).unwrap();
        session
    }

    #[test]
    fn the_newest_twenty_seconds_are_kept_and_all_are_counted() {
        let mut session = session(&samples(0, 1500, 100.0, 0.0));
        session.push(&samples(1500, 1500, 100.0, 0.0)).unwrap();
        assert_eq!((session.len(), session.total()), (2000, 3000));
        let newest = session.window(1, None).unwrap().next().unwrap()[2];
        assert_eq!(newest, samples(2999, 1, 100.0, 0.0)[0].values[2]);
    }

    #[test]
    fn what_comes_late_is_left_out_and_a_sender_that_begins_anew_begins_anew() {
        let mut session = session(&samples(50, 100, 100.0, 0.0));
        let again = session.push(&samples(140, 20, 100.0, 0.0)).unwrap();
        assert_eq!(again, Taken { taken: 10, late: 10 });
        session.push(&samples(0, 30, 100.0, 0.0)).unwrap();
        assert_eq!((session.len(), session.total()), (30, 140));
    }

    #[test]
    fn no_window_lies_across_a_gap() {
        let mut session = session(&samples(0, 150, 100.0, 0.0));
        assert_eq!(session.window(100, Some(100.0)).unwrap().count(), 100);
        session.push(&samples(160, 99, 100.0, 0.0)).unwrap();
        assert_eq!(
            session.window(100, Some(100.0)).err(),
            Some(SessionError::TooFew { have: 99, need: 100 })
        );
        session.push(&samples(259, 1, 100.0, 0.0)).unwrap();
        assert!(session.window(100, Some(100.0)).is_ok());
    }

    #[test]
    fn a_sensor_of_another_rate_is_not_taken_for_the_models() {
        for (hz, fits) in [(100.0, true), (90.0, true), (50.0, false), (200.0, false)] {
            let session = session(&samples(0, 200, hz, 0.0));
            assert_eq!(session.window(100, Some(100.0)).is_ok(), fits, "{hz}");
            // The same in milliseconds.
            let millis: Vec<Sample> =
                samples(0, 200, hz, 0.0).iter().map(|s| Sample { t: s.t * 1e3, ..*s }).collect();
            assert_eq!(self::session(&millis).window(100, Some(100.0)).is_ok(), fits, "{hz}");
            assert!(session.window(100, None).is_ok());
        }
    }

    #[test]
    fn what_is_no_number_is_refused_and_nothing_of_it_is_kept() {
        let mut broken = samples(0, 3, 100.0, 0.0);
        broken[2].values[8] = f32::INFINITY;
        let mut session = Session::default();
        assert_eq!(session.push(&broken), Err(SessionError::NotFinite(2)));
        assert!(session.is_empty());
    }

    #[test]
    fn the_one_that_lags_is_found_whatever_the_rates_and_however_they_are_turned() {
        for (hz, lag) in [(100.0, 0.25), (100.0, -0.25), (60.0, 0.5), (100.0, 0.0)] {
            let first = session(&samples(0, 1000, 100.0, 0.0));
            let mut later = samples(0, 600, hz, lag);
            // Turned: the length stays.
            later.iter_mut().for_each(|s| s.values.swap(0, 2));
            let told = together(&first, &session(&later)).unwrap();
            assert!(
                told.r > 0.99 && (f64::from(told.lag_ms) - lag * 1e3).abs() < 20.0,
                "{hz} {lag}: {told:?}"
            );
            assert!(told.confidence > 0.99, "{told:?}");
        }
    }

    #[test]
    fn two_that_have_no_time_in_common_or_do_not_move_are_not_compared() {
        let first = session(&samples(0, 300, 100.0, 0.0));
        let elsewhere = session(&samples(500, 300, 100.0, 0.0));
        assert_eq!(together(&first, &elsewhere), Err(SessionError::Apart(0.0)));
        assert!(matches!(
            together(&first, &session(&samples(0, 1, 100.0, 0.0))),
            Err(SessionError::Apart(_))
        ));
        let mut still = samples(0, 300, 100.0, 0.0);
        still.iter_mut().for_each(|s| s.values[2] = 9.81);
        assert_eq!(together(&first, &session(&still)), Err(SynchronyError::Constant.into()));
    }

    #[test]
    fn no_time_of_a_sender_is_too_strange() {
        let times = [0.0, 1e-300, 2e-300, 1.0, 1e15, 1.0 + 1e15, 1e300, 1.7e308];
        let strange: Vec<Sample> = times.iter().map(|t| Sample { t: *t, values: [1.0; 9] }).collect();
        let strange = session(&strange);
        let usual = session(&samples(0, 300, 100.0, 0.0));
        for need in [1, 5, 100] {
            let _ = strange.window(need, Some(100.0)).map(Iterator::count);
        }
        let _ = (together(&strange, &usual), together(&usual, &strange), together(&strange, &strange));
    }
}
