//! The manifest: one TOML page that says everything about a model.
//!
//! A model is a directory with `manifest.toml` ([`MANIFEST_FILE`]), the network and its golden vectors; a bundle
//! carries the same page. `app/model/README.md` shows a complete one.

use crate::{DType, ModelName, NetworkFormat, Rung, SpecError, TensorSpec, Tolerance, Variant, VariantName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The manifest's file name inside a model directory.
pub const MANIFEST_FILE: &str = "manifest.toml";
/// Version of this format, in the manifest's `schema` key.
pub const SCHEMA: u32 = 1;
/// The largest manifest that is read.
pub const MAX_MANIFEST_BYTES: usize = 256 << 10;
/// The most inputs, and the most outputs, a model may have.
pub const MAX_TENSORS: usize = 16;

/// Everything about a model but its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the manifest format: [`SCHEMA`].
    pub schema: u32,
    /// The name the model is served under.
    pub name: ModelName,
    /// The model's own version, free text without spaces: `1.2.0`.
    pub version: String,
    /// What the model is for; decides which endpoints it answers.
    pub task: Task,
    /// One line for people.
    #[serde(default)]
    pub summary: String,
    /// Engines that may run it and what they run, the preferred one first: `["ort-int8", "ort", "cpu"]`. A model is served by the
    /// first that the image has and that is well.
    pub engines: Vec<Rung>,
    /// Versions of engines it needs, as Cargo writes requirements: `cpu = ">=0.24, <0.26"`. Of an engine that is not named any
    /// version will do. Asked before a bundle is let in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub engine_versions: BTreeMap<EngineKind, String>,
    /// What it may use.
    pub budget: Budget,
    /// The network.
    pub onnx: FileRef,
    /// Recorded inputs and outputs that every load must reproduce.
    pub golden: GoldenRef,
    /// Parameters of the task `imu-encoder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imu: Option<ImuTask>,
    /// Parameters of the task `emg-classifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emg: Option<EmgTask>,
    /// Where the model comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
    /// Measured quality, each with the data it was measured on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accuracy: Vec<Accuracy>,
    /// Inputs in the graph's order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the graph's order.
    pub outputs: Vec<TensorSpec>,
    /// Files made of the network for an engine: quantised, or compiled for a device. Each is named by one of `engines` at least.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A window of inertial samples to a latent vector and motif scores.
    ImuEncoder,
    /// A window of muscle signals to a gesture.
    EmgClassifier,
    /// An image to boxes.
    Detector,
    /// An image to one class.
    Classifier,
    /// Tensors in, tensors out; only the Open Inference Protocol.
    Tensor,
}

/// A way to run a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The built-in engine, pure Rust.
    Cpu,
    /// ONNX Runtime.
    Ort,
    /// HailoRT.
    Hailo,
    /// TensorRT plans.
    Tensorrt,
}

/// What a model may use while it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Hard cap of the engine host's own memory, in MiB: weights as the engine keeps them and the workspaces of all
    /// workers. The shared ring and the model file come on top.
    pub memory_mib: u32,
    /// The longest one inference may compute, in milliseconds. A worker past it is killed with its host.
    pub deadline_ms: u32,
    /// Requests that may wait at once; the daemon's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// Worker threads; the daemon's default (one per core) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
}

/// A file beside the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRef {
    /// File name in the model directory; no path.
    pub file: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
}

/// The golden vectors and how near an engine must come to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenRef {
    /// File name in the model directory (safetensors, see [`crate::Golden`]).
    pub file: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
    /// Least cosine similarity per output that says anything, in (0, 1], of the model's own network. A variant has its own.
    pub cosine: f64,
    /// Largest absolute difference of any element, in the output's unit, likewise.
    pub max_abs: f64,
}

/// Parameters of the task `imu-encoder`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImuTask {
    /// The output that is the latent vector.
    pub latent: String,
    /// Where motif scores come from. Absent: the model has none; twelve zeros are served and marked so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub motif: Option<Motif>,
}

/// Parameters of the task `emg-classifier`. What windows are called, in which unit and at which rate stands in the input's
/// `channels`, a fixed scaler in its `normalization`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmgTask {
    /// The output that scores the gestures, before softmax.
    pub logits: String,
    /// What each score is about.
    pub labels: Vec<String>,
    /// The kind of network, by which clients choose among models: `tcn`, `snn`, `hybrid`, `spiking_tcn`.
    pub family: String,
    /// How a window is scaled.
    #[serde(default)]
    pub scaling: EmgScaling,
    /// What it was trained behind: applied in this order by the daemon, before scaling. They need the input's `rate_hz`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<EmgFilter>,
    /// The output whose elements add up to the number of spikes, where the network has neurons that spike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spikes: Option<String>,
    /// The output that a head is fitted on for a person; without it the model cannot be calibrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
    /// How strong the signal of each channel is, filtered and not scaled, for each label: the deviation over a held gesture, typical of
    /// the people it was trained on. By it a calibration sees that channels are swapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<Vec<f32>>,
}

/// How a window of muscle signals is scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmgScaling {
    /// By the input's `normalization`, in the engine host; a model without one gets the values as they are.
    #[default]
    Fixed,
    /// Each channel by its own mean and deviation over the window, by the daemon. Golden inputs are scaled already.
    PerWindow,
}

/// A causal filter; `app/sources` designs it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum EmgFilter {
    /// Butterworth, -3 dB at both edges; `order` is that of each.
    BandPass { low_hz: f64, high_hz: f64, order: u8 },
    /// Butterworth, -3 dB at the edge.
    HighPass { hz: f64, order: u8 },
    /// Butterworth, -3 dB at the edge.
    LowPass { hz: f64, order: u8 },
    /// Nothing of one frequency; `q` is it divided by the width at -3 dB.
    Notch { hz: f64, q: f64 },
}

/// A motif head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Motif {
    /// An output of the network holds the scores, each already in [0, 1].
    Output {
        /// The output's name.
        output: String,
        /// One label per score.
        labels: Vec<String>,
    },
    /// `sigmoid(W latent + b)`, weights in a safetensors file with `weight` FP32 [K, D] and `bias` FP32 [K].
    Linear {
        /// File name in the model directory.
        file: String,
        /// SHA-256 of the content, 64 lower-case hex digits.
        sha256: String,
        /// One label per score.
        labels: Vec<String>,
    },
}

impl Motif {
    /// One label per score, in the order of the scores.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Output { labels, .. } | Self::Linear { labels, .. } => labels,
        }
    }

    /// The name of the source on the wire: `output` or `linear`.
    #[must_use]
    pub fn source(&self) -> &'static str {
        match self {
            Self::Output { .. } => "output",
            Self::Linear { .. } => "linear",
        }
    }
}

/// Where a model comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Who or what made it.
    #[serde(default)]
    pub source: String,
    /// SPDX licence expression.
    #[serde(default)]
    pub license: String,
    /// Anything else worth knowing.
    #[serde(default)]
    pub notes: String,
}

/// One measured quality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// The data it was measured on, and that it was unseen in training.
    pub dataset: String,
    /// What was measured: `top-1`.
    pub metric: String,
    /// The value, a ratio in [0, 1].
    pub value: f64,
    /// How many samples it was measured on.
    pub samples: u64,
}

/// Why a manifest is refused; every message names the key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ManifestError {
    #[error("manifest is {0} bytes, at most {MAX_MANIFEST_BYTES} are read")]
    TooLarge(usize),
    #[error("manifest is not valid TOML of this form: {0}")]
    Toml(String),
    #[error("schema is {0}, this program reads {SCHEMA}")]
    Schema(u32),
    #[error("version {0:?}: 1 to 64 printable characters without spaces")]
    Version(String),
    #[error("engine_versions.{}: a requirement such as \">=4.20, <5\", for an engine that `engines` names", .0.name())]
    EngineVersion(EngineKind),
    #[error("engines: name at least one, each once")]
    Engines,
    #[error("engines: {0} names a variant that [[variants]] does not have")]
    NoSuchVariant(Rung),
    #[error("engines: {rung}: this engine cannot run a file of format {format}")]
    Format { rung: Rung, format: NetworkFormat },
    #[error(
        "engines: {rung} needs exactly one variant of format {format}, there are {count}; name one as {rung}-VARIANT"
    )]
    OnlyVariant { rung: Rung, format: NetworkFormat, count: usize },
    #[error("variants: at most {}, each name once", crate::MAX_VARIANTS)]
    Variants,
    #[error("variants: no entry of `engines` uses {0}")]
    UnusedVariant(VariantName),
    #[error("variants: {name}: {key}: {why}")]
    Variant { name: VariantName, key: &'static str, why: &'static str },
    #[error("variants: {0:?} is named twice as a file of this model")]
    FileTwice(String),
    #[error("budget.{key} is {value}, allowed are {min} to {max}")]
    Budget { key: &'static str, value: u64, min: u64, max: u64 },
    #[error("{key}: {file:?} is not a plain file name")]
    File { key: &'static str, file: String },
    #[error("{key}: sha256 is 64 lower-case hex digits")]
    Digest { key: &'static str },
    #[error("golden.{0}: out of range")]
    Tolerance(&'static str),
    #[error("{0}: between 1 and {MAX_TENSORS} tensors, each with its own name")]
    Tensors(&'static str),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{key}: the model has no output {name:?}")]
    NoSuchOutput { key: &'static str, name: String },
    #[error("task imu-encoder: {0}")]
    Imu(String),
    #[error("task emg-classifier: {0}")]
    Emg(String),
}

impl Manifest {
    /// Whether a rung may run on this version of its engine, as the engine writes it (`rten 0.25.0`: its last word counts).
    #[must_use]
    pub fn suits(&self, rung: Rung, version: &str) -> bool {
        let number = version.split_whitespace().next_back().unwrap_or_default();
        self.asks_of(rung).into_iter().all(|wanted| {
            match (semver::VersionReq::parse(wanted), semver::Version::parse(number)) {
                (Ok(wanted), Ok(number)) => wanted.matches(&number),
                // What cannot be compared is not known to do.
                _ => false,
            }
        })
    }

    /// The requirements on the version of a rung's engine: the model's, and what its file was compiled for.
    #[must_use]
    pub fn asks_of(&self, rung: Rung) -> Vec<&str> {
        let variant = self.network(rung).and_then(|n| n.variant?.made_for.as_ref());
        let of_model = self.engine_versions.get(&rung.engine);
        of_model.map(String::as_str).into_iter().chain(variant.map(|m| m.runtime.as_str())).collect()
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] with the first thing that is wrong.
    pub fn from_toml(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(text.len()));
        }
        toml::from_str::<Self>(text).map_err(|e| ManifestError::Toml(e.to_string()))?.validated()
    }

    /// The manifest as TOML, comments not included.
    ///
    /// # Panics
    /// Never for a validated manifest: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of a manifest has a TOML form")
    }

    /// Checks a manifest made in code.
    ///
    /// # Errors
    /// [`ManifestError`] with the first thing that is wrong.
    pub fn validated(self) -> Result<Self, ManifestError> {
        if self.schema != SCHEMA {
            return Err(ManifestError::Schema(self.schema));
        }
        if !(1..=64).contains(&self.version.len()) || !self.version.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ManifestError::Version(self.version));
        }
        let unique = (1..self.engines.len()).all(|i| !self.engines[..i].contains(&self.engines[i]));
        if self.engines.is_empty() || !unique {
            return Err(ManifestError::Engines);
        }
        for (engine, wanted) in &self.engine_versions {
            let readable = wanted.len() <= 100 && semver::VersionReq::parse(wanted).is_ok();
            if !readable || self.engines.iter().all(|r| r.engine != *engine) {
                return Err(ManifestError::EngineVersion(*engine));
            }
        }
        let range = |key, value: u64, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(ManifestError::Budget { key, value, min, max })
            }
        };
        range("memory_mib", self.budget.memory_mib.into(), 8, 1 << 20)?;
        range("deadline_ms", self.budget.deadline_ms.into(), 1, 600_000)?;
        if let Some(q) = self.budget.queue {
            range("queue", q.into(), 1, 4096)?;
        }
        if let Some(w) = self.budget.workers {
            range("workers", w.into(), 1, 64)?;
        }
        check_file("onnx", &self.onnx.file, &self.onnx.sha256)?;
        check_file("golden", &self.golden.file, &self.golden.sha256)?;
        if let Some(key) = self.golden.tolerance().wrong() {
            return Err(ManifestError::Tolerance(key));
        }
        self.check_variants()?;
        for (key, specs) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            let unique = (1..specs.len()).all(|i| specs[..i].iter().all(|s| s.name != specs[i].name));
            if specs.is_empty() || specs.len() > MAX_TENSORS || !unique {
                return Err(ManifestError::Tensors(key));
            }
            specs.iter().try_for_each(TensorSpec::check)?;
        }
        if self.task == Task::ImuEncoder {
            self.check_imu()?;
        }
        if self.task == Task::EmgClassifier {
            self.check_emg()?;
        }
        Ok(self)
    }

    fn check_imu(&self) -> Result<(), ManifestError> {
        let fail = |m: &str| Err(ManifestError::Imu(m.to_owned()));
        let Some(imu) = &self.imu else { return fail("needs an [imu] section") };
        let [input] = &self.inputs[..] else { return fail("has exactly one input") };
        if input.dtype != DType::Fp32 || input.shape.len() != 3 || input.shape[0] != 1 {
            return fail("its input is FP32 [1, timesteps, channels]");
        }
        let latent = self.output("imu.latent", &imu.latent)?;
        if latent.dtype != DType::Fp32 {
            return fail("its latent is FP32");
        }
        match &imu.motif {
            Some(Motif::Output { output, labels }) => {
                let scores = self.output("imu.motif.output", output)?;
                if scores.dtype != DType::Fp32 || scores.elements() != labels.len() {
                    return fail("motif.labels needs one label per element of the FP32 output");
                }
            }
            Some(Motif::Linear { file, sha256, labels }) => {
                check_file("imu.motif", file, sha256)?;
                if labels.is_empty() || labels.len() > 1024 {
                    return fail("motif.labels has 1 to 1024 entries");
                }
            }
            None => {}
        }
        Ok(())
    }

    fn check_emg(&self) -> Result<(), ManifestError> {
        let fail = |m: &str| Err(ManifestError::Emg(m.to_owned()));
        let Some(emg) = &self.emg else { return fail("needs an [emg] section") };
        let [input] = &self.inputs[..] else { return fail("has exactly one input") };
        if input.dtype != DType::Fp32 || input.shape.len() != 3 || input.shape[0] != 1 {
            return fail("its input is FP32 [1, timesteps, channels]");
        }
        let logits = self.output("emg.logits", &emg.logits)?;
        if logits.dtype != DType::Fp32 || logits.elements() != emg.labels.len() {
            return fail("emg.labels needs one label per element of the FP32 output");
        }
        let label = |l: &String| (1..=64).contains(&l.chars().count()) && !l.chars().any(char::is_control);
        let unique = (1..emg.labels.len()).all(|i| !emg.labels[..i].contains(&emg.labels[i]));
        if !(2..=1024).contains(&emg.labels.len()) || !unique || !emg.labels.iter().all(label) {
            return fail("emg.labels has 2 to 1024 entries of 1 to 64 characters, each once");
        }
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        if !(1..=32).contains(&emg.family.len()) || !emg.family.bytes().all(word) {
            return fail("emg.family is 1 to 32 of a-z, 0-9, _ and -");
        }
        if let Some(spikes) = &emg.spikes
            && self.output("emg.spikes", spikes)?.dtype != DType::Fp32
        {
            return fail("its spikes are FP32");
        }
        if let Some(features) = &emg.features
            && self.output("emg.features", features)?.dtype != DType::Fp32
        {
            return fail("its features are FP32");
        }
        let pattern = |row: &Vec<f32>| {
            u64::try_from(row.len()).is_ok_and(|n| n == u64::from(input.shape[2]))
                && row.iter().all(|v| v.is_finite() && *v > 0.0)
        };
        let whole = emg.patterns.len() == emg.labels.len() && emg.patterns.iter().all(pattern);
        if !emg.patterns.is_empty() && !whole {
            return fail("emg.patterns has a row per label of a number above 0 per channel");
        }
        let rate = input.channels.as_ref().and_then(|c| c.rate_hz);
        if rate.is_some_and(|hz| !(hz > 0.0 && hz <= 1e6)) {
            return fail("channels.rate_hz is above 0 and at most 1000000");
        }
        if !emg.filters.is_empty() && rate.is_none() {
            return fail("filters need channels.rate_hz of the input");
        }
        if emg.scaling == EmgScaling::PerWindow && input.normalization.is_some() {
            return fail("a window is scaled once: by normalization or by itself");
        }
        Ok(())
    }

    fn output(&self, key: &'static str, name: &str) -> Result<&TensorSpec, ManifestError> {
        let found = self.outputs.iter().find(|o| o.name == name);
        found.ok_or_else(|| ManifestError::NoSuchOutput { key, name: name.to_owned() })
    }
}

impl GoldenRef {
    /// How near the model's own network must come to them.
    #[must_use]
    pub fn tolerance(&self) -> Tolerance {
        Tolerance { cosine: self.cosine, max_abs: self.max_abs }
    }
}

impl EngineKind {
    /// Every engine, in the order of the enumeration.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Ort, Self::Hailo, Self::Tensorrt];

    /// The engine's name in configuration, metrics and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Ort => "ort",
            Self::Hailo => "hailo",
            Self::Tensorrt => "tensorrt",
        }
    }
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Task {
    /// The task's name in a manifest: `imu-encoder`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ImuEncoder => "imu-encoder",
            Self::EmgClassifier => "emg-classifier",
            Self::Detector => "detector",
            Self::Classifier => "classifier",
            Self::Tensor => "tensor",
        }
    }
}

impl std::fmt::Display for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

pub(crate) fn check_file(key: &'static str, file: &str, sha256: &str) -> Result<(), ManifestError> {
    let plain = (1..=128).contains(&file.len())
        && !file.starts_with('.')
        && file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !plain {
        return Err(ManifestError::File { key, file: file.to_owned() });
    }
    let hex = sha256.len() == 64 && sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex { Ok(()) } else { Err(ManifestError::Digest { key }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let digest = "0".repeat(64);
        format!(
            r#"
schema = 1
name = "imu-motion"
version = "1.0.0"
task = "imu-encoder"
summary = "twelve motions"
engines = ["ort", "cpu"]

[budget]
memory_mib = 64
deadline_ms = 250

[onnx]
file = "model.onnx"
sha256 = "{digest}"

[golden]
file = "golden.safetensors"
sha256 = "{digest}"
cosine = 0.9999
max_abs = 1e-4

[imu]
latent = "latent"
motif = {{ source = "output", output = "motif", labels = ["walk", "run"] }}

[[accuracy]]
dataset = "synthetic, unseen seeds"
metric = "top-1"
value = 0.97
samples = 1200

[[inputs]]
name = "imu_window"
dtype = "FP32"
shape = [1, 100, 2]
channels = {{ names = ["ax", "gx"], units = ["m/s^2", "rad/s"], rate_hz = 100.0 }}
normalization = {{ mean = [0.0, 0.0], std = [1.0, 1.0] }}
limits = [{{ quantity = "Accelerometer", channels = ["ax"], max_abs = 500.0 }}]

[[outputs]]
name = "latent"
dtype = "FP32"
shape = [1, 64]

[[outputs]]
name = "motif"
dtype = "FP32"
shape = [1, 2]
"#
        )
    }

    fn refused(from: &str, to: &str) -> ManifestError {
        let text = page();
        assert!(text.contains(from), "the test edits a line that is there: {from}");
        Manifest::from_toml(&text.replace(from, to)).unwrap_err()
    }

    #[test]
    fn an_engine_may_be_asked_for_in_a_version() {
        let with =
            |versions: &str| page().replace("[budget]", &format!("[engine_versions]\n{versions}\n[budget]"));
        let m = Manifest::from_toml(&with("cpu = \">=0.24, <0.26\"")).unwrap();
        assert!(
            m.suits(Rung::bare(EngineKind::Cpu), "rten 0.25.1")
                && !m.suits(Rung::bare(EngineKind::Cpu), "rten 0.26.0")
        );
        assert!(!m.suits(Rung::bare(EngineKind::Cpu), "of our own"), "a version nobody can read does not do");
        assert!(m.suits(Rung::bare(EngineKind::Ort), "1.23.0"), "nothing is asked of the other");
        assert_eq!(Manifest::from_toml(&m.to_toml()).unwrap(), m);
        for wrong in ["cpu = \"new\"", "hailo = \">=4\""] {
            let e = Manifest::from_toml(&with(wrong)).unwrap_err().to_string();
            assert!(e.contains("engine_versions."), "{e}");
        }
    }

    #[test]
    fn a_manifest_survives_being_written_and_read() {
        let m = Manifest::from_toml(&page()).unwrap();
        assert_eq!(Manifest::from_toml(&m.to_toml()).unwrap(), m);
        assert_eq!(m.inputs[0].limit_per_channel(), [Some(("Accelerometer", 500.0)), None]);
        assert_eq!(m.imu.unwrap().motif.unwrap().labels(), ["walk", "run"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(refused("schema = 1", "schema = 2"), ManifestError::Schema(2));
        assert!(matches!(refused("name = \"imu-motion\"", "name = \"../etc\""), ManifestError::Toml(_)));
        assert!(matches!(refused("summary", "sumary"), ManifestError::Toml(m) if m.contains("sumary")));
        assert_eq!(refused("[\"ort\", \"cpu\"]", "[]"), ManifestError::Engines);
        assert_eq!(refused("[\"ort\", \"cpu\"]", "[\"cpu\", \"cpu\"]"), ManifestError::Engines);
        assert!(matches!(
            refused("memory_mib = 64", "memory_mib = 1"),
            ManifestError::Budget { key: "memory_mib", .. }
        ));
        assert!(matches!(
            refused("\"model.onnx\"", "\"../model.onnx\""),
            ManifestError::File { key: "onnx", .. }
        ));
        assert_eq!(refused("cosine = 0.9999", "cosine = 1.5"), ManifestError::Tolerance("cosine"));
        assert_eq!(refused("max_abs = 1e-4", "max_abs = nan"), ManifestError::Tolerance("max_abs"));
        assert!(matches!(
            refused("latent = \"latent\"", "latent = \"z\""),
            ManifestError::NoSuchOutput { .. }
        ));
        assert!(matches!(refused("[\"walk\", \"run\"]", "[\"walk\"]"), ManifestError::Imu(_)));
        assert!(matches!(refused("channels = [\"ax\"]", "channels = [\"az\"]"), ManifestError::Spec(_)));
        assert_eq!(refused("name = \"motif\"", "name = \"latent\""), ManifestError::Tensors("outputs"));
    }

    #[test]
    fn a_classifier_of_muscle_signals_says_what_its_scores_are_about() {
        let digest = "0".repeat(64);
        let page = format!(
            r#"
schema = 1
name = "emg"
version = "1"
task = "emg-classifier"
engines = ["cpu"]
budget = {{ memory_mib = 64, deadline_ms = 250 }}
onnx = {{ file = "m.onnx", sha256 = "{digest}" }}
golden = {{ file = "g.safetensors", sha256 = "{digest}", cosine = 0.99, max_abs = 1e-3 }}
emg = {{ logits = "logits", labels = ["Rest", "Point"], family = "tcn", filters = [{{ kind = "notch", hz = 50.0, q = 30.0 }}] }}

[[inputs]]
name = "emg"
dtype = "FP32"
shape = [1, 200, 2]
channels = {{ names = ["e0", "e1"], units = ["uV", "uV"], rate_hz = 2000.0 }}
normalization = {{ mean = [0.0, 0.0], std = [1.0, 1.0] }}

[[outputs]]
name = "logits"
dtype = "FP32"
shape = [1, 2]
"#
        );
        let m = Manifest::from_toml(&page).unwrap();
        assert_eq!(Manifest::from_toml(&m.to_toml()).unwrap(), m);
        assert_eq!(m.emg.unwrap().scaling, EmgScaling::Fixed);
        for (from, to, why) in [
            ("\"logits\", labels", "\"scores\", labels", "no output"),
            ("[\"Rest\", \"Point\"]", "[\"Rest\"]", "one label per element"),
            ("[\"Rest\", \"Point\"]", "[\"Rest\", \"Rest\"]", "each once"),
            ("\"tcn\"", "\"TCN\"", "family"),
            (", rate_hz = 2000.0", "", "filters need"),
            ("rate_hz = 2000.0", "rate_hz = 0.0", "rate_hz"),
            ("family = \"tcn\"", "family = \"tcn\", scaling = \"per-window\"", "once"),
            ("family = \"tcn\"", "family = \"tcn\", spikes = \"s\"", "no output"),
            ("[1, 200, 2]", "[200, 2]", "[1, timesteps, channels]"),
            ("kind = \"notch\"", "kind = \"comb\"", "comb"),
        ] {
            assert!(page.contains(from), "the test edits a line that is there: {from}");
            let e = Manifest::from_toml(&page.replace(from, to)).unwrap_err().to_string();
            assert!(e.contains(why), "{to}: {e}");
        }
    }

    #[test]
    fn a_huge_manifest_is_not_parsed() {
        let text = format!("{}#{}", page(), "x".repeat(MAX_MANIFEST_BYTES));
        assert!(matches!(Manifest::from_toml(&text), Err(ManifestError::TooLarge(_))));
    }
}
