"""Writes networks operator by operator, and the four families of EMG classifiers that people have, with random weights."""

import numpy as np
from engine.networks import node
from onnx import TensorProto


class Builder:
    """Collects operators and weights; every method gives the name of its result."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], {}, 0

    def add(self, op, *inputs, outputs=1, **attributes):
        names = [f"v{self.count + i}" for i in range(outputs)]
        self.count += outputs
        inputs = [i if isinstance(i, str) else self.weight(i) for i in inputs]
        self.nodes.append(node(op, inputs, names, name=f"{op}_{names[0]}", **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def random(self, *shape):
        """Weights of a size that keeps activations near one."""
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 16
        return (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)

    def called(self, name, value):
        self.nodes.append(node("Identity", [value], [name]))

    # --- layers

    def conv(self, x, channels_in, channels_out, kernel, **attributes):
        groups = attributes.get("group", 1)
        return self.add(
            "Conv", x, self.random(channels_out, channels_in // groups, *kernel), self.random(channels_out),
            kernel_shape=list(kernel), **attributes,
        )  # fmt: skip

    def norm(self, x, channels):
        statistics = [1 + 0.1 * self.random(channels), self.random(channels), self.random(channels)]
        return self.add("BatchNormalization", x, *statistics, np.abs(self.random(channels)) + np.float32(0.5))

    def dense(self, x, size_in, size_out):
        return self.add("Gemm", x, self.random(size_out, size_in), self.random(size_out), transB=1)

    def silu(self, x):
        return self.add("Mul", x, self.add("Sigmoid", x))


def length(b, x, axis):
    """The size of a dimension, as a vector of one, computed in the network as exporters write it."""
    return b.add("Unsqueeze", b.add("Gather", b.add("Shape", x), np.array(axis), axis=0), np.array([0]))


def temporal_blocks(b, x, sizes, time=None):
    """TemporalConvNet: two causal convolutions (padded at both ends, cut back) and a residual per block."""
    for i, (size_in, size_out) in enumerate(zip(sizes, sizes[1:])):
        y = x
        for channels in (size_in, size_out):
            y = b.conv(y, channels, size_out, [3], dilations=[2**i], pads=[2 * 2**i] * 2)
            end = time if time is not None else np.array([-2 * 2**i])
            y = b.add("Slice", y, np.array([0]), end, np.array([2]), np.array([1]))
            y = b.add("Relu", b.norm(y, size_out))
        residual = b.conv(x, size_in, size_out, [1]) if size_in != size_out else x
        x = b.add("Relu", b.add("Add", y, residual))
    return x


def attention(b, x, width, heads):
    """MultiheadAttention over [batch, time, width] with its shapes computed in the network, as torch exports it."""
    batch, time = length(b, x, 0), length(b, x, 1)
    split = b.add("Concat", batch, time, np.array([heads]), np.array([width // heads]), axis=0)
    qkv = []
    for _ in range(3):
        y = b.add("Add", b.add("MatMul", x, b.random(width, width)), b.random(width))
        qkv.append(b.add("Transpose", b.add("Reshape", y, split), perm=[0, 2, 1, 3]))
    scores = b.add("MatMul", qkv[0], b.add("Transpose", qkv[1], perm=[0, 1, 3, 2]))
    scores = b.add("Div", scores, np.sqrt(np.float32(width // heads)))
    y = b.add("Transpose", b.add("MatMul", b.add("Softmax", scores, axis=-1), qkv[2]), perm=[0, 2, 1, 3])
    joined = b.add("Concat", batch, time, np.array([width]), axis=0)
    return b.add("Add", b.add("MatMul", b.add("Reshape", y, joined), b.random(width, width)), b.random(width))


def head(b, x, size):
    """Linear, ReLU, BatchNorm, Linear, ReLU, Linear to seven classes."""
    y = b.norm(b.add("Relu", b.dense(x, size, 128)), 128)
    return b.dense(b.add("Relu", b.dense(y, 128, 64)), 64, 7)


def spikes(b, x, beta, threshold, membrane):
    """One step of leaky integrate-and-fire neurons that reset by subtraction: spikes and the new membrane."""
    membrane = b.add("Add", b.add("Mul", membrane, np.float32(beta)), x)
    fired = b.add("Cast", b.add("Greater", membrane, np.float32(threshold)), to=TensorProto.FLOAT)
    return fired, b.add("Sub", membrane, b.add("Mul", fired, np.float32(threshold)))


def rate(b, x, sizes, steps=20):
    """Spiking layers over the steps of a rate code; the mean rate of the last layer, whose spikes are an output."""
    on = b.add("Greater", b.add("Sigmoid", x), np.float32(0.5))
    code = b.add("ReduceMean", b.add("Cast", on, to=TensorProto.FLOAT), axes=[1], keepdims=0)
    layers = [(b.random(o, i), b.random(o), o) for i, o in zip(sizes, sizes[1:])]
    layers = [(b.weight(w), b.weight(bias), o) for w, bias, o in layers]
    batch = length(b, x, 0)
    membranes = [
        b.add("Expand", np.zeros((1, 1), np.float32), b.add("Concat", batch, np.array([o]), axis=0)) for *_, o in layers
    ]
    total = None
    for _ in range(steps):
        y = code
        for i, (w, bias, _) in enumerate(layers):
            y, membranes[i] = spikes(b, b.add("Gemm", y, w, bias, transB=1), 0.95, 0.48, membranes[i])
        total = y if total is None else b.add("Add", total, y)
    b.called("spikes", total)
    return b.add("Div", total, np.float32(steps))


EMG = ("batch", "time", 16)


def tcn(b):
    x = b.add("Transpose", "emg", perm=[0, 2, 1])
    y = temporal_blocks(b, x, [16, 64, 128, 256], time=length(b, x, 2))
    y = attention(b, b.add("Transpose", y, perm=[0, 2, 1]), 256, 8)
    return head(b, b.add("ReduceMean", y, axes=[1], keepdims=0), 256)


def snn(b):
    return b.dense(rate(b, "emg", [16, 64, 128, 256]), 256, 7)


def hybrid(b):
    x = temporal_blocks(b, b.add("Transpose", "emg", perm=[0, 2, 1]), [16, 64, 128, 256])
    pooled = b.add("Squeeze", b.add("GlobalAveragePool", x), np.array([2]))
    return head(b, b.add("Concat", pooled, rate(b, "emg", [16, 64, 128, 256]), axis=1), 512)


def spiking_tcn(b, steps=5):
    """Spiking temporal blocks; membranes start as zeros of a shape computed in the network. The last block's spikes are an output."""
    x = b.add("Transpose", "emg", perm=[0, 2, 1])
    sizes = [16, 32, 64]
    weights = [(b.weight(b.random(o, i, 3)), b.weight(b.random(o)), o) for i, o in zip(sizes, sizes[1:])]
    zeros = [
        b.add("ConstantOfShape", b.add("Concat", length(b, x, 0), np.array([o]), length(b, x, 2), axis=0))
        for *_, o in weights
    ]
    total, fired, readout = None, None, (b.weight(b.random(7, 64)), b.weight(b.random(7)))
    membranes = list(zeros)
    for _ in range(steps):
        y = x
        for i, (w, bias, _) in enumerate(weights):
            d = 2**i
            y = b.add("Conv", y, w, bias, kernel_shape=[3], dilations=[d], pads=[2 * d, 2 * d])
            y = b.add("Slice", y, np.array([0]), np.array([-2 * d]), np.array([2]))
            y, membranes[i] = spikes(b, y, 0.94, 1.0, membranes[i])
        fired = y if fired is None else b.add("Add", fired, y)
        y = b.add("Gemm", b.add("ReduceMean", y, axes=[2], keepdims=0), *readout, transB=1)
        total = y if total is None else b.add("Add", total, y)
    b.called("spikes", fired)
    return b.add("Clip", b.add("Div", total, np.float32(steps)), np.float32(-50), np.float32(50))


FAMILIES = {"tcn": tcn, "snn": snn, "hybrid": hybrid, "spiking_tcn": spiking_tcn}
