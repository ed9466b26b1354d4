//! What a network says about itself, without loading it.

use crate::onnx::{Dim, Graph, Network, Value};
use inferd_model::DType;
use std::collections::BTreeMap;

/// What a network says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphInfo {
    /// The tool that wrote the file, as it calls itself; may be empty.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Version of the standard operator set; `None` when the file names only others.
    pub opset: Option<i64>,
    /// Every operator set with its version; the standard one has the domain `ai.onnx`.
    pub opsets: Vec<(String, i64)>,
    /// Inputs a caller has to give, in the graph's order.
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in the graph's order.
    pub outputs: Vec<TensorInfo>,
    /// How often each operator occurs, graphs inside of `If` and `Loop` included; `domain.Operator` outside the standard set.
    pub operators: BTreeMap<String, usize>,
    /// Numbers the network was trained to: elements of all floating-point and 8-bit initializers and constants.
    pub parameters: u64,
}

/// One input or output, as the file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type; `None` for one that is no [`DType`], see `type_name`.
    pub dtype: Option<DType>,
    /// The element type as ONNX calls it: `FLOAT`, `STRING`, `not a tensor`.
    pub type_name: String,
    /// Its dimensions; `None` when the file does not even say how many.
    pub shape: Option<Vec<DimInfo>>,
}

/// One dimension, as the file declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DimInfo {
    /// Its size; `None` for a dynamic one.
    pub size: Option<u32>,
    /// The name of a dynamic dimension; equal names mean equal sizes.
    pub name: Option<String>,
}

impl std::fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.dtype {
            Some(dtype) => write!(f, "{dtype}")?,
            None => write!(f, "{}", self.type_name)?,
        }
        let Some(shape) = &self.shape else { return f.write_str(" of unknown shape") };
        let dims: Vec<String> = shape
            .iter()
            .map(|d| match (d.size, &d.name) {
                (Some(size), _) => size.to_string(),
                (None, Some(name)) => name.clone(),
                (None, None) => "?".to_owned(),
            })
            .collect();
        write!(f, " [{}]", dims.join(", "))
    }
}

impl GraphInfo {
    pub(crate) fn of(network: &Network<'_>) -> Self {
        let mut info = Self {
            producer: network.producer.to_owned(),
            ir_version: network.ir_version,
            opset: network.opset(),
            opsets: network.opsets.iter().map(|&(d, v)| (domain(d).to_owned(), v)).collect(),
            inputs: network.graph.true_inputs().map(TensorInfo::of).collect(),
            outputs: network.graph.outputs.iter().map(TensorInfo::of).collect(),
            operators: BTreeMap::new(),
            parameters: 0,
        };
        info.count(&network.graph);
        info
    }

    fn count(&mut self, graph: &Graph<'_>) {
        let constants =
            graph.nodes.iter().flat_map(|n| n.attributes.iter().filter_map(|a| a.tensor.as_ref()));
        for constant in graph.initializers.iter().chain(constants) {
            let trained = matches!(dtype(constant.elem_type), Some(d) if d.is_float() || d.size() == 1);
            if trained && constant.elem_type != 9 {
                self.parameters = self.parameters.saturating_add(constant.elements().unwrap_or(0));
            }
        }
        for node in &graph.nodes {
            let name = match domain(node.domain) {
                "ai.onnx" => node.op.to_owned(),
                other => format!("{other}.{}", node.op),
            };
            *self.operators.entry(name).or_default() += 1;
            node.subgraphs().for_each(|g| self.count(g));
        }
    }
}

impl TensorInfo {
    pub(crate) fn of(value: &Value<'_>) -> Self {
        let dim = |d: &Dim<'_>| match *d {
            Dim::Fixed(size) => DimInfo { size: u32::try_from(size).ok(), name: None },
            Dim::Dynamic("") => DimInfo { size: None, name: None },
            Dim::Dynamic(name) => DimInfo { size: None, name: Some(name.to_owned()) },
        };
        Self {
            name: value.name.to_owned(),
            dtype: dtype(value.elem_type),
            type_name: type_name(value.elem_type),
            shape: value.shape.as_ref().map(|s| s.iter().map(dim).collect()),
        }
    }
}

/// The standard domain has two names.
pub(crate) fn domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// `TensorProto.DataType` as an element type on the wire.
pub(crate) fn dtype(elem_type: i64) -> Option<DType> {
    Some(match elem_type {
        1 => DType::Fp32,
        2 => DType::Uint8,
        3 => DType::Int8,
        4 => DType::Uint16,
        5 => DType::Int16,
        6 => DType::Int32,
        7 => DType::Int64,
        9 => DType::Bool,
        10 => DType::Fp16,
        11 => DType::Fp64,
        12 => DType::Uint32,
        13 => DType::Uint64,
        16 => DType::Bf16,
        _ => return None,
    })
}

fn type_name(elem_type: i64) -> String {
    match (elem_type, dtype(elem_type)) {
        (_, Some(d)) => d.to_string(),
        (0, _) => "not a tensor".to_owned(),
        (8, _) => "STRING".to_owned(),
        (14 | 15, _) => "a complex number".to_owned(),
        (17..=20, _) => "an 8-bit float".to_owned(),
        (21 | 22, _) => "a 4-bit integer".to_owned(),
        (other, _) => format!("element type {other}"),
    }
}
