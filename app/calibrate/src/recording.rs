//! One recording of one gesture: whether it is good enough, and what of it is used.

use inferd_sources::prepare::Preparation;

/// A gesture that is not this many times as strong as rest on any channel was not made.
pub const LEAST_STRENGTH: f64 = 2.0;
/// The part of a recording that must be without a gap.
const LEAST_WHOLE: f64 = 0.8;
/// The part of a channel's samples that may stand at its limit.
const MOST_CLIPPED: f64 = 0.01;
/// Equal values at the limit in a row that are no chance.
const RUN: usize = 3;
/// A channel with fewer different values than this is silent, not clipped.
const FEWEST_VALUES: usize = 32;
/// A channel whose deviation is not above this is dead.
const DEAD: f64 = 1e-6;

/// How a model cuts and filters windows.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// Its filters.
    pub preparation: &'a Preparation,
    /// Samples in a window.
    pub timesteps: usize,
    /// Electrodes.
    pub channels: usize,
}

/// A recording that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// Filtered, not scaled, sample by sample, without a gap.
    samples: Vec<f32>,
    channels: usize,
    /// The deviation of each channel, robust against moments: the median over windows.
    strength: Vec<f64>,
    dead: Vec<usize>,
    versus_rest: Option<f64>,
}

/// Why a recording is refused; one sentence for the person, who can make another one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// Samples are missing.
    #[error(
        "samples are missing: of {all} only {whole} follow each other; look after the cable or the radio link and record again"
    )]
    Gaps {
        /// The longest stretch without a gap.
        whole: usize,
        /// Samples that were recorded.
        all: usize,
    },
    /// Too few samples for what is fitted and what is held back.
    #[error("{have} samples are too few: {needed} are needed after the filters have settled")]
    Short {
        /// After settling.
        have: usize,
        /// At least.
        needed: usize,
    },
    /// An amplifier at its limit.
    #[error(
        "channel {channel} is at its limit in {percent:.0} % of its samples: turn its gain down and record again"
    )]
    Clipped {
        /// From 0.
        channel: usize,
        /// Of its samples.
        percent: f64,
    },
    /// Nothing on any channel.
    #[error("no channel gives a signal: is the sensor worn, and switched on?")]
    Dead,
    /// The gesture was not made.
    #[error(
        "this is hardly stronger than rest ({times:.1} times, needed are {LEAST_STRENGTH}): make the gesture and hold it, or record rest again"
    )]
    Weak {
        /// The strongest channel against itself at rest.
        times: f64,
    },
}

impl Recording {
    /// Judges raw samples. `breaks` are the places before which something is missing; `rest` is what gestures are to be stronger than.
    ///
    /// # Errors
    /// [`Refused`], the first thing that is wrong.
    pub fn assess(
        values: &[f32],
        breaks: &[usize],
        shape: Shape<'_>,
        rest: Option<&Self>,
    ) -> Result<Self, Refused> {
        let channels = shape.channels;
        let all = values.len() / channels;
        let edges: Vec<usize> = [0].iter().chain(breaks).chain(&[all]).copied().collect();
        let stretches = edges.windows(2).map(|e| (e[1].saturating_sub(e[0]), e[0]));
        // The first of equals.
        let (whole, from) = stretches.fold((0, 0), |best, s| if s.0 > best.0 { s } else { best });
        #[allow(clippy::cast_precision_loss, reason = "below 2^20")]
        if whole as f64 <= LEAST_WHOLE * all as f64 {
            return Err(Refused::Gaps { whole, all });
        }
        let raw = &values[from * channels..(from + whole) * channels];
        clipped(raw, channels)?;
        let mut filter = shape.preparation.stream();
        let mut samples = raw.to_vec();
        samples.chunks_exact_mut(channels).for_each(|s| filter.filter(s));
        let settling = usize::try_from(shape.preparation.settling()).unwrap_or(usize::MAX).min(whole);
        samples.drain(..settling * channels);
        let (have, needed) = (samples.len() / channels, crate::fit::least_samples(shape.timesteps));
        if have < needed {
            return Err(Refused::Short { have, needed });
        }
        let strength = strength(&samples, channels, shape.timesteps);
        let dead: Vec<usize> = (0..channels).filter(|&c| strength[c] <= DEAD).collect();
        if dead.len() == channels {
            return Err(Refused::Dead);
        }
        let versus_rest = rest.map(|rest| {
            let times = strength.iter().zip(&rest.strength).filter(|(g, _)| **g > DEAD);
            times.map(|(g, r)| g / r.max(DEAD)).fold(0.0, f64::max)
        });
        if let Some(times) = versus_rest.filter(|t| *t < LEAST_STRENGTH) {
            return Err(Refused::Weak { times });
        }
        Ok(Self { samples, channels, strength, dead, versus_rest })
    }

    /// Filtered, not scaled, sample by sample.
    #[must_use]
    pub fn samples(&self) -> &[f32] {
        &self.samples
    }

    /// Values per sample.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// How strong each channel is, in the unit of the samples.
    #[must_use]
    pub fn strength(&self) -> &[f64] {
        &self.strength
    }

    /// Channels that give nothing.
    #[must_use]
    pub fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// How many times as strong as rest the strongest channel is; `None` of rest itself.
    #[must_use]
    pub fn versus_rest(&self) -> Option<f64> {
        self.versus_rest
    }
}

fn clipped(raw: &[f32], channels: usize) -> Result<(), Refused> {
    for channel in 0..channels {
        let values: Vec<f32> = raw.iter().skip(channel).step_by(channels).copied().collect();
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.dedup();
        let (Some(&least), Some(&most)) = (sorted.first(), sorted.last()) else { continue };
        if sorted.len() < FEWEST_VALUES {
            continue;
        }
        let runs = values.chunk_by(|a, b| a.to_bits() == b.to_bits());
        let at_limit: usize =
            runs.filter(|r| r.len() >= RUN && (r[0] <= least || r[0] >= most)).map(<[f32]>::len).sum();
        #[allow(clippy::cast_precision_loss, reason = "below 2^20")]
        let share = at_limit as f64 / values.len() as f64;
        if share > MOST_CLIPPED {
            return Err(Refused::Clipped { channel, percent: 100.0 * share });
        }
    }
    Ok(())
}

/// The median over windows of each channel's mean square, as a deviation.
fn strength(samples: &[f32], channels: usize, timesteps: usize) -> Vec<f64> {
    let of = |channel: usize| {
        let mut powers: Vec<f64> = samples
            .chunks_exact(channels * timesteps)
            .map(|window| {
                let values = window.iter().skip(channel).step_by(channels).map(|v| f64::from(*v));
                #[allow(clippy::cast_precision_loss, reason = "below 2^20")]
                let n = timesteps as f64;
                values.map(|v| v * v).sum::<f64>() / n
            })
            .collect();
        powers.sort_by(f64::total_cmp);
        powers.get(powers.len() / 2).copied().unwrap_or_default().sqrt()
    };
    (0..channels).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_sources::prepare::Scaling;
    use inferd_sources::random::Random;

    fn noise(uv: f64, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed, 1);
        #[allow(clippy::cast_possible_truncation)]
        (0..2 * 4000).map(|_| (uv * random.normal()) as f32).collect()
    }

    fn assess(values: &[f32], breaks: &[usize], rest: Option<&Recording>) -> Result<Recording, Refused> {
        let preparation = Preparation::new(&[], Scaling::None, 2, 1000.0).unwrap();
        let shape = Shape { preparation: &preparation, timesteps: 100, channels: 2 };
        Recording::assess(values, breaks, shape, rest)
    }

    #[test]
    fn a_gesture_is_stronger_than_rest_or_it_was_not_made() {
        let rest = assess(&noise(4.0, 1), &[], None).unwrap();
        assert!((rest.strength()[0] - 4.0).abs() < 0.3 && rest.versus_rest().is_none());
        let made = assess(&noise(40.0, 2), &[], Some(&rest)).unwrap();
        assert!((made.versus_rest().unwrap() - 10.0).abs() < 1.0);
        assert!(matches!(assess(&noise(5.0, 3), &[], Some(&rest)), Err(Refused::Weak { .. })));
    }

    #[test]
    fn one_gap_at_the_edge_is_cut_off_and_gaps_in_the_middle_are_refused() {
        let values = noise(4.0, 1);
        let kept = assess(&values, &[100], None).unwrap();
        assert_eq!(kept.samples(), &values[200..]);
        assert_eq!(assess(&values, &[2000], None), Err(Refused::Gaps { whole: 2000, all: 4000 }));
    }

    #[test]
    fn an_amplifier_at_its_limit_is_named() {
        let mut values = noise(40.0, 1);
        values.iter_mut().skip(1).step_by(2).for_each(|v| *v = v.clamp(-20.0, 20.0));
        match assess(&values, &[], None) {
            Err(Refused::Clipped { channel: 1, percent }) => assert!(percent > 5.0, "{percent}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rest_of_a_coarse_converter_is_not_taken_for_clipped() {
        let values: Vec<f32> = noise(0.6, 1).iter().map(|v| v.round()).collect();
        assess(&values, &[], None).unwrap();
    }

    #[test]
    fn a_dead_channel_is_told_and_a_dead_sensor_refused() {
        let mut values = noise(4.0, 1);
        values.iter_mut().step_by(2).for_each(|v| *v = 0.0);
        assert_eq!(assess(&values, &[], None).unwrap().dead(), [0]);
        assert_eq!(assess(&[0.0; 8000], &[], None), Err(Refused::Dead));
        assert!(matches!(assess(&values[..400], &[], None), Err(Refused::Short { have: 200, .. })));
    }
}
