//! Operators the library computes wrongly, found at load and refused by name.
//!
//! rten fails cleanly on what it does not know, but a few operators it does know come out wrong without a word. Each was
//! found by running one-operator networks beside ONNX Runtime and the ONNX standard's own cases (tests/engine, which
//! also proves that the list below is still complete); `README.md` of this room keeps the findings. Golden vectors would
//! catch most of these at load too, but only for the inputs that were recorded.

use crate::{
    EngineError,
    graph::{domain, dtype},
    onnx::{Constant, Graph, Network, Node},
};
use inferd_model::DType;
use std::collections::HashMap;

/// How a network that passed is to be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Passed {
    /// Whether weights may be packed ahead of time. rten ignores the zero points of a packed matrix of 8-bit weights.
    pub prepack: bool,
}

/// Refuses a network with an operator that would be computed wrongly.
pub(crate) fn vet(network: &Network<'_>) -> Result<Passed, EngineError> {
    let mut vet =
        Vet { opset: network.opset().unwrap_or(0), uses: HashMap::new(), passed: Passed { prepack: true } };
    vet.collect_uses(&network.graph);
    vet.graph(&network.graph, &HashMap::new(), None)?;
    Ok(vet.passed)
}

/// What is known of a value before anything runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Fact {
    dtype: Option<DType>,
    rank: Option<usize>,
    /// It holds numbers a client chose, of a type that rten computes in INT32 although it is not.
    wide: bool,
}

type Facts<'a> = HashMap<&'a str, Fact>;

struct Vet<'n, 'a> {
    opset: i64,
    /// Where each value is used: node and position.
    uses: HashMap<&'a str, Vec<(&'n Node<'a>, usize)>>,
    passed: Passed,
}

/// Operators that make new whole numbers, with the inputs they make them from; all others move or compare what is there,
/// for which INT32 in place of a wider or narrower type gives the same answer.
fn computes_from(node: &Node<'_>, position: usize) -> bool {
    match node.op {
        "Add" | "Sub" | "Mul" | "Pow" | "Neg" | "Abs" | "Sum" | "Mean" | "MatMul" | "Gemm" | "Einsum" => true,
        // The second input says along which dimensions.
        "CumSum" | "ReduceSum" | "ReduceProd" | "ReduceMean" | "ReduceL1" | "ReduceL2"
        | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => position == 0,
        // The second input says where.
        "ScatterElements" | "ScatterND" => {
            position != 1 && node.attribute("reduction").is_some_and(|a| matches!(a.text, b"add" | b"mul"))
        }
        _ => false,
    }
}

/// Operators of other domains that agree with ONNX Runtime.
const VERIFIED_ELSEWHERE: [&str; 6] = [
    "com.microsoft.BiasGelu",
    "com.microsoft.FastGelu",
    "com.microsoft.Gelu",
    "com.microsoft.MatMulNBits",
    "com.microsoft.QuickGelu",
    "com.microsoft.SkipLayerNormalization",
];

fn refuse<T>(node: &Node<'_>, why: impl Into<String>) -> Result<T, EngineError> {
    Err(EngineError::Unsupported { node: node.label().to_owned(), op: node.op.to_owned(), why: why.into() })
}

impl<'n, 'a> Vet<'n, 'a> {
    fn collect_uses(&mut self, graph: &'n Graph<'a>) {
        for node in &graph.nodes {
            for (position, input) in node.inputs.iter().enumerate() {
                self.uses.entry(input).or_default().push((node, position));
            }
            node.subgraphs().for_each(|g| self.collect_uses(g));
        }
    }

    /// Vets one graph. For a graph inside another, `outer` is what is known outside of it and `given` what its node is
    /// given. Returns what is known of its values.
    fn graph(
        &mut self,
        graph: &'n Graph<'a>,
        outer: &Facts<'a>,
        given: Option<&[Fact]>,
    ) -> Result<Facts<'a>, EngineError> {
        let mut facts = outer.clone();
        for constant in &graph.initializers {
            self.constant(constant, constant.name, graph)?;
            facts.insert(constant.name, of_constant(constant));
        }
        for (i, input) in graph.true_inputs().enumerate() {
            let dtype = dtype(input.elem_type);
            let wide = match given {
                // A loop's body gets a counter, which stays below the count, its condition, and then the loop's state.
                Some(given) => i >= 2 && given.get(i).is_some_and(|f| f.wide),
                None => matches!(
                    dtype,
                    Some(DType::Int16 | DType::Uint16 | DType::Uint32 | DType::Uint64 | DType::Int64)
                ),
            };
            facts.insert(input.name, Fact { dtype, rank: input.shape.as_ref().map(Vec::len), wide });
        }
        let declared: HashMap<&str, Fact> = graph
            .values
            .iter()
            .chain(&graph.outputs)
            .map(|v| {
                (
                    v.name,
                    Fact { dtype: dtype(v.elem_type), rank: v.shape.as_ref().map(Vec::len), wide: false },
                )
            })
            .collect();
        for node in &graph.nodes {
            let inputs: Vec<Fact> =
                node.inputs.iter().map(|name| facts.get(name).copied().unwrap_or_default()).collect();
            let mut inner = Vec::new();
            for subgraph in node.subgraphs() {
                let known = self.graph(subgraph, &facts, Some(&inputs))?;
                inner.push(
                    subgraph.outputs.iter().map(|o| known.get(o.name).copied().unwrap_or_default()).collect(),
                );
            }
            self.node(node, &inputs, graph)?;
            let outputs = infer(node, &inputs, &inner, graph);
            for (i, name) in node.outputs.iter().enumerate() {
                let mut fact = outputs(i);
                let declared = declared.get(name).copied().unwrap_or_default();
                fact.dtype = fact.dtype.or(declared.dtype);
                fact.rank = fact.rank.or(declared.rank);
                facts.insert(name, fact);
            }
        }
        Ok(facts)
    }

    fn node(&mut self, node: &Node<'a>, inputs: &[Fact], graph: &Graph<'a>) -> Result<(), EngineError> {
        let domain = domain(node.domain);
        if domain != "ai.onnx" {
            let name = format!("{domain}.{}", node.op);
            if VERIFIED_ELSEWHERE.contains(&name.as_str()) {
                return Ok(());
            }
            return refuse(
                node,
                format!(
                    "an operator of {domain} that was not compared with ONNX Runtime; export standard operators"
                ),
            );
        }
        let int = |name| node.attribute(name).and_then(|a| a.int);
        let input = |i: usize| inputs.get(i).copied().unwrap_or_default();
        let given = |i: usize| node.inputs.get(i).is_some_and(|name| !name.is_empty());

        if node.attribute("auto_pad").is_some_and(|a| a.text == b"SAME_LOWER") {
            return refuse(node, "rten pads SAME_LOWER at the wrong end; export with explicit pads");
        }
        match node.op {
            "ConvInteger" if is_padded(node) => {
                return refuse(
                    node,
                    "rten pads quantised convolutions with a wrong value instead of the zero point; \
                     use the FP32 network, or static quantisation (QuantizeLinear and DequantizeLinear)",
                );
            }
            "MatMulInteger" => self.passed.prepack = false,
            "NonMaxSuppression" => {
                return refuse(
                    node,
                    "rten keeps one class per box and ignores the limit per class; leave boxes to the task `detector`",
                );
            }
            "ArgMax" | "ArgMin" => {
                return refuse(
                    node,
                    "of equal values rten takes the last, the standard asks for the first; \
                     give out the values and pick among them outside of the network",
                );
            }
            "BitCast" => return refuse(node, "rten holds most types in another one's bits"),
            "Sign" if !matches!(input(0).dtype, Some(DType::Int32 | DType::Int64)) => {
                return refuse(node, "rten gives 1 for 0 in floating point, the standard asks for 0");
            }
            "Resize" if node.attribute("mode").is_some_and(|a| a.text == b"cubic") => {
                return refuse(
                    node,
                    "rten interpolates linearly where cubic is asked for; export with mode=linear",
                );
            }
            "Cast" if int("to") == Some(9) && input(0).dtype != Some(DType::Bool) => {
                return refuse(
                    node,
                    "rten casts numbers to BOOL by cutting them to whole numbers, so 0.5 becomes false and 2 stays 2; \
                     compare with 0 instead",
                );
            }
            "CastLike" if input(1).dtype == Some(DType::Bool) && input(0).dtype != Some(DType::Bool) => {
                return refuse(
                    node,
                    "rten casts numbers to BOOL by cutting them to whole numbers; compare with 0",
                );
            }
            "Softmax" | "LogSoftmax" if self.opset < 13 => {
                let axis = int("axis").unwrap_or(1);
                let last = input(0).rank.and_then(|r| i64::try_from(r).ok()).map(|r| r - 1);
                if axis != -1 && last != Some(axis) {
                    return refuse(
                        node,
                        "before operator set 13 this normalises over all dimensions from its axis on, \
                         which rten does not know; convert the network to operator set 13 or later",
                    );
                }
            }
            "MatMul" if input(1).rank == Some(1) && !matches!(input(0).rank, Some(1 | 2)) => {
                return refuse(
                    node,
                    "rten leaves a dimension of 1 behind where a batch of matrices meets a vector; \
                     make the vector a matrix of one column and squeeze the product",
                );
            }
            "LSTM" | "GRU" if given(4) => {
                return refuse(node, "rten ignores sequence_lens; export with sequences of one length");
            }
            "GRU" if int("linear_before_reset").unwrap_or(0) == 0 => {
                return refuse(node, "rten only knows linear_before_reset = 1, as PyTorch exports it");
            }
            "Constant" => {
                for attribute in &node.attributes {
                    if let Some(tensor) = &attribute.tensor {
                        self.constant(tensor, node.outputs.first().copied().unwrap_or_default(), graph)?;
                    }
                }
            }
            _ => {
                let used = (0..inputs.len()).find(|&i| inputs[i].wide && computes_from(node, i));
                if let Some(at) = used {
                    let dtype = inputs[at].dtype.map_or("whole", DType::name);
                    return refuse(
                        node,
                        format!(
                            "computes with {dtype} numbers of a client, which rten does in 32 bits and might overflow \
                             unseen; cast {} to INT32 or FP32 in the network, where its range is part of the contract",
                            node.inputs[at]
                        ),
                    );
                }
            }
        }
        Ok(())
    }

    /// Refuses constants that rten would change: whole numbers it cuts to INT32, doubles beyond FP32.
    fn constant(&self, constant: &Constant<'_>, name: &'a str, graph: &Graph<'a>) -> Result<(), EngineError> {
        let unsupported = |why: String| {
            Err(EngineError::Unsupported { node: name.to_owned(), op: "Constant".to_owned(), why })
        };
        if constant.external {
            return unsupported("its data is in another file; save the network as one file".to_owned());
        }
        match dtype(constant.elem_type) {
            Some(DType::Int64) => {
                let beyond = constant.int64s().find(|&v| i32::try_from(v).is_err());
                match beyond {
                    Some(value) if !self.only_slices(name, graph, 0) => unsupported(format!(
                        "holds {value}, which rten would cut to 32 bits; only the bounds of a Slice may be that large"
                    )),
                    _ => Ok(()),
                }
            }
            Some(DType::Fp64) => {
                let limit = f64::from(f32::MAX);
                match constant.float64s().find(|v| v.is_finite() && v.abs() > limit) {
                    Some(value) => unsupported(format!("holds {value:e}, which is beyond FP32")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Whether a value only ever says where a `Slice` starts or ends: there the largest INT64 means "to the end", and
    /// the largest INT32 means the same.
    fn only_slices(&self, name: &'a str, graph: &Graph<'a>, depth: usize) -> bool {
        if depth > 8 || graph.outputs.iter().any(|o| o.name == name) {
            return false;
        }
        let Some(uses) = self.uses.get(name) else { return true };
        uses.iter().all(|(node, position)| match node.op {
            "Slice" => matches!(position, 1 | 2),
            "Identity" | "Squeeze" | "Unsqueeze" | "Concat" | "Reshape"
                if *position == 0 || node.op == "Concat" =>
            {
                node.outputs.iter().all(|o| self.only_slices(o, graph, depth + 1))
            }
            _ => false,
        })
    }
}

fn is_padded(node: &Node<'_>) -> bool {
    let auto = node.attribute("auto_pad").is_some_and(|a| !matches!(a.text, b"NOTSET" | b"VALID"));
    auto || node.attribute("pads").is_some_and(|a| a.ints.iter().any(|&p| p != 0))
}

fn of_constant(constant: &Constant<'_>) -> Fact {
    Fact { dtype: dtype(constant.elem_type), rank: Some(constant.dims.len()), wide: false }
}

/// What is known of a node's outputs from its inputs: a function of the output's position. Unknown is always a right
/// answer; the checks above treat it as the worst.
fn infer<'f>(
    node: &'f Node<'_>,
    inputs: &'f [Fact],
    inner: &'f [Vec<Fact>],
    graph: &'f Graph<'_>,
) -> impl Fn(usize) -> Fact + use<'f> {
    let input = |i: usize| inputs.get(i).copied().unwrap_or_default();
    let int = |name| node.attribute(name).and_then(|a| a.int);
    let constant = |i: usize| {
        let name = node.inputs.get(i)?;
        let initializer = graph.initializers.iter().find(|c| c.name == *name);
        initializer.or_else(|| {
            let made = graph.nodes.iter().find(|n| n.op == "Constant" && n.outputs.first() == Some(name))?;
            made.attribute("value")?.tensor.as_ref()
        })
    };
    // The number of entries of a list given as attribute or as constant input.
    let entries = |attribute: &str, i: usize| {
        let listed = node.attribute(attribute).map(|a| a.ints.len());
        listed.or_else(|| constant(i).and_then(Constant::elements).and_then(|n| usize::try_from(n).ok()))
    };
    let widest = inputs.iter().map(|f| f.rank).reduce(|a, b| Some(a?.max(b?))).flatten();
    let first = input(0);

    // (type of the first output, its rank)
    let (dtype, rank) = match node.op {
        "Cast" => (int("to").and_then(dtype), first.rank),
        "CastLike" => (input(1).dtype, first.rank),
        "Shape" => (Some(DType::Int64), Some(1)),
        "Size" => (Some(DType::Int64), Some(0)),
        "NonZero" => (Some(DType::Int64), Some(2)),
        "Equal" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" => {
            (Some(DType::Bool), widest)
        }
        "Not" | "IsNaN" | "IsInf" => (Some(DType::Bool), first.rank),
        "Constant" => {
            let value = node.attributes.first();
            match value.map(|a| a.name) {
                Some("value") => {
                    let fact = value.and_then(|a| a.tensor.as_ref()).map(of_constant).unwrap_or_default();
                    (fact.dtype, fact.rank)
                }
                Some("value_int") => (Some(DType::Int64), Some(0)),
                Some("value_ints") => (Some(DType::Int64), Some(1)),
                Some("value_float") => (Some(DType::Fp32), Some(0)),
                Some("value_floats") => (Some(DType::Fp32), Some(1)),
                _ => (None, None),
            }
        }
        "ConstantOfShape" => {
            let value = node.attribute("value").and_then(|a| a.tensor.as_ref());
            (
                value.map_or(Some(DType::Fp32), |t| dtype(t.elem_type)),
                entries("", 0).filter(|_| constant(0).is_some()),
            )
        }
        "QuantizeLinear" => {
            (int("output_dtype").and_then(dtype).or(input(2).dtype).or(Some(DType::Uint8)), first.rank)
        }
        "DequantizeLinear" => (input(1).dtype, first.rank),
        "DynamicQuantizeLinear" => (Some(DType::Uint8), first.rank),
        "ConvInteger" => (Some(DType::Int32), first.rank),
        "MatMul" | "MatMulInteger" => {
            let rank = match (first.rank, input(1).rank) {
                (Some(1), Some(b)) => b.checked_sub(1),
                (Some(a), Some(1)) => a.checked_sub(1),
                (Some(a), Some(b)) => Some(a.max(b)),
                _ => None,
            };
            (if node.op == "MatMul" { first.dtype } else { Some(DType::Int32) }, rank)
        }
        "Where" => (input(1).dtype, widest),
        "OneHot" => (input(2).dtype, first.rank.map(|r| r + 1)),
        "Range" => (first.dtype, Some(1)),
        "EyeLike" => (int("dtype").map_or(first.dtype, dtype), Some(2)),
        "Reshape" => {
            (first.dtype, constant(1).and_then(Constant::elements).and_then(|n| usize::try_from(n).ok()))
        }
        "Flatten" | "Gemm" => (first.dtype, Some(2)),
        "Transpose" => (first.dtype, node.attribute("perm").map(|a| a.ints.len()).or(first.rank)),
        "Squeeze" => (first.dtype, first.rank.zip(entries("axes", 1)).and_then(|(r, n)| r.checked_sub(n))),
        "Unsqueeze" => (first.dtype, first.rank.zip(entries("axes", 1)).map(|(r, n)| r + n)),
        "Gather" => (first.dtype, first.rank.zip(input(1).rank).and_then(|(r, i)| (r + i).checked_sub(1))),
        op if op.starts_with("Reduce") => match int("keepdims").unwrap_or(1) {
            0 => (first.dtype, first.rank.zip(entries("axes", 1)).and_then(|(r, n)| r.checked_sub(n))),
            _ => (first.dtype, first.rank),
        },
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "Max" | "Min" | "Sum" | "Mean" | "PRelu" => {
            (first.dtype, widest)
        }
        "Expand" => (
            first.dtype,
            first.rank.zip(entries("", 1)).map(|(r, n)| r.max(n)).filter(|_| constant(1).is_some()),
        ),
        "LSTM" | "GRU" => (first.dtype, Some(4)),
        "If" => inner.first().and_then(|outputs| outputs.first()).map_or((None, None), |f| (f.dtype, f.rank)),
        // The body's first output is the condition; state keeps its rank, scans gain one.
        "Loop" => inner.first().and_then(|outputs| outputs.get(1)).map_or((None, None), |f| (f.dtype, None)),
        "Conv"
        | "ConvTranspose"
        | "BatchNormalization"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "Relu"
        | "LeakyRelu"
        | "Sigmoid"
        | "HardSigmoid"
        | "HardSwish"
        | "Tanh"
        | "Elu"
        | "Gelu"
        | "Erf"
        | "Exp"
        | "Log"
        | "Sqrt"
        | "Neg"
        | "Abs"
        | "Clip"
        | "Softplus"
        | "Softmax"
        | "LogSoftmax"
        | "MaxPool"
        | "AveragePool"
        | "GlobalAveragePool"
        | "GlobalMaxPool"
        | "Concat"
        | "Slice"
        | "Split"
        | "Pad"
        | "Resize"
        | "Upsample"
        | "Identity"
        | "Dropout"
        | "Tile"
        | "TopK"
        | "CumSum"
        | "Floor"
        | "Ceil"
        | "Round"
        | "Reciprocal"
        | "Trilu"
        | "ScatterElements"
        | "ScatterND"
        | "GatherElements"
        | "DepthToSpace" => (first.dtype, first.rank),
        _ => (first.dtype, None),
    };
    // Which inputs a client's numbers pass through.
    let passes = match node.op {
        "Gather" | "GatherElements" | "GatherND" | "Expand" | "Tile" | "Reshape" | "TopK" | "Slice"
        | "Pad" | "Squeeze" | "Unsqueeze" | "Split" | "Resize" => first.wide,
        "ConstantOfShape" | "Shape" | "Size" | "NonZero" => false,
        "OneHot" => input(2).wide,
        "Where" => input(1).wide || input(2).wide,
        _ => inputs.iter().any(|f| f.wide) || inner.iter().flatten().any(|f| f.wide),
    };
    let is_wide = |d: Option<DType>| {
        !matches!(d, Some(DType::Int32 | DType::Bool | DType::Int8 | DType::Uint8))
            && !d.is_some_and(DType::is_float)
    };
    move |i| match (node.op, i) {
        (_, 0) => Fact { dtype, rank, wide: passes && is_wide(dtype) },
        ("DynamicQuantizeLinear", 1) => Fact { dtype: Some(DType::Fp32), rank: Some(0), wide: false },
        ("DynamicQuantizeLinear", _) => Fact { dtype: Some(DType::Uint8), rank: Some(0), wide: false },
        ("TopK" | "MaxPool", _) => Fact { dtype: Some(DType::Int64), rank, wide: false },
        ("LSTM" | "GRU", _) => Fact { dtype, rank: Some(3), wide: false },
        ("Split", _) => Fact { dtype, rank, wide: passes && is_wide(dtype) },
        ("If", i) => inner.first().and_then(|o| o.get(i)).copied().unwrap_or_default(),
        ("Loop", i) => {
            let inside = inner.first().and_then(|o| o.get(i + 1)).copied().unwrap_or_default();
            Fact { rank: None, ..inside }
        }
        _ => Fact { dtype: None, rank: None, wide: passes },
    }
}
