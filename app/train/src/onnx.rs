//! The part of ONNX that a trained [`Tcn`] needs, and the network written in it.
//!
//! Messages are hand-written from onnx.proto (proto2, so repeated numbers are unpacked; IR version 8), so that no
//! protobuf compiler is needed. The graph uses only `Transpose`, `Conv`, `Relu`, `Add`, `GlobalAveragePool`, `Flatten`,
//! `Gemm` and `Sigmoid` at opset 17, static shapes and f32; causality is asymmetric padding, not padding and slicing.

use crate::head::Link;
use crate::net::{Conv, Linear, Tcn};
use prost::Message;

const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
/// TensorProto.DataType.FLOAT
const FLOAT: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(string, tag = "6")]
    doc_string: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetId>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetId {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    ints: Vec<i64>,
    /// AttributeProto.AttributeType: 2 is INT, 7 is INTS.
    #[prost(int32, tag = "20")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
struct Shape {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    dim_value: i64,
}

/// The names and sizes at the graph's border.
#[derive(Clone, Copy, Debug)]
pub struct Border<'a> {
    /// The input `[1, steps, channels]`.
    pub input: &'a str,
    /// The output `[1, latent]`.
    pub latent: &'a str,
    /// The output `[1, labels]`: scores after a sigmoid, or logits where the softmax is the server's.
    pub scores: &'a str,
    /// Samples in a window.
    pub steps: usize,
}

/// The network as an ONNX file. The same network gives the same bytes.
#[must_use]
pub fn to_onnx(net: &Tcn, border: &Border<'_>, name: &str, doc: &str) -> Vec<u8> {
    let mut g = Graph::default();
    let channels = net.blocks.first().map_or(0, |b| b.first.weight.dim().1);
    let mut x = g.node("Transpose", &[border.input], "window_channels_first", vec![ints("perm", &[0, 2, 1])]);
    for (i, b) in net.blocks.iter().enumerate() {
        let block = format!("block{i}");
        let first = g.conv(&b.first, &x, &format!("{block}_first"));
        let first = g.node("Relu", &[&first], &format!("{block}_first_relu"), vec![]);
        let second = g.conv(&b.second, &first, &format!("{block}_second"));
        let second = g.node("Relu", &[&second], &format!("{block}_second_relu"), vec![]);
        let around = g.conv(&b.around, &x, &format!("{block}_around"));
        let sum = g.node("Add", &[&around, &second], &format!("{block}_sum"), vec![]);
        x = g.node("Relu", &[&sum], &format!("{block}_out"), vec![]);
    }
    let mean = g.node("GlobalAveragePool", &[&x], "mean_over_time", vec![]);
    let mean = g.node("Flatten", &[&mean], "features", vec![int("axis", 1)]);
    let latent = g.gemm(&net.latent, &mean, border.latent);
    match net.link {
        Link::Sigmoid => {
            let logits = g.gemm(&net.head, &latent, "motif_logits");
            g.node("Sigmoid", &[&logits], border.scores, vec![]);
        }
        Link::Softmax => {
            g.gemm(&net.head, &latent, border.scores);
        }
    }
    let graph = GraphProto {
        node: g.nodes,
        name: name.to_owned(),
        initializer: g.weights,
        input: vec![value(border.input, &[1, border.steps, channels])],
        output: vec![
            value(border.latent, &[1, net.latent.bias.len()]),
            value(border.scores, &[1, net.head.bias.len()]),
        ],
    };
    ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: doc.to_owned(),
        graph: Some(graph),
        opset_import: vec![OperatorSetId { domain: String::new(), version: OPSET }],
    }
    .encode_to_vec()
}

/// Nodes and weights as they are added; a node is named after its one output.
#[derive(Default)]
struct Graph {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
}

impl Graph {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attribute: Vec<Attribute>) -> String {
        assert!(self.nodes.iter().all(|n| n.name != output), "two tensors of one name: {output}");
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: output.to_owned(),
            op_type: op.to_owned(),
            attribute,
        });
        output.to_owned()
    }

    fn weight<'a>(&mut self, name: String, dims: &[usize], values: impl Iterator<Item = &'a f32>) -> String {
        let raw_data = values.flat_map(|v| v.to_le_bytes()).collect();
        let dims = dims.iter().copied().map(size).collect();
        self.weights.push(TensorProto { dims, data_type: FLOAT, name: name.clone(), raw_data });
        name
    }

    fn conv(&mut self, c: &Conv, input: &str, name: &str) -> String {
        let (taps, inputs, outputs) = c.weight.dim();
        // ONNX wants [out, in, tap].
        let w = c.weight.view().permuted_axes([2, 1, 0]);
        let w = self.weight(format!("{name}_weight"), &[outputs, inputs, taps], w.iter());
        let b = self.weight(format!("{name}_bias"), &[outputs], c.bias.iter());
        let past = size((taps - 1) * c.dilation);
        let attributes = vec![
            ints("dilations", &[size(c.dilation)]),
            int("group", 1),
            ints("kernel_shape", &[size(taps)]),
            ints("pads", &[past, 0]),
            ints("strides", &[1]),
        ];
        self.node("Conv", &[input, &w, &b], name, attributes)
    }

    fn gemm(&mut self, l: &Linear, input: &str, output: &str) -> String {
        let (outputs, inputs) = l.weight.dim();
        let w = self.weight(format!("{output}_weight"), &[outputs, inputs], l.weight.iter());
        let b = self.weight(format!("{output}_bias"), &[outputs], l.bias.iter());
        self.node("Gemm", &[input, &w, &b], output, vec![int("transB", 1)])
    }
}

fn int(name: &str, i: i64) -> Attribute {
    Attribute { name: name.to_owned(), i, ints: vec![], kind: 2 }
}

fn ints(name: &str, ints: &[i64]) -> Attribute {
    Attribute { name: name.to_owned(), i: 0, ints: ints.to_vec(), kind: 7 }
}

fn value(name: &str, shape: &[usize]) -> ValueInfo {
    let dim = shape.iter().map(|&d| Dimension { dim_value: size(d) }).collect();
    let tensor_type = Some(TensorType { elem_type: FLOAT, shape: Some(Shape { dim }) });
    ValueInfo { name: name.to_owned(), kind: Some(TypeProto { tensor_type }) }
}

fn size(n: usize) -> i64 {
    i64::try_from(n).expect("sizes of a small network")
}
