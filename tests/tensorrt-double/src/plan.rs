//! The double's plans: `INFP`, the length of a JSON page (u32, little-endian), the page, an ONNX network.
//!
//! The page says what a real plan is bound to: `{"tensorrt": "10.3.0", "architecture": "sm_87", "crc32": 123}`.

use inferd_model::Manifest;
use serde_json::{Value, json};

/// The version that the double has.
pub const TENSORRT: &str = "10.3.0";
/// The architecture of its GPU.
pub const ARCHITECTURE: &str = "sm_87";
const MAGIC: &[u8; 4] = b"INFP";

/// Makes a plan of a network.
#[must_use]
pub fn build(onnx: &[u8], tensorrt: &str, architecture: &str) -> Vec<u8> {
    let page = json!({"tensorrt": tensorrt, "architecture": architecture, "crc32": crc32fast::hash(onnx)});
    let page = page.to_string().into_bytes();
    let length = u32::try_from(page.len()).unwrap_or_default().to_le_bytes();
    [&MAGIC[..], &length, &page, onnx].concat()
}

/// The network of a plan.
///
/// # Errors
/// In TensorRT's words why it is not for this library and device, or damaged.
pub fn read(plan: &[u8]) -> Result<&[u8], String> {
    let damaged = || {
        "Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)".to_owned()
    };
    let rest = plan.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (length, rest) = rest.split_at_checked(4).ok_or_else(damaged)?;
    let length = u32::from_le_bytes(length.try_into().map_err(|_| damaged())?) as usize;
    let (page, onnx) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let page: Value = serde_json::from_slice(page).map_err(|_| damaged())?;
    if page["tensorrt"] != TENSORRT {
        return Err(format!(
            "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, expecting library version {TENSORRT} got {}, please rebuild.)",
            page["tensorrt"].as_str().unwrap_or_default()
        ));
    }
    if page["architecture"] != ARCHITECTURE {
        return Err(format!(
            "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, expecting compute {ARCHITECTURE} got compute {}, please rebuild.)",
            page["architecture"].as_str().unwrap_or_default()
        ));
    }
    if page["crc32"] != crc32fast::hash(onnx) {
        return Err("Error Code 1: Serialization (Serialization assertion checksum failed)".to_owned());
    }
    Ok(onnx)
}

/// A manifest for the network alone: what the built-in engine wants to know.
///
/// # Errors
/// Why there is none.
pub fn manifest(onnx: &[u8]) -> Result<Manifest, String> {
    let graph = inferd_engine::CpuEngine::describe(onnx).map_err(|e| e.to_string())?;
    let sha = "0".repeat(64);
    let mut text = format!(
        "schema = 1\nname = \"double\"\nversion = \"1\"\ntask = \"tensor\"\nengines = [\"cpu\"]\n\
         [budget]\nmemory_mib = 1024\ndeadline_ms = 10000\n[onnx]\nfile = \"model.onnx\"\nsha256 = \"{sha}\"\n\
         [golden]\nfile = \"golden\"\nsha256 = \"{sha}\"\ncosine = 1.0\nmax_abs = 0.0\n"
    );
    for (key, tensors) in [("inputs", &graph.inputs), ("outputs", &graph.outputs)] {
        for tensor in tensors {
            let dtype = tensor.dtype.ok_or("a tensor of no known type")?;
            let shape: Option<Vec<u32>> =
                tensor.shape.as_ref().and_then(|s| s.iter().map(|d| d.size).collect());
            let shape = shape.ok_or("a tensor whose shape is not fixed")?;
            text += &format!("[[{key}]]\nname = {:?}\ndtype = \"{dtype}\"\nshape = {shape:?}\n", tensor.name);
        }
    }
    Manifest::from_toml(&text).map_err(|e| e.to_string())
}
