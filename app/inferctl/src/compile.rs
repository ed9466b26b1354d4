//! `inferctl compile`: a model's network as a HEF file for a Hailo chip, by Hailo's own compiler.
//!
//! The compiler (Dataflow Compiler, program `hailo`) is Hailo's, closed, for x86_64, and is had with an account only: it is driven
//! when it is there. It was never run by who wrote this; its command line is as its users show it, and a test holds it with a
//! stand-in. Calibration data go the way of [`crate::quantize`].

use crate::fail::Failure;
use crate::quantize::{Data, Directory, Scratch, environment, must_be_new, samples::Samples, script};
use crate::show;
use inferd_model::{
    DType, EngineKind, Golden, MANIFEST_FILE, MadeFor, Manifest, NetworkFormat, Precision, Rung, Tolerance,
    Variant,
};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What to do without the compiler.
const HOW: &str = "Hailo's compiler (the program `hailo` of the Dataflow Compiler) is not installed here.
  1. Make an account at https://hailo.ai/developer-zone and load the Dataflow Compiler 3.x for Hailo-8 (a Python wheel, x86_64 Linux).
  2. python3 -m venv dfc && dfc/bin/pip install hailo_dataflow_compiler-*.whl
  3. PATH=$PWD/dfc/bin:$PATH inferctl compile MODEL -o NEW --target hailo8 --calibration DATA";
/// A HEF is at most this long, as models are.
const MOST_BYTES: u64 = 1 << 30;

/// Compile a model for a Hailo chip with Hailo's own compiler, and write a new model directory with the result
#[derive(Debug, clap::Args)]
pub struct Compile {
    /// The model directory; it is only read
    model: PathBuf,
    /// The directory to make; it must not exist
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// The chip
    #[arg(long, value_enum)]
    target: Target,
    #[command(flatten)]
    data: Data,
    /// Versions of HailoRT that may run it
    #[arg(long, default_value = ">=4.21, <4.24")]
    runtime: String,
    /// Least cosine similarity to the golden vectors on the device
    #[arg(long, default_value_t = 0.95)]
    cosine: f64,
    /// Largest difference there; without it a tenth of the largest value in the golden outputs
    #[arg(long)]
    max_abs: Option<f64>,
    #[command(flatten)]
    python: environment::Options,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Target {
    /// Hailo-8, 26 TOPS
    Hailo8,
    /// Hailo-8L, 13 TOPS
    Hailo8l,
}

impl Target {
    /// As Hailo's compiler and HailoRT name it.
    fn name(self) -> &'static str {
        match self {
            Self::Hailo8 => "hailo8",
            Self::Hailo8l => "hailo8l",
        }
    }
}

/// What Python says of the calibration data.
#[derive(serde::Deserialize)]
struct Exported {
    samples: u64,
}

impl Compile {
    /// Does it.
    ///
    /// # Errors
    /// What is missing or wrong, and what the compiler said.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let directory = Directory::read(&self.model)?;
        must_be_new(&self.output)?;
        // The compiler takes hours: whatever can be wrong with the manifest is found before.
        let name = directory.free_name(&format!("model.{}.hef", self.target.name()));
        let golden = directory.golden(&self.model)?;
        let mut whole = self.manifest(&directory.manifest, &golden, &name)?;
        let data = self.data.read(&directory.manifest, &golden)?;
        let Some(compiler) = on_path("hailo") else { return Err(Failure::Other(HOW.to_owned())) };
        let manifest = &directory.manifest;
        if manifest.inputs.len() != 1 {
            return Err(Failure::Other(format!(
                "it has {} inputs; one can be calibrated",
                manifest.inputs.len()
            )));
        }
        let scratch = Scratch::beside(&self.output)?;
        let work = scratch.make("work")?;
        let python = self.python.find(|text| eprintln!("{text}"))?;
        let request = script::Request {
            model: &self.model.join(&manifest.onnx.file),
            golden: &Samples::golden(&manifest.inputs, &golden),
            samples: &data,
            manifest,
            work: &work,
        };
        let calibration = work.join("calibration.npy");
        let path = calibration.to_string_lossy();
        let options = ["--kind", "static", "--export-calibration", &path];
        let Exported { samples } = script::run(&python, &request, &options, |text| eprintln!("{text}"))?;
        eprintln!("{samples} samples to calibrate with");
        let hef = self.compile(
            &compiler,
            &fs::canonicalize(request.model).map_err(|e| file(request.model, &e))?,
            &work,
        )?;

        let dir = scratch.make("model")?;
        for name in directory.files() {
            fs::copy(self.model.join(name), dir.join(name)).map_err(|e| file(&self.model.join(name), &e))?;
        }
        fs::write(dir.join(&name), &hef).map_err(|e| file(&dir, &e))?;
        if let Some(made) = whole.variants.last_mut() {
            made.sha256 = Sha256::digest(&hef).iter().map(|b| format!("{b:02x}")).collect();
        }
        fs::write(dir.join(MANIFEST_FILE), whole.to_toml()).map_err(|e| file(&dir, &e))?;
        scratch.become_directory(&self.output)?;
        if json {
            show::json(
                &serde_json::json!({ "output": self.output, "engines": whole.engines, "bytes": hef.len() }),
            );
        } else {
            let ladder: Vec<String> = whole.engines.iter().map(ToString::to_string).collect();
            let output = self.output.display();
            show::line(&format!(
                "{output} is made, engines: {}. What it answers is proven on a device.",
                ladder.join(", ")
            ));
        }
        Ok(())
    }

    /// The three steps of the compiler.
    fn compile(&self, compiler: &Path, network: &Path, work: &Path) -> Result<Vec<u8>, Failure> {
        let arch = ["--hw-arch", self.target.name()];
        let run = |arguments: &[&str]| {
            eprintln!("hailo {}", arguments.join(" "));
            let mut command = Command::new(compiler);
            let output = command.args(arguments).args(arch).current_dir(work).stdin(Stdio::null()).output();
            let output = output.map_err(|e| file(compiler, &e))?;
            if output.status.success() {
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
            let last = last[last.len().saturating_sub(8)..].join("\n");
            let step = arguments.first().copied().unwrap_or_default();
            Err(Failure::Other(format!("hailo {step} failed ({}):\n{last}", output.status)))
        };
        let network = network.to_string_lossy();
        run(&["parser", "onnx", &network, "--har-path", "parsed.har"])?;
        let calibrated = ["--calib-set-path", "calibration.npy", "--output-har-path", "optimized.har"];
        run(&[&["optimize", "parsed.har"], &calibrated[..]].concat())?;
        run(&["compiler", "optimized.har", "--output-dir", "."])?;
        let made = fs::read_dir(work).map_err(|e| file(work, &e))?.filter_map(Result::ok).map(|e| e.path());
        let made: Vec<PathBuf> = made.filter(|p| p.extension().is_some_and(|e| e == "hef")).collect();
        let [hef] = &made[..] else {
            return Err(Failure::Other(format!(
                "hailo compiler left {} HEF files, one is wanted",
                made.len()
            )));
        };
        let length = fs::metadata(hef).map_err(|e| file(hef, &e))?.len();
        if length == 0 || length > MOST_BYTES {
            return Err(Failure::Other(format!("hailo compiler made a file of {length} bytes")));
        }
        fs::read(hef).map_err(|e| file(hef, &e))
    }

    /// The manifest with the variant in it, the last of all and first on the ladder; the digest of its file is not known yet.
    fn manifest(&self, old: &Manifest, golden: &Golden, name: &str) -> Result<Manifest, Failure> {
        let mut new = old.clone();
        let variant =
            self.target.name().parse().map_err(|e: inferd_model::RungError| Failure::Other(e.to_string()))?;
        let others = || old.variants.iter().filter(|v| v.format == NetworkFormat::Hef);
        if others().any(|v| v.name == variant) {
            return Err(Failure::Other(format!(
                "the model has a network for {variant} already (variant {variant} of its manifest): compile the model it was made of"
            )));
        }
        // An engine without a variant's name means the only file for it: with a second one the first needs its name.
        for rung in new.engines.iter_mut().filter(|r| **r == Rung::bare(EngineKind::Hailo)) {
            rung.variant = others().next().map(|v| v.name);
        }
        let rung = Rung { engine: EngineKind::Hailo, variant: others().next().map(|_| variant) };
        let max_abs = match self.max_abs {
            Some(limit) => limit,
            None => 0.1 * largest(old, golden),
        };
        new.variants.push(Variant {
            name: variant,
            format: NetworkFormat::Hef,
            precision: Precision::Int8,
            file: name.to_owned(),
            sha256: "0".repeat(64),
            golden: Tolerance { cosine: self.cosine, max_abs },
            made_for: Some(MadeFor { device: self.target.name().to_owned(), runtime: self.runtime.clone() }),
            measured: None,
        });
        new.engines.insert(0, rung);
        new.validated().map_err(|e| Failure::Other(e.to_string()))
    }
}

/// The largest value of the golden outputs.
fn largest(manifest: &Manifest, golden: &Golden) -> f64 {
    let mut largest = 0.0_f64;
    for case in golden.cases() {
        for (_, bytes) in manifest.outputs.iter().zip(&case.outputs).filter(|(s, _)| s.dtype == DType::Fp32) {
            for value in bytes.as_chunks::<4>().0 {
                largest = largest.max(f64::from(f32::from_le_bytes(*value)).abs());
            }
        }
    }
    largest
}

/// A program on PATH.
fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

fn file(path: &Path, e: &std::io::Error) -> Failure {
    Failure::Other(format!("{}: {e}", path.display()))
}
