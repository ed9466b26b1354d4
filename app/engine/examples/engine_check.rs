//! Loads model directories, runs their golden vectors and prints one line of JSON for each.
//!
//!     engine_check DIR...
//!     engine_check --ort LIBONNXRUNTIME DIR...       (with the feature `ort`)
//!
//! `verdict` is `agrees`, `differs`, `refused` (at load), `failed` (at run), `panicked` or `unreadable`; `why` is the
//! error's sentence. Made for tests/engine, which puts hundreds of one-operator networks through it.

use inferd_engine::{CpuEngine, Engine, GoldenCheckError, NetworkFile, Runner};
use inferd_model::{Golden, MANIFEST_FILE, Manifest};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    let mut dirs: Vec<String> = std::env::args().skip(1).collect();
    let engine: Box<dyn Engine> = match dirs.first().map(String::as_str) {
        #[cfg(feature = "ort")]
        Some("--ort") => {
            Box::new(inferd_engine::OrtEngine::new(dirs.drain(..2).nth(1).map(Into::into), None))
        }
        _ => Box::new(CpuEngine::new()),
    };
    engine.worker(Box::new(|| {
        for dir in dirs.drain(..) {
            let (verdict, why) = catch_unwind(AssertUnwindSafe(|| check(&*engine, Path::new(&dir))))
                .unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                    ("panicked", text.unwrap_or_default())
                });
            println!("{{\"dir\": {dir:?}, \"verdict\": {verdict:?}, \"why\": \"{}\"}}", escape(&why));
        }
    }));
}

fn check(engine: &dyn Engine, dir: &Path) -> (&'static str, String) {
    let read = || -> Result<_, Box<dyn std::error::Error>> {
        let manifest = Manifest::from_toml(&std::fs::read_to_string(dir.join(MANIFEST_FILE))?)?;
        let golden = Golden::parse(&std::fs::read(dir.join(&manifest.golden.file))?, &manifest)?;
        let onnx: &'static [u8] = std::fs::read(dir.join(&manifest.onnx.file))?.leak();
        Ok((Arc::new(manifest), golden, onnx))
    };
    let (manifest, golden, onnx) = match read() {
        Ok(all) => all,
        Err(error) => return ("unreadable", error.to_string()),
    };
    let runner = engine
        .load(NetworkFile::onnx(onnx), &manifest)
        .and_then(|model| Runner::new(&*model, Arc::clone(&manifest)));
    match runner {
        Err(error) => ("refused", error.to_string()),
        Ok(mut runner) => match runner.check_golden(&golden, manifest.golden.tolerance()) {
            Ok(a) => ("agrees", format!("cosine {:.7}, max_abs {:.3e}", a.cosine, a.max_abs)),
            Err(error @ GoldenCheckError::Engine { .. }) => ("failed", error.to_string()),
            Err(error) => ("differs", error.to_string()),
        },
    }
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' => "\\\"".to_owned(),
            '\\' => "\\\\".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect()
}
