//! The appliance's default model, `imu-motion`: what it is called, what goes in and out, and its directory.

use crate::motion::{CHANNEL_NAMES, CHANNEL_UNITS, CHANNELS, Conditions, Motion, RATE_HZ, STEPS, Sample};
use crate::net::{Answer, Tcn};
use crate::onnx::{Border, to_onnx};
use crate::training::{MOTIONS, Quality, normalized};
use inferd_model::{
    Accuracy, Budget, Channels, DType, EngineKind, FileRef, GoldenCase, GoldenError, GoldenRef, GoldenWriter,
    ImuTask, Limit, MANIFEST_FILE, Manifest, ManifestError, ModelName, Motif, NameError, Normalization,
    Provenance, SCHEMA, Task, TensorSpec,
};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Length of the latent vector.
pub const LATENT: usize = 64;
/// Channels after each block.
pub const WIDTHS: [usize; 5] = [CHANNELS, 32, 48, 64, 64];
/// The seed of the windows that quality is measured on. Training windows come from other generators: their seeds
/// are 64 random bits drawn for another purpose.
pub const EVALUATION_SEED: u64 = 20_000;
/// Windows per motion in the manifest's accuracy.
pub const EVALUATION_WINDOWS: u64 = 500;

const INPUT: &str = "imu_window";
const LATENT_OUTPUT: &str = "latent_embeddings";
const SCORES_OUTPUT: &str = "motif_scores";
const ONNX_FILE: &str = "model.onnx";
const GOLDEN_FILE: &str = "golden.safetensors";
const SEED_OF_GOLDEN: u64 = 30_000;

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
    #[error("the motion {0} is not recognised in any of 64 windows: train longer before writing a model")]
    Untrained(Motion),
}

/// The z-score the network is trained behind: the constants every client and compiler of this service has always used.
#[must_use]
pub fn normalization() -> Normalization {
    Normalization {
        mean: vec![0.12, -0.08, 9.78, 0.002, -0.001, 0.003, 22.4, -8.7, 43.2],
        std: vec![3.92, 3.87, 2.45, 1.24, 1.31, 0.98, 28.5, 31.2, 24.8],
    }
}

/// The network's answer to a window in raw units.
#[must_use]
pub fn answer(net: &Tcn, window: &[Sample]) -> Answer {
    net.forward(normalized(window, &normalization()).view())
}

/// Measures `net` on windows it has never seen.
#[must_use]
pub fn quality(net: &Tcn, conditions: Conditions) -> Quality {
    let scores = |w: &[Sample]| Ok::<_, std::convert::Infallible>(answer(net, w).scores.to_vec());
    let Ok(q) = Quality::measure(EVALUATION_WINDOWS, EVALUATION_SEED, conditions, scores);
    q
}

/// Writes the model directory: network, golden vectors, manifest (last, so that a manifest never names a file that is
/// not there yet).
///
/// # Errors
/// [`WriteError`] naming the file that cannot be written, or the motion the network has not learned.
pub fn write(
    net: &Tcn,
    seed: u64,
    usual: &Quality,
    hard: &Quality,
    dir: &Path,
) -> Result<Manifest, WriteError> {
    let doc = "Temporal convolutional encoder with a motif head, trained on synthetic motion (inferd-train).";
    let border = Border { input: INPUT, latent: LATENT_OUTPUT, scores: SCORES_OUTPUT, steps: STEPS };
    let onnx = to_onnx(net, &border, "imu_motion", doc);
    let (inputs, outputs) = (vec![input()], outputs());
    let golden = golden(net)?.to_bytes(&inputs, &outputs)?;
    let manifest = Manifest {
        schema: SCHEMA,
        name: ModelName::new("imu-motion")?,
        version: "1.0.0".to_owned(),
        task: Task::ImuEncoder,
        summary: "One second of a collar's nine-axis sensor to a latent vector and the scores of 12 motions; trained \
                  on synthetic motion"
            .to_owned(),
        engines: vec![EngineKind::Ort.into(), EngineKind::Cpu.into()],
        variants: Vec::new(),
        engine_versions: std::collections::BTreeMap::new(),
        budget: Budget { memory_mib: 64, deadline_ms: 1000, queue: None, workers: None },
        onnx: FileRef { file: ONNX_FILE.to_owned(), sha256: digest(&onnx) },
        golden: GoldenRef {
            file: GOLDEN_FILE.to_owned(),
            sha256: digest(&golden),
            cosine: 0.9999,
            max_abs: 1e-4,
        },
        imu: Some(ImuTask {
            latent: LATENT_OUTPUT.to_owned(),
            motif: Some(Motif::Output {
                output: SCORES_OUTPUT.to_owned(),
                labels: Motion::ALL.map(|m| m.name().to_owned()).to_vec(),
            }),
        }),
        emg: None,
        provenance: Some(Provenance {
            source: format!(
                "Trained by inferd-train {} (imu-motion --seed {seed}) on synthetic motion; no recording of an animal \
                 or a person was used",
                env!("CARGO_PKG_VERSION")
            ),
            license: "Apache-2.0 OR MIT".to_owned(),
            notes: "The twelve motions, their parameters and the sensor model are in app/train/README.md. Accuracy is \
                    on windows of the same generator and says nothing about real animals."
                .to_owned(),
        }),
        accuracy: accuracy(usual, hard),
        inputs,
        outputs,
    }
    .validated()?;
    std::fs::create_dir_all(dir).map_err(|error| WriteError::Io { path: dir.to_owned(), error })?;
    let files = [(ONNX_FILE, onnx), (GOLDEN_FILE, golden), (MANIFEST_FILE, manifest.to_toml().into_bytes())];
    for (name, bytes) in files {
        let path = dir.join(name);
        std::fs::write(&path, bytes).map_err(|error| WriteError::Io { path, error })?;
    }
    Ok(manifest)
}

fn input() -> TensorSpec {
    let limit = |quantity: &str, channels: &[&str], max_abs| Limit {
        quantity: quantity.to_owned(),
        channels: channels.iter().map(|&c| c.to_owned()).collect(),
        max_abs,
    };
    let [ax, ay, az, gx, gy, gz, mx, my, mz] = CHANNEL_NAMES;
    TensorSpec {
        channels: Some(Channels {
            names: CHANNEL_NAMES.map(str::to_owned).to_vec(),
            units: CHANNEL_UNITS.map(str::to_owned).to_vec(),
            rate_hz: Some(RATE_HZ),
        }),
        normalization: Some(normalization()),
        limits: vec![
            limit("Accelerometer", &[ax, ay, az], 500.0),
            limit("Gyroscope", &[gx, gy, gz], 35.0),
            limit("Magnetometer", &[mx, my, mz], 2000.0),
        ],
        ..TensorSpec::plain(INPUT, DType::Fp32, &[1, size(STEPS), size(CHANNELS)])
    }
}

fn outputs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::plain(LATENT_OUTPUT, DType::Fp32, &[1, size(LATENT)]),
        TensorSpec::plain(SCORES_OUTPUT, DType::Fp32, &[1, size(MOTIONS)]),
    ]
}

fn size(n: usize) -> u32 {
    u32::try_from(n).expect("sizes of a small network")
}

/// Five motions that use every layer's range, from rest to shaking, and a silent sensor.
fn golden(net: &Tcn) -> Result<GoldenWriter, WriteError> {
    let mut writer = GoldenWriter::default();
    let mut push = |window: &[Sample]| {
        let a = answer(net, window);
        let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let outputs = vec![bytes(&a.latent.to_vec()), bytes(&a.scores.to_vec())];
        writer.push(GoldenCase { inputs: vec![bytes(window.as_flattened())], outputs });
    };
    for motion in [Motion::Sit, Motion::Walk, Motion::Jump, Motion::Shake, Motion::Sniff] {
        // A golden window shows the model at work: the first one it names rightly and surely.
        let mut windows = (SEED_OF_GOLDEN..SEED_OF_GOLDEN + 64)
            .map(|seed| crate::motion::window(motion, seed, Conditions::Usual));
        let sure = |w: &Vec<Sample>| answer(net, w).scores[motion.index()] > 0.9;
        push(&windows.find(sure).ok_or(WriteError::Untrained(motion))?);
    }
    // What the self-test sends: a sensor that gives nothing.
    push(&[[0.0; CHANNELS]; STEPS]);
    Ok(writer)
}

fn accuracy(usual: &Quality, hard: &Quality) -> Vec<Accuracy> {
    let of = |q: &Quality, kind: &str| {
        let dataset = |what: &str| {
            format!(
                "{what} of the synthetic generator, {kind}, seeds unseen in training (evaluation seed {EVALUATION_SEED})"
            )
        };
        [
            Accuracy {
                dataset: dataset("windows of the 12 motions"),
                metric: "top-1".to_owned(),
                value: round(q.top1()),
                samples: q.windows(),
            },
            Accuracy {
                dataset: dataset("windows of none of the motions"),
                metric: "no score reaches 0.5".to_owned(),
                value: round(q.rejection()),
                samples: q.background,
            },
        ]
    };
    let hard_name =
        "hard conditions (ranges 15 % wider, twice the noise and bias, looser collar), never trained on";
    [of(usual, "usual conditions"), of(hard, hard_name)].concat()
}

/// Four digits: more would claim a precision that the sample size does not have.
fn round(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
