//! The Python side: `quantize.py`, and what it says.

use super::{environment::Python, samples::Samples};
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
    /// The model's manifest.
    pub manifest: &'a Manifest,
    /// A folder for what it makes.
    pub work: &'a Path,
    /// Inputs of the golden vectors.
    pub golden: &'a Samples<'a>,
    /// Calibration data.
    pub samples: &'a Samples<'a>,
}

/// What it made.
#[derive(Debug, Deserialize)]
pub struct Made {
    pub variants: Vec<Variant>,
    pub original_bytes: u64,
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
    /// On the samples that are held out; none where none are.
    pub held_out: Option<Differences>,
    /// On the golden vectors; none of a network with another interface.
    pub golden: Option<Differences>,
    pub task: Option<Task>,
    /// How many times as fast as the network itself, on this machine.
    pub speed: f64,
}

/// How a variant's answers differ from the network's.
#[derive(Clone, Debug, Deserialize)]
pub struct Differences {
    /// Whether every value is a number.
    pub finite: bool,
    /// The least cosine similarity of any output over all samples together.
    pub overall_cosine: f64,
    /// The least of any output of any sample that says anything.
    pub worst: Worst,
    pub max_abs: Option<f64>,
    /// Of samples with a clearly highest score: for how many it is the same one.
    pub argmax: Option<f64>,
}

/// The sample that came out worst, and which output of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Worst {
    pub cosine: f64,
    /// Its place in the data; none when all are exact.
    pub sample: Option<usize>,
    pub output: Option<String>,
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
    let write = |name: &str, content: &[u8]| {
        let path = request.work.join(name);
        std::fs::write(&path, content).map_err(|e| other(format!("{}: {e}", path.display())))?;
        Ok::<_, Failure>(path)
    };
    let page = serde_json::json!({
        "inputs": request.manifest.inputs,
        "scored": scored(request.manifest),
        "labels": request.samples.labels,
        "held_out": request.samples.held_out(),
    });
    let page = write("page.json", page.to_string().as_bytes())?;
    let golden = write("golden.safetensors", &request.golden.to_safetensors()?)?;
    let samples = write("samples.safetensors", &request.samples.to_safetensors()?)?;
    let script = write("quantize.py", SCRIPT.as_bytes())?;
    // -I: nothing of the current folder or the user's environment is imported by accident.
    let mut command = Command::new(python.program());
    command.arg("-I").arg(&script).arg("--model").arg(request.model).arg("--golden").arg(&golden);
    command
        .arg("--samples")
        .arg(&samples)
        .arg("--page")
        .arg(&page)
        .arg("--work")
        .arg(request.work)
        .args(options);
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
