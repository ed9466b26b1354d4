//! What is kept of a calibration: one file, signed by the device that made it, for one network behind one manifest.
//!
//! The file is two lines of JSON: `{"signature": "128 hex digits"}`, then the [`Calibration`]; the signature is over the second
//! line. The key never leaves the device and is believed for nothing but this: a head and a scaler of a network whose digest stands in
//! the file, and which came to the device by another way. What else the head depends on stands in the model's manifest (gestures,
//! filters, scaling, features), so the digest of that is in the file too. It protects against files of other devices and spoiled ones;
//! who can write the device's data can also read its key.

use crate::fit::Check;
use inferd_bundle::{Digest, PublicKey, SigningKey};
use inferd_model::{EmgTask, Manifest, Normalization, TensorSpec};
use inferd_tasks::emg::Personal;
use serde::{Deserialize, Serialize};

/// The form of the file.
pub const SCHEMA: u32 = 1;
/// The longest file that is read.
pub const LONGEST: usize = 2 << 20;
/// What the key signs.
const PURPOSE: &str = "calibration 1";

/// A calibration of one model for one person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The model.
    pub model: String,
    /// The digest of its network; for another one the head means nothing.
    pub network: String,
    /// [`interface`] of its manifest; behind another one the head means something else.
    pub interface: Digest,
    /// What the scores are about: the model's labels.
    pub labels: Vec<String>,
    /// Unix time, in ms; what the clock said.
    pub made_ms: u64,
    /// The source that was recorded.
    pub source: String,
    /// How good it was on windows that were held back.
    pub check: Check,
    /// It was installed although the check objected: with these sentences.
    pub objections: Vec<String>,
    /// The scaler; none where windows are scaled by themselves.
    pub scaler: Option<Normalization>,
    /// `[labels, features]`, row by row.
    pub weight: Vec<f32>,
    /// One per label.
    pub bias: Vec<f32>,
    /// How strong each channel was, by gesture that was recorded.
    pub strengths: Vec<(String, Vec<f64>)>,
    /// Windows that were held back, with the scores they got: answered again before it serves.
    pub golden: Vec<Golden>,
}

/// A golden vector of a calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Filtered and not scaled.
    pub window: Vec<f32>,
    /// Before softmax.
    pub logits: Vec<f32>,
}

/// Why a calibration does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Not the two lines.
    #[error("the file is not a calibration: {0}")]
    Form(String),
    /// Not this device's.
    #[error("its signature is not of this device's key: it was changed, or made on another device")]
    Signature,
    /// Made for another network.
    #[error("the network of model {0} is another one than it was made for; calibrate again")]
    Network(String),
    /// Made for the same network behind another manifest.
    #[error(
        "the manifest of model {0} says something else of its gestures, filters, scaling, input or outputs than when it was made; calibrate again"
    )]
    Manifest(String),
    /// Does not fit what it says it is for.
    #[error("{0} does not fit the model")]
    Shape(&'static str),
    /// A value that is no number.
    #[error("a value is not a finite number")]
    NotFinite,
    /// The device answers otherwise than when it was made.
    #[error("golden window {case} of {cases} is answered otherwise than when it was made")]
    Golden {
        /// From 1.
        case: usize,
        /// How many there are.
        cases: usize,
    },
}

/// What a head depends on beside the network: which output its features are, what they are called, and how a window gets to the input.
fn facing(manifest: &Manifest) -> (Option<&EmgTask>, &[TensorSpec], &[TensorSpec]) {
    (manifest.emg.as_ref(), &manifest.inputs, &manifest.outputs)
}

/// The digest of the `emg`, `inputs` and `outputs` of a manifest, in this daemon's words: fields in the order of their declaration.
///
/// # Errors
/// [`Unfit::Form`] with what cannot be written as JSON.
pub fn interface(manifest: &Manifest) -> Result<Digest, Unfit> {
    let text = serde_json::to_vec(&facing(manifest)).map_err(|e| Unfit::Form(e.to_string()))?;
    Ok(Digest::of(&text))
}

/// Whether what was fitted for one of these manifests means the same behind the other: the same network and the same [`interface`].
#[must_use]
pub fn alike(one: &Manifest, other: &Manifest) -> bool {
    one.onnx.sha256 == other.onnx.sha256 && facing(one) == facing(other)
}

impl Calibration {
    /// The file.
    ///
    /// # Errors
    /// [`Unfit::Form`] with a value that JSON cannot hold.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, Unfit> {
        let body = serde_json::to_vec(self).map_err(|e| Unfit::Form(e.to_string()))?;
        let signature: String = key.sign_own(PURPOSE, &body).iter().map(|b| format!("{b:02x}")).collect();
        Ok([format!("{{\"signature\":\"{signature}\"}}\n").as_bytes(), &body, b"\n"].concat())
    }

    /// Reads a file that this key has signed.
    ///
    /// # Errors
    /// [`Unfit`]; nothing of the body is looked at before its signature is right.
    pub fn read(file: &[u8], key: &PublicKey) -> Result<Self, Unfit> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Head {
            signature: String,
        }
        let form = |e: serde_json::Error| Unfit::Form(e.to_string());
        if file.len() > LONGEST {
            return Err(Unfit::Form(format!("it has more than {LONGEST} bytes")));
        }
        let split = file.iter().position(|b| *b == b'\n');
        let split = split.ok_or_else(|| Unfit::Form("it has no second line".to_owned()))?;
        let (head, body) = (&file[..split], &file[split + 1..]);
        let body = body.strip_suffix(b"\n").unwrap_or(body);
        let head: Head = serde_json::from_slice(head).map_err(form)?;
        let signature = hex(&head.signature).ok_or(Unfit::Signature)?;
        if !key.verifies_own(PURPOSE, body, &signature) {
            return Err(Unfit::Signature);
        }
        let read: Self = serde_json::from_slice(body).map_err(form)?;
        if read.schema == SCHEMA { Ok(read) } else { Err(Unfit::Form("it is of another version".to_owned())) }
    }

    /// Whether it was made for this model, this network and this manifest.
    ///
    /// # Errors
    /// [`Unfit::Network`] or [`Unfit::Manifest`].
    pub fn is_for(&self, manifest: &Manifest) -> Result<(), Unfit> {
        if self.model != manifest.name.as_str() || self.network != manifest.onnx.sha256 {
            return Err(Unfit::Network(self.model.clone()));
        }
        match interface(manifest)? == self.interface {
            true => Ok(()),
            false => Err(Unfit::Manifest(self.model.clone())),
        }
    }

    /// What is to be applied, if this is for that model.
    ///
    /// # Errors
    /// [`Unfit`] with the first thing that does not fit.
    pub fn fits(&self, manifest: &Manifest) -> Result<Personal, Unfit> {
        let emg = manifest.emg.as_ref().ok_or(Unfit::Shape("the task"))?;
        self.is_for(manifest)?;
        let features = emg.features.as_ref().and_then(|f| manifest.outputs.iter().find(|o| o.name == *f));
        let width = features.ok_or(Unfit::Shape("a head on features"))?.elements();
        let input = manifest.inputs.first().ok_or(Unfit::Shape("the input"))?;
        let channels = input.shape.get(2).map_or(0, |c| usize::try_from(*c).unwrap_or(0));
        let labels = emg.labels.len();
        if self.labels != emg.labels {
            return Err(Unfit::Shape("the list of gestures"));
        }
        if self.weight.len() != labels * width || self.bias.len() != labels {
            return Err(Unfit::Shape("the head"));
        }
        if let Some(Normalization { mean, std }) = &self.scaler {
            if mean.len() != channels || std.len() != channels || std.iter().any(|s| *s <= 0.0) {
                return Err(Unfit::Shape("the scaler"));
            }
            if !mean.iter().chain(std).all(|v| v.is_finite()) {
                return Err(Unfit::NotFinite);
            }
        }
        let whole = |g: &Golden| g.window.len() == input.elements() && g.logits.len() == labels;
        if self.golden.is_empty() || !self.golden.iter().all(whole) {
            return Err(Unfit::Shape("a golden window"));
        }
        if !self.weight.iter().chain(&self.bias).all(|v| v.is_finite()) {
            return Err(Unfit::NotFinite);
        }
        Ok(Personal { scaler: self.scaler.clone(), weight: self.weight.clone(), bias: self.bias.clone() })
    }
}

impl Golden {
    /// Whether scores are those of this window: the same gesture, and as near as another engine or chip comes.
    #[must_use]
    pub fn agrees(&self, logits: &[f32]) -> bool {
        let best = |v: &[f32]| (1..v.len()).fold(0, |b, i| if v[i] > v[b] { i } else { b });
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let cosine = dot(logits, &self.logits)
            / (dot(logits, logits) * dot(&self.logits, &self.logits)).sqrt().max(f64::MIN_POSITIVE);
        logits.len() == self.logits.len() && best(logits) == best(&self.logits) && cosine >= 0.99
    }
}

fn hex(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..128).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use inferd_model::{EmgFilter, EmgScaling};

    fn calibration() -> Calibration {
        Calibration {
            schema: SCHEMA,
            model: "emg".to_owned(),
            network: "0".repeat(64),
            interface: interface(&manifest()).unwrap(),
            labels: vec!["Rest".to_owned(), "Point".to_owned()],
            made_ms: 1,
            source: "arm".to_owned(),
            check: Check { windows: 0, accuracy: 1.0, uncalibrated: 0.5, gestures: Vec::new() },
            objections: Vec::new(),
            scaler: Some(Normalization { mean: vec![0.0; 2], std: vec![0.1, 3.5] }),
            weight: vec![1.5e-7, 2.0, -0.3, 1e7, 0.1, 0.2],
            bias: vec![0.0, 1.0 / 3.0],
            strengths: Vec::new(),
            golden: vec![Golden { window: vec![0.7; 8], logits: vec![3.0, -1.0] }],
        }
    }

    fn manifest() -> Manifest {
        let digest = "0".repeat(64);
        Manifest::from_toml(&format!(
            r#"
schema = 1
name = "emg"
version = "1"
task = "emg-classifier"
engines = ["cpu"]
budget = {{ memory_mib = 64, deadline_ms = 250 }}
onnx = {{ file = "m.onnx", sha256 = "{digest}" }}
golden = {{ file = "g.safetensors", sha256 = "{digest}", cosine = 0.99, max_abs = 1e-3 }}
emg = {{ logits = "logits", labels = ["Rest", "Point"], family = "tcn", features = "z" }}
inputs = [{{ name = "emg", dtype = "FP32", shape = [1, 4, 2], channels = {{ names = ["a", "b"], rate_hz = 2000.0 }} }}]
outputs = [{{ name = "z", dtype = "FP32", shape = [1, 3] }}, {{ name = "y", dtype = "FP32", shape = [1, 3] }}, {{ name = "logits", dtype = "FP32", shape = [1, 2] }}]
"#
        ))
        .unwrap()
    }

    #[test]
    fn what_was_signed_is_read_again_to_the_bit() {
        let key = SigningKey::from_seed(&[7; 32]);
        let file = calibration().sign(&key).unwrap();
        assert_eq!(Calibration::read(&file, &key.public()), Ok(calibration()));
    }

    #[test]
    fn a_changed_file_and_one_of_another_device_are_not_believed() {
        let key = SigningKey::from_seed(&[7; 32]);
        let file = calibration().sign(&key).unwrap();
        for at in [150, file.len() / 2, file.len() - 3] {
            let mut spoiled = file.clone();
            spoiled[at] ^= 1;
            assert_eq!(Calibration::read(&spoiled, &key.public()), Err(Unfit::Signature), "{at}");
        }
        let other = SigningKey::from_seed(&[8; 32]).public();
        assert_eq!(Calibration::read(&file, &other), Err(Unfit::Signature));
        for end in [0, 40, file.len() / 2] {
            assert!(Calibration::read(&file[..end], &key.public()).is_err(), "{end}");
        }
    }

    #[test]
    fn a_calibration_is_for_one_network_and_one_shape() {
        let manifest = manifest();
        assert!(calibration().fits(&manifest).is_ok());
        let with = |change: fn(&mut Calibration)| {
            let mut changed = calibration();
            change(&mut changed);
            changed.fits(&manifest).unwrap_err()
        };
        assert_eq!(with(|c| c.network = "1".repeat(64)), Unfit::Network("emg".to_owned()));
        assert_eq!(with(|c| c.labels.swap(0, 1)), Unfit::Shape("the list of gestures"));
        assert_eq!(with(|c| c.weight.truncate(5)), Unfit::Shape("the head"));
        assert_eq!(with(|c| c.scaler.as_mut().unwrap().std[0] = 0.0), Unfit::Shape("the scaler"));
        assert_eq!(with(|c| c.golden.clear()), Unfit::Shape("a golden window"));
        assert_eq!(with(|c| c.weight[0] = f32::INFINITY), Unfit::NotFinite);
    }

    #[test]
    fn a_calibration_is_for_one_manifest_though_the_network_is_the_same() {
        let changes: [fn(&mut Manifest); 6] = [
            |m| m.emg.as_mut().unwrap().labels.swap(0, 1),
            |m| m.emg.as_mut().unwrap().features = Some("y".to_owned()),
            |m| m.emg.as_mut().unwrap().scaling = EmgScaling::PerWindow,
            |m| m.emg.as_mut().unwrap().filters = vec![EmgFilter::HighPass { hz: 20.0, order: 2 }],
            |m| m.inputs[0].channels.as_mut().unwrap().rate_hz = Some(1000.0),
            |m| m.outputs.swap(0, 1),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = manifest();
            change(&mut changed);
            assert_eq!(calibration().fits(&changed), Err(Unfit::Manifest("emg".to_owned())), "{at}");
            assert!(!alike(&manifest(), &changed), "{at}");
        }
        // What says nothing about numbers does not take a calibration away.
        let mut edition = manifest();
        (edition.version, edition.summary) = ("2".to_owned(), "another word".to_owned());
        assert!(calibration().fits(&edition).is_ok() && alike(&manifest(), &edition));
    }

    #[test]
    fn a_golden_window_is_answered_alike_or_not() {
        let golden = &calibration().golden[0];
        assert!(golden.agrees(&[3.01, -1.0]) && !golden.agrees(&[-1.0, 3.0]) && !golden.agrees(&[3.0, 2.9]));
    }
}
