//! Golden vectors: recorded inputs with the outputs a right engine gives, and the comparison.
//!
//! The file is safetensors. Case `i` (from 0, without gaps) has one tensor per input under `i/in/NAME` and one per
//! output under `i/out/NAME`. Inputs are as a client sends them: raw units, before normalisation, so that the check
//! covers normalisation too.

use crate::{DType, Manifest, TensorSpec, Tolerance};
use safetensors::{Dtype as StDtype, SafeTensors, tensor::TensorView};

/// The most cases a file may hold.
const MAX_CASES: usize = 64;

/// The golden vectors of one model, checked against its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    cases: Vec<GoldenCase>,
    /// The length of the longest of each output.
    longest: Vec<f64>,
}

/// One recorded call. Bytes are little-endian and row-major, in the manifest's order of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenCase {
    /// One buffer per input.
    pub inputs: Vec<Vec<u8>>,
    /// One buffer per output.
    pub outputs: Vec<Vec<u8>>,
}

/// Why golden vectors are refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum GoldenError {
    #[error("golden vectors are not a safetensors file: {0}")]
    Format(String),
    #[error("golden vectors: tensor {0} is missing")]
    Missing(String),
    #[error("golden vectors: tensor {name} is {got}, the manifest says {want}")]
    Mismatch { name: String, got: String, want: String },
    #[error("golden vectors: {0:?} is not a tensor of this model")]
    Unknown(String),
    #[error("golden vectors: at least 1 and at most {MAX_CASES} cases are needed")]
    Cases,
    #[error("golden vectors: tensor {0} holds a value that is not finite")]
    NotFinite(String),
}

/// An output shorter than this part of the longest of its kind says nothing to a variant: scores of a motif that is not there are all near
/// 0, and in steps of 1/255 their direction is chance. `inferctl quantize` judges by the same (`SILENT` in its quantize.py).
const SILENT: f64 = 0.01;

/// How near an engine came to the golden vectors, over all cases and outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// The least cosine similarity of any output of any case that says anything.
    pub cosine: f64,
    /// The largest absolute difference of any element.
    pub max_abs: f64,
}

impl Agreement {
    /// How near `got` is to `want`: two tensors of one type and length, little-endian. When `got` holds a value that is not
    /// finite, the cosine is NaN and the difference infinite.
    #[must_use]
    pub fn of(dtype: DType, want: &[u8], got: &[u8]) -> Self {
        // An angle does not depend on lengths, and the square of a large FP64 would be infinite.
        let unit = |bytes| {
            let largest = elements(dtype, bytes).fold(0.0_f64, |largest, v| largest.max(v.abs()));
            if largest > 1e100 { largest } else { 1.0 }
        };
        let units = if dtype == DType::Fp64 { (unit(want), unit(got)) } else { (1.0, 1.0) };
        agreement(elements(dtype, want), elements(dtype, got), units)
    }
}

/// An engine's answer is not the recorded one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "golden case {case}, output {output}: cosine {cosine:.6} (at least {min_cosine}), \
     largest difference {max_abs:.3e} (at most {limit:.3e})"
)]
pub struct Mismatch {
    /// Which case, from 0.
    pub case: usize,
    /// The output's name.
    pub output: String,
    /// Measured cosine similarity.
    pub cosine: f64,
    /// The manifest's least cosine.
    pub min_cosine: f64,
    /// Measured largest absolute difference.
    pub max_abs: f64,
    /// The manifest's largest difference.
    pub limit: f64,
}

impl Golden {
    /// Reads golden vectors and checks that they are complete for this model.
    ///
    /// # Errors
    /// [`GoldenError`] when the file is damaged, a tensor is missing, of another shape or type, or unknown.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, GoldenError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| GoldenError::Format(e.to_string()))?;
        let per_case = manifest.inputs.len() + manifest.outputs.len();
        let count = file.len() / per_case;
        if count == 0 || count > MAX_CASES {
            return Err(GoldenError::Cases);
        }
        let take = |case: usize, way: &str, spec: &TensorSpec| {
            let name = format!("{case}/{way}/{}", spec.name);
            let Ok(t) = file.tensor(&name) else { return Err(GoldenError::Missing(name)) };
            let same_shape = t.shape().iter().copied().eq(spec.shape.iter().map(|&d| d as usize));
            if t.dtype() != st_dtype(spec.dtype) || !same_shape {
                return Err(GoldenError::Mismatch {
                    name,
                    got: format!("{:?} {:?}", t.dtype(), t.shape()),
                    want: format!("{} {:?}", spec.dtype, spec.shape),
                });
            }
            if elements(spec.dtype, t.data()).any(|v| !v.is_finite()) {
                return Err(GoldenError::NotFinite(name));
            }
            Ok(t.data().to_vec())
        };
        let cases: Vec<GoldenCase> = (0..count)
            .map(|i| {
                Ok(GoldenCase {
                    inputs: manifest.inputs.iter().map(|s| take(i, "in", s)).collect::<Result<_, _>>()?,
                    outputs: manifest.outputs.iter().map(|s| take(i, "out", s)).collect::<Result<_, _>>()?,
                })
            })
            .collect::<Result<_, GoldenError>>()?;
        let expected = |name: &str| {
            let mut parts = name.splitn(3, '/');
            let case = parts.next().and_then(|c| c.parse::<usize>().ok());
            let specs = match parts.next() {
                Some("in") => &manifest.inputs,
                Some("out") => &manifest.outputs,
                _ => return false,
            };
            let tensor = parts.next();
            case.is_some_and(|c| c < count) && specs.iter().any(|s| Some(s.name.as_str()) == tensor)
        };
        if let Some(unknown) = file.names().into_iter().find(|n| !expected(n)) {
            return Err(GoldenError::Unknown(unknown.to_owned()));
        }
        let length = |i: usize, spec: &TensorSpec| {
            cases.iter().map(|c| length(spec.dtype, &c.outputs[i])).fold(0.0, f64::max)
        };
        let longest = manifest.outputs.iter().enumerate().map(|(i, spec)| length(i, spec)).collect();
        Ok(Self { cases, longest })
    }

    /// Whether output `i` says nothing in what was recorded and in what was answered: then `max_abs` alone holds it.
    fn is_silent(&self, i: usize, dtype: DType, want: &[u8], got: &[u8]) -> bool {
        let least = SILENT * self.longest[i];
        least.is_finite() && length(dtype, want) < least && length(dtype, got) < 2.0 * least
    }

    /// The recorded calls; at least one.
    #[must_use]
    pub fn cases(&self) -> &[GoldenCase] {
        &self.cases
    }

    /// Compares one case's outputs with what an engine answered. The tolerance is that of the network that ran
    /// ([`Manifest::tolerance`]). Of a variant's output that says nothing, in the recording and in the answer, no direction is asked.
    ///
    /// # Errors
    /// [`Mismatch`] for the first output outside the tolerance; an answer that is not finite, or of
    /// another length, never agrees.
    pub fn compare(
        &self,
        case: usize,
        outputs: &[&[u8]],
        manifest: &Manifest,
        tolerance: Tolerance,
    ) -> Result<Agreement, Mismatch> {
        let mut worst = Agreement { cosine: 1.0, max_abs: 0.0 };
        let want = &self.cases[case].outputs;
        // The network itself is as exact on small numbers as on large ones. A variant computes in steps of its largest.
        let is_variant = tolerance != manifest.golden.tolerance();
        for (i, spec) in manifest.outputs.iter().enumerate() {
            let got = outputs.get(i).copied().unwrap_or_default();
            let a = if got.len() == want[i].len() {
                Agreement::of(spec.dtype, &want[i], got)
            } else {
                Agreement { cosine: f64::NAN, max_abs: f64::INFINITY }
            };
            let silent = is_variant && self.is_silent(i, spec.dtype, &want[i], got);
            let near = (silent || a.cosine >= tolerance.cosine) && a.max_abs <= tolerance.max_abs;
            if !near {
                return Err(Mismatch {
                    case,
                    output: spec.name.clone(),
                    cosine: a.cosine,
                    min_cosine: tolerance.cosine,
                    max_abs: a.max_abs,
                    limit: tolerance.max_abs,
                });
            }
            if !silent {
                worst.cosine = worst.cosine.min(a.cosine);
            }
            worst.max_abs = worst.max_abs.max(a.max_abs);
        }
        Ok(worst)
    }
}

/// Collects cases and writes the file.
#[derive(Debug, Default)]
pub struct GoldenWriter {
    cases: Vec<GoldenCase>,
}

impl GoldenWriter {
    /// Adds one recorded call.
    pub fn push(&mut self, case: GoldenCase) {
        self.cases.push(case);
    }

    /// The file's bytes; the same cases give the same bytes.
    ///
    /// # Errors
    /// [`GoldenError::Format`] when a buffer does not fit its specification.
    pub fn to_bytes(&self, inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Result<Vec<u8>, GoldenError> {
        let format = |e: safetensors::SafeTensorError| GoldenError::Format(e.to_string());
        let mut tensors = std::collections::BTreeMap::new();
        for (i, case) in self.cases.iter().enumerate() {
            let ways = [("in", inputs, &case.inputs), ("out", outputs, &case.outputs)];
            for (way, specs, buffers) in ways {
                for (spec, data) in specs.iter().zip(buffers) {
                    let shape = spec.shape.iter().map(|&d| d as usize).collect();
                    let view = TensorView::new(st_dtype(spec.dtype), shape, data).map_err(format)?;
                    tensors.insert(format!("{i}/{way}/{}", spec.name), view);
                }
            }
        }
        safetensors::serialize(tensors, None).map_err(format)
    }
}

fn st_dtype(d: DType) -> StDtype {
    match d {
        DType::Bool => StDtype::BOOL,
        DType::Uint8 => StDtype::U8,
        DType::Uint16 => StDtype::U16,
        DType::Uint32 => StDtype::U32,
        DType::Uint64 => StDtype::U64,
        DType::Int8 => StDtype::I8,
        DType::Int16 => StDtype::I16,
        DType::Int32 => StDtype::I32,
        DType::Int64 => StDtype::I64,
        DType::Fp16 => StDtype::F16,
        DType::Bf16 => StDtype::BF16,
        DType::Fp32 => StDtype::F32,
        DType::Fp64 => StDtype::F64,
    }
}

/// The elements of a little-endian tensor as f64 (64-bit integers may round: the comparison has a tolerance).
fn elements(dtype: DType, bytes: &[u8]) -> Box<dyn Iterator<Item = f64> + '_> {
    macro_rules! of {
        ($t:ty, $n:literal) => {
            Box::new(bytes.chunks_exact($n).map(|c| {
                #[allow(clippy::cast_precision_loss, clippy::cast_lossless)]
                let v = <$t>::from_le_bytes(c.try_into().expect("chunks of this size")) as f64;
                v
            }))
        };
    }
    match dtype {
        DType::Bool | DType::Uint8 => of!(u8, 1),
        DType::Int8 => of!(i8, 1),
        DType::Uint16 => of!(u16, 2),
        DType::Int16 => of!(i16, 2),
        DType::Uint32 => of!(u32, 4),
        DType::Int32 => of!(i32, 4),
        DType::Uint64 => of!(u64, 8),
        DType::Int64 => of!(i64, 8),
        DType::Fp32 => of!(f32, 4),
        DType::Fp64 => of!(f64, 8),
        DType::Fp16 => {
            Box::new(bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f64()))
        }
        DType::Bf16 => {
            Box::new(bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f64()))
        }
    }
}

/// The Euclidean length of a tensor.
fn length(dtype: DType, bytes: &[u8]) -> f64 {
    elements(dtype, bytes).map(|v| v * v).sum::<f64>().sqrt()
}

fn agreement(
    want: impl Iterator<Item = f64>,
    got: impl Iterator<Item = f64>,
    units: (f64, f64),
) -> Agreement {
    let (mut dot, mut ww, mut gg, mut max_abs) = (0.0, 0.0, 0.0, 0.0_f64);
    let mut finite = true;
    for (w, g) in want.zip(got) {
        finite &= g.is_finite();
        max_abs = max_abs.max((w - g).abs());
        let (w, g) = (w / units.0, g / units.1);
        dot += w * g;
        ww += w * w;
        gg += g * g;
    }
    let cosine = match (ww > 0.0, gg > 0.0) {
        _ if !finite => return Agreement { cosine: f64::NAN, max_abs: f64::INFINITY },
        (true, true) => (dot / (ww.sqrt() * gg.sqrt())).clamp(-1.0, 1.0),
        // Two zero vectors are the same; a zero and a non-zero vector have no angle and do not agree.
        (false, false) => 1.0,
        _ => 0.0,
    };
    Agreement { cosine, max_abs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Budget, EngineKind, FileRef, GoldenRef, ModelName, Task};

    fn manifest() -> Manifest {
        Manifest {
            schema: crate::SCHEMA,
            name: ModelName::new("m").unwrap(),
            version: "1".into(),
            task: Task::Tensor,
            summary: String::new(),
            engines: vec![EngineKind::Cpu.into()],
            variants: Vec::new(),
            engine_versions: std::collections::BTreeMap::new(),
            budget: Budget { memory_mib: 64, deadline_ms: 100, queue: None, workers: None },
            onnx: FileRef { file: "m.onnx".into(), sha256: "0".repeat(64) },
            golden: GoldenRef { file: "g".into(), sha256: "0".repeat(64), cosine: 0.9999, max_abs: 1e-3 },
            imu: None,
            emg: None,
            provenance: None,
            accuracy: vec![],
            inputs: vec![TensorSpec::plain("x", DType::Fp32, &[2])],
            outputs: vec![TensorSpec::plain("y", DType::Fp32, &[2])],
        }
    }

    fn bytes(v: [f32; 2]) -> Vec<u8> {
        v.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn file(x: [f32; 2], y: [f32; 2]) -> Vec<u8> {
        let m = manifest();
        let mut w = GoldenWriter::default();
        w.push(GoldenCase { inputs: vec![bytes(x)], outputs: vec![bytes(y)] });
        w.to_bytes(&m.inputs, &m.outputs).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let m = manifest();
        let g = Golden::parse(&file([1.0, 2.0], [3.0, 4.0]), &m).unwrap();
        assert_eq!(g.cases().len(), 1);
        let a = g.compare(0, &[&bytes([3.0, 4.0])], &m, m.golden.tolerance()).unwrap();
        assert!(a.cosine > 0.999_999 && a.max_abs == 0.0);
    }

    #[test]
    fn an_answer_outside_the_tolerance_is_a_mismatch() {
        let m = manifest();
        let g = Golden::parse(&file([1.0, 2.0], [3.0, 4.0]), &m).unwrap();
        assert!(g.compare(0, &[&bytes([3.0, 4.002])], &m, m.golden.tolerance()).is_err(), "too far");
        assert!(g.compare(0, &[&bytes([3.0, f32::NAN])], &m, m.golden.tolerance()).is_err(), "not a number");
        assert!(
            g.compare(0, &[&bytes([0.0, 0.0])], &m, m.golden.tolerance()).is_err(),
            "zeros are no answer"
        );
        assert!(g.compare(0, &[&[]], &m, m.golden.tolerance()).is_err(), "no bytes");
        assert!(g.compare(0, &[], &m, m.golden.tolerance()).is_err(), "no output");
    }

    #[test]
    fn an_output_that_says_nothing_is_asked_for_no_direction_and_must_go_on_saying_nothing() {
        let m = manifest();
        let mut w = GoldenWriter::default();
        for y in [[100.0, 0.0], [0.6, 0.0], [2.0, 0.0]] {
            w.push(GoldenCase { inputs: vec![bytes([1.0, 2.0])], outputs: vec![bytes(y)] });
        }
        let golden = Golden::parse(&w.to_bytes(&m.inputs, &m.outputs).unwrap(), &m).unwrap();
        let tolerance = Tolerance { cosine: 0.95, max_abs: 3.0 };
        let of = |case, got| golden.compare(case, &[&bytes(got)], &m, tolerance);
        assert_eq!(of(1, [0.0, 0.6]).map(|a| a.cosine), Ok(1.0), "a hundredth of the longest is nothing");
        assert!(of(1, [0.0, 2.1]).is_err(), "it says something now");
        assert!(of(2, [0.0, 0.6]).is_err(), "it said something");
        assert!(of(1, [3.7, 0.0]).is_err(), "the largest difference holds it all the same");
        assert!(of(1, [f32::NAN, 0.0]).is_err());
        let own = Manifest { golden: GoldenRef { cosine: 0.95, max_abs: 3.0, ..m.golden.clone() }, ..m };
        assert!(
            golden.compare(1, &[&bytes([0.0, 0.6])], &own, tolerance).is_err(),
            "the network itself is asked"
        );
    }

    #[test]
    fn the_largest_numbers_have_an_angle() {
        let of = |want: [f64; 2], got: [f64; 2]| {
            let bytes = |v: [f64; 2]| v.map(f64::to_le_bytes).concat();
            Agreement::of(DType::Fp64, &bytes(want), &bytes(got))
        };
        let large = [f64::MAX, -f64::MAX];
        let same = of(large, large);
        assert!(same.cosine > 0.999_999 && same.max_abs == 0.0);
        assert!((of([f64::MAX, 0.0], large).cosine - 0.5_f64.sqrt()).abs() < 1e-9);
        assert!(of(large, [1.0, -1.0]).cosine > 0.999_999);
        assert!(of(large, [f64::INFINITY, 0.0]).cosine.is_nan());
        assert_eq!(of(large, [0.0, 0.0]).cosine, 0.0);
    }

    #[test]
    fn damaged_or_foreign_files_are_refused() {
        let m = manifest();
        assert!(matches!(Golden::parse(b"", &m), Err(GoldenError::Format(_))));
        assert!(matches!(Golden::parse(&[0xff; 64], &m), Err(GoldenError::Format(_))));
        let good = file([1.0, 2.0], [3.0, 4.0]);
        assert!(Golden::parse(&good[..good.len() - 1], &m).is_err());
        assert!(matches!(
            Golden::parse(&file([1.0, f32::INFINITY], [0.0, 0.0]), &m),
            Err(GoldenError::NotFinite(_))
        ));
        let mut other = manifest();
        other.inputs[0].shape = vec![1, 2];
        assert!(matches!(Golden::parse(&good, &other), Err(GoldenError::Mismatch { .. })));
        other.inputs[0].name = "z".into();
        assert!(matches!(Golden::parse(&good, &other), Err(GoldenError::Missing(_))));
    }
}
