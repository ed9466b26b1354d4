//! Random numbers that are the same on every machine.
//!
//! PCG64 for the bits; everything above it is plain IEEE arithmetic and `libm`, which is the same code on every platform
//! where the standard library's `sin` and `ln` are the system's.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::Rng as _;
use std::f64::consts::TAU;

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Random {
    bits: Pcg64,
    /// The second value of the last Box-Muller pair.
    spare: Option<f64>,
}

impl Random {
    /// A generator for `seed` and one `purpose`; different purposes of one seed are unrelated.
    pub fn new(seed: u64, purpose: u64) -> Self {
        // Neighbouring seeds of an LCG give related sequences; SplitMix64 (Steele et al. 2014) scatters them first.
        let mut x = seed ^ split_mix(purpose);
        let mut next = || {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            u128::from(split_mix(x))
        };
        let (state, stream) = (next() << 64 | next(), next() << 64 | next());
        Self { bits: Pcg64::new(state, stream), spare: None }
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
        let v = (self.bits.next_u64() >> 11) as f64;
        v / 9_007_199_254_740_992.0
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Normal with mean 0 and standard deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(z) = self.spare.take() {
            return z;
        }
        let r = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        let a = self.range(0.0, TAU);
        self.spare = Some(r * libm::sin(a));
        r * libm::cos(a)
    }
}

fn split_mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
