"""Networks of the shapes people bring, with random weights, beside ONNX Runtime."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import onnx
import places
import pytest
import rust
from engine.families import EMG, Builder, hybrid, snn, spiking_tcn, tcn
from engine.networks import network, save
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

SHARED = places.ROOT.parent / "shared/models"


def detector(b):
    """What YOLO exports: CSP blocks with SiLU, pyramid pooling, nearest upsampling, distribution-focal boxes."""
    x = "images"
    for channels in ((3, 8), (8, 16), (16, 32)):
        x = b.silu(b.conv(x, *channels, [3, 3], strides=[2, 2], pads=[1] * 4))
    left, right = b.add("Split", x, np.array([16, 16]), outputs=2, axis=1)
    y = b.silu(b.conv(right, 16, 16, [3, 3], pads=[1] * 4))
    x = b.silu(b.conv(b.add("Concat", left, right, b.add("Add", right, y), axis=1), 48, 32, [1, 1]))
    pools = [x]
    for _ in range(3):
        pools.append(b.add("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
    deep = b.silu(b.conv(b.add("Concat", *pools, axis=1), 128, 32, [1, 1]))
    deep = b.silu(b.conv(deep, 32, 32, [3, 3], strides=[2, 2], pads=[1] * 4, group=32))
    wide = b.add(
        "Resize", deep, "", np.array([1, 1, 2, 2], np.float32), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    levels = [b.add("Concat", wide, x, axis=1), deep]
    rows = []
    for level, channels in zip(levels, (64, 32)):
        boxes = b.conv(level, channels, 64, [1, 1])
        classes = b.conv(level, channels, 80, [1, 1])
        rows.append(b.add("Reshape", b.add("Concat", boxes, classes, axis=1), np.array([1, 144, -1])))
    boxes, classes = b.add("Split", b.add("Concat", *rows, axis=2), np.array([64, 80]), outputs=2, axis=1)
    bins = b.add("Transpose", b.add("Reshape", boxes, np.array([1, 4, 16, -1])), perm=[0, 2, 1, 3])
    arange = np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1)
    distance = b.add("Conv", b.add("Softmax", bins, axis=1), arange, kernel_shape=[1, 1])
    distance = b.add("Reshape", distance, np.array([1, 4, -1]))
    near, far = b.add("Split", distance, np.array([2, 2]), outputs=2, axis=1)
    anchors = b.weight(b.rng.random((1, 2, 80)).astype(np.float32) * 8)
    low, high = b.add("Sub", anchors, near), b.add("Add", anchors, far)
    centre = b.add("Div", b.add("Add", low, high), np.float32(2))
    boxes = b.add("Mul", b.add("Concat", centre, b.add("Sub", high, low), axis=1), np.float32(8))
    return b.add("Concat", boxes, b.add("Sigmoid", classes), axis=1)


def classifier(b):
    """MobileNetV2's blocks."""
    x = b.add("Clip", b.conv("images", 3, 16, [3, 3], strides=[2, 2], pads=[1] * 4), np.float32(0), np.float32(6))
    for _ in range(3):
        y = b.add("Clip", b.conv(x, 16, 64, [1, 1]), np.float32(0), np.float32(6))
        y = b.add("Clip", b.conv(y, 64, 64, [3, 3], pads=[1] * 4, group=64), np.float32(0), np.float32(6))
        x = b.add("Add", x, b.conv(y, 64, 16, [1, 1]))
    y = b.add("Flatten", b.add("GlobalAveragePool", x), axis=1)
    return b.add("Softmax", b.dense(y, 16, 10), axis=1)


def emg(seed=3):
    return {"emg": np.random.default_rng(seed).standard_normal((1, 200, 16)).astype(np.float32)}


def image():
    return {"images": np.random.default_rng(3).random((1, 3, 64, 64)).astype(np.float32)}


NETWORKS = {
    "emg-tcn": (tcn, emg(), {"emg": EMG}),
    "emg-snn": (snn, emg(), {"emg": EMG}),
    "emg-hybrid": (hybrid, emg(), {"emg": EMG}),
    "emg-spiking-tcn": (spiking_tcn, emg(), {"emg": EMG}),
    "detector": (detector, image(), {}),
    "classifier": (classifier, image(), {}),
}


def build(name):
    make, inputs, dynamic = NETWORKS[name]
    b = Builder(sum(name.encode()))
    b.called("answer", make(b))
    return network(b.nodes, inputs, {"answer": "FP32"}, b.constants, dynamic=dynamic), inputs


@pytest.fixture(scope="module")
def verdicts(check, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    directories = []
    for name in NETWORKS:
        proto, inputs = build(name)
        directories.append(save(folder, name, proto, inputs, {"answer": "FP32"}))
    return check(directories)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_agrees_with_onnx_runtime(verdicts, name):
    verdict, why = verdicts[name]
    assert verdict == "agrees", why


def test_a_network_with_open_dimensions_runs_in_any_size_the_manifest_binds(check, tmp_path):
    proto, _ = build("emg-tcn")
    directories = []
    for batch, time in ((1, 200), (2, 200), (1, 77)):
        inputs = {"emg": np.random.default_rng(time).standard_normal((batch, time, 16)).astype(np.float32)}
        directories.append(save(tmp_path, f"{batch}x{time}", proto, inputs, {"answer": "FP32"}))
    assert {verdict for verdict, _ in check(directories).values()} == {"agrees"}


class Samples(CalibrationDataReader):
    """Inputs for static quantisation."""

    def __init__(self, count):
        self.rest = iter([emg(seed) for seed in range(count)])

    def get_next(self):
        return next(self.rest, None)


def test_dynamic_quantisation_of_padded_convolutions_is_refused(check, tmp_path):
    proto, inputs = build("emg-tcn")
    onnx.save(proto, tmp_path / "f32.onnx")
    quantize_dynamic(tmp_path / "f32.onnx", tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    quantised = onnx.load(tmp_path / "int8.onnx")
    assert "ConvInteger" in {n.op_type for n in quantised.graph.node}
    directory = save(tmp_path, "dynamic", quantised, inputs, {"answer": "FP32"})
    verdict, why = check([directory])["dynamic"]
    assert (verdict, "ConvInteger" in why) == ("refused", True), why


def test_dynamic_quantisation_of_matrices_agrees(check, tmp_path):
    proto, inputs = build("emg-tcn")
    onnx.save(proto, tmp_path / "f32.onnx")
    # Weights of 7 bits: see test_operators.py.
    quantize_dynamic(
        tmp_path / "f32.onnx", tmp_path / "int8.onnx", op_types_to_quantize=["MatMul", "Gemm"], reduce_range=True,
        weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    quantised = onnx.load(tmp_path / "int8.onnx")
    assert "MatMulInteger" in {n.op_type for n in quantised.graph.node}
    # A value between two steps of a quantisation may fall to either, and what follows moves by a fraction of a step.
    directory = save(tmp_path, "dynamic", quantised, inputs, {"answer": "FP32"}, max_abs=2e-2)
    verdict, why = check([directory])["dynamic"]
    assert verdict == "agrees", why


def test_static_quantisation_agrees(check, tmp_path):
    proto, inputs = build("emg-tcn")
    onnx.save(proto, tmp_path / "f32.onnx")
    quantize_static(
        tmp_path / "f32.onnx", tmp_path / "int8.onnx", Samples(8), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    quantised = onnx.load(tmp_path / "int8.onnx")
    assert "DequantizeLinear" in {n.op_type for n in quantised.graph.node}
    directory = save(tmp_path, "static", quantised, inputs, {"answer": "FP32"}, max_abs=2e-2)
    verdict, why = check([directory])["static"]
    assert verdict == "agrees", why


def test_the_committed_models_are_what_their_program_makes():
    program = places.ROOT / "tests/models/make_models.py"
    made = subprocess.run([sys.executable, "-B", program, "--check"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def test_a_really_trained_encoder_is_imported_and_agrees(tmp_path):
    network_file, config = SHARED / "imu_tcn_encoder.onnx", SHARED / "imu_tcn_encoder.config.json"
    if not network_file.is_file():
        pytest.skip(f"{network_file} is not here; it is no part of the project")
    command = [
        rust.build_for_tests() / "inferctl", "model", "import", "--json", network_file, "--config", config,
        "--name", "imu-tcn", "--python", sys.executable, "-o", tmp_path / "imu",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["task"] == "imu-encoder" and report["check"]["passed"]
    opinion = report["onnxruntime"]
    assert opinion["result"] == "compared" and opinion["cosine"] >= 0.9999 and opinion["max_abs"] < 1e-4, opinion
    written = hashlib.sha256((tmp_path / "imu/model.onnx").read_bytes()).hexdigest()
    assert written == hashlib.sha256(network_file.read_bytes()).hexdigest()
