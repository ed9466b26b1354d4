//! `inferctl model check DIR`: is this directory a model that gives the answers it promises?

use super::sha256;
use crate::show;
use inferd_engine::{AlignedBuffer, CpuEngine, Engine, GoldenCheckError, NetworkFile, Runner};
use inferd_model::{EngineKind, Golden, LinearHead, MANIFEST_FILE, Manifest, Motif, Rung};
use serde::Serialize;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// The model directory
    dir: PathBuf,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The directory.
    pub dir: PathBuf,
    /// The model's name, when the manifest could be read.
    pub name: Option<String>,
    /// Whether every check passed.
    pub passed: bool,
    /// One row per check, in the order they were made. Checks that need one that failed are not made.
    pub checks: Vec<Row>,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was looked at.
    pub check: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be.
    Failed,
    /// Not for this machine to say.
    Skipped,
}

impl Check {
    /// Checks the directory.
    pub fn run(&self) -> Report {
        check(&self.dir)
    }
}

/// Checks a directory.
pub fn check(dir: &Path) -> Report {
    let mut report = Report { dir: dir.to_owned(), name: None, passed: false, checks: Vec::new() };
    report.passed = report.examine(dir).is_some();
    report
}

impl Report {
    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// The first check that failed, in one sentence.
    pub fn failure(&self) -> String {
        let failed = self.checks.iter().find(|r| r.verdict == Verdict::Failed);
        let what = failed.map_or_else(String::new, |r| format!(": {}: {}", r.check, r.detail));
        format!("{} is not fit to be served{what}", self.dir.display())
    }

    fn row(&mut self, check: &'static str, verdict: Verdict, detail: String) {
        self.checks.push(Row { check, verdict, detail });
    }

    /// Notes how a check went; `None` when it failed.
    fn note<T, E: std::fmt::Display>(
        &mut self,
        check: &'static str,
        found: Result<(T, String), E>,
    ) -> Option<T> {
        match found {
            Ok((value, detail)) => {
                self.row(check, Verdict::Ok, detail);
                Some(value)
            }
            Err(e) => {
                self.row(check, Verdict::Failed, e.to_string());
                None
            }
        }
    }

    /// Makes the checks in their order and stops at the first without which the next make no sense.
    fn examine(&mut self, dir: &Path) -> Option<()> {
        let manifest = self.note("manifest", read_manifest(dir))?;
        self.name = Some(manifest.name.to_string());
        let onnx = self.note("network file", read_file(dir, &manifest.onnx.file, &manifest.onnx.sha256));
        let mut networks = vec![onnx];
        for variant in &manifest.variants {
            networks.push(self.note("variant file", read_file(dir, &variant.file, &variant.sha256)));
        }
        let golden = self.note("golden file", read_file(dir, &manifest.golden.file, &manifest.golden.sha256));
        if let Some(Motif::Linear { file, sha256, .. }) = manifest.imu.as_ref().and_then(|i| i.motif.as_ref())
        {
            let head = self.note("head file", read_file(dir, file, sha256))?;
            let fits = LinearHead::parse(&head, &manifest).map(|h| ((), format!("{} scores", h.len())));
            self.note("motif head", fits)?;
        }
        let networks: Vec<Vec<u8>> = networks.into_iter().collect::<Option<_>>()?;
        let golden = golden?;
        let golden = self.note(
            "golden vectors",
            Golden::parse(&golden, &manifest).map(|g| {
                let cases = g.cases().len();
                (g, format!("{cases} case{}", if cases == 1 { "" } else { "s" }))
            }),
        )?;
        self.note("graph", describe(&networks[0]))?;
        let here = |r: &&Rung| r.engine == EngineKind::Cpu;
        let (here, elsewhere): (Vec<Rung>, Vec<Rung>) = manifest.engines.iter().partition(here);
        if here.is_empty() {
            let rungs: Vec<String> = elsewhere.iter().map(ToString::to_string).collect();
            let detail = format!("its engines are {}; they prove it on the device", rungs.join(", "));
            self.row("answers", Verdict::Skipped, detail);
        }
        let manifest = Arc::new(manifest);
        let mut all = Some(());
        for rung in here {
            let Some(network) = manifest.network_index(rung).and_then(|i| networks.get(i)) else { continue };
            // The engine keeps the file for as long as the program runs.
            for (check, found) in run(network.clone().leak(), &manifest, rung, &golden) {
                match found {
                    // A device goes to the next rung then, and says so.
                    Err(e) if check == "load" && rung.variant.is_some() => {
                        self.row(check, Verdict::Skipped, format!("{rung} is refused: {e}"));
                    }
                    found => {
                        all = all.and(self.note(check, found.map(|d| ((), d))));
                    }
                }
            }
        }
        all
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = |v| match v {
            Verdict::Ok => "ok",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        let rows: Vec<Vec<String>> = self
            .checks
            .iter()
            .map(|r| vec![r.check.to_owned(), verdict(r.verdict).to_owned(), r.detail.clone()])
            .collect();
        writeln!(f, "{}", show::table(&["check", "verdict", "found"], &rows))?;
        match (&self.name, self.passed) {
            (Some(name), true) => write!(f, "{name} in {} is good.", self.dir.display()),
            (_, true) => write!(f, "{} is good.", self.dir.display()),
            (_, false) => write!(f, "{} is not fit to be served.", self.dir.display()),
        }
    }
}

fn read_manifest(dir: &Path) -> Result<(Manifest, String), String> {
    let path = dir.join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let manifest = Manifest::from_toml(&text).map_err(|e| e.to_string())?;
    let detail = format!("{} {}, task {}", manifest.name, manifest.version, manifest.task);
    Ok((manifest, detail))
}

fn read_file(dir: &Path, file: &str, digest: &str) -> Result<(Vec<u8>, String), String> {
    let bytes = std::fs::read(dir.join(file)).map_err(|e| format!("{file}: {e}"))?;
    let got = sha256(&bytes);
    if got != digest {
        return Err(format!("{file} has SHA-256 {got}, the manifest says {digest}"));
    }
    let detail = format!("{file}, {} bytes, SHA-256 {}", bytes.len(), &digest[..16]);
    Ok((bytes, detail))
}

fn describe(onnx: &[u8]) -> Result<((), String), String> {
    let info = CpuEngine::describe(onnx).map_err(|e| e.to_string())?;
    let operators: Vec<String> = info.operators.iter().map(|(op, n)| format!("{op} {n}")).collect();
    let opset = info.opset.map_or("no standard operator set".to_owned(), |v| format!("operator set {v}"));
    Ok(((), format!("{opset}, {} parameters, {}", info.parameters, operators.join(", "))))
}

type Answers = Vec<(&'static str, Result<String, String>)>;

/// Loads the network of a rung, runs its golden vectors and takes the time.
fn run(onnx: &'static [u8], manifest: &Arc<Manifest>, rung: Rung, golden: &Golden) -> Answers {
    let mut answers = Vec::new();
    CpuEngine::new().worker(Box::new(|| {
        let done = catch_unwind(AssertUnwindSafe(|| answer(onnx, manifest, rung, golden, &mut answers)));
        if done.is_err() {
            answers.push(("answers", Err("the engine's library panicked on a golden input".to_owned())));
        }
    }));
    answers
}

fn answer(onnx: &'static [u8], manifest: &Arc<Manifest>, rung: Rung, golden: &Golden, answers: &mut Answers) {
    let (engine, tolerance) = (CpuEngine::new(), manifest.tolerance(rung));
    let started = Instant::now();
    let loaded =
        engine.load(NetworkFile::onnx(onnx), manifest).and_then(|m| Runner::new(&*m, Arc::clone(manifest)));
    let mut runner = match loaded {
        Ok(runner) => runner,
        Err(e) => return answers.push(("load", Err(e.to_string()))),
    };
    let took = show::micros(started.elapsed().as_secs_f64() * 1e6);
    answers.push(("load", Ok(format!("engine {rung} ({}), {took}", engine.version()))));
    answers.push((
        "answers",
        match runner.check_golden(golden, tolerance) {
            Ok(a) => Ok(format!(
                "cosine {:.7} (at least {}), largest difference {:.2e} (at most {:.2e})",
                a.cosine, tolerance.cosine, a.max_abs, tolerance.max_abs
            )),
            Err(e @ (GoldenCheckError::Engine { .. } | GoldenCheckError::Mismatch(_))) => Err(e.to_string()),
        },
    ));
    if let Some((_, Ok(detail))) = answers.last_mut() {
        detail.push_str(&format!(
            "; {} per inference here, one thread",
            show::micros(micros(&mut runner, manifest, golden))
        ));
    }
}

/// Microseconds of the quickest of some runs: the machine may be busy with other things.
pub fn micros(runner: &mut Runner, manifest: &Manifest, golden: &Golden) -> f64 {
    let inputs: Vec<_> = golden.cases()[0].inputs.iter().map(|b| AlignedBuffer::copy_of(b)).collect();
    let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
    let mut outputs: Vec<_> = manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
    let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
    let mut best = f64::MAX;
    let begun = Instant::now();
    for _ in 0..20 {
        let started = Instant::now();
        if runner.run(&inputs, &mut slices).is_err() {
            break;
        }
        best = best.min(started.elapsed().as_secs_f64() * 1e6);
        if begun.elapsed().as_secs() >= 1 {
            break;
        }
    }
    best
}
