//! `inferctl quantize`: smaller and faster forms of a model's network, made and proven on this machine. Never on a device.
//!
//! Calibration data are read and checked first ([`samples`]): a part is held out. onnxruntime's own tools do the work, in Python
//! ([`script`]), in an environment that is made once ([`environment`]); they are calibrated with the rest. Here it is
//! decided whether a variant may be kept ([`judge`]), and a new model directory is written with the variants, what they cost, and
//! the rungs that run them. The directory that was given is only read.

pub mod environment;
mod judge;
pub mod samples;
pub mod script;

use crate::{fail::Failure, show};
use inferd_engine::{CpuEngine, Engine as _, NetworkFile, Runner};
use inferd_model::{
    EngineKind, Golden, MANIFEST_FILE, Manifest, Measured, Motif, NetworkFormat, Rung, TaskMetric, Variant,
};
use judge::Limits;
use samples::Samples;
use script::{Made, Request};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest network: one message of protobuf holds no more.
const MOST_BYTES: u64 = (1 << 31) - 1;

/// Make quantised variants of a model, measure what they cost, and write a new model directory with those that may be kept
#[derive(Debug, clap::Args)]
pub struct Quantize {
    /// The model directory; it is only read
    model: PathBuf,
    /// The directory to make; it must not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// INT8 weights and activations, calibrated with data: what runs fast (the default)
    #[arg(long = "static")]
    fixed: bool,
    /// INT8 weights, activations quantised anew on every call; needs no calibration, seldom faster
    #[arg(long)]
    dynamic: bool,
    /// FP16
    #[arg(long)]
    fp16: bool,
    #[command(flatten)]
    data: Data,
    /// How ranges of activations are found
    #[arg(long, value_enum, default_value_t = Method::Minmax)]
    method: Method,
    /// One scale for each channel of the weights (the default)
    #[arg(long, overrides_with = "per_tensor")]
    per_channel: bool,
    /// One scale for all weights of an operator
    #[arg(long)]
    per_tensor: bool,
    /// Least cosine similarity to the network itself, of each output of each held-out sample and golden vector
    #[arg(long, default_value_t = 0.95, value_parser = ratio)]
    min_cosine: f64,
    /// The same of each output over all of them together
    #[arg(long, default_value_t = 0.99, value_parser = ratio)]
    min_overall_cosine: f64,
    /// The largest part of samples whose highest score may be another one, and the largest loss of the task's own measure
    #[arg(long, default_value_t = 0.02, value_parser = ratio)]
    max_loss: f64,
    /// The new ladder, when it is not to be the one that is worked out: `ort-int8,ort,cpu`
    #[arg(long, value_delimiter = ',', value_name = "RUNG,...")]
    engines: Vec<Rung>,
    #[command(flatten)]
    python: environment::Options,
}

/// Where samples come from.
#[derive(Debug, clap::Args)]
pub struct Data {
    /// Samples in raw units: .npz, .npy, .safetensors, .json, .ndjson, or a folder of them (captures too); without it the golden
    /// vectors
    #[arg(long, value_name = "FILE|DIR")]
    pub calibration: Option<PathBuf>,
}

impl Data {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read<'m>(&self, manifest: &'m Manifest, golden: &Golden) -> Result<Samples<'m>, Failure> {
        match &self.calibration {
            Some(path) => Samples::read(path, &manifest.inputs),
            None => Ok(Samples::golden(&manifest.inputs, golden)),
        }
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Method {
    /// The least and the largest value that was seen
    Minmax,
    /// Outliers are cut where that loses the least information
    Entropy,
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|r| (0.0..=1.0).contains(r));
    ratio.ok_or_else(|| "a number from 0 to 1 is needed".into())
}

/// What was made, for people and programs.
#[derive(Debug, Serialize)]
struct Report {
    output: PathBuf,
    engines: Vec<Rung>,
    /// Samples the ranges were made of, samples and golden vectors that the loss was judged on.
    calibrated: usize,
    held_out: usize,
    golden: usize,
    variants: Vec<Line>,
}

/// One variant. The first six fields are those of the tool that images were quantised with before.
#[derive(Debug, Serialize)]
struct Line {
    valid: bool,
    original_size: u64,
    quantized_size: u64,
    size_reduction: f64,
    compression_ratio: f64,
    errors: Vec<String>,
    name: String,
    method: String,
    /// The least of any output of any held-out sample and golden vector that says anything.
    cosine: Option<f64>,
    /// The least of any output over all of them together.
    overall_cosine: Option<f64>,
    max_abs: Option<f64>,
    argmax: Option<f64>,
    speed: f64,
}

impl Quantize {
    /// Does it.
    ///
    /// # Errors
    /// What is wrong with the model, the data or the tools; and [`Failure::Said`] when a variant lost too much.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let model = Directory::read(&self.model)?;
        must_be_new(&self.output)?;
        // What is wrong with the data is said before an environment is made for it.
        let golden = model.golden(&self.model)?;
        let samples = self.data.read(&model.manifest, &golden)?;
        let golden = Samples::golden(&model.manifest.inputs, &golden);
        golden.to_safetensors()?;
        let scratch = Scratch::beside(&self.output)?;
        let python = self.python.find(|text| eprintln!("{text}"))?;
        let kinds = self.kinds();
        let request = Request {
            model: &self.model.join(&model.manifest.onnx.file),
            golden: &golden,
            samples: &samples,
            manifest: &model.manifest,
            work: &scratch.make("work")?,
        };
        let mut options: Vec<&str> = kinds.iter().flat_map(|kind| ["--kind", kind]).collect();
        options.extend(match self.method {
            Method::Minmax => ["--method", "minmax"],
            Method::Entropy => ["--method", "entropy"],
        });
        if self.per_tensor {
            options.push("--per-tensor");
        }
        let made: Made = script::run(&python, &request, &options, |text| eprintln!("{text}"))?;
        let limits =
            Limits { cosine: self.min_cosine, overall: self.min_overall_cosine, loss: self.max_loss };
        let judged: Vec<(script::Variant, Vec<String>)> =
            made.variants.iter().map(|v| (v.clone(), limits.complaints(v, made.original_bytes))).collect();
        let held_out = samples.held_out().len();
        let mut report = Report {
            output: self.output.clone(),
            engines: model.manifest.engines.clone(),
            calibrated: samples.len() - held_out,
            held_out,
            golden: golden.len(),
            variants: judged.iter().map(|(v, errors)| line(v, errors, made.original_bytes)).collect(),
        };
        if judged.iter().any(|(_, errors)| !errors.is_empty()) {
            return refuse(&report, json);
        }
        report.engines = self.assemble(&model, &made, &request, &scratch)?.engines;
        scratch.become_directory(&self.output)?;
        if json {
            show::json(&report);
        } else {
            show::line(&table(&report));
            show::line(&format!("{} is made; its original stays as it is.", self.output.display()));
        }
        Ok(())
    }

    fn kinds(&self) -> Vec<&'static str> {
        let all = [(self.fixed, "static"), (self.dynamic, "dynamic"), (self.fp16, "fp16")];
        let chosen: Vec<_> = all.into_iter().filter_map(|(on, kind)| on.then_some(kind)).collect();
        if chosen.is_empty() { vec!["static"] } else { chosen }
    }

    /// Writes the new directory into the scratch folder, and proves it.
    fn assemble(
        &self,
        model: &Directory,
        made: &Made,
        request: &Request<'_>,
        scratch: &Scratch,
    ) -> Result<Manifest, Failure> {
        let work = request.work;
        let mut manifest = model.manifest.clone();
        let dir = scratch.make("model")?;
        let data = match &self.data.calibration {
            Some(path) => {
                path.file_name().map_or_else(|| "data".into(), |n| n.to_string_lossy().into_owned())
            }
            None => "the golden vectors".to_owned(),
        };
        for file in model.files() {
            copy(&self.model.join(file), &dir.join(file))?;
        }
        for variant in &made.variants {
            let bytes = fs::read(work.join(&variant.file)).map_err(|e| other(work, &e))?;
            let file = model.free_name(&variant.file);
            fs::write(dir.join(&file), &bytes).map_err(|e| other(&dir, &e))?;
            let entry = variant_entry(variant, made, &manifest, request.samples, (file, &bytes), &data)?;
            if manifest.variants.iter().any(|v| v.name == entry.name) {
                return Err(Failure::Other(format!("the model has a variant {} already", entry.name)));
            }
            manifest.variants.push(entry);
        }
        manifest.engines = if self.engines.is_empty() {
            judge::ladder(&manifest.engines, &made.variants)?
        } else {
            self.engines.clone()
        };
        let manifest = manifest.validated().map_err(|e| Failure::Other(e.to_string()))?;
        prove(&manifest, &dir)?;
        fs::write(dir.join(MANIFEST_FILE), manifest.to_toml()).map_err(|e| other(&dir, &e))?;
        Ok(manifest)
    }
}

fn variant_entry(
    variant: &script::Variant,
    made: &Made,
    manifest: &Manifest,
    samples: &Samples<'_>,
    (file, bytes): (String, &[u8]),
    data: &str,
) -> Result<Variant, Failure> {
    let none = || Failure::Other("the tools gave no numbers".into());
    let golden = variant.golden.as_ref().ok_or_else(none)?;
    let near =
        judge::tolerance(manifest.golden.tolerance(), golden.worst.cosine, golden.max_abs.ok_or_else(none)?);
    let told = Told::of(variant);
    Ok(Variant {
        name: variant.name,
        format: NetworkFormat::Onnx,
        precision: variant.precision,
        file,
        sha256: hex(bytes),
        golden: near.ok_or_else(none)?,
        made_for: None,
        measured: Some(Measured {
            method: variant.method.clone(),
            data: data.chars().filter(|c| !c.is_control()).take(200).collect(),
            data_sha256: samples.sha256(),
            samples: samples.len() as u64,
            bytes: variant.bytes,
            original_bytes: made.original_bytes,
            cosine: told.cosine.ok_or_else(none)?,
            max_abs: told.max_abs.ok_or_else(none)?,
            argmax: told.argmax,
            tools: made.tools.clone(),
            task: variant.task.as_ref().map(|t| TaskMetric {
                metric: "top-1".into(),
                value: t.value,
                original: t.original,
                samples: t.samples,
            }),
        }),
    })
}

/// Runs the golden vectors of every rung of the built-in engine. A variant it refuses has no place on such a rung.
fn prove(manifest: &Manifest, dir: &Path) -> Result<(), Failure> {
    let golden = fs::read(dir.join(&manifest.golden.file)).map_err(|e| other(dir, &e))?;
    let golden = Golden::parse(&golden, manifest).map_err(|e| Failure::Other(e.to_string()))?;
    let manifest = Arc::new(manifest.clone());
    let rungs = manifest.engines.iter().filter(|r| r.engine == EngineKind::Cpu && r.variant.is_some());
    for &rung in rungs {
        let Some(network) = manifest.network(rung) else { continue };
        let bytes = fs::read(dir.join(network.file)).map_err(|e| other(dir, &e))?;
        let engine = CpuEngine::new();
        let answered = engine
            .load(NetworkFile::onnx(bytes.leak()), &manifest)
            .and_then(|m| Runner::new(&*m, Arc::clone(&manifest)))
            .map_err(|e| e.to_string())
            .and_then(|mut r| r.check_golden(&golden, network.tolerance).map_err(|e| e.to_string()));
        if let Err(why) = answered {
            return Err(Failure::Other(format!("the built-in engine does not run {rung}: {why}")));
        }
    }
    Ok(())
}

fn line(v: &script::Variant, errors: &[String], original: u64) -> Line {
    #[allow(clippy::cast_precision_loss)] // below 2^31: the tools read no larger network
    let ratio = v.bytes as f64 / original as f64;
    let told = Told::of(v);
    Line {
        valid: errors.is_empty(),
        original_size: original,
        quantized_size: v.bytes,
        size_reduction: 1.0 - ratio,
        compression_ratio: 1.0 / ratio,
        errors: errors.to_vec(),
        name: v.name.to_string(),
        method: v.method.clone(),
        cosine: told.cosine,
        overall_cosine: told.overall_cosine,
        max_abs: told.max_abs,
        argmax: told.argmax,
        speed: v.speed,
    }
}

/// What a variant lost, on all that it is judged by.
struct Told {
    cosine: Option<f64>,
    overall_cosine: Option<f64>,
    max_abs: Option<f64>,
    argmax: Option<f64>,
}

impl Told {
    fn of(v: &script::Variant) -> Self {
        let parts = || [&v.held_out, &v.golden].into_iter().flatten();
        Self {
            cosine: parts().map(|d| d.worst.cosine).reduce(f64::min),
            overall_cosine: parts().map(|d| d.overall_cosine).reduce(f64::min),
            // Of what is not finite there is none.
            max_abs: parts().map(|d| d.max_abs).reduce(|a, b| Some(a?.max(b?))).flatten(),
            argmax: parts().filter_map(|d| d.argmax).reduce(f64::min),
        }
    }
}

/// Says what lost too much. Nothing was written.
fn refuse(report: &Report, json: bool) -> Result<(), Failure> {
    if json {
        show::json(report);
    } else {
        show::line(&table(report));
    }
    for line in &report.variants {
        for error in &line.errors {
            eprintln!("inferctl: {} is refused: {error}", line.name);
        }
    }
    eprintln!("inferctl: nothing was written; the original stays as it is");
    Err(Failure::Said)
}

fn table(report: &Report) -> String {
    let number = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{n:.6}"));
    let percent = |ratio: Option<f64>| ratio.map_or_else(|| "-".into(), |r| format!("{:.1} %", r * 100.0));
    let rows: Vec<Vec<String>> = report
        .variants
        .iter()
        .map(|v| {
            vec![
                v.name.clone(),
                v.method.clone(),
                format!("{} ({:.2}x smaller)", v.quantized_size, v.compression_ratio),
                number(v.cosine),
                number(v.overall_cosine),
                v.max_abs.map_or_else(|| "-".into(), |m| format!("{m:.2e}")),
                percent(v.argmax),
                format!("{:.2}x", v.speed),
            ]
        })
        .collect();
    let ladder: Vec<String> = report.engines.iter().map(ToString::to_string).collect();
    let head = ["variant", "how", "bytes", "worst cosine", "overall", "max diff", "same top", "speed here"];
    let (calibrated, held_out, golden) = (report.calibrated, report.held_out, report.golden);
    let unseen = match held_out {
        0 => "no other samples: what it loses on those nobody knows, --calibration brings some".to_owned(),
        n => format!("{n} held out"),
    };
    format!(
        "{}\nranges from {calibrated} samples; judged on {golden} golden vectors and {unseen}\nengines: {}",
        show::table(&head, &rows),
        ladder.join(", ")
    )
}

// ------------------------------------------------------------------------------------------------------ directories

/// A model directory that is only read.
pub struct Directory {
    /// Its manifest.
    pub manifest: Manifest,
}

impl Directory {
    /// Reads the manifest, and proves that the files it names are the ones it means.
    ///
    /// # Errors
    /// Which file is not.
    pub fn read(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).map_err(|e| other(&path, &e))?;
        let manifest =
            Manifest::from_toml(&text).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))?;
        let named =
            [(&manifest.onnx.file, &manifest.onnx.sha256), (&manifest.golden.file, &manifest.golden.sha256)];
        for (file, digest) in named {
            let path = dir.join(file);
            let length = fs::metadata(&path).map_err(|e| other(&path, &e))?.len();
            if length > MOST_BYTES {
                let path = path.display();
                return Err(Failure::Other(format!(
                    "{path} has {length} bytes; at most {MOST_BYTES} are quantised"
                )));
            }
            if hex(&fs::read(&path).map_err(|e| other(&path, &e))?) != *digest {
                return Err(Failure::Other(format!("{} is not the file its manifest names", path.display())));
            }
        }
        Ok(Self { manifest })
    }

    /// Its golden vectors.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn golden(&self, dir: &Path) -> Result<Golden, Failure> {
        let path = dir.join(&self.manifest.golden.file);
        let bytes = fs::read(&path).map_err(|e| other(&path, &e))?;
        Golden::parse(&bytes, &self.manifest).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))
    }

    /// The files it is made of, without the manifest.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.manifest.networks().map(|n| n.file).collect();
        files.push(&self.manifest.golden.file);
        if let Some(Motif::Linear { file, .. }) = self.manifest.imu.as_ref().and_then(|i| i.motif.as_ref()) {
            files.push(file);
        }
        files
    }

    /// This name, or the first like it that the directory does not use.
    pub fn free_name(&self, wanted: &str) -> String {
        let used = self.files();
        let names = std::iter::once(wanted.to_owned()).chain((2..).map(|n| format!("{n}.{wanted}")));
        let mut free = names.filter(|name| !used.contains(&name.as_str()));
        free.next().unwrap_or_default()
    }
}

/// Refuses an output that is there.
///
/// # Errors
/// Says so.
pub fn must_be_new(output: &Path) -> Result<(), Failure> {
    match fs::symlink_metadata(output) {
        Ok(_) => Err(Failure::Other(format!("{} exists; name a directory that does not", output.display()))),
        Err(_) => Ok(()),
    }
}

/// A folder beside the output, on the same file system, that goes when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// When nothing can be written there.
    pub fn beside(output: &Path) -> Result<Self, Failure> {
        let path = output.with_extension(format!("part-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| other(&path, &e))?;
        Ok(Self(path))
    }

    /// A folder in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.0.join(name);
        fs::create_dir(&path).map_err(|e| other(&path, &e))?;
        Ok(path)
    }

    /// Its folder `model` becomes the output: all of it at once.
    ///
    /// # Errors
    /// When somebody was faster.
    pub fn become_directory(&self, output: &Path) -> Result<(), Failure> {
        must_be_new(output)?;
        fs::rename(self.0.join("model"), output).map_err(|e| other(output, &e))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it is only litter.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    fs::copy(from, to).map(|_| ()).map_err(|e| other(from, &e))
}

fn other(path: &Path, e: &std::io::Error) -> Failure {
    Failure::Other(format!("{}: {e}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
