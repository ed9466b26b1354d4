//! The task `imu-encoder`: a window of `timesteps x channels` raw sensor samples in; a latent vector and motif scores out.
//!
//! [`ImuPlan`] is made once per loaded model from its manifest (and the weights of a linear motif head, if it has one).
//! [`ImuPlan::parse`] turns a JSON body into the model's input, [`ImuPlan::answer`] the model's outputs into an [`Answer`].
//!
//! Values on the wire are raw sensor units. Normalisation is the engine host's business and happens there once.

mod answer;
mod error;
mod motif;
mod parse;

pub use answer::{Answer, LATENT_CLIP, NotFinite};
pub use error::{ImuError, Place};
pub use motif::MotifHead;
pub use parse::{Numbers, WindowKey};

use inferd_model::{LinearHead, Manifest, Motif, Task};

/// How windows of one model are read and its answers written.
#[derive(Clone, Debug)]
pub struct ImuPlan {
    timesteps: usize,
    channels: Vec<Channel>,
    latent: usize,
    latent_len: usize,
    motif: MotifHead,
}

/// One column of a window.
#[derive(Clone, Debug)]
struct Channel {
    name: String,
    unit: String,
    /// The largest magnitude that is accepted, and what the quantity is called.
    limit: Option<(String, f64)>,
}

/// Why a manifest gives no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("model {name} is of task {task}, not imu-encoder")]
    Task { name: String, task: Task },
    #[error("model {name}: {reason}")]
    Manifest { name: String, reason: String },
    #[error("model {name}: motif weights: {reason}")]
    Weights { name: String, reason: String },
}

impl ImuPlan {
    /// Reads the manifest of a loaded model. `weights` is the safetensors file of a linear motif head; `zeros` is how many
    /// scores are served when the model has no head.
    ///
    /// # Errors
    /// [`PlanError`] when the model is of another task or its motif weights do not fit its latent.
    pub fn new(manifest: &Manifest, weights: Option<&[u8]>, zeros: usize) -> Result<Self, PlanError> {
        let name = || manifest.name.to_string();
        let broken = |reason: &str| PlanError::Manifest { name: name(), reason: reason.to_owned() };
        let Some(imu) = manifest.imu.as_ref().filter(|_| manifest.task == Task::ImuEncoder) else {
            return Err(PlanError::Task { name: name(), task: manifest.task });
        };
        let input = manifest.inputs.first().ok_or_else(|| broken("it has no input"))?;
        let [1, timesteps, _] = input.shape[..] else {
            return Err(broken("its input is not [1, timesteps, channels]"));
        };
        let index = |output: &str| {
            let found = manifest.outputs.iter().position(|o| o.name == output);
            found.ok_or_else(|| broken("an output it names is missing"))
        };
        let latent = index(&imu.latent)?;
        let latent_len = manifest.outputs[latent].elements();
        let motif = match &imu.motif {
            None => MotifHead::None { zeros },
            Some(Motif::Output { output, labels }) => {
                MotifHead::Output { index: index(output)?, labels: labels.clone() }
            }
            Some(Motif::Linear { labels, .. }) => {
                let bytes = weights.ok_or_else(|| PlanError::Weights {
                    name: name(),
                    reason: "the file was not loaded".to_owned(),
                })?;
                let head = LinearHead::parse(bytes, manifest)
                    .map_err(|e| PlanError::Weights { name: name(), reason: e.to_string() })?;
                MotifHead::Linear { head, labels: labels.clone() }
            }
        };
        let names = input.channels.as_ref();
        let channels = input
            .limit_per_channel()
            .into_iter()
            .enumerate()
            .map(|(i, limit)| Channel {
                name: names.and_then(|n| n.names.get(i)).cloned().unwrap_or_else(|| i.to_string()),
                unit: names.and_then(|n| n.units.get(i)).cloned().unwrap_or_default(),
                limit: limit.map(|(quantity, max_abs)| (quantity.to_owned(), max_abs)),
            })
            .collect();
        Ok(Self { timesteps: timesteps as usize, channels, latent, latent_len, motif })
    }

    /// Rows of a window.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.timesteps
    }

    /// Columns of a window.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Elements of the latent vector.
    #[must_use]
    pub fn latent_len(&self) -> usize {
        self.latent_len
    }

    /// Where motif scores come from.
    #[must_use]
    pub fn motif(&self) -> &MotifHead {
        &self.motif
    }
}

#[cfg(test)]
mod tests;
