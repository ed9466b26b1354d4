"""Models with networks that a test makes: right ones, and broken ones that are signed all the same."""

import hashlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from safetensors.numpy import save

SHAPE = [1, 4]


def network(nodes, constants=()):
    """A network from x to y, FP32 and of four values, as it stands in a file: nothing of it is checked."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(deterministic=True)


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), name=f"to {outputs[0]}", **attributes)


def weight(name="w", **fields):
    """A constant whose fields are as they are given."""
    return onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, **fields)


def model(folder, onnx_bytes, engines=("ort",), answers=None, x=((0.0, 1.0, 4.0, 9.0),)):
    """A model directory with this network; `answers` makes the golden vectors of an input, else they are zeros."""
    folder.mkdir(parents=True)
    tensors = {}
    for i, values in enumerate(x):
        given = np.array([values], np.float32)
        tensors[f"{i}/in/x"] = given
        tensors[f"{i}/out/y"] = (answers or np.zeros_like)(given).astype(np.float32)
    golden = save(tensors)
    (folder / "model.onnx").write_bytes(onnx_bytes)
    (folder / "golden.safetensors").write_bytes(golden)
    page = [
        f'schema = 1\nname = "{folder.name}"\nversion = "1"\ntask = "tensor"\nsummary = "For a test"\nengines = {list(engines)}',
        "[budget]\nmemory_mib = 64\ndeadline_ms = 60000",
        f'[onnx]\nfile = "model.onnx"\nsha256 = "{hashlib.sha256(onnx_bytes).hexdigest()}"',
        f'[golden]\nfile = "golden.safetensors"\nsha256 = "{hashlib.sha256(golden).hexdigest()}"\ncosine = 0.9999\nmax_abs = 0.001',
        f'[[inputs]]\nname = "x"\ndtype = "FP32"\nshape = {SHAPE}',
        f'[[outputs]]\nname = "y"\ndtype = "FP32"\nshape = {SHAPE}',
    ]
    (folder / "manifest.toml").write_text("\n\n".join(page) + "\n")
    return folder


def computed(onnx_bytes):
    """What ONNX Runtime's own Python gives for an input."""
    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, {"x": given})[0]
