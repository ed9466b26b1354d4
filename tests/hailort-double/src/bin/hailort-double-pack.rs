//! Makes a container of a model directory: `hailort-double-pack MODEL_DIR OUT [ARCHITECTURE]`.
//!
//! The ranges of inputs and outputs are those of the golden vectors, a quarter wider; a UINT8 tensor goes through as it is.

use hailort_double::container::{Page, Stream, pack};
use inferd_model::{DType, Golden, Manifest, TensorSpec};
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, out, more @ ..] = &args[..] else {
        eprintln!("usage: hailort-double-pack MODEL_DIR OUT [ARCHITECTURE]");
        return ExitCode::from(2);
    };
    let architecture = more.first().map_or("hailo8", String::as_str);
    match make(Path::new(dir), architecture)
        .and_then(|bytes| std::fs::write(out, bytes).map_err(|e| e.to_string()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn make(dir: &Path, architecture: &str) -> Result<Vec<u8>, String> {
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(|e| format!("{name}: {e}"));
    let page = String::from_utf8(read("manifest.toml")?).map_err(|e| e.to_string())?;
    let manifest = Manifest::from_toml(&page).map_err(|e| e.to_string())?;
    let golden = Golden::parse(&read(&manifest.golden.file)?, &manifest).map_err(|e| e.to_string())?;
    let onnx = read(&manifest.onnx.file)?;
    let network = manifest.name.to_string();
    let inputs = manifest.inputs.iter().enumerate().map(|(i, spec)| {
        let mut values = Vec::new();
        for case in golden.cases() {
            let raw = floats(spec, &case.inputs[i]);
            match &spec.normalization {
                Some(constants) => {
                    let mut to = vec![0.0; raw.len()];
                    constants.apply(&raw, &mut to);
                    values.extend(to);
                }
                None => values.extend(raw),
            }
        }
        stream(&network, spec, &values)
    });
    let outputs = manifest.outputs.iter().enumerate().map(|(i, spec)| {
        let values: Vec<f32> =
            golden.cases().iter().flat_map(|case| floats(spec, &case.outputs[i])).collect();
        stream(&network, spec, &values)
    });
    let page = Page {
        inputs: inputs.collect::<Result<_, _>>()?,
        outputs: outputs.collect::<Result<_, _>>()?,
        architecture: architecture.to_owned(),
        network: network.clone(),
    };
    Ok(pack(&page, &onnx))
}

fn floats(spec: &TensorSpec, bytes: &[u8]) -> Vec<f32> {
    match spec.dtype {
        DType::Fp32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        _ => bytes.iter().map(|&b| f32::from(b)).collect(),
    }
}

/// Four dimensions are an image with its features first, three a row of features last, two features alone: as Hailo's compiler
/// reads networks of ONNX.
fn stream(network: &str, spec: &TensorSpec, values: &[f32]) -> Result<Stream, String> {
    let (shape, features_first) = match *spec.shape.as_slice() {
        [1, f, h, w] => ([h, w, f], true),
        [1, t, f] => ([1, t, f], false),
        [1, n] => ([1, 1, n], false),
        _ => return Err(format!("{}: a shape of {:?} is not made", spec.name, spec.shape)),
    };
    let (zp, scale) = match spec.dtype {
        DType::Uint8 => (0.0, 1.0),
        DType::Fp32 => {
            let (mut low, mut high) =
                values.iter().fold((0.0_f32, 0.0_f32), |(l, h), &v| (l.min(v), h.max(v)));
            (low, high) = (low * 1.25, high * 1.25);
            let scale = if high > low { (high - low) / 255.0 } else { 1.0 };
            ((-low / scale).round(), scale)
        }
        other => return Err(format!("{}: {other} is not made", spec.name)),
    };
    Ok(Stream {
        name: format!("{network}/{}", spec.name),
        shape,
        zp,
        scale,
        tensor: spec.name.clone(),
        dims: spec.shape.clone(),
        dtype: spec.dtype,
        features_first,
        channel: None,
        format: None,
    })
}
