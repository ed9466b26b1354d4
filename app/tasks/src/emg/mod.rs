//! The task `emg-classifier`: a window of `timesteps x channels` muscle signals in, a gesture out.
//!
//! [`EmgPlan`] is made from the manifest of a loaded model: it reads a window out of a form, prepares one that came as a
//! whole or out of a source's ring, and reads the outputs as a [`Gesture`]. [`asks`] tells an EMG form from an IMU window.
//! [`gate`] says which gesture of many windows may be acted on.
//!
//! **Who scales what.** The engine host applies a fixed scaler (the input's `normalization`) to whatever it gets; this plan
//! filters, and scales by the window itself where the model was trained so. A window that is to reach the network raw goes
//! through the scaler's inverse first, so that what the host makes of it is the window again, to f32's rounding.

pub mod gate;

use crate::form::{Form, FormError, first_key};
use crate::window::{Numbers, WindowError, WindowKey, WindowShape};
use crate::{NotFinite, PlanError};
use inferd_model::{EmgFilter, EmgScaling, Manifest, Normalization, Task};
use inferd_sources::prepare::{Filter, Preparation, Scaling};
use serde_json::json;
use std::sync::Arc;

/// The fields of the form that `POST /infer` takes, of all its versions.
pub const FIELDS: &[&str] = &[
    "window",
    "preprocess",
    "model_prefix",
    "model_type",
    "encoding_type",
    "emg_mode",
    "device",
    "batch",
    "channels",
    "length",
    "steps",
];

/// What a body of `POST /infer` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// It has an `x`, or is nothing that could be a form: an IMU window, or a mistake that is told as one.
    Imu,
    /// It has a field that only the EMG form has.
    Emg,
    /// An empty body, or an object without a field of either: whoever is there answers.
    Either,
}

/// Tells which of the two a body is, also when it is not JSON.
#[must_use]
pub fn asks(body: &[u8]) -> Asks {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii();
    if body.is_empty() || body == b"null" {
        return Asks::Either;
    }
    if !body.starts_with(b"{") || first_key(body, &["x"]).is_some() {
        return Asks::Imu;
    }
    if first_key(body, FIELDS).is_some() { Asks::Emg } else { Asks::Either }
}

/// How windows of one model are read and its answers told.
#[derive(Clone, Debug)]
pub struct EmgPlan {
    shape: WindowShape,
    rate_hz: Option<f64>,
    /// Filters, and the scaling that is not the host's.
    preparation: Preparation,
    /// The host's scaling.
    fixed: Option<Normalization>,
    logits: usize,
    labels: Vec<String>,
    spikes: Option<usize>,
    features: Option<usize>,
    personal: Option<Arc<Personal>>,
    family: String,
}

/// What was fitted for a person: a scaler in place of the manifest's, and a head on the network's features in place of its logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Personal {
    /// Scale and mean of each channel; `None` where windows are scaled by themselves.
    pub scaler: Option<Normalization>,
    /// `[labels, features]`, row by row.
    pub weight: Vec<f32>,
    /// One per label.
    pub bias: Vec<f32>,
}

impl Personal {
    /// The scores of these features, before softmax. Sums are kept in f64, as those of motif heads.
    #[must_use]
    pub fn logits(&self, features: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(features.len().max(1));
        let dot = |(row, b): (&[f32], &f32)| {
            let sum: f64 = row.iter().zip(features).map(|(&w, &z)| f64::from(w) * f64::from(z)).sum();
            #[allow(clippy::cast_possible_truncation)] // the precision of logits
            let logit = (sum + f64::from(*b)) as f32;
            logit
        };
        rows.zip(&self.bias).map(dot).collect()
    }
}

/// What was recognised.
#[derive(Clone, Debug, PartialEq)]
pub struct Gesture {
    /// The place of the most likely one.
    pub index: usize,
    /// A probability per label; they add up to 1.
    pub probabilities: Vec<f32>,
    /// How many spikes it took; 0 of a network whose neurons do not spike.
    pub spikes: u64,
}

impl EmgPlan {
    /// Reads the manifest of a loaded model.
    ///
    /// # Errors
    /// [`PlanError`] when the model is of another task, or its filters cannot be built.
    pub fn new(manifest: &Manifest) -> Result<Self, PlanError> {
        let name = || manifest.name.to_string();
        let broken = |reason: String| PlanError::Manifest { name: name(), reason };
        let Some(emg) = manifest.emg.as_ref().filter(|_| manifest.task == Task::EmgClassifier) else {
            return Err(PlanError::Task { name: name(), task: manifest.task, wanted: Task::EmgClassifier });
        };
        let input = manifest.inputs.first().ok_or_else(|| broken("it has no input".to_owned()))?;
        let shape = WindowShape::of(input)
            .ok_or_else(|| broken("its input is not [1, timesteps, channels]".to_owned()))?;
        let output = |output: &str| {
            let found = manifest.outputs.iter().position(|o| o.name == output);
            found.ok_or_else(|| broken("an output it names is missing".to_owned()))
        };
        let rate_hz = input.channels.as_ref().and_then(|c| c.rate_hz);
        let filters: Vec<Filter> = emg.filters.iter().copied().map(filter).collect();
        let scaling = match emg.scaling {
            EmgScaling::Fixed => Scaling::None,
            EmgScaling::PerWindow => Scaling::PerWindow,
        };
        // Without filters the rate decides nothing.
        let preparation = Preparation::new(&filters, scaling, shape.channels(), rate_hz.unwrap_or(1.0))
            .map_err(|e| broken(e.to_string()))?;
        Ok(Self {
            rate_hz,
            preparation,
            fixed: input.normalization.clone(),
            logits: output(&emg.logits)?,
            labels: emg.labels.clone(),
            spikes: emg.spikes.as_deref().map(output).transpose()?,
            features: emg.features.as_deref().map(output).transpose()?,
            personal: None,
            family: emg.family.clone(),
            shape,
        })
    }

    /// The same plan for a person, or for nobody in particular. The caller has seen to it that what was fitted fits this model.
    #[must_use]
    pub fn with_personal(mut self, personal: Option<Arc<Personal>>) -> Self {
        self.personal = personal;
        self
    }

    /// What was fitted for a person.
    #[must_use]
    pub fn personal(&self) -> Option<&Arc<Personal>> {
        self.personal.as_ref()
    }

    /// The place of the output that a head is fitted on.
    #[must_use]
    pub fn features(&self) -> Option<usize> {
        self.features
    }

    /// The scaling that the engine host does.
    #[must_use]
    pub fn fixed(&self) -> Option<&Normalization> {
        self.fixed.as_ref()
    }

    /// Samples in a window.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.shape.timesteps()
    }

    /// Electrodes.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.shape.channels()
    }

    /// Samples per second, where the manifest says.
    #[must_use]
    pub fn rate_hz(&self) -> Option<f64> {
        self.rate_hz
    }

    /// One label per score.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The kind of network.
    #[must_use]
    pub fn family(&self) -> &str {
        &self.family
    }

    /// Filters and the scaling that is not the engine host's.
    #[must_use]
    pub fn preparation(&self) -> &Preparation {
        &self.preparation
    }

    /// Checks what a form says about windows: these clients know the shape they expect.
    ///
    /// # Errors
    /// [`FormError`] with the first field that fits neither the model nor its type.
    pub fn check(&self, form: &Form) -> Result<(), FormError> {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let wanted =
            [("batch", 1), ("channels", whole(self.channels())), ("length", whole(self.timesteps()))];
        for (field, want) in wanted {
            if form.whole(field, 0, i64::from(u32::MAX))?.is_some_and(|got| got != want) {
                return Err(FormError::field(
                    field,
                    "value_error",
                    format!("Value error, this model takes {want}"),
                ));
            }
        }
        form.whole("steps", 1, 1000)?;
        form.text("device")?;
        match form.text("encoding_type")? {
            None | Some("rate") => Ok(()),
            Some(_) => Err(FormError::field("encoding_type", "literal_error", "Input should be 'rate'")),
        }
    }

    /// Parses the form's `window` into `slot`, as it is to reach the engine host.
    ///
    /// # Errors
    /// [`WindowError`], the first in the contract's order. `slot` then holds nothing of value.
    pub fn parse(
        &self,
        body: &[u8],
        slot: &mut [f32],
        numbers: Numbers,
        preprocess: bool,
    ) -> Result<(), WindowError> {
        self.shape.parse(body, slot, WindowKey::Window, numbers)?;
        if preprocess {
            self.preparation.whole(slot);
            self.scale_personally(slot);
        } else {
            self.as_it_is(slot);
        }
        Ok(())
    }

    /// Makes a window whose samples a source has filtered ready for the engine host.
    pub fn scale(&self, window: &mut [f32], preprocess: bool) {
        if preprocess {
            self.preparation.scale(window);
            self.scale_personally(window);
        } else {
            self.as_it_is(window);
        }
    }

    /// Scales for the person, so that what the host's own scaling makes of it is that.
    fn scale_personally(&self, window: &mut [f32]) {
        let Some(Normalization { mean, std }) = self.personal.as_ref().and_then(|p| p.scaler.as_ref()) else {
            return;
        };
        for sample in window.chunks_exact_mut(mean.len()) {
            for ((value, mean), std) in sample.iter_mut().zip(mean).zip(std) {
                *value = (*value - mean) / std;
            }
        }
        self.as_it_is(window);
    }

    /// Undoes what the engine host is going to do.
    fn as_it_is(&self, window: &mut [f32]) {
        let Some(Normalization { mean, std }) = &self.fixed else { return };
        for sample in window.chunks_exact_mut(mean.len()) {
            for ((value, mean), std) in sample.iter_mut().zip(mean).zip(std) {
                *value = *value * std + mean;
            }
        }
    }

    /// Reads the outputs of one inference; `output(i)` is output `i` of the manifest as FP32.
    ///
    /// # Errors
    /// [`NotFinite`] when an output this answer is made of is missing, short, or holds NaN or an infinity.
    pub fn answer<'a>(&self, output: impl Fn(usize) -> Option<&'a [f32]>) -> Result<Gesture, NotFinite> {
        let finite = |i: usize| output(i).filter(|v| v.iter().all(|v| v.is_finite())).ok_or(NotFinite);
        let own;
        let logits = match (&self.personal, self.features) {
            (Some(personal), Some(features)) => {
                own = personal.logits(finite(features)?);
                Some(&own[..]).filter(|v| v.iter().all(|v| v.is_finite())).ok_or(NotFinite)?
            }
            _ => finite(self.logits)?,
        };
        if logits.len() != self.labels.len() {
            return Err(NotFinite);
        }
        let probabilities = softmax(logits);
        // The first of equals, as NumPy's argmax.
        let index = (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        let spikes = match self.spikes {
            None => 0,
            Some(i) => {
                let sum: f64 = finite(i)?.iter().map(|&v| f64::from(v)).sum();
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count, which saturates
                let count = sum.round() as u64;
                count
            }
        };
        Ok(Gesture { index, probabilities, spikes })
    }
}

impl Gesture {
    /// How likely it is, 0 to 1.
    #[must_use]
    pub fn confidence(&self) -> f32 {
        self.probabilities.get(self.index).copied().unwrap_or_default()
    }

    /// The answer of `POST /infer` and `/infer/{engine}`: the fields of every version of the service, **all of them strings**,
    /// because clients parse strings (MATLAB's `str2double` makes NaN of a JSON number).
    #[must_use]
    pub fn to_form_json(&self, plan: &EmgPlan, latency_ms: f64, cpu_percent: f64, backend: &str) -> Vec<u8> {
        let index = self.index.to_string();
        let confidence = format!("{:.4}", self.confidence());
        let each: Vec<String> = self.probabilities.iter().map(|p| format!("{p:.6}")).collect();
        let body = json!({
            "latency_ms": format!("{latency_ms:.3}"),
            "cpu_percent": format!("{cpu_percent:.1}"),
            "pred_idx": index,
            "pred_label": plan.labels.get(self.index),
            "conf": confidence,
            "probs": format!("[{}]", each.join(", ")),
            "prediction": index,
            "confidence": confidence,
            "spikes": self.spikes.to_string(),
            "shape": format!("[1, {}]", self.probabilities.len()),
            "backend": backend,
        });
        serde_json::to_vec(&body).expect("strings can be written to memory")
    }
}

/// Probabilities of scores, whatever their size: the greatest is taken off first, so that no power overflows.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|v| (f64::from(*v) - f64::from(greatest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    #[allow(clippy::cast_possible_truncation)] // the precision of the model
    powers.iter().map(|p| (p / sum) as f32).collect()
}

fn filter(filter: EmgFilter) -> Filter {
    match filter {
        EmgFilter::BandPass { low_hz, high_hz, order } => Filter::BandPass { low_hz, high_hz, order },
        EmgFilter::HighPass { hz, order } => Filter::HighPass { hz, order },
        EmgFilter::LowPass { hz, order } => Filter::LowPass { hz, order },
        EmgFilter::Notch { hz, q } => Filter::Notch { hz, q },
    }
}

#[cfg(test)]
mod tests;
