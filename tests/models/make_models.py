#!/usr/bin/env python3
"""Makes the small model directories beside this file.

Each is a network of a few operators that does one thing a test needs: carry one element type, take two inputs, use
memory or time as its input says, panic, or be computed wrongly by the built-in engine and therefore be refused. Golden
vectors come from ONNX Runtime, so they know nothing of our engine. `--check` tells whether the committed files are what
this program makes (golden values may differ in their last bits from one processor to another).

Needs the packages of requirements.txt.
"""

import argparse
import hashlib
import json
import pathlib
import sys
import tempfile

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save

HERE = pathlib.Path(__file__).resolve().parent
OPSET = 17
IR_VERSION = 8

# Name on the wire: ONNX element type, numpy type, and values that reach the ends of what the built-in engine computes in.
TYPES = {
    "BOOL": (TensorProto.BOOL, np.bool_, [0, 1, 1, 0, 0, 1]),
    "UINT8": (TensorProto.UINT8, np.uint8, [0, 1, 127, 128, 254, 255]),
    "UINT16": (TensorProto.UINT16, np.uint16, [0, 1, 32767, 32768, 65534, 65535]),
    "UINT32": (TensorProto.UINT32, np.uint32, [0, 1, 65536, 1 << 30, (1 << 31) - 2, (1 << 31) - 1]),
    "UINT64": (TensorProto.UINT64, np.uint64, [0, 1, 65536, 1 << 30, (1 << 31) - 2, (1 << 31) - 1]),
    "INT8": (TensorProto.INT8, np.int8, [0, 1, -1, 100, -128, 127]),
    "INT16": (TensorProto.INT16, np.int16, [0, 1, -1, 256, -32768, 32767]),
    "INT32": (TensorProto.INT32, np.int32, [0, 1, -1, 65536, -(1 << 31), (1 << 31) - 1]),
    "INT64": (TensorProto.INT64, np.int64, [0, 1, -1, 65536, -(1 << 31), (1 << 31) - 1]),
    "FP16": (TensorProto.FLOAT16, np.float16, [0, 1, -1.5, 65504, -65504, 6e-8]),
    "BF16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16, [0, 1, -1.5, 3e38, -3e38, 1e-38]),
    "FP32": (TensorProto.FLOAT, np.float32, [0, 1, -1.5, 3e38, -3e38, 1e-45]),
    # FP64 is computed in FP32: these are values both can hold.
    "FP64": (TensorProto.DOUBLE, np.float64, [0, 1, -1.5, 2.0**127, -(2.0**100), 2.0**-126]),
}
WIRE = {onnx_type: name for name, (onnx_type, _, _) in TYPES.items()}


class Tensor:
    """One input or output; `graph_shape` where the graph leaves dimensions open that the manifest binds."""

    def __init__(self, name, dtype, shape, graph_shape=None):
        self.name, self.dtype, self.shape = name, dtype, list(shape)
        self.graph_shape = self.shape if graph_shape is None else graph_shape

    def info(self):
        return helper.make_tensor_value_info(self.name, TYPES[self.dtype][0], self.graph_shape)


class Model:
    """A model directory in the making."""

    # What a manifest says of a task, and of the first input beside its shape.
    task, section, dress = "tensor", "", ""

    def __init__(self, name, summary, nodes, inputs, outputs, initializers=(), memory_mib=64, deadline_ms=1000):
        self.name, self.summary = name, summary
        self.inputs, self.outputs = inputs, outputs
        self.memory_mib, self.deadline_ms = memory_mib, deadline_ms
        graph = helper.make_graph(
            nodes, name, [t.info() for t in inputs], [t.info() for t in outputs], list(initializers)
        )
        self.proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="tests/models",
        )
        onnx.checker.check_model(self.proto, full_check=True)
        self.cases = []

    def record(self, *arrays):
        """Runs ONNX Runtime and keeps the call."""
        given = dict(zip([t.name for t in self.inputs], arrays, strict=True))
        self.cases.append((given, run_ort(self.proto.SerializeToString(deterministic=True), given, self.outputs)))
        return self

    def write(self, root, cosine=0.9999, max_abs=1e-3):
        tensors = {}
        for i, (given, answer) in enumerate(self.cases):
            # (ascontiguousarray would make a vector of a scalar)
            tensors |= {f"{i}/in/{k}": np.require(v, requirements="C") for k, v in given.items()}
            tensors |= {f"{i}/out/{k}": np.require(v, requirements="C") for k, v in answer.items()}
        network = self.proto.SerializeToString(deterministic=True)
        golden = save(tensors)
        to = root / self.name
        to.mkdir(parents=True, exist_ok=True)
        (to / "model.onnx").write_bytes(network)
        (to / "golden.safetensors").write_bytes(golden)
        (to / "manifest.toml").write_text(self.manifest(network, golden, cosine, max_abs))

    def manifest(self, network, golden, cosine, max_abs):
        def tensor(kind, t):
            return f'\n[[{kind}]]\nname = "{t.name}"\ndtype = "{t.dtype}"\nshape = {t.shape}\n'

        return (
            f"# Made by tests/models/make_models.py; edit that.\n"
            f'schema = 1\nname = "{self.name[:64]}"\nversion = "1"\ntask = "{self.task}"\n'
            f'summary = "{self.summary}"\nengines = ["cpu"]\n'
            f"\n[budget]\nmemory_mib = {self.memory_mib}\ndeadline_ms = {self.deadline_ms}\n"
            f'\n[onnx]\nfile = "model.onnx"\nsha256 = "{hashlib.sha256(network).hexdigest()}"\n'
            f'\n[golden]\nfile = "golden.safetensors"\nsha256 = "{hashlib.sha256(golden).hexdigest()}"\n'
            f"cosine = {cosine}\nmax_abs = {max_abs}\n"
            + self.section
            + "".join(tensor("inputs", t) for t in self.inputs)
            + self.dress
            + "".join(tensor("outputs", t) for t in self.outputs)
        )


def run_ort(network, given, outputs):
    """Inputs by name to outputs by name, on ONNX Runtime's plain CPU provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    answers = session.run([t.name for t in outputs], given)
    for spec, answer in zip(outputs, answers, strict=True):
        assert list(answer.shape) == spec.shape, (spec.name, answer.shape)
    return {spec.name: answer for spec, answer in zip(outputs, answers, strict=True)}


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def identity(dtype):
    """Each element type goes through unchanged."""
    _, numpy_type, values = TYPES[dtype]
    model = Model(
        f"identity-{dtype.lower()}",
        f"Gives its {dtype} input back",
        [helper.make_node("Identity", ["x"], ["y"], name="identity")],
        [Tensor("x", dtype, [2, 3])],
        [Tensor("y", dtype, [2, 3])],
    )
    x = np.array(values).reshape(2, 3).astype(numpy_type)
    zero = np.zeros((2, 3), numpy_type)
    if dtype == "BF16":
        # ONNX Runtime's Python binding does not give BF16 arrays back; what identity answers is known without it.
        model.cases = [({"x": x}, {"y": x.copy()}), ({"x": zero}, {"y": zero.copy()})]
        return model
    return model.record(x).record(zero)


def two_in_two_out():
    a, b = Tensor("a", "FP32", [4]), Tensor("b", "INT32", [4])
    model = Model(
        "two-in-two-out",
        "sum = a + b in FP32, product = int(a) * b in INT32",
        [
            helper.make_node("Cast", ["b"], ["b_float"], name="b_float", to=TensorProto.FLOAT),
            helper.make_node("Add", ["a", "b_float"], ["sum"], name="add"),
            helper.make_node("Cast", ["a"], ["a_int"], name="a_int", to=TensorProto.INT32),
            helper.make_node("Mul", ["a_int", "b"], ["product"], name="mul"),
        ],
        [a, b],
        [Tensor("sum", "FP32", [4]), Tensor("product", "INT32", [4])],
    )
    model.record(np.array([1.5, -2.0, 0.25, 100.0], np.float32), np.array([2, 3, -4, 1000], np.int32))
    model.record(np.array([0.0, 7.0, -7.0, 3.0], np.float32), np.array([5, -1, 46341, 0], np.int32))
    return model


def fault_alloc():
    """`n` bytes are allocated and written before the answer; nothing is kept."""
    model = Model(
        "fault-alloc",
        "Allocates and fills about n bytes, then answers n / 4",
        [
            helper.make_node("Div", ["n", "four"], ["elements"], name="elements"),
            helper.make_node("Cast", ["elements"], ["shape"], name="shape", to=TensorProto.INT64),
            helper.make_node(
                "ConstantOfShape", ["shape"], ["ones"], name="allocate", value=constant("one", np.ones(1, np.float32))
            ),
            helper.make_node("ReduceSum", ["ones"], ["y"], name="sum", keepdims=1),
        ],
        [Tensor("n", "INT32", [1])],
        [Tensor("y", "FP32", [1])],
        [constant("four", np.array([4], np.int32))],
        memory_mib=48,
        deadline_ms=5000,
    )
    return model.record(np.array([4096], np.int32)).record(np.array([4], np.int32))


def fault_slow():
    """`n` products of 64x64 matrices, one after the other; memory does not depend on n."""
    # A rotation, so that numbers neither grow nor vanish: 3-4-5 triangles on pairs of rows, then one row further.
    turn = np.kron(np.eye(32), [[0.6, -0.8], [0.8, 0.6]])
    rotation = np.roll(turn, 1, axis=0).astype(np.float32)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"], name="go_on"),
            helper.make_node("MatMul", ["state", "rotation"], ["next"], name="turn"),
        ],
        "turn_once",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [64, 64]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [64, 64]),
        ],
    )
    model = Model(
        "fault-slow",
        "Computes n products of 64x64 matrices, one after the other",
        [
            helper.make_node("Cast", ["n"], ["times"], name="times", to=TensorProto.INT64),
            helper.make_node("Reshape", ["times", "scalar"], ["trips"], name="trips"),
            helper.make_node("Loop", ["trips", "true", "start"], ["end"], name="loop", body=body),
            helper.make_node("ReduceMean", ["end"], ["y"], name="rows", axes=[1], keepdims=0),
        ],
        [Tensor("n", "INT32", [1])],
        [Tensor("y", "FP32", [64])],
        [
            constant("rotation", rotation),
            constant("start", np.eye(64, dtype=np.float32)),
            constant("true", np.array(True)),
            constant("scalar", np.array([], np.int64)),
        ],
        memory_mib=48,
        deadline_ms=500,
    )
    return model.record(np.array([1], np.int32)).record(np.array([3], np.int32))


def fault_panic():
    """Whole numbers are divided. The built-in engine's library returns an error for a divisor of 0, but panics at the one
    quotient INT32 cannot hold: -2147483648 / -1."""
    model = Model(
        "fault-panic",
        "a / b in INT32; the cpu engine panics at -2147483648 / -1",
        [helper.make_node("Div", ["a", "b"], ["y"], name="divide")],
        [Tensor("a", "INT32", [4]), Tensor("b", "INT32", [4])],
        [Tensor("y", "INT32", [4])],
        memory_mib=48,
    )
    return model.record(np.array([7, -7, 100, 0], np.int32), np.array([2, 2, -3, 5], np.int32))


def dynamic_shape():
    """Dimensions the graph leaves open; the manifest binds them."""
    model = Model(
        "dynamic-shape",
        "Mean and largest of each row of a matrix whose size the manifest chooses",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], name="mean", axes=[1], keepdims=1),
            helper.make_node("ReduceMax", ["x"], ["largest"], name="largest", axes=[1], keepdims=1),
            helper.make_node("Concat", ["mean", "largest"], ["y"], name="both", axis=1),
        ],
        [Tensor("x", "FP32", [2, 5], ["batch", "length"])],
        [Tensor("y", "FP32", [2, 2], ["batch", 2])],
    )
    return model.record(np.array([[1, 2, 3, 4, 5], [-1, 0, 7, 0, 2]], np.float32))


def int8_weights(rng):
    return rng.integers(-127, 128, (6, 4, 3)).astype(np.int8)


def dynamic_int8_conv():
    """What `quantize_dynamic` makes of a padded convolution; the cpu engine must refuse it."""
    rng = np.random.default_rng(8)
    model = Model(
        "refused-int8-conv",
        "A dynamically quantised convolution with padding, which the cpu engine refuses",
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], name="quantize"),
            helper.make_node(
                "ConvInteger",
                ["q", "weights", "zero"],
                ["sums"],
                name="conv_quant",
                kernel_shape=[3],
                pads=[1, 1],
                strides=[1],
                dilations=[1],
            ),
            helper.make_node("Cast", ["sums"], ["float_sums"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["scale", "weight_scale"], ["both_scales"], name="scales"),
            helper.make_node("Mul", ["float_sums", "both_scales"], ["y"], name="rescale"),
        ],
        [Tensor("x", "FP32", [1, 4, 16])],
        [Tensor("y", "FP32", [1, 6, 16])],
        [constant("weights", int8_weights(rng)), constant("weight_scale", np.float32(0.01))],
    )
    return model.record((rng.standard_normal((1, 4, 16)) + 1).astype(np.float32))


def qdq_int8_conv():
    """A statically quantised convolution (QuantizeLinear and DequantizeLinear), per channel, with padding."""
    rng = np.random.default_rng(9)
    model = Model(
        "qdq-int8-conv",
        "A statically quantised convolution with padding",
        [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"], name="x_q"),
            helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"], name="x_dq"),
            helper.make_node("DequantizeLinear", ["weights", "w_scale", "w_zero"], ["w_dq"], name="w_dq", axis=0),
            helper.make_node(
                "Conv",
                ["x_dq", "w_dq", "bias"],
                ["sums"],
                name="conv",
                kernel_shape=[3],
                pads=[1, 1],
                strides=[1],
                dilations=[1],
            ),
            helper.make_node("Relu", ["sums"], ["y"], name="relu"),
        ],
        [Tensor("x", "FP32", [1, 4, 16])],
        [Tensor("y", "FP32", [1, 6, 16])],
        [
            constant("x_scale", np.float32(0.03)),
            constant("x_zero", np.int8(-5)),
            constant("weights", int8_weights(rng)),
            constant("w_scale", (rng.random(6) * 0.01 + 0.005).astype(np.float32)),
            constant("w_zero", np.zeros(6, np.int8)),
            constant("bias", rng.standard_normal(6).astype(np.float32)),
        ],
    )
    return model.record(rng.standard_normal((1, 4, 16)).astype(np.float32))


def emg_loudest():
    """The gesture whose electrode has the greatest mean, of seven; its scaler halves."""
    labels = ["Rest", "Hand Open", "Hand Close", "Wrist Flex", "Wrist Extend", "Pinch", "Point"]
    model = Model(
        "emg-loudest",
        "The gesture whose electrode has the greatest mean",
        [
            helper.make_node("ReduceMean", ["emg"], ["means"], name="means", axes=[1], keepdims=0),
            helper.make_node("Slice", ["means", "from", "to", "axis"], ["logits"], name="seven"),
        ],
        [Tensor("emg", "FP32", [1, 200, 16])],
        [Tensor("logits", "FP32", [1, len(labels)])],
        [constant(n, np.array([v], np.int64)) for n, v in (("from", 0), ("to", len(labels)), ("axis", 1))],
    )
    model.task = "emg-classifier"
    model.section = f"\n[emg]\nlogits = \"logits\"\nlabels = {json.dumps(labels)}\nfamily = \"tcn\"\n"
    model.dress = (
        f"\n[inputs.channels]\nnames = {json.dumps([f'e{i}' for i in range(16)])}\n"
        f"units = {json.dumps(['uV'] * 16)}\nrate_hz = 2000.0\n"
        f"\n[inputs.normalization]\nmean = {[0.0] * 16}\nstd = {[2.0] * 16}\n"
    )
    dice = np.random.default_rng(1)
    for _ in range(2):
        raw = dice.normal(0, 40, (1, 200, 16)).astype(np.float32)
        model.record(raw / np.float32(2))
        model.cases[-1] = ({"emg": raw}, model.cases[-1][1])
    return model


MODELS = [*(lambda d=d: identity(d) for d in TYPES), two_in_two_out, fault_alloc, fault_slow, fault_panic]
MODELS += [dynamic_shape, dynamic_int8_conv, qdq_int8_conv, emg_loudest]


def difference(made, committed):
    """The files of two model directories that do not say the same."""
    if not committed.is_dir():
        return [committed.name]
    stale = []
    if (made / "model.onnx").read_bytes() != (committed / "model.onnx").read_bytes():
        stale.append(f"{committed.name}/model.onnx")
    old, new = (load_file(d / "golden.safetensors") for d in (committed, made))
    same = old.keys() == new.keys() and all(
        np.allclose(old[k].astype(np.float64), new[k].astype(np.float64), rtol=1e-5, atol=1e-6) for k in new
    )
    if not same:
        stale.append(f"{committed.name}/golden.safetensors")
    lines = [[l for l in (d / "manifest.toml").read_text().splitlines() if "sha256" not in l] for d in (made, committed)]
    if lines[0] != lines[1]:
        stale.append(f"{committed.name}/manifest.toml")
    return stale


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=pathlib.Path, default=HERE, help="where the directories go")
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch) if args.check else args.out
        stale = []
        for make in MODELS:
            model = make()
            model.write(root)
            if args.check:
                stale += difference(root / model.name, args.out / model.name)
        if stale:
            sys.exit("not what make_models.py makes: " + ", ".join(stale))


if __name__ == "__main__":
    main()
