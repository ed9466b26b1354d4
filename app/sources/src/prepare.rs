//! What a model was trained on, made of raw samples: filters while they come, scaling when a window is whole.
//!
//! A [`Preparation`] is what a manifest says, checked against the number of channels and the rate. It is used in two ways
//! that give the same numbers for the same samples:
//! * live: [`Preparation::stream`] filters sample by sample before they go into the ring, and is reset at every gap;
//!   [`Preparation::scale`] scales a window that was taken out of it;
//! * a window that came as a whole, by HTTP: [`Preparation::whole`], as if its first sample followed a gap.
//!
//! Filters are causal: no later sample is looked at, so nothing is delayed beyond what the filter itself delays. They
//! begin in the steady state of the first sample, so that an electrode's offset is no step that rings.
//!
//! | filter | design |
//! |---|---|
//! | [`Filter::BandPass`] | Butterworth of order 1 to 4 by the bilinear transform with prewarped edges; the same poles, zeros and gain as `scipy.signal.butter(order, [low, high], "bandpass", fs=rate)` |
//! | [`Filter::HighPass`], [`Filter::LowPass`] | the same of one edge, `"highpass"` and `"lowpass"` |
//! | [`Filter::Notch`] | Orfanidis, *Introduction to Signal Processing*, section 11.3, with -3 dB width `hz / q`; `scipy.signal.iirnotch(hz, q, fs=rate)` |
//!
//! Coefficients and state are f64. `tests/filters.rs` compares every kind with numbers written by SciPy.

use crate::MAX_CHANNELS;
use std::f64::consts::PI;

/// Filters in a row.
pub const MAX_FILTERS: usize = 8;
/// The highest order of a filter.
pub const MAX_ORDER: u8 = 4;
/// Sections of second order in all filters together.
const MAX_SECTIONS: usize = MAX_FILTERS * MAX_ORDER as usize;
/// The lowest corner, as a part of the rate: 1 Hz at 2 kHz.
const LOWEST: f64 = 1.0 / 2000.0;
/// The highest corner, as a part of the rate: 980 Hz at 2 kHz.
const HIGHEST: f64 = 0.49;
/// The narrowest band, as a ratio of its edges.
const NARROWEST: f64 = 1.5;
/// The narrowest notch, as a part of the rate: 0.2 Hz at 2 kHz. A narrower one would take half a minute to settle.
const NARROWEST_NOTCH: f64 = 1e-4;
/// The widest notch, as a part of the rate: beyond it a pole comes close to the highest frequency there is.
const WIDEST_NOTCH: f64 = 0.25;
/// What is added to a window's deviation before it divides, as in the server whose models are served here.
const EPSILON: f64 = 1e-8;
/// A state below this is silence; smaller numbers would only make the processor slow.
const SILENCE: f64 = 1e-30;
/// What is left of a transient when it counts as over.
const SETTLED: f64 = 1e-3;

/// A filter, as a manifest names it. Frequencies are in Hz.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Filter {
    /// Butterworth, -3 dB at both edges. `order` is that of each edge, as in SciPy.
    BandPass {
        /// The lower edge.
        low_hz: f64,
        /// The upper edge.
        high_hz: f64,
        /// 1 to 4.
        order: u8,
    },
    /// Butterworth, -3 dB at the edge.
    HighPass {
        /// The edge.
        hz: f64,
        /// 1 to 4.
        order: u8,
    },
    /// Butterworth, -3 dB at the edge.
    LowPass {
        /// The edge.
        hz: f64,
        /// 1 to 4.
        order: u8,
    },
    /// Nothing of one frequency, such as the mains' 50 or 60 Hz.
    Notch {
        /// The frequency.
        hz: f64,
        /// The frequency divided by the width at -3 dB: 1 to 100.
        q: f64,
    },
}

/// How the values of a window are scaled.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// As they are.
    None,
    /// `(x - mean[c]) / scale[c]`, fitted when the model was trained.
    Fixed {
        /// Per channel.
        mean: Vec<f32>,
        /// Per channel, above 0.
        scale: Vec<f32>,
    },
    /// `(x - mean) / (deviation + 1e-8)` over the window's time, per channel; the deviation of the population.
    PerWindow,
}

/// Why a preparation cannot be; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PrepareError {
    /// The rate is not a frequency.
    #[error("the sampling rate must be above 0 Hz, and is {0}")]
    Rate(f64),
    /// The number of channels.
    #[error("there are 1 to 32 channels, not {0}")]
    Channels(usize),
    /// More filters than there may be.
    #[error("there are at most 8 filters, not {0}")]
    Filters(usize),
    /// The order of a filter.
    #[error("the order of a filter is 1 to 4, not {0}")]
    Order(u8),
    /// A corner that the rate does not allow.
    #[error("at {rate} Hz a filter's frequency is {low} to {high} Hz, not {hz}")]
    Frequency {
        /// As it was asked for.
        hz: f64,
        /// Samples per second.
        rate: f64,
        /// The lowest there can be.
        low: f64,
        /// The highest there can be.
        high: f64,
    },
    /// The edges of a band.
    #[error("the upper edge of a band is at least 1.5 times its lower one; {low} to {high} Hz is not")]
    Band {
        /// The lower edge.
        low: f64,
        /// The upper edge.
        high: f64,
    },
    /// The quality of a notch.
    #[error("the q of a notch is 1 to 100, not {0}")]
    Quality(f64),
    /// The width of a notch.
    #[error("at {rate} Hz a notch is {least} to {most} Hz wide, and {hz} Hz divided by a q of {q} is not")]
    Width {
        /// The frequency.
        hz: f64,
        /// As it was asked for.
        q: f64,
        /// Samples per second.
        rate: f64,
        /// The narrowest there can be.
        least: f64,
        /// The widest there can be.
        most: f64,
    },
    /// A scaler for another number of channels.
    #[error("the scaler has {mean} means and {scale} scales for {channels} channels")]
    Scaler {
        /// How many means.
        mean: usize,
        /// How many scales.
        scale: usize,
        /// Values per sample.
        channels: usize,
    },
    /// A mean that is no number, or a scale that cannot divide.
    #[error(
        "channel {channel}: a mean is finite and a scale finite and above 0; they are {mean} and {scale}"
    )]
    Scale {
        /// From 0.
        channel: usize,
        /// Its mean.
        mean: f32,
        /// Its scale.
        scale: f32,
    },
}

/// A section of second order: `y = (b0 + b1/z + b2/z^2) / (1 + a1/z + a2/z^2) x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section {
    /// Of the input.
    pub b: [f64; 3],
    /// Of the output, from the second on; the first is 1.
    pub a: [f64; 2],
}

/// A complex number; no more of it than the design needs.
#[derive(Clone, Copy)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn times(self, o: Self) -> Self {
        Self { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }

    fn over(self, o: Self) -> Self {
        let n = o.re * o.re + o.im * o.im;
        Self { re: (self.re * o.re + self.im * o.im) / n, im: (self.im * o.re - self.re * o.im) / n }
    }

    /// The square root whose real part is not negative.
    fn root(self) -> Self {
        let length = libm::hypot(self.re, self.im);
        let re = libm::sqrt(((length + self.re) / 2.0).max(0.0));
        let im = libm::sqrt(((length - self.re) / 2.0).max(0.0));
        Self { re, im: if self.im < 0.0 { -im } else { im } }
    }

    /// From the s plane to the z plane, with two samples per unit of time.
    fn bilinear(self) -> Self {
        Self { re: 4.0 + self.re, im: self.im }.over(Self { re: 4.0 - self.re, im: -self.im })
    }
}

impl Section {
    /// A section with these poles (a pair of conjugates, or two real ones) and this numerator, with gain 1 at `at`
    /// (radians per sample).
    fn new(poles: [Complex; 2], zeros: [f64; 3], at: f64) -> Self {
        let a1 = -(poles[0].re + poles[1].re);
        let a2 = poles[0].times(poles[1]).re;
        let mut section = Self { b: zeros, a: [a1, a2] };
        let gain = section.gain(at);
        section.b.iter_mut().for_each(|b| *b /= gain);
        section
    }

    /// How much of a sine is left, `omega` in radians per sample.
    fn gain(&self, omega: f64) -> f64 {
        let (c1, s1, c2, s2) =
            (libm::cos(omega), libm::sin(omega), libm::cos(2.0 * omega), libm::sin(2.0 * omega));
        let at = |k: [f64; 3]| libm::hypot(k[0] + k[1] * c1 + k[2] * c2, k[1] * s1 + k[2] * s2);
        at(self.b) / at([1.0, self.a[0], self.a[1]])
    }

    /// How far the poles are from the origin, the farther one.
    fn radius(&self) -> f64 {
        let [a1, a2] = self.a;
        let d = a1 * a1 / 4.0 - a2;
        if d < 0.0 { libm::sqrt(a2) } else { (a1 / 2.0).abs() + libm::sqrt(d) }
    }
}

/// The poles of an analogue Butterworth low-pass of frequency 1 in the upper half plane, the real one last.
fn prototype(order: u8) -> impl Iterator<Item = Complex> {
    let n = f64::from(order);
    (0..order.div_ceil(2)).map(move |k| {
        let angle = PI * f64::from(2 * k + 1) / (2.0 * n);
        let real = order % 2 == 1 && k == order / 2;
        Complex { re: -libm::sin(angle), im: if real { 0.0 } else { libm::cos(angle) } }
    })
}

impl Filter {
    fn check(&self, rate: f64) -> Result<(), PrepareError> {
        let frequency = |hz: f64| {
            let (low, high) = (rate * LOWEST, rate * HIGHEST);
            if (low..=high).contains(&hz) {
                Ok(())
            } else {
                Err(PrepareError::Frequency { hz, rate, low, high })
            }
        };
        let order = |order: u8| {
            if (1..=MAX_ORDER).contains(&order) { Ok(()) } else { Err(PrepareError::Order(order)) }
        };
        match *self {
            Self::BandPass { low_hz, high_hz, order: n } => {
                frequency(low_hz)?;
                frequency(high_hz)?;
                order(n)?;
                if high_hz < low_hz * NARROWEST {
                    return Err(PrepareError::Band { low: low_hz, high: high_hz });
                }
                Ok(())
            }
            Self::HighPass { hz, order: n } | Self::LowPass { hz, order: n } => {
                frequency(hz)?;
                order(n)
            }
            Self::Notch { hz, q } => {
                frequency(hz)?;
                if !(1.0..=100.0).contains(&q) {
                    return Err(PrepareError::Quality(q));
                }
                let (least, most) = (rate * NARROWEST_NOTCH, rate * WIDEST_NOTCH);
                if (least..=most).contains(&(hz / q)) {
                    Ok(())
                } else {
                    Err(PrepareError::Width { hz, q, rate, least, most })
                }
            }
        }
    }

    /// The sections of this filter at so many samples per second.
    ///
    /// # Errors
    /// [`PrepareError`] says which of its numbers cannot be.
    pub fn sections(
        &self,
        rate_hz: f64,
    ) -> Result<heapless::Vec<Section, { MAX_ORDER as usize }>, PrepareError> {
        if !(rate_hz > 0.0 && rate_hz.is_finite()) {
            return Err(PrepareError::Rate(rate_hz));
        }
        self.check(rate_hz)?;
        // Prewarped for two samples per unit of time, as SciPy does.
        let warped = |hz: f64| 4.0 * libm::tan(PI * hz / rate_hz);
        // The z of a real or complex pole and its conjugate, or of a real one alone, with a zero and a pole at the origin.
        let edge = |order: u8, high: bool, hz: f64| {
            prototype(order)
                .map(|p| {
                    let w = warped(hz);
                    let z = if high {
                        Complex { re: w, im: 0.0 }.over(p)
                    } else {
                        Complex { re: p.re * w, im: p.im * w }
                    }
                    .bilinear();
                    let sign = if high { -1.0 } else { 1.0 };
                    let at = if high { PI } else { 0.0 };
                    if p.im == 0.0 {
                        Section::new([z, Complex { re: 0.0, im: 0.0 }], [1.0, sign, 0.0], at)
                    } else {
                        Section::new([z, Complex { im: -z.im, ..z }], [1.0, 2.0 * sign, 1.0], at)
                    }
                })
                .collect()
        };
        Ok(match *self {
            Self::LowPass { hz, order } => edge(order, false, hz),
            Self::HighPass { hz, order } => edge(order, true, hz),
            Self::BandPass { low_hz, high_hz, order } => {
                let (low, high) = (warped(low_hz), warped(high_hz));
                let (width, square) = (high - low, low * high);
                let at = 2.0 * libm::atan(libm::sqrt(square) / 4.0);
                let zeros = [1.0, 0.0, -1.0];
                let mut sections = heapless::Vec::new();
                for p in prototype(order) {
                    let half = Complex { re: p.re * width / 2.0, im: p.im * width / 2.0 };
                    let h2 = half.times(half);
                    let root = Complex { re: h2.re - square, im: h2.im }.root();
                    let one = Complex { re: half.re + root.re, im: half.im + root.im }.bilinear();
                    let two = Complex { re: half.re - root.re, im: half.im - root.im }.bilinear();
                    if p.im == 0.0 {
                        let _ = sections.push(Section::new([one, two], zeros, at));
                    } else {
                        let _ = sections.push(Section::new([one, Complex { im: -one.im, ..one }], zeros, at));
                        let _ = sections.push(Section::new([two, Complex { im: -two.im, ..two }], zeros, at));
                    }
                }
                sections
            }
            Self::Notch { hz, q } => {
                let omega = 2.0 * PI * hz / rate_hz;
                let gain = 1.0 / (1.0 + libm::tan(omega / q / 2.0));
                let middle = -2.0 * libm::cos(omega) * gain;
                let mut sections = heapless::Vec::new();
                let _ = sections.push(Section { b: [gain, middle, gain], a: [middle, 2.0 * gain - 1.0] });
                sections
            }
        })
    }
}

/// Filters and scaling that fit a number of channels and a rate.
#[derive(Clone, Debug, PartialEq)]
pub struct Preparation {
    channels: usize,
    sections: heapless::Vec<Section, MAX_SECTIONS>,
    scaling: Scaling,
}

impl Preparation {
    /// Checks what a manifest says.
    ///
    /// # Errors
    /// [`PrepareError`] says which of its numbers cannot be.
    pub fn new(
        filters: &[Filter],
        scaling: Scaling,
        channels: usize,
        rate_hz: f64,
    ) -> Result<Self, PrepareError> {
        if channels == 0 || channels > MAX_CHANNELS {
            return Err(PrepareError::Channels(channels));
        }
        if filters.len() > MAX_FILTERS {
            return Err(PrepareError::Filters(filters.len()));
        }
        if let Scaling::Fixed { mean, scale } = &scaling {
            if mean.len() != channels || scale.len() != channels {
                return Err(PrepareError::Scaler { mean: mean.len(), scale: scale.len(), channels });
            }
            for (channel, (&mean, &scale)) in mean.iter().zip(scale).enumerate() {
                if !mean.is_finite() || !scale.is_finite() || scale <= 0.0 {
                    return Err(PrepareError::Scale { channel, mean, scale });
                }
            }
        }
        let mut sections = heapless::Vec::new();
        for filter in filters {
            // There is room: at most 8 filters of at most 4 sections.
            let _ = sections.extend_from_slice(&filter.sections(rate_hz)?);
        }
        Ok(Self { channels, sections, scaling })
    }

    /// Values per sample.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// The sections of all filters, in the order in which they are applied.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Samples after a reset until a thousandth of a step is left; 0 without filters. Estimated from the slowest pole.
    #[must_use]
    pub fn settling(&self) -> u32 {
        let slowest = self.sections.iter().map(Section::radius).fold(0.0, f64::max);
        if slowest <= 0.0 {
            return 0;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "above 0, and saturates")]
        let samples = libm::ceil(libm::log(SETTLED) / libm::log(slowest)) as u32;
        samples
    }

    /// The filters, for samples that come one after the other.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream {
            sections: self.sections.clone(),
            state: vec![[0.0; 2]; self.sections.len() * self.channels].into(),
            channels: self.channels,
            primed: false,
        }
    }

    /// Scales a window: its values sample by sample, in a sample channel by channel.
    pub fn scale(&self, window: &mut [f32]) {
        match &self.scaling {
            Scaling::None => (),
            Scaling::Fixed { mean, scale } => {
                for sample in window.chunks_exact_mut(self.channels) {
                    for ((value, mean), scale) in sample.iter_mut().zip(mean).zip(scale) {
                        *value = (*value - mean) / scale;
                    }
                }
            }
            Scaling::PerWindow => (0..self.channels).for_each(|c| z_score(window, c, self.channels)),
        }
    }

    /// Filters and scales a window that came as a whole.
    pub fn whole(&self, window: &mut [f32]) {
        if !self.sections.is_empty() {
            let mut stream = self.stream();
            window.chunks_exact_mut(self.channels).for_each(|sample| stream.filter(sample));
        }
        self.scale(window);
    }
}

fn z_score(window: &mut [f32], channel: usize, channels: usize) {
    let values = || window.iter().skip(channel).step_by(channels).map(|&v| f64::from(v));
    #[allow(clippy::cast_precision_loss, reason = "windows are far below 2^52 samples")]
    let n = values().count().max(1) as f64;
    let mean = values().sum::<f64>() / n;
    let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    let divisor = libm::sqrt(variance) + EPSILON;
    for value in window.iter_mut().skip(channel).step_by(channels) {
        #[allow(clippy::cast_possible_truncation, reason = "the precision of the model's input")]
        let scaled = ((f64::from(*value) - mean) / divisor) as f32;
        *value = scaled;
    }
}

/// Filters with what they remember, per channel.
#[derive(Clone, Debug)]
pub struct Stream {
    sections: heapless::Vec<Section, MAX_SECTIONS>,
    /// Section by section, in a section channel by channel.
    state: Box<[[f64; 2]]>,
    channels: usize,
    primed: bool,
}

impl Stream {
    /// Filters the next sample in place. Values beyond the channels are left as they are.
    ///
    /// A sample with a value that is not finite is a gap: it is left as it is, and the next one begins anew.
    pub fn filter(&mut self, sample: &mut [f32]) {
        if sample.iter().any(|v| !v.is_finite()) {
            self.reset();
            return;
        }
        for (channel, value) in sample.iter_mut().take(self.channels).enumerate() {
            let mut x = f64::from(*value);
            for (s, section) in self.sections.iter().enumerate() {
                let state = &mut self.state[s * self.channels + channel];
                x = if self.primed { step(section, state, x) } else { steady(section, state, x) };
            }
            #[allow(clippy::cast_possible_truncation, reason = "the precision of samples")]
            let filtered = x as f32;
            *value = filtered;
        }
        self.primed = true;
    }

    /// Forgets everything: the next sample follows a gap.
    pub const fn reset(&mut self) {
        self.primed = false;
    }
}

/// Transposed direct form II.
fn step(section: &Section, state: &mut [f64; 2], x: f64) -> f64 {
    let Section { b, a } = section;
    let y = b[0] * x + state[0];
    let quiet = |v: f64| if v.abs() < SILENCE { 0.0 } else { v };
    *state = [quiet(b[1] * x - a[0] * y + state[1]), quiet(b[2] * x - a[1] * y)];
    y
}

/// The state after `x` had come for ever, and what comes out then.
fn steady(section: &Section, state: &mut [f64; 2], x: f64) -> f64 {
    let Section { b, a } = section;
    let y = x * (b[0] + b[1] + b[2]) / (1.0 + a[0] + a[1]);
    let second = b[2] * x - a[1] * y;
    *state = [b[1] * x - a[0] * y + second, second];
    y
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "test data")]
mod tests {
    use super::*;
    use rand_pcg::Pcg64;
    use rand_pcg::rand_core::Rng as _;

    const BAND: Filter = Filter::BandPass { low_hz: 20.0, high_hz: 450.0, order: 4 };
    const HUM: Filter = Filter::Notch { hz: 50.0, q: 30.0 };

    fn noise(n: usize, seed: u128) -> Vec<f32> {
        let mut random = Pcg64::new(seed, 1);
        (0..n).map(|_| random.next_u32() as f32 / u32::MAX as f32 - 0.5).collect()
    }

    fn gain(filters: &[Filter], hz: f64) -> f64 {
        let p = Preparation::new(filters, Scaling::None, 1, 2000.0).unwrap();
        p.sections.iter().map(|s| s.gain(2.0 * PI * hz / 2000.0)).product()
    }

    #[test]
    fn gains_are_those_of_the_textbook() {
        let half = libm::sqrt(0.5);
        for order in 1..=4 {
            let band = [Filter::BandPass { low_hz: 20.0, high_hz: 450.0, order }];
            for edge in [20.0, 450.0] {
                assert!((gain(&band, edge) - half).abs() < 1e-9, "order {order}: -3 dB at {edge} Hz");
            }
            assert!((gain(&[Filter::HighPass { hz: 20.0, order }], 20.0) - half).abs() < 1e-9);
            assert!((gain(&[Filter::LowPass { hz: 450.0, order }], 450.0) - half).abs() < 1e-9);
            assert!(gain(&band, 1e-6) < 1e-6 && gain(&band, 999.999) < 1e-3);
        }
        assert!(gain(&[HUM], 50.0) < 1e-9);
        assert!((gain(&[HUM], 20.0) - 1.0).abs() < 0.01 && (gain(&[HUM], 100.0) - 1.0).abs() < 0.01);
    }

    #[test]
    fn every_allowed_filter_is_stable_and_every_other_is_refused() {
        let mut seen = 0;
        for rate in [100.0, 2000.0] {
            let edges: Vec<f64> =
                [LOWEST, 0.001, 0.01, 0.1, 0.25, 0.4, 0.48, HIGHEST].map(|p| p * rate).into();
            for order in 1..=4 {
                for &hz in &edges {
                    let pairs = edges.iter().map(|&high_hz| Filter::BandPass { low_hz: hz, high_hz, order });
                    let others = [
                        Filter::HighPass { hz, order },
                        Filter::LowPass { hz, order },
                        Filter::Notch { hz, q: 1.0 },
                        Filter::Notch { hz, q: 100.0 },
                        Filter::BandPass { low_hz: hz, high_hz: hz * NARROWEST, order },
                    ];
                    for filter in pairs.chain(others) {
                        let Ok(sections) = filter.sections(rate) else { continue };
                        seen += 1;
                        for s in &sections {
                            assert!(s.radius() < 1.0 - 1e-6, "{filter:?} at {rate} Hz: {}", s.radius());
                            assert!(s.b.iter().all(|b| b.is_finite()));
                        }
                        // An impulse dies away.
                        let p = Preparation::new(&[filter], Scaling::None, 1, rate).unwrap();
                        assert!(p.settling() < 40_000, "{filter:?}: {}", p.settling());
                        let mut stream = p.stream();
                        stream.filter(&mut [0.0]);
                        stream.filter(&mut [1.0]);
                        let mut last = [0.0];
                        for _ in 0..3 * p.settling() {
                            last = [0.0];
                            stream.filter(&mut last);
                        }
                        assert!(last[0].abs() < 1e-3, "{filter:?}: {last:?}");
                    }
                }
            }
        }
        assert!(seen > 300, "{seen}");
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let refused = |filter: Filter| filter.sections(2000.0).unwrap_err();
        let frequency = |hz| PrepareError::Frequency { hz, rate: 2000.0, low: 1.0, high: 980.0 };
        assert_eq!(refused(Filter::LowPass { hz: 1000.0, order: 2 }), frequency(1000.0));
        assert_eq!(refused(Filter::HighPass { hz: 0.0, order: 2 }), frequency(0.0));
        assert_eq!(refused(Filter::Notch { hz: -50.0, q: 30.0 }), frequency(-50.0));
        assert!(matches!(refused(Filter::Notch { hz: f64::NAN, q: 30.0 }), PrepareError::Frequency { .. }));
        assert_eq!(refused(Filter::Notch { hz: 50.0, q: 0.5 }), PrepareError::Quality(0.5));
        assert!(matches!(refused(Filter::Notch { hz: 50.0, q: f64::NAN }), PrepareError::Quality(_)));
        let thin = PrepareError::Width { hz: 5.0, q: 50.0, rate: 2000.0, least: 0.2, most: 500.0 };
        assert_eq!(refused(Filter::Notch { hz: 5.0, q: 50.0 }), thin);
        for order in [0, 5] {
            assert_eq!(refused(Filter::LowPass { hz: 100.0, order }), PrepareError::Order(order));
        }
        let band = Filter::BandPass { low_hz: 450.0, high_hz: 20.0, order: 4 };
        assert_eq!(refused(band), PrepareError::Band { low: 450.0, high: 20.0 });
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(BAND.sections(rate), Err(PrepareError::Rate(_))));
        }
        let new = |filters: &[Filter], scaling, channels| {
            Preparation::new(filters, scaling, channels, 2000.0).unwrap_err()
        };
        assert_eq!(new(&[], Scaling::None, 0), PrepareError::Channels(0));
        assert_eq!(new(&[], Scaling::None, 33), PrepareError::Channels(33));
        assert_eq!(new(&[HUM; 9], Scaling::None, 1), PrepareError::Filters(9));
        let fixed =
            |mean: &[f32], scale: &[f32]| Scaling::Fixed { mean: mean.to_vec(), scale: scale.to_vec() };
        assert_eq!(
            new(&[], fixed(&[0.0], &[1.0]), 2),
            PrepareError::Scaler { mean: 1, scale: 1, channels: 2 }
        );
        let zero = PrepareError::Scale { channel: 1, mean: 0.0, scale: 0.0 };
        assert_eq!(new(&[], fixed(&[0.0; 2], &[1.0, 0.0]), 2), zero);
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            assert!(matches!(new(&[], fixed(&[0.0], &[bad]), 1), PrepareError::Scale { .. }));
        }
        assert!(matches!(new(&[], fixed(&[f32::NAN], &[1.0]), 1), PrepareError::Scale { .. }));
    }

    #[test]
    fn the_most_filters_of_the_highest_order_have_room() {
        let p = Preparation::new(&[BAND; MAX_FILTERS], Scaling::None, 1, 2000.0).unwrap();
        assert_eq!(p.sections().len(), 32);
    }

    #[test]
    fn an_offset_is_no_step() {
        let p = Preparation::new(&[BAND, HUM], Scaling::None, 2, 2000.0).unwrap();
        let mut stream = p.stream();
        for _ in 0..2 {
            for _ in 0..500 {
                let mut sample = [1500.0, -0.25];
                stream.filter(&mut sample);
                assert!(sample[0].abs() < 1e-6 && sample[1].abs() < 1e-6, "{sample:?}");
            }
            stream.reset();
        }
    }

    #[test]
    fn after_a_reset_nothing_of_before_is_left_and_channels_do_not_mix() {
        let p = Preparation::new(&[BAND, HUM], Scaling::None, 2, 2000.0).unwrap();
        let (a, b) = (noise(300, 1), noise(300, 2));
        let run = |stream: &mut Stream, one: &[f32], two: &[f32]| -> Vec<[f32; 2]> {
            let both = one.iter().zip(two).map(|(&x, &y)| [x, y]);
            both.map(|mut sample| {
                stream.filter(&mut sample);
                sample
            })
            .collect()
        };
        let mut stream = p.stream();
        let first = run(&mut stream, &a, &b);
        assert_ne!(run(&mut stream, &a, &b), first, "without a reset it goes on");
        stream.reset();
        assert_eq!(run(&mut stream, &a, &b), first);
        let other = run(&mut p.stream(), &a, &noise(300, 3));
        assert!(first.iter().zip(&other).skip(1).all(|(x, y)| x[1] != y[1]));
        assert!(first.iter().zip(&other).all(|(x, y)| x[0] == y[0]));
    }

    #[test]
    fn a_value_that_is_not_finite_is_a_gap_and_not_the_end() {
        let p = Preparation::new(&[BAND], Scaling::None, 2, 2000.0).unwrap();
        let raw = noise(100, 4);
        let run = |stream: &mut Stream| -> Vec<f32> {
            let mut out = raw.clone();
            out.chunks_exact_mut(2).for_each(|sample| stream.filter(sample));
            out
        };
        let mut stream = p.stream();
        let clean = run(&mut stream);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut sample = [1.0, bad];
            stream.filter(&mut sample);
            assert_eq!(sample[0], 1.0);
            assert_eq!(run(&mut stream), clean);
        }
    }

    #[test]
    fn a_whole_window_is_prepared_as_a_live_one_after_a_gap() {
        let scaling = Scaling::Fixed { mean: vec![0.1, -0.1, 0.0], scale: vec![2.0, 0.5, 1.0] };
        let p = Preparation::new(&[BAND, HUM], scaling, 3, 2000.0).unwrap();
        let raw = noise(600, 5);
        let mut live = raw.clone();
        let mut stream = p.stream();
        live.chunks_exact_mut(3).for_each(|sample| stream.filter(sample));
        p.scale(&mut live);
        let mut whole = raw;
        p.whole(&mut whole);
        assert_eq!(live, whole);
    }

    #[test]
    fn scaling_is_the_formula() {
        let fixed = Scaling::Fixed { mean: vec![1.0, -2.0], scale: vec![2.0, 4.0] };
        let mut window = [3.0, 2.0, -1.0, -2.0];
        Preparation::new(&[], fixed, 2, 2000.0).unwrap().whole(&mut window);
        assert_eq!(window, [1.0, 1.0, -1.0, 0.0]);

        let per_window = Preparation::new(&[], Scaling::PerWindow, 2, 2000.0).unwrap();
        let mut window = [1.0, 5.0, 3.0, 5.0];
        per_window.whole(&mut window);
        assert_eq!(window, [-1.0, 0.0, 1.0, 0.0], "an electrode that measures nothing is 0");
        let mut none: [f32; 0] = [];
        per_window.whole(&mut none);
        // A large offset does not eat the signal.
        let mut window: Vec<f32> = (0..400).map(|i| 8_000_000.0 + (i / 2 % 2) as f32).collect();
        per_window.whole(&mut window);
        assert!(window.iter().all(|v| (v.abs() - 1.0).abs() < 1e-6));
    }

    #[test]
    fn silence_is_not_slow() {
        let p = Preparation::new(&[BAND], Scaling::None, 1, 2000.0).unwrap();
        let mut stream = p.stream();
        stream.filter(&mut [0.0]);
        stream.filter(&mut [1.0]);
        (0..20_000).for_each(|_| stream.filter(&mut [0.0]));
        assert!(stream.state.iter().flatten().all(|&v| v == 0.0), "no denormal number is left");
    }
}
