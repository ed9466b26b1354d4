//! What is fitted, and how good it is.
//!
//! **What is held back.** The last third of each recording, and a gap of one window before it: windows that overlap, or lie beside each
//! other in time, are nearly the same window, and a check on such would flatter. Held-back windows do not overlap each other.

use crate::recording::Recording;
use inferd_model::Normalization;
use inferd_tasks::emg::Personal;
use inferd_train::head::{FitOptions, HeadError, LinearHead, Link};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

/// Windows of each gesture that are fitted to, at the least.
const LEAST_FITTED: usize = 8;
/// Windows of each gesture that are held back, at the least.
const LEAST_HELD: usize = 4;
/// How far a channel's gain may be from that of the others, as a ratio to what the model expects.
const WIDEST_GAIN: f64 = 4.0;
/// A channel whose deviation is not above this is dead, and its scale is 1.
const DEAD: f64 = 1e-6;
/// The score of a gesture that was left out: its probability is 0.
const NEVER: f32 = -1e4;
/// Right among held-back windows of all gestures, at the least.
pub const LEAST_ACCURACY: f64 = 0.8;
/// Right among those of each gesture, at the least.
pub const LEAST_RECALL: f64 = 0.5;

/// Samples of a recording that are needed.
#[must_use]
pub const fn least_samples(timesteps: usize) -> usize {
    // Half-overlapping ones to fit, the gap, and those held back; which are a third.
    let (fitted, held) = ((LEAST_FITTED + 1) * timesteps / 2, LEAST_HELD * timesteps);
    let by_fitted = (fitted + timesteps) * 3 / 2;
    let by_held = held * 3;
    if by_fitted > by_held { by_fitted } else { by_held }
}

/// What a window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// To be learned from: every half window.
    Fit,
    /// To be checked on: side by side.
    Held,
}

/// The windows of a recording for this, filtered and not scaled.
pub fn windows(recording: &Recording, timesteps: usize, part: Part) -> impl Iterator<Item = &[f32]> {
    let (channels, samples) = (recording.channels(), recording.samples());
    let all = samples.len() / channels;
    let held = all - all / 3;
    let (range, hop) = match part {
        Part::Fit => (0..held.saturating_sub(timesteps), (timesteps / 2).max(1)),
        Part::Held => (held..all, timesteps),
    };
    let samples = &samples[range.start * channels..range.end * channels];
    samples.windows(timesteps * channels).step_by(hop * channels)
}

/// A scaler for a person: each channel by its strength, all gestures counting alike. A dead channel has the scale 1; one whose gain is
/// far off those of the others, as one that hangs loose, is not made as loud as they are. `base` is the model's own.
#[must_use]
pub fn scaler(recordings: &[&Recording], base: Option<&Normalization>) -> Normalization {
    let channels = recordings.first().map_or(0, |r| r.channels());
    #[allow(clippy::cast_precision_loss, reason = "at most 1024")]
    let n = recordings.len().max(1) as f64;
    let power = |c: usize| recordings.iter().map(|r| r.strength()[c].powi(2)).sum::<f64>() / n;
    let mut scales: Vec<f64> = (0..channels).map(|c| power(c).sqrt()).collect();
    let usual = |c: usize| base.and_then(|b| b.std.get(c)).map_or(1.0, |s| f64::from(*s).max(DEAD));
    let live: Vec<usize> = (0..channels).filter(|&c| scales[c] > DEAD).collect();
    let mut gains: Vec<f64> = live.iter().map(|&c| scales[c] / usual(c)).collect();
    gains.sort_by(f64::total_cmp);
    if let Some(&median) = gains.get(gains.len() / 2) {
        for &c in &live {
            let gain = (scales[c] / usual(c)).clamp(median / WIDEST_GAIN, median * WIDEST_GAIN);
            scales[c] = gain * usual(c);
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "a scale is an f32")]
    let std = scales.iter().map(|s| if *s > DEAD { *s as f32 } else { 1.0 }).collect();
    let mean = (0..channels)
        .map(|c| {
            let of = |r: &&Recording| {
                let values = r.samples().iter().skip(c).step_by(channels).map(|v| f64::from(*v));
                #[allow(clippy::cast_precision_loss, reason = "below 2^20")]
                let samples = (r.samples().len() / channels) as f64;
                values.sum::<f64>() / samples
            };
            let mut means: Vec<f64> = recordings.iter().map(of).collect();
            means.sort_by(f64::total_cmp);
            #[allow(clippy::cast_possible_truncation, reason = "a mean is an f32")]
            let mean = means.get(means.len() / 2).copied().unwrap_or_default() as f32;
            mean
        })
        .collect();
    Normalization { mean, std }
}

/// Fits a head to features of windows, each with the place of its label among `labels`. A label without a window is never named.
///
/// # Errors
/// [`HeadError`] when the features are no numbers or the fit does not settle.
pub fn head(
    features: &[(usize, Vec<f32>)],
    labels: usize,
    scaler: Option<Normalization>,
) -> Result<Personal, HeadError> {
    let mut used: Vec<usize> = features.iter().map(|(label, _)| *label).collect();
    used.sort_unstable();
    used.dedup();
    let width = features.first().map_or(0, |(_, f)| f.len());
    let mut x = Array2::<f32>::zeros((features.len(), width));
    let mut y = Array2::<f32>::zeros((features.len(), used.len()));
    for (row, (label, values)) in features.iter().enumerate() {
        x.row_mut(row).iter_mut().zip(values).for_each(|(to, from)| *to = *from);
        if let Ok(column) = used.binary_search(label) {
            y[[row, column]] = 1.0;
        }
    }
    let options = FitOptions { ridge: 1e-2, ..FitOptions::new(Link::Softmax) };
    let fitted = LinearHead::fit(x.view(), y.view(), &options)?;
    let (mut weight, mut bias) = (vec![0.0; labels * width], vec![NEVER; labels]);
    for (column, &label) in used.iter().enumerate() {
        bias[label] = fitted.bias[column];
        let row = &mut weight[label * width..(label + 1) * width];
        row.iter_mut().zip(fitted.weight.row(column)).for_each(|(to, from)| *to = *from);
    }
    Ok(Personal { scaler, weight, bias })
}

/// How both models did on the same windows, which neither was fitted to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Windows that were held back.
    pub windows: u32,
    /// Part that the fitted head names rightly.
    pub accuracy: f64,
    /// Part that the model names rightly as it was shipped.
    pub uncalibrated: f64,
    /// Each gesture that was recorded.
    pub gestures: Vec<GestureCheck>,
}

/// One gesture of a [`Check`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GestureCheck {
    /// Its name.
    pub label: String,
    /// Windows that were held back.
    pub windows: u32,
    /// Of them, how many were named rightly.
    pub right: u32,
    /// By the model as it was shipped.
    pub uncalibrated: u32,
    /// What its windows were named as, one count per label of the model: a row of the confusion matrix.
    pub named: Vec<u32>,
}

impl Check {
    /// Counts. Of each window: the place of its label, and what the fitted head and the shipped model named.
    #[must_use]
    pub fn of(labels: &[String], named: &[(usize, usize, usize)]) -> Self {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let gestures: Vec<GestureCheck> = (0..labels.len())
            .filter_map(|label| {
                let of: Vec<_> = named.iter().filter(|n| n.0 == label).collect();
                let times = |want: usize| count(of.iter().filter(|n| n.1 == want).count());
                (!of.is_empty()).then(|| GestureCheck {
                    label: labels[label].clone(),
                    windows: count(of.len()),
                    right: times(label),
                    uncalibrated: count(of.iter().filter(|n| n.2 == label).count()),
                    named: (0..labels.len()).map(times).collect(),
                })
            })
            .collect();
        let windows: u32 = gestures.iter().map(|g| g.windows).sum();
        let part = |right: u32| f64::from(right) / f64::from(windows.max(1));
        Self {
            windows,
            accuracy: part(gestures.iter().map(|g| g.right).sum()),
            uncalibrated: part(gestures.iter().map(|g| g.uncalibrated).sum()),
            gestures,
        }
    }

    /// Why this should not be installed, one sentence each; empty when it should.
    #[must_use]
    pub fn objections(&self) -> Vec<String> {
        let percent = |v: f64| format!("{:.1} %", 100.0 * v);
        let mut all = Vec::new();
        if self.accuracy < LEAST_ACCURACY {
            let (is, least) = (percent(self.accuracy), percent(LEAST_ACCURACY));
            all.push(format!("only {is} of the held-back windows are named rightly; {least} are needed"));
        }
        for g in &self.gestures {
            if f64::from(g.right) < LEAST_RECALL * f64::from(g.windows) {
                let (label, right, windows) = (&g.label, g.right, g.windows);
                all.push(format!("of {windows} held-back windows of {label} only {right} are named rightly; half are needed"));
            }
        }
        if self.accuracy < self.uncalibrated {
            let (is, was) = (percent(self.accuracy), percent(self.uncalibrated));
            all.push(format!(
                "without calibration {was} of the same windows are named rightly, with it {is}"
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::Shape;
    use inferd_sources::prepare::{Preparation, Scaling};
    use inferd_sources::random::Random;

    fn recording(scale: [f64; 2], seed: u64, samples: usize) -> Recording {
        let mut random = Random::new(seed, 1);
        #[allow(clippy::cast_possible_truncation)]
        let values: Vec<f32> = (0..2 * samples).map(|i| (scale[i % 2] * random.normal()) as f32).collect();
        let preparation = Preparation::new(&[], Scaling::None, 2, 1000.0).unwrap();
        let shape = Shape { preparation: &preparation, timesteps: 100, channels: 2 };
        Recording::assess(&values, &[], shape, None).unwrap()
    }

    #[test]
    fn no_sample_is_in_a_window_to_fit_and_in_one_held_back_and_a_window_lies_between() {
        for samples in [least_samples(100), 3000, 3001] {
            let recording = recording([1.0, 1.0], 1, samples);
            let base = recording.samples().as_ptr() as usize;
            let place = |w: &[f32]| (w.as_ptr() as usize - base) / 8;
            let fit: Vec<usize> = windows(&recording, 100, Part::Fit).map(place).collect();
            let held: Vec<usize> = windows(&recording, 100, Part::Held).map(place).collect();
            assert!(fit.len() >= LEAST_FITTED && held.len() >= LEAST_HELD, "{samples}: {fit:?} {held:?}");
            assert!(fit.last().unwrap() + 200 <= held[0], "{fit:?} {held:?}");
            assert!(held.windows(2).all(|w| w[1] - w[0] == 100), "{held:?}");
        }
    }

    #[test]
    fn each_channel_is_scaled_by_its_strength_and_neither_a_dead_nor_a_loose_one_is_made_loud() {
        let loud = recording([100.0, 0.0], 1, 3000);
        let quiet = recording([10.0, 0.0], 2, 3000);
        let scaler = |base| super::scaler(&[&loud, &quiet], base);
        let alone = scaler(None);
        assert!((alone.std[0] - 71.0).abs() < 4.0 && alone.std[1] == 1.0, "{alone:?}");
        let loose = recording([100.0, 0.1], 3, 3000);
        let usual = Normalization { mean: vec![0.0; 2], std: vec![50.0, 50.0] };
        let held = super::scaler(&[&loose, &loud], Some(&usual));
        assert!(held.std[1] > 5.0 && (held.std[0] / held.std[1] - 4.0).abs() < 0.01, "{held:?}");
    }

    #[test]
    fn a_head_names_what_was_recorded_and_never_what_was_not() {
        let mut random = Random::new(1, 1);
        #[allow(clippy::cast_possible_truncation)]
        let mut near =
            |x: f64, y: f64| vec![(x + 0.3 * random.normal()) as f32, (y + 0.3 * random.normal()) as f32];
        let examples: Vec<_> = (0..40).flat_map(|_| [(0, near(2.0, 0.0)), (2, near(-2.0, 0.0))]).collect();
        let head = super::head(&examples, 3, None).unwrap();
        assert_eq!(super::head(&examples, 3, None).unwrap(), head, "the same examples, the same head");
        let (left, right) = (head.logits(&[2.0, 0.0]), head.logits(&[-2.0, 0.0]));
        assert!(left[0] > left[2] && right[2] > right[0] && left[1] == NEVER, "{left:?} {right:?}");
        assert!(super::head(&[(0, vec![f32::NAN]), (1, vec![0.0])], 2, None).is_err());
    }

    #[test]
    fn a_check_says_what_is_not_good_enough() {
        let labels: Vec<String> = ["Rest", "Open", "Close"].map(str::to_owned).to_vec();
        let named = |right: usize, shipped: usize| -> Vec<(usize, usize, usize)> {
            (0..10)
                .flat_map(|i| {
                    [(0, 0, 0), (2, if i < right { 2 } else { 0 }, if i < shipped { 2 } else { 1 })]
                })
                .collect()
        };
        let good = Check::of(&labels, &named(9, 4));
        assert_eq!((good.windows, good.accuracy, good.uncalibrated), (20, 0.95, 0.7));
        assert_eq!((good.gestures[1].label.as_str(), &good.gestures[1].named[..]), ("Close", &[1, 0, 9][..]));
        assert_eq!(good.objections(), Vec::<String>::new());
        let bad = Check::of(&labels, &named(4, 9)).objections();
        assert_eq!(bad.len(), 3, "{bad:?}");
        assert!(
            bad[1].contains("10 held-back windows of Close only 4") && bad[2].contains("95.0 %"),
            "{bad:?}"
        );
    }
}
