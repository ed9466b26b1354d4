//! Variants of a network, and the rungs of a model's ladder.
//!
//! A model is one network and, beside it, files that were made of it for an engine: quantised, or compiled for a device. A
//! [`Rung`] is an engine and what it runs; `engines` of a manifest lists them, the best one first.

use crate::manifest::check_file;
use crate::{EngineKind, Manifest, ManifestError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The most variants a model may have.
pub const MAX_VARIANTS: usize = 8;
/// The longest name of a variant.
pub const MAX_VARIANT_NAME: usize = 16;

/// The name of a variant: `int8`. 1 to 16 of a-z, 0-9 and, inside of it, `-`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VariantName {
    /// Filled up with zeros.
    bytes: [u8; MAX_VARIANT_NAME],
}

/// One step of a model's ladder: an engine and what it runs. As text `ort`, `ort-int8`.
///
/// Without a variant `cpu` and `ort` run the model's own network, `hailo` and `tensorrt` the only variant that is made for
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung {
    /// What runs it.
    pub engine: EngineKind,
    /// The variant it runs, when one is named.
    pub variant: Option<VariantName>,
}

/// Why a text is no rung.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither ENGINE nor ENGINE-VARIANT: engines are cpu, ort, hailo and tensorrt; a variant's name is 1 to 16 of a-z, 0-9 and, inside of it, -"
)]
pub struct RungError(String);

/// How a network is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkFormat {
    /// ONNX.
    Onnx,
    /// Compiled by Hailo's compiler.
    Hef,
    /// Compiled by TensorRT.
    Plan,
}

/// What a variant mostly computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// 16-bit floating point.
    Fp16,
    /// 8-bit whole numbers.
    Int8,
}

/// How near an engine must come to the golden vectors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// Least cosine similarity per output that says anything ([`Golden::compare`](crate::Golden::compare)), in (0, 1].
    pub cosine: f64,
    /// Largest absolute difference of any element, in the output's unit.
    pub max_abs: f64,
}

/// A file made of the model's network, with the same inputs and outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name, as rungs say it: `int8`.
    pub name: VariantName,
    /// How it is written down.
    pub format: NetworkFormat,
    /// What it computes in.
    pub precision: Precision,
    /// File name in the model directory.
    pub file: String,
    /// SHA-256 of the content, 64 lower-case hex digits.
    pub sha256: String,
    /// How near it must come to the model's golden vectors; those of the model do not hold for it.
    pub golden: Tolerance,
    /// What it was compiled for: of HEF and plan files always, of ONNX never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<MadeFor>,
    /// What it cost, measured when it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// What a compiled file runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeFor {
    /// The device's architecture, as its runtime names it: `hailo8`, `sm_87`.
    pub device: String,
    /// Versions of the runtime that take it, as Cargo writes requirements: `>=4.21, <4.24`.
    pub runtime: String,
}

/// What making a variant cost: how much smaller, how far off, on which data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// How it was made: `static QDQ, per channel, minmax`.
    pub method: String,
    /// The data it was calibrated with, and judged on: on other samples of it, and on the golden vectors.
    pub data: String,
    /// SHA-256 of that data.
    pub data_sha256: String,
    /// How many samples that were.
    pub samples: u64,
    /// Size of its file.
    pub bytes: u64,
    /// Size of the model's own network.
    pub original_bytes: u64,
    /// Least cosine similarity to the model's own network, of any output of any sample it was judged on that says anything.
    pub cosine: f64,
    /// Largest difference of any element.
    pub max_abs: f64,
    /// Part of the samples for which the largest element of the scored output is the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argmax: Option<f64>,
    /// Programs that made it, with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, String>,
    /// The task's own measure, where the data has labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskMetric>,
}

/// The task's own measure of a variant and of the network it was made of, on the same samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskMetric {
    /// What was measured: `top-1`.
    pub metric: String,
    /// The variant's, a ratio in [0, 1].
    pub value: f64,
    /// The original's.
    pub original: f64,
    /// How many samples had labels.
    pub samples: u64,
}

/// A network of a model: its own, or a variant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetworkRef<'m> {
    /// File name in the model directory.
    pub file: &'m str,
    /// SHA-256 of the content.
    pub sha256: &'m str,
    /// How it is written down.
    pub format: NetworkFormat,
    /// How near it must come to the golden vectors.
    pub tolerance: Tolerance,
    /// The variant it is; `None`: the model's own network.
    pub variant: Option<&'m Variant>,
}

impl VariantName {
    /// A name.
    ///
    /// # Errors
    /// [`RungError`] when it is none.
    pub fn new(name: &str) -> Result<Self, RungError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let inside = !name.starts_with('-') && !name.ends_with('-');
        if !(1..=MAX_VARIANT_NAME).contains(&name.len()) || !inside || !name.bytes().all(plain) {
            // No more of it than can be read.
            return Err(RungError(name.chars().take(64).collect()));
        }
        let mut bytes = [0; MAX_VARIANT_NAME];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(Self { bytes })
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|&b| b == 0).unwrap_or(MAX_VARIANT_NAME);
        // It was made of ASCII.
        std::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

impl Rung {
    /// This engine with the model's own network, or the only file for it.
    #[must_use]
    pub const fn bare(engine: EngineKind) -> Self {
        Self { engine, variant: None }
    }
}

impl From<EngineKind> for Rung {
    fn from(engine: EngineKind) -> Self {
        Self::bare(engine)
    }
}

impl fmt::Display for VariantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for VariantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variant {
            None => f.pad(self.engine.name()),
            Some(variant) => f.pad(&format!("{}-{variant}", self.engine.name())),
        }
    }
}

impl FromStr for VariantName {
    type Err = RungError;

    fn from_str(text: &str) -> Result<Self, RungError> {
        Self::new(text)
    }
}

impl FromStr for Rung {
    type Err = RungError;

    fn from_str(text: &str) -> Result<Self, RungError> {
        let none = || RungError(text.chars().take(64).collect());
        let (engine, variant) = text.split_once('-').map_or((text, None), |(e, v)| (e, Some(v)));
        let engine = EngineKind::ALL.into_iter().find(|e| e.name() == engine).ok_or_else(none)?;
        let variant = variant.map(VariantName::new).transpose().map_err(|_| none())?;
        Ok(Self { engine, variant })
    }
}

/// Both are their text in files and answers.
macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

as_text!(VariantName);
as_text!(Rung);

impl NetworkFormat {
    /// Its name in a manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Hef => "hef",
            Self::Plan => "plan",
        }
    }

    /// The format this engine runs.
    #[must_use]
    pub const fn of(engine: EngineKind) -> Self {
        match engine {
            EngineKind::Cpu | EngineKind::Ort => Self::Onnx,
            EngineKind::Hailo => Self::Hef,
            EngineKind::Tensorrt => Self::Plan,
        }
    }
}

impl fmt::Display for NetworkFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
        })
    }
}

impl Tolerance {
    /// The key that is out of range.
    pub(crate) fn wrong(&self) -> Option<&'static str> {
        if !(self.cosine > 0.0 && self.cosine <= 1.0) {
            return Some("cosine");
        }
        (!(self.max_abs >= 0.0 && self.max_abs.is_finite())).then_some("max_abs")
    }
}

impl Manifest {
    /// The model's own network.
    #[must_use]
    pub fn own_network(&self) -> NetworkRef<'_> {
        let (file, sha256) = (self.onnx.file.as_str(), self.onnx.sha256.as_str());
        let tolerance = self.golden.tolerance();
        NetworkRef { file, sha256, format: NetworkFormat::Onnx, tolerance, variant: None }
    }

    /// Its own network, then every variant in the manifest's order.
    pub fn networks(&self) -> impl Iterator<Item = NetworkRef<'_>> {
        std::iter::once(self.own_network()).chain(self.variants.iter().map(Variant::network))
    }

    /// Which of [`Manifest::networks`] a rung runs; `None` when it is no rung of this model.
    #[must_use]
    pub fn network_index(&self, rung: Rung) -> Option<usize> {
        let format = NetworkFormat::of(rung.engine);
        match rung.variant {
            Some(name) => {
                self.variants.iter().position(|v| v.name == name && v.format == format).map(|i| i + 1)
            }
            None if format == NetworkFormat::Onnx => Some(0),
            None => {
                let mut made = (1..).zip(&self.variants).filter(|(_, v)| v.format == format);
                made.next().filter(|_| made.next().is_none()).map(|(i, _)| i)
            }
        }
    }

    /// What a rung runs; `None` when it is no rung of this model.
    #[must_use]
    pub fn network(&self, rung: Rung) -> Option<NetworkRef<'_>> {
        self.networks().nth(self.network_index(rung)?)
    }

    /// How near a rung must come to the golden vectors.
    #[must_use]
    pub fn tolerance(&self, rung: Rung) -> Tolerance {
        self.network(rung).map_or(self.golden.tolerance(), |n| n.tolerance)
    }

    pub(crate) fn check_variants(&self) -> Result<(), ManifestError> {
        let names = |i: usize| self.variants[..i].iter().any(|v| v.name == self.variants[i].name);
        if self.variants.len() > MAX_VARIANTS || (0..self.variants.len()).any(names) {
            return Err(ManifestError::Variants);
        }
        let head = match self.imu.as_ref().and_then(|i| i.motif.as_ref()) {
            Some(crate::Motif::Linear { file, .. }) => Some(file.as_str()),
            _ => None,
        };
        let mut files: Vec<&str> = vec![&self.onnx.file, &self.golden.file];
        files.extend(head);
        for variant in &self.variants {
            variant.check()?;
            if files.contains(&variant.file.as_str()) {
                return Err(ManifestError::FileTwice(variant.file.clone()));
            }
            files.push(&variant.file);
        }
        let mut run: Vec<(EngineKind, usize)> = Vec::new();
        for &rung in &self.engines {
            let Some(index) = self.network_index(rung) else {
                return Err(self.why_not(rung));
            };
            if run.contains(&(rung.engine, index)) {
                return Err(ManifestError::Engines);
            }
            run.push((rung.engine, index));
        }
        let unused = (1..).zip(&self.variants).find(|(i, _)| run.iter().all(|(_, n)| n != i));
        unused.map_or(Ok(()), |(_, v)| Err(ManifestError::UnusedVariant(v.name)))
    }

    /// Why a rung runs nothing.
    fn why_not(&self, rung: Rung) -> ManifestError {
        let format = NetworkFormat::of(rung.engine);
        match rung.variant.map(|name| self.variants.iter().find(|v| v.name == name)) {
            None => {
                let count = self.variants.iter().filter(|v| v.format == format).count();
                ManifestError::OnlyVariant { rung, format, count }
            }
            Some(None) => ManifestError::NoSuchVariant(rung),
            Some(Some(variant)) => ManifestError::Format { rung, format: variant.format },
        }
    }
}

impl Variant {
    fn network(&self) -> NetworkRef<'_> {
        NetworkRef {
            file: &self.file,
            sha256: &self.sha256,
            format: self.format,
            tolerance: self.golden,
            variant: Some(self),
        }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let wrong = |key, why| Err(ManifestError::Variant { name: self.name, key, why });
        check_file("variants.file", &self.file, &self.sha256)?;
        match self.golden.wrong() {
            Some("cosine") => return wrong("golden.cosine", "above 0, at most 1"),
            Some(_) => return wrong("golden.max_abs", "0 or more, finite"),
            None => {}
        }
        match (&self.made_for, self.format) {
            (None, NetworkFormat::Onnx) => {}
            (Some(_), NetworkFormat::Onnx) => return wrong("made_for", "an ONNX file is made for no device"),
            (None, _) => {
                return wrong("made_for", "a compiled file names the device and the runtime it is for");
            }
            (Some(made_for), _) => {
                if !text(&made_for.device, 64) || made_for.device.contains(' ') {
                    return wrong("made_for.device", "1 to 64 printable characters without spaces");
                }
                if made_for.runtime.len() > 100 || semver::VersionReq::parse(&made_for.runtime).is_err() {
                    return wrong("made_for.runtime", "a requirement such as \">=4.21, <4.24\"");
                }
            }
        }
        let Some(m) = &self.measured else { return Ok(()) };
        let tools = m.tools.len() <= 16 && m.tools.iter().all(|(k, v)| text(k, 64) && text(v, 64));
        if !text(&m.method, 256) || !text(&m.data, 256) || !tools {
            return wrong("measured", "its words are 1 to 256 printable characters, of tools 1 to 64");
        }
        check_file("variants.measured", "data", &m.data_sha256)?;
        let ratio = |v: f64| (0.0..=1.0).contains(&v);
        let task = m.task.as_ref().is_none_or(|t| text(&t.metric, 64) && ratio(t.value) && ratio(t.original));
        let numbers = (-1.0..=1.0).contains(&m.cosine) && m.max_abs >= 0.0 && m.max_abs.is_finite();
        if !numbers {
            return wrong("measured", "cosine is in [-1, 1], max_abs 0 or more and finite");
        }
        if !m.argmax.is_none_or(ratio) || !task {
            return wrong("measured", "argmax and the task's values are in [0, 1]");
        }
        Ok(())
    }
}

/// A line for people: not empty, not longer than so many bytes, nothing in it that moves a cursor.
fn text(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(engines: &str, variants: &str) -> String {
        let digest = "0".repeat(64);
        format!(
            r#"
schema = 1
name = "m"
version = "1"
task = "tensor"
engines = {engines}
budget = {{ memory_mib = 64, deadline_ms = 250 }}
onnx = {{ file = "model.onnx", sha256 = "{digest}" }}
golden = {{ file = "golden.safetensors", sha256 = "{digest}", cosine = 0.9999, max_abs = 1e-4 }}
inputs = [{{ name = "x", dtype = "FP32", shape = [1] }}]
outputs = [{{ name = "y", dtype = "FP32", shape = [1] }}]
{variants}
"#
        )
    }

    fn int8() -> String {
        let digest = "1".repeat(64);
        format!(
            r#"
[[variants]]
name = "int8"
format = "onnx"
precision = "int8"
file = "model.int8.onnx"
sha256 = "{digest}"
golden = {{ cosine = 0.99, max_abs = 0.5 }}

[variants.measured]
method = "static QDQ, per channel, minmax"
data = "windows.npz"
data_sha256 = "{digest}"
samples = 64
bytes = 100
original_bytes = 380
cosine = 0.998
max_abs = 0.21
argmax = 0.98
tools = {{ onnxruntime = "1.23.0" }}
task = {{ metric = "top-1", value = 0.96, original = 0.97, samples = 64 }}
"#
        )
    }

    fn hef(name: &str) -> String {
        let digest = "2".repeat(64);
        format!(
            r#"
[[variants]]
name = "{name}"
format = "hef"
precision = "int8"
file = "{name}.hef"
sha256 = "{digest}"
golden = {{ cosine = 0.98, max_abs = 1.0 }}
made_for = {{ device = "hailo8", runtime = ">=4.21, <4.24" }}
"#
        )
    }

    fn read(engines: &str, variants: &str) -> Result<Manifest, ManifestError> {
        Manifest::from_toml(&page(engines, variants))
    }

    fn rung(text: &str) -> Rung {
        text.parse().unwrap()
    }

    #[test]
    fn a_rung_is_its_text() {
        for text in ["cpu", "ort", "hailo", "tensorrt", "ort-int8", "cpu-a-b", "hailo-0123456789abcdef"] {
            assert_eq!(rung(text).to_string(), text);
            assert_eq!(toml::Value::try_from(rung(text)).unwrap().as_str(), Some(text));
        }
        assert_eq!(rung("cpu-a-b").variant.unwrap().as_str(), "a-b");
        let long = "ort-0123456789abcdefg";
        for text in ["", "-", "gpu", "CPU", "cpu-", "cpu--a", "cpu-a-", "cpu-INT8", "cpu int8", "cpu-é", long]
        {
            let e = text.parse::<Rung>().unwrap_err().to_string();
            assert!(e.contains("ENGINE-VARIANT"), "{e}");
        }
    }

    #[test]
    fn a_ladder_of_variants_survives_being_written_and_read() {
        let ladder = r#"["hailo", "ort-int8", "ort", "cpu-int8", "cpu"]"#;
        let m = read(ladder, &(int8() + &hef("h8"))).unwrap();
        assert_eq!(Manifest::from_toml(&m.to_toml()).unwrap(), m);
        let file = |r: &str| m.network(rung(r)).map(|n| n.file);
        assert_eq!(file("ort"), Some("model.onnx"));
        assert_eq!(file("cpu-int8"), Some("model.int8.onnx"));
        assert_eq!((file("hailo"), file("hailo-h8")), (Some("h8.hef"), Some("h8.hef")));
        assert_eq!((file("hailo-int8"), file("ort-h8"), file("tensorrt")), (None, None, None));
        assert_eq!(m.tolerance(rung("ort")).cosine, 0.9999);
        assert_eq!(m.tolerance(rung("ort-int8")), Tolerance { cosine: 0.99, max_abs: 0.5 });
        assert_eq!(
            m.networks().map(|n| n.file).collect::<Vec<_>>(),
            ["model.onnx", "model.int8.onnx", "h8.hef"]
        );
    }

    #[test]
    fn a_compiled_file_suits_the_runtimes_it_was_made_for() {
        let m = read(r#"["hailo", "cpu"]"#, &hef("h8")).unwrap();
        assert!(m.suits(rung("hailo"), "HailoRT 4.23.0") && !m.suits(rung("hailo"), "HailoRT 5.0.0"));
        assert!(m.suits(rung("cpu"), "rten 0.27.0"));
    }

    #[test]
    fn what_is_wrong_with_a_ladder_is_named() {
        let said = |engines: &str, variants: &str| read(engines, variants).unwrap_err();
        assert_eq!(said(r#"["ort-int4", "cpu"]"#, ""), ManifestError::NoSuchVariant(rung("ort-int4")));
        assert_eq!(
            said(r#"["cpu"]"#, &int8()),
            ManifestError::UnusedVariant(VariantName::new("int8").unwrap())
        );
        assert!(matches!(said(r#"["hailo-int8"]"#, &int8()), ManifestError::Format { .. }));
        assert!(matches!(said(r#"["cpu-h8"]"#, &hef("h8")), ManifestError::Format { .. }));
        assert!(matches!(said(r#"["hailo"]"#, ""), ManifestError::OnlyVariant { count: 0, .. }));
        assert!(matches!(said(r#"["tensorrt", "hailo"]"#, &hef("h8")), ManifestError::OnlyVariant { .. }));
        let two = hef("a") + &hef("b");
        assert!(matches!(said(r#"["hailo"]"#, &two), ManifestError::OnlyVariant { count: 2, .. }));
        assert!(read(r#"["hailo-a", "hailo-b"]"#, &two).is_ok());
        assert_eq!(said(r#"["hailo", "hailo-a"]"#, &hef("a")), ManifestError::Engines, "both run the same");
        assert_eq!(said(r#"["ort-int8", "ort-int8"]"#, &int8()), ManifestError::Engines);
        assert_eq!(said(r#"["ort-int8"]"#, &(int8() + &int8())), ManifestError::Variants);
        let many: String = (0..9).map(|i| hef(&format!("h{i}"))).collect();
        assert_eq!(said(r#"["hailo-h0"]"#, &many), ManifestError::Variants);
        assert!(
            matches!(said(r#"["warp", "cpu"]"#, ""), ManifestError::Toml(e) if e.contains("ENGINE-VARIANT"))
        );
    }

    #[test]
    fn what_is_wrong_with_a_variant_is_named() {
        let said = |from: &str, to: &str| {
            let variants = int8() + &hef("h8");
            assert!(variants.contains(from), "the test edits a line that is there: {from}");
            let e = read(r#"["hailo", "ort-int8"]"#, &variants.replacen(from, to, 1)).unwrap_err();
            e.to_string()
        };
        for (from, to, key) in [
            ("\"model.int8.onnx\"", "\"../x\"", "variants.file"),
            ("\"model.int8.onnx\"", "\"model.onnx\"", "model.onnx"),
            ("\"model.int8.onnx\"", "\"golden.safetensors\"", "golden.safetensors"),
            ("\"h8.hef\"", "\"model.int8.onnx\"", "model.int8.onnx"),
            ("sha256 = \"1111", "sha256 = \"111", "variants.file"),
            ("data_sha256 = \"1111", "data_sha256 = \"XYZ1", "variants.measured"),
            ("cosine = 0.99,", "cosine = 0.0,", "golden.cosine"),
            ("max_abs = 0.5 ", "max_abs = nan ", "golden.max_abs"),
            ("cosine = 0.998", "cosine = nan", "measured"),
            ("argmax = 0.98", "argmax = 1.5", "measured"),
            ("value = 0.96", "value = -1.0", "measured"),
            ("\"windows.npz\"", "\"\"", "measured"),
            ("made_for = { device", "#", "made_for"),
            ("\"hailo8\"", "\"hailo 8\"", "made_for.device"),
            ("\">=4.21, <4.24\"", "\"new\"", "made_for.runtime"),
            ("precision = \"int8\"", "precision = \"int4\"", "precision"),
            ("argmax", "argmx", "argmx"),
            ("name = \"int8\"", "name = \"INT8\"", "name"),
        ] {
            let e = said(from, to);
            assert!(e.contains(key), "{from} -> {to}: {e}");
        }
        let made_for = "[[variants]]\nmade_for = { device = \"hailo8\", runtime = \"*\" }";
        let onnx = int8().replacen("[[variants]]", made_for, 1);
        assert!(read(r#"["ort-int8"]"#, &onnx).unwrap_err().to_string().contains("made_for"));
    }
}
