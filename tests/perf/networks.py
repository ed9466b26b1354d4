"""The networks that engines.py compares: real architectures at their real sizes with seeded weights, and inputs of their kind.

A network is computed on samples while it is built, and every layer is scaled and shifted by what came out of it, as batch normalisation does in
training. So activations neither die nor explode, answers to different inputs differ, and what INT8 loses means something. The weights
were not trained: argmax of such answers is closer than a trained network's.
"""

import dataclasses
import pathlib
import sys

import numpy as np
import onnxruntime as ort
from onnx import helper

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from models import make_models  # noqa: E402

SAMPLES = 8
# How many channels are much alike.
SMOOTH = 4.0


def node(op, inputs, outputs, **attributes):
    """An operator; convolutions get the attributes exporters always write."""
    if op == "Conv":
        rank = len(attributes["kernel_shape"])
        given = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank}
        attributes = given | attributes
    return helper.make_node(op, inputs, outputs, **attributes)


class Builder:
    """Collects operators and weights, and knows every value for the samples; methods give the name of their result."""

    def __init__(self, seed, name, samples):
        self.random = np.random.default_rng(seed)
        self.nodes, self.constants, self.values = [], {}, {name: samples}

    def add(self, op, *inputs, outputs=1, **attributes):
        names = [f"v{len(self.values) + i}" for i in range(outputs)]
        made = node(op, [self.named(i) for i in inputs], names, name=f"{op}_{names[0]}", **attributes)
        self.nodes.append(made)
        self.values |= dict(zip(names, self.compute(made), strict=True))
        return names[0] if outputs == 1 else names

    def named(self, value):
        if isinstance(value, str):
            return value
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def compute(self, made):
        known = [i for i in dict.fromkeys(made.input) if i in self.values]
        stored = [make_models.constant(i, self.constants[i]) for i in dict.fromkeys(made.input) if i in self.constants]
        info = [
            helper.make_tensor_value_info(i, helper.np_dtype_to_tensor_dtype(self.values[i].dtype), self.values[i].shape)
            for i in known
        ]
        out = [helper.make_empty_tensor_value_info(o) for o in made.output]
        graph = helper.make_graph([made], "one", info, out, stored)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", make_models.OPSET)], ir_version=8)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {i: self.values[i] for i in known})

    # --- layers

    def conv(self, x, channels, kernel, *, act=None, scale=1.0, shift=0.0, **attributes):
        """A convolution with its batch normalisation folded in, and what follows it."""
        groups, before = attributes.get("group", 1), self.values[x].shape[1]
        weights = self.weights(channels, before // groups, *kernel)
        y = self.add("Conv", x, weights, np.zeros(channels, np.float32), kernel_shape=list(kernel), **attributes)
        return self.activate(self.normalise(y, 1, scale, shift), act)

    def dense(self, x, channels, *, act=None):
        weights = self.weights(channels, self.values[x].shape[1])
        y = self.add("Gemm", x, weights, np.zeros(channels, np.float32), transB=1)
        return self.activate(self.normalise(y, 1, 1.0, 0.0), act)

    def linear(self, x, channels, scale):
        """A matrix over the last dimension, and its bias."""
        name = self.named(self.weights(channels, self.values[x].shape[-1]).T)
        y = self.add("MatMul", x, name)
        gain, bias = self.scaling(self.values[y], -1, scale, 0.0)
        self.constants[name] = np.ascontiguousarray(self.constants[name] * gain)
        self.values[y] = self.values[y] * gain
        return self.add("Add", y, bias)

    def weights(self, *shape):
        """Random and smooth, as trained filters are: neighbours in place and channel see much the same. With white ones a network of
        fifty layers is chaotic: it answers rounding errors as loudly as its input."""
        weights = self.random.standard_normal(shape)
        for axis in (0, 1):
            distance = np.minimum(np.arange(shape[axis]), shape[axis] - np.arange(shape[axis]))
            blur = np.fft.rfft(np.exp(-0.5 * (distance / SMOOTH) ** 2))
            along = [-1 if i == axis else 1 for i in range(len(shape))]
            weights = np.fft.irfft(np.fft.rfft(weights, axis=axis) * blur.reshape(along), shape[axis], axis=axis)
        places = tuple(range(2, len(shape)))
        return (weights + 2 * weights.mean(axis=places, keepdims=True)).astype(np.float32)

    def normalise(self, y, axis, scale, shift):
        """Rescales the layer that made this: each channel gets about mean `shift` and deviation `scale`."""
        made, values = self.nodes[-1], self.values[y]
        gain, bias = self.scaling(values, axis, scale, shift)
        weights, biases = made.input[1:3]
        self.constants[weights] = self.constants[weights] * gain.reshape(-1, *[1] * (self.constants[weights].ndim - 1))
        self.constants[biases] = bias
        along = [-1 if i == axis else 1 for i in range(values.ndim)]
        self.values[y] = values * gain.reshape(along) + bias.reshape(along)
        return y

    def scaling(self, values, axis, scale, shift):
        channels = values.shape[axis]
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        gain = scale * self.random.uniform(0.7, 1.3, channels) / (values.std(axis=others) + 1e-3)
        bias = shift + 0.3 * scale * self.random.standard_normal(channels) - gain * values.mean(axis=others)
        return gain.astype(np.float32), bias.astype(np.float32)

    def activate(self, x, act):
        match act:
            case None:
                return x
            case "relu":
                return self.add("Relu", x)
            case "relu6":
                return self.add("Clip", x, np.float32(0), np.float32(6))
            case "silu":
                return self.add("Mul", x, self.add("Sigmoid", x))


# ------------------------------------------------------------------------------------------------------------ sensors


def temporal_blocks(b, x, widths, steps):
    """Two causal convolutions (padded at both ends, cut back) and a residual per block."""
    for i, width in enumerate(widths):
        y = x
        for _ in range(2):
            y = b.conv(y, width, [3], dilations=[2**i], pads=[2 * 2**i] * 2)
            y = b.add("Slice", y, np.array([0]), np.array([steps]), np.array([2]), np.array([1]))
            y = b.add("Relu", y)
        x = b.add("Relu", b.add("Add", y, b.conv(x, width, [1])))
    return x


def imu_tcn(b):
    """The encoder that is served for IMUs: 441,984 parameters."""
    x = temporal_blocks(b, b.add("Transpose", "imu_window", perm=[0, 2, 1]), [64, 128, 256], 100)
    return {"latent": b.dense(b.add("Flatten", b.add("GlobalAveragePool", x)), 64)}


def attention(b, x, steps, width, heads):
    """Attention over [batch, time, width]."""
    qkv = []
    for scale in (0.7, 0.7, 1.0):
        y = b.add("Reshape", b.linear(x, width, scale), np.array([0, steps, heads, width // heads]))
        qkv.append(b.add("Transpose", y, perm=[0, 2, 1, 3]))
    scores = b.add("MatMul", qkv[0], b.add("Transpose", qkv[1], perm=[0, 1, 3, 2]))
    scores = b.add("Div", scores, np.sqrt(np.float32(width // heads)))
    y = b.add("Transpose", b.add("MatMul", b.add("Softmax", scores, axis=-1), qkv[2]), perm=[0, 2, 1, 3])
    return b.linear(b.add("Reshape", y, np.array([0, steps, width])), width, 1.0)


def emg_tcn(b):
    """The classifier of muscle signals: temporal blocks, attention over all steps, a head for seven gestures."""
    x = temporal_blocks(b, b.add("Transpose", "emg", perm=[0, 2, 1]), [64, 128, 256], 200)
    x = attention(b, b.add("Transpose", x, perm=[0, 2, 1]), 200, 256, 8)
    x = b.add("ReduceMean", x, axes=[1], keepdims=0)
    return {"scores": b.dense(b.dense(b.dense(x, 128, act="relu"), 64, act="relu"), 7)}


def windows(random, count, steps, channels):
    """Sensors: an offset, three oscillations and noise on each channel."""
    time = np.arange(steps)[:, None] / steps
    found = np.empty((count, steps, channels))
    for window in found:
        window[:] = random.normal(0, 0.7, channels) + random.normal(0, 0.2, (steps, channels))
        for _ in range(3):
            turn = 2 * np.pi * (random.uniform(0.5, 12) * time + random.random(channels))
            window += random.gamma(1.0, 0.6, channels) * np.sin(turn)
    return found.astype(np.float32)


def muscles(random, count):
    """Muscles: noise whose strength on each channel rises and falls, each window scaled to a deviation of one."""
    phase = 2 * np.pi * random.random((count, 1, 16)) + np.linspace(0, 6, 200)[:, None]
    found = (1.2 + np.sin(phase)) * random.standard_normal((count, 200, 16)) + random.normal(0, 0.3, (count, 1, 16))
    return (found / found.std(axis=1, keepdims=True)).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- images


def mobilenet(b):
    """MobileNetV2: inverted residuals with linear bottlenecks, 300 million multiplications."""
    x = b.conv("image", 32, [3, 3], strides=[2, 2], pads=[1] * 4, act="relu6")
    width = 32
    for expand, channels, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for i in range(count):
            stride, hidden = (first if i == 0 else 1), expand * width
            y = b.conv(x, hidden, [1, 1], act="relu6") if expand > 1 else x
            y = b.conv(y, hidden, [3, 3], strides=[stride] * 2, pads=[1] * 4, group=hidden, act="relu6")
            y = b.conv(y, channels, [1, 1])
            x = b.add("Add", x, y) if stride == 1 and width == channels else y
            width = channels
    x = b.conv(x, 1280, [1, 1], act="relu6")
    return {"scores": b.dense(b.add("Flatten", b.add("GlobalAveragePool", x)), 1000)}


def conv(b, x, channels, size=1, stride=1, act="silu", **more):
    """YOLO's unit: convolution, normalisation, SiLU."""
    return b.conv(x, channels, [size] * 2, strides=[stride] * 2, pads=[size // 2] * 4, act=act, **more)


def bottleneck(b, x, channels, hidden):
    return b.add("Add", x, conv(b, conv(b, x, hidden, 3), channels, 3))


def c3k2(b, x, channels, part, deep):
    """Splits, transforms one half, joins all: with a bottleneck, or with two inside of a block of its own."""
    half = int(channels * part)
    left, right = b.add("Split", conv(b, x, 2 * half), np.array([half, half]), outputs=2, axis=1)
    if deep:
        y = conv(b, right, half // 2)
        for _ in range(2):
            y = bottleneck(b, y, half // 2, half // 2)
        y = conv(b, b.add("Concat", y, conv(b, right, half // 2), axis=1), half)
    else:
        y = bottleneck(b, right, half, half // 2)
    return conv(b, b.add("Concat", left, right, y, axis=1), channels)


def pyramid_pool(b, x):
    pools = [conv(b, x, 128)]
    for _ in range(3):
        pools.append(b.add("MaxPool", pools[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4))
    return conv(b, b.add("Concat", *pools, axis=1), 256)


def c2psa(b, x):
    """Attention over the places of the coarsest level."""
    left, y = b.add("Split", conv(b, x, 256), np.array([128, 128]), outputs=2, axis=1)
    parts = b.add("Reshape", conv(b, y, 256, act=None), np.array([0, 2, 128, 400]))
    q, k, v = b.add("Split", parts, np.array([32, 32, 64]), outputs=3, axis=2)
    scores = b.add("Mul", b.add("MatMul", b.add("Transpose", q, perm=[0, 1, 3, 2]), k), np.float32(32**-0.5))
    seen = b.add("MatMul", v, b.add("Transpose", b.add("Softmax", scores, axis=-1), perm=[0, 1, 3, 2]))
    place = [b.add("Reshape", t, np.array([0, 128, 20, 20])) for t in (seen, v)]
    y = b.add("Add", y, conv(b, b.add("Add", place[0], conv(b, place[1], 128, 3, act=None, group=128)), 128, act=None))
    y = b.add("Add", y, conv(b, conv(b, y, 256), 128, act=None))
    return conv(b, b.add("Concat", left, y, axis=1), 256)


def upsampled(b, x):
    return b.add(
        "Resize", x, "", np.array([1, 1, 2, 2], np.float32), mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


def yolo11n(b):
    """YOLO11n: 6.5 billion operations; boxes and scores are two outputs, so that neither's scale hides the other."""
    x = conv(b, conv(b, "image", 16, 3, 2), 32, 3, 2)
    x = conv(b, c3k2(b, x, 64, 0.25, deep=False), 64, 3, 2)
    fine = c3k2(b, x, 128, 0.25, deep=False)
    middle = c3k2(b, conv(b, fine, 128, 3, 2), 128, 0.5, deep=True)
    coarse = c3k2(b, conv(b, middle, 256, 3, 2), 256, 0.5, deep=True)
    coarse = c2psa(b, pyramid_pool(b, coarse))
    between = c3k2(b, b.add("Concat", upsampled(b, coarse), middle, axis=1), 128, 0.5, deep=False)
    low = c3k2(b, b.add("Concat", upsampled(b, between), fine, axis=1), 64, 0.5, deep=False)
    mid = c3k2(b, b.add("Concat", conv(b, low, 64, 3, 2), between, axis=1), 128, 0.5, deep=False)
    high = c3k2(b, b.add("Concat", conv(b, mid, 128, 3, 2), coarse, axis=1), 256, 0.5, deep=True)
    bins, scores, places, strides = [], [], [], []
    for level, width, stride in ((low, 64, 8), (mid, 128, 16), (high, 256, 32)):
        y = conv(b, conv(b, conv(b, level, 64, 3), 64, 3), 64, act=None, scale=1.5)
        bins.append(b.add("Reshape", y, np.array([0, 64, -1])))
        y = conv(b, conv(b, level, width, 3, group=width), 80)
        y = conv(b, conv(b, conv(b, y, 80, 3, group=80), 80), 80, act=None, scale=1.0, shift=-3.0)
        scores.append(b.add("Reshape", y, np.array([0, 80, -1])))
        side = 640 // stride
        y, x = np.mgrid[:side, :side] + 0.5
        places.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(side * side, stride))
    bins = b.add("Reshape", b.add("Concat", *bins, axis=2), np.array([0, 4, 16, -1]))
    bins = b.add("Softmax", b.add("Transpose", bins, perm=[0, 2, 1, 3]), axis=1)
    distance = b.add("Conv", bins, np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1), kernel_shape=[1, 1])
    near, far = b.add("Split", b.add("Reshape", distance, np.array([0, 4, -1])), np.array([2, 2]), outputs=2, axis=1)
    anchors = np.concatenate(places, axis=1)[None].astype(np.float32)
    low, high = b.add("Sub", anchors, near), b.add("Add", anchors, far)
    centre = b.add("Div", b.add("Add", low, high), np.float32(2))
    boxes = b.add("Concat", centre, b.add("Sub", high, low), axis=1)
    boxes = b.add("Mul", boxes, np.concatenate(strides)[None, None].astype(np.float32))
    return {"boxes": boxes, "scores": b.add("Sigmoid", b.add("Concat", *scores, axis=2))}


def pictures(random, count, side):
    """Images: a smooth background, rectangles of many sizes, noise; scaled to about one."""
    found = np.empty((count, 3, side, side))
    ramp = np.linspace(0, 1, side)
    for picture in found:
        corners = random.random((2, 2, 3, 1, 1))
        rows = [corners[i, 0] * (1 - ramp) + corners[i, 1] * ramp for i in (0, 1)]
        picture[:] = rows[0] * (1 - ramp[:, None]) + rows[1] * ramp[:, None]
        for _ in range(24):
            high, wide = (side * random.beta(1, 4, 2)).astype(int) + 3
            top, left = random.integers(0, side - 3, 2)
            picture[:, top : top + high, left : left + wide] = random.random((3, 1, 1)) + random.normal(0, 0.1, (1, 1, 1))
    return ((found + random.normal(0, 0.03, found.shape) - 0.45) / 0.25).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ in total


@dataclasses.dataclass
class Kind:
    """A network: what makes it, its input's name, and what makes samples of that."""

    make: object
    input: str
    samples: object
    memory_mib: int = 128


def identity(b):
    """Computes nothing: what is measured is the way there and back."""
    return {"y": b.add("Identity", "x")}


KINDS = {
    "identity": Kind(identity, "x", lambda random, n: windows(random, n, 100, 9)),
    "imu-tcn": Kind(imu_tcn, "imu_window", lambda random, n: windows(random, n, 100, 9)),
    "emg-tcn": Kind(emg_tcn, "emg", muscles),
    "mobilenetv2": Kind(mobilenet, "image", lambda random, n: pictures(random, n, 224), 512),
    "yolo11n": Kind(yolo11n, "image", lambda random, n: pictures(random, n, 640), 1536),
}


def samples(name, count, seed):
    """So many inputs, one after the other in the first dimension."""
    return KINDS[name].samples(np.random.default_rng([seed, len(name)]), count)


def write(name, folder):
    """Makes the model directory `name` in a folder; how many parameters it has."""
    kind = KINDS[name]
    given = samples(name, SAMPLES, seed=1)
    b = Builder(len(name), kind.input, given)
    outputs = kind.make(b)
    b.nodes += [node("Identity", [value], [public]) for public, value in outputs.items()]
    tensor = lambda called, value: make_models.Tensor(called, "FP32", (1, *b.values[value].shape[1:]))  # noqa: E731
    stored = [make_models.constant(called, value) for called, value in b.constants.items()]
    model = make_models.Model(
        name,
        kind.make.__doc__.split(":")[0].rstrip("."),
        b.nodes,
        [tensor(kind.input, kind.input)],
        [tensor(public, value) for public, value in outputs.items()],
        stored,
        memory_mib=kind.memory_mib,
        deadline_ms=60_000,
    )
    model.record(given[:1])
    largest = max(float(np.abs(a).max()) for a in model.cases[0][1].values())
    model.write(pathlib.Path(folder), max_abs=1e-3 * max(1.0, largest))
    return int(sum(c.size for c in b.constants.values() if c.dtype == np.float32))
