//! A model directory as the trainer writes it: network, golden vectors, manifest.

use inferd_model::{
    Budget, EngineKind, FileRef, GoldenError, GoldenRef, MANIFEST_FILE, Manifest, ManifestError, ModelName,
    NameError, SCHEMA, Task,
};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The network's file.
const ONNX_FILE: &str = "model.onnx";
/// The golden vectors' file.
const GOLDEN_FILE: &str = "golden.safetensors";

/// Why a model directory could not be made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WriteError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{0} is not recognised in any of 64 windows: train longer before writing a model")]
    Untrained(&'static str),
}

/// What the manifests of all that is trained here have in common: by ONNX Runtime where there is one, in 64 MiB and a second.
pub(crate) fn manifest(
    (name, task, summary): (&str, Task, &str),
    onnx: &[u8],
    golden: &[u8],
    max_abs: f64,
) -> Result<Manifest, NameError> {
    Ok(Manifest {
        schema: SCHEMA,
        name: ModelName::new(name)?,
        version: "1.0.0".to_owned(),
        task,
        summary: summary.to_owned(),
        engines: vec![EngineKind::Ort.into(), EngineKind::Cpu.into()],
        variants: Vec::new(),
        engine_versions: std::collections::BTreeMap::new(),
        budget: Budget { memory_mib: 64, deadline_ms: 1000, queue: None, workers: None },
        onnx: FileRef { file: ONNX_FILE.to_owned(), sha256: digest(onnx) },
        golden: GoldenRef { file: GOLDEN_FILE.to_owned(), sha256: digest(golden), cosine: 0.9999, max_abs },
        imu: None,
        emg: None,
        provenance: None,
        accuracy: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
    })
}

/// Writes the directory, the manifest last, so that a manifest never names a file that is not there yet.
pub(crate) fn write(dir: &Path, manifest: &Manifest, onnx: &[u8], golden: &[u8]) -> Result<(), WriteError> {
    std::fs::create_dir_all(dir).map_err(|error| WriteError::Io { path: dir.to_owned(), error })?;
    let manifest = manifest.to_toml();
    for (name, bytes) in [(ONNX_FILE, onnx), (GOLDEN_FILE, golden), (MANIFEST_FILE, manifest.as_bytes())] {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(|error| WriteError::Io { path, error })?;
    }
    Ok(())
}

/// What a manifest says of a file, as hexadecimal digits.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Numbers as a golden file has them.
pub(crate) fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Four digits: more would claim a precision that the sample size does not have.
pub(crate) fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

/// A dimension of a shape.
pub(crate) fn size(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a small network")
}
