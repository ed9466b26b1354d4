//! Linear heads on latent vectors: what a device fits when it is calibrated on its own animal or person.
//!
//! The encoder stays as it is; a head of `K x D` weights is fitted to a few labelled latents. The loss (cross-entropy
//! plus a ridge) is convex, so there is one answer: the same examples give the same head, from any start, in well
//! under a second for some hundred windows on one core.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use safetensors::tensor::{Dtype, TensorView};

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Each score by itself in [0, 1]; all may be low. What [`inferd_model::Motif::Linear`] serves.
    Sigmoid,
    /// Scores sum to 1: exactly one of the labels is true.
    Softmax,
}

/// How a head is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FitOptions {
    /// How logits become scores.
    pub link: Link,
    /// Weight of the squared weights (of standardised latents), above 0: the larger, the fewer examples are trusted.
    pub ridge: f64,
    /// Ends when no component of the gradient is larger.
    pub tolerance: f64,
    /// Gives up after this many steps.
    pub max_steps: usize,
}

impl FitOptions {
    /// Fits for a few dozen windows per label.
    #[must_use]
    pub const fn new(link: Link) -> Self {
        Self { link, ridge: 1e-3, tolerance: 1e-5, max_steps: 20_000 }
    }
}

/// A linear head.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHead {
    /// `[labels, latent]`
    pub weight: Array2<f32>,
    /// `[labels]`
    pub bias: Array1<f32>,
    /// How logits become scores.
    pub link: Link,
}

/// Why a head cannot be fitted or written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum HeadError {
    #[error(
        "a head needs examples: got {latents} latents and {targets} targets, of the same number and at least 1"
    )]
    Examples { latents: usize, targets: usize },
    #[error("a latent vector and a target have at least one element each")]
    Width,
    #[error("example {0}: a latent is not a finite number")]
    NotFinite(usize),
    #[error("example {0}: targets are in [0, 1], and with softmax they sum to 1")]
    Target(usize),
    #[error("label {0} has no example that is it; record some or leave the label out")]
    NoExample(usize),
    #[error("{key} is {value}; it must be finite and above 0")]
    Option { key: &'static str, value: f64 },
    #[error("the fit did not settle in {0} steps; use a larger ridge or more examples")]
    NotSettled(usize),
    #[error("head weights cannot be written: {0}")]
    Format(String),
}

impl LinearHead {
    /// Fits a head to `latents` `[examples, latent]` and `targets` `[examples, labels]` in [0, 1]. With
    /// [`Link::Sigmoid`] an example may be several labels, or none (all zeros).
    ///
    /// # Errors
    /// [`HeadError`] when the examples cannot teach every label, or the fit does not settle.
    pub fn fit(
        latents: ArrayView2<'_, f32>,
        targets: ArrayView2<'_, f32>,
        options: &FitOptions,
    ) -> Result<Self, HeadError> {
        check(latents, targets, options)?;
        // Standardised latents make one step size right for every dimension.
        let z = latents.mapv(f64::from);
        let mean = z.mean_axis(Axis(0)).ok_or(HeadError::Width)?;
        let scale = z.std_axis(Axis(0), 0.0).mapv(|s| if s > 1e-9 { 1.0 / s } else { 0.0 });
        let x = (z - &mean) * &scale;
        let (weight, bias) = descend(&x, &targets.mapv(f64::from), options)?;
        let weight = weight * &scale;
        let bias = bias - weight.dot(&mean);
        #[allow(clippy::cast_possible_truncation, reason = "weights are stored as f32")]
        let narrow = |v: f64| v as f32;
        Ok(Self { weight: weight.mapv(narrow), bias: bias.mapv(narrow), link: options.link })
    }

    /// The scores of one latent vector, each in [0, 1].
    #[must_use]
    pub fn scores(&self, latent: ArrayView1<'_, f32>) -> Array1<f32> {
        let mut logits = (self.weight.dot(&latent) + &self.bias).mapv(f64::from);
        self.link.apply(logits.view_mut());
        #[allow(clippy::cast_possible_truncation, reason = "a score is an f32")]
        logits.mapv(|v| v as f32)
    }

    /// The file that [`inferd_model::Motif::Linear`] names: safetensors with `weight` FP32 `[K, D]` and `bias` FP32 `[K]`.
    ///
    /// # Errors
    /// [`HeadError::Format`] for a head whose parts do not fit each other.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, HeadError> {
        let format = |e: safetensors::SafeTensorError| HeadError::Format(e.to_string());
        let bytes = |v: &mut dyn Iterator<Item = &f32>| v.flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (weight, bias) = (bytes(&mut self.weight.iter()), bytes(&mut self.bias.iter()));
        let tensors = [
            ("bias", TensorView::new(Dtype::F32, self.bias.shape().to_vec(), &bias).map_err(format)?),
            ("weight", TensorView::new(Dtype::F32, self.weight.shape().to_vec(), &weight).map_err(format)?),
        ];
        safetensors::serialize(tensors, None).map_err(format)
    }
}

impl Link {
    /// Logits to scores, in place.
    fn apply(self, mut logits: ndarray::ArrayViewMut1<'_, f64>) {
        match self {
            Self::Sigmoid => logits.mapv_inplace(|v| 1.0 / (1.0 + libm::exp(-v))),
            Self::Softmax => {
                let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                logits.mapv_inplace(|v| libm::exp(v - top));
                let sum = logits.sum();
                logits /= sum;
            }
        }
    }

    /// The scores of one window's logits, in the precision that networks are trained in.
    pub(crate) fn scores(self, logits: &Array1<f32>) -> Array1<f32> {
        match self {
            Self::Sigmoid => logits.mapv(|v| 1.0 / (1.0 + libm::expf(-v))),
            Self::Softmax => {
                let all = log_sum_exp(logits);
                logits.mapv(|v| libm::expf(v - all))
            }
        }
    }

    /// Cross-entropy of one window's logits against its target, in a form that never takes the logarithm of 0.
    pub(crate) fn loss(self, logits: &Array1<f32>, target: &Array1<f32>) -> f32 {
        match self {
            Self::Sigmoid => {
                let each = |l: f32, y: f32| l.max(0.0) - l * y + libm::log1pf(libm::expf(-l.abs()));
                logits.iter().zip(target).map(|(&l, &y)| each(l, y)).sum()
            }
            Self::Softmax => target.sum() * log_sum_exp(logits) - logits.dot(target),
        }
    }

    /// A bound on how fast the loss's slope changes with a logit (Boehning 1992).
    const fn curvature(self) -> f64 {
        match self {
            Self::Sigmoid => 0.25,
            Self::Softmax => 0.5,
        }
    }
}

/// The logarithm of the sum of exponentials, which does not overflow.
fn log_sum_exp(logits: &Array1<f32>) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    top + libm::logf(logits.iter().map(|v| libm::expf(v - top)).sum())
}

fn check(x: ArrayView2<'_, f32>, y: ArrayView2<'_, f32>, o: &FitOptions) -> Result<(), HeadError> {
    for (key, value) in [("ridge", o.ridge), ("tolerance", o.tolerance)] {
        if !(value.is_finite() && value > 0.0) {
            return Err(HeadError::Option { key, value });
        }
    }
    if x.nrows() != y.nrows() || x.nrows() == 0 {
        return Err(HeadError::Examples { latents: x.nrows(), targets: y.nrows() });
    }
    if x.ncols() == 0 || y.ncols() == 0 {
        return Err(HeadError::Width);
    }
    for (i, (latent, target)) in x.outer_iter().zip(y.outer_iter()).enumerate() {
        if !latent.iter().all(|v| v.is_finite()) {
            return Err(HeadError::NotFinite(i));
        }
        let whole = o.link == Link::Sigmoid || (target.sum() - 1.0).abs() < 1e-4;
        if !whole || !target.iter().all(|t| (0.0..=1.0).contains(t)) {
            return Err(HeadError::Target(i));
        }
    }
    match y.axis_iter(Axis(1)).position(|label| !label.iter().any(|&t| t > 0.5)) {
        Some(k) => Err(HeadError::NoExample(k)),
        None => Ok(()),
    }
}

/// Accelerated gradient descent (Nesterov 1983) that starts its momentum anew whenever it points uphill (O'Donoghue and
/// Candes 2015). The step is the inverse of a bound on the curvature, so it never overshoots.
fn descend(
    x: &Array2<f64>,
    y: &Array2<f64>,
    o: &FitOptions,
) -> Result<(Array2<f64>, Array1<f64>), HeadError> {
    #[allow(clippy::cast_precision_loss, reason = "a count of examples")]
    let share = 1.0 / x.nrows() as f64;
    // The largest eigenvalue of the examples' second moments, constant included, is at most their trace.
    let trace = x.iter().map(|v| v * v).sum::<f64>() * share + 1.0;
    let step = 1.0 / (o.link.curvature() * trace + o.ridge);
    let (mut w, mut b) = (Array2::<f64>::zeros((y.ncols(), x.ncols())), Array1::<f64>::zeros(y.ncols()));
    let (mut ahead_w, mut ahead_b, mut momentum) = (w.clone(), b.clone(), 1.0_f64);
    for _ in 0..o.max_steps {
        let mut error = x.dot(&ahead_w.t()) + &ahead_b;
        for row in error.outer_iter_mut() {
            o.link.apply(row);
        }
        error -= y;
        let dw = error.t().dot(x) * share + &ahead_w * o.ridge;
        let db = error.sum_axis(Axis(0)) * share;
        if dw.iter().chain(&db).all(|d| d.abs() <= o.tolerance) {
            return Ok((ahead_w, ahead_b));
        }
        let (next_w, next_b) = (&ahead_w - &(&dw * step), &ahead_b - &(&db * step));
        let (move_w, move_b) = (&next_w - &w, &next_b - &b);
        let uphill = (&dw * &move_w).sum() + db.dot(&move_b) > 0.0;
        let next = if uphill { 1.0 } else { 0.5 * (1.0 + (1.0 + 4.0 * momentum * momentum).sqrt()) };
        let push = if uphill { 0.0 } else { (momentum - 1.0) / next };
        ahead_w = &next_w + &(move_w * push);
        ahead_b = &next_b + &(move_b * push);
        (w, b, momentum) = (next_w, next_b, next);
    }
    Err(HeadError::NotSettled(o.max_steps))
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_sources::random::Random;

    /// `per` examples around each of three corners, with the label's target; `noise` is the spread.
    fn corners(per: usize, noise: f64, seed: u64) -> (Array2<f32>, Array2<f32>) {
        let mut r = Random::new(seed, 9);
        let mut x = Array2::zeros((0, 2));
        let mut y = Array2::zeros((0, 3));
        for _ in 0..per {
            for (k, corner) in [[3.0, 0.0], [-3.0, 2.0], [0.0, -4.0]].iter().enumerate() {
                #[allow(clippy::cast_possible_truncation)]
                let at = corner.map(|c| (c + noise * r.normal()) as f32);
                let mut target = [0.0; 3];
                target[k] = 1.0;
                x.push_row(ArrayView1::from(&at)).unwrap();
                y.push_row(ArrayView1::from(&target)).unwrap();
            }
        }
        (x, y)
    }

    fn right(head: &LinearHead, x: &Array2<f32>, y: &Array2<f32>) -> usize {
        let best = |s: ArrayView1<'_, f32>| (0..s.len()).fold(0, |b, i| if s[i] > s[b] { i } else { b });
        x.outer_iter().zip(y.outer_iter()).filter(|(x, y)| best(head.scores(*x).view()) == best(*y)).count()
    }

    #[test]
    fn a_head_learns_from_few_examples_and_names_new_ones() {
        let (x, y) = corners(10, 0.7, 1);
        let (new_x, new_y) = corners(200, 0.7, 2);
        for link in [Link::Sigmoid, Link::Softmax] {
            let head = LinearHead::fit(x.view(), y.view(), &FitOptions::new(link)).unwrap();
            let named = right(&head, &new_x, &new_y);
            assert!(named >= 590, "{link:?}: {named} of 600");
        }
    }

    #[test]
    fn softmax_scores_sum_to_one_and_sigmoid_scores_may_all_be_low() {
        let (mut x, mut y) = corners(20, 0.5, 3);
        let head = LinearHead::fit(x.view(), y.view(), &FitOptions::new(Link::Softmax)).unwrap();
        let far = ndarray::array![40.0, -70.0];
        assert!((head.scores(far.view()).sum() - 1.0).abs() < 1e-6);
        // Examples of none of the labels, all around and in the middle: their target is all zeros.
        for _ in 0..20 {
            x.push_row(ndarray::array![0.2, -0.3].view()).unwrap();
            y.push_row(ndarray::array![0.0, 0.0, 0.0].view()).unwrap();
        }
        let head = LinearHead::fit(x.view(), y.view(), &FitOptions::new(Link::Sigmoid)).unwrap();
        assert!(head.scores(ndarray::array![0.2, -0.3].view()).iter().all(|&s| s < 0.5));
    }

    #[test]
    fn the_fitted_head_is_the_minimum() {
        let (x, y) = corners(15, 2.0, 4);
        let options = FitOptions { ridge: 0.01, tolerance: 1e-8, ..FitOptions::new(Link::Sigmoid) };
        let (z, t) = (x.mapv(f64::from), y.mapv(f64::from));
        let loss = |w: &Array2<f64>, b: &Array1<f64>| {
            let logits = z.dot(&w.t()) + b;
            let named: f64 =
                logits.iter().zip(&t).map(|(l, t)| l.max(0.0) - l * t + (-l.abs()).exp().ln_1p()).sum();
            named / 45.0 + 0.5 * options.ridge * w.iter().map(|w| w * w).sum::<f64>()
        };
        let (w, b) = descend(&z, &t, &options).unwrap();
        let least = loss(&w, &b);
        for k in 0..3 {
            for d in [-1e-3, 1e-3] {
                let (mut w2, mut b2) = (w.clone(), b.clone());
                w2[[k, 0]] += d;
                assert!(loss(&w2, &b) > least);
                b2[k] += d;
                assert!(loss(&w, &b2) > least);
            }
        }
    }

    #[test]
    fn the_same_examples_give_the_same_head() {
        let (x, y) = corners(12, 1.0, 5);
        let fit = || LinearHead::fit(x.view(), y.view(), &FitOptions::new(Link::Sigmoid)).unwrap();
        assert_eq!(fit(), fit());
    }

    #[test]
    fn examples_that_cannot_teach_are_refused() {
        let (x, y) = corners(3, 0.5, 6);
        let fit = |x: &Array2<f32>, y: &Array2<f32>, link| {
            LinearHead::fit(x.view(), y.view(), &FitOptions::new(link)).unwrap_err()
        };
        let none = Array2::zeros((0, 2));
        assert_eq!(fit(&none, &y, Link::Sigmoid), HeadError::Examples { latents: 0, targets: 9 });
        let mut silent = y.clone();
        silent.column_mut(1).fill(0.0);
        assert_eq!(fit(&x, &silent, Link::Sigmoid), HeadError::NoExample(1));
        assert_eq!(fit(&x, &silent, Link::Softmax), HeadError::Target(1));
        let mut wild = x.clone();
        wild[[4, 0]] = f32::NAN;
        assert_eq!(fit(&wild, &y, Link::Sigmoid), HeadError::NotFinite(4));
        let loose = FitOptions { ridge: 0.0, ..FitOptions::new(Link::Sigmoid) };
        assert_eq!(
            LinearHead::fit(x.view(), y.view(), &loose).unwrap_err(),
            HeadError::Option { key: "ridge", value: 0.0 }
        );
        let short = FitOptions { max_steps: 1, ..FitOptions::new(Link::Sigmoid) };
        assert_eq!(LinearHead::fit(x.view(), y.view(), &short).unwrap_err(), HeadError::NotSettled(1));
    }

    #[test]
    fn a_written_head_has_the_form_that_manifests_name() {
        let (x, y) = corners(5, 0.5, 7);
        let head = LinearHead::fit(x.view(), y.view(), &FitOptions::new(Link::Sigmoid)).unwrap();
        let bytes = head.to_safetensors().unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("weight").unwrap().shape(), [3, 2]);
        let bias = file.tensor("bias").unwrap();
        assert_eq!((bias.shape(), bias.dtype()), (&[3][..], Dtype::F32));
        assert_eq!(&bias.data()[..4], head.bias[0].to_le_bytes());
    }
}
