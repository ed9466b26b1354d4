//! The Python side: `quantize.py`, and what it says.

use super::environment::Python;
use crate::fail::Failure;
use inferd_model::{Manifest, Motif, Precision, Task as ModelTask, VariantName};
use serde::{Deserialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

const SCRIPT: &str = include_str!("quantize.py");
/// Its exit code when a package is missing.
const NOT_INSTALLED: i32 = 3;
/// The most it may say.
const MOST_SAID: u64 = 4 << 20;

/// What is asked of it.
pub struct Request<'a> {
    /// The network.
    pub model: &'a Path,
    /// The golden vectors.
    pub golden: &'a Path,
    /// The model's manifest.
    pub manifest: &'a Manifest,
    /// A folder for what it makes.
    pub work: &'a Path,
    /// Samples; `None`: the golden vectors.
    pub calibration: Option<&'a Path>,
}

/// What it made.
#[derive(Debug, Deserialize)]
pub struct Made {
    pub variants: Vec<Variant>,
    pub original_bytes: u64,
    pub samples: u64,
    pub data_sha256: String,
    pub tools: BTreeMap<String, String>,
}

/// One variant and what it cost.
#[derive(Clone, Debug, Deserialize)]
pub struct Variant {
    pub name: VariantName,
    pub precision: Precision,
    pub file: String,
    pub method: String,
    pub bytes: u64,
    pub same_interface: bool,
    pub calibration: Differences,
    pub golden: Differences,
    pub task: Option<Task>,
    /// How many times as fast as the network itself, on this machine.
    pub speed: f64,
}

/// How a variant's answers differ from the network's.
#[derive(Clone, Debug, Deserialize)]
pub struct Differences {
    /// Whether every value is a number.
    pub finite: bool,
    /// The least of any output over all samples together.
    pub cosine: f64,
    /// The least of any output of any sample.
    pub worst_cosine: f64,
    pub max_abs: Option<f64>,
    /// Of samples with a clearly highest score: for how many it is the same one.
    pub argmax: Option<f64>,
}

/// Right answers where the data has labels.
#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    pub original: f64,
    pub value: f64,
    pub samples: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said<T> {
    Progress(String),
    Result(T),
    Error { kind: String, message: String },
}

/// Runs it to its end.
///
/// # Errors
/// One sentence: what it refuses, or how it ended.
pub fn run<T: DeserializeOwned>(
    python: &Python,
    request: &Request<'_>,
    options: &[&str],
    tell: impl Fn(&str),
) -> Result<T, Failure> {
    let other = |e: String| Failure::Other(e);
    let tensors = request.work.join("tensors.json");
    let page = serde_json::json!({ "inputs": request.manifest.inputs, "scored": scored(request.manifest) });
    std::fs::write(&tensors, page.to_string()).map_err(|e| other(format!("{}: {e}", tensors.display())))?;
    let script = request.work.join("quantize.py");
    std::fs::write(&script, SCRIPT).map_err(|e| other(format!("{}: {e}", script.display())))?;
    // -I: nothing of the current folder or the user's environment is imported by accident.
    let mut command = Command::new(python.program());
    command.arg("-I").arg(&script).arg("--model").arg(request.model).arg("--golden").arg(request.golden);
    command.arg("--tensors").arg(&tensors).arg("--work").arg(request.work).args(options);
    if let Some(data) = request.calibration {
        command.arg("--calibration").arg(data);
    }
    let mut child = command
        .env("ORT_DISABLE_TELEMETRY", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(request.work.join("stderr")).map_err(|e| other(e.to_string()))?)
        .spawn()
        .map_err(|e| other(format!("{} cannot be run: {e}", python.program().display())))?;
    let mut outcome = None;
    if let Some(out) = child.stdout.take() {
        for line in BufReader::new(out.take(MOST_SAID)).lines().map_while(Result::ok) {
            match serde_json::from_str::<Said<T>>(&line) {
                Ok(Said::Progress(text)) => tell(&text),
                Ok(Said::Result(result)) => outcome = Some(Ok(result)),
                Ok(Said::Error { kind, message }) => {
                    outcome = Some(Err(other(format!("{message} ({kind})"))))
                }
                Err(e) => outcome = Some(Err(other(format!("Python answered something else: {e}")))),
            }
        }
    }
    let status = child.wait().map_err(|e| other(e.to_string()))?;
    if let Some(outcome) = outcome {
        return outcome;
    }
    let said = std::fs::read_to_string(request.work.join("stderr")).unwrap_or_default();
    let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").to_owned();
    Err(other(match status.code() {
        Some(NOT_INSTALLED) => format!("{}: {last}", python.program().display()),
        _ => format!("Python did not finish ({status}): {last}"),
    }))
}

/// The output whose highest element is the answer, when the task has one.
fn scored(manifest: &Manifest) -> Option<&str> {
    match (manifest.task, manifest.imu.as_ref().and_then(|i| i.motif.as_ref())) {
        (_, Some(Motif::Output { output, .. })) => Some(output),
        (ModelTask::Classifier | ModelTask::EmgClassifier, _) => {
            manifest.outputs.first().map(|o| o.name.as_str())
        }
        _ => None,
    }
}
