//! The z-score that makes sensor units out of what a network was trained on.

use serde::{Deserialize, Serialize};

/// Per-channel z-score over the last dimension: `(x - mean[c]) / std[c]`, in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Mean per channel, in the channel's unit.
    pub mean: Vec<f32>,
    /// Standard deviation per channel, in the channel's unit; above zero.
    pub std: Vec<f32>,
}

impl Normalization {
    /// Writes the normalised `raw` to `out`. Channels are the fastest-moving dimension.
    ///
    /// # Panics
    /// When the lengths differ; both come from one validated specification.
    pub fn apply(&self, raw: &[f32], out: &mut [f32]) {
        assert_eq!(raw.len(), out.len(), "one specification sized both");
        let c = self.mean.len();
        for (row, to) in raw.chunks_exact(c).zip(out.chunks_exact_mut(c)) {
            for (((x, y), m), s) in row.iter().zip(to).zip(&self.mean).zip(&self.std) {
                *y = (x - m) / s;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_has_its_own_constants() {
        let n = Normalization { mean: vec![1.0, 10.0], std: vec![2.0, 5.0] };
        let mut out = [0.0; 4];
        n.apply(&[3.0, 20.0, 1.0, 10.0], &mut out);
        assert_eq!(out, [1.0, 2.0, 0.0, 0.0]);
    }
}
