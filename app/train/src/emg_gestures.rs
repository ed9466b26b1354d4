//! The appliance's EMG model, `emg-gestures`: what it learns from, how well it does, and its directory.
//!
//! It learns from sessions of synthetic people ([`inferd_sources::synthetic`]): a sleeve is put on, and the six gestures are
//! made with rest between them, under noise, hum and drift that differ from session to session. Windows are cut anywhere,
//! also where one gesture becomes another; the target of such a window is the share that each gesture has in it.

use crate::directory::{self, WriteError, bytes, round, size};
use crate::head::Link;
use crate::net::{Answer, Tcn};
use crate::onnx::{Border, to_onnx};
use crate::training::{self, Confusion, Example, Round, Schedule, normalized};
use inferd_model::{
    Accuracy, Channels, DType, EmgFilter, EmgScaling, EmgTask, GoldenCase, GoldenWriter, Limit, Manifest,
    Normalization, Provenance, Task, TensorSpec,
};
use inferd_sources::prepare::{Filter, Preparation, Scaling};
use inferd_sources::random::Random;
use inferd_sources::synthetic::{CHANNELS, Conditions, EmgStream, Gesture, RATE_HZ, Script};
use ndarray::Array1;
use std::path::Path;

/// Samples in a window: 100 ms.
pub const STEPS: usize = 200;
/// Number of gestures.
pub const GESTURES: usize = Gesture::ALL.len();
/// Length of the features that a head is fitted on for a person.
pub const FEATURES: usize = 32;
/// Channels after each block.
pub const WIDTHS: [usize; 4] = [CHANNELS, 32, 32, 48];
/// What the model is trained with.
pub const SCHEDULE: Schedule =
    Schedule { epochs: 20, windows_per_epoch: 3200, batch: 32, rate: 2.5e-3, decay: 1e-2, tame: 1e-3 };
/// What samples go through before they are scaled: what of a muscle reaches the skin, without an electrode's drift.
pub const FILTERS: [Filter; 1] = [Filter::BandPass { low_hz: 20.0, high_hz: 450.0, order: 4 }];
/// The seed of the people that quality is measured on. Those of training are 64 random bits drawn for another purpose.
pub const EVALUATION_SEED: u64 = 20_000;
/// People per gesture, and windows of each, in a measurement of quality.
pub const EVALUATION_PEOPLE: u64 = 200;

const INPUT: &str = "emg";
const FEATURES_OUTPUT: &str = "gesture_features";
const LOGITS_OUTPUT: &str = "logits";
const SEED_OF_GOLDEN: u64 = 30_000;
/// More than any electrode on skin gives: what an amplifier of a usual range says when it is saturated.
const LIMIT_UV: f64 = 100_000.0;

/// A window, sample by sample.
pub type Window = Vec<[f32; CHANNELS]>;

/// Windows of one session of training.
const PER_SESSION: usize = 24;
/// Sessions whose windows are mixed.
const SESSIONS: usize = 16;
/// A session: each gesture once, with rest before it.
const SESSION: Script = Script::Cycle { rest: 260, hold: 740, ramp: 200 };
const SESSION_SAMPLES: usize = 6000;
/// Samples that a live filter has seen before the first window.
const SETTLED: usize = 300;

/// How a window was filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Out of a stream whose filter had settled.
    Live,
    /// By itself, as by HTTP: the filter begins with it.
    Whole,
}

/// The deviation of each electrode's filtered samples over sessions of training, to a tenth of a microvolt.
#[must_use]
pub fn normalization(seed: u64) -> Normalization {
    let mut random = Random::new(seed, 6000);
    let (mut squares, mut count) = ([0.0_f64; CHANNELS], 0.0_f64);
    for _ in 0..32 {
        let mut filter = preparation().stream();
        for sample in stream(SESSION, &mut random).take(SESSION_SAMPLES) {
            let mut values = sample.values;
            filter.filter(&mut values);
            for (sum, v) in squares.iter_mut().zip(values) {
                *sum += f64::from(v) * f64::from(v);
            }
            count += 1.0;
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "a scale is an f32")]
    let std = squares.map(|s| ((10.0 * (s / count).sqrt()).round() / 10.0) as f32);
    // A band-pass leaves no mean.
    Normalization { mean: vec![0.0; CHANNELS], std: std.to_vec() }
}

/// How strong the filtered signal of each electrode is for each gesture, typical of the people of training: the geometric mean over 24
/// of them, to a tenth of a microvolt.
#[must_use]
pub fn patterns(seed: u64) -> Vec<Vec<f32>> {
    const PEOPLE: u32 = 24;
    const WINDOWS: usize = 3;
    let mut random = Random::new(seed, 7000);
    let mut sums = [[0.0_f64; CHANNELS]; GESTURES];
    for _ in 0..PEOPLE {
        let person = random.bits();
        for (gesture, sums) in Gesture::ALL.into_iter().zip(&mut sums) {
            let mut stream = EmgStream::new(Script::Hold(gesture), person, Conditions::USUAL);
            let window: Vec<Window> = (0..WINDOWS).map(|_| held(&mut stream, Came::Live)).collect();
            for (channel, sum) in sums.iter_mut().enumerate() {
                let samples = window.iter().flatten().map(|s| f64::from(s[channel]).powi(2));
                #[allow(clippy::cast_precision_loss, reason = "600 is exact")]
                let mean = samples.sum::<f64>() / (WINDOWS * STEPS) as f64;
                *sum += libm::log(mean.max(1e-12)) / 2.0;
            }
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "a deviation is an f32")]
    let typical = |sum: f64| (((10.0 * libm::exp(sum / f64::from(PEOPLE))).round() / 10.0).max(0.1)) as f32;
    sums.iter().map(|row| row.iter().map(|sum| typical(*sum)).collect()).collect()
}

fn preparation() -> Preparation {
    Preparation::new(&FILTERS, Scaling::None, CHANNELS, RATE_HZ).expect("a filter that every test makes")
}

/// A person under conditions drawn for training: from a quiet laboratory to a little beyond the hard ones.
fn stream(script: Script, random: &mut Random) -> EmgStream {
    let mains = if random.chance(0.5) { 50.0 } else { 60.0 };
    let conditions = Conditions {
        noise_uv: random.range(2.0, 10.0),
        hum: random.chance(0.7).then(|| (mains, random.range(0.0, 60.0))),
        drift_uv: random.range(0.0, 250.0),
    };
    EmgStream::new(script, random.bits(), conditions)
}

/// Trains a network from scratch on sessions made from `seed`; `after` is told about each round.
#[must_use]
pub fn train(
    widths: &[usize],
    features: usize,
    schedule: &Schedule,
    seed: u64,
    after: impl FnMut(&Round, &Tcn),
) -> Tcn {
    let mut net = Tcn::new(widths, features, GESTURES, Link::Softmax, seed);
    let normalization = normalization(seed);
    let mut mixed: Vec<(Window, [f32; GESTURES])> = Vec::new();
    let next = |random: &mut Random| {
        if mixed.is_empty() {
            (0..SESSIONS).for_each(|_| session(random, &mut mixed));
            random.shuffle(&mut mixed);
        }
        let (window, shares) = mixed.pop().expect("a session has windows");
        Example { window: normalized(&window, &normalization), target: Array1::from(shares.to_vec()) }
    };
    training::train(&mut net, schedule, seed, next, after);
    let mut random = Random::new(seed, 5000);
    let windows = (0..50).flat_map(|_| Gesture::ALL).map(|gesture| {
        let window = held(&mut stream(Script::Hold(gesture), &mut random), Came::Live);
        normalized(&window, &normalization)
    });
    training::standardize(&mut net, windows.collect::<Vec<_>>());
    net
}

/// Windows of one person's session with the share that each gesture has in them, half of them filtered live.
fn session(random: &mut Random, to: &mut Vec<(Window, [f32; GESTURES])>) {
    let samples: Vec<_> = stream(SESSION, random).take(SESSION_SAMPLES).collect();
    let raw: Window = samples.iter().map(|s| s.values).collect();
    let mut live = raw.clone();
    let mut filter = preparation().stream();
    live.iter_mut().for_each(|s| filter.filter(s));
    for i in 0..PER_SESSION {
        let start = SETTLED + random.below(SESSION_SAMPLES - SETTLED - STEPS);
        let at = start..start + STEPS;
        let window = if i % 2 == 0 {
            live[at.clone()].to_vec()
        } else {
            let mut window = raw[at.clone()].to_vec();
            preparation().whole(window.as_flattened_mut());
            window
        };
        let mut shares = [0.0; GESTURES];
        #[allow(clippy::cast_precision_loss, reason = "200 is exact")]
        let share = 1.0 / STEPS as f32;
        samples[at].iter().for_each(|s| shares[s.gesture.index()] += share);
        to.push((window, shares));
    }
}

/// A filtered window of a stream, in uV.
fn held(stream: &mut EmgStream, came: Came) -> Window {
    let skipped = stream.by_ref().take(SETTLED);
    let mut filter = preparation().stream();
    match came {
        Came::Live => skipped.for_each(|s| filter.filter(&mut s.values.clone())),
        Came::Whole => skipped.for_each(drop),
    }
    let mut window: Window = stream.take(STEPS).map(|s| s.values).collect();
    window.iter_mut().for_each(|s| filter.filter(s));
    window
}

/// The network's answer to a filtered window in uV.
#[must_use]
pub fn answer(net: &Tcn, normalization: &Normalization, window: &[[f32; CHANNELS]]) -> Answer {
    net.forward(normalized(window, normalization).view())
}

/// Shows one held window of every gesture of `people` to `scores` (filtered, in uV).
pub fn measure<E>(
    people: u64,
    seed: u64,
    conditions: Conditions,
    came: Came,
    mut scores: impl FnMut(&[[f32; CHANNELS]]) -> Result<Vec<f32>, E>,
) -> Result<Confusion<GESTURES>, E> {
    let mut random = Random::new(seed, 4000);
    let mut confusion = Confusion::default();
    for _ in 0..people {
        let person = random.bits();
        for gesture in Gesture::ALL {
            let window = held(&mut EmgStream::new(Script::Hold(gesture), person, conditions), came);
            confusion.count(gesture.index(), &scores(&window)?);
        }
    }
    Ok(confusion)
}

/// Writes the model directory; see [`crate::imu_motion::write`].
///
/// # Errors
/// [`WriteError`] naming the file that cannot be written, or the gesture the network has not learned.
pub fn write(net: &Tcn, seed: u64, quality: &[Measured], dir: &Path) -> Result<Manifest, WriteError> {
    let doc = "Temporal convolutional classifier of muscle signals, trained on synthetic EMG (inferd-train).";
    let border = Border { input: INPUT, latent: FEATURES_OUTPUT, scores: LOGITS_OUTPUT, steps: STEPS };
    let onnx = to_onnx(net, &border, "emg_gestures", doc);
    let normalization = normalization(seed);
    let input = TensorSpec {
        channels: Some(Channels {
            names: (0..CHANNELS).map(|e| format!("e{e}")).collect(),
            units: vec!["uV".to_owned(); CHANNELS],
            rate_hz: Some(RATE_HZ),
        }),
        normalization: Some(normalization.clone()),
        limits: vec![Limit {
            quantity: "EMG".to_owned(),
            channels: (0..CHANNELS).map(|e| format!("e{e}")).collect(),
            max_abs: LIMIT_UV,
        }],
        ..TensorSpec::plain(INPUT, DType::Fp32, &[1, size(STEPS), size(CHANNELS)])
    };
    let output = |name, n| TensorSpec::plain(name, DType::Fp32, &[1, size(n)]);
    let (inputs, outputs) =
        (vec![input], vec![output(FEATURES_OUTPUT, net.latent.bias.len()), output(LOGITS_OUTPUT, GESTURES)]);
    let golden = golden(net, &normalization)?.to_bytes(&inputs, &outputs)?;
    let summary = "A tenth of a second of sixteen electrodes around a forearm to seven gestures; trained on synthetic EMG";
    let what = ("emg-gestures", Task::EmgClassifier, summary);
    let manifest = Manifest {
        emg: Some(EmgTask {
            logits: LOGITS_OUTPUT.to_owned(),
            labels: Gesture::ALL.map(|g| g.name().to_owned()).to_vec(),
            family: "tcn".to_owned(),
            scaling: EmgScaling::Fixed,
            filters: FILTERS.map(named).to_vec(),
            spikes: None,
            features: Some(FEATURES_OUTPUT.to_owned()),
            patterns: patterns(seed),
        }),
        provenance: Some(Provenance {
            source: format!(
                "Trained by inferd-train {} (emg-gestures --seed {seed}) on synthetic EMG; no recording of a person was \
                 used",
                env!("CARGO_PKG_VERSION")
            ),
            license: "Apache-2.0 OR MIT".to_owned(),
            notes: "The gestures, muscles and electrodes are in app/sources/src/synthetic.rs, the training in \
                    app/train/README.md. Accuracy is on people of the same generator and says nothing about real arms."
                .to_owned(),
        }),
        accuracy: quality.iter().map(Measured::accuracy).collect(),
        inputs,
        outputs,
        ..directory::manifest(what, &onnx, &golden, 1e-3)?
    }
    .validated()?;
    directory::write(dir, &manifest, &onnx, &golden)?;
    Ok(manifest)
}

/// A measurement of quality, and under which conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// `usual`, or `hard`.
    pub conditions: &'static str,
    /// How windows came.
    pub came: Came,
    /// What was named as what.
    pub confusion: Confusion<GESTURES>,
}

impl Measured {
    /// Measures under the generator's usual and hard conditions, live and as whole windows.
    pub fn all(net: &Tcn, normalization: &Normalization) -> Vec<Self> {
        let of = |conditions, drawn, came| {
            let scores = |w: &[[f32; CHANNELS]]| {
                Ok::<_, std::convert::Infallible>(answer(net, normalization, w).scores.to_vec())
            };
            let Ok(confusion) = measure(EVALUATION_PEOPLE, EVALUATION_SEED, drawn, came, scores);
            Self { conditions, came, confusion }
        };
        [("usual", Conditions::USUAL), ("hard", Conditions::HARD)]
            .into_iter()
            .flat_map(|(name, drawn)| [Came::Live, Came::Whole].map(|came| of(name, drawn, came)))
            .collect()
    }

    fn accuracy(&self) -> Accuracy {
        let came = match self.came {
            Came::Live => "out of a filtered stream",
            Came::Whole => "each filtered by itself",
        };
        Accuracy {
            dataset: format!(
                "held gestures of {EVALUATION_PEOPLE} synthetic people unseen in training (evaluation seed \
                 {EVALUATION_SEED}), {} conditions, windows {came}",
                self.conditions
            ),
            metric: "top-1".to_owned(),
            value: round(self.confusion.top1()),
            samples: self.confusion.windows(),
        }
    }
}

/// A filter as a manifest names it.
fn named(filter: Filter) -> EmgFilter {
    match filter {
        Filter::BandPass { low_hz, high_hz, order } => EmgFilter::BandPass { low_hz, high_hz, order },
        Filter::HighPass { hz, order } => EmgFilter::HighPass { hz, order },
        Filter::LowPass { hz, order } => EmgFilter::LowPass { hz, order },
        Filter::Notch { hz, q } => EmgFilter::Notch { hz, q },
    }
}

/// A filtered window of every gesture, each of another person.
fn golden(net: &Tcn, normalization: &Normalization) -> Result<GoldenWriter, WriteError> {
    let mut writer = GoldenWriter::default();
    for gesture in Gesture::ALL {
        // A golden window shows the model at work: the first one it names rightly and surely.
        let mut windows = (SEED_OF_GOLDEN..SEED_OF_GOLDEN + 64).map(|seed| {
            let mut person = EmgStream::new(Script::Hold(gesture), seed, Conditions::USUAL);
            held(&mut person, Came::Live)
        });
        let sure = |w: &Window| answer(net, normalization, w).scores[gesture.index()] > 0.9;
        let window = windows.find(sure).ok_or(WriteError::Untrained(gesture.name()))?;
        let a = answer(net, normalization, &window);
        let outputs = vec![bytes(&a.latent.to_vec()), bytes(&a.logits.to_vec())];
        writer.push(GoldenCase { inputs: vec![bytes(window.as_flattened())], outputs });
    }
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_rounds_lower_the_loss_on_windows_never_shown_before() {
        let schedule = Schedule { epochs: 4, windows_per_epoch: 192, batch: 6, ..SCHEDULE };
        let mut losses = Vec::new();
        let _ = train(&[CHANNELS, 8, 12], 8, &schedule, 1, |r, _| losses.push(r.loss));
        assert!(losses[3] < 0.8 * losses[0], "{losses:?}");
    }

    #[test]
    fn the_shares_of_a_session_are_those_of_its_labels() {
        let (mut random, mut mixed) = (Random::new(3, 0), Vec::new());
        session(&mut random, &mut mixed);
        assert_eq!(mixed.len(), PER_SESSION);
        for (window, shares) in &mixed {
            assert_eq!(window.len(), STEPS);
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        // Some lie across a change, some within a gesture.
        let whole = mixed.iter().filter(|(_, shares)| shares.iter().any(|s| *s > 0.999)).count();
        assert!((1..PER_SESSION).contains(&whole), "{whole}");
    }

    #[test]
    fn a_live_filter_takes_an_electrodes_offset_away_and_the_scale_is_that_of_what_is_left() {
        let drifting = Conditions { noise_uv: 4.0, hum: None, drift_uv: 250.0 };
        let stream = || EmgStream::new(Script::Hold(Gesture::Rest), 1, drifting);
        let most = |w: &Window| w.as_flattened().iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let raw: Window = stream().take(STEPS).map(|s| s.values).collect();
        let (raw, left) = (most(&raw), most(&held(&mut stream(), Came::Live)));
        assert!(raw > 100.0 && left < 60.0, "{raw} uV at rest, {left} filtered");
        let n = normalization(1);
        assert!(n.mean.iter().all(|m| *m == 0.0) && n.std.iter().all(|s| (10.0..300.0).contains(s)), "{n:?}");
    }
}
