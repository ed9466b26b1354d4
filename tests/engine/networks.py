"""Makes one-off networks, asks ONNX Runtime for their answers and writes both as model directories."""

import pathlib

import numpy as np
import onnxruntime as ort
from models import make_models
from onnx import helper

# numpy type to the name on the wire
WIRE = {np.dtype(numpy_type): name for name, (_, numpy_type, _) in make_models.TYPES.items()}


def node(op, inputs, outputs, **attributes):
    """An operator; convolutions get the attributes exporters always write."""
    if op in ("Conv", "ConvInteger", "ConvTranspose") and "kernel_shape" in attributes:
        rank = len(attributes["kernel_shape"])
        attributes.setdefault("strides", [1] * rank)
        attributes.setdefault("dilations", [1] * rank)
        if "auto_pad" not in attributes:
            attributes.setdefault("pads", [0] * 2 * rank)
    return helper.make_node(op, inputs, outputs, **attributes)


def network(nodes, inputs, outputs, constants=None, *, opset=17, dynamic=None, domains=()):
    """A network. `inputs`: arrays by name, only their types and shapes matter; `outputs`: names with types on the wire;
    `dynamic`: shapes to declare in place of an input's own."""
    dynamic = dynamic or {}
    type_of = {name: onnx_type for name, (onnx_type, _, _) in make_models.TYPES.items()}
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info(name, type_of[WIRE[a.dtype]], dynamic.get(name, a.shape))
            for name, a in inputs.items()
        ],
        [helper.make_tensor_value_info(name, type_of[dtype], None) for name, dtype in outputs.items()],
        [make_models.constant(name, value) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, producer_name="tests/engine")


def answer(proto, inputs, outputs):
    """What ONNX Runtime answers, without its own rewriting of the network."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))


def largest(arrays):
    return max(float(np.max(np.abs(a.astype(np.float64)))) for a in arrays.values())


def write(folder, name, proto, inputs, answers, *, max_abs=None, cosine=0.9999):
    """A model directory with this one golden case. `max_abs` is a ten-thousandth of the largest answer unless given."""
    model = object.__new__(make_models.Model)
    model.name, model.summary, model.proto = name, "", proto
    model.memory_mib, model.deadline_ms = 64, 1000
    model.inputs = [make_models.Tensor(n, WIRE[a.dtype], a.shape) for n, a in inputs.items()]
    model.outputs = [make_models.Tensor(n, WIRE[a.dtype], a.shape) for n, a in answers.items()]
    model.cases = [(inputs, answers)]
    if max_abs is None:
        max_abs = 1e-4 * max(1.0, largest(answers))
    model.write(pathlib.Path(folder), cosine=cosine, max_abs=max_abs)
    return pathlib.Path(folder) / name


def save(folder, name, proto, inputs, outputs, **tolerance):
    """Asks ONNX Runtime and writes the directory."""
    return write(folder, name, proto, inputs, answer(proto, inputs, outputs), **tolerance)
