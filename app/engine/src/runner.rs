//! From raw units to an answer: normalisation, then the session.

use crate::{EngineError, Model, Session};
use inferd_model::{Agreement, Golden, Manifest, Mismatch};
use std::sync::Arc;

/// A session with the preprocessing its manifest asks for. Buffers are allocated once.
pub struct Runner {
    session: Box<dyn Session>,
    manifest: Arc<Manifest>,
    /// One buffer per normalised input, `None` where the input goes to the engine as it came.
    normalized: Vec<Option<Vec<f32>>>,
}

impl Runner {
    /// Makes a worker's session and its buffers; called on the worker's thread.
    ///
    /// # Errors
    /// [`EngineError`] when the engine gives no session.
    pub fn new(model: &dyn Model, manifest: Arc<Manifest>) -> Result<Self, EngineError> {
        let session = model.session()?;
        let normalized =
            manifest.inputs.iter().map(|s| s.normalization.as_ref().map(|_| vec![0.0; s.elements()])).collect();
        Ok(Self { session, manifest, normalized })
    }

    /// Runs the network on raw inputs, one buffer per tensor in the manifest's order.
    ///
    /// # Errors
    /// [`EngineError`] as the session gives it.
    pub fn run(&mut self, raw: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        todo!("{} {}", raw.len(), outputs.len())
    }

    /// Runs every golden case and compares.
    ///
    /// # Errors
    /// The engine's error, or the [`Mismatch`] of the first case that does not agree.
    pub fn check_golden(&mut self, golden: &Golden) -> Result<Agreement, GoldenCheckError> {
        todo!("{}", golden.cases().len())
    }
}

/// Why a load is refused by its golden vectors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum GoldenCheckError {
    #[error("golden case {case}: {error}")]
    Engine { case: usize, error: EngineError },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
}
