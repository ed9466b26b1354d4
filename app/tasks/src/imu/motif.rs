//! Where motif scores come from.

use safetensors::{Dtype, SafeTensors};

/// The motif head of one model.
#[derive(Clone, Debug, PartialEq)]
pub enum MotifHead {
    /// The network computes the scores itself, in this output.
    Output {
        /// Position among the outputs.
        index: usize,
        /// One label per score.
        labels: Vec<String>,
    },
    /// `sigmoid(W z + b)` over the latent `z`.
    Linear {
        /// `W`, row-major, one row per score.
        weight: Vec<f32>,
        /// `b`.
        bias: Vec<f32>,
        /// One label per score.
        labels: Vec<String>,
    },
    /// The model has none. Zeros are served because the clients' contract has the field; they are marked as no answer.
    None {
        /// How many.
        zeros: usize,
    },
}

impl MotifHead {
    /// Reads a linear head: `weight` FP32 [K, D] and `bias` FP32 [K], all finite.
    pub(super) fn linear(file: &[u8], labels: &[String], latent: usize) -> Result<Self, String> {
        let file = SafeTensors::deserialize(file).map_err(|e| format!("not a safetensors file: {e}"))?;
        let read = |name: &str, shape: &[usize]| {
            let t = file.tensor(name).map_err(|_| format!("tensor {name:?} is missing"))?;
            if t.dtype() != Dtype::F32 || t.shape() != shape {
                return Err(format!("{name} is {:?} {:?}, needed is F32 {shape:?}", t.dtype(), t.shape()));
            }
            let values: Vec<f32> =
                t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            if values.iter().any(|v| !v.is_finite()) {
                return Err(format!("{name} holds a value that is not finite"));
            }
            Ok(values)
        };
        let weight = read("weight", &[labels.len(), latent])?;
        let bias = read("bias", &[labels.len()])?;
        Ok(Self::Linear { weight, bias, labels: labels.to_vec() })
    }

    /// The source's name on the wire: `output`, `linear` or `none`.
    #[must_use]
    pub fn source(&self) -> &'static str {
        match self {
            Self::Output { .. } => "output",
            Self::Linear { .. } => "linear",
            Self::None { .. } => "none",
        }
    }

    /// How many scores there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Output { labels, .. } | Self::Linear { labels, .. } => labels.len(),
            Self::None { zeros } => *zeros,
        }
    }

    /// Whether there are no scores at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One label per score; empty when the scores mean nothing.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Output { labels, .. } | Self::Linear { labels, .. } => labels,
            Self::None { .. } => &[],
        }
    }
}

/// `sigmoid(row . z + b)`, without overflow for any finite argument.
pub(super) fn score(row: &[f32], z: &[f32], b: f32) -> f32 {
    let dot: f32 = row.iter().zip(z).map(|(w, z)| w * z).sum();
    1.0 / (1.0 + (-(dot + b)).exp())
}
