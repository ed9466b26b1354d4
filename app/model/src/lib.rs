//! What a model is.
//!
//! The room at the bottom of the house: pure data, no I/O, no threads, no clock. It owns
//! * [`Manifest`]: the TOML page that says what a model is called, what goes in and out, how its input is
//!   normalised, what it may cost and how its answers are proved right;
//! * [`DType`] and [`TensorSpec`]: tensors as the Open Inference Protocol names them, with checked sizes;
//! * [`Normalization`]: `(x - mean) / std` per channel, applied exactly once (by the engine host);
//! * [`Golden`]: recorded inputs and outputs, and the comparison ([`Agreement`]) every load must pass;
//! * [`LinearHead`]: the weights of a motif head, proved to fit the model.
//!
//! It promises that a value of these types is valid: a `Manifest` can only be had through
//! [`Manifest::from_toml`] (or [`Manifest::validated`]), which checks everything that can be checked without the
//! model file. It never reads a file and never guesses.

#![forbid(unsafe_code)]

mod dtype;
mod golden;
mod head;
mod manifest;
mod name;
mod normalize;
mod tensor;
mod variant;

pub use dtype::DType;
pub use golden::{Agreement, Golden, GoldenCase, GoldenError, GoldenWriter, Mismatch};
pub use head::{HeadError, LinearHead};
pub use manifest::{
    Accuracy, Budget, EmgFilter, EmgScaling, EmgTask, EngineKind, FileRef, GoldenRef, ImuTask, MANIFEST_FILE,
    MAX_MANIFEST_BYTES, MAX_TENSORS, Manifest, ManifestError, Motif, Provenance, SCHEMA, Task,
};
pub use name::{ModelName, NameError};
pub use normalize::Normalization;
pub use tensor::{Channels, Limit, MAX_TENSOR_BYTES, SpecError, TensorSpec};
pub use variant::{
    MAX_VARIANTS, MadeFor, Measured, NetworkFormat, NetworkRef, Precision, Rung, RungError, TaskMetric,
    Tolerance, Variant, VariantName,
};
