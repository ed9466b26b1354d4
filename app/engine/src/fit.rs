//! Whether a network's file is what its manifest says, whichever engine runs it.

use crate::EngineError;
use crate::graph::TensorInfo;
use crate::onnx::{Dim, Network, Value as GraphValue};
use inferd_model::{Manifest, TensorSpec};
use std::collections::HashMap;

/// Reads a file strictly.
pub(crate) fn parse(onnx: &[u8]) -> Result<Network<'_>, EngineError> {
    if onnx.is_empty() {
        return Err(EngineError::Empty);
    }
    Network::parse(onnx).map_err(EngineError::Load)
}

/// Checks names, types and shapes of the manifest against the graph.
pub(crate) fn match_tensors(network: &Network<'_>, manifest: &Manifest) -> Result<(), EngineError> {
    let inputs: Vec<&GraphValue<'_>> = network.graph.true_inputs().collect();
    let outputs: Vec<&GraphValue<'_>> = network.graph.outputs.iter().collect();
    // A name like `batch` stands for one size, wherever it occurs.
    let mut sizes = HashMap::new();
    for (specs, values) in [(&manifest.inputs, &inputs), (&manifest.outputs, &outputs)] {
        for spec in specs {
            let Some(value) = values.iter().find(|v| v.name == spec.name) else {
                let names: Vec<&str> = values.iter().map(|v| v.name).collect();
                return Err(EngineError::Tensor {
                    name: spec.name.clone(),
                    graph: format!("only {}", names.join(", ")),
                    manifest: format!("{} {:?}", spec.dtype, spec.shape),
                });
            };
            if !fits(value, spec, &mut sizes) {
                return Err(EngineError::Tensor {
                    name: spec.name.clone(),
                    graph: TensorInfo::of(value).to_string(),
                    manifest: format!("{} {:?}", spec.dtype, spec.shape),
                });
            }
        }
    }
    // Outputs nobody asks for are not computed; an input nobody gives cannot be made up.
    if let Some(missing) = inputs.iter().find(|v| manifest.inputs.iter().all(|s| s.name != v.name)) {
        return Err(EngineError::Tensor {
            name: missing.name.to_owned(),
            graph: TensorInfo::of(missing).to_string(),
            manifest: "nothing".to_owned(),
        });
    }
    Ok(())
}

fn fits<'a>(value: &GraphValue<'a>, spec: &TensorSpec, sizes: &mut HashMap<&'a str, u32>) -> bool {
    if crate::graph::dtype(value.elem_type) != Some(spec.dtype) {
        return false;
    }
    let Some(shape) = &value.shape else { return true };
    shape.len() == spec.shape.len()
        && shape.iter().zip(&spec.shape).all(|(dim, &size)| match *dim {
            Dim::Fixed(fixed) => fixed == i64::from(size),
            Dim::Dynamic("") => true,
            Dim::Dynamic(name) => *sizes.entry(name).or_insert(size) == size,
        })
}
