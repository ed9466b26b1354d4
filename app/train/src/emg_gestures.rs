//! The appliance's EMG model, `emg-gestures`: what it learns from and how well it does.
//!
//! It learns from sessions of synthetic people ([`inferd_sources::synthetic`]): a sleeve is put on, and the six gestures are
//! made with rest between them, under noise, hum and drift that differ from session to session. Windows are cut anywhere,
//! also where one gesture becomes another; the target of such a window is the share that each gesture has in it.

use crate::head::Link;
use crate::net::{Answer, Tcn};
use crate::training::{self, Confusion, Example, Round, Schedule, normalized};
use inferd_model::Normalization;
use inferd_sources::prepare::{Filter, Preparation, Scaling};
use inferd_sources::random::Random;
use inferd_sources::synthetic::{CHANNELS, Conditions, EmgStream, Gesture, RATE_HZ, Script};
use ndarray::Array1;

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
