//! From raw units to an answer: normalisation, then the session.

use crate::{ALIGNMENT, AlignedBuffer, EngineError, Model, Session};
use inferd_model::{Agreement, Golden, MAX_TENSORS, Manifest, Mismatch, TensorSpec, Tolerance};
use std::sync::Arc;
use zerocopy::FromBytes;

/// A session with the preprocessing its manifest asks for. Buffers are allocated once.
pub struct Runner {
    session: Box<dyn Session>,
    manifest: Arc<Manifest>,
    /// One buffer per normalised input, `None` where the input goes to the engine as it came.
    normalized: Vec<Option<AlignedBuffer>>,
}

impl Runner {
    /// Makes a worker's session and its buffers; called on the worker's thread.
    ///
    /// # Errors
    /// [`EngineError`] when the engine gives no session.
    pub fn new(model: &dyn Model, manifest: Arc<Manifest>) -> Result<Self, EngineError> {
        let session = model.session()?;
        let normalized = manifest
            .inputs
            .iter()
            .map(|s| s.normalization.as_ref().map(|_| AlignedBuffer::zeroed(s.byte_len())))
            .collect();
        Ok(Self { session, manifest, normalized })
    }

    /// Runs the network on raw inputs, one buffer per tensor in the manifest's order, each aligned to [`ALIGNMENT`].
    ///
    /// Nothing is allocated here. A panic of the engine's library passes through: the caller owns the thread, counts it
    /// and makes a new `Runner`; this one must not be used again.
    ///
    /// # Errors
    /// [`EngineError::Count`], [`EngineError::Length`] and [`EngineError::Alignment`] for buffers that are not those of
    /// the manifest, else what the session gives; `outputs` then hold nothing of value.
    pub fn run(&mut self, raw: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), EngineError> {
        let specs = &self.manifest.inputs;
        check("input", specs.iter(), raw.iter().copied())?;
        check("output", self.manifest.outputs.iter(), outputs.iter().map(|o| &**o))?;
        for ((spec, bytes), normalized) in specs.iter().zip(raw).zip(&mut self.normalized) {
            if let (Some(constants), Some(to)) = (&spec.normalization, normalized) {
                constants.apply(as_f32(spec, bytes)?, as_f32_mut(spec, to.as_mut_bytes())?);
            }
        }
        let mut inputs = [&[][..]; MAX_TENSORS];
        for ((to, bytes), normalized) in inputs.iter_mut().zip(raw).zip(&self.normalized) {
            *to = normalized.as_ref().map_or(bytes, AlignedBuffer::as_bytes);
        }
        self.session.run(&inputs[..raw.len()], outputs)
    }

    /// Whether the device must be opened again before anything else runs ([`Session::is_spent`]).
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.session.is_spent()
    }

    /// Runs every golden case and compares, within the tolerance of the network that runs ([`Manifest::tolerance`]); the worst
    /// agreement of all cases is returned.
    ///
    /// # Errors
    /// The engine's error, or the [`Mismatch`] of the first case that does not agree.
    pub fn check_golden(
        &mut self,
        golden: &Golden,
        tolerance: Tolerance,
    ) -> Result<Agreement, GoldenCheckError> {
        let manifest = Arc::clone(&self.manifest);
        let mut outputs: Vec<AlignedBuffer> =
            manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
        let mut worst = Agreement { cosine: 1.0, max_abs: 0.0 };
        for (case, recorded) in golden.cases().iter().enumerate() {
            let inputs: Vec<AlignedBuffer> =
                recorded.inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
            let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
            // Stale bytes of the case before must not pass for this one's answer.
            outputs.iter_mut().for_each(|o| o.as_mut_bytes().fill(0xa5));
            let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
            self.run(&inputs, &mut slices).map_err(|error| GoldenCheckError::Engine { case, error })?;
            let answer: Vec<&[u8]> = outputs.iter().map(AlignedBuffer::as_bytes).collect();
            let agreement = golden.compare(case, &answer, &manifest, tolerance)?;
            worst.cosine = worst.cosine.min(agreement.cosine);
            worst.max_abs = worst.max_abs.max(agreement.max_abs);
        }
        Ok(worst)
    }
}

/// That these are the buffers of the manifest: as many, as long, and aligned.
pub(crate) fn check<'a, 's>(
    what: &'static str,
    specs: impl ExactSizeIterator<Item = &'s TensorSpec>,
    buffers: impl ExactSizeIterator<Item = &'a [u8]>,
) -> Result<(), EngineError> {
    if buffers.len() != specs.len() {
        return Err(EngineError::Count { what, got: buffers.len(), want: specs.len() });
    }
    for (spec, bytes) in specs.zip(buffers) {
        if bytes.len() != spec.byte_len() {
            let (got, want) = (bytes.len(), spec.byte_len());
            return Err(EngineError::Length { name: spec.name.clone(), got, want });
        }
        if bytes.as_ptr().align_offset(ALIGNMENT) != 0 {
            return Err(alignment(spec));
        }
    }
    Ok(())
}

/// For the first byte of a BOOL that is neither 0 nor 1.
#[cfg(any(feature = "ort", feature = "tensorrt"))]
pub(crate) fn no_bool(spec: &TensorSpec, bytes: &[u8]) -> EngineError {
    let index = bytes.iter().position(|&b| b > 1).unwrap_or_default();
    let value = bytes.get(index).copied().unwrap_or_default().to_string();
    EngineError::Value { name: spec.name.clone(), index, value, what: "BOOL" }
}

fn as_f32<'a>(spec: &TensorSpec, bytes: &'a [u8]) -> Result<&'a [f32], EngineError> {
    <[f32]>::ref_from_bytes(bytes).map_err(|_| alignment(spec))
}

fn as_f32_mut<'a>(spec: &TensorSpec, bytes: &'a mut [u8]) -> Result<&'a mut [f32], EngineError> {
    <[f32]>::mut_from_bytes(bytes).map_err(|_| alignment(spec))
}

fn alignment(spec: &TensorSpec) -> EngineError {
    EngineError::Alignment { name: spec.name.clone(), want: ALIGNMENT }
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
