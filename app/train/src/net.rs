//! The network: a temporal convolutional network (Bai et al. 2018) with a linear latent and a linear head of motifs or
//! gestures.
//!
//! Layers are plain structs of weights with a `forward` and a hand-written `backward`; a gradient is a network of the
//! same shape that holds derivatives instead of weights. Tests compare every derivative with finite differences.
//! One sample is a matrix `[time, channels]`. Everything runs on one thread in a fixed order: the same seed on the same
//! machine gives the same bits.

use crate::head::Link;
use inferd_sources::random::Random;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, Array3, ArrayView2, Axis, Slice};

/// The axis of time in a sample's matrix.
const TIME: Axis = Axis(0);

/// All steps but the last `lag`, and all but the first `lag`: what a tap sees, and where it has its effect.
fn early(steps: usize, lag: usize) -> Slice {
    Slice::from(..steps - lag)
}

fn late(lag: usize) -> Slice {
    Slice::from(lag..)
}

/// A causal one-dimensional convolution: output `t` sees inputs `t`, `t - d`, `t - 2 d`, ... with zeros before the start.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    /// `[tap, in, out]`; the last tap is the present, as in ONNX.
    pub weight: Array3<f32>,
    /// `[out]`
    pub bias: Array1<f32>,
    /// Distance between taps, in samples.
    pub dilation: usize,
}

impl Conv {
    fn new(taps: usize, inputs: usize, outputs: usize, dilation: usize, r: &mut Random) -> Self {
        let weight = Array3::from_shape_simple_fn((taps, inputs, outputs), he(taps * inputs, r));
        Self { weight, bias: Array1::zeros(outputs), dilation }
    }

    /// How many samples before the present tap `k` looks at.
    fn lag(&self, k: usize) -> usize {
        (self.weight.dim().0 - 1 - k) * self.dilation
    }

    /// `[time, in]` to `[time, out]`.
    #[must_use]
    pub fn forward(&self, x: ArrayView2<'_, f32>) -> Array2<f32> {
        let steps = x.nrows();
        let mut y = Array2::from_shape_fn((steps, self.bias.len()), |(_, c)| self.bias[c]);
        for (k, w) in self.weight.outer_iter().enumerate() {
            let lag = self.lag(k).min(steps);
            general_mat_mul(
                1.0,
                &x.slice_axis(TIME, early(steps, lag)),
                &w,
                1.0,
                &mut y.slice_axis_mut(TIME, late(lag)),
            );
        }
        y
    }

    /// Adds the derivatives by weight and bias to `grad`; returns the derivative by the input.
    fn backward(&self, x: ArrayView2<'_, f32>, dy: &Array2<f32>, grad: &mut Self) -> Array2<f32> {
        let steps = x.nrows();
        let mut dx = Array2::zeros(x.raw_dim());
        grad.bias += &dy.sum_axis(TIME);
        for (k, w) in self.weight.outer_iter().enumerate() {
            let lag = self.lag(k).min(steps);
            let (seen, answered) = (x.slice_axis(TIME, early(steps, lag)), dy.slice_axis(TIME, late(lag)));
            general_mat_mul(1.0, &seen.t(), &answered, 1.0, &mut grad.weight.index_axis_mut(Axis(0), k));
            general_mat_mul(1.0, &answered, &w.t(), 1.0, &mut dx.slice_axis_mut(TIME, early(steps, lag)));
        }
        dx
    }
}

/// `W x + b`.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Array2<f32>,
    /// `[out]`
    pub bias: Array1<f32>,
}

impl Linear {
    fn new(inputs: usize, outputs: usize, r: &mut Random) -> Self {
        // Variance 1/n keeps the scale where no ReLU halves it.
        let scale = std::f32::consts::FRAC_1_SQRT_2;
        let weight = Array2::from_shape_simple_fn((outputs, inputs), he(inputs, r)) * scale;
        Self { weight, bias: Array1::zeros(outputs) }
    }

    /// `[in]` to `[out]`.
    #[must_use]
    pub fn forward(&self, x: &Array1<f32>) -> Array1<f32> {
        self.weight.dot(x) + &self.bias
    }

    fn backward(&self, x: &Array1<f32>, dy: &Array1<f32>, grad: &mut Self) -> Array1<f32> {
        grad.bias += dy;
        for (mut row, &d) in grad.weight.outer_iter_mut().zip(dy) {
            row.scaled_add(d, x);
        }
        self.weight.t().dot(dy)
    }
}

/// Two causal convolutions with ReLU, and a way around them.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// From the block's input.
    pub first: Conv,
    /// From the first convolution's activation.
    pub second: Conv,
    /// One tap, from the block's input to its output.
    pub around: Conv,
}

/// A block's activations, kept for the way back.
struct BlockTrace {
    first: Array2<f32>,
    second: Array2<f32>,
    out: Array2<f32>,
}

impl Block {
    fn new(inputs: usize, outputs: usize, dilation: usize, r: &mut Random) -> Self {
        Self {
            first: Conv::new(3, inputs, outputs, dilation, r),
            second: Conv::new(3, outputs, outputs, dilation, r),
            around: Conv::new(1, inputs, outputs, 1, r),
        }
    }

    fn forward(&self, x: ArrayView2<'_, f32>) -> BlockTrace {
        let first = relu(self.first.forward(x));
        let second = relu(self.second.forward(first.view()));
        let out = relu(self.around.forward(x) + &second);
        BlockTrace { first, second, out }
    }

    fn backward(
        &self,
        x: ArrayView2<'_, f32>,
        t: &BlockTrace,
        dout: Array2<f32>,
        grad: &mut Self,
    ) -> Array2<f32> {
        let dsum = gate(dout, &t.out);
        let mut dx = self.around.backward(x, &dsum, &mut grad.around);
        let dsecond = gate(dsum, &t.second);
        let dfirst = gate(self.second.backward(t.first.view(), &dsecond, &mut grad.second), &t.first);
        dx += &self.first.backward(x, &dfirst, &mut grad.first);
        dx
    }
}

/// The whole network: blocks, mean over time, latent, head.
#[derive(Clone, Debug, PartialEq)]
pub struct Tcn {
    /// In order.
    pub blocks: Vec<Block>,
    /// From the mean over time to the latent vector.
    pub latent: Linear,
    /// From the latent vector to one logit per motif or gesture.
    pub head: Linear,
    /// How logits become scores.
    pub link: Link,
}

/// What the network says about one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The latent vector.
    pub latent: Array1<f32>,
    /// One number per motif or gesture, before the link.
    pub logits: Array1<f32>,
    /// One score per motif or gesture, each in [0, 1].
    pub scores: Array1<f32>,
}

impl Tcn {
    /// A network with random weights: `widths[0]` channels in, one block per further width with dilations 1, 2, 4, ...,
    /// `labels` scores out.
    #[must_use]
    pub fn new(widths: &[usize], latent: usize, labels: usize, link: Link, seed: u64) -> Self {
        let mut r = Random::new(seed, 2000);
        let blocks =
            widths.windows(2).enumerate().map(|(i, w)| Block::new(w[0], w[1], 1 << i, &mut r)).collect();
        let last = widths.last().copied().unwrap_or_default();
        let (latent, head) = (Linear::new(last, latent, &mut r), Linear::new(latent, labels, &mut r));
        Self { blocks, latent, head, link }
    }

    /// One normalised window `[time, channels]` to the answer.
    #[must_use]
    pub fn forward(&self, x: ArrayView2<'_, f32>) -> Answer {
        let mut h = None;
        for b in &self.blocks {
            h = Some(b.forward(h.as_ref().map_or(x, |h: &BlockTrace| h.out.view())));
        }
        let mean = mean_over_time(h.as_ref().map_or(x, |h| h.out.view()));
        let latent = self.latent.forward(&mean);
        let logits = self.head.forward(&latent);
        let scores = self.link.scores(&logits);
        Answer { latent, logits, scores }
    }

    /// Adds the derivatives of the loss on one normalised window to `grad`; returns the loss: cross-entropy of the scores
    /// against `target` (with a sigmoid that of each by itself, summed), plus `tame / 2` times the squared length of the
    /// latent vector, which keeps latents of strong movement within reach of the others.
    pub fn learn(&self, x: ArrayView2<'_, f32>, target: &Array1<f32>, tame: f32, grad: &mut Self) -> f32 {
        let mut traces: Vec<BlockTrace> = Vec::with_capacity(self.blocks.len());
        for b in &self.blocks {
            traces.push(b.forward(traces.last().map_or(x, |t| t.out.view())));
        }
        let last = traces.last().map_or(x, |t| t.out.view());
        let mean = mean_over_time(last);
        let latent = self.latent.forward(&mean);
        let logits = self.head.forward(&latent);
        let loss = self.link.loss(&logits, target) + 0.5 * tame * latent.dot(&latent);

        // The same for both links: what cross-entropy is paired with them for.
        let dlogits = self.link.scores(&logits) - target;
        let mut dlatent = self.head.backward(&latent, &dlogits, &mut grad.head);
        dlatent.scaled_add(tame, &latent);
        let dmean = self.latent.backward(&mean, &dlatent, &mut grad.latent);
        #[allow(clippy::cast_precision_loss, reason = "a window has far fewer than 2^24 samples")]
        let share = 1.0 / last.nrows() as f32;
        let mut d = Array2::from_shape_fn(last.raw_dim(), |(_, c)| dmean[c] * share);
        for (i, b) in self.blocks.iter().enumerate().rev() {
            let input = if i == 0 { x } else { traces[i - 1].out.view() };
            d = b.backward(input, &traces[i], d, &mut grad.blocks[i]);
        }
        loss
    }

    /// Shifts and scales each latent dimension by `-mean` and `1 / deviation`, and the head so that scores stay
    /// what they are.
    pub fn standardize_latent(&mut self, mean: &Array1<f32>, deviation: &Array1<f32>) {
        self.head.bias += &self.head.weight.dot(mean);
        for (d, (&m, &s)) in mean.iter().zip(deviation).enumerate() {
            self.head.weight.column_mut(d).mapv_inplace(|w| w * s);
            self.latent.weight.row_mut(d).mapv_inplace(|w| w / s);
            self.latent.bias[d] = (self.latent.bias[d] - m) / s;
        }
    }

    /// Every weight and bias, in a fixed order: the state of an optimiser follows it.
    pub fn parameters_mut(&mut self) -> Vec<&mut [f32]> {
        fn conv(c: &mut Conv) -> [Option<&mut [f32]>; 2] {
            [c.weight.as_slice_mut(), c.bias.as_slice_mut()]
        }
        let mut all = Vec::new();
        for b in &mut self.blocks {
            all.extend([&mut b.first, &mut b.second, &mut b.around].map(conv).into_iter().flatten());
        }
        for l in [&mut self.latent, &mut self.head] {
            all.extend([l.weight.as_slice_mut(), l.bias.as_slice_mut()]);
        }
        all.into_iter().map(|p| p.expect("weights are made dense and in row order")).collect()
    }

    /// A network of the same shape with all weights 0: an empty gradient.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        let mut z = self.clone();
        z.parameters_mut().into_iter().for_each(|p| p.fill(0.0));
        z
    }

    /// How many weights and biases there are.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.clone().parameters_mut().iter().map(|p| p.len()).sum()
    }

    /// Multiplications and additions of one window of `steps` samples.
    #[must_use]
    pub fn multiply_adds(&self, steps: usize) -> usize {
        let convs = self.blocks.iter().flat_map(|b| [&b.first, &b.second, &b.around]);
        convs.map(|c| c.weight.len() * steps).sum::<usize>()
            + self.latent.weight.len()
            + self.head.weight.len()
    }
}

fn mean_over_time(x: ArrayView2<'_, f32>) -> Array1<f32> {
    x.mean_axis(TIME).expect("a window has at least one sample")
}

fn relu(mut x: Array2<f32>) -> Array2<f32> {
    x.mapv_inplace(|v| v.max(0.0));
    x
}

/// The derivative through a ReLU whose output is `y`.
fn gate(mut d: Array2<f32>, y: &Array2<f32>) -> Array2<f32> {
    d.zip_mut_with(y, |d, &y| {
        if y <= 0.0 {
            *d = 0.0;
        }
    });
    d
}

/// Normal with variance `2 / inputs` (He et al. 2015).
fn he(inputs: usize, r: &mut Random) -> impl FnMut() -> f32 {
    #[allow(clippy::cast_precision_loss, reason = "layers have far fewer than 2^53 inputs")]
    let deviation = libm::sqrt(2.0 / inputs as f64);
    move || {
        #[allow(clippy::cast_possible_truncation, reason = "a weight is an f32")]
        let w = (deviation * r.normal()) as f32;
        w
    }
}

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
pub struct AdamW {
    mean: Tcn,
    square: Tcn,
    /// The share of a weight that is taken away per unit of learning rate.
    pub decay: f32,
    steps: i32,
}

impl AdamW {
    const BETAS: [f32; 2] = [0.9, 0.999];
    const EPSILON: f32 = 1e-8;

    /// A fresh state for `net`.
    #[must_use]
    pub fn new(net: &Tcn, decay: f32) -> Self {
        Self { mean: net.zeros_like(), square: net.zeros_like(), decay, steps: 0 }
    }

    /// One step along the mean of the gradients of `samples` windows. Clears `grad`.
    pub fn step(&mut self, net: &mut Tcn, grad: &mut Tcn, samples: usize, rate: f32) {
        self.steps = self.steps.saturating_add(1);
        let [b1, b2] = Self::BETAS;
        let (c1, c2) = (1.0 - b1.powi(self.steps), 1.0 - b2.powi(self.steps));
        #[allow(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^24 windows")]
        let share = 1.0 / samples as f32;
        let lists = (
            net.parameters_mut(),
            grad.parameters_mut(),
            self.mean.parameters_mut(),
            self.square.parameters_mut(),
        );
        for (((w, g), m), v) in lists.0.into_iter().zip(lists.1).zip(lists.2).zip(lists.3) {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let d = *g * share;
                *m = b1 * *m + (1.0 - b1) * d;
                *v = b2 * *v + (1.0 - b2) * d * d;
                *w -= rate * ((*m / c1) / ((*v / c2).sqrt() + Self::EPSILON) + self.decay * *w);
                *g = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(link: Link) -> (Tcn, Array2<f32>, Array1<f32>) {
        let mut r = Random::new(5, 0);
        #[allow(clippy::cast_possible_truncation)]
        let window = Array2::from_shape_simple_fn((12, 3), || r.normal() as f32);
        let mut net = Tcn::new(&[3, 4, 5], 4, 2, link, 3);
        // Fresh biases are 0, and where nothing comes in a ReLU would stand exactly on its kink.
        for w in net.parameters_mut().into_iter().flatten() {
            #[allow(clippy::cast_possible_truncation)]
            let nudge = 0.2 * r.normal() as f32;
            *w += nudge;
        }
        (net, window, Array1::from(vec![1.0, 0.0]))
    }

    #[test]
    fn every_derivative_is_the_slope_of_the_loss() {
        for link in [Link::Sigmoid, Link::Softmax] {
            slopes(link);
        }
    }

    fn slopes(link: Link) {
        let (mut net, x, target) = small(link);
        let mut grad = net.zeros_like();
        net.learn(x.view(), &target, 0.1, &mut grad);
        let derivatives: Vec<Vec<f32>> = grad.parameters_mut().iter().map(|p| p.to_vec()).collect();
        assert!(derivatives.iter().all(|p| p.iter().any(|d| d.abs() > 1e-4)), "no layer is cut off");
        let h = 1e-3;
        for (i, layer) in derivatives.iter().enumerate() {
            for (j, &d) in layer.iter().enumerate() {
                let mut loss_at = |delta: f32| {
                    net.parameters_mut()[i][j] += delta;
                    let l = net.learn(x.view(), &target, 0.1, &mut net.zeros_like());
                    net.parameters_mut()[i][j] -= delta;
                    l
                };
                let slope = (loss_at(h) - loss_at(-h)) / (2.0 * h);
                // f32 rounding of the loss over 2h, and the kinks of ReLU within h.
                assert!(
                    (slope - d).abs() < 5e-3 + 0.02 * d.abs(),
                    "parameter {i}[{j}]: slope {slope}, derivative {d}"
                );
            }
        }
    }

    #[test]
    fn a_convolution_never_sees_the_future() {
        let (net, x, _) = small(Link::Sigmoid);
        let conv = &net.blocks[1].first;
        let x = net.blocks[0].forward(x.view()).out;
        let mut changed = x.clone();
        changed.row_mut(7).fill(9.0);
        let (before, after) = (conv.forward(x.view()), conv.forward(changed.view()));
        let first_seven = |y: &Array2<f32>| y.slice_axis(TIME, Slice::from(..7)).to_owned();
        assert_eq!(first_seven(&before), first_seven(&after));
        assert_ne!(before.row(7), after.row(7));
    }

    #[test]
    fn training_and_inference_compute_the_same() {
        let each = |p: f32, y: f32| -(p * y + (1.0 - p) * (1.0 - y)).ln();
        let named = |p: f32, y: f32| if y > 0.0 { -y * p.ln() } else { 0.0 };
        for (link, part) in [(Link::Sigmoid, &each as &dyn Fn(f32, f32) -> f32), (Link::Softmax, &named)] {
            let (net, x, target) = small(link);
            let scores = net.forward(x.view()).scores;
            let by_hand: f32 = scores.iter().zip(&target).map(|(&p, &y)| part(p, y)).sum();
            let loss = net.learn(x.view(), &target, 0.0, &mut net.zeros_like());
            assert!((loss - by_hand).abs() < 1e-5, "{link:?}: {loss} and {by_hand}");
        }
    }

    #[test]
    fn scores_do_not_change_when_latents_are_standardised() {
        let (mut net, x, _) = small(Link::Sigmoid);
        let before = net.forward(x.view());
        let (mean, deviation) =
            (Array1::from(vec![0.5, -1.0, 2.0, 0.0]), Array1::from(vec![2.0, 0.5, 3.0, 1.0]));
        net.standardize_latent(&mean, &deviation);
        let after = net.forward(x.view());
        let near = |a: &Array1<f32>, b: &Array1<f32>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near(&after.scores, &before.scores));
        assert!(near(&after.latent, &((before.latent - mean) / deviation)));
    }

    #[test]
    fn the_optimiser_walks_downhill() {
        let (mut net, x, target) = small(Link::Sigmoid);
        let mut adam = AdamW::new(&net, 0.0);
        let mut grad = net.zeros_like();
        let first = net.learn(x.view(), &target, 0.0, &mut grad);
        for _ in 0..200 {
            adam.step(&mut net, &mut grad, 1, 0.01);
            net.learn(x.view(), &target, 0.0, &mut grad);
        }
        let last = net.learn(x.view(), &target, 0.0, &mut net.zeros_like());
        assert!(last < 0.1 * first, "{first} to {last}");
    }
}
