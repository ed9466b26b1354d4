//! Random numbers that are the same on every machine.
//!
//! PCG64 for the bits; everything above it is plain IEEE arithmetic and `libm`, which is the same code on every
//! platform where the standard library's `sin` and `ln` are the system's.

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
    #[must_use]
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

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.bits.next_u64()
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "53 bits are exact in an f64")]
        let v = (self.bits() >> 11) as f64;
        v / 9_007_199_254_740_992.0
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with the given probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// 1 or -1.
    pub fn sign(&mut self) -> f64 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// An angle in [0, 2 pi).
    pub fn phase(&mut self) -> f64 {
        self.range(0.0, TAU)
    }

    /// Normal with mean 0 and standard deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        if let Some(z) = self.spare.take() {
            return z;
        }
        let r = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        let a = self.phase();
        self.spare = Some(r * libm::sin(a));
        r * libm::cos(a)
    }

    /// An index below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias of the remainder is n / 2^64: nothing for any n used here.
        usize::try_from(self.bits() % n as u64).expect("below n, which is a usize")
    }

    /// Puts `items` in random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

fn split_mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_purposes_differ() {
        let take = |seed, purpose| -> Vec<u64> {
            let mut r = Random::new(seed, purpose);
            (0..8).map(|_| r.bits()).collect()
        };
        assert_eq!(take(7, 1), take(7, 1));
        assert_ne!(take(7, 1), take(7, 2));
        assert_ne!(take(7, 1), take(8, 1));
    }

    #[test]
    fn normal_numbers_have_mean_0_and_deviation_1() {
        let mut r = Random::new(1, 0);
        let v: Vec<f64> = (0..20_000).map(|_| r.normal()).collect();
        let mean = v.iter().sum::<f64>() / 20_000.0;
        let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "mean {mean}, variance {var}");
    }
}
