//! The task `imu-encoder`: a window of `timesteps x channels` raw sensor samples in; a latent vector and motif scores out.
//!
//! [`ImuPlan`] is made once per loaded model from its manifest (and the weights of a linear motif head, if it has one).
//! [`ImuPlan::parse`] turns a JSON body into the model's input, [`ImuPlan::answer`] the model's outputs into an [`Answer`].
//!
//! Values on the wire are raw sensor units. Normalisation is the engine host's business and happens there once.

mod answer;
mod motif;

pub use answer::{Answer, LATENT_CLIP};
pub use motif::MotifHead;

use crate::PlanError;
use crate::window::{Numbers, WindowError, WindowKey, WindowShape};
use inferd_model::{LinearHead, Manifest, Motif, Task};

/// How windows of one model are read and its answers written.
#[derive(Clone, Debug)]
pub struct ImuPlan {
    shape: WindowShape,
    latent: usize,
    latent_len: usize,
    motif: MotifHead,
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
            return Err(PlanError::Task { name: name(), task: manifest.task, wanted: Task::ImuEncoder });
        };
        let input = manifest.inputs.first().ok_or_else(|| broken("it has no input"))?;
        let shape =
            WindowShape::of(input).ok_or_else(|| broken("its input is not [1, timesteps, channels]"))?;
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
        Ok(Self { shape, latent, latent_len, motif })
    }

    /// Parses `{"x": [[..channels..] ..timesteps..]}` into `slot`; see [`WindowShape::parse`].
    ///
    /// # Errors
    /// [`WindowError`], the first in the contract's order. `slot` then holds nothing of value.
    pub fn parse(
        &self,
        body: &[u8],
        slot: &mut [f32],
        key: WindowKey,
        numbers: Numbers,
    ) -> Result<(), WindowError> {
        self.shape.parse(body, slot, key, numbers)
    }

    /// Rows of a window.
    #[must_use]
    pub fn timesteps(&self) -> usize {
        self.shape.timesteps()
    }

    /// Columns of a window.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.shape.channels()
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
