//! Training and measuring: windows in, a network and its confusion matrix out.

use crate::motion::{CHANNELS, Conditions, Motion, MotionStream, STEPS, Sample};
use crate::net::{AdamW, Tcn};
use inferd_model::Normalization;
use inferd_sources::random::Random;
use ndarray::{Array1, Array2, Axis};

/// Number of motions.
pub const MOTIONS: usize = Motion::ALL.len();

/// How long and how fast to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Rounds; each shows `windows_per_epoch` windows that were never shown before.
    pub epochs: usize,
    /// Windows in a round.
    pub windows_per_epoch: usize,
    /// Windows per step of the optimiser.
    pub batch: usize,
    /// Learning rate at its peak; it rises over the first twentieth and falls to 0 along a half cosine.
    pub rate: f32,
    /// Weight decay.
    pub decay: f32,
    /// Weight of the latent vector's squared length in the loss.
    pub tame: f32,
}

impl Schedule {
    /// What the default model is trained with.
    pub const FULL: Self =
        Self { epochs: 24, windows_per_epoch: 3900, batch: 32, rate: 2.5e-3, decay: 1e-2, tame: 1e-3 };

    #[allow(clippy::cast_precision_loss, reason = "a ratio")]
    fn rate_at(&self, step: usize, steps: usize) -> f32 {
        let x = step as f32 / steps.max(1) as f32;
        let rise = (20.0 * x + 0.01).min(1.0);
        self.rate * rise * 0.5 * (1.0 + libm::cosf(std::f32::consts::PI * x))
    }
}

/// What a round of training came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// From 1.
    pub epoch: usize,
    /// Mean loss over the round's windows, each before it was learned from.
    pub loss: f32,
}

/// A window as the network sees it: normalised, `[time, channels]`.
#[must_use]
pub fn normalized(window: &[Sample], normalization: &Normalization) -> Array2<f32> {
    let mut x = Array2::zeros((window.len(), CHANNELS));
    let out = x.as_slice_mut().expect("a fresh matrix is dense and in row order");
    normalization.apply(window.as_flattened(), out);
    x
}

/// Trains a network from scratch on windows made from `seed`; `after` is told about each round.
///
/// A thirteenth of the windows are none of the motions; their target is zero for every score.
#[must_use]
pub fn train(
    widths: &[usize],
    latent: usize,
    schedule: &Schedule,
    normalization: &Normalization,
    seed: u64,
    mut after: impl FnMut(&Round, &Tcn),
) -> Tcn {
    let mut net = Tcn::new(widths, latent, MOTIONS, seed);
    let mut adam = AdamW::new(&net, schedule.decay);
    let mut grad = net.zeros_like();
    let mut random = Random::new(seed, 3000);
    let per_epoch = (schedule.windows_per_epoch / schedule.batch).max(1);
    let steps = per_epoch * schedule.epochs;
    // Kinds are dealt from a shuffled deck: every batch is nearly balanced.
    let mut deck: Vec<Option<Motion>> = Vec::new();
    for epoch in 0..schedule.epochs {
        let mut total = 0.0;
        for step in 0..per_epoch {
            for _ in 0..schedule.batch {
                if deck.is_empty() {
                    deck = Motion::ALL.into_iter().map(Some).chain([None]).collect();
                    random.shuffle(&mut deck);
                }
                let (kind, seed) = (deck.pop().flatten(), random.bits());
                let x = normalized(&example(kind, seed, Conditions::Usual), normalization);
                total += net.learn(x.view(), &target(kind), schedule.tame, &mut grad);
            }
            let rate = schedule.rate_at(epoch * per_epoch + step, steps);
            adam.step(&mut net, &mut grad, schedule.batch, rate);
        }
        #[allow(clippy::cast_precision_loss, reason = "a mean")]
        let loss = total / (per_epoch * schedule.batch) as f32;
        after(&Round { epoch: epoch + 1, loss }, &net);
    }
    standardize(&mut net, normalization, seed);
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

/// Gives every latent dimension mean 0 and deviation 1 over new windows of all kinds, so that its size means something
/// to a reader: near 0 is usual, 5 is not.
fn standardize(net: &mut Tcn, normalization: &Normalization, seed: u64) {
    const PER_KIND: usize = 100;
    let mut random = Random::new(seed, 5000);
    let mut latents = Array2::zeros((0, net.latent.bias.len()));
    for _ in 0..PER_KIND {
        for kind in Motion::ALL {
            let x = normalized(&example(Some(kind), random.bits(), Conditions::Usual), normalization);
            let latent = net.forward(x.view()).latent;
            latents.push_row(latent.view()).expect("every latent has the same length");
        }
    }
    let mean = latents.mean_axis(Axis(0)).expect("there are windows");
    // A dimension that never moves keeps its scale.
    let deviation = latents.std_axis(Axis(0), 0.0).mapv(|s| if s > 1e-6 { s } else { 1.0 });
    net.standardize_latent(&mean, &deviation);
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
    /// `confusion[truth][highest score]`, in windows.
    pub confusion: [[u64; MOTIONS]; MOTIONS],
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
        let mut q = Self { confusion: [[0; MOTIONS]; MOTIONS], background: per_motion, rejected: 0 };
        for _ in 0..per_motion {
            for m in Motion::ALL {
                let s = scores(&example(Some(m), random.bits(), conditions))?;
                let best = (0..MOTIONS).fold(0, |b, i| if s[i] > s[b] { i } else { b });
                q.confusion[m.index()][best] += 1;
            }
            let s = scores(&example(None, random.bits(), conditions))?;
            q.rejected += u64::from(s.iter().all(|&s| s < 0.5));
        }
        Ok(q)
    }

    /// Windows of motions.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.confusion.as_flattened().iter().sum()
    }

    /// The share of windows whose highest score is the right one.
    #[must_use]
    pub fn top1(&self) -> f64 {
        ratio((0..MOTIONS).map(|i| self.confusion[i][i]).sum(), self.windows())
    }

    /// The share of windows of no motion that no score claims.
    #[must_use]
    pub fn rejection(&self) -> f64 {
        ratio(self.rejected, self.background)
    }

    /// The confusion matrix as a Markdown table; a row is a true motion, in percent of its windows.
    #[must_use]
    pub fn table(&self) -> String {
        let names = Motion::ALL.map(Motion::name);
        let mut out =
            format!("| true \\ named | {} |\n|---|{}\n", names.join(" | "), "---:|".repeat(MOTIONS));
        for (name, row) in names.iter().zip(&self.confusion) {
            let all = row.iter().sum();
            let cells =
                row.map(|n| if n == 0 { String::new() } else { format!("{:.1}", 100.0 * ratio(n, all)) });
            out += &format!("| **{name}** | {} |\n", cells.join(" | "));
        }
        out
    }
}

#[allow(clippy::cast_precision_loss, reason = "a ratio")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imu_motion::normalization;

    fn quick(seed: u64, epochs: usize) -> (Tcn, Vec<f32>) {
        let schedule = Schedule { epochs, windows_per_epoch: 104, batch: 13, ..Schedule::FULL };
        let mut losses = Vec::new();
        let net =
            train(&[CHANNELS, 12, 16], 16, &schedule, &normalization(), seed, |r, _| losses.push(r.loss));
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
        assert_eq!((q.windows(), q.confusion[Motion::Sit.index()][Motion::Come.index()]), (60, 5));
        assert!((q.top1() - 1.0 / 12.0).abs() < 1e-12 && q.rejection() == 0.0);
        let silent = |_: &[Sample]| Ok::<_, std::convert::Infallible>(vec![0.2; MOTIONS]);
        let Ok(q) = Quality::measure(5, 1, Conditions::Usual, silent);
        assert!((q.rejection() - 1.0).abs() < 1e-12);
        assert!(q.table().contains("| **sit** | 100.0 |"));
    }
}
