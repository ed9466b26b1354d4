//! Inputs a model might get, for golden vectors: always the same for the same seed.

use half::{bf16, f16};
use inferd_model::{DType, Task, TensorSpec};

/// PCG-XSH-RR 64/32 (O'Neill 2014), from which everything here is drawn.
pub struct Random(u64);

impl Random {
    /// A generator for one case.
    pub fn new(seed: u64, case: u64) -> Self {
        let mut new = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ case);
        new.next();
        new.next();
        new
    }

    fn next(&mut self) -> u32 {
        let old = self.0;
        self.0 = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        #[allow(clippy::cast_possible_truncation)] // the generator's definition
        let (mixed, turn) = ((((old >> 18) ^ old) >> 27) as u32, (old >> 59) as u32);
        mixed.rotate_right(turn)
    }

    /// In [0, 1).
    fn uniform(&mut self) -> f64 {
        f64::from(self.next()) / 4_294_967_296.0
    }

    /// Mean 0, standard deviation 1 (sum of twelve uniforms: no tails beyond 6, no platform's logarithm).
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn whole(&mut self, from: i64, to: i64) -> i64 {
        let span = u64::try_from(to - from + 1).unwrap_or(1);
        from + i64::try_from(u64::from(self.next()) % span).unwrap_or(0)
    }
}

/// The bytes of one input of one case.
///
/// A normalised input moves smoothly around its mean, within its limits; in case 0 it rests there. Images are in [0, 1],
/// other floating-point inputs normally distributed, bytes anything, whole numbers 1 to 3 (they are mostly indices and
/// lengths, which must be small).
pub fn input(spec: &TensorSpec, task: Task, case: u64, random: &mut Random) -> Vec<u8> {
    if let Some(normalization) = &spec.normalization {
        let limits = spec.limit_per_channel();
        let mut state: Vec<f64> = normalization.mean.iter().map(|_| random.normal()).collect();
        let mut bytes = Vec::with_capacity(spec.byte_len());
        for i in 0..spec.elements() {
            let c = i % state.len();
            state[c] = 0.9 * state[c] + 0.4359 * random.normal();
            let (mean, std) = (f64::from(normalization.mean[c]), f64::from(normalization.std[c]));
            let value = if case == 0 { mean } else { mean + std * state[c] };
            let limit = limits[c].map_or(f64::MAX, |(_, max)| max);
            bytes.extend_from_slice(&as_f32(value.clamp(-limit, limit)).to_le_bytes());
        }
        return bytes;
    }
    let image = matches!(task, Task::Detector | Task::Classifier);
    let mut bytes = Vec::with_capacity(spec.byte_len());
    for _ in 0..spec.elements() {
        let mut float = || if image { random.uniform() } else { random.normal() };
        match spec.dtype {
            DType::Fp32 => bytes.extend_from_slice(&as_f32(float()).to_le_bytes()),
            // Doubles that FP32 holds: engines that compute in FP32 then start from the same number.
            DType::Fp64 => bytes.extend_from_slice(&f64::from(as_f32(float())).to_le_bytes()),
            DType::Fp16 => bytes.extend_from_slice(&f16::from_f64(float()).to_le_bytes()),
            DType::Bf16 => bytes.extend_from_slice(&bf16::from_f64(float()).to_le_bytes()),
            DType::Bool => bytes.push(u8::from(random.next() & 1 == 1)),
            DType::Uint8 | DType::Int8 => bytes.push(random.next().to_le_bytes()[1]),
            wide => bytes.extend_from_slice(&random.whole(1, 3).to_le_bytes()[..wide.size()]),
        }
    }
    bytes
}

fn as_f32(value: f64) -> f32 {
    #[allow(clippy::cast_possible_truncation)] // rounds; what was drawn is far from FP32's ends
    let narrow = value as f32;
    narrow
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_model::{Channels, Limit, Normalization};

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_input_and_another_case_another() {
        let spec = TensorSpec::plain("x", DType::Fp32, &[4, 4]);
        let draw = |seed, case| input(&spec, Task::Tensor, case, &mut Random::new(seed, case));
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
    }

    #[test]
    fn sensor_values_rest_at_the_mean_first_and_stay_within_the_limits() {
        let mut spec = TensorSpec::plain("x", DType::Fp32, &[1, 50, 2]);
        spec.normalization = Some(Normalization { mean: vec![9.0, 0.0], std: vec![1.0, 1000.0] });
        let names = vec!["a".to_owned(), "b".to_owned()];
        spec.limits = vec![Limit { quantity: "B".into(), channels: vec!["b".into()], max_abs: 35.0 }];
        spec.channels = Some(Channels { names, units: vec![], rate_hz: None });
        let rest = floats(&input(&spec, Task::ImuEncoder, 0, &mut Random::new(1, 0)));
        assert!(rest.chunks(2).all(|c| c == [9.0, 0.0]));
        let moving = floats(&input(&spec, Task::ImuEncoder, 1, &mut Random::new(1, 1)));
        assert!(moving.iter().all(|v| v.is_finite()) && moving.chunks(2).all(|c| c[1].abs() <= 35.0));
        assert!(moving.chunks(2).any(|c| c[1].abs() == 35.0), "the wide channel reaches its limit");
    }

    #[test]
    fn every_type_gets_as_many_bytes_as_it_needs() {
        for dtype in DType::ALL {
            let spec = TensorSpec::plain("x", dtype, &[3, 5]);
            assert_eq!(
                input(&spec, Task::Tensor, 1, &mut Random::new(1, 1)).len(),
                spec.byte_len(),
                "{dtype}"
            );
        }
    }
}
