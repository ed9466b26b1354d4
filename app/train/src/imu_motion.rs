//! The appliance's default model, `imu-motion`: what it is called, what goes in and out, and its directory.

use crate::directory::{self, WriteError, bytes, round, size};
use crate::head::Link;
use crate::net::{Answer, Tcn};
use crate::onnx::{Border, to_onnx};
use crate::training::{self, Confusion, Example, Round, Schedule, normalized, ratio};
use inferd_model::{
    Accuracy, Channels, DType, GoldenCase, GoldenWriter, ImuTask, Limit, Manifest, Motif, Normalization,
    Provenance, Task, TensorSpec,
};
use inferd_sources::motion::{
    self, CHANNEL_NAMES, CHANNEL_UNITS, CHANNELS, Conditions, Motion, MotionStream, RATE_HZ, STEPS, Sample,
};
use inferd_sources::random::Random;
use ndarray::Array1;
use std::path::Path;

/// Length of the latent vector.
pub const LATENT: usize = 64;
/// Channels after each block.
pub const WIDTHS: [usize; 5] = [CHANNELS, 32, 48, 64, 64];
/// The seed of the windows that quality is measured on. Training windows come from other generators: their seeds
/// are 64 random bits drawn for another purpose.
pub const EVALUATION_SEED: u64 = 20_000;
/// Windows per motion in the manifest's accuracy.
pub const EVALUATION_WINDOWS: u64 = 500;

/// Number of motions.
pub const MOTIONS: usize = Motion::ALL.len();
/// What the default model is trained with.
pub const SCHEDULE: Schedule =
    Schedule { epochs: 24, windows_per_epoch: 3900, batch: 32, rate: 2.5e-3, decay: 1e-2, tame: 1e-3 };

const INPUT: &str = "imu_window";
const LATENT_OUTPUT: &str = "latent_embeddings";
const SCORES_OUTPUT: &str = "motif_scores";
const SEED_OF_GOLDEN: u64 = 30_000;

/// The z-score the network is trained behind: the constants every client and compiler of this service has always used.
#[must_use]
pub fn normalization() -> Normalization {
    Normalization {
        mean: vec![0.12, -0.08, 9.78, 0.002, -0.001, 0.003, 22.4, -8.7, 43.2],
        std: vec![3.92, 3.87, 2.45, 1.24, 1.31, 0.98, 28.5, 31.2, 24.8],
    }
}

/// The network's answer to a window in raw units.
#[must_use]
pub fn answer(net: &Tcn, window: &[Sample]) -> Answer {
    net.forward(normalized(window, &normalization()).view())
}

/// Trains a network from scratch on windows made from `seed`; `after` is told about each round.
///
/// A thirteenth of the windows are none of the motions; their target is zero for every score.
#[must_use]
pub fn train(
    widths: &[usize],
    latent: usize,
    schedule: &Schedule,
    seed: u64,
    after: impl FnMut(&Round, &Tcn),
) -> Tcn {
    let mut net = Tcn::new(widths, latent, MOTIONS, Link::Sigmoid, seed);
    let normalization = normalization();
    // Kinds are dealt from a shuffled deck: every batch is nearly balanced.
    let mut deck: Vec<Option<Motion>> = Vec::new();
    let next = |random: &mut Random| {
        if deck.is_empty() {
            deck = Motion::ALL.into_iter().map(Some).chain([None]).collect();
            random.shuffle(&mut deck);
        }
        let (kind, seed) = (deck.pop().flatten(), random.bits());
        let window = normalized(&example(kind, seed, Conditions::Usual), &normalization);
        Example { window, target: target(kind) }
    };
    training::train(&mut net, schedule, seed, next, after);
    let mut random = Random::new(seed, 5000);
    let kinds = (0..100).flat_map(|_| Motion::ALL);
    training::standardize(
        &mut net,
        kinds.map(|kind| normalized(&example(Some(kind), random.bits(), Conditions::Usual), &normalization)),
    );
    net
}

/// 1 for the motif that it is, else 0; all 0 when it is none.
fn target(kind: Option<Motion>) -> Array1<f32> {
    let mut t = Array1::zeros(MOTIONS);
    if let Some(m) = kind {
        t[m.index()] = 1.0;
    }
    t
}

/// The first second of a motion, or of something that is none.
fn example(kind: Option<Motion>, seed: u64, conditions: Conditions) -> Vec<Sample> {
    match kind {
        Some(m) => MotionStream::new(m, seed, conditions),
        None => MotionStream::background(seed, conditions),
    }
    .take(STEPS)
    .collect()
}

/// How well scores name the motion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Windows of motions.
    pub motions: Confusion<MOTIONS>,
    /// Windows of no motion that were shown.
    pub background: u64,
    /// Of those, how many had no score of 0.5 or more.
    pub rejected: u64,
}

impl Quality {
    /// Shows `per_motion` new windows of every motion, and as many of none, to `scores` (raw units in, scores out).
    pub fn measure<E>(
        per_motion: u64,
        seed: u64,
        conditions: Conditions,
        mut scores: impl FnMut(&[Sample]) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let mut random = Random::new(seed, 4000);
        let mut q = Self { motions: Confusion::default(), background: per_motion, rejected: 0 };
        for _ in 0..per_motion {
            for m in Motion::ALL {
                q.motions.count(m.index(), &scores(&example(Some(m), random.bits(), conditions))?);
            }
            let s = scores(&example(None, random.bits(), conditions))?;
            q.rejected += u64::from(s.iter().all(|&s| s < 0.5));
        }
        Ok(q)
    }

    /// The share of windows of motions whose highest score is the right one.
    #[must_use]
    pub fn top1(&self) -> f64 {
        self.motions.top1()
    }

    /// The share of windows of no motion that no score claims.
    #[must_use]
    pub fn rejection(&self) -> f64 {
        ratio(self.rejected, self.background)
    }

    /// The confusion matrix as a Markdown table.
    #[must_use]
    pub fn table(&self) -> String {
        self.motions.table(Motion::ALL.map(Motion::name))
    }
}

/// Measures `net` on windows it has never seen.
#[must_use]
pub fn quality(net: &Tcn, conditions: Conditions) -> Quality {
    let scores = |w: &[Sample]| Ok::<_, std::convert::Infallible>(answer(net, w).scores.to_vec());
    let Ok(q) = Quality::measure(EVALUATION_WINDOWS, EVALUATION_SEED, conditions, scores);
    q
}

/// Writes the model directory: network, golden vectors, manifest (last, so that a manifest never names a file that is
/// not there yet).
///
/// # Errors
/// [`WriteError`] naming the file that cannot be written, or the motion the network has not learned.
pub fn write(
    net: &Tcn,
    seed: u64,
    usual: &Quality,
    hard: &Quality,
    dir: &Path,
) -> Result<Manifest, WriteError> {
    let doc = "Temporal convolutional encoder with a motif head, trained on synthetic motion (inferd-train).";
    let border = Border { input: INPUT, latent: LATENT_OUTPUT, scores: SCORES_OUTPUT, steps: STEPS };
    let onnx = to_onnx(net, &border, "imu_motion", doc);
    let (inputs, outputs) = (vec![input()], outputs());
    let golden = golden(net)?.to_bytes(&inputs, &outputs)?;
    let summary = "One second of a collar's nine-axis sensor to a latent vector and the scores of 12 motions; trained \
                  on synthetic motion";
    let what = ("imu-motion", Task::ImuEncoder, summary);
    let manifest = Manifest {
        imu: Some(ImuTask {
            latent: LATENT_OUTPUT.to_owned(),
            motif: Some(Motif::Output {
                output: SCORES_OUTPUT.to_owned(),
                labels: Motion::ALL.map(|m| m.name().to_owned()).to_vec(),
            }),
        }),
        provenance: Some(Provenance {
            source: format!(
                "Trained by inferd-train {} (imu-motion --seed {seed}) on synthetic motion; no recording of an animal \
                 or a person was used",
                env!("CARGO_PKG_VERSION")
            ),
            license: "Apache-2.0 OR MIT".to_owned(),
            notes: "The twelve motions, their parameters and the sensor model are in app/train/README.md. Accuracy is \
                    on windows of the same generator and says nothing about real animals."
                .to_owned(),
        }),
        accuracy: accuracy(usual, hard),
        inputs,
        outputs,
        ..directory::manifest(what, &onnx, &golden, 1e-4)?
    }
    .validated()?;
    directory::write(dir, &manifest, &onnx, &golden)?;
    Ok(manifest)
}

fn input() -> TensorSpec {
    let limit = |quantity: &str, channels: &[&str], max_abs| Limit {
        quantity: quantity.to_owned(),
        channels: channels.iter().map(|&c| c.to_owned()).collect(),
        max_abs,
    };
    let [ax, ay, az, gx, gy, gz, mx, my, mz] = CHANNEL_NAMES;
    TensorSpec {
        channels: Some(Channels {
            names: CHANNEL_NAMES.map(str::to_owned).to_vec(),
            units: CHANNEL_UNITS.map(str::to_owned).to_vec(),
            rate_hz: Some(RATE_HZ),
        }),
        normalization: Some(normalization()),
        limits: vec![
            limit("Accelerometer", &[ax, ay, az], 500.0),
            limit("Gyroscope", &[gx, gy, gz], 35.0),
            limit("Magnetometer", &[mx, my, mz], 2000.0),
        ],
        ..TensorSpec::plain(INPUT, DType::Fp32, &[1, size(STEPS), size(CHANNELS)])
    }
}

fn outputs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::plain(LATENT_OUTPUT, DType::Fp32, &[1, size(LATENT)]),
        TensorSpec::plain(SCORES_OUTPUT, DType::Fp32, &[1, size(MOTIONS)]),
    ]
}

/// Five motions that use every layer's range, from rest to shaking, and a silent sensor.
fn golden(net: &Tcn) -> Result<GoldenWriter, WriteError> {
    let mut writer = GoldenWriter::default();
    let mut push = |window: &[Sample]| {
        let a = answer(net, window);
        let outputs = vec![bytes(&a.latent.to_vec()), bytes(&a.scores.to_vec())];
        writer.push(GoldenCase { inputs: vec![bytes(window.as_flattened())], outputs });
    };
    for motion in [Motion::Sit, Motion::Walk, Motion::Jump, Motion::Shake, Motion::Sniff] {
        // A golden window shows the model at work: the first one it names rightly and surely.
        let mut windows =
            (SEED_OF_GOLDEN..SEED_OF_GOLDEN + 64).map(|seed| motion::window(motion, seed, Conditions::Usual));
        let sure = |w: &Vec<Sample>| answer(net, w).scores[motion.index()] > 0.9;
        push(&windows.find(sure).ok_or(WriteError::Untrained(motion.name()))?);
    }
    // What the self-test sends: a sensor that gives nothing.
    push(&[[0.0; CHANNELS]; STEPS]);
    Ok(writer)
}

fn accuracy(usual: &Quality, hard: &Quality) -> Vec<Accuracy> {
    let of = |q: &Quality, kind: &str| {
        let dataset = |what: &str| {
            format!(
                "{what} of the synthetic generator, {kind}, seeds unseen in training (evaluation seed {EVALUATION_SEED})"
            )
        };
        [
            Accuracy {
                dataset: dataset("windows of the 12 motions"),
                metric: "top-1".to_owned(),
                value: round(q.top1()),
                samples: q.motions.windows(),
            },
            Accuracy {
                dataset: dataset("windows of none of the motions"),
                metric: "no score reaches 0.5".to_owned(),
                value: round(q.rejection()),
                samples: q.background,
            },
        ]
    };
    let hard_name =
        "hard conditions (ranges 15 % wider, twice the noise and bias, looser collar), never trained on";
    [of(usual, "usual conditions"), of(hard, hard_name)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quick(seed: u64, epochs: usize) -> (Tcn, Vec<f32>) {
        let schedule = Schedule { epochs, windows_per_epoch: 104, batch: 13, ..SCHEDULE };
        let mut losses = Vec::new();
        let net = train(&[CHANNELS, 12, 16], 16, &schedule, seed, |r, _| losses.push(r.loss));
        (net, losses)
    }

    #[test]
    fn a_few_rounds_lower_the_loss_on_windows_never_shown_before() {
        let (_, losses) = quick(1, 4);
        assert!(losses[3] < 0.8 * losses[0], "{losses:?}");
    }

    #[test]
    fn the_same_seed_trains_the_same_network() {
        let first = quick(2, 1).0;
        assert_eq!(first, quick(2, 1).0);
        assert_ne!(first, quick(3, 1).0);
    }

    #[test]
    fn quality_counts_what_is_named_and_what_is_rejected() {
        let always_come = |_: &[Sample]| {
            let mut s = vec![0.1; MOTIONS];
            s[Motion::Come.index()] = 0.9;
            Ok::<_, std::convert::Infallible>(s)
        };
        let Ok(q) = Quality::measure(5, 1, Conditions::Usual, always_come);
        assert_eq!(
            (q.motions.windows(), q.motions.counts[Motion::Sit.index()][Motion::Come.index()]),
            (60, 5)
        );
        assert!((q.top1() - 1.0 / 12.0).abs() < 1e-12 && q.rejection() == 0.0);
        let silent = |_: &[Sample]| Ok::<_, std::convert::Infallible>(vec![0.2; MOTIONS]);
        let Ok(q) = Quality::measure(5, 1, Conditions::Usual, silent);
        assert!((q.rejection() - 1.0).abs() < 1e-12);
        assert!(q.table().contains("| **sit** | 100.0 |"));
    }
}
