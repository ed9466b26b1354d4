//! What can go wrong in an engine.

use inferd_model::NetworkFormat;

/// Why an engine refuses a network or a call. Each message is one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum EngineError {
    /// The engine's library is not there, or not one it can work with.
    #[error("the engine's library cannot be used: {0}")]
    Library(String),
    #[error("the file is of format {got}, this engine runs {wanted}")]
    Format { wanted: NetworkFormat, got: NetworkFormat },
    #[error("the model file is empty")]
    Empty,
    #[error("the model file cannot be loaded: {0}")]
    Load(String),
    #[error("operator {op} (node {node:?}): {why}")]
    Unsupported { node: String, op: String, why: String },
    #[error("tensor {name}: the graph has {graph}, the manifest says {manifest}")]
    Tensor { name: String, graph: String, manifest: String },
    #[error("tensor {name}: element {index} is {value}, which is not a value of {what}")]
    Value { name: String, index: usize, value: String, what: &'static str },
    #[error("{got} {what} buffers were given, the model has {want}")]
    Count { what: &'static str, got: usize, want: usize },
    #[error("tensor {name}: the buffer has {got} bytes, the manifest asks for {want}")]
    Length { name: String, got: usize, want: usize },
    #[error("tensor {name}: the buffer is not aligned to {want} bytes")]
    Alignment { name: String, want: usize },
    /// The engine's device does not answer, or is gone: it may come back when its driver or its bus is reset.
    #[error("the device is lost: {0}")]
    Device(String),
    /// The engine's device is there and cannot be used now: another process has it, or it is too hot. Nothing has to be done about it
    /// but to wait.
    #[error("the device cannot be used now: {0}")]
    Busy(String),
    #[error("inference failed: {0}")]
    Run(String),
}

impl EngineError {
    /// Whether it is the device's, which may be well again later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Device(_) | Self::Busy(_))
    }
}
