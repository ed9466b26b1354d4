//! A linear motif head: the weights beside a model that turn its latent vector into scores.
//!
//! The file is safetensors with `weight` FP32 [K, D] and `bias` FP32 [K]: K scores over a latent of D elements.

use crate::{Manifest, Motif};
use safetensors::{Dtype, SafeTensors};

/// The weights of `sigmoid(weight z + bias)`; all finite, and as many as the manifest says.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearHead {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// Why a head is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum HeadError {
    #[error("the manifest names no linear motif head")]
    NotLinear,
    #[error("the motif head is not a safetensors file: {0}")]
    Format(String),
    #[error("the motif head has no tensor {0:?}; it needs \"weight\" and \"bias\"")]
    Missing(&'static str),
    #[error("{name} of the motif head is {dtype} {got:?}, needed is F32 {want:?}")]
    Form { name: &'static str, dtype: String, got: Vec<usize>, want: Vec<usize> },
    #[error("{0} of the motif head holds a value that is not finite")]
    NotFinite(&'static str),
}

impl LinearHead {
    /// Reads the head of this model: one row per label, one column per element of the latent.
    ///
    /// # Errors
    /// [`HeadError`] with the first thing that does not fit the manifest.
    pub fn parse(file: &[u8], manifest: &Manifest) -> Result<Self, HeadError> {
        let imu = manifest.imu.as_ref().ok_or(HeadError::NotLinear)?;
        let Some(Motif::Linear { labels, .. }) = &imu.motif else { return Err(HeadError::NotLinear) };
        let latent = manifest.outputs.iter().find(|o| o.name == imu.latent).ok_or(HeadError::NotLinear)?;
        let file = SafeTensors::deserialize(file).map_err(|e| HeadError::Format(e.to_string()))?;
        let weight = read(&file, "weight", &[labels.len(), latent.elements()])?;
        let bias = read(&file, "bias", &[labels.len()])?;
        Ok(Self { weight, bias })
    }

    /// The scores for this latent, each in [0, 1]; NaN only where the latent is not finite.
    ///
    /// # Panics
    /// Never: a bias has a row of weights.
    pub fn scores<'a>(&'a self, latent: &'a [f32]) -> impl ExactSizeIterator<Item = f32> + 'a {
        let columns = self.weight.len() / self.bias.len();
        self.weight.chunks_exact(columns).zip(&self.bias).map(move |(row, &b)| sigmoid(row, latent, b))
    }

    /// How many scores there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bias.len()
    }

    /// Whether there are none, which no manifest allows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bias.is_empty()
    }
}

fn read(file: &SafeTensors<'_>, name: &'static str, want: &[usize]) -> Result<Vec<f32>, HeadError> {
    let t = file.tensor(name).map_err(|_| HeadError::Missing(name))?;
    if t.dtype() != Dtype::F32 || t.shape() != want {
        let (dtype, got) = (format!("{:?}", t.dtype()), t.shape().to_vec());
        return Err(HeadError::Form { name, dtype, got, want: want.to_vec() });
    }
    let values: Vec<f32> =
        t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if values.iter().all(|v| v.is_finite()) { Ok(values) } else { Err(HeadError::NotFinite(name)) }
}

/// `sigmoid(row . z + b)`. The sum is kept in f64: no product of two finite f32 overflows there, so opposite products cannot
/// meet as infinities.
fn sigmoid(row: &[f32], z: &[f32], b: f32) -> f32 {
    let dot: f64 = row.iter().zip(z).map(|(&w, &z)| f64::from(w) * f64::from(z)).sum();
    let score = 1.0 / (1.0 + (-(dot + f64::from(b))).exp());
    #[allow(clippy::cast_possible_truncation)] // of precision only: the value is in [0, 1]
    {
        score as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// A model with a latent of three elements and a linear head of two scores.
    fn manifest() -> Manifest {
        let digest = "0".repeat(64);
        Manifest::from_toml(&format!(
            r#"
schema = 1
name = "imu"
version = "1"
task = "imu-encoder"
engines = ["cpu"]
budget = {{ memory_mib = 64, deadline_ms = 100 }}
onnx = {{ file = "m.onnx", sha256 = "{digest}" }}
golden = {{ file = "g.safetensors", sha256 = "{digest}", cosine = 0.99, max_abs = 1e-3 }}
imu = {{ latent = "z", motif = {{ source = "linear", file = "h", sha256 = "{digest}", labels = ["a", "b"] }} }}
inputs = [{{ name = "x", dtype = "FP32", shape = [1, 100, 9] }}]
outputs = [{{ name = "z", dtype = "FP32", shape = [1, 3] }}]
"#
        ))
        .unwrap()
    }

    type Tensor<'a> = (&'a str, Dtype, &'a [usize], &'a [f32]);

    fn file(tensors: &[Tensor<'_>]) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|t| t.3.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, dtype, shape, _), b)| (*name, TensorView::new(*dtype, shape.to_vec(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn head(weight: [f32; 6], bias: [f32; 2]) -> Result<LinearHead, HeadError> {
        let file = file(&[("weight", Dtype::F32, &[2, 3], &weight), ("bias", Dtype::F32, &[2], &bias)]);
        LinearHead::parse(&file, &manifest())
    }

    #[test]
    fn a_head_gives_the_sigmoid_of_its_rows() {
        let head = head([1.0, 0.0, 0.0, 0.0, 0.1, 0.0], [0.0, 1.0]).unwrap();
        let scores: Vec<f32> = head.scores(&[0.0, 30.0, -500.0]).collect();
        assert_eq!((head.len(), scores.len(), scores[0]), (2, 2, 0.5));
        assert!((scores[1] - 1.0 / (1.0 + (-4.0_f32).exp())).abs() < 1e-6);
    }

    #[test]
    fn products_beyond_f32_stay_numbers() {
        const M: f32 = f32::MAX;
        let head = head([M, M, 0.0, M, -M, M], [0.0, 0.0]).unwrap();
        assert_eq!(head.scores(&[M, -M, 0.0]).collect::<Vec<_>>(), [0.5, 1.0]);
    }

    #[test]
    fn a_head_that_does_not_fit_the_model_is_refused_by_name() {
        let two: Tensor<'_> = ("bias", Dtype::F32, &[2], &[0.0; 2]);
        let refused = |tensors: &[Tensor<'_>]| LinearHead::parse(&file(tensors), &manifest()).unwrap_err();
        let form = |weight: Tensor<'_>, bias| match refused(&[weight, bias]) {
            HeadError::Form { name, .. } => name,
            other => panic!("{other}"),
        };
        assert_eq!(form(("weight", Dtype::F32, &[2, 4], &[0.0; 8]), two), "weight", "columns");
        assert_eq!(form(("weight", Dtype::F32, &[3, 3], &[0.0; 9]), two), "weight", "rows");
        assert_eq!(form(("weight", Dtype::F32, &[6], &[0.0; 6]), two), "weight", "rank");
        assert_eq!(form(("weight", Dtype::I32, &[2, 3], &[0.0; 6]), two), "weight", "type");
        let good: Tensor<'_> = ("weight", Dtype::F32, &[2, 3], &[0.0; 6]);
        assert_eq!(form(good, ("bias", Dtype::F32, &[3], &[0.0; 3])), "bias");
        assert_eq!(refused(&[good]), HeadError::Missing("bias"));
        assert!(matches!(LinearHead::parse(b"rubbish", &manifest()), Err(HeadError::Format(_))));
        assert_eq!(head([f32::NAN; 6], [0.0; 2]), Err(HeadError::NotFinite("weight")));
        assert_eq!(head([0.0; 6], [f32::INFINITY; 2]), Err(HeadError::NotFinite("bias")));
    }
}
