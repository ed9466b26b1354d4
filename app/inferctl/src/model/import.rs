//! `inferctl model import FILE.onnx -o DIR`: a model directory of a network.

use super::{
    check, plausible,
    plausible::Random,
    reference::{self, Opinion},
    sha256,
};
use inferd_engine::{
    AlignedBuffer, CpuEngine, Engine, EngineError, GraphInfo, NetworkFile, Runner, TensorInfo,
};
use inferd_model::{
    Budget, Channels, DType, EmgScaling, EmgTask, EngineKind, FileRef, Golden, GoldenCase, GoldenError,
    GoldenRef, GoldenWriter, ImuTask, Limit, MANIFEST_FILE, Manifest, ManifestError, ModelName, Motif,
    Normalization, Provenance, SCHEMA, Task, TensorSpec,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The channels of a nine-axis inertial sensor in the order of the IMU contract, with the contract's limits.
const IMU_CHANNELS: [&str; 9] = ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"];
const IMU_QUANTITIES: [(&str, &str, f64); 3] =
    [("Accelerometer", "m/s^2", 500.0), ("Gyroscope", "rad/s", 35.0), ("Magnetometer", "uT", 2000.0)];
const IMU_RATE_HZ: f64 = 100.0;

/// The least cosine a right engine reaches, in the manifest and beside ONNX Runtime.
const COSINE: f64 = 0.9999;

/// Versions of the standard operator set that are taken. Before 7 operators stretched their inputs by other rules; 26 is the newest that
/// ONNX Runtime 1.31 runs, which is what the built-in engine is held against.
const OPSETS: RangeInclusive<i64> = 7..=26;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The network
    file: PathBuf,
    /// The directory to make
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// What the model is for [default: imu-encoder when the configuration says so, else tensor]
    #[arg(long, value_parser = task)]
    task: Option<Task>,
    /// Normalisation, channel names and shapes, in the JSON form encoders are published with
    #[arg(long, value_name = "JSON")]
    config: Option<PathBuf>,
    /// Name it is served under [default: the file's name]
    #[arg(long, value_parser = name)]
    name: Option<ModelName>,
    /// Its version [default: the configuration's, else 1.0.0]
    #[arg(long)]
    model_version: Option<String>,
    /// Size of a dynamic dimension: NAME=SIZE, or TENSOR.AXIS=SIZE for one without a name; a batch is 1 unless given
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    dims: Vec<(String, u32)>,
    /// Golden cases to record
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    cases: u64,
    /// Seed of their inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hard cap of the engine host in MiB [default: from the size of the network and a measured run]
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u32>,
    /// The longest one inference may compute, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    deadline_ms: u32,
    /// Replace the directory if it is there
    #[arg(long)]
    force: bool,
    /// The Python that may have onnxruntime, for a second opinion
    #[arg(long, default_value = "python3")]
    python: String,
}

fn task(text: &str) -> Result<Task, String> {
    let all = [Task::ImuEncoder, Task::EmgClassifier, Task::Detector, Task::Classifier, Task::Tensor];
    let names: Vec<&str> = all.iter().map(|t| t.name()).collect();
    all.into_iter().find(|t| t.name() == text).ok_or_else(|| format!("one of {}", names.join(", ")))
}

fn name(text: &str) -> Result<ModelName, String> {
    ModelName::new(text).map_err(|e| e.to_string())
}

fn dim(text: &str) -> Result<(String, u32), String> {
    let (name, size) = text.split_once('=').ok_or("NAME=SIZE")?;
    Ok((name.to_owned(), size.parse().ok().filter(|&s| s > 0).ok_or("a size of at least 1")?))
}

/// Why no directory was made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ImportError {
    #[error("{path} cannot be {done}: {error}")]
    File { path: PathBuf, done: &'static str, error: std::io::Error },
    #[error("{0} is there already; --force replaces it")]
    Exists(PathBuf),
    #[error(
        "{0} is not a model directory (a manifest and files, no folders), so --force does not replace it"
    )]
    NotAModel(PathBuf),
    #[error("{path} is not a configuration of this form: {why}")]
    Config { path: PathBuf, why: String },
    #[error("{file}: {error}")]
    Engine { file: PathBuf, error: EngineError },
    #[error("operator set {0}: {first} to {last} are taken; export the network with one of them", first = OPSETS.start(), last = OPSETS.end())]
    Opset(i64),
    #[error(
        "it has two {side} called {name:?}: a request could name only one of them; export it with names of their own"
    )]
    Twice { side: &'static str, name: String },
    #[error("tensor {tensor}: elements of type {dtype} are not served")]
    Type { tensor: String, dtype: String },
    #[error("tensor {tensor}: the network does not say its shape; export it with one")]
    Shape { tensor: String },
    #[error("tensor {tensor}: dimension {axis} is dynamic; give its size with --dim {option}=SIZE")]
    Dynamic { tensor: String, axis: usize, option: String },
    #[error("--dim {0} names no dynamic dimension of an input")]
    UnusedDim(String),
    #[error("task {task}: {why}")]
    Task { task: Task, why: String },
    #[error("output {0} is not finite for a plausible input; the network or its normalisation is wrong")]
    NotFinite(String),
    #[error("{0}: {1} is not a model name; choose one with --name")]
    Name(PathBuf, String),
    #[error(
        "the built-in engine and ONNX Runtime {version} disagree: cosine {cosine:.6}, largest difference {max_abs:.2e}; nothing was written"
    )]
    Disagree { version: String, cosine: f64, max_abs: f64 },
    #[error("the manifest would not be valid: {0}")]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Golden(#[from] GoldenError),
}

/// The configuration file: what encoders are published with. Keys that say nothing here are ignored.
#[derive(Debug, Default, Deserialize)]
struct Config {
    export_info: Option<ExportInfo>,
    model_specs: Option<ModelSpecs>,
    normalization: Option<ConfigNormalization>,
    /// Names of the motif scores, in order.
    motif_labels: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ExportInfo {
    export_version: Option<String>,
    model_accuracy: Option<String>,
    timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ModelSpecs {
    input_shape: Option<Vec<u32>>,
}

#[derive(Debug, Deserialize)]
struct ConfigNormalization {
    method: Option<String>,
    mean: Vec<f32>,
    std: Vec<f32>,
    channel_order: Option<Vec<String>>,
    units: Option<Vec<String>>,
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Report {
    dir: PathBuf,
    name: String,
    task: Task,
    inputs: Vec<String>,
    outputs: Vec<String>,
    golden_cases: u64,
    memory_mib: u32,
    onnxruntime: Opinion,
    /// What the operator should know.
    notes: Vec<String>,
    /// The check of the directory, made from what was written.
    pub check: check::Report,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} (task {}) in {}", self.name, self.task, self.dir.display())?;
        for (what, tensors) in [("in", &self.inputs), ("out", &self.outputs)] {
            tensors.iter().try_for_each(|t| writeln!(f, "  {what:<4}{t}"))?;
        }
        writeln!(f, "  {} golden cases from the cpu engine; {}", self.golden_cases, self.onnxruntime)?;
        writeln!(f, "  memory cap {} MiB", self.memory_mib)?;
        self.notes.iter().try_for_each(|n| writeln!(f, "  note: {n}"))?;
        write!(f, "\n{}", self.check)
    }
}

impl Import {
    /// Makes the directory.
    ///
    /// # Errors
    /// [`ImportError`]; then nothing was written.
    pub fn run(&self) -> Result<Report, ImportError> {
        if self.output.exists() {
            if !self.force {
                return Err(ImportError::Exists(self.output.clone()));
            }
            if !is_model(&self.output) {
                return Err(ImportError::NotAModel(self.output.clone()));
            }
        }
        // The engine keeps the file for as long as the program runs.
        let onnx: &'static [u8] = read(&self.file)?.leak();
        let config = self.config()?;
        let info = CpuEngine::describe(onnx).map_err(|e| self.engine(e))?;
        refuse_what_nobody_runs(&info)?;
        let name = self.model_name()?;
        let task = self.task.unwrap_or_else(|| guess_task(&config));
        let mut notes = Vec::new();
        let inputs = self.inputs(&info, task, &config, &mut notes)?;

        let mut made = Err(EngineError::Run("the worker did not run".into()));
        CpuEngine::new().worker(Box::new(|| {
            made = catch_unwind(AssertUnwindSafe(|| self.record(onnx, &inputs, task))).unwrap_or_else(|_| {
                Err(EngineError::Run("the library panicked on a plausible input".into()))
            });
        }));
        let recorded = made.map_err(|e| self.engine(e))?;
        let outputs = recorded.outputs;
        let cases = recorded.cases;
        refuse_infinite(&outputs, &cases)?;

        let onnxruntime = reference::compare(
            &self.python,
            &self.file,
            &inputs,
            &outputs,
            &cases.iter().map(|c| normalized(c, &inputs)).collect::<Vec<_>>(),
        );
        let largest = largest(&outputs, &cases);
        // A thousandth of the largest answer: wide enough for another processor's order of summation, narrow enough for a
        // wrong operator to show. Rounded to a number a person can read.
        let tolerance: f64 = format!("{:.0e}", (largest * 1e-3).max(1e-4)).parse().unwrap_or(1e-3);
        if let Opinion::Compared { version, cosine, max_abs } = &onnxruntime
            && (*cosine < COSINE || *max_abs > tolerance)
        {
            let (version, cosine, max_abs) = (version.clone(), *cosine, *max_abs);
            return Err(ImportError::Disagree { version, cosine, max_abs });
        }

        let mut writer = GoldenWriter::default();
        cases.iter().for_each(|c| writer.push(c.clone()));
        let golden = writer.to_bytes(&inputs, &outputs)?;
        let memory_mib = self.memory_mib.unwrap_or_else(|| recorded.memory.budget_mib(onnx.len()));
        let imu = match task {
            Task::ImuEncoder => Some(imu(&outputs, &cases, &config, &mut notes)?),
            _ => None,
        };
        let emg = (task == Task::EmgClassifier).then(|| emg(&outputs, &mut notes)).transpose()?;
        let manifest = Manifest {
            schema: SCHEMA,
            name,
            version: self.version(&config),
            task,
            summary: format!("Imported from {}", file_name(&self.file)),
            engines: vec![EngineKind::Ort.into(), EngineKind::Cpu.into()],
            variants: Vec::new(),
            engine_versions: std::collections::BTreeMap::new(),
            budget: Budget { memory_mib, deadline_ms: self.deadline_ms, queue: None, workers: None },
            onnx: FileRef { file: "model.onnx".into(), sha256: sha256(onnx) },
            golden: GoldenRef {
                file: "golden.safetensors".into(),
                sha256: sha256(&golden),
                cosine: COSINE,
                max_abs: tolerance,
            },
            imu,
            emg,
            provenance: Some(provenance(&self.file, &info, &config)),
            accuracy: Vec::new(),
            inputs,
            outputs,
        }
        .validated()?;
        write(&self.output, &manifest, onnx, &golden, self.force)?;
        let show = |specs: &[TensorSpec]| {
            specs.iter().map(|s| format!("{} {} {:?}", s.name, s.dtype, s.shape)).collect::<Vec<_>>()
        };
        Ok(Report {
            dir: self.output.clone(),
            name: manifest.name.to_string(),
            task,
            inputs: show(&manifest.inputs),
            outputs: show(&manifest.outputs),
            golden_cases: self.cases,
            memory_mib,
            onnxruntime,
            notes,
            check: check::check(&self.output),
        })
    }

    fn engine(&self, error: EngineError) -> ImportError {
        ImportError::Engine { file: self.file.clone(), error }
    }

    fn config(&self) -> Result<Config, ImportError> {
        let Some(path) = &self.config else { return Ok(Config::default()) };
        let wrong = |why: String| ImportError::Config { path: path.clone(), why };
        let config: Config = serde_json::from_slice(&read(path)?).map_err(|e| wrong(e.to_string()))?;
        if let Some(n) = &config.normalization
            && let Some(method) = &n.method
            && !matches!(method.as_str(), "z_score" | "z_score_per_channel" | "zscore")
        {
            return Err(wrong(format!("normalization.method is {method:?}; only z_score is known")));
        }
        Ok(config)
    }

    fn model_name(&self) -> Result<ModelName, ImportError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy().replace(' ', "-");
        ModelName::new(&stem).map_err(|_| ImportError::Name(self.file.clone(), stem))
    }

    fn version(&self, config: &Config) -> String {
        let published = config.export_info.as_ref().and_then(|e| e.export_version.clone());
        self.model_version.clone().or(published).unwrap_or_else(|| "1.0.0".to_owned())
    }

    /// The inputs with their dynamic dimensions bound, normalised and named as the configuration says.
    fn inputs(
        &self,
        info: &GraphInfo,
        task: Task,
        config: &Config,
        notes: &mut Vec<String>,
    ) -> Result<Vec<TensorSpec>, ImportError> {
        let published = config.model_specs.as_ref().and_then(|s| s.input_shape.clone());
        let mut sizes: HashMap<&str, u32> = self.dims.iter().map(|(n, s)| (n.as_str(), *s)).collect();
        let mut unused: Vec<&str> = sizes.keys().copied().collect();
        let mut specs = Vec::new();
        for (i, tensor) in info.inputs.iter().enumerate() {
            let published = if i == 0 { published.as_deref() } else { None };
            let shape = bind(tensor, &mut sizes, &mut unused, published)?;
            let Some(dtype) = tensor.dtype else {
                return Err(ImportError::Type {
                    tensor: tensor.name.clone(),
                    dtype: tensor.type_name.clone(),
                });
            };
            if dtype == DType::Fp64 {
                notes.push(format!("{} is FP64; the cpu engine computes in FP32", tensor.name));
            }
            specs.push(TensorSpec::plain(&tensor.name, dtype, &shape));
        }
        if let Some(unknown) = unused.first() {
            return Err(ImportError::UnusedDim((*unknown).to_owned()));
        }
        if let Some(first) = specs.first_mut() {
            dress(first, task, config, notes)?;
        }
        Ok(specs)
    }

    /// Runs the network on plausible inputs.
    fn record(
        &self,
        onnx: &'static [u8],
        inputs: &[TensorSpec],
        task: Task,
    ) -> Result<Recorded, EngineError> {
        let cases: Vec<Vec<Vec<u8>>> = (0..self.cases)
            .map(|case| {
                let mut random = Random::new(self.seed, case);
                inputs.iter().map(|s| plausible::input(s, task, case, &mut random)).collect()
            })
            .collect();
        let before = Memory::now();
        let first = GoldenCase { inputs: cases[0].clone(), outputs: Vec::new() };
        let buffers: Vec<_> =
            normalized(&first, inputs).inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
        let slices: Vec<&[u8]> = buffers.iter().map(AlignedBuffer::as_bytes).collect();
        let outputs = CpuEngine::probe(onnx, inputs, &slices)?;

        let manifest = Arc::new(scaffold(inputs, &outputs));
        let model = CpuEngine::new().load(NetworkFile::onnx(onnx), &manifest)?;
        let mut runner = Runner::new(&*model, Arc::clone(&manifest))?;
        let mut recorded = Vec::new();
        for inputs in cases {
            let buffers: Vec<_> = inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
            let slices: Vec<&[u8]> = buffers.iter().map(AlignedBuffer::as_bytes).collect();
            let mut answers: Vec<_> = outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
            let mut to: Vec<&mut [u8]> = answers.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
            runner.run(&slices, &mut to)?;
            let outputs = answers.iter().map(|a| a.as_bytes().to_vec()).collect();
            recorded.push(GoldenCase { inputs, outputs });
        }
        Ok(Recorded { outputs, cases: recorded, memory: Memory::now().since(before) })
    }
}

/// What a recording run gave.
struct Recorded {
    outputs: Vec<TensorSpec>,
    cases: Vec<GoldenCase>,
    memory: Memory,
}

/// Peak resident memory of this process, in KiB.
#[derive(Clone, Copy)]
struct Memory {
    peak_kib: u64,
}

impl Memory {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
        Self { peak_kib: kib.unwrap_or(0) }
    }

    fn since(self, before: Self) -> Self {
        Self { peak_kib: self.peak_kib.saturating_sub(before.peak_kib) }
    }

    /// A cap for a host with four workers: the daemon's code and stacks, the network in memory and packed, and what one
    /// run was seen to need, for each worker. Rounded up to 16 MiB; at least 64.
    fn budget_mib(self, network_bytes: usize) -> u32 {
        let network_kib = u64::try_from(network_bytes).unwrap_or(u64::MAX) / 1024;
        let kib = 24 * 1024 + 3 * network_kib + 4 * self.peak_kib;
        u32::try_from((kib.div_ceil(1024)).next_multiple_of(16).max(64)).unwrap_or(u32::MAX)
    }
}

/// What a loader that asks less would take: the built-in engine reads no operator set's number that it does not need.
fn refuse_what_nobody_runs(info: &GraphInfo) -> Result<(), ImportError> {
    for (side, tensors) in [("inputs", &info.inputs), ("outputs", &info.outputs)] {
        let mut seen = HashSet::new();
        if let Some(twice) = tensors.iter().find(|t| !seen.insert(&t.name)) {
            return Err(ImportError::Twice { side, name: twice.name.clone() });
        }
    }
    match info.opset {
        Some(version) if !OPSETS.contains(&version) => Err(ImportError::Opset(version)),
        _ => Ok(()),
    }
}

/// A task the configuration speaks of.
fn guess_task(config: &Config) -> Task {
    let order = config.normalization.as_ref().and_then(|n| n.channel_order.as_ref());
    if order.is_some_and(|o| o.iter().map(String::as_str).eq(IMU_CHANNELS)) {
        Task::ImuEncoder
    } else {
        Task::Tensor
    }
}

/// Sizes of all dimensions of an input.
fn bind<'a>(
    tensor: &'a TensorInfo,
    sizes: &mut HashMap<&'a str, u32>,
    unused: &mut Vec<&str>,
    published: Option<&[u32]>,
) -> Result<Vec<u32>, ImportError> {
    let Some(shape) = &tensor.shape else { return Err(ImportError::Shape { tensor: tensor.name.clone() }) };
    let mut bound = Vec::new();
    for (axis, dim) in shape.iter().enumerate() {
        if let Some(size) = dim.size {
            bound.push(size);
            continue;
        }
        let position = format!("{}.{axis}", tensor.name);
        let by_name = dim.name.as_deref().filter(|n| sizes.contains_key(n));
        let by_position = sizes.get_key_value(position.as_str()).map(|(k, v)| (*k, *v));
        let size = if let Some(name) = by_name {
            unused.retain(|u| *u != name);
            sizes[name]
        } else if let Some((key, size)) = by_position {
            unused.retain(|u| *u != key);
            size
        } else if let Some(&size) = published.filter(|p| p.len() == shape.len()).and_then(|p| p.get(axis)) {
            size
        } else if axis == 0 {
            1
        } else {
            let option = dim.name.clone().unwrap_or(position);
            return Err(ImportError::Dynamic { tensor: tensor.name.clone(), axis, option });
        };
        // One name, one size, wherever it occurs next.
        if let Some(name) = &dim.name {
            sizes.entry(name).or_insert(size);
        }
        bound.push(size);
    }
    Ok(bound)
}

/// Gives the first input its channels, normalisation and limits.
fn dress(
    spec: &mut TensorSpec,
    task: Task,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<(), ImportError> {
    let channels = spec.channel_count();
    let imu = task == Task::ImuEncoder;
    if let Some(n) = &config.normalization {
        if n.mean.len() != channels || n.std.len() != channels {
            return Err(ImportError::Task {
                task,
                why: format!(
                    "the configuration normalises {} channels, input {} has {channels}",
                    n.mean.len(),
                    spec.name
                ),
            });
        }
        spec.normalization = Some(Normalization { mean: n.mean.clone(), std: n.std.clone() });
        if let Some(names) = &n.channel_order {
            let units = n.units.clone().unwrap_or_default();
            spec.channels = Some(Channels { names: names.clone(), units, rate_hz: None });
        }
    } else if imu {
        notes.push("no --config: the network gets raw sensor units".to_owned());
    }
    if !imu {
        return Ok(());
    }
    let names = spec.channels.as_ref().map(|c| c.names.clone());
    let names = names.unwrap_or_else(|| IMU_CHANNELS.iter().map(|&c| c.to_owned()).collect());
    if !names.iter().map(String::as_str).eq(IMU_CHANNELS) || channels != IMU_CHANNELS.len() {
        let why = format!("its input has the nine channels {}, in this order", IMU_CHANNELS.join(", "));
        return Err(ImportError::Task { task, why });
    }
    let units = IMU_QUANTITIES
        .iter()
        .flat_map(|(_, unit, _)| [(*unit).to_owned(), (*unit).to_owned(), (*unit).to_owned()]);
    spec.channels = Some(Channels { names, units: units.collect(), rate_hz: Some(IMU_RATE_HZ) });
    let triples = IMU_CHANNELS.chunks(3);
    spec.limits = IMU_QUANTITIES
        .iter()
        .zip(triples)
        .map(|(&(quantity, _, max_abs), channels)| Limit {
            quantity: quantity.to_owned(),
            channels: channels.iter().map(|&c| c.to_owned()).collect(),
            max_abs,
        })
        .collect();
    Ok(())
}

/// The task's parameters: which output scores the gestures. Their names are in no network.
fn emg(outputs: &[TensorSpec], notes: &mut Vec<String>) -> Result<EmgTask, ImportError> {
    let task = Task::EmgClassifier;
    let logits = outputs.iter().find(|o| o.dtype == DType::Fp32 && o.elements() > 1);
    let Some(logits) = logits else {
        return Err(ImportError::Task { task, why: "no FP32 output can be the scores".into() });
    };
    notes.push("the gestures are called by their numbers: name them in emg.labels".to_owned());
    Ok(EmgTask {
        logits: logits.name.clone(),
        labels: (0..logits.elements()).map(|i| i.to_string()).collect(),
        family: "tcn".to_owned(),
        scaling: EmgScaling::default(),
        filters: Vec::new(),
        spikes: None,
        features: None,
        patterns: Vec::new(),
    })
}

/// The task's parameters: which output is the latent, and where motif scores come from.
fn imu(
    outputs: &[TensorSpec],
    cases: &[GoldenCase],
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<ImuTask, ImportError> {
    let called = |words: [&str; 2]| {
        outputs
            .iter()
            .position(|o| words.iter().any(|w| o.name.to_lowercase().contains(w)) && o.dtype == DType::Fp32)
    };
    let motif = called(["motif", "score"]);
    let latent = called(["latent", "embedding"])
        .or_else(|| outputs.iter().enumerate().position(|(i, o)| o.dtype == DType::Fp32 && Some(i) != motif));
    let Some(latent) = latent else {
        return Err(ImportError::Task {
            task: Task::ImuEncoder,
            why: "no FP32 output can be the latent".into(),
        });
    };
    let motif = motif.filter(|&m| m != latent).and_then(|m| {
        let spec = &outputs[m];
        let in_range = cases.iter().all(|c| floats(&c.outputs[m]).all(|v| (0.0..=1.0).contains(&v)));
        if !in_range {
            notes.push(format!(
                "output {} is not in [0, 1] and cannot be motif scores; none are served",
                spec.name
            ));
            return None;
        }
        let numbered = || (0..spec.elements()).map(|i| format!("motif_{i}")).collect();
        let labels =
            config.motif_labels.clone().filter(|l| l.len() == spec.elements()).unwrap_or_else(numbered);
        Some(Motif::Output { output: spec.name.clone(), labels })
    });
    if motif.is_none() {
        notes.push("no motif head: twelve zeros are served, and marked so".to_owned());
    }
    Ok(ImuTask { latent: outputs[latent].name.clone(), motif })
}

fn provenance(file: &Path, info: &GraphInfo, config: &Config) -> Provenance {
    let mut notes = Vec::new();
    if let Some(export) = &config.export_info {
        if let Some(accuracy) = &export.model_accuracy {
            notes.push(format!("Published accuracy {accuracy}, not measured here."));
        }
        if let Some(time) = &export.timestamp {
            notes.push(format!("Exported {time}."));
        }
    }
    let producer = if info.producer.is_empty() { "unknown tool" } else { &info.producer };
    Provenance {
        source: format!("{} ({producer}, {} parameters)", file_name(file), info.parameters),
        license: String::new(),
        notes: notes.join(" "),
    }
}

/// A manifest just good enough to run with; the real one needs what the run gives.
fn scaffold(inputs: &[TensorSpec], outputs: &[TensorSpec]) -> Manifest {
    let digest = "0".repeat(64);
    Manifest {
        schema: SCHEMA,
        name: ModelName::new("import").expect("a valid name"),
        version: "0".into(),
        task: Task::Tensor,
        summary: String::new(),
        engines: vec![EngineKind::Cpu.into()],
        variants: Vec::new(),
        engine_versions: std::collections::BTreeMap::new(),
        budget: Budget { memory_mib: 64, deadline_ms: 1000, queue: None, workers: None },
        onnx: FileRef { file: "model.onnx".into(), sha256: digest.clone() },
        golden: GoldenRef { file: "golden.safetensors".into(), sha256: digest, cosine: COSINE, max_abs: 0.0 },
        imu: None,
        emg: None,
        provenance: None,
        accuracy: Vec::new(),
        inputs: inputs.to_vec(),
        outputs: outputs.to_vec(),
    }
}

/// The case as the network sees it.
fn normalized(case: &GoldenCase, inputs: &[TensorSpec]) -> GoldenCase {
    let apply = |(spec, bytes): (&TensorSpec, &Vec<u8>)| {
        let Some(normalization) = &spec.normalization else { return bytes.clone() };
        let raw: Vec<f32> = floats(bytes).collect();
        let mut out = vec![0.0; raw.len()];
        normalization.apply(&raw, &mut out);
        out.iter().flat_map(|v| v.to_le_bytes()).collect()
    };
    GoldenCase { inputs: inputs.iter().zip(&case.inputs).map(apply).collect(), outputs: case.outputs.clone() }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b))
}

/// The magnitudes of an output, as far as they are floating-point numbers.
fn magnitudes(spec: &TensorSpec, bytes: &[u8]) -> Vec<f64> {
    match spec.dtype {
        DType::Fp32 => floats(bytes).map(|v| f64::from(v).abs()).collect(),
        DType::Fp64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b).abs()).collect(),
        DType::Fp16 => {
            bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64().abs()).collect()
        }
        DType::Bf16 => {
            bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64().abs()).collect()
        }
        _ => Vec::new(),
    }
}

fn refuse_infinite(outputs: &[TensorSpec], cases: &[GoldenCase]) -> Result<(), ImportError> {
    for case in cases {
        for (spec, bytes) in outputs.iter().zip(&case.outputs) {
            if magnitudes(spec, bytes).iter().any(|v| !v.is_finite()) {
                return Err(ImportError::NotFinite(spec.name.clone()));
            }
        }
    }
    Ok(())
}

/// The largest magnitude of any floating-point output.
fn largest(outputs: &[TensorSpec], cases: &[GoldenCase]) -> f64 {
    let all = cases.iter().flat_map(|c| outputs.iter().zip(&c.outputs).flat_map(|(s, b)| magnitudes(s, b)));
    all.fold(0.0, f64::max)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    std::fs::read(path).map_err(|error| ImportError::File { path: path.to_owned(), done: "read", error })
}

/// Whether a directory holds a model and nothing that would be missed.
fn is_model(dir: &Path) -> bool {
    let plain = |e: Result<std::fs::DirEntry, _>| e.and_then(|e| e.file_type()).is_ok_and(|t| t.is_file());
    dir.join(MANIFEST_FILE).is_file() && std::fs::read_dir(dir).is_ok_and(|mut entries| entries.all(plain))
}

/// Writes the directory beside its place and moves it there, so that no half of one is ever seen.
fn write(
    dir: &Path,
    manifest: &Manifest,
    onnx: &[u8],
    golden: &[u8],
    replace: bool,
) -> Result<(), ImportError> {
    let failed = |path: &Path, done, error| ImportError::File { path: path.to_owned(), done, error };
    // The golden vectors must be readable with this manifest; a bug here must not become somebody's model.
    Golden::parse(golden, manifest)?;
    let part = dir.with_extension(format!("part-{}", std::process::id()));
    std::fs::create_dir_all(&part).map_err(|e| failed(&part, "made", e))?;
    let files = [
        ("model.onnx", onnx),
        ("golden.safetensors", golden),
        (MANIFEST_FILE, manifest.to_toml().as_bytes()),
    ]
    .map(|(name, bytes)| (part.join(name), bytes.to_vec()));
    for (path, bytes) in &files {
        std::fs::write(path, bytes).map_err(|e| failed(path, "written", e))?;
    }
    if replace && dir.exists() {
        std::fs::remove_dir_all(dir).map_err(|e| failed(dir, "replaced", e))?;
    }
    std::fs::rename(&part, dir).map_err(|e| failed(dir, "made", e))
}
