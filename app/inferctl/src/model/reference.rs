//! A second opinion: the same inputs on ONNX Runtime, when a Python on this machine has it.

use inferd_model::{DType, GoldenCase, TensorSpec};
use serde::{Deserialize, Serialize};
use std::{io, path::Path, process::Command};

const SCRIPT: &str = include_str!("reference.py");
/// The script's exit code when a package is missing.
const NOT_INSTALLED: i32 = 3;

/// What ONNX Runtime said.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Opinion {
    /// It ran the network.
    Compared {
        /// Its version.
        version: String,
        /// The least cosine similarity of any output of any case.
        cosine: f64,
        /// The largest difference of any element.
        max_abs: f64,
    },
    /// It was not asked, or could not be.
    Unavailable {
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Opinion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Compared { version, cosine, max_abs } => {
                write!(f, "ONNX Runtime {version}: cosine {cosine:.7}, largest difference {max_abs:.2e}")
            }
            Self::Unavailable { why } => write!(f, "not compared with ONNX Runtime: {why}"),
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    version: String,
    cosine: f64,
    max_abs: f64,
}

/// Compares recorded cases, inputs as the network sees them (normalised), with ONNX Runtime.
pub fn compare(
    python: &str,
    network: &Path,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
    cases: &[GoldenCase],
) -> Opinion {
    let unavailable = |why: String| Opinion::Unavailable { why };
    if inputs.iter().chain(outputs).any(|s| s.dtype == DType::Bf16) {
        return unavailable("its Python interface has no BF16".into());
    }
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(e) => return unavailable(format!("no temporary folder: {e}")),
    };
    if let Err(e) = scratch.fill(network, inputs, outputs, cases) {
        return unavailable(format!("{} cannot be written: {e}", scratch.0.display()));
    }
    // -I: nothing of the current folder or the user's environment is imported by accident.
    // ONNX Runtime from 1.29 on would tell its maker what it runs.
    let quiet = ("ORT_DISABLE_TELEMETRY", "1");
    let ran = Command::new(python).args(["-I", "-c", SCRIPT]).arg(&scratch.0).envs([quiet]).output();
    let output = match ran {
        Ok(output) => output,
        Err(e) => return unavailable(format!("{python} cannot be run: {e}")),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default().to_owned();
    match output.status.code() {
        Some(0) => match serde_json::from_slice::<Answer>(&output.stdout) {
            Ok(a) => Opinion::Compared { version: a.version, cosine: a.cosine, max_abs: a.max_abs },
            Err(e) => unavailable(format!("{python} answered something else: {e}")),
        },
        Some(NOT_INSTALLED) => unavailable(format!("{python}: {last} (pip install onnxruntime)")),
        _ => unavailable(format!("it failed: {last}")),
    }
}

/// A folder that goes when it is dropped.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
        for attempt in 0..100 {
            let dir = base.join(format!("inferctl-{}-{attempt}", std::process::id()));
            // Fails on anything that is there already, a link of somebody else's included.
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Self(dir)),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn fill(
        &self,
        network: &Path,
        inputs: &[TensorSpec],
        outputs: &[TensorSpec],
        cases: &[GoldenCase],
    ) -> io::Result<()> {
        let list = |specs: &[TensorSpec]| {
            specs.iter().enumerate().map(|(index, s)| {
                serde_json::json!({"index": index, "name": s.name, "dtype": s.dtype.name(), "shape": s.shape})
            })
            .collect::<Vec<_>>()
        };
        let page = serde_json::json!({
            "network": std::path::absolute(network)?, "cases": cases.len(),
            "inputs": list(inputs), "outputs": list(outputs),
        });
        std::fs::write(self.0.join("case.json"), page.to_string())?;
        for (i, case) in cases.iter().enumerate() {
            for (way, buffers) in [("in", &case.inputs), ("out", &case.outputs)] {
                for (index, bytes) in buffers.iter().enumerate() {
                    std::fs::write(self.0.join(format!("{i}-{way}-{index}")), bytes)?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
