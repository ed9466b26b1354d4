//! Training and measuring: windows in, a network and its confusion matrix out. What a window is and which labels there are
//! is the model's: [`crate::imu_motion`], [`crate::emg_gestures`].

use crate::net::{AdamW, Tcn};
use inferd_model::Normalization;
use inferd_sources::random::Random;
use ndarray::{Array1, Array2, Axis};

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

/// A window as the network sees it, and what it should answer.
pub struct Example {
    /// Normalised, `[time, channels]`.
    pub window: Array2<f32>,
    /// A score per label.
    pub target: Array1<f32>,
}

/// A window as the network sees it: normalised, `[time, channels]`.
#[must_use]
pub fn normalized<const C: usize>(window: &[[f32; C]], normalization: &Normalization) -> Array2<f32> {
    let mut x = Array2::zeros((window.len(), C));
    let out = x.as_slice_mut().expect("a fresh matrix is dense and in row order");
    normalization.apply(window.as_flattened(), out);
    x
}

/// Trains `net` on what `next` draws from the numbers of `seed`; `after` is told about each round.
pub fn train(
    net: &mut Tcn,
    schedule: &Schedule,
    seed: u64,
    mut next: impl FnMut(&mut Random) -> Example,
    mut after: impl FnMut(&Round, &Tcn),
) {
    let mut adam = AdamW::new(net, schedule.decay);
    let mut grad = net.zeros_like();
    let mut random = Random::new(seed, 3000);
    let per_epoch = (schedule.windows_per_epoch / schedule.batch).max(1);
    let steps = per_epoch * schedule.epochs;
    for epoch in 0..schedule.epochs {
        let mut total = 0.0;
        for step in 0..per_epoch {
            for _ in 0..schedule.batch {
                let Example { window, target } = next(&mut random);
                total += net.learn(window.view(), &target, schedule.tame, &mut grad);
            }
            let rate = schedule.rate_at(epoch * per_epoch + step, steps);
            adam.step(net, &mut grad, schedule.batch, rate);
        }
        #[allow(clippy::cast_precision_loss, reason = "a mean")]
        let loss = total / (per_epoch * schedule.batch) as f32;
        after(&Round { epoch: epoch + 1, loss }, net);
    }
}

/// Gives every latent dimension mean 0 and deviation 1 over `windows`, so that its size means something to a reader: near 0
/// is usual, 5 is not.
pub fn standardize(net: &mut Tcn, windows: impl IntoIterator<Item = Array2<f32>>) {
    let mut latents = Array2::zeros((0, net.latent.bias.len()));
    for x in windows {
        let latent = net.forward(x.view()).latent;
        latents.push_row(latent.view()).expect("every latent has the same length");
    }
    let mean = latents.mean_axis(Axis(0)).expect("there are windows");
    // A dimension that never moves keeps its scale.
    let deviation = latents.std_axis(Axis(0), 0.0).mapv(|s| if s > 1e-6 { s } else { 1.0 });
    net.standardize_latent(&mean, &deviation);
}

/// How often each label was taken for each: `[truth][highest score]`, in windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion<const N: usize> {
    /// `[truth][highest score]`
    pub counts: [[u64; N]; N],
}

impl<const N: usize> Default for Confusion<N> {
    fn default() -> Self {
        Self { counts: [[0; N]; N] }
    }
}

impl<const N: usize> Confusion<N> {
    /// Counts a window of the label `truth`; the first of equal scores counts.
    pub fn count(&mut self, truth: usize, scores: &[f32]) {
        let best = (0..N).fold(0, |b, i| if scores[i] > scores[b] { i } else { b });
        self.counts[truth][best] += 1;
    }

    /// All windows.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.counts.as_flattened().iter().sum()
    }

    /// The share of windows whose highest score is the right one.
    #[must_use]
    pub fn top1(&self) -> f64 {
        ratio((0..N).map(|i| self.counts[i][i]).sum(), self.windows())
    }

    /// A Markdown table; a row is a true label, in percent of its windows.
    #[must_use]
    pub fn table(&self, names: [&str; N]) -> String {
        let mut out = format!("| true \\ named | {} |\n|---|{}\n", names.join(" | "), "---:|".repeat(N));
        for (name, row) in names.iter().zip(&self.counts) {
            let all = row.iter().sum();
            let cells =
                row.map(|n| if n == 0 { String::new() } else { format!("{:.1}", 100.0 * ratio(n, all)) });
            out += &format!("| **{name}** | {} |\n", cells.join(" | "));
        }
        out
    }
}

/// `part / whole`; nothing of nothing is 0.
#[allow(clippy::cast_precision_loss, reason = "a ratio")]
pub(crate) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
