//! Drives the engine `tensorrt` as a host does, in a process of its own: a library is opened once in a process.
//!
//!     drive plan MODEL_DIR OUT [TENSORRT [ARCHITECTURE]]   makes a plan of a model's network
//!     drive run TENSORRT CUDA MODEL_DIR PLAN               golden vectors, then two threads with different inputs

use inferd_engine::{AlignedBuffer, CpuEngine, Engine, Model, NetworkFile, Runner, TensorrtEngine};
use inferd_model::{Golden, Manifest, NetworkFormat};
use inferd_tensorrt_double::plan;
use std::path::Path;
use std::sync::Arc;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["plan", dir, out] => make(dir, out, plan::TENSORRT, plan::ARCHITECTURE),
        ["plan", dir, out, version] => make(dir, out, version, plan::ARCHITECTURE),
        ["plan", dir, out, version, architecture] => make(dir, out, version, architecture),
        ["run", tensorrt, cuda, dir, plan] => run(tensorrt, cuda, dir, plan),
        _ => Err("usage: drive plan MODEL_DIR OUT | drive run TENSORRT CUDA MODEL_DIR PLAN".to_owned()),
    };
    match outcome {
        Ok(said) => println!("{said}"),
        Err(why) => {
            println!("{why}");
            std::process::exit(1);
        }
    }
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, String> {
    std::fs::read(&path).map_err(|e| format!("{}: {e}", path.as_ref().display()))
}

fn model(dir: &str) -> Result<(Manifest, Vec<u8>, Golden), String> {
    let dir = Path::new(dir);
    let text = String::from_utf8(read(dir.join("manifest.toml"))?).map_err(|e| e.to_string())?;
    let manifest = Manifest::from_toml(&text).map_err(|e| e.to_string())?;
    let onnx = read(dir.join(&manifest.onnx.file))?;
    let golden = read(dir.join(&manifest.golden.file))?;
    let golden = Golden::parse(&golden, &manifest).map_err(|e| e.to_string())?;
    Ok((manifest, onnx, golden))
}

fn make(dir: &str, out: &str, version: &str, architecture: &str) -> Result<String, String> {
    let (_, onnx, _) = model(dir)?;
    std::fs::write(out, plan::build(&onnx, version, architecture)).map_err(|e| e.to_string())?;
    Ok(out.to_owned())
}

fn run(tensorrt: &str, cuda: &str, dir: &str, plan: &str) -> Result<String, String> {
    let (manifest, onnx, golden) = model(dir)?;
    let engine = TensorrtEngine::new(Some(tensorrt.into()), Some(cuda.into()));
    engine.set_up().map_err(|e| format!("set-up: {e}"))?;
    let plan = NetworkFile { bytes: read(plan)?.leak(), format: NetworkFormat::Plan };
    let loaded = engine.load(plan, &manifest).map_err(|e| format!("load: {e}"))?;
    let manifest = Arc::new(manifest);
    let mut runner = Runner::new(&*loaded, manifest.clone()).map_err(|e| format!("session: {e}"))?;
    let agreement =
        runner.check_golden(&golden, manifest.golden.tolerance()).map_err(|e| format!("golden: {e}"))?;
    let reference =
        CpuEngine::new().load(NetworkFile::onnx(onnx.leak()), &manifest).map_err(|e| e.to_string())?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=2u8)
            .map(|n| {
                scope.spawn({
                    let (loaded, reference, manifest) = (&*loaded, &*reference, &manifest);
                    move || compare(loaded, reference, manifest, n)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    Ok(format!("{} on {}, cosine {:.6}", engine.version(), engine.device(), agreement.cosine))
}

/// Inputs that differ with every run and thread must give the outputs that the built-in engine gives.
fn compare(plan: &dyn Model, reference: &dyn Model, manifest: &Manifest, thread: u8) -> Result<(), String> {
    let mut both = [
        plan.session().map_err(|e| format!("session: {e}"))?,
        reference.session().map_err(|e| e.to_string())?,
    ];
    for round in 0..20u8 {
        let inputs: Vec<AlignedBuffer> = manifest
            .inputs
            .iter()
            .map(|spec| {
                let small =
                    |i: usize| f32::from(((i * 7) as u8).wrapping_add(round).wrapping_mul(thread)) / 256.0;
                let bytes: Vec<u8> = match spec.dtype {
                    inferd_model::DType::Fp32 => {
                        (0..spec.elements()).flat_map(|i| small(i).to_le_bytes()).collect()
                    }
                    // The lowest byte of each little-endian element.
                    dtype => (0..spec.byte_len())
                        .map(|i| if i % dtype.size() == 0 { round % 2 } else { 0 })
                        .collect(),
                };
                AlignedBuffer::copy_of(&bytes)
            })
            .collect();
        let inputs: Vec<&[u8]> = inputs.iter().map(AlignedBuffer::as_bytes).collect();
        let mut answers = Vec::new();
        for session in &mut both {
            let mut outputs: Vec<_> =
                manifest.outputs.iter().map(|s| AlignedBuffer::zeroed(s.byte_len())).collect();
            let mut views: Vec<&mut [u8]> = outputs.iter_mut().map(AlignedBuffer::as_mut_bytes).collect();
            session.run(&inputs, &mut views).map_err(|e| format!("run: {e}"))?;
            answers.push(outputs.iter().map(|o| o.as_bytes().to_vec()).collect::<Vec<_>>());
        }
        if answers[0] != answers[1] {
            return Err(format!("thread {thread}, round {round}: another answer"));
        }
    }
    Ok(())
}
