#!/usr/bin/env python3
"""What a device fetches for typical updates when it holds the bundle before, as `inferctl bundle diff` counts it.

    tests/perf/delta.py [--retrained DIR] [--keep DIR]

The models are the default one (real weights) and two image classifiers of 9 and 4.5 MB with seeded random weights: what counts here
is which bytes change, not what they mean. `--retrained` names the default model trained with another seed
(`cargo run --release -p inferd-train -- imu-motion --seed 2 -o DIR`). Needs the packages of tests/requirements.txt.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
INFERCTL = pathlib.Path(os.environ.get("INFERCTL_BIN", TARGET / "debug/inferctl"))
DEFAULT = ROOT / "app/inferd/models/imu-motion"
SIZE = 32


def classifier(widths, classes, seed):
    """Convolutions of 3x3 that halve the image, a mean, and a linear head: weights of the usual scale."""
    random = np.random.default_rng(seed)
    weights, nodes, name, channels = {}, [], "image", 3
    for i, width in enumerate(widths):
        weights[f"conv{i}.weight"] = random.normal(0, (2 / (9 * channels)) ** 0.5, (width, channels, 3, 3))
        weights[f"conv{i}.bias"] = random.normal(0, 0.01, width)
        inputs = [name, f"conv{i}.weight", f"conv{i}.bias"]
        stride = 2 if i % 2 else 1
        nodes.append(helper.make_node("Conv", inputs, [f"c{i}"], pads=[1, 1, 1, 1], strides=[stride, stride], dilations=[1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        name, channels = f"r{i}", width
    weights["head.weight"] = random.normal(0, channels**-0.5, (channels, classes))
    weights["head.bias"] = random.normal(0, 0.01, classes)
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "head.weight", "head.bias"], ["scores"]))
    return {key: value.astype(np.float32) for key, value in weights.items()}, nodes


def network(weights, nodes, *, producer="trainer 1.0"):
    """An ONNX file of these weights; INT8 ones are dequantised in the graph."""
    initializers, before = [], []
    for name, value in weights.items():
        if value.dtype == np.int8:
            scale = numpy_helper.from_array(np.float32(0.01), f"{name}.scale")
            initializers += [numpy_helper.from_array(value, f"{name}.int8"), scale]
            before.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name]))
        else:
            initializers.append(numpy_helper.from_array(value, name))
    classes = weights["head.bias"].shape[0]
    graph = helper.make_graph(
        before + nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, classes])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name=producer)
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def nudged(weights, which, seed=9):
    """A few more steps of training: every weight of the chosen layers moves by a thousandth of its layer's scale."""
    random = np.random.default_rng(seed)
    moved = {}
    for name, value in weights.items():
        step = random.normal(0, 1e-3 * value.std() + 1e-9, value.shape)
        moved[name] = (value + step).astype(np.float32) if which(name) else value
    return moved


def quantised(weights):
    """Weights of convolutions as INT8."""
    return {n: np.clip(np.round(v / 0.01), -127, 127).astype(np.int8) if v.ndim == 4 else v for n, v in weights.items()}


class Bench:
    """Makes model directories and bundles in a folder, and compares bundles."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments):
        done = subprocess.run([str(a) for a in (INFERCTL, *arguments)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: {done.stderr}")
        return done.stdout

    def model(self, name, variant, content):
        """A model directory of an ONNX file."""
        file = self.folder / f"{name}-{variant}.onnx"
        file.write_bytes(content)
        folder = self.folder / f"{name}-{variant}"
        self.run("model", "import", file, "--name", name, "-o", folder, "--task", "tensor", "--python", "/nonexistent")
        return folder

    def bundle(self, name, version, models, *options):
        output = self.folder / f"{name}.imb"
        named = [part for model in models for part in ("--model", model)]
        self.run("bundle", "build", *named, "--product", "p", "--version", version, "--unchecked", *options, "-o", output)
        return output

    def diff(self, old, new):
        return json.loads(self.run("--json", "bundle", "diff", old, new))


def measure(bench, retrained):
    """Rows of (update, models, comparison)."""
    weights, nodes = classifier([32, 64, 128, 256, 256, 512], 100, seed=1)
    small, small_nodes = classifier([32, 64, 128, 128, 256, 256], 20, seed=2)
    eyes = bench.model("eyes", "1", network(weights, nodes))
    door = bench.model("door", "1", network(small, small_nodes))
    one = bench.bundle("one", 1, [eyes])
    three = bench.bundle("three", 1, [eyes, door, DEFAULT])

    def changed(what, variant, content):
        model = bench.model("eyes", variant, content)
        return what, "1", bench.diff(one, bench.bundle(variant, 2, [model]))

    last = max(name for name in weights if name.startswith("conv")).split(".")[0]
    grown = dict(weights)
    grown["head.weight"] = np.concatenate([weights["head.weight"], weights["head.weight"][:, :1]], axis=1)
    grown["head.bias"] = np.concatenate([weights["head.bias"], weights["head.bias"][:1]])
    yield "only the manifest (policy)", "1", bench.diff(one, bench.bundle("policy", 2, [eyes], "--probation-seconds", 60))
    yield changed("exported again: the same weights, 40 bytes more before them", "export", network(weights, nodes, producer="trainer 1.0.1, exported on another day, by B"))
    yield changed("head trained", "head", network(nudged(weights, lambda n: n.startswith("head")), nodes))
    yield changed("head grown by a class", "grown", network(grown, nodes))
    yield changed("last convolution and head trained", "tail", network(nudged(weights, lambda n: n.startswith(("head", last))), nodes))
    yield changed("every weight trained a little", "all", network(nudged(weights, lambda _: True), nodes))
    yield changed("quantised to INT8", "int8", network(quantised(weights), nodes))
    other = bench.model("door", "2", network(nudged(small, lambda _: True), small_nodes))
    yield "one of three models replaced (the 4.5 MB one)", "3", bench.diff(three, bench.bundle("three2", 2, [eyes, other, DEFAULT]))
    if retrained:
        yield "one of three models replaced (the default one)", "3", bench.diff(three, bench.bundle("three3", 2, [eyes, door, retrained]))
        default = bench.bundle("default", 1, [DEFAULT])
        yield "the default model trained with another seed", "1", bench.diff(default, bench.bundle("seed2", 2, [retrained]))
    yield "a model added to one", "2", bench.diff(one, bench.bundle("added", 2, [eyes, door]))
    packed = bench.bundle("packed", 1, [eyes], "--compress")
    yield "none, but compressed now", "1", bench.diff(one, packed)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retrained", type=pathlib.Path, metavar="DIR", help="the default model trained with another seed")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="make models and bundles here and leave them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| what changed | models | bundle | fetched | share | with gaps bridged | requests |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for what, models, d in measure(Bench(folder), options.retrained):
            total, fetched, bridged = d["total_bytes"], d["fetched_bytes"], d["fetched_bytes_in_requests"]
            share = f"{100 * fetched / total:.1f} %"
            print(f"| {what} | {models} | {total:,} | {fetched:,} | {share} | {bridged:,} | {d['requests']} |", flush=True)


if __name__ == "__main__":
    main()
