"""Models to update to: the default model with one thing changed, and golden vectors that fit, or do not.

Each is a whole model directory under the default model's name, so that a bundle of it replaces the default model. Their
deadline is long, unless another is asked for: an emulated board on a busy machine may miss one that is meant for hardware.
"""

import hashlib
import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import places
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

LATENT_BIAS = "latent_embeddings_bias"
LOGITS = ("motif_logits_weight", "motif_logits_bias")


def make(folder, version, *, shift=0.0, permuted=False, golden=True, name="imu-motion", ballast=0, deadline_ms=60_000, engines=None):
    """A variant in `folder`. `shift` is added to every latent number, and the scores stay what they are: another answer of
    the same worth. `permuted`: the scores of the twelve motions change places. `golden=False` keeps the original's golden
    vectors, which such a network cannot reproduce. `ballast`: bytes of weights that nothing uses. `engines`: those it may be served by, instead of the original's."""
    shutil.copytree(places.DEFAULT_MODEL, folder)
    network = onnx.load(folder / "model.onnx")
    weights = {tensor.name: tensor for tensor in network.graph.initializer}

    def change(key, how):
        weights[key].CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(weights[key])), key))

    matrix = numpy_helper.to_array(weights[LOGITS[0]])
    if shift:
        change(LATENT_BIAS, lambda bias: bias + np.float32(shift))
        change(LOGITS[1], lambda bias: bias - np.float32(shift) * matrix.sum(axis=1))
    if permuted:
        for key in LOGITS:
            change(key, lambda value: np.roll(value, 5, axis=0))
    if ballast:
        noise = np.random.default_rng(1).standard_normal(ballast // 4, np.float32)
        network.graph.initializer.append(numpy_helper.from_array(noise, "ballast"))
    raw = network.SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(raw)
    if golden:
        save_file(reproduced(raw, load_file(folder / "golden.safetensors")), folder / "golden.safetensors")
    page = (folder / "manifest.toml").read_text()
    page = replaced(page, r'^name = ".*"', f'name = "{name}"')
    page = replaced(page, r'^version = ".*"', f'version = "{version}"')
    page = replaced(page, r"^deadline_ms = .*", f"deadline_ms = {deadline_ms}")
    if engines:
        page = replaced(page, r"^engines = .*", f"engines = {json.dumps(engines)}")
    for part in ("model.onnx", "golden.safetensors"):
        digest = hashlib.sha256((folder / part).read_bytes()).hexdigest()
        page = replaced(page, rf'(file = "{re.escape(part)}"\nsha256 = )".*"', rf'\1"{digest}"')
    (folder / "manifest.toml").write_text(page)
    return folder


def reproduced(network, golden):
    """The golden inputs with the answers of this network, by ONNX Runtime."""
    normal = places.DEFAULT_MODEL / "manifest.toml"
    mean, std = (np.array(numbers(normal.read_text(), key), np.float32) for key in ("mean", "std"))
    session = ort.InferenceSession(network, providers=["CPUExecutionProvider"])
    answers = {key: value for key, value in golden.items() if "/in/" in key}
    for key, window in list(answers.items()):
        case = key.split("/")[0]
        outputs = session.run(None, {"imu_window": (window - mean) / std})
        for spec, value in zip(session.get_outputs(), outputs, strict=True):
            answers[f"{case}/out/{spec.name}"] = value
    return answers


def numbers(page, key):
    """A list of numbers of the manifest."""
    return [float(number) for number in re.search(rf"(?m)^{key} = \[(.*)\]", page)[1].split(",")]


def replaced(page, pattern, by):
    """The page with exactly one change."""
    page, count = re.subn(rf"(?m){pattern}", by, page, count=1)
    assert count == 1, f"the manifest has no {pattern}"
    return page
